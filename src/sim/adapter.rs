//! How bridges read from the model broker: the production contract of adapters, kept as each kind of broker allows, with
//! all that may go wrong in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, sleep_until};

use super::broker::{Broker, CORE, Fault, Handed, Issued, JET, JOBS, Link, RAB, SOURCES, SUBJECTS, State, Written, told};
use crate::cursor::Position;
use crate::event::{Gap, GapReason, Timestamp};
use crate::source::{Adapter, Connection, Item, SourceError, Start};
use crate::subject::Pattern;
use crate::support::random;

/// Why a connection ends.
struct End {
    panics: bool,
    fault: Fault,
}

fn one_in(count: u32) -> bool {
    random::in_range(0..count) == 0
}

async fn pause(millis: u64) {
    sleep(Duration::from_micros(random::in_range(0..=millis * 1000))).await;
}

/// A history could not be opened or read.
fn note_failure(state: &mut State, epoch: u32, source: usize) {
    state.failing.entry((epoch, source)).or_insert_with(Timestamp::now);
}

/// One source of one bridge.
pub(super) struct Model {
    pub(super) broker: Arc<Broker>,
    pub(super) source: usize,
    pub(super) slot: usize,
    pub(super) epoch: u32,
    /// Which log the live reader has seen.
    known: Mutex<Option<u32>>,
    connected: AtomicBool,
}

impl Model {
    pub(super) fn new(broker: &Arc<Broker>, source: usize, slot: usize, epoch: u32) -> Self {
        Self { broker: broker.clone(), source, slot, epoch, known: Mutex::default(), connected: AtomicBool::new(false) }
    }

    async fn open(&self, start: Start, live: bool, wanted: Option<&[Pattern]>) -> Result<Box<dyn Connection>, SourceError> {
        if one_in(3) {
            pause(20).await;
        } else if one_in(60) {
            pause(40_000).await;
        }
        let reader = {
            let mut state = self.broker.state.lock();
            if let Err((fault, error)) = self.admit(&mut state, live) {
                if live {
                    state.links[self.slot][self.source].hold(fault);
                } else {
                    state.effective.insert(fault);
                    note_failure(&mut state, self.epoch, self.source);
                }
                return Err(error);
            }
            let link = &mut state.links[self.slot][self.source];
            let breaks = link.breaks;
            if live {
                link.is_up();
            }
            let base = Base { broker: self.broker.clone(), source: self.source, slot: self.slot, epoch: self.epoch, breaks, live };
            match self.source {
                JOBS => {
                    return Ok(Box::new(QueueReader { base, unacknowledged: Vec::new(), ended_by: None }) as Box<dyn Connection>);
                }
                CORE => {
                    if self.connected.swap(true, Ordering::Relaxed) {
                        state.handed.entry((self.epoch, CORE)).or_default().push_back(Handed::Gap(GapReason::Reconnect));
                    }
                    let key = state.subscribers.insert(Default::default());
                    return Ok(Box::new(CoreReader { base, key }) as Box<dyn Connection>);
                }
                _ => {}
            }
            let created = state.logs[self.source].created;
            let anew = live && self.source == JET && self.known.lock().is_some_and(|known| known != created);
            if live {
                *self.known.lock() = Some(created);
                state.links[self.slot][self.source].borders = state.logs[self.source].borders.len();
            }
            LogReader::new(base, &mut state, start, anew, wanted)
        };
        // Between the look at the log and the reading something may happen to it.
        if one_in(8) {
            pause(200).await;
            reader.check().inspect_err(|_| note_failure(&mut self.broker.state.lock(), self.epoch, self.source))?;
        }
        Ok(Box::new(reader))
    }

    /// Whether the broker lets a reader in; else why not, and because of which fault.
    fn admit(&self, state: &mut State, live: bool) -> Result<(), (Fault, SourceError)> {
        let link = &mut state.links[self.slot][self.source];
        if link.refuse > 0 {
            link.refuse -= 1;
            return Err((link.refused_by, SourceError::lost("refused")));
        }
        if state.down[self.source] {
            return Err((state.down_by[self.source], SourceError::lost("down")));
        }
        let link = &mut state.links[self.slot][self.source];
        if live && link.denied > 0 {
            link.denied -= 1;
            return Err((link.denied_by, SourceError::denied("no right to read")));
        }
        if !live && link.histories_denied.is_some_and(|until| until > Instant::now()) {
            return Err((link.histories_denied_by, SourceError::denied("no right to make a reader")));
        }
        Ok(())
    }
}

