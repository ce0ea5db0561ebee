//! Past messages that the library cannot read.
//!
//! The library ends its connection at a subject that is not UTF-8 and at headers that it cannot read, and the stream would
//! send the same message again on the next connection. JetStream's API returns messages one by one as JSON, which can
//! always be read. So when connections were lost twice with a reader at the same sequence, and nothing was read in between,
//! the reader goes on by the API for a while. A connection that was lost for another reason costs only a few questions.
//! A user who may not ask for single messages is brought them one by one ([`super::single`]), but for those that cannot be read.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use super::JetStreamSource;
use super::api::{self, Found, NewConsumer, Stored, StreamInfo};
use super::line::Line;
use super::single::Single;
use crate::cursor::Position;
use crate::event::{Gap, GapReason, Message, Timestamp};
use crate::source::nats::headers;
use crate::source::{Item, SourceError};

/// Losses at a place.
const TWICE: u32 = 2;
/// What is read by the API at a time, at most: messages (not less than a reader asks for), bytes, time.
const MESSAGES: u64 = 4096;
const BYTES: usize = 8 << 20;
const TIME: Duration = Duration::from_secs(10);
/// Messages behind the last odd one that are still read so, for odd ones seldom come alone.
const BEHIND: u64 = 64;
/// Readers that are opened again for a message that consumers leave out. Several may miss the same one.
const ATTEMPTS: u32 = 8;
/// What is remembered, before it is forgotten.
const KNOWN: usize = 1024;

/// What a reader is to deliver first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Next {
    /// What has this sequence, or the first one behind it.
    Sequence(u64),
    /// The newest message of each subject.
    Newest,
}

impl Next {
    /// Whether an item shows that it was read: a message from there on, or the tail.
    pub(super) fn is_reached_by(self, item: &Item) -> bool {
        match (item, self) {
            (Item::Message(message), Self::Sequence(next)) => message.position.is_some_and(|at| at.seq >= next),
            (Item::Tail(_), _) => true,
            (Item::Message(_), Self::Newest) | (Item::Gap(_) | Item::Oversized(_), _) => false,
        }
    }
}

/// Where readers of a source were stopped.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    /// How often connections were lost with a reader that was to deliver this first and had read nothing.
    lost: HashMap<Next, u32>,
    /// Messages that the library cannot read, or may not.
    odd: BTreeSet<u64>,
    /// The newest messages have stopped readers: they are asked for one by one.
    odd_newest: bool,
    /// The message that consumers left out last, and how many readers were opened again for it.
    left_out: (u64, u32),
}

impl Trouble {
    /// Whether a message that a consumer left out may come from another one. One that never does is given up.
    pub(super) fn may_still_come(&mut self, seq: u64) -> bool {
        let (last, times) = self.left_out;
        self.left_out = (seq, if last == seq { times.saturating_add(1) } else { 1 });
        !self.odd.contains(&seq) && self.left_out.1 <= ATTEMPTS
    }

    pub(super) fn lost_at(&mut self, next: Next) {
        if self.lost.len() >= KNOWN {
            self.lost.clear();
        }
        *self.lost.entry(next).or_default() += 1;
    }

    pub(super) fn read_at(&mut self, next: Next) {
        self.lost.remove(&next);
    }

    /// Whether a reader that is to go on with this sequence had better ask for it.
    pub(super) fn is_near(&self, next: u64) -> bool {
        self.was_lost_at(Next::Sequence(next)) || self.odd.range(next..next.saturating_add(MESSAGES / 2)).next().is_some()
    }

    pub(super) fn was_lost_at(&self, next: Next) -> bool {
        self.lost.get(&next).is_some_and(|times| *times >= TWICE)
    }

    /// Whether there are such messages at all.
    pub(super) fn is_known(&self) -> bool {
        self.odd_newest || !self.odd.is_empty()
    }

    /// Whether the newest message of each subject had better be asked for one by one.
    pub(super) fn stops_newest(&mut self) -> bool {
        self.odd_newest |= self.was_lost_at(Next::Newest);
        self.odd_newest
    }

    /// The newest messages have been asked for, and some could not be read or not by the library.
    pub(super) fn asked_for_newest(&mut self, odd: bool) {
        self.lost.remove(&Next::Newest);
        self.odd_newest = odd;
    }

