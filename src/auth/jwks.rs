//! JWK sets behind a URL: fetched within limits of size and time; the last good set is kept; an unknown key triggers
//! another fetch.
//!
//! Owns fetching and its timing. `keys` reads the sets. Knows no token and no request.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::Url;
use serde::Deserialize;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::keys::{self, Algorithm, Key, KeyError};
use crate::support::backoff::{Backoff, jittered};
use crate::support::web::{self, BodyError, trusted};

/// How long a set without a usable key is taken for a mistake: until then the keys of before count.
const EMPTY: Duration = Duration::from_secs(60);
/// The interval between fetches: a withdrawn key is trusted for at most this long.
const REFRESH: Duration = Duration::from_secs(300);
/// The shortest interval between fetches because of unknown keys: anybody can invent key ids.
pub(super) const COOLDOWN: Duration = Duration::from_secs(30);
/// The wait before the next attempt after a failed fetch.
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), factor: 2.0, most: Duration::from_secs(60) };
/// The time limit of a fetch, from connecting to the last byte.
const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_BYTES: usize = 1 << 20;

/// Why a set could not be fetched. Does not name the URL, which may hold a password.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    /// No key set was answered.
    #[error("the key set could not be fetched")]
    KeySet(#[source] GetError),
    /// No OpenID provider's metadata were answered.
    #[error("the issuer's `/.well-known/openid-configuration` could not be fetched")]
    Discovery(#[source] GetError),
    /// Not an OpenID provider's metadata.
    #[error("the issuer's `/.well-known/openid-configuration` is not a JSON object with `issuer` and `jwks_uri`")]
    Metadata,
    /// OpenID Connect Discovery 1.0, section 4.3.
    #[error("the `issuer` in `/.well-known/openid-configuration` is not the configured one")]
    Issuer,
    /// Keys that anybody on the way could replace.
    #[error("the `jwks_uri` in `/.well-known/openid-configuration` has neither https nor a loopback address")]
    Clear,
    /// Fetched, but not usable.
    #[error("the key set cannot be used")]
    Set(#[source] KeyError),
}

/// Why there is no text behind a URL, which it does not name.
#[derive(Debug, thiserror::Error)]
pub(super) enum GetError {
    /// No connection, or no answer in time.
    #[error(transparent)]
    Http(reqwest::Error),
    /// An answer that breaks off, or is larger than a megabyte.
    #[error("the answer cannot be read")]
    Body(#[source] BodyError),
    /// A status other than 200.
    #[error("the server answered {0}")]
    Status(u16),
    /// Not UTF-8.
    #[error("the answer is not UTF-8 text")]
    Text,
}

/// Where a set is.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// At this URL.
    Set(Url),
    /// Where the metadata of this issuer says, which is named as in its tokens and is at this URL.
    Issuer(String, Url),
}

/// One `jwks_url` or `discover`.
pub(super) struct Remote {
    place: Place,
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    state: Mutex<State>,
    wanted: Notify,
}

impl fmt::Debug for Remote {
    /// Without the URL, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("host", &self.url().host_str()).field("algorithms", &self.algorithms).finish_non_exhaustive()
    }
}

/// What an attempt to fetch knows of those before it.
#[derive(Debug, Default)]
pub(super) struct Before {
    client: Option<reqwest::Client>,
    /// Since when the set has had no key that can be used.
    empty: Option<Instant>,
}

#[derive(Debug, Default)]
struct State {
    /// The text of the last good set, to know whether a new one differs.
    body: Option<String>,
    fetching: bool,
    /// Whether an attempt to fetch it has come to its end.
    tried: bool,
    /// Why the last fetch failed.
    failed: Option<String>,
    /// When the last fetch began.
    began: Option<Instant>,
    /// When the set came last.
    came: Option<Instant>,
}

/// Whether an unknown key may become known by waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hope {
    /// A fetch is under way, has just been asked for, or failed last time.
    Waiting,
    /// The set was fetched recently, and the key is not in it.
    None,
}

impl Remote {
    pub(super) fn new(place: Place, id: Option<String>, algorithms: Vec<Algorithm>) -> Self {
        Self { place, id, algorithms, state: Mutex::default(), wanted: Notify::new() }
    }

