//! The engine under the settings of all rooms: layers, places, values, and all problems at once.
//!
//! Files and the environment become one tree whose values know their places ([`load`]). Rooms take their keys from it
//! ([`Section`]), one line for each: name, type, bounds, default. From that line follow the value, what is wrong with it,
//! what `check` prints, and which keys exist. Knows no room and none of their keys.

use std::fmt;
use std::path::PathBuf;

mod environment;
mod layers;
mod node;
mod places;
mod section;
mod shown;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod value;
mod yaml;

pub(crate) use layers::{Loaded, load};
pub(crate) use places::Places;
pub(crate) use section::{Choice, Key, Section, Slot, Written};
pub(crate) use value::{File, Secret};

use node::Place;

/// Something that is wrong with the settings. Holds no value, since that may be a secret in the wrong place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    place: Option<Place>,
    /// `sources.orders.nats.servers[0]`; empty for a whole file.
    path: String,
    /// `must be a duration such as 15s`
    expected: String,
}

impl Problem {
    /// The file, or what else the value was read from; `None` where it was not written.
    #[must_use]
    pub(crate) fn file(&self) -> Option<&str> {
        self.place.as_ref().map(|place| &*place.source)
    }

    /// The line in that file, counted from one.
    #[must_use]
    pub(crate) fn line(&self) -> Option<u64> {
        Some(self.place.as_ref()?.line?.0)
    }

    /// The key path, as one line; empty for a whole file.
    #[must_use]
    pub(crate) fn key(&self) -> String {
        // A key can be any text.
        let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
        self.path.chars().map(plain).collect()
    }

    /// What was expected.
    #[must_use]
    pub(crate) fn message(&self) -> &str {
        &self.expected
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.key())?;
        }
        f.write_str(&self.expected)
    }
}

/// Everything that is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct SettingsError {
    problems: Vec<Problem>,
    /// Files and folders that they name, as far as they could be read.
    files: Vec<PathBuf>,
}

impl SettingsError {
    /// Of something that is wrong with all of it.
    #[must_use]
    pub(crate) fn new(expected: &str) -> Self {
        Self { problems: vec![Problem { place: None, path: String::new(), expected: expected.to_owned() }], files: Vec::new() }
    }

    /// In the order of their places.
    #[must_use]
    pub(crate) fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The files and folders that the settings name, as far as they could be read.
    #[must_use]
    pub(crate) fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// One line for each problem: place, key path, what was expected.
    #[cfg(test)]
    pub(crate) fn lines(&self) -> impl Iterator<Item = String> {
        self.problems.iter().map(ToString::to_string)
    }
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.len();
        write!(f, "the configuration has {count} problem{}", if count == 1 { "" } else { "s" })?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}
