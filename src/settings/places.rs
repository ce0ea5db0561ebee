//! Where each value was written, by its key path: for telling a person on which line a rule is.
//!
//! Holds no value.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::node::{Kind, Node};
use super::value::join;

/// The places of all values that count.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places(BTreeMap<String, Written>);

/// A place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    /// The file, or what else the value was read from: `environment variable BROKERCAST__AUTH__GRANTS`.
    pub(crate) file: Arc<str>,
    /// The line, counted from one; `None` where there are no lines.
    pub(crate) line: Option<u64>,
}

impl Places {
    pub(super) fn of(tree: &Node) -> Self {
        let mut places = BTreeMap::new();
        collect(tree, String::new(), &mut places);
        Self(places)
    }

    /// Where the value of a key path was written; `None`: nowhere, its default counts.
    pub(crate) fn at(&self, path: &str) -> Option<&Written> {
        self.0.get(path)
    }
}

fn collect(node: &Node, path: String, places: &mut BTreeMap<String, Written>) {
    match &node.kind {
        Kind::Map(entries) => entries.iter().for_each(|(name, node)| collect(node, join(&path, name), places)),
        Kind::List(items) => items.iter().enumerate().for_each(|(n, node)| collect(node, format!("{path}[{n}]"), places)),
        _ => {}
    }
    let written = Written { file: node.place.source.clone(), line: node.place.line.map(|(line, _)| line) };
    places.insert(path, written);
}
