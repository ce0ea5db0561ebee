//! What is known of a source from outside: its state for `/readyz` and `/sources`, its counters for the metrics.
//!
//! Written by the supervisor, read without a lock. Knows neither HTTP nor a metrics library.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::Serialize;
use tokio::sync::Notify;

use super::ErrorKind;
use crate::event::{GapReason, SourceName, Timestamp};

/// What a source is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It was never connected and has not failed yet.
    Connecting,
    /// It is connected and reads the log's recent past into the window.
    Warming,
    /// It is connected.
    Up,
    /// It could not connect, or its connection is gone; it tries again and again.
    Down,
}

/// A state, and since when.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// What it is doing.
    pub state: State,
    /// Since when.
    #[serde(serialize_with = "as_text")]
    pub since: Timestamp,
    /// Why it is down.
    #[serde(flatten)]
    pub fault: Option<Fault>,
    /// Whether readiness waits for it.
    pub required: bool,
}

/// Why a source is down.
#[derive(Debug, Clone, Serialize)]
pub struct Fault {
    /// The whole chain of causes; names no secret.
    pub error: String,
    /// Of which kind the error is.
    pub kind: ErrorKind,
}

fn as_text<S: serde::Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(time)
}

/// A [`Status`] that anybody may read at any time.
#[derive(Debug)]
pub struct StatusCell {
    now: ArcSwap<Status>,
    was_up: AtomicBool,
    /// Those of the source's other logs.
    others: ArcSwap<Vec<Arc<Handle>>>,
}

impl StatusCell {
    /// Of a source that has not been started.
    #[must_use]
    pub fn new(required: bool) -> Self {
        let status = Status { state: State::Connecting, since: Timestamp::now(), fault: None, required };
        Self { now: ArcSwap::from_pointee(status), was_up: AtomicBool::new(false), others: ArcSwap::default() }
    }

    /// What it is doing now. Of a source with several logs: what the one does that is farthest from being read.
    #[must_use]
    pub fn read(&self) -> Arc<Status> {
        let order = |status: &Arc<Status>| match status.state {
            State::Down => 0,
            State::Connecting => 1,
            State::Warming => 2,
            State::Up => 3,
        };
        let others = self.others.load();
        std::iter::once(self.own()).chain(others.iter().map(|other| other.status.own())).min_by_key(order).unwrap_or_else(|| self.own())
    }

    /// What this log does, of those that a source may have.
    #[must_use]
    pub fn own(&self) -> Arc<Status> {
        self.now.load_full()
    }

    /// These are the source's other logs.
    pub fn stand_for(&self, others: Vec<Arc<Handle>>) {
        self.others.store(Arc::new(others));
    }

    /// Whether it was up at any time, which readiness waits for, or need not be.
    #[must_use]
    pub fn was_up(&self) -> bool {
        self.was_up.load(Ordering::Acquire) && self.others.load().iter().all(|other| other.status.was_up())
    }

    /// Readiness waits for it no more.
    pub fn excuse(&self) {
        self.was_up.store(true, Ordering::Release);
    }

    /// Notes a state; `since` stays where only the fault is another.
    pub(in crate::source) fn set(&self, state: State, fault: Option<Fault>) {
        let old = self.now.load();
        let since = if old.state == state { old.since } else { Timestamp::now() };
        self.now.store(Arc::new(Status { state, since, fault, required: old.required }));
        if state == State::Up {
            self.excuse();
        }
    }
}

/// What a source has counted since the start of the process. They only grow.
#[derive(Debug, Default)]
pub struct Counters {
    messages: AtomicU64,
    bytes: AtomicU64,
    gaps: [AtomicU64; GapReason::ALL.len()],
    connects: AtomicU64,
    /// The source's logs beside its first.
    others: AtomicU64,
    errors: [AtomicU64; ErrorKind::ALL.len()],
    /// When the last message came, in microseconds since 1970; 0: none has come.
    last: AtomicU64,
    /// How old it was then, in microseconds.
    lag: AtomicU64,
    /// One more than the messages of its log that have not come yet; 0: not known.
    behind: AtomicU64,
}