    fn url(&self) -> &Url {
        match &self.place {
            Place::Set(url) | Place::Issuer(_, url) => url,
        }
    }

    /// Whether the set crosses a network without protection.
    pub(super) fn in_the_clear(&self) -> bool {
        !trusted(self.url())
    }

    pub(super) fn serves(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }

    /// Whether a key that is used as this [`keys::Key::print`] says may be in the set, which nobody has tried to fetch yet: keys that
    /// move there from a file keep their streams so long. No longer, as a server that is away must keep no key that was taken out.
    pub(super) fn may_hold(&self, print: u64) -> bool {
        !self.state.lock().tried && self.algorithms.iter().any(|algorithm| keys::is_used_with(print, *algorithm))
    }

    /// Goes on with the set of another one, if that is of the same URL and for the same keys. Returns whether it is.
    pub(super) fn keep_fetched(&self, of: &Self) -> bool {
        let same = self.place == of.place && self.id == of.id && self.algorithms == of.algorithms;
        if same {
            let State { body, began, came, fetching, tried, failed } = &*of.state.lock();
            // What failed, or was broken off, is tried again at once. Until then a key that is not there may come.
            let began = began.filter(|_| !fetching && failed.is_none());
            *self.state.lock() = State { body: body.clone(), began, came: *came, fetching: false, tried: *tried, failed: None };
        }
        same
    }

    /// Where it is, without what may be secret.
    pub(super) fn shown(&self) -> String {
        let url = self.url();
        format!("{}{}", url.origin().ascii_serialization(), url.path())
    }

    /// Since it was fetched last.
    pub(super) fn age(&self) -> Option<Duration> {
        self.state.lock().came.map(|came| came.elapsed())
    }

    pub(super) fn loaded(&self) -> bool {
        self.state.lock().body.is_some()
    }

    #[cfg(test)]
    pub(super) fn failed(&self) -> bool {
        let state = self.state.lock();
        state.failed.is_some() && !state.fetching
    }

    /// Why there is no set yet.
    pub(super) fn failure(&self) -> Option<String> {
        let state = self.state.lock();
        state.failed.clone().filter(|_| state.body.is_none())
    }

    /// Asks for another fetch because of a key that is not known.
    pub(super) fn miss(&self) -> Hope {
        let mut state = self.state.lock();
        if state.fetching || state.failed.is_some() || state.began.is_none() {
            return Hope::Waiting;
        }
        if state.began.is_some_and(|began| began.elapsed() < COOLDOWN) {
            return Hope::None;
        }
        // Asked for once: all that miss a key until the fetch has ended wait for the same fetch.
        state.fetching = true;
        self.wanted.notify_one();
        Hope::Waiting
    }

    fn client(&self) -> Result<reqwest::Client, FetchError> {
        let redirects = reqwest::redirect::Policy::custom(|attempt| match attempt.previous().len() {
            0..=3 if trusted(attempt.url()) => attempt.follow(),
            _ => attempt.stop(),
        });
        web::client(self.url(), TIMEOUT, redirects).map_err(|e| FetchError::KeySet(GetError::Http(e.without_url())))
    }

    /// The set's text.
    async fn fetch(&self, client: &reqwest::Client) -> Result<String, FetchError> {
        let url = match &self.place {
            Place::Set(url) => url.clone(),
            Place::Issuer(name, url) => find(client, name, url).await?,
        };
        get(client, url, "application/jwk-set+json, application/json").await.map_err(FetchError::KeySet)
    }

    /// Makes one attempt. Returns the keys if they have changed.
    pub(super) async fn attempt(&self, before: &mut Before) -> Result<Option<(String, Arc<[Key]>)>, FetchError> {
        let client = match &mut before.client {
            Some(client) => client,
            client => client.insert(self.client()?),
        };
        let body = self.fetch(client).await?;
        if self.state.lock().body.as_ref() == Some(&body) {
            before.empty = None;
            return Ok(None);
        }
        let host = self.url().host_str().unwrap_or_default();
        match keys::from_set(&body, self.id.as_deref(), &self.algorithms) {
            Ok(keys) => {
                before.empty = None;
                tracing::info!(host, keys = keys.len(), "signing keys loaded");
                Ok(Some((body, keys.into())))
            }
            Err(KeyError::EmptySet) if before.empty.get_or_insert_with(Instant::now).elapsed() >= EMPTY => {
                tracing::warn!(host, "the key set has no key for the configured algorithms: those of before count no more");
                Ok(Some((body, Arc::default())))
            }
            Err(error) => Err(FetchError::Set(error)),
        }
    }

