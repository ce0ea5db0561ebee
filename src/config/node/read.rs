//! Nodes to typed values by serde, with every problem found, not only the first, and no value in any of them.
//!
//! Serde stops at its first error. So what is at fault is noted and taken out of the tree, and the tree is read again,
//! until it can be read: each round takes something out, so it ends.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error as _, Expected, IntoDeserializer as _, MapAccess, SeqAccess};
use serde::de::{Unexpected, VariantAccess, Visitor};

use super::{KeyPath, Kind, Node, Place, Step};
use crate::config::value::SECRET;

/// A problem found while reading, with the place of what it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Misread {
    pub(crate) place: Place,
    pub(crate) path: KeyPath,
    pub(crate) expected: String,
    /// What was done about it, for whoever goes on with the rest.
    pub(crate) done: Done,
}

/// What was done about a value that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Done {
    /// It is as if it had not been written; nobody expected it.
    Ignored,
    /// What stands here was taken out, though something is expected.
    Taken(KeyPath),
    /// Something that can be read stands in its place.
    Stood,
}

impl Misread {
    /// Whether what is said of `path` afterwards only follows from this.
    pub(crate) fn explains(&self, path: &str) -> bool {
        let below = |outer: &KeyPath| {
            let outer = outer.to_string();
            path.strip_prefix(&outer).is_some_and(|rest| rest.is_empty() || outer.is_empty() || rest.starts_with(['.', '[']))
        };
        match &self.done {
            Done::Ignored => false,
            Done::Stood => below(&self.path),
            Done::Taken(taken) => {
                let parent = taken.parent().unwrap_or_default();
                below(taken) || parent.to_string() == path
            }
        }
    }
}

/// What stands in for a missing value, tried one after the other until one can be read.
fn stand_in(trial: usize, place: &Place) -> Option<Node> {
    let kind = match trial {
        0 => Kind::Text("x".into()),
        1 => Kind::List(Vec::new()),
        2 => Kind::Map(Vec::new()),
        3 => Kind::Int(1),
        4 => Kind::Bool(true),
        _ => return None,
    };
    Some(Node::new(kind, place.clone()))
}

