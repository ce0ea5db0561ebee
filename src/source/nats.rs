//! NATS: core subscriptions, which the server forgets as soon as it has sent them.
//!
//! What is not taken in waits in the library's queues. When those are full it drops messages, which is an `overflow` gap
//! behind those that waited. So nothing is lost in silence. Streams are read in [`super::jetstream`].

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::Subscriber;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use tokio::task::unconstrained;
use tokio::time::{Instant, Interval, MissedTickBehavior, timeout};

use super::jetstream::JetStreamSource;
use super::settings::{AdapterKind, Build};
use super::{Adapter, Connection, Item, SourceError, Start};
use crate::event::{Gap, GapReason, Message, SourceName, Timestamp};
use crate::subject::{self, Pattern, Subject};

pub(in crate::source) mod answer;
mod config;
#[cfg(test)]
pub(crate) mod tests;
pub(in crate::source) mod wire;

pub use config::{Config, JetStream};
use wire::{LastServer, PROBE, Wire};

/// Messages that wait for us in one subscription.
const CAPACITY: usize = 65_536;
/// Time between looks at a connection that says nothing.
const TICK: Duration = Duration::from_secs(1);
/// For the answer of a stream.
const ANSWER: Duration = Duration::from_secs(5);

/// `nats`
pub(super) const KIND: AdapterKind =
    AdapterKind { tag: "nats", read: |keys| Some(Config::read(keys)?.build()), library: Some("async_nats") };

impl Config {
    fn build(self) -> Build {
        Box::new(|name| match self.jetstream.clone() {
            Some(stream) => Arc::new(JetStreamSource::new(self, stream, name)),
            None => Arc::new(Nats::new(self, name)),
        })
    }

    /// What can come of these subscriptions, as subjects are written here.
    pub(in crate::source) fn reach(&self) -> Vec<Pattern> {
        // A `%` in a broker's name is escaped.
        let written = |pattern: &Pattern| pattern.as_str().replace('%', "%25").parse().unwrap_or_else(|_| Pattern::all());
        self.subjects.iter().map(written).collect()
    }
}

/// Patterns without those that others cover, and for each the earlier ones that can match the same subject.
fn without_overlap(patterns: &[Pattern]) -> Vec<(Pattern, Vec<Pattern>)> {
    let kept = subject::minimal(patterns.to_vec());
    let earlier = |n: usize| kept[..n].iter().filter(|p| p.intersects(&kept[n])).cloned().collect();
    kept.iter().enumerate().map(|(n, pattern)| (pattern.clone(), earlier(n))).collect()
}

/// A core NATS source.
#[derive(Debug)]
pub struct Nats {
    config: Config,
    subscriptions: Vec<(Pattern, Vec<Pattern>)>,
    unnamed: Subject,
    last_server: LastServer,
}

impl Nats {
    /// Of this configuration; `name` is what a message without a subject is called.
    #[must_use]
    pub fn new(config: Config, name: &SourceName) -> Self {
        let subscriptions = without_overlap(&config.subjects);
        let unnamed = Subject::new(name.as_str()).expect("a source's name is made of what subjects are made of");
        Self { subscriptions, unnamed, config, last_server: LastServer::default() }
    }
}

impl Adapter for Nats {
    fn kind(&self) -> &'static str {
        "nats"
    }

    fn splits(&self) -> bool {
        self.config.queue_group.is_some()
    }

    fn reach(&self) -> Vec<Pattern> {
        self.config.reach()
    }

    fn connect(&self, _: Start) -> BoxFuture<'_, Result<Box<dyn Connection>, SourceError>> {
        Box::pin(async {
            let mut wire = wire::connect(&self.config, &self.last_server, CAPACITY).await?;
            let mut subscribers = Vec::new();
            for (pattern, earlier) in &self.subscriptions {
                let subscribed = match &self.config.queue_group {
                    Some(group) => wire.client.queue_subscribe(pattern.to_string(), group.clone()).await,
                    None => wire.client.subscribe(pattern.to_string()).await,
                };
                subscribers.push((subscribed.map_err(wire::gone)?, earlier.clone()));
            }
            let taken = wire.settle().await?;
            let inbox = Inbox { subscribers, taken, last: None, unnamed: self.unnamed.clone() };
            let mut tick = tokio::time::interval(TICK);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            Ok(Box::new(Reading { wire, inbox, tick, slow: 0, suspected: None, lost: 0 }) as Box<dyn Connection>)
        })
    }

    fn publish<'a>(&'a self, subject: &'a str, payload: Bytes) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(publish(&self.config, subject, payload))
    }
}

/// Publishes on a connection of its own. With `jetstream` the stream's answer is waited for, else the server's.
pub(in crate::source) async fn publish(config: &Config, subject: &str, payload: Bytes) -> Result<(), SourceError> {
    let subject: Subject = subject.parse().map_err(|e| SourceError::configuration("the subject cannot be published to").because(e))?;
    let mut wire = wire::connect(config, &LastServer::default(), 64).await?;
    let most = wire.client.max_payload();
    if most > 0 && payload.len() > most {
        return Err(SourceError::configuration(format!("the payload is larger than the server takes ({most} bytes)")));
    }
    let subject = subject.as_str().to_owned();
    if config.jetstream.is_some() {
        let reply = format!("_INBOX.brokercast.{:016x}", rand::random::<u64>());
        let mut answers = wire.client.subscribe(reply.clone()).await.map_err(wire::gone)?;
        wire.client.publish_with_reply(subject, reply, payload).await.map_err(wire::gone)?;
        wire.settle().await?;
        let answer = timeout(ANSWER, answers.next()).await.map_err(|_| SourceError::lost("no stream answered in time"))?;
        let answer = answer.ok_or_else(|| wire.end().unwrap_or_else(|| SourceError::lost("the connection has ended")))?;
        stored(&answer.payload)?;
    } else {
        wire.client.publish(subject, payload).await.map_err(wire::gone)?;
        wire.settle().await?;
    }
    wire.close().await.map_or(Ok(()), Err)
}

