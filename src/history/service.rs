//! What all clients that are behind share: segments of logs, the runs that read on from their ends, and the queue for a run.
//!
//! No task of its own: whoever needs what comes next at the end of a segment takes its run out ([`Turn`]), moves it on and
//! puts it back. A run that nobody has moved for a while goes to whoever waits, so a client that takes nothing holds none.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::pace::Pace;
use super::queue::{Queue, Ticket, Wait};
use super::run::{Moved, Run};
use super::segment::{Segment, weight};
use super::{Asker, Counted, Load, Log, Settings};
use crate::cursor::Point;
use crate::event::{GapReason, SourceKey};
use crate::source::{ErrorKind, Item, SourceError};
use crate::subject::Pattern;
use crate::support::backoff::{Backoff, jittered};
use crate::support::seldom::Seldom;

/// Bytes handed out at a time, about: so much a client holds beside what its socket has.
const PIECE: usize = 64 << 10;
/// A run that nobody has moved for so long can be taken by somebody who waits.
const IDLE: Duration = Duration::from_millis(200);
/// A run that nobody has moved for so long ends.
const DEAD: Duration = Duration::from_secs(2);
/// While others wait, a run ends after so long;
const QUANTUM: Duration = Duration::from_millis(500);
/// but one that would have to begin from scratch ends after so long: a broker may take its time to open a reader, or to send the
/// newest message of each of many subjects. Ended earlier, it would be as far the next time, and never farther.
const WHOLE: Duration = Duration::from_secs(10);
/// What was read is kept for so long while nobody uses it: it may be gone from the broker by then.
const LINGER: Duration = Duration::from_secs(5);
/// Whoever is at most so many sequences ahead of a reader waits for it, rather than for one of its own;
const NEAR: u64 = 4096;
/// but no longer than so.
const PATIENCE: Duration = Duration::from_secs(1);
/// Clients that want the newest of each subject share a reader that began at most so long ago.
const SAME_LAST: Duration = Duration::from_secs(1);
/// A log that could not be read for so long, though its source is connected, is given up: its clients are told.
const GIVE_UP: Duration = Duration::from_secs(20);
/// Before a log that could not be read is opened again.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(200), factor: 2.0, most: Duration::from_millis(6400) };
/// An error that was logged is not logged again for so long.
const QUIET: Duration = Duration::from_secs(60);
/// A wait for a reader that is worth a line in the log.
const LONG: Duration = Duration::from_secs(10);

/// See the module.
pub(super) struct Service {
    /// Locked last.
    logs: Mutex<HashMap<SourceKey, Arc<Known>>>,
    pace: Pace,
    state: Mutex<State>,
    /// Something was read, a run was put back, or a reader is free.
    pub(super) moved: Notify,
    pub(super) clients: AtomicUsize,
}

/// A source's log, and what is known of reading it.
pub(super) struct Known {
    pub(super) log: Log,
    events: AtomicU64,
    bytes: AtomicU64,
    errors: [AtomicU64; ErrorKind::ALL.len()],
    /// What was logged last, and when.
    logged: Mutex<Option<(String, Instant)>>,
}

struct State {
    settings: Settings,
    segments: BTreeMap<u64, Held>,
    /// Segments that were ever made.
    made: u64,
    queue: Queue,
    /// Readers that are open. More than there may be after that was lowered.
    open: usize,
    /// Of all segments together.
    bytes: usize,
    /// When a long wait is logged.
    warn: Seldom,
}

/// A segment, and who has to do with it.
struct Held {
    source: SourceKey,
    known: Arc<Known>,
    /// It has only messages with these subjects.
    wanted: Option<Arc<[Pattern]>>,
    segment: Segment,
    run: Slot,
    /// Clients that are in it.
    clients: usize,
    born: Instant,
    /// When somebody took of it last.
    used: Instant,
    trouble: Option<Trouble>,
    /// It may be of a log that was made anew since: nobody else comes in.
    outdated: bool,
    /// See [`Log::resets`].
    resets: u64,
}

