//! What a source hands in (`Message`) and what routing makes of it (`Event`).
//!
//! Pure. Knows subjects and positions, not where they come from or who gets them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::Serialize;

use crate::cursor::Position;
use crate::subject::Subject;
use crate::support::clock;
use crate::support::words::words;

mod headers;

pub use headers::Headers;

/// A moment in microseconds since 1970, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The present, by the system's clock.
    #[must_use]
    pub fn now() -> Self {
        clock::now().into()
    }

    /// From microseconds since 1970.
    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since 1970.
    #[must_use]
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0 / 1000
    }

    /// Appends the time as RFC 3339 with microseconds and `Z`. Every event has one: formatting it with `fmt` would cost as
    /// much as encoding the rest of a small event.
    pub fn write(self, out: &mut Vec<u8>) {
        let seconds = self.0 / 1_000_000;
        let days = seconds / 86_400;
        // Days to a date of the proleptic Gregorian calendar, counted in eras of 400 years from March.
        let z = days + 719_468;
        let (era, day_of_era) = (z / 146_097, z % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = (year_of_era + era * 400 + u64::from(month <= 2)) as u32;
        let (second, micro) = ((seconds - days * 86_400) as u32, (self.0 - seconds * 1_000_000) as u32);
        let mut text = *b"000000-00-00T00:00:00.000000Z";
        let mut put = |at: usize, two: u32| (text[at], text[at + 1]) = (b'0' + (two / 10) as u8, b'0' + (two % 10) as u8);
        put(0, year / 10_000);
        put(2, year / 100 % 100);
        put(4, year % 100);
        put(7, month as u32);
        put(10, day as u32);
        put(13, second / 3600);
        put(16, second / 60 % 60);
        put(19, second % 60);
        put(22, micro / 10_000);
        put(24, micro / 100 % 100);
        put(26, micro % 100);
        // A year has four digits, or as many as it needs.
        let more = match year {
            0..10_000 => 2,
            10_000..100_000 => 1,
            _ => 0,
        };
        out.extend_from_slice(&text[more..]);
    }

    /// The time this long after, at the latest the last that the type holds.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
    }

    /// The span since an `earlier` time; zero if that is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// The time this long before, at the earliest 1970.
    #[must_use]
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        // A clock before 1970 or after the year 586,912 counts as these bounds.
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }
}

/// RFC 3339 with microseconds and `Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::with_capacity(32);
        self.write(&mut text);
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

/// As [`fmt::Display`] writes it.
impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a source read: one message of its broker, normalised.
#[derive(Debug, Clone)]
pub struct Message {
    /// The broker's name for it, escaped if that is not a valid subject.
    pub subject: Subject,
    /// The bytes as they came; unpacked, where a header says that they are compressed.
    pub payload: Bytes,
    /// The broker's time of the message, or else the time of its receipt.
    pub time: Timestamp,
    /// Its position in the broker's log, if the source has a log.
    pub position: Option<Position>,
    /// What it carries beside the payload.
    pub headers: Headers,
    /// It says that what its subject names was deleted.
    pub deleted: bool,
}

impl Message {
    /// Without headers.
    #[must_use]
    pub fn new(subject: Subject, payload: Bytes, time: Timestamp, position: Option<Position>) -> Self {
        Self { subject, payload, time, position, headers: Headers::default(), deleted: false }
    }
}

/// How an event's `data` is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Envelope {
    /// `{"subject":…,"time":…,"data":…}`.
    #[default]
    Json,
    /// The payload itself, where it is text.
    Raw,
    /// CloudEvents 1.0, JSON event format.
    CloudEvents,
}

/// A message after routing.
#[derive(Debug, Clone)]
pub struct Event {
    /// The subject that clients, grants and patterns see.
    pub subject: Subject,
    /// The message's bytes.
    pub payload: Bytes,
    /// The message's time.
    pub time: Timestamp,
    /// The message's place in its log.
    pub position: Option<Position>,
    /// The SSE event name, where the route sets one.
    pub name: Option<Arc<str>>,
    /// How `data` is written.
    pub envelope: Envelope,
    /// What the message carried beside the payload.
    pub headers: Headers,
    /// Which of the headers the `json` envelope shows, under these names.
    pub shown: Option<Arc<[Box<str>]>>,
    /// What the subject names was deleted.
    pub deleted: bool,
}

