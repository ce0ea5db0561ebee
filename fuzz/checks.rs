//! What must hold for any bytes from outside, one function for each reader. The fuzz targets call them with what libFuzzer
//! makes, `tests/fuzz` with the corpus and with random bytes.
//!
//! Knows of the program only what `internals` names. Where an answer can be checked, the check shares no code with the program.

use brokercast::internals::{
    Cursor, Encoder, Envelope, Event, Form, Kind, Message, Origin, Pattern, Point, Position, Subject, Timestamp, check_text, fit,
    read_announced, read_forwarded, read_query, read_sections, read_token,
};
use bytes::{Bytes, BytesMut};

#[path = "../tests/it/support/sse_parser.rs"]
#[allow(dead_code, unreachable_pub, reason = "the parser alone is used")]
mod sse_parser;

use sse_parser::{Item as Seen, Parser};

/// Panics for an input that it must not panic for.
pub(crate) type Check = fn(&[u8]);

/// All of them, by the names of their targets and of their folders in the corpus.
pub(crate) const ALL: [(&str, Check); 9] = [
    ("sse", sse),
    ("cursor", cursor),
    ("pattern", pattern),
    ("token", token),
    ("sections", sections),
    ("headers", headers),
    ("announced", announced),
    ("configuration", configuration),
    ("unpack", unpack),
];

/// Takes a part off: its length is in the first byte.
fn part<'a>(data: &mut &'a [u8]) -> &'a [u8] {
    let Some((length, rest)) = data.split_first() else { return &[] };
    let (part, rest) = rest.split_at(usize::from(*length).min(rest.len()));
    *data = rest;
    part
}

fn flag(data: &mut &[u8]) -> u8 {
    let Some((first, rest)) = data.split_first() else { return 0 };
    *data = rest;
    *first
}

/// An event of any payload, name, headers and envelope is one event to a parser of the standard, whatever else is in it.
pub(crate) fn sse(mut data: &[u8]) {
    let data = &mut data;
    let envelope = match flag(data) % 3 {
        0 => Envelope::Json,
        1 => Envelope::Raw,
        _ => Envelope::CloudEvents,
    };
    let subject = Subject::from_broker(part(data), &"empty".parse().expect("a subject"));
    let name = String::from_utf8_lossy(part(data)).into_owned();
    let (header, value) = (String::from_utf8_lossy(part(data)).into_owned(), String::from_utf8_lossy(part(data)).into_owned());
    let payload = Bytes::copy_from_slice(data);
    let mut message = Message::new(subject.clone(), payload.clone(), Timestamp::from_micros(1), None);
    message.headers.push(&header, &value);
    let named = !name.is_empty() && !name.contains(['\r', '\n', '\0']);
    let event = Event { envelope, name: named.then(|| name.as_str().into()), ..Event::of(message) };
    let encoded = Encoder::default().event(&mut BytesMut::new(), b"some-id", &event, Origin { source: "s", epoch: 1, seq: 1 });
    assert!(matches!(encoded.kind(), Kind::Event(_)));
    assert_eq!(encoded.subject(), Some(subject.as_str()));
    for form in [Form::Routed, Form::Json] {
        let (text, chunk) = (encoded.text(form), encoded.chunk(form));
        let framed = [format!("{:x}\r\n", text.len()).as_bytes(), &encoded.bytes()[text.clone()], b"\r\n"].concat();
        assert_eq!(&encoded.bytes()[chunk], framed);
        let mut parser = Parser::default();
        parser.feed(&encoded.bytes()[text]);
        // Another event follows: it must not become a part of this one.
        parser.feed(b"data: next\n\n");
        let seen: Vec<_> = parser.items.iter().collect();
        let [Seen::Event(first), Seen::Event(next)] = seen.as_slice() else { panic!("{seen:?}") };
        assert_eq!((first.id.as_str(), next.data.as_str()), ("some-id", "next"));
        // A byte order mark is left out at a stream's beginning only, so a name keeps its own.
        assert_eq!(first.name, if named && form == Form::Routed { name.as_str() } else { "message" });
        if form == Form::Json || envelope == Envelope::Json {
            assert_eq!(first.json()["subject"], subject.as_str());
        } else if envelope == Envelope::Raw
            && let Ok(text) = std::str::from_utf8(&payload)
        {
            assert_eq!(first.data, text.replace("\r\n", "\n").replace('\r', "\n"));
        }
    }
}

