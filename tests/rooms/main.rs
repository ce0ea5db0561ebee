//! The rooms of ARCHITECTURE.md against the code: imports point down, there is no circle, and vendors' crates stay in
//! their rooms. The document's tables are the rules; this test only reads them.

mod arrows;
mod rules;
mod tree;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rules::Rules;
use tree::Files;

/// Imports that the tables forbid and that are still there. This list only gets shorter: the test fails on an entry that no
/// longer occurs.
const EXCEPTIONS: &[(&str, &str)] = &[];

fn owned(exceptions: &[(&str, &str)]) -> BTreeSet<(String, String)> {
    exceptions.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect()
}

/// What is wrong with a tree, in sentences.
fn complaints(files: &Files, document: &str, exceptions: &[(&str, &str)]) -> Vec<String> {
    let rules = match Rules::read(document) {
        Ok(rules) => rules,
        Err(error) => return vec![format!("ARCHITECTURE.md: {error}")],
    };
    let tree = tree::read(files);
    let arrows = arrows::find(&tree);
    let exceptions = owned(exceptions);
    let mut found = Vec::new();
    let rooms: BTreeSet<String> = tree.modules.keys().filter_map(|module| module.first().cloned()).chain(["main".to_owned()]).collect();
    found.extend(
        rooms.symmetric_difference(&rules.names()).map(|room| format!("`{room}` is in only one of the code and the table of rooms")),
    );
    let broken = rules.broken(&arrows);
    for ((from, to), places) in broken.iter().filter(|(arrow, _)| !exceptions.contains(*arrow)) {
        let places: Vec<_> = places.iter().map(String::as_str).collect();
        found.push(format!("`{from}` must not use `{to}`: {}", places.join(", ")));
    }
    found.extend(
        exceptions
            .iter()
            .filter(|arrow| !broken.contains_key(*arrow))
            .map(|(from, to)| format!("`{from}` no longer uses `{to}`: remove this exception")),
    );
    found.extend(rules::circle(&arrows, &exceptions).map(|circle| format!("rooms import each other in a circle: {}", circle.join(" -> "))));
    found
}

fn source_files(folder: &Path, files: &mut Files) {
    for entry in std::fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            source_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("a source file");
            files.insert(path.strip_prefix(env!("CARGO_MANIFEST_DIR")).expect("below the crate").to_owned(), text);
        }
    }
}

