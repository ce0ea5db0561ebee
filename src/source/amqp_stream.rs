//! RabbitMQ streams, by AMQP 0-9-1: a log that every reader reads for itself, from any place.
//!
//! A position is the offset of a message and a check of its routing key and payload: the same for every reader, and no
//! longer so once the stream was made anew. Offsets have holes, so that a hole alone is no loss. A message's time is the
//! broker's where that notes one; of old messages the publisher's; else that of receipt: the protocol does not
//! tell when a message was appended.

use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use lapin::Channel;
use lapin::message::Delivery;
use lapin::types::ShortString;
use tokio::time::Instant;

use self::log::{Ask, beyond, consume_from, first_left, joins, look, plan, position};
use super::amqp::acks::Acks;
use super::amqp::feed::{Came, Feed, Reads, next};
use super::amqp::link::Link;
use super::amqp::publish::publish;
use super::amqp::queue::stamped;
use super::amqp::topology::set_up;
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
        let place = set_up(&link, &self.amqp).await?;
        let upkeep = Upkeep::start(&link, place.binding, &place.queue).await?;
        let channel = link.channel().await?;
        // On a connection of its own: what this reader does not take holds up no other reader.
        link.flow().meter(channel.id());
        let reader = self.read(Arc::new(link), channel, self.amqp.config.prefetch, start).await?;
        Ok(Reader { feed: Feed { upkeep, ..reader.feed }, ..reader })
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
        let (number, acks) = (channel.id(), Acks::new(channel, prefetch, ACK_DELAY));
        Ok(Reader {
            feed: Feed { consumer, acks, upkeep: None, queue: self.queue.clone(), channel: number, link },
            names: Arc::clone(&self.amqp.names),
            items,
            expect: plan.expect,
            after: plan.after,
            tail: plan.tail.filter(|_| !reached).map(|tail| tail.seq),
            last: None,
            held: None,
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
    /// The live one has an upkeep.
    feed: Feed,
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
}

struct Held {
    came: Came,
    at: Position,
    before: Position,
    first: BoxFuture<'static, Result<u64, SourceError>>,
}

impl Reader {
    fn take(&mut self, came: Came, batch: &mut Vec<Item>) -> Result<(), SourceError> {
        let at = position(&came.delivery, came.key(), &self.feed.queue)?;
        let changed = match (self.expect.take(), self.last) {
            (Some(expected), _) => !at.agrees(&expected),
            (None, Some(last)) => at.seq <= last.seq,
            (None, None) => false,
        };
        if changed {
            return Err(SourceError::lost(format!("stream `{}` changed while it was read", self.feed.queue)));
        }
        match self.last {
            // A hole: the broker's own notes, or messages that were dropped before this reader came to them.
            Some(before) if !joins(before, at.seq) => {
                let (link, queue) = (Arc::clone(&self.feed.link), self.feed.queue.clone());
                let first = Box::pin(async move { first_left(&link, &queue).await });
                self.held = Some(Held { came, at, before, first });
            }
            _ => self.hand_out(came, at, batch),
        }
        Ok(())
    }

    /// Whether a hole is a loss, now that it is known where the stream begins.
    fn judge(held: &Held, first: u64) -> Option<Item> {
        let seq = held.at.seq;
        if first <= held.before.seq.saturating_add(1) {
            return None;
        }
        let position = seq.checked_sub(1).map(Position::unverified);
        Some(Item::Gap(Gap { reason: GapReason::Retention, from: Some(held.before.seq), to: Some(seq), position }))
    }

    fn hand_out(&mut self, came: Came, at: Position, batch: &mut Vec<Item>) {
        self.last = Some(at);
        let tag = came.delivery.delivery_tag;
        let fresh = self.after.is_none_or(|after| at.seq > after);
        match self.names.subject(came.key()).filter(|_| fresh) {
            Some(subject) => {
                self.feed.acks.took(tag);
                let now = Timestamp::now();
                let old = || self.tail.and_then(|_| published(&came.delivery, now));
                let time = stamped(&came.delivery, now).or_else(old).unwrap_or(now);
                batch.push(Item::Message(Message { subject, payload: Bytes::from(came.delivery.data), time, position: Some(at) }));
            }
            // It may be all that comes for long, and the broker ends a reader that owes it an acknowledgement.
            None => self.feed.acks.skipped(tag),
        }
        if self.tail.is_some_and(|tail| at.seq >= tail) {
            self.tail = None;
            batch.push(Item::Tail(Some(at)));
        }
    }
}

impl Reads for Reader {
    fn feed(&mut self) -> &mut Feed {
        &mut self.feed
    }

    fn poll_step(&mut self, cx: &mut Context<'_>, batch: &mut Vec<Item>) -> Poll<Result<(), SourceError>> {
        if !self.items.is_empty() {
            batch.append(&mut self.items);
            return Poll::Ready(Ok(()));
        }
        if let Some(held) = &mut self.held {
            let first = ready!(held.first.poll_unpin(cx))?;
            if let Some(held) = self.held.take() {
                batch.extend(Self::judge(&held, first));
                self.hand_out(held.came, held.at, batch);
            }
            return Poll::Ready(Ok(()));
        }
        let came = ready!(self.feed.poll_next(cx))?;
        Poll::Ready(self.take(came, batch))
    }
}

/// The publisher's time of a message, where that can be.
fn published(delivery: &Delivery, now: Timestamp) -> Option<Timestamp> {
    let seconds = delivery.properties.timestamp().filter(|seconds| *seconds >= EARLIEST_TIME)?;
    Some(Timestamp::from_micros(seconds.checked_mul(1_000_000)?).min(now))
}

impl Connection for Reader {
    fn next<'a>(&'a mut self, batch: &'a mut Vec<Item>, limit: usize) -> BoxFuture<'a, Result<(), SourceError>> {
        // What was handed out before has been taken.
        self.feed.acks.cover();
        next(self, batch, limit)
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        let Self { feed, held, .. } = *self;
        Box::pin(async move {
            // Acknowledging means nothing to a stream. Where others read over this connection, it stays.
            drop(held);
            feed.close().await;
        })
    }
}
