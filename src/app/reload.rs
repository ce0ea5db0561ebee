//! Reads the configuration again while the process runs, and applies what has changed.
//!
//! Knows which room takes what. Reads with the same layers and checks as the start. One reload at a time: who owns the
//! [`Reloader`] asks it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::REVOKED_WITHIN;
use super::explain::Explainer;
use super::revocations::Follower;
use super::settings::{Fixed, Loaded, load_again};
use super::sources::Sources;
use super::watch::Watched;
use crate::auth::{self, Authenticator, Owner};
use crate::event::Timestamp;
use crate::frame::Closing;
use crate::http::admin::Reload;
use crate::http::connection::Bounds;
use crate::http::tls::Tls;
use crate::http::{Current, Policy};
use crate::metrics::{Metrics, Reloaded};
use crate::pool::{Pool, Rates};
use crate::settings::{SettingsError, Written};
use crate::stream::{Selection, Streams};
use crate::support::address::Address;
use crate::telemetry::{Access, Log, SpanRef, Traces};

/// Which keys need a restart, or what is wrong with the configuration.
type Answer = Result<Vec<&'static str>, SettingsError>;

/// Orders to reload that wait for their turn; whoever gives one more waits too.
const ORDERS: usize = 16;

/// An order to reload.
pub(super) struct Order {
    /// Where its answer goes.
    pub(super) answer: oneshot::Sender<Answer>,
    /// The span within which it was given.
    pub(super) parent: Option<SpanRef>,
}

/// Orders to reload.
pub(super) struct Orders(mpsc::Receiver<Order>);

impl Orders {
    /// None yet, and what gives them.
    pub(super) fn new() -> (Self, Arc<Reload>) {
        let (give, orders) = mpsc::channel(ORDERS);
        let reload = move |parent| {
            let give = give.clone();
            let asked: futures_util::future::BoxFuture<'static, Option<Answer>> = Box::pin(async move {
                let (answer, answered) = oneshot::channel();
                give.send(Order { answer, parent }).await.ok()?;
                answered.await.ok()
            });
            asked
        };
        (Self(orders), Arc::new(reload))
    }

    /// The next one. Cancel safe.
    pub(super) async fn next(&mut self) -> Order {
        match self.0.recv().await {
            Some(order) => order,
            None => std::future::pending().await,
        }
    }
}

/// What a reload changes, and what it compares with.
pub(super) struct Reloader {
    /// The configuration's own files.
    pub(super) files: Vec<PathBuf>,
    /// These, and those that they name.
    pub(super) watched: Arc<Watched>,
    pub(super) log: Log,
    pub(super) access: Arc<Access>,
    pub(super) traces: Traces,
    /// What cannot change.
    pub(super) fixed: Fixed,
    pub(super) bounds: Bounds,
    /// Where the public listener and the admin listener are.
    pub(super) listens: [Address; 2],
    /// Of the public listener and the admin listener.
    pub(super) tls: [Option<Arc<Tls>>; 2],
    pub(super) policy: watch::Sender<Current>,
    /// What tokens are checked by, for whoever fetches its keys.
    pub(super) auth: watch::Sender<Arc<Authenticator>>,
    /// What it was made of.
    pub(super) auth_written: (Written, usize),
    pub(super) pool: Pool,
    pub(super) rates: Rates,
    pub(super) streams: Arc<Streams>,
    pub(super) metrics: Arc<Metrics>,
    /// Who sees what, and why.
    pub(super) explainer: Arc<ArcSwap<Explainer>>,
    /// Reads revocations of a broker.
    pub(super) follower: Follower,
    /// How long a shutdown may take.
    pub(super) drain: Duration,
    /// How long it serves as before until then.
    pub(super) drain_delay: Duration,
}

impl Reloader {
    /// Reads the configuration again and applies it, or nothing of it if something is wrong with it. `parent`: the span within which
    /// that was asked for.
    pub(super) async fn reload(&mut self, sources: &mut Sources, parent: Option<SpanRef>) -> Answer {
        let span = self.traces.work("reload", parent);
        let (files, watched, [public, _]) = (self.files.clone(), self.watched.clone(), self.listens.clone());
        let read = move || {
            watched.about_to_read();
            load_again(&files, &public)
        };
        // On a file system that hangs, only this waits.
        let read = tokio::task::spawn_blocking(read).await;
        let read = read.unwrap_or_else(|_| Err(SettingsError::new("the configuration could not be read")));
        let answer = match read {
            Ok(loaded) => Ok(self.apply(loaded, sources).await),
            Err(refused) => {
                self.watched.add(refused.files());
                for problem in refused.problems() {
                    error!(%problem, "configuration refused, the one before it stays in use");
                }
                Err(refused)
            }
        };
        let result = if answer.is_ok() { Reloaded::Applied } else { Reloaded::Refused };
        self.metrics.reloads.reloaded(result);
        self.metrics.in_sync.set(i64::from(answer.as_ref().is_ok_and(Vec::is_empty)));
        span.end(answer.is_err(), || {
            let needs_restart = answer.as_ref().map_or_else(|_| String::new(), |keys| keys.join(", "));
            vec![("brokercast.result", result.as_str().into()), ("brokercast.needs_restart", needs_restart.into())]
        });
        answer
    }

