//! Reading a queue: deliveries to messages, acknowledged once they are in the window.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, poll_fn};
use futures_util::{FutureExt as _, StreamExt as _};
use lapin::message::Delivery;
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Consumer};

use super::acks::Acks;
use super::config::Origin;
use super::error::{ended, failed, is};
use super::link::{Link, answer, set_up};
use super::upkeep::Upkeep;
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
    /// Whether the queue may be a stream: the first message shows it.
    doubtful: bool,
    /// A message that looks like one of a stream, and the question whether the queue is one.
    held: Option<Held>,
    upkeep: Option<Upkeep>,
    link: Arc<Link>,
}

struct Held {
    delivery: Delivery,
    asked: BoxFuture<'static, Result<(), SourceError>>,
}

impl Reader {
    /// Connects, declares what is to be declared, and consumes.
    pub(in crate::source) async fn open(source: &Amqp) -> Result<Self, SourceError> {
        let config = &source.config;
        let link = Arc::new(Link::open(&config.broker, &source.name).await?);
        let (channel, queue) = set_up(&link, config, &source.name).await?;
        let upkeep = Upkeep::start(&link, config, &queue).await?;
        link.flow().meter(channel.id());
        let consumer = consume(&channel, &queue, config.prefetch, FieldTable::default()).await?;
        Ok(Self {
            consumer,
            channel: channel.id(),
            acks: Acks::new(channel, config.prefetch, ACK_DELAY),
            names: Arc::clone(&source.names),
            queue,
            // Of what was declared the type is known.
            doubtful: matches!(config.origin, Origin::Named { declare: None, .. }),
            held: None,
            upkeep,
            link,
        })
    }

    fn poll(&mut self, cx: &mut Context<'_>, batch: &mut Vec<Item>, limit: usize) -> Poll<Result<(), SourceError>> {
        let before = batch.len();
        while batch.len() - before < limit {
            if let Some(held) = &mut self.held {
                match held.asked.poll_unpin(cx) {
                    Poll::Pending => break,
                    Poll::Ready(asked) => asked?,
                }
                if let Some(held) = self.held.take() {
                    self.hand_out(held.delivery, batch);
                }
                continue;
            }
            let delivery = match self.consumer.poll_next_unpin(cx) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(delivery))) => delivery,
                Poll::Ready(Some(Err(e))) => return Poll::Ready(Err(lost(&self.queue, Some(e)))),
                Poll::Ready(None) => return Poll::Ready(Err(lost(&self.queue, None))),
            };
            if std::mem::take(&mut self.doubtful) && offset(&delivery).is_some() {
                let asked = Box::pin(is_no_stream(Arc::clone(&self.link), self.queue.clone()));
                self.held = Some(Held { delivery, asked });
            } else {
                self.hand_out(delivery, batch);
            }
        }
        if let Some(upkeep) = &mut self.upkeep
            && let Poll::Ready(error) = upkeep.poll(cx)
        {
            return Poll::Ready(Err(error));
        }
        if let Poll::Ready(e) = self.acks.poll(cx) {
            return Poll::Ready(Err(lost(&self.queue, Some(e))));
        }
        if batch.len() > before { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn hand_out(&mut self, delivery: Delivery, batch: &mut Vec<Item>) {
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
}

/// Asks for what only a stream has: a place to begin at. That a message has the header is no proof, for whoever copies
/// messages from a stream to a queue copies it too.
async fn is_no_stream(link: Arc<Link>, queue: ShortString) -> Result<(), SourceError> {
    let channel = link.channel().await?;
    let mut table = FieldTable::default();
    table.insert(ShortString::from(OFFSET), AMQPValue::LongString("next".into()));
    let failed = |e| failed(format!("cannot see whether queue `{queue}` is a stream"), e);
    answer("setting the prefetch", channel.basic_qos(1, BasicQosOptions::default())).await?.map_err(failed)?;
    let consuming = channel.basic_consume(queue.clone(), ShortString::default(), BasicConsumeOptions::default(), table);
    match answer("consuming", consuming).await? {
        Ok(_) => Err(SourceError::configuration(format!("queue `{queue}` is a stream: it needs `queue_type: stream`"))),
        Err(e) if is(&e, AMQPSoftError::PRECONDITIONFAILED) => Ok(()),
        Err(e) => Err(failed(e)),
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
        let Self { acks, link, consumer, held, upkeep, .. } = *self;
        Box::pin(async move {
            acks.leave().await;
            drop((held, upkeep));
            if let Some(link) = Arc::into_inner(link) {
                link.close().await;
            }
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
    let failed = |e| failed(format!("cannot consume from queue `{queue}`"), e);
    answer("setting the prefetch", channel.basic_qos(prefetch, BasicQosOptions::default())).await?.map_err(failed)?;
    let from_offset = table.contains_key(OFFSET);
    let consuming = channel.basic_consume(queue.clone(), ShortString::default(), BasicConsumeOptions::default(), table);
    answer("consuming", consuming).await?.map_err(|e| {
        if from_offset && is(&e, AMQPSoftError::PRECONDITIONFAILED) {
            return SourceError::configuration(format!("queue `{queue}` is no stream: `queue_type: stream` is wrong")).because(e);
        }
        failed(e)
    })
}

/// The end of a consumer: an error of the channel or connection, or a cancellation by the broker.
pub(in crate::source) fn lost(queue: &ShortString, error: Option<lapin::Error>) -> SourceError {
    match error {
        Some(e) => ended(format!("lost the broker while reading queue `{queue}`"), e),
        None => SourceError::missing(format!("queue `{queue}` was deleted, or the broker stopped reading from it")),
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
        let now = Timestamp::now();
        let time = stamped(&delivery, now).unwrap_or(now);
        Some(Message { subject, payload: Bytes::from(delivery.data), time, position: None })
    }
}

/// The broker's time of a message, where it is set to note it (RabbitMQ's `message_interceptors`). The `timestamp`
/// property is the publisher's and in seconds, so that it does not count here. Where the broker notes none a publisher may
/// have written this one too: a time to come would outlast all others in a window.
pub(in crate::source) fn stamped(delivery: &Delivery, now: Timestamp) -> Option<Timestamp> {
    match delivery.properties.headers().as_ref()?.inner().get("timestamp_in_ms")? {
        AMQPValue::LongLongInt(millis) => {
            let time = Timestamp::from_micros(u64::try_from(*millis).ok()?.checked_mul(1000)?);
            Some(time.min(now))
        }
        _ => None,
    }
}
