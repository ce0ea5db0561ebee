//! The hub: one order of all events, a window for each source, and the channels through which subscribers read.
//!
//! Sync; takes time as an argument; knows no adapter, and of HTTP no more than the versions that deliveries are counted by. Two locks, always
//! taken in this order: `publisher` gives events their sequence and encodes them, `state` is what readers see
//! and is held only to hand finished entries over; nobody is woken under it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;

use bytes::BytesMut;
use hashbrown::{HashMap, HashSet};
use parking_lot::{Mutex, MutexGuard};
use slab::Slab;
use tokio::sync::Notify;

use crate::cursor::{Cursor, Point, Position, Tag};
use crate::event::{Event, Gap, SourceKey, SourceName, Timestamp};
use crate::frame::{Encoder, encode_heartbeat};
use crate::subject::index::Index;
use crate::subject::{Pattern, Subject};

pub(crate) mod channel;
mod concerned;
pub(crate) mod deliveries;
#[cfg(test)]
mod models;
mod notify;
pub(crate) mod piece;
mod publisher;
mod settings;
mod sources;
mod state;
#[cfg(test)]
mod tests;
pub(crate) mod window;

/// What `notify` is built of: its models put loom's primitives in their place.
mod sync {
    pub(super) use std::sync::Arc;
    pub(super) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

    pub(super) use parking_lot::Mutex;
}

use deliveries::Stamps;
use notify::{Backpressure, Listeners};

pub use channel::{Channel, Filter};
pub(crate) use channel::{Read, WakerSeat};
pub(crate) use deliveries::{Deliveries, SpansReading, Transport};
pub use notify::Listener;
pub(crate) use piece::{Framing, Piece};
pub(crate) use sources::{Source, SourceInfo};
pub use window::Limits;
pub(crate) use window::{Entry, Place, Window};

/// What the hub has to know of a source.
#[derive(Debug, Clone)]
pub struct SourceSpec {
    /// Its name.
    pub name: SourceName,
    /// What cursors call its log, if it has one: its positions then stand in every cursor.
    pub tag: Option<Tag>,
    /// Whether it is one of several logs of a source. More of them may be found while clients are served already.
    pub part: bool,
    /// Whether it can produce, after routing, a subject that one of these patterns matches.
    pub concerns: Concerns,
}

/// See [`SourceSpec::concerns`].
#[derive(Clone)]
pub struct Concerns(pub Arc<IsConcerned>);

/// Asked with the patterns of somebody's filter.
pub(crate) type IsConcerned = dyn Fn(&[Pattern]) -> bool + Send + Sync;

impl std::fmt::Debug for Concerns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Concerns")
    }
}

/// What is published of a source, in its order.
#[derive(Debug, Clone)]
pub enum Input {
    /// An event.
    Event(Event),
    /// The log goes on to here without an event: the message was dropped by a route.
    Skip(Position),
    /// Events may be missing here.
    Gap(Gap),
    /// An event with this subject is missing here.
    Oversized(Subject, Gap),
    /// What was there at the start has been read: from here on it is live.
    Tail(Option<Position>),
}

/// Bytes of all channels' logs together, above which the oldest entries are dropped: enough for whoever is a moment
/// late, as everybody else is served from the windows. More would only be memory that is touched once.
const LOGS: usize = 8 << 20;
/// What an entry of a channel's log costs beside its bytes, about.
const LOG_ENTRY: usize = size_of::<channel::Kept>() + size_of::<Logged>();

/// What readers see, under one lock.
pub struct State {
    limits: Limits,
    /// Of whatever was published last, and so the version of `id`.
    seq: u64,
    batch: u64,
    id: Arc<str>,
    sources: Slab<Source>,
    /// How often sources were added or removed.
    version: u64,
    /// Logs that clients had a place in when they came, and that no source here reads.
    left_behind: HashSet<Tag>,
    index: Index<u32>,
    channels: Slab<Slot>,
    filters: HashMap<Arc<Filter>, u32>,
    serial: u64,
    /// Which channel got an entry, oldest first, and what that entry costs.
    order: std::collections::VecDeque<Logged>,
    logged: usize,
}

struct Logged {
    key: u32,
    serial: u64,
    cost: u32,
    batch: u64,
}

