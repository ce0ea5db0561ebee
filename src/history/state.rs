//! What all clients that are behind share, under one lock: segments of logs, the runs that read on from their ends, and the queue
//! for a run. Time is an argument. The cost of a look does not grow with the number of clients that wait.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::known::Known;
use super::queue::{Queue, Ticket, Wait};
use super::run::Run;
use super::segment::Segment;
use super::{Asker, Settings};
use crate::cursor::{Point, Position};
use crate::event::SourceKey;
use crate::source::Item;
use crate::subject::Pattern;
use crate::support::backoff::{Backoff, jittered};
use crate::support::seldom::Seldom;

/// Bytes handed out at a time, about: so much a client holds beside what its socket has.
const PIECE: usize = 64 << 10;
/// A run that nobody has moved for so long can be taken by somebody who waits.
pub(super) const IDLE: Duration = Duration::from_millis(200);
/// A run that nobody has moved for so long ends.
const DEAD: Duration = Duration::from_secs(2);
/// What was read is kept for so long while nobody uses it: it may be gone from the broker by then.
const LINGER: Duration = Duration::from_secs(5);
/// Whoever is at most so many sequences ahead of a reader waits for it, rather than for one of its own;
pub(super) const NEAR: u64 = 4096;
/// but no longer than so.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// Clients that want the newest of each subject share a reader that began at most so long ago.
const SAME_LAST: Duration = Duration::from_secs(1);
/// Whoever has had all that was read for so long is told that this is the end of the log.
const END: Duration = Duration::from_millis(500);
/// A log that could not be read for so long, though its source is connected, is given up: its clients are told.
const GIVE_UP: Duration = Duration::from_secs(20);
/// Before a log that could not be read is opened again.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(200), factor: 2.0, most: Duration::from_millis(6400) };
/// Between two lines in the log of long waits.
const WARN: Duration = Duration::from_secs(60);

/// See the module.
pub(super) struct State {
    pub(super) settings: Settings,
    pub(super) segments: BTreeMap<u64, Held>,
    /// Segments that were ever made.
    made: u64,
    /// Segments whose runs are idle, and since when.
    idle: BTreeSet<(Instant, u64)>,
    /// Segments without clients and without a run, and since when.
    unused: BTreeSet<(Instant, u64)>,
    pub(super) queue: Queue,
    /// The client of the queue that was woken for its turn.
    pub(super) called: Option<Ticket>,
    /// Readers that are open. More than there may be after that was lowered.
    pub(super) open: usize,
    /// Of all segments together.
    pub(super) bytes: usize,
    /// When a long wait is logged.
    pub(super) warn: Seldom,
    /// Runs that were ended: dropped behind the lock.
    pub(super) ended: Vec<Run>,
    /// Of segments that have changed: told behind the lock.
    pub(super) moved: Vec<Arc<Notify>>,
}

/// A segment, and who has to do with it.
pub(super) struct Held {
    pub(super) source: SourceKey,
    pub(super) known: Arc<Known>,
    /// It has only messages with these subjects.
    pub(super) wanted: Option<Arc<[Pattern]>>,
    pub(super) segment: Segment,
    pub(super) run: Slot,
    /// Clients that are in it.
    clients: usize,
    born: Instant,
    /// When somebody took of it last.
    pub(super) used: Instant,
    pub(super) trouble: Option<Trouble>,
    /// It may be of a log that was made anew since: nobody else comes in.
    pub(super) outdated: bool,
    /// See [`super::Log::resets`].
    resets: u64,
    /// Something was read, or its run was put back or has ended.
    pub(super) moved: Arc<Notify>,
}

pub(super) enum Slot {
    /// Nobody reads on.
    None,
    /// Somebody moves it.
    Taken,
    /// Nobody has moved it since.
    Idle(Box<Run>, Instant),
}

/// Why a segment has nothing, or no more.
#[derive(Clone, Copy)]
pub(super) enum Trouble {
    /// It could not be opened, and will be again.
    Failing { since: Instant, failures: u32, again: Instant },
    /// Its clients are told.
    GivenUp,
    /// Its filter leaves out too little.
    TooBroad,
}

