//! RabbitMQ streams, by AMQP 0-9-1: a log that every reader reads for itself, from any place.
//!
//! A position is the offset of a message and a check of its routing key and payload: the same for every reader, and no
//! longer so once the stream was made anew. Offsets have holes, so that a hole alone is no loss. What the broker cannot
//! deliver is passed, with a gap. A message's time is the
//! broker's where that notes one; of old messages the publisher's; else that of receipt: the protocol does not
//! tell when a message was appended.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use lapin::message::Delivery;
use lapin::types::ShortString;
use lapin::{Channel, Consumer};
use parking_lot::Mutex;
use tokio::time::Instant;

use self::log::{Ask, Log, at, beyond, first_left, joins, leave, look, look_for_replica, plan, position, shows_notes};
use self::past::{Line, Passed, Past};
use self::super_stream::{SuperStream, growth};
use super::amqp::Amqp;
use super::amqp::acks::Acks;
use super::amqp::error::is_internal;
use super::amqp::feed::{Came, Feed, Reads, next};
use super::amqp::flow;
use super::amqp::link::Link;
use super::amqp::publish::publish;
use super::amqp::queue::{message, stamped};
use super::amqp::recurring::Recurring;
use super::amqp::topology::{kept, set_up};
use super::amqp::upkeep::upkeep;
use super::parts::Parts;
use super::{Adapter, Connection, ErrorKind, Gauges, Item, SourceError, Start};
use crate::cursor::Position;
use crate::event::{Gap, GapReason, Timestamp};
use crate::subject::{Pattern, Subject};
use crate::support::causes::chain;

mod log;
mod past;
pub(super) mod super_stream;
#[cfg(test)]
mod tests;

/// Acknowledging only lets more come, so it may wait for others.
const ACK_DELAY: Duration = Duration::from_millis(100);
/// What may be on its way to one reader of history, who may be slow.
const HISTORY_PREFETCH: u16 = 256;
/// The same of large messages: the broker has them all in memory until they are sent.
const LARGE_PREFETCH: u16 = 16;
/// So many messages come one by one behind one that the broker cannot deliver, for such ones seldom come alone.
const CAREFUL: u32 = 64;
/// While nothing comes, the node is asked so often whether it still has a replica.
const LOOK: Duration = Duration::from_secs(5);
/// A replica of the stream may be behind the one that a position was read from: so long it may catch up.
const CATCH_UP: Duration = Duration::from_secs(2);
/// Publishers' times before this (2001-09-09) are none.
const EARLIEST_TIME: u64 = 1_000_000_000;

/// A source that reads a stream.
pub(super) struct Stream {
    amqp: Arc<Amqp>,
    queue: ShortString,
    /// Readers of history share one connection, for each has a thread and buffers. But those of large messages have their own: what
    /// waits for them is bounded in bytes by not reading the socket, which would hold up all who share it.
    shared: Mutex<Weak<Link>>,
    /// What feeds it was deleted while it was read: messages may have been lost before they came to it.
    unfed: Arc<AtomicBool>,
    /// Offsets that the live reader found empty.
    passed: Arc<AtomicU64>,
    /// A reader has seen that its segments begin with notes: see [`joins`].
    noted: Arc<AtomicBool>,
    /// The super stream whose first partition this is.
    whole: Option<Arc<SuperStream>>,
}

impl Stream {
    pub(super) fn new(amqp: Amqp) -> Self {
        let queue = amqp.config.queue(&amqp.name).unwrap_or_default();
        // Names have been checked to fit.
        let queue = ShortString::try_new(queue).unwrap_or_default();
        let (unfed, passed, noted) = Default::default();
        Self { amqp: Arc::new(amqp), queue, shared: Mutex::default(), unfed, passed, noted, whole: None }
    }

    /// A connection: its own for the live reader, so that what this does not take holds up no other reader.
    async fn line(&self, live: bool) -> Result<(Arc<Link>, Option<Recurring>), SourceError> {
        if !live {
            return Ok((self.shared().await?, None));
        }
        self.amqp.config.broker.next_turn();
        let link = Arc::new(Link::open(&self.amqp.config.broker, &self.amqp.name).await?);
        let place = set_up(&link, &self.amqp).await?;
        if let Some(whole) = &self.whole {
            whole.look(&link).await?;
        }
        let upkeep = upkeep(&link, place.binding, &place.queue, None).await?;
        Ok((link, upkeep))
    }

