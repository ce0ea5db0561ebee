//! Reading a queue: deliveries to messages, acknowledged once they are in the window.

use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryFutureExt as _;
use futures_util::future::{BoxFuture, poll_fn};
use lapin::message::Delivery;
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Consumer};

use super::acks::Acks;
use super::config::Origin;
use super::error::{failed, kind, lacks_replica, lost, named};
use super::feed::{Came, Feed, Reads, next};
use super::link::{Link, answer};
use super::topology::{Memory, Place, set_up};
use super::upkeep::upkeep;
use super::{Amqp, Names, flow, headers, sections};
use crate::cursor::Position;
use crate::event::{Gap, GapReason, Message, Timestamp};
use crate::source::{Connection, ErrorKind, Item, SourceError};
use crate::subject::Subject;

/// A lost connection brings back what was not acknowledged, so this is short.
const ACK_DELAY: Duration = Duration::from_millis(10);
/// The header with a message's place in its stream.
pub(in crate::source) const OFFSET: &str = "x-stream-offset";
/// The header with the broker's time of a message, in milliseconds.
pub(super) const TIME: &str = "timestamp_in_ms";

/// A reader of a queue.
pub(in crate::source) struct Reader {
    feed: Feed,
    names: Arc<Names>,
    memory: Arc<Memory>,
    /// Nothing was handed out yet, of a queue that outlives connections.
    fresh: bool,
}

impl Reader {
    /// Connects, finds or makes what is to be read, and consumes.
    pub(in crate::source) async fn open(source: &Amqp) -> Result<Self, SourceError> {
        let config = &source.config;
        config.broker.next_turn();
        let link = Arc::new(Link::open(&config.broker, &source.name).await?);
        let Place { queue, binding } = set_up(&link, source).await?;
        let upkeep = upkeep(&link, binding, &queue, Some(&source.memory)).await?;
        let channel = link.channel().await?;
        link.flow().meter(channel.id(), flow::LIVE);
        let consumer = consume(&link, &channel, &queue, config.prefetch, FieldTable::default()).await?;
        let (number, acks) = (channel.id(), Acks::new(channel, config.prefetch, ACK_DELAY));
        let renewal = link.renewal();
        let feed = Feed { consumer, acks, upkeep, renewal, queue, channel: number, link };
        // An exclusive queue is another one each time, which the supervisor tells.
        let fresh = matches!(config.origin, Origin::Named { .. });
        Ok(Self { feed, names: Arc::clone(&source.names), memory: Arc::clone(&source.memory), fresh })
    }

    fn hand_out(&mut self, came: Came, batch: &mut Vec<Item>) {
        let tag = came.delivery.delivery_tag;
        let Some(subject) = self.names.subject(came.key()) else {
            self.feed.acks.skipped(tag);
            return;
        };
        self.feed.acks.took(tag);
        let now = Timestamp::now();
        let time = stamped(&came.delivery, now).unwrap_or(now);
        batch.push(Item::Message(message(subject, came.delivery, time, None)));
    }
}

impl Reads for Reader {
    fn feed(&mut self) -> &mut Feed {
        &mut self.feed
    }

    fn poll_step(&mut self, cx: &mut Context<'_>, batch: &mut Vec<Item>) -> Poll<Result<(), SourceError>> {
        // One that was deleted took with it what it held, and got nothing until it was made again.
        if std::mem::take(&mut self.fresh) && self.memory.begins() {
            batch.push(Item::Gap(Gap { reason: GapReason::Reconnect, from: None, to: None, position: None }));
            return Poll::Ready(Ok(()));
        }
        let came = ready!(self.feed.poll_next(cx))?;
        self.hand_out(came, batch);
        Poll::Ready(Ok(()))
    }
}

impl Connection for Reader {
    fn next<'a>(&'a mut self, batch: &'a mut Vec<Item>, limit: usize) -> BoxFuture<'a, Result<(), SourceError>> {
        let memory = Arc::clone(&self.memory);
        // The queue was deleted, or the exchange that feeds it.
        let gone = move |error: &SourceError| {
            if error.kind() == ErrorKind::Missing {
                memory.is_gone(true)
            }
        };
        Box::pin(next(self, batch, limit).inspect_err(gone))
    }

    fn acknowledge<'a>(&'a mut self, _: &'a str) -> Option<BoxFuture<'a, Result<(), SourceError>>> {
        self.feed.acks.cover();
        Some(Box::pin(poll_fn(move |cx| match self.feed.acks.poll(cx) {
            Poll::Ready(e) => Poll::Ready(Err(lost(&self.feed.queue, Some(e)))),
            // What is on its way goes on by itself, and the rest with the next reading.
            Poll::Pending => Poll::Ready(Ok(())),
        })))
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        let Self { mut feed, .. } = *self;
        Box::pin(async move {
            feed.acks.leave().await;
            feed.close().await;
        })
    }
}

/// Consumes from a queue with manual acknowledgement.
pub(in crate::source) async fn consume(
    link: &Link,
    channel: &Channel,
    queue: &ShortString,
    prefetch: u16,
    table: FieldTable,
) -> Result<Consumer, SourceError> {
    let wrong = |e| failed(format!("cannot consume from {}", named(queue)), e);
    answer("setting the prefetch", channel.basic_qos(prefetch, BasicQosOptions::default())).await?.map_err(wrong)?;
    let from_offset = table.contains_key(OFFSET);
    let consuming = channel.basic_consume(queue.clone(), link.tag(), BasicConsumeOptions::default(), table);
    answer("consuming", consuming).await?.map_err(|e| match kind(&e) {
        _ if lacks_replica(&e) => {
            link.avoid();
            failed(format!("{} runs no replica of stream `{queue}` (`urls` may name nodes that do)", link.node()), e)
        }
        ErrorKind::Configuration if from_offset => failed(format!("queue `{queue}` is no stream: `queue_type` says otherwise"), e),
        _ => wrong(e),
    })
}

/// A message, as its publisher meant it.
pub(in crate::source) fn message(subject: Subject, delivery: Delivery, time: Timestamp, position: Option<Position>) -> Message {
    let encoded = delivery.properties.kind().as_ref().is_some_and(|kind| kind.as_str() == sections::KIND);
    let decoded = if encoded { sections::payload(&delivery.data) } else { None };
    let headers = headers::of(&delivery.properties, decoded.is_some());
    Message { headers, ..Message::new(subject, Bytes::from(decoded.unwrap_or(delivery.data)), time, position) }
}

/// A message's place in its stream.
pub(in crate::source) fn offset(delivery: &Delivery) -> Option<u64> {
    match delivery.properties.headers().as_ref()?.inner().get(OFFSET)? {
        AMQPValue::LongLongInt(offset) => u64::try_from(*offset).ok(),
        _ => None,
    }
}

/// The broker's time of a message, where it is set to note it (RabbitMQ's `message_interceptors`). The `timestamp`
/// property is the publisher's and in seconds, so that it does not count here. Where the broker notes none a publisher may
/// have written this one too: a time to come would outlast all others in a window.
pub(in crate::source) fn stamped(delivery: &Delivery, now: Timestamp) -> Option<Timestamp> {
    match delivery.properties.headers().as_ref()?.inner().get(TIME)? {
        AMQPValue::LongLongInt(millis) => {
            let time = Timestamp::from_micros(u64::try_from(*millis).ok()?.checked_mul(1000)?);
            Some(time.min(now))
        }
        _ => None,
    }
}
