//! Cursors: one client's position in every source, as the text of an SSE `id`.
//!
//! Pure. Knows positions and bytes. What a position means, only its source knows.
//!
//! ```text
//! version 1 | epoch 4 | volatile point | (tag 2, durable point)* | checksum 2      base64url, no padding
//! point: one byte (kind << 4 | length of the number), number (big-endian, no leading zeros), check 3 where verified
//! ```
//!
//! With seven durable sources whose sequences fit six bytes that is at most 128 characters. More
//! sources make longer ids; nothing is left out of them.

use std::fmt;
use std::hash::Hasher as _;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fnv::FnvHasher;

#[cfg(test)]
mod tests;

const VERSION: u8 = 1;
/// The longest id that is read, in bytes.
pub(crate) const MAX_ID: usize = 1024;

/// A position in a source's own log: the sequence or offset of a message, and a short check of that message. The check
/// distinguishes a log that was recreated with the same numbers from the old log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Sequence (JetStream) or offset (RabbitMQ streams).
    pub seq: u64,
    /// 24 bits computed from the message; `None` if no message was seen at this position.
    pub check: Option<Check>,
}

impl Position {
    /// A position at which no message was seen.
    #[must_use]
    pub fn unverified(seq: u64) -> Self {
        Self { seq, check: None }
    }

    /// Whether both can be the same position of the same log.
    #[must_use]
    pub fn agrees(&self, other: &Position) -> bool {
        self.seq == other.seq && (self.check == other.check || self.check.is_none() || other.check.is_none())
    }
}

/// 24 bits computed from a message.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Check(u32);

impl Check {
    /// Computes the check from those parts of a message that are the same for every reader.
    #[must_use]
    pub fn of(parts: &[&[u8]]) -> Self {
        // Word by word: payloads can be large, and every message is hashed. The result is the same on every machine.
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        let mix = |hash: u64, word: u64| (hash.rotate_left(23) ^ word).wrapping_mul(ODD);
        let mut hash = 0xcbf2_9ce4_8422_2325;
        for part in parts {
            hash = mix(hash, part.len() as u64);
            let (words, rest) = part.as_chunks::<8>();
            hash = words.iter().fold(hash, |hash, word| mix(hash, u64::from_le_bytes(*word)));
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            hash = mix(hash, u64::from_le_bytes(last));
        }
        // Mixes every input bit into every bit of the check (the finalizer of MurmurHash3).
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        Self((hash >> 40) as u32)
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06x}", self.0)
    }
}

impl fmt::LowerHex for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06x}", self.0)
    }
}

/// FNV-1a with 64 bits, folded to 16: the same on every machine and in every version, unlike the standard library's hash.
fn fnv16(bytes: &[u8]) -> u16 {
    let mut fnv = FnvHasher::default();
    fnv.write(bytes);
    let hash = fnv.finish();
    (hash ^ (hash >> 16) ^ (hash >> 32) ^ (hash >> 48)) as u16
}

/// A durable source's name inside a cursor: 16 bits of a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(u16);

impl Tag {
    /// The tag of a source's name.
    #[must_use]
    pub fn of(source: &str) -> Self {
        Self(fnv16(source.as_bytes()))
    }
}

/// A client's position in one source, or where it wants to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// It has everything up to and including this position.
    At(Position),
    /// It wants everything that the source still holds (`since=all`).
    Earliest,
    /// It wants everything from this time on, in milliseconds since 1970 (`since=10m`).
    Since(u64),
    /// It wants the newest event of each subject (`since=last`).
    Last,
}

