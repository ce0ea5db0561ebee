//! NATS: core subscriptions, which the server forgets as soon as it has sent them.
//!
//! What is not taken in waits in the library's queues. When those are full it drops messages, which is an `overflow` gap
//! behind those that waited. So nothing is lost in silence. Streams are read in [`super::jetstream`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use tokio::time::timeout;

use super::jetstream::JetStreamSource;
use super::settings::{AdapterKind, Build};
use super::{Adapter, Connection, Gauges, SourceError, Start};
use crate::event::SourceName;
use crate::subject::{Pattern, Subject};

pub(in crate::source) mod answer;
mod config;
pub(in crate::source) mod headers;
mod inbox;
mod moving;
mod reading;
pub(in crate::source) mod refusal;
pub(in crate::source) mod servers;
#[cfg(test)]
pub(crate) mod tests;
mod twins;
pub(in crate::source) mod wire;

pub(in crate::source) use config::API;
pub(crate) use config::{Config, JetStream};
use inbox::Inbox;
use reading::Reading;
use refusal::Right;
use servers::Servers;
use wire::Wire;

/// Messages that wait for us in one subscription.
const CAPACITY: usize = 65_536;
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

    /// The same for one subject. None of a bucket, which keeps only the newest message of a subject, or of a queue group.
    pub(in crate::source) fn narrowed(&self, subject: &Subject) -> Option<Self> {
        let whole = self.hidden.is_empty() && self.queue_group.is_none();
        let subjects = vec![subject.as_str().parse().ok().filter(|_| whole)?];
        let jetstream = self.jetstream.clone().map(|stream| JetStream { create: None, ..stream });
        Some(Self { subjects, jetstream, ..self.clone() })
    }

    /// What can come of these subscriptions, as subjects are written here.
    pub(in crate::source) fn reach(&self) -> Vec<Pattern> {
        // A `%` in a broker's name is escaped.
        let shown = |pattern: &Pattern| pattern.as_str().strip_prefix(self.hidden).unwrap_or(pattern.as_str()).replace('%', "%25");
        let written = |pattern: &Pattern| shown(pattern).parse().unwrap_or_else(|_| Pattern::all());
        self.subjects.iter().map(written).collect()
    }
}

/// A core NATS source.
#[derive(Debug)]
pub(crate) struct Nats(Arc<Core>);

/// What its connections share.
#[derive(Debug)]
struct Core {
    config: Config,
    name: SourceName,
    servers: Servers,
}

/// A connection with its subscriptions.
struct Subscribed {
    wire: Wire,
    inbox: Inbox,
}

impl Core {
    async fn open(&self) -> Result<Subscribed, SourceError> {
        let mut wire = wire::connect(&self.config, &self.servers, CAPACITY).await?;
        let inbox = Inbox::open(&mut wire, &self.config, &self.name).await?;
        Ok(Subscribed { wire, inbox })
    }
}

impl Nats {
    /// Of this configuration; `name` is what a message without a subject is called, and what the log calls the source.
    #[must_use]
    pub(crate) fn new(config: Config, name: &SourceName) -> Self {
        Self(Arc::new(Core { config, name: name.clone(), servers: Servers::default() }))
    }
}

impl Adapter for Nats {
    fn kind(&self) -> &'static str {
        "nats"
    }

    fn advice(&self) -> Vec<(&'static str, String)> {
        self.0.config.advice()
    }

    fn splits(&self) -> bool {
        self.0.config.queue_group.is_some()
    }

    fn reach(&self) -> Vec<Pattern> {
        self.0.config.reach()
    }

    fn connect(&self, _: Start) -> BoxFuture<'_, Result<Box<dyn Connection>, SourceError>> {
        Box::pin(async { Ok(Box::new(Reading::new(self.0.clone(), self.0.open().await?)) as Box<dyn Connection>) })
    }

    fn check(&self) -> BoxFuture<'_, Vec<SourceError>> {
        Box::pin(async {
            match self.0.open().await {
                Err(error) => vec![error],
                Ok(Subscribed { wire, inbox }) => {
                    let refused = inbox.refused().map(|pattern| Right::Subscribe.denied(pattern.as_str(), "subjects")).collect();
                    drop(inbox);
                    wire.close().await;
                    refused
                }
            }
        })
    }

    fn gauges(&self) -> Gauges {
        Gauges { expires: self.0.servers.expiry.get(), ..Gauges::default() }
    }

    fn narrowed(&self, subject: &Subject) -> Option<Arc<dyn Adapter>> {
        let Core { config, name, .. } = &*self.0;
        Some(Arc::new(Self::new(config.narrowed(subject)?, name)))
    }

    fn publish<'a>(&'a self, subject: &'a str, payload: Bytes) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(publish(&self.0.config, subject, payload))
    }
}

/// Publishes on a connection of its own. With `jetstream` the stream's answer is waited for, else the server's.
pub(in crate::source) async fn publish(config: &Config, subject: &str, payload: Bytes) -> Result<(), SourceError> {
    let subject: Subject = subject.parse().map_err(|e| SourceError::configuration("the subject cannot be published to").because(e))?;
    let subject: Subject = match config.hidden {
        "" => subject,
        hidden => {
            format!("{hidden}{subject}").parse().map_err(|e| SourceError::configuration("the subject cannot be published to").because(e))?
        }
    };
    if !config.hidden.is_empty() && !config.subjects.iter().any(|bucket| bucket.matches(subject.as_str())) {
        return Err(SourceError::configuration("the subject is not one of this bucket: its name, a dot and a key"));
    }
    let mut wire = wire::connect(config, &Servers::default(), 64).await?;
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
