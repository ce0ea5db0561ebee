//! Super streams: several streams, one for each partition, which publishers choose among. Each is read like a stream of its own.
//!
//! AMQP 0-9-1 lists no partitions. Where none are written, they are `NAME-0`, `NAME-1` and so on, until one is missing; that is
//! looked at at each connect, and every few seconds, since partitions can be added. A missing one before others is an error: what
//! is in the others would not be read.

use std::sync::Arc;
use std::time::Duration;

use super::Stream;
use crate::event::SourceName;
use crate::source::amqp::link::Link;
use crate::source::amqp::recurring::Recurring;
use crate::source::amqp::topology::is_there;
use crate::source::amqp::{Amqp, Config, Names, Origin, Partitions};
use crate::source::parts::{AHEAD, Counted, Part, Parts};
use crate::source::{Adapter, SourceError};

/// Between two looks for more partitions.
const EVERY: Duration = Duration::from_secs(10);
/// Likewise between two connects: the broker's log has an error for each queue that is asked for in vain.
const AHEAD_LATER: usize = 1;

/// A super stream, as the reader of its first partition knows it.
pub(super) struct SuperStream {
    pub(super) parts: Arc<Parts>,
    config: Config,
    source: SourceName,
}

/// The adapter of a super stream: that of its first partition, which knows the others.
pub(in crate::source) fn build(config: Config, partitions: Partitions, source: &SourceName) -> Arc<dyn Adapter> {
    let (first, others, counted) = match partitions {
        Partitions::Named(first, others) => (first, others, None),
        Partitions::Counted(base) => {
            let (config, source) = (config.clone(), source.clone());
            let name = move |number| format!("{base}-{number}");
            let (first, queue) = (name(0), name.clone());
            let log = move |number| part(&config, &source, queue(number), number);
            (first, Vec::new(), Some(Counted { name: Box::new(name), log: Box::new(log) }))
        }
    };
    let others = others.into_iter().enumerate().map(|(at, name)| part(&config, source, name, at + 1)).collect();
    let parts = Arc::new(Parts::new(first.as_str().into(), others, counted));
    let of = partition(&config, source, first, 0);
    let whole = SuperStream { parts, config, source: source.clone() };
    Arc::new(Stream { whole: Some(Arc::new(whole)), ..of })
}

/// `number`: its place among the partitions. Replicas of each may be on other nodes of the broker.
fn partition(config: &Config, source: &SourceName, queue: String, number: usize) -> Stream {
    let broker = config.broker.apart(number);
    let config = Config { origin: Origin::Named { queue: Some(queue), declare: None }, broker, ..config.clone() };
    let names = Arc::new(Names::new(&config, source));
    Stream::new(Amqp { config, name: source.clone(), names, memory: Arc::default() })
}

fn part(config: &Config, source: &SourceName, queue: String, number: usize) -> Part {
    Part { name: queue.as_str().into(), adapter: Arc::new(partition(config, source, queue, number)) }
}

impl SuperStream {
    /// Looks for partitions behind those that are known.
    pub(super) async fn look(&self, link: &Link) -> Result<(), SourceError> {
        self.look_ahead(link, AHEAD).await
    }

    async fn look_ahead(&self, link: &Link, ahead: usize) -> Result<(), SourceError> {
        let Some(Counted { name, log }) = self.parts.counted() else { return Ok(()) };
        let (known, mut missing, mut found) = (self.parts.names(), 1, Vec::new());
        loop {
            let name = name(missing);
            if !known.iter().any(|known| **known == *name) {
                if !is_there(link, &name).await? {
                    break;
                }
                found.push(log(missing));
            }
            missing += 1;
        }
        for later in missing + 1..=missing + ahead {
            if is_there(link, &name(later)).await? {
                let (missing, later) = (name(missing), name(later));
                let what = format!("partition `{missing}` is missing, though `{later}` is there (`partitions` can list those to be read)");
                return Err(SourceError::missing(what));
            }
        }
        self.parts.add(found)
    }
}

impl SuperStream {
    /// What is wrong with the partitions behind the first.
    pub(super) async fn faults(&self) -> Vec<SourceError> {
        let mut faults = Vec::new();
        match Link::open(&self.config.broker, &self.source).await {
            Ok(link) => {
                faults.extend(self.look(&link).await.err());
                link.close().await;
            }
            Err(error) => return vec![error],
        }
        for part in self.parts.others() {
            faults.extend(part.adapter.check().await);
        }
        faults
    }
}

/// Looks for more partitions while the first is read, where they are not written.
pub(super) fn growth(whole: Option<&Arc<SuperStream>>) -> Option<Recurring> {
    let whole = whole.filter(|whole| whole.parts.counted().is_some())?.clone();
    Some(Recurring::new(EVERY, EVERY, move |link| {
        let whole = whole.clone();
        Box::pin(async move { whole.look_ahead(&link, AHEAD_LATER).await })
    }))
}
