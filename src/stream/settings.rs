//! The keys of `server` that concern streams.

use std::time::Duration;

use crate::settings::Section;

/// What all streams have in common.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Time between heartbeats.
    pub heartbeat: Duration,
    /// The reconnection time told to clients, before jitter.
    pub retry: Duration,
    /// Entries of windows that a stream looks at while it holds the hub's lock; fewer where its filter has many patterns.
    pub scan: usize,
    /// Bytes after which what a stream has gathered is sent.
    pub piece: usize,
    /// Bytes from which on an event is not copied for a stream, which then sends what all share.
    pub share: usize,
}

impl Settings {
    /// See [`Settings::scan`].
    pub(crate) const SCAN: usize = 1024;
    /// See [`Settings::piece`].
    pub(crate) const PIECE: usize = 64 << 10;
    /// See [`Settings::share`]. So large an event has a block for itself.
    pub(crate) const SHARE: usize = 16 << 10;

    /// Takes the two keys of `server` that concern streams.
    #[must_use]
    pub(crate) fn read(server: &Section<'_>) -> Self {
        Self {
            heartbeat: server.key("heartbeat").duration().positive().or(Duration::from_secs(15)),
            retry: server.key("retry").duration().positive().or(Duration::from_secs(3)),
            scan: Self::SCAN,
            piece: Self::PIECE,
            share: Self::SHARE,
        }
    }
}
