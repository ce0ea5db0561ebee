//! A client's stream, from the first comment to the closing: history, then the window, then live, without seam.
//!
//! Knows the hub, the routes and the adapters' histories; nothing of HTTP but the shape of a body.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::cursor::Cursor;
use crate::event::Timestamp;
use crate::frame::{self, Closing};
use crate::hub::{Channel, Concerns, Filter, Hub, Read, Seat, WakerSeat};
use crate::route::Router;
use crate::source::Adapter;
use crate::support::backoff::jittered;
use crate::transport::framing::Plain;

mod catch_up;
mod history;
mod pace;
#[cfg(test)]
pub(crate) mod tests;

use catch_up::{CatchUp, Step};
use pace::Pace;

/// Where a client wants to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// With what comes.
    Now,
    /// Behind its last id.
    Cursor(Cursor),
    /// It has an id that cannot be read: told as a gap, then as `Now`.
    Unreadable,
    /// With all that is left.
    Earliest,
    /// With the newest event of each subject.
    Last,
    /// With what came at or after this time.
    Since(Timestamp),
}

/// A client that may come in.
pub struct Request {
    /// What it wants, within its grant.
    pub filter: Arc<Filter>,
    /// Where it begins.
    pub from: From,
    /// When its token would be refused.
    pub expires: Option<Timestamp>,
    /// Its place in the pool, given back when the stream ends.
    pub permit: Box<dyn Send + Sync>,
}

/// What all streams have in common.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Time between heartbeats.
    pub heartbeat: Duration,
    /// The reconnection time told to clients, before jitter.
    pub retry: Duration,
    /// Readers of brokers' histories at a time.
    pub readers: usize,
    /// Bytes per second that they read together, about: subjects and payloads.
    pub rate: usize,
}

/// One of the hub's sources, as its history is read.
#[derive(Clone)]
pub struct Log {
    /// Where it comes from.
    pub adapter: Arc<dyn Adapter>,
    /// Larger payloads become gaps.
    pub max_payload: usize,
}

/// Whom the losses of a router's source concern.
#[must_use]
pub fn concerns(router: &Arc<Router>, source: usize) -> Concerns {
    let router = router.clone();
    Concerns(Arc::new(move |patterns| router.concerns(source, patterns)))
}

/// Makes streams.
pub struct Streams {
    hub: Arc<Hub>,
    router: Arc<Router>,
    logs: Vec<Log>,
    settings: Settings,
    readers: Arc<Semaphore>,
    pace: Arc<Pace>,
    draining: CancellationToken,
    /// Milliseconds over which streams end when draining.
    drain: AtomicU64,
    open: AtomicUsize,
    closed: [AtomicU64; Closing::ALL.len()],
}