impl Point {
    fn kind(&self) -> (u8, u64) {
        match self {
            Point::At(Position { seq, check: Some(_) }) => (0, *seq),
            Point::At(Position { seq, check: None }) => (1, *seq),
            Point::Earliest => (2, 0),
            Point::Since(t) => (3, *t),
            Point::Last => (4, 0),
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let (kind, number) = self.kind();
        let bytes = number.to_be_bytes();
        let skip = (number.leading_zeros() / 8) as usize;
        out.push(kind << 4 | (8 - skip) as u8);
        out.extend_from_slice(&bytes[skip..]);
        if let Point::At(Position { check: Some(Check(c)), .. }) = self {
            out.extend_from_slice(&c.to_be_bytes()[1..]);
        }
    }

    fn decode(bytes: &mut &[u8]) -> Option<Self> {
        let head = take(bytes, 1)?[0];
        let digits = take(bytes, usize::from(head & 15))?;
        if digits.len() > 8 || digits.first() == Some(&0) {
            return None;
        }
        let number = digits.iter().fold(0, |n, d| n << 8 | u64::from(*d));
        match (head >> 4, number) {
            (0, seq) => {
                let c = take(bytes, 3)?;
                Some(Point::At(Position { seq, check: Some(Check(u32::from_be_bytes([0, c[0], c[1], c[2]]))) }))
            }
            (1, seq) => Some(Point::At(Position::unverified(seq))),
            (2, 0) => Some(Point::Earliest),
            (3, t) => Some(Point::Since(t)),
            (4, 0) => Some(Point::Last),
            _ => None,
        }
    }
}

fn take<'a>(bytes: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(n)?;
    *bytes = rest;
    Some(head)
}

/// A client's position in the log of each durable source, and one position in the bridge's own order for all other
/// (volatile) sources together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The process that numbered the events of the volatile sources.
    pub epoch: u32,
    /// The position in the volatile sources, by the bridge's sequence. Its `check` is never set.
    pub volatile: Point,
    /// The position in each durable source. A source that is missing here starts with new events.
    pub durable: Vec<(Tag, Point)>,
}

/// A text that is not a cursor of this program: foreign, cut or damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a valid event id")]
pub struct CursorError;

impl Cursor {
    /// Appends the id's text to `out`, using `scratch` for the bytes before their encoding.
    pub fn encode(&self, scratch: &mut Vec<u8>, out: &mut Vec<u8>) {
        scratch.clear();
        scratch.push(VERSION);
        scratch.extend_from_slice(&self.epoch.to_be_bytes());
        self.volatile.encode(scratch);
        for (tag, point) in &self.durable {
            scratch.extend_from_slice(&tag.0.to_be_bytes());
            point.encode(scratch);
        }
        let sum = fnv16(scratch);
        scratch.extend_from_slice(&sum.to_be_bytes());
        let at = out.len();
        let n = base64::encoded_len(scratch.len(), false).unwrap_or_default();
        out.resize(at + n, 0);
        // The slice is exactly as long as the encoding.
        let written = URL_SAFE_NO_PAD.encode_slice(&*scratch, &mut out[at..]).unwrap_or_default();
        debug_assert_eq!(written, n);
    }

    /// The id's text.
    #[must_use]
    pub fn to_id(&self) -> String {
        let mut out = Vec::new();
        self.encode(&mut Vec::new(), &mut out);
        String::from_utf8(out).unwrap_or_default()
    }

    /// Reads an id.
    ///
    /// # Errors
    /// If the text is not a cursor of this program, or was cut or changed on the way.
    pub fn from_id(id: &str) -> Result<Self, CursorError> {
        if id.len() > MAX_ID {
            return Err(CursorError);
        }
        let all = URL_SAFE_NO_PAD.decode(id).map_err(|_| CursorError)?;
        let (body, sum) = all.split_last_chunk::<2>().ok_or(CursorError)?;
        if fnv16(body).to_be_bytes() != *sum {
            return Err(CursorError);
        }
        Self::read(body).ok_or(CursorError)
    }

    fn read(mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        if take(bytes, 1)? != [VERSION] {
            return None;
        }
        let epoch = u32::from_be_bytes(take(bytes, 4)?.try_into().ok()?);
        let volatile = Point::decode(bytes)?;
        let mut durable: Vec<(Tag, Point)> = Vec::new();
        while !bytes.is_empty() {
            let tag = Tag(u16::from_be_bytes(take(bytes, 2)?.try_into().ok()?));
            let point = Point::decode(bytes)?;
            if durable.iter().any(|(t, _)| *t == tag) {
                return None;
            }
            durable.push((tag, point));
        }
        Some(Self { epoch, volatile, durable })
    }
}
