//! Layers: files, then the environment, merged by figment; then read, checked, and every problem gathered.
//!
//! Maps merge, lists replace, null removes. The demo configuration embedded in the program counts only where no file is
//! given. Knows files and variables, not what their keys mean.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use figment::value::{Dict, Empty, Map, Tag, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::node::read;
use super::node::yaml::{self, Fault};
use super::node::{KeyPath, Kind, Node, Place};
use super::raw::Raw;
use super::{Config, Problems, validate};

mod environment;
#[cfg(test)]
pub(super) mod tests;

/// The configuration that counts where no file is given.
pub const DEFAULT: &str = include_str!("../../config/default.yaml");
/// What error messages call it.
const DEFAULT_NAME: &str = "built-in config/default.yaml";
/// The longest file that is read, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// A configuration that was read and found good.
pub struct Loaded {
    /// Checked.
    pub config: Config,
    /// As written, all layers merged: what is shown of the sources and routes.
    pub(super) tree: Node,
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    problems: Vec<Found>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    place: Option<Place>,
    path: String,
    expected: String,
}

impl ConfigError {
    /// One line for each problem: place, key path, what was expected.
    #[cfg(test)]
    pub(crate) fn lines(&self) -> impl Iterator<Item = String> {
        self.problems.iter().map(ToString::to_string)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.len();
        write!(f, "the configuration has {count} problem{}", if count == 1 { "" } else { "s" })?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        if !self.path.is_empty() {
            // A key can be anything; a problem is one line.
            let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
            write!(f, "{}: ", self.path.chars().map(plain).collect::<String>())?;
        }
        f.write_str(&self.expected)
    }
}

impl From<Fault> for Found {
    fn from(fault: Fault) -> Self {
        Self { place: Some(fault.place), path: fault.path, expected: fault.expected }
    }
}

/// Reads `files`, later over earlier, then this process's environment.
///
/// # Errors
/// With all that is wrong, at once.
pub fn load(files: &[PathBuf]) -> Result<Loaded, ConfigError> {
    load_with(files, std::env::vars_os())
}

/// Reads `files`, then these variables.
pub(super) fn load_with(
    files: &[PathBuf],
    variables: impl IntoIterator<Item = (std::ffi::OsString, std::ffi::OsString)>,
) -> Result<Loaded, ConfigError> {
    let mut faults = Vec::new();
    let mut layers = Vec::new();
    if files.is_empty() {
        layers.extend(read_layer(DEFAULT_NAME, DEFAULT, &mut faults));
    }
    for file in files {
        match read_file(file) {
            Ok(text) => layers.extend(read_layer(&file.display().to_string(), &text, &mut faults)),
            Err(what) => faults.push(Fault {
                place: Place { source: file.display().to_string().into(), line: None },
                path: String::new(),
                expected: format!("this configuration file cannot be read: {what}"),
            }),
        }
    }
    // What a file that cannot be read would have said is not known: all else would be guesses.
    if !files.is_empty() && layers.len() < files.len() {
        return Err(ConfigError { problems: faults.into_iter().map(Found::from).collect() });
    }
    let below = merge(&layers);
    let overlay = environment::overlay(variables, below.as_ref(), &mut faults);
    layers.push(overlay);
    let merged = merge(&layers).unwrap_or_else(|| layers.remove(0).root);
    finish(merged, faults)
}

fn finish(mut tree: Node, faults: Vec<Fault>) -> Result<Loaded, ConfigError> {
    tree.drop_nulls();
    let whole = tree.clone();
    let mut misread = Vec::new();
    let raw: Raw = read::extract(&mut tree, &mut misread).unwrap_or_default();
    let mut problems = Problems::default();
    let config = validate::validate(raw, &whole, &mut problems);
    let mut found: Vec<Found> = faults.into_iter().map(Found::from).collect();
    for mut problem in problems.0 {
        // What could not be read was taken out of its list, and those after it have moved.
        problem.path = tree.as_written(&problem.path);
        if misread.iter().any(|m| m.explains(&problem.path)) {
            continue;
        }
        let place = whole.locate(&problem.path).filter(|place| !place.source.is_empty()).cloned();
        found.push(Found { place, path: problem.path, expected: problem.expected });
    }
    found.extend(misread.into_iter().map(|m| Found { place: Some(m.place), path: m.path.to_string(), expected: m.expected }));
    // By file and line, so that they can be worked off from the top; a list's problems in its own order.
    found.sort_by_key(|f| f.place.as_ref().map(|p| (p.source.clone(), p.line)));
    found.dedup();
    match config {
        Some(config) if found.is_empty() => {
            // The tree that was read knows which of its values are secrets.
            Ok(Loaded { config, tree })
        }
        _ => Err(ConfigError { problems: found }),
    }
}

