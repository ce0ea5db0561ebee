//! `history`: reading brokers' own logs for clients that are behind the window.

use crate::settings::Section;

/// Bounds of all reading together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// Readers at a time.
    pub readers: usize,
    /// Bytes per second that all readers take together, about: subjects and payloads.
    pub rate: usize,
    /// Bytes that are kept of what was read, for clients that come to the same place, about.
    pub cache: usize,
}

impl Settings {
    /// Takes the keys of `history`.
    #[must_use]
    pub(crate) fn read(history: &Section<'_>) -> Self {
        Self {
            readers: history.key("readers").number().at_least(1).or(16),
            rate: history.key("rate").size().at_least(1 << 10).or(64 << 20),
            cache: history.key("cache").size().at_least(1 << 20).or(32 << 20),
        }
    }
}
