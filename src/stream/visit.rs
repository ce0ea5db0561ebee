//! What is known of an open stream: who reads it from where, how much it was sent, and where it is in its channel's log.
//!
//! One part at a time moves the stream, and only that part writes here; whoever lists streams reads. No lock on the way of an event.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::StreamId;
use crate::auth::Owner;
use crate::event::Timestamp;
use crate::frame::Closing;
use crate::hub::Transport;

/// Who asked for a stream, and how.
#[derive(Debug, Clone)]
pub(crate) struct Visitor {
    /// The client's address.
    pub address: IpAddr,
    /// What the client calls itself, as far as it is text. Shared by streams of the same.
    pub user_agent: Option<Arc<str>>,
    /// What carries it.
    pub transport: Transport,
    /// The number of its connection.
    pub connection: u32,
}

impl Visitor {
    /// Nobody knows who.
    #[cfg(test)]
    pub(crate) fn unknown() -> Self {
        Self { address: IpAddr::from([127, 0, 0, 1]), user_agent: None, transport: Transport::Http11, connection: 0 }
    }
}

/// It is to be sent something else than it is.
const MOVED: u8 = 1;
/// It is to be sent nothing any more.
const OVER: u8 = 2;

/// See the module. Kept small: there is one for every subscriber.
///
/// In this order, what changes with each piece comes first, and lies in one line of the processor's cache.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Visit {
    sent: Sent,
    /// What tells the stream from all others.
    pub(super) id: StreamId,
    /// Whose token it is.
    pub(super) owner: Option<Arc<Owner>>,
    user_agent: Option<Arc<str>>,
    /// When it was opened.
    pub(super) since: Timestamp,
    /// While it catches up: the last id that it was sent.
    behind: Mutex<Option<Box<[u8]>>>,
    pub(super) connection: u32,
    pub(super) address: IpAddr,
    pub(super) transport: Transport,
    /// Why it was ended, as a place in [`Closing::ALL`] and 1; 0: it was not.
    closed: AtomicU8,
    /// What was ordered of it: [`MOVED`], [`OVER`]. Changed under the registry's lock.
    ordered: AtomicU8,
}

/// What a stream was sent.
#[derive(Debug, Default)]
struct Sent {
    events: AtomicU64,
    bytes: AtomicU64,
    /// While it is live: where it is in its channel's log.
    offset: AtomicU64,
}

/// Where a stream is.
pub(super) enum Place {
    /// Behind this id; empty where it has been sent none.
    Behind(Box<[u8]>),
    /// At this offset of its channel's log.
    Live(u64),
}

impl Visit {
    pub(super) fn new(id: StreamId, owner: Option<Arc<Owner>>, visitor: Visitor, since: Timestamp) -> Self {
        let Visitor { address, user_agent, transport, connection } = visitor;
        Self {
            id,
            owner,
            address,
            transport,
            connection,
            user_agent,
            since,
            sent: Sent::default(),
            closed: AtomicU8::new(0),
            ordered: AtomicU8::new(0),
            behind: Mutex::new(Some(Box::default())),
        }
    }

    /// Who asked for the stream, and how.
    pub(super) fn visitor(&self) -> Visitor {
        let Self { address, transport, connection, .. } = *self;
        Visitor { address, user_agent: self.user_agent.clone(), transport, connection }
    }

    /// Counts what was sent. Only whoever moves the stream calls this: a sum needs no locked instruction.
    fn count(&self, events: u64, bytes: u64) {
        let add = |to: &AtomicU64, more: u64| to.store(to.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
        add(&self.sent.events, events);
        add(&self.sent.bytes, bytes);
    }

    /// It catches up, and has been sent so much more, up to this id.
    pub(super) fn sent_behind(&self, events: u64, bytes: u64, id: &[u8]) {
        self.count(events, bytes);
        *self.behind.lock() = Some(id.into());
    }

    /// It is live from this offset on.
    pub(super) fn live(&self, offset: u64) {
        self.sent.offset.store(offset, Ordering::Relaxed);
        *self.behind.lock() = None;
    }

    /// It is live, and has been sent so much more, up to this offset.
    pub(super) fn sent_live(&self, events: u64, bytes: u64, offset: u64) {
        self.count(events, bytes);
        self.sent.offset.store(offset, Ordering::Relaxed);
    }

    /// Whether it is to be sent something else than it is. Asked behind reading an event, this knows of all that was ordered before the
    /// event was published.
    pub(super) fn is_moved(&self) -> bool {
        self.ordered.load(Ordering::Relaxed) & MOVED != 0
    }

    /// To be called with the registry's lock, where what it is to be sent is noted or taken.
    pub(super) fn set_moved(&self, moved: bool) {
        if moved {
            self.ordered.fetch_or(MOVED, Ordering::Relaxed);
        } else {
            self.ordered.fetch_and(!MOVED, Ordering::Relaxed);
        }
    }

    /// Whether it is to be sent nothing any more. Asked as [`Self::is_moved`].
    pub(super) fn is_over(&self) -> bool {
        self.ordered.load(Ordering::Relaxed) & OVER != 0
    }

    /// It was ordered to end at once. To be called with the registry's lock.
    pub(super) fn set_over(&self) {
        self.ordered.fetch_or(OVER, Ordering::Relaxed);
    }

    /// It was ended, with so many bytes that say so.
    pub(super) fn close(&self, reason: Closing, bytes: u64) {
        self.count(0, bytes);
        self.closed.store(reason as u8 + 1, Ordering::Relaxed);
    }

    /// Why it was ended; `None`: it was not.
    pub(super) fn closed(&self) -> Option<Closing> {
        Closing::ALL.get(usize::from(self.closed.load(Ordering::Relaxed)).checked_sub(1)?).copied()
    }

    /// Events and bytes that it was sent.
    pub(super) fn sent(&self) -> (u64, u64) {
        (self.sent.events.load(Ordering::Relaxed), self.sent.bytes.load(Ordering::Relaxed))
    }

    /// While it is live: where it is in its channel's log.
    pub(super) fn offset(&self) -> u64 {
        self.sent.offset.load(Ordering::Relaxed)
    }

    pub(super) fn place(&self) -> Place {
        match &*self.behind.lock() {
            Some(id) => Place::Behind(id.clone()),
            None => Place::Live(self.offset()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_visit_is_small() {
        // With the counts of its `Arc` it fits 128 bytes, which is what an allocator gives for it.
        assert!(size_of::<Visit>() + 16 <= 128, "{}", size_of::<Visit>());
        let sent = 16 + std::mem::offset_of!(Visit, sent);
        assert_eq!(sent / 64, (sent + size_of::<Sent>() - 1) / 64, "what was sent lies in two lines: {sent}");
    }
}
