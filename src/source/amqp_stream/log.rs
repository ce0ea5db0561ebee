//! What a stream holds, and where in it a reader begins.
//!
//! AMQP 0-9-1 tells nothing of a stream's bounds: an offset past its end is silence, one before its start is moved to the
//! start without a word, and a queue's message count is seconds old. So the bounds are read: short-lived consumers
//! at the start, at the wanted place and at the end, in this order on one channel. Once the last has brought something, the
//! others mostly have too; what must come is waited for.

use std::pin::pin;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Consumer};
use tokio::time::{Instant, timeout, timeout_at};

use crate::cursor::{Check, Position};
use crate::event::{Gap, GapReason, Timestamp};
use crate::source::amqp::error::lost;
use crate::source::amqp::link::{Link, answer};
use crate::source::amqp::queue::{OFFSET, consume, offset};
use crate::source::{SourceError, Start};

/// A stream that brings nothing for so long, though its broker answers, is empty.
pub(super) const EMPTY: Duration = Duration::from_millis(500);
/// For the last chunk, once the first has come. RabbitMQ 4 leaves out one that is a compressed batch: then the end is found step by step.
const LAST: Duration = Duration::from_secs(3);
/// For what must come.
const COMES: Duration = Duration::from_secs(10);
/// How much of the end is read at a time.
const PIECE: u16 = 1000;
/// What a message costs in a window beside its payload, roughly.
pub(super) const OVERHEAD: u64 = 300;

/// The bounds of a stream that holds messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Log {
    /// The first message that is known.
    pub(super) first: Position,
    /// From where on there may be others before it, and what cannot be read.
    pub(super) unread: Option<u64>,
    /// The first message at the wanted place or behind it, if there is one.
    pub(super) at: Option<Position>,
    /// The last message.
    pub(super) last: Position,
    /// Bytes that a message of these days takes in a window.
    pub(super) mean: u64,
    /// Bytes of a message where a reader begins or at the end, whichever is more. It is a guess for those between.
    pub(super) size: u64,
    /// Its segments are known to begin with notes: see [`joins`].
    pub(super) noted: bool,
}

/// A place that one wants to know of.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ask {
    /// None.
    Nothing,
    /// An offset.
    Offset(u64),
    /// What came then or later.
    Since(Timestamp),
}

impl Ask {
    /// What has to be known before reading from `start`.
    pub(super) fn of(start: Start) -> Self {
        match start {
            Start::After(position) => Self::Offset(position.seq),
            Start::Since(time) => Self::Since(time),
            Start::Recent { age, .. } => Self::Since(Timestamp::now().before(age)),
            Start::Now | Start::Earliest | Start::LastPerSubject => Self::Nothing,
        }
    }

    /// What a consumer asks for.
    pub(super) fn value(self) -> Option<AMQPValue> {
        match self {
            Self::Nothing => None,
            Self::Offset(offset) => Some(at(offset)),
            Self::Since(time) => Some(AMQPValue::Timestamp(time.as_millis() / 1000)),
        }
    }
}

/// A consumer's beginning: an offset.
pub(super) fn at(offset: u64) -> AMQPValue {
    AMQPValue::LongLongInt(i64::try_from(offset).unwrap_or(i64::MAX))
}

/// A consumer's beginning, by a word.
pub(super) fn word(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// Consumes from a place on.
pub(super) async fn consume_at(
    link: &Link,
    channel: &Channel,
    queue: &ShortString,
    prefetch: u16,
    spec: AMQPValue,
) -> Result<Consumer, SourceError> {
    let mut table = FieldTable::default();
    table.insert(ShortString::from(OFFSET), spec);
    consume(link, channel, queue, prefetch, table).await
}

/// Reads the bounds; `None` where the stream is empty.
pub(super) async fn look(link: &Link, queue: &ShortString, ask: Ask) -> Result<Option<Log>, SourceError> {
    let channel = link.channel().await?;
    let log = Look { link, channel: &channel, queue }.bounds(ask).await?;
    leave(&channel).await;
    Ok(log)
}

/// A look at a stream, on a channel of its own.
struct Look<'a> {
    link: &'a Link,
    channel: &'a Channel,
    queue: &'a ShortString,
}

