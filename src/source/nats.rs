//! NATS: core subscriptions, which the server forgets as soon as it has sent them.
//!
//! Reads at its own pace: while batches are not taken in, the server waits, and in the end cuts the connection, which
//! is a `reconnect` gap. So nothing is lost in silence. Streams are read in [`super::jetstream`].

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::jetstream::JetStreamSource;
use super::{Adapter, Common, Connection, Item, SourceError, Start};
use crate::event::{Message, SourceName, Timestamp};
use crate::subject::{Pattern, Subject};

mod config;
pub(in crate::source) mod parse;
#[cfg(test)]
pub(crate) mod tests;
mod tls;
pub(in crate::source) mod wire;

pub use config::{Auth, Config, JetStream, Limits, Raw, Server, Tls};
use parse::{Delivery, Op};
use wire::{LastServer, Wire};

impl Config {
    /// Makes the adapter; connects nothing.
    #[must_use]
    pub fn build(self, name: &SourceName, _: Common) -> Arc<dyn Adapter> {
        match self.jetstream.clone() {
            Some(stream) => Arc::new(JetStreamSource::new(self, stream, name)),
            None => Arc::new(Nats::new(self, name)),
        }
    }

    /// What can come of these subscriptions, as subjects are written here.
    pub(in crate::source) fn reach(&self) -> Vec<Pattern> {
        // A `%` in a broker's name is escaped.
        let written = |pattern: &Pattern| pattern.as_str().replace('%', "%25").parse().unwrap_or_else(|_| Pattern::all());
        self.subjects.iter().map(written).collect()
    }
}

/// Patterns without those that others cover, and for each the earlier ones that can match the same subject.
pub(in crate::source) fn without_overlap(patterns: &[Pattern]) -> Vec<(Pattern, Vec<Pattern>)> {
    let mut kept: Vec<Pattern> = Vec::new();
    for (n, pattern) in patterns.iter().enumerate() {
        let others: Vec<_> = kept.iter().chain(&patterns[n + 1..]).filter(|p| *p != pattern).cloned().collect();
        if !kept.contains(pattern) && !pattern.covered_by(&others) {
            kept.push(pattern.clone());
        }
    }
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

    fn reach(&self) -> Vec<Pattern> {
        self.config.reach()
    }

    fn connect(&self, _: Start) -> BoxFuture<'_, Result<Box<dyn Connection>, SourceError>> {
        Box::pin(async {
            let mut wire = wire::connect(&self.config, &self.last_server).await?;
            for (n, (pattern, _)) in self.subscriptions.iter().enumerate() {
                let group = self.config.queue_group.as_deref().unwrap_or_default();
                wire.send(&[format!("SUB {pattern} {group} {n}\r\n").as_bytes()]);
            }
            let mut early = Vec::new();
            wire.settle(&mut early).await?;
            let earlier = self.subscriptions.iter().map(|(_, earlier)| earlier.clone()).collect();
            let mut reading = Reading { wire, early: Vec::new(), earlier, last: None, unnamed: self.unnamed.clone() };
            let early: Result<Vec<_>, _> = early.into_iter().map(|op| reading.item(op)).collect();
            reading.early = early?.into_iter().flatten().collect();
            Ok(Box::new(reading) as Box<dyn Connection>)
        })
    }

    fn publish<'a>(&'a self, subject: &'a str, payload: Bytes) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(publish(&self.config, subject, payload))
    }
}

