//! Accepts URLs as people type them: `curl 'localhost:8080/events?subject=orders.>'`.
//!
//! A `>` must be escaped in a URL. Browsers do so, and hyper answers anything else with a bare 400. Patterns are what this
//! server is asked for, so such characters in request lines are escaped before hyper sees them: in a connection's first request
//! line, and, because proxies send requests of several clients over one connection, in all later ones. Bodies are passed by their
//! length, be it one plain `Content-Length` or `Transfer-Encoding: chunked` without extensions and trailers. Behind a body whose
//! length is told in any other way, only its reader knows where the next line begins: from there on nothing is escaped.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The longest request line that is looked at, in bytes.
const LONGEST: usize = 64 << 10;

/// A connection whose request lines may have unescaped characters.
pub(crate) struct Lenient<I> {
    io: I,
    place: Place,
    /// Bytes to hand out before the next read: they were read before, or did not fit after escaping.
    rest: Bytes,
}

enum Place {
    /// In a request line, after this many bytes of it.
    Line(usize),
    /// In a line of the head.
    Head(Head),
    /// Before this many bytes of a body, at least one.
    Body(u64),
    /// In a chunked body.
    Chunked(Chunk),
    /// The rest of the connection passes unchanged.
    Done,
}

/// How the head says where the body ends.
#[derive(Clone, Copy, Default)]
enum Framing {
    /// There is no body.
    #[default]
    None,
    Length(u64),
    Chunked,
    /// In a way that is not followed.
    Other,
}

/// Where in a chunked body (RFC 9112 section 7.1).
#[derive(Clone, Copy)]
enum Chunk {
    /// In the size of a chunk: what it is so far, and how many digits it has.
    Size(u64, u8),
    /// Behind the size and CR.
    SizeEnd(u64),
    /// Before this many bytes of the chunk, at least one.
    Data(u64),
    /// Behind the chunk.
    DataCr,
    DataLf,
    /// Behind the last chunk.
    LastCr,
    LastLf,
}

impl Chunk {
    /// Takes one byte. `None`: it is none that is followed.
    fn step(self, byte: u8) -> Option<Place> {
        Some(Place::Chunked(match (self, byte) {
            // 15 digits cannot overflow.
            (Self::Size(size, digits @ ..15), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                Self::Size(size * 16 + u64::from(char::from(byte).to_digit(16)?), digits + 1)
            }
            (Self::Size(size, 1..), b'\r') => Self::SizeEnd(size),
            (Self::SizeEnd(0), b'\n') => Self::LastCr,
            (Self::SizeEnd(size), b'\n') => Self::Data(size),
            (Self::DataCr, b'\r') => Self::DataLf,
            (Self::DataLf, b'\n') => Self::Size(0, 0),
            (Self::LastCr, b'\r') => Self::LastLf,
            (Self::LastLf, b'\n') => return Some(Place::Line(0)),
            _ => return None,
        }))
    }
}

struct Head {
    /// The beginning of the line: more than the lines below have in their plain form.
    start: [u8; 48],
    /// How many bytes of `start` are set.
    len: usize,
    /// By the lines before.
    framing: Framing,
}

impl Default for Head {
    fn default() -> Self {
        Self { start: [0; 48], len: 0, framing: Framing::None }
    }
}

impl Head {
    /// Takes what there is of a line, without its end. Returns how many bytes that are.
    fn take(&mut self, read: &[u8]) -> usize {
        let length = read.iter().position(|byte| *byte == b'\n').unwrap_or(read.len());
        let free = &mut self.start[self.len..];
        let wanted = length.min(free.len());
        free[..wanted].copy_from_slice(&read[..wanted]);
        self.len += wanted;
        length
    }

    /// Ends the line. Returns whether the head has ended too.
    fn end_line(&mut self) -> bool {
        let start = &self.start[..self.len];
        let mut parts = start.splitn(2, |byte| *byte == b':');
        let (name, value) = (parts.next().unwrap_or_default().trim_ascii(), parts.next().unwrap_or_default().trim_ascii());
        let announced = if name.eq_ignore_ascii_case(b"content-length") {
            length(value).map_or(Framing::Other, Framing::Length)
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if value.eq_ignore_ascii_case(b"chunked") { Framing::Chunked } else { Framing::Other }
        } else {
            Framing::None
        };
        self.framing = match (self.framing, announced) {
            (framing, Framing::None) => framing,
            // Of a line that was cut off the value is not known.
            (Framing::None, framing) if self.len < self.start.len() => framing,
            _ => Framing::Other,
        };
        let empty = matches!(start, [] | [b'\r']);
        self.len = 0;
        empty
    }