#[test]
fn rooms_import_only_what_architecture_md_permits() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Files::new();
    source_files(&root.join("src"), &mut files);
    let document = std::fs::read_to_string(root.join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let complaints = complaints(&files, &document, EXCEPTIONS);
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

const DOCUMENT: &str = "\
| room | owns | may import |
|---|---|---|
| `main` | the program | `upper` |
| `upper` | much | `lower`, `bottom` |
| `lower` | less | `bottom` |
| `bottom` | little | nothing |

| crate | only in |
|---|---|
| `vendor` | `lower::wire` |
";

const BASE: &[(&str, &str)] = &[
    ("src/lib.rs", "mod upper; mod lower; mod bottom;"),
    ("src/main.rs", "fn main() { brokercast::upper::go(); }"),
    ("src/upper.rs", "use crate::lower::Low; use crate::bottom; pub fn go() { bottom::deep(Low) }"),
    ("src/lower.rs", "mod wire; pub struct Low;"),
    ("src/lower/wire.rs", "use vendor::Client; use super::Low;"),
    ("src/bottom.rs", "pub fn deep<T>(_: T) {}"),
];

/// The complaints about the base with these files put in the place of its own.
fn planted(changes: &[(&str, &str)]) -> Vec<String> {
    let files = BASE.iter().chain(changes).map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect();
    complaints(&files, DOCUMENT, &[])
}

#[track_caller]
fn found(changes: &[(&str, &str)], expected: &[&str]) {
    assert_eq!(planted(changes), expected);
}

#[test]
fn a_tree_that_keeps_the_rules_is_not_complained_of() {
    found(&[], &[]);
}

#[test]
fn a_circle_is_found() {
    found(
        &[("src/bottom.rs", "use crate::upper::go;")],
        &["`bottom` must not use `upper`: src/bottom.rs:1", "rooms import each other in a circle: bottom -> upper -> bottom"],
    );
}

#[test]
fn a_path_of_supers_is_found() {
    let inner = "fn f() {\n    super::super::upper::go()\n}";
    found(
        &[("src/bottom.rs", "mod inner;"), ("src/bottom/inner.rs", inner)],
        &["`bottom` must not use `upper`: src/bottom/inner.rs:2", "rooms import each other in a circle: bottom -> upper -> bottom"],
    );
}

#[test]
fn what_a_room_passes_on_belongs_to_the_room_that_defines_it() {
    let high = "pub use vendor::High; pub struct Higher;";
    let changes = [
        ("src/lib.rs", "mod upper; mod lower; mod bottom; mod high;"),
        ("src/high.rs", high),
        ("src/lower.rs", "mod wire; pub struct Low; mod inner { pub use crate::high::*; } pub use self::inner::Higher as Renamed;"),
        ("src/upper.rs", "use crate::lower as l; pub fn go() { l::Renamed; }"),
    ];
    let complaints = planted(&changes);
    assert!(complaints.contains(&"`high` is in only one of the code and the table of rooms".to_owned()), "{complaints:?}");
    assert!(complaints.contains(&"`upper` must not use `high`: src/upper.rs:1".to_owned()), "{complaints:?}");
    assert!(complaints.contains(&"`high` must not use `vendor`: src/high.rs:1".to_owned()), "{complaints:?}");
}

#[test]
fn paths_in_macros_and_attributes_are_found() {
    for text in [
        "fn f() { println!(\"{}\", crate::upper::go()); }",
        "macro_rules! m { () => { $crate::upper::go() } }",
        "m! { use crate::{bottom, upper::{go, other}}; }",
        "fn f() { crate::upper::m!(); }",
        "#[serde(with = \"crate::upper\")] struct S;",
        "struct S { #[serde(default = \"crate::upper::go\")] field: u8 }",
        "impl S { fn f() -> Option<crate::upper::T> { None } }",
        "use crate::*; fn f() { upper::go() }",
        "fn f() { use crate as c; c::upper::go() }",
        "mod inner { pub fn f() { super::super::upper::go() } }",
    ] {
        let complaints = planted(&[("src/bottom.rs", text)]);
        assert_eq!(complaints.first().map(String::as_str), Some("`bottom` must not use `upper`: src/bottom.rs:1"), "{text}");
    }
}

#[test]
fn code_for_tests_may_use_everything() {
    found(
        &[
            (
                "src/bottom.rs",
                "#[cfg(test)] mod tests; #[cfg(all(test, unix))] use crate::upper::go; #[cfg(test)] mod more { use crate::upper; }",
            ),
            ("src/bottom/tests.rs", "use crate::upper::go;"),
            ("src/bottom/tests/deep.rs", "use crate::upper::go;"),
        ],
        &[],
    );
    let complaints = planted(&[("src/bottom.rs", "#[cfg(not(test))] use crate::upper::go;")]);
    assert_eq!(complaints.len(), 2, "{complaints:?}");
}

#[test]
fn a_vendors_crate_stays_in_its_module() {
    found(
        &[("src/lower.rs", "mod wire; pub struct Low; fn f() { vendor::connect() }")],
        &["`lower` must not use `vendor`: src/lower.rs:1"],
    );
    // A room of the same name is not that crate.
    found(&[("src/upper.rs", "mod vendor { pub fn f() {} } pub fn go() { vendor::f() }")], &[]);
}

#[test]
fn an_exception_that_no_longer_occurs_is_found() {
    let files: Files = BASE.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect();
    assert_eq!(complaints(&files, DOCUMENT, &[("lower", "upper")]), ["`lower` no longer uses `upper`: remove this exception"]);
    let mut files = files;
    files.insert("src/lower.rs".into(), "mod wire; pub struct Low; use crate::upper::go;".to_owned());
    assert!(complaints(&files, DOCUMENT, &[("lower", "upper")]).is_empty());
}

#[test]
fn a_table_that_points_up_is_found() {
    let document = DOCUMENT.replace("| `bottom` | little | nothing |", "| `bottom` | little | `upper` |");
    let files: Files = BASE.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect();
    let complaints = complaints(&files, &document, &[]);
    assert_eq!(complaints, ["ARCHITECTURE.md: `bottom` may import `upper`, which is no room further down in the table"]);
}
