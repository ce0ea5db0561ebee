//! Reading brokers' own logs for clients that are behind the windows.
//!
//! A shared, fair service. What is read of a log is kept for a while in a [`segment`](segment), which every client that
//! comes to its place takes from; so a crowd that comes back after a deploy costs the broker about as much as one client.
//! Owns how many readers are open, who gets one next, how fast they read together, and how much of what they read is
//! kept. A stream says what it needs ([`Request`]); whoever moves the stream takes it from its [`Reader`]. Knows adapters
//! only by their contract; nothing of windows, filters or clients' ids.

use std::sync::Arc;
use std::time::Duration;

use crate::cursor::Point;
use crate::event::{GapReason, SourceKey, SourceName};
use crate::source::{Adapter, ErrorKind, Handle, State};
use crate::subject::Pattern;

mod known;
mod pace;
mod queue;
mod reader;
mod run;
mod segment;
mod service;
mod settings;
mod state;
#[cfg(test)]
mod tests;

pub(crate) use reader::{Reader, Unavailable};
pub(crate) use service::Histories;
pub(crate) use settings::Settings;

/// One of the hub's sources, as its log is read.
#[derive(Clone)]
pub(crate) struct Log {
    /// The source's name, for the log of this process.
    pub name: SourceName,
    /// What opens readers.
    pub adapter: Arc<dyn Adapter>,
    /// Bytes of one message's payload; larger ones become gaps.
    pub max_payload: usize,
    /// Whether the source is connected. The log of one that is not is waited for without an end.
    pub up: Arc<dyn Fn() -> bool + Send + Sync>,
    /// How often the bridge was told that the log is another one: what was read before is not of use any more.
    pub resets: Arc<dyn Fn() -> u64 + Send + Sync>,
}

impl Log {
    /// Of a source that runs.
    #[must_use]
    pub(crate) fn of(handle: &Arc<Handle>, adapter: Arc<dyn Adapter>, max_payload: usize) -> Self {
        let (status, counters) = (handle.clone(), handle.clone());
        let up = Arc::new(move || status.status.own().state == State::Up);
        let resets = Arc::new(move || counters.counters.gaps(GapReason::Reset));
        Self { name: handle.name.clone(), adapter, max_payload, up, resets }
    }
}

/// What a stream needs of a source's log.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Request {
    /// Which source.
    pub source: SourceKey,
    /// Which of this client's readings: another number needs another [`Reader`].
    pub number: u32,
    /// What follows this point. [`Point::Last`] only where the broker keeps the last message of each subject.
    pub from: Point,
}

/// Who asks, and of what.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asker {
    /// Equal for all clients of one identity: these share one turn.
    pub identity: u64,
    /// The only subjects before routing that are of use; `None`: all, or all that it can know.
    pub wanted: Option<Arc<[Pattern]>>,
}

/// What is counted for one source.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counted {
    /// Messages that its broker sent to readers.
    pub events: u64,
    /// Bytes of their subjects and payloads, about.
    pub bytes: u64,
    /// Readers that could not be opened or were lost, by the kind of the error.
    pub errors: [u64; ErrorKind::ALL.len()],
}

impl Counted {
    /// Both together.
    #[must_use]
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.events += other.events;
        self.bytes += other.bytes;
        for (errors, more) in self.errors.iter_mut().zip(other.errors) {
            *errors += more;
        }
        self
    }
}

/// How much is read and waited for at this moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Load {
    /// Readers that are open.
    pub readers: usize,
    /// Clients that read a log, or wait for it.
    pub clients: usize,
    /// Clients that wait for a reader of their own.
    pub waiting: usize,
    /// How long the one among them has waited that has waited longest.
    pub oldest: Duration,
    /// Bytes of what was read and is kept.
    pub cached: usize,
    /// How many there may be.
    pub cached_max: usize,
}
