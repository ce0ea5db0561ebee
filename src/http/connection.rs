//! One connection, from its first byte to its last: TLS or not, HTTP/2 or 1.1, and every way in which it can end.
//!
//! Knows hyper; what is answered is the router's.

use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode, Version};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::metrics::counter::Counter;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;

use super::announced;
use super::body::{BUFFER, Outgoing, Streams};
use super::handoff::{Adopt, Io, Leaving};
use super::lenient::Lenient;
use super::listen::Listener;
use super::stall::Stall;
use super::tls::Tls;
use crate::frame::Closing;
use crate::support::seldom::Seldom;

/// An HTTP/2 connection without an open request is closed after this.
const IDLE: Duration = Duration::from_secs(75);
/// How many bytes are read first to detect the protocol: enough for most requests.
const START: usize = 1 << 10;
/// The first bytes of HTTP/2 with prior knowledge (RFC 9113 section 3.4). No method of HTTP/1.1 begins with them.
const PREFACE: &[u8] = b"PRI ";

/// The other end of a connection; an extension of each request.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Peer {
    /// The address of the socket's peer; `None`: it is a Unix socket.
    pub(crate) address: Option<SocketAddr>,
    /// Whether the connection uses TLS that ends in this process.
    pub(crate) tls: bool,
    /// The connection's number; it comes again after four billion others.
    pub(crate) connection: u32,
    /// Whether it showed a certificate that the listener's client CA has issued, by what is trusted at this request.
    pub(crate) verified: bool,
}

impl Peer {
    /// The address of the socket's peer; 0.0.0.0 for a Unix socket.
    pub(crate) fn ip(&self) -> IpAddr {
        self.address.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip().to_canonical())
    }
}

/// Limits of time and size for a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) handshake: Duration,
    pub(crate) header: Duration,
    pub(crate) stall: Duration,
    /// Between two heartbeats of a stream.
    pub(crate) heartbeat: Duration,
    pub(crate) header_bytes: usize,
}

/// Signals that end connections, in the order of a shutdown.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ends {
    /// Accept no more connections.
    pub(crate) accept: CancellationToken,
    /// Close connections as soon as they have no open request.
    pub(crate) close: CancellationToken,
    /// Cut all connections.
    pub(crate) cut: CancellationToken,
}

/// What a listener counts.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Connections and streams that were cut because the peer took nothing.
    pub(crate) stalled: Counter,
    /// Connections that are open, but those whose socket has left with a stream.
    pub(crate) open: Arc<AtomicUsize>,
}

/// What all connections of a listener share.
pub(crate) struct Server {
    router: Router,
    tls: Option<Arc<Tls>>,
    http1: http1::Builder,
    bounds: Bounds,
    ends: Ends,
    tasks: TaskTracker,
    counts: Counts,
    public: Option<Public>,
    /// Of connections.
    numbers: std::sync::atomic::AtomicU32,
}

/// Between two lines of the log about connections that were closed for want of descriptors.
const FULL: Duration = Duration::from_secs(10);

/// Counts a connection, until it is dropped.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn count(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self(open.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What only the public listener has.
pub(crate) struct Public {
    /// Takes cleartext streams over.
    pub(crate) adopt: Adopt,
    /// Whether a connection from an address, or over a Unix socket, begins with a header of the PROXY protocol.
    pub(crate) announces: Box<dyn Fn(Option<IpAddr>) -> bool + Send + Sync>,
    /// How many descriptors there may be for it to take another connection.
    pub(crate) descriptors: u64,
}

/// Where HTTP/2 runs its streams: in the same set of tasks as the connections.
#[derive(Clone)]
struct Tracked {
    tasks: TaskTracker,
    streams: Arc<Streams>,
}

impl<F> hyper::rt::Executor<F> for Tracked
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.streams.runs_in(self.tasks.spawn(future).abort_handle());
    }
}

