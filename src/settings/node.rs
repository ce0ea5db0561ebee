//! The settings as a tree that remembers where each value was written.
//!
//! Owns nodes and places. Knows no key, and prints no value.

use std::fmt;
use std::sync::Arc;

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// A file's path, or what else it is: `environment variable BROKERCAST__SERVER__LISTEN`.
    pub(super) source: Arc<str>,
    /// Line and column, counted from one; `None` where there are no lines.
    pub(super) line: Option<(u64, u64)>,
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

/// A value and its place. Has no `Debug`: it may hold a secret. Equal nodes say the same, wherever they were written.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) kind: Kind,
    /// The text as it was written, where `kind` is only what it looks like: `0123`, or a variable's value.
    pub(super) text: Option<Arc<str>>,
    pub(super) place: Place,
}

impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind && self.text == other.text
    }
}

#[derive(Clone, PartialEq)]
pub(super) enum Kind {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(Arc<str>),
    List(Vec<Node>),
    /// In the order written.
    Map(Vec<(String, Node)>),
}

impl Node {
    pub(super) fn new(kind: Kind, place: Place) -> Self {
        Self { kind, text: None, place }
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self.kind, Kind::Null)
    }

    /// The keys and values of a map; of anything else, none.
    pub(super) fn entries(&self) -> &[(String, Node)] {
        match &self.kind {
            Kind::Map(entries) => entries,
            _ => &[],
        }
    }

    pub(super) fn child(&self, key: &str) -> Option<&Node> {
        self.entries().iter().find(|(name, _)| name == key).map(|(_, node)| node)
    }

    /// The text of a scalar, and of a variable whatever it looks like.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Text(text) => Some(text),
            _ => self.text.as_deref(),
        }
    }

    /// Takes out every key whose value is null: that is how a layer removes what an earlier one gave.
    pub(super) fn drop_nulls(&mut self) {
        match &mut self.kind {
            Kind::Map(entries) => {
                entries.retain(|(_, node)| !node.is_null());
                entries.iter_mut().for_each(|(_, node)| node.drop_nulls());
            }
            Kind::List(items) => items.iter_mut().for_each(Node::drop_nulls),
            _ => {}
        }
    }
}
