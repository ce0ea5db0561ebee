//! Past messages that the library cannot read.
//!
//! It ends its connection at a subject that is no UTF-8 and at headers that it cannot read, and the stream would send the
//! same message again after the next connection. JetStream's API gives messages one by one as JSON, which can always be
//! read. So where connections were lost twice with a reader at the same place, and nothing was read between, the reader goes
//! on by the API for a while. A loss for other reasons costs no more than a few questions.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use super::api::{self, Found, StreamInfo};
use super::line::Line;
use super::{JetStreamSource, NEWEST};
use crate::cursor::Position;
use crate::event::{Gap, GapReason, Message, Timestamp};
use crate::source::{Item, SourceError};
use crate::subject::Subject;

/// Losses at a place.
const TWICE: u32 = 2;
/// What is read by the API at a time, at most: messages (not less than a reader asks for), bytes, time.
const MESSAGES: u64 = 4096;
const BYTES: usize = 8 << 20;
const TIME: Duration = Duration::from_secs(10);
/// Messages behind the last odd one that are still read so, for odd ones seldom come alone.
const BEHIND: u64 = 64;
/// What is remembered, before it is forgotten.
const KNOWN: usize = 1024;

/// Where readers of a source were stopped.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    /// How often connections were lost with a reader that was to go on with this sequence and had read nothing.
    lost: HashMap<u64, u32>,
    /// Messages that the library cannot read, or may not.
    odd: BTreeSet<u64>,
}

impl Trouble {
    pub(super) fn lost_at(&mut self, next: u64) {
        if self.lost.len() >= KNOWN {
            self.lost.clear();
        }
        *self.lost.entry(next).or_default() += 1;
    }

    pub(super) fn read_at(&mut self, next: u64) {
        self.lost.remove(&next);
    }

    /// Whether whoever is to go on with this sequence had better ask for it.
    pub(super) fn is_near(&self, next: u64) -> bool {
        self.was_lost_at(next) || self.odd.range(next..next.saturating_add(MESSAGES / 2)).next().is_some()
    }

    pub(super) fn was_lost_at(&self, next: u64) -> bool {
        self.lost.get(&next).is_some_and(|times| *times >= TWICE)
    }

    /// Whether there are such messages at all.
    pub(super) fn is_known(&self) -> bool {
        !self.odd.is_empty()
    }

    /// The newest of each subject cannot be read; that is told now.
    pub(super) fn told_newest(&mut self) {
        self.lost.remove(&NEWEST);
        // No sequence, but there are such messages.
        self.found(0);
    }

    fn found(&mut self, odd: u64) {
        if self.odd.len() >= KNOWN {
            self.odd.clear();
        }
        self.odd.insert(odd);
    }
}

/// What was read by the API.
pub(super) struct Detour {
    pub(super) items: Vec<Item>,
    /// The last place that was looked at; `None`: there was nothing.
    pub(super) end: Option<Position>,
}

impl JetStreamSource {
    /// Reads from a sequence on by the API, until behind what the library cannot read.
    pub(super) async fn detour(&self, line: &mut Line, info: &StreamInfo, from: u64) -> Result<Detour, SourceError> {
        let name = &*self.stream.stream;
        let mut filters = self.filters(info);
        if filters.is_empty() {
            filters.push(">".to_owned());
        }
        let (mut items, mut end, mut bytes, mut next) = (Vec::new(), None, 0, from);
        let (mut left, mut stop, begun) = (MESSAGES, u64::MAX, Instant::now());
        while next < stop && left > 0 && bytes < BYTES && begun.elapsed() < TIME {
            let stored = match api::find(line, name, next, &filters).await? {
                Found::Nothing => break,
                Found::Message(stored) => stored,
                Found::Unreadable => {
                    tracing::warn!(stream = name, sequence = next, "a message of a stream cannot be read at all");
                    let position = Position::unverified(next);
                    let (from, to) = (Some(next - 1), Some(next + 1));
                    items.push(Item::Gap(Gap { reason: GapReason::Overflow, from, to, position: Some(position) }));
                    end = Some(position);
                    next += 1;
                    left -= 1;
                    continue;
                }
            };
            let position = Position { seq: stored.seq, check: Some(stored.check) };
            if stored.odd {
                tracing::warn!(stream = name, sequence = stored.seq, "a message is read by the API: the library cannot");
                self.trouble.lock().found(stored.seq);
                stop = stored.seq.saturating_add(BEHIND);
            }
            (end, next) = (Some(position), stored.seq + 1);
            if self.subjects.iter().any(|ours| ours.matches(&stored.subject)) {
                left -= 1;
                bytes += stored.payload.len();
                let subject = Subject::from_broker(stored.subject.as_bytes(), &self.unnamed);
                let time = Timestamp::from_micros(stored.time / 1000);
                items.push(Item::Message(Message { subject, payload: stored.payload, time, position: Some(position) }));
            }
        }
        // What the stream has dropped meanwhile may have been skipped in silence: then as if nothing had been looked at.
        let now = api::stream_info(line, name).await?.ok_or_else(|| SourceError::missing(format!("there is no stream `{name}`")))?;
        if now.created != info.created || now.first() > from.max(info.first()) {
            return Ok(Detour { items: Vec::new(), end: None });
        }
        Ok(Detour { items, end })
    }
}
