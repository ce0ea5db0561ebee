//! A socket whose peer may be slow but not dead: if the peer takes nothing of a write for too long, the write fails. A peer that has
//! vanished makes reading fail ([`Watched`]).
//!
//! It is below TLS and HTTP, so it works for both versions of HTTP. Knows bytes only. [`super::listen`] makes sure that a socket
//! is reported writable soon after its peer has taken something.

use std::future::Future as _;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use crate::support::peer::Watched;

/// How long to read and discard what the peer still sends while the connection closes. Closing a socket with unread bytes
/// resets the connection, and the peer may then lose the answer that says why (RFC 9112 section 9.6).
const LINGER: Duration = Duration::from_secs(1);

/// A socket with a deadline for writes that wait.
pub(crate) struct Stall {
    socket: Watched,
    limit: Duration,
    /// Set while the socket is full. Created only then, because most sockets never are.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Set once this side has written everything.
    leaving: Option<Pin<Box<Sleep>>>,
    /// Set before the write fails that its peer took nothing of.
    stalled: Arc<AtomicBool>,
}

impl Stall {
    /// A write that the peer takes nothing of for `limit` fails. `heartbeat`: the interval at which something is written to streams.
    pub(crate) fn new(socket: TcpStream, limit: Duration, heartbeat: Duration) -> Self {
        Self { socket: Watched::new(socket, heartbeat), limit, deadline: None, leaving: None, stalled: Arc::default() }
    }

    /// Whether it was given up because its peer takes nothing.
    pub(crate) fn stalled(&self) -> Arc<AtomicBool> {
        self.stalled.clone()
    }

    pub(crate) fn into_inner(self) -> TcpStream {
        self.socket.into_inner()
    }

    fn written(&mut self, result: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(result) = result {
            self.deadline = None;
            return Poll::Ready(result);
        }
        let limit = self.limit;
        ready!(self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit))).as_mut().poll(cx));
        self.stalled.store(true, Ordering::Relaxed);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes nothing")))
    }
}

impl AsyncRead for Stall {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stall {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.written(result, cx)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.written(result, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.leaving.is_none() {
            ready!(Pin::new(&mut this.socket).poll_shutdown(cx))?;
        }
        let leaving = this.leaving.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        let mut scratch = [MaybeUninit::uninit(); 4096];
        while leaving.as_mut().poll(cx).is_pending() {
            let mut buf = ReadBuf::uninit(&mut scratch);
            match ready!(Pin::new(&mut this.socket).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {}
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn pair(limit: Duration) -> (Stall, TcpStream) {
        let (listener, address) = super::super::listen::tests::loopback(limit);
        let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
        (Stall::new(server.unwrap().0, limit, Duration::from_secs(15)), client.unwrap())
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_given_up_at_the_deadline() {
        let (mut server, _client) = pair(Duration::from_millis(200)).await;
        let chunk = vec![7; 1 << 16];
        let error = loop {
            if let Err(e) = server.write(&chunk).await {
                break e;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn an_answer_reaches_a_peer_that_is_still_sending() {
        let (mut server, mut client) = pair(Duration::from_secs(5)).await;
        let chunk = vec![7; 1 << 16];
        client.write_all(&chunk).await.unwrap();
        server.write_all(b"too much").await.unwrap();
        let leaving = async {
            server.shutdown().await.unwrap();
            drop(server);
        };
        let sending = async {
            for _ in 0..8 {
                client.write_all(&chunk).await.unwrap();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            drop(client);
            answer
        };
        assert_eq!(tokio::join!(leaving, sending).1, "too much");
    }

    #[tokio::test]
    async fn a_peer_that_reads_now_and_then_is_kept() {
        let (mut server, mut client) = pair(Duration::from_millis(400)).await;
        let reader = async {
            let mut buffer = vec![0; 1 << 20];
            let mut total = 0;
            while total < 40 << 20 {
                tokio::time::sleep(Duration::from_millis(20)).await;
                total += client.read(&mut buffer).await.unwrap();
            }
        };
        let chunk = vec![7; 1 << 16];
        let writer = async {
            loop {
                server.write_all(&chunk).await.unwrap();
            }
        };
        tokio::select! { () = reader => {}, () = writer => {} }
    }
}
