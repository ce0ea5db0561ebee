//! One bridge of the simulation: the real supervisors, router, hub and streams over the model broker.
//!
//! The only file that knows how production builds and drives them.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::adapter::Model;
use super::broker::{Broker, CORE, Fault, Handed, JOBS, MAX_PAYLOAD, Names, ROUTES, Routes, SOURCES, SUBJECTS, Taken, named, routed};
use super::choose;
use super::executor::{Executor, Group, Spawner};
use super::oracle::Start;
use super::pipe::ServerEnd;
use super::writer::Writers;
use crate::app::intake::Intake;
use crate::app::sources::{Host, Sources};
use crate::auth::Owner;
use crate::cursor::{Cursor, Point};
use crate::event::{GapReason, Message, SourceKey, SourceName, Timestamp};
use crate::frame::{Closing, Form};
use crate::history::{self, Histories};
use crate::hub::{Filter, Hub, Limits};
use crate::route::Rule;
use crate::settings::Written;
use crate::source::settings::Source;
use crate::source::{self, Item};
use crate::stream::{self, Begin, Request, Selection, Stream, Streams, Visitor};
use crate::subject::Pattern;
use crate::transport::body::Body;
use crate::{route, settings};

/// Bytes of windows.
pub(super) const WINDOWS: [usize; 3] = [3_000, 20_000, 200_000];
/// Ages of their events.
pub(super) const AGES: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(3600)];
/// Readers of histories.
pub(super) const READERS: [usize; 3] = [1, 2, 16];

/// What differs between the bridges of one world and another.
#[derive(Debug, Clone)]
pub(super) struct Bounds {
    pub(super) window: usize,
    pub(super) age: Duration,
    pub(super) logs: usize,
    pub(super) scan: usize,
    pub(super) piece: usize,
    pub(super) heartbeat: Duration,
    pub(super) readers: usize,
}

/// The sources that an operator wants a bridge to have.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) names: Names,
    pub(super) routes: Routes,
    /// Settings of each source that make no difference to the simulation.
    pub(super) settings: [u32; 4],
}

impl Default for Wanted {
    fn default() -> Self {
        Self { names: SOURCES.map(Some), routes: [0; 4], settings: [0; 4] }
    }
}

/// See the module.
pub(super) struct Bridge {
    pub(super) epoch: u32,
    pub(super) group: Group,
    hub: Arc<Hub>,
    streams: Arc<Streams>,
    writers: Rc<Writers>,
    /// What it is to reload, each with the fault that this is.
    orders: mpsc::UnboundedSender<(Wanted, Fault)>,
    stop: CancellationToken,
}

/// Where a bridge is, and what it is like.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) executor: &'a Executor,
    pub(super) broker: &'a Arc<Broker>,
    pub(super) bounds: &'a Bounds,
}

/// Which stream a client asks for.
pub(super) struct Opening {
    /// The number of the client, which is the identity in its token.
    pub(super) client: usize,
    pub(super) patterns: &'static [&'static str],
    /// Whether it names them.
    pub(super) named: bool,
    pub(super) json: bool,
    pub(super) start: Start,
    pub(super) last_id: Option<String>,
    pub(super) expires: Option<Timestamp>,
}

/// The rules of each source, for each kind of routes: see [`routed`].
const RULES: [[&str; ROUTES as usize]; 4] = [
    [
        "- { match: { subject: 'jet.drop.*' }, drop: true }
         - { match: { subject: 'jet.ren.*' }, subject: 'shop.{1}', event: renamed }",
        "- { match: { subject: 'jet.b.1' }, drop: true }
         - { match: { subject: 'jet.ren.*' }, subject: 'jet.b.1' }
         - { match: { subject: 'jet.a.2' }, subject: 'shop.x' }",
    ],
    [
        "- { match: { subject: 'rab.raw.*' }, envelope: raw }",
        "- { match: { subject: 'rab.a.1' }, subject: 'rab.b.1' }
         - { match: { subject: 'rab.b.1' }, subject: 'rab.a.1' }",
    ],
    ["", "- { match: { subject: 'jobs.a' }, subject: 'jobs.b' }\n- { match: { subject: 'jobs.b' }, subject: 'jobs.a' }"],
    [
        "- { match: { subject: 'core.drop.*' }, drop: true }",
        "- { match: { subject: 'core.a' }, drop: true }\n- { match: { subject: 'core.drop.z' }, subject: 'core.a' }",
    ],
];

