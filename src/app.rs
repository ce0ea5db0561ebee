//! The composition root: builds every room, owns every task, and ends them in order.
//!
//! Alone in knowing all rooms. Sources that fail are their supervisor's affair; any other task that ends, ends the process.

use std::future::Future;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use futures_util::FutureExt as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::auth::{Authenticator, SetupError};
use crate::config::Config;
use crate::event::{GapReason, Timestamp};
use crate::frame::{Closing, Form};
use crate::http::connection::{Bounds, Ends, Server};
use crate::http::handoff::{Adopt, Handover};
use crate::http::{Begin, Inbox, ListenError, Opened, Opening, TlsError, admin, listen};
use crate::hub::{Filter, Hub, Limits, SourceSpec};
use crate::metrics::{Metrics, Readings, SourceReading};
use crate::pool::Pool;
use crate::replay::{self, Streams};
use crate::route::{RouteError, Router};
use crate::source::supervisor::Supervisor;
use crate::source::{Adapter, Common, ErrorKind, Handle, Start};
use crate::writer::pump::pump;
use crate::writer::{Returned, Writer};

mod intake;
mod system;

use intake::Intake;
use system::Signals;

/// Between two heartbeats the channels take turns in so many parts, so that not all sockets are written at once.
const BEATS: u32 = 16;
/// Streams end so far apart when the process drains, as long as the time allows.
const STAGGER: Duration = Duration::from_millis(10);

/// Why the bridge could not start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A port is taken, or an address is not this machine's.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The certificate or its key.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A key or a template of a grant.
    #[error(transparent)]
    Auth(#[from] SetupError),
    /// A route's templates.
    #[error("`routes` cannot be used")]
    Route(#[from] RouteError),
    /// The system refused something that is needed.
    #[error("cannot {what}")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// A task that must not end has ended.
    #[error("the task `{task}` {how}")]
    Task {
        /// Which.
        task: &'static str,
        /// How.
        how: &'static str,
    },
}

/// How the bridge came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// In good order, within `server.drain`.
    Drained,
    /// At once, by a second signal of this number.
    Signal(i32),
}

/// Runs the bridge until it is told to end.
///
/// # Errors
/// When it cannot listen, or a task of its own fails.
pub async fn run(config: Config) -> Result<Exit, Error> {
    let mut signals = Signals::new().map_err(|cause| Error::System { what: "listen to signals", cause })?;
    system::raise_descriptors(config.subscribers.max);
    let mut bridge = Bridge::start(config)?;
    let ended = tokio::select! {
        signal = signals.next() => {
            info!(signal, "draining");
            None
        }
        ended = bridge.tasks.join_next() => Some(ended),
    };
    if let Some(ended) = ended {
        return Err(failure(ended));
    }
    tokio::select! {
        () = bridge.drain() => {
            info!("drained");
            Ok(Exit::Drained)
        }
        signal = signals.next() => {
            warn!(signal, "ending at once");
            Ok(Exit::Signal(signal))
        }
    }
}

