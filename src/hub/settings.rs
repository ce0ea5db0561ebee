//! `window`: how much of each source is kept in memory, for clients that come back.

use std::time::Duration;

use crate::settings::Section;

/// Bounds of a window.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of its events, and what keeping them costs.
    pub bytes: usize,
    /// Age of its oldest event.
    pub age: Duration,
}

impl Limits {
    /// Takes the keys of `window`.
    #[must_use]
    pub(crate) fn read(window: &Section<'_>) -> Self {
        Self {
            bytes: window.key("bytes").size().at_least(1).or(16 << 20),
            age: window.key("age").duration().positive().or(Duration::from_secs(600)),
        }
    }
}