enum Slot {
    /// Nobody reads on.
    None,
    /// Somebody moves it.
    Taken,
    /// Nobody has moved it since.
    Idle(Box<Run>, Instant),
}

/// Why a segment has nothing, or no more.
#[derive(Clone, Copy)]
enum Trouble {
    /// It could not be opened, and will be again.
    Failing { since: Instant, failures: u32, again: Instant },
    /// Its clients are told.
    GivenUp,
    /// Its filter leaves out too little.
    TooBroad,
}

/// A client's place, kept by its reader.
pub(super) struct Place {
    source: SourceKey,
    pub(super) known: Arc<Known>,
    asker: Asker,
    /// The segment, and the number of the item in it that comes next.
    at: Option<(u64, u64)>,
    ticket: Option<Ticket>,
    /// Since when it has waited for a reader that is near.
    near: Option<Instant>,
    /// Since when it has had all that was read, until it was told that this is the end of the log.
    quiet: Quiet,
}

#[derive(Debug, Clone, Copy)]
enum Quiet {
    No,
    Since(Instant),
    Told,
}

impl Place {
    pub(super) fn new(source: SourceKey, known: Arc<Known>, asker: Asker) -> Self {
        Self { source, known, asker, at: None, ticket: None, near: None, quiet: Quiet::No }
    }

    /// Whoever came to a reader that was at the log's end already is told so, after a while.
    fn is_told_the_end(&mut self, at: Point, now: Instant, items: &mut Vec<Item>) -> bool {
        match (self.quiet, at) {
            (Quiet::No, _) => self.quiet = Quiet::Since(now),
            (Quiet::Since(since), Point::At(end)) if now.duration_since(since) >= QUANTUM => {
                self.quiet = Quiet::Told;
                items.push(Item::Tail(Some(end)));
                return true;
            }
            _ => {}
        }
        false
    }
}

/// What a client can do.
pub(super) enum Look {
    /// It has got something.
    Items,
    /// Move this run on.
    Lead(Turn),
    /// Look again when something has moved, at this time at the latest.
    Wait(Instant),
    /// The log cannot be read.
    GivenUp,
}

/// Runs that were ended under the lock: dropped behind it.
type Ended = Vec<Box<Run>>;

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").finish_non_exhaustive()
    }
}

impl Service {
    pub(super) fn new(settings: Settings) -> Self {
        let pace = Pace::new(settings.rate);
        let state =
            State { settings, segments: BTreeMap::new(), made: 0, queue: Queue::default(), open: 0, bytes: 0, warn: Seldom::every(QUIET) };
        Self { logs: Mutex::default(), pace, state: Mutex::new(state), moved: Notify::new(), clients: AtomicUsize::new(0) }
    }

    pub(super) fn add(&self, source: SourceKey, log: Log) {
        let known = Known { log, events: 0.into(), bytes: 0.into(), errors: Default::default(), logged: Mutex::default() };
        self.logs.lock().insert(source, Arc::new(known));
    }

    pub(super) fn remove(&self, source: SourceKey) {
        self.logs.lock().remove(&source);
    }

    pub(super) fn log(&self, source: SourceKey) -> Option<Arc<Known>> {
        self.logs.lock().get(&source).cloned()
    }

    /// Other bounds hold from now on. Readers that are too many end when their turn does.
    pub(super) fn configure(&self, settings: Settings) {
        self.pace.configure(settings.rate);
        self.state.lock().settings = settings;
        self.moved.notify_waiters();
    }

    pub(super) fn load(&self) -> Load {
        let (mut ended, now) = (Ended::new(), Instant::now());
        let mut state = self.state.lock();
        state.tidy(now, &mut ended);
        let (waiting, oldest) = state.queue.asking(now);
        let (readers, cached) = (state.open, (state.bytes, state.settings.cache));
        drop(state);
        Load { readers, clients: self.clients.load(Ordering::Relaxed), waiting, oldest, cached }
    }

