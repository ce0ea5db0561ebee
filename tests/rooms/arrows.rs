//! From a tree of modules to arrows: which room refers to which other room, and which module to which other crate.
//!
//! A room is a module at the crate's root with all that is below it. A path through re-exports refers to every room on its
//! way: to the one that passes the name on, and to the one that defines it.

use std::collections::{BTreeMap, BTreeSet};

use crate::tree::{Names, Reference, Tree};

/// The library, as `main.rs` calls it.
const LIBRARY: &str = env!("CARGO_PKG_NAME");
/// Longer chains of re-exports are circles.
const MAX_HOPS: usize = 16;

#[derive(Debug, Default)]
pub(crate) struct Arrows {
    /// From a room to another, with the places that say so.
    pub(crate) rooms: BTreeMap<(String, String), BTreeSet<String>>,
    /// From a module to another crate, likewise.
    pub(crate) crates: BTreeMap<(Names, String), BTreeSet<String>>,
}

/// What a path refers to: modules on its way, and perhaps another crate.
#[derive(Debug, Default)]
struct Targets {
    modules: Vec<Names>,
    other: Option<String>,
}

/// Finds all arrows of a tree.
pub(crate) fn find(tree: &Tree) -> Arrows {
    let mut arrows = Arrows::default();
    for (name, module) in &tree.modules {
        let from = room(name);
        for Reference { path, place } in &module.references {
            let mut targets = Targets::default();
            resolve(tree, name, path, MAX_HOPS, &mut targets);
            let rooms = targets.modules.iter().map(|module| room(module)).filter(|to| *to != from);
            for to in rooms {
                arrows.rooms.entry((from.clone(), to)).or_default().insert(place.clone());
            }
            if let Some(other) = targets.other {
                arrows.crates.entry((name.clone(), other)).or_default().insert(place.clone());
            }
        }
    }
    arrows
}

/// The room of a module; `main` for the crate's root.
fn room(module: &[String]) -> String {
    module.first().cloned().unwrap_or_else(|| "main".to_owned())
}

/// Follows a path as the module writes it.
fn resolve(tree: &Tree, module: &[String], path: &[String], hops: usize, targets: &mut Targets) {
    let Some(first) = path.first() else { return };
    let mut here = module.to_vec();
    match first.as_str() {
        "crate" => walk(tree, if room(module) == "main" { module.to_vec() } else { Vec::new() }, &path[1..], hops, targets),
        LIBRARY if room(module) == "main" => walk(tree, Vec::new(), &path[1..], hops, targets),
        "Self" => {}
        "self" | "super" => {
            let up = path.iter().take_while(|name| *name == "super").count();
            let skip = path.iter().take_while(|name| *name == "super" || *name == "self").count();
            here.truncate(here.len().saturating_sub(up));
            walk(tree, here, &path[skip..], hops, targets);
        }
        _ if hops > 0 && has(tree, &here, first, hops) => walk(tree, here, path, hops, targets),
        _ => targets.other = Some(first.clone()),
    }
}

/// Follows a path that begins inside `at`.
fn walk(tree: &Tree, mut at: Names, path: &[String], hops: usize, targets: &mut Targets) {
    let mut rest = path;
    while let Some(name) = rest.first() {
        let child = [at.clone(), vec![name.clone()]].concat();
        if !tree.modules.contains_key(&child) {
            break;
        }
        (at, rest) = (child, &rest[1..]);
    }
    // The root alone is on the way to everything; only an item in it belongs to `main`.
    if !at.is_empty() || !rest.is_empty() {
        targets.modules.push(at.clone());
    }
    let (Some(name), Some(module), Some(hops)) = (rest.first(), tree.modules.get(&at), hops.checked_sub(1)) else { return };
    if let Some(import) = module.imports.get(name) {
        resolve(tree, &at, &[import, &rest[1..]].concat(), hops, targets);
    } else if !module.items.contains(name)
        && let Some(source) = module.globs.iter().filter_map(|glob| located(tree, &at, glob, hops)).find(|m| has(tree, m, name, hops))
    {
        walk(tree, source, rest, hops, targets);
    }
}

/// Whether a module has a name: its own, imported, or through a glob.
fn has(tree: &Tree, module: &[String], name: &str, hops: usize) -> bool {
    let (Some(found), Some(hops)) = (tree.modules.get(module), hops.checked_sub(1)) else { return false };
    found.items.contains(name)
        || found.imports.contains_key(name)
        || found.globs.iter().filter_map(|glob| located(tree, module, glob, hops)).any(|source| has(tree, &source, name, hops))
}

/// The module that a glob names, if it is one of this crate.
fn located(tree: &Tree, module: &[String], glob: &[String], hops: usize) -> Option<Names> {
    let mut targets = Targets::default();
    // A module's own globs could be needed to find it: those are not followed.
    let own = glob.first().is_some_and(|first| {
        let known = tree.modules.get(module).is_some_and(|m| m.items.contains(first) || m.imports.contains_key(first));
        known || matches!(first.as_str(), "crate" | "self" | "super" | LIBRARY)
    });
    if !own {
        return None;
    }
    resolve(tree, module, glob, hops, &mut targets);
    targets.modules.pop().or(targets.other.is_none().then(Names::new)).filter(|target| target != module)
}
