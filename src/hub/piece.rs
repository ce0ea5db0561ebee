//! Pieces: entries of a channel's log, framed and joined for a transport.
//!
//! Knows where entries begin and end in a piece and which id each has; not what a framing adds, nor sockets.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::frame::{Encoded, Form};

/// The number of framings. Each has a slot in every channel.
pub(crate) const FRAMINGS: usize = 2;

/// How a transport frames entries.
pub trait Framing {
    /// Its slot in a channel, below [`FRAMINGS`].
    const SLOT: usize;

    /// Where an entry's framed bytes lie in its block.
    fn range(entry: &Encoded, form: Form) -> Range<usize>;
}

/// Whole entries of a channel's log, framed.
#[derive(Debug, Clone)]
pub struct Piece {
    /// The bytes, shared by all subscribers that get them.
    pub bytes: Bytes,
    /// The offset of its first entry.
    pub from: u64,
    /// The offset behind its last entry.
    pub to: u64,
    /// The log holds more behind it.
    pub more: bool,
    /// Events among its entries: neither gaps nor heartbeats.
    pub events: u64,
    entries: Entries,
}

/// Its entries, in order.
#[derive(Debug, Clone)]
enum Entries {
    One(Part),
    Several(Arc<[Part]>),
}

/// Where one entry of a piece lies. Kept here, as the log may have dropped the entry by the time a socket stops in it.
#[derive(Debug, Clone, Copy)]
struct Part {
    end: u32,
    /// Where its id begins. The length is 0 where it has no id.
    id: u32,
    id_length: u16,
    /// It is an event.
    event: bool,
}

/// Where a socket stopped in a piece.
#[derive(Debug, PartialEq, Eq)]
pub struct Stop {
    /// Entries that the socket took bytes of; at least one.
    pub entries: u64,
    /// Events among them.
    pub events: u64,
    /// What it has not taken of the last of them.
    pub rest: Range<usize>,
    /// The last id in these entries.
    pub id: Option<Range<usize>>,
}

impl Part {
    fn new<F: Framing>(entry: &Encoded, form: Form, begin: usize) -> Self {
        let range = F::range(entry, form);
        let end = (begin + range.len()) as u32;
        let event = entry.is_event();
        match entry.id_range(form) {
            Some(id) => Self { end, id: (begin + id.start - range.start) as u32, id_length: id.len() as u16, event },
            None => Self { end, id: 0, id_length: 0, event },
        }
    }

    fn id(&self) -> Option<Range<usize>> {
        let start = self.id as usize;
        (self.id_length > 0).then(|| start..start + usize::from(self.id_length))
    }
}

fn events_in(parts: &[Part]) -> u64 {
    parts.iter().filter(|part| part.event).count() as u64
}

impl Piece {
    pub(super) fn single<F: Framing>(entry: &Encoded, form: Form, from: u64, end: u64) -> Self {
        let bytes = entry.bytes().slice(F::range(entry, form));
        let part = Part::new::<F>(entry, form, 0);
        let (events, entries) = (u64::from(part.event), Entries::One(part));
        Self { bytes, from, to: from + 1, more: from + 1 < end, events, entries }
    }

    pub(super) fn join<'a, F: Framing>(
        entries: impl ExactSizeIterator<Item = &'a Encoded>,
        length: usize,
        form: Form,
        from: u64,
        end: u64,
    ) -> Self {
        let to = from + entries.len() as u64;
        let mut bytes = BytesMut::with_capacity(length);
        let parts = entries.map(|entry| {
            let part = Part::new::<F>(entry, form, bytes.len());
            bytes.extend_from_slice(&entry.bytes()[F::range(entry, form)]);
            part
        });
        let parts: Arc<[Part]> = parts.collect();
        let (events, entries) = (events_in(&parts), Entries::Several(parts));
        Self { bytes: bytes.freeze(), from, to, more: to < end, events, entries }
    }

    /// The last id in it.
    #[must_use]
    pub fn last_id(&self) -> Option<&[u8]> {
        self.parts().iter().rev().find_map(Part::id).map(|id| &self.bytes[id])
    }

    /// Where a socket stopped that took `taken` bytes, fewer than all.
    #[must_use]
    pub fn stop(&self, taken: usize) -> Stop {
        let parts = self.parts();
        // A socket that took nothing waits with the whole first entry.
        let count = parts.partition_point(|part| (part.end as usize) < taken).min(parts.len() - 1) + 1;
        let touched = &parts[..count];
        let rest = taken..touched[count - 1].end as usize;
        Stop { entries: count as u64, events: events_in(touched), rest, id: touched.iter().rev().find_map(Part::id) }
    }

    fn parts(&self) -> &[Part] {
        match &self.entries {
            Entries::One(part) => std::slice::from_ref(part),
            Entries::Several(parts) => parts,
        }
    }
}
