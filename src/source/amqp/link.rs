//! A connection to the broker and what is declared on it.
//!
//! Knows the library's connection and channels; not what is read from them.

use std::sync::Arc;
use std::time::Duration;

use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{AsyncTcpStream, Channel, ConnectionProperties, ErrorKind, ExchangeKind};
use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::config::{Binding, Broker, Config, Declare, ExchangeType, Origin, QueueType};
use super::error::{failed, is};
use super::flow::Flow;
use super::scrub::OddKeys;
use super::wire::{Ours, Shared, Wire};
use crate::event::SourceName;
use crate::source::SourceError;

/// For the protocol's handshake, and for each question to the broker.
const ANSWER: Duration = Duration::from_secs(10);
/// For a connection to be closed in good order.
const CLOSE: Duration = Duration::from_millis(700);

/// A connection. Dropped, it breaks off at once; nothing of it stays behind.
pub(in crate::source) struct Link {
    connection: lapin::Connection,
    shared: Arc<Shared>,
    /// Dropped after the connection, which may say goodbye while the socket still works.
    end: DropGuard,
}

impl Link {
    /// Connects and logs in.
    pub(in crate::source) async fn open(broker: &Broker, source: &SourceName) -> Result<Self, SourceError> {
        let end = CancellationToken::new();
        let guard = end.clone().drop_guard();
        let shared = Arc::<Shared>::default();
        let wire = Mutex::new(Some(Wire::connect(broker, end, Arc::clone(&shared)).await?));
        let runtime = Runtime::new(RuntimeParts::new(Tokio::current(), Ours::current()));
        let properties = ConnectionProperties::default().with_connection_name(format!("brokercast {source}").into());
        let once = async move |_, _| match wire.lock().take() {
            Some(wire) => Ok(AsyncTcpStream::Plain(wire)),
            None => Err(std::io::Error::from(std::io::ErrorKind::ConnectionAborted).into()),
        };
        let connecting = lapin::Connection::connector(broker.uri.clone(), runtime, once, properties);
        match tokio::time::timeout(ANSWER, connecting).await {
            Ok(Ok(connection)) => Ok(Self { connection, shared, end: guard }),
            Ok(Err(e)) if matches!(e.kind(), ErrorKind::ParsingError(_)) => Err(SourceError::protocol(format!(
                "{broker} does not speak AMQP 0-9-1 (where it wants TLS, the address begins with amqps://)"
            ))),
            Ok(Err(e)) => Err(failed(format!("{broker} refused the connection"), e)),
            Err(_) => Err(SourceError::lost(format!("{broker} does not answer"))),
        }
    }

    /// A new channel.
    pub(in crate::source) async fn channel(&self) -> Result<Channel, SourceError> {
        answer("opening a channel", self.connection.create_channel()).await?.map_err(|e| failed("cannot open a channel", e))
    }

    /// Whether it is connected, as far as the library knows.
    pub(in crate::source) fn works(&self) -> bool {
        self.connection.status().connected()
    }

    /// Keys that are not UTF-8.
    pub(in crate::source) fn odd(&self) -> &OddKeys {
        &self.shared.odd
    }

    /// What is on its way to one of its channels.
    pub(in crate::source) fn flow(&self) -> &Flow {
        &self.shared.flow
    }

    /// Closes the connection in good order, or breaks it off when the broker does not answer.
    pub(in crate::source) async fn close(self) {
        let Self { connection, end, .. } = self;
        let closing = connection.close(200, ShortString::from("bye"));
        if tokio::time::timeout(CLOSE, closing).await.is_err() {
            tracing::debug!("a broker did not take leave");
        }
        drop(end);
    }
}

/// The library's futures wait for ever when the broker says nothing.
pub(in crate::source) async fn answer<T>(what: &str, asking: impl Future<Output = T>) -> Result<T, SourceError> {
    tokio::time::timeout(ANSWER, asking).await.map_err(|_| SourceError::lost(format!("the broker does not answer ({what})")))
}