impl Look<'_> {
    async fn bounds(&self, ask: Ask) -> Result<Option<Log>, SourceError> {
        let mut first = consume_at(self.link, self.channel, self.queue, 1, word("first")).await?;
        let mut wanted = match ask.value() {
            Some(spec) => Some(consume_at(self.link, self.channel, self.queue, 1, spec).await?),
            None => None,
        };
        let mut last = consume_at(self.link, self.channel, self.queue, PIECE, word("last")).await?;
        let Some((head, delivery)) = self.both_ends(&mut first, &mut last).await? else { return Ok(None) };
        let (end, mean) = self.end(&mut last, delivery).await?;
        let head = match head {
            Some(delivery) => delivery,
            None => some(answer("reading the start of a stream", first.next()).await?, self.queue)?,
        };
        let at = match &mut wanted {
            Some(wanted) => self.wanted(wanted, ask, end).await?,
            None => None,
        };
        let size = mean.max(at.as_ref().unwrap_or(&head).data.len() as u64);
        let at = at.map(|at| self.place(&at)).transpose()?;
        Ok(Some(Log { first: self.place(&head)?, unread: None, at, last: end, mean, size, noted: shows_notes(&head) }))
    }

    /// Waits for the first message of the last chunk. The stream's first message may come before it. Returns `None` when
    /// neither comes.
    async fn both_ends(&self, first: &mut Consumer, last: &mut Consumer) -> Result<Option<(Option<Delivery>, Delivery)>, SourceError> {
        let mut head = None;
        let started = Instant::now();
        loop {
            let limit = started + if head.is_some() { LAST } else { EMPTY };
            let came = timeout_at(limit, async {
                tokio::select! {
                    delivery = last.next() => (Some(delivery), None),
                    delivery = first.next(), if head.is_none() => (None, Some(delivery)),
                }
            });
            match came.await {
                Ok((Some(delivery), _)) => return Ok(Some((head, some(delivery, self.queue)?))),
                Ok((_, delivery)) => {
                    let delivery = some(delivery.flatten(), self.queue)?;
                    // Another queue gives each message to one consumer only: the last would not come.
                    place_in(&delivery, self.queue)?;
                    head = Some(delivery);
                }
                Err(_) if head.is_some() => return Err(SourceError::protocol(format!("the end of stream `{}` does not come", self.queue))),
                Err(_) => return Ok(None),
            }
        }
    }

    /// Reads the rest of the last chunk. Returns the last message's position, and the mean size of these messages in bytes.
    async fn end(&self, last: &mut Consumer, mut delivery: Delivery) -> Result<(Position, u64), SourceError> {
        let (mut count, mut bytes, mut credit) = (1, delivery.data.len() as u64, u64::from(PIECE) - 1);
        loop {
            // What the broker sends before the answer to a question has arrived before that answer.
            let mut asking = pin!(answer("reading the end of a stream", self.channel.basic_qos(PIECE, BasicQosOptions::default())));
            let mut answered = false;
            loop {
                let next = if answered {
                    let Some(next) = last.next().now_or_never() else { break };
                    next
                } else {
                    // They may be large, so they are taken as they come.
                    tokio::select! {
                        biased;
                        next = last.next() => next,
                        asked = &mut asking => {
                            asked?.map_err(|e| lost(self.queue, Some(e)))?;
                            answered = true;
                            continue;
                        }
                    }
                };
                delivery = some(next, self.queue)?;
                count += 1;
                bytes += delivery.data.len() as u64;
                credit -= 1;
            }
            if credit > 0 {
                return Ok((self.place(&delivery)?, bytes / count + OVERHEAD));
            }
            let acknowledged = self.channel.basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: true });
            answer("reading the end of a stream", acknowledged).await?.map_err(|e| lost(self.queue, Some(e)))?;
            credit = u64::from(PIECE);
        }
    }

    /// The first message at the wanted place or behind it, if there is one.
    async fn wanted(&self, wanted: &mut Consumer, ask: Ask, end: Position) -> Result<Option<Delivery>, SourceError> {
        // An offset up to the end must come; whether a time lies behind the end is not known.
        let must = matches!(ask, Ask::Offset(offset) if offset <= end.seq);
        let may = must || matches!(ask, Ask::Since(_));
        let mut came = wanted.next().now_or_never();
        if came.is_none() && may {
            // While somebody publishes, the broker may serve the last consumer before the others.
            came = timeout(EMPTY, wanted.next()).await.ok();
        }
        if came.is_none() && may {
            // Seen with 3.10 and 4.0: a consumer that comes while a chunk is written may not be served. Another one is.
            let spec = ask.value().unwrap_or_else(|| word("next"));
            let mut again = consume_at(self.link, self.channel, self.queue, 1, spec).await?;
            let either = async {
                tokio::select! { delivery = wanted.next() => delivery, delivery = again.next() => delivery }
            };
            came = timeout(if must { COMES } else { EMPTY }, either).await.ok();
        }
        match came {
            Some(delivery) => some(delivery, self.queue).map(Some),
            None if must => Err(SourceError::lost("the broker does not answer (reading a place in a stream)")),
            None => Ok(None),
        }
    }

    fn place(&self, delivery: &Delivery) -> Result<Position, SourceError> {
        let odd = self.link.odd().take(self.channel.id(), delivery.delivery_tag);
        position(delivery, odd.as_deref().unwrap_or(delivery.routing_key.as_str().as_bytes()), self.queue)
    }
}

