//! Sockets that never block, as the loops use them.

use std::io::{self, ErrorKind};
use std::ops::Range;

use bytes::Bytes;

use crate::transport::task::IGNORED;

/// A socket that never blocks: where it would, it says [`ErrorKind::WouldBlock`].
///
/// All that is ready for a client lies in one piece, so one plain write takes it; there is nothing to gather.
pub(crate) trait Socket {
    /// Writes some of `bytes`.
    ///
    /// # Errors
    /// When the socket is full, or the client has gone.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Reads some bytes; 0 at the end.
    ///
    /// # Errors
    /// When nothing is there to be read, or the client has gone.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Ends the sending side.
    fn shutdown(&mut self);
}

/// What became of a write.
pub(super) enum Written {
    /// The socket took all of it.
    All,
    /// It took so many bytes and is full.
    Part(usize),
    /// The client has gone.
    Gone,
}

/// Writes until the socket has taken everything or is full.
pub(super) fn write_until_full(socket: &mut impl Socket, bytes: &[u8]) -> Written {
    let mut written = 0;
    while written < bytes.len() {
        match socket.write(&bytes[written..]) {
            Ok(0) => return Written::Gone,
            Ok(n) => written += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Written::Part(written),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Written::Gone,
        }
    }
    Written::All
}

/// Reads what the client sent, and drops it. False when the client has gone, or has sent more than [`IGNORED`] bytes.
pub(super) fn is_open(socket: &mut impl Socket, ignored: &mut u32) -> bool {
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

/// The rest of an entry that a full socket waits with. Up to `copied` bytes are copied, so that a slow reader keeps no
/// shared piece in memory.
pub(super) fn keep(piece: &Bytes, rest: Range<usize>, copied: usize) -> Bytes {
    if rest.len() <= copied { Bytes::copy_from_slice(&piece[rest]) } else { piece.slice(rest) }
}