    async fn shared(&self) -> Result<Arc<Link>, SourceError> {
        let working = |shared: &Weak<Link>| shared.upgrade().filter(|link| link.works());
        let known = working(&self.shared.lock());
        if let Some(link) = known {
            return Ok(link);
        }
        // Not under the lock: a future that connects may not be polled for long, and an attempt may take long to fail. If two
        // connect, the first connection is used.
        let fresh = Arc::new(Link::open(&self.amqp.config.broker, &self.amqp.name).await?);
        let mut shared = self.shared.lock();
        let first = working(&shared).unwrap_or_else(|| fresh.clone());
        *shared = Arc::downgrade(&first);
        Ok(first)
    }

    async fn read(&self, live: bool, start: Start) -> Result<Reader, SourceError> {
        if start == Start::LastPerSubject {
            return Err(SourceError::configuration("a RabbitMQ stream keeps no index of subjects"));
        }
        let (mut link, mut upkeep) = self.line(live).await?;
        let log = match self.bounds(&link, start).await {
            Err(e) if e.kind() == ErrorKind::Protocol => {
                tracing::debug!(source = %self.amqp.name, error = chain(&e), "looks at a stream step by step");
                let log = Past { source: &self.amqp, queue: &self.queue }.bounds(Ask::of(start)).await?;
                (link, upkeep) = self.line(live).await?;
                log
            }
            log => log?,
        };
        let log = log.map(|log| Log { noted: log.noted || self.noted.load(Ordering::Relaxed), ..log });
        let plan = plan(start, log.as_ref());
        let prefetch = if live { self.amqp.config.prefetch } else { HISTORY_PREFETCH.min(self.amqp.config.prefetch) };
        let unfed = live.then(|| Arc::clone(&self.unfed));
        let (source, noted) = (Arc::clone(&self.amqp), Arc::clone(&self.noted));
        let mut home = Home { source, queue: self.queue.clone(), noted, live, prefetch };
        let shared = !live && !log.is_some_and(|log| home.is_too_large(log.size));
        if !live && !shared {
            home.prefetch = prefetch.min(LARGE_PREFETCH);
            link = Arc::new(Link::open(&self.amqp.config.broker, &self.amqp.name).await?);
        }
        let line = Line::open(link, &self.queue, home.prefetch, at(plan.from), (!shared).then(|| home.most())).await?;
        let unfed_before = unfed.as_ref().is_some_and(|unfed| unfed.swap(false, Ordering::Relaxed));
        let gap = plan.gap.or_else(|| unfed_before.then(|| unfed_gap(start)));
        let mut items: Vec<Item> = gap.map(Item::Gap).into_iter().collect();
        let reached = plan.tail.is_none_or(|tail| plan.after.is_some_and(|after| after >= tail.seq));
        if reached {
            items.push(Item::Tail(plan.tail));
        }
        Ok(Reader {
            feed: home.feed(line, home.prefetch, upkeep),
            unfed,
            passed: live.then(|| Arc::clone(&self.passed)),
            growth: if live { growth(self.whole.as_ref()) } else { None },
            replica: live.then(Replica::default),
            home,
            shared,
            mean: 0,
            items,
            next: plan.from,
            expect: plan.expect,
            after: plan.after,
            tail: plan.tail.filter(|_| !reached).map(|tail| tail.seq),
            last: None,
            held: None,
            passing: None,
            careful: None,
        })
    }

    async fn bounds(&self, link: &Link, start: Start) -> Result<Option<Log>, SourceError> {
        let begun = Instant::now();
        loop {
            let log = look(link, &self.queue, Ask::of(start)).await?;
            if !beyond(start, log.as_ref()) || begun.elapsed() > CATCH_UP {
                return Ok(log);
            }
            tokio::time::sleep(CATCH_UP / 10).await;
        }
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
        Box::pin(async move { Ok(Box::new(self.read(true, start).await?) as Box<dyn Connection>) })
    }

