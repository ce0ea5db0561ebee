//! One bridge of the simulation: the real supervisors, router, hub and streams over the model broker.
//!
//! The only file that knows how production builds and drives them.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::adapter::{Model, Panic};
use super::broker::{Broker, Handed, JOBS, MAX_PAYLOAD, Names, SOURCES, Taken, routed};
use super::executor::{Executor, Group};
use super::oracle::Start;
use super::pipe::ServerEnd;
use super::writer::Writers;
use crate::app::intake::{Counts, Intake};
use crate::cursor::{Cursor, Point};
use crate::event::{GapReason, SourceKey, SourceName, Timestamp};
use crate::frame::{Closing, Form};
use crate::history::{self, Histories};
use crate::hub::{Filter, Hub, Limits};
use crate::route::{Router, Rule};
use crate::source::supervisor::Supervisor;
use crate::source::{self, Adapter, Handle, Item};
use crate::stream::{self, Begin, Request, Selection, Stream, Streams, Visitor};
use crate::transport::body::Body;
use crate::{route, settings};

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

/// See the module.
pub(super) struct Bridge {
    pub(super) epoch: u32,
    pub(super) group: Group,
    hub: Arc<Hub>,
    /// Of the sources that it has.
    keys: [Option<SourceKey>; 4],
    pub(super) names: Names,
    streams: Arc<Streams>,
    writers: Rc<Writers>,
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
    pub(super) patterns: Vec<&'static str>,
    pub(super) json: bool,
    pub(super) start: Start,
    pub(super) last_id: Option<String>,
    pub(super) expires: Option<Timestamp>,
}

fn rules() -> Vec<Rule> {
    let text = "routes:
        - { match: { subject: '*.drop.*' }, drop: true }
        - { match: { subject: 'jet.ren.*' }, subject: 'shop.{1}', event: renamed }
        - { match: { subject: 'rab.raw.*' }, envelope: raw }";
    settings::tests::read(text, |root| Some(route::settings::read(root.key("routes"), &[]))).expect("routes")
}

impl Bridge {
    pub(super) fn start(place: Place<'_>, slot: usize, epoch: u32, group: Group, names: Names) -> Rc<Self> {
        let Place { executor, broker, bounds } = place;
        let window = Limits { bytes: bounds.window, age: bounds.age };
        let hub = Hub::with_logs(window, bounds.logs, epoch);
        let (heartbeat, retry) = (bounds.heartbeat, Duration::from_secs(1));
        let settings = stream::Settings { heartbeat, retry, scan: bounds.scan, piece: bounds.piece };
        let histories = Histories::new(history::Settings { readers: bounds.readers, rate: 64 << 20, cache: 8 << 10 });
        let streams = Streams::new(hub.clone(), histories, settings);
        let stop = CancellationToken::new();
        let mut keys = [None; 4];
        for (source, name) in names.into_iter().enumerate() {
            let Some(name) = name else { continue };
            let name: SourceName = name.parse().expect("a source's name");
            let adapter: Arc<dyn Adapter> = Arc::new(Model::new(broker, source, slot, epoch));
            let router = Arc::new(Router::new(&rules(), &name, &adapter.reach(), Arc::default()));
            let handle = Arc::new(Handle::new(name.clone(), &*adapter, true));
            let log = history::Log::of(&handle, adapter.clone(), MAX_PAYLOAD);
            let key = streams.add(stream::Source { name, part: None, router: router.clone(), log }, Timestamp::now());
            keys[source] = Some(key);
            let inner = Intake::new(key, router, hub.clone(), Arc::<Counts>::default());
            let intake = Arc::new(Witness { inner, broker: broker.clone(), slot, source, epoch });
            let warm_up = source::Start::Recent { age: bounds.age, bytes: bounds.window as u64 };
            let supervisor = Supervisor { adapter, intake, handle, warm_up, max_payload: MAX_PAYLOAD };
            executor.spawn(group, supervisor.run(stop.clone()));
        }
        executor.spawn(group, crate::app::beat(hub.clone(), bounds.heartbeat));
        let writers = Writers::start(executor, group, &hub);
        Rc::new(Self { epoch, group, hub, keys, names, streams, writers, stop })
    }