/// Publishes on a connection of its own. With `jetstream` the stream's answer is waited for, else the server's.
pub(in crate::source) async fn publish(config: &Config, subject: &str, payload: Bytes) -> Result<(), SourceError> {
    const INBOX: &str = "_INBOX.brokercast";
    let subject: Subject = subject.parse().map_err(|e| SourceError::with("the subject cannot be published to", e))?;
    let mut wire = wire::connect(config, &LastServer::default()).await?;
    if wire.info.max_payload > 0 && payload.len() > wire.info.max_payload {
        return Err(SourceError::new(format!("the payload is larger than the server takes ({} bytes)", wire.info.max_payload)));
    }
    let reply = format!("{INBOX}.{:016x}", rand::random::<u64>());
    let reply = if config.jetstream.is_some() { &*reply } else { "" };
    if !reply.is_empty() {
        wire.send(&[format!("SUB {reply} 1\r\n").as_bytes()]);
    }
    wire.send(&[format!("PUB {subject} {reply} {}\r\n", payload.len()).as_bytes(), &payload, b"\r\n"]);
    let mut early = Vec::new();
    wire.settle(&mut early).await?;
    if !reply.is_empty() {
        let answered = async {
            loop {
                let op = if early.is_empty() { wire.next_op().await? } else { early.remove(0) };
                match op {
                    Op::Message(answer) => return stored(&answer),
                    Op::Err(said) => return Err(SourceError::new(format!("the server refused: {said}"))),
                    _ => {}
                }
            }
        };
        let limit = std::time::Duration::from_secs(5);
        tokio::time::timeout(limit, answered).await.unwrap_or_else(|_| Err(SourceError::new("no stream answered in time")))?;
    }
    wire.shutdown().await;
    Ok(())
}

/// What a stream says to a message: that it has it.
fn stored(answer: &Delivery) -> Result<(), SourceError> {
    #[derive(serde::Deserialize)]
    struct Answer {
        #[serde(default)]
        seq: u64,
        error: Option<Problem>,
    }
    #[derive(serde::Deserialize)]
    struct Problem {
        #[serde(default)]
        description: String,
    }
    match serde_json::from_slice::<Answer>(&answer.payload) {
        Ok(Answer { error: Some(error), .. }) => Err(SourceError::new(format!("the stream refused: {}", error.description))),
        Ok(Answer { seq: 1.., .. }) => Ok(()),
        _ => Err(SourceError::new("no stream takes this subject")),
    }
}

struct Reading {
    wire: Wire,
    /// What came before the subscriptions were confirmed.
    early: Vec<Item>,
    /// For each subscription those that deliver the same subject already.
    earlier: Vec<Vec<Pattern>>,
    /// The last subject, as it came and as it is called here: most are the same as the one before.
    last: Option<(Bytes, Subject)>,
    unnamed: Subject,
}

impl Reading {
    fn item(&mut self, op: Op) -> Result<Option<Item>, SourceError> {
        match op {
            Op::Message(delivery) => Ok(self.message(delivery).map(Item::Message)),
            // Permissions that were taken away, a reader too slow, an account that ended: none can be lived with.
            Op::Err(said) => Err(SourceError::new(format!("the server says: {said}"))),
            _ => Ok(None),
        }
    }

    /// `None` for what another subscription delivers too.
    fn message(&mut self, delivery: Delivery) -> Option<Message> {
        let earlier = usize::try_from(delivery.sid).ok().and_then(|n| self.earlier.get(n))?;
        if !earlier.is_empty() {
            let name = String::from_utf8_lossy(&delivery.subject);
            if earlier.iter().any(|pattern| pattern.matches(&name)) {
                return None;
            }
        }
        let subject = match &self.last {
            Some((name, subject)) if *name == delivery.subject => subject.clone(),
            _ => Subject::from_broker(&delivery.subject, &self.unnamed),
        };
        self.last = Some((delivery.subject, subject.clone()));
        Some(Message { subject, payload: delivery.payload, time: Timestamp::now(), position: None })
    }
}

impl Connection for Reading {
    fn next<'a>(&'a mut self, batch: &'a mut Vec<Item>, limit: usize) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let before = batch.len();
            batch.append(&mut self.early);
            loop {
                while batch.len() - before < limit
                    && let Some(op) = self.wire.ready_op()?
                {
                    batch.extend(self.item(op)?);
                }
                if batch.len() > before {
                    return Ok(());
                }
                self.wire.fill().await?;
            }
        })
    }

    fn close(mut self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move { self.wire.shutdown().await })
    }
}
