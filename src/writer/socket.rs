//! Writing to sockets that never block, and where they stop.

use std::io::{ErrorKind, Read as _, Write as _};

use bytes::Bytes;
use mio::net::TcpStream;

use super::pump::IGNORED;
use crate::frame;

/// What is left of a piece is copied up to this size, so that a slow reader keeps no shared piece alive.
const COPIED: usize = 16 << 10;

/// What became of a write.
pub(super) enum Wrote {
    /// The socket took all of it.
    All,
    /// It took so many bytes and is full.
    Part(usize),
    /// There is nobody any more.
    Gone,
}

/// Writes until all is taken or the socket is full.
pub(super) fn write(socket: &mut TcpStream, bytes: &[u8]) -> Wrote {
    let mut written = 0;
    while written < bytes.len() {
        match socket.write(&bytes[written..]) {
            Ok(0) => return Wrote::Gone,
            Ok(n) => written += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Wrote::Part(written),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Wrote::Gone,
        }
    }
    Wrote::All
}

/// Reads and forgets. False once the client has gone, or sends what no client of a stream sends.
pub(super) fn alive(socket: &mut TcpStream, ignored: &mut u32) -> bool {
    let mut scratch = [0; 512];
    loop {
        match socket.read(&mut scratch) {
            Ok(0) => return false,
            Ok(n) => {
                *ignored += n as u32;
                if *ignored as usize > IGNORED {
                    return false;
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => return true,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}

/// Where a socket stopped in a piece.
pub(super) struct Stop {
    /// Events of which it took something.
    pub(super) events: u64,
    /// What is left of the last of them.
    pub(super) rest: Bytes,
    /// The id behind it; empty if none of them has one.
    pub(super) id: Bytes,
}

impl Stop {
    /// Behind `taken` bytes of a piece, which is less than all of it.
    pub(super) fn at(piece: &Bytes, taken: usize) -> Self {
        let mut stop = Self { events: 0, rest: Bytes::new(), id: Bytes::new() };
        let mut start = 0;
        // At least one: a socket that took nothing gets the first event from here.
        while start < piece.len() && (start < taken || stop.events == 0) {
            let (length, head) = chunk(&piece[start..]);
            let body = start + head;
            let end = (body + length + frame::CHUNK_END.len()).min(piece.len());
            if let Some(id) = id_of(&piece[body..end]) {
                stop.id = Bytes::copy_from_slice(id);
            }
            let left = &piece[taken.max(start).min(end)..end];
            stop.rest = if left.len() <= COPIED { Bytes::copy_from_slice(left) } else { piece.slice_ref(left) };
            stop.events += 1;
            start = end;
        }
        stop
    }
}

/// The length that a chunk's head says, and that of the head.
fn chunk(bytes: &[u8]) -> (usize, usize) {
    let mut length = 0;
    for (n, byte) in bytes.iter().enumerate() {
        match (*byte as char).to_digit(16) {
            Some(digit) => length = length << 4 | digit as usize,
            None => return (length, n + 2),
        }
    }
    (length, bytes.len())
}

fn id_of(event: &[u8]) -> Option<&[u8]> {
    event.split(|b| *b == b'\n').take(2).find_map(|line| line.strip_prefix(b"id: "))
}