    /// Ends its sources and its streams in good order.
    pub(super) fn drain(&self, within: Duration) {
        self.stop.cancel();
        self.streams.end(Selection::All, Closing::Draining, Timestamp::now(), within);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// The last sequence that a source's window has dropped.
    pub(super) fn floor(&self, source: usize) -> u64 {
        self.keys[source].and_then(|key| Some(self.hub.state().source(key)?.window().floor())).unwrap_or_default()
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
        let patterns = opening.patterns.iter().map(|pattern| pattern.parse().expect("a pattern")).collect();
        let filter = Arc::new(Filter::new(patterns, if opening.json { Form::Json } else { Form::Routed }));
        let permit = Box::new(());
        let request = Request { filter, named: true, begin, expires: opening.expires, owner: None, visitor: Visitor::unknown(), permit };
        self.streams.open(request, Timestamp::now())
    }

    /// Writes a stream to its socket, chunked as cleartext HTTP/1.1 or not. An adapter that panics while a history is read
    /// ends the task that writes, as it would end the task of a connection.
    pub(super) fn write(&self, executor: &Executor, stream: Stream, socket: ServerEnd, chunked: bool) {
        if chunked {
            executor.spawn(self.group, unless_an_adapter_panics(self.writers.clone().write(socket, stream)));
        } else {
            executor.spawn(self.group, unless_an_adapter_panics(write_body(Body::new(stream), socket)));
        }
    }
}

/// Ends a task quietly where an adapter panics as the simulation wants it to.
pub(super) async fn unless_an_adapter_panics(task: impl Future<Output = ()>) {
    if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
        match panic.downcast::<Panic>() {
            Ok(panic) => panic.takes_effect(),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
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
        if socket.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// Notes what the real intake took, and compares it with what the adapter handed out.
struct Witness {
    inner: Intake,
    broker: Arc<Broker>,
    slot: usize,
    source: usize,
    epoch: u32,
}

impl source::Intake for Witness {
    fn take<'a>(&'a self, items: &'a mut Vec<Item>) -> BoxFuture<'a, String> {
        Box::pin(async move {
            if self.source < 2 {
                let id = self.inner.take(items).await;
                let mut state = self.broker.state.lock();
                let borders = state.links[self.slot][self.source].borders;
                state.noticed.insert((self.epoch, self.source), borders);
                return id;
            }
            let mut taken = Vec::new();
            {
                let mut state = self.broker.state.lock();
                let s = &mut *state;
                for item in &*items {
                    if matches!(item, Item::Tail(_)) {
                        continue;
                    }
                    let handed = s.handed.entry((self.epoch, self.source)).or_default().pop_front();
                    let (what, same) = match (item, handed) {
                        (Item::Oversized(_), Some(Handed::Message(index))) => {
                            (Handed::Oversized(index), s.written[self.source][index].oversized())
                        }
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
            }
            let id = self.inner.take(items).await;
            let mut state = self.broker.state.lock();
            let s = &mut *state;
            let Some(Point::At(end)) = Cursor::from_id(&id).ok().map(|cursor| cursor.volatile) else {
                s.alarms.push(format!("{id} is no cursor of the bridge"));
                return id;
            };
            let mut seq = end.seq;
            let mut noted = Vec::new();
            for (what, job) in taken.into_iter().rev() {
                if let Some(index) = job {
                    s.kept[index] = true;
                }
                let dropped = matches!(what, Handed::Message(index) | Handed::Oversized(index)
                    if routed(s.written[self.source][index].subject).is_none());
                if !dropped {
                    let link = &s.links[self.slot][self.source];
                    let faults = if let Handed::Gap(_) = what { link.held.clone() } else { Vec::new() };
                    noted.push(Taken { seq, source: self.source, what, faults });
                    seq -= 1;
                }
            }
            s.taken.entry(self.epoch).or_default().extend(noted.into_iter().rev());
            id
        })
    }
}

/// Which message a payload is.
pub(super) fn index(payload: &[u8]) -> usize {
    let digits = payload.iter().skip_while(|b| !b.is_ascii_digit()).take_while(|b| b.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + usize::from(digit - b'0'))
}
