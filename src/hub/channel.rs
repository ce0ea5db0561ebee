//! Channels: what all subscribers with the same filter read.
//!
//! A channel keeps a short log of encoded events. A subscriber is an offset in it. All subscribers at the same offset get
//! the same bytes: all entries from there on, in one piece. So a batch forms when sockets are slower than the publisher.
//! Knows neither sources nor how a transport frames entries.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use slab::Slab;

use super::notify::{Audience, Listener};
use super::piece::{FRAMINGS, Framing, Piece};
use crate::frame::{Encoded, Form};
use crate::subject::{self, Pattern};

/// Bytes from which a piece is not joined with the entries behind it.
const ENOUGH: usize = 16 << 10;
/// A log of so few entries keeps the room for four times as many.
const SPARE: usize = 16;
/// The most bytes of a joined piece.
const JOINED: usize = 64 << 10;

/// What a subscriber asks for, within its grant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Filter {
    patterns: Box<[Pattern]>,
    form: Form,
}

impl Filter {
    /// Of these patterns, all of which are permitted. Equal sets make equal filters. A filter without patterns matches nothing.
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

/// What a channel's log holds from some offset on.
#[derive(Debug)]
pub enum Read {
    /// Entries, in one piece.
    Piece(Piece),
    /// Nothing yet.
    AtEnd,
    /// Entries there have been dropped.
    Lagged,
}

/// The log of one filter, and those who wait for it.
pub struct Channel {
    /// Its place among the channels; used again after it is gone.
    pub(super) key: u32,
    serial: u64,
    filter: Arc<Filter>,
    log: Mutex<Log>,
    pub(super) audience: Audience,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").field("serial", &self.serial).field("filter", &self.filter).finish_non_exhaustive()
    }
}

impl Channel {
    pub(super) fn new(key: u32, serial: u64, filter: Arc<Filter>) -> Self {
        let log = Mutex::new(Log::new(filter.form()));
        Self { key, serial, filter, log, audience: Audience::new() }
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

    /// A number that is never used again.
    #[must_use]
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// What the log holds from `offset` on.
    #[must_use]
    pub fn read_from<F: Framing>(&self, offset: u64) -> Read {
        self.log.lock().read_from::<F>(offset)
    }

    /// A place where a waker waits for the next entry.
    #[must_use]
    pub fn waker_seat(self: &Arc<Self>) -> WakerSeat {
        WakerSeat { channel: self.clone(), key: None }
    }

    /// Whether `offset` is the log's end.
    #[must_use]
    pub fn is_end(&self, offset: u64) -> bool {
        self.log.lock().end() == offset
    }

    /// Whether the log has nothing from `offset` on, or that begins with an id that `is_later`. Not where some of it has been dropped.
    #[must_use]
    pub fn is_sent(&self, offset: u64, is_later: impl Fn(&[u8]) -> bool) -> bool {
        let log = self.log.lock();
        let id = |entry: &Encoded| Some(is_later(&entry.bytes()[entry.id_range(log.form)?]));
        log.range(offset).is_some_and(|mut rest| rest.find_map(id).unwrap_or(true))
    }

    /// The entries of the log from `offset` on, as many as have at most `most` bytes of text together; `None` where some of
    /// them have been dropped.
    #[must_use]
    pub fn entries_from(&self, offset: u64, most: usize) -> Option<Vec<Encoded>> {
        let (log, mut length) = (self.log.lock(), 0);
        let fits = |entry: &&Encoded| {
            length += entry.text(log.form).len();
            length <= most
        };
        Some(log.range(offset)?.take_while(fits).cloned().collect())
    }

    /// The last id before `offset` that is still in the log.
    #[must_use]
    pub fn id_before(&self, offset: u64) -> Option<Bytes> {
        self.log.lock().id_before(offset)
    }

    /// Drops the piece that was joined last, and spare room. To be called when all members have the piece.
    pub fn forget(&self) {
        self.log.lock().forget();
    }

    /// Says that a listener has members here, or has none left.
    pub fn set_member(&self, listener: &Listener, member: bool) {
        self.audience.set_member(listener, member);
    }

    /// To be called by a listener before it reads the log: it is notified of what comes after.
    pub fn looked(&self, listener: &Listener) {
        self.audience.looked(listener);
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock()
    }
}

/// The place of a subscriber's waker in its channel. The place is given up when this is dropped, and in no other way.
#[derive(Debug)]
pub struct WakerSeat {
    channel: Arc<Channel>,
    key: Option<usize>,
}

impl WakerSeat {
    /// What the log holds from `offset` on. At the log's end, `waker` is called when the next entry comes.
    pub fn poll_read<F: Framing>(&mut self, offset: u64, waker: &Waker) -> Read {
        let mut log = self.channel.log.lock();
        let read = log.read_from::<F>(offset);
        if matches!(read, Read::AtEnd) {
            log.wait(&mut self.key, waker);
        }
        read
    }
}

impl Drop for WakerSeat {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.channel.log.lock().leave(key);
        }
    }
}