/// Reads a `T`, taking out of `root` what cannot be read, and putting something in where a value is missing, so that
/// the rest can still be checked. `None` only where not even an empty map would do.
pub(crate) fn extract<T: serde::de::DeserializeOwned>(root: &mut Node, misread: &mut Vec<Misread>) -> Option<T> {
    let mut trials: Vec<(KeyPath, usize)> = Vec::new();
    loop {
        let error = match T::deserialize(Reader { node: root, secret: false }) {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        let mut steps = error.path;
        steps.reverse();
        let path = KeyPath(steps);
        let place = root.locate(&path.to_string()).unwrap_or(&root.place).clone();
        // What stands in is at fault: the next one, or else without all that it stands in.
        if let Some((stood, trial)) = trials.iter_mut().find(|(stood, _)| path.0.starts_with(&stood.0)) {
            *trial += 1;
            root.remove(stood);
            match (stand_in(*trial, &place), stood.parent()) {
                (Some(node), Some(parent)) => root.insert(&parent, stood, node),
                (_, parent) => {
                    let parent = parent.unwrap_or_default();
                    for earlier in misread.iter_mut().filter(|m| m.path == *stood) {
                        earlier.done = Done::Taken(parent.clone());
                    }
                    root.remove(&parent)?;
                }
            }
            continue;
        }
        if trials.len() + misread.len() > 10_000 {
            return None;
        }
        let (blamed, expected, done) = match error.what {
            What::Unknown(names) => (path.clone(), unknown(names), Done::Ignored),
            What::Wrong(expected) => (path.clone(), expected, Done::Taken(path.clone())),
            What::Missing(name) => (path.key(name), "is missing".to_owned(), Done::Stood),
        };
        match misread.iter_mut().find(|m| m.path == blamed) {
            // It was there, and was taken out: that has been said already.
            Some(earlier) => earlier.done = done.clone(),
            None => misread.push(Misread { place: place.clone(), path: blamed.clone(), expected, done: done.clone() }),
        }
        let seen = trials.iter().all(|(stood, _)| *stood != blamed);
        if done == Done::Stood && seen {
            root.insert(&path, &blamed, stand_in(0, &place)?);
            trials.push((blamed, 0));
        } else {
            // Also where something stands in and is not seen: nothing more can be made of what it stands in.
            root.remove(&path)?;
        }
    }
}

fn unknown(names: &[&str]) -> String {
    match names {
        [] => "is no known key: there are none here".to_owned(),
        names => format!("is no known key (known: {})", names.join(", ")),
    }
}

/// Why a value cannot be read: no part of it is in here.
#[derive(Debug)]
struct ReadError {
    /// From the inside out.
    path: Vec<Step>,
    what: What,
}

#[derive(Debug)]
enum What {
    Unknown(&'static [&'static str]),
    Missing(&'static str),
    Wrong(String),
}

impl ReadError {
    fn at(mut self, step: Step) -> Self {
        self.path.push(step);
        self
    }

    fn wrong(expected: impl Into<String>) -> Self {
        Self { path: Vec::new(), what: What::Wrong(expected.into()) }
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot be read")
    }
}

impl std::error::Error for ReadError {}

impl serde::de::Error for ReadError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::wrong(message.to_string())
    }
    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::wrong(format!("must be {}", words(&expected.to_string())))
    }
    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::wrong(format!("must be {}", words(&expected.to_string())))
    }
    fn invalid_length(_: usize, expected: &dyn Expected) -> Self {
        Self::wrong(format!("must be {}", words(&expected.to_string())))
    }
    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        Self::wrong(format!("must be one of {}", expected.join(", ")))
    }
    fn unknown_field(_: &str, expected: &'static [&'static str]) -> Self {
        Self { path: Vec::new(), what: What::Unknown(expected) }
    }
    fn missing_field(field: &'static str) -> Self {
        Self { path: Vec::new(), what: What::Missing(field) }
    }
}

/// serde's word for a type in a user's words.
fn words(expected: &str) -> String {
    match expected {
        "a boolean" => "true or false".to_owned(),
        "a string" | "a str" | "a borrowed string" | "a character" | "path string" => "a text".to_owned(),
        "a sequence" => "a list such as [a, b]".to_owned(),
        "a map" => "a map of keys and values".to_owned(),
        "u8" => "a whole number from 0 to 255".to_owned(),
        "u16" => "a whole number from 0 to 65535".to_owned(),
        "u32" => "a whole number from 0 to 4294967295".to_owned(),
        "u64" | "usize" => "a whole number, 0 or more".to_owned(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a nonzero u8" | "a nonzero u16" | "a nonzero u32" | "a nonzero u64" | "a nonzero usize" => "a whole number, 1 or more".to_owned(),
        text if text.starts_with("struct ") => "a map of keys and values".to_owned(),
        text if text.starts_with("enum ") || text.starts_with("variant ") => "one of the known words".to_owned(),
        text => text.to_owned(),
    }
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    node: &'a Node,
    /// A secret is read: whatever it looks like is its text.
    secret: bool,
}

impl<'a> Reader<'a> {
    fn of(node: &'a Node) -> Self {
        Self { node, secret: false }
    }

    /// The text of a scalar, or of a variable whatever it looks like.
    fn text(&self) -> Option<&'a str> {
        match &self.node.kind {
            Kind::Text(text) => Some(text),
            _ => self.node.text.as_deref(),
        }
    }
}

