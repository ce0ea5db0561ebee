//! The backend that is asked who a request's sender is, where a request has no token but, for instance, a session's cookie.
//!
//! Equal credentials are asked for once at a time, and the answer is kept for a while. For open streams it is asked for again
//! from time to time, so that signing out ends them. Knows no request beyond its headers, no stream and no status code of ours.

use std::future::ready;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::stream::{self, StreamExt as _};
use hashbrown::HashSet;
use http::{HeaderMap, StatusCode, header};
use parking_lot::Mutex;
use reqwest::redirect;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::fingerprint::Fingerprint;
use super::issuer::union;
use super::settings::{Backend as Settings, Lists};
use super::{Grant, Owner, Revocations};
use crate::event::Timestamp;
use crate::subject::Pattern;
use crate::support::causes::chain;
use crate::support::seldom::Seldom;
use crate::support::web::{self, BodyError};

mod answer;
mod breaker;
mod desk;
mod forward;
#[cfg(test)]
mod tests;

pub(super) use answer::Answer;
use answer::{Asked, Nonsense};
use breaker::Failed;
use desk::{Asking, Desk, Found, Known, Outcome, SEATS, Timing};
pub(crate) use forward::Question;
pub(super) use forward::{Forward, TwoCookies};

/// Bytes of the longest answer.
const MAX_BYTES: usize = 64 << 10;
/// Questions at a time for streams that are open: the other seats are for those who wait.
const RECHECKS: usize = SEATS / 4;
/// The log tells of failures at most so often.
const QUIET: Duration = Duration::from_secs(10);

/// What a stream was opened by, where a backend was asked. Equal only to itself.
#[derive(Debug, Clone)]
pub struct Credential(Arc<Known>);

impl PartialEq for Credential {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Credential {}

/// How the backend is asked, for the metrics.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct BackendLoad {
    /// Questions by what became of them. `not_asked`: it was the breaker's pause, or all seats were taken.
    pub questions: [(&'static str, u64); RESULTS.len()],
    /// Requests that were answered by an earlier question.
    pub cached: u64,
    /// Questions under way.
    pub in_flight: u64,
    /// Whether the backend is left alone.
    pub breaker_open: bool,
}

const RESULTS: [&str; 4] = ["granted", "refused", "failed", "not_asked"];

/// What became of a question: an index of [`RESULTS`].
#[derive(Debug, Clone, Copy)]
enum Became {
    Granted,
    Refused,
    Failed,
    NotAsked,
}

/// What is counted, over all backends of the process.
#[derive(Debug, Default)]
struct Counts {
    questions: [AtomicU64; RESULTS.len()],
    cached: AtomicU64,
}

/// Why a credential gives no grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// By the backend's own word.
    Refused,
    /// What it was granted was revoked here.
    Revoked,
    /// The backend cannot be asked, or gives no sensible answer.
    Unavailable,
}

/// What owners may subscribe to from now on, and until when, where that has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Regrant {
    /// Nothing, where the credential is refused or somebody else's.
    pub subscribe: Arc<[Pattern]>,
    /// From when on it does not count any more.
    pub expires: Option<Timestamp>,
}

