//! CloudEvents that a broker's publisher sent, recognised so that they are passed on as what they are.
//!
//! Structured: the payload is the whole event as JSON. Binary: headers hold the attributes and the payload is the data; the content
//! type tells one from the other (CloudEvents 1.0, bindings of NATS and AMQP, section 3). The headers are called `ce-…` by the
//! bindings of NATS and HTTP, where values are percent-encoded, and `cloudEvents:…` or `cloudEvents_…` by that of AMQP. Pure.

use std::borrow::Cow;
use std::collections::HashSet;

use memchr::memmem;
use serde_json::value::RawValue;

use super::string;
use crate::event::Event;

/// An event that was a CloudEvent when it came.
pub(super) enum Cloud<'a> {
    /// The payload is all of it.
    Structured,
    /// All attributes but `datacontenttype`.
    Binary(Vec<Attribute<'a>>),
}

/// An attribute of a CloudEvent.
pub(super) struct Attribute<'a> {
    name: String,
    value: Cow<'a, str>,
    /// Its value is an integer or a truth value, which JSON has too (CloudEvents 1.0, JSON event format, section 2.2).
    literal: bool,
}

/// What every CloudEvent has, in the order in which it is written.
const REQUIRED: [&str; 4] = ["specversion", "id", "source", "type"];

impl<'a> Cloud<'a> {
    pub(super) fn of(event: &'a Event) -> Option<Self> {
        // What has the attributes in its headers is only the data, whatever that looks like.
        if !is_said_structured(event)
            && let Some(attributes) = in_headers(event)
        {
            return Some(Self::Binary(attributes));
        }
        is_structured(&event.payload).then_some(Self::Structured)
    }
}

/// What the payload is, as a header of NATS or a property of AMQP says.
pub(super) fn content_type(event: &Event) -> Option<&str> {
    event.headers.get("content-type").or_else(|| event.headers.get("content_type"))
}

/// Whether the content type says that the payload is the whole event.
fn is_said_structured(event: &Event) -> bool {
    content_type(event).and_then(|kind| kind.get(..CONTENT_TYPE.len())).is_some_and(|kind| kind.eq_ignore_ascii_case(CONTENT_TYPE))
}

const CONTENT_TYPE: &str = "application/cloudevents";

/// The other attributes that are text or times, whatever their publisher wrote.
const TEXTS: [&str; 3] = ["dataschema", "subject", "time"];

/// All attributes but `datacontenttype`, if there are all that a CloudEvent must have.
fn in_headers(event: &Event) -> Option<Vec<Attribute<'_>>> {
    let mut found: Vec<Attribute<'_>> = Vec::new();
    let mut names = HashSet::new();
    for (name, value, literal) in event.headers.typed() {
        let Some((name, value)) = attribute(name, value) else { continue };
        if names.insert(name.clone()) {
            let literal = literal && !REQUIRED.contains(&&*name) && !TEXTS.contains(&&*name);
            found.push(Attribute { name, value, literal });
        }
    }
    let has = |name: &str| found.iter().any(|known| known.name == name && !known.value.is_empty());
    if !REQUIRED.iter().all(|name| has(name)) || !found.iter().any(|a| a.name == "specversion" && a.value.starts_with("1.")) {
        return None;
    }
    found.sort_by_key(|a| REQUIRED.iter().position(|required| *required == a.name).unwrap_or(REQUIRED.len()));
    Some(found)
}

/// Begins the JSON object with the attributes.
pub(super) fn attributes(out: &mut Vec<u8>, attributes: &[Attribute<'_>]) {
    for (n, Attribute { name, value, literal }) in attributes.iter().enumerate() {
        out.push(if n == 0 { b'{' } else { b',' });
        string(out, name);
        out.push(b':');
        if *literal {
            out.extend_from_slice(value.as_bytes());
        } else {
            string(out, value);
        }
    }
}

/// An attribute's name and value, of a header that is one.
fn attribute<'a>(name: &str, value: &'a str) -> Option<(String, Cow<'a, str>)> {
    let after = |prefix: &str| name.get(..prefix.len()).filter(|p| p.eq_ignore_ascii_case(prefix)).map(|p| &name[p.len()..]);
    let (attribute, encoded) = match (after("ce-"), after("cloudEvents:").or_else(|| after("cloudEvents_"))) {
        (Some(name), _) => (name, true),
        (None, name) => (name?, false),
    };
    let attribute = attribute.to_ascii_lowercase();
    let good = !attribute.is_empty() && attribute.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if !good || matches!(&*attribute, "data" | "datacontenttype") {
        return None;
    }
    let decoded = || percent_encoding::percent_decode_str(value).decode_utf8().unwrap_or(Cow::Borrowed(value));
    Some((attribute, if encoded { decoded() } else { Cow::Borrowed(value) }))
}

/// Whether a payload is a CloudEvent. Publishers to brokers seldom say so in a content type.
fn is_structured(payload: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Required<'a> {
        specversion: Cow<'a, str>,
        id: Cow<'a, str>,
        source: Cow<'a, str>,
        r#type: Cow<'a, str>,
        #[serde(borrow, default)]
        data: Option<&'a RawValue>,
        #[serde(default)]
        data_base64: Option<Cow<'a, str>>,
    }
    // Most JSON is none, and reading it would take as long as writing the rest of the event. A name may be written with escapes.
    let has_escapes = || memchr::memchr_iter(b'\\', payload).any(|at| payload.get(at + 1) == Some(&b'u'));
    if memmem::find(payload, b"specversion").is_none() && !has_escapes() {
        return false;
    }
    serde_json::from_slice::<Required<'_>>(payload).is_ok_and(|event| {
        let named = [&event.id, &event.source, &event.r#type].iter().all(|text| !text.is_empty());
        named && event.specversion.starts_with("1.") && !(event.data.is_some() && event.data_base64.is_some())
    })
}