    async fn apply(&mut self, loaded: Loaded, sources: &mut Sources) -> Vec<&'static str> {
        let Loaded { settings, log, warnings, files, yaml, places, .. } = loaded;
        self.explainer.store(Arc::new(Explainer::new(&settings, places)));
        self.watched.set(settings.watch, [self.files.clone(), files].concat());
        let needs_restart = self.fixed.changed(&settings.fixed(log.format()));
        self.access.set(log.access());
        self.traces.configure(settings.traces.as_ref());
        self.log.configure(log);
        for warning in warnings {
            warn!(warning, "configuration");
        }
        let (mut http, wanted) = (settings.http, settings.sources);
        http.bounds = self.bounds;
        for (served, newer) in self.tls.iter().zip([&http.tls, &http.admin.tls]) {
            if let (Some(served), Some(newer)) = (served, newer) {
                served.configure(newer);
            }
        }
        // Who may ask the admin listener depends on where it listens and what it speaks until the restart.
        (http.admin.listen, http.admin.tls) = (self.listens[1].clone(), self.tls[1].clone());
        (self.drain, self.drain_delay) = (settings.drain, settings.drain_delay);
        self.pool.configure(settings.pool);
        self.rates.configure(settings.rates);
        self.streams.hub().configure(settings.window);
        self.streams.histories().configure(settings.histories);
        self.streams.set_retry(settings.streams.retry);
        let before = self.auth.borrow().clone();
        let control = settings.auth.revocations.clone();
        let auth = self.authenticator(settings.auth, settings.token_bytes);
        let same_grants = Arc::ptr_eq(&auth, &before);
        let policy = Arc::new(Policy::new(http, auth.clone(), settings.streams.retry));
        // Nobody is to see by an old grant what new routes and sources bring, nor by a new grant what old routes let through:
        // first grants narrow, then routes and sources change, then grants widen. Streams that begin meanwhile wait.
        self.policy.send_replace(Current { policy: policy.clone(), settled: same_grants });
        let granted = |owner: Option<&Arc<Owner>>| Some(auth.subscribes(owner.map(Arc::as_ref), Timestamp::now()));
        let ended = if same_grants { 0 } else { self.streams.narrow(granted, Timestamp::now()) };
        self.follower.follow(control.as_ref(), &wanted).await;
        sources.follow(wanted, &settings.routes, settings.window).await;
        let widened = if same_grants { 0 } else { self.streams.widen(granted) };
        if ended + widened > 0 {
            info!(ended, widened, "streams follow their grants");
        }
        self.policy.send_replace(Current { policy, settled: true });
        self.metrics.configured(&yaml, Timestamp::now());
        if needs_restart.is_empty() {
            info!("configuration applied");
        } else {
            warn!(keys = needs_restart.join(", "), "configuration applied, but for keys that need a restart");
        }
        needs_restart
    }

    /// What tokens are checked by from now on: the one before where nothing of it has changed.
    fn authenticator(&mut self, auth: auth::Settings, token_bytes: usize) -> Arc<Authenticator> {
        let before = self.auth.borrow().clone();
        let written = (auth.written.clone(), token_bytes);
        if written == self.auth_written {
            return before;
        }
        self.auth_written = written;
        let newer = Arc::new(Authenticator::new(auth, token_bytes).in_place_of(&before));
        self.auth.send_replace(newer.clone());
        newer
    }
}

/// Fetches the keys of whatever tokens are checked by at the moment, and ends the streams of those that are taken out.
pub(super) async fn refresh_keys(mut auth: watch::Receiver<Arc<Authenticator>>, streams: Arc<Streams>) {
    loop {
        let present = auth.borrow_and_update().clone();
        let refresh = async {
            // It ends at once where there is nothing to fetch.
            present.refresh_keys().await;
            std::future::pending::<()>().await;
        };
        let follow = async {
            let mut attempts = present.attempts();
            loop {
                let ended = streams.end(Selection::LostKey(&present), Closing::Revoked, Timestamp::now(), REVOKED_WITHIN);
                if ended > 0 {
                    info!(ended, "streams end whose signing keys were taken out");
                }
                let attempted = async { attempts.as_mut()?.changed().await.ok() };
                if attempted.await.is_none() {
                    return std::future::pending().await;
                }
            }
        };
        tokio::select! {
            () = refresh => {}
            () = follow => {}
            changed = auth.changed() => if changed.is_err() { return std::future::pending().await },
        }
    }
}

/// Asks the backend again for those whose streams are open, and lets the streams follow what it answers.
pub(super) async fn recheck(mut auth: watch::Receiver<Arc<Authenticator>>, streams: Arc<Streams>) {
    let streams = &streams;
    // By what counts at the moment, and by what counted before until all that was asked is answered.
    let mut asking = FuturesUnordered::new();
    loop {
        let (present, replaced) = (auth.borrow_and_update().clone(), CancellationToken::new());
        let until = replaced.clone();
        asking.push(async move {
            let follow = |regrant: &dyn Fn(&Owner) -> Option<auth::Regrant>| {
                let of = |owner: Option<&Arc<Owner>>| owner.and_then(|owner| regrant(owner));
                let granted = |owner: Option<&Arc<Owner>>| of(owner).map(|regrant| regrant.subscribe);
                let ended = streams.narrow(granted, Timestamp::now());
                let widened = streams.widen(granted);
                streams.expire(|owner| of(owner)?.expires);
                debug!(ended, widened, "streams follow the backend's answers");
            };
            present.recheck(&until, follow).await;
        });
        let changed = loop {
            tokio::select! {
                Some(()) = asking.next() => {}
                changed = auth.changed() => break changed,
            }
        };
        if changed.is_err() {
            return std::future::pending().await;
        }
        replaced.cancel();
    }
}
