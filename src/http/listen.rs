//! Listening and accepting. No error of a client or of the system ends the loop.
//!
//! Knows sockets; [`super::connection`] knows the protocols.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

mod unix;

use unix::UnixSocket;

use crate::support::address::Address;

const BACKLOG: i32 = 4096;
/// Unsent bytes that a socket buffers beyond its peer's window.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 32 << 10;
/// How long accepting pauses when the system is out of descriptors or memory.
const REST: Duration = Duration::from_millis(50);
/// How often such a pause is logged.
const SAID: Duration = Duration::from_secs(30);

/// Why a listener could not be opened: names the key to change.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}; change `{key}`")]
pub(crate) struct ListenError {
    /// `server.listen`
    pub key: &'static str,
    /// Where.
    pub address: String,
    /// Why.
    #[source]
    pub cause: io::Error,
}

/// How a listener is opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// How long a peer may acknowledge nothing that was sent.
    pub(crate) user_timeout: Duration,
    /// Who may connect to a Unix socket: the mode of its file.
    pub(crate) mode: u32,
}

/// A listener.
pub(crate) enum Listener {
    /// Of TCP.
    Tcp(TcpListener),
    /// A Unix socket. Its file goes with it.
    Unix(UnixSocket),
}

impl Listener {
    /// Opens a listener.
    ///
    /// # Errors
    /// When the port or path is taken, or this machine does not have the address.
    pub(crate) fn bind(key: &'static str, address: &Address, options: Options) -> Result<Self, ListenError> {
        let bound = match address {
            Address::Tcp(address) => tcp(*address, options.user_timeout).map(Self::Tcp),
            Address::Unix(path) => UnixSocket::bind(path, options.mode).map(Self::Unix),
        };
        bound.map_err(|cause| ListenError { key, address: address.to_string(), cause })
    }

    /// Where it is: with the port that the system has chosen.
    pub(crate) fn address(&self) -> io::Result<Address> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            Self::Unix(socket) => Ok(Address::Unix(socket.path().to_owned())),
        }
    }

    /// The next connection, and its peer's address, which a Unix socket has not.
    pub(super) async fn accept(&self) -> io::Result<(TcpStream, Option<SocketAddr>)> {
        match self {
            Self::Tcp(listener) => listener.accept().await.map(|(socket, peer)| (socket, Some(peer))),
            Self::Unix(socket) => {
                // For all that is done with a connection, the two kinds of sockets are the same: what is special to TCP is set at the
                // listener, and `TCP_INFO` has no answer.
                let descriptor = OwnedFd::from(socket.accept().await?.into_std()?);
                Ok((TcpStream::from_std(descriptor.into())?, None))
            }
        }
    }
}

fn tcp(address: SocketAddr, user_timeout: Duration) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // `[::]` means IPv4 as well, whatever the system's default.
        socket.set_only_v6(false)?;
    }
    // On Linux accepted sockets inherit these options, which saves system calls for each of them.
    socket.set_tcp_nodelay(true)?;
    #[cfg(target_os = "linux")]
    {
        socket.set_tcp_user_timeout(Some(user_timeout))?;
        // Otherwise a full socket is reported writable only once megabytes of it are free, and a slow reader would look like
        // one that takes nothing.
        socket.set_tcp_notsent_lowat(UNSENT)?;
    }
    #[cfg(not(target_os = "linux"))]
    drop(user_timeout);
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Hands every accepted connection to `take`, until `stop`.
pub(crate) async fn accept(listener: Listener, stop: CancellationToken, mut take: impl FnMut(TcpStream, Option<SocketAddr>)) {
    let mut said: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, peer)) => take(socket, peer),
            // The client had left before its connection was accepted.
            Err(e)
                if matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                if said.is_none_or(|at| at.elapsed() > SAID) {
                    said = Some(Instant::now());
                    tracing::warn!(%error, "cannot accept connections for now");
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(REST) => {}
                }
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
