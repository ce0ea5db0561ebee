//! What one client takes from the logs: a place in them. Bounded by the client itself: nothing is handed out that its socket
//! has not asked for.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::sleep_until;

use super::service::{Look, Place, Service};
use super::{Asker, Request};
use crate::cursor::Point;
use crate::source::Item;

/// The log could not be read for long, though its source is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unavailable;

/// A client's place in a source's log. Dropping it leaves the queue and the segment.
pub(crate) struct Reader {
    number: u32,
    service: Arc<Service>,
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
        self.0.service.pause(&mut self.0.place, false);
    }
}

impl Reader {
    pub(super) fn new(service: Arc<Service>, request: Request, asker: Asker) -> Option<Self> {
        let known = service.log(request.source)?;
        service.clients.fetch_add(1, Ordering::Relaxed);
        Some(Self { number: request.number, service, place: Place::new(request.source, known, asker) })
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
            let service = asking.0.service.clone();
            let mut moved = pin!(service.moved.notified());
            // Before looking, so that nothing that moves in between is missed.
            moved.as_mut().enable();
            let look = service.look(&mut asking.0.place, at, items);
            match look {
                Look::Items => return Ok(()),
                Look::GivenUp => return Err(Unavailable),
                Look::Lead(turn) => turn.advance().await,
                Look::Wait(until) => tokio::select! {
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
        self.service.clients.fetch_sub(1, Ordering::Relaxed);
        self.service.pause(&mut self.place, true);
    }
}