/// Declares and binds what `config` says, and returns a channel and the name of the queue to read.
pub(in crate::source) async fn set_up(link: &Link, config: &Config, source: &SourceName) -> Result<(Channel, ShortString), SourceError> {
    let mut channel = link.channel().await?;
    if let Some(binding) = config.binding() {
        channel = declare_exchange(link, channel, binding).await?;
    }
    let queue = match &config.origin {
        Origin::Exclusive(_) => {
            let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
            let declared = channel.queue_declare(ShortString::default(), options, FieldTable::default());
            let declared = answer("declaring a queue", declared).await?;
            declared.map_err(|e| failed("cannot declare a queue of this process", e))?.name().clone()
        }
        Origin::Named { declare, .. } => {
            let name = config.queue(source).unwrap_or_default();
            declare_queue(&channel, &name, declare.as_ref()).await?;
            ShortString::from(name)
        }
    };
    if let Some(binding) = config.binding() {
        for key in &binding.keys {
            let options = QueueBindOptions::default();
            let bound = channel.queue_bind(queue.clone(), short(&binding.exchange), short(key), options, FieldTable::default());
            answer("binding", bound).await?.map_err(|e| failed(format!("cannot bind a queue to exchange `{}`", binding.exchange), e))?;
        }
    }
    Ok((channel, queue))
}

/// Names have been checked to fit.
pub(in crate::source) fn short(name: &str) -> ShortString {
    ShortString::try_new(name).unwrap_or_default()
}

/// Declares the exchange. An error closes its channel, so that the one to go on with is returned.
pub(in crate::source) async fn declare_exchange(link: &Link, channel: Channel, binding: &Binding) -> Result<Channel, SourceError> {
    let (name, kind) = match binding.kind {
        ExchangeType::Topic => ("topic", ExchangeKind::Topic),
        ExchangeType::Direct => ("direct", ExchangeKind::Direct),
        ExchangeType::Fanout => ("fanout", ExchangeKind::Fanout),
        ExchangeType::Headers => ("headers", ExchangeKind::Headers),
    };
    let exchange = &binding.exchange;
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let declared = channel.exchange_declare(short(exchange), kind.clone(), options, FieldTable::default());
    let error = match answer("declaring an exchange", declared).await? {
        Ok(()) => return Ok(channel),
        Err(e) => e,
    };
    if is(&error, AMQPSoftError::PRECONDITIONFAILED) {
        let what = format!("exchange `{exchange}` is there, but not as a durable {name} exchange (see `exchange_type`)");
        return Err(failed(what, error));
    }
    if is(&error, AMQPSoftError::ACCESSREFUSED) {
        // A user without the right to configure may still read from an exchange that is there.
        let channel = link.channel().await?;
        let passive = ExchangeDeclareOptions { passive: true, ..options };
        let found = channel.exchange_declare(short(exchange), kind, passive, FieldTable::default());
        if answer("looking for an exchange", found).await?.is_ok() {
            return Ok(channel);
        }
    }
    Err(failed(format!("cannot declare exchange `{exchange}`"), error))
}

/// Declares the queue, or looks whether it is there.
async fn declare_queue(channel: &Channel, name: &str, declare: Option<&Declare>) -> Result<(), SourceError> {
    let Some(declare) = declare else {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let found = channel.queue_declare(short(name), options, FieldTable::default());
        return match answer("looking for a queue", found).await? {
            Ok(_) => Ok(()),
            Err(e) if is(&e, AMQPSoftError::NOTFOUND) => {
                Err(SourceError::missing(format!("queue `{name}` is not there yet (`declare: true` would make it)")))
            }
            Err(e) => Err(failed(format!("cannot use queue `{name}`"), e)),
        };
    };
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(short(name), options, arguments(declare));
    match answer("declaring a queue", declared).await? {
        Ok(_) => Ok(()),
        Err(e) if is(&e, AMQPSoftError::PRECONDITIONFAILED) => {
            Err(failed(format!("queue `{name}` is there, but with other settings than it would be declared with"), e))
        }
        Err(e) => Err(failed(format!("cannot declare queue `{name}`"), e)),
    }
}

fn arguments(declare: &Declare) -> FieldTable {
    let mut table = FieldTable::default();
    let mut text = |key: &str, value: &str| {
        table.insert(short(key), AMQPValue::LongString(value.into()));
    };
    match declare.queue_type {
        QueueType::Classic => {}
        QueueType::Quorum => text("x-queue-type", "quorum"),
        QueueType::Stream => {
            text("x-queue-type", "stream");
            text("x-max-age", &format!("{}s", declare.max_age.as_secs()));
            let mut number = |key: &str, value: u64| {
                table.insert(short(key), AMQPValue::LongLongInt(i64::try_from(value).unwrap_or(i64::MAX)));
            };
            number("x-max-length-bytes", declare.max_bytes);
            // Only whole segments are dropped, and never the last: small ones keep the limits close.
            number("x-stream-max-segment-size-bytes", (declare.max_bytes / 8).clamp(64 << 10, 500_000_000));
        }
    }
    table
}
