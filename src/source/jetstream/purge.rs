//! What the live reader has seen of a stream, and what that says of its beginning when it is gone: whether some subjects were
//! purged, which are no longer content, or all that there was up to a place, which is a loss.
//!
//! The server says only where the stream begins now. So three things must be known:
//! 1. the lost messages and today's first message were in the stream at the same time;
//! 2. some subjects of the lost messages;
//! 3. no message of these subjects is left from that time.

use std::collections::VecDeque;

use super::api::{self, StreamInfo};
use super::limits::{Fill, Limits};
use super::line::Line;
use super::names::Names;
use crate::event::Message;
use crate::source::SourceError;

/// So many messages' subjects are remembered, spread over all that were read.
const SAMPLES: usize = 512;
/// So many earlier beginnings.
const BEGINNINGS: usize = 32;
/// So many subjects are asked for.
const ASKED: usize = 16;
/// So many messages are looked at one by one.
const LOOKED: u64 = 16;
/// The header of a message that has replaced earlier ones.
const ROLLUP: &str = "Nats-Rollup";
/// The header that says how long a message lives, and its value for one without an end.
const LIFE: &str = "Nats-TTL";
const ENDLESS: &str = "never";

/// A message that was read.
#[derive(Debug)]
struct Sample {
    seq: u64,
    /// Nanoseconds since 1970.
    time: u64,
    subject: String,
}

/// What the live reader has seen of the stream.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Which stream it was.
    pub(super) created: Option<String>,
    /// Sequence and time (nanoseconds) of the last message.
    last: Option<(u64, u64)>,
    /// The last message that had a life of its own.
    mortal: Option<u64>,
    fill: Fill,
    /// First and last sequence that were there together, one pair for each beginning.
    held: VecDeque<(u64, u64)>,
    samples: Vec<Sample>,
    /// A sequence that is divisible by this is remembered; 0 is 1.
    stride: u64,
}

impl Known {
    /// Something of this stream is handed out: from here on it is the one that was read.
    pub(super) fn begins(&mut self, info: &StreamInfo, largest: usize) {
        if self.created.as_ref() != Some(&info.created) {
            *self = Self { created: Some(info.created.clone()), ..Self::default() };
            self.is(info, largest);
        }
    }

    /// The stream as it is. `largest`: bytes of the largest message that it may hold.
    pub(super) fn is(&mut self, info: &StreamInfo, largest: usize) {
        if self.created.as_ref() != Some(&info.created) {
            return;
        }
        self.fill.looks(info, largest as u64);
        let (first, last) = (info.first(), info.state.last_seq);
        match self.held.back_mut() {
            Some(held) if held.0 == first => held.1 = last,
            _ => self.held.push_back((first, last)),
        }
        if self.held.len() > BEGINNINGS {
            self.held.pop_front();
        }
    }

    #[cfg(test)]
    pub(super) fn holds(&self, last: u64) -> bool {
        self.held.back().is_some_and(|held| held.1 >= last)
    }

    /// A message was read.
    pub(super) fn read(&mut self, message: &Message) {
        let Some(position) = message.position else { return };
        let (seq, time) = (position.seq, message.time.as_micros() * 1000);
        self.last = Some((seq, time));
        if message.headers.get(LIFE).is_some_and(|life| life != ENDLESS) {
            self.mortal = Some(seq);
        }
        if !seq.is_multiple_of(self.stride.max(1)) {
            return;
        }
        if self.samples.len() >= SAMPLES {
            self.stride = self.stride.max(1) * 2;
            let stride = self.stride;
            self.samples.retain(|sample| sample.seq.is_multiple_of(stride));
        }
        self.samples.push(Sample { seq, time, subject: message.subject.to_string() });
    }

    /// A time, in nanoseconds, that nothing behind a sequence is older than.
    pub(super) fn time_at(&self, seq: u64, info: &StreamInfo) -> Option<u64> {
        let sampled = || self.samples.iter().rfind(|sample| sample.seq <= seq).map(|sample| sample.time);
        let last = self.last.filter(|(last, _)| *last <= seq).map(|(_, time)| time);
        last.or_else(sampled).filter(|_| self.created.as_ref() == Some(&info.created))
    }