impl Adapter for Model {
    fn kind(&self) -> &'static str {
        SOURCES[self.source]
    }
    fn durable(&self) -> bool {
        self.source == JET || self.source == RAB
    }
    fn dates(&self) -> bool {
        self.source == JET
    }
    fn keeps_last(&self) -> bool {
        self.source == JET
    }
    fn loses_while_away(&self) -> bool {
        self.source == CORE
    }
    fn reach(&self) -> Vec<Pattern> {
        SUBJECTS[self.source].iter().map(|subject| subject.parse().expect("a pattern")).collect()
    }
    fn connect(&self, start: Start) -> BoxFuture<'_, Result<Box<dyn Connection>, SourceError>> {
        Box::pin(self.open(start, true, None))
    }
    fn history(&self, start: Start) -> BoxFuture<'_, Result<Box<dyn Connection>, SourceError>> {
        Box::pin(self.open(start, false, None))
    }
    fn selects(&self) -> bool {
        self.source == JET
    }
    fn selected<'a>(&'a self, start: Start, wanted: &'a [Pattern]) -> BoxFuture<'a, Result<Option<Box<dyn Connection>>, SourceError>> {
        Box::pin(async move {
            if one_in(5) {
                return Ok(None);
            }
            self.open(start, false, Some(wanted)).await.map(Some)
        })
    }
}

/// What all connections have.
struct Base {
    broker: Arc<Broker>,
    source: usize,
    slot: usize,
    epoch: u32,
    /// The breaks of the link before this connection.
    breaks: u64,
    /// Else it reads a history.
    live: bool,
}

impl Base {
    /// How much is handed out this time, and whether the connection ends behind it.
    fn chunk(&self, state: &mut State, limit: usize) -> (usize, Option<End>) {
        let link = &mut state.links[self.slot][self.source];
        let most = limit.min(random::in_range(1..=64));
        if state.down[self.source] {
            let fault = state.down_by[self.source];
            if self.live {
                link.hold(fault);
            }
            return (0, Some(End { panics: false, fault }));
        }
        if link.breaks != self.breaks {
            // Some of what had arrived is handed out before the end is noticed.
            return (random::in_range(0..=most.min(4)), Some(End { panics: link.panics, fault: link.broken_by }));
        }
        (most, None)
    }

    fn end(&self, end: &End) -> Result<bool, SourceError> {
        if end.panics {
            // Nothing is printed for it.
            std::panic::resume_unwind(Box::new(()));
        }
        Err(SourceError::lost("the connection is gone"))
    }

    fn handed(&self, state: &mut State, handed: Handed) {
        state.handed.entry((self.epoch, self.source)).or_default().push_back(handed);
    }

    /// Waits for something to do, after what was delayed on the way.
    async fn wait(&self, mut look: impl FnMut(&mut State) -> Result<bool, SourceError>) -> Result<(), SourceError> {
        if one_in(6) {
            pause(30).await;
        }
        loop {
            let frozen = self.broker.state.lock().links[self.slot][self.source].frozen;
            if let Some(until) = frozen.filter(|until| *until > Instant::now()) {
                self.of_live(|link| link.hold(link.frozen_by));
                sleep_until(until).await;
                self.of_live(Link::is_up);
            }
            let changed = self.broker.changed[self.source].notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if look(&mut self.broker.state.lock())? {
                return Ok(());
            }
            changed.await;
        }
    }

    /// Changes the link, where this is its live reader.
    fn of_live(&self, change: impl FnOnce(&mut Link)) {
        if self.live {
            change(&mut self.broker.state.lock().links[self.slot][self.source]);
        }
    }

    /// A live reader hands out a message.
    fn hand_out(&self, state: &mut State, index: usize) {
        if self.live {
            state.hand_out(self.slot, self.source, self.epoch, index);
        }
    }

    async fn late_answer(&self) -> Result<(), SourceError> {
        if one_in(50) {
            pause(if one_in(6) { 12_000 } else { 50 }).await;
        }
        if one_in(400) { Err(SourceError::lost("not acknowledged")) } else { Ok(()) }
    }
}

fn wants(wanted: Option<&[Pattern]>, subject: &str) -> bool {
    wanted.is_none_or(|wanted| wanted.iter().any(|pattern| pattern.matches(subject)))
}

