//! How a room takes its keys: a [`Section`] is a map, a [`Slot`] the place of one value, a [`Key`] the value once it is read.
//!
//! `section.key("heartbeat").duration().positive().or(Duration::from_secs(15))` reads the value, notes what is wrong with
//! it, records what counts for `check`, and makes `heartbeat` a known key. A value that is wrong is noted, and reading goes
//! on as if it had not been written: the settings are refused in the end, but with all of their problems.

use std::cell::RefCell;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::Problem;
use super::node::{Kind, Node, Place};
use super::shown::{Shown, Value, WITHHELD, withhold_address, withhold_userinfo};
use super::value::{File, Secret, join, parse_duration, parse_size, show_duration, show_size};

/// What is wrong, as far as the settings have been read.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) problems: RefCell<Vec<Problem>>,
    /// Files and folders that are named.
    pub(super) files: RefCell<Vec<PathBuf>>,
    /// What was read of files, by key path.
    contents: RefCell<Vec<(String, Secret)>>,
    /// Key paths whose value could not be used. What is said of them and of what is below them later only follows from
    /// that, so it is left out.
    unusable: RefCell<Vec<String>>,
}

/// The place of one value: a key of a section or an element of a list. It may be empty.
#[derive(Clone)]
pub(crate) struct Slot<'t> {
    findings: &'t Findings,
    node: Option<&'t Node>,
    /// The value's own place, else that of the map around it.
    place: &'t Place,
    path: String,
    shown: Shown,
    /// Keys below here that are not set are not printed.
    terse: bool,
    /// What could be written instead of the value; part of every problem with it.
    alternative: &'static str,
}

/// A map of keys.
pub(crate) struct Section<'t>(Slot<'t>);

/// What was written in a section, to be compared with what is written there later. Holds secrets.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Written {
    node: Option<Node>,
    /// Of the files that were read for it.
    contents: Vec<Secret>,
}

impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Written")
    }
}

/// A value that was read, and may be checked further. Ends by [`Key::or`], [`Key::optional`] or [`Key::required`].
pub(crate) struct Key<'t, T> {
    slot: Slot<'t>,
    /// `None`: not written, or wrong.
    value: Option<T>,
    /// `a duration`
    noun: &'static str,
    show: fn(&T) -> Value,
}

/// A value that is one of a few words.
pub(crate) trait Choice: Copy + PartialEq + 'static {
    /// The words and what they mean.
    const WORDS: &'static [(&'static str, Self)];

    /// The word for it.
    #[must_use]
    fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, known)| *known == self).map_or("", |(word, _)| *word)
    }

    /// What a word means.
    #[must_use]
    fn of_word(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(known, _)| *known == word).map(|(_, choice)| *choice)
    }
}

impl<'t> Section<'t> {
    pub(super) fn root(findings: &'t Findings, tree: &'t Node, shown: &Shown) -> Self {
        let path = String::new();
        Slot { findings, node: Some(tree), place: &tree.place, path, shown: shown.clone(), terse: false, alternative: "" }.section()
    }

