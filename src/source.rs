//! The contract between the bridge and its sources.
//!
//! An adapter is one file: its configuration, how it connects, how a connection reads. Reconnecting,
//! backoff, acknowledging, metrics and readiness live once, in [`supervisor`]. A source knows neither the hub
//! nor HTTP: it hands [`Item`]s to its caller.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::cursor::Position;
use crate::event::{Gap, Message, Timestamp};
use crate::subject::{Pattern, Subject};

pub(crate) mod amqp;
mod amqp_stream;
mod error;
mod expiry;
pub(crate) mod http;
pub(crate) mod jetstream;
pub(crate) mod nats;
pub(crate) mod parts;
pub(crate) mod settings;
pub(crate) mod status;
pub(crate) mod supervisor;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod ticker;
mod tls;
mod unpack;

#[cfg(feature = "internals")]
pub use amqp::read_sections;
pub use error::{ErrorKind, SourceError};
pub(crate) use expiry::Expires;
pub(crate) use status::Fault;
pub use status::{Handle, State};
pub use unpack::{Fitted, fit};

/// What a connection yields, in the source's order.
#[derive(Debug, Clone)]
pub enum Item {
    /// A message.
    Message(Message),
    /// Messages may be missing here.
    Gap(Gap),
    /// A message whose payload was larger than the settings allow, and is not here any more: a gap for those whom it concerns.
    Oversized(Message),
    /// All that the log held when the connection was opened has been handed out, up to this position (`None`: the log is
    /// empty and has no position yet). From durable sources only. It may come again, when the reader has passed
    /// messages that are not of this source.
    Tail(Option<Position>),
}

impl Item {
    /// Bytes of the payload that comes with it.
    pub(crate) fn payload_len(&self) -> usize {
        if let Self::Message(message) = self { message.payload.len() } else { 0 }
    }
}

/// Where a connection starts to read. Sources without a log know only `Now`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Start {
    /// What comes from now on. A durable source hands out its log's present end as a `Tail` first.
    Now,
    /// Warm-up: about what a window of these bounds holds, up to the present, and then on.
    Recent {
        /// Not older than this.
        age: Duration,
        /// Not more than about this many bytes.
        bytes: u64,
    },
    /// What follows a position in the log. The adapter first compares the position, its check included, with the log. If
    /// the message there is missing or another one, it hands out a [`Gap`] and reads on from the earliest message that
    /// is left. A position that the log has not reached is a `reset`.
    After(Position),
    /// All that is left.
    Earliest,
    /// What came at this time or later.
    Since(Timestamp),
    /// The newest message of each subject, in the order of their positions, then on from the end.
    LastPerSubject,
}

/// What an adapter knows of its broker's side.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gauges {
    /// Messages that wait in the queue that is read, as of a few seconds ago.
    pub ready: Option<u64>,
    /// When our credentials expire.
    pub expires: Expires,
    /// Offsets of a log at which the broker delivered nothing, though a message came behind them, and none was lost there.
    pub passed: Option<u64>,
}