impl Server {
    pub(crate) fn new(
        router: Router,
        tls: Option<Arc<Tls>>,
        bounds: Bounds,
        ends: Ends,
        tasks: TaskTracker,
        counts: Counts,
        public: Option<Public>,
    ) -> Arc<Self> {
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(bounds.header)
            .max_header_size(bounds.header_bytes)
            .max_buf_size(bounds.header_bytes.max(64 << 10))
            .pipeline_flush(false);
        Arc::new(Self { router, tls, http1, bounds, ends, tasks, counts, public, numbers: Default::default() })
    }

    /// HTTP/2 for one connection, whose requests are `streams`.
    fn http2(&self, streams: Arc<Streams>) -> http2::Builder<Tracked> {
        let bounds = &self.bounds;
        let mut http2 = http2::Builder::new(Tracked { tasks: self.tasks.clone(), streams });
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(256)
            .max_pending_accept_reset_streams(32)
            .max_local_error_reset_streams(128)
            .max_header_list_size(u32::try_from(bounds.header_bytes).unwrap_or(u32::MAX))
            .max_send_buf_size(BUFFER)
            // Streams whose windows are shut send nothing, so pings show whether the client is there. One that only reads nothing for
            // a while leaves them unanswered too.
            .keep_alive_interval(bounds.heartbeat.clamp(Duration::from_secs(1), Duration::from_secs(20)))
            .keep_alive_timeout(bounds.stall.max(Duration::from_secs(10)));
        http2
    }

    fn stall(&self, socket: TcpStream) -> Stall {
        Stall::new(socket, self.bounds.stall, self.bounds.heartbeat)
    }

    /// Accepts connections until it is stopped; each connection is a task of the tracker.
    pub(crate) async fn run(self: Arc<Self>, listener: Listener) {
        let stop = self.ends.accept.clone();
        let (most, full) = (self.public.as_ref().map_or(u64::MAX, |public| public.descriptors), Seldom::every(FULL));
        super::listen::accept(listener, stop, |socket, peer| {
            // The system gives the lowest number that is free. A client that finds none left comes back; the admin listener has to answer.
            if u64::try_from(socket.as_raw_fd()).is_ok_and(|number| number >= most) {
                if full.may(tokio::time::Instant::now()) {
                    tracing::warn!("a connection was closed, as descriptors run out; raise `ulimit -n`");
                }
                return;
            }
            self.tasks.spawn(self.clone().serve(socket, peer));
        })
        .await;
    }

    async fn serve(self: Arc<Self>, mut socket: TcpStream, address: Option<SocketAddr>) {
        let open = Open::count(&self.counts.open);
        let connection = self.numbers.fetch_add(1, Ordering::Relaxed);
        let Some(address) = self.client_of(&mut socket, address).await else { return };
        let peer = Peer { address, tls: self.tls.is_some(), connection, verified: false };
        match &self.tls {
            None => {
                let look = timeout(self.bounds.header, speaks_http2(&mut socket));
                let Some(Ok(Ok((h2, start)))) = self.unless_closed(look).await else { return };
                let io = self.stall(socket);
                let streams = Streams::new(io.stalled());
                // The other cases are boxed: otherwise the task of every connection would be four times as large.
                match self.public.as_ref().map(|public| &public.adopt) {
                    _ if h2 => Box::pin(self.serve_http2(Lenient::untouched(start, io), peer, None, streams)).await,
                    Some(adopt) => self.serve_adoptable(Lenient::behind(start, io), peer, streams, adopt, open).await,
                    None => Box::pin(self.serve_http1(Lenient::behind(start, io), peer, None, streams)).await,
                }
            }
            Some(tls) => Box::pin(self.serve_tls(socket, peer, tls.clone())).await,
        }
    }