    /// Looks for what follows `at`, where the client stands.
    pub(super) fn look(self: &Arc<Self>, place: &mut Place, at: Point, items: &mut Vec<Item>) -> Look {
        let (mut ended, now) = (Ended::new(), Instant::now());
        let mut state = self.state.lock();
        state.tidy(now, &mut ended);
        let look = loop {
            if let Some(look) = self.try_once(&mut state, place, at, items, now, &mut ended) {
                break look;
            }
        };
        drop(state);
        look
    }

    /// `None`: the place has changed, look again.
    fn try_once(
        self: &Arc<Self>,
        state: &mut State,
        place: &mut Place,
        at: Point,
        items: &mut Vec<Item>,
        now: Instant,
        ended: &mut Ended,
    ) -> Option<Look> {
        let Some((id, number)) = place.at else {
            if let Some(found) = state.find(place, at, now, None) {
                state.enter(place, found);
                return None;
            }
            if let Some(look) = self.near(state, place, at, now) {
                return Some(look);
            }
            return self.queue(state, place, at, now, ended);
        };
        let Some(held) = state.segments.get_mut(&id).filter(|held| held.segment.first() <= number) else {
            state.leave(place, now);
            return None;
        };
        if number < held.segment.next() {
            place.at = Some((id, held.segment.take(number, PIECE, items)));
            held.used = now;
            state.forget(place);
            place.quiet = Quiet::No;
            return Some(Look::Items);
        }
        match held.trouble {
            Some(Trouble::GivenUp) => {
                state.leave(place, now);
                return Some(Look::GivenUp);
            }
            Some(Trouble::TooBroad) => {
                place.asker.wanted = None;
                state.leave(place, now);
                return None;
            }
            Some(Trouble::Failing { again, .. }) if now < again => return Some(Look::Wait(again)),
            _ => {}
        }
        let nobody_reads = matches!(held.run, Slot::None);
        // Whoever still wants the newest of each subject has this much of them: another reader helps if it has come further.
        let helps =
            |(other, _): &(u64, u64)| at != Point::Last || state.segments.get(other).is_some_and(|held| held.segment.next() > number);
        if let Some(found) = state.find(place, at, now, Some(id)).filter(helps) {
            state.leave(place, now);
            state.enter(place, found);
            return None;
        }
        if nobody_reads {
            return self.queue(state, place, at, now, ended);
        }
        state.forget(place);
        if place.is_told_the_end(at, now, items) {
            return Some(Look::Items);
        }
        Some(self.lead_or_wait(state, id, now))
    }

    /// Waits for a reader that comes by soon, and moves it on.
    fn near(self: &Arc<Self>, state: &mut State, place: &mut Place, at: Point, now: Instant) -> Option<Look> {
        let Point::At(at) = at else { return None };
        if place.near.is_some_and(|since| now.duration_since(since) > PATIENCE) {
            return None;
        }
        let comes_by = |held: &Held| {
            let reaches = |end: u64| end < at.seq && at.seq - end <= NEAR;
            held.source == place.source
                && !held.outdated
                && held.wanted.is_none()
                && place.asker.wanted.is_none()
                && !matches!(held.run, Slot::None)
                && held.segment.end().is_some_and(|end| reaches(end.seq))
        };
        let id = state.segments.iter().find(|(_, held)| comes_by(held)).map(|(id, _)| *id)?;
        place.near.get_or_insert(now);
        Some(self.lead_or_wait(state, id, now))
    }

    fn lead_or_wait(self: &Arc<Self>, state: &mut State, id: u64, now: Instant) -> Look {
        let Some(held) = state.segments.get_mut(&id) else { return Look::Wait(now) };
        match std::mem::replace(&mut held.run, Slot::Taken) {
            Slot::Idle(run, _) => Look::Lead(Turn { service: self.clone(), segment: id, run: Some(run) }),
            other => {
                held.run = other;
                Look::Wait(now + PATIENCE)
            }
        }
    }

