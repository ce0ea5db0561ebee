//! Listening and accepting. No error of a client or of the system ends the loop.
//!
//! Knows sockets; [`super::connection`] knows the protocols.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

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
pub struct ListenError {
    /// `server.listen`
    pub key: &'static str,
    /// Where.
    pub address: SocketAddr,
    /// Why.
    #[source]
    pub cause: io::Error,
}

/// Opens a listener. `user_timeout`: how long a peer may acknowledge nothing that was sent.
///
/// # Errors
/// When the port is taken, or the address is none of this machine's.
pub(crate) fn bind(key: &'static str, address: SocketAddr, user_timeout: Duration) -> Result<TcpListener, ListenError> {
    open(address, user_timeout).map_err(|cause| ListenError { key, address, cause })
}

fn open(address: SocketAddr, user_timeout: Duration) -> io::Result<TcpListener> {
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
pub(crate) async fn accept(listener: TcpListener, stop: CancellationToken, mut take: impl FnMut(TcpStream, SocketAddr)) {
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
mod tests {
    use socket2::SockRef;

    use super::*;

    #[tokio::test]
    async fn accepted_sockets_inherit_what_the_listener_was_told() {
        let listener = bind("server.listen", "127.0.0.1:0".parse().unwrap(), Duration::from_secs(77)).unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (socket, _) = accepted.unwrap();
        drop(client);
        assert!(socket.nodelay().unwrap());
        #[cfg(target_os = "linux")]
        {
            assert_eq!(SockRef::from(&socket).tcp_user_timeout().unwrap(), Some(Duration::from_secs(77)));
            assert_eq!(SockRef::from(&socket).tcp_notsent_lowat().unwrap(), UNSENT);
        }
    }

    #[tokio::test]
    async fn a_port_that_is_taken_names_the_key_to_change() {
        let first = bind("server.listen", "127.0.0.1:0".parse().unwrap(), Duration::from_secs(60)).unwrap();
        let error = bind("admin.listen", first.local_addr().unwrap(), Duration::from_secs(60)).unwrap_err();
        assert!(error.to_string().contains("admin.listen"), "{error}");
        assert_eq!(error.cause.kind(), io::ErrorKind::AddrInUse);
    }
}