    /// The place of the value of a key. The key is a known one from now on.
    #[must_use]
    pub(crate) fn key(&self, name: &str) -> Slot<'t> {
        let written = self.0.node.and_then(|node| node.child(name));
        let place = written.map_or(self.0.place, |node| &node.place);
        // Null removes what an earlier layer gave.
        let node = written.filter(|node| !node.is_null());
        Slot { node, place, path: join(&self.0.path, name), shown: self.0.shown.key(name), ..self.0.clone() }
    }

    /// Whether a key was written, be it rightly or wrongly.
    #[must_use]
    pub(crate) fn has(&self, name: &str) -> bool {
        self.key(name).is_set()
    }

    /// Notes a problem with a key.
    pub(crate) fn problem(&self, name: &str, expected: impl Into<String>) {
        self.key(name).problem(expected);
    }

    /// Notes a problem with the section as a whole.
    pub(crate) fn problem_here(&self, expected: impl Into<String>) {
        self.0.problem(expected);
    }

    /// All keys of a section whose keys are names that the user chose, in the order written. Where null was written, nothing is set.
    #[must_use]
    pub(crate) fn entries(&self) -> Vec<(&'t str, Slot<'t>)> {
        let entries = self.0.node.map_or(&[][..], Node::entries);
        entries.iter().map(|(name, _)| (name.as_str(), self.key(name))).collect()
    }

    /// What was written here.
    #[must_use]
    pub(crate) fn written(&self) -> Written {
        let mut node = self.0.node.cloned();
        // What was removed is as if it had not been written.
        node.iter_mut().for_each(Node::drop_nulls);
        Written { node, contents: Vec::new() }
    }

    /// What was written here, and what is in the files that were read for it so far.
    #[must_use]
    pub(crate) fn written_with_files(&self) -> Written {
        let contents = self.0.findings.contents.borrow();
        let contents = contents.iter().filter(|(path, _)| is_within(path, &self.0.path)).map(|(_, contents)| contents.clone()).collect();
        Written { contents, ..self.written() }
    }

    /// The same section, where keys without a value are not printed.
    #[must_use]
    pub(crate) fn terse(self) -> Self {
        Self(Slot { terse: true, ..self.0 })
    }

    /// A secret, from the key `name` or from the file that the key `<name>_file` names, less one line break at its end.
    #[must_use]
    pub(crate) fn secret(&self, name: &str) -> Key<'t, Secret> {
        self.or_file(name, Slot::secret)
    }

    /// The same for an address, whose user and password are withheld.
    #[must_use]
    pub(crate) fn address(&self, name: &str) -> Key<'t, Secret> {
        self.or_file(name, Slot::address)
    }

    /// The same for a text, which may be printed.
    #[must_use]
    pub(crate) fn text(&self, name: &str) -> Key<'t, Secret> {
        self.or_file(name, |slot| slot.text().convert(|text| Ok(Secret::new(text))))
    }

    fn or_file(&self, name: &str, read: fn(Slot<'t>) -> Key<'t, Secret>) -> Key<'t, Secret> {
        let (inline, file) = (self.key(name), self.key(&format!("{name}_file")));
        if inline.is_set() && file.is_set() {
            inline.unusable(format!("only one of `{name}` and `{name}_file` may be set"));
            return Key { slot: inline, value: None, noun: "", show: |_| Value::Null };
        }
        let key = if file.is_set() { file.file().convert(|file| Ok(file.line())) } else { read(inline) };
        key.check(|secret| !secret.expose().is_empty(), "must not be empty")
    }
}

impl<'t> Slot<'t> {
    /// Whether something was written here, be it right or wrong.
    #[must_use]
    pub(crate) fn is_set(&self) -> bool {
        self.node.is_some()
    }

    /// Notes a problem with what was, or was not, written here.
    pub(crate) fn problem(&self, expected: impl Into<String>) {
        if !self.findings.unusable.borrow().iter().any(|outer| is_within(&self.path, outer)) {
            let (place, expected) = (Some(self.place.clone()), format!("{}{}", expected.into(), self.alternative));
            self.findings.problems.borrow_mut().push(Problem { place, path: self.path.clone(), expected });
        }
    }

    /// Whether `null` was written.
    #[must_use]
    pub(crate) fn is_null(&self) -> bool {
        self.node.is_some_and(Node::is_null)
    }

    /// Whether `true` or `false` was written.
    #[must_use]
    pub(crate) fn is_flag(&self) -> bool {
        self.node.is_some_and(|node| matches!(node.kind, Kind::Bool(_)))
    }

    /// Whether `false` was written.
    #[must_use]
    pub(crate) fn is_off(&self) -> bool {
        self.node.is_some_and(|node| matches!(node.kind, Kind::Bool(false)))
    }

    /// Notes a problem, of which all further ones with this value are consequences.
    fn unusable(&self, expected: impl Into<String>) {
        self.problem(expected);
        self.findings.unusable.borrow_mut().push(self.path.clone());
    }

    fn show_unset(&self) {
        if !self.terse && self.shown.is_unset() {
            self.shown.set(Value::Null);
        }
    }

