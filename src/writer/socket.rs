//! Writing to sockets that never block.

use std::io::{ErrorKind, Read as _, Write as _};
use std::ops::Range;

use bytes::Bytes;
use mio::net::TcpStream;

use crate::transport::task::IGNORED;

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

/// The rest of an entry that a full socket waits with.
pub(super) fn keep(piece: &Bytes, rest: Range<usize>) -> Bytes {
    if rest.len() <= COPIED { Bytes::copy_from_slice(&piece[rest]) } else { piece.slice(rest) }
}
