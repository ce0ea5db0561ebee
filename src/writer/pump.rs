//! Writes one stream to its socket until it has caught up: the way of whoever is not live.

use std::io;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::frame::{self, Closing};
use crate::replay::{Live, Subscription};

/// What a client may send into its stream before it is taken for something else.
pub(super) const IGNORED: usize = 64 << 10;

/// Writes until the stream is live and everything before that has been taken by the socket, or until it has ended.
/// A socket that takes nothing for `stall` is closed.
pub async fn pump(mut socket: TcpStream, mut stream: Subscription, stall: Duration) -> Option<(TcpStream, Live)> {
    let mut ignored = 0;
    loop {
        stream = match stream.into_live() {
            Ok(live) => return Some((socket, live)),
            Err(stream) => *stream,
        };
        let first = stream.take_first();
        let next = if first.is_empty() {
            tokio::select! {
                next = std::future::poll_fn(|cx| stream.poll_next(cx)) => next,
                () = gone(&socket, &mut ignored) => return None,
            }
        } else {
            Some(first)
        };
        let Some(bytes) = next else {
            end(&mut socket, stall).await;
            return None;
        };
        match write(&mut socket, &chunk(&bytes), stall).await {
            Ok(()) => {}
            Err(error) => {
                if error.kind() == io::ErrorKind::TimedOut {
                    stream.abandon(Closing::Slow);
                }
                return None;
            }
        }
    }
}

fn chunk(bytes: &Bytes) -> Bytes {
    let mut out = BytesMut::with_capacity(bytes.len() + 24);
    frame::chunk_head(&mut out, bytes.len());
    out.extend_from_slice(bytes);
    out.extend_from_slice(frame::CHUNK_END);
    out.freeze()
}

async fn write(socket: &mut TcpStream, mut bytes: &[u8], stall: Duration) -> io::Result<()> {
    while !bytes.is_empty() {
        match timeout(stall, socket.write(bytes)).await {
            Ok(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(Ok(n)) => bytes = &bytes[n..],
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
    Ok(())
}

async fn end(socket: &mut TcpStream, stall: Duration) {
    if write(socket, frame::LAST_CHUNK, stall).await.is_ok() {
        // The client sees the end even if it has gone meanwhile.
        socket.shutdown().await.unwrap_or_default();
    }
}

/// Resolves when the client has gone, or sends what no client of a stream sends.
async fn gone(socket: &TcpStream, ignored: &mut usize) {
    let mut scratch = [0; 512];
    loop {
        if socket.readable().await.is_err() {
            return;
        }
        let read = std::future::poll_fn(|_| Poll::Ready(socket.try_read(&mut scratch))).await;
        match read {
            Ok(0) => return,
            Ok(n) => {
                *ignored += n;
                if *ignored > IGNORED {
                    return;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}