struct Slot {
    channel: Arc<Channel>,
    members: usize,
    /// The sequence of the last entry that was appended: one that matches twice is appended once, and a heartbeat
    /// knows whether the cursor has moved since.
    told: u64,
    /// The last batch in which something was appended.
    batch: u64,
    /// Whether the loss of a source's events concerns its members, as far as that was asked: see [`Hub::ask`].
    concerned: Vec<(SourceKey, bool)>,
}

impl State {
    /// The sequence of the last entry.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// The id of a client that has received everything.
    #[must_use]
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// A client that had a place in this log has an id without one from now on. A source that reads the log may be added later.
    pub(crate) fn note_left_behind(&mut self, log: Tag) {
        self.left_behind.insert(log);
    }
}

struct Publisher {
    cursor: Cursor,
    /// By slot, like those in `State`.
    feeds: Slab<Feed>,
    generation: u32,
    /// The names of sources that were removed, and the sequence up to which they were there.
    retired: HashMap<SourceName, u64>,
    seq: u64,
    scratch: Vec<u8>,
    id: Vec<u8>,
    encoder: Encoder,
    entries: Vec<Pushed>,
    concerned: Concerned,
    listeners: Listeners,
}

/// Whom a batch concerns.
#[derive(Default)]
struct Concerned {
    /// Keys of channels, for one event.
    found: Vec<u32>,
    dirty: Vec<Arc<Channel>>,
    wakers: Vec<Waker>,
    stamps: Stamps,
}

/// A source as its events are published.
struct Feed {
    info: Arc<SourceInfo>,
    /// Whether it is live: then the cursor follows it.
    warm: bool,
    /// What is left of the memory that its events are written to.
    block: BytesMut,
}

enum Pushed {
    Entry(Entry, bool),
    Skip(Position),
    /// The log was made anew.
    Clear(Entry, bool),
    Warm(u64, Option<Position>),
    /// For live streams only.
    Told(Entry),
}

/// See the module.
pub struct Hub {
    epoch: u32,
    /// Bytes that all channels' logs may take together.
    logs: usize,
    publisher: Mutex<Publisher>,
    state: Mutex<State>,
    changed: Notify,
    backpressure: Backpressure,
    deliveries: Deliveries,
    /// Who wants that nothing is published.
    holds: AtomicUsize,
    room: Notify,
}

/// While there is one, publishing has to wait for [`Hub::room`].
#[derive(Debug)]
pub struct Hold(Arc<Hub>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.holds.fetch_sub(1, Ordering::Relaxed);
        self.0.room.notify_waiters();
    }
}

impl Hub {
    /// Where whoever is at an offset of a filter's channel is: the last id, empty where it is not known any more, and the number
    /// of entries that follow.
    #[must_use]
    pub fn place_in_channel(&self, filter: &Arc<Filter>, offset: u64) -> (Box<[u8]>, u64) {
        let state = self.state.lock();
        let channel = state.filters.get(filter).and_then(|key| state.channels.get(*key as usize)).map(|slot| &slot.channel);
        let Some(log) = channel.map(|channel| channel.lock()) else { return Default::default() };
        let behind = log.end().saturating_sub(offset);
        let id = match log.id_before(offset) {
            Some(id) => id[..].into(),
            // Its channel was silent for long: it has all there is.
            None if behind == 0 => state.id().as_bytes().into(),
            None => Box::default(),
        };
        (id, behind)
    }

    /// Without a source; `epoch` tells this process's sequence from another's.
    #[must_use]
    pub fn new(limits: Limits, epoch: u32) -> Arc<Self> {
        Self::with_logs(limits, LOGS, epoch)
    }

    /// The same, with channels' logs that together take at most `logs` bytes.
    pub(crate) fn with_logs(limits: Limits, logs: usize, epoch: u32) -> Arc<Self> {
        let cursor = Cursor { epoch, volatile: Point::At(Position::unverified(0)), durable: Vec::new() };
        let state = State {
            limits,
            seq: 0,
            batch: 0,
            id: cursor.to_id().into(),
            sources: Slab::new(),
            version: 0,
            left_behind: HashSet::new(),
            index: Index::default(),
            channels: Slab::new(),
            filters: HashMap::new(),
            serial: 0,
            order: std::collections::VecDeque::new(),
            logged: 0,
        };
        let publisher = Publisher {
            cursor,
            feeds: Slab::new(),
            generation: 0,
            retired: HashMap::new(),
            seq: 0,
            scratch: Vec::new(),
            id: Vec::new(),
            encoder: Encoder::default(),
            entries: Vec::new(),
            concerned: Concerned::default(),
            listeners: Listeners::default(),
        };
        Arc::new(Self {
            epoch,
            logs,
            publisher: Mutex::new(publisher),
            state: Mutex::new(state),
            changed: Notify::new(),
            backpressure: Backpressure::new(),
            deliveries: Deliveries::default(),
            holds: AtomicUsize::new(0),
            room: Notify::new(),
        })
    }

