//! Frames as they come from the broker, made safe for the library that reads them.
//!
//! Pure: bytes in, bytes out, of the same length. RabbitMQ passes routing keys and properties on as publishers sent them. The
//! library takes a name that is not UTF-8 as the end of the connection, and descends into nested header tables as deep
//! as they go, so that one message could stop a source for good. Here such a key is replaced and kept aside
//! ([`OddKeys`]), other such names are overwritten, and nested headers, which are never read, become plain bytes. A header of the
//! broker's own that a publisher has sent too is overwritten likewise.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::flow::Flow;
use super::queue::{OFFSET, TIME};

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
/// Type, channel and size before a frame's payload.
const HEAD: usize = 7;
/// A frame of methods or properties that claims to be larger is nothing the broker sends.
const MAX_WHOLE: usize = 4 << 20;

/// The broker's own headers that are read.
const BROKERS: [&str; 2] = [OFFSET, TIME];

type ChannelAndTag = (u16, u64);

/// Routing keys that are not UTF-8, until their message is taken.
#[derive(Debug, Default)]
pub(in crate::source) struct OddKeys(Mutex<HashMap<ChannelAndTag, Box<[u8]>>>);

impl OddKeys {
    /// The key of a delivery, where it was replaced.
    pub(in crate::source) fn take(&self, channel: u16, tag: u64) -> Option<Box<[u8]>> {
        let mut keys = self.0.lock();
        if keys.is_empty() { None } else { keys.remove(&(channel, tag)) }
    }

    fn forget(&self, channel: u16) {
        self.0.lock().retain(|(other, _), _| *other != channel);
    }
}

/// Where in the bytes the next frame begins, and what of them may be handed out.
#[derive(Debug, Default)]
pub(in crate::source) struct Scrub {
    /// Bytes at the buffer's start that are ready.
    ready: usize,
    /// Bytes of a body frame still to come.
    body: usize,
    /// The message of the metered channel that is coming: its size, and what of it is still to come.
    message: Option<(u64, u64)>,
    /// No frames any more (a protocol header, or nonsense): the library decides.
    foreign: bool,
}

impl Scrub {
    /// How many bytes at the start of the buffer may be taken.
    pub(in crate::source) fn ready(&self) -> usize {
        self.ready
    }

    /// Says that so many of them were taken out of the buffer.
    pub(in crate::source) fn took(&mut self, n: usize) {
        self.ready -= n;
    }

    /// Looks at what has come in: all bytes that were not taken yet.
    pub(in crate::source) fn advance(&mut self, bytes: &mut [u8], odd: &OddKeys, flow: &Flow) {
        loop {
            if self.foreign {
                self.ready = bytes.len();
                return;
            }
            let pass = self.body.min(bytes.len() - self.ready);
            self.ready += pass;
            self.body -= pass;
            if self.body > 0 {
                return;
            }
            if let Some((size, _)) = self.message.take_if(|(_, left)| *left == 0) {
                flow.came(size);
            }
            let rest = &mut bytes[self.ready..];
            if rest.len() < HEAD {
                return;
            }
            let kind = rest[0];
            let channel = u16::from_be_bytes([rest[1], rest[2]]);
            let size = u32::from_be_bytes([rest[3], rest[4], rest[5], rest[6]]) as usize;
            match kind {
                METHOD | HEADER if size <= MAX_WHOLE => {
                    let Some(payload) = rest.get_mut(HEAD..HEAD + size) else { return };
                    if kind == HEADER && flow.meters(channel) {
                        self.message = body_size(payload).map(|size| (size, size));
                    }
                    // What does not look as expected is left to the library.
                    if kind == METHOD { method(channel, payload, odd) } else { header(payload) }.unwrap_or_default();
                }
                BODY => {
                    if let Some((_, left)) = self.message.as_mut().filter(|_| flow.meters(channel)) {
                        *left = left.saturating_sub(size as u64);
                    }
                }
                HEARTBEAT => {}
                _ => {
                    self.foreign = true;
                    continue;
                }
            }
            self.body = HEAD + size + 1;
        }
    }
}

fn body_size(header: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(header.get(4..12)?.try_into().ok()?))
}

/// Walks over a payload.
struct Walk<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Walk<'_> {
    fn skip(&mut self, n: usize) -> Option<()> {
        self.at = self.at.checked_add(n).filter(|at| *at <= self.bytes.len())?;
        Some(())
    }

    fn number(&mut self, n: usize) -> Option<u64> {
        let from = self.at;
        self.skip(n)?;
        Some(self.bytes[from..self.at].iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// A short string; one that is not UTF-8 is overwritten, and what it was is returned.
    fn short(&mut self) -> Option<Option<Box<[u8]>>> {
        let n = usize::try_from(self.number(1)?).ok()?;
        let from = self.at;
        self.skip(n)?;
        let text = &mut self.bytes[from..self.at];
        if std::str::from_utf8(text).is_ok() {
            return Some(None);
        }
        let was = text.into();
        text.fill(b'?');
        Some(Some(was))
    }

    /// A table: names made clean, nested values made bytes.
    ///
    /// Of equal names the library takes the last, but the broker only replaces the first.
    fn table(&mut self) -> Option<()> {
        let n = usize::try_from(self.number(4)?).ok()?;
        let end = self.at.checked_add(n).filter(|end| *end <= self.bytes.len())?;
        let mut seen = [false; BROKERS.len()];
        while self.at < end {
            let name = self.at + 1;
            self.short()?;
            let name = &mut self.bytes[name..self.at];
            let own = BROKERS.iter().position(|own| own.as_bytes() == name);
            if own.is_some_and(|own| std::mem::replace(&mut seen[own], true)) {
                name.fill(b'?');
            }
            let kind = self.at;
            self.skip(1)?;
            let size = match self.bytes[kind] {
                b't' | b'b' | b'B' => 1,
                b's' | b'u' | b'U' => 2,
                b'I' | b'i' | b'f' => 4,
                b'D' => 5,
                b'l' | b'L' | b'd' | b'T' => 8,
                b'V' => 0,
                b'S' | b'x' => usize::try_from(self.number(4)?).ok()?,
                b'F' | b'A' => {
                    self.bytes[kind] = b'x';
                    usize::try_from(self.number(4)?).ok()?
                }
                _ => return None,
            };
            self.skip(size)?;
        }
        Some(())
    }
}

fn method(channel: u16, payload: &mut [u8], odd: &OddKeys) -> Option<()> {
    let mut walk = Walk { bytes: payload, at: 0 };
    match (walk.number(2)?, walk.number(2)?) {
        // channel.open-ok: the number is used anew.
        (20, 11) => odd.forget(channel),
        // basic.deliver
        (60, 60) => {
            walk.short()?;
            let tag = walk.number(8)?;
            walk.skip(1)?;
            walk.short()?;
            if let Some(key) = walk.short()? {
                odd.0.lock().insert((channel, tag), key);
            }
        }
        _ => {}
    }
    Some(())
}

fn header(payload: &mut [u8]) -> Option<()> {
    let mut walk = Walk { bytes: payload, at: 0 };
    // Class, weight, body size.
    walk.skip(12)?;
    let flags = walk.number(2)?;
    for bit in (2..16).rev() {
        if flags & (1 << bit) == 0 {
            continue;
        }
        match bit {
            13 => walk.table()?,
            12 | 11 => walk.skip(1)?,
            6 => walk.skip(8)?,
            _ => {
                walk.short()?;
            }
        }
    }
    Some(())
}
