//! What becomes of a response's body that hyper writes: counted while it lasts, ended as slow when its connection was given up
//! because its client takes nothing ([`super::stall`]), and on HTTP/2, where many share a connection, reset when its client takes
//! nothing of it alone for too long.
//!
//! On HTTP/1.1 a client that takes nothing fills its socket, and [`super::stall`] ends that. On HTTP/2 it may keep the
//! connection alive and just never open the window of one stream: hyper then never asks the body again. Only ending the task in which
//! hyper answers resets the stream (RFC 9113 section 6.4).
//!
//! What a client takes is seen in the bytes themselves ([`Piece`]): HTTP/2 advances them as it writes them to the socket.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::handoff::Handover;
use crate::frame::Closing;
use crate::stream::Watched;

/// What HTTP/2 is given at once, the size of a frame. The whole of a large event would take the connection from its other streams.
const PIECE: usize = 16 << 10;
/// How much HTTP/2 buffers of a stream before it takes no further piece.
pub(crate) const BUFFER: usize = 32 << 10;
/// The most that a stream sends before the others have their turn: HTTP/2 lets those that can send take turns.
const TURN: usize = BUFFER + PIECE;

/// The requests of one connection.
pub(crate) struct Streams {
    born: Instant,
    /// The connection was given up because its client takes nothing.
    stalled: Arc<AtomicBool>,
    open: AtomicUsize,
    seen: AtomicU64,
    /// When the last one ended, in milliseconds since `born`.
    idle_since: AtomicU64,
    /// Bytes of bodies that went to the socket.
    sent: AtomicU64,
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
            sent: AtomicU64::new(0),
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

    /// For how long no request was open, and whether there was any yet; `None` while one is.
    pub(crate) fn idle(&self) -> Option<(Duration, bool)> {
        if self.open.load(Relaxed) > 0 {
            return None;
        }
        let since = Duration::from_millis(self.idle_since.load(Relaxed));
        Some((self.born.elapsed().saturating_sub(since), self.seen.load(Relaxed) > 0))
    }