/// What a stream says to a message: that it has it.
fn stored(answer: &[u8]) -> Result<(), SourceError> {
    #[derive(serde::Deserialize)]
    struct Stored {
        #[serde(default)]
        seq: u64,
    }
    // Where no stream answers, the server does, without a word.
    let stored = if answer.is_empty() { None } else { answer::read::<Stored>(answer, "the message")? };
    match stored {
        Some(Stored { seq: 1.. }) => Ok(()),
        _ => Err(SourceError::missing("no stream takes this subject")),
    }
}

/// The subscriptions of a connection.
struct Inbox {
    /// Each with those before it that deliver the same subject already.
    subscribers: Vec<(Subscriber, Vec<Pattern>)>,
    /// Messages that were taken out.
    taken: u64,
    /// The last subject, as it came and as it is called here: most are the same as the one before.
    last: Option<(async_nats::Subject, Subject)>,
    unnamed: Subject,
}

/// How much of what waited has been taken.
enum Taken {
    All,
    /// There may be more.
    Some,
    /// And the library has ended.
    Ended,
}

impl Inbox {
    /// From each in turn, so that their messages stay about in order. Pending when there is nothing.
    fn poll_take(&mut self, cx: &mut Context<'_>, batch: &mut Vec<Item>, limit: usize) -> Poll<Taken> {
        let before = batch.len();
        // They have been read together.
        let mut received = None;
        loop {
            let (mut any, mut ended) = (false, false);
            for n in 0..self.subscribers.len() {
                if batch.len() - before >= limit {
                    return Poll::Ready(Taken::Some);
                }
                match self.subscribers[n].0.poll_next_unpin(cx) {
                    Poll::Ready(Some(message)) => {
                        any = true;
                        self.taken += 1;
                        let received = *received.get_or_insert_with(Timestamp::now);
                        batch.extend(self.message(n, message, received).map(Item::Message));
                    }
                    Poll::Ready(None) => ended = true,
                    Poll::Pending => {}
                }
            }
            match (any, ended, batch.len() > before) {
                (true, ..) => {}
                (_, true, _) => return Poll::Ready(Taken::Ended),
                (.., true) => return Poll::Ready(Taken::All),
                _ => return Poll::Pending,
            }
        }
    }

    /// `None` for what another subscription delivers too.
    fn message(&mut self, n: usize, message: async_nats::Message, time: Timestamp) -> Option<Message> {
        let earlier = &self.subscribers[n].1;
        if earlier.iter().any(|pattern| pattern.matches(&message.subject)) || message.subject.starts_with(PROBE) {
            return None;
        }
        let subject = match &self.last {
            Some((name, subject)) if *name == message.subject => subject.clone(),
            _ => {
                let subject = Subject::from_broker(message.subject.as_bytes(), &self.unnamed);
                self.last = Some((message.subject, subject.clone()));
                subject
            }
        };
        // Not copied, though it keeps the whole read buffer: it is handed in at once, and there it is encoded and let go.
        Some(Message { subject, payload: message.payload, time, position: None })
    }
}

struct Reading {
    wire: Wire,
    inbox: Inbox,
    tick: Interval,
    /// Times that a queue was full, as far as that is known here.
    slow: u64,
    /// Since when messages may be missing without a gap.
    suspected: Option<Instant>,
    /// Messages that gaps have accounted for.
    lost: u64,
}

impl Reading {
    /// A gap for what the library has dropped, behind what it dropped it for. `received` is the count from before the
    /// last look into the queues, where that found them empty.
    fn dropped(&mut self, received: Option<u64>) -> Option<Item> {
        let slow = self.wire.life.borrow().slow;
        if std::mem::replace(&mut self.slow, slow) != slow {
            self.suspected.get_or_insert_with(Instant::now);
        }
        let missing = received.map(|received| received.saturating_sub(self.inbox.taken));
        let since = self.suspected?;
        match missing {
            Some(missing) => {
                self.suspected = None;
                if std::mem::replace(&mut self.lost, missing) >= missing {
                    return None;
                }
            }
            // A reader that never empties its queues has to hand out the gap all the same.
            None if since.elapsed() > TICK => self.suspected = Some(Instant::now()),
            None => return None,
        }
        Some(Item::Gap(Gap { reason: GapReason::Overflow, from: None, to: None, position: None }))
    }
}

impl Connection for Reading {
    fn next<'a>(&'a mut self, batch: &'a mut Vec<Item>, limit: usize) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let before = batch.len();
            loop {
                let received = self.wire.received();
                let (inbox, life) = (&mut self.inbox, &mut self.wire.life);
                let taken = tokio::select! {
                    biased;
                    // The scheduler's budget would look like an empty queue.
                    taken = unconstrained(poll_fn(|cx| inbox.poll_take(cx, batch, limit))) => taken,
                    changed = life.changed() => if changed.is_ok() { Taken::All } else { Taken::Ended },
                    _ = self.tick.tick() => Taken::All,
                };
                batch.extend(self.dropped(if matches!(taken, Taken::Some) { None } else { Some(received) }));
                if batch.len() > before {
                    return Ok(());
                }
                if let Some(error) = self.wire.end() {
                    return Err(error);
                }
                if matches!(taken, Taken::Ended) {
                    return Err(SourceError::lost("the connection has ended"));
                }
            }
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            drop(self.inbox);
            self.wire.close().await;
        })
    }
}