    /// What tells this process's sequence from another's.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Bytes that each window may hold.
    #[must_use]
    pub fn window_bytes(&self) -> usize {
        self.state.lock().limits.bytes
    }

    /// Bytes of all channels' logs together, and how many there may be.
    #[must_use]
    pub fn log_bytes(&self) -> (usize, usize) {
        (self.state.lock().logged, self.logs)
    }

    /// Windows keep to other bounds, from their next event or heartbeat on.
    pub fn configure(&self, limits: Limits) {
        self.state.lock().limits = limits;
    }

    /// What readers see. Not to be held for long: publishing waits.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Whether publishing has to wait for somebody who holds a lock.
    #[cfg(test)]
    pub(crate) fn is_looked_at(&self) -> bool {
        self.state.is_locked() || self.publisher.is_locked()
    }

    /// What was delivered.
    #[must_use]
    pub fn deliveries(&self) -> &Deliveries {
        &self.deliveries
    }

    /// Notified after every publish. Streams that catch up wait for it.
    #[must_use]
    pub fn changed(&self) -> &Notify {
        &self.changed
    }

    /// Whether the logs are full of what listeners have not taken yet, or somebody holds publishing up: then publishing has to
    /// wait for [`Self::room`].
    #[must_use]
    pub fn crowded(&self) -> bool {
        self.backpressure.crowded() || self.holds.load(Ordering::Relaxed) > 0
    }

    /// Holds publishing up, so that all who are not slow have read everything after a moment: see [`Self::settled`].
    pub fn hold(self: &Arc<Self>) -> Hold {
        self.holds.fetch_add(1, Ordering::Relaxed);
        Hold(self.clone())
    }

    /// Whether everything that was published was read, but by sockets that are full.
    #[must_use]
    pub fn settled(&self) -> bool {
        // Under both locks: no batch is between being appended and being delivered.
        let publisher = self.publisher.lock();
        let state = self.state.lock();
        publisher.listeners.pending().is_none() && state.channels.iter().all(|(_, slot)| slot.channel.lock().is_read())
    }

    /// Notified when it is no longer crowded.
    #[must_use]
    pub fn room(&self) -> &Notify {
        &self.room
    }

    /// To be called by a listener whose [`Listener::turn`] says so.
    pub fn make_room(&self) {
        // Under both locks: no batch is between being appended and being delivered.
        let publisher = self.publisher.lock();
        let room = self.trim(&mut self.state.lock(), &publisher.listeners, None);
        drop(publisher);
        self.announce_room(room);
    }

    /// Drops what is too much of the channels' logs, but nothing that a listener may not have written, nor anything of
    /// the batch `undelivered`. Returns whether room has to be announced, once no lock is held.
    #[must_use]
    fn trim(&self, state: &mut State, listeners: &Listeners, undelivered: Option<u64>) -> bool {
        state.trim_logs(self.logs, listeners.pending().into_iter().chain(undelivered).min());
        self.backpressure.update(state.logged > self.logs, listeners)
    }

    fn announce_room(&self, room: bool) {
        if room {
            self.room.notify_waiters();
        }
    }

    /// Adds a loop that is woken, by `wake`, when channels in which it has members have something new. `wake` must not
    /// block. `None` when there are 64 already.
    pub fn listen(&self, wake: impl Fn() + Send + Sync + 'static) -> Option<Arc<Listener>> {
        let listener = self.publisher.lock().listeners.add(Box::new(wake))?;
        self.deliveries.add_listener();
        Some(listener)
    }

