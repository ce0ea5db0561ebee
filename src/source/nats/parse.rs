//! The NATS client protocol, from the server's side: bytes to operations.
//!
//! Pure. Bounds what a server may make us hold.

use bytes::{Buf as _, Bytes, BytesMut};

/// The longest line: an `INFO` of a large cluster.
const MAX_LINE: usize = 1 << 20;
/// The largest message. The server's own bound is 64 MiB.
const MAX_MESSAGE: usize = 65 << 20;

/// What a server says.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::source) enum Op {
    /// Its description, JSON.
    Info(Bytes),
    Message(Delivery),
    Ping,
    Pong,
    Ok,
    /// An error, without its quotes.
    Err(String),
}

/// A message as it came.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::source) struct Delivery {
    /// The subscription's number.
    pub(in crate::source) sid: u64,
    pub(in crate::source) subject: Bytes,
    /// Where an answer goes; empty: nowhere.
    pub(in crate::source) reply: Bytes,
    /// With their first line; empty: none.
    pub(in crate::source) headers: Bytes,
    pub(in crate::source) payload: Bytes,
}

/// Bytes that are not of this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server does not speak the NATS protocol: {0}")]
pub(super) struct ProtocolError(&'static str);

/// Takes the next whole operation off `input`; `None`: more bytes are needed.
pub(super) fn parse(input: &mut BytesMut) -> Result<Option<Op>, ProtocolError> {
    let Some(newline) = memchr::memchr(b'\n', input) else {
        return if input.len() > MAX_LINE { Err(ProtocolError("a line does not end")) } else { Ok(None) };
    };
    let line = input[..newline].strip_suffix(b"\r").unwrap_or(&input[..newline]);
    let (verb, rest) = line.split_at(line.iter().position(|b| matches!(b, b' ' | b'\t')).unwrap_or(line.len()));
    let is = |word: &[u8]| verb.eq_ignore_ascii_case(word);
    let op = if is(b"MSG") || is(b"HMSG") {
        return message(input, newline);
    } else if is(b"PING") {
        Op::Ping
    } else if is(b"PONG") {
        Op::Pong
    } else if is(b"+OK") {
        Op::Ok
    } else if is(b"INFO") {
        Op::Info(Bytes::copy_from_slice(rest.trim_ascii()))
    } else if is(b"-ERR") {
        let text = String::from_utf8_lossy(rest.trim_ascii());
        Op::Err(text.trim_matches('\'').chars().filter(|c| !c.is_control()).take(512).collect())
    } else {
        return Err(ProtocolError("an unknown operation"));
    };
    input.advance(newline + 1);
    Ok(Some(op))
}

/// `MSG subject sid [reply] bytes` or `HMSG subject sid [reply] header-bytes bytes`, then as many bytes and a line's end.
fn message(input: &mut BytesMut, newline: usize) -> Result<Option<Op>, ProtocolError> {
    const BAD: ProtocolError = ProtocolError("a message's line cannot be read");
    let line = &input[..newline];
    let mut words: [&[u8]; 6] = [&[]; 6];
    let mut count = 0;
    for word in line.split(|b| b.is_ascii_whitespace()).filter(|word| !word.is_empty()) {
        *words.get_mut(count).ok_or(BAD)? = word;
        count += 1;
    }
    let (reply, head, total): (&[u8], _, _) = match (words[0].len(), count) {
        (3, 4) => (b"", 0, number(words[3])),
        (3, 5) => (words[3], 0, number(words[4])),
        (4, 5) => (b"", number(words[3]).ok_or(BAD)?, number(words[4])),
        (4, 6) => (words[3], number(words[4]).ok_or(BAD)?, number(words[5])),
        _ => return Err(BAD),
    };
    let (Some(sid), Some(total)) = (number(words[2]), total) else { return Err(BAD) };
    let total = usize::try_from(total).ok().filter(|total| *total <= MAX_MESSAGE).ok_or(ProtocolError("a message is too large"))?;
    let head = usize::try_from(head).ok().filter(|head| *head <= total).ok_or(BAD)?;
    let start = newline + 1;
    let end = start + total;
    if input.len() < end + 2 {
        input.reserve(end + 2 - input.len());
        return Ok(None);
    }
    if &input[end..end + 2] != b"\r\n" {
        return Err(ProtocolError("a message does not end where it should"));
    }
    // Copies: a message that is kept must not keep the whole read buffer with it.
    let delivery = Delivery {
        sid,
        subject: Bytes::copy_from_slice(words[1]),
        reply: Bytes::copy_from_slice(reply),
        headers: Bytes::copy_from_slice(&input[start..start + head]),
        payload: Bytes::copy_from_slice(&input[start + head..end]),
    };
    input.advance(end + 2);
    Ok(Some(Op::Message(delivery)))
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    digits.iter().try_fold(0u64, |n, d| d.is_ascii_digit().then(|| n * 10 + u64::from(d - b'0')))
}