    /// Resets the streams whose clients took nothing for `limit` although something waited, and says how many.
    ///
    /// A stream may wait for its turn on a slow connection: then others of it move, and not more than one turn of each has gone by.
    pub(crate) fn drop_stalled(&self, limit: Duration) -> u64 {
        let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let now = millis(self.born);
        let bodies: Vec<_> = self.bodies.lock().iter().filter_map(Weak::upgrade).collect();
        let recent = |at: u64| at > 0 && now.saturating_sub(at) < limit;
        let moving = bodies.iter().any(|slot| slot.waits() && recent(slot.took.load(Relaxed)));
        let round = (bodies.len() * TURN) as u64;
        let mut dropped = 0;
        for slot in bodies.into_iter().filter(|slot| slot.waits()) {
            if recent(slot.since.load(Relaxed).max(slot.took.load(Relaxed))) {
                continue;
            }
            let gone_by = self.sent.load(Relaxed).saturating_sub(slot.mark.load(Relaxed));
            if !moving || gone_by > round {
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

impl Entered {
    /// Keeps an eye on the body of the response. `http2`: which writes it.
    pub(crate) fn watch(self, response: Response, http2: bool) -> Response<Outgoing> {
        let stream = response.extensions().get::<Handover>().and_then(Handover::watched);
        response.map(|body| self.watch_body(body, stream, if http2 { PIECE } else { usize::MAX }))
    }

    fn watch_body(self, body: Body, stream: Option<Watched>, most: usize) -> Outgoing {
        let slot = Arc::new(Slot {
            streams: self.streams.clone(),
            body: Mutex::new(Some(body)),
            stream,
            waiting: AtomicUsize::new(0),
            since: AtomicU64::new(0),
            took: AtomicU64::new(0),
            mark: AtomicU64::new(0),
            task: self.task.clone(),
        });
        let mut bodies = self.streams.bodies.lock();
        bodies.retain(|body| body.strong_count() > 0);
        bodies.push(Arc::downgrade(&slot));
        drop(bodies);
        Outgoing::Watched(Watching { slot, rest: Bytes::new(), most, _entered: self })
    }
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
    streams: Arc<Streams>,
    /// `None` once it was given up.
    body: Mutex<Option<Body>>,
    /// The stream of events that it is, if it is one.
    stream: Option<Watched>,
    /// Bytes that hyper was given and that did not go to the socket yet.
    waiting: AtomicUsize,
    /// Since when some do, in milliseconds.
    since: AtomicU64,
    /// When some went last; 0 before any did.
    took: AtomicU64,
    /// What the connection had sent at the later of the two.
    mark: AtomicU64,
    /// The task in which hyper answers.
    task: Arc<OnceLock<AbortHandle>>,
}

impl Slot {
    fn waits(&self) -> bool {
        self.waiting.load(Relaxed) > 0
    }

    /// A piece of what waits for the client.
    fn hand_out(self: &Arc<Self>, bytes: Bytes) -> Piece {
        if self.waiting.fetch_add(bytes.len(), Relaxed) == 0 {
            self.since.store(millis(self.streams.born), Relaxed);
            self.mark.store(self.streams.sent.load(Relaxed), Relaxed);
        }
        Piece { bytes, slot: Some(self.clone()) }
    }

    fn went(&self, bytes: usize) {
        self.waiting.fetch_sub(bytes, Relaxed);
        self.took.store(millis(self.streams.born), Relaxed);
        let before = self.streams.sent.fetch_add(bytes as u64, Relaxed);
        self.mark.store(before + bytes as u64, Relaxed);
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

/// Bytes of a body, on their way to the socket.
pub(crate) struct Piece {
    bytes: Bytes,
    /// `None`: nobody looks at its client here.
    slot: Option<Arc<Slot>>,
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, bytes: usize) {
        self.bytes.advance(bytes);
        if let Some(slot) = &self.slot {
            slot.went(bytes);
        }
    }
}

/// A stream that is reset takes what waits with it.
impl Drop for Piece {
    fn drop(&mut self) {
        if let Some(slot) = &self.slot {
            slot.waiting.fetch_sub(self.bytes.len(), Relaxed);
        }
    }
}

/// A response's body, as hyper gets it.
pub(crate) enum Outgoing {
    /// Its socket may leave with it.
    Plain(Body),
    Watched(Watching),
}

impl http_body::Body for Outgoing {
    type Data = Piece;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, axum::Error>>> {
        match self.get_mut() {
            Self::Plain(body) => {
                let frame = ready!(Pin::new(body).poll_frame(cx));
                Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(|bytes| Piece { bytes, slot: None }))))
            }
            Self::Watched(watching) => watching.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Plain(body) => body.is_end_stream(),
            Self::Watched(watching) => {
                watching.rest.is_empty() && watching.slot.body.lock().as_ref().is_some_and(http_body::Body::is_end_stream)
            }
        }
    }

    /// hyper asks only before the first piece: then there is no rest.
    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Plain(body) => body.size_hint(),
            Self::Watched(watching) => watching.slot.body.lock().as_ref().map_or_else(SizeHint::default, http_body::Body::size_hint),
        }
    }
}

pub(crate) struct Watching {
    slot: Arc<Slot>,
    /// What the body has yielded and hyper has not been given.
    rest: Bytes,
    /// The size of a piece.
    most: usize,
    _entered: Entered,
}

