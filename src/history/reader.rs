//! One reader of a source's log, for one client.
//!
//! Bounded in number by permits, in rate by a [`Pace`] that all readers share, and by the client itself: nothing is read
//! that its socket has not asked for, and never more than a batch ahead.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};

use super::Log;
use super::pace::Pace;
use crate::cursor::Point;
use crate::event::Timestamp;
use crate::source::{Connection, Item, SourceError, Start, drop_oversized};
use crate::support::backoff::{Backoff, jittered};

/// Messages read at a time.
const BATCH: usize = 256;
/// What a message counts for beside its subject and payload, about.
const OVERHEAD: usize = 64;

/// Before a log that could not be read is opened again.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(200), factor: 2.0, most: Duration::from_millis(6400) };

/// A reader of one source's log. Dropping it gives its permit back.
pub struct Reader {
    number: u32,
    log: Log,
    readers: Arc<Semaphore>,
    pace: Arc<Pace>,
    /// Before more is read.
    pause: Option<Pin<Box<Sleep>>>,
    stage: Stage,
    failures: u32,
}

type Opening = BoxFuture<'static, Result<(OwnedSemaphorePermit, Box<dyn Connection>), SourceError>>;

enum Stage {
    Opening(Opening),
    Reading(#[allow(dead_code, reason = "held for its Drop")] OwnedSemaphorePermit, Box<dyn Connection>),
    Waiting(BoxFuture<'static, ()>),
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Reader {
    pub(super) fn new(number: u32, log: Log, readers: Arc<Semaphore>, pace: Arc<Pace>) -> Self {
        Self { number, stage: Stage::Waiting(Box::pin(std::future::ready(()))), log, readers, pace, pause: None, failures: 0 }
    }

    /// Whether it was made for this request or an earlier one of the same number.
    #[must_use]
    pub fn serves(&self, request: super::Request) -> bool {
        self.number == request.number
    }

    /// Waits for what follows `at`, where the client stands. Cancel safe. A broker that is away is waited for.
    pub async fn next(&mut self, items: &mut Vec<Item>, at: Point) {
        loop {
            if let Some(pause) = &mut self.pause {
                pause.await;
                self.pause = None;
            }
            match &mut self.stage {
                Stage::Waiting(wait) => {
                    wait.await;
                    self.stage = Stage::Opening(open(self.log.clone(), self.readers.clone(), start(at)));
                }
                Stage::Opening(opening) => match opening.await {
                    Ok((permit, connection)) => self.stage = Stage::Reading(permit, connection),
                    Err(error) => self.failed(&error),
                },
                Stage::Reading(_, connection) => {
                    let result = connection.next(items, BATCH).await;
                    let until = self.pace.took(items.iter().map(weight).sum(), Instant::now());
                    self.pause = until.map(|until| Box::pin(sleep_until(until)));
                    drop_oversized(items, self.log.max_payload);
                    match result {
                        Ok(()) => self.failures = 0,
                        Err(error) => self.failed(&error),
                    }
                    if !items.is_empty() {
                        return;
                    }
                }
            }
        }
    }

    fn failed(&mut self, error: &SourceError) {
        self.failures = self.failures.saturating_add(1);
        tracing::debug!(error = error as &dyn std::error::Error, "a history cannot be read now");
        let pause = jittered(BACKOFF.after(self.failures), 0.5..1.0);
        self.stage = Stage::Waiting(Box::pin(tokio::time::sleep(pause)));
    }
}

fn weight(item: &Item) -> usize {
    if let Item::Message(message) = item { message.subject.as_str().len() + message.payload.len() + OVERHEAD } else { 0 }
}

fn start(at: Point) -> Start {
    match at {
        Point::At(position) => Start::After(position),
        Point::Earliest => Start::Earliest,
        Point::Since(millis) => Start::Since(Timestamp::from_micros(millis.saturating_mul(1000))),
        Point::Last => Start::LastPerSubject,
    }
}

fn open(log: Log, readers: Arc<Semaphore>, start: Start) -> Opening {
    Box::pin(async move {
        let permit = readers.acquire_owned().await.map_err(|e| SourceError::lost("no more histories are read").because(e))?;
        let connection = log.adapter.history(start).await?;
        Ok((permit, connection))
    })
}