/// An id that is taken is the only one of its cursor, and no other text makes anything panic.
pub(crate) fn cursor(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(cursor) = Cursor::from_id(text)
    {
        let again = Cursor::from_id(&cursor.to_id()).expect("an id of ours");
        assert_eq!(cursor, again);
    }
    // What is written is read again.
    let mut rest = data;
    let number = |rest: &mut &[u8]| part(rest).iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    let mut cursor =
        Cursor { epoch: number(&mut rest) as u32, volatile: Point::At(Position::unverified(number(&mut rest))), durable: Vec::new() };
    for name in 0..flag(&mut rest) % 60 {
        let tag = brokercast::internals::Tag::of(&format!("source-{name}"));
        if cursor.durable.iter().all(|(of, _)| *of != tag) {
            cursor.durable.push((tag, Point::At(Position::unverified(number(&mut rest)))));
        }
    }
    assert_eq!(Cursor::from_id(&cursor.to_id()).expect("an id of ours"), cursor);
}

/// Whether a pattern matches, one token after the other.
fn matches(pattern: &[&str], subject: &[&str]) -> bool {
    match (pattern, subject) {
        ([">"], [_, ..]) => true,
        (["*", pattern @ ..], [_, subject @ ..]) => matches(pattern, subject),
        ([token, pattern @ ..], [other, subject @ ..]) => token == other && matches(pattern, subject),
        ([], []) => true,
        _ => false,
    }
}

/// Patterns match what a naive reader says, and what brokers say becomes a subject.
pub(crate) fn pattern(mut data: &[u8]) {
    let data = &mut data;
    let subject = Subject::from_broker(part(data), &"empty".parse().expect("a subject"));
    assert_eq!(subject.as_str().parse::<Subject>().as_ref(), Ok(&subject), "a subject that is none");
    let subjects: Vec<&str> = subject.as_str().split('.').collect();
    let texts = [part(data), part(data)].map(|text| String::from_utf8_lossy(text).into_owned());
    let patterns: Vec<Pattern> = texts.iter().filter_map(|text| text.parse().ok()).collect();
    for pattern in &patterns {
        let tokens: Vec<&str> = pattern.as_str().split('.').collect();
        assert_eq!(pattern.matches(subject.as_str()), matches(&tokens, &subjects), "{} {}", pattern.as_str(), subject.as_str());
        assert!(pattern.covered_by(std::slice::from_ref(pattern)) && pattern.covered_by(&[Pattern::all()]));
    }
    if let [one, other] = patterns.as_slice() {
        assert_eq!(one.intersects(other), other.intersects(one));
        if one.matches(subject.as_str()) {
            assert!(!other.matches(subject.as_str()) || one.intersects(other));
            assert!(other.matches(subject.as_str()) || !one.covered_by(std::slice::from_ref(other)));
        }
    }
}

/// A token is read or refused.
pub(crate) fn token(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        read_token(text).unwrap_or_default();
        // The same parts in base64, so that what is inside is reached.
        use base64::Engine as _;
        let encode = |part: &str| base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(part);
        let parts: Vec<_> = text.splitn(3, '\n').map(encode).collect();
        read_token(&parts.join(".")).unwrap_or_default();
    }
}

/// A body of AMQP 1.0 is read or refused, and takes no more memory than it could stand for.
pub(crate) fn sections(data: &[u8]) {
    if let Some(payload) = read_sections(data) {
        assert!(payload.len() <= 40 * data.len() + (128 << 10), "{} bytes of {}", payload.len(), data.len());
    }
}

/// Parameters, ids and forwarded addresses are read or refused, and only what a trusted proxy said is believed.
pub(crate) fn headers(mut data: &[u8]) {
    let data = &mut data;
    let (query, id) = (part(data), part(data));
    read_query(&String::from_utf8_lossy(query), id);
    let lines = [part(data), part(data)];
    let trusted = ["10.0.0.0/8".parse().expect("a network"), "fd00::/8".parse().expect("a network")];
    let stranger = std::net::IpAddr::from([192, 0, 2, 1]);
    assert_eq!(read_forwarded(stranger, &lines, &trusted), stranger);
    read_forwarded([10, 0, 0, 1].into(), &lines, &trusted);
}

