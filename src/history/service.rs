//! What all clients that are behind share: segments of logs, the runs that read on from their ends, and the queue for a run.
//!
//! A client that needs what comes next at the end of a segment takes its run out ([`Turn`]), moves it on and puts it back. A run
//! that was not moved for a while goes to the next client in the queue, so a client that takes nothing holds none.
//!
//! Thousands may wait, so a change wakes only the clients that it concerns. A segment wakes the clients that wait at it. Of the
//! queue, the client whose turn it is is woken, and clients whose places a segment has come to. Beside that each client looks
//! again once a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::futures::OwnedNotified;
use tokio::time::{Instant, sleep, timeout};

use super::known::Known;
use super::pace::Pace;
use super::run::{Moved, Run};
use super::state::{NEAR, PATIENCE, Place, Slot, State, Trouble};
use super::{Asker, Counted, Load, Log, Reader, Request, Settings};
use crate::cursor::{Point, Position, Tag};
use crate::event::{GapReason, SourceKey};
use crate::source::Item;

/// While others wait, a run ends after so long;
const QUANTUM: Duration = Duration::from_millis(500);
/// but one that would have to begin from scratch ends after so long: a broker may take its time to open a reader, or to send the
/// newest message of each of many subjects. Ended earlier, it would be as far the next time, and never farther.
const WHOLE: Duration = Duration::from_secs(10);
/// Between two looks for idle readers and unused segments.
const TIDY: Duration = Duration::from_secs(1);
/// A wait for a reader that is worth a line in the log.
const LONG: Duration = Duration::from_secs(10);

/// The logs of all sources, and what all readers share.
pub(crate) struct Histories {
    /// Locked last.
    logs: Mutex<HashMap<SourceKey, Arc<Known>>>,
    pace: Pace,
    state: Mutex<State>,
    clients: AtomicUsize,
}

/// What a client can do.
pub(super) enum Look {
    /// It has got something.
    Items,
    /// Move this run on.
    Lead(Turn),
    /// Look again when this resolves, at this time at the latest.
    Wait(OwnedNotified, Instant),
    /// The log cannot be read.
    GivenUp,
}

impl std::fmt::Debug for Histories {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Histories").finish_non_exhaustive()
    }
}

impl Histories {
    /// Without a log.
    #[must_use]
    pub(crate) fn new(settings: Settings) -> Arc<Self> {
        let (pace, state) = (Pace::new(settings.rate), Mutex::new(State::new(settings)));
        Arc::new(Self { logs: Mutex::default(), pace, state, clients: AtomicUsize::new(0) })
    }

    /// Other bounds hold from now on. Readers that are too many end when their turn does.
    pub(crate) fn configure(&self, settings: Settings) {
        self.pace.configure(settings.rate);
        self.locked(|state, _| state.settings = settings);
    }

    /// Adds the log of a source.
    pub(crate) fn add(&self, source: SourceKey, log: Log) {
        self.logs.lock().insert(source, Arc::new(Known::new(log)));
    }

    /// Forgets the log of a source. Readers that are open read on until they are dropped.
    pub(crate) fn remove(&self, source: SourceKey) {
        self.logs.lock().remove(&source);
    }

    /// A reader for a request and those that follow it with the same number. It opens nothing before it is asked. `None` for
    /// a source that was removed.
    #[must_use]
    pub(crate) fn reader(self: &Arc<Self>, request: Request, asker: Asker) -> Option<Reader> {
        let known = self.log(request.source)?;
        self.clients.fetch_add(1, Ordering::Relaxed);
        Some(Reader::new(self.clone(), request.number, Place::new(request.source, known, asker)))
    }

    fn log(&self, source: SourceKey) -> Option<Arc<Known>> {
        self.logs.lock().get(&source).cloned()
    }

    /// Whether the broker can say the newest message of each subject.
    #[must_use]
    pub(crate) fn keeps_last(&self, source: SourceKey) -> bool {
        self.log(source).is_some_and(|known| known.log.adapter.keeps_last())
    }

    /// Whether the source is connected.
    #[must_use]
    pub(crate) fn is_up(&self, source: SourceKey) -> bool {
        self.log(source).is_some_and(|known| (known.log.up)())
    }

    /// Whether the messages of the log have their broker's times.
    #[must_use]
    pub(crate) fn dates(&self, source: SourceKey) -> bool {
        self.log(source).is_some_and(|known| known.log.adapter.dates())
    }

    /// What cursors call logs that are found while their sources run, also those that may be found soon.
    #[must_use]
    pub(crate) fn growing(&self) -> Vec<Tag> {
        let logs = self.logs.lock();
        logs.values().filter_map(|of| Some(of.log.adapter.parts()?.tags(&of.log.name))).flatten().collect()
    }