impl Counters {
    /// Messages that went into the window.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    /// Bytes of their payloads.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Gaps that the source itself handed out.
    #[must_use]
    pub fn gaps(&self, reason: GapReason) -> u64 {
        self.gaps[reason as usize].load(Ordering::Relaxed)
    }

    /// Connections after the first.
    #[must_use]
    pub fn reconnects(&self) -> u64 {
        self.connects.load(Ordering::Relaxed).saturating_sub(1 + self.others.load(Ordering::Relaxed))
    }

    /// Failed attempts to connect and lost connections, of one kind.
    #[must_use]
    pub fn errors(&self, kind: ErrorKind) -> u64 {
        self.errors[kind as usize].load(Ordering::Relaxed)
    }

    /// When the last message came, and how old it was then by the broker's time.
    #[must_use]
    pub fn last(&self) -> Option<(Timestamp, Duration)> {
        let last = Timestamp::from_micros(self.last.load(Ordering::Relaxed));
        (last > Timestamp::default()).then(|| (last, Duration::from_micros(self.lag.load(Ordering::Relaxed))))
    }

    /// Messages of its log that have not come yet, where that is known.
    #[must_use]
    pub fn behind(&self) -> Option<u64> {
        self.behind.load(Ordering::Relaxed).checked_sub(1)
    }

    /// The last message came now, and its time is this.
    pub(in crate::source) fn note_last(&self, time: Timestamp, now: Timestamp) {
        self.last.store(now.as_micros(), Ordering::Relaxed);
        self.lag.store(now.since(time).as_micros() as u64, Ordering::Relaxed);
    }

    pub(in crate::source) fn note_behind(&self, behind: Option<u64>) {
        self.behind.store(behind.map_or(0, |behind| behind.saturating_add(1)), Ordering::Relaxed);
    }

    pub(in crate::source) fn count_messages(&self, messages: u64, bytes: u64) {
        self.messages.fetch_add(messages, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn count_gap(&self, reason: GapReason) {
        self.gaps[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(in crate::source) fn count_connect(&self) {
        self.connects.fetch_add(1, Ordering::Relaxed);
    }

    pub(in crate::source) fn count_error(&self, kind: ErrorKind) {
        self.errors[kind as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// A source as the rest of the process sees it.
#[derive(Debug)]
pub struct Handle {
    /// Its name in the configuration.
    pub name: SourceName,
    /// The adapter's tag: `nats`, `amqp`, …
    pub kind: &'static str,
    /// Whether its broker keeps a log.
    pub durable: bool,
    /// What it is doing.
    pub status: StatusCell,
    /// What it has counted.
    pub counters: Arc<Counters>,
    /// Ends the wait for the next attempt to connect.
    again: Notify,
}

impl Handle {
    /// Of a source that has not been started.
    #[must_use]
    pub fn new(name: SourceName, adapter: &dyn super::Adapter, required: bool) -> Self {
        let (kind, durable) = (adapter.kind(), adapter.durable());
        Self { name, kind, durable, status: StatusCell::new(required), counters: Arc::default(), again: Notify::new() }
    }

    /// Something has changed that may be why it could not connect: it tries at once, if it waits for its next attempt.
    pub fn try_again(&self) {
        self.again.notify_waiters();
    }

    /// Waits before the next attempt to connect.
    pub(super) async fn pause(&self, span: Duration) {
        // Whichever comes first.
        drop(tokio::time::timeout(span, self.again.notified()).await);
    }

    /// Whether readiness does not wait for it, or no more.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.status.was_up() || !self.status.read().required
    }

    /// Of another log of the same source: both count together.
    #[must_use]
    pub fn beside(first: &Self, adapter: &dyn super::Adapter) -> Self {
        first.counters.others.fetch_add(1, Ordering::Relaxed);
        Self { counters: first.counters.clone(), ..Self::new(first.name.clone(), adapter, first.status.own().required) }
    }

    /// Of a source that takes another's place: it counts on, and readiness does not wait for it again.
    #[must_use]
    pub fn in_place_of(old: &Self, adapter: &dyn super::Adapter, required: bool) -> Self {
        let this = Self { counters: old.counters.clone(), ..Self::new(old.name.clone(), adapter, required) };
        if old.status.was_up() {
            this.status.excuse();
        }
        this
    }
}