/// What became of a task that must not end.
fn failure(ended: Option<Result<(&'static str, bool), tokio::task::JoinError>>) -> Error {
    match ended {
        Some(Ok((task, panicked))) => Error::Task { task, how: if panicked { "panicked" } else { "ended" } },
        Some(Err(_)) | None => Error::Task { task: "bridge", how: "ended" },
    }
}

/// Everything that runs.
struct Bridge {
    /// Tasks that must not end by themselves.
    tasks: JoinSet<(&'static str, bool)>,
    sources: JoinSet<()>,
    /// One for each connection.
    connections: TaskTracker,
    admin_connections: TaskTracker,
    streams: Arc<Streams>,
    writer: Arc<Writer>,
    drain: Duration,
    /// No new streams.
    draining: CancellationToken,
    stop_sources: CancellationToken,
    ends: Ends,
    admin_ends: Ends,
}

/// A source, built.
struct Built {
    adapter: Arc<dyn Adapter>,
    handle: Arc<Handle>,
    max_payload: usize,
}

impl Bridge {
    fn start(config: Config) -> Result<Self, Error> {
        let limits = &config.server.limits;
        let bounds = Bounds {
            handshake: limits.handshake_timeout,
            header: limits.header_timeout,
            stall: config.subscribers.max_stall,
            header_bytes: limits.header_bytes,
        };
        // Both ports first: nothing else has begun when one is taken.
        let user_timeout = (bounds.stall * 4).max(Duration::from_secs(60));
        let tls = config.server.tls.as_ref().map(crate::http::tls::Tls::load).transpose()?.map(Arc::new);
        let public = listen::bind("server.listen", config.server.listen, user_timeout)?;
        let private = listen::bind("admin.listen", config.admin.listen, user_timeout)?;

        let sources: Vec<_> = config
            .sources
            .iter()
            .map(|(name, source)| {
                let adapter = source.adapter.clone().build(name, Common { max_payload: source.max_payload });
                let handle = Arc::new(Handle::new(name.clone(), &*adapter, source.required));
                Built { adapter, handle, max_payload: source.max_payload }
            })
            .collect();
        let reach: Vec<_> = sources.iter().map(|s| (s.handle.name.clone(), s.adapter.reach())).collect();
        let router = Arc::new(Router::new(&config.routes, &reach)?);
        let spec = |(n, s): (usize, &Built)| SourceSpec {
            name: s.handle.name.clone(),
            durable: s.handle.durable,
            concerns: replay::concerns(&router, n),
        };
        let window = Limits { bytes: config.window.bytes, age: config.window.age };
        let hub = Hub::new(sources.iter().enumerate().map(spec).collect(), window, rand::random());
        let logs = sources.iter().map(|s| replay::Log { adapter: s.adapter.clone(), max_payload: s.max_payload }).collect();
        let settings = replay::Settings {
            heartbeat: config.server.heartbeat,
            retry: config.server.retry,
            readers: config.history.readers,
            rate: config.history.rate,
        };
        let streams = Streams::new(hub.clone(), router.clone(), logs, settings);
        let pool = Pool::new(&config.subscribers);
        let connections = TaskTracker::new();
        let loops = std::thread::available_parallelism().map_or(1, usize::from);
        let (writer, writing) =
            Writer::start(&hub, loops, bounds.stall).map_err(|cause| Error::System { what: "start the writers", cause })?;
        let adopt = adopt(writer.clone(), bounds.stall);

        let handles: Vec<_> = sources.iter().map(|s| s.handle.clone()).collect();
        let readings = readings(handles.clone(), router.clone(), streams.clone(), pool.clone(), connections.clone());
        let asked = readings.clone();
        let metrics = Arc::new(Metrics::new(move || asked()));
        let counts = handles.iter().map(|h| metrics.source(h.name.as_str())).collect();
        let intake: Arc<dyn crate::source::Intake> = Arc::new(Intake { router: router.clone(), hub: hub.clone(), counts });

        let mut bridge = Self {
            tasks: JoinSet::new(),
            sources: JoinSet::new(),
            connections,
            admin_connections: TaskTracker::new(),
            streams: streams.clone(),
            writer,
            drain: config.server.drain,
            draining: CancellationToken::new(),
            stop_sources: CancellationToken::new(),
            ends: Ends::default(),
            admin_ends: Ends::default(),
        };
        let auth = Arc::new(Authenticator::new(&config.auth, limits)?);
        let inbox = |s: &Built| s.adapter.inbox().map(|handle| Inbox { subjects: s.adapter.reach(), max_payload: s.max_payload, handle });
        let rooms = crate::http::Rooms {
            auth: auth.clone(),
            pool,
            metrics: metrics.clone(),
            inboxes: sources.iter().filter_map(inbox).collect(),
            draining: bridge.draining.clone(),
            open: Box::new(move |opening| {
                let handover = Handover::new(open(&streams, opening));
                Opened { body: Body::new(handover.clone()), handover: Some(handover) }
            }),
        };
        let face = crate::http::router(&config, rooms);
        let server = Server::new(
            face,
            tls.clone(),
            bounds,
            bridge.ends.clone(),
            bridge.connections.clone(),
            metrics.stalled.clone(),
            Some(adopt.clone()),
        );
        let stalled = metrics.stalled.clone();
        let admin = admin::router(admin::Rooms {
            metrics,
            sources: handles.into_iter().enumerate().map(|(n, handle)| admin::Source { handle, reach: router.reach(n) }).collect(),
            readings,
            draining: bridge.draining.clone(),
        });
        let admin = Server::new(admin, None, bounds, bridge.admin_ends.clone(), bridge.admin_connections.clone(), stalled, None);

        for (index, source) in sources.into_iter().enumerate() {
            bridge.supervise(index, source, intake.clone(), Start::Recent { age: config.window.age, bytes: config.window.bytes as u64 });
        }
        // It ends at once where there is nothing to fetch.
        bridge.own("keys", async move {
            auth.refresh_keys().await;
            std::future::pending().await
        });
        if let Some(tls) = tls {
            bridge.own("certificate", async move { match tls.follow().await {} });
        }
        for ended in writing.ended {
            bridge.own("writer", async move { drop(ended.await) });
        }
        bridge.own("returns", take_back(writing.returned, bridge.connections.clone(), adopt, bridge.ends.clone()));
        bridge.own("heartbeat", beat(hub, config.server.heartbeat));
        announce(&config, public.local_addr().ok(), private.local_addr().ok());
        bridge.own("listener", server.run(public));
        bridge.own("admin listener", admin.run(private));
        Ok(bridge)
    }

    /// Runs what must not end.
    fn own(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(async move { (name, AssertUnwindSafe(task).catch_unwind().await.is_err()) });
    }

    /// Runs a source, again and again should its supervisor panic.
    fn supervise(&mut self, index: usize, source: Built, intake: Arc<dyn crate::source::Intake>, warm_up: Start) {
        let cancel = self.stop_sources.clone();
        self.sources.spawn(async move {
            let Built { adapter, handle, max_payload } = source;
            loop {
                let (adapter, intake, its) = (adapter.clone(), intake.clone(), handle.clone());
                let run = Supervisor { index, adapter, intake, handle: its, warm_up, max_payload }.run(cancel.clone());
                let panicked = AssertUnwindSafe(run).catch_unwind().await.is_err();
                if cancel.is_cancelled() {
                    return;
                }
                error!(source = %handle.name, panicked, "source has ended and is started again");
                sleep(Duration::from_secs(1)).await;
            }
        });
    }

    /// Ends everything, in order and within `server.drain`.
    async fn drain(&mut self) {
        let deadline = Instant::now() + self.drain;
        self.draining.cancel();
        // Nothing new comes in, and what came is acknowledged.
        self.stop_sources.cancel();
        let sources = async { while self.sources.join_next().await.is_some() {} };
        if timeout_at(Instant::now() + self.drain / 3, sources).await.is_err() {
            warn!("some sources did not end in time");
        }
        self.ends.accept.cancel();
        // Streams end one after another, so that their clients don't come back all at once; a part of the time is left
        // for what they are still to be sent.
        let left = deadline.saturating_duration_since(Instant::now());
        let streams = u32::try_from(self.streams.opened()).unwrap_or(u32::MAX);
        let span = STAGGER.saturating_mul(streams).min(left.mul_f64(0.7));
        self.streams.drain(span);
        self.writer.drain(span);
        self.ends.close.cancel();
        self.connections.close();
        let grace = left.mul_f64(0.1).min(Duration::from_millis(500));
        let ended = async {
            self.connections.wait().await;
            // Only now: what ends as a task may still become a loop's.
            while self.writer.streams() > 0 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        if timeout_at(deadline - grace, ended).await.is_err() {
            warn!(
                connections = self.connections.len(),
                streams = self.writer.streams(),
                "some connections did not end in time and are cut"
            );
        }
        self.ends.cut.cancel();
        self.writer.stop();
        self.admin_ends.accept.cancel();
        self.admin_ends.close.cancel();
        self.admin_connections.close();
        let rest = async { tokio::join!(self.connections.wait(), self.admin_connections.wait()) };
        // Whoever asks the admin listener right now is answered, but not waited for.
        drop(timeout_at(deadline.min(Instant::now() + Duration::from_millis(200)), rest).await);
        self.admin_ends.cut.cancel();
        self.tasks.shutdown().await;
    }
}

/// Writes a stream until it has caught up, then gives it to a loop.
fn adopt(writer: Arc<Writer>, stall: Duration) -> Adopt {
    Arc::new(move |socket, stream, beyond| {
        let writer = writer.clone();
        Box::pin(async move {
            if let Some((socket, live)) = pump(socket, stream, stall).await {
                writer.adopt(socket, live, beyond).await;
            }
        })
    })
}

/// Carries on the streams that have fallen behind.
async fn take_back(mut returned: UnboundedReceiver<Returned>, tasks: TaskTracker, adopt: Adopt, ends: Ends) {
    while let Some(Returned { socket, live, last_id }) = returned.recv().await {
        // A socket that the runtime cannot take is closed, and so its client comes back.
        let Ok(socket) = TcpStream::from_std(socket) else { continue };
        let carried = adopt(socket, Streams::carry_on(live, &last_id), 0);
        let cut = ends.cut.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = carried => {}
                () = cut.cancelled() => {}
            }
        });
    }
    std::future::pending().await
}