    fn history(&self, start: Start) -> BoxFuture<'_, Result<Box<dyn Connection>, SourceError>> {
        Box::pin(async move { Ok(Box::new(self.read(false, start).await?) as Box<dyn Connection>) })
    }

    fn check(&self) -> BoxFuture<'_, Vec<SourceError>> {
        Box::pin(async {
            let mut faults = self.amqp.faults().await;
            if let Some(whole) = &self.whole {
                // What is wrong with the broker is the same for all partitions.
                let others = whole.faults().await.into_iter();
                let new: Vec<_> = others.filter(|new| faults.iter().all(|known| chain(known) != chain(new))).collect();
                faults.extend(new);
            }
            faults
        })
    }

    fn advice(&self) -> Vec<(&'static str, String)> {
        self.amqp.config.broker.advice()
    }

    fn parts(&self) -> Option<&Arc<Parts>> {
        self.whole.as_ref().map(|whole| &whole.parts)
    }

    fn gauges(&self) -> Gauges {
        let others = self.whole.iter().flat_map(|whole| whole.parts.others()).filter_map(|part| part.adapter.gauges().passed);
        let passed = self.passed.load(Ordering::Relaxed) + others.sum::<u64>();
        Gauges { expires: self.amqp.config.broker.expiry.get(), passed: Some(passed), ..Gauges::default() }
    }

    fn narrowed(&self, subject: &Subject) -> Option<Arc<dyn Adapter>> {
        // Of a super stream's partitions, each holds a part.
        let alone = self.whole.is_none().then(|| self.amqp.narrowed(subject))??;
        Some(Arc::new(Self::new(alone)))
    }

    fn keeps_for(&self) -> BoxFuture<'_, Result<Option<Duration>, SourceError>> {
        Box::pin(async {
            let link = self.shared().await?;
            kept(&link, self.queue.as_str(), self.amqp.config.keeps_for()).await
        })
    }

    fn publishes_only(&self) -> Option<String> {
        self.amqp.publishes_only()
    }

    fn publish<'a>(&'a self, subject: &'a str, payload: Bytes) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(publish(&self.amqp, subject, payload))
    }
}

/// Of what was published while the exchange or its binding was missing.
fn unfed_gap(start: Start) -> Gap {
    let position = if let Start::After(position) = start { Some(position) } else { None };
    Gap { reason: GapReason::Reconnect, from: position.map(|position| position.seq), to: None, position }
}

/// What a reader reads, and how.
struct Home {
    source: Arc<Amqp>,
    queue: ShortString,
    /// See [`Stream::noted`].
    noted: Arc<AtomicBool>,
    live: bool,
    prefetch: u16,
}

impl Home {
    fn feed(&self, line: Line, prefetch: u16, upkeep: Option<Recurring>) -> Feed {
        let Line { link, channel, consumer } = line;
        let (number, renewal) = (channel.id(), link.renewal());
        Feed { consumer, acks: Acks::new(channel, prefetch, ACK_DELAY), upkeep, renewal, queue: self.queue.clone(), channel: number, link }
    }

    /// How many bytes may wait to be taken, over a connection of the reader's own.
    fn most(&self) -> u64 {
        if self.live { flow::LIVE } else { flow::HISTORY }
    }

    /// Whether so many messages of this size are too much to wait to be taken, where their number is the only bound.
    fn is_too_large(&self, size: u64) -> bool {
        size.saturating_mul(self.prefetch.into()) > self.most()
    }
}

/// Another connection of a reader.
type Reopening = BoxFuture<'static, Result<(Passed, Option<Recurring>), SourceError>>;

/// A reader of the stream. Dropped, it stops at once.
struct Reader {
    /// The live one has an upkeep.
    feed: Feed,
    /// See [`Stream::unfed`]; the live one's.
    unfed: Option<Arc<AtomicBool>>,
    /// See [`Stream::passed`]; likewise.
    passed: Option<Arc<AtomicU64>>,
    /// Of a super stream's first partition, read live.
    growth: Option<Recurring>,
    /// The live one's.
    replica: Option<Replica>,
    home: Home,
    /// Others use its connection too.
    shared: bool,
    /// Bytes of the messages that came, in the mean of about the last eight.
    mean: u64,
    /// To be handed out before anything else.
    items: Vec<Item>,
    /// The offset from which it reads, until something has come.
    next: u64,
    /// What must come first.
    expect: Option<Position>,
    /// What has been handed out before: up to here.
    after: Option<u64>,
    /// The end as it was at the beginning, until it is reached.
    tail: Option<u64>,
    /// The last message that came, or the last offset that was passed.
    last: Option<Position>,
    /// A message behind a hole, and the question where the stream begins now.
    held: Option<Held>,
    /// Another connection, since the broker ended the last one at a message that it cannot deliver.
    passing: Option<Reopening>,
    /// The messages that came since then, one by one.
    careful: Option<u32>,
}

/// Whether the node still has a replica of the stream: the broker does not end the consumers of one that is deleted.
#[derive(Default)]
struct Replica {
    /// Something has come since the last look.
    seen: Arc<AtomicBool>,
    looking: Option<Recurring>,
}

