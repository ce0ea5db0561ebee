//! The SSE encoder: events, control events and heartbeats as bytes of `text/event-stream`
//! (HTML Living Standard, section 9.2), and the chunks of HTTP/1.1 around them (RFC 9112, section 7.1).
//!
//! Pure. Knows nothing of channels or sockets. It never writes a line end that the payload chose: a CR, LF or CRLF
//! in a payload becomes the border of two `data` lines, which a client reads back as LF.

use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use memchr::memchr2;
use serde_json::value::RawValue;

use crate::event::{Envelope, Event, Gap};
use crate::support::words::words;

mod cloud;
mod encoded;
#[cfg(test)]
mod tests;

use cloud::{Attribute, Cloud};
#[cfg(feature = "internals")]
pub use encoded::Kind;
pub(crate) use encoded::encode_heartbeat;
pub use encoded::{Encoded, Encoder};

/// Names of control events.
pub(crate) const GAP: &str = "brokercast.gap";
/// See [`GAP`].
pub(crate) const CLOSING: &str = "brokercast.closing";

/// Which of two encodings of an event a channel carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Form {
    /// As the route says.
    #[default]
    Routed,
    /// `envelope=json`: the json envelope for all, the event's name inside.
    Json,
}

words! {
    /// Why the server ends a stream on purpose, as the control event says it.
    pub(crate) enum Closing {
        /// The pool of subscribers is full.
        Busy = "busy",
        /// The server is going down.
        Draining = "draining",
        /// Somebody who runs the server has ended it.
        Ended = "ended",
        /// The token has run out.
        Expired = "expired",
        /// The token was taken back.
        Revoked = "revoked",
        /// The socket took nothing for too long.
        Slow = "slow",
        /// What is needed to answer is not there yet.
        Unavailable = "unavailable",
    }
}

/// What an event is called in a CloudEvents envelope.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// The source's name.
    pub source: &'a str,
    /// Of the process, for events without a position.
    pub epoch: u32,
    /// The bridge's sequence, likewise.
    pub seq: u64,
}

/// Whether the two forms of an event differ, so that both have to be made.
#[must_use]
pub(crate) fn forms_differ(event: &Event) -> bool {
    event.envelope != Envelope::Json || event.name.is_some()
}

/// How an event's payload is written in its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// JSON in an envelope, verbatim.
    Json,
    /// JSON in an envelope, over several `data` lines.
    JsonLines,
    /// Text in an envelope, as a JSON string.
    Text,
    /// Other bytes in an envelope, in base64.
    Base64,
    /// Text without an envelope, verbatim.
    Raw,
    /// Text without an envelope, over several `data` lines.
    RawLines,
    /// Not at all: what the subject names was deleted, or a CloudEvent has no data.
    Absent,
}

impl Payload {
    /// Bytes of the body behind the payload.
    pub(crate) fn behind(self) -> usize {
        match self {
            Self::Raw | Self::RawLines => b"\n\n".len(),
            Self::Json | Self::JsonLines | Self::Absent => b"}\n\n".len(),
            Self::Text | Self::Base64 => b"\"}\n\n".len(),
        }
    }
}

/// Appends all of an event but its `id` line: `event`, `data`, the blank line. Returns how the payload is written and
/// how many bytes that takes.
pub fn body(out: &mut Vec<u8>, event: &Event, form: Form, origin: Origin<'_>) -> (Payload, usize) {
    let (envelope, name) = match form {
        Form::Routed => (event.envelope, event.name.as_deref()),
        Form::Json => (Envelope::Json, None),
    };
    if let Some(name) = name {
        field(out, "event", name);
    }
    let (written, begin) = match envelope {
        Envelope::Raw => raw(out, event).unwrap_or_else(|| json(out, event, form)),
        Envelope::CloudEvents => match Cloud::of(event) {
            Some(Cloud::Structured) => lines(out, event),
            Some(Cloud::Binary(attributes)) => cloud_event(out, event, &attributes),
            None => new_cloud_event(out, event, origin),
        },
        Envelope::Json => json(out, event, form),
    };
    out.push(b'\n');
    (written, out.len() - written.behind() - begin)
}