    fn value<T>(self, noun: &'static str, example: &str, read: impl FnOnce(&'t Node) -> Option<T>, show: fn(&T) -> Value) -> Key<'t, T> {
        let value = self.node.and_then(read);
        match &value {
            Some(value) => self.shown.set(show(value)),
            None if self.is_set() => self.unusable(format!("must be {noun}{example}")),
            None => {}
        }
        Key { slot: self, value, noun, show }
    }

    /// `true` or `false`.
    #[must_use]
    pub(crate) fn flag(self) -> Key<'t, bool> {
        let read = |node: &Node| if let Kind::Bool(truth) = node.kind { Some(truth) } else { None };
        self.value("true or false", "", read, |truth| Value::Bool(*truth))
    }

    /// A whole number.
    #[must_use]
    pub(crate) fn number(self) -> Key<'t, usize> {
        let read = |node: &Node| match &node.kind {
            Kind::Int(number) => usize::try_from(*number).ok(),
            Kind::Text(text) => text.parse().ok(),
            _ => None,
        };
        self.value("a whole number", ", 0 or more", read, |number| Value::Number(*number as u64))
    }

    /// A duration such as `15s`.
    #[must_use]
    pub(crate) fn duration(self) -> Key<'t, Duration> {
        self.value(
            "a duration",
            " such as 500ms, 15s, 10m or 24h",
            |node| parse_duration(&quantity(node)?),
            |d| Value::Text(show_duration(*d)),
        )
    }

    /// A size in bytes such as `16MiB`.
    #[must_use]
    pub(crate) fn size(self) -> Key<'t, usize> {
        let show = |bytes: &usize| {
            let text = show_size(*bytes);
            text.parse().map_or(Value::Text(text), Value::Number)
        };
        self.value("a size", " such as 65536, 64KiB or 16MiB", |node| parse_size(&quantity(node)?), show)
    }

    /// A text. What looks like a number or a truth value is the text that was written.
    #[must_use]
    pub(crate) fn text(self) -> Key<'t, String> {
        self.value("a text", "", |node| node.text().map(str::to_owned), |text| Value::Text(withhold_userinfo(text)))
    }

    /// A file's or folder's path.
    #[must_use]
    pub(crate) fn path(self) -> Key<'t, PathBuf> {
        let findings = self.findings;
        self.text().check(|text| !text.is_empty(), "must not be empty").convert(|text| {
            let path = PathBuf::from(text);
            findings.files.borrow_mut().push(path.clone());
            Ok(path)
        })
    }

    /// A file, which is read now.
    #[must_use]
    pub(crate) fn file(self) -> Key<'t, File> {
        let (findings, key) = (self.findings, self.path.clone());
        self.path().convert(|path| {
            let file = File::read(path)?;
            findings.contents.borrow_mut().push((key, file.contents.clone()));
            Ok(file)
        })
    }

    /// A text that is not printed.
    #[must_use]
    pub(crate) fn secret(self) -> Key<'t, Secret> {
        self.value("a text", "", |node| node.text().map(Secret::new), |_| Value::Text(WITHHELD.to_owned()))
    }

    /// An address, printed without its user and password.
    #[must_use]
    pub(crate) fn address(self) -> Key<'t, Secret> {
        let show = |address: &Secret| Value::Text(withhold_address(address.expose_str().unwrap_or(WITHHELD)));
        self.value("a text", "", |node| node.text().map(Secret::new), show)
    }

    /// One of a few words.
    #[must_use]
    pub(crate) fn choice<T: Choice>(self) -> Key<'t, T> {
        let words: Vec<&str> = T::WORDS.iter().map(|(word, _)| *word).collect();
        self.value("one of ", &words.join(", "), |node| T::of_word(node.text()?), |choice| Value::Text(choice.word().to_owned()))
    }

    /// A list, whose elements `read` reads. Where it gives nothing for one, having noted why, the list is as good as wrong.
    #[must_use]
    pub(crate) fn list<T>(self, read: impl FnMut(Slot<'t>) -> Option<T>) -> Key<'t, Vec<T>> {
        let nodes = |node: &'t Node| if let Kind::List(nodes) = &node.kind { Some(nodes) } else { None };
        let Key { slot, value: nodes, noun, .. } = self.value("a list", " such as [a, b]", nodes, |_| Value::Null);
        let value = nodes.and_then(|nodes| {
            let element = |(index, node): (usize, &'t Node)| {
                let path = format!("{}[{index}]", slot.path);
                Slot { node: Some(node), place: &node.place, path, shown: Shown::default(), ..slot.clone() }
            };
            let elements: Vec<_> = nodes.iter().enumerate().map(element).collect();
            slot.shown.set(Value::List(elements.iter().map(|element| element.shown.clone()).collect()));
            let values: Vec<T> = elements.into_iter().filter_map(read).collect();
            // What is to be checked of a list can only be checked of all of it.
            (values.len() == nodes.len()).then_some(values)
        });
        Key { slot, value, noun, show: |_| Value::List(Vec::new()) }
    }

    /// One value that `read` reads, or a list of at least one.
    #[must_use]
    pub(crate) fn one_or_more<T>(self, read: impl Fn(Slot<'t>) -> Option<T>) -> Vec<T> {
        match self.node.map(|node| &node.kind) {
            Some(Kind::List(_)) => self.list(read).check(|list| !list.is_empty(), "must not be empty").or(Vec::new()),
            _ => read(self).into_iter().collect(),
        }
    }

    /// A list of texts.
    #[must_use]
    pub(crate) fn texts(self, read: impl FnMut(Slot<'t>) -> Option<String>) -> Key<'t, Vec<String>> {
        let show: fn(&Vec<String>) -> Value = |texts| Value::List(texts.iter().map(|text| Shown::new(Value::Text(text.clone()))).collect());
        Key { show, ..self.list(read) }
    }

    /// A list of words.
    pub(crate) fn choices<T: Choice>(self) -> Key<'t, Vec<T>> {
        let show: fn(&Vec<T>) -> Value =
            |choices| Value::List(choices.iter().map(|choice| Shown::new(Value::Text(choice.word().to_owned()))).collect());
        Key { show, ..self.list(|item| item.choice().required()) }
    }

    /// A map of keys. Where it was left out, each of its keys has its default.
    #[must_use]
    pub(crate) fn section(mut self) -> Section<'t> {
        if let Some(node) = self.node
            && !matches!(node.kind, Kind::Map(_))
        {
            self.unusable("must be a map of keys and values");
            self.node = None;
        }
        self.shown.make_map();
        Section(self)
    }

    /// A map of keys, if it was written.
    #[must_use]
    pub(crate) fn optional_section(self) -> Option<Section<'t>> {
        if self.is_set() {
            return Some(self.section());
        }
        self.show_unset();
        None
    }

    /// A map of keys, or `true` for one whose keys all have their defaults, or `false` for none.
    #[must_use]
    pub(crate) fn flag_or_section(mut self) -> Option<Section<'t>> {
        match self.node.map(|node| &node.kind) {
            Some(Kind::Bool(true)) => {
                self.node = None;
                Some(self.section())
            }
            Some(Kind::Map(_)) => Some(self.section()),
            Some(Kind::Bool(false)) => {
                self.shown.set(Value::Bool(false));
                None
            }
            Some(_) => {
                self.unusable("must be true, false or a map of keys and values");
                None
            }
            None => None,
        }
    }

    /// What `read` reads, unless `false` switches it off. `default` counts where nothing was written.
    pub(crate) fn or_off<T>(mut self, default: Option<T>, read: impl FnOnce(Self) -> Key<'t, T>) -> Option<T> {
        self.alternative = ", or false";
        match self.node.map(|node| &node.kind) {
            Some(Kind::Bool(false)) => {
                self.shown.set(Value::Bool(false));
                None
            }
            Some(Kind::Bool(true)) => {
                let key = read(self);
                let expected = format!("must be {} other than true", key.noun);
                // As a text it would be taken by its word.
                key.check(|_| false, &expected).optional().and(None)
            }
            _ => {
                self.shown.set(Value::Bool(false));
                let key = read(self);
                match default {
                    Some(default) => Some(key.or(default)),
                    None => key.optional(),
                }
            }
        }
    }
}