/// A client's place, kept by its reader.
pub(super) struct Place {
    pub(super) source: SourceKey,
    pub(super) known: Arc<Known>,
    pub(super) asker: Asker,
    /// The segment, and the number of the item in it that comes next.
    pub(super) at: Option<(u64, u64)>,
    /// It counts among the segment's clients.
    inside: bool,
    pub(super) ticket: Option<Ticket>,
    /// Since when it has waited for a reader that is near.
    pub(super) near: Option<Instant>,
    /// Since when it has had all that was read, until it was told that this is the end of the log.
    pub(super) quiet: Quiet,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Quiet {
    No,
    Since(Instant),
    Told,
}

impl Place {
    pub(super) fn new(source: SourceKey, known: Arc<Known>, asker: Asker) -> Self {
        Self { source, known, asker, at: None, inside: false, ticket: None, near: None, quiet: Quiet::No }
    }

    pub(super) fn wait(&self, at: Point) -> Wait {
        Wait { identity: self.asker.identity, source: self.source, at, filter: hash(self.asker.wanted.as_deref()) }
    }

    /// Whoever came to a reader that was at the log's end already is told so, after a while.
    pub(super) fn is_told_the_end(&mut self, at: Point, now: Instant, items: &mut Vec<Item>) -> bool {
        match (self.quiet, at) {
            (Quiet::No, _) => self.quiet = Quiet::Since(now),
            (Quiet::Since(since), Point::At(end)) if now.duration_since(since) >= END => {
                self.quiet = Quiet::Told;
                items.push(Item::Tail(Some(end)));
                return true;
            }
            _ => {}
        }
        false
    }
}

fn hash(wanted: Option<&[Pattern]>) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    wanted?.hash(&mut hasher);
    Some(hasher.finish())
}

impl Held {
    /// It could not be opened, or was lost before anything was read. A source that is down is waited for.
    pub(super) fn fail(&mut self, now: Instant, up: bool) {
        let (since, failures) = match self.trouble {
            Some(Trouble::Failing { since, failures, .. }) => (if up { since } else { now }, failures.saturating_add(1)),
            _ => (now, 1),
        };
        self.trouble = Some(if up && now.duration_since(since) >= GIVE_UP {
            Trouble::GivenUp
        } else {
            Trouble::Failing { since, failures, again: now + jittered(BACKOFF.after(failures), 0.5..1.0) }
        });
    }

    pub(super) fn is_read(&self) -> bool {
        !matches!(self.run, Slot::None)
    }
}

