//! An encoded event: all its parts over one shared block of bytes.
//!
//! Owns the layout of the block; only this room and the transports know it. The framed event lies in one piece, in each
//! form, so that a transport sends it without copying. Knows neither windows nor channels.
//!
//! ```text
//! subject | length CRLF  id: ID LF  body  CRLF | the same in the json form, where the forms differ
//! ```
//!
//! The length line and the last CRLF make it a chunk of HTTP/1.1 (RFC 9112, section 7.1).

use std::borrow::Cow;
use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut as _, Bytes, BytesMut};

use super::{CHUNK_END, Form, Origin, Payload, body, chunk_head, forms_differ, gap, heartbeat};
use crate::event::{Event, Gap};

/// Bytes of a block that the events of one source share. One allocation for each event would cost more than writing it.
const BLOCK: usize = 16 << 10;
/// Bytes that a length line takes at most, with the CRLF behind the chunk.
const CHUNK_OVERHEAD: usize = 20;
const ID: &[u8] = b"id: ";

/// What was encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An event; its payload is written this way in the routed form.
    Event(Payload),
    /// A control event: events may be missing here.
    Gap,
    /// A comment, with the bridge's cursor where that has moved.
    Heartbeat,
}

/// An event, a gap or a heartbeat, encoded once for all who get it.
#[derive(Debug, Clone)]
pub struct Encoded {
    bytes: Bytes,
    /// Where the routed form's body begins, behind the `id` line.
    body: u32,
    /// Where the routed form's chunk ends and, where the forms differ, the json form's chunk begins.
    split: u32,
    /// Where the json form's body begins.
    json_body: u32,
    /// Bytes of the payload as it is written in the routed form.
    payload: u32,
    subject: u16,
    id: u16,
    name: u16,
    kind: Kind,
}

#[cfg_attr(not(feature = "internals"), expect(dead_code, reason = "for framings to come"))]
impl Encoded {
    /// What it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether it is an event: neither a gap nor a heartbeat.
    #[must_use]
    pub fn is_event(&self) -> bool {
        matches!(self.kind, Kind::Event(_))
    }

    /// The subject, as routing gave it: of an event, or of the one that is missing here. `None`: a gap in all of a source.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        // Made of a `Subject`, which is UTF-8.
        self.subject_bytes().map(|subject| std::str::from_utf8(subject).unwrap_or_default())
    }

    /// [`Self::subject`], as it lies there.
    pub(crate) fn subject_bytes(&self) -> Option<&[u8]> {
        // Made of a `Subject`, which is never empty.
        (self.subject > 0).then(|| &self.bytes[..usize::from(self.subject)])
    }

    /// The id that is true for a client that is live; a heartbeat may have none.
    #[must_use]
    pub fn id(&self) -> Option<&[u8]> {
        self.id_range(Form::Routed).map(|range| &self.bytes[range])
    }

    /// The SSE event name, where a route sets one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        let at = self.body as usize + b"event: ".len();
        (self.name > 0).then(|| std::str::from_utf8(&self.bytes[at..at + usize::from(self.name)]).unwrap_or_default())
    }

    /// An event's payload. Borrowed where it is written verbatim, else decoded: line ends of JSON and of raw text over
    /// several lines are LF.
    #[must_use]
    pub fn payload(&self) -> Option<Cow<'_, [u8]>> {
        let Kind::Event(payload) = self.kind else { return None };
        let end = self.split as usize - CHUNK_END.len() - payload.behind();
        let written = &self.bytes[end - self.payload as usize..end];
        Some(match payload {
            Payload::Json | Payload::Raw | Payload::Absent => written.into(),
            Payload::JsonLines | Payload::RawLines => String::from_utf8_lossy(written).replace("\ndata: ", "\n").into_bytes().into(),
            Payload::Text => {
                let quoted = &self.bytes[end - self.payload as usize - 1..=end];
                serde_json::from_slice::<String>(quoted).unwrap_or_default().into_bytes().into()
            }
            Payload::Base64 => STANDARD.decode(written).unwrap_or_default().into(),
        })
    }

    /// Where all but the `id` line lies in [`Self::bytes`]: what a client gets whose id differs from the bridge's.
    #[must_use]
    pub fn body(&self, form: Form) -> Range<usize> {
        let start = if self.second(form) { self.json_body } else { self.body };
        start as usize..self.chunk(form).end - CHUNK_END.len()
    }

    /// Where its chunk of HTTP/1.1 lies in [`Self::bytes`].
    #[must_use]
    pub fn chunk(&self, form: Form) -> Range<usize> {
        if self.second(form) { self.split as usize..self.bytes.len() } else { usize::from(self.subject)..self.split as usize }
    }

    /// Where its text lies in [`Self::bytes`]: the `id` line and the body.
    #[must_use]
    pub fn text(&self, form: Form) -> Range<usize> {
        let chunk = self.chunk(form);
        let body = if self.second(form) { self.json_body } else { self.body };
        let id_line = if self.kind == Kind::Heartbeat { 0 } else { ID.len() + usize::from(self.id) + 1 };
        body as usize - id_line..chunk.end - CHUNK_END.len()
    }

    /// Where its id lies in [`Self::bytes`].
    #[must_use]
    pub fn id_range(&self, form: Form) -> Option<Range<usize>> {
        // A heartbeat's id stands behind its comment.
        let before = if self.kind == Kind::Heartbeat { b":\n".len() + ID.len() } else { ID.len() };
        let start = self.text(form).start + before;
        (self.id > 0).then(|| start..start + usize::from(self.id))
    }

    /// The block.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Whether the second form is another one, and asked for.
    fn second(&self, form: Form) -> bool {
        form == Form::Json && self.bytes.len() > self.split as usize
    }
}

