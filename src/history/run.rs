//! One open reader of a log, and moving it on: whoever needs what comes next does that, for all who share it.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, Sleep, sleep_until};

use super::Log;
use super::pace::Pace;
use super::segment::weight;
use crate::cursor::Point;
use crate::event::Timestamp;
use crate::source::{Connection, Item, SourceError, Start, fit};
use crate::subject::Pattern;

/// Messages read at a time.
const BATCH: usize = 256;

/// A reader of a log. Dropping it ends it.
pub(super) struct Run {
    stage: Stage,
    /// See [`Log::max_payload`].
    max_payload: usize,
    /// Before more is read.
    pause: Option<Pin<Box<Sleep>>>,
    /// What has been read and is in no segment yet.
    pub(super) items: Vec<Item>,
    /// What has been read behind that, as it came.
    raw: Vec<Item>,
    /// What has ended the reader behind that.
    failed: Option<SourceError>,
    /// Since when it has been open, or been opened, for this turn.
    pub(super) since: Instant,
}

enum Stage {
    Opening(BoxFuture<'static, Result<Option<Box<dyn Connection>>, SourceError>>),
    Reading(Box<dyn Connection>),
}

/// What came of moving a run on.
pub(super) enum Moved {
    /// Something was read.
    Read,
    /// The broker's filter would leave out too little, or the broker has none.
    TooBroad,
    Failed(SourceError),
}

impl Run {
    pub(super) fn open(log: &Log, at: Point, wanted: Option<Arc<[Pattern]>>) -> Self {
        let (adapter, max_payload) = (log.adapter.clone(), log.max_payload);
        let opening = Box::pin(async move {
            match wanted {
                Some(wanted) => adapter.selected(start(at), &wanted).await,
                None => adapter.history(start(at)).await.map(Some),
            }
        });
        Self {
            stage: Stage::Opening(opening),
            max_payload,
            pause: None,
            items: Vec::new(),
            raw: Vec::new(),
            failed: None,
            since: Instant::now(),
        }
    }

    /// Whether the broker has not given it anything yet.
    pub(super) fn is_opening(&self) -> bool {
        matches!(self.stage, Stage::Opening(_))
    }

    /// Waits for something to read. Cancel safe. A panic of the adapter ends the run, and not the client that happens to move it.
    pub(super) async fn advance(&mut self, pace: &Pace) -> Moved {
        let moved = AssertUnwindSafe(self.read(pace)).catch_unwind().await;
        moved.unwrap_or_else(|_| {
            // Perhaps it has not gone through all of these yet. The next run reads them again.
            self.items.clear();
            Moved::Failed(SourceError::protocol("the adapter panicked"))
        })
    }

    async fn read(&mut self, pace: &Pace) -> Moved {
        loop {
            if let Some(pause) = self.pause.as_mut().filter(|_| self.raw.is_empty()) {
                pause.await;
                self.pause = None;
            }
            match &mut self.stage {
                Stage::Opening(opening) => match opening.await {
                    Ok(Some(connection)) => {
                        self.stage = Stage::Reading(connection);
                        self.since = Instant::now();
                    }
                    Ok(None) => return Moved::TooBroad,
                    Err(error) => return Moved::Failed(error),
                },
                Stage::Reading(connection) => {
                    if self.raw.is_empty() {
                        self.failed = connection.next(&mut self.raw, BATCH).await.err();
                        let until = pace.took(self.raw.iter().map(weight).sum(), Instant::now());
                        self.pause = until.map(|until| Box::pin(sleep_until(until)));
                    }
                    let ready = fit(&mut self.raw, self.max_payload).items;
                    self.items.extend(self.raw.drain(..ready));
                    if let Some(error) = self.failed.take_if(|_| self.raw.is_empty()) {
                        return Moved::Failed(error);
                    }
                    if !self.items.is_empty() {
                        return Moved::Read;
                    }
                }
            }
        }
    }
}

fn start(at: Point) -> Start {
    match at {
        Point::At(position) => Start::After(position),
        Point::Earliest => Start::Earliest,
        Point::Since(millis) => Start::Since(Timestamp::from_micros(millis.saturating_mul(1000))),
        Point::Last => Start::LastPerSubject,
    }
}
