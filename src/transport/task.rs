//! Writes one stream to its socket until it is live: cleartext HTTP/1.1, chunked.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
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
                if write(&mut socket, &chunk(&bytes), stall, &hub).await.is_ok() {
                    end(&mut socket, stall, &hub).await;
                }
                return None;
            }
            Next::Send(bytes, rest) => {
                behind = rest;
                if let Err(error) = write(&mut socket, &chunk(&bytes), stall, &hub).await {
                    if error.kind() == io::ErrorKind::TimedOut {
                        behind.abandon(Closing::Slow);
                    }
                    return None;
                }
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

/// Counts what the socket takes, and that it took nothing for `stall`.
async fn write(socket: &mut (impl AsyncWrite + Unpin), mut bytes: &[u8], stall: Duration, hub: &Hub) -> io::Result<()> {
    while !bytes.is_empty() {
        match timeout(stall, socket.write(bytes)).await {
            Ok(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(Ok(n)) => {
                hub.deliveries().sent(Transport::Http11, 0, n as u64);
                bytes = &bytes[n..];
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
    if write(socket, frame::LAST_CHUNK, stall, hub).await.is_ok() {
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