/// Why an answer is none. Does not name the URL.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the HTTP client cannot be made")]
    Client(#[source] reqwest::Error),
    #[error("the backend gives no answer")]
    Http(#[source] reqwest::Error),
    #[error("the backend answers with a redirect ({0}), which is not followed")]
    Redirect(u16),
    #[error("the backend answers {0}")]
    Status(u16),
    #[error("the backend's answer cannot be read")]
    Body(#[source] BodyError),
    #[error("the backend's answer makes no sense")]
    Nonsense(#[source] Nonsense),
}

impl Failure {
    /// The backend is there, and has answered so for this credential: nothing is said of others. Who sends nonsense must not be
    /// able to stop the questions of everybody.
    fn is_of_one(&self) -> bool {
        match self {
            Self::Redirect(_) | Self::Nonsense(_) => true,
            Self::Status(status) => (400..500).contains(status) && !matches!(status, 408 | 429),
            _ => false,
        }
    }
}

/// See the module.
#[derive(Clone)]
pub(super) struct Backend {
    settings: Arc<Settings>,
    /// What is open to anybody, and so part of each grant.
    open: Arc<Lists<Pattern>>,
    client: Arc<Mutex<Option<reqwest::Client>>>,
    desk: Arc<Desk>,
    /// Which of the backends that the desk has asked for this is.
    epoch: u64,
    /// When the log tells of a failure.
    failing: Arc<Seldom>,
    /// When the log tells of values that are not patterns.
    nonsense: Arc<Seldom>,
    counts: Arc<Counts>,
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backend").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Backend {
    pub(super) fn new(settings: Settings, open: &Lists<Pattern>) -> Self {
        let (settings, open) = (Arc::new(settings), Arc::new(open.clone()));
        let seldom = || Arc::new(Seldom::every(QUIET));
        Self {
            settings,
            open,
            client: Arc::default(),
            desk: Arc::default(),
            epoch: 0,
            failing: seldom(),
            nonsense: seldom(),
            counts: Arc::default(),
        }
    }

    /// Goes on with another one's credentials where the same is forwarded: they can be asked for again. Its answers are kept
    /// where the same backend is asked and the same is open to anybody.
    pub(super) fn in_place_of(mut self, other: &Self) -> Self {
        self.counts = other.counts.clone();
        if self.settings.forward != other.settings.forward {
            return self;
        }
        (self.desk, self.epoch) = (other.desk.clone(), other.epoch);
        let same = self.settings.url == other.settings.url && self.open == other.open;
        if !same {
            self.epoch = self.desk.begin_anew(Instant::now());
        } else if self.settings.recheck < other.settings.recheck {
            self.desk.hurry(Instant::now(), self.settings.recheck);
        }
        self
    }

    /// What is to be asked for a request.
    pub(super) fn question(&self, headers: &HeaderMap, publisher: bool) -> Result<Option<Question>, TwoCookies> {
        Question::of(&self.settings.forward, headers, publisher)
    }

    /// What a credential grants, which came from `address`.
    pub(super) async fn ask(&self, question: Question, address: IpAddr, revocations: &Arc<Revocations>) -> Result<Grant, Denied> {
        let of = self.desk.fingerprint(&question);
        loop {
            let answer = match self.outcome(of, &question, address, true, revocations).await {
                Outcome::Granted(answer) => answer,
                Outcome::Refused => return Err(Denied::Refused),
                Outcome::Failed => return Err(Denied::Unavailable),
            };
            let (question, forward) = (question.clone(), self.settings.forward.clone());
            let known = || Known::new(question, address, forward, answer.clone());
            let (owner, answer) = self.desk.owner(of, answer.clone(), known).ok_or(Denied::Refused)?;
            if !revocations.cover(&owner, Timestamp::now()) {
                let Answer { subscribe, publish, expires, .. } = &*answer;
                return Ok(Grant { subscribe: subscribe.clone(), publish: publish.clone(), owner: Some(owner), expires: *expires });
            }
            // The revocation may be about what was answered before it only, or before some time to come.
            if answer.revocations == revocations.added() && answer.asked.after(desk::REFUSED) > Timestamp::now() {
                return Err(Denied::Revoked);
            }
            self.desk.forget(of, &answer);
        }
    }

    async fn outcome(&self, of: Fingerprint, question: &Question, address: IpAddr, known: bool, revocations: &Arc<Revocations>) -> Outcome {
        let ask = || self.clone().asking(of, question.clone(), address, revocations.clone());
        match self.desk.find(of, known, Instant::now(), ask) {
            Found::Answer(outcome) => {
                if known {
                    self.counts.cached.fetch_add(1, Ordering::Relaxed);
                }
                outcome
            }
            Found::Asking(asking) => asking.await,
        }
    }

    /// A question, which takes in what becomes of it.
    fn asking(self, of: Fingerprint, question: Question, address: IpAddr, revocations: Arc<Revocations>) -> Asking {
        let asking = async move {
            let outcome = self.put(&question, address, &revocations).await;
            let Settings { cache, recheck, .. } = *self.settings;
            self.desk.store(of, self.epoch, &outcome, Timing { cache, recheck }, Instant::now());
            outcome
        };
        asking.boxed().shared()
    }

    /// Puts a question when it is its turn.
    async fn put(&self, question: &Question, address: IpAddr, revocations: &Revocations) -> Outcome {
        let not_asked = || {
            self.count(Became::NotAsked);
            Outcome::Failed
        };
        if !self.desk.breaker(|breaker| breaker.lets_through(Instant::now())) {
            return not_asked();
        }
        // Whoever waits longer is better off coming back later.
        let Ok(Ok(_seat)) = timeout(self.settings.timeout, self.desk.seats.acquire()).await else { return not_asked() };
        let Some(trial) = Trial::begin(self) else { return not_asked() };
        let asked = Asked { at: Timestamp::now(), revocations: revocations.added() };
        match self.fetch(question, address, asked).await {
            Ok(answer) => {
                trial.succeeded();
                self.count(if answer.is_some() { Became::Granted } else { Became::Refused });
                answer.map_or(Outcome::Refused, |answer| Outcome::Granted(Arc::new(answer)))
            }
            Err(failure) => {
                trial.failed(&failure);
                self.count(Became::Failed);
                Outcome::Failed
            }
        }
    }

    /// Logs a failure, now and then.
    fn tell(&self, failure: &Failure) {
        if self.failing.may(Instant::now()) {
            let (host, error) = (self.settings.url.host_str(), chain(failure));
            tracing::warn!(host, %error, "the backend cannot be asked");
        }
    }

    fn count(&self, became: Became) {
        self.counts.questions[became as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// For the metrics.
    pub(super) fn load(&self) -> BackendLoad {
        let questions = std::array::from_fn(|n| (RESULTS[n], self.counts.questions[n].load(Ordering::Relaxed)));
        let in_flight = (SEATS - self.desk.seats.available_permits()) as u64;
        let cached = self.counts.cached.load(Ordering::Relaxed);
        BackendLoad { questions, cached, in_flight, breaker_open: self.desk.breaker(|breaker| breaker.is_open()) }
    }

    /// `None`: the backend refuses.
    async fn fetch(&self, question: &Question, address: IpAddr, asked: Asked) -> Result<Option<Answer>, Failure> {
        let client = self.client()?;
        let mut request = client.get(self.settings.url.clone()).header(header::ACCEPT, "application/json");
        request = request.header("x-forwarded-for", address.to_canonical().to_string());
        for (name, value) in question.lines() {
            request = request.header(name, value);
        }
        let mut response = request.send().await.map_err(|e| Failure::Http(e.without_url()))?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Ok(None),
            status if status.is_redirection() => return Err(Failure::Redirect(status.as_u16())),
            status => return Err(Failure::Status(status.as_u16())),
        }
        let body = web::body(&mut response, MAX_BYTES).await.map_err(Failure::Body)?;
        let answer = Answer::read(&body, &self.open, asked, Timestamp::now()).map_err(Failure::Nonsense)?;
        if answer.bad > 0 && self.nonsense.may(Instant::now()) {
            tracing::warn!(values = answer.bad, "the backend's answer has values that are not valid patterns: they permit nothing");
        }
        Ok(Some(answer))
    }

    fn client(&self) -> Result<reqwest::Client, Failure> {
        let mut client = self.client.lock();
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let Settings { url, timeout, .. } = &*self.settings;
        let made = web::client(url, *timeout, redirect::Policy::none()).map_err(|e| Failure::Client(e.without_url()))?;
        Ok(client.insert(made).clone())
    }

    /// Asks again for the credentials of open streams, until another one has `replaced` this one and what was asked is answered:
    /// dropped then, a question would never be answered where replacing is faster than answering. `changed` is called where that
    /// gives something new, with what tells it to owners concerned.
    pub(super) async fn recheck(
        &self,
        revocations: &Arc<Revocations>,
        replaced: &CancellationToken,
        changed: impl Fn(&dyn Fn(&Owner) -> Option<Regrant>),
    ) {
        let ask = async {
            while !replaced.is_cancelled() {
                let due = stream::iter(self.desk.due(Instant::now())).take_while(|_| ready(!replaced.is_cancelled()));
                let again = async |(of, known): (Fingerprint, Arc<Known>)| {
                    self.outcome(of, &known.question, known.address, false, revocations).await;
                };
                due.for_each_concurrent(RECHECKS, again).await;
                let pause = (self.settings.recheck / 10).clamp(Duration::from_millis(50), Duration::from_secs(1));
                replaced.run_until_cancelled(sleep(pause)).await;
            }
        };
        let tell = replaced.run_until_cancelled(async {
            loop {
                self.desk.changed.notified().await;
                let news = self.desk.take_changed();
                let known: HashSet<*const Known> = news.iter().map(Arc::as_ptr).collect();
                changed(&|owner| {
                    let credential = owner.credential.as_ref()?;
                    known.contains(&Arc::as_ptr(&credential.0)).then(|| self.regrant(owner, credential))
                });
            }
        });
        tokio::join!(ask, tell);
    }

    /// What an owner may subscribe to by what was answered last.
    fn regrant(&self, owner: &Owner, credential: &Credential) -> Regrant {
        let nothing = Regrant { subscribe: Arc::default(), expires: None };
        let answer = self.counts(credential).filter(|answer| answer.identity == owner.identity);
        answer.map_or(nothing, |answer| Regrant { subscribe: self.union(&answer), expires: answer.expires })
    }

    /// What an owner may subscribe to.
    pub(super) fn subscribes(&self, owner: &Owner, credential: &Credential) -> Arc<[Pattern]> {
        self.regrant(owner, credential).subscribe
    }

    /// What was answered last, where that is still to be asked for.
    pub(super) fn counts(&self, credential: &Credential) -> Option<Arc<Answer>> {
        credential.0.granted().filter(|_| credential.0.forward == self.settings.forward)
    }

    fn union(&self, answer: &Answer) -> Arc<[Pattern]> {
        union([answer.own.subscribe.as_slice(), &self.open.subscribe].concat())
    }
}

/// A question that the breaker has let through.
struct Trial<'a> {
    backend: &'a Backend,
    /// It is the one that tries whether the backend is back, and has not ended yet.
    trying: bool,
}

impl<'a> Trial<'a> {
    fn begin(backend: &'a Backend) -> Option<Self> {
        let trying = backend.desk.breaker(|breaker| breaker.enter(Instant::now()))?;
        Some(Self { backend, trying })
    }

    fn succeeded(mut self) {
        self.trying = false;
        if self.backend.desk.breaker(breaker::Breaker::succeeded) {
            tracing::info!(host = self.backend.settings.url.host_str(), "the backend answers again");
        }
    }

    fn failed(mut self, failure: &Failure) {
        let backend = self.backend;
        if failure.is_of_one() {
            self.succeeded();
            return backend.tell(failure);
        }
        self.trying = false;
        match backend.desk.breaker(|breaker| breaker.failed(Instant::now())) {
            Failed::Opened(pause) => {
                let (host, error, seconds) = (backend.settings.url.host_str(), chain(failure), pause.as_secs());
                tracing::warn!(host, %error, seconds, "the backend fails and is not asked for a while");
            }
            Failed::Counted => backend.tell(failure),
            Failed::Open => {}
        }
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        if self.trying {
            self.backend.desk.breaker(breaker::Breaker::abandoned);
        }
    }
}