/// A reader of a log.
struct LogReader {
    base: Base,
    /// How often it had been made anew or cut.
    borders: usize,
    items: Vec<Item>,
    /// Up to where it has come; `None`: at the very beginning.
    at: Option<u64>,
    /// The end as it was, until it is reached.
    tail: Option<u64>,
    /// Only these subjects.
    wanted: Option<Vec<Pattern>>,
}

impl LogReader {
    fn new(base: Base, state: &mut State, start: Start, anew: bool, wanted: Option<&[Pattern]>) -> Self {
        let source = base.source;
        let end = state.end(source);
        let first = state.first(source);
        let mut items = Vec::new();
        let mut at = None;
        match start {
            Start::Earliest => {}
            Start::Now => at = end.map(|end| end.seq),
            Start::Since(time) => {
                let index = |place: usize| state.logs[source].live[place];
                let exact = state.logs[source].live.partition_point(|index| state.written[source][*index].time < time);
                // RabbitMQ begins with a chunk.
                let place = if source == RAB { exact.saturating_sub(random::in_range(0..4)) } else { exact };
                let seq =
                    if place < state.logs[source].live.len() { state.written[source][index(place)].seq } else { state.logs[source].next };
                at = seq.checked_sub(1);
            }
            Start::Recent { bytes, .. } => {
                let count = (bytes / 400) as usize + 1;
                let place = state.logs[source].live.len().saturating_sub(count);
                at = state.logs[source].live.get(place).and_then(|index| state.written[source][*index].seq.checked_sub(1));
            }
            Start::After(place) => {
                let gap = Self::resume(&base, state, place, anew);
                at = match &gap {
                    Some(gap) => gap.position.map(|position| position.seq),
                    None => Some(place.seq),
                };
                items.extend(gap.map(Item::Gap));
            }
            Start::LastPerSubject => {
                let mut newest: Vec<usize> = Vec::new();
                for subject in SUBJECTS[source] {
                    newest.extend(state.logs[source].live.iter().rev().find(|index| state.written[source][**index].subject == *subject));
                }
                newest.retain(|index| wants(wanted, state.written[source][*index].subject));
                newest.sort_unstable();
                if newest.iter().any(|index| !state.written[source][*index].is_readable()) {
                    // Which of them cannot be read is not known: none is handed out.
                    newest.clear();
                    items.push(Item::Gap(Gap { reason: GapReason::Unreadable, from: None, to: None, position: end }));
                }
                for index in newest {
                    let message = state.written[source][index].message(true);
                    // Seen with nats-server 2.9: the same one twice.
                    let twice = one_in(6).then(|| Item::Message(message.clone()));
                    items.push(Item::Message(message));
                    items.extend(twice);
                }
                at = end.map(|end| end.seq);
            }
        }
        let reached = end.is_none_or(|end| at.is_some_and(|at| at >= end.seq) || first > end.seq);
        if reached {
            items.push(Item::Tail(end));
            at = at.max(end.map(|end| end.seq));
        }
        let tail = end.filter(|_| !reached).map(|end| end.seq);
        Self { borders: state.logs[source].borders.len(), base, items, at, tail, wanted: wanted.map(<[_]>::to_vec) }
    }

    /// What somebody who stands at a place may have lost.
    fn resume(base: &Base, state: &mut State, place: Position, anew: bool) -> Option<Gap> {
        let source = base.source;
        let (first, end) = (state.first(source), state.end(source));
        let empty = state.logs[source].live.is_empty();
        let position = first.checked_sub(1).map(Position::unverified);
        state.logs[source].blind |= place.check.is_none() && !state.logs[source].borders.is_empty();
        let gap = |reason| Gap { reason, from: Some(place.seq), to: Some(first), position };
        let gap = if source == RAB && empty {
            Some((Gap { reason: GapReason::Reset, from: Some(place.seq), to: None, position: None }, false))
        } else {
            let beyond = end.is_none_or(|end| place.seq > end.seq);
            let other = match state.at(source, place.seq) {
                Some(written) => !written.position().agrees(&place),
                // Gone from the middle.
                None => source == RAB && place.check.is_some() && place.seq >= first,
            };
            let joins = if source == RAB { place.seq + 2 >= first } else { place.seq + 1 >= first };
            if anew || beyond || other {
                Some((gap(GapReason::Reset), false))
            } else if joins || place.seq >= first {
                let is_old = |written: &Written| written.until <= state.logs[source].borders.len() && written.position() == place;
                if place.seq < first
                    && let Some(index) = state.written[source].iter().rposition(is_old)
                {
                    state.logs[source].passed.insert(index);
                }
                None
            } else {
                Some((gap(Self::why(state, source, place.seq)), true))
            }
        };
        gap.map(|(gap, goes_on)| {
            Self::issue(state, source, &gap, goes_on);
            gap
        })
    }

