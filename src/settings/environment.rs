//! Variables such as `BROKERCAST__SERVER__LISTEN` as a layer.
//!
//! Names are lower-cased, unless a layer below spells a key otherwise: so `BROKERCAST__SOURCES__MY_ORDERS__REQUIRED`
//! reaches `my-orders`, and `…__KEYS__0__SECRET` the first element of a list. What a value is (a text, a number, a list
//! in brackets) is settled by who reads it.

use std::ffi::OsString;
use std::sync::Arc;

use super::Problem;
use super::node::{Kind, Node, Place};
use super::yaml;

const PREFIX: &str = "BROKERCAST__";
/// Variables of other purposes begin so too, such as those of a Kubernetes service. None of these has two underscores in a row.
const NEAR: &str = "BROKERCAST_";

/// The layer that `variables` make over `below`.
pub(super) fn overlay(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    below: Option<&Node>,
    problems: &mut Vec<Problem>,
) -> Node {
    let begins = |name: &str, with: &str| name.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    let named = variables.into_iter().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let (mut ours, others): (Vec<(String, OsString)>, Vec<_>) = named.partition(|(name, _)| begins(name, PREFIX));
    for (name, _) in others.iter().filter(|(name, _)| begins(name, NEAR) && name.contains("__")) {
        let place = Place { source: format!("environment variable {name}").into(), line: None };
        problems.push(Problem { place: Some(place), path: String::new(), expected: format!("must begin with {PREFIX}") });
    }
    // A map given whole comes before its keys, and the second element of a list before the tenth.
    ours.sort_by_cached_key(|(name, _)| {
        name.split("__").map(|step| (step.parse().unwrap_or(0), step.to_owned())).collect::<Vec<(u32, _)>>()
    });
    let nowhere = Place { source: Arc::from("environment"), line: None };
    let mut root = Node::new(Kind::Map(Vec::new()), nowhere);
    for (name, value) in ours {
        let place = Place { source: format!("environment variable {name}").into(), line: None };
        let mut fault = |expected: &str| {
            problems.push(Problem { place: Some(place.clone()), path: String::new(), expected: expected.to_owned() });
        };
        let Ok(value) = value.into_string() else {
            fault("must be UTF-8 text");
            continue;
        };
        let steps: Vec<&str> = name[PREFIX.len()..].split("__").collect();
        if steps.iter().any(|step| step.is_empty()) {
            fault("must name a key: steps of its path with `__` between them");
            continue;
        }
        if let Err(expected) = put(&mut root, below, &steps, leaf(&value, &place)) {
            fault(expected);
        }
    }
    root
}

/// A variable's value: its text, and what it looks like.
fn leaf(text: &str, place: &Place) -> Node {
    let trimmed = text.trim();
    let number = || trimmed.parse().ok().filter(|_| trimmed.starts_with(|c: char| c.is_ascii_digit() || c == '-'));
    let kind = match trimmed {
        "null" | "~" => Kind::Null,
        "true" | "True" | "TRUE" => Kind::Bool(true),
        "false" | "False" | "FALSE" => Kind::Bool(false),
        _ if trimmed.starts_with(['[', '{']) => structure(trimmed, place).unwrap_or_else(|| Kind::Text(text.into())),
        _ => number().map_or_else(|| Kind::Text(text.into()), Kind::Int),
    };
    Node { text: Some(text.into()), ..Node::new(kind, place.clone()) }
}

/// A list or map in YAML's flow form, of which JSON is a part.
fn structure(text: &str, place: &Place) -> Option<Kind> {
    let mut problems = Vec::new();
    // As the value of a key, since a document must be a map.
    let document = yaml::parse(&place.source, &format!("value: {text}"), &mut problems).ok()?;
    let Kind::Map(entries) = document.kind else { return None };
    let [(_, mut node)] = <[_; 1]>::try_from(entries).ok()?;
    if !problems.is_empty() {
        return None;
    }
    replace_places(&mut node, place);
    matches!(node.kind, Kind::List(_) | Kind::Map(_)).then_some(node.kind)
}

/// A variable has no lines.
fn replace_places(node: &mut Node, place: &Place) {
    node.place = place.clone();
    match &mut node.kind {
        Kind::List(items) => items.iter_mut().for_each(|item| replace_places(item, place)),
        Kind::Map(entries) => entries.iter_mut().for_each(|(_, node)| replace_places(node, place)),
        _ => {}
    }
}

fn put(into: &mut Node, below: Option<&Node>, steps: &[&str], leaf: Node) -> Result<(), &'static str> {
    let Some((_, rest)) = steps.split_first() else {
        *into = leaf;
        return Ok(());
    };
    // The key as a whole can have been given as a text; it is a map or list only if it looks like one.
    match &mut into.kind {
        Kind::Map(entries) => {
            let (key, taken) = key(entries, below, steps);
            let below = below.and_then(|node| node.child(&key));
            let at = entries.iter().position(|(k, _)| *k == key).unwrap_or_else(|| {
                entries.push((key, fresh(below, steps.get(taken), &leaf.place)));
                entries.len() - 1
            });
            // A map's place is that of the last variable that adds to it: it was the one at fault, if one is.
            put(&mut entries[at].1, below, &steps[taken..], leaf)
        }
        Kind::List(items) => {
            let index: usize = steps[0].parse().map_err(|_| "must give the index of a list's element, from 0")?;
            let below = below.and_then(|node| match &node.kind {
                Kind::List(items) => items.get(index),
                _ => None,
            });
            if index > items.len() {
                return Err("must give the index of one of the list's elements, or of the next");
            }
            if index == items.len() {
                items.push(fresh(None, rest.first(), &leaf.place));
            }
            put(&mut items[index], below, rest, leaf)
        }
        _ => Err("must not stand beside a variable that gives the same key as one value"),
    }
}

/// What a variable's path is put into: a copy of the list below, since lists replace; else an empty map or list.
fn fresh(below: Option<&Node>, next: Option<&&str>, place: &Place) -> Node {
    match below {
        Some(node) if next.is_some() && matches!(node.kind, Kind::List(_)) => node.clone(),
        Some(node) if matches!(node.kind, Kind::Map(_)) => Node::new(Kind::Map(Vec::new()), node.place.clone()),
        None if next.is_some_and(|step| *step == "0") => Node::new(Kind::List(Vec::new()), place.clone()),
        _ => Node::new(Kind::Map(Vec::new()), place.clone()),
    }
}

/// The key that the first of `steps` mean, and how many of them: a key of a layer below that they spell, else the first
/// in lower case. A name with `__` in it takes several.
fn key(entries: &[(String, Node)], below: Option<&Node>, steps: &[&str]) -> (String, usize) {
    let below = below.map_or(&[][..], Node::entries);
    let known = || entries.iter().chain(below).map(|(key, _)| key.as_str());
    for taken in 1..=steps.len() {
        let name = steps[..taken].join("__");
        let exact = known().find(|key| *key == name).or_else(|| known().find(|key| *key == name.to_lowercase()));
        if let Some(key) = exact.or_else(|| known().find(|key| fold(key) == fold(&name))) {
            return (key.to_owned(), taken);
        }
    }
    (steps[0].to_lowercase(), 1)
}

/// Case and dashes aside, which variables' names cannot have.
fn fold(name: &str) -> String {
    name.to_lowercase().replace('-', "_")
}
