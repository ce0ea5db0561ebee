//! Holes in a stream's sequence, and whether they are losses. Asks nothing: judges by what the stream last said of itself.

use std::time::Duration;

use super::api::StreamInfo;
use super::now;
use crate::cursor::Position;
use crate::event::{Gap, GapReason};
use crate::source::Item;

/// No stream takes more than this in a second.
const FASTEST_MESSAGES: u64 = 2_000_000;
const FASTEST_BYTES: u64 = 512 << 20;

/// A hole before an item.
pub(super) struct Hole {
    /// The item's index in its batch.
    pub(super) at: usize,
    pub(super) after: u64,
    /// The time of the message there, in nanoseconds.
    pub(super) time: Option<u64>,
    pub(super) to: u64,
    /// Nothing was left to deliver when the message before it came.
    pub(super) calm: bool,
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
    /// Whether the stream's limits, or time, can have passed a hole since it said so of itself.
    pub(super) fn reaches(&self, hole: &Hole, since: Duration) -> bool {
        if hole.suspect || !hole.calm || self.first() > hole.after + 1 {
            return true;
        }
        let (config, behind) = (&self.config, self.state.last_seq.saturating_sub(hole.after));
        let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX).saturating_add(50);
        let limit = |limit: i64| u64::try_from(limit).ok().filter(|limit| *limit > 0);
        // Half a limit is near enough.
        let by_count = limit(config.max_msgs).is_some_and(|most| behind + FASTEST_MESSAGES.saturating_mul(millis) / 1000 >= most / 2);
        let average = self.state.bytes / self.state.messages.max(1);
        let bytes = behind.saturating_mul(average).saturating_add(FASTEST_BYTES.saturating_mul(millis) / 1000);
        let by_bytes = limit(config.max_bytes).is_some_and(|most| bytes >= most / 2);
        let age = config.max_age;
        let by_age = age > 0 && hole.time.is_none_or(|time| now().saturating_sub(time) >= age / 2);
        by_count || by_bytes || by_age || behind > FASTEST_MESSAGES
    }

    /// The gap for a hole, as the stream is now.
    pub(super) fn lost(&self, hole: &Hole) -> Option<Gap> {
        if self.first() <= hole.after + 1 {
            return None;
        }
        let reason: GapReason = self.why_gone(hole.after, hole.time)?;
        Some(Gap { reason, from: Some(hole.after), to: Some(hole.to), position: Some(Position::unverified(hole.to - 1)) })
    }
}