    fn why(state: &State, source: usize, at: u64) -> GapReason {
        if state.logs[source].purged > at { GapReason::Reset } else { GapReason::Retention }
    }

    fn issue(state: &mut State, source: usize, gap: &Gap, goes_on: bool) {
        let log = &mut state.logs[source];
        let issued = log.issued.entry(told(gap)).or_default();
        let this = Issued { borders: log.borders.len(), goes_on };
        if issued.last() != Some(&this) {
            issued.push(this);
        }
    }

    fn check(&self) -> Result<(), SourceError> {
        let state = self.base.broker.state.lock();
        let same = state.logs[self.base.source].borders.len() == self.borders;
        if same { Ok(()) } else { Err(SourceError::lost("the log changed while it was read")) }
    }

    /// Hands out what is there. Returns whether that is anything.
    fn read(&mut self, state: &mut State, batch: &mut Vec<Item>, limit: usize) -> Result<bool, SourceError> {
        let source = self.base.source;
        if let Some(border) = state.logs[source].borders.get(self.borders) {
            let fault = state.written[source][*border].removed_by;
            self.interrupt(state, fault);
            return self.base.end(&End { panics: false, fault });
        }
        let before = batch.len();
        let (most, end) = self.base.chunk(state, limit);
        batch.append(&mut self.items);
        let mut place = state.place(source, self.at.map_or(0, |at| at + 1));
        while batch.len() - before < most {
            let Some(index) = state.logs[source].live.get(place).copied() else { break };
            place += 1;
            let written = &state.written[source][index];
            if written.is_readable() && !wants(self.wanted.as_deref(), written.subject) {
                // The broker does not send it.
                let (seq, position) = (state.written[source][index].seq, state.written[source][index].position());
                self.hole(state, seq, batch);
                self.at = Some(seq);
                if self.tail.take_if(|tail| seq >= *tail).is_some() || (self.tail.is_none() && one_in(10)) {
                    batch.push(Item::Tail(Some(position)));
                }
                continue;
            }
            self.hole(state, state.written[source][index].seq, batch);
            let mut last = index;
            if state.written[source][index].is_readable() {
                self.base.hand_out(state, index);
                batch.push(Item::Message(state.written[source][index].message(true)));
            } else {
                // Of a RabbitMQ stream, only what can be read again behind such messages is known.
                while source == RAB
                    && let Some(index) = state.logs[source].live.get(place).filter(|index| !state.written[source][**index].is_readable())
                {
                    last = *index;
                    place += 1;
                }
                let (first, position) = (state.written[source][index].seq, state.written[source][last].position());
                let (reason, from, to) = (GapReason::Unreadable, first.checked_sub(1), Some(position.seq + 1));
                batch.push(Item::Gap(Gap { reason, from, to, position: Some(position) }));
            }
            let position = state.written[source][last].position();
            self.at = Some(position.seq);
            if self.tail.take_if(|tail| position.seq >= *tail).is_some() {
                batch.push(Item::Tail(Some(position)));
            }
        }
        if let Some(end) = end {
            self.interrupt(state, end.fault);
            return self.base.end(&end);
        }
        let last = state.logs[source].next.saturating_sub(1);
        let gone = self.tail.is_some() || (source == JET && self.at.is_some_and(|at| at < last));
        if gone && place >= state.logs[source].live.len() {
            // What stood at the end has gone before it was read: JetStream tells that though nothing follows.
            self.hole(state, last + 1, batch);
            self.at = Some(last);
            if self.tail.take().is_some() {
                batch.push(Item::Tail(Some(Position::unverified(last))));
            }
        }
        Ok(batch.len() > before)
    }

    /// A history ends before the end of its log, though a client waits for it.
    fn interrupt(&self, state: &mut State, fault: Fault) {
        if self.base.live {
            return;
        }
        note_failure(state, self.base.epoch, self.base.source);
        if self.tail.is_some() {
            state.effective.insert(fault);
        }
    }