/// An entry of a log, in one line of the processor's cache. Each channel has its own log, so most entries are not in the cache when they
/// are dropped.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Kept(Encoded);

pub(super) struct Log {
    form: Form,
    /// The offset of the first entry.
    start: u64,
    /// What is before this offset is not to be read any more. It still says which ids there were.
    cut: u64,
    entries: VecDeque<Kept>,
    /// For each framing the piece that was joined last: all members at the same offset share it.
    joined: [Option<Box<Piece>>; FRAMINGS],
    wakers: Slab<Option<Waker>>,
    waiting: usize,
}

impl Log {
    fn new(form: Form) -> Self {
        Self { form, start: 0, cut: 0, entries: VecDeque::new(), joined: Default::default(), wakers: Slab::new(), waiting: 0 }
    }

    /// Appends an entry, and moves the waiting wakers out: they are to be called when no lock is held.
    pub(super) fn append(&mut self, entry: Encoded, wakers: &mut Vec<Waker>) {
        self.entries.push_back(Kept(entry));
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

    /// Who has not read all of it yet resumes from the windows.
    pub(super) fn cut(&mut self) {
        self.cut = self.end();
        self.forget();
    }

    /// Whether somebody reads it by a waker.
    pub(super) fn has_seats(&self) -> bool {
        !self.wakers.is_empty()
    }

    /// Whether all that read it by wakers have read all of it.
    pub(super) fn is_read(&self) -> bool {
        self.waiting == self.wakers.len()
    }

    pub(super) fn end(&self) -> u64 {
        self.start + self.entries.len() as u64
    }

    fn read_from<F: Framing>(&mut self, offset: u64) -> Read {
        let end = self.end();
        if offset >= end {
            return Read::AtEnd;
        }
        if offset < self.start.max(self.cut) {
            return Read::Lagged;
        }
        let at = (offset - self.start) as usize;
        if let Some(joined) = &mut self.joined[F::SLOT]
            && joined.from == offset
            && (joined.to == end || joined.bytes.len() >= ENOUGH)
        {
            joined.more = joined.to < end;
            return Read::Piece(Piece::clone(joined));
        }
        let Kept(first) = &self.entries[at];
        if offset + 1 == end || F::range(first, self.form).len() >= ENOUGH {
            return Read::Piece(Piece::single::<F>(first, self.form, offset, end));
        }
        let mut length = 0;
        let fits = self.entries.range(at..).take_while(|Kept(entry)| {
            length += F::range(entry, self.form).len();
            length <= JOINED
        });
        let count = fits.count().max(1);
        let piece =
            Piece::join::<F>(self.entries.range(at..at + count).map(|Kept(entry)| entry), length.min(JOINED), self.form, offset, end);
        self.joined[F::SLOT] = Some(piece.clone().into());
        Read::Piece(piece)
    }

    /// Gives back what is only kept to be fast: the joined pieces, and the room of entries that have been dropped.
    pub(super) fn forget(&mut self) {
        self.joined = Default::default();
        if self.entries.capacity() > 4 * self.entries.len().max(SPARE) {
            self.entries.shrink_to(2 * self.entries.len());
        }
    }

    /// Everything from `offset` on; `None` if some of it was dropped.
    fn range(&self, offset: u64) -> Option<impl Iterator<Item = &Encoded>> {
        if offset < self.cut && offset < self.end() {
            return None;
        }
        let at = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        Some(self.entries.range(at.min(self.entries.len())..).map(|Kept(entry)| entry))
    }

    pub(super) fn id_before(&self, offset: u64) -> Option<Bytes> {
        let count = usize::try_from(offset.checked_sub(self.start)?).ok()?.min(self.entries.len());
        self.entries.range(..count).rev().find_map(|Kept(entry)| Some(entry.bytes().slice(entry.id_range(self.form)?)))
    }

    fn wait(&mut self, key: &mut Option<usize>, waker: &Waker) {
        let key = *key.get_or_insert_with(|| self.wakers.insert(None));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::encode_heartbeat;

    #[test]
    fn a_log_gives_the_room_of_dropped_entries_back() {
        let mut log = Log::new(Form::Routed);
        (0..1000).for_each(|_| log.append(encode_heartbeat(None), &mut Vec::new()));
        (0..995).for_each(|_| log.drop_first());
        assert!(log.entries.capacity() >= 1000);
        log.forget();
        assert!(log.entries.capacity() <= 4 * SPARE, "{}", log.entries.capacity());
        assert_eq!((log.start, log.end()), (995, 1000));
    }
}