/// Whether a key path is another one or below it.
fn is_within(path: &str, outer: &str) -> bool {
    path.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || outer.is_empty() || rest.starts_with(['.', '[']))
}

/// The text of a number with or without a unit.
fn quantity(node: &Node) -> Option<String> {
    match &node.kind {
        Kind::Int(number) => Some(number.to_string()),
        Kind::Text(text) => Some(text.to_string()),
        _ => None,
    }
}

impl<'t, T> Key<'t, T> {
    /// What `convert` makes of the value, or else what it says was expected.
    pub(crate) fn convert<U>(self, convert: impl FnOnce(T) -> Result<U, String>) -> Key<'t, U> {
        let Self { slot, value, noun, .. } = self;
        let value = value.and_then(|value| convert(value).map_err(|expected| slot.unusable(expected)).ok());
        Key { slot, value, noun, show: |_| Value::Null }
    }

    /// Refuses a value that fails the test.
    pub(crate) fn check(mut self, test: impl FnOnce(&T) -> bool, expected: &str) -> Self {
        if self.value.as_ref().is_some_and(|value| !test(value)) {
            self.slot.unusable(expected);
            self.value = None;
        }
        self
    }

    /// `default` counts where nothing was written. What follows checks and converts it as if it had been.
    pub(crate) fn default(mut self, default: T) -> Self {
        if !self.slot.is_set() {
            self.slot.shown.set((self.show)(&default));
            self.value = Some(default);
        }
        self
    }

    /// The value, or `default` where nothing was written.
    pub(crate) fn or(self, default: T) -> T {
        if !self.slot.is_set() && self.value.is_none() {
            self.slot.shown.set((self.show)(&default));
        }
        self.value.unwrap_or(default)
    }

    /// The value, if there is one.
    pub(crate) fn optional(self) -> Option<T> {
        self.slot.show_unset();
        self.value
    }

    /// The value, which must have been written.
    pub(crate) fn required(self) -> Option<T> {
        if self.value.is_none() && !self.slot.is_set() {
            self.slot.unusable("is missing");
        }
        self.optional()
    }
}