impl State {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            segments: BTreeMap::new(),
            made: 0,
            idle: BTreeSet::new(),
            unused: BTreeSet::new(),
            queue: Queue::default(),
            called: None,
            open: 0,
            bytes: 0,
            warn: Seldom::every(WARN),
            ended: Vec::new(),
            moved: Vec::new(),
        }
    }

    /// Where a point is, in another segment than `but` or behind nothing that is there yet.
    pub(super) fn find(&self, place: &Place, at: Point, now: Instant, but: Option<u64>) -> Option<(u64, u64)> {
        let resets = (place.known.log.resets)();
        let suits = |held: &Held| {
            let same = held.wanted == place.asker.wanted;
            // Whatever holds all subjects serves those who want some.
            let serves = same || (held.wanted.is_none() && at != Point::Last);
            // What nobody reads on may be gone from the log.
            let young = match at {
                // Whoever knows no message cannot tell one log from another.
                Point::At(at) => at.check.is_some() || held.segment.next() == 0,
                Point::Last => now.duration_since(held.born) <= SAME_LAST,
                Point::Earliest | Point::Since(_) => held.is_read() || held.segment.next() == 0,
            };
            held.source == place.source
                && !held.outdated
                && held.resets == resets
                && serves
                && young
                && !matches!(held.trouble, Some(Trouble::GivenUp | Trouble::TooBroad))
        };
        let segments = self.segments.iter().filter(|(id, held)| Some(**id) != but && suits(held));
        let found = segments.filter_map(|(id, held)| {
            let number = held.segment.past_tails(held.segment.find(at)?, at);
            let opens = held.trouble.is_some() && held.segment.next() == 0;
            let ready = number < held.segment.next();
            (ready || held.is_read() || opens).then_some((*id, number, ready))
        });
        // Where something is there already, if there is such a one.
        found.max_by_key(|(_, _, ready)| *ready).filter(|(_, _, ready)| *ready || but.is_none()).map(|(id, number, _)| (id, number))
    }

    /// A segment whose reader comes by soon.
    pub(super) fn near(&self, place: &Place, seq: u64) -> Option<u64> {
        let reaches = |end: u64| end < seq && seq - end <= NEAR;
        let comes_by = |held: &Held| {
            held.source == place.source
                && !held.outdated
                && held.wanted.is_none()
                && place.asker.wanted.is_none()
                && held.is_read()
                && held.segment.end().is_some_and(|end| reaches(end.seq))
        };
        self.segments.iter().find(|(_, held)| comes_by(held)).map(|(id, _)| *id)
    }

    pub(super) fn outdate(&mut self, source: SourceKey, but: Option<u64>) {
        for (_, held) in self.segments.iter_mut().filter(|(id, held)| held.source == source && Some(**id) != but) {
            held.outdated = true;
        }
    }

    pub(super) fn make(&mut self, place: &Place, at: Point, trouble: Option<Trouble>, now: Instant) -> u64 {
        self.made += 1;
        let held = Held {
            source: place.source,
            known: place.known.clone(),
            wanted: place.asker.wanted.clone(),
            segment: Segment::new(at),
            run: Slot::None,
            clients: 0,
            born: now,
            used: now,
            trouble,
            outdated: false,
            resets: (place.known.log.resets)(),
            moved: Arc::default(),
        };
        self.segments.insert(self.made, held);
        self.made
    }

    pub(super) fn enter(&mut self, place: &mut Place, (id, number): (u64, u64)) {
        if let Some(held) = self.segments.get_mut(&id) {
            if !std::mem::replace(&mut place.inside, true) {
                held.clients += 1;
                self.unused.remove(&(held.used, id));
            }
            (place.at, place.near) = (Some((id, number)), None);
        }
    }

    pub(super) fn leave(&mut self, place: &mut Place, now: Instant) {
        self.step_out(place, now);
        place.at = None;
    }

    /// Its segment, all of which it has, need not be kept for it. With thousands of clients that wait, those would be thousands.
    pub(super) fn step_out(&mut self, place: &mut Place, now: Instant) {
        if std::mem::take(&mut place.inside)
            && let Some((id, _)) = place.at
            && let Some(held) = self.segments.get_mut(&id)
        {
            held.clients -= 1;
            held.used = now;
            self.note_unused(id);
        }
    }

    /// Hands out what follows in a segment.
    pub(super) fn take(&mut self, place: &mut Place, (id, number): (u64, u64), items: &mut Vec<Item>, now: Instant) {
        self.enter(place, (id, number));
        if let Some(held) = self.segments.get_mut(&id) {
            held.used = now;
            place.at = Some((id, held.segment.take(number, PIECE, items)));
        }
        self.forget(place);
        place.quiet = Quiet::No;
    }

    /// It asks no more at this moment.
    pub(super) fn pause(&mut self, place: &Place) {
        if let Some(ticket) = place.ticket {
            self.queue.pause(ticket);
        }
    }

    pub(super) fn forget(&mut self, place: &mut Place) {
        if let Some(ticket) = place.ticket.take() {
            self.queue.leave(ticket);
        }
    }

    /// Wakes the client whose turn it is.
    pub(super) fn call(&mut self) {
        let first = self.queue.first(NEAR);
        if let Some(ticket) = first.filter(|_| first != self.called || self.has_room()) {
            self.queue.ring(ticket);
        }
        self.called = first;
    }

    /// Wakes the clients of the queue whose places a segment has come to, or near to, since its end was `from`.
    pub(super) fn call_those_on_the_way(&mut self, id: u64, first: bool, from: Option<Position>) {
        let Some(held) = self.segments.get(&id) else { return };
        let filter = hash(held.wanted.as_deref());
        let ring = |from, to| self.queue.ring_at(held.source, filter, from..=to);
        if first {
            ring(None, None);
        }
        if let Some(Position { seq: to, .. }) = held.segment.end() {
            // A log that was made anew begins at the front again.
            let from = from.map(|from| from.seq).filter(|from| *from <= to).unwrap_or_default();
            ring(Some(from), Some(to));
            let near = |seq: u64| Some(seq.saturating_add(NEAR));
            if filter.is_none() {
                ring(if first { Some(from) } else { near(from) }, near(to));
            }
        }
    }

    /// Makes sure that a reader may be opened, if need be by ending a run that nobody moves.
    ///
    /// # Errors
    /// Says when to look again.
    pub(super) fn find_free(&mut self, now: Instant) -> Result<(), Instant> {
        while !self.has_room() {
            match self.idle.first() {
                Some((since, id)) if now.duration_since(*since) >= IDLE => self.end_run(*id),
                Some((since, _)) => return Err(*since + IDLE),
                None => return Err(now + IDLE),
            }
        }
        Ok(())
    }

    pub(super) fn has_room(&self) -> bool {
        self.open < self.settings.readers
    }

    /// Takes a segment's run, to be moved.
    pub(super) fn take_run(&mut self, id: u64) -> Option<Box<Run>> {
        let held = self.segments.get_mut(&id)?;
        match std::mem::replace(&mut held.run, Slot::Taken) {
            Slot::Idle(run, since) => {
                self.idle.remove(&(since, id));
                Some(run)
            }
            other => {
                held.run = other;
                None
            }
        }
    }

    /// Puts it back.
    pub(super) fn put_run(&mut self, id: u64, run: Box<Run>, now: Instant) {
        if let Some(held) = self.segments.get_mut(&id) {
            held.run = Slot::Idle(run, now);
            self.idle.insert((now, id));
            self.note_unused(id);
        }
    }

    /// A segment's run ends, where it is in it or was not put back.
    pub(super) fn end_run(&mut self, id: u64) {
        let idle = self.take_run(id);
        self.ended.extend(idle.map(|run| *run));
        self.open -= 1;
        if let Some(held) = self.segments.get_mut(&id) {
            held.run = Slot::None;
            self.moved.push(held.moved.clone());
            self.note_unused(id);
        }
    }

    /// Ends the run of a segment without clients, and lets the segment end.
    fn note_unused(&mut self, id: u64) {
        let Some(held) = self.segments.get(&id).filter(|held| held.clients == 0) else { return };
        match held.run {
            Slot::Idle(..) => self.end_run(id),
            Slot::None if held.segment.next() == 0 => self.remove(id),
            Slot::None => {
                self.unused.insert((held.used, id));
            }
            Slot::Taken => {}
        }
    }

    fn remove(&mut self, id: u64) {
        if let Some(held) = self.segments.remove(&id) {
            self.unused.remove(&(held.used, id));
            self.bytes -= held.segment.bytes();
        }
    }

    /// Ends runs that nobody moves, and drops segments that nobody uses.
    pub(super) fn tidy(&mut self, now: Instant) {
        let due = |of: &BTreeSet<(Instant, u64)>, after| of.first().filter(|(since, _)| now.duration_since(*since) >= after).copied();
        while let Some((_, id)) = due(&self.idle, DEAD) {
            self.end_run(id);
        }
        while let Some((_, id)) = due(&self.unused, LINGER) {
            self.remove(id);
        }
    }

    /// Keeps all segments together within `most` bytes, but for what `id` has just got.
    pub(super) fn trim(&mut self, most: usize, id: u64, last: usize) {
        while self.bytes > most {
            let droppable =
                |(other, held): (&u64, &Held)| held.segment.bytes() - if *other == id { last.min(held.segment.bytes()) } else { 0 };
            // What nobody is in goes first, then the largest.
            let key = |(other, held): &(&u64, &Held)| (held.clients == 0, droppable((other, held)));
            let victim = self.segments.iter().filter(|(other, held)| droppable((other, held)) > 0).max_by_key(key);
            let Some((victim, most_of_it)) = victim.map(|(id, held)| (*id, droppable((id, held)))) else { return };
            let Some(held) = self.segments.get_mut(&victim) else { return };
            let mut dropped = 0;
            while dropped < most_of_it && self.bytes > most {
                let weight = held.segment.drop_first();
                self.bytes -= weight;
                dropped += weight;
            }
            // It is of no use any more, also to slow clients that are still in it.
            if held.segment.bytes() == 0 && !held.is_read() && held.trouble.is_none() {
                self.remove(victim);
            }
        }
    }
}
