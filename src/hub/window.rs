//! A source's window: its latest events, kept in memory for whoever comes back.
//!
//! Knows what it keeps and what it has dropped; nothing of channels or subscribers.

use std::collections::VecDeque;
use std::hash::BuildHasher as _;
use std::sync::LazyLock;

use hashbrown::hash_table::Entry as Slot;
use hashbrown::{DefaultHashBuilder, HashTable};

use crate::cursor::Position;
use crate::event::Timestamp;
use crate::frame::Encoded;

/// An event or a gap in a window.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The bridge's sequence.
    pub seq: u64,
    /// Where the source's log stands after it.
    pub position: Option<Position>,
    /// The event's time.
    pub time: Timestamp,
    /// When it came here: it is kept from then on, however old it was.
    pub came: Timestamp,
    /// What is sent.
    pub encoded: Encoded,
}

/// What an entry costs beside its bytes, roughly.
const OVERHEAD: usize = size_of::<Entry>() + 16;

/// What the newest event of a subject costs beside that, roughly.
const SUBJECT: usize = 2 * size_of::<Newest>();

/// The part of a window's bytes that positions without an event may take beside it: one in so many.
const SKIPPED: usize = 16;

impl Entry {
    fn cost(&self) -> usize {
        OVERHEAD + self.encoded.bytes().len()
    }
}

pub use super::settings::Limits;

/// One for all windows: what is newest in one of them is compared with the others.
static HASHER: LazyLock<DefaultHashBuilder> = LazyLock::new(DefaultHashBuilder::default);

/// The newest event of a subject. A hash of 64 bits stands for the subject: of a full window's subjects, two share one with a chance
/// of one in 10^10.
#[derive(Debug, Clone, Copy)]
struct Newest {
    hash: u64,
    seq: u64,
}

/// A hash of an event's subject.
fn hash(entry: &Entry) -> Option<u64> {
    entry.encoded.subject_bytes().filter(|_| entry.encoded.is_event()).map(|subject| HASHER.hash_one(subject))
}

/// The latest events of one source.
#[derive(Debug, Default)]
pub struct Window {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// The newest event of each subject among the entries.
    newest: HashTable<Newest>,
    /// Positions, with their checks, of messages that a route dropped: ids stand there too.
    pub(super) skipped: VecDeque<Position>,
    /// The sequence of the last entry that was dropped.
    floor: u64,
    /// Its time.
    floor_time: Timestamp,
    /// The log's position before the first entry, if it is known.
    base: Option<Position>,
    /// Where the source's log stands at the end.
    head: Option<Position>,
}

/// Where a position is, seen from a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Inside: what follows has a sequence greater than this.
    After(u64),
    /// The same, if it is the same log: that is not known, as the position has no check, and the window no such position.
    Unverified(u64),
    /// The log stood otherwise there.
    Other,
    /// Older than the window, or newer, or nothing is known of the log there.
    Outside,
}

impl Window {
    pub(super) fn push(&mut self, entry: Entry) {
        if entry.position.is_some() {
            self.head = entry.position;
        }
        self.bytes += entry.cost();
        if let Some(hash) = hash(&entry) {
            let new = Newest { hash, seq: entry.seq };
            match self.newest.entry(hash, |of| of.hash == hash, |of| of.hash) {
                Slot::Occupied(mut old) => *old.get_mut() = new,
                Slot::Vacant(none) => {
                    none.insert(new);
                    self.bytes += SUBJECT;
                }
            }
        }
        self.entries.push_back(entry);
    }

    /// The log goes on to `position` without anything for this window.
    pub(super) fn skip(&mut self, position: Position) {
        if position.check.is_some() && self.head.is_none_or(|head| head.seq < position.seq) {
            self.skipped.push_back(position);
        }
        self.head = Some(position);
    }

    /// Drops all: the log's positions mean something else from here on.
    pub(super) fn clear(&mut self, seq: u64, now: Timestamp) {
        self.entries.clear();
        self.newest.clear();
        self.skipped.clear();
        self.bytes = 0;
        self.floor = seq;
        self.floor_time = now;
        self.base = None;
        self.head = None;
    }

    /// The log stands here, and nothing before it is in this window.
    pub(super) fn begin(&mut self, position: Position) {
        self.base = Some(position);
        self.head = Some(position);
    }

