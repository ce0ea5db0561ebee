//! RabbitMQ streams, by AMQP 0-9-1: a log that every reader reads for itself, from any place.
//!
//! A position is the offset of a message and a check of its routing key and payload: the same for every reader, and no
//! longer so once the stream was made anew. Offsets have holes, so that a hole alone is no loss. A message's time is the
//! broker's where that notes one; of old messages the publisher's; else that of receipt: the protocol does not
//! tell when a message was appended.

use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, poll_fn};
use futures_util::{FutureExt as _, StreamExt as _};
use lapin::message::Delivery;
use lapin::types::ShortString;
use lapin::{Channel, Consumer};
use tokio::time::Instant;

use self::log::{Ask, beyond, consume_from, first_left, joins, look, plan, position};
use super::amqp::acks::Acks;
use super::amqp::link::{Link, set_up};
use super::amqp::publish::publish;
use super::amqp::queue::{lost, stamped};
use super::amqp::upkeep::Upkeep;
use super::amqp::{Amqp, Names};
use super::{Adapter, Connection, Item, SourceError, Start};
use crate::cursor::Position;
use crate::event::{Gap, GapReason, Message, Timestamp};
use crate::subject::Pattern;

mod log;
#[cfg(test)]
mod tests;

/// Acknowledging only lets more come, so it may wait for others.
const ACK_DELAY: Duration = Duration::from_millis(100);
/// What may be on its way to one reader of history, who may be slow.
const HISTORY_PREFETCH: u16 = 256;
/// A replica of the stream may be behind the one that a position was read from: so long it may catch up.
const CATCH_UP: Duration = Duration::from_secs(2);
/// Publishers' times before this (2001-09-09) are none.
const EARLIEST_TIME: u64 = 1_000_000_000;

/// A source that reads a stream.
pub(super) struct Stream {
    amqp: Amqp,
    queue: ShortString,
    /// All readers of history share one connection, for each has a thread and buffers.
    shared: tokio::sync::Mutex<Weak<Link>>,
}

impl Stream {
    pub(super) fn new(amqp: Amqp) -> Self {
        let queue = amqp.config.queue(&amqp.name).unwrap_or_default();
        // Names have been checked to fit.
        let queue = ShortString::try_new(queue).unwrap_or_default();
        Self { amqp, queue, shared: tokio::sync::Mutex::default() }
    }

    async fn live(&self, start: Start) -> Result<Reader, SourceError> {
        let link = Link::open(&self.amqp.config.broker, &self.amqp.name).await?;
        let (channel, _) = set_up(&link, &self.amqp.config, &self.amqp.name).await?;
        let upkeep = Upkeep::start(&link, &self.amqp.config, &self.queue).await?;
        // Its own connection: what it does not take holds up nobody else.
        link.flow().meter(channel.id());
        let reader = self.read(Arc::new(link), channel, self.amqp.config.prefetch, start).await?;
        Ok(Reader { upkeep, ..reader })
    }

    async fn old(&self, start: Start) -> Result<Reader, SourceError> {
        let link = self.shared().await?;
        let channel = link.channel().await?;
        self.read(link, channel, HISTORY_PREFETCH.min(self.amqp.config.prefetch), start).await
    }

    async fn shared(&self) -> Result<Arc<Link>, SourceError> {
        let mut shared = self.shared.lock().await;
        if let Some(link) = shared.upgrade().filter(|link| link.works()) {
            return Ok(link);
        }
        let link = Arc::new(Link::open(&self.amqp.config.broker, &self.amqp.name).await?);
        *shared = Arc::downgrade(&link);
        Ok(link)
    }

