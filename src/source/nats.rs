//! NATS: core subscriptions, which the server forgets as soon as it has sent them.
//!
//! What is not taken in waits in the library's queues. When those are full it drops messages, which is an `overflow` gap
//! behind those that waited. So nothing is lost in silence. Streams are read in [`super::jetstream`].

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use tokio::task::unconstrained;
use tokio::time::{Instant, Interval, MissedTickBehavior, timeout};

use super::jetstream::JetStreamSource;
use super::settings::{AdapterKind, Build};
use super::{Adapter, Connection, Item, SourceError, Start};
use crate::event::{Gap, GapReason, SourceName};
use crate::subject::{Pattern, Subject};

pub(in crate::source) mod answer;
mod config;
mod inbox;
pub(in crate::source) mod refusal;
#[cfg(test)]
pub(crate) mod tests;
pub(in crate::source) mod wire;

pub use config::{Config, JetStream};
use inbox::{Inbox, Taken};
use refusal::Right;
use wire::{LastServer, Wire};

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

/// A core NATS source.
#[derive(Debug)]
pub struct Nats {
    config: Config,
    name: SourceName,
    last_server: LastServer,
}

impl Nats {
    /// Of this configuration; `name` is what a message without a subject is called, and what the log calls the source.
    #[must_use]
    pub fn new(config: Config, name: &SourceName) -> Self {
        Self { config, name: name.clone(), last_server: LastServer::default() }
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
            let inbox = Inbox::open(&mut wire, &self.config, &self.name).await?;
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
        let reply = wire.new_inbox();
        let mut answers = wire.client.subscribe(reply.clone()).await.map_err(wire::gone)?;
        wire.client.publish_with_reply(subject.clone(), reply.clone(), payload).await.map_err(wire::gone)?;
        wire.settle().await?;
        wire.permits(Right::Publish, &subject, &subject, "publish")?;
        wire.permits(Right::Subscribe, &reply, &format!("{}.>", config.inbox_prefix), "inbox_prefix")?;
        let answer = timeout(ANSWER, answers.next()).await.map_err(|_| SourceError::lost("no stream answered in time"))?;
        let answer = answer.ok_or_else(|| wire.end().unwrap_or_else(|| SourceError::lost("the connection has ended")))?;
        stored(&answer.payload)?;
    } else {
        wire.client.publish(subject.clone(), payload).await.map_err(wire::gone)?;
        wire.settle().await?;
        wire.permits(Right::Publish, &subject, &subject, "publish")?;
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
                    _ = self.tick.tick() => {
                        if self.inbox.look_after(&self.wire.client).await? {
                            // A subject that was refused for a while is read again.
                            batch.push(Item::Gap(Gap { reason: GapReason::Reconnect, from: None, to: None, position: None }));
                        }
                        Taken::All
                    }
                };
                batch.extend(self.dropped(if matches!(taken, Taken::Some) { None } else { Some(received) }));
                let refused = self.inbox.hear(&self.wire);
                if batch.len() > before {
                    return Ok(());
                }
                if let Some(error) = self.wire.end() {
                    return Err(error);
                }
                refused?;
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