fn rules(routes: Routes) -> Vec<Rule> {
    let rules = RULES.iter().zip(routes).flat_map(|(of, routes)| of[usize::from(routes)].lines());
    let text = rules.fold("routes:\n".to_owned(), |text, rule| text + "  " + rule.trim() + "\n");
    settings::tests::read(&text, |root| Some(route::settings::read(root.key("routes"), &[]))).expect("routes")
}

fn written(settings: u32) -> Written {
    settings::tests::read(&format!("s: {{ n: {settings} }}"), |root| {
        let section = root.key("s").section();
        section.key("n").number().or(0);
        Some(section.written())
    })
    .expect("settings")
}

/// The sources of one bridge, as its host and its operator see them.
struct Observed {
    slot: usize,
    epoch: u32,
    group: Group,
    broker: Arc<Broker>,
    spawner: Spawner,
    hub: Arc<Hub>,
    /// By name: what those that there are hand in to.
    intakes: Mutex<BTreeMap<&'static str, Arc<Intake>>>,
}

impl Host for Observed {
    fn spawn(&self, task: BoxFuture<'static, ()>) -> BoxFuture<'static, ()> {
        let (done, ended) = oneshot::channel::<()>();
        let task = async move {
            task.await;
            drop(done);
        };
        self.spawner.spawn(self.group, Box::pin(task));
        Box::pin(async move { ended.await.unwrap_or_default() })
    }

    fn intake(&self, name: &SourceName, intake: Arc<Intake>) -> Arc<dyn source::Intake> {
        let (source, name) = named(name.as_str()).expect("a source's name");
        let (slot, epoch, broker) = (self.slot, self.epoch, self.broker.clone());
        let before = self.intakes.lock().insert(name, intake.clone());
        let mut state = broker.state.lock();
        let handed = state.handed.entry((epoch, source)).or_default();
        // What the one before it has not handed in is lost, which its successor tells where the broker does not keep it.
        handed.clear();
        if source == CORE && before.is_some() {
            handed.push_back(Handed::Gap(GapReason::Reconnect));
        }
        drop(state);
        Arc::new(Witness { inner: intake, broker, slot, source, epoch })
    }
}

impl Observed {
    /// The real sources that are wanted.
    fn sources(&self, wanted: &Wanted) -> Vec<Source> {
        let source = |source: usize| {
            let name = wanted.names[source]?.parse().expect("a source's name");
            let adapter = Arc::new(Model::new(&self.broker, source, self.slot, self.epoch));
            let written = written(wanted.settings[source]);
            Some(Source { name, required: true, max_payload: MAX_PAYLOAD, adapter, part: None, written })
        };
        (0..SOURCES.len()).filter_map(source).collect()
    }

    /// Tells the oracle which sources there are and by what they are routed.
    fn note(&self, fault: Fault) {
        let (mut names, mut routes, mut keys) = ([None; 4], [None; 4], [None; 4]);
        let state = self.hub.state();
        let seq = state.seq();
        for of in state.sources() {
            let (source, name) = named(of.info().name.as_str()).expect("a source's name");
            (names[source], keys[source]) = (Some(name), Some(of.info().key));
        }
        drop(state);
        let mut intakes = self.intakes.lock();
        intakes.retain(|name, _| names.contains(&Some(*name)));
        for (name, intake) in &*intakes {
            let source = named(name).expect("a source's name").0;
            routes[source] = Some(routes_of(intake, source));
        }
        drop(intakes);
        self.broker.configure(self.epoch, (names, routes, keys), seq, fault);
    }

