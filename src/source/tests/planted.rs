//! An adapter as `How to add an adapter` in ARCHITECTURE.md tells to make one: this file and one line in a list of adapters.
//!
//! Counts by itself, so that it needs no broker.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Interval;

use crate::event::{Message, Timestamp};
use crate::settings::Section;
use crate::source::settings::{AdapterKind, Build};
use crate::source::{Adapter, Connection, Item, SourceError, Start};
use crate::subject::{Pattern, Subject};

/// `planted: { subject: counted, every: 200ms }`
pub(super) const KIND: AdapterKind = AdapterKind { tag: "planted", read, library: None };

fn read(planted: &Section<'_>) -> Option<Build> {
    let every = planted.key("every").duration().positive().or(Duration::from_millis(200));
    let subject = planted.key("subject").text().parse("must be a subject such as counted").required()?;
    Some(Box::new(move |_| Arc::new(Planted { subject, every })))
}

struct Planted {
    subject: Subject,
    every: Duration,
}

impl Adapter for Planted {
    fn kind(&self) -> &'static str {
        "planted"
    }

    fn reach(&self) -> Vec<Pattern> {
        vec![Pattern::from(&self.subject)]
    }

    fn connect(&self, _: Start) -> BoxFuture<'_, Result<Box<dyn Connection>, SourceError>> {
        let counting = Counting { subject: self.subject.clone(), interval: tokio::time::interval(self.every), count: 0 };
        Box::pin(async { Ok(Box::new(counting) as Box<dyn Connection>) })
    }
}

struct Counting {
    subject: Subject,
    interval: Interval,
    count: u64,
}

impl Connection for Counting {
    fn next<'a>(&'a mut self, batch: &'a mut Vec<Item>, _: usize) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async {
            self.interval.tick().await;
            let payload = format!("first {}", self.count).into();
            self.count += 1;
            batch.push(Item::Message(Message::new(self.subject.clone(), payload, Timestamp::now(), None)));
            Ok(())
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}
