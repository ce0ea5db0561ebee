//! Past messages that the broker cannot deliver by AMQP 0-9-1.
//!
//! RabbitMQ ends the whole connection (541) at an entry that is no AMQP 1.0 message, and 3.10 at a compressed batch too. With a
//! prefetch of 1 it delivers every message up to that entry, and reading goes on behind it. So here each attempt has a
//! connection of its own and a prefetch of 1. Some versions leave such entries out without a word.

use std::sync::Arc;

use futures_util::StreamExt as _;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, ShortString};
use lapin::{Channel, Consumer};
use tokio::time::timeout;

use super::log::{Ask, EMPTY, Log, OVERHEAD, at, consume_at, position, word};
use crate::cursor::Position;
use crate::source::SourceError;
use crate::source::amqp::Amqp;
use crate::source::amqp::error::{is_internal, lost};
use crate::source::amqp::link::Link;

/// So often the broker fails at an offset before it is passed.
const TRIES: u32 = 2;
/// So many offsets are passed one by one. Behind them the steps grow, since one entry may span many offsets.
const SINGLE: u32 = 32;

/// A consumer and its connection.
pub(super) struct Line {
    pub(super) link: Arc<Link>,
    pub(super) channel: Channel,
    pub(super) consumer: Consumer,
}

/// What a line brought first.
enum Brought {
    Message(Line, Box<Delivery>),
    /// The broker could not deliver it.
    Unreadable,
    /// Nothing for a while: the place is the end, or behind it.
    Nothing(Line),
}

/// How reading goes on.
pub(super) struct Passed {
    pub(super) line: Line,
    /// What it brought already.
    pub(super) first: Option<Delivery>,
    /// The offsets that were passed: from the first, to the one where reading goes on.
    pub(super) skipped: Option<(u64, u64)>,
}

/// A stream, and who reads it.
pub(super) struct Past<'a> {
    pub(super) source: &'a Amqp,
    pub(super) queue: &'a ShortString,
}

impl Past<'_> {
    async fn attach(&self, spec: AMQPValue) -> Result<Brought, SourceError> {
        let link = Arc::new(Link::open(&self.source.config.broker, &self.source.name).await?);
        match Line::open(link, self.queue, 1, spec).await {
            Ok(line) => line.brings(self.queue).await,
            Err(e) if is_internal(&e) => Ok(Brought::Unreadable),
            Err(e) => Err(e),
        }
    }

    /// Reads on from an offset, behind what the broker cannot deliver there.
    pub(super) async fn pass(&self, from: u64) -> Result<Passed, SourceError> {
        for _ in 0..TRIES {
            match self.attach(at(from)).await? {
                Brought::Message(line, first) => return Ok(Passed { line, first: Some(*first), skipped: None }),
                Brought::Nothing(line) => return Ok(Passed { line, first: None, skipped: None }),
                Brought::Unreadable => {}
            }
        }
        let (mut low, mut step, mut tried) = (from, 1, 0_u32);
        let (mut high, mut passed) = loop {
            let place = low.saturating_add(step);
            match self.attach(at(place)).await? {
                Brought::Unreadable => low = place,
                brought => break (place, brought),
            }
            tried += 1;
            if tried >= SINGLE {
                step = step.saturating_mul(2);
            }
        };
        // A grown step may have gone too far.
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match self.attach(at(middle)).await? {
                Brought::Unreadable => low = middle,
                brought => (high, passed) = (middle, brought),
            }
        }
        let (line, first) = match passed {
            Brought::Message(line, first) => (line, Some(*first)),
            Brought::Nothing(line) => (line, None),
            Brought::Unreadable => return Err(SourceError::protocol("the broker delivers nothing of the stream")),
        };
        Ok(Passed { line, first, skipped: Some((from, high)) })
    }

    /// Reads the bounds of the stream, where [`super::log::look`] cannot.
    pub(super) async fn bounds(&self, ask: Ask) -> Result<Option<Log>, SourceError> {
        let first = match self.attach(word("first")).await? {
            Brought::Message(line, delivery) => Some(self.place(&line, &delivery)?),
            Brought::Unreadable => {
                let passed = self.pass(0).await?;
                passed.first.map(|delivery| self.place(&passed.line, &delivery)).transpose()?
            }
            Brought::Nothing(_) => None,
        };
        let Some(first) = first else { return Ok(None) };
        let at = match ask.value() {
            None => None,
            Some(spec) => match self.attach(spec).await? {
                Brought::Message(line, delivery) => Some(self.place(&line, &delivery)?),
                // Of a time the offset is not known: more than was asked for, rather than less.
                Brought::Unreadable if matches!(ask, Ask::Since(_)) => Some(first),
                Brought::Unreadable | Brought::Nothing(_) => None,
            },
        };
        let last = self.end(at.map_or(first, |at| if at.seq > first.seq { at } else { first })).await?;
        Ok(Some(Log { first, at, last, mean: OVERHEAD }))
    }

    /// The last offset that is not behind the end, at or behind one that is known: reached in steps that grow, then shrink.
    async fn end(&self, known: Position) -> Result<Position, SourceError> {
        let (mut low, mut high, mut step) = (known, None::<u64>, 1_u64);
        loop {
            let place = match high {
                None => low.seq.saturating_add(step),
                Some(high) if high <= low.seq.saturating_add(1) => return Ok(low),
                Some(high) => low.seq + (high - low.seq) / 2,
            };
            match self.attach(at(place)).await? {
                Brought::Message(line, delivery) => low = self.place(&line, &delivery)?,
                Brought::Unreadable => low = Position::unverified(place),
                Brought::Nothing(_) => high = Some(place),
            }
            step = step.saturating_mul(2);
        }
    }

    fn place(&self, line: &Line, delivery: &Delivery) -> Result<Position, SourceError> {
        let odd = line.link.odd().take(line.channel.id(), delivery.delivery_tag);
        position(delivery, odd.as_deref().unwrap_or(delivery.routing_key.as_str().as_bytes()), self.queue)
    }
}

impl Line {
    /// Reads over a connection, from a place on.
    pub(super) async fn open(link: Arc<Link>, queue: &ShortString, prefetch: u16, spec: AMQPValue) -> Result<Self, SourceError> {
        let channel = link.channel().await?;
        let consumer = consume_at(&link, &channel, queue, prefetch, spec).await?;
        Ok(Self { link, channel, consumer })
    }

    async fn brings(mut self, queue: &ShortString) -> Result<Brought, SourceError> {
        match timeout(EMPTY, self.consumer.next()).await {
            Ok(Some(Ok(delivery))) => Ok(Brought::Message(self, Box::new(delivery))),
            Ok(Some(Err(e))) => {
                let error = lost(queue, Some(e));
                if is_internal(&error) { Ok(Brought::Unreadable) } else { Err(error) }
            }
            Ok(None) => Err(lost(queue, None)),
            Err(_) => Ok(Brought::Nothing(self)),
        }
    }
}