    /// Between which sequences a message is that cannot be found by its subject, as far as that is known.
    pub(super) fn around_odd(&self) -> Option<(u64, u64)> {
        Some((self.odd.first()?.saturating_sub(1), self.odd.last()?.saturating_add(1)))
    }

    fn found(&mut self, odd: u64) {
        if self.odd.len() >= KNOWN {
            self.odd.clear();
        }
        self.odd.insert(odd);
    }
}

/// What was read by the API.
#[derive(Default)]
pub(super) struct Detour {
    pub(super) items: Vec<Item>,
    /// The last place that was looked at; `None`: there was nothing.
    pub(super) end: Option<Position>,
}

impl JetStreamSource {
    /// Reads from a sequence on what `new` would deliver, until behind what the library cannot read.
    pub(super) async fn detour(&self, line: &mut Line, info: &StreamInfo, from: u64, new: &NewConsumer) -> Result<Detour, SourceError> {
        let name = &*self.stream.stream;
        let mut filters = self.filters(info);
        if filters.is_empty() {
            filters.push(">".to_owned());
        }
        let (mut items, mut end, mut bytes, mut next) = (Vec::new(), None, 0, from);
        let (mut left, mut stop, begun) = (MESSAGES, u64::MAX, Instant::now());
        let mut single: Option<Single<'_>> = None;
        while next < stop && left > 0 && bytes < BYTES && begun.elapsed() < TIME {
            let found = match &mut single {
                Some(single) => single.next().await?,
                None => match api::find(line, name, next, &filters).await? {
                    Some(found) => found,
                    None => {
                        let mut new = NewConsumer { inactive_threshold: self.inactive(info), ..new.clone() };
                        new.start_behind(next - 1);
                        single = Some(Single::new(self, line, new).await?);
                        continue;
                    }
                },
            };
            let stored = match found {
                Found::Nothing => break,
                Found::Message(stored) => stored,
                Found::Unreadable(first, last) => {
                    items.push(Item::Gap(self.unreadable(first, last)));
                    stop = last.saturating_add(BEHIND);
                    (end, next, left) = (Some(Position::unverified(last)), last + 1, left - 1);
                    continue;
                }
            };
            let position = Position { seq: stored.seq, check: Some(stored.check) };
            if stored.odd {
                tracing::warn!(source = %self.name, stream = name, sequence = stored.seq, "a message is read by the API: the library cannot");
                self.trouble.lock().found(stored.seq);
                stop = stored.seq.saturating_add(BEHIND);
            }
            (end, next) = (Some(position), stored.seq + 1);
            if let Some(message) = self.message_of(stored) {
                left -= 1;
                bytes += message.payload.len();
                items.push(Item::Message(message));
            }
        }
        // What the stream has dropped meanwhile may have been skipped in silence: then as if nothing had been looked at.
        let now = api::stream_info(line, name).await?.ok_or_else(|| SourceError::missing(format!("there is no stream `{name}`")))?;
        if now.created != info.created || now.first() > from.max(info.first()) {
            return Ok(Detour::default());
        }
        Ok(Detour { items, end })
    }

    /// Notes a message that cannot be read at all. The gap that stands for it and all between these sequences.
    pub(super) fn unreadable(&self, first: u64, last: u64) -> Gap {
        tracing::warn!(source = %self.name, stream = &*self.stream.stream, first, last, "a message of a stream cannot be read");
        self.trouble.lock().found(last);
        let (from, to) = (Some(first.saturating_sub(1)), Some(last + 1));
        Gap { reason: GapReason::Unreadable, from, to, position: Some(Position::unverified(last)) }
    }

    /// A stored message, if it is of this source.
    pub(super) fn message_of(&self, stored: Stored) -> Option<Message> {
        let subject = self.names.shown(stored.subject.as_bytes())?;
        let position = Position { seq: stored.seq, check: Some(stored.check) };
        let mut message = Message::new(subject, stored.payload, Timestamp::from_micros(stored.time / 1000), Some(position));
        headers::take(&mut message, stored.subject.as_bytes(), stored.headers);
        Some(message)
    }
}