/// Encodes events, with scratch memory that is used again.
#[derive(Debug, Default)]
pub struct Encoder {
    bodies: [Vec<u8>; 2],
}

impl Encoder {
    /// Encodes an event with this id. `block` is what is left of its source's block.
    pub fn event(&mut self, block: &mut BytesMut, id: &[u8], event: &Event, origin: Origin<'_>) -> Encoded {
        let [routed, json] = &mut self.bodies;
        routed.clear();
        let (payload, length) = body(routed, event, Form::Routed, origin);
        let forms = if forms_differ(event) {
            json.clear();
            body(json, event, Form::Json, origin);
            2
        } else {
            1
        };
        let mut encoded = lay_out(block, event.subject.as_str(), id, &self.bodies[..forms], Kind::Event(payload));
        encoded.payload = length as u32;
        encoded.name = event.name.as_deref().map_or(0, |name| super::one_line(name).len() as u16);
        encoded
    }

    /// Encodes a gap of a source with this id, for both forms. It is of this subject only, or of all.
    pub fn gap(&mut self, block: &mut BytesMut, id: &[u8], source: &str, subject: Option<&str>, lost: &Gap) -> Encoded {
        let [text, _] = &mut self.bodies;
        text.clear();
        gap(text, source, lost);
        lay_out(block, subject.unwrap_or_default(), id, &self.bodies[..1], Kind::Gap)
    }
}

/// Encodes a heartbeat, with the bridge's cursor where that has moved.
#[must_use]
pub(crate) fn encode_heartbeat(id: Option<&[u8]>) -> Encoded {
    let mut text = Vec::new();
    heartbeat(&mut text, id);
    let mut block = BytesMut::with_capacity(text.len() + CHUNK_OVERHEAD);
    chunk_head(&mut block, text.len());
    let body = block.len() as u32;
    block.extend_from_slice(&text);
    block.extend_from_slice(CHUNK_END);
    let split = block.len() as u32;
    let id = id.map_or(0, |id| id.len() as u16);
    Encoded { bytes: block.freeze(), body, split, json_body: 0, payload: 0, subject: 0, id, name: 0, kind: Kind::Heartbeat }
}

/// Writes a block's next event.
fn lay_out(block: &mut BytesMut, subject: &str, id: &[u8], forms: &[Vec<u8>], kind: Kind) -> Encoded {
    let id_length = ID.len() + id.len() + 1;
    let length = subject.len() + forms.iter().map(|body| body.len() + id_length + CHUNK_OVERHEAD).sum::<usize>();
    if block.capacity() < length {
        *block = BytesMut::with_capacity(BLOCK.max(length));
    }
    block.extend_from_slice(subject.as_bytes());
    let (mut bodies, mut split) = ([0, 0], 0);
    for (form, body) in forms.iter().enumerate() {
        chunk_head(block, id_length + body.len());
        block.extend_from_slice(ID);
        block.extend_from_slice(id);
        block.put_u8(b'\n');
        bodies[form] = block.len() as u32;
        block.extend_from_slice(body);
        block.extend_from_slice(CHUNK_END);
        if form == 0 {
            split = block.len() as u32;
        }
    }
    let [body, json_body] = bodies;
    let (subject, id) = (subject.len() as u16, id.len() as u16);
    Encoded { bytes: block.split().freeze(), body, split, json_body, payload: 0, subject, id, name: 0, kind }
}
