//! How a stream leaves hyper: axum decides, hyper sends the head and the first bytes, then the socket goes to whoever
//! writes streams.
//!
//! Rests on hyper's `http1::Connection::into_parts` giving the socket back in the middle of a response, which its
//! documentation does not promise: the tests of this file fail when that changes. Only a cleartext answer of
//! HTTP/1.1 leaves; TLS, HTTP/2 and HTTP/1.0 are written by hyper from the same stream.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::vec;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, header};
use http_body::Frame;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;

use super::lenient::Lenient;
use super::stall::Stall;
use crate::event::Timestamp;
use crate::frame;
use crate::hub::{Hub, Transport};
use crate::stream::{Step, Stream, Watched};
use crate::transport::body::Body as StreamBody;

/// Takes a socket over, once its head and the first bytes of its stream were flushed. `usize`: bytes of its input that were
/// read beyond the request.
pub(crate) type Adopt = Arc<dyn Fn(TcpStream, Stream, usize) -> BoxFuture<'static, ()> + Send + Sync>;

/// A stream as a response's body and, in the response's extensions, as what may leave with the socket.
#[derive(Clone)]
pub(crate) struct Handover(Arc<Mutex<Slot>>);

enum Slot {
    Stream(Stream),
    /// hyper writes it.
    Body(StreamBody),
    /// It has left.
    Gone,
}

impl Handover {
    pub(crate) fn new(stream: Stream) -> Self {
        Self(Arc::new(Mutex::new(Slot::Stream(stream))))
    }

    /// A stream that has left.
    #[cfg(test)]
    pub(crate) fn gone() -> Self {
        Self(Arc::new(Mutex::new(Slot::Gone)))
    }

    /// For the part that watches a body, unless hyper has begun to write it.
    pub(crate) fn watched(&self) -> Option<Watched> {
        if let Slot::Stream(stream) = &*self.0.lock() { Some(stream.watched()) } else { None }
    }

    /// Takes the stream, unless hyper has begun to write it.
    fn take(&self) -> Option<Stream> {
        let mut slot = self.0.lock();
        match std::mem::replace(&mut *slot, Slot::Gone) {
            Slot::Stream(stream) => Some(stream),
            other => {
                *slot = other;
                None
            }
        }
    }
}

impl http_body::Body for Handover {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(stream) = self.take() {
            *self.0.lock() = Slot::Body(StreamBody::new(stream));
        }
        match &mut *self.0.lock() {
            Slot::Body(body) => Pin::new(body).poll_frame(cx),
            Slot::Stream(_) | Slot::Gone => Poll::Ready(None),
        }
    }
}

/// The body has yielded everything that hyper shall write.
const PARKED: u8 = 1;
/// And the socket has taken it.
const FLUSHED: u8 = 2;

/// How far one connection's stream is on its way out.
#[derive(Default)]
pub(crate) struct Leaving {
    state: AtomicU8,
    stream: Mutex<Option<Stream>>,
}

impl Leaving {
    /// Whether the socket can be taken from hyper now.
    pub(crate) fn ready(&self) -> bool {
        self.state.load(Ordering::Acquire) == FLUSHED
    }

    /// The stream that leaves.
    pub(crate) fn take(&self) -> Option<Stream> {
        self.stream.lock().take()
    }

    /// Prepares an answer that may leave.
    pub(crate) fn prepare(self: &Arc<Self>, response: &mut Response) {
        let Some(handover) = response.extensions_mut().remove::<Handover>() else { return };
        let Some(mut stream) = handover.take() else { return };
        // What needs no waiting goes with the head.
        let first = match stream.step(Timestamp::now()) {
            Step::Send(parts) => parts,
            Step::Again | Step::Wait { .. } | Step::Live => Vec::new(),
        };
        let hub = stream.streams().hub().clone();
        *self.stream.lock() = Some(stream);
        // The socket does not come back: its client must not keep it for another request.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        *response.body_mut() = Body::new(Parked { first: first.into_iter(), hub, leaving: self.clone() });
    }
}

/// Yields the first bytes, and then nothing, and says so.
struct Parked {
    first: vec::IntoIter<Bytes>,
    hub: Arc<Hub>,
    leaving: Arc<Leaving>,
}

impl http_body::Body for Parked {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(first) = self.first.next() {
            let bytes = first.len() + frame::chunk_overhead(first.len());
            self.hub.deliveries().sent(Transport::Http11, 0, bytes as u64);
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        // hyper asks once more after the flush: what is flushed stays so.
        self.leaving.state.fetch_max(PARKED, Ordering::AcqRel);
        Poll::Pending
    }
}

/// A socket that notices when hyper has written everything.
pub(crate) struct Io {
    inner: TokioIo<Lenient<Stall>>,
    leaving: Arc<Leaving>,
}

impl Io {
    pub(crate) fn new(io: Lenient<Stall>, leaving: Arc<Leaving>) -> Self {
        Self { inner: TokioIo::new(io), leaving }
    }

    pub(crate) fn into_socket(self) -> TcpStream {
        self.inner.into_inner().into_inner().into_inner()
    }
}

impl Read for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl Write for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    /// hyper calls this only with nothing left in a buffer of its own.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        if self.leaving.state.load(Ordering::Acquire) == PARKED {
            self.leaving.state.store(FLUSHED, Ordering::Release);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }
}

#[cfg(test)]
mod tests;
