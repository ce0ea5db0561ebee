//! One connection for all readers of a source, each with an inbox and a queue of its own.
//!
//! No reader holds up another: the library reads for all, and what waits in a reader's queue is bounded by what that
//! reader has asked the server for, which is far less than the queue holds. Asking never waits, for a client that takes
//! nothing suspends the reader of its history anywhere.

use std::collections::{BTreeSet, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use async_nats::message::OutboundMessage;
use async_nats::{Client, Message, Subscriber};
use bytes::Bytes;
use futures_util::{Sink as _, StreamExt as _};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::event::{Headers, SourceName};
use crate::source::SourceError;
use crate::source::nats::headers;
use crate::source::nats::refusal::Right;
use crate::source::nats::servers::Servers;
use crate::source::nats::wire::{self, Life, Wire};
use crate::source::nats::{API, Config, JetStream};
use crate::support::{host, random};

/// For most answers of the server.
pub(super) const ANSWER: Duration = Duration::from_secs(10);
/// A question that has no answer by then is asked again: a cluster that elects a leader loses what comes meanwhile.
const AGAIN: Duration = Duration::from_secs(2);
/// For the last words.
const LEAVING: Duration = Duration::from_secs(1);
/// What a reader's queue holds: several times what any reader asks for.
const CAPACITY: usize = 32_768;

/// A connection that readers share.
pub(super) struct Shared {
    wire: Wire,
    /// What the subjects of JetStream's API begin with.
    api: String,
    inbox_prefix: String,
    source: SourceName,
    /// What the names of consumers begin with.
    consumers: String,
    /// Rights that are missing and done without, as far as the log says so.
    without: Mutex<BTreeSet<String>>,
    /// Something that cannot be done without was refused. Another connection may be permitted more.
    denied: AtomicBool,
    /// The library has given it up. It does not tell when it panics, at a message that it cannot read.
    gone: AtomicBool,
}

impl Shared {
    pub(super) async fn connect(
        config: &Config,
        stream: &JetStream,
        known: &Servers,
        source: &SourceName,
    ) -> Result<Arc<Self>, SourceError> {
        let wire = wire::connect(config, known, CAPACITY).await?;
        let (api, inbox_prefix) = (stream.api.clone(), config.inbox_prefix.clone());
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
        let consumers = format!("{}_{}_", config.name.chars().take(64).map(plain).collect::<String>(), host::name());
        let source = source.clone();
        Ok(Arc::new(Self {
            wire,
            api,
            inbox_prefix,
            source,
            consumers,
            without: Mutex::default(),
            denied: AtomicBool::new(false),
            gone: AtomicBool::new(false),
        }))
    }

    fn is_dead(&self) -> bool {
        self.end().is_some()
    }

    /// Whether another reader may use it.
    pub(super) fn takes_readers(&self) -> bool {
        !self.is_dead() && !self.denied.load(Ordering::Relaxed)
    }

    fn end(&self) -> Option<SourceError> {
        let life = self.wire.life.borrow();
        // No reader can go on when some message is missing. And a stream is read on from elsewhere without a loss.
        let (slow, leaving) = (life.slow > 0, life.leaving);
        drop(life);
        let why = if slow { "a queue was full" } else { "the server is about to stop (lame duck mode)" };
        self.wire.end().or_else(|| (slow || leaving).then(|| SourceError::lost(why))).or_else(|| self.gone().then(Self::lost))
    }

    fn gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    fn lost() -> SourceError {
        SourceError::lost("the connection has ended")
    }

    fn death(&self) -> SourceError {
        self.end().unwrap_or_else(Self::lost)
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

    pub(super) fn headers(&self) -> Headers {
        headers::read(self.0.headers.as_ref())
    }

    pub(super) fn into_payload(self) -> Bytes {
        self.0.payload
    }
}

/// What comes while a line waits.
pub(super) enum Heard {
    Delivery(Delivery),
    /// This user may not ask these questions.
    Refused(Vec<String>),
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
    /// Refusals of the connection that were heard.
    heard: u64,
}

impl Line {
    pub(super) async fn new(shared: Arc<Shared>) -> Result<Self, SourceError> {
        let inbox = shared.wire.new_inbox();
        let client = shared.wire.client.clone();
        let queue = client.subscribe(format!("{inbox}.*")).await.map_err(|error| {
            shared.gone.store(true, Ordering::Relaxed);
            wire::gone(error)
        })?;
        let life = shared.wire.life.clone();
        let mut heard = 0;
        life.borrow().refusals.after(&mut heard).for_each(drop);
        Ok(Self { shared, client, inbox, queue, life, outbox: VecDeque::new(), asked: 0, farewell: None, heard })
    }

    /// Another line on the same connection.
    pub(super) async fn beside(&self) -> Result<Self, SourceError> {
        Self::new(self.shared.clone()).await
    }

    /// Whether its connection has ended.
    pub(super) fn is_dead(&self) -> bool {
        self.shared.is_dead()
    }

    /// Whether the server has others beside it.
    pub(super) fn is_in_cluster(&self) -> bool {
        self.client.server_info().cluster.is_some()
    }

    /// The largest message that the server can have taken, about.
    pub(super) fn largest(&self) -> usize {
        self.client.max_payload() + (64 << 10)
    }

    /// Whether a delivery is an answer to this line, not a message of a stream; then to what.
    pub(super) fn answers<'a>(&self, delivery: &'a Delivery) -> Option<&'a [u8]> {
        delivery.subject().strip_prefix(self.inbox.as_bytes())?.strip_prefix(b".")
    }

    /// The subject of a question to JetStream's API.
    fn subject(&self, question: &str) -> String {
        format!("{}.{question}", self.shared.api)
    }

    /// Asks JetStream's API; answers come to the inbox under `tag`.
    pub(super) fn ask(&mut self, question: &str, tag: &str, payload: &str) {
        let reply = Some(format!("{}.{tag}", self.inbox).into());
        let subject = self.subject(question).into();
        self.outbox.push_back(OutboundMessage { subject, reply, payload: payload.to_owned().into(), headers: None });
        // At once, though messages may wait in the queue: more are to come while those are read.
        self.send_some();
    }

    /// Sets what is asked of JetStream's API, without an answer, when the line is dropped.
    pub(super) fn at_the_end(&mut self, question: &str) {
        let subject = self.subject(question).into();
        self.farewell = Some(OutboundMessage { subject, reply: None, payload: Bytes::new(), headers: None });
    }

    pub(super) fn new_consumer_name(&self) -> String {
        format!("{}{:016x}", self.shared.consumers, random::in_range(0..u64::MAX))
    }

    /// Logs, once for a connection, that this user may not ask a question, and what comes of that.
    pub(super) fn does_without(&self, question: &str, consequence: &str) {
        let right = self.subject(question);
        if self.shared.without.lock().insert(right.clone()) {
            tracing::warn!(source = %self.shared.source, right, "this user may not publish to a subject of JetStream's API: {consequence}");
        }
    }

    /// Whether the server refuses a question to JetStream's API on this connection.
    pub(super) fn is_refused(&self, question: &str) -> bool {
        self.life.borrow().refusals.contain(Right::Publish, &self.subject(question))
    }

    /// The next thing that the server has refused and that concerns this line: a question to JetStream's API, or an error,
    /// where no answer can come.
    fn refused(&mut self) -> Result<Vec<String>, SourceError> {
        let life = self.life.borrow();
        let (api, answers) = (format!("{}.", self.shared.api), format!("{}.*", self.inbox));
        let mut questions = Vec::new();
        for refusal in life.refusals.after(&mut self.heard) {
            match refusal.right {
                Right::Subscribe if refusal.subject == answers => {
                    self.shared.denied.store(true, Ordering::Relaxed);
                    return Err(Right::Subscribe.denied(&format!("{}.>", self.shared.inbox_prefix), "inbox_prefix"));
                }
                Right::Subscribe => {}
                Right::Publish => questions.extend(refusal.subject.strip_prefix(&api).map(str::to_owned)),
            }
        }
        Ok(questions)
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
    pub(super) async fn recv(&mut self) -> Result<Heard, SourceError> {
        loop {
            let Self { shared, client, outbox, queue, life, .. } = self;
            let received = poll_fn(|cx| match poll_send(client, outbox, cx) {
                Poll::Ready(Err(_)) => Poll::Ready(None),
                _ => queue.poll_next_unpin(cx),
            });
            tokio::select! {
                biased;
                message = received => return message.map(|message| Heard::Delivery(Delivery(message))).ok_or_else(|| {
                    shared.gone.store(true, Ordering::Relaxed);
                    shared.death()
                }),
                changed = life.changed() => if changed.is_err() || shared.is_dead() { return Err(shared.death()) },
            }
            let refused = self.refused()?;
            if !refused.is_empty() {
                return Ok(Heard::Refused(refused));
            }
        }
    }

    /// Asks JetStream's API and waits for the answer, at most `patience`; asks again meanwhile. What else comes is dropped, so only
    /// before messages are read. `None`: this user may not ask that.
    pub(super) async fn try_request(&mut self, question: &str, payload: &str, patience: Duration) -> Result<Option<Bytes>, SourceError> {
        self.try_requests(question, payload, patience, AGAIN).await
    }

    /// The same, asked once, for what makes another thing each time.
    pub(super) async fn try_request_once(
        &mut self,
        question: &str,
        payload: &str,
        patience: Duration,
    ) -> Result<Option<Bytes>, SourceError> {
        self.try_requests(question, payload, patience, patience).await
    }

    async fn try_requests(
        &mut self,
        question: &str,
        payload: &str,
        patience: Duration,
        again: Duration,
    ) -> Result<Option<Bytes>, SourceError> {
        if self.is_refused(question) {
            return Ok(None);
        }
        self.asked += 1;
        let (tag, end) = (format!("q{}", self.asked), Instant::now() + patience);
        let answer = loop {
            self.ask(question, &tag, payload);
            let left = end.saturating_duration_since(Instant::now());
            match timeout(again.min(left), self.answer(question, &tag)).await {
                Ok(answer) => break answer?,
                Err(_) if left <= again => return Err(SourceError::lost("JetStream did not answer in time")),
                Err(_) => tracing::debug!(source = %self.shared.source, question, "asks again: no answer yet"),
            }
        };
        if answer.as_ref().and_then(status).is_some_and(|(code, _)| code == 503) {
            let keys = if self.shared.api == API { "`jetstream`" } else { "`jetstream.domain` or `jetstream.api_prefix`" };
            return Err(SourceError::missing(format!("the server has no JetStream, or not for this account ({keys})")));
        }
        Ok(answer.map(Delivery::into_payload))
    }

    /// What comes under `tag`; `None`: this user may not ask the question. Cancel safe.
    async fn answer(&mut self, question: &str, tag: &str) -> Result<Option<Delivery>, SourceError> {
        loop {
            match self.recv().await? {
                Heard::Delivery(delivery) if self.answers(&delivery) == Some(tag.as_bytes()) => return Ok(Some(delivery)),
                Heard::Refused(questions) if questions.iter().any(|refused| refused == question) => return Ok(None),
                _ => {}
            }
        }
    }

    /// The same for what cannot be done without. `right` is the question as the right to it is granted.
    pub(super) async fn request(&mut self, question: &str, payload: &str, right: &str) -> Result<Bytes, SourceError> {
        let answer = self.try_request(question, payload, ANSWER).await?;
        answer.ok_or_else(|| self.denied(right))
    }

    /// The error if this user may not ask a question, which is asked without any content. `right` is the form in which the
    /// right is granted, where that is another one.
    pub(super) async fn may_not(&mut self, question: &str, right: Option<&str>) -> Result<Option<SourceError>, SourceError> {
        let answer = self.try_request(question, "", ANSWER).await?;
        Ok(if answer.is_some() { None } else { Some(self.denied(right.unwrap_or(question))) })
    }

    /// The error for a question that this user may not ask.
    pub(super) fn denied(&self, right: &str) -> SourceError {
        self.shared.denied.store(true, Ordering::Relaxed);
        Right::Publish.denied(&self.subject(right), "jetstream")
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
        let refused = |farewell: &OutboundMessage| {
            let right = farewell.subject.rsplit_once('.').map_or(&*farewell.subject, |(right, _)| right);
            self.life.borrow().refusals.contain_below(Right::Publish, right)
        };
        match self.farewell.take() {
            Some(farewell) if refused(&farewell) => {
                self.does_without("CONSUMER.DELETE.*.*", "consumers that are done with expire by themselves");
            }
            farewell => self.outbox.extend(farewell),
        }
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
