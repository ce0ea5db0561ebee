//! `log`: its form, and how much of it.

use tracing_subscriber::EnvFilter;

use super::quietened;
use crate::settings::{Choice, Section, Slot};

/// The settings of the log.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Its form.
    pub(super) format: Format,
    /// How much of it. `RUST_LOG`, where set, counts instead.
    pub(super) filter: EnvFilter,
    /// Log targets of the libraries that talk to brokers.
    pub(super) libraries: Vec<&'static str>,
    /// The access log.
    pub(super) access: AccessFormat,
}

/// `log.format`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Text on a terminal, else JSON.
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Choice for Format {
    const WORDS: &'static [(&'static str, Self)] = &[("auto", Self::Auto), ("text", Self::Text), ("json", Self::Json)];
}

/// `log.access`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum AccessFormat {
    /// None.
    Off,
    /// Names and values.
    Text,
    /// One JSON object a line.
    Json,
}

impl Choice for AccessFormat {
    const WORDS: &'static [(&'static str, Self)] = &[("off", Self::Off), ("text", Self::Text), ("json", Self::Json)];
}

impl Settings {
    /// The form of the access log.
    #[must_use]
    pub(crate) fn access(&self) -> AccessFormat {
        self.access
    }

    /// Its form, which cannot be exchanged.
    #[must_use]
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// Takes the keys of `log`. `libraries` are the log targets of the libraries that talk to brokers.
    #[must_use]
    pub(crate) fn read(log: &Section<'_>, libraries: Vec<&'static str>) -> Option<Self> {
        let format = log.key("format").choice().or(Format::Auto);
        let expected = "must be a level (error, warn, info, debug, trace, off) or a list such as info,brokercast::source=debug";
        let parse = |text: &str| (!text.trim().is_empty()).then(|| quietened(text, &libraries).parse().ok())?;
        let filter = log.key("filter").text().default("info".to_owned()).read(expected, parse).required();
        let access = log.key("access").or_off(None, Slot::choice).unwrap_or(AccessFormat::Off);
        Some(Self { format, filter: filter?, libraries, access })
    }
}
