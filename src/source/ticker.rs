//! The clock: a message at a fixed pace, for trying things out and for pages that want a pulse.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::{Interval, MissedTickBehavior};

use super::settings::{AdapterKind, Build};
use super::{Adapter, Connection, Item, SourceError, Start};
use crate::event::{Message, Timestamp};
use crate::settings::Section;
use crate::subject::{Pattern, Subject};

#[cfg(test)]
mod tests;

/// `ticker`
pub(super) const KIND: AdapterKind = AdapterKind { tag: "ticker", read: |keys| Some(Config::read(keys)?.build()), library: None };

/// `ticker: { every: 1s, subject: clock.tick }`
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Time between two ticks.
    pub every: Duration,
    /// What they are called.
    pub subject: Subject,
}

impl Config {
    fn read(ticker: &Section<'_>) -> Option<Self> {
        let every = ticker.key("every").duration().positive().or(Duration::from_secs(1));
        let subject = ticker.key("subject").text().parse("must be a subject such as clock.tick").required();
        Some(Self { every, subject: subject? })
    }

    fn build(self) -> Build {
        Box::new(|_| Arc::new(Ticker::new(self)))
    }
}

/// A clock.
#[derive(Debug)]
pub(crate) struct Ticker {
    config: Config,
    count: Arc<AtomicU64>,
}

impl Ticker {
    /// Of this configuration.
    #[must_use]
    pub(crate) fn new(config: Config) -> Self {
        Self { config, count: Arc::default() }
    }
}

impl Adapter for Ticker {
    fn kind(&self) -> &'static str {
        "ticker"
    }

    fn loses_while_away(&self) -> bool {
        // A tick that did not happen is not lost.
        false
    }

    fn reach(&self) -> Vec<Pattern> {
        vec![Pattern::from(&self.config.subject)]
    }

    fn connect(&self, _: Start) -> BoxFuture<'_, Result<Box<dyn Connection>, SourceError>> {
        Box::pin(async {
            let mut interval = tokio::time::interval(self.config.every);
            // After a suspension: no burst, and on with the old beat.
            interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
            let connection = Ticking { interval, subject: self.config.subject.clone(), count: self.count.clone() };
            Ok(Box::new(connection) as Box<dyn Connection>)
        })
    }
}

struct Ticking {
    interval: Interval,
    subject: Subject,
    count: Arc<AtomicU64>,
}

impl Connection for Ticking {
    fn next<'a>(&'a mut self, batch: &'a mut Vec<Item>, _: usize) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async {
            self.interval.tick().await;
            let time = Timestamp::now();
            let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
            let payload = Bytes::from(format!(r#"{{"time":"{time}","count":{count}}}"#));
            batch.push(Item::Message(Message::new(self.subject.clone(), payload, time, None)));
            Ok(())
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}