/// A header of the PROXY protocol is read as a naive reader reads it, up to its last byte, or refused. What is well formed beyond doubt is
/// not refused.
pub(crate) fn announced(data: &[u8]) {
    let expected = announced_v2(data).or_else(|| announced_v1(data));
    match (read_announced(data), expected) {
        (Some((address, rest)), Some((expected, length, _))) => assert_eq!((address, rest.as_slice()), (expected, &data[length..])),
        (Some(read), None) => panic!("{read:?} was read of no header"),
        (None, Some((_, _, well_formed))) => assert!(!well_formed, "a header was refused"),
        (None, None) => {}
    }
}

/// The client's address, the header's length, and whether it must be taken.
type Announced = (Option<std::net::SocketAddr>, usize, bool);

/// Section 2.1 of the specification.
fn announced_v1(data: &[u8]) -> Option<Announced> {
    let end = data.iter().take(107).position(|byte| *byte == b'\n')?;
    let line = std::str::from_utf8(data[..end].strip_suffix(b"\r")?).ok()?;
    let fields: Vec<&str> = line.split(' ').collect();
    let (address, well_formed) = match fields[..] {
        ["PROXY", "UNKNOWN"] => (None, true),
        ["PROXY", "UNKNOWN", ..] => (None, false),
        ["PROXY", family @ ("TCP4" | "TCP6"), source, destination, port, other] => {
            let [source, destination] = [source, destination].map(|ip| ip.parse::<std::net::IpAddr>().ok());
            let (source, destination) = (source?, destination?);
            if source.is_ipv4() != (family == "TCP4") || destination.is_ipv4() != (family == "TCP4") {
                return None;
            }
            let plain = |port: &str| port == "0" || !port.starts_with(['0', '+']);
            let (number, _): (u16, u16) = (port.parse().ok()?, other.parse().ok()?);
            (Some((source.to_canonical(), number).into()), plain(port) && plain(other))
        }
        _ => return None,
    };
    Some((address, end + 1, well_formed))
}

/// Section 2.2 of the specification.
fn announced_v2(data: &[u8]) -> Option<Announced> {
    let rest = data.strip_prefix(b"\r\n\r\n\0\r\nQUIT\n")?;
    let [version, family, high, low, rest @ ..] = rest else { return None };
    let length = usize::from(*high) << 8 | usize::from(*low);
    let addresses = rest.get(..length).filter(|_| 16 + length <= 4096 && matches!(version, 0x20 | 0x21))?;
    let port = |at: usize| addresses.get(at..at + 2).map(|port| u16::from(port[0]) << 8 | u16::from(port[1]));
    let ip = |bytes: &[u8]| match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(std::net::IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(std::net::IpAddr::from),
    };
    let address = match (version, family >> 4) {
        (0x21, 1) => Some((ip(addresses.get(..4)?)?.to_canonical(), port(8).filter(|_| length >= 12)?).into()),
        (0x21, 2) => Some((ip(addresses.get(..16)?)?.to_canonical(), port(32).filter(|_| length >= 36)?).into()),
        _ => None,
    };
    let known = (1..=2).contains(&(family & 15)) && (address.is_some() || (*family >> 4 == 3 && length >= 216));
    Some((address, 16 + length, known || (*version == 0x20 && *family == 0)))
}

/// A configuration is taken, and printed as one that is YAML, or refused with at least one problem.
pub(crate) fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // It may name files: not those that never end.
    if text.contains("/dev") || text.contains("/proc") || text.contains("/sys") {
        return;
    }
    match check_text(text) {
        Ok(printed) => drop(serde_saphyr::from_str::<serde_json::Value>(&printed).expect("what is printed is YAML")),
        Err(refused) => assert!(!refused.to_string().is_empty()),
    }
}

/// A compressed payload is unpacked to at most the bound, or left as it came, or dropped.
pub(crate) fn unpack(mut data: &[u8]) {
    const MAX: usize = 1 << 16;
    let data = &mut data;
    let encoding = ["gzip", "zstd", "br"][usize::from(flag(data) % 3)];
    let mut message = Message::new("a".parse().expect("a subject"), Bytes::copy_from_slice(data), Timestamp::from_micros(1), None);
    message.headers.push("content-encoding", encoding);
    let mut items = [brokercast::internals::Item::Message(message)];
    let dropped = fit(&mut items, MAX).oversized;
    match &items[0] {
        brokercast::internals::Item::Message(message) => assert!(message.payload.len() <= MAX && dropped == 0),
        _ => assert_eq!(dropped, 1),
    }
}