/// The offset of the first message that is left, of a stream that holds one.
pub(super) async fn first_left(link: &Link, queue: &ShortString) -> Result<u64, SourceError> {
    let channel = link.channel().await?;
    let mut first = consume_at(link, &channel, queue, 1, word("first")).await?;
    let came = answer("reading the start of a stream", first.next()).await?;
    let first = place_in(&some(came, queue)?, queue)?;
    leave(&channel).await;
    Ok(first)
}

/// Consumes from far behind the end for a moment, which brings nothing.
///
/// # Errors
/// Where the node has no replica of the stream.
pub(super) async fn look_for_replica(link: &Link, channel: &Channel, queue: &ShortString) -> Result<(), SourceError> {
    let consumer = consume_at(link, channel, queue, 1, at(u64::MAX)).await?;
    let cancelling = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
    answer("ending a consumer", cancelling).await?.map_err(|e| lost(queue, Some(e)))
}

pub(super) async fn leave(channel: &Channel) {
    // One that cannot be closed has gone with its connection.
    if let Ok(Err(e)) = answer("closing a channel", channel.close(200, ShortString::from("done"))).await {
        tracing::debug!(error = %e, "a channel was gone already");
    }
}

fn some(delivery: Option<lapin::Result<Delivery>>, queue: &ShortString) -> Result<Delivery, SourceError> {
    match delivery {
        Some(Ok(delivery)) => Ok(delivery),
        Some(Err(e)) => Err(lost(queue, Some(e))),
        None => Err(lost(queue, None)),
    }
}

/// A delivery's offset in its stream.
fn place_in(delivery: &Delivery, queue: &ShortString) -> Result<u64, SourceError> {
    let wrong = || SourceError::configuration(format!("queue `{queue}` is no stream: `queue_type` says otherwise"));
    offset(delivery).ok_or_else(wrong)
}

/// The position of a delivery with this routing key.
pub(super) fn position(delivery: &Delivery, key: &[u8], queue: &ShortString) -> Result<Position, SourceError> {
    Ok(Position { seq: place_in(delivery, queue)?, check: Some(Check::of(&[key, &delivery.data])) })
}

/// Whether no message can be missing between a message and this offset, at which the next one is. `noted`: segments of the
/// stream are known to begin with notes.
///
/// The broker drops whole segments. It begins each with a note of its own, which takes one offset, if a publisher has deduplicated
/// before: then at least two offsets are missing where a message is. All who publish by AMQP do, unlike those by the stream protocol.
/// AMQP 0-9-1 does not tell notes from messages that are gone.
pub(super) fn joins(before: Position, next: u64, noted: bool) -> bool {
    next <= before.seq.saturating_add(1 + u64::from(noted))
}

