//! Whether the other end of a connection is still there: what the system knows of its acknowledgements (`TCP_INFO`).
//!
//! A client that vanishes without a word (a pulled cable, a phone that loses its network) acknowledges nothing any more. One that only
//! reads nothing does: its system goes on to acknowledge, and to say that there is no room. `TCP_USER_TIMEOUT` cannot tell them apart.

use std::future::Future as _;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

/// A peer that seems to have vanished is looked at again after this: an acknowledgement may be on its way.
pub(crate) const AGAIN: Duration = Duration::from_secs(1);

/// How long a peer may acknowledge nothing. Between two heartbeats there is nothing to acknowledge.
pub(crate) fn patience(heartbeat: Duration) -> Duration {
    heartbeat * 2 + Duration::from_millis(500)
}

/// How far a peer is behind with its acknowledgements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Silence {
    /// Whether it has not acknowledged everything that was sent.
    pub(crate) waiting: bool,
    /// How long ago it acknowledged something, if what was sent since had to be sent again; else 0.
    pub(crate) lasts: Duration,
}

impl Silence {
    /// Of a socket's peer. A peer over a Unix socket is never silent.
    pub(crate) fn of(socket: &impl AsFd) -> Self {
        info(socket).unwrap_or(Self { waiting: false, lasts: Duration::ZERO })
    }
}

#[cfg(target_os = "linux")]
fn info(socket: &impl AsFd) -> Option<Silence> {
    /// The part of `struct tcp_info` (Linux, `uapi/linux/tcp.h`) that all versions have.
    type Info = [u32; 26];
    #[derive(Debug, Clone, Copy)]
    struct TcpInfo;
    nix::getsockopt_impl!(TcpInfo, libc::IPPROTO_TCP, libc::TCP_INFO, Info, nix::sys::socket::sockopt::GetStruct<Info>);

    let info = nix::sys::socket::getsockopt(socket, TcpInfo).ok()?;
    let [_state, _congestion, retransmits, probes] = info[0].to_ne_bytes();
    let (unacked, last_ack) = (info[6], info[14]);
    // With no room at the peer's end nothing is in flight but probes, and one of them may have no answer yet.
    let waiting = unacked > 0 || probes > 0;
    let again = unacked > 0 && retransmits > 0 || probes > 1;
    Some(Silence { waiting, lasts: if again { Duration::from_millis(last_ack.into()) } else { Duration::ZERO } })
}

#[cfg(not(target_os = "linux"))]
fn info(_: &impl AsFd) -> Option<Silence> {
    None
}

fn vanished() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the peer has vanished")
}

/// A socket whose reading fails once its peer has vanished, and while it is full its writing.
pub(crate) struct Watched {
    socket: TcpStream,
    heartbeat: Duration,
    /// When to look at the peer. Only set while it may have something to acknowledge.
    look: Option<Pin<Box<Sleep>>>,
    /// It seemed to have vanished when it was looked at last.
    suspected: bool,
}

impl Watched {
    /// `heartbeat`: the interval at which something is written to streams.
    pub(crate) fn new(socket: TcpStream, heartbeat: Duration) -> Self {
        Self { socket, heartbeat, look: None, suspected: false }
    }

    pub(crate) fn into_inner(self) -> TcpStream {
        self.socket
    }

    /// Looks at the peer from now on. Of a socket that is full nobody may read before it takes something again: then writing fails.
    fn written(&mut self, written: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let heartbeat = self.heartbeat;
        self.look.get_or_insert_with(|| Box::pin(sleep(heartbeat)));
        if written.is_pending() && self.poll_vanished(cx).is_ready() { Poll::Ready(Err(vanished())) } else { written }
    }

    /// Resolves when the peer has vanished.
    fn poll_vanished(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(look) = &mut self.look {
            ready!(look.as_mut().poll(cx));
            let silence = Silence::of(&self.socket);
            let suspect = silence.lasts >= patience(self.heartbeat);
            if suspect && self.suspected {
                return Poll::Ready(());
            }
            self.suspected = suspect;
            if silence.waiting {
                look.as_mut().reset(Instant::now() + if suspect { AGAIN } else { self.heartbeat / 2 });
            } else {
                self.look = None;
            }
        }
        Poll::Pending
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.poll_vanished(cx).is_ready() {
            return Poll::Ready(Err(vanished()));
        }
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.written(written, cx)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.written(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
