//! The contract between the bridge and its sources, and the list of adapters.
//!
//! An adapter is one file: its configuration, how it connects, how a connection reads. Reconnecting,
//! backoff, acknowledging, metrics and readiness live once, in [`supervisor`]. A source knows neither the hub
//! nor HTTP: it hands [`Item`]s to whoever calls.

use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::cursor::Position;
use crate::event::{Gap, Message, Timestamp};

/// What a connection yields, in the source's order.
#[derive(Debug, Clone)]
pub enum Item {
    /// A message.
    Message(Message),
    /// Messages may be missing here.
    Gap(Gap),
    /// All that the log held when the connection was opened has been handed out; the reader now stands
    /// here (`None`: the log is empty and knows no position yet). Sent once, by durable sources only.
    Tail(Option<Position>),
}

/// Where a connection starts to read. Sources without a log know only `Now`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Start {
    /// What comes from now on. On a durable source the log's present end is told as `Tail` first.
    Now,
    /// Warm-up: about what a window of these bounds holds, up to the present, and then on.
    Recent {
        /// Not older than this.
        age: Duration,
        /// Not more than about this many bytes.
        bytes: u64,
    },
    /// What stands after a place in the log. The adapter compares the place (its check included) with the
    /// log first: what it finds missing or other than it was becomes a [`Gap`], then it reads on from the
    /// earliest that is left. A place that the log has not reached is a `reset`.
    After(Position),
    /// All that is left.
    Earliest,
    /// What came at this time or later.
    Since(Timestamp),
    /// The newest message of each subject, then on from the end.
    LastPerSubject,
}

/// Why a source could not go on. The supervisor logs it once and connects again.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct SourceError {
    what: String,
    #[source]
    cause: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl SourceError {
    /// With a lower-case message that names no secret.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), cause: None }
    }

    /// With the error that caused it.
    pub fn with(what: impl Into<String>, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { what: what.into(), cause: Some(cause.into()) }
    }
}

/// One configured source of some kind.
pub trait Adapter: Send + Sync + 'static {
    /// The adapter's tag in the configuration: `nats`, `amqp`, …
    fn kind(&self) -> &'static str;

    /// Whether the broker keeps a log that can be read from any place.
    fn durable(&self) -> bool {
        false
    }

    /// Patterns that together hold every subject this source can produce, before routing.
    fn reach(&self) -> Vec<crate::subject::Pattern>;

    /// Connects and sets up what it reads from. Dropping the future gives up; nothing stays behind.
    fn connect(&self, start: Start) -> BoxFuture<'_, Result<Box<dyn Connection>, SourceError>>;

    /// Opens a reader of its own for one client's history; only durable sources are asked. It reads on beyond the
    /// tail as long as it is kept, so that the caller decides where history meets the window.
    fn history(&self, start: Start) -> BoxFuture<'_, Result<Box<dyn Connection>, SourceError>> {
        self.connect(start)
    }
}

/// A live connection to a broker.
pub trait Connection: Send {
    /// Waits for something, then appends all that is ready, at most `limit` items, to `batch`. Cancel safe: what it
    /// took and did not append comes with the next call.
    ///
    /// # Errors
    /// When the connection is gone; what it appended before still counts.
    fn next<'a>(&'a mut self, batch: &'a mut Vec<Item>, limit: usize) -> BoxFuture<'a, Result<(), SourceError>>;

    /// Says that everything handed out so far is in the window: acknowledge it to the broker, or answer the publisher
    /// (`id` is the cursor after the last item of the batch).
    fn acknowledge<'a>(&'a mut self, id: &'a str) -> BoxFuture<'a, Result<(), SourceError>> {
        let _: &str = id;
        Box::pin(async { Ok(()) })
    }

    /// Leaves in good order, within about a second: last acknowledgements, then the connection.
    fn close(self: Box<Self>) -> BoxFuture<'static, ()>;
}

/// The adapter's part of a source's configuration; each adapter adds its own.
#[derive(Debug)]
pub enum AdapterConfig {}