impl Event {
    /// A message that no route changes.
    #[must_use]
    pub fn of(message: Message) -> Self {
        let Message { subject, payload, time, position, headers, deleted } = message;
        Self { subject, payload, time, position, name: None, envelope: Envelope::default(), headers, shown: None, deleted }
    }
}

words! {
    /// Why events of a source may be missing, as the control event says it.
    pub enum GapReason {
        /// The window or the broker had dropped them.
        Retention = "retention",
        /// A source without a log: events before this process started.
        Restart = "restart",
        /// The broker's log was recreated, purged or cut.
        Reset = "reset",
        /// This program or its client library could not keep up.
        Overflow = "overflow",
        /// The broker could not deliver messages, or they could not be read.
        Unreadable = "unreadable",
        /// A source without a log was not connected.
        Reconnect = "reconnect",
        /// A message was larger than `max_payload`.
        Oversized = "oversized",
        /// The client's cursor could not be read.
        UnknownCursor = "unknown_cursor",
    }
}

/// A hole in a source: events of it may be missing between `from` and `to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Why.
    pub reason: GapReason,
    /// The last position before the hole in the source's own terms, where known.
    pub from: Option<u64>,
    /// The first position after the hole, where known.
    pub to: Option<u64>,
    /// The position of a durable source's reader after the hole.
    pub position: Option<Position>,
}

impl Gap {
    /// Where nothing is known of what somebody has had before.
    pub const UNKNOWN: Self = Self { reason: GapReason::UnknownCursor, from: None, to: None, position: None };

    /// In place of a message that was too large.
    #[must_use]
    pub fn oversized(position: Option<Position>) -> Self {
        let seq = position.map(|position| position.seq);
        let (from, to) = (seq.and_then(|seq| seq.checked_sub(1)), seq.and_then(|seq| seq.checked_add(1)));
        Self { reason: GapReason::Oversized, from, to, position }
    }
}

/// The name of a source: a letter or digit, then letters, digits, `-` and `_`; at most 64 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceName(Arc<str>);

/// How the hub calls a source while it runs. A slot is used again, but with another generation: the key of a source that
/// was removed never means another one, also where that has the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceKey {
    slot: u32,
    generation: u32,
}

impl SourceKey {
    pub(crate) const fn new(slot: u32, generation: u32) -> Self {
        Self { slot, generation }
    }

    /// Its slot: less than the number of sources that there were at the same time.
    #[must_use]
    pub(crate) fn slot(self) -> usize {
        self.slot as usize
    }
}

/// A text that cannot name a source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to 64 letters, digits, `-` or `_`, the first a letter or digit")]
pub struct SourceNameError;

impl SourceName {
    /// The name's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SourceName {
    type Err = SourceNameError;
    fn from_str(text: &str) -> Result<Self, SourceNameError> {
        let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if text.is_empty() || text.len() > 64 || !text.chars().all(good) || text.starts_with(['-', '_']) {
            return Err(SourceNameError);
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339() {
        for text in [
            "1970-01-01T00:00:00.000000Z",
            "2000-02-29T23:59:59.999999Z",
            "2026-11-22T14:41:00.000001Z",
            "2100-03-01T00:00:00.5Z",
            "9998-12-31T23:59:59Z",
        ] {
            let expected: jiff::Timestamp = text.parse().expect("a time");
            let ours = Timestamp::from_micros(u64::try_from(expected.as_microsecond()).expect("after 1970"));
            assert_eq!(ours.to_string().parse::<jiff::Timestamp>().expect("RFC 3339"), expected, "{text}");
        }
        // Beyond what RFC 3339 knows: nothing is cut off.
        for (micros, text) in [
            (253_402_300_799_999_999, "9999-12-31T23:59:59.999999Z"),
            (253_402_300_800_000_000, "10000-01-01T00:00:00.000000Z"),
            (u64::MAX, "586524-01-19T08:01:49.551615Z"),
        ] {
            assert_eq!(Timestamp::from_micros(micros).to_string(), text);
        }
    }
}