    /// What is behind the head.
    fn next(&self) -> Place {
        match self.framing {
            Framing::None | Framing::Length(0) => Place::Line(0),
            Framing::Length(length) => Place::Body(length),
            Framing::Chunked => Place::Chunked(Chunk::Size(0, 0)),
            Framing::Other => Place::Done,
        }
    }
}

/// A `Content-Length` of digits alone (RFC 9110 section 8.6).
fn length(value: &[u8]) -> Option<u64> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(value).ok().filter(|_| digits)?.parse().ok()
}

impl Place {
    /// Takes one byte that [`Self::pass`] does not. Returns whether it must be escaped.
    fn step(&mut self, byte: u8) -> bool {
        match self {
            // Empty lines before a request are skipped (RFC 9112 section 2.2).
            Self::Line(0) if matches!(byte, b'\r' | b'\n') => {}
            Self::Line(_) if byte == b'\n' => *self = Self::Head(Head::default()),
            Self::Line(LONGEST..) => *self = Self::Done,
            Self::Line(seen) => {
                *seen += 1;
                return matches!(byte, b'<' | b'>' | b'"');
            }
            Self::Head(head) if byte == b'\n' => {
                if head.end_line() {
                    *self = head.next();
                }
            }
            Self::Chunked(chunk) => *self = chunk.step(byte).unwrap_or(Self::Done),
            Self::Head(_) | Self::Body(_) | Self::Done => {}
        }
        false
    }

    /// Takes at once what is never escaped, up to the end of a line of the head, of a chunk or of a body. Returns how many bytes that
    /// are.
    fn pass(&mut self, read: &[u8]) -> usize {
        match self {
            Self::Line(_) => 0,
            Self::Head(head) => head.take(read),
            Self::Body(left) | Self::Chunked(Chunk::Data(left)) => {
                let passed = usize::try_from(*left).unwrap_or(usize::MAX).min(read.len());
                *left -= passed as u64;
                if *left == 0 {
                    *self = if matches!(self, Self::Body(_)) { Self::Line(0) } else { Self::Chunked(Chunk::DataCr) };
                }
                passed
            }
            Self::Chunked(_) => 0,
            Self::Done => read.len(),
        }
    }

    /// Takes all that was read. Returns its escaped form, or `None` if nothing must be escaped.
    fn escape(&mut self, read: &[u8]) -> Option<Vec<u8>> {
        let mut escaped: Option<Vec<u8>> = None;
        let mut at = 0;
        while let Some(byte) = read.get(at) {
            let passed = self.pass(&read[at..]);
            if passed == 0 && self.step(*byte) {
                let out = escaped.get_or_insert_with(|| read[..at].to_vec());
                out.extend_from_slice(format!("%{byte:02X}").as_bytes());
                at += 1;
                continue;
            }
            let end = at + passed.max(1);
            if let Some(out) = &mut escaped {
                out.extend_from_slice(&read[at..end]);
            }
            at = end;
        }
        escaped
    }
}

impl<I> Lenient<I> {
    /// `start` is what was read of `io` already.
    pub(crate) fn behind(start: Bytes, io: I) -> Self {
        let mut place = Place::Line(0);
        let rest = place.escape(&start).map_or(start, Bytes::from);
        Self { io, place, rest }
    }

    /// The same for a protocol without request lines.
    pub(crate) fn untouched(start: Bytes, io: I) -> Self {
        Self { io, place: Place::Done, rest: start }
    }

    pub(crate) fn into_inner(self) -> I {
        self.io
    }

