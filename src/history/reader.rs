//! What one client takes from the logs: a place in them. Bounded by the client itself: nothing is handed out that its socket
//! has not asked for.

use std::sync::Arc;

use tokio::time::sleep_until;

use super::Request;
use super::service::{Histories, Look};
use super::state::Place;
use crate::cursor::Point;
use crate::source::Item;

/// The log could not be read for long, though its source is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unavailable;

/// A client's place in a source's log. Dropping it leaves the queue and the segment.
pub(crate) struct Reader {
    number: u32,
    histories: Arc<Histories>,
    place: Place,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("number", &self.number).finish_non_exhaustive()
    }
}

/// While it lives, the client asks.
struct Asking<'a>(&'a mut Reader);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.histories.pause(&self.0.place);
    }
}

impl Reader {
    pub(super) fn new(histories: Arc<Histories>, number: u32, place: Place) -> Self {
        Self { number, histories, place }
    }

    /// Whether it was made for this request or an earlier one of the same number.
    #[must_use]
    pub(crate) fn serves(&self, request: Request) -> bool {
        self.number == request.number
    }

    /// Waits for what follows `at`, where the client stands. Cancel safe. A source that is down is waited for.
    ///
    /// # Errors
    /// When the log could not be read for long, though its source is connected.
    pub(crate) async fn next(&mut self, items: &mut Vec<Item>, at: Point) -> Result<(), Unavailable> {
        let asking = Asking(self);
        loop {
            let Reader { histories, place, .. } = &mut *asking.0;
            match histories.look(place, at, items) {
                Look::Items => return Ok(()),
                Look::GivenUp => return Err(Unavailable),
                Look::Lead(turn) => turn.advance().await,
                Look::Wait(moved, until) => tokio::select! {
                    biased;
                    () = moved => {}
                    () = sleep_until(until) => {}
                },
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.histories.forget(&mut self.place);
    }
}