/// Whether a message shows that segments begin with notes: a client of the stream protocol publishes to no exchange.
pub(super) fn shows_notes(delivery: &Delivery) -> bool {
    !delivery.exchange.as_str().is_empty()
}

/// How a reader begins.
#[derive(Debug, PartialEq)]
pub(super) struct Plan {
    /// What to tell first.
    pub(super) gap: Option<Gap>,
    /// The offset to consume from.
    pub(super) from: u64,
    /// What must come first, where that is known: else the stream has changed meanwhile.
    pub(super) expect: Option<Position>,
    /// What is not handed out: this and all before it.
    pub(super) after: Option<u64>,
    /// The end: once it has come, all that there was has been handed out.
    pub(super) tail: Option<Position>,
}

/// Whether a position lies behind the end of the stream.
pub(super) fn beyond(start: Start, log: Option<&Log>) -> bool {
    matches!(start, Start::After(position) if log.is_none_or(|log| position.seq > log.last.seq))
}

/// Compares what is wanted with what there is.
pub(super) fn plan(start: Start, log: Option<&Log>) -> Plan {
    let Some(log) = log else {
        let gap = match start {
            Start::After(p) => Some(Gap { reason: GapReason::Reset, from: Some(p.seq), to: None, position: None }),
            _ => None,
        };
        return Plan { gap, from: 0, expect: None, after: None, tail: None };
    };
    let tail = Some(log.last);
    let including = |first: Position| match log.unread.filter(|_| first == log.first) {
        // The reader looks for itself, and tells what it cannot read.
        Some(from) => Plan { gap: None, from, expect: None, after: None, tail },
        None => Plan { gap: None, from: first.seq, expect: Some(first), after: None, tail },
    };
    let excluding = |last: Position| Plan { gap: None, from: last.seq, expect: Some(last), after: Some(last.seq), tail };
    let anew = |reason, from: Position| {
        // What is left begins right behind this.
        let to = log.unread.unwrap_or(log.first.seq);
        let position = to.checked_sub(1).map(Position::unverified);
        let gap = Gap { reason, from: Some(from.seq), to: Some(to), position };
        Plan { gap: Some(gap), ..including(log.first) }
    };
    match (start, log.at) {
        (Start::Now | Start::LastPerSubject, _) | (Start::Since(_) | Start::Recent { .. }, None) => excluding(log.last),
        (Start::Earliest, _) => including(log.first),
        (Start::Since(_), Some(at)) => including(at),
        (Start::Recent { bytes, .. }, Some(at)) => {
            let enough = log.last.seq.saturating_sub(bytes / log.mean.max(1));
            if enough > at.seq { Plan { from: enough, expect: None, ..including(at) } } else { including(at) }
        }
        (Start::After(p), _) if p.seq > log.last.seq => anew(GapReason::Reset, p),
        (Start::After(p), Some(at)) if at.seq == p.seq => {
            if at.agrees(&p) {
                excluding(at)
            } else {
                anew(GapReason::Reset, p)
            }
        }
        // The message itself has gone: with all before it, or from the middle of what is another log then.
        (Start::After(p), _) if log.first.seq <= p.seq => {
            if p.check.is_none() {
                // What follows may not be readable.
                let from = log.at.map_or(p.seq.saturating_add(1), |at| at.seq);
                Plan { after: Some(p.seq), from, expect: log.at, ..including(log.first) }
            } else {
                anew(GapReason::Reset, p)
            }
        }
        (Start::After(p), _) if log.unread.is_some() => {
            Plan { from: p.seq.saturating_add(1), expect: None, after: Some(p.seq), ..including(log.first) }
        }
        (Start::After(p), _) if joins(p, log.first.seq, log.noted) => including(log.first),
        (Start::After(p), _) => anew(GapReason::Retention, p),
    }
}
