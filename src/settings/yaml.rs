//! YAML text to [`Node`]s, by serde-saphyr: strict booleans, every duplicate key found, no text in an error.

use std::fmt;
use std::sync::Arc;

use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::options::{DuplicateKeyPolicy, NonFiniteFloatPolicy};
use serde_saphyr::{Location, Spanned};

use super::Problem;
use super::node::{Kind, Node, Place};
use super::value::join;

/// Reads a document, which must be a map or nothing: a null. A key that is there twice is noted, and its first value taken. Each
/// duplicate becomes one of `problems`.
///
/// # Errors
/// When it is not valid YAML, more than one document, or not a map.
pub(super) fn parse(source: &Arc<str>, text: &str, problems: &mut Vec<Problem>) -> Result<Node, Problem> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut options = serde_saphyr::Options::default();
    options.with_snippet = false;
    options.strict_booleans = true;
    options.duplicate_keys = DuplicateKeyPolicy::PassThrough;
    options.non_finite_float_policy = NonFiniteFloatPolicy::PassThrough;
    options.reject_unsupported_tags = true;
    // Far more than any configuration needs.
    options.alias_limits.max_total_replayed_events = 10_000;
    let parsed: Parsed = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let place = error.location().map_or(Place { source: source.clone(), line: None }, |at| place(source, at));
        Problem { place: Some(place), path: String::new(), expected: describe(error.without_snippet()) }
    })?;
    let node = Builder { source, text, problems }.node(parsed.0, "");
    match node.kind {
        Kind::Map(_) | Kind::Null => Ok(node),
        _ => Err(Problem { place: Some(node.place), path: String::new(), expected: "must be a map of keys and values".to_owned() }),
    }
}

fn describe(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error as E;
    match error {
        E::MultipleDocuments { .. } => "must be a single YAML document".to_owned(),
        // The parser's own words: fixed texts, but for the one that quotes a character.
        E::ExternalMessage { msg, .. } if !msg.contains('`') && !msg.contains("character") => format!("is not valid YAML: {msg}"),
        E::ExternalMessage { .. } => "is not valid YAML: a character that is not allowed here (a text with it needs quotes)".to_owned(),
        E::UnknownAnchor { .. } => "is not valid YAML: an alias without its anchor".to_owned(),
        E::Budget { .. } => "is too large or nests too deep".to_owned(),
        E::InvalidUtf8Input => "must be UTF-8 text".to_owned(),
        _ => "is YAML that a configuration cannot use (an unknown tag, a key that is no text, or a broken value)".to_owned(),
    }
}

fn place(source: &Arc<str>, at: Location) -> Place {
    let line = (at != Location::UNKNOWN).then(|| (at.line(), at.column()));
    Place { source: source.clone(), line }
}

struct Parsed(Spanned<Shape>);

enum Shape {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Parsed>),
    Map(Vec<(Spanned<String>, Parsed)>),
}

