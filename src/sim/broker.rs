//! The model broker: two logs, a queue that delivers again what was not acknowledged, and a subject space that keeps
//! nothing. It remembers everything that was ever written, and so is what the oracle compares with.
//!
//! Knows messages and how brokers lose them; nothing of bridges. How bridges read from it is [`super::adapter`]'s affair.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cursor::{Check, Position};
use crate::event::{Gap, GapReason, Message, SourceKey, Timestamp};
use crate::support::random;

/// The sources, in the hub's order.
pub(super) const SOURCES: [&str; 4] = ["jet", "rab", "jobs", "core"];
/// A log whose bounds are known, as JetStream's.
pub(super) const JET: usize = 0;
/// A log that hides its bounds, as a RabbitMQ stream does.
pub(super) const RAB: usize = 1;
/// A queue that each bridge gets a part of.
pub(super) const JOBS: usize = 2;
/// Keeps nothing, as core NATS.
pub(super) const CORE: usize = 3;
/// Larger payloads become gaps.
pub(super) const MAX_PAYLOAD: usize = 600;
/// Messages that wait for one subscriber of core.
const BUFFER: usize = 48;

/// What each source may produce.
pub(super) const SUBJECTS: [&[&str]; 4] = [
    &["jet.a.1", "jet.a.2", "jet.b.1", "jet.ren.x", "jet.drop.y"],
    &["rab.a.1", "rab.b.1", "rab.raw.1"],
    &["jobs.a", "jobs.b"],
    &["core.a", "core.b", "core.drop.z"],
];

/// What the sources with a log are called after an operator renamed them.
pub(super) const RENAMED: [&str; 2] = ["jet2", "rab2"];

