//! One connection for all readers of a source: whoever is polled reads for all.
//!
//! No task of its own and nothing that a reader could hold while it is not polled: a client that takes nothing suspends
//! the reader of its history anywhere. So the socket is pumped under a lock that no await crosses, until it has no more,
//! and when it has more again all readers are woken. What waits in a reader's queue is bounded by what that reader has
//! asked the server for.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::source::nats::Config;
use crate::source::nats::parse::{Delivery, Op};
use crate::source::nats::wire::{self, LastServer, Wire};
use crate::source::{SourceError, supervisor};

/// For an answer of the server.
const ANSWER: Duration = Duration::from_secs(5);

/// A connection that readers share.
pub(super) struct Shared {
    wire: Mutex<Wire>,
    readers: Mutex<HashMap<u64, mpsc::UnboundedSender<Delivery>>>,
    next: AtomicU64,
    /// What readers want to say; whoever pumps writes it.
    outgoing: Mutex<BytesMut>,
    waiting: Arc<Waiting>,
    /// Wakes all who wait.
    waker: Waker,
    dead: OnceLock<String>,
    /// The largest payload that the server takes.
    max_payload: usize,
}

/// The readers that wait for the socket.
#[derive(Default)]
struct Waiting(Mutex<HashMap<u64, Waker>>);

impl Waiting {
    fn register(&self, sid: u64, waker: &Waker) {
        let mut wakers = self.0.lock();
        match wakers.get_mut(&sid) {
            Some(old) => old.clone_from(waker),
            None => drop(wakers.insert(sid, waker.clone())),
        }
    }
}

impl Wake for Waiting {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        let wakers: Vec<Waker> = self.0.lock().values().cloned().collect();
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Shared {
    pub(super) async fn connect(config: &Config, lost: &LastServer) -> Result<Arc<Self>, SourceError> {
        let wire = wire::connect(config, lost).await?;
        let waiting = Arc::<Waiting>::default();
        Ok(Arc::new(Self {
            max_payload: wire.info.max_payload,
            wire: Mutex::new(wire),
            readers: Mutex::default(),
            next: AtomicU64::new(1),
            outgoing: Mutex::default(),
            waker: waiting.clone().into(),
            waiting,
            dead: OnceLock::new(),
        }))
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.get().is_some()
    }

    fn death(&self) -> SourceError {
        SourceError::new(self.dead.get().map_or("the connection has ended", |why| why))
    }

    fn say(&self, text: &str) {
        self.outgoing.lock().extend_from_slice(text.as_bytes());
    }

    /// Reads what has come and hands it out, until there is no more: then all who wait will be woken for the next.
    fn pump(&self) -> Result<(), SourceError> {
        if self.is_dead() {
            return Err(self.death());
        }
        let mut wire = self.wire.lock();
        let pumped = self.pump_wire(&mut wire);
        if let Err(error) = &pumped {
            self.dead.get_or_init(|| supervisor::chain(error));
            // Their queues end, so they ask why.
            self.readers.lock().clear();
        }
        pumped
    }

    fn pump_wire(&self, wire: &mut Wire) -> Result<(), SourceError> {
        let said = std::mem::take(&mut *self.outgoing.lock());
        if !said.is_empty() {
            wire.send(&[&said]);
        }
        let mut cx = Context::from_waker(&self.waker);
        while let Poll::Ready(filled) = wire.poll_fill(&mut cx) {
            filled?;
            self.hand_out(wire)?;
        }
        Ok(())
    }

    fn hand_out(&self, wire: &mut Wire) -> Result<(), SourceError> {
        let readers = self.readers.lock();
        let mut last: Option<(u64, &mpsc::UnboundedSender<Delivery>)> = None;
        while let Some(op) = wire.ready_op()? {
            match op {
                Op::Message(delivery) => {
                    if last.is_none_or(|(sid, _)| sid != delivery.sid) {
                        last = readers.get(&delivery.sid).map(|reader| (delivery.sid, reader));
                    }
                    if let Some((_, reader)) = last.filter(|(sid, _)| *sid == delivery.sid) {
                        // A reader that is going needs nothing more.
                        reader.send(delivery).unwrap_or_default();
                    }
                }
                Op::Err(said) => return Err(SourceError::new(format!("the server says: {said}"))),
                _ => {}
            }
        }
        Ok(())
    }
}

/// One reader's line on a shared connection: an inbox of its own, and requests.
pub(super) struct Line {
    shared: Arc<Shared>,
    sid: u64,
    inbox: String,
    queue: mpsc::UnboundedReceiver<Delivery>,
    asked: u64,
    /// What the server is told when the line goes.
    farewell: String,
}

impl Line {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let sid = shared.next.fetch_add(1, Ordering::Relaxed);
        let inbox = format!("_INBOX.brokercast.{:016x}{sid:x}", rand::random::<u64>());
        let (sender, queue) = mpsc::unbounded_channel();
        shared.readers.lock().insert(sid, sender);
        shared.say(&format!("SUB {inbox}.* {sid}\r\n"));
        Self { shared, sid, inbox, queue, asked: 0, farewell: String::new() }
    }

