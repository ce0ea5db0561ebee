//! A stream's own limits, and why messages are gone. Asks nothing: judges by what the stream says and has said of itself.
//!
//! Where newer messages may also have replaced older ones, a stream does not say which of both took them. But its limits take
//! nothing before it is full, and a given number of messages is taken to have no more bytes than as many large ones: see [`TIMES`].

use super::api::{self, StreamInfo};
use super::now;
use crate::event::GapReason;

/// A message that came and went unseen is taken to be at most so many times as large as those that are held in the mean: with the largest
/// that a server takes, a busy stream of small messages would always look as if it had been full.
const TIMES: u64 = 16;

/// Where a stream holds more than this it drops the oldest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    messages: u64,
    bytes: u64,
}

impl Limits {
    /// A stream that is to discard what is new refuses it, and drops nothing.
    fn of(info: &StreamInfo) -> Self {
        let limit = |limit: i64| u64::try_from(limit).ok().filter(|limit| *limit > 0 && info.config.discard != "new");
        let (messages, bytes) = (limit(info.config.max_msgs), limit(info.config.max_bytes));
        Self { messages: messages.unwrap_or(u64::MAX), bytes: bytes.unwrap_or(u64::MAX) }
    }

    fn least(self, other: Self) -> Self {
        Self { messages: self.messages.min(other.messages), bytes: self.bytes.min(other.bytes) }
    }

    /// These, if a stream that held so much may have reached one of them while so many messages came.
    fn if_reached(self, held: u64, bytes: u64, came: u64, largest: u64) -> Option<Self> {
        let full = held.saturating_add(came) > self.messages || bytes.saturating_add(came.saturating_mul(largest)) > self.bytes;
        full.then_some(self)
    }
}

/// The stream as it was.
#[derive(Debug)]
struct Look {
    limits: Limits,
    messages: u64,
    bytes: u64,
    last: u64,
}

impl Look {
    fn of(info: &StreamInfo) -> Self {
        let state = &info.state;
        Self { limits: Limits::of(info), messages: state.messages, bytes: state.bytes, last: state.last_seq }
    }

    /// Bytes of a large message. `largest`: that a message may have at all.
    fn large(&self, largest: u64) -> u64 {
        self.bytes.checked_div(self.messages).map_or(largest, |mean| mean.saturating_mul(TIMES).min(largest))
    }

    /// The limits that may have taken something from this look to the next one.
    fn until(&self, next: &Self, largest: u64) -> Option<Limits> {
        let came = next.last.saturating_sub(self.last);
        let large = self.large(largest).max(next.large(largest));
        self.limits.least(next.limits).if_reached(self.messages, self.bytes, came, large)
    }
}

/// When a stream's limits may have taken something, as far as it was looked at.
#[derive(Debug, Default)]
pub(super) struct Fill {
    /// The last sequence at the first look.
    since: u64,
    look: Option<Look>,
    /// The last sequence up to which the limits may have taken something, and these.
    full: Option<(u64, Limits)>,
}

impl Fill {
    /// Notes how the stream is. `largest`: bytes of the largest message that it may hold.
    pub(super) fn looks(&mut self, info: &StreamInfo, largest: u64) {
        let look = Look::of(info);
        match &self.look {
            None => self.since = look.last,
            Some(before) => self.full = before.until(&look, largest).map(|limits| (look.last, limits)).or(self.full),
        }
        self.look = Some(look);
    }

    /// The limits that may have taken what followed a sequence.
    pub(super) fn may_have_taken(&self, after: u64, info: &StreamInfo, largest: u64) -> Option<Limits> {
        let now = Look::of(info);
        let unseen = self.look.is_none() || after < self.since;
        // What was taken stood before all that was held then, and behind `after`.
        let taken = || now.limits.if_reached(0, 0, now.last.saturating_sub(after), now.large(largest)).filter(|_| unseen);
        let since_the_last = self.look.as_ref().and_then(|look| look.until(&now, largest));
        since_the_last.or_else(|| self.full.filter(|(until, _)| after < *until).map(|(_, limits)| limits)).or_else(taken)
    }
}

impl StreamInfo {
    /// Why the stream's start has passed what follows a sequence, none of which is older than `time`: its limits, a
    /// purge, or nothing that counts: what per-subject limits, rollups and messages' own lives take is no longer content. `expired`: such
    /// lives may have ended. `limits`: those that may have taken it.
    pub(super) fn why_gone(&self, after: u64, time: Option<u64>, expired: bool, limits: Option<Limits>) -> Option<GapReason> {
        let (config, state) = (&self.config, &self.state);
        // A message that came at this time may have been too old by now. Of unknown times nothing is known.
        let old = |time: Option<u64>| {
            time.is_none_or(|time| now().saturating_sub(time).saturating_add(1_000_000_000) >= config.max_age - config.max_age / 10)
        };
        // No message is older than the stream. If the stream is empty, the last message to come is also gone.
        let born = if config.mirror.is_some() { None } else { api::nanos(&self.created) };
        let newest = if state.messages == 0 { api::nanos(&state.last_ts) } else { None };
        let by_age = config.max_age > 0 && old(time) && old(born) && old(newest);
        let by_limits = limits.is_some_and(|Limits { messages, bytes }| {
            let by_count = state.last_seq.saturating_sub(after) >= messages && state.messages >= messages / 2;
            by_count || state.bytes >= bytes / 2
        });
        if by_age || by_limits {
            return Some(GapReason::Retention);
        }
        // Per-subject limits and rollups leave something of each subject: a stream that is empty was purged.
        let by_subject = config.max_msgs_per_subject > 0 || config.allow_rollup_hdrs;
        let no_content = expired || (by_subject && state.messages > 0);
        // What the stream's limits took was content, and they may have taken something that no newer message had replaced.
        if no_content { limits.map(|_| GapReason::Retention) } else { Some(GapReason::Reset) }
    }
}
