//! Writes one stream to its socket until it is live: cleartext HTTP/1.1, chunked.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use super::behind::{Behind, Next};
use crate::frame::{self, Closing};
use crate::hub::{Hub, Transport};
use crate::stream::{Live, Stream};

/// Bytes that a client may send into its stream. One that sends more is cut off.
pub(crate) const IGNORED: usize = 64 << 10;

/// Writes until the stream is live and the socket has taken everything before that, or until the stream has ended. Returns
/// the socket, the live stream and its client's last id. A socket that takes nothing for `stall` is closed.
pub(crate) async fn catch_up<S: AsyncRead + AsyncWrite + Unpin>(
    mut socket: S,
    stream: Stream,
    stall: Duration,
) -> Option<(S, Live, Arc<str>)> {
    let hub = stream.streams().hub().clone();
    let mut behind = Behind::new(stream);
    let mut ignored = 0;
    loop {
        let next = tokio::select! {
            biased;
            next = behind.next() => next,
            () = gone(&mut socket, &mut ignored) => return None,
        };
        match next {
            Next::Live(live, id, _) => return Some((socket, live, id)),
            Next::Last(bytes) => {
                if write_chunk(&mut socket, &[bytes], stall, &hub).await.is_ok() {
                    end(&mut socket, stall, &hub).await;
                }
                return None;
            }
            Next::Send(parts, rest) => {
                behind = rest;
                if let Err(error) = write_chunk(&mut socket, &parts, stall, &hub).await {
                    if error.kind() == io::ErrorKind::TimedOut {
                        behind.abandon(Closing::Slow);
                    }
                    return None;
                }
            }
        }
    }
}

/// Writes parts as one chunk, without copying them.
async fn write_chunk(socket: &mut (impl AsyncWrite + Unpin), parts: &[Bytes], stall: Duration, hub: &Hub) -> io::Result<()> {
    let mut head = Vec::new();
    frame::chunk_head(&mut head, parts.iter().map(Bytes::len).sum());
    let slices = [&head[..]].into_iter().chain(parts.iter().map(|part| &part[..])).chain([frame::CHUNK_END]);
    write(socket, &mut slices.map(IoSlice::new).collect::<Vec<_>>(), stall, hub).await
}

/// Counts what the socket takes, and that it took nothing for `stall`.
async fn write(socket: &mut (impl AsyncWrite + Unpin), mut slices: &mut [IoSlice<'_>], stall: Duration, hub: &Hub) -> io::Result<()> {
    while !slices.is_empty() {
        match timeout(stall, socket.write_vectored(slices)).await {
            Ok(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(Ok(n)) => {
                hub.deliveries().sent(Transport::Http11, 0, n as u64);
                IoSlice::advance_slices(&mut slices, n);
            }
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                hub.deliveries().stalled();
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
    Ok(())
}

async fn end(socket: &mut (impl AsyncWrite + Unpin), stall: Duration, hub: &Hub) {
    if write(socket, &mut [IoSlice::new(frame::LAST_CHUNK)], stall, hub).await.is_ok() {
        // The client sees the end even if it has gone meanwhile.
        socket.shutdown().await.unwrap_or_default();
    }
}

/// Resolves when the client has gone, or has sent more than a client of a stream sends. May be dropped at any time.
async fn gone(socket: &mut (impl AsyncRead + Unpin), ignored: &mut usize) {
    let mut scratch = [0; 512];
    loop {
        match socket.read(&mut scratch).await {
            Ok(0) | Err(_) => return,
            Ok(n) => *ignored += n,
        }
        if *ignored > IGNORED {
            return;
        }
    }
}