fn open(streams: &Arc<Streams>, opening: Opening) -> replay::Subscription {
    let form = if opening.json { Form::Json } else { Form::Routed };
    let from = match opening.begin {
        Begin::Now => replay::From::Now,
        Begin::After(cursor) => replay::From::Cursor(cursor),
        Begin::Unreadable => replay::From::Unreadable,
        Begin::Earliest => replay::From::Earliest,
        Begin::Last => replay::From::Last,
        Begin::Since(time) => replay::From::Since(time),
    };
    let filter = Arc::new(Filter::new(opening.patterns, form));
    streams.open(replay::Request { filter, from, expires: opening.expires, permit: Box::new(opening.permit) })
}

/// Lets the hub's time pass.
async fn beat(hub: Arc<Hub>, heartbeat: Duration) {
    let mut ticks = tokio::time::interval((heartbeat / BEATS).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for part in 0.. {
        ticks.tick().await;
        hub.beat(part, u64::from(BEATS), Timestamp::now());
    }
}

/// What others count, gathered when somebody asks.
fn readings(
    handles: Vec<Arc<Handle>>,
    router: Arc<Router>,
    streams: Arc<Streams>,
    pool: Pool,
    connections: TaskTracker,
) -> Arc<dyn Fn() -> Readings + Send + Sync> {
    Arc::new(move || {
        let windows: Vec<_> = {
            let state = streams.hub().state();
            state.sources().iter().map(|s| (s.window().len() as u64, s.window().bytes() as u64)).collect()
        };
        let source = |(handle, (window_events, window_bytes)): (&Arc<Handle>, (u64, u64))| SourceReading {
            name: handle.name.to_string(),
            messages: handle.counters.messages(),
            bytes: handle.counters.bytes(),
            gaps: GapReason::ALL.iter().map(|reason| (*reason, handle.counters.gaps(*reason))).collect(),
            up: handle.status.read().state == crate::source::State::Up,
            reconnects: handle.counters.reconnects(),
            errors: ErrorKind::ALL.iter().map(|kind| (kind.as_str(), handle.counters.errors(*kind))).collect(),
            window_events,
            window_bytes,
        };
        Readings {
            sources: handles.iter().zip(windows).map(source).collect(),
            subscribers: streams.opened() as u64,
            subscribers_max: pool.max() as u64,
            ended: Closing::ALL.iter().map(|reason| (reason.as_str(), streams.closed(*reason))).collect(),
            channels: streams.hub().channels() as u64,
            history_readers: streams.reading() as u64,
            connections: connections.len() as u64,
            shortened_subjects: router.shortened(),
            reserved_names: router.reserved_names(),
        }
    })
}

/// Says where everything is.
fn announce(config: &Config, public: Option<SocketAddr>, private: Option<SocketAddr>) {
    let url = |scheme: &str, address: SocketAddr| {
        let host = if address.ip().is_unspecified() { SocketAddr::new([127, 0, 0, 1].into(), address.port()) } else { address };
        format!("{scheme}://{host}/")
    };
    let scheme = if config.server.tls.is_some() { "https" } else { "http" };
    let public = public.unwrap_or(config.server.listen);
    let private = private.unwrap_or(config.admin.listen);
    info!(listen = %public, admin = %private, sources = config.sources.len(), "listening");
    if config.server.dashboard {
        info!(url = url(scheme, public), "dashboard");
    }
}
