//! The configuration as a tree that remembers where each value stands.
//!
//! Owns nodes, places and key paths. Knows no key of the configuration, and prints no value.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

use serde::ser::{Serialize, SerializeMap as _, SerializeSeq as _, Serializer};

pub(crate) mod read;
pub(crate) mod yaml;

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// A file's path, or what else it is: `environment variable BROKERCAST__SERVER__LISTEN`.
    pub(crate) source: Arc<str>,
    /// Counted from one; `None` where there are no lines.
    pub(crate) line: Option<(u64, u64)>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        match self.line {
            Some((line, column)) => write!(f, ":{line}:{column}"),
            None => Ok(()),
        }
    }
}

/// A value and where it stands. Has no `Debug`: it may hold a secret.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    /// The text as it was written, where `kind` is only what it looks like: `0123`, or a variable's value.
    pub(crate) text: Option<Arc<str>>,
    pub(crate) place: Place,
    /// Whether something read a secret from it.
    pub(crate) secret: Cell<bool>,
}

#[derive(Clone)]
pub(crate) enum Kind {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(Arc<str>),
    /// With the index that each element was written at, which stays when another is taken out.
    List(Vec<(usize, Node)>),
    /// In the order written.
    Map(Vec<(String, Node)>),
}

/// One step of a key path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Key(String),
    Index(usize),
}

/// `sources.orders.nats.servers[0]`
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct KeyPath(pub(crate) Vec<Step>);

impl KeyPath {
    /// The path of the key `name` below this one.
    pub(crate) fn key(&self, name: &str) -> Self {
        let mut steps = self.0.clone();
        steps.push(Step::Key(name.to_owned()));
        Self(steps)
    }

