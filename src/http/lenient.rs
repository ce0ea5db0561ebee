//! What people type: `curl 'localhost:8080/events?subject=orders.>'`.
//!
//! A `>` must be escaped in a URL, browsers do so, and hyper answers anything else with a bare 400. As patterns are what this
//! server is asked for, the first request line of a connection has such characters escaped before hyper sees it. Later
//! ones are left alone: where they begin is only known to whoever reads bodies.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The longest request line that is looked at.
const LONGEST: usize = 64 << 10;

/// A connection whose first line may be written carelessly.
pub(crate) struct Lenient<I> {
    io: I,
    state: State,
}

enum State {
    /// So many bytes of the first line have gone by.
    Line(usize),
    /// What did not fit after escaping, and whether the line has ended in it.
    Rest(Box<[u8]>, usize, bool),
    Done,
}

impl<I> Lenient<I> {
    pub(crate) fn new(io: I) -> Self {
        Self { io, state: State::Line(0) }
    }

    pub(crate) fn into_inner(self) -> I {
        self.io
    }
}

fn careless(byte: u8) -> bool {
    matches!(byte, b'<' | b'>' | b'"')
}

impl<I: AsyncRead + Unpin> AsyncRead for Lenient<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        match &mut this.state {
            State::Done => Pin::new(&mut this.io).poll_read(cx, buf),
            State::Rest(rest, at, ended) => {
                let n = buf.remaining().min(rest.len() - *at);
                buf.put_slice(&rest[*at..*at + n]);
                *at += n;
                if *at == rest.len() {
                    this.state = if *ended { State::Done } else { State::Line(*at) };
                }
                Poll::Ready(Ok(()))
            }
            State::Line(seen) => {
                let before = buf.filled().len();
                ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
                let read = &buf.filled()[before..];
                let end = read.iter().position(|b| *b == b'\n');
                let line = &read[..end.unwrap_or(read.len())];
                let ended = end.is_some() || *seen + line.len() > LONGEST;
                if !line.iter().copied().any(careless) {
                    this.state = if ended { State::Done } else { State::Line(*seen + line.len()) };
                    return Poll::Ready(Ok(()));
                }
                let mut escaped = Vec::with_capacity(read.len() + 16);
                for byte in line {
                    if careless(*byte) {
                        escaped.extend_from_slice(format!("%{byte:02X}").as_bytes());
                    } else {
                        escaped.push(*byte);
                    }
                }
                escaped.extend_from_slice(&read[line.len()..]);
                buf.set_filled(before);
                let n = buf.remaining().min(escaped.len());
                buf.put_slice(&escaped[..n]);
                this.state = if n < escaped.len() {
                    State::Rest(escaped[n..].into(), 0, ended)
                } else if ended {
                    State::Done
                } else {
                    State::Line(*seen + n)
                };
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Lenient<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Writes in pieces of one size and reads in pieces of another.
    async fn through(text: &str, write: usize, read: usize) -> String {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let mut server = Lenient::new(server);
        let mut out = Vec::new();
        for piece in text.as_bytes().chunks(write) {
            client.write_all(piece).await.unwrap();
            let mut buffer = vec![0; read];
            let n = server.read(&mut buffer).await.unwrap();
            out.extend_from_slice(&buffer[..n]);
        }
        drop(client);
        loop {
            let mut buffer = vec![0; read];
            match server.read(&mut buffer).await.unwrap() {
                0 => return String::from_utf8(out).unwrap(),
                n => out.extend_from_slice(&buffer[..n]),
            }
        }
    }

    #[tokio::test]
    async fn only_the_first_line_is_escaped_however_it_comes() {
        let typed = "POST /publish/a?b=\"<c>\" HTTP/1.1\r\nX: <a>\r\n\r\n{\"a\":\"<b>\"}\n>\n";
        let meant = "POST /publish/a?b=%22%3Cc%3E%22 HTTP/1.1\r\nX: <a>\r\n\r\n{\"a\":\"<b>\"}\n>\n";
        for write in [1, 2, 7, 30, 1000] {
            for read in [1, 3, 8, 1000] {
                assert_eq!(through(typed, write, read).await, meant, "{write} {read}");
                assert_eq!(through(meant, write, read).await, meant, "{write} {read}");
            }
        }
    }
}