/// What a bridge calls its sources; `None`: it has no such source.
pub(super) type Names = [Option<&'static str>; 4];

/// By which routes a bridge routes each source: see [`routed`].
pub(super) type Routes = [u8; 4];

/// So many kinds of routes there are for each source.
pub(super) const ROUTES: u8 = 2;

/// What routing makes of a subject, said here anew: the bridge's own router is not its judge. The same filters are concerned by
/// all routes, but by other messages.
pub(super) fn routed(subject: &str, routes: u8) -> Option<&str> {
    match (subject, routes) {
        ("jet.ren.x", 0) | ("jet.a.2", 1) => Some("shop.x"),
        ("jet.ren.x", 1) => Some("jet.b.1"),
        ("jet.drop.y" | "core.drop.z", 0) | ("jet.b.1" | "core.a", 1) => None,
        ("core.drop.z", 1) => Some("core.a"),
        ("rab.a.1", 1) => Some("rab.b.1"),
        ("rab.b.1", 1) => Some("rab.a.1"),
        ("jobs.a", 1) => Some("jobs.b"),
        ("jobs.b", 1) => Some("jobs.a"),
        (other, _) => Some(other),
    }
}

/// The source of a name, and the name.
pub(super) fn named(name: &str) -> Option<(usize, &'static str)> {
    let position = |names: &[&'static str]| names.iter().position(|of| *of == name).map(|source| (source, names[source]));
    position(&SOURCES).or_else(|| position(&RENAMED))
}

/// The sources of a bridge, as its streams see them from some moment on.
#[derive(Debug, Clone)]
pub(super) struct Config {
    /// The number of the change that led to it. It holds until the next one of this bridge.
    pub(super) from: u64,
    /// The bridge's sequence then.
    pub(super) seq: u64,
    pub(super) names: Names,
    /// `None`: the source is not there.
    pub(super) routes: [Option<u8>; 4],
    /// Another one where a source was made anew.
    pub(super) keys: [Option<SourceKey>; 4],
    /// How many messages of each source had been written then.
    pub(super) written: [usize; 4],
    /// What changed it.
    pub(super) fault: Fault,
}

/// The number of a fault, from 1; 0 is none.
pub(super) type Fault = u64;

/// A message that a bridge got later than without some faults, or again.
#[derive(Debug, Clone)]
pub(super) struct Late {
    pub(super) epoch: u32,
    /// When the bridge got it.
    pub(super) arrived: Timestamp,
    pub(super) faults: Vec<Fault>,
}

/// Something that was written once, or a place where a log was made anew or cut.
#[derive(Debug, Clone)]
pub(super) struct Written {
    pub(super) seq: u64,
    pub(super) subject: &'static str,
    pub(super) payload: Bytes,
    pub(super) time: Timestamp,
    pub(super) removed: bool,
    /// A crash took it: of one whom nobody had read, nothing tells.
    pub(super) cut: bool,
    /// The number of the border that took it: it is not in the logs from there on.
    pub(super) until: usize,
    /// No message: from here on the log's positions mean something else.
    pub(super) border: bool,
    /// What made it unreadable: no reader is given it. 0: it is readable.
    pub(super) unreadable: Fault,
    /// What removed it, or made the border.
    pub(super) removed_by: Fault,
    /// The bridges that got it late.
    pub(super) late: Vec<Late>,
    /// It is back in its queue because of these.
    pub(super) requeued_by: Vec<Fault>,
}

impl Written {
    fn new(seq: u64, subject: &'static str, payload: Bytes) -> Self {
        let (removed, cut, border, late, requeued_by) = (false, false, false, Vec::new(), Vec::new());
        let (time, until, removed_by, unreadable) = (Timestamp::now(), usize::MAX, 0, 0);
        Self { seq, subject, payload, time, removed, cut, until, border, unreadable, removed_by, late, requeued_by }
    }

    /// Nothing can be computed from what cannot be read.
    pub(super) fn position(&self) -> Position {
        let check = self.is_readable().then(|| Check::of(&[self.subject.as_bytes(), &self.payload]));
        Position { seq: self.seq, check }
    }

    pub(super) fn is_readable(&self) -> bool {
        self.unreadable == 0
    }

    pub(super) fn message(&self, durable: bool) -> Message {
        let subject = self.subject.parse().expect("a subject");
        Message::new(subject, self.payload.clone(), self.time, durable.then(|| self.position()))
    }

    pub(super) fn oversized(&self) -> bool {
        self.payload.len() > MAX_PAYLOAD
    }
}

/// How a gap is recognised: its reason, `from` and `to`.
pub(super) type Told = (&'static str, Option<u64>, Option<u64>);

pub(super) fn told(gap: &Gap) -> Told {
    (gap.reason.as_str(), gap.from, gap.to)
}

/// When a reader was told of a gap.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Issued {
    /// So often the log had been made anew or cut.
    pub(super) borders: usize,
    /// The log goes on, but what it held was purged.
    pub(super) goes_on: bool,
}

/// A broker's log.
#[derive(Default)]
pub(super) struct Log {
    /// What it holds, as indices of what was written.
    pub(super) live: VecDeque<usize>,
    /// The sequence of the next message.
    pub(super) next: u64,
    /// All sequences from here on are new, also to logs that were there before.
    unused: u64,
    /// The next messages that cannot be read, and by which fault.
    poison: (u32, Fault),
    /// Which log it is: another one after it was made anew.
    pub(super) created: u32,
    /// Where it was made anew or cut, as indices of what was written.
    pub(super) borders: Vec<usize>,
    /// Everything up to this sequence was purged.
    pub(super) purged: u64,
    /// Somebody read on from a place without a check after the log had been made anew: nothing tells that from the old one.
    pub(super) blind: bool,
    /// Somebody read on from these messages of a log that is gone, as indices of what was written: what stood at their places in the
    /// log of now was gone too, and the next message was there.
    pub(super) passed: BTreeSet<usize>,
    /// Messages left in this segment of a RabbitMQ stream.
    segment: u32,
    /// The gaps that readers were told, each with the numbers of borders then.
    pub(super) issued: BTreeMap<Told, Vec<Issued>>,
}

/// Something that an adapter handed out, to be compared with what its bridge takes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handed {
    Message(usize),
    /// A message that a bridge found to be too large.
    Oversized(usize),
    Gap(GapReason),
}

impl Handed {
    /// What a client sees of it.
    pub(super) fn shown(self) -> Self {
        if let Self::Oversized(_) = self { Self::Gap(GapReason::Oversized) } else { self }
    }
}

/// What a bridge has taken in of a source without a log.
#[derive(Debug, Clone)]
pub(super) struct Taken {
    /// The bridge's sequence.
    pub(super) seq: u64,
    pub(super) source: usize,
    pub(super) what: Handed,
    /// By what it was routed.
    pub(super) routes: u8,
    /// So many changes of bridges there had been.
    pub(super) changes: u64,
    /// The faults that a gap is told for.
    pub(super) faults: Vec<Fault>,
}

/// How a bridge is connected to a source.
#[derive(Default)]
pub(super) struct Link {
    /// Grows with each break.
    pub(super) breaks: u64,
    /// The break is a panic of the adapter.
    pub(super) panics: bool,
    /// Attempts to connect that are still refused.
    pub(super) refuse: u32,
    /// So often the log had been made anew or cut when the live reader began.
    pub(super) borders: usize,
    /// Nothing arrives before this.
    pub(super) frozen: Option<Instant>,
    /// The faults that broke, refuse and froze it last.
    pub(super) broken_by: Fault,
    pub(super) refused_by: Fault,
    pub(super) frozen_by: Fault,
    /// Attempts of the live reader that are still denied, and until when all histories are; and by which faults.
    pub(super) denied: u32,
    pub(super) denied_by: Fault,
    pub(super) histories_denied: Option<Instant>,
    pub(super) histories_denied_by: Fault,
    /// A live reader is connected.
    standing: bool,
    /// The faults that hold up what comes.
    pub(super) held: Vec<Fault>,
    /// When the link was up again after them.
    up: Option<Timestamp>,
}

impl Link {
    /// A fault holds up what comes from now on.
    pub(super) fn hold(&mut self, fault: Fault) {
        self.up = None;
        if !self.held.contains(&fault) {
            self.held.push(fault);
        }
    }

    /// A live reader is connected, or gets something again.
    pub(super) fn is_up(&mut self) {
        self.standing = true;
        self.up = Some(Timestamp::now());
    }
}

/// Who reads core.
#[derive(Default)]
pub(super) struct Subscriber {
    pub(super) buffer: VecDeque<usize>,
    pub(super) overflowed: bool,
}

/// All of the broker's state.
#[derive(Default)]
pub(super) struct State {
    pub(super) written: [Vec<Written>; 4],
    pub(super) logs: [Log; 2],
    pub(super) queue: VecDeque<usize>,
    /// Messages of the queue that were in some bridge's window.
    pub(super) kept: Vec<bool>,
    pub(super) subscribers: Slab<Subscriber>,
    pub(super) down: [bool; 4],
    pub(super) down_by: [Fault; 4],
    pub(super) links: [[Link; 4]; 3],
    /// By epoch and source.
    pub(super) handed: BTreeMap<(u32, usize), VecDeque<Handed>>,
    /// By epoch and source: so many borders of the log the bridge has noticed, each with the number of the change that this was.
    pub(super) noticed: BTreeMap<(u32, usize), Vec<(u64, usize)>>,
    /// By epoch: what was taken in of sources without a log.
    pub(super) taken: BTreeMap<u32, Vec<Taken>>,
    /// The fault that happens at this moment.
    pub(super) fault: Option<Fault>,
    /// By epoch: the fault that ended the bridge.
    pub(super) ended: BTreeMap<u32, Fault>,
    /// By epoch and source: since when histories have failed.
    pub(super) failing: BTreeMap<(u32, usize), Timestamp>,
    /// By epoch: the sources of the bridge, first to last.
    pub(super) configs: BTreeMap<u32, Vec<Config>>,
    /// The faults that changed what a stream was sent.
    pub(super) effective: BTreeSet<Fault>,
    /// Names of what was found to be wrong, with what is known of it.
    pub(super) alarms: Vec<String>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Broker {
    pub(super) state: Mutex<State>,
    pub(super) changed: [Notify; 4],
    /// How often the sources of any bridge, or what it knows of a log, have changed.
    pub(super) changes: Arc<AtomicU64>,
}

impl Broker {
    pub(super) fn new() -> Self {
        let broker = Self::default();
        broker.state.lock().logs[JET].next = 1;
        broker
    }

    /// The sources of a bridge are others from now on. `seq` is the bridge's sequence.
    pub(super) fn configure(
        &self,
        epoch: u32,
        (names, routes, keys): (Names, [Option<u8>; 4], [Option<SourceKey>; 4]),
        seq: u64,
        fault: Fault,
    ) {
        let mut state = self.state.lock();
        let written = [0, 1, 2, 3].map(|source: usize| state.written[source].len());
        let configs = state.configs.entry(epoch).or_default();
        if configs.last().is_some_and(|last| (last.names, last.routes, last.keys) == (names, routes, keys)) {
            return;
        }
        let from = self.changes.fetch_add(1, Ordering::Relaxed) + 1;
        configs.push(Config { from, seq, names, routes, keys, written, fault });
    }

    /// Writes a message. The payload says which it is.
    pub(super) fn write(&self, source: usize) {
        let mut state = self.state.lock();
        let s = &mut *state;
        let subject = SUBJECTS[source][random::in_range(0..SUBJECTS[source].len())];
        let index = s.written[source].len();
        let size = if random::in_range(0..100) == 0 { random::in_range(0..2 * MAX_PAYLOAD) } else { random::in_range(0..60) };
        let payload = format!("{{\"n\":{index},\"s\":{source},\"x\":\"{:x<size$}\"}}", "").into();
        let (mut seq, mut unreadable) = (index as u64, 0);
        if let Some(log) = s.logs.get_mut(source) {
            if source == RAB {
                if log.segment == 0 {
                    // A segment begins with a note of the broker's own.
                    log.segment = random::in_range(1..12);
                    log.next += 1;
                }
                log.segment -= 1;
            }
            seq = log.next;
            log.next += 1;
            log.live.push_back(index);
            // Where another message had this sequence, a reader that stands there could not tell that the log is another one.
            if log.poison.0 > 0 && seq >= log.unused {
                log.poison.0 -= 1;
                unreadable = log.poison.1;
            }
            log.unused = log.unused.max(log.next);
        }
        s.written[source].push(Written { unreadable, ..Written::new(seq, subject, payload) });
        match source {
            JOBS => {
                s.queue.push_back(index);
                s.kept.push(false);
            }
            CORE => {
                for (_, subscriber) in &mut s.subscribers {
                    if subscriber.buffer.len() < BUFFER {
                        subscriber.buffer.push_back(index);
                    } else {
                        subscriber.overflowed = true;
                    }
                }
            }
            _ => {}
        }
        drop(state);
        self.changed[source].notify_waiters();
    }
}

impl State {
    /// The sources of a bridge, first to last.
    pub(super) fn configs(&self, epoch: u32) -> &[Config] {
        self.configs.get(&epoch).map_or(&[], Vec::as_slice)
    }

    /// Which of the configs of a bridge held after so many changes.
    pub(super) fn config_at(&self, epoch: u32, changes: u64) -> usize {
        self.configs(epoch).partition_point(|config| config.from <= changes).saturating_sub(1)
    }

    /// So many borders of a log a bridge had noticed after so many changes.
    pub(super) fn noticed(&self, epoch: u32, source: usize, changes: u64) -> usize {
        let noticed = self.noticed.get(&(epoch, source)).map_or(&[][..], Vec::as_slice);
        let at = noticed.partition_point(|(from, _)| *from <= changes);
        noticed[..at].last().map_or(0, |(_, borders)| *borders)
    }

    /// A log's last message, or where it would be.
    pub(super) fn end(&self, source: usize) -> Option<Position> {
        let log = &self.logs[source];
        match log.live.back() {
            Some(index) => Some(self.written[source][*index].position()),
            None if source == JET => Some(Position::unverified(log.next - 1)),
            None => None,
        }
    }

    /// The first sequence that a log holds, or the next one to come.
    pub(super) fn first(&self, source: usize) -> u64 {
        let log = &self.logs[source];
        log.live.front().map_or(log.next, |index| self.written[source][*index].seq)
    }

    /// The place in `live` of the first message with this sequence or a later one.
    pub(super) fn place(&self, source: usize, seq: u64) -> usize {
        self.logs[source].live.partition_point(|index| self.written[source][*index].seq < seq)
    }

    /// The message with a sequence, if the log holds it.
    pub(super) fn at(&self, source: usize, seq: u64) -> Option<&Written> {
        let index = self.logs[source].live.get(self.place(source, seq))?;
        Some(&self.written[source][*index]).filter(|written| written.seq == seq)
    }

    /// Returns whether anything was removed.
    fn remove(&mut self, source: usize, count: usize) -> bool {
        for _ in 0..count {
            if let Some(index) = self.logs[source].live.pop_front() {
                self.written[source][index].removed = true;
                self.written[source][index].removed_by = self.fault.unwrap_or_default();
            }
        }
        count > 0
    }

    /// The next messages of a log cannot be read.
    pub(super) fn poison(&mut self, source: usize, count: u32) {
        self.logs[source].poison = (count, self.fault.unwrap_or_default());
    }

    /// Limits take the oldest messages: of a RabbitMQ stream whole segments, and never all.
    pub(super) fn truncate(&mut self, source: usize, keep: usize) -> bool {
        let mut count = self.logs[source].live.len().saturating_sub(keep);
        if source == RAB {
            let begins = |at: usize| {
                let seq = |at: usize| self.logs[source].live.get(at).map(|index| self.written[source][*index].seq);
                at == 0 || seq(at).zip(seq(at - 1)).is_some_and(|(seq, before)| seq > before + 1)
            };
            while count > 0 && !(count < self.logs[source].live.len() && begins(count)) {
                count -= 1;
            }
        }
        self.remove(source, count)
    }

    /// Somebody empties the log; its sequences go on.
    pub(super) fn purge(&mut self, source: usize) -> bool {
        self.logs[source].purged = self.logs[source].next - 1;
        self.remove(source, self.logs[source].live.len())
    }

    /// The log is deleted and made again, under the same numbers.
    pub(super) fn recreate(&mut self, source: usize) {
        self.remove(source, self.logs[source].live.len());
        let log = &mut self.logs[source];
        log.created += 1;
        log.next = u64::from(source == JET);
        log.segment = 0;
        log.purged = 0;
        let number = log.borders.len() + 1;
        for written in &mut self.written[source] {
            written.until = written.until.min(number);
        }
        self.border(source);
    }

    /// A crash takes the newest messages; their sequences are used again.
    pub(super) fn cut(&mut self, source: usize, count: usize) {
        let number = self.logs[source].borders.len() + 1;
        for _ in 0..count {
            if self.logs[source].live.len() > usize::from(source == RAB)
                && let Some(index) = self.logs[source].live.pop_back()
            {
                let written = &mut self.written[source][index];
                (written.removed, written.cut, written.until) = (true, true, number);
                written.removed_by = self.fault.unwrap_or_default();
                self.logs[source].next = self.written[source][index].seq;
            }
        }
        self.border(source);
    }

    fn border(&mut self, source: usize) {
        let index = self.written[source].len();
        self.logs[source].borders.push(index);
        let removed_by = self.fault.unwrap_or_default();
        self.written[source].push(Written { removed: true, cut: true, border: true, removed_by, ..Written::new(0, "", Bytes::new()) });
        (0..self.links.len()).for_each(|slot| self.break_link(slot, source, false));
    }

    /// All connections of a bridge to a source end.
    pub(super) fn break_link(&mut self, slot: usize, source: usize, panics: bool) {
        let fault = self.fault.unwrap_or_default();
        let link = &mut self.links[slot][source];
        link.breaks += 1;
        link.panics = panics;
        link.broken_by = fault;
        if std::mem::take(&mut link.standing) {
            link.hold(fault);
        }
    }

    /// A bridge has no right to read a source, so often.
    pub(super) fn deny(&mut self, slot: usize, source: usize, times: u32) {
        let link = &mut self.links[slot][source];
        (link.denied, link.denied_by) = (times, self.fault.unwrap_or_default());
        self.break_link(slot, source, false);
    }

    /// A bridge has no right to make readers for histories, for so long.
    pub(super) fn deny_histories(&mut self, slot: usize, source: usize, span: Duration) {
        let link = &mut self.links[slot][source];
        (link.histories_denied, link.histories_denied_by) = (Some(Instant::now() + span), self.fault.unwrap_or_default());
    }

    /// A live reader hands out a message: notes whether faults held it up, or had it delivered again.
    pub(super) fn hand_out(&mut self, slot: usize, source: usize, epoch: u32, index: usize) {
        let (link, written) = (&mut self.links[slot][source], &mut self.written[source][index]);
        let mut faults = std::mem::take(&mut written.requeued_by);
        match link.up {
            Some(up) if written.time <= up => faults.extend(&link.held),
            Some(_) => link.held.clear(),
            None => {}
        }
        if !faults.is_empty() {
            written.late.push(Late { epoch, arrived: Timestamp::now(), faults });
        }
    }
}