    /// Reloads whenever it is ordered to, until the bridge is drained.
    async fn operate(self: Arc<Self>, mut sources: Sources, window: Limits, mut orders: Orders, stop: CancellationToken) {
        while let Some(Some((wanted, fault))) = stop.run_until_cancelled(orders.recv()).await {
            let rules = rules(wanted.routes);
            let mut follow = pin!(stop.run_until_cancelled(sources.follow(self.sources(&wanted), &rules, window)));
            let done = poll_fn(|cx| {
                let polled = follow.as_mut().poll(cx);
                // Before anybody else sees the change.
                self.note(fault);
                polled
            });
            if done.await.is_none() {
                break;
            }
            let mut state = self.broker.state.lock();
            let is_wanted = state.configs(self.epoch).last().is_some_and(|config| {
                config.names == wanted.names && (0..4).all(|source| config.routes[source].is_none_or(|of| of == wanted.routes[source]))
            });
            if !is_wanted {
                let last = state.configs(self.epoch).last().cloned();
                state.alarms.push(format!("{wanted:?} was reloaded, and there is {last:?}"));
            }
        }
        sources.drain().await;
    }
}

type Orders = mpsc::UnboundedReceiver<(Wanted, Fault)>;

/// By which routes an intake routes.
fn routes_of(intake: &Intake, source: usize) -> u8 {
    let router = intake.router();
    let as_routed = |subject: &&str, routes: u8| {
        let message = Message::new(subject.parse().expect("a subject"), bytes::Bytes::new(), Timestamp::default(), None);
        router.route(message).as_ref().map(|event| event.subject.as_str()) == routed(subject, routes)
    };
    let all = |routes: &u8| SUBJECTS[source].iter().all(|subject| as_routed(subject, *routes));
    (0..ROUTES).find(all).expect("routes that are some of those that there are")
}

impl Bridge {
    /// `fault`: what led to these sources.
    pub(super) fn start(place: Place<'_>, (slot, epoch, group): (usize, u32, Group), wanted: &Wanted, fault: Fault) -> Rc<Self> {
        let Place { executor, broker, bounds } = place;
        let window = Limits { bytes: bounds.window, age: bounds.age };
        let hub = Hub::with_logs(window, bounds.logs, epoch);
        let (heartbeat, retry) = (bounds.heartbeat, Duration::from_secs(1));
        let Bounds { scan, piece, .. } = *bounds;
        // Where pieces are of middle size, each event is a part of its own.
        let share = if piece == 3_000 { 1 } else { stream::Settings::SHARE };
        let settings = stream::Settings { heartbeat, retry, scan, piece, share };
        let histories = Histories::new(history::Settings { readers: bounds.readers, rate: 64 << 20, cache: 8 << 10 });
        executor.spawn(group, histories.clone().tend());
        let streams = Streams::new(hub.clone(), histories, settings);
        let stop = CancellationToken::new();
        let (spawner, intakes) = (executor.spawner(), Mutex::default());
        let observed = Arc::new(Observed { slot, epoch, group, broker: broker.clone(), spawner, hub: hub.clone(), intakes });
        let mut sources = Sources::new(streams.clone(), window, observed.clone());
        sources.begin(observed.sources(wanted), &rules(wanted.routes));
        observed.note(fault);
        let (orders, ordered) = mpsc::unbounded_channel();
        executor.spawn(group, observed.operate(sources, window, ordered, stop.clone()));
        executor.spawn(group, crate::app::beat(hub.clone(), bounds.heartbeat));
        let writers = Writers::start(executor, group, &hub);
        Rc::new(Self { epoch, group, hub, streams, writers, orders, stop })
    }

