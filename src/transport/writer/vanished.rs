//! Which members' clients have vanished: some are looked at now and then, and those that seem to have vanished once more.
//!
//! Sync. Knows members' keys and when to look; what a look finds is its caller's.

use std::time::Duration;

use tokio::time::Instant;

use crate::stream::StreamId;
use crate::support::peer::{AGAIN, patience};

/// Members are looked at in so many parts, each once in half a heartbeat, so that a look at many is short.
pub(super) const PARTS: u32 = 8;

/// When which members are looked at.
pub(super) struct Looks {
    patience: Duration,
    interval: Duration,
    next: Instant,
    /// The part that is next.
    part: u32,
    suspects: Vec<Suspect>,
}

struct Suspect {
    key: u32,
    stream: StreamId,
    since: Instant,
}

impl Looks {
    pub(super) fn new(heartbeat: Duration, now: Instant) -> Self {
        let interval = (heartbeat / 2 / PARTS).max(Duration::from_millis(10));
        Self { patience: patience(heartbeat), interval, next: now + interval, part: 0, suspects: Vec::new() }
    }

    /// How long a member may acknowledge nothing.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// How long until the next look.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        self.next.saturating_duration_since(now)
    }

    /// Begins a look. Returns those that seemed to have vanished long enough ago for a second look.
    pub(super) fn begin(&mut self, now: Instant) -> Vec<(u32, StreamId)> {
        self.next = now + self.interval;
        self.part = (self.part + 1) % PARTS;
        let due = self.suspects.extract_if(.., |suspect| now.saturating_duration_since(suspect.since) >= AGAIN);
        due.map(|suspect| (suspect.key, suspect.stream)).collect()
    }

    /// Whether a member's turn is in this look.
    pub(super) fn includes(&self, key: u32) -> bool {
        key % PARTS == self.part
    }

    /// A member seems to have vanished.
    pub(super) fn suspect(&mut self, key: u32, stream: StreamId, now: Instant) {
        if !self.suspects.iter().any(|suspect| suspect.key == key && suspect.stream == stream) {
            self.suspects.push(Suspect { key, stream, since: now });
        }
    }
}
