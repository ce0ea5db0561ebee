//! Channels: what all subscribers with the same filter read.
//!
//! A channel keeps a short log of events as they go on the wire. A subscriber is a place in it; whoever stands at
//! the same place gets the same bytes, all there is in one piece, so that a batch forms whenever reading is slower
//! than writing. Knows neither sources nor how bytes reach a socket.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use bytes::{Bytes, BytesMut};
use parking_lot::{Mutex, MutexGuard};
use slab::Slab;

use crate::frame::{CHUNK_END, Form};
use crate::subject::{self, Pattern};

/// A piece this long is not joined with what follows.
const ENOUGH: usize = 16 << 10;
/// No joined piece is longer than this.
const JOINED: usize = 64 << 10;

/// What a subscriber wants, within what it may have.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Filter {
    patterns: Box<[Pattern]>,
    form: Form,
}

impl Filter {
    /// Of these patterns, all permitted; equal sets make equal filters. None matches nothing.
    #[must_use]
    pub fn new(patterns: Vec<Pattern>, form: Form) -> Self {
        Self { patterns: subject::minimal(patterns).into(), form }
    }

    /// Its patterns, none within another.
    #[must_use]
    pub fn patterns(&self) -> &[Pattern] {
        &self.patterns
    }

    /// Which encoding it wants.
    #[must_use]
    pub fn form(&self) -> Form {
        self.form
    }

    /// Whether it wants a subject.
    #[must_use]
    pub fn matches(&self, subject: &str) -> bool {
        self.patterns.iter().any(|p| p.matches(subject))
    }
}

/// How bytes are cut for the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// As they are: hyper frames them.
    Plain,
    /// Each event as a chunk of HTTP/1.1.
    Chunked,
}

/// What stands in a channel's log from some place on.
#[derive(Debug, PartialEq, Eq)]
pub enum Take {
    /// A piece of it, as long as a piece may be.
    Bytes {
        /// Whole events.
        bytes: Bytes,
        /// The place behind them.
        to: u64,
        /// Something stands there already.
        more: bool,
    },
    /// Nothing yet.
    Empty,
    /// The place has been dropped.
    Lagged,
}

/// Somebody who is told when a channel has something new.
pub trait Listener: Send + Sync {
    /// The channel has something that it had not when this listener looked last. Must not block.
    /// `batch` is the one that brought it.
    fn ready(&self, channel: &Arc<Channel>, batch: u64);

    /// No more channels are ready for now. Must not block.
    fn wake(&self);

    /// The oldest batch of which it may not have taken everything yet, `u64::MAX` if there is none: what channels' logs
    /// hold of it and of later ones is not dropped.
    fn pending(&self) -> u64;
}

/// A filter's log and who waits for it.
pub struct Channel {
    /// Its place among the channels; used again after it is gone.
    pub(super) key: u32,
    serial: u64,
    filter: Arc<Filter>,
    log: Mutex<Log>,
    /// A bit for each listener that has members here.
    members: AtomicU64,
    /// A bit for each listener that has been told and has not looked since.
    told: AtomicU64,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").field("serial", &self.serial).field("filter", &self.filter).finish_non_exhaustive()
    }
}

impl Channel {
    pub(super) fn new(key: u32, serial: u64, filter: Arc<Filter>) -> Self {
        Self { key, serial, filter, log: Mutex::default(), members: AtomicU64::new(0), told: AtomicU64::new(0) }
    }

    /// What its subscribers want.
    #[must_use]
    pub fn filter(&self) -> &Arc<Filter> {
        &self.filter
    }

    /// Its place among the channels that have subscribers; used again when it has none any more.
    #[must_use]
    pub fn key(&self) -> u32 {
        self.key
    }

    /// A number that no other channel of this process ever has.
    #[must_use]
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// What stands at `place`.
    #[must_use]
    pub fn take(&self, place: u64, wire: Wire) -> Take {
        self.log.lock().take(place, wire)
    }

    /// What stands at `place`; where that is nothing, `waker` is called once there is.
    pub fn poll_take(&self, place: u64, wire: Wire, seat: &mut WakerSeat, waker: &Waker) -> Take {
        let mut log = self.log.lock();
        let take = log.take(place, wire);
        if take == Take::Empty {
            log.wait(seat, waker);
        }
        take
    }

    /// Gives a waker's seat back.
    pub fn leave(&self, seat: &mut WakerSeat) {
        if let Some(key) = seat.0.take() {
            self.log.lock().leave(key);
        }
    }

    /// The id of the last event before `place` that is still in the log.
    #[must_use]
    pub fn id_before(&self, place: u64) -> Option<Bytes> {
        self.log.lock().id_before(place)
    }

    /// Lets go of the piece that was joined last: for whoever has given it to all that may want it.
    pub fn forget(&self) {
        self.log.lock().forget();
    }

    /// Says that listener number `listener` (below 64) has members here, or has none left.
    pub fn set_member(&self, listener: usize, member: bool) {
        if member {
            self.members.fetch_or(1 << listener, Ordering::AcqRel);
        } else {
            self.members.fetch_and(!(1 << listener), Ordering::AcqRel);
        }
    }