    /// Where a connection comes from: as the proxy announces whose it is, else its socket's peer. `None`: it ends, as such a proxy
    /// announced nothing.
    async fn client_of(&self, socket: &mut TcpStream, peer: Option<SocketAddr>) -> Option<Option<SocketAddr>> {
        if !self.public.as_ref().is_some_and(|public| (public.announces)(peer.map(|peer| peer.ip()))) {
            return Some(peer);
        }
        match self.unless_closed(timeout(self.bounds.header, Box::pin(announced::read(socket)))).await? {
            Ok(Ok(client)) => Some(client.or(peer)),
            Ok(Err(error)) => {
                tracing::info!(peer = peer.map(tracing::field::display), %error, "connection refused: see `server.proxy_protocol`");
                None
            }
            Err(_) => None,
        }
    }

    async fn serve_tls(&self, socket: TcpStream, peer: Peer, tls: Arc<Tls>) {
        let socket = self.stall(socket);
        let streams = Streams::new(socket.stalled());
        let handshake = tls.acceptor().accept(socket);
        let Some(Ok(Ok(io))) = self.unless_closed(timeout(self.bounds.handshake, handshake)).await else { return };
        let shown = io.get_ref().1.peer_certificates().map(|chain| Arc::new(Shown { tls, chain: chain.to_vec() }));
        if io.get_ref().1.alpn_protocol() == Some(b"h2") {
            Box::pin(self.serve_http2(io, peer, shown, streams)).await;
        } else {
            Box::pin(self.serve_http1(Lenient::behind(Bytes::new(), io), peer, shown, streams)).await;
        }
    }

    /// Before the first request, a shutdown has nothing to wait for.
    async fn unless_closed<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.ends.close.cancelled() => None,
            done = future => Some(done),
        }
    }

    /// As [`Self::serve_http1`], until a stream leaves with the socket.
    async fn serve_adoptable(&self, io: Lenient<Stall>, peer: Peer, streams: Arc<Streams>, adopt: &Adopt, open: Open) {
        let leaving = Arc::new(Leaving::default());
        let service = Service { router: self.router.clone(), peer, shown: None, streams, leaving: Some(leaving.clone()) };
        let mut connection = self.http1.serve_connection(Io::new(io, leaving.clone()), service);
        let mut closing = false;
        loop {
            let step = std::future::poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
                Poll::Ready(ended) => Poll::Ready(Some(ended)),
                Poll::Pending if leaving.ready() => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            });
            tokio::select! {
                ended = step => match ended {
                    Some(ended) => {
                        // The first bytes of a stream go with the head.
                        if self.note(ended)
                            && let Some(stream) = leaving.take()
                        {
                            stream.abandon(Closing::Slow);
                        }
                        return;
                    }
                    None => break,
                },
                () = self.ends.close.cancelled(), if !closing => {
                    closing = true;
                    Pin::new(&mut connection).graceful_shutdown();
                }
                () = self.ends.cut.cancelled() => return,
            }
        }
        let (socket, beyond) = {
            // hyper's buffers are dropped here, because catching up may take long.
            let parts = connection.into_parts();
            (parts.io.into_socket(), parts.read_buf.len())
        };
        let Some(stream) = leaving.take() else { return };
        // Whoever takes the socket counts it.
        drop(open);
        tokio::select! {
            () = adopt(socket, stream, beyond) => {}
            () = self.ends.cut.cancelled() => {}
        }
    }

    async fn serve_http1<I>(&self, io: I, peer: Peer, shown: Option<Arc<Shown>>, streams: Arc<Streams>)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = Service { router: self.router.clone(), peer, shown, streams, leaving: None };
        let mut connection = std::pin::pin!(self.http1.serve_connection(TokioIo::new(io), service));
        tokio::select! {
            ended = connection.as_mut() => {
                self.note(ended);
                return;
            }
            () = self.ends.close.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        tokio::select! {
            ended = connection.as_mut() => {
                self.note(ended);
            }
            () = self.ends.cut.cancelled() => {}
        }
    }

    /// Returns whether it ended as its peer took nothing.
    fn note(&self, ended: hyper::Result<()>) -> bool {
        let Err(error) = ended else { return false };
        let stalled = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source()).any(is_stall);
        if stalled {
            self.counts.stalled.inc();
        }
        tracing::debug!(%error, "connection ended");
        stalled
    }

    async fn serve_http2<I>(&self, io: I, peer: Peer, shown: Option<Arc<Shown>>, streams: Arc<Streams>)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = Service { router: self.router.clone(), peer, shown, streams: streams.clone(), leaving: None };
        let mut connection = std::pin::pin!(self.http2(streams.clone()).serve_connection(TokioIo::new(io), service));
        let look = (self.bounds.stall.min(self.bounds.header) / 4).clamp(Duration::from_millis(100), Duration::from_secs(5));
        let mut looks = tokio::time::interval(look);
        let mut closing = false;
        loop {
            tokio::select! {
                // A connection that was given up counts once, and not its streams beside it.
                biased;
                ended = connection.as_mut() => {
                    self.note(ended);
                    return;
                }
                () = self.ends.cut.cancelled() => return,
                () = self.ends.close.cancelled(), if !closing => {
                    closing = true;
                    connection.as_mut().graceful_shutdown();
                }
                _ = looks.tick() => {
                    self.counts.stalled.inc_by(streams.drop_stalled(self.bounds.stall));
                    // Do not wait for a client that was asked to leave and stays.
                    match streams.idle() {
                        Some((idle, seen)) if idle >= if seen { IDLE } else { self.bounds.header } => {
                            if closing || !seen {
                                return;
                            }
                            closing = true;
                            connection.as_mut().graceful_shutdown();
                        }
                        _ => {}
                    }
                }
            }
        }
    }
}

