//! The load: subscribers and publishers on one thread, which counts what comes.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::http;

/// Publishers, each with one request under way.
pub(super) const PUBLISHERS: usize = 64;
/// Events that the subscribers together may be behind.
pub(super) const AHEAD: usize = 256;
/// How long a run may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// Stands once in each event and nowhere else in a stream.
pub(super) const MARK: u8 = b'~';

/// How events are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// The next one when all subscribers have the last one.
    OneAtATime,
    /// From all publishers at once.
    InFlight,
}

/// What the subjects begin with that are never published.
pub(super) const OTHER: &str = "other.";

/// What subscribers ask for. Events have the subject `bench.a`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wants {
    /// All the same: one filter.
    Same,
    /// All of them every event, but by so many different filters.
    Filters(usize),
    /// Something else, that never comes: so many different patterns, a few by each subscriber.
    Other(usize),
}

impl Wants {
    /// The request of subscriber `n` of `subscribers`.
    fn get(self, n: usize, subscribers: usize) -> String {
        let query = match self {
            Self::Same => "subject=bench.%3E".to_owned(),
            Self::Filters(filters) => format!("subject=bench.a&subject=none.{}", n % filters),
            Self::Other(patterns) => {
                let of = |n: usize| patterns * n / subscribers;
                let each = (of(n)..of(n + 1)).map(|pattern| format!("subject=bench.{OTHER}{pattern}"));
                each.collect::<Vec<_>>().join("&")
            }
        };
        format!("GET /events?{query} HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n")
    }
}

struct Publisher {
    socket: TcpStream,
    answer: Vec<u8>,
    busy: bool,
}

/// A server's clients.
pub(super) struct Client {
    address: SocketAddr,
    poll: Poll,
    events: Events,
    subscribers: Vec<(TcpStream, usize)>,
    publishers: Vec<Publisher>,
    request: Vec<u8>,
    /// Events published so far.
    published: usize,
    delivered: usize,
    /// What the first subscriber gets, while somebody wants to know.
    seen: Option<Vec<u8>>,
    buffer: Vec<u8>,
}

impl Client {
    /// Opens all streams and waits until each has begun.
    pub(super) fn connect(address: SocketAddr, subscribers: usize, wants: Wants, request: Vec<u8>) -> io::Result<Self> {
        let poll = Poll::new()?;
        let stream = |n| Ok((connect(&poll, address, n, Some(wants.get(n, subscribers).as_bytes()))?, 0));
        let streams = (0..subscribers).map(stream).collect::<io::Result<_>>()?;
        Ok(Self {
            address,
            poll,
            events: Events::with_capacity(1024),
            subscribers: streams,
            publishers: Vec::new(),
            request,
            published: 0,
            delivered: 0,
            seen: None,
            buffer: vec![0; 256 << 10],
        })
    }

    /// Opens the publishers' connections: a server closes those that are idle for long.
    pub(super) fn open(&mut self, mode: Mode) -> io::Result<()> {
        let count = if mode == Mode::OneAtATime { 1 } else { PUBLISHERS };
        let publisher = |n| {
            let socket = connect(&self.poll, self.address, self.subscribers.len() + n, None)?;
            Ok(Publisher { socket, answer: Vec::new(), busy: false })
        };
        self.publishers = (0..count).map(publisher).collect::<io::Result<_>>()?;
        Ok(())
    }

    /// Closes them.
    pub(super) fn close(&mut self) {
        self.publishers.clear();
    }

    /// Publishes one event and returns what one subscriber gets of it, byte by byte.
    pub(super) fn observe(&mut self) -> io::Result<Vec<u8>> {
        self.seen = Some(Vec::new());
        self.open(Mode::OneAtATime)?;
        self.run(1, Mode::OneAtATime)?;
        self.close();
        Ok(self.seen.take().unwrap_or_default())
    }