    /// To be called by a listener before it looks: from now on it will be told again.
    pub fn looked(&self, listener: usize) {
        self.told.fetch_and(!(1 << listener), Ordering::AcqRel);
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock()
    }

    /// Tells the listeners that have members here and have not been told; returns which, to be woken.
    pub(super) fn tell(self: &Arc<Self>, listeners: &[Arc<dyn Listener>], batch: u64) -> u64 {
        let members = self.members.load(Ordering::Acquire);
        if members == 0 {
            return 0;
        }
        let all = members & !self.told.fetch_or(members, Ordering::AcqRel);
        let mut untold = all;
        while untold != 0 {
            let listener = untold.trailing_zeros() as usize;
            untold &= untold - 1;
            if let Some(listener) = listeners.get(listener) {
                listener.ready(self, batch);
            }
        }
        all
    }
}

/// Where a subscriber's waker sits.
#[derive(Debug, Default)]
pub struct WakerSeat(Option<usize>);

#[derive(Default)]
pub(super) struct Log {
    /// The place of the first entry.
    start: u64,
    /// Events with the chunk framing around them.
    entries: VecDeque<Bytes>,
    joined: [Joined; 2],
    wakers: Slab<Option<Waker>>,
    waiting: usize,
}

/// The last piece that was joined: whoever comes to the same place gets it too.
#[derive(Default)]
struct Joined {
    from: u64,
    to: u64,
    bytes: Bytes,
}

impl Log {
    /// Appends, and moves out whoever waits for that, to be woken when no lock is held.
    pub(super) fn append(&mut self, entry: Bytes, wakers: &mut Vec<Waker>) {
        self.entries.push_back(entry);
        if self.waiting > 0 {
            self.waiting = 0;
            wakers.extend(self.wakers.iter_mut().filter_map(|(_, w)| w.take()));
        }
    }

    pub(super) fn drop_first(&mut self) {
        if self.entries.pop_front().is_some() {
            self.start += 1;
        }
    }

    pub(super) fn end(&self) -> u64 {
        self.start + self.entries.len() as u64
    }

    fn take(&mut self, place: u64, wire: Wire) -> Take {
        let end = self.end();
        if place >= end {
            return Take::Empty;
        }
        if place < self.start {
            return Take::Lagged;
        }
        let at = (place - self.start) as usize;
        let joined = &self.joined[wire as usize];
        if joined.from == place && joined.to > place && (joined.to == end || joined.bytes.len() >= ENOUGH) {
            return Take::Bytes { bytes: joined.bytes.clone(), to: joined.to, more: joined.to < end };
        }
        let first = &self.entries[at];
        if place + 1 == end || first.len() >= ENOUGH {
            return Take::Bytes { bytes: cut(first, wire), to: place + 1, more: place + 1 < end };
        }
        let mut length = 0;
        let fits = self.entries.range(at..).take_while(|e| {
            length += e.len();
            length <= JOINED
        });
        let count = fits.count().max(1);
        let mut bytes = BytesMut::with_capacity(length.min(JOINED));
        for entry in self.entries.range(at..at + count) {
            bytes.extend_from_slice(&cut(entry, wire));
        }
        let bytes = bytes.freeze();
        let to = place + count as u64;
        self.joined[wire as usize] = Joined { from: place, to, bytes: bytes.clone() };
        Take::Bytes { bytes, to, more: to < end }
    }

    pub(super) fn forget(&mut self) {
        self.joined = Default::default();
    }

    fn id_before(&self, place: u64) -> Option<Bytes> {
        let count = usize::try_from(place.checked_sub(self.start)?).ok()?.min(self.entries.len());
        self.entries.range(..count).rev().find_map(|entry| id_of(&cut(entry, Wire::Plain)))
    }

    fn wait(&mut self, seat: &mut WakerSeat, waker: &Waker) {
        let key = *seat.0.get_or_insert_with(|| self.wakers.insert(None));
        if let Some(sitting) = self.wakers.get_mut(key) {
            match sitting {
                Some(old) => old.clone_from(waker),
                None => {
                    *sitting = Some(waker.clone());
                    self.waiting += 1;
                }
            }
        }
    }

    fn leave(&mut self, key: usize) {
        if self.wakers.try_remove(key).flatten().is_some() {
            self.waiting -= 1;
        }
    }
}

/// The entry as it goes on this wire. An entry is one chunk: a line with its length, that many bytes, CRLF.
fn cut(entry: &Bytes, wire: Wire) -> Bytes {
    match wire {
        Wire::Chunked => entry.clone(),
        Wire::Plain => {
            let head = entry.iter().position(|b| *b == b'\n').map_or(0, |at| at + 1);
            entry.slice(head..entry.len().saturating_sub(CHUNK_END.len()).max(head))
        }
    }
}

/// The id in the first two lines of an event or heartbeat.
fn id_of(event: &Bytes) -> Option<Bytes> {
    let mut at = 0;
    for line in event.split(|b| *b == b'\n').take(2) {
        if line.starts_with(b"id: ") {
            return Some(event.slice(at + 4..at + line.len()));
        }
        at += line.len() + 1;
    }
    None
}