impl<T: PartialOrd> Key<'_, T> {
    /// Refuses what is less than `least`.
    pub(crate) fn at_least(self, least: T) -> Self {
        let expected = format!("must be {}, {} or more", self.noun, self.bound(&least));
        self.check(|value| *value >= least, &expected)
    }

    /// Refuses what is less than `least` or more than `most`.
    pub(crate) fn within(self, least: T, most: T) -> Self {
        let expected = format!("must be {} from {} to {}", self.noun, self.bound(&least), self.bound(&most));
        self.check(|value| *value >= least && *value <= most, &expected)
    }

    fn bound(&self, value: &T) -> String {
        match (self.show)(value) {
            Value::Text(text) => text,
            Value::Number(number) => number.to_string(),
            _ => String::new(),
        }
    }
}

impl Key<'_, Duration> {
    /// Refuses 0.
    pub(crate) fn positive(self) -> Self {
        self.check(|duration| !duration.is_zero(), "must be a duration longer than 0, such as 500ms or 15s")
    }
}

impl<'t> Key<'t, String> {
    /// What the text is read as by `read`, which gives nothing for a wrong one.
    pub(crate) fn read<U>(self, expected: &str, read: impl FnOnce(&str) -> Option<U>) -> Key<'t, U> {
        self.convert(|text| read(&text).ok_or_else(|| expected.to_owned()))
    }

    /// What the text is read as by its type. A problem says what is wrong, then what was `expected`.
    pub(crate) fn parse<U: FromStr<Err: fmt::Display>>(self, expected: &str) -> Key<'t, U> {
        self.convert(|text| text.parse().map_err(|error: U::Err| format!("{error}; {expected}")))
    }
}