impl fmt::Debug for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streams").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Streams {
    /// Over a hub whose sources are `logs`, in the hub's order.
    #[must_use]
    pub fn new(hub: Arc<Hub>, router: Arc<Router>, logs: Vec<Log>, settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            readers: Arc::new(Semaphore::new(settings.readers)),
            pace: Arc::new(Pace::new(settings.rate)),
            hub,
            router,
            logs,
            settings,
            draining: CancellationToken::new(),
            drain: AtomicU64::new(0),
            open: AtomicUsize::new(0),
            closed: Default::default(),
        })
    }

    /// The hub.
    #[must_use]
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Opens a stream. Whatever the client asks for, the answer is in the stream.
    #[must_use]
    pub fn open(self: &Arc<Self>, request: Request) -> Subscription {
        self.open.fetch_add(1, Ordering::Relaxed);
        let open = Open { streams: self.clone(), expires: request.expires, _permit: request.permit };
        let mut catch_up = Box::new(CatchUp::new(self.clone(), request.filter.clone(), request.from));
        let mut last_id = Vec::new();
        let (phase, first) = match catch_up.try_next(&mut last_id) {
            Some(Step::Live(seat, place, bytes)) => (Phase::live(seat, place), bytes),
            Some(Step::Bytes(bytes)) => (Phase::catch_up(catch_up), bytes),
            None => (Phase::catch_up(catch_up), Bytes::new()),
        };
        Subscription { phase, first, last_id, filter: request.filter, end: None, open }
    }

    /// Carries a stream on that was live and has fallen out of its channel's log, from where its last id stands.
    #[must_use]
    pub fn carry_on(live: Live, last_id: &[u8]) -> Subscription {
        let Live { seat, open, .. } = live;
        let filter = seat.channel().filter().clone();
        let mut stream = Subscription { phase: Phase::Done, first: Bytes::new(), last_id: last_id.to_vec(), filter, end: None, open };
        stream.resume();
        stream
    }

    /// Ends all streams, those that are open and those that come, at random times within this span.
    pub fn drain(&self, within: Duration) {
        // Read by whoever sees the token cancelled.
        self.drain.store(u64::try_from(within.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.draining.cancel();
    }

    /// Streams that are open.
    #[must_use]
    pub fn opened(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Streams that were ended on purpose, by reason.
    #[must_use]
    pub fn closed(&self, reason: Closing) -> u64 {
        self.closed[reason as usize].load(Ordering::Relaxed)
    }

    /// Readers of brokers' histories at this moment.
    #[must_use]
    pub fn reading(&self) -> usize {
        self.settings.readers - self.readers.available_permits()
    }

    /// The reconnection time for one client: jittered, so that clients that lost the same server do not come back at
    /// the same moment.
    #[must_use]
    pub fn retry(&self) -> Duration {
        jittered(self.settings.retry, 0.75..1.25)
    }

    /// Resolves when draining has begun, with the span over which streams end.
    pub async fn drained(&self) -> Duration {
        self.draining.cancelled().await;
        Duration::from_millis(self.drain.load(Ordering::Relaxed))
    }

    /// Resolves when a stream has to end, with why.
    async fn end(self: Arc<Self>, expires: Option<Timestamp>) -> Closing {
        let expired = async {
            match expires {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let drained = async {
            let within = self.drained().await;
            tokio::time::sleep(within.mul_f64(rand::random_range(0.0..=1.0))).await;
        };
        tokio::select! {
            () = expired => Closing::Expired,
            () = drained => Closing::Draining,
        }
    }

    fn count(&self, reason: Closing) {
        self.closed[reason as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// Sleeps until the system's clock says so: a monotonic timer alone would miss that clock being set.
async fn sleep_until(at: Timestamp) {
    loop {
        let left = at.as_micros().saturating_sub(Timestamp::now().as_micros());
        if left == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_micros(left).min(Duration::from_secs(60))).await;
    }
}

/// What an open stream holds: it is counted, and has its place in the pool.
struct Open {
    streams: Arc<Streams>,
    expires: Option<Timestamp>,
    _permit: Box<dyn Send + Sync>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.streams.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream that has caught up: all it needs is what its channel's log holds from `place` on.
pub struct Live {
    seat: Seat,
    /// Where it stands in the log.
    pub place: u64,
    open: Open,
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Live {
    /// Its channel.
    #[must_use]
    pub fn channel(&self) -> &Arc<Channel> {
        self.seat.channel()
    }

    /// When its token would be refused.
    #[must_use]
    pub fn expires(&self) -> Option<Timestamp> {
        self.open.expires
    }

    /// The last bytes of the stream, without framing: what it has not got yet, unless it may not have it any more, and
    /// the reason with the cursor that is true then. `last_id` is where it stands if that is not at the log's end.
    #[must_use]
    pub fn close(&mut self, reason: Closing, last_id: Option<&[u8]>) -> Bytes {
        closing(&self.open.streams, &self.seat, &mut self.place, reason, last_id)
    }

    /// Ends a stream that nothing can be told any more.
    pub fn abandon(self, reason: Closing) {
        self.open.streams.count(reason);
    }
}

type CatchingUp = Pin<Box<dyn Future<Output = (Box<CatchUp>, Step)> + Send>>;

enum Phase {
    CatchUp(CatchingUp),
    Live(Waiting, u64),
    Done,
}

impl Phase {
    fn live(seat: Seat, place: u64) -> Self {
        Self::Live(Waiting(Some(seat), WakerSeat::default()), place)
    }

    fn catch_up(mut catch_up: Box<CatchUp>) -> Self {
        Self::CatchUp(Box::pin(async move {
            let step = catch_up.next().await;
            (catch_up, step)
        }))
    }
}

/// A seat, and the waker's in its channel.
struct Waiting(Option<Seat>, WakerSeat);

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(seat) = &self.0 {
            seat.channel().leave(&mut self.1);
        }
    }
}

/// One client's stream: the bytes of `text/event-stream`, without framing.
pub struct Subscription {
    phase: Phase,
    first: Bytes,
    last_id: Vec<u8>,
    filter: Arc<Filter>,
    /// Made when first polled: a stream that is handed over at once needs none.
    end: Option<Pin<Box<dyn Future<Output = Closing> + Send>>>,
    open: Open,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("filter", &self.filter).finish_non_exhaustive()
    }
}

impl Subscription {
    /// What comes next; `None` once the server has ended the stream.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if matches!(self.phase, Phase::Done) {
            return Poll::Ready(None);
        }
        if !self.first.is_empty() {
            return Poll::Ready(Some(std::mem::take(&mut self.first)));
        }
        let (streams, expires) = (&self.open.streams, self.open.expires);
        let end = self.end.get_or_insert_with(|| Box::pin(streams.clone().end(expires)));
        if let Poll::Ready(reason) = end.as_mut().poll(cx) {
            return Poll::Ready(Some(self.close(reason)));
        }
        loop {
            match &mut self.phase {
                Phase::Done => return Poll::Ready(None),
                Phase::CatchUp(next) => {
                    let (catch_up, step) = std::task::ready!(next.as_mut().poll(cx));
                    catch_up.told(&mut self.last_id);
                    match step {
                        Step::Bytes(bytes) => {
                            self.phase = Phase::catch_up(catch_up);
                            return Poll::Ready(Some(bytes));
                        }
                        Step::Live(seat, place, bytes) => {
                            self.phase = Phase::live(seat, place);
                            if !bytes.is_empty() {
                                return Poll::Ready(Some(bytes));
                            }
                        }
                    }
                }
                Phase::Live(Waiting(None, _), _) => self.phase = Phase::Done,
                Phase::Live(Waiting(Some(seat), waker), place) => {
                    match seat.channel().poll_read::<Plain>(*place, waker, cx.waker()) {
                        Read::Piece(piece) => {
                            *place = piece.to;
                            if let Some(id) = piece.last_id() {
                                self.last_id.clear();
                                self.last_id.extend_from_slice(id);
                            }
                            return Poll::Ready(Some(piece.bytes));
                        }
                        Read::AtEnd => return Poll::Pending,
                        // A slow reader is somebody resuming.
                        Read::Lagged => self.resume(),
                    }
                }
            }
        }
    }

    /// What is to be sent before anything is polled; empty if nothing is.
    pub fn take_first(&mut self) -> Bytes {
        std::mem::take(&mut self.first)
    }

    /// Leaves the stream to whoever writes channels to sockets, once it has caught up and nothing is left to send.
    ///
    /// # Errors
    /// Gives itself back while that is not so.
    pub fn into_live(mut self) -> Result<Live, Box<Self>> {
        match &mut self.phase {
            Phase::Live(waiting, place) if self.first.is_empty() => {
                let place = *place;
                if let Some(seat) = waiting.0.take() {
                    seat.channel().leave(&mut waiting.1);
                    return Ok(Live { seat, place, open: self.open });
                }
                Err(Box::new(self))
            }
            _ => Err(Box::new(self)),
        }
    }

    /// Ends a stream that nothing can be told any more.
    pub fn abandon(self, reason: Closing) {
        self.open.streams.count(reason);
    }

    fn resume(&mut self) {
        let from = match std::str::from_utf8(&self.last_id).ok().and_then(|id| Cursor::from_id(id).ok()) {
            Some(cursor) => From::Cursor(cursor),
            None => From::Unreadable,
        };
        self.phase = Phase::catch_up(Box::new(CatchUp::resumed(self.open.streams.clone(), self.filter.clone(), from)));
    }

    fn close(&mut self, reason: Closing) -> Bytes {
        match std::mem::replace(&mut self.phase, Phase::Done) {
            Phase::Live(Waiting(Some(ref seat), _), mut place) => {
                closing(&self.open.streams, seat, &mut place, reason, Some(&self.last_id))
            }
            _ => closed(&self.open.streams, Vec::new(), reason, Some(self.last_id.clone())),
        }
    }
}

/// The last bytes of a live stream: what it has not got yet, unless it may not have it any more, and the reason.
fn closing(streams: &Streams, seat: &Seat, place: &mut u64, reason: Closing, last_id: Option<&[u8]>) -> Bytes {
    let mut out = Vec::new();
    let mut id = last_id.map(<[u8]>::to_vec);
    if reason == Closing::Draining {
        while let Read::Piece(piece) = seat.channel().read_from::<Plain>(*place) {
            out.extend_from_slice(&piece.bytes);
            *place = piece.to;
            id = piece.last_id().map(<[u8]>::to_vec).or(id);
        }
    }
    {
        // Nothing is published between the two looks: whoever has all of its channel has all there is.
        let state = streams.hub.state();
        if seat.channel().is_end(*place) {
            id = Some(state.id().as_bytes().to_vec());
        }
    }
    closed(streams, out, reason, id)
}

fn closed(streams: &Streams, mut out: Vec<u8>, reason: Closing, id: Option<Vec<u8>>) -> Bytes {
    streams.count(reason);
    if let Some(id) = id.filter(|id| !id.is_empty()) {
        frame::id_line(&mut out, &id);
    }
    frame::closing(&mut out, reason);
    out.into()
}

impl http_body::Body for Subscription {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.poll_next(cx).map(|bytes| bytes.map(|b| Ok(Frame::data(b))))
    }
}
