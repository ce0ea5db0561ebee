//! The composition root: builds every room, owns every task, and ends them in order.
//!
//! Alone in knowing all rooms. Sources that fail are their supervisor's affair; any other task that ends, ends the process.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::auth::Authenticator;
use crate::event::Timestamp;
use crate::frame::Closing;
use crate::history::Histories;
use crate::http;
use crate::http::connection::{Bounds, Counts, Ends, Public, Server};
use crate::http::handoff::{Adopt, Handover};
use crate::http::tls::Tls;
use crate::http::{Current, ListenError, Listener, Policy, admin, listen};
use crate::hub::Hub;
use crate::metrics::{Metrics, Readings};
use crate::pool::{Pool, Rates};
use crate::settings::Places;
use crate::stream::{STAGGER, Selection, Streams};
use crate::support::address::Address;
use crate::support::random::in_range;
use crate::telemetry::{Access, AccessFormat, Format, Lines, Log, Traces};
use crate::transport::writer::{self, Writer};

mod access;
pub(crate) mod explain;
pub(crate) mod intake;
mod manager;
mod readings;
mod reload;
mod revocations;
pub(crate) mod settings;
pub(crate) mod sources;
mod system;
mod watch;

use explain::Explainer;
use readings::Asked;
use reload::{Orders, Reloader};
use revocations::Follower;
pub(crate) use settings::{Loaded, Settings, load};
use sources::{All, SourceRuntime, Sources, Tokio};
use system::Signals;
use watch::Watched;

/// Between two heartbeats the channels take turns in so many parts, so that not all sockets are written at once.
const BEATS: u32 = 16;
/// Streams of revoked tokens end within this time, so that their clients do not come back all at once.
const REVOKED_WITHIN: Duration = Duration::from_millis(500);

/// So long the end waits for the access log to be written.
const FLUSH: Duration = Duration::from_millis(500);
/// How long an explanation waits for keys that are being fetched.
const EXPLAIN: Duration = Duration::from_secs(2);