    /// Gives it other sources and routes, and other bounds of windows and histories, as a reload does.
    pub(super) fn reload(&self, wanted: Wanted, fault: Fault) {
        let age = choose(&AGES);
        self.hub.configure(Limits { bytes: choose(&WINDOWS), age });
        let (readers, rate, cache) = (choose(&READERS), choose(&[64 << 20, 20_000]), choose(&[8 << 10, 0, 1 << 20]));
        self.streams.histories().configure(history::Settings { readers, rate, cache });
        self.orders.send((wanted, fault)).unwrap_or_default();
    }

    /// Ends its sources and its streams in good order.
    pub(super) fn drain(&self, within: Duration) {
        self.stop.cancel();
        self.streams.end(Selection::All, Closing::Draining, Timestamp::now(), within);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// The last sequence that a source's window has dropped. Of a source that is not there, all was dropped.
    pub(super) fn floor(&self, key: Option<SourceKey>) -> u64 {
        let hub = self.hub.state();
        key.and_then(|key| hub.source(key)).map_or(hub.seq(), |of| of.window().floor())
    }

    pub(super) fn open(&self, opening: Opening) -> Stream {
        let begin = match opening.start {
            Start::Now => Begin::Now,
            Start::Earliest => Begin::At(Point::Earliest),
            Start::Since(time) => Begin::At(Point::Since(time.as_millis())),
            Start::Last => Begin::At(Point::Last),
            Start::Unreadable => Begin::Unreadable,
            Start::Resume => {
                let id = opening.last_id.unwrap_or_default();
                Cursor::from_id(&id).map_or(Begin::Unreadable, Begin::After)
            }
        };
        let patterns = parsed(opening.patterns);
        let owner = Some(Arc::new(Owner { identity: Some(opening.client.to_string().into()), ..Owner::default() }));
        let (named, expires) = (opening.named, opening.expires);
        let filter = Arc::new(Filter::new(patterns, if opening.json { Form::Json } else { Form::Routed }));
        let permit = Box::new(());
        let request = Request { filter, named, begin, expires, owner, visitor: Visitor::unknown(), permit };
        self.streams.open(request, Timestamp::now())
    }

    /// A client may see these from now on. Returns the bridge's sequence then.
    pub(super) fn widen(&self, client: usize, patterns: &[&str]) -> u64 {
        self.streams.widen(granted(client, patterns));
        self.hub.state().seq()
    }

    /// A client may see nothing any more: its stream ends.
    pub(super) fn revoke(&self, client: usize) {
        self.streams.narrow(granted(client, &[]), Timestamp::now());
    }

    /// Writes a stream to its socket, chunked as cleartext HTTP/1.1 or not.
    pub(super) fn write(&self, executor: &Executor, stream: Stream, socket: ServerEnd, chunked: bool) {
        if chunked {
            executor.spawn(self.group, self.writers.clone().write(socket, stream));
        } else {
            executor.spawn(self.group, write_body(Body::new(stream), socket));
        }
    }
}

fn parsed(patterns: &[&str]) -> Vec<Pattern> {
    patterns.iter().map(|pattern| pattern.parse().expect("a pattern")).collect()
}

/// What one client may see; of the others it says nothing.
fn granted(client: usize, patterns: &[&str]) -> impl Fn(Option<&Arc<Owner>>) -> Option<Arc<[Pattern]>> + use<> {
    let (identity, patterns) = (client.to_string(), Arc::from(parsed(patterns)));
    move |owner| owner.filter(|owner| owner.identity.as_deref() == Some(&identity)).map(|_| Arc::clone(&patterns))
}

/// Writes a stream as a body that is polled.
async fn write_body(mut stream: Body, socket: ServerEnd) {
    loop {
        let next = tokio::select! {
            biased;
            () = socket.closed() => return,
            next = poll_fn(|cx| stream.poll_next(cx)) => next,
        };
        let Some(bytes) = next else { return };
        // All of it is in hand from now on.
        let bytes = [bytes].into_iter().chain(stream.rest.by_ref()).collect::<Vec<_>>().concat();
        if socket.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// Notes what the real intake took, and compares it with what the adapter handed out.
struct Witness {
    inner: Arc<Intake>,
    broker: Arc<Broker>,
    slot: usize,
    source: usize,
    epoch: u32,
}

impl Witness {
    /// Compares what is taken in with what was handed out. Returns it, with the message of the queue that it is.
    fn look(&self, items: &[Item]) -> Vec<(Handed, Option<usize>)> {
        let mut state = self.broker.state.lock();
        let s = &mut *state;
        let mut taken = Vec::new();
        for item in items {
            if matches!(item, Item::Tail(_)) {
                continue;
            }
            let handed = s.handed.entry((self.epoch, self.source)).or_default().pop_front();
            let (what, same) = match (item, handed) {
                (Item::Oversized(_), Some(Handed::Message(index))) => (Handed::Oversized(index), s.written[self.source][index].oversized()),
                (Item::Message(message), _) => {
                    let what = Handed::Message(index(&message.payload));
                    (what, handed == Some(what))
                }
                (Item::Gap(gap), _) => (Handed::Gap(gap.reason), handed == Some(Handed::Gap(gap.reason))),
                _ => (Handed::Gap(GapReason::Oversized), false),
            };
            if !same {
                s.alarms.push(format!("{} handed out {handed:?}, and {what:?} was taken in", SOURCES[self.source]));
            }
            let job = if let (JOBS, Some(Handed::Message(index))) = (self.source, handed) { Some(index) } else { None };
            taken.push((what, job));
        }
        taken
    }

    /// Notes what was taken in up to an id.
    fn note(&self, taken: Vec<(Handed, Option<usize>)>, id: &str) {
        let mut state = self.broker.state.lock();
        let s = &mut *state;
        let Some(Point::At(end)) = Cursor::from_id(id).ok().map(|cursor| cursor.volatile) else {
            return s.alarms.push(format!("{id} is no cursor of the bridge"));
        };
        // By this it was routed: nothing has changed since.
        let routes = routes_of(&self.inner, self.source);
        let changes = self.broker.changes.load(Ordering::Relaxed);
        let mut seq = end.seq;
        let mut noted = Vec::new();
        for (what, job) in taken.into_iter().rev() {
            if let Some(index) = job {
                s.kept[index] = true;
            }
            let dropped = matches!(what, Handed::Message(index) | Handed::Oversized(index)
                if routed(s.written[self.source][index].subject, routes).is_none());
            if !dropped {
                let link = &s.links[self.slot][self.source];
                let faults = if let Handed::Gap(_) = what { link.held.clone() } else { Vec::new() };
                noted.push(Taken { seq, source: self.source, what, routes, changes, faults });
                seq -= 1;
            }
        }
        s.taken.entry(self.epoch).or_default().extend(noted.into_iter().rev());
    }
}

impl source::Intake for Witness {
    fn take<'a>(&'a self, items: &'a mut Vec<Item>) -> BoxFuture<'a, String> {
        Box::pin(async move {
            if self.source < 2 {
                let id = self.inner.take(items).await;
                let mut state = self.broker.state.lock();
                let borders = state.links[self.slot][self.source].borders;
                let noticed = state.noticed.entry((self.epoch, self.source)).or_default();
                if noticed.last().is_none_or(|(_, before)| *before < borders) {
                    noticed.push((self.broker.changes.fetch_add(1, Ordering::Relaxed) + 1, borders));
                }
                return id;
            }
            let taken = self.look(items);
            let id = self.inner.take(items).await;
            self.note(taken, &id);
            id
        })
    }
}

/// Which message a payload is.
pub(super) fn index(payload: &[u8]) -> usize {
    let digits = payload.iter().skip_while(|b| !b.is_ascii_digit()).take_while(|b| b.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + usize::from(digit - b'0'))
}