    fn put_rest(&mut self, buf: &mut ReadBuf<'_>) {
        buf.put_slice(&self.rest.split_to(buf.remaining().min(self.rest.len())));
        if self.rest.is_empty() {
            // Otherwise it would keep its memory for as long as the connection lasts.
            self.rest = Bytes::new();
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Lenient<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.rest.is_empty() {
            this.put_rest(buf);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        if matches!(this.place, Place::Done) {
            return Poll::Ready(Ok(()));
        }
        if let Some(escaped) = this.place.escape(&buf.filled()[before..]) {
            this.rest = escaped.into();
            buf.set_filled(before);
            this.put_rest(buf);
        }
        Poll::Ready(Ok(()))
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

    /// Writes in pieces of one size and reads in pieces of another; the first `before` bytes were read before.
    async fn through(text: &str, before: usize, write: usize, read: usize) -> String {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let (start, after) = text.as_bytes().split_at(before);
        let mut server = Lenient::behind(Bytes::copy_from_slice(start), server);
        let mut out = Vec::new();
        for piece in after.chunks(write) {
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
    async fn request_lines_are_escaped_behind_bodies_too_however_they_come() {
        let line = "GET /a?> HTTP/1.1\r\nX: <a>\r\n\r\n";
        let (length, chunked) = ("content-LENGTH:13 \r\n", "Transfer-Encoding: Chunked\r\n");
        let chunks = "a\r\nGET /?> x\n\r\n0001\r\n>\r\n00\r\n\r\n";
        let typed = [
            "GET /a?>\" HTTP/1.1\r\nX: <a>\r\nContent-Lengths: >\r\n\r\n\r\nGET /b?> HTTP/1.1\nX: >\n\n",
            &format!("POST /publish/a?b=\"<c>\" HTTP/1.1\r\nX: <a>\r\n{length}Y: >\r\n\r\nGET /?> HTTP\n\n"),
            line,
            &format!("POST /> HTTP/1.1\r\n{chunked}\r\n{chunks}"),
            line,
            "POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
            line,
        ]
        .concat();
        let meant = typed.replace("/a?>\" H", "/a?%3E%22 H").replace("b?>", "b?%3E").replace("\"<c>\"", "%22%3Cc%3E%22");
        let meant = meant.replace("/a?> H", "/a?%3E H").replace("/> H", "/%3E H");
        for write in [1, 2, 7, 30, 1000] {
            for read in [1, 3, 8, 1000] {
                for before in [0, 1, 9, 60, 120, typed.len() - 1] {
                    assert_eq!(through(&typed, before, write, read).await, meant, "{before} {write} {read}");
                    assert_eq!(through(&meant, before, write, read).await, meant, "{before} {write} {read}");
                }
            }
        }
    }

    #[tokio::test]
    async fn behind_a_body_of_unknown_length_nothing_is_escaped() {
        let digits = "0".repeat(40);
        let framings = [
            "Content-Length: 1\r\nContent-Length: 1\r\n",
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "Content-Length:\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: 1, 1\r\n",
            "Content-Length: 99999999999999999999\r\n",
            &format!("Content-Length: {digits}1\r\n"),
        ];
        for framing in framings {
            let text = format!("POST / HTTP/1.1\r\n{framing}\r\n1\r\n>\r\n0\r\n\r\nGET /> HTTP/1.1\r\n\r\n");
            assert_eq!(through(&text, 0, 1000, 1000).await, text);
        }
        for chunks in [
            "1;a=b\r\n>\r\n0\r\n\r\n",
            "0\r\nA: >\r\n\r\n",
            "1 \r\n>\r\n0\r\n\r\n",
            "1\n>\n0\n\n",
            "\r\n",
            "1\r\n>>",
            "0000000000000001\r\n>\r\n0\r\n\r\n",
            "x",
        ] {
            let text = format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}GET /> HTTP/1.1\r\n\r\n");
            assert_eq!(through(&text, 0, 1000, 1000).await, text);
        }
        let endless = format!("GET /{}>", "x".repeat(LONGEST));
        assert_eq!(through(&endless, 0, 1000, 1000).await, endless);
        let mut other = Lenient::untouched(Bytes::from_static(b"PRI > \n\n>"), tokio::io::empty());
        let mut out = String::new();
        other.read_to_string(&mut out).await.unwrap();
        assert_eq!(out, "PRI > \n\n>");
    }
}
