//! The clock: a message at a fixed pace, for trying things out and for pages that want a pulse.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::Deserialize;
use tokio::time::{Interval, MissedTickBehavior};

use super::{Adapter, Connection, Item, SourceError, Start};
use crate::config::Problems;
use crate::config::value::DurationText;
use crate::event::{Message, Timestamp};
use crate::subject::{Pattern, Subject, SubjectError};

#[cfg(test)]
mod tests;

/// `ticker: { every: 1s, subject: clock.tick }` as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    #[serde(default)]
    every: Option<DurationText>,
    subject: String,
}

/// `ticker`, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Time between two ticks; default 1 s, at least 1 ms.
    pub every: Duration,
    /// What they are called.
    pub subject: Subject,
}

impl Raw {
    /// Checks it; `path` is its key path.
    pub fn validate(self, path: &str, problems: &mut Problems) -> Option<Config> {
        let every = self.every.map_or(Duration::from_secs(1), |every| every.0);
        if every < Duration::from_millis(1) {
            problems.add(format!("{path}.every"), "must be at least 1ms");
        }
        let subject = self.subject.parse().map_err(|error: SubjectError| {
            problems.add(format!("{path}.subject"), format!("{error}; must be a subject such as clock.tick"));
        });
        Some(Config { every, subject: subject.ok()? })
    }
}

/// A clock.
#[derive(Debug)]
pub struct Ticker {
    config: Config,
    count: Arc<AtomicU64>,
}

impl Ticker {
    /// Of this configuration.
    #[must_use]
    pub fn new(config: Config) -> Self {
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
            batch.push(Item::Message(Message { subject: self.subject.clone(), payload, time, position: None }));
            Ok(())
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}