    /// Publishes a batch of one source, leaving `inputs` empty: encodes each event once, puts it into the source's window
    /// and into the log of each channel that wants it, then notifies all who wait. Returns the id after it. What comes for a
    /// source that was removed is dropped.
    pub fn publish(&self, source: SourceKey, inputs: &mut Vec<Input>, now: Timestamp) -> Arc<str> {
        if self.is_for_all(source, inputs) {
            self.ask(source);
        }
        let mut publisher = self.publisher.lock();
        let p = &mut *publisher;
        if p.feed(source).is_none() {
            inputs.clear();
            return self.state.lock().id.clone();
        }
        // Of a publishing that panicked, perhaps of another source.
        p.entries.clear();
        for input in inputs.drain(..) {
            p.prepare(source, &input, now);
        }
        p.encode_id();
        let (id, batch, room);
        {
            let mut state = self.state.lock();
            let s = &mut *state;
            let limits = s.limits;
            s.follow(p);
            s.batch += 1;
            batch = s.batch;
            id = s.id.clone();
            for pushed in p.entries.drain(..) {
                s.take(source, pushed, &mut p.concerned, &self.deliveries, now);
            }
            if let Some(source) = s.source_mut(source) {
                source.window.trim(limits, now);
            }
            room = self.trim(s, &p.listeners, Some(batch));
        }
        self.deliveries.leave(&mut p.concerned.stamps);
        // Before notifying: a loop that has just looked may write the batch without being notified of it again.
        self.deliveries.announce(batch);
        p.notify(batch);
        self.changed.notify_waiters();
        self.announce_room(room);
        id
    }

    /// Lets time pass: drops what is too old, and lets the channels of this `part` of `parts` beat their hearts, so
    /// that over `parts` calls each beats once.
    pub fn beat(&self, part: u64, parts: u64, now: Timestamp) {
        // Nothing is appended between a batch and its delivery.
        let mut publisher = self.publisher.lock();
        let p = &mut *publisher;
        let (batch, room);
        {
            let mut state = self.state.lock();
            let s = &mut *state;
            s.batch += 1;
            batch = s.batch;
            for (_, source) in &mut s.sources {
                source.window.trim(s.limits, now);
            }
            let (moved, still) = (encode_heartbeat(Some(s.id.as_bytes())), encode_heartbeat(None));
            for (key, slot) in &mut s.channels {
                if slot.channel.serial() % parts != part % parts {
                    continue;
                }
                let beat = if slot.told == s.seq { &still } else { &moved };
                slot.told = s.seq;
                let mut log = slot.channel.lock();
                // What was joined long ago helps nobody any more.
                log.forget();
                log.append(beat.clone(), &mut p.concerned.wakers);
                drop(log);
                s.order.push_back(Logged { key: key as u32, serial: slot.channel.serial(), cost: LOG_ENTRY as u32, batch });
                s.logged += LOG_ENTRY;
                p.concerned.dirty.push(slot.channel.clone());
            }
            room = self.trim(s, &p.listeners, Some(batch));
        }
        p.notify(batch);
        self.announce_room(room);
    }

    /// Takes a seat in the channel of a filter, at its end: what was published before has to come from the windows,
    /// read under the same lock.
    pub fn join(self: &Arc<Self>, state: &mut State, filter: &Arc<Filter>) -> (Seat, u64) {
        let key = match state.filters.get(filter) {
            Some(key) => *key,
            None => state.open(filter.clone()),
        };
        let slot = &mut state.channels[key as usize];
        slot.members += 1;
        let channel = slot.channel.clone();
        let end = channel.lock().end();
        (Seat { hub: self.clone(), channel }, end)
    }

    fn leave(&self, channel: &Arc<Channel>) {
        let mut state = self.state.lock();
        let Some(slot) = state.channels.get_mut(channel.key as usize) else { return };
        slot.members -= 1;
        if slot.members == 0 {
            state.channels.remove(channel.key as usize);
            state.filters.remove(channel.filter());
            for pattern in channel.filter().patterns() {
                state.index.remove(pattern, channel.key);
            }
        }
    }

    /// Channels that have subscribers.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.state.lock().channels.len()
    }
}

/// A subscriber's seat in a channel: dropping it is the only way out.
#[derive(Debug)]
pub struct Seat {
    hub: Arc<Hub>,
    channel: Arc<Channel>,
}

impl Seat {
    /// The channel.
    #[must_use]
    pub fn channel(&self) -> &Arc<Channel> {
        &self.channel
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.hub.leave(&self.channel);
    }
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}
