//! The settings as they count in the end: what `check` prints, secrets withheld.
//!
//! Each key's value is recorded here as a room takes it. So the same tree also says which keys exist.

use std::cell::RefCell;
use std::rc::Rc;

use serde::ser::{Serialize, SerializeMap as _, Serializer};

use super::Problem;
use super::node::{Kind, Node};
use super::value::join;

/// What is printed in place of a secret.
pub(super) const WITHHELD: &str = "(withheld)";

/// One value of the tree; its clones are the same value.
#[derive(Clone, Default)]
pub(super) struct Shown(Rc<RefCell<Value>>);

#[derive(Default)]
pub(super) enum Value {
    /// A key that was taken, but has no value.
    #[default]
    Unset,
    /// The same, printed as `null`.
    Null,
    Bool(bool),
    Number(u64),
    Text(String),
    List(Vec<Shown>),
    Map(Vec<(String, Shown)>),
}

impl Shown {
    pub(super) fn new(value: Value) -> Self {
        Self(Rc::new(RefCell::new(value)))
    }

    pub(super) fn set(&self, value: Value) {
        *self.0.borrow_mut() = value;
    }

    pub(super) fn is_unset(&self) -> bool {
        matches!(*self.0.borrow(), Value::Unset)
    }

    /// Makes it a map, unless it is one already: several rooms may take their keys from one section.
    pub(super) fn make_map(&self) {
        if !matches!(*self.0.borrow(), Value::Map(_)) {
            self.set(Value::Map(Vec::new()));
        }
    }

    /// The value of a key of a map. The key exists from now on.
    pub(super) fn key(&self, name: &str) -> Self {
        self.make_map();
        let Value::Map(keys) = &mut *self.0.borrow_mut() else { return Self::default() };
        if let Some((_, shown)) = keys.iter().find(|(key, _)| key == name) {
            return shown.clone();
        }
        let shown = Self::default();
        keys.push((name.to_owned(), shown.clone()));
        shown
    }

    /// A problem for every key that was written and that no room took.
    pub(super) fn find_unknown(&self, node: &Node, path: &str, problems: &mut Vec<Problem>) {
        match (&*self.0.borrow(), &node.kind) {
            (Value::Map(keys), Kind::Map(entries)) => {
                for (name, node) in entries {
                    let path = join(path, name);
                    match keys.iter().find(|(key, _)| key == name) {
                        Some((_, shown)) => shown.find_unknown(node, &path, problems),
                        None => {
                            let known: Vec<&str> = keys.iter().map(|(key, _)| key.as_str()).collect();
                            let expected = format!("is not a known key (known: {})", known.join(", "));
                            problems.push(Problem { place: Some(node.place.clone()), path, expected });
                        }
                    }
                }
            }
            (Value::List(items), Kind::List(nodes)) => {
                for (index, (item, node)) in items.iter().zip(nodes).enumerate() {
                    item.find_unknown(node, &format!("{path}[{index}]"), problems);
                }
            }
            _ => {}
        }
    }
}

impl Serialize for Shown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &*self.0.borrow() {
            Value::Unset | Value::Null => serializer.serialize_unit(),
            Value::Bool(truth) => serializer.serialize_bool(*truth),
            Value::Number(number) => serializer.serialize_u64(*number),
            Value::Text(text) => serializer.serialize_str(text),
            Value::List(items) => serializer.collect_seq(items),
            Value::Map(keys) => {
                let mut map = serializer.serialize_map(None)?;
                for (key, shown) in keys.iter().filter(|(_, shown)| !shown.is_unset()) {
                    map.serialize_entry(key, shown)?;
                }
                map.end()
            }
        }
    }
}

/// An address without the user and password in it. Without a scheme it is an address all the same.
pub(super) fn withhold_address(text: &str) -> String {
    match text.rsplit_once('@') {
        Some((_, host)) if !text.contains("://") => format!("{WITHHELD}@{host}"),
        _ => withhold_userinfo(text),
    }
}

/// A URL without what is before its `@` and without its query: both may hold a secret.
pub(super) fn withhold_userinfo(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (mut authority, mut tail) = rest.split_at(end);
    // A password may hold a `/` that is not escaped; then its `@` is in what looks like a path.
    if let Some(at) = rest.rfind('@') {
        authority = &rest[at..];
        let end = authority.find(['/', '?', '#']).unwrap_or(authority.len());
        (authority, tail) = authority.split_at(end);
        return format!("{scheme}://{WITHHELD}{authority}{}", without_query(tail));
    }
    format!("{scheme}://{authority}{}", without_query(tail))
}

/// A URL's path; of its query, the names of the parameters and the values that are plain numbers.
fn without_query(tail: &str) -> String {
    let Some((path, query)) = tail.split_once('?') else { return tail.to_owned() };
    let kept = query.split('&').map(|pair| match pair.split_once('=') {
        Some((key, value)) if !value.chars().all(|c| c.is_ascii_digit()) => format!("{key}={WITHHELD}"),
        _ => pair.to_owned(),
    });
    format!("{path}?{}", kept.collect::<Vec<_>>().join("&"))
}