    async fn read(&self, link: Arc<Link>, channel: Channel, prefetch: u16, start: Start) -> Result<Reader, SourceError> {
        if start == Start::LastPerSubject {
            return Err(SourceError::configuration("a RabbitMQ stream keeps no index of subjects"));
        }
        let begun = Instant::now();
        let log = loop {
            let log = look(&link, &self.queue, Ask::of(start)).await?;
            if !beyond(start, log.as_ref()) || begun.elapsed() > CATCH_UP {
                break log;
            }
            tokio::time::sleep(CATCH_UP / 10).await;
        };
        let plan = plan(start, log.as_ref());
        let consumer = consume_from(&channel, &self.queue, prefetch, plan.from).await?;
        let mut items: Vec<Item> = plan.gap.map(Item::Gap).into_iter().collect();
        let reached = plan.tail.is_none_or(|tail| plan.after.is_some_and(|after| after >= tail.seq));
        if reached {
            items.push(Item::Tail(plan.tail));
        }
        Ok(Reader {
            consumer,
            acks: Acks::new(channel.clone(), prefetch, ACK_DELAY),
            channel,
            queue: self.queue.clone(),
            names: Arc::clone(&self.amqp.names),
            items,
            expect: plan.expect,
            after: plan.after,
            tail: plan.tail.filter(|_| !reached).map(|tail| tail.seq),
            last: None,
            held: None,
            upkeep: None,
            link,
        })
    }
}

impl Adapter for Stream {
    fn kind(&self) -> &'static str {
        "amqp"
    }

    fn durable(&self) -> bool {
        true
    }

    fn reach(&self) -> Vec<Pattern> {
        self.amqp.names.reach.clone()
    }

    fn connect(&self, start: Start) -> BoxFuture<'_, Result<Box<dyn Connection>, SourceError>> {
        Box::pin(async move { Ok(Box::new(self.live(start).await?) as Box<dyn Connection>) })
    }

    fn history(&self, start: Start) -> BoxFuture<'_, Result<Box<dyn Connection>, SourceError>> {
        Box::pin(async move { Ok(Box::new(self.old(start).await?) as Box<dyn Connection>) })
    }

    fn publish<'a>(&'a self, subject: &'a str, payload: Bytes) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(publish(&self.amqp, subject, payload))
    }
}

/// A reader of the stream. Dropped, it stops at once.
struct Reader {
    consumer: Consumer,
    acks: Acks,
    channel: Channel,
    queue: ShortString,
    names: Arc<Names>,
    /// To be handed out before anything else.
    items: Vec<Item>,
    /// What must come first.
    expect: Option<Position>,
    /// What has been handed out before: up to here.
    after: Option<u64>,
    /// The end as it was at the beginning, until it is reached.
    tail: Option<u64>,
    /// The last message that came.
    last: Option<Position>,
    /// A message behind a hole, and the question where the stream begins now.
    held: Option<Held>,
    /// Of the live one.
    upkeep: Option<Upkeep>,
    link: Arc<Link>,
}

/// A message that came.
struct Came {
    delivery: Delivery,
    /// Its routing key, where that is no text.
    odd: Option<Box<[u8]>>,
    position: Position,
}

struct Held {
    came: Came,
    before: Position,
    first: BoxFuture<'static, Result<u64, SourceError>>,
}