    /// Whether the broker can send only some subjects of its log.
    #[must_use]
    pub(crate) fn selects(&self, source: SourceKey) -> bool {
        self.log(source).is_some_and(|known| known.log.adapter.selects())
    }

    /// Says that a source's log is not the one that was read so far: nobody gets what is kept of it any more.
    pub(crate) fn outdate(&self, source: SourceKey) {
        self.state.lock().outdate(source, None);
    }

    /// What is read and waited for at this moment.
    #[must_use]
    pub(crate) fn load(&self) -> Load {
        let clients = self.clients.load(Ordering::Relaxed);
        self.locked(|state, now| {
            let (waiting, oldest) = state.queue.asking(now);
            Load { readers: state.open, clients, waiting, oldest, cached: state.bytes, cached_max: state.settings.cache }
        })
    }

    /// What was counted for a source.
    #[must_use]
    pub(crate) fn counted(&self, source: SourceKey) -> Counted {
        self.log(source).map_or_else(Counted::default, |known| known.counted())
    }

    /// Ends idle readers and drops unused segments, also while no client looks: the last one may take nothing. Never returns.
    pub(crate) async fn tend(self: Arc<Self>) {
        loop {
            sleep(TIDY).await;
            self.locked(|_, _| ());
        }
    }

    /// Runs `act` under the lock. Behind it, drops the runs that have ended, and wakes the clients that the change concerns.
    fn locked<T>(&self, act: impl FnOnce(&mut State, Instant) -> T) -> T {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.tidy(now);
        let done = act(&mut state, now);
        state.call();
        let (ended, moved) = (std::mem::take(&mut state.ended), std::mem::take(&mut state.moved));
        drop(state);
        drop(ended);
        moved.iter().for_each(|moved| moved.notify_waiters());
        done
    }

    /// Looks for what follows `at`, where the client stands.
    pub(super) fn look(self: &Arc<Self>, place: &mut Place, at: Point, items: &mut Vec<Item>) -> Look {
        self.locked(|state, now| {
            loop {
                if let Some(look) = self.try_once(state, place, at, items, now) {
                    return look;
                }
            }
        })
    }

    /// `None`: the place has changed, look again.
    fn try_once(self: &Arc<Self>, state: &mut State, place: &mut Place, at: Point, items: &mut Vec<Item>, now: Instant) -> Option<Look> {
        let Some((id, number)) = place.at else {
            if let Some(found) = state.find(place, at, now, None) {
                state.enter(place, found);
                return None;
            }
            if let Some(look) = self.near(state, place, at, now) {
                return Some(look);
            }
            return self.queue(state, place, at, now);
        };
        let Some(held) = state.segments.get_mut(&id).filter(|held| held.segment.first() <= number) else {
            state.leave(place, now);
            return None;
        };
        let (is_read, ended, trouble) = (held.is_read(), held.segment.has_ended(), held.trouble);
        if number < held.segment.next() {
            state.take(place, (id, number), items, now);
            return Some(Look::Items);
        }
        match trouble {
            Some(Trouble::GivenUp) => {
                state.leave(place, now);
                return Some(Look::GivenUp);
            }
            Some(Trouble::TooBroad) => {
                place.asker.wanted = None;
                state.leave(place, now);
                return None;
            }
            Some(Trouble::Failing { again, .. }) if now < again => {
                let moved = held.moved.clone().notified_owned();
                // Meanwhile others may have their turns.
                state.pause(place);
                return Some(Look::Wait(moved, again));
            }
            _ => {}
        }
        // Whoever still wants the newest of each subject has this much of them: another reader helps if it has come further.
        let helps =
            |(other, _): &(u64, u64)| at != Point::Last || state.segments.get(other).is_some_and(|held| held.segment.next() > number);
        if let Some(found) = state.find(place, at, now, Some(id)).filter(helps) {
            state.leave(place, now);
            state.enter(place, found);
            return None;
        }
        if !is_read {
            if trouble.is_none() && at != Point::Last {
                state.step_out(place, now);
            }
            return self.queue(state, place, at, now);
        }
        state.enter(place, (id, number));
        state.forget(place);
        // Before that, what comes next only takes long: the broker opens slowly, or the rate is reached.
        if ended && place.is_told_the_end(at, now, items) {
            return Some(Look::Items);
        }
        self.lead_or_wait(state, id, now)
    }

    /// Waits for a reader that comes by soon, and moves it on.
    fn near(self: &Arc<Self>, state: &mut State, place: &mut Place, at: Point, now: Instant) -> Option<Look> {
        let Point::At(Position { seq, .. }) = at else { return None };
        if place.near.is_some_and(|since| now.duration_since(since) > PATIENCE) {
            return None;
        }
        let id = state.near(place, seq)?;
        place.near.get_or_insert(now);
        // Meanwhile others may have their turns.
        state.pause(place);
        self.lead_or_wait(state, id, now)
    }

