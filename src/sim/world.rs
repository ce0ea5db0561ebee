//! One simulated world: the model broker, three bridges, clients, and everything that happens to them, as a seed decides.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::sleep;

use super::bridge::{AGES, Bounds, Bridge, Place, READERS, WINDOWS, Wanted};
use super::broker::{Broker, Fault, JET, RAB, RENAMED, SOURCES, State};
use super::choose;
use super::client;
use super::executor::Executor;
use super::oracle::{Counts, Floors, Judge, Start};
use crate::event::Timestamp;
use crate::support::{clock, random};

const BRIDGES: usize = 3;
/// What clients subscribe to, and what a client that names no patterns may see at first, before its grant is widened to these. The same
/// sources concern both. Empty: the client names its patterns.
const FILTERS: [(&[&str], &[&str]); 12] = [
    (&[">"], &["jet.a.1", "rab.b.1", "jobs.a", "core.b"]),
    (&["jet.>"], &["jet.a.1"]),
    (&["rab.>"], &["rab.a.1"]),
    (&["jet.a.1", "rab.b.1"], &[]),
    (&["shop.x", "jobs.>"], &["shop.x", "jobs.b"]),
    (&["core.>"], &["core.b"]),
    (&["*.a.*"], &["jet.a.1", "rab.a.1"]),
    (&["rab.raw.1", "core.a"], &[]),
    (&["jobs.a"], &[]),
    (&["jet.a.*", "jet.b.>"], &["jet.b.1"]),
    (&["nothing.here", "jet.b.1"], &[]),
    (&["*.b", "rab.a.1"], &[]),
];

fn one_in(count: u32) -> bool {
    random::in_range(0..count) == 0
}

/// What a world is like.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) events: usize,
    /// Published between two faults, about.
    pub(super) calm: usize,
    pub(super) bounds: Bounds,
    /// Bytes that a socket takes.
    pub(super) socket: Range<usize>,
    /// Whether some messages cannot be read: then more places have no check, and resets are judged less strictly.
    pub(super) poison: bool,
    /// Sources that something is written to.
    pub(super) sources: Range<usize>,
    /// What does not happen here: `SIM_WITHOUT=cut,last` leaves these out.
    pub(super) without: Vec<String>,
}

impl Plan {
    /// Drawn from the seed.
    pub(super) fn draw(events: usize, calm: usize) -> Self {
        let bounds = Bounds {
            window: choose(&WINDOWS),
            age: choose(&AGES),
            logs: choose(&[2_000, 30_000, 8 << 20]),
            scan: choose(&[1, 7, 1024]),
            piece: choose(&[200, 3_000, 64 << 10]),
            heartbeat: Duration::from_secs(1),
            readers: choose(&READERS),
        };
        let without: Vec<_> = std::env::var("SIM_WITHOUT").unwrap_or_default().split(',').map(str::to_owned).collect();
        let poison = one_in(2) && !without.iter().any(|without| without == "poison");
        Self { events, calm, bounds, socket: choose(&[200..2_000, 1_000..60_000]), poison, sources: 0..4, without }
    }

    pub(super) fn has(&self, what: &str) -> bool {
        !self.without.iter().any(|without| without == what)
    }
}

/// What came out of a world.
#[derive(Debug, Default, Clone)]
pub(super) struct Report {
    pub(super) events: u64,
    /// Faults that happened.
    pub(super) faults: u64,
    /// Of these, those that changed what a stream was sent.
    pub(super) effective: u64,
    pub(super) streams: u64,
    pub(super) counts: Counts,
    pub(super) trace: u64,
    pub(super) alarms: Vec<String>,
}

