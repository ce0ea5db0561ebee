//! brokercast: message-broker traffic for browsers, over Server-Sent Events.
//!
//! The rooms and what each may know are drawn in ARCHITECTURE.md. Data flows one way:
//! `source -> Message -> route -> Event -> hub -> stream -> transport -> socket`.

// `pub` in a private room means that `internals` passes the name on.
#![cfg_attr(not(feature = "internals"), allow(unreachable_pub))]

#[expect(unreachable_pub, reason = "to be narrowed when the room is rewritten")]
mod app;
#[expect(unreachable_pub, reason = "to be narrowed when the room is rewritten")]
mod auth;
mod cli;
mod cursor;
mod event;
#[expect(unreachable_pub, reason = "to be narrowed when the room is rewritten")]
mod frame;
#[expect(unreachable_pub, reason = "to be narrowed when the room is rewritten")]
mod history;
#[expect(unreachable_pub, reason = "to be narrowed when the room is rewritten")]
mod http;
#[expect(unreachable_pub, reason = "to be narrowed when the room is rewritten")]
mod hub;
#[expect(unreachable_pub, reason = "to be narrowed when the room is rewritten")]
mod metrics;
#[expect(unreachable_pub, reason = "to be narrowed when the room is rewritten")]
mod pool;
#[expect(unreachable_pub, reason = "to be narrowed when the room is rewritten")]
mod route;
mod settings;
#[cfg(test)]
mod sim;
#[expect(unreachable_pub, reason = "to be narrowed when the room is rewritten")]
mod source;
#[expect(unreachable_pub, reason = "to be narrowed when the room is rewritten")]
mod stream;
mod subject;
mod support;
#[expect(unreachable_pub, reason = "to be narrowed when the room is rewritten")]
mod telemetry;
#[expect(unreachable_pub, reason = "to be narrowed when the room is rewritten")]
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
    pub use crate::source::{Adapter, Connection, ErrorKind, Handle, Intake, Item, SourceError, Start, State, fit, read_sections};
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