    /// How long a set that is there is good for.
    fn rest(&self) -> Option<Duration> {
        let state = self.state.lock();
        state.body.as_ref()?;
        Some(REFRESH.saturating_sub(state.began?.elapsed()))
    }

    /// Until then, or until a key is missed.
    async fn pause(&self, pause: Duration) {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.wanted.notified() => {}
        }
    }

    /// Fetches for ever. `fetched` gets each set before the attempt counts as done, `None` where it is the same as before; `done`
    /// is called after each attempt.
    pub(super) async fn run(&self, mut fetched: impl FnMut(Option<Arc<[Key]>>), mut done: impl FnMut()) {
        let host = self.url().host_str().unwrap_or_default();
        let mut before = Before::default();
        let mut failures = 0_u32;
        // A set that was kept from before is fetched again when its time has come.
        if let Some(rest) = self.rest() {
            self.pause(rest).await;
        }
        loop {
            {
                let mut state = self.state.lock();
                state.fetching = true;
                state.began = Some(Instant::now());
            }
            let attempt = self.attempt(&mut before).await;
            let failed = attempt.as_ref().err().map(|error| crate::support::causes::chain(error));
            let pause = match &attempt {
                Ok(_) => REFRESH,
                Err(_) => BACKOFF.after(failures.saturating_add(1)),
            };
            let body = match attempt {
                Ok(Some((body, keys))) => {
                    fetched(Some(keys));
                    Some(body)
                }
                Ok(None) => {
                    fetched(None);
                    None
                }
                Err(_) => {
                    // Logged once for each series of failures, not for each attempt.
                    if let Some(error) = failed.as_ref().filter(|_| failures == 0) {
                        tracing::warn!(host, %error, kept = self.loaded(), "signing keys cannot be loaded");
                    }
                    None
                }
            };
            if failed.is_none() && failures > 0 {
                tracing::info!(host, "signing keys can be loaded again");
            }
            failures = if failed.is_some() { failures.saturating_add(1) } else { 0 };
            {
                let mut state = self.state.lock();
                (state.fetching, state.tried) = (false, true);
                if failed.is_none() {
                    state.came = Some(Instant::now());
                }
                state.failed = failed;
                if body.is_some() {
                    state.body = body;
                }
            }
            done();
            self.pause(jittered(pause, 0.8..1.2)).await;
        }
    }
}

/// What matters here of an OpenID provider's metadata.
#[derive(Deserialize)]
struct Metadata {
    issuer: String,
    jwks_uri: String,
}

/// Where an issuer has its keys (OpenID Connect Discovery 1.0, section 4).
async fn find(client: &reqwest::Client, name: &str, issuer: &Url) -> Result<Url, FetchError> {
    let mut url = issuer.clone();
    url.set_path(&format!("{}/.well-known/openid-configuration", issuer.path().trim_end_matches('/')));
    let metadata = get(client, url, "application/json").await.map_err(FetchError::Discovery)?;
    let metadata: Metadata = serde_json::from_str(&metadata).map_err(|_| FetchError::Metadata)?;
    if metadata.issuer != name {
        return Err(FetchError::Issuer);
    }
    let keys: Url = metadata.jwks_uri.parse().map_err(|_| FetchError::Metadata)?;
    // A client of an issuer with https takes nothing else.
    if trusted(&keys) { Ok(keys) } else { Err(FetchError::Clear) }
}

async fn get(client: &reqwest::Client, url: Url, accept: &'static str) -> Result<String, GetError> {
    let http = |e: reqwest::Error| GetError::Http(e.without_url());
    let mut response = client.get(url).header(http::header::ACCEPT, accept).send().await.map_err(http)?;
    if response.status() != http::StatusCode::OK {
        return Err(GetError::Status(response.status().as_u16()));
    }
    let body = web::body(&mut response, MAX_BYTES).await.map_err(GetError::Body)?;
    String::from_utf8(body).map_err(|_| GetError::Text)
}