impl Report {
    pub(super) fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.faults += other.faults;
        self.effective += other.effective;
        self.streams += other.streams;
        self.counts.add(&other.counts);
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { events, faults, effective, streams, counts, .. } = self;
        write!(f, "{events} events, {faults} faults of which {effective} had an effect, {streams} streams, ")?;
        write!(f, "{} deliveries, {} gaps, {} given up", counts.events, counts.gaps, counts.unavailable)?;
        write!(
            f,
            "; limits: resets told again {}, by windows of an old log {}, read on blindly {}, equal checks {}",
            counts.unverified, counts.stale, counts.blind, counts.collisions
        )
    }
}

/// See the module.
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) executor: Executor,
    pub(super) broker: Arc<Broker>,
    pub(super) bridges: RefCell<[Option<Rc<Bridge>>; BRIDGES]>,
    pub(super) judges: RefCell<Vec<(usize, Judge)>>,
    pub(super) quiet: Cell<bool>,
    /// See [`World::note`].
    watched: Option<usize>,
    /// The sources that the bridges are to have.
    wanted: RefCell<[Wanted; BRIDGES]>,
    groups: Cell<u32>,
    faults: Cell<u64>,
    streams: Cell<u64>,
    trace: Cell<u64>,
}

impl World {
    /// Runs the world that a seed makes.
    pub(super) fn run(seed: u64, events: usize, calm: usize) -> Report {
        random::seed(seed);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
        runtime.block_on(async {
            clock::follow_runtime(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
            let executor = Executor::default();
            let world = Rc::new(Self {
                plan: Plan::draw(events, calm),
                executor: executor.clone(),
                broker: Arc::new(Broker::new()),
                bridges: RefCell::default(),
                judges: RefCell::default(),
                quiet: Cell::new(false),
                watched: std::env::var("SIM_CLIENT").ok().and_then(|number| number.parse().ok()),
                wanted: RefCell::default(),
                groups: Cell::new(1),
                faults: Cell::new(0),
                streams: Cell::new(0),
                trace: Cell::new(0xcbf2_9ce4_8422_2325),
            });
            executor.run(world.clone().live()).await;
            world.report()
        })
    }

    async fn live(self: Rc<Self>) {
        for slot in 0..BRIDGES {
            self.start(slot, 0);
        }
        for (number, (patterns, narrower)) in FILTERS.into_iter().enumerate() {
            let first = choose(&[Start::Now, Start::Earliest, Start::Since(Timestamp::default()), Start::Last]);
            let first = if first == Start::Last && !self.plan.has("last") { Start::Earliest } else { first };
            self.executor.spawn(0, client::run(self.clone(), number, (patterns, narrower), one_in(3), first));
        }
        let mut written = 0;
        let mut next_fault = self.plan.calm;
        while written < self.plan.events && !self.has_alarm() {
            sleep(Duration::from_micros(random::in_range(0..100_000))).await;
            for _ in 0..random::in_range(1..=if one_in(10) { 120 } else { 12 }) {
                self.broker.write(random::in_range(self.plan.sources.clone()));
                written += 1;
            }
            while written >= next_fault {
                next_fault += random::in_range(0..=2 * self.plan.calm);
                self.fault();
            }
        }
        self.end().await;
    }

    /// Everything is mended, and everybody gets what there is.
    async fn end(&self) {
        self.quiet.set(true);
        {
            let mut state = self.broker.state.lock();
            state.down = [false; 4];
            for link in state.links.iter_mut().flatten() {
                (link.refuse, link.denied) = (0, 0);
                // Denied histories are denied to the end: only so does a client wait long enough to be given up.
                link.frozen = None;
            }
        }
        self.broker.changed.iter().for_each(tokio::sync::Notify::notify_waiters);
        for slot in 0..BRIDGES {
            let bridge = self.bridges.borrow()[slot].clone();
            for (name, source) in self.wanted.borrow_mut()[slot].names.iter_mut().zip(SOURCES) {
                name.get_or_insert(source);
            }
            match bridge.filter(|bridge| !bridge.is_draining()) {
                Some(bridge) => bridge.reload(self.wanted.borrow()[slot].clone(), 0),
                None => {
                    self.kill(slot);
                    self.start(slot, 0);
                }
            }
        }
        let mut missing = None;
        for _ in 0..300 {
            if self.has_alarm() {
                return;
            }
            sleep(Duration::from_secs(1)).await;
            let state = self.broker.state.lock();
            missing = self.judges.borrow().iter().find_map(|(number, judge)| Some((*number, judge.missing(&state)?)));
            if missing.is_none() && !state.queue.is_empty() {
                missing = Some((99, format!("{} messages are left in the queue", state.queue.len())));
            }
            if missing.is_none() {
                if let Some(index) = state.kept.iter().position(|kept| !kept) {
                    missing = Some((99, format!("message {index} of the queue never came to a window")));
                }
                break;
            }
        }
        if let Some((number, what)) = missing {
            self.broker.state.lock().alarms.push(format!("client {number}, in the end: {what}"));
        }
    }

    fn fault(&self) {
        self.mend();
        let number = self.faults.get() + 1;
        self.broker.state.lock().fault = Some(number);
        let happens = if self.plan.has("reload") && one_in(5) { self.reload() } else { self.happens() };
        if happens {
            self.faults.set(number);
        }
        self.broker.state.lock().fault = None;
        self.broker.changed.iter().for_each(tokio::sync::Notify::notify_waiters);
    }

    /// Something happens to a source or a bridge, or nothing, as it was so already.
    fn happens(&self) -> bool {
        let (slot, source) = (random::in_range(0..BRIDGES), random::in_range(self.plan.sources.clone()));
        let log = source == JET || source == RAB;
        let mut state = self.broker.state.lock();
        let fault = state.fault.unwrap_or_default();
        let what = random::in_range(0..120);
        self.note(None, || format!("fault {fault}, {what} of bridge {slot}, {}", SOURCES[source]));
        match what {
            0..40 => {
                state.break_link(slot, source, one_in(4));
                let link = &mut state.links[slot][source];
                (link.refuse, link.refused_by) = (if one_in(3) { random::in_range(0..6) } else { 0 }, fault);
                true
            }
            40..48 => {
                let until = tokio::time::Instant::now() + Duration::from_millis(random::in_range(0..10_000));
                let link = &mut state.links[slot][source];
                (link.frozen, link.frozen_by) = (Some(until), fault);
                true
            }
            48..56 => {
                state.down_by[source] = if state.down[source] { state.down_by[source] } else { fault };
                !std::mem::replace(&mut state.down[source], true)
            }
            56..66 if log && self.plan.has("truncate") => state.truncate(source, random::in_range(0..60)),
            66..70 if self.plan.has("purge") => state.purge(JET),
            70..73 if log && self.plan.has("recreate") => {
                state.recreate(source);
                true
            }
            73..77 if log && self.plan.has("cut") => {
                state.cut(source, random::in_range(1..10));
                true
            }
            77..92 if self.plan.has("kill") => {
                drop(state);
                self.crash(slot, fault)
            }
            92..100 if self.plan.has("drain") => {
                drop(state);
                self.drain(slot, fault)
            }
            100..104 if self.plan.has("deny") => {
                state.deny(slot, source, random::in_range(1..5));
                true
            }
            104..110 if log && self.plan.has("deny") => {
                state.deny_histories(slot, source, Duration::from_millis(random::in_range(0..40_000)));
                true
            }
            110..116 if log && self.plan.poison => {
                state.poison(source, random::in_range(1..4));
                true
            }
            116.. if log && self.plan.has("rename") => {
                drop(state);
                self.rename(slot, source, fault)
            }
            _ => false,
        }
    }

    /// An operator gives a bridge another source, another name of one, one less, other routes or other settings, while it runs.
    fn reload(&self) -> bool {
        let (slot, source) = (random::in_range(0..BRIDGES), random::in_range(0..SOURCES.len()));
        let fault = self.broker.state.lock().fault.unwrap_or_default();
        let Some(bridge) = self.bridges.borrow()[slot].clone().filter(|bridge| !bridge.is_draining()) else { return false };
        let wanted = &mut self.wanted.borrow_mut()[slot];
        self.change(wanted, source);
        if one_in(3) {
            self.change(wanted, random::in_range(0..SOURCES.len()));
        }
        self.note(None, || format!("bridge {} at {slot} reloads {wanted:?}", bridge.epoch));
        bridge.reload(wanted.clone(), fault);
        true
    }

    fn change(&self, wanted: &mut Wanted, source: usize) {
        let name = &mut wanted.names[source];
        let other = RENAMED.get(source).copied().unwrap_or(SOURCES[source]);
        match random::in_range(0..6) {
            0 | 1 if name.is_some() && self.plan.has("remove") => *name = None,
            0..3 if name.is_none() => *name = Some(if one_in(2) { other } else { SOURCES[source] }),
            2 if self.plan.has("rename") => *name = Some(if *name == Some(other) { SOURCES[source] } else { other }),
            3 | 4 if self.plan.has("reroute") => wanted.routes[source] = 1 - wanted.routes[source],
            _ => wanted.settings[source] += 1,
        }
    }

    /// A bridge is started again with another name of a source, or without the source.
    fn rename(&self, slot: usize, source: usize, fault: Fault) -> bool {
        let mut others = vec![Some(SOURCES[source]), Some(RENAMED[source]), None];
        others.retain(|name| *name != self.wanted.borrow()[slot].names[source]);
        self.wanted.borrow_mut()[slot].names[source] = choose(&others);
        if let Some(bridge) = &self.bridges.borrow()[slot] {
            self.broker.state.lock().ended.entry(bridge.epoch).or_insert(fault);
        }
        self.kill(slot);
        self.start(slot, fault);
        true
    }

    /// Kills a bridge; one that is gone already comes back.
    fn crash(&self, slot: usize, fault: Fault) -> bool {
        let epoch = self.bridges.borrow()[slot].as_ref().map(|bridge| bridge.epoch);
        if let Some(epoch) = epoch {
            self.broker.state.lock().ended.entry(epoch).or_insert(fault);
            self.kill(slot);
        }
        if epoch.is_none() || one_in(2) {
            self.start(slot, 0);
        }
        epoch.is_some()
    }

    fn drain(&self, slot: usize, fault: Fault) -> bool {
        let bridge = self.bridges.borrow()[slot].clone().filter(|bridge| !bridge.is_draining());
        if let Some(bridge) = &bridge {
            self.broker.state.lock().ended.insert(bridge.epoch, fault);
            bridge.drain(Duration::from_millis(random::in_range(0..3_000)));
        }
        bridge.is_some()
    }

    /// What is down does not stay so for long.
    fn mend(&self) {
        for slot in 0..BRIDGES {
            let gone = self.bridges.borrow()[slot].as_ref().is_none_or(|bridge| bridge.is_draining());
            if gone && one_in(4) {
                self.kill(slot);
                self.start(slot, 0);
            }
        }
        self.broker.state.lock().down.iter_mut().filter(|down| **down).for_each(|down| *down = !one_in(3));
    }

    /// `fault`: what changed its sources.
    fn start(&self, slot: usize, fault: Fault) {
        let group = self.groups.get();
        self.groups.set(group + 1);
        let epoch = random::in_range(1..u32::MAX);
        let place = Place { executor: &self.executor, broker: &self.broker, bounds: &self.plan.bounds };
        self.note(None, || format!("bridge {epoch} starts at {slot}: {:?}", self.wanted.borrow()[slot]));
        let bridge = Bridge::start(place, (slot, epoch, group), &self.wanted.borrow()[slot], fault);
        self.bridges.borrow_mut()[slot] = Some(bridge);
    }

    /// Ends a bridge where it stands.
    fn kill(&self, slot: usize) {
        let bridge = self.bridges.borrow_mut()[slot].take();
        if let Some(bridge) = bridge {
            self.executor.kill(bridge.group);
        }
    }

    /// A bridge that lets clients in.
    pub(super) fn some_bridge(&self) -> Option<Rc<Bridge>> {
        let bridge = self.bridges.borrow()[random::in_range(0..BRIDGES)].clone();
        bridge.filter(|bridge| !bridge.is_draining())
    }

    /// A bridge that a client is at, unless it was killed.
    pub(super) fn bridge(&self, epoch: u32) -> Option<Rc<Bridge>> {
        self.bridges.borrow().iter().flatten().find(|bridge| bridge.epoch == epoch).cloned()
    }

    pub(super) fn opened(&self) {
        self.streams.set(self.streams.get() + 1);
    }

    /// A stream of this bridge has ended, and its client was told no reason of its own.
    pub(super) fn ended(&self, epoch: u32) {
        let mut state = self.broker.state.lock();
        let fault = state.ended.get(&epoch).copied();
        state.effective.extend(fault);
    }

    /// Prints what happens to a client, or to the brokers and bridges, where `SIM_CLIENT` names one.
    pub(super) fn note(&self, number: Option<usize>, what: impl FnOnce() -> String) {
        if self.watched.is_some_and(|watched| number.is_none_or(|number| number == watched)) {
            println!("{} {}: {}", Timestamp::now(), number.map_or_else(|| "-".to_owned(), |number| format!("client {number}")), what());
        }
    }

    pub(super) fn trace(&self, number: usize, bytes: &[u8]) {
        let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        let hash = bytes.iter().fold(mix(self.trace.get(), number as u8), |hash, byte| mix(hash, *byte));
        self.trace.set(hash);
    }

    /// Asks a client's judge. Returns whether all is well.
    pub(super) fn judge(&self, number: usize, ask: impl FnOnce(&mut Judge, &State, Floors<'_>) -> Result<(), String>) -> bool {
        let bridges = self.bridges.borrow();
        let mut state = self.broker.state.lock();
        let floors = {
            let keys =
                |bridge: &Rc<Bridge>| (bridge.clone(), state.configs(bridge.epoch).last().map(|config| config.keys).unwrap_or_default());
            let bridges: Vec<_> = bridges.iter().flatten().map(keys).collect();
            move |epoch, source: usize| {
                // What a dead bridge's window held is not known any more.
                bridges.iter().find(|(of, _)| of.epoch == epoch).map_or(u64::MAX, |(bridge, keys)| bridge.floor(keys[source]))
            }
        };
        let mut judges = self.judges.borrow_mut();
        let Some((_, judge)) = judges.iter_mut().find(|(of, _)| *of == number) else { return true };
        if state.alarms.len() > 1 {
            return true;
        }
        let asked = ask(judge, &state, &floors);
        state.effective.extend(judge.effects.drain(..));
        let patterns = &judge.patterns;
        match asked {
            Ok(()) => true,
            Err(error) => {
                state.alarms.push(format!("client {number} {patterns:?}: {error}"));
                false
            }
        }
    }

    fn has_alarm(&self) -> bool {
        !self.broker.state.lock().alarms.is_empty()
    }

    fn report(&self) -> Report {
        let state = self.broker.state.lock();
        let mut report = Report {
            events: state.written.iter().map(|written| written.iter().filter(|w| !w.border).count() as u64).sum(),
            faults: self.faults.get(),
            effective: state.effective.range(1..).count() as u64,
            streams: self.streams.get(),
            trace: self.trace.get(),
            alarms: state.alarms.clone(),
            ..Report::default()
        };
        for (_, judge) in self.judges.borrow().iter() {
            report.counts.add(&judge.counts);
        }
        report
    }
}