impl<'de> Deserializer<'de> for Reader<'de> {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        if self.secret {
            return self.deserialize_str(visitor);
        }
        match &self.node.kind {
            Kind::Null => visitor.visit_unit(),
            Kind::Bool(truth) => visitor.visit_bool(*truth),
            Kind::Int(number) => match (u64::try_from(*number), i64::try_from(*number)) {
                (Ok(number), _) => visitor.visit_u64(number),
                (_, Ok(number)) => visitor.visit_i64(number),
                _ => Err(ReadError::invalid_type(Unexpected::Other("number"), &visitor)),
            },
            Kind::Float(number) => visitor.visit_f64(*number),
            Kind::Text(text) => visitor.visit_str(text),
            Kind::List(items) => visitor.visit_seq(Items(items.iter())),
            Kind::Map(entries) => visitor.visit_map(Entries { entries: entries.iter(), value: None }),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.text() {
            Some(text) => visitor.visit_str(text),
            None => Err(ReadError::invalid_type(Unexpected::Other("value"), &visitor)),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        if self.node.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, ReadError> {
        let secret = name == SECRET;
        if secret {
            self.node.secret.set(true);
        }
        visitor.visit_newtype_struct(Self { secret, ..self })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.node.kind {
            Kind::Map(_) if !self.secret => self.deserialize_any(visitor),
            _ => Err(ReadError::wrong("must be a map of keys and values")),
        }
    }

    /// A map only: serde would take a list too, by the order of the fields.
    fn deserialize_struct<V: Visitor<'de>>(self, _: &'static str, _: &'static [&'static str], visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        match (&self.node.kind, self.text()) {
            (Kind::Map(entries), _) => match entries.as_slice() {
                [(name, node)] => visitor.visit_enum(Tagged { name, node }),
                _ => Err(ReadError::unknown_variant("", variants)),
            },
            (_, Some(text)) => {
                let text: StrDeserializer<'_, ReadError> = text.into_deserializer();
                visitor.visit_enum(text)
            }
            _ => Err(ReadError::unknown_variant("", variants)),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 bytes byte_buf unit unit_struct seq tuple tuple_struct ignored_any
    }
}

struct Items<'a>(std::slice::Iter<'a, (usize, Node)>);

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ReadError> {
        let Some((index, node)) = self.0.next() else { return Ok(None) };
        seed.deserialize(Reader::of(node)).map(Some).map_err(|e| e.at(Step::Index(*index)))
    }
}

struct Entries<'a> {
    entries: std::slice::Iter<'a, (String, Node)>,
    value: Option<&'a (String, Node)>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = ReadError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ReadError> {
        self.value = self.entries.next();
        let Some((key, _)) = self.value else { return Ok(None) };
        let text: StrDeserializer<'_, ReadError> = key.as_str().into_deserializer();
        seed.deserialize(text).map(Some).map_err(|e| e.at(Step::Key(key.clone())))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ReadError> {
        let Some((key, node)) = self.value else { return Err(ReadError::wrong("must be a map of keys and values")) };
        seed.deserialize(Reader::of(node)).map_err(|e| e.at(Step::Key(key.clone())))
    }
}

struct Tagged<'a> {
    name: &'a str,
    node: &'a Node,
}

impl<'de> EnumAccess<'de> for Tagged<'de> {
    type Error = ReadError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), ReadError> {
        let name: StrDeserializer<'_, ReadError> = self.name.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Tagged<'de> {
    type Error = ReadError;

    fn unit_variant(self) -> Result<(), ReadError> {
        if self.node.is_null() { Ok(()) } else { Err(ReadError::wrong("must be empty").at(Step::Key(self.name.to_owned()))) }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, ReadError> {
        seed.deserialize(Reader::of(self.node)).map_err(|e| e.at(Step::Key(self.name.to_owned())))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, ReadError> {
        Reader::of(self.node).deserialize_any(visitor).map_err(|e| e.at(Step::Key(self.name.to_owned())))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], visitor: V) -> Result<V::Value, ReadError> {
        self.tuple_variant(0, visitor)
    }
}