impl Watching {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, axum::Error>>> {
        if self.rest.is_empty() {
            let mut body = self.slot.body.lock();
            let Some(body) = body.as_mut() else {
                return Poll::Ready(Some(Err(axum::Error::new(std::io::Error::from(std::io::ErrorKind::TimedOut)))));
            };
            match ready!(http_body::Body::poll_frame(Pin::new(body), cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => self.rest = bytes,
                    Err(frame) => return Poll::Ready(Some(Ok(frame.map_data(|bytes| Piece { bytes, slot: None })))),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        let piece = self.rest.split_to(self.most.min(self.rest.len()));
        Poll::Ready(Some(Ok(Frame::data(self.slot.hand_out(piece)))))
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.slot.give_up(self.slot.streams.stalled.load(Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use http_body_util::BodyExt as _;
    use tokio::time::advance;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    type Sender = tokio::sync::mpsc::Sender<Result<Bytes, std::io::Error>>;

    /// A body of HTTP/2 that yields what is sent.
    fn body(streams: &Arc<Streams>) -> (Sender, Outgoing) {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
        let body = Body::from_stream(futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx)));
        (sender, streams.enter().watch(Response::new(body), true).into_body())
    }

    async fn piece(body: &mut Outgoing) -> Piece {
        body.frame().await.unwrap().unwrap().into_data().unwrap_or_else(|_| panic!("trailers"))
    }

    /// A body of which something waits.
    async fn waiting(streams: &Arc<Streams>, bytes: usize) -> (Sender, Outgoing, Piece) {
        let (sender, mut body) = body(streams);
        sender.try_send(Ok(vec![b'x'; bytes].into())).unwrap();
        let piece = piece(&mut body).await;
        (sender, body, piece)
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_whose_client_takes_nothing_is_dropped_and_an_idle_one_is_kept() {
        let streams = Streams::new(Arc::default());
        let (sender, mut body) = body(&streams);
        assert!(body.frame().now_or_never().is_none());
        advance(LIMIT).await;
        assert_eq!(streams.drop_stalled(LIMIT), 0);
        assert!(!sender.is_closed(), "nothing waited");
        sender.try_send(Ok(Bytes::from_static(b"x"))).unwrap();
        let waits = piece(&mut body).await;
        advance(LIMIT / 2).await;
        assert_eq!(streams.drop_stalled(LIMIT), 0);
        advance(LIMIT / 2).await;
        assert!(streams.idle().is_none());
        assert_eq!(streams.drop_stalled(LIMIT), 1);
        assert!(sender.is_closed(), "an event waited and nobody came");
        assert!(body.frame().await.unwrap().is_err());
        drop((body, waits));
        assert!(streams.idle().is_some_and(|(_, seen)| seen));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_some_bytes_of_a_large_event_now_and_then_is_kept() {
        let streams = Streams::new(Arc::default());
        let (_sender, mut body, mut first) = waiting(&streams, PIECE + 10).await;
        for _ in 0..8 {
            advance(LIMIT - Duration::from_secs(1)).await;
            first.advance(1);
            assert_eq!(streams.drop_stalled(LIMIT), 0);
        }
        assert_eq!(first.remaining(), PIECE - 8);
        let rest = piece(&mut body).await;
        assert_eq!((rest.remaining(), body.frame().now_or_never().is_none()), (10, true));
        first.advance(PIECE - 8);
        advance(LIMIT).await;
        drop(rest);
        assert_eq!(streams.drop_stalled(LIMIT), 0, "nothing waits any more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_may_wait_for_its_turn_but_not_be_passed_by_again_and_again() {
        let streams = Streams::new(Arc::default());
        let (_one, _stuck, _waits) = waiting(&streams, 1).await;
        let (_other, mut slow, mut moving) = waiting(&streams, 100 * PIECE).await;
        for _ in 0..2 * TURN / PIECE {
            advance(LIMIT).await;
            moving.advance(PIECE - 1);
            let next = piece(&mut slow).await;
            moving.advance(1);
            moving = next;
            assert_eq!(streams.drop_stalled(LIMIT), 0, "its turn may come");
        }
        moving.advance(1);
        assert_eq!(streams.drop_stalled(LIMIT), 1);
        drop((slow, moving));

        // Where no other has anything to send, there is no turn to wait for.
        let (_one, _stuck, _waits) = waiting(&streams, 1).await;
        let (_other, _idle, mut taken) = waiting(&streams, 1).await;
        advance(LIMIT).await;
        taken.advance(1);
        assert_eq!(streams.drop_stalled(LIMIT), 1);
    }
}
