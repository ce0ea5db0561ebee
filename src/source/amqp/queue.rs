//! Reading a queue: deliveries to messages, acknowledged once they are in the window.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, poll_fn};
use lapin::message::Delivery;
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Consumer};

use super::acks::Acks;
use super::link::{Link, answer, is, set_up};
use super::{Amqp, Names};
use crate::event::{Message, Timestamp};
use crate::source::{Connection, Item, SourceError};

/// A lost connection brings back what was not acknowledged, so this is short.
const ACK_DELAY: Duration = Duration::from_millis(10);
/// The header with a message's place in its stream.
pub(in crate::source) const OFFSET: &str = "x-stream-offset";

/// A consumer of a queue.
pub(in crate::source) struct Reader {
    consumer: Consumer,
    acks: Acks,
    channel: u16,
    names: Arc<Names>,
    queue: ShortString,
    first: bool,
    link: Link,
}

impl Reader {
    /// Connects, declares what is to be declared, and consumes.
    pub(in crate::source) async fn open(source: &Amqp) -> Result<Self, SourceError> {
        let config = &source.config;
        let link = Link::open(&config.broker, &source.name).await?;
        let (channel, queue) = set_up(&link, config, &source.name).await?;
        link.flow().meter(channel.id());
        let consumer = consume(&channel, &queue, config.prefetch, FieldTable::default()).await?;
        Ok(Self {
            consumer,
            channel: channel.id(),
            acks: Acks::new(channel, config.prefetch, ACK_DELAY),
            names: Arc::clone(&source.names),
            queue,
            first: true,
            link,
        })
    }

    fn poll(&mut self, cx: &mut Context<'_>, batch: &mut Vec<Item>, limit: usize) -> Poll<Result<(), SourceError>> {
        let before = batch.len();
        while batch.len() - before < limit {
            let delivery = match self.consumer.poll_next_unpin(cx) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(delivery))) => delivery,
                Poll::Ready(Some(Err(e))) => return Poll::Ready(Err(lost(&self.queue, Some(e)))),
                Poll::Ready(None) => return Poll::Ready(Err(lost(&self.queue, None))),
            };
            if std::mem::take(&mut self.first) && offset(&delivery).is_some() {
                return Poll::Ready(Err(SourceError::new(format!("queue `{}` is a stream: it needs `queue_type: stream`", self.queue))));
            }
            let tag = delivery.delivery_tag;
            self.link.flow().took(delivery.data.len());
            match self.names.message(delivery, self.link.odd().take(self.channel, tag)) {
                Some(message) => {
                    self.acks.took(tag);
                    batch.push(Item::Message(message));
                }
                None => self.acks.skipped(tag),
            }
        }
        if let Poll::Ready(e) = self.acks.poll(cx) {
            return Poll::Ready(Err(lost(&self.queue, Some(e))));
        }
        if batch.len() > before { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

impl Connection for Reader {
    fn next<'a>(&'a mut self, batch: &'a mut Vec<Item>, limit: usize) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(poll_fn(move |cx| self.poll(cx, batch, limit)))
    }

    fn acknowledge<'a>(&'a mut self, _: &'a str) -> BoxFuture<'a, Result<(), SourceError>> {
        self.acks.cover();
        Box::pin(poll_fn(move |cx| match self.acks.poll(cx) {
            Poll::Ready(e) => Poll::Ready(Err(lost(&self.queue, Some(e)))),
            // What is on its way goes on by itself, and the rest with the next reading.
            Poll::Pending => Poll::Ready(Ok(())),
        }))
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        let Self { acks, link, consumer, .. } = *self;
        Box::pin(async move {
            acks.leave().await;
            link.close().await;
            drop(consumer);
        })
    }
}

/// Consumes from a queue with manual acknowledgement.
pub(in crate::source) async fn consume(
    channel: &Channel,
    queue: &ShortString,
    prefetch: u16,
    table: FieldTable,
) -> Result<Consumer, SourceError> {
    let failed = |e| SourceError::with(format!("cannot consume from queue `{queue}`"), e);
    answer("setting the prefetch", channel.basic_qos(prefetch, BasicQosOptions::default())).await?.map_err(failed)?;
    let from_offset = table.contains_key(OFFSET);
    let consuming = channel.basic_consume(queue.clone(), ShortString::default(), BasicConsumeOptions::default(), table);
    answer("consuming", consuming).await?.map_err(|e| {
        if from_offset && is(&e, AMQPSoftError::PRECONDITIONFAILED) {
            return SourceError::with(format!("queue `{queue}` is no stream: `queue_type: stream` is wrong"), e);
        }
        failed(e)
    })
}

/// The end of a consumer: an error of the channel or connection, or a cancellation by the broker.
pub(in crate::source) fn lost(queue: &ShortString, error: Option<lapin::Error>) -> SourceError {
    match error {
        Some(e) => SourceError::with(format!("lost the broker while reading queue `{queue}`"), e),
        None => SourceError::new(format!("queue `{queue}` was deleted, or the broker stopped reading from it")),
    }
}

/// A message's place in its stream.
pub(in crate::source) fn offset(delivery: &Delivery) -> Option<u64> {
    match delivery.properties.headers().as_ref()?.inner().get(OFFSET)? {
        AMQPValue::LongLongInt(offset) => u64::try_from(*offset).ok(),
        _ => None,
    }
}

impl Names {
    /// A delivery as a message; `None` where the binding does not ask for it.
    pub(in crate::source) fn message(&self, delivery: Delivery, odd: Option<Box<[u8]>>) -> Option<Message> {
        let subject = self.subject(odd.as_deref().unwrap_or(delivery.routing_key.as_str().as_bytes()))?;
        let time = stamped(&delivery).unwrap_or_else(Timestamp::now);
        Some(Message { subject, payload: Bytes::from(delivery.data), time, position: None })
    }
}

/// The broker's time of a message, where it is set to note it (RabbitMQ's `message_interceptors`). The `timestamp`
/// property is the publisher's and in seconds, so that it does not count here.
pub(in crate::source) fn stamped(delivery: &Delivery) -> Option<Timestamp> {
    match delivery.properties.headers().as_ref()?.inner().get("timestamp_in_ms")? {
        AMQPValue::LongLongInt(millis) => u64::try_from(*millis).ok()?.checked_mul(1000).map(Timestamp::from_micros),
        _ => None,
    }
}