impl Reader {
    fn poll(&mut self, cx: &mut Context<'_>, batch: &mut Vec<Item>, limit: usize) -> Poll<Result<(), SourceError>> {
        let before = batch.len();
        batch.append(&mut self.items);
        // What was handed out before has been taken.
        self.acks.cover();
        while batch.len() - before < limit {
            if let Some(held) = &mut self.held {
                let first = match held.first.poll_unpin(cx) {
                    Poll::Pending => break,
                    Poll::Ready(first) => first?,
                };
                if let Some(held) = self.held.take() {
                    batch.extend(Self::judge(&held, first));
                    self.hand_out(held.came, batch);
                }
                continue;
            }
            let delivery = match self.consumer.poll_next_unpin(cx) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(delivery))) => delivery,
                Poll::Ready(Some(Err(e))) => return Poll::Ready(Err(lost(&self.queue, Some(e)))),
                Poll::Ready(None) => return Poll::Ready(Err(lost(&self.queue, None))),
            };
            self.take(delivery, batch)?;
        }
        if batch.len() == before {
            // What was passed over may be all that comes for long, and the broker ends who owes it an acknowledgement.
            self.acks.cover();
        }
        if let Poll::Ready(e) = self.acks.poll(cx) {
            return Poll::Ready(Err(lost(&self.queue, Some(e))));
        }
        if let Some(upkeep) = &mut self.upkeep
            && let Poll::Ready(error) = upkeep.poll(cx)
        {
            return Poll::Ready(Err(error));
        }
        if batch.len() > before { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn take(&mut self, delivery: Delivery, batch: &mut Vec<Item>) -> Result<(), SourceError> {
        let tag = delivery.delivery_tag;
        self.acks.took(tag);
        if self.link.flow().meters(self.channel.id()) {
            self.link.flow().took(delivery.data.len());
        }
        let odd = self.link.odd().take(self.channel.id(), tag);
        let position = position(&delivery, odd.as_deref(), &self.queue)?;
        let came = Came { delivery, odd, position };
        let changed = match (self.expect.take(), self.last) {
            (Some(expected), _) => !position.agrees(&expected),
            (None, Some(last)) => position.seq <= last.seq,
            (None, None) => false,
        };
        if changed {
            return Err(SourceError::lost(format!("stream `{}` changed while it was read", self.queue)));
        }
        match self.last {
            // A hole: the broker's own notes, or messages that were dropped before this reader came to them.
            Some(before) if !joins(before, position.seq) => {
                let (link, queue) = (Arc::clone(&self.link), self.queue.clone());
                let first = Box::pin(async move { first_left(&link, &queue).await });
                self.held = Some(Held { came, before, first });
            }
            _ => self.hand_out(came, batch),
        }
        Ok(())
    }

    /// Whether a hole is a loss, now that it is known where the stream begins.
    fn judge(held: &Held, first: u64) -> Option<Item> {
        let seq = held.came.position.seq;
        if first <= held.before.seq.saturating_add(1) {
            return None;
        }
        let position = seq.checked_sub(1).map(Position::unverified);
        Some(Item::Gap(Gap { reason: GapReason::Retention, from: Some(held.before.seq), to: Some(seq), position }))
    }

    fn hand_out(&mut self, came: Came, batch: &mut Vec<Item>) {
        let Came { delivery, odd, position } = came;
        self.last = Some(position);
        if self.after.is_none_or(|after| position.seq > after) {
            let now = Timestamp::now();
            let old = || self.tail.and_then(|_| published(&delivery, now));
            let time = stamped(&delivery, now).or_else(old).unwrap_or(now);
            let key = odd.as_deref().unwrap_or(delivery.routing_key.as_str().as_bytes());
            if let Some(subject) = self.names.subject(key) {
                batch.push(Item::Message(Message { subject, payload: Bytes::from(delivery.data), time, position: Some(position) }));
            }
        }
        if self.tail.is_some_and(|tail| position.seq >= tail) {
            self.tail = None;
            batch.push(Item::Tail(Some(position)));
        }
    }
}

/// The publisher's time of a message, where that can be.
fn published(delivery: &Delivery, now: Timestamp) -> Option<Timestamp> {
    let seconds = delivery.properties.timestamp().filter(|seconds| *seconds >= EARLIEST_TIME)?;
    Some(Timestamp::from_micros(seconds.checked_mul(1_000_000)?).min(now))
}

impl Connection for Reader {
    fn next<'a>(&'a mut self, batch: &'a mut Vec<Item>, limit: usize) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(poll_fn(move |cx| self.poll(cx, batch, limit)))
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        let Self { acks, link, consumer, channel, held, upkeep, .. } = *self;
        Box::pin(async move {
            // Acknowledging means nothing to a stream. Where others read over this connection, it stays.
            drop((held, upkeep, acks, consumer, channel));
            if let Some(link) = Arc::into_inner(link) {
                link.close().await;
            }
        })
    }
}