    /// Waits for its turn, then opens a reader behind `at`.
    fn queue(self: &Arc<Self>, state: &mut State, place: &mut Place, at: Point, now: Instant, ended: &mut Ended) -> Option<Look> {
        let all = place.asker.wanted.is_none();
        let wait = Wait { identity: place.asker.identity, source: place.source, at, all };
        let ticket = state.queue.ask(place.ticket, wait, now);
        place.ticket = Some(ticket);
        if state.queue.first(NEAR) != Some(ticket) || !state.find_free(now, ended) {
            self.warn_of_long_waits(state, now);
            return Some(Look::Wait(now + IDLE));
        }
        state.open += 1;
        state.queue.serve(ticket);
        (place.ticket, place.near) = (None, None);
        let again = place
            .at
            .map(|(id, _)| id)
            .filter(|id| state.segments.get(id).is_some_and(|held| held.segment.start() == at && held.segment.next() == 0));
        let id = again.unwrap_or_else(|| {
            // The newest of each subject are read from the start again: that is the same attempt.
            let failed = place.at.filter(|_| at == Point::Last).and_then(|(id, _)| state.segments.get(&id)?.trouble);
            state.leave(place, now);
            let id = state.make(place, at, failed, now);
            state.enter(place, (id, 0));
            id
        });
        let run = Box::new(Run::open(&place.known.log, at, place.asker.wanted.clone()));
        if let Some(held) = state.segments.get_mut(&id) {
            held.run = Slot::Taken;
        }
        Some(Look::Lead(Turn { service: self.clone(), segment: id, run: Some(run) }))
    }

    /// A source's log is not the one that was read.
    pub(super) fn outdate(&self, source: SourceKey) {
        self.state.lock().outdate(source, None);
    }

    fn warn_of_long_waits(&self, state: &mut State, now: Instant) {
        let (waiting, oldest) = state.queue.asking(now);
        if oldest > LONG && state.warn.may(now) {
            let (readers, seconds) = (state.settings.readers, oldest.as_secs());
            tracing::warn!(waiting, readers, seconds, "clients wait long for a reader of a broker's log: see `history`");
        }
    }

    /// A client that has its place asks no more at this moment, or for good.
    pub(super) fn pause(&self, place: &mut Place, for_good: bool) {
        if place.ticket.is_none() && !for_good {
            return;
        }
        let (mut ended, now) = (Ended::new(), Instant::now());
        let mut state = self.state.lock();
        if let Some(ticket) = place.ticket {
            state.queue.pause(ticket);
        }
        if for_good {
            state.forget(place);
            state.leave(place, now);
            state.tidy(now, &mut ended);
        }
        let waits = state.queue.asking(now).0 > 0;
        drop(state);
        if waits {
            self.moved.notify_waiters();
        }
    }

    /// Takes what a run has read into its segment, and what became of the run.
    fn settle(&self, id: u64, mut run: Box<Run>, moved: Option<Moved>) {
        let (mut ended, now) = (Ended::new(), Instant::now());
        let mut state = self.state.lock();
        let Some(held) = state.segments.get_mut(&id) else {
            state.open -= 1;
            drop(state);
            self.moved.notify_waiters();
            return;
        };
        let known = held.known.clone();
        let before = held.segment.bytes();
        // Whoever was dropped while it waited may have left some that nobody has looked at.
        let anew = moved.is_some() && run.items.iter().any(|item| matches!(item, Item::Gap(gap) if gap.reason == GapReason::Reset));
        if moved.is_some() {
            known.note_read(&run.items);
            held.segment.append(&mut run.items);
        }
        let (source, newest) = (held.source, held.segment.start() == Point::Last);
        let read = held.segment.bytes() - before;
        held.run = Slot::None;
        let gone = match moved {
            None | Some(Moved::Read) => false,
            Some(Moved::TooBroad) => {
                held.trouble = Some(Trouble::TooBroad);
                true
            }
            Some(Moved::Failed(error)) => {
                known.note_error(&error, now);
                held.fail(now, (known.log.up)());
                true
            }
        };
        if read > 0 && !held.segment.is_newest() {
            held.trouble = None;
        }
        if anew {
            state.outdate(source, Some(id));
        }
        state.bytes += read;
        let cache = state.settings.cache;
        state.trim(cache, id, read);
        let turn = if run.is_opening() || newest { WHOLE } else { QUANTUM };
        let turn_is_over = now.duration_since(run.since) > turn && state.queue.asking(now).0 > 0 && !state.has_room();
        if gone || turn_is_over {
            state.open -= 1;
            ended.push(run);
        } else if let Some(held) = state.segments.get_mut(&id) {
            held.run = Slot::Idle(run, now);
        }
        state.tidy(now, &mut ended);
        drop(state);
        self.moved.notify_waiters();
    }
}