    /// The path of what this one stands in.
    pub(crate) fn parent(&self) -> Option<Self> {
        let (_, steps) = self.0.split_last()?;
        Some(Self(steps.to_vec()))
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if at == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

impl Node {
    pub(crate) fn new(kind: Kind, place: Place) -> Self {
        Self { kind, text: None, place, secret: Cell::new(false) }
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(self.kind, Kind::Null)
    }

    pub(crate) fn child(&self, step: &Step) -> Option<&Node> {
        match (&self.kind, step) {
            (Kind::Map(entries), Step::Key(key)) => entries.iter().find(|(k, _)| k == key).map(|(_, node)| node),
            (Kind::List(items), Step::Index(index)) => items.iter().find(|(i, _)| i == index).map(|(_, node)| node),
            _ => None,
        }
    }

    fn child_mut(&mut self, step: &Step) -> Option<&mut Node> {
        match (&mut self.kind, step) {
            (Kind::Map(entries), Step::Key(key)) => entries.iter_mut().find(|(k, _)| k == key).map(|(_, node)| node),
            (Kind::List(items), Step::Index(index)) => items.iter_mut().find(|(i, _)| i == index).map(|(_, node)| node),
            _ => None,
        }
    }

    pub(crate) fn get(&self, path: &KeyPath) -> Option<&Node> {
        path.0.iter().try_fold(self, |node, step| node.child(step))
    }

    /// Takes out what stands at `path`.
    pub(crate) fn remove(&mut self, path: &KeyPath) -> Option<Node> {
        let (last, steps) = path.0.split_last()?;
        let node = steps.iter().try_fold(self, |node, step| node.child_mut(step))?;
        match (&mut node.kind, last) {
            (Kind::Map(entries), Step::Key(key)) => {
                let at = entries.iter().position(|(k, _)| k == key)?;
                Some(entries.remove(at).1)
            }
            (Kind::List(items), Step::Index(index)) => {
                let at = items.iter().position(|(i, _)| i == index)?;
                Some(items.remove(at).1)
            }
            _ => None,
        }
    }

    /// Puts `node` into the map at `parent`, under the last step of `path`.
    pub(crate) fn insert(&mut self, parent: &KeyPath, path: &KeyPath, node: Node) {
        let into = parent.0.iter().try_fold(self, |node, step| node.child_mut(step));
        if let (Some(Node { kind: Kind::Map(entries), .. }), Some(Step::Key(key))) = (into, path.0.last()) {
            entries.push((key.clone(), node));
        }
    }

    /// Takes out every key whose value is null: that is how a layer removes what an earlier one said.
    pub(crate) fn drop_nulls(&mut self) {
        match &mut self.kind {
            Kind::Map(entries) => {
                entries.retain(|(_, node)| !node.is_null());
                entries.iter_mut().for_each(|(_, node)| node.drop_nulls());
            }
            Kind::List(items) => items.iter_mut().for_each(|(_, node)| node.drop_nulls()),
            _ => {}
        }
    }

    /// The place of the value that a key path in text form is about, or of what it would stand in.
    pub(crate) fn locate(&self, path: &str) -> Option<&Place> {
        if path.is_empty() {
            return Some(&self.place);
        }
        match &self.kind {
            Kind::Map(entries) => first_key(entries, path).and_then(|(_, node, rest)| node.locate(rest.strip_prefix('.').unwrap_or(rest))),
            Kind::List(items) => first_index(path).and_then(|(index, rest)| {
                let (_, node) = items.iter().find(|(i, _)| *i == index)?;
                node.locate(rest.strip_prefix('.').unwrap_or(rest))
            }),
            _ => None,
        }
        .or(Some(&self.place))
    }

    /// A key path whose indices count what is left in lists, with the indices that were written.
    pub(crate) fn as_written(&self, path: &str) -> String {
        let found = match &self.kind {
            Kind::Map(entries) => first_key(entries, path).map(|(key, node, rest)| (key.to_owned(), node, rest)),
            Kind::List(items) => first_index(path).and_then(|(index, rest)| {
                let (written, node) = items.get(index)?;
                Some((format!("[{written}]"), node, rest))
            }),
            _ => None,
        };
        let Some((step, node, rest)) = found else { return path.to_owned() };
        match rest.strip_prefix('.') {
            Some(rest) => format!("{step}.{}", node.as_written(rest)),
            None => step + &node.as_written(rest),
        }
    }
}

/// The entry that a key path in text form begins with, and the rest of the path.
fn first_key<'n, 'p>(entries: &'n [(String, Node)], path: &'p str) -> Option<(&'n str, &'n Node, &'p str)> {
    // Names may hold dots (then they are a problem themselves): the longest that fits.
    let fits = |key: &str| path.strip_prefix(key).filter(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
    entries.iter().filter_map(|(key, node)| Some((key.as_str(), node, fits(key)?))).max_by_key(|found| found.0.len())
}

/// The index that a key path in text form begins with, and the rest of the path.
fn first_index(path: &str) -> Option<(usize, &str)> {
    let (index, rest) = path.strip_prefix('[')?.split_once(']')?;
    Some((index.parse().ok()?, rest))
}

/// What stands in the place of a secret.
pub(crate) const WITHHELD: &str = "(withheld)";

/// The tree as it may be shown: secrets withheld, also those in URLs and those that stand under a telling key.
pub(crate) struct Shown<'a>(pub(crate) &'a Node, pub(crate) &'a str);

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(node, name) = *self;
        let text = match &node.kind {
            Kind::Text(text) => Some(text),
            Kind::List(_) | Kind::Map(_) | Kind::Null => None,
            _ => node.text.as_ref(),
        };
        if is_address(name)
            && let Some(text) = text
        {
            // Without a scheme it is an address all the same.
            let shown = match text.rsplit_once('@') {
                Some((_, host)) if !text.contains("://") => format!("{WITHHELD}@{host}"),
                _ => withhold_userinfo(text),
            };
            return serializer.serialize_str(&shown);
        }
        if (node.secret.get() || is_secret(name)) && !node.is_null() {
            return serializer.serialize_str(WITHHELD);
        }
        match &node.kind {
            Kind::Null => serializer.serialize_unit(),
            Kind::Bool(truth) => serializer.serialize_bool(*truth),
            Kind::Int(number) => match i64::try_from(*number) {
                Ok(number) => serializer.serialize_i64(number),
                Err(_) => serializer.serialize_str(&number.to_string()),
            },
            Kind::Float(number) => serializer.serialize_f64(*number),
            Kind::Text(text) => serializer.serialize_str(&withhold_userinfo(text)),
            Kind::List(items) => {
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                for (_, item) in items {
                    list.serialize_element(&Shown(item, name))?;
                }
                list.end()
            }
            Kind::Map(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, value) in entries {
                    map.serialize_entry(key, &Shown(value, key))?;
                }
                map.end()
            }
        }
    }
}

/// Keys whose value is an address, even where it is read as a secret because it may hold one.
fn is_address(name: &str) -> bool {
    matches!(name, "url" | "urls" | "uri" | "servers" | "jwks_url" | "public_url")
}

/// Keys that name a secret whoever reads them.
fn is_secret(name: &str) -> bool {
    matches!(name, "secret" | "password" | "passphrase" | "token" | "nkey" | "seed" | "creds" | "credentials" | "private_key_pem")
}

/// A URL without what stands before its `@` and without its query: both may hold a secret.
pub(crate) fn withhold_userinfo(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (mut authority, mut tail) = rest.split_at(end);
    // A password may hold a `/` that nobody escaped; then its `@` stands in what looks like a path.
    if let Some(at) = rest.rfind('@') {
        authority = &rest[at..];
        let end = authority.find(['/', '?', '#']).unwrap_or(authority.len());
        (authority, tail) = authority.split_at(end);
        return format!("{scheme}://{WITHHELD}{authority}{}", without_query(tail));
    }
    format!("{scheme}://{authority}{}", without_query(tail))
}

/// A URL's path; of its query, the names of the parameters and the values that are plain settings.
fn without_query(tail: &str) -> String {
    let Some((path, query)) = tail.split_once('?') else { return tail.to_owned() };
    let kept = query.split('&').map(|pair| match pair.split_once('=') {
        Some((key, value)) if !value.chars().all(|c| c.is_ascii_digit()) => format!("{key}={WITHHELD}"),
        _ => pair.to_owned(),
    });
    format!("{path}?{}", kept.collect::<Vec<_>>().join("&"))
}