fn read_file(file: &Path) -> Result<String, String> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let read = std::fs::File::open(file).and_then(|f| f.take(MAX_FILE + 1).read_to_end(&mut bytes));
    read.map_err(|e| super::value::why(file, &e))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err("it is larger than 16 MiB".to_owned());
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned())
}

/// One layer: a figment provider that remembers places.
struct Layer {
    name: String,
    root: Node,
}

fn read_layer(name: &str, text: &str, faults: &mut Vec<Fault>) -> Option<Layer> {
    match yaml::parse(&Arc::from(name), text, faults) {
        Ok(root) => Some(Layer { name: name.to_owned(), root }),
        Err(fault) => {
            faults.push(fault);
            None
        }
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let dict = match value(&self.root) {
            Value::Dict(_, dict) => dict,
            _ => Dict::new(),
        };
        Ok(Map::from([(Profile::Default, dict)]))
    }
}

fn value(node: &Node) -> Value {
    match &node.kind {
        Kind::Null => Value::Empty(Tag::Default, Empty::Unit),
        Kind::Bool(truth) => Value::from(*truth),
        Kind::Int(number) => Value::from(*number),
        Kind::Float(number) => Value::from(*number),
        Kind::Text(text) => Value::from(&**text),
        Kind::List(items) => Value::Array(Tag::Default, items.iter().map(|(_, item)| value(item)).collect()),
        Kind::Map(entries) => Value::Dict(Tag::Default, entries.iter().map(|(key, node)| (key.clone(), value(node))).collect::<Dict>()),
    }
}

/// Merges by figment, whose tags say which layer a value came from; so it gets its place and its text back.
fn merge(layers: &[Layer]) -> Option<Node> {
    let numbered: Vec<Layer> =
        layers.iter().enumerate().map(|(at, layer)| Layer { name: at.to_string(), root: layer.root.clone() }).collect();
    let figment = numbered.iter().fold(Figment::new(), |figment, layer| figment.merge(layer));
    let merged = figment.find_value("").ok()?;
    let layer_of = |tag: Tag| figment.get_metadata(tag).and_then(|m| m.name.parse().ok()).and_then(|at: usize| numbered.get(at));
    let last = numbered.last()?;
    Some(regain(&merged, &KeyPath::default(), &numbered, &layer_of, &last.root.place))
}

fn regain<'a>(value: &Value, path: &KeyPath, layers: &'a [Layer], layer_of: &impl Fn(Tag) -> Option<&'a Layer>, outer: &Place) -> Node {
    let own = layer_of(value.tag()).and_then(|layer| layer.root.get(path));
    let Value::Dict(_, dict) = value else {
        // Only maps merge: all else comes whole from one layer.
        return own.cloned().unwrap_or_else(|| Node::new(Kind::Null, outer.clone()));
    };
    // Where the map begins: in the first layer that has it.
    let first = layers.iter().find_map(|layer| layer.root.get(path).filter(|n| matches!(n.kind, Kind::Map(_))));
    let place = own.or(first).map_or_else(|| outer.clone(), |node| node.place.clone());
    // figment sorts keys; the order written is kept.
    let mut keys: Vec<&str> = Vec::with_capacity(dict.len());
    for layer in layers {
        if let Some(Kind::Map(entries)) = layer.root.get(path).map(|node| &node.kind) {
            for (key, _) in entries {
                if dict.contains_key(key) && !keys.contains(&key.as_str()) {
                    keys.push(key);
                }
            }
        }
    }
    let entries = keys.into_iter().filter_map(|key| {
        let value = dict.get(key)?;
        Some((key.to_owned(), regain(value, &path.key(key), layers, layer_of, &place)))
    });
    let kind = Kind::Map(entries.collect());
    Node { text: own.and_then(|node| node.text.clone()), ..Node::new(kind, place) }
}