    /// Tells of what has gone before the reader came to it.
    fn hole(&self, state: &mut State, seq: u64, batch: &mut Vec<Item>) {
        let source = self.base.source;
        let Some(at) = self.at else { return };
        let first = state.first(source);
        if first <= at + 1 || seq <= at + 1 || (source == RAB && seq <= at + 2) {
            return;
        }
        let reason = Self::why(state, source, at);
        let gap = Gap { reason, from: Some(at), to: Some(seq), position: Some(Position::unverified(seq - 1)) };
        Self::issue(state, source, &gap, true);
        batch.push(Item::Gap(gap));
    }
}

impl Connection for LogReader {
    fn next<'a>(&'a mut self, batch: &'a mut Vec<Item>, limit: usize) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let broker = self.base.broker.clone();
            let base = Base { broker, ..self.base };
            base.wait(|state| self.read(state, batch, limit)).await
        })
    }
    fn acknowledge<'a>(&'a mut self, _: &'a str) -> Option<BoxFuture<'a, Result<(), SourceError>>> {
        Some(Box::pin(self.base.late_answer()))
    }
    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

/// A reader of the queue. What it does not acknowledge is delivered again.
struct QueueReader {
    base: Base,
    unacknowledged: Vec<usize>,
    ended_by: Option<Fault>,
}

impl Connection for QueueReader {
    fn next<'a>(&'a mut self, batch: &'a mut Vec<Item>, limit: usize) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let base = Base { broker: self.base.broker.clone(), ..self.base };
            base.wait(|state| {
                let (most, end) = base.chunk(state, limit);
                let before = batch.len();
                while batch.len() - before < most && self.unacknowledged.len() < 100 {
                    let Some(index) = state.queue.pop_front() else { break };
                    self.unacknowledged.push(index);
                    base.hand_out(state, index);
                    base.handed(state, Handed::Message(index));
                    batch.push(Item::Message(state.written[JOBS][index].message(false)));
                }
                match end {
                    Some(end) => {
                        self.ended_by = Some(end.fault);
                        base.end(&end)
                    }
                    None => Ok(batch.len() > before),
                }
            })
            .await
        })
    }
    fn acknowledge<'a>(&'a mut self, _: &'a str) -> Option<BoxFuture<'a, Result<(), SourceError>>> {
        Some(Box::pin(async move {
            self.base.late_answer().await?;
            let mut state = self.base.broker.state.lock();
            for index in self.unacknowledged.drain(..) {
                if !state.kept[index] {
                    state.alarms.push(format!("message {index} of the queue was acknowledged before it was in a window"));
                }
            }
            Ok(())
        }))
    }
    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

impl Drop for QueueReader {
    fn drop(&mut self) {
        let mut state = self.base.broker.state.lock();
        let fault = self.ended_by.or(state.fault);
        for index in self.unacknowledged.drain(..).rev() {
            state.written[JOBS][index].requeued_by.extend(fault);
            state.queue.push_front(index);
        }
        drop(state);
        self.base.broker.changed[JOBS].notify_waiters();
    }
}

/// A subscriber of core. What is written while there is none, or while its buffer is full, is lost to it.
struct CoreReader {
    base: Base,
    key: usize,
}

impl Connection for CoreReader {
    fn next<'a>(&'a mut self, batch: &'a mut Vec<Item>, limit: usize) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let base = Base { broker: self.base.broker.clone(), ..self.base };
            base.wait(|state| {
                let (most, end) = base.chunk(state, limit);
                let before = batch.len();
                while batch.len() - before < most {
                    let subscriber = &mut state.subscribers[self.key];
                    match subscriber.buffer.pop_front() {
                        Some(index) => {
                            base.hand_out(state, index);
                            base.handed(state, Handed::Message(index));
                            batch.push(Item::Message(state.written[CORE][index].message(false)));
                        }
                        None if std::mem::take(&mut subscriber.overflowed) => {
                            base.handed(state, Handed::Gap(GapReason::Overflow));
                            batch.push(Item::Gap(Gap { reason: GapReason::Overflow, from: None, to: None, position: None }));
                        }
                        None => break,
                    }
                }
                match end {
                    Some(end) => base.end(&end),
                    None => Ok(batch.len() > before),
                }
            })
            .await
        })
    }
    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

impl Drop for CoreReader {
    fn drop(&mut self) {
        self.base.broker.state.lock().subscribers.remove(self.key);
    }
}
