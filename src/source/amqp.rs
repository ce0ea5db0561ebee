//! RabbitMQ, by AMQP 0-9-1: queues, and streams in [`super::amqp_stream`].
//!
//! A message's subject is its routing key. Its time is the broker's where that notes one, else that of its receipt.
//! The library's own recovery stays off: a lost connection is the supervisor's affair.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::amqp_stream::{Stream, super_stream};
use super::settings::{AdapterKind, Build};
use super::{Adapter, Connection, Gauges, SourceError, Start};
use crate::event::SourceName;
use crate::subject::{Pattern, Subject};

pub(in crate::source) mod acks;
mod broker;
mod check;
mod config;
pub(in crate::source) mod error;
pub(in crate::source) mod feed;
pub(in crate::source) mod flow;
mod headers;
pub(in crate::source) mod link;
pub(in crate::source) mod publish;
pub(in crate::source) mod queue;
mod reach;
pub(in crate::source) mod recurring;
pub(in crate::source) mod scrub;
mod sections;
#[cfg(test)]
mod tests;
pub(in crate::source) mod topology;
pub(in crate::source) mod upkeep;
mod wire;

pub(crate) use config::{Config, Origin, Partitions};
#[cfg(feature = "internals")]
pub use sections::payload as read_sections;

/// A source that reads a queue.
pub(in crate::source) struct Amqp {
    pub(in crate::source) config: Config,
    pub(in crate::source) name: SourceName,
    pub(in crate::source) names: Arc<Names>,
    pub(in crate::source) memory: Arc<topology::Memory>,
}

/// What messages are called.
pub(in crate::source) struct Names {
    /// What the binding can yield.
    pub(in crate::source) reach: Vec<Pattern>,
    /// Whether a queue may hold what its present binding does not ask for: an older one's.
    strict: bool,
    /// What an empty routing key becomes.
    empty: Subject,
}

impl Names {
    pub(in crate::source) fn new(config: &Config, source: &SourceName) -> Self {
        let empty = Subject::new(source.as_str()).expect("a source's name is one clean token");
        let reach = config.binding().map_or_else(|| vec![Pattern::all()], |binding| reach::of(binding, &empty));
        let strict = matches!(config.origin, Origin::Named { .. }) && reach != [Pattern::all()];
        Self { reach, strict, empty }
    }

    /// The subject of a routing key; `None` where the binding does not ask for it.
    pub(in crate::source) fn subject(&self, key: &[u8]) -> Option<Subject> {
        let subject = Subject::from_broker(key, &self.empty);
        (!self.strict || self.reach.iter().any(|pattern| pattern.matches(subject.as_str()))).then_some(subject)
    }
}

/// `amqp`
pub(super) const KIND: AdapterKind = AdapterKind { tag: "amqp", read: |keys| Some(Config::read(keys)?.build()), library: Some("lapin") };

impl Config {
    fn build(self) -> Build {
        Box::new(|name| {
            if let Some(partitions) = self.partitions.clone() {
                return super_stream::build(self, partitions, name);
            }
            let stream = self.stream;
            let amqp = Amqp::new(self, name);
            if stream { Arc::new(Stream::new(amqp)) } else { Arc::new(amqp) }
        })
    }
}

impl Amqp {
    fn new(config: Config, name: &SourceName) -> Self {
        let names = Arc::new(Names::new(&config, name));
        Self { config, name: name.clone(), names, memory: Arc::default() }
    }

    /// Without an exchange, only the queue itself can be published to.
    pub(in crate::source) fn publishes_only(&self) -> Option<String> {
        if self.config.binding().is_some() { None } else { self.config.queue(&self.name) }
    }

    /// The same stream, which is waited for, if that is what is read.
    pub(in crate::source) fn narrowed(&self, subject: &Subject) -> Option<Self> {
        Some(Self::new(self.config.narrowed(subject, &self.name)?, &self.name))
    }
}

impl Adapter for Amqp {
    fn kind(&self) -> &'static str {
        "amqp"
    }

    fn splits(&self) -> bool {
        self.config.splits()
    }

    fn advice(&self) -> Vec<(&'static str, String)> {
        self.config.broker.advice()
    }

    fn loses_while_away(&self) -> bool {
        matches!(self.config.origin, Origin::Exclusive(_))
    }

    fn reach(&self) -> Vec<Pattern> {
        self.names.reach.clone()
    }

    fn connect(&self, _: Start) -> BoxFuture<'_, Result<Box<dyn Connection>, SourceError>> {
        Box::pin(async move { Ok(Box::new(queue::Reader::open(self).await?) as Box<dyn Connection>) })
    }

    fn check(&self) -> BoxFuture<'_, Vec<SourceError>> {
        Box::pin(self.faults())
    }

    fn gauges(&self) -> Gauges {
        Gauges { ready: self.memory.ready(), expires: self.config.broker.expiry.get(), passed: None }
    }

    fn narrowed(&self, subject: &Subject) -> Option<Arc<dyn Adapter>> {
        Some(Arc::new(Self::narrowed(self, subject)?))
    }

    fn publishes_only(&self) -> Option<String> {
        Self::publishes_only(self)
    }

    fn publish<'a>(&'a self, subject: &'a str, payload: Bytes) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(publish::publish(self, subject, payload))
    }
}