    fn lead_or_wait(self: &Arc<Self>, state: &mut State, id: u64, now: Instant) -> Option<Look> {
        if let Some(run) = state.take_run(id) {
            return Some(Look::Lead(Turn { histories: self.clone(), segment: id, run: Some(run) }));
        }
        let moved = state.segments.get(&id)?.moved.clone();
        Some(Look::Wait(moved.notified_owned(), now + PATIENCE))
    }

    /// Waits for its turn, then opens a reader behind `at`.
    fn queue(self: &Arc<Self>, state: &mut State, place: &mut Place, at: Point, now: Instant) -> Option<Look> {
        let ticket = state.queue.ask(place.ticket, place.wait(at), now);
        place.ticket = Some(ticket);
        let until = if state.queue.first(NEAR) == Some(ticket) {
            state.called = Some(ticket);
            state.find_free(now).err()
        } else {
            Some(now + PATIENCE)
        };
        if let Some(until) = until {
            warn_of_long_waits(state, now);
            return Some(Look::Wait(state.queue.rung(ticket), until));
        }
        state.open += 1;
        state.queue.serve(ticket);
        (place.ticket, place.near) = (None, None);
        let again =
            place.at.filter(|(id, _)| state.segments.get(id).is_some_and(|held| held.segment.start() == at && held.segment.next() == 0));
        let new = again.unwrap_or_else(|| {
            // The newest of each subject are read from the start again: that is the same attempt.
            let failed = place.at.filter(|_| at == Point::Last).and_then(|(id, _)| state.segments.get(&id)?.trouble);
            state.leave(place, now);
            (state.make(place, at, failed, now), 0)
        });
        state.enter(place, new);
        // Others may be in it who want more than this client.
        let mut wanted = None;
        if let Some(held) = state.segments.get_mut(&new.0) {
            (held.run, wanted) = (Slot::Taken, held.wanted.clone());
        }
        let run = Box::new(Run::open(&place.known.log, at, wanted));
        Some(Look::Lead(Turn { histories: self.clone(), segment: new.0, run: Some(run) }))
    }

    /// A client that has its place asks no more at this moment.
    pub(super) fn pause(&self, place: &Place) {
        if place.ticket.is_some() {
            self.locked(|state, _| state.pause(place));
        }
    }

    /// A client is gone.
    pub(super) fn forget(&self, place: &mut Place) {
        self.clients.fetch_sub(1, Ordering::Relaxed);
        self.locked(|state, now| {
            state.forget(place);
            state.leave(place, now);
        });
    }

    /// Takes what a run has read into its segment, and what became of the run.
    fn settle(&self, id: u64, mut run: Box<Run>, moved: Option<Moved>) {
        self.locked(|state, now| {
            let Some(held) = state.segments.get_mut(&id) else {
                state.ended.push(*run);
                return state.end_run(id);
            };
            let known = held.known.clone();
            let (before, first, end) = (held.segment.bytes(), held.segment.next() == 0, held.segment.end());
            // Whoever was dropped while it waited may have left some that nobody has looked at.
            let anew = moved.is_some() && run.items.iter().any(|item| matches!(item, Item::Gap(gap) if gap.reason == GapReason::Reset));
            if moved.is_some() {
                known.note_read(&run.items);
                held.segment.append(&mut run.items);
            }
            let (source, newest) = (held.source, held.segment.start() == Point::Last);
            let read = held.segment.bytes() - before;
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
            state.moved.push(held.moved.clone());
            if read > 0 {
                state.call_those_on_the_way(id, first, end);
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
                state.ended.push(*run);
                state.end_run(id);
            } else {
                state.put_run(id, run, now);
            }
        });
    }
}

fn warn_of_long_waits(state: &State, now: Instant) {
    let (waiting, oldest) = state.queue.asking(now);
    if oldest > LONG && state.warn.may(now) {
        let (readers, seconds) = (state.settings.readers, oldest.as_secs());
        tracing::warn!(waiting, readers, seconds, "clients wait long for a reader of a broker's log: see `history`");
    }
}

/// A run in the hands of whoever moves it on. Dropped, it goes back to its segment.
pub(super) struct Turn {
    histories: Arc<Histories>,
    segment: u64,
    run: Option<Box<Run>>,
}

impl Turn {
    /// Waits until something was read, or cannot be.
    pub(super) async fn advance(mut self) {
        let Some(run) = &mut self.run else { return };
        // At the log's end nothing may come for long: others may wait for a reader meanwhile.
        let Ok(moved) = timeout(QUANTUM, run.advance(&self.histories.pace)).await else { return };
        if let Some(run) = self.run.take() {
            self.histories.settle(self.segment, run, Some(moved));
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(run) = self.run.take() {
            self.histories.settle(self.segment, run, None);
        }
    }
}