    /// Drops what is too much or has been here too long.
    pub(super) fn trim(&mut self, limits: Limits, now: Timestamp) {
        let oldest = now.before(limits.age);
        while let Some(first) = self.entries.front() {
            if self.bytes <= limits.bytes && first.came >= oldest {
                break;
            }
            self.bytes -= first.cost();
            if let Some(hash) = hash(first)
                && let Ok(newest) = self.newest.find_entry(hash, |of| of.hash == hash && of.seq == first.seq)
            {
                newest.remove();
                self.bytes -= SUBJECT;
            }
            self.floor = first.seq;
            self.floor_time = self.floor_time.max(first.time);
            if first.position.is_some() {
                self.base = first.position;
            }
            self.entries.pop_front();
        }
        let most = limits.bytes / size_of::<Position>() / SKIPPED;
        let excess = self.skipped.len().saturating_sub(most);
        let before_base = self.skipped.partition_point(|p| self.base.is_some_and(|base| p.seq <= base.seq));
        self.skipped.drain(..excess.max(before_base));
        if self.entries.len() * 4 < self.entries.capacity() && self.entries.capacity() > 1024 {
            self.entries.shrink_to(self.entries.len() * 2);
        }
        if self.newest.len() * 4 < self.newest.capacity() && self.newest.capacity() > 1024 {
            self.newest.shrink_to(self.newest.len() * 2, |of| of.hash);
        }
    }

    /// Events and gaps in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes + self.skipped.len() * size_of::<Position>()
    }

    /// The sequence of the last entry that was dropped; 0 if none was.
    #[must_use]
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// The time of the newest entry that was dropped.
    #[must_use]
    pub fn floor_time(&self) -> Timestamp {
        self.floor_time
    }

    /// The sequence of the last entry that there was; 0 if there was none.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.entries.back().map_or(self.floor, |entry| entry.seq)
    }

    /// Where the source's log stands at the end.
    #[must_use]
    pub fn head(&self) -> Option<Position> {
        self.head
    }

    /// What follows a sequence, oldest first.
    pub fn after(&self, seq: u64) -> impl Iterator<Item = &Entry> {
        let at = self.entries.partition_point(|e| e.seq <= seq);
        self.entries.range(at..)
    }

    /// The sequence of the newest event with a subject.
    #[must_use]
    pub fn newest(&self, subject: &str) -> Option<u64> {
        let hash = HASHER.hash_one(subject.as_bytes());
        self.newest.find(hash, |of| of.hash == hash).map(|of| of.seq)
    }

    /// Where the log's `position` is.
    #[must_use]
    pub fn find(&self, position: Position) -> Place {
        let Some(head) = self.head else { return Place::Outside };
        if position.seq > head.seq {
            return Place::Outside;
        }
        // Entries without a position (none in a durable source but by a gap at its start) stand before all.
        let at = self.entries.partition_point(|e| e.position.is_none_or(|p| p.seq <= position.seq));
        let before = at.checked_sub(1).and_then(|at| self.entries.get(at));
        let (seq, known) = match (before, self.base) {
            (Some(entry), _) if entry.position.is_some() => (entry.seq, entry.position),
            (_, Some(base)) if base.seq <= position.seq => (self.floor, Some(base)),
            // Nothing was dropped and nothing is in it: only the head is known.
            _ if self.entries.is_empty() && head.seq == position.seq => (self.floor, Some(head)),
            _ => return Place::Outside,
        };
        let skipped = self.skipped.binary_search_by_key(&position.seq, |p| p.seq).ok().map(|at| self.skipped[at]);
        let mut there = known.into_iter().chain(skipped).chain([head]).filter(|p| p.seq == position.seq);
        if position.check.is_some() && there.clone().all(|p| p.check.is_none()) {
            // Whether this is the same log, only the broker can tell: of where a gap ends, for one, no check is known.
            return Place::Outside;
        }
        match () {
            () if !there.clone().all(|p| p.agrees(&position)) => Place::Other,
            () if position.check.is_none() && there.all(|p| p.check.is_some()) => Place::Unverified(seq),
            () => Place::After(seq),
        }
    }

    /// The sequence before the first entry at or after `time`, if the window holds all since then. Only what is behind the sequence
    /// `dated` has a time that says this.
    #[must_use]
    pub fn since(&self, time: Timestamp, dated: u64) -> Option<u64> {
        let first = self.entries.iter().find(|e| e.time >= time);
        let reaches = self.floor_time < time && self.after(dated).next().is_some_and(|e| e.time < time);
        reaches.then(|| first.map_or(u64::MAX, |e| e.seq - 1))
    }
}