impl Replica {
    /// Ready only with an error. Over the reader's channel, for a user may have no other.
    fn poll(&mut self, feed: &Feed, cx: &mut Context<'_>) -> Poll<SourceError> {
        let looking = self.looking.get_or_insert_with(|| {
            let (channel, queue, seen) = (feed.acks.channel().clone(), feed.queue.clone(), Arc::clone(&self.seen));
            Recurring::new(LOOK, LOOK, move |link| {
                let (channel, queue, quiet) = (channel.clone(), queue.clone(), !seen.swap(false, Ordering::Relaxed));
                Box::pin(async move { if quiet { look_for_replica(&link, &channel, &queue).await } else { Ok(()) } })
            })
        });
        looking.poll(&feed.link, cx)
    }
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
        // A repetition.
        if self.last.is_some_and(|last| last.check.is_some() && last == at) {
            self.feed.acks.skipped(came.delivery.delivery_tag);
            return Ok(());
        }
        let changed = match (self.expect.take(), self.last) {
            (Some(expected), _) => !at.agrees(&expected),
            (None, Some(last)) => at.seq <= last.seq,
            (None, None) => false,
        };
        if changed {
            return Err(SourceError::lost(format!("stream `{}` changed while it was read", self.feed.queue)));
        }
        match self.last {
            // A hole: the broker's own notes, or messages that were dropped before this reader came to them. One offset alone is taken for a
            // note: between two messages a whole segment would have to be gone, which held a single message.
            Some(before) if !joins(before, at.seq, true) => {
                let (source, queue) = (Arc::clone(&self.home.source), self.feed.queue.clone());
                let may_be_paused = !self.shared && (!self.home.live || self.home.is_too_large(self.mean));
                let link = (!may_be_paused).then(|| Arc::clone(&self.feed.link));
                let first = Box::pin(async move {
                    let link = match link {
                        Some(link) => link,
                        // Over this reader's own, the answer may come behind large messages that nobody takes meanwhile.
                        None => Arc::new(Link::open(&source.config.broker, &source.name).await?),
                    };
                    first_left(&link, &queue).await
                });
                self.held = Some(Held { came, at, before, first });
            }
            before => {
                let hole = before.is_some_and(|before| before.check.is_some() && !joins(before, at.seq, false));
                if hole || shows_notes(&came.delivery) {
                    self.home.noted.store(true, Ordering::Relaxed);
                }
                self.pass(before, at);
                self.hand_out(came, at, batch);
            }
        }
        Ok(())
    }

    /// Makes a connection of its own: a careful one goes on behind what the broker cannot deliver, any other as usual.
    fn reopen(&mut self, careful: bool) {
        let from = self.last.map_or(self.next, |last| last.seq.saturating_add(1));
        if !self.home.live {
            self.home.prefetch = self.home.prefetch.min(LARGE_PREFETCH);
        }
        let (source, queue, live, prefetch) = (Arc::clone(&self.home.source), self.home.queue.clone(), self.home.live, self.home.prefetch);
        let most = self.home.most();
        let before = (self.feed.acks.channel().clone(), self.feed.consumer.clone());
        self.shared = false;
        self.careful = careful.then_some(0);
        self.passing = Some(Box::pin(async move {
            let passed = if careful {
                Past { source: &source, queue: &queue }.pass(from).await?
            } else {
                abandon(before).await;
                let link = Arc::new(Link::open(&source.config.broker, &source.name).await?);
                Passed { line: Line::open(link, &queue, prefetch, at(from), Some(most)).await?, first: None, skipped: None }
            };
            let binding = if live { set_up(&passed.line.link, &source).await?.binding } else { None };
            let upkeep = upkeep(&passed.line.link, binding, &queue, None).await?;
            Ok((passed, upkeep))
        }));
    }

    fn reopened(&mut self, passed: Passed, upkeep: Option<Recurring>, batch: &mut Vec<Item>) -> Result<(), SourceError> {
        let prefetch = if self.careful.is_some() { 1 } else { self.home.prefetch };
        self.feed = self.home.feed(passed.line, prefetch, upkeep);
        self.replica = self.replica.take().map(|_| Replica::default());
        if let Some((bad, to)) = passed.skipped {
            let position = Position::unverified(to - 1);
            self.last = Some(position);
            self.expect = self.expect.filter(|expected| expected.seq >= to);
            // What was handed out before may be a gap.
            if self.after.is_none_or(|after| after < position.seq) {
                let (reason, from) = (GapReason::Unreadable, bad.checked_sub(1));
                batch.push(Item::Gap(Gap { reason, from, to: Some(to), position: Some(position) }));
            }
            if self.tail.take_if(|tail| *tail < to).is_some() {
                batch.push(Item::Tail(Some(position)));
            }
        }
        match passed.first {
            Some(delivery) => {
                let came = self.feed.came(delivery);
                self.take(came, batch)
            }
            None => Ok(()),
        }
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

    /// Counts what is empty between two messages. Behind what was passed with a gap it is most likely the rest of that.
    fn pass(&self, before: Option<Position>, at: Position) {
        if let (Some(passed), Some(before)) = (&self.passed, before.filter(|before| before.check.is_some())) {
            passed.fetch_add((at.seq - before.seq).saturating_sub(1), Ordering::Relaxed);
        }
    }

    fn hand_out(&mut self, came: Came, at: Position, batch: &mut Vec<Item>) {
        self.last = Some(at);
        let tag = came.delivery.delivery_tag;
        let fresh = self.after.is_none_or(|after| at.seq > after);
        match self.home.source.names.subject(came.key()).filter(|_| fresh) {
            Some(subject) => {
                self.feed.acks.took(tag);
                let now = Timestamp::now();
                let old = || self.tail.and_then(|_| published(&came.delivery, now));
                let time = stamped(&came.delivery, now).or_else(old).unwrap_or(now);
                batch.push(Item::Message(message(subject, came.delivery, time, Some(at))));
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
        if let Some(passing) = &mut self.passing {
            let (passed, upkeep) = ready!(passing.poll_unpin(cx))?;
            self.passing = None;
            return Poll::Ready(self.reopened(passed, upkeep, batch));
        }
        if let Some(held) = &mut self.held {
            let first = match ready!(held.first.poll_unpin(cx)) {
                // What the broker cannot deliver is still there.
                Err(e) if is_internal(&e) => 0,
                first => first?,
            };
            if let Some(held) = self.held.take() {
                match Self::judge(&held, first) {
                    Some(gap) => batch.push(gap),
                    None => self.pass(Some(held.before), held.at),
                }
                self.hand_out(held.came, held.at, batch);
            }
            return Poll::Ready(Ok(()));
        }
        if self.careful.is_some_and(|came| came >= CAREFUL) || (self.shared && self.home.is_too_large(self.mean)) {
            self.reopen(false);
            return Poll::Ready(Ok(()));
        }
        match ready!(self.feed.poll_next(cx)) {
            Err(e) if is_internal(&e) => {
                self.reopen(true);
                Poll::Ready(Ok(()))
            }
            came => {
                let came = came?;
                if let Some(replica) = &self.replica {
                    replica.seen.store(true, Ordering::Relaxed);
                }
                self.careful = self.careful.map(|count| count + 1);
                self.mean = self.mean - self.mean / 8 + came.delivery.data.len() as u64 / 8;
                Poll::Ready(self.take(came, batch))
            }
        }
    }

    fn poll_duties(&mut self, cx: &mut Context<'_>) -> Poll<SourceError> {
        // Of a connection that has ended, the consumer says why.
        if self.passing.is_some() || !self.feed.link.works() {
            return Poll::Pending;
        }
        if let Some(Poll::Ready(error)) = self.growth.as_mut().map(|growth| growth.poll(&self.feed.link, cx)) {
            return Poll::Ready(error);
        }
        if let Some(Poll::Ready(error)) = self.replica.as_mut().map(|replica| replica.poll(&self.feed, cx)) {
            return Poll::Ready(error);
        }
        let error = ready!(self.feed.poll_duties(cx));
        if let Some(unfed) = self.unfed.as_ref().filter(|_| error.kind() == ErrorKind::Missing) {
            unfed.store(true, Ordering::Relaxed);
        }
        Poll::Ready(error)
    }
}

/// Closes a consumer's channel. What is on its way to it is dropped as it comes: the library would keep it until then.
async fn abandon((channel, mut consumer): (Channel, Consumer)) {
    let drained = async { while let Some(Ok(_)) = consumer.next().await {} };
    tokio::select! {
        () = leave(&channel) => {}
        () = drained => {}
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
        let Self { feed, held, passing, .. } = *self;
        Box::pin(async move {
            // Acknowledging means nothing to a stream. Where others read over this connection, it stays.
            drop((held, passing));
            feed.close().await;
        })
    }
}