    /// Publishes so many events over open connections, and returns when every subscriber has every one.
    pub(super) fn run(&mut self, events: usize, mode: Mode) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let until = self.published + events;
        while self.published < until || !self.complete() {
            match mode {
                Mode::OneAtATime if self.published < until && self.complete() => self.publish(0)?,
                Mode::OneAtATime => {}
                Mode::InFlight => {
                    for n in 0..self.publishers.len() {
                        let behind = self.published * self.subscribers.len() - self.delivered;
                        if self.published < until && !self.publishers[n].busy && behind < AHEAD * self.subscribers.len().max(1) {
                            self.publish(n)?;
                        }
                    }
                }
            }
            self.turn()?;
            if Instant::now() > deadline {
                let due = self.published * self.subscribers.len();
                return Err(io::Error::other(format!("{} of {due} deliveries came in time", self.delivered)));
            }
        }
        Ok(())
    }

    /// Whether everybody has everything and nobody waits for an answer.
    fn complete(&self) -> bool {
        self.delivered == self.published * self.subscribers.len()
            && self.publishers.iter().all(|p| !p.busy)
            && self.subscribers.iter().all(|(_, got)| *got == self.published)
    }

    fn publish(&mut self, n: usize) -> io::Result<()> {
        let publisher = &mut self.publishers[n];
        // With one request under way there is always room for it.
        publisher.socket.write_all(&self.request)?;
        publisher.busy = true;
        self.published += 1;
        Ok(())
    }

    fn turn(&mut self) -> io::Result<()> {
        if let Err(error) = self.poll.poll(&mut self.events, Some(Duration::from_secs(1)))
            && error.kind() != ErrorKind::Interrupted
        {
            return Err(error);
        }
        for event in &self.events {
            let n = event.token().0;
            if let Some((socket, got)) = self.subscribers.get_mut(n) {
                while let Some(read) = read(socket, &mut self.buffer).map_err(|e| io::Error::other(format!("subscriber {n}: {e}")))? {
                    let new = memchr::memchr_iter(MARK, &self.buffer[..read]).count();
                    *got += new;
                    self.delivered += new;
                    if let (0, Some(seen)) = (n, &mut self.seen) {
                        seen.extend_from_slice(&self.buffer[..read]);
                    }
                }
            } else if let Some(publisher) = self.publishers.get_mut(n - self.subscribers.len()) {
                while let Some(read) =
                    read(&mut publisher.socket, &mut self.buffer).map_err(|e| io::Error::other(format!("publisher: {e}")))?
                {
                    publisher.answer.extend_from_slice(&self.buffer[..read]);
                }
                if let Some(message) = http::first(&publisher.answer) {
                    if !publisher.answer.starts_with(b"HTTP/1.1 202 ") {
                        return Err(io::Error::other(String::from_utf8_lossy(&publisher.answer).into_owned()));
                    }
                    publisher.answer.drain(..message.end);
                    publisher.busy = false;
                }
            }
        }
        Ok(())
    }
}

/// A connection; with `get`, one on which a stream has begun.
fn connect(poll: &Poll, address: SocketAddr, token: usize, get: Option<&[u8]>) -> io::Result<TcpStream> {
    let mut socket = std::net::TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    if let Some(get) = get {
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.write_all(get)?;
        begun(&mut socket)?;
    }
    socket.set_nonblocking(true)?;
    let mut socket = TcpStream::from_std(socket);
    poll.registry().register(&mut socket, Token(token), Interest::READABLE)?;
    Ok(socket)
}

/// How much there is to read at once; `None` when there is nothing now.
fn read(socket: &mut TcpStream, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        match socket.read(buffer) {
            Ok(0) => return Err(io::Error::other("the server closed a connection")),
            Ok(n) => return Ok(Some(n)),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Waits for a stream's head and the first thing in it.
fn begun(socket: &mut std::net::TcpStream) -> io::Result<()> {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let n = socket.read(&mut buffer)?;
        all.extend_from_slice(&buffer[..n]);
        if n == 0 || (all.len() > 12 && !all.starts_with(b"HTTP/1.1 200 ")) {
            return Err(io::Error::other(format!("no stream: {}", String::from_utf8_lossy(&all))));
        }
        if all.ends_with(b"\n\n\r\n") {
            return Ok(());
        }
    }
}