/// Why the bridge could not start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Error {
    /// A port is taken, or an address is not this machine's.
    #[error(transparent)]
    Listen(#[from] ListenError),
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
pub(crate) enum Exit {
    /// In good order, within `server.drain`.
    Drained,
    /// At once, by a signal of this number that came while it drained.
    Signal(i32),
}

/// Where the settings of a process come from, and where it says what becomes of them.
#[derive(Debug)]
pub(crate) struct Origin {
    /// The configuration's files, later over earlier.
    pub files: Vec<PathBuf>,
    /// The log, which is set up.
    pub log: Log,
    /// Its form.
    pub format: Format,
    /// The form of the access log.
    pub access: AccessFormat,
    /// Files and folders that the configuration names.
    pub named: Vec<PathBuf>,
    /// All settings as YAML, without secrets.
    pub yaml: String,
    /// Where the values of key paths were written.
    pub(crate) places: Places,
}

/// Runs the bridge until it is told to end.
///
/// # Errors
/// When it cannot listen, or a task of its own fails.
pub(crate) async fn run(settings: Settings, origin: Origin) -> Result<Exit, Error> {
    let mut signals = Signals::new().map_err(|cause| Error::System { what: "listen to signals", cause })?;
    system::raise_descriptors(settings.pool.max);
    let (mut orders, reload) = Orders::new();
    let mut bridge = Bridge::start(settings, origin, reload)?;
    manager::ready();
    let (signal, until) = bridge.serve(&mut signals, &mut orders).await?;
    manager::stopping();
    // Whoever still asks to reload is told that it is too late.
    drop(orders);
    bridge.delay(until, &mut signals.ends).await?;
    info!(signal, "draining");
    tokio::select! {
        () = bridge.drain() => {
            info!("drained");
            Ok(Exit::Drained)
        }
        signal = signals.ends.next() => {
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
    sources: Sources,
    /// One for each connection.
    connections: TaskTracker,
    admin_connections: TaskTracker,
    streams: Arc<Streams>,
    writer: Arc<Writer>,
    reloader: Reloader,
    /// Not ready any more.
    leaving: CancellationToken,
    /// No new streams.
    draining: CancellationToken,
    ends: Ends,
    admin_ends: Ends,
}

/// The ports, and what every connection to them is held to.
struct Ports {
    bounds: Bounds,
    /// As the settings say: public, admin.
    listens: [Address; 2],
    tls: Option<Arc<Tls>>,
    public: Listener,
    admin: Listener,
    admin_tls: Option<Arc<Tls>>,
}

impl Ports {
    fn bind(settings: &http::Settings) -> Result<Self, Error> {
        let user_timeout = (settings.bounds.stall * 4).max(Duration::from_secs(60));
        let options = listen::Options { user_timeout, mode: settings.socket_mode };
        let public = Listener::bind("server.listen", &settings.listen, options)?;
        let admin = Listener::bind("admin.listen", &settings.admin.listen, options)?;
        let (tls, admin_tls) = (settings.tls.clone(), settings.admin.tls.clone());
        let listens = [settings.listen.clone(), settings.admin.listen.clone()];
        Ok(Self { bounds: settings.bounds, listens, tls, public, admin, admin_tls })
    }
}

/// What is behind the ports.
struct Rooms {
    sources: All,
    policy: tokio::sync::watch::Sender<Current>,
    pool: Pool,
    streams: Arc<Streams>,
    writer: Arc<Writer>,
    writing: writer::Ends,
    adopt: Adopt,
    connections: TaskTracker,
    metrics: Arc<Metrics>,
    readings: Arc<dyn Fn() -> Readings + Send + Sync>,
    /// Connections to the public listener.
    open: Arc<AtomicUsize>,
    refusals: Arc<http::Refusals>,
}

impl Rooms {
    fn build(
        sources: &Sources,
        policy: Policy,
        pool: Pool,
        auth: tokio::sync::watch::Receiver<Arc<Authenticator>>,
        ports: &Ports,
        log: &Log,
        access: &Arc<Access>,
    ) -> Result<Self, Error> {
        let streams = sources.streams().clone();
        let loops = std::thread::available_parallelism().map_or(1, usize::from);
        let writer = Writer::start(streams.hub(), loops, ports.bounds.stall, streams.heartbeat());
        let (writer, writing) = writer.map_err(|cause| Error::System { what: "start the writers", cause })?;
        let adopt = adopt(writer.clone());
        let connections = TaskTracker::new();
        let open = Arc::<AtomicUsize>::default();
        let certificates = [("public", &ports.tls), ("admin", &ports.admin_tls)];
        let asked = Asked {
            sources: sources.all().clone(),
            routed: sources.routed().clone(),
            streams: streams.clone(),
            writer: writer.clone(),
            pool: pool.clone(),
            open: open.clone(),
            auth,
            log_left_out: Box::new(log.left_out()),
            access: access.clone(),
            certificates: certificates.into_iter().filter_map(|(of, tls)| Some((of, tls.clone()?))).collect(),
        };
        let readings: Arc<dyn Fn() -> Readings + Send + Sync> = Arc::new(move || asked.read());
        let asked = readings.clone();
        let metrics = Arc::new(Metrics::new(move || asked()));
        let sources = sources.all().clone();
        let policy = tokio::sync::watch::Sender::new(Current { policy: Arc::new(policy), settled: true });
        let refusals = Arc::new(access::refusals(access));
        Ok(Self { sources, policy, pool, streams, writer, writing, adopt, connections, metrics, readings, open, refusals })
    }
}

impl Bridge {
    fn start(settings: Settings, origin: Origin, reload: Arc<admin::Reload>) -> Result<Self, Error> {
        let fixed = settings.fixed(origin.format);
        let explainer = Arc::new(ArcSwap::from_pointee(Explainer::new(&settings, origin.places)));
        let (retry, http, auth, timing) = (settings.streams.retry, settings.http, settings.auth, settings.streams);
        // Both ports first: nothing else has begun when one is taken.
        let ports = Ports::bind(&http)?;
        let streams = Streams::new(Hub::new(settings.window, in_range(0..=u32::MAX)), Histories::new(settings.histories), timing);
        let sources = Sources::new(streams.clone(), settings.window, Arc::new(Tokio));
        let (access, lines) = Access::new(origin.access);
        let access = Arc::new(access);
        access::follow(&streams, &access);
        let (auth_written, control) = ((auth.written.clone(), settings.token_bytes), auth.revocations.clone());
        let auth = Arc::new(Authenticator::new(auth, settings.token_bytes));
        let revocations = auth.revocations().clone();
        let asked = tokio::sync::watch::Sender::new(auth.clone());
        let (pool, shown) = (Pool::new(settings.pool), Shown::of(&http, &ports));
        let policy = Policy::new(http, auth.clone(), retry);
        let rooms = Rooms::build(&sources, policy, pool.clone(), asked.subscribe(), &ports, &origin.log, &access)?;
        rooms.metrics.configured(&origin.yaml, Timestamp::now());
        let mut follower = Follower::new(revocations, rooms.streams.clone());
        follower.begin(control.as_ref(), &settings.sources);
        let watched = Arc::<Watched>::default();
        watched.set(settings.watch, [origin.files.clone(), origin.named].concat());
        let reloader = Reloader {
            files: origin.files,
            watched,
            log: origin.log,
            access,
            traces: Traces::of(settings.traces.as_ref()),
            fixed,
            bounds: ports.bounds,
            listens: ports.listens.clone(),
            tls: [ports.tls.clone(), ports.admin_tls.clone()],
            policy: rooms.policy.clone(),
            auth: asked,
            auth_written,
            pool,
            rates: Rates::new(settings.rates),
            streams: rooms.streams.clone(),
            metrics: rooms.metrics.clone(),
            explainer,
            follower,
            drain: settings.drain,
            drain_delay: settings.drain_delay,
        };
        let mut bridge = Self {
            tasks: JoinSet::new(),
            sources,
            connections: rooms.connections.clone(),
            admin_connections: TaskTracker::new(),
            streams: rooms.streams.clone(),
            writer: rooms.writer.clone(),
            reloader,
            leaving: CancellationToken::new(),
            draining: CancellationToken::new(),
            ends: Ends::default(),
            admin_ends: Ends::default(),
        };
        bridge.sources.begin(settings.sources, &settings.routes);
        bridge.write_access(lines)?;
        bridge.spawn(ports, rooms, reload, &shown);
        Ok(bridge)
    }

    /// Serves, and reloads when it is asked to, until a signal asks to end. Returns it, and until when to delay that.
    async fn serve(&mut self, signals: &mut Signals, orders: &mut Orders) -> Result<(i32, Instant), Error> {
        let found = self.sources.found();
        loop {
            let order = tokio::select! {
                signal = signals.ends.next() => return Ok((signal, Instant::now() + self.reloader.drain_delay)),
                ended = self.tasks.join_next() => return Err(failure(ended)),
                () = signals.hangups.next() => None,
                order = orders.next() => Some(order),
                () = found.notified() => {
                    self.sources.grow().await;
                    continue;
                }
            };
            manager::reloading();
            let delay = self.reloader.drain_delay;
            let mut reloading = pin!(self.reloader.reload(&mut self.sources, order.as_ref().and_then(|order| order.parent)));
            let reloaded = tokio::select! {
                signal = signals.ends.next() => {
                    self.leaving.cancel();
                    let until = Instant::now() + delay;
                    // Half a reload would leave sources stopped, and newcomers waiting, for all of the delay.
                    let goes_on = tokio::select! {
                        _ = &mut reloading => true,
                        () = sleep_until(until) => true,
                        _ = signals.ends.next() => false,
                    };
                    return Ok((signal, if goes_on { until } else { Instant::now() }));
                }
                ended = self.tasks.join_next() => return Err(failure(ended)),
                reloaded = &mut reloading => reloaded,
            };
            manager::ready();
            if let Some(order) = order {
                // Whoever asked may have gone.
                drop(order.answer.send(reloaded));
            }
        }
    }

    /// What answers on the public port.
    fn public(&self, ports: &Ports, rooms: &Rooms) -> Arc<Server> {
        let sources = rooms.sources.clone();
        let streams = rooms.streams.clone();
        let face = crate::http::router(crate::http::Rooms {
            policy: rooms.policy.subscribe(),
            pool: rooms.pool.clone(),
            rates: self.reloader.rates.clone(),
            metrics: rooms.metrics.clone(),
            inbox: Box::new(move |subject| sources::inbox(&sources, subject)),
            draining: self.draining.clone(),
            open: Box::new(move |request| Handover::new(streams.open(request, Timestamp::now()))),
            budget: http::Budget::default(),
            pages: http::Budget::default(),
            agents: http::Agents::default(),
            refusals: rooms.refusals.clone(),
            traces: self.reloader.traces.clone(),
        });
        let counts = Counts { stalled: rooms.metrics.stalled.clone(), open: rooms.open.clone() };
        let policy = rooms.policy.subscribe();
        let announces = Box::new(move |peer| policy.borrow().policy.announces(peer));
        let public = Public { adopt: rooms.adopt.clone(), announces, descriptors: system::client_descriptors() };
        Server::new(face, ports.tls.clone(), ports.bounds, self.ends.clone(), self.connections.clone(), counts, Some(public))
    }

    /// What answers on the admin port.
    fn admin(&self, ports: &Ports, rooms: &Rooms, reload: Arc<admin::Reload>) -> Arc<Server> {
        let (sources, streams) = (rooms.sources.clone(), rooms.streams.clone());
        let source = |source: &Arc<SourceRuntime>| admin::Source { handle: source.handle().clone(), reach: source.reach.clone() };
        let (policy, wire) = (rooms.policy.clone(), self.reloader.follower.wire().clone());
        let face = admin::router(admin::Rooms {
            access: Box::new(move || policy.borrow().policy.admin().clone()),
            metrics: rooms.metrics.clone(),
            sources: Box::new(move || sources.load().iter().filter(|of| of.is_first()).map(source).collect()),
            readings: rooms.readings.clone(),
            leaving: self.leaving.clone(),
            reload,
            streams: rooms.streams.clone(),
            tasks: self.admin_connections.clone(),
            refusals: rooms.refusals.clone(),
            explain: explain(self.reloader.explainer.clone(), self.reloader.auth.subscribe()),
            revoking: admin::Revoking {
                revocations: self.reloader.auth.borrow().revocations().clone(),
                end: Box::new(move |criteria| revocations::end(&streams, criteria)),
                wire: Box::new(move || wire.load_full()),
            },
        });
        let counts = Counts { stalled: rooms.metrics.stalled.clone(), open: Arc::default() };
        Server::new(face, ports.admin_tls.clone(), ports.bounds, self.admin_ends.clone(), self.admin_connections.clone(), counts, None)
    }

    /// Starts everything.
    fn spawn(&mut self, ports: Ports, rooms: Rooms, reload: Arc<admin::Reload>, shown: &Shown) {
        let (public, admin) = (self.public(&ports, &rooms), self.admin(&ports, &rooms, reload.clone()));
        let refusals = rooms.refusals.clone();
        self.own("refusals", async move { refusals.tell_left_out().await });
        self.own("watcher", watch::follow(self.reloader.watched.clone(), reload));
        self.own("keys", reload::refresh_keys(self.reloader.auth.subscribe(), self.streams.clone()));
        self.own("rechecks", reload::recheck(self.reloader.auth.subscribe(), self.streams.clone()));
        for tls in [ports.tls, ports.admin_tls].into_iter().flatten() {
            self.own("certificate", async move { match tls.follow().await {} });
        }
        for ended in rooms.writing.ended {
            self.own("writer", async move { drop(ended.await) });
        }
        let carry_on = self.writer.clone().carry_on(rooms.writing.returned, self.connections.clone(), self.ends.cut.clone());
        self.own("returns", carry_on);
        self.own("watchdog", manager::watchdog(self.streams.hub().clone()));
        self.own("heartbeat", beat(self.streams.hub().clone(), self.streams.heartbeat()));
        shown.announce(self.sources.len());
        self.own("histories", self.streams.histories().clone().tend());
        self.own("listener", public.run(ports.public));
        self.own("admin listener", admin.run(ports.admin));
    }

    /// Lets a thread of its own write the access log: standard error may take its time.
    fn write_access(&mut self, lines: Lines) -> Result<(), Error> {
        let access = self.reloader.access.clone();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let write = move || {
            let _end = end;
            access.write(&lines);
        };
        std::thread::Builder::new()
            .name("access log".to_owned())
            .spawn(write)
            .map_err(|cause| Error::System { what: "start the thread of the access log", cause })?;
        self.own("access log", async move { drop(ended.await) });
        Ok(())
    }

    /// Runs what must not end.
    fn own(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(async move { (name, AssertUnwindSafe(task).catch_unwind().await.is_err()) });
    }

    /// Says that it is not ready any more, and serves as before until `server.drain_delay` is over: load balancers need a while to notice, and
    /// send clients here until then. A signal ends the delay.
    async fn delay(&mut self, until: Instant, signals: &mut system::Ends) -> Result<(), Error> {
        self.leaving.cancel();
        let delay = until.saturating_duration_since(Instant::now());
        if delay.is_zero() {
            return Ok(());
        }
        info!(?delay, "not ready any more, draining follows");
        tokio::select! {
            () = sleep_until(until) => {}
            signal = signals.next() => info!(signal, "the delay ends early"),
            ended = self.tasks.join_next() => return Err(failure(ended)),
        }
        Ok(())
    }

    /// Ends everything, in order and within `server.drain`.
    async fn drain(&mut self) {
        let deadline = Instant::now() + self.reloader.drain;
        self.draining.cancel();
        // Nothing new comes in, and what came is acknowledged. Those that are late go on ending until all ends.
        let (sources, follower) = (&mut self.sources, &mut self.reloader.follower);
        let mut sources = pin!(async { tokio::join!(sources.drain(), follower.stop()) });
        if timeout_at(Instant::now() + self.reloader.drain / 3, &mut sources).await.is_err() {
            warn!("some sources did not end in time");
        }
        self.ends.accept.cancel();
        // Streams end one after another, so that their clients don't come back all at once; a part of the time is left
        // for what they are still to be sent.
        let left = deadline.saturating_duration_since(Instant::now());
        let streams = u32::try_from(self.streams.opened()).unwrap_or(u32::MAX);
        let span = STAGGER.saturating_mul(streams).min(left.mul_f64(0.7));
        self.streams.end(Selection::All, Closing::Draining, Timestamp::now(), span);
        self.ends.close.cancel();
        self.connections.close();
        let grace = left.mul_f64(0.1).min(Duration::from_millis(500));
        let ended = async {
            self.connections.wait().await;
            // Only now: what ends as a task may still become a loop's, or is on its way back to a task.
            while self.writer.sockets() > 0 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        if timeout_at(deadline - grace, ended).await.is_err() {
            warn!(
                connections = self.connections.len(),
                streams = self.writer.sockets(),
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
        let access = self.reloader.access.clone();
        // Fails only where the runtime is gone.
        drop(tokio::task::spawn_blocking(move || access.flush(FLUSH)).await);
        self.reloader.traces.end().await;
        self.tasks.shutdown().await;
    }
}

/// Says why somebody sees a subject, by what counts at the moment.
fn explain(explainer: Arc<ArcSwap<Explainer>>, auth: tokio::sync::watch::Receiver<Arc<Authenticator>>) -> Box<admin::Explain> {
    Box::new(move |token, subject| {
        let (explainer, auth) = (explainer.load_full(), auth.borrow().clone());
        Box::pin(async move { explainer.explain(&auth, token.as_deref(), &subject, EXPLAIN).await.told })
    })
}

/// How a cleartext stream leaves hyper.
fn adopt(writer: Arc<Writer>) -> Adopt {
    Arc::new(move |socket, stream, beyond| {
        let writer = writer.clone();
        Box::pin(async move { writer.write(socket, stream, beyond).await })
    })
}

/// Lets the hub's time pass.
pub(crate) async fn beat(hub: Arc<Hub>, heartbeat: Duration) {
    let mut ticks = tokio::time::interval((heartbeat / BEATS).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for part in 0.. {
        ticks.tick().await;
        hub.beat(part, u64::from(BEATS), Timestamp::now());
    }
}

/// Where everything is.
struct Shown {
    public: Address,
    admin: Address,
    /// The scheme of the dashboard's address, if it is served.
    dashboard: Option<&'static str>,
}

impl Shown {
    fn of(settings: &http::Settings, ports: &Ports) -> Self {
        let public = ports.public.address().unwrap_or(settings.listen.clone());
        let admin = ports.admin.address().unwrap_or(settings.admin.listen.clone());
        Self { public, admin, dashboard: settings.dashboard.then_some(if ports.tls.is_some() { "https" } else { "http" }) }
    }

    fn announce(&self, sources: usize) {
        let Self { public, admin, dashboard } = self;
        info!(listen = %public, %admin, sources, "listening");
        if let (Some(scheme), Address::Tcp(public)) = (dashboard, public) {
            let ip = if public.ip().is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { public.ip() };
            let host = SocketAddr::new(ip, public.port());
            info!(url = format!("{scheme}://{host}/"), "dashboard");
        }
    }
}
