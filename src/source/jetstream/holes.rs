//! Holes in a stream's sequence, and whether they are losses. Asks nothing: judges by what the stream last said of itself.

use super::api::StreamInfo;
use super::purge::Known;
use crate::cursor::Position;
use crate::event::Gap;
use crate::source::Item;

/// A hole before an item.
pub(super) struct Hole {
    /// The item's index in its batch.
    pub(super) at: usize,
    pub(super) after: u64,
    /// Nothing in it is older, in nanoseconds since 1970.
    pub(super) time: Option<u64>,
    pub(super) to: u64,
    /// Messages that are still there may be in it.
    pub(super) suspect: bool,
}

#[derive(Default)]
pub(super) struct Batch {
    pub(super) items: Vec<Item>,
    pub(super) holes: Vec<Hole>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty() && self.holes.is_empty()
    }
}

impl StreamInfo {
    /// The gap for a hole, as the stream is now. `largest`: bytes of the largest message that it may hold.
    pub(super) fn lost(&self, hole: &Hole, known: &Known, largest: usize) -> Option<Gap> {
        if self.first() <= hole.after + 1 {
            return None;
        }
        let (expired, limits) = (known.may_have_expired(self), known.limits(hole.after, self, largest));
        let reason = self.why_gone(hole.after, hole.time, expired, limits)?;
        Some(Gap { reason, from: Some(hole.after), to: Some(hole.to), position: Some(Position::unverified(hole.to - 1)) })
    }
}
