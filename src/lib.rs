//! brokercast: message-broker traffic for browsers, over Server-Sent Events.
//!
//! The rooms and what each may know are drawn in ARCHITECTURE.md. Data flows one way:
//! `source -> Message -> route -> Event -> hub -> stream -> transport -> socket`.

// `pub` in a private room means that `internals` passes the name on.
#![cfg_attr(not(feature = "internals"), allow(unreachable_pub))]

mod app;
mod auth;
mod cli;
mod cursor;
mod event;
mod frame;
mod history;
mod http;
mod hub;
mod metrics;
mod pool;
mod route;
mod settings;
#[cfg(test)]
mod sim;
mod source;
mod stream;
mod subject;
mod support;
mod telemetry;
mod transport;

pub use cli::main;

/// What benches and the tests of single adapters use of the rooms. Cargo turns the feature on for them; the program has none of it.
#[cfg(feature = "internals")]
pub mod internals {
    pub use crate::app::settings::check_text;
    pub use crate::auth::{Owner, Revocation, Revocations, read_token};
    pub use crate::cursor::{Check, Cursor, Point, Position, Tag};
    pub use crate::event::{Envelope, Event, Gap, GapReason, Headers, Message, SourceKey, SourceName, Timestamp};
    pub use crate::frame::{Encoded, Encoder, Form, Kind, Origin, body};
    pub use crate::http::{read_announced, read_forwarded, read_query};
    pub use crate::hub::{Channel, Concerns, Filter, Hub, Input, Limits, Listener, Seat, SourceSpec};
    pub use crate::source::supervisor::Supervisor;
    pub use crate::source::{Adapter, Connection, ErrorKind, Fitted, Handle, Intake, Item, SourceError, Start, State, fit, read_sections};
    pub use crate::subject::{Pattern, Subject, index::Index};
    pub use crate::support::causes::chain;

    /// The adapter of the one source that a text configures.
    ///
    /// # Errors
    /// With what is wrong with the text.
    pub fn adapter(text: &str) -> Result<std::sync::Arc<dyn Adapter>, crate::settings::SettingsError> {
        let read = |root: &crate::settings::Section<'_>| crate::source::settings::read(&root.key("sources").section()).pop();
        Ok(crate::settings::load(&[], [], ("text", text), false, read)?.value.adapter)
    }
}