impl Known {
    pub(super) fn counted(&self) -> Counted {
        Counted {
            events: self.events.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            errors: self.errors.each_ref().map(|errors| errors.load(Ordering::Relaxed)),
        }
    }

    fn note_read(&self, items: &[Item]) {
        let messages = items.iter().filter(|item| matches!(item, Item::Message(_))).count();
        self.events.fetch_add(messages as u64, Ordering::Relaxed);
        self.bytes.fetch_add(items.iter().map(weight).sum::<usize>() as u64, Ordering::Relaxed);
    }

    /// Counts an error, and logs it: once for each cause, then at intervals.
    fn note_error(&self, error: &SourceError, now: Instant) {
        self.errors[error.kind() as usize].fetch_add(1, Ordering::Relaxed);
        let text = error.to_string();
        let mut logged = self.logged.lock();
        let old = logged.as_ref().is_some_and(|(last, at)| *last == text && now.duration_since(*at) < QUIET);
        if !old {
            *logged = Some((text, now));
            let kind = error.kind().as_str();
            tracing::warn!(source = %self.log.name, kind, error = error as &dyn std::error::Error, "the log cannot be read for clients that are behind");
        }
    }
}

impl Held {
    /// It could not be opened, or was lost before anything was read. A source that is down is waited for.
    fn fail(&mut self, now: Instant, up: bool) {
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
}

impl State {
    /// Where a point is, in another segment than `but` or behind nothing that is there yet.
    fn find(&self, place: &Place, at: Point, now: Instant, but: Option<u64>) -> Option<(u64, u64)> {
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
                Point::Earliest | Point::Since(_) => !matches!(held.run, Slot::None) || held.segment.next() == 0,
            };
            held.source == place.source
                && !held.outdated
                && held.resets == resets
                && serves
                && young
                && !matches!(held.trouble, Some(Trouble::GivenUp | Trouble::TooBroad))
        };
        let goes_on = |held: &Held, number: u64| number < held.segment.next() || !matches!(held.run, Slot::None);
        let segments = self.segments.iter().filter(|(id, held)| Some(**id) != but && suits(held));
        let found = segments.filter_map(|(id, held)| {
            let number = held.segment.past_tails(held.segment.find(at)?, at);
            let opens = held.trouble.is_some() && held.segment.next() == 0;
            (goes_on(held, number) || opens).then_some((*id, number, number < held.segment.next()))
        });
        // Where something is there already, if there is such a one.
        found.max_by_key(|(_, _, ready)| *ready).filter(|(_, _, ready)| *ready || but.is_none()).map(|(id, number, _)| (id, number))
    }

    fn outdate(&mut self, source: SourceKey, but: Option<u64>) {
        for (_, held) in self.segments.iter_mut().filter(|(id, held)| held.source == source && Some(**id) != but) {
            held.outdated = true;
        }
    }

    fn make(&mut self, place: &Place, at: Point, trouble: Option<Trouble>, now: Instant) -> u64 {
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
        };
        self.segments.insert(self.made, held);
        self.made
    }

    fn enter(&mut self, place: &mut Place, (id, number): (u64, u64)) {
        if let Some(held) = self.segments.get_mut(&id) {
            held.clients += 1;
            (place.at, place.near) = (Some((id, number)), None);
        }
    }

    fn leave(&mut self, place: &mut Place, now: Instant) {
        if let Some((id, _)) = place.at.take()
            && let Some(held) = self.segments.get_mut(&id)
        {
            held.clients -= 1;
            held.used = now;
        }
    }

    fn forget(&mut self, place: &mut Place) {
        if let Some(ticket) = place.ticket.take() {
            self.queue.leave(ticket);
        }
    }

    /// Makes sure that a reader may be opened, if need be by ending a run that nobody moves.
    fn find_free(&mut self, now: Instant, ended: &mut Ended) -> bool {
        while !self.has_room() {
            let idle = |held: &Held| if let Slot::Idle(_, since) = held.run { Some(since) } else { None };
            let longest = self.segments.iter().filter_map(|(id, held)| Some((idle(held)?, *id))).min();
            match longest {
                Some((since, id)) if now.duration_since(since) >= IDLE && self.end_run(id, ended) => {}
                _ => return false,
            }
        }
        true
    }

    fn has_room(&self) -> bool {
        self.open < self.settings.readers
    }

    fn end_run(&mut self, id: u64, ended: &mut Ended) -> bool {
        let Some(held) = self.segments.get_mut(&id) else { return false };
        match std::mem::replace(&mut held.run, Slot::None) {
            Slot::Idle(run, _) => {
                ended.push(run);
                self.open -= 1;
                true
            }
            other => {
                held.run = other;
                false
            }
        }
    }

    /// Ends runs that nobody moves, and drops segments that nobody uses.
    fn tidy(&mut self, now: Instant, ended: &mut Ended) {
        let useless = |held: &Held| match held.run {
            Slot::Idle(_, since) => held.clients == 0 || now.duration_since(since) >= DEAD,
            _ => false,
        };
        let useless: Vec<u64> = self.segments.iter().filter(|(_, held)| useless(held)).map(|(id, _)| *id).collect();
        for id in useless {
            self.end_run(id, ended);
        }
        let bytes = &mut self.bytes;
        self.segments.retain(|_, held| {
            let empty = held.segment.next() == 0;
            let unused = held.clients == 0 && matches!(held.run, Slot::None) && (empty || now.duration_since(held.used) >= LINGER);
            if unused {
                *bytes -= held.segment.bytes();
            }
            !unused
        });
    }

    /// Keeps all segments together within `most` bytes, but for what `id` has just got.
    fn trim(&mut self, most: usize, id: u64, last: usize) {
        while self.bytes > most {
            let droppable =
                |(other, held): (&u64, &Held)| held.segment.bytes() - if *other == id { last.min(held.segment.bytes()) } else { 0 };
            // What nobody is in goes first, then the largest.
            let key = |(other, held): &(&u64, &Held)| (held.clients == 0, droppable((other, held)));
            let victim = self.segments.iter().filter(|(other, held)| droppable((other, held)) > 0).max_by_key(key);
            let Some((victim, held)) = victim.map(|(id, held)| (*id, droppable((id, held)))) else { return };
            let Some(segment) = self.segments.get_mut(&victim).map(|held| &mut held.segment) else { return };
            let mut dropped = 0;
            while dropped < held && self.bytes > most {
                let weight = segment.drop_first();
                self.bytes -= weight;
                dropped += weight;
            }
        }
    }
}

/// A run in the hands of whoever moves it on. Dropped, it goes back to its segment.
pub(super) struct Turn {
    service: Arc<Service>,
    segment: u64,
    run: Option<Box<Run>>,
}

impl Turn {
    /// Waits until something was read, or cannot be.
    pub(super) async fn advance(mut self) {
        let Some(run) = &mut self.run else { return };
        // At the log's end nothing may come for long: others may wait for a reader meanwhile.
        let Ok(moved) = timeout(QUANTUM, run.advance(&self.service.pace)).await else { return };
        if let Some(run) = self.run.take() {
            self.service.settle(self.segment, run, Some(moved));
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(run) = self.run.take() {
            self.service.settle(self.segment, run, None);
        }
    }
}