/// The payload alone, where it is text.
fn raw(out: &mut Vec<u8>, event: &Event) -> Option<(Payload, usize)> {
    std::str::from_utf8(&event.payload).is_ok().then(|| lines(out, event))
}

fn lines(out: &mut Vec<u8>, event: &Event) -> (Payload, usize) {
    let begin = out.len() + DATA.len();
    data_lines(out, &event.payload);
    (if several(event) { Payload::RawLines } else { Payload::Raw }, begin)
}

fn json(out: &mut Vec<u8>, event: &Event, form: Form) -> (Payload, usize) {
    let start = begin_data(out);
    out.extend_from_slice(br#"{"subject":"#);
    string(out, event.subject.as_str());
    if form == Form::Json
        && let Some(name) = &event.name
    {
        out.extend_from_slice(br#","event":"#);
        string(out, name);
    }
    time(out, event);
    headers(out, event);
    data_or_deleted(out, event, start, &Data::of(&event.payload))
}

/// Appends the headers that the route wants and the message has.
fn headers(out: &mut Vec<u8>, event: &Event) {
    let Some(shown) = &event.shown else { return };
    let found = shown.iter().filter_map(|name| Some((name, event.headers.get(name)?)));
    for (n, (name, value)) in found.enumerate() {
        out.extend_from_slice(if n == 0 { br#","headers":{"# } else { b"," });
        string(out, name);
        out.push(b':');
        string(out, value);
    }
    if shown.iter().any(|name| event.headers.get(name).is_some()) {
        out.push(b'}');
    }
}

/// Makes a CloudEvent of what was none.
fn new_cloud_event(out: &mut Vec<u8>, event: &Event, origin: Origin<'_>) -> (Payload, usize) {
    let data = Data::of(&event.payload);
    let start = begin_data(out);
    out.extend_from_slice(br#"{"specversion":"1.0","id":""#);
    // Writing into a Vec cannot fail, here and below.
    match &event.position {
        Some(p) => write!(out, "{}{}", p.seq, p.check.map(|c| format!("-{c:x}")).unwrap_or_default()),
        None => write!(out, "{:08x}-{}", origin.epoch, origin.seq),
    }
    .unwrap_or_default();
    out.extend_from_slice(br#"","source":"/brokercast/"#);
    out.extend_from_slice(origin.source.as_bytes());
    out.extend_from_slice(br#"","type":"#);
    string(out, event.name.as_deref().unwrap_or(event.subject.as_str()));
    subject_and_time(out, event);
    if !event.deleted {
        let kind = match data {
            Data::Json(_) => "application/json",
            Data::Text(_) => "text/plain",
            Data::Binary(_) => "application/octet-stream",
        };
        write!(out, r#","datacontenttype":"{kind}""#).unwrap_or_default();
    }
    data_or_deleted(out, event, start, &data)
}

/// A CloudEvent whose attributes were headers.
fn cloud_event(out: &mut Vec<u8>, event: &Event, attributes: &[Attribute<'_>]) -> (Payload, usize) {
    let start = begin_data(out);
    cloud::attributes(out, attributes);
    let kind = cloud::content_type(event);
    if let Some(kind) = kind {
        out.extend_from_slice(br#","datacontenttype":"#);
        string(out, kind);
    }
    if event.payload.is_empty() && !event.deleted {
        return without_data(out, start);
    }
    // What is said not to be JSON is none, though it may look so.
    let is_json = kind.is_none_or(|kind| {
        let kind = kind.split(';').next().unwrap_or_default().trim_end();
        kind.ends_with("/json") || kind.ends_with("+json")
    });
    data_or_deleted(out, event, start, &if is_json { Data::of(&event.payload) } else { Data::other(&event.payload) })
}

/// Ends a JSON object with the payload, or with the word that there is none any more.
fn data_or_deleted(out: &mut Vec<u8>, event: &Event, start: usize, data: &Data<'_>) -> (Payload, usize) {
    if event.deleted {
        out.extend_from_slice(br#","deleted":true"#);
        return without_data(out, start);
    }
    let several = several(event);
    let written = data.write(out, several);
    end_data(out, start, several);
    written
}

fn without_data(out: &mut Vec<u8>, start: usize) -> (Payload, usize) {
    let begin = out.len();
    out.push(b'}');
    end_data(out, start, false);
    (Payload::Absent, begin)
}

/// Whether the payload has line ends.
fn several(event: &Event) -> bool {
    memchr2(b'\n', b'\r', &event.payload).is_some()
}

fn subject_and_time(out: &mut Vec<u8>, event: &Event) {
    out.extend_from_slice(br#","subject":"#);
    string(out, event.subject.as_str());
    time(out, event);
}

fn time(out: &mut Vec<u8>, event: &Event) {
    out.extend_from_slice(br#","time":""#);
    event.time.write(out);
    out.push(b'"');
}

/// What the bytes of a payload are.
enum Data<'a> {
    Json(&'a str),
    Text(&'a str),
    Binary(&'a [u8]),
}

impl<'a> Data<'a> {
    fn of(payload: &'a [u8]) -> Self {
        // What cannot begin a JSON value (RFC 8259, section 3) is not worth an error's making.
        let first = payload.iter().find(|b| !matches!(b, b' ' | b'\t' | b'\n' | b'\r'));
        if !first.is_some_and(|b| matches!(b, b'{' | b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n')) {
            return Self::other(payload);
        }
        serde_json::from_slice::<&RawValue>(payload).map_or_else(|_| Self::other(payload), |json| Self::Json(json.get()))
    }

    /// Of bytes that are no JSON.
    fn other(payload: &'a [u8]) -> Self {
        std::str::from_utf8(payload).map_or(Self::Binary(payload), Self::Text)
    }

    /// Appends `,"data":…}`. Returns how the payload is written, and where it begins.
    fn write(&self, out: &mut Vec<u8>, several: bool) -> (Payload, usize) {
        let written = match self {
            Self::Json(json) => {
                out.extend_from_slice(br#","data":"#);
                let begin = out.len();
                out.extend_from_slice(json.as_bytes());
                // Only JSON brings line ends: a string escapes them.
                (if several { Payload::JsonLines } else { Payload::Json }, begin)
            }
            Self::Text(text) => {
                out.extend_from_slice(br#","data":"#);
                let begin = out.len() + 1;
                string(out, text);
                (Payload::Text, begin)
            }
            Self::Binary(bytes) => {
                out.extend_from_slice(br#","data_base64":""#);
                let at = out.len();
                out.resize(at + base64::encoded_len(bytes.len(), true).unwrap_or_default(), 0);
                // The slice is exactly as long as the encoding.
                STANDARD.encode_slice(bytes, &mut out[at..]).unwrap_or_default();
                out.push(b'"');
                (Payload::Base64, at)
            }
        };
        out.push(b'}');
        written
    }
}

/// Appends a JSON string (RFC 8259, section 7).
fn string(out: &mut Vec<u8>, text: &str) {
    // The library looks at one byte at a time. Most texts need no escape, which is seen at many bytes at once.
    if text.bytes().fold(false, |found, b| found | matches!(b, 0..0x20 | b'"' | b'\\')) {
        serde_json::to_writer(out, text).unwrap_or_default();
    } else {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    }
}

const DATA: &[u8] = b"data: ";

fn begin_data(out: &mut Vec<u8>) -> usize {
    out.extend_from_slice(DATA);
    out.len()
}

/// Ends what [`begin_data`] began; `several` where the payload has line ends.
fn end_data(out: &mut Vec<u8>, start: usize, several: bool) {
    if several {
        let text = out.split_off(start);
        out.truncate(start - DATA.len());
        data_lines(out, &text);
    } else {
        out.push(b'\n');
    }
}

/// Appends `text` as `data` lines, one for each of its lines.
pub(crate) fn data_lines(out: &mut Vec<u8>, text: &[u8]) {
    let mut rest = text;
    loop {
        out.extend_from_slice(DATA);
        let Some(at) = memchr2(b'\n', b'\r', rest) else {
            out.extend_from_slice(rest);
            out.push(b'\n');
            return;
        };
        out.extend_from_slice(&rest[..at]);
        out.push(b'\n');
        rest = if rest[at..].starts_with(b"\r\n") { &rest[at + 2..] } else { &rest[at + 1..] };
    }
}

/// One line; a line end in `value` ends it there.
fn field(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(one_line(value).as_bytes());
    out.push(b'\n');
}

/// A field's value up to its first line end or NUL.
fn one_line(value: &str) -> &str {
    value.split(['\n', '\r', '\0']).next().unwrap_or_default()
}

/// Appends an `id` line.
pub(crate) fn id_line(out: &mut Vec<u8>, id: &[u8]) {
    out.extend_from_slice(b"id: ");
    out.extend_from_slice(id);
    out.push(b'\n');
}

/// Appends all of a gap but its `id` line. `source` is `*` for all of them.
pub(crate) fn gap(out: &mut Vec<u8>, source: &str, gap: &Gap) {
    field(out, "event", GAP);
    let number = |n: Option<u64>| n.map_or_else(|| "null".to_owned(), |n| format!("\"{n}\""));
    write!(
        out,
        "data: {{\"source\":\"{source}\",\"reason\":\"{}\",\"from\":{},\"to\":{}}}\n\n",
        gap.reason.as_str(),
        number(gap.from),
        number(gap.to)
    )
    .unwrap_or_default();
}

/// Appends all of a closing but its `id` line.
pub(crate) fn closing(out: &mut Vec<u8>, reason: Closing) {
    field(out, "event", CLOSING);
    write!(out, "data: {{\"reason\":\"{}\"}}\n\n", reason.as_str()).unwrap_or_default();
}

/// Appends another reconnection time, in milliseconds: a field of the event that follows.
pub(crate) fn retry(out: &mut Vec<u8>, retry: std::time::Duration) {
    writeln!(out, "retry: {}", retry.as_millis()).unwrap_or_default();
}

/// Appends what every stream begins with: a comment, `retry` in milliseconds, and where the client stands.
pub(crate) fn opening(out: &mut Vec<u8>, retry: std::time::Duration, id: Option<&[u8]>) {
    write!(out, ": brokercast\nretry: {}\n", retry.as_millis()).unwrap_or_default();
    if let Some(id) = id {
        id_line(out, id);
    }
    out.push(b'\n');
}

/// Appends a heartbeat: a comment and, where the cursor has moved, its `id`.
pub(crate) fn heartbeat(out: &mut Vec<u8>, id: Option<&[u8]>) {
    out.extend_from_slice(b":\n");
    if let Some(id) = id {
        id_line(out, id);
    }
    out.push(b'\n');
}

/// Appends the line that begins an HTTP/1.1 chunk of `len` bytes; [`CHUNK_END`] ends it.
pub(crate) fn chunk_head(out: &mut impl bytes::BufMut, len: usize) {
    let mut digits = [0; 18];
    let mut at = digits.len() - 2;
    digits[at..].copy_from_slice(b"\r\n");
    let mut rest = len;
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdef"[rest & 15];
        rest >>= 4;
        if rest == 0 {
            break;
        }
    }
    out.put_slice(&digits[at..]);
}

/// Bytes of a chunk of HTTP/1.1 beside its `len` bytes.
#[must_use]
pub(crate) fn chunk_overhead(len: usize) -> usize {
    len.max(1).ilog(16) as usize + 1 + 2 * CHUNK_END.len()
}

/// Behind every chunk.
pub(crate) const CHUNK_END: &[u8] = b"\r\n";
/// The chunk that ends a body.
pub(crate) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