    /// The stream's limits that may have taken what followed a sequence.
    pub(super) fn limits(&self, after: u64, info: &StreamInfo, largest: usize) -> Option<Limits> {
        let unseen = Fill::default();
        let fill = if self.created.as_ref() == Some(&info.created) { &self.fill } else { &unseen };
        fill.may_have_taken(after, info, largest as u64)
    }

    /// Whether what is gone may have come to the end of its life: messages of the stream have one, as far as they were seen, and
    /// where nothing is left, so had the last one.
    pub(super) fn may_have_expired(&self, info: &StreamInfo) -> bool {
        let of_last = |mortal| match self.last {
            Some((last, _)) if info.state.messages == 0 && last == info.state.last_seq => mortal == last,
            _ => true,
        };
        info.config.allow_msg_ttl && self.created.as_ref() == Some(&info.created) && self.mortal.is_some_and(of_last)
    }

    /// What to ask for, to know whether what followed `after` was purged by its subjects: these, up to a sequence that was there
    /// together with them. `None`: it cannot be known.
    fn question(&self, after: u64, info: &StreamInfo) -> Option<(Vec<String>, u64)> {
        let first = info.first();
        let same = self.created.as_ref() == Some(&info.created) && info.state.messages > 0;
        let (_, last) =
            self.held.iter().filter(|(from, to)| *from <= after + 1 && *to >= first).max_by_key(|(_, to)| *to).filter(|_| same)?;
        let gone = self.samples.iter().filter(|sample| sample.seq > after && sample.seq < first);
        let mut subjects: Vec<_> = gone.map(|sample| sample.subject.clone()).collect();
        subjects.sort_unstable();
        subjects.dedup();
        // A name that is written otherwise here than there could not be asked for.
        let plain = !subjects.is_empty() && subjects.len() <= ASKED && subjects.iter().all(|subject| !subject.contains('%'));
        plain.then_some((subjects, *last))
    }
}

/// Whether what followed `after` is gone because its subjects were purged, as far as that is known.
pub(super) async fn by_subject(
    known: &parking_lot::Mutex<Known>,
    line: &mut Line,
    stream: &str,
    info: &StreamInfo,
    after: u64,
    names: &Names,
) -> Result<bool, SourceError> {
    let question = known.lock().question(after, info);
    let Some((subjects, last)) = question else { return Ok(false) };
    for subject in subjects {
        // One that is left shows that its subject was not purged.
        match api::find(line, stream, info.first(), &[names.stored(&subject, info)]).await? {
            Some(api::Found::Message(stored)) if stored.seq > last => {}
            Some(api::Found::Nothing) => {}
            // Without the right to ask it cannot be known.
            Some(api::Found::Message(_) | api::Found::Unreadable(..)) | None => return Ok(false),
        }
    }
    Ok(true)
}

/// Whether what followed a place was purged, of a stream whose messages may replace all earlier ones of their subject: nothing
/// that is left has done so. Known only where little is left, and not where a newer message alone replaces older ones.
pub(super) async fn of_everything(line: &mut Line, stream: &str, info: &StreamInfo) -> Result<bool, SourceError> {
    let config = &info.config;
    if config.max_msgs_per_subject > 0 || info.state.messages > LOOKED {
        return Ok(false);
    }
    let mut next = info.first();
    while next <= info.state.last_seq {
        match api::find(line, stream, next, &[">".to_owned()]).await? {
            Some(api::Found::Message(stored)) if stored.headers.get(ROLLUP).is_none() => next = stored.seq + 1,
            Some(api::Found::Nothing) => break,
            // Without the right to ask it cannot be known.
            Some(api::Found::Message(_) | api::Found::Unreadable(..)) | None => return Ok(false),
        }
    }
    Ok(true)
}
