//! The socket under the library: connecting with a deadline, TLS, an end that always comes, and clean frames.
//!
//! The library has a thread for each connection, which waits for its socket without a time limit, even when its caller has
//! gone. So the socket is ours: it fails shortly after its [`CancellationToken`] is cancelled.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_rs::Tokio;
use async_rs::traits::Reactor;
use futures_io::{AsyncRead, AsyncWrite};
use lapin::uri::AMQPScheme;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::Sleep;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;

use super::broker::Address;
use super::flow::Flow;
use super::scrub::{OddKeys, Scrub};
use crate::source::{SourceError, tls};

/// For a connection to an address.
const CONNECT: Duration = Duration::from_secs(5);
/// Between the end and the breaking off.
const GOODBYE: Duration = Duration::from_millis(500);
/// For which nothing is read, where too much waits.
const PAUSE: Duration = Duration::from_millis(500);
const READ: usize = 64 * 1024;

/// A connected socket.
pub(super) struct Wire {
    io: Either<TcpStream, Box<TlsStream<TcpStream>>>,
    over: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// The library's thread has none of its own.
    runtime: Handle,
    /// Bytes from `start` to `end` were read and not taken yet.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    scrub: Scrub,
    shared: Arc<Shared>,
    /// While too much waits to be taken.
    pause: Option<Pin<Box<Sleep>>>,
}

/// What the socket and its owner both know.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) odd: OddKeys,
    pub(super) flow: Flow,
}

impl Wire {
    /// Connects. The wire fails once `end` is cancelled, after a moment.
    pub(super) async fn connect(
        broker: &Address,
        at: SocketAddr,
        end: CancellationToken,
        shared: Arc<Shared>,
    ) -> Result<Self, SourceError> {
        let authority = &broker.uri.authority;
        let failed = |e: io::Error| SourceError::lost(format!("cannot connect to {broker} (`{}`)", broker.key)).because(e);
        let connecting = tokio::time::timeout(CONNECT, TcpStream::connect(at)).await;
        let stream = connecting.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let io = match broker.uri.scheme {
            AMQPScheme::AMQP => Either::Left(stream),
            AMQPScheme::AMQPS => {
                let name = ServerName::try_from(authority.host.clone())
                    .map_err(|e| SourceError::configuration(format!("the host of {broker} cannot be in a certificate")).because(e))?;
                let config = broker.tls.client().await?;
                let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
                Either::Right(Box::new(
                    stream.map_err(|e| tls::failed(format!("no TLS connection to {broker} (`{}`, `tls`)", broker.key), e))?,
                ))
            }
        };
        let over = async move {
            end.cancelled().await;
            // For the library to say goodbye.
            tokio::time::sleep(GOODBYE).await;
        };
        Ok(Self {
            io,
            over: Box::pin(over),
            runtime: Handle::current(),
            buffer: vec![0; READ],
            start: 0,
            end: 0,
            scrub: Scrub::default(),
            shared,
            pause: None,
        })
    }

    fn ended(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let _runtime = self.runtime.enter();
        if self.over.as_mut().poll(cx).is_ready() { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            if self.start > 0 {
                self.buffer.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            } else {
                self.buffer.resize(2 * self.end, 0);
            }
        }
        let mut space = ReadBuf::new(&mut self.buffer[self.end..]);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut space))?;
        let n = space.filled().len();
        self.end += n;
        Poll::Ready(Ok(n))
    }

    /// Waits while too much waits to be taken, though not so long that the broker's heartbeats are missed.
    fn poll_pause(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.shared.flow.full(cx) {
            self.pause = None;
            return Poll::Ready(());
        }
        let _runtime = self.runtime.enter();
        let pause = self.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep(PAUSE)));
        ready!(pause.as_mut().poll(cx));
        self.pause = None;
        Poll::Ready(())
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.ended(cx)?;
        while this.scrub.ready() == 0 {
            ready!(this.poll_pause(cx));
            if ready!(this.poll_fill(cx))? == 0 {
                return Poll::Ready(Ok(0));
            }
            this.scrub.advance(&mut this.buffer[this.start..this.end], &this.shared.odd, &this.shared.flow);
        }
        let n = this.scrub.ready().min(out.len());
        out[..n].copy_from_slice(&this.buffer[this.start..this.start + n]);
        this.start += n;
        this.scrub.took(n);
        Poll::Ready(Ok(n))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.ended(cx)?;
        Pin::new(&mut this.io).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.ended(cx)?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.ended(cx)?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

/// The library's runtime: tokio, with our socket. It never connects by itself.
#[derive(Clone, Debug)]
pub(super) struct Ours(Tokio);

impl Ours {
    pub(super) fn current() -> Self {
        Self(Tokio::current())
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").finish_non_exhaustive()
    }
}

impl Reactor for Ours {
    type TcpStream = Wire;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: io::Read + io::Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, span: Duration) -> Self::Sleep {
        self.0.sleep(span)
    }

    fn interval(&self, span: Duration) -> impl futures_util::Stream<Item = Instant> + Send + 'static {
        self.0.interval(span)
    }

    fn tcp_connect_addr(&self, _: SocketAddr) -> impl Future<Output = io::Result<Wire>> + Send + 'static {
        std::future::ready(Err(io::ErrorKind::Unsupported.into()))
    }
}