/// One configured source of some kind.
pub trait Adapter: Send + Sync + 'static {
    /// The adapter's tag in the configuration: `nats`, `amqp`, …
    fn kind(&self) -> &'static str;

    /// Whether the broker keeps a log that can be read from any place.
    fn durable(&self) -> bool {
        false
    }

    /// Whether the broker can say the newest message of each subject ([`Start::LastPerSubject`]).
    fn keeps_last(&self) -> bool {
        false
    }

    /// Whether its log's messages have the times at which the broker took them. Otherwise publishers may say what they like.
    fn dates(&self) -> bool {
        false
    }

    /// Whether messages may be lost while the source is not connected, as its broker keeps none for it. Every connection
    /// but the first then begins with a `reconnect` gap.
    fn loses_while_away(&self) -> bool {
        !self.durable()
    }

    /// Whether each replica of brokercast gets only its own part of the messages.
    fn splits(&self) -> bool {
        false
    }

    /// Patterns that together hold every subject this source can produce, before routing.
    fn reach(&self) -> Vec<Pattern>;

    /// Connects and sets up what it reads from. Dropping the future gives up and leaves nothing behind.
    fn connect(&self, start: Start) -> BoxFuture<'_, Result<Box<dyn Connection>, SourceError>>;

    /// Opens a separate reader for one client's history. Only durable sources are asked. It reads on beyond the tail as
    /// long as it is kept, so that the caller decides where history meets the window.
    fn history(&self, start: Start) -> BoxFuture<'_, Result<Box<dyn Connection>, SourceError>> {
        self.connect(start)
    }

    /// Whether the broker can leave out subjects that nobody asked for: see [`Adapter::selected`].
    fn selects(&self) -> bool {
        false
    }

    /// Opens a reader like [`Adapter::history`], for which the broker leaves out what none of `wanted` matches; these are
    /// disjoint. `None`: the broker cannot, or it would leave out little, so that one reader for everybody is better.
    fn selected<'a>(&'a self, start: Start, wanted: &'a [Pattern]) -> BoxFuture<'a, Result<Option<Box<dyn Connection>>, SourceError>> {
        let (_, _) = (start, wanted);
        Box::pin(async { Ok(None) })
    }

    /// A source of the same broker that yields the messages of one subject, for whoever wants only these; at times more, so the
    /// subject has to be looked at. It makes nothing but what is its own. `None`: there is no such source, since its messages
    /// are not there for each reader.
    fn narrowed(&self, subject: &Subject) -> Option<std::sync::Arc<dyn Adapter>> {
        let _: &Subject = subject;
        None
    }

    /// For how long the log keeps a message, as far as that is known; `None`: not known, or as long as there is room.
    ///
    /// # Errors
    /// When the broker has to be asked and does not answer.
    fn keeps_for(&self) -> BoxFuture<'_, Result<Option<Duration>, SourceError>> {
        Box::pin(async { Ok(None) })
    }

    /// Publishes to the broker with this source's settings, on a connection of its own, and returns when the broker
    /// has it. What `brokercast publish` does.
    fn publish<'a>(&'a self, subject: &'a str, payload: Bytes) -> BoxFuture<'a, Result<(), SourceError>> {
        let (_, _) = (subject, payload);
        Box::pin(async { Err(SourceError::configuration(format!("a source of kind `{}` cannot be published to", self.kind()))) })
    }

    /// The only subject that can be published, where that is not each one that the source reads.
    fn publishes_only(&self) -> Option<String> {
        None
    }

    /// Tries all that [`Adapter::connect`] needs, and makes nothing: reaches the broker, signs in, and finds, or could make,
    /// what it reads. Returns all that is wrong. For `brokercast check --connect`.
    fn check(&self) -> BoxFuture<'_, Vec<SourceError>> {
        Box::pin(async { Vec::new() })
    }

    /// What its settings allow and may not mean, each with its key.
    fn advice(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// The logs of a source that has several: this adapter reads the first of them.
    fn parts(&self) -> Option<&std::sync::Arc<parts::Parts>> {
        None
    }

    /// What is known of the broker at this moment, for metrics.
    fn gauges(&self) -> Gauges {
        Gauges::default()
    }

    /// Where this process hands messages in, for a source that takes them from HTTP.
    fn inbox(&self) -> Option<http::Handle> {
        None
    }
}

/// A live connection to a broker.
pub trait Connection: Send {
    /// Waits for something, then appends all that is ready, at most `limit` items, to `batch`. Cancel safe: what was
    /// taken and not appended comes with the next call.
    ///
    /// # Errors
    /// When the connection is gone. What was appended before still counts.
    fn next<'a>(&'a mut self, batch: &'a mut Vec<Item>, limit: usize) -> BoxFuture<'a, Result<(), SourceError>>;

    /// Says that everything handed out so far is in the window: acknowledge it to the broker, or answer the publisher
    /// (`id` is the cursor after the last item of the batch). `None` where nothing has to be waited for.
    ///
    /// # Errors
    /// When the connection is gone.
    fn acknowledge<'a>(&'a mut self, id: &'a str) -> Option<BoxFuture<'a, Result<(), SourceError>>> {
        let _: &str = id;
        None
    }

    /// Messages of the log that have not come yet, where the broker has told that.
    fn behind(&self) -> Option<u64> {
        None
    }

    /// Sends the last acknowledgements and closes the connection, within about a second.
    fn close(self: Box<Self>) -> BoxFuture<'static, ()>;
}

/// Where the supervisor of one source hands batches in: routing and the hub, behind a wall.
pub trait Intake: Send + Sync {
    /// Routes and publishes `items` in their order, empties the `Vec`, and returns the cursor after the last of
    /// them. May wait: that is back-pressure.
    fn take<'a>(&'a self, items: &'a mut Vec<Item>) -> BoxFuture<'a, String>;
}
