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

use super::log::{Ask, EMPTY, Log, OVERHEAD, at, consume_at, position, shows_notes, word};
use crate::cursor::Position;
use crate::source::SourceError;
use crate::source::amqp::Amqp;
use crate::source::amqp::error::{is_internal, lost};
use crate::source::amqp::link::Link;

/// So often the broker fails at an offset before it is passed.
const TRIES: u32 = 2;
/// So many offsets are passed one by one. Behind them the steps grow, since one entry may span many offsets.
const SINGLE: usize = 32;
/// So many of the offsets that grown steps have jumped over are tried, for there may be messages among them. Each costs a connection.
const BACK: u32 = 256;

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
        match Line::open(link, self.queue, 1, spec, None).await {
            Ok(line) => line.brings(self.queue).await,
            Err(e) if is_internal(&e) => Ok(Brought::Unreadable),
            Err(e) => Err(e),
        }
    }

    /// Reads on from an offset, behind what the broker cannot deliver there.
    pub(super) async fn pass(&self, from: u64) -> Result<Passed, SourceError> {
        self.pass_and_look_back(from, BACK).await
    }

    async fn pass_and_look_back(&self, from: u64, mut back: u32) -> Result<Passed, SourceError> {
        for _ in 0..TRIES {
            match self.attach(at(from)).await? {
                Brought::Message(line, first) => return Ok(Passed { line, first: Some(*first), skipped: None }),
                Brought::Nothing(line) => return Ok(Passed { line, first: None, skipped: None }),
                Brought::Unreadable => {}
            }
        }
        // In ascending order.
        let (mut bad, mut last, mut step) = (vec![from], from, 1_u64);
        let (mut high, mut passed) = loop {
            let place = last.saturating_add(step);
            match self.attach(at(place)).await? {
                Brought::Unreadable => (last, step) = (place, if bad.len() < SINGLE { 1 } else { step.saturating_mul(2) }),
                brought => break (place, brought),
            }
            bad.push(last);
        };
        while let Some(place) = untried(&bad, high, &mut back) {
            let behind = bad.partition_point(|bad| *bad < place);
            match self.attach(at(place)).await? {
                Brought::Unreadable => bad.insert(behind, place),
                brought => {
                    bad.truncate(behind);
                    (high, passed) = (place, brought);
                }
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
        let mut noted = false;
        let (first, unread) = match self.attach(word("first")).await? {
            Brought::Message(line, delivery) => {
                noted = shows_notes(&delivery);
                (Some(self.place(&line, &delivery)?), None)
            }
            Brought::Unreadable => {
                // Connecting may not take long. The reader looks back itself.
                let passed = self.pass_and_look_back(0, 0).await?;
                (passed.first.map(|delivery| self.place(&passed.line, &delivery)).transpose()?, passed.skipped.map(|(from, _)| from))
            }
            Brought::Nothing(_) => (None, None),
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
        Ok(Some(Log { first, unread, at, last, mean: OVERHEAD, size: u64::MAX, noted }))
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

/// The next offset to be tried, before the first that is known to be readable: until that one's neighbour cannot be read, and then in
/// the widest part that was jumped over, `back` times.
fn untried(bad: &[u64], readable: u64, back: &mut u32) -> Option<u64> {
    let last = *bad.last()?;
    let (from, to) = if readable - last > 1 {
        (last, readable)
    } else {
        *back = back.checked_sub(1)?;
        bad.windows(2).map(|pair| (pair[0], pair[1])).max_by_key(|(from, to)| to - from)?
    };
    (to - from > 1).then(|| from + (to - from) / 2)
}

impl Line {
    /// Reads over a connection, from a place on. `most`: so many bytes may wait to be taken; of a connection that others use too there is
    /// no such bound.
    pub(super) async fn open(
        link: Arc<Link>,
        queue: &ShortString,
        prefetch: u16,
        spec: AMQPValue,
        most: Option<u64>,
    ) -> Result<Self, SourceError> {
        let channel = link.channel().await?;
        if let Some(most) = most {
            link.flow().meter(channel.id(), most);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_jumped_over_is_looked_at_until_all_is_known_or_it_takes_too_long() {
        let tried = |bad: &[u64], readable: u64, mut back: u32| {
            let mut bad = bad.to_vec();
            while let Some(place) = untried(&bad, readable, &mut back) {
                bad.insert(bad.partition_point(|bad| *bad < place), place);
            }
            bad
        };
        assert_eq!(tried(&[7], 8, 9), [7]);
        assert_eq!(tried(&[1, 2, 4, 8], 16, 100), (1..16).collect::<Vec<_>>());
        // The neighbour of what is readable is always known.
        assert_eq!(tried(&[0, 1 << 20], 1 << 21, 0).last(), Some(&((1 << 21) - 1)));
        let coarse = tried(&[0, 1 << 20], (1 << 20) + 1, 255);
        assert_eq!(coarse, (0..=256).map(|n| n << 12).collect::<Vec<_>>());
    }
}