/// Whether [`Stall`] or the system gave up because the peer took nothing.
fn is_stall(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::TimedOut)
}

/// Reads the first bytes. Returns them, to be read again, and whether they are the beginning of HTTP/2.
async fn speaks_http2(socket: &mut TcpStream) -> std::io::Result<(bool, Bytes)> {
    let mut start = BytesMut::with_capacity(START);
    loop {
        if socket.read_buf(&mut start).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let n = start.len().min(PREFACE.len());
        if start[..n] != PREFACE[..n] {
            return Ok((false, start.freeze()));
        }
        if n == PREFACE.len() {
            return Ok((true, start.freeze()));
        }
    }
}

/// The certificates that a client has shown at its handshake, and who says what they are worth now.
struct Shown {
    tls: Arc<Tls>,
    /// Begins with the client's own.
    chain: Vec<CertificateDer<'static>>,
}

/// The router as a service of hyper's.
struct Service {
    router: Router,
    peer: Peer,
    shown: Option<Arc<Shown>>,
    streams: Arc<Streams>,
    leaving: Option<Arc<Leaving>>,
}

impl hyper::service::Service<Request<Incoming>> for Service {
    type Response = Response<Outgoing>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Outgoing>, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        // At each request: the connection may outlive the certificate, and the CA that is trusted may be another by now.
        let verified = self.shown.as_ref().is_some_and(|shown| shown.tls.verifies(&shown.chain));
        request.extensions_mut().insert(Peer { verified, ..self.peer });
        // An answer to HTTP/1.0 is not chunked, so hyper must write it.
        let may_leave = request.method() == Method::GET && request.version() == Version::HTTP_11;
        let leaving = self.leaving.clone().filter(|_| may_leave);
        let http2 = request.version() == Version::HTTP_2;
        let watch = leaving.is_none().then(|| self.streams.enter());
        let answer = self.router.clone().call(request.map(Body::new));
        Box::pin(async move {
            let mut response = answer.await?;
            if let Some(leaving) = leaving.filter(|_| response.status() == StatusCode::OK) {
                leaving.prepare(&mut response);
            }
            Ok(match watch {
                Some(entered) => entered.watch(response, http2),
                None => response.map(Outgoing::Plain),
            })
        })
    }
}

#[cfg(test)]
mod tests;