    /// The largest message that the server can have taken, about.
    pub(super) fn largest(&self) -> usize {
        self.shared.max_payload + (64 << 10)
    }

    /// Whether a delivery is an answer to this line, not a message of a stream; then to what.
    pub(super) fn answers<'a>(&self, delivery: &'a Delivery) -> Option<&'a [u8]> {
        delivery.subject.strip_prefix(self.inbox.as_bytes())?.strip_prefix(b".")
    }

    /// Publishes; answers come to the inbox under `tag`.
    pub(super) fn ask(&self, subject: &str, tag: &str, payload: &str) {
        self.shared.say(&format!("PUB {subject} {}.{tag} {}\r\n{payload}\r\n", self.inbox, payload.len()));
        // At once, though messages may wait in the queue: more are to come while those are read. A connection that is
        // lost says so to whoever receives.
        self.shared.pump().unwrap_or_default();
    }

    /// What the server is told when the line is dropped.
    pub(super) fn at_the_end(&mut self, subject: &str) {
        self.farewell = format!("PUB {subject} 0\r\n\r\n");
    }

    /// What has come already.
    pub(super) fn try_recv(&mut self) -> Option<Delivery> {
        self.queue.try_recv().ok()
    }

    /// Waits for what comes next. Cancel safe.
    pub(super) async fn recv(&mut self) -> Result<Delivery, SourceError> {
        poll_fn(|cx| {
            self.shared.waiting.register(self.sid, cx.waker());
            if let Poll::Ready(delivery) = self.queue.poll_recv(cx) {
                return Poll::Ready(delivery.ok_or_else(|| self.shared.death()));
            }
            self.shared.pump()?;
            self.queue.poll_recv(cx).map(|delivery| delivery.ok_or_else(|| self.shared.death()))
        })
        .await
    }

    /// Asks and waits for the answer; whatever else comes is dropped, so only before messages are read.
    pub(super) async fn request(&mut self, subject: &str, payload: &str) -> Result<Bytes, SourceError> {
        self.asked += 1;
        let tag = format!("q{}", self.asked);
        self.ask(subject, &tag, payload);
        let answered = async {
            loop {
                let delivery = self.recv().await?;
                if self.answers(&delivery) == Some(tag.as_bytes()) {
                    return Ok(delivery);
                }
            }
        };
        let answer = timeout(ANSWER, answered).await.unwrap_or_else(|_| Err(SourceError::new("JetStream did not answer in time")))?;
        if status(&answer).is_some_and(|(code, _)| code == 503) {
            return Err(SourceError::new("the server has no JetStream, or not for this account"));
        }
        Ok(answer.payload)
    }

    /// Says goodbye. The last one waits until it is said; else another reader says it.
    pub(super) async fn close(self) {
        let shared = self.shared.clone();
        drop(self);
        if let Some(shared) = Arc::into_inner(shared) {
            let (mut wire, said) = (shared.wire.into_inner(), shared.outgoing.into_inner());
            wire.send(&[&said]);
            wire.shutdown().await;
        }
    }

    fn leave(&mut self) {
        self.shared.waiting.0.lock().remove(&self.sid);
        if self.shared.readers.lock().remove(&self.sid).is_some() {
            let farewell = std::mem::take(&mut self.farewell);
            self.shared.say(&format!("UNSUB {}\r\n{farewell}", self.sid));
            self.shared.waker.wake_by_ref();
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.leave();
    }
}

/// The status of an answer without a message: its code and its words.
pub(super) fn status(delivery: &Delivery) -> Option<(u16, String)> {
    let line = delivery.headers.split(|b| *b == b'\r').next()?.strip_prefix(b"NATS/1.0")?.trim_ascii();
    let line = std::str::from_utf8(line).ok()?;
    let (code, words) = line.split_once(' ').unwrap_or((line, ""));
    Some((code.parse().ok()?, words.to_owned()))
}

/// A header's number.
pub(super) fn number(delivery: &Delivery, name: &str) -> Option<u64> {
    let headers = std::str::from_utf8(&delivery.headers).ok()?;
    let found = headers.lines().find_map(|line| line.split_once(':').filter(|(key, _)| key.eq_ignore_ascii_case(name)))?;
    found.1.trim().parse().ok()
}
