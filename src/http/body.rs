//! What becomes of a response's body that hyper writes: counted while it lasts, ended as slow when its connection was given up
//! because its client takes nothing ([`super::stall`]), and on HTTP/2, where many share a connection, reset when its client takes
//! nothing of it alone for too long.
//!
//! On HTTP/1.1 a client that takes nothing fills its socket, and [`super::stall`] ends that. On HTTP/2 it may keep the
//! connection alive and just never open the window of one stream: hyper then never asks the body again. Only ending the task in which
//! hyper answers resets the stream (RFC 9113 section 6.4).

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::handoff::Handover;
use crate::frame::Closing;
use crate::stream::Watched;

/// The requests of one connection.
pub(crate) struct Streams {
    born: Instant,
    /// The connection was given up because its client takes nothing.
    stalled: Arc<AtomicBool>,
    open: AtomicUsize,
    seen: AtomicU64,
    /// When the last one ended, in milliseconds since `born`.
    idle_since: AtomicU64,
    bodies: Mutex<Vec<Weak<Slot>>>,
    /// Where the task of the request that was entered last goes.
    entered: Mutex<Option<Arc<OnceLock<AbortHandle>>>>,
}

impl Streams {
    pub(crate) fn new(stalled: Arc<AtomicBool>) -> Arc<Self> {
        Arc::new(Self {
            born: Instant::now(),
            stalled,
            open: AtomicUsize::new(0),
            seen: AtomicU64::new(0),
            idle_since: AtomicU64::new(0),
            bodies: Mutex::default(),
            entered: Mutex::default(),
        })
    }

    /// Counts a request, until what is returned is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> Entered {
        self.open.fetch_add(1, Relaxed);
        self.seen.fetch_add(1, Relaxed);
        let task = Arc::<OnceLock<_>>::default();
        *self.entered.lock() = Some(task.clone());
        Entered { streams: self.clone(), task }
    }

    /// The request that was entered last is answered in this task: hyper first calls the service, then runs what answers.
    pub(crate) fn runs_in(&self, task: AbortHandle) {
        if let Some(entered) = self.entered.lock().take() {
            entered.set(task).unwrap_or_default();
        }
    }

    /// Keeps an eye on a response's body.
    pub(crate) fn watch(&self, entered: Entered, response: Response) -> Response {
        let stream = response.extensions().get::<Handover>().and_then(Handover::watched);
        response.map(|body| self.watch_body(entered, body, stream))
    }

    fn watch_body(&self, entered: Entered, body: Body, stream: Option<Watched>) -> Body {
        let slot = Slot {
            born: self.born,
            body: Mutex::new(Some(body)),
            stream,
            due: AtomicU64::new(0),
            waker: AtomicWaker::new(),
            task: entered.task.clone(),
        };
        let slot = Arc::new(slot);
        let mut bodies = self.bodies.lock();
        bodies.retain(|body| body.strong_count() > 0);
        bodies.push(Arc::downgrade(&slot));
        Body::new(Watching { slot, entered })
    }

    /// For how long no request was open, and whether there was any yet; `None` while one is.
    pub(crate) fn idle(&self) -> Option<(Duration, bool)> {
        if self.open.load(Relaxed) > 0 {
            return None;
        }
        let since = Duration::from_millis(self.idle_since.load(Relaxed));
        Some((self.born.elapsed().saturating_sub(since), self.seen.load(Relaxed) > 0))
    }

    /// Resets the streams whose clients took nothing for `limit` although something waited, and says how many.
    pub(crate) fn drop_stalled(&self, limit: Duration) -> u64 {
        let mut dropped = 0;
        let now = millis(self.born);
        let bodies: Vec<_> = self.bodies.lock().iter().filter_map(Weak::upgrade).collect();
        for slot in bodies {
            let due = slot.due.load(Relaxed);
            if due > 0 && now.saturating_sub(due) >= u64::try_from(limit.as_millis()).unwrap_or(u64::MAX) {
                dropped += u64::from(slot.give_up(true));
                slot.task.get().into_iter().for_each(AbortHandle::abort);
            }
        }
        dropped
    }
}

/// One request, while it lasts.
pub(crate) struct Entered {
    streams: Arc<Streams>,
    task: Arc<OnceLock<AbortHandle>>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.streams.idle_since.store(millis(self.streams.born), Relaxed);
        self.streams.open.fetch_sub(1, Relaxed);
    }
}

/// At least 1: 0 means none.
fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
}

struct Slot {
    born: Instant,
    /// `None` once it was given up.
    body: Mutex<Option<Body>>,
    /// The stream of events that it is, if it is one.
    stream: Option<Watched>,
    /// Since when something waits for the client; 0 while nothing does.
    due: AtomicU64,
    waker: AtomicWaker,
    /// The task in which hyper answers.
    task: Arc<OnceLock<AbortHandle>>,
}

impl Slot {
    fn note(&self) {
        // Only the first counts: what follows waits no longer than it.
        if self.due.load(Relaxed) == 0 {
            self.due.store(millis(self.born), Relaxed);
        }
    }

    /// Drops the body, which the client may have been too slow for. Returns whether it was still there.
    fn give_up(&self, slow: bool) -> bool {
        let Some(body) = self.body.lock().take() else { return false };
        if let Some(stream) = self.stream.as_ref().filter(|_| slow) {
            stream.abandon(Closing::Slow);
        }
        // Dropped outside the lock: it may have much to do.
        drop(body);
        true
    }
}

/// The body wakes this, not hyper, so that it is known when something waits.
impl Wake for Slot {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.note();
        self.waker.wake();
    }
}

struct Watching {
    slot: Arc<Slot>,
    entered: Entered,
}

/// Breaks a reference cycle: the body holds a waker, the waker the slot, and the slot the body.
impl Drop for Watching {
    fn drop(&mut self) {
        self.slot.give_up(self.entered.streams.stalled.load(Relaxed));
    }
}

impl http_body::Body for Watching {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let slot = &self.slot;
        slot.waker.register(cx.waker());
        slot.due.store(0, Relaxed);
        let waker = Waker::from(slot.clone());
        let mut body = slot.body.lock();
        let Some(inner) = body.as_mut() else {
            return Poll::Ready(Some(Err(axum::Error::new(std::io::Error::from(std::io::ErrorKind::TimedOut)))));
        };
        let polled = Pin::new(inner).poll_frame(&mut Context::from_waker(&waker));
        if let Poll::Ready(Some(Ok(_))) = &polled {
            slot.note();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.slot.body.lock().as_ref().is_some_and(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.slot.body.lock().as_ref().map_or_else(SizeHint::default, http_body::Body::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn a_body_whose_client_takes_nothing_is_dropped_and_an_idle_one_is_kept() {
        let streams = Streams::new(Arc::default());
        let (sender, mut receiver) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(1);
        let body = Body::from_stream(futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx)));
        let mut body = streams.watch(streams.enter(), Response::new(body)).into_body();
        assert!(body.frame().now_or_never().is_none());
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(streams.drop_stalled(Duration::from_millis(10)), 0);
        assert!(!sender.is_closed(), "nothing waited");
        sender.try_send(Ok(Bytes::from_static(b"x"))).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert!(streams.idle().is_none());
        assert_eq!(streams.drop_stalled(Duration::from_millis(10)), 1);
        assert!(sender.is_closed(), "an event waited and nobody came");
        assert!(body.frame().await.unwrap().is_err());
        drop(body);
        assert!(streams.idle().is_some_and(|(_, seen)| seen));
    }
}
