//! One connection for all readers of a source, each with an inbox and a queue of its own.
//!
//! No reader holds up another: the library reads for all, and what waits in a reader's queue is bounded by what that
//! reader has asked the server for, which is far less than the queue holds. Asking never waits, for a client that takes
//! nothing suspends the reader of its history anywhere.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use async_nats::message::OutboundMessage;
use async_nats::{Client, Message, Subscriber};
use bytes::Bytes;
use futures_util::{Sink as _, StreamExt as _};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::source::SourceError;
use crate::source::nats::Config;
use crate::source::nats::wire::{self, LastServer, Life, Wire};

/// For an answer of the server.
const ANSWER: Duration = Duration::from_secs(5);
/// For the last words.
const LEAVING: Duration = Duration::from_secs(1);
/// What a reader's queue holds: several times what any reader asks for.
const CAPACITY: usize = 32_768;

/// A connection that readers share.
pub(super) struct Shared {
    wire: Wire,
}

impl Shared {
    pub(super) async fn connect(config: &Config, lost: &LastServer) -> Result<Arc<Self>, SourceError> {
        Ok(Arc::new(Self { wire: wire::connect(config, lost, CAPACITY).await? }))
    }

    pub(super) fn is_dead(&self) -> bool {
        self.end().is_some()
    }

    fn end(&self) -> Option<SourceError> {
        // No reader can go on when some message is missing.
        let slow = self.wire.life.borrow().slow > 0;
        self.wire.end().or_else(|| slow.then(|| SourceError::lost("a queue was full")))
    }

    fn death(&self) -> SourceError {
        self.end().unwrap_or_else(|| SourceError::lost("the connection has ended"))
    }
}

/// What came to a line. Its payload shares the buffer that the connection was read into: copy it to keep it for long.
#[derive(Debug)]
pub(super) struct Delivery(Message);

impl Delivery {
    pub(super) fn subject(&self) -> &[u8] {
        self.0.subject.as_bytes()
    }

    /// Where an answer goes; empty: nowhere.
    pub(super) fn reply(&self) -> &[u8] {
        self.0.reply.as_ref().map_or(&[], |reply| reply.as_bytes())
    }

    pub(super) fn payload(&self) -> &[u8] {
        &self.0.payload
    }

    pub(super) fn into_payload(self) -> Bytes {
        self.0.payload
    }
}

/// One reader's line on a shared connection: an inbox of its own, and requests.
pub(super) struct Line {
    shared: Arc<Shared>,
    client: Client,
    inbox: String,
    queue: Subscriber,
    life: watch::Receiver<Life>,
    /// What has not gone yet.
    outbox: VecDeque<OutboundMessage>,
    asked: u64,
    /// What is sent to the server when the line is dropped.
    farewell: Option<OutboundMessage>,
}

impl Line {
    pub(super) async fn new(shared: Arc<Shared>) -> Result<Self, SourceError> {
        let inbox = format!("_INBOX.brokercast.{:032x}", rand::random::<u128>());
        let client = shared.wire.client.clone();
        let queue = client.subscribe(format!("{inbox}.*")).await.map_err(wire::gone)?;
        let life = shared.wire.life.clone();
        Ok(Self { shared, client, inbox, queue, life, outbox: VecDeque::new(), asked: 0, farewell: None })
    }

    /// Whether its connection has ended.
    pub(super) fn is_dead(&self) -> bool {
        self.shared.is_dead()
    }

    /// The largest message that the server can have taken, about.
    pub(super) fn largest(&self) -> usize {
        self.client.max_payload() + (64 << 10)
    }

    /// Whether a delivery is an answer to this line, not a message of a stream; then to what.
    pub(super) fn answers<'a>(&self, delivery: &'a Delivery) -> Option<&'a [u8]> {
        delivery.subject().strip_prefix(self.inbox.as_bytes())?.strip_prefix(b".")
    }

    /// Publishes; answers come to the inbox under `tag`.
    pub(super) fn ask(&mut self, subject: &str, tag: &str, payload: &str) {
        let reply = Some(format!("{}.{tag}", self.inbox).into());
        self.outbox.push_back(OutboundMessage { subject: subject.into(), reply, payload: payload.to_owned().into(), headers: None });
        // At once, though messages may wait in the queue: more are to come while those are read.
        self.send_some();
    }

    /// Sets what is sent to the server when the line is dropped.
    pub(super) fn at_the_end(&mut self, subject: &str) {
        self.farewell = Some(OutboundMessage { subject: subject.into(), reply: None, payload: Bytes::new(), headers: None });
    }

    /// What goes without waiting. The rest goes while something is received; and a connection that is lost says so there.
    fn send_some(&mut self) {
        let sent = poll_send(&mut self.client, &mut self.outbox, &mut Context::from_waker(Waker::noop()));
        if let Poll::Ready(Err(error)) = sent {
            tracing::debug!(%error, "could not ask");
        }
    }

    /// What has come already.
    pub(super) fn try_recv(&mut self) -> Option<Delivery> {
        match self.queue.poll_next_unpin(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(message) => message.map(Delivery),
            Poll::Pending => None,
        }
    }

    /// Waits for what comes next. Cancel safe.
    pub(super) async fn recv(&mut self) -> Result<Delivery, SourceError> {
        loop {
            let Self { shared, client, outbox, queue, life, .. } = self;
            let received = poll_fn(|cx| match poll_send(client, outbox, cx) {
                Poll::Ready(Err(_)) => Poll::Ready(None),
                _ => queue.poll_next_unpin(cx),
            });
            tokio::select! {
                biased;
                message = received => return message.map(Delivery).ok_or_else(|| shared.death()),
                changed = life.changed() => if changed.is_err() || shared.is_dead() { return Err(shared.death()) },
            }
        }
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
        let answer = timeout(ANSWER, answered).await.unwrap_or_else(|_| Err(SourceError::lost("JetStream did not answer in time")))?;
        if status(&answer).is_some_and(|(code, _)| code == 503) {
            return Err(SourceError::missing("the server has no JetStream, or not for this account"));
        }
        Ok(answer.into_payload())
    }

    /// Sends the last message, and waits until it is sent.
    pub(super) async fn close(self) {
        let client = self.client.clone();
        drop(self);
        // A failure changes nothing any more.
        timeout(LEAVING, client.flush()).await.map(Result::unwrap_or_default).unwrap_or_default();
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.outbox.extend(self.farewell.take());
        self.send_some();
    }
}

fn poll_send(client: &mut Client, outbox: &mut VecDeque<OutboundMessage>, cx: &mut Context<'_>) -> Poll<Result<(), SourceError>> {
    while !outbox.is_empty() {
        ready!(Pin::new(&mut *client).poll_ready(cx)).map_err(wire::gone)?;
        if let Some(message) = outbox.pop_front() {
            Pin::new(&mut *client).start_send(message).map_err(wire::gone)?;
        }
    }
    Poll::Ready(Ok(()))
}

/// The status of an answer without a message: its code and its words.
pub(super) fn status(delivery: &Delivery) -> Option<(u16, String)> {
    let code = delivery.0.status?;
    Some((code.as_u16(), delivery.0.description.clone().unwrap_or_default()))
}

/// A header's number.
pub(super) fn number(delivery: &Delivery, name: &str) -> Option<u64> {
    let (_, values) = delivery.0.headers.as_ref()?.iter().find(|(key, _)| key.to_string().eq_ignore_ascii_case(name))?;
    values.first()?.as_str().trim().parse().ok()
}
