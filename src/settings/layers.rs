//! Layers: files, then the environment, merged by figment.
//!
//! Maps merge, lists replace, null removes. Knows files and variables, not what their keys mean.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use figment::value::{Dict, Empty, Map, Tag, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::node::{Kind, Node, Place};
use super::places::Places;
use super::section::{Findings, Section};
use super::shown::Shown;
use super::value::read_bounded;
use super::{Problem, SettingsError, environment, yaml};

/// The longest file that is read, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// Settings that were read and are right.
#[derive(Debug)]
pub(crate) struct Loaded<T> {
    /// What was made of them.
    pub(crate) value: T,
    /// The settings as they count, as YAML with secrets withheld.
    pub(crate) yaml: String,
    /// Files and folders that they name.
    pub(crate) files: Vec<PathBuf>,
    /// Where their values were written.
    pub(crate) places: Places,
}

/// Merges `files`, later over earlier, then `variables` such as `BROKERCAST__SERVER__LISTEN`, and lets `read` take its
/// keys. `built_in`, a name and a text, counts where no file is given. `refuse_empty`: a file in which there is nothing is a
/// problem, as it is one that is being written.
///
/// # Errors
/// With all problems at once.
pub(crate) fn load<T>(
    files: &[PathBuf],
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    built_in: (&str, &str),
    refuse_empty: bool,
    read: impl FnOnce(&Section<'_>) -> Option<T>,
) -> Result<Loaded<T>, SettingsError> {
    let mut problems = Vec::new();
    let mut layers = Vec::new();
    if files.is_empty() {
        layers.extend(read_layer(built_in.0, built_in.1, &mut problems));
    }
    for file in files {
        let name = file.display().to_string();
        match read_file(file) {
            Ok(text) => match read_layer(&name, &text, &mut problems) {
                // A file that says `{}` holds nothing on purpose.
                Some(Node { kind: Kind::Null, .. }) if refuse_empty => {
                    problems.push(of_file(name, "this configuration file is empty".to_owned()));
                }
                layer => layers.extend(layer),
            },
            Err(what) => problems.push(of_file(name, format!("this configuration file cannot be read: {what}"))),
        }
    }
    // What an unreadable file would have set is unknown: everything else would be guesses.
    if !files.is_empty() && layers.len() < files.len() {
        return Err(SettingsError { problems, files: Vec::new() });
    }
    let below = merge(&layers);
    layers.push(environment::overlay(variables, below.as_ref(), &mut problems));
    // What cannot be merged holds nothing, as the variables' layer does then.
    let tree = merge(&layers).unwrap_or_else(|| layers.swap_remove(layers.len() - 1));
    read_tree(tree, problems, read)
}

/// Lets `read` take its keys from `tree`, and adds what is wrong to `problems`.
pub(super) fn read_tree<T>(
    mut tree: Node,
    mut problems: Vec<Problem>,
    read: impl FnOnce(&Section<'_>) -> Option<T>,
) -> Result<Loaded<T>, SettingsError> {
    let (findings, shown) = (Findings::default(), Shown::default());
    let value = read(&Section::root(&findings, &tree, &shown));
    problems.extend(findings.problems.take());
    // While nulls are still there: one behind a misspelled key removes nothing.
    shown.find_unknown(&tree, "", &mut problems);
    tree.drop_nulls();
    // By file and line, so that they can be worked off from the top.
    problems.sort_by_key(|problem| problem.place.as_ref().map(|place| (place.source.clone(), place.line)));
    problems.dedup();
    match value {
        // Nothing in it can fail to be written; if it could, an empty text would show that.
        Some(value) if problems.is_empty() => {
            let yaml = serde_saphyr::to_string(&shown).unwrap_or_default();
            Ok(Loaded { value, yaml, files: findings.files.take(), places: Places::of(&tree) })
        }
        _ => Err(SettingsError { problems, files: findings.files.take() }),
    }
}

/// A problem of a whole file.
fn of_file(name: String, expected: String) -> Problem {
    Problem { place: Some(Place { source: name.into(), line: None }), path: String::new(), expected }
}

fn read_file(file: &Path) -> Result<String, String> {
    String::from_utf8(read_bounded(file, MAX_FILE)?).map_err(|_| "it is not UTF-8 text".to_owned())
}

fn read_layer(name: &str, text: &str, problems: &mut Vec<Problem>) -> Option<Node> {
    yaml::parse(&Arc::from(name), text, problems).map_err(|problem| problems.push(problem)).ok()
}

/// One layer for figment, named by its number.
struct Layer<'a>(usize, &'a Node);

impl Provider for Layer<'_> {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.0.to_string())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let dict = match value(self.1) {
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
        Kind::List(items) => Value::Array(Tag::Default, items.iter().map(value).collect()),
        Kind::Map(entries) => Value::Dict(Tag::Default, entries.iter().map(|(key, node)| (key.clone(), value(node))).collect::<Dict>()),
    }
}

/// Merges by figment, whose tags say which layer a value came from. So each value gets its place and its text back.
fn merge(layers: &[Node]) -> Option<Node> {
    let figment = layers.iter().enumerate().fold(Figment::new(), |figment, (number, root)| figment.merge(Layer(number, root)));
    let merged = figment.find_value("").ok()?;
    let layer_of = |value: &Value| figment.get_metadata(value.tag()).and_then(|m| m.name.parse::<usize>().ok());
    let roots: Vec<Option<&Node>> = layers.iter().map(Some).collect();
    Some(regain(&merged, &roots, &layer_of, &layers.last()?.place))
}

/// Makes a node of a merged value. `nodes` holds what each layer has at this path, `outer` is the place of the map around it.
fn regain(value: &Value, nodes: &[Option<&Node>], layer_of: &impl Fn(&Value) -> Option<usize>, outer: &Place) -> Node {
    let own = layer_of(value).and_then(|layer| *nodes.get(layer)?);
    let Value::Dict(_, dict) = value else {
        // Only maps merge: everything else comes whole from one layer.
        return own.cloned().unwrap_or_else(|| Node::new(Kind::Null, outer.clone()));
    };
    // A map begins in the first layer that has it.
    let first = nodes.iter().flatten().find(|node| matches!(node.kind, Kind::Map(_))).copied();
    let place = own.or(first).map_or_else(|| outer.clone(), |node| node.place.clone());
    // figment sorts keys; here they keep the order in which they were written.
    let mut entries: Vec<(String, Node)> = Vec::with_capacity(dict.len());
    for (key, _) in nodes.iter().flatten().flat_map(|node| node.entries()) {
        if let Some(value) = dict.get(key).filter(|_| entries.iter().all(|(known, _)| known != key)) {
            let below: Vec<_> = nodes.iter().map(|node| node.and_then(|node| node.child(key))).collect();
            entries.push((key.clone(), regain(value, &below, layer_of, &place)));
        }
    }
    Node { text: own.and_then(|node| node.text.clone()), ..Node::new(Kind::Map(entries), place) }
}