impl<'de> Deserialize<'de> for Parsed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::deserialize(deserializer).map(Self)
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Shape;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_unit<E>(self) -> Result<Shape, E> {
                Ok(Shape::Null)
            }
            fn visit_none<E>(self) -> Result<Shape, E> {
                Ok(Shape::Null)
            }
            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Shape, D::Error> {
                deserializer.deserialize_any(Any)
            }
            fn visit_bool<E>(self, truth: bool) -> Result<Shape, E> {
                Ok(Shape::Bool(truth))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Shape, E> {
                Ok(Shape::Int(number.into()))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Shape, E> {
                Ok(Shape::Int(number.into()))
            }
            fn visit_i128<E>(self, number: i128) -> Result<Shape, E> {
                Ok(Shape::Int(number))
            }
            fn visit_u128<E: serde::de::Error>(self, number: u128) -> Result<Shape, E> {
                i128::try_from(number).map(Shape::Int).map_err(|_| E::custom("a smaller number"))
            }
            fn visit_f64<E>(self, number: f64) -> Result<Shape, E> {
                Ok(Shape::Float(number))
            }
            fn visit_str<E>(self, text: &str) -> Result<Shape, E> {
                Ok(Shape::Text(text.to_owned()))
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Shape, E> {
                std::str::from_utf8(bytes).map(|text| Shape::Text(text.to_owned())).map_err(|_| E::custom("a text"))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Shape::List(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                    if entries.len() > 100_000 {
                        return Err(A::Error::custom("fewer keys"));
                    }
                }
                Ok(Shape::Map(entries))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

struct Builder<'a> {
    source: &'a Arc<str>,
    text: &'a str,
    problems: &'a mut Vec<Problem>,
}

impl Builder<'_> {
    fn node(&mut self, parsed: Spanned<Shape>, path: &str) -> Node {
        let at = parsed.referenced;
        // What a number or a truth value was written as, for whoever wants a text: `0123` is a fine password.
        let written = || {
            let span = parsed.defined.span();
            let (from, len) = (usize::try_from(span.byte_offset()?).ok()?, usize::try_from(span.byte_len()?).ok()?);
            let text = self.text.get(from..from.checked_add(len)?)?.trim();
            (!text.is_empty() && !text.starts_with(['"', '\'', '!', '&', '*', '|', '>'])).then(|| Arc::from(text))
        };
        let (kind, text) = match parsed.value {
            Shape::Null => (Kind::Null, None),
            Shape::Bool(truth) => (Kind::Bool(truth), written().or_else(|| Some(truth.to_string().into()))),
            Shape::Int(number) => (Kind::Int(number), written().or_else(|| Some(number.to_string().into()))),
            Shape::Float(number) => (Kind::Float(number), written().or_else(|| Some(number.to_string().into()))),
            Shape::Text(text) => (Kind::Text(text.into()), None),
            Shape::List(items) => {
                let child = |(index, item): (usize, Parsed)| self.node(item.0, &format!("{path}[{index}]"));
                (Kind::List(items.into_iter().enumerate().map(child).collect()), None)
            }
            Shape::Map(parsed) => (Kind::Map(self.entries(parsed, path)), None),
        };
        Node { kind, text, place: place(self.source, at) }
    }

    fn entries(&mut self, parsed: Vec<(Spanned<String>, Parsed)>, path: &str) -> Vec<(String, Node)> {
        let mut entries: Vec<(String, Node)> = Vec::with_capacity(parsed.len());
        for (key, value) in parsed {
            if matches!(value.0.value, Shape::Null) && self.lacks_colon(&key) {
                // In braces `token:x` is all key, and of `a: x,y` the `y` is one: its text may be part of a secret.
                let place = Some(place(self.source, key.referenced));
                let (path, expected) = match key.value.contains(':') {
                    true => (join(path, &key.value), "must have a blank behind the colon"),
                    false => (path.to_owned(), "must have a colon and a value behind each key (a text with a comma needs quotes)"),
                };
                self.problems.push(Problem { place, path, expected: expected.to_owned() });
                continue;
            }
            let path = join(path, &key.value);
            let mut node = self.node(value.0, &path);
            // A key's line says more than its value's, which may begin further down.
            node.place = place(self.source, key.referenced);
            match entries.iter().find(|(k, _)| *k == key.value) {
                Some((_, first)) => {
                    let line = first.place.line.map(|(line, _)| format!(" (the first is on line {line})")).unwrap_or_default();
                    self.problems.push(Problem { place: Some(node.place), path, expected: format!("is there twice{line}") });
                }
                None => entries.push((key.value, node)),
            }
        }
        entries
    }

    /// Whether a key in braces ends without a colon: YAML takes it as one whose value is null.
    fn lacks_colon(&self, key: &Spanned<String>) -> bool {
        // What stands for a key elsewhere has no colon there.
        if key.referenced != key.defined {
            return false;
        }
        let span = key.defined.span();
        let end = span.byte_offset().zip(span.byte_len()).and_then(|(from, len)| usize::try_from(from.checked_add(len)?).ok());
        end.and_then(|end| self.text.get(end..)).is_some_and(|rest| rest.trim_start().starts_with([',', '}']))
    }
}
