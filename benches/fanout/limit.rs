//! The limit server: what fan-out costs when nothing is done but `write(2)`.
//!
//! A process of its own. It takes the same requests as brokercast; the body of a POST is what each subscriber gets, as
//! it is, in one write. Knows no tokens, filters, ids or heartbeats.

use std::io::{self, ErrorKind, Read as _, Write as _};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use super::client::OTHER;
use super::http::{self, ANSWERED, OPENED};

/// The argument with which this program is the limit server.
pub(super) const ARGUMENT: &str = "limit-server";

const LISTENER: Token = Token(usize::MAX);

struct Peer {
    socket: TcpStream,
    /// What it sent and is no whole request yet.
    sent: Vec<u8>,
    /// What its socket had no room for.
    rest: Vec<u8>,
}

/// Listens on a free port, prints it, and serves until standard input ends.
pub(super) fn serve() -> io::Result<()> {
    let mut listener = TcpListener::bind(([127, 0, 0, 1], 0).into())?;
    println!("{}", listener.local_addr()?);
    std::thread::spawn(|| {
        // Whoever started this process has gone.
        io::copy(&mut io::stdin(), &mut io::sink()).ok();
        std::process::exit(0);
    });
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(1024);
    let mut peers: Slab<Peer> = Slab::new();
    let mut audience = Vec::new();
    loop {
        if let Err(error) = poll.poll(&mut events, None)
            && error.kind() != ErrorKind::Interrupted
        {
            return Err(error);
        }
        for event in &events {
            if event.token() == LISTENER {
                accept(&listener, &poll, &mut peers)?;
            } else {
                happened(event.token().0, &mut peers, &mut audience);
            }
        }
    }
}

fn accept(listener: &TcpListener, poll: &Poll, peers: &mut Slab<Peer>) -> io::Result<()> {
    loop {
        match listener.accept() {
            Ok((mut socket, _)) => {
                socket.set_nodelay(true)?;
                let entry = peers.vacant_entry();
                poll.registry().register(&mut socket, Token(entry.key()), Interest::READABLE | Interest::WRITABLE)?;
                entry.insert(Peer { socket, sent: Vec::new(), rest: Vec::new() });
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn happened(key: usize, peers: &mut Slab<Peer>, audience: &mut Vec<usize>) {
    let Some(peer) = peers.get_mut(key) else { return };
    let rest = std::mem::take(&mut peer.rest);
    if !read(peer) || !write(peer, &rest) {
        leave(key, peers, audience);
        return;
    }
    while let Some(peer) = peers.get_mut(key)
        && let Some(request) = http::first(&peer.sent)
    {
        let body = peer.sent[request.head..request.end].to_vec();
        let publishes = peer.sent.starts_with(b"POST ");
        // No subscriber that wants other things is ever looked at again.
        if !publishes && memchr::memmem::find(&peer.sent[..request.head], OTHER.as_bytes()).is_none() {
            audience.push(key);
        }
        peer.sent.drain(..request.end);
        if !write(peer, if publishes { ANSWERED } else { OPENED }) {
            leave(key, peers, audience);
        }
        if publishes {
            audience.retain(|key| {
                let alive = peers.get_mut(*key).is_some_and(|peer| write(peer, &body));
                if !alive && peers.contains(*key) {
                    peers.remove(*key);
                }
                alive
            });
        }
    }
}

fn leave(key: usize, peers: &mut Slab<Peer>, audience: &mut Vec<usize>) {
    peers.remove(key);
    audience.retain(|one| *one != key);
}

/// Takes in what it sent; false when it has gone.
fn read(peer: &mut Peer) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match peer.socket.read(&mut buffer) {
            Ok(0) => return false,
            Ok(n) => peer.sent.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return true,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}

/// Writes, and keeps what there is no room for; false when it has gone.
fn write(peer: &mut Peer, mut bytes: &[u8]) -> bool {
    while peer.rest.is_empty() && !bytes.is_empty() {
        match peer.socket.write(bytes) {
            Ok(0) => return false,
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    peer.rest.extend_from_slice(bytes);
    true
}
