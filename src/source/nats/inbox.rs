//! The subscriptions of a core source: which the server has taken, which it refuses, and what has come of them.
//!
//! A refused subject leaves the others alone. It is asked for again from time to time, as rights may change while the
//! connection lives. Knows no gap and no reconnecting.

use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::{Client, Subscriber};
use futures_util::StreamExt as _;
use tokio::time::Instant;

use super::config::Config;
use super::headers;
use super::refusal::Right;
use super::wire::{self, Wire};
use crate::event::{Message, SourceName, Timestamp};
use crate::source::{Item, SourceError};
use crate::subject::{self, Pattern, Subject};

/// Subscriptions that are confirmed together. The library's queue of events, which refusals come through, holds 128.
const TOGETHER: usize = 32;
/// Time between attempts to get a refused subject.
const AGAIN: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 30 });
/// A subscription that the server has not refused within this time was taken.
const TAKEN: Duration = Duration::from_secs(1);

/// How the server stands to a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Taken,
    /// It was refused before, and asked for again at this time. Its messages wait until it is taken.
    Asked(Instant),
    /// It was taken once. What came before the refusal is still handed out.
    Refused,
}

struct Subscription {
    pattern: Pattern,
    queue: Subscriber,
    /// Those before it that deliver the same subject already.
    earlier: Vec<Pattern>,
    state: State,
}

/// Those of the patterns that can match the same subject as another one.
pub(super) fn meeting(patterns: &[Pattern], other: &Pattern) -> Vec<Pattern> {
    patterns.iter().filter(|pattern| pattern.intersects(other)).cloned().collect()
}

/// The subscriptions of a connection.
pub(super) struct Inbox {
    /// The settings' subjects.
    subjects: Vec<Pattern>,
    queue_group: Option<String>,
    subscriptions: Vec<Subscription>,
    refused: Vec<Pattern>,
    /// When the refused ones are asked for again.
    again: Instant,
    /// Refusals of the connection that were heard.
    heard: u64,
    /// Messages that were taken out.
    pub(super) taken: u64,
    unnamed: Subject,
    source: SourceName,
    /// What the subjects of our own answers begin with.
    own: String,
}

/// How much of what waited has been taken.
pub(super) enum Taken {
    All,
    /// There may be more.
    Some,
    /// And the library has ended.
    Ended,
}

impl Inbox {
    /// Subscribes to all that the server permits.
    ///
    /// # Errors
    /// When it permits nothing.
    pub(super) async fn open(wire: &mut Wire, config: &Config, source: &SourceName) -> Result<Self, SourceError> {
        let mut inbox = Self {
            subjects: config.subjects.clone(),
            queue_group: config.queue_group.clone(),
            subscriptions: Vec::new(),
            refused: Vec::new(),
            again: Instant::now() + AGAIN,
            heard: 0,
            taken: 0,
            unnamed: Subject::new(source.as_str()).expect("a source's name is made of what subjects are made of"),
            source: source.clone(),
            own: wire.inbox.clone(),
        };
        loop {
            let missing = inbox.missing();
            for together in missing.chunks(TOGETHER) {
                for pattern in together {
                    inbox.subscribe(&wire.client, pattern, State::Taken).await?;
                }
                inbox.taken += wire.settle().await?;
                if wire.life.borrow().slow > 0 {
                    // A refusal may have been lost among the reports of that.
                    return Err(SourceError::lost("messages came faster than subscriptions could be confirmed"));
                }
                inbox.hear(wire)?;
            }
            if missing.is_empty() {
                return Ok(inbox);
            }
        }
    }

    /// What the server does not permit.
    pub(super) fn refused(&self) -> impl Iterator<Item = &Pattern> {
        self.refused.iter()
    }

    /// Patterns that cover what is not refused, without those that are subscribed to.
    fn missing(&self) -> Vec<Pattern> {
        let wanted = self.subjects.iter().filter(|subject| !self.refused.contains(subject)).cloned().collect();
        let known = |pattern: &Pattern| self.subscriptions.iter().any(|s| s.pattern == *pattern && s.state != State::Refused);
        subject::minimal(wanted).into_iter().filter(|pattern| !known(pattern)).collect()
    }

    async fn subscribe(&mut self, client: &Client, pattern: &Pattern, state: State) -> Result<(), SourceError> {
        let subscribed = match &self.queue_group {
            Some(group) => client.queue_subscribe(pattern.to_string(), group.clone()).await,
            None => client.subscribe(pattern.to_string()).await,
        };
        let queue = subscribed.map_err(wire::gone)?;
        let taken: Vec<_> = self.subscriptions.iter().filter(|s| s.state == State::Taken).map(|s| s.pattern.clone()).collect();
        let earlier = meeting(&taken, pattern);
        self.subscriptions.push(Subscription { pattern: pattern.clone(), queue, earlier, state });
        Ok(())
    }

    /// Finds out which subscriptions deliver what others deliver too.
    fn compare(&mut self) {
        let mut taken = Vec::new();
        for subscription in &mut self.subscriptions {
            subscription.earlier = meeting(&taken, &subscription.pattern);
            if subscription.state == State::Taken {
                taken.push(subscription.pattern.clone());
            }
        }
    }

    /// Hears what the server has refused.
    ///
    /// # Errors
    /// When nothing is left.
    pub(super) fn hear(&mut self, wire: &Wire) -> Result<(), SourceError> {
        let life = wire.life.borrow();
        let subjects = life.refusals.after(&mut self.heard).filter(|refusal| refusal.right == Right::Subscribe);
        let mut any = false;
        for refusal in subjects {
            let found = self.subscriptions.iter_mut().filter(|s| s.state != State::Refused);
            let Some(subscription) = found.into_iter().find(|s| s.pattern.as_str() == refusal.subject) else { continue };
            any = true;
            if subscription.state == State::Taken {
                tracing::warn!(source = %self.source, subject = refusal.subject,
                    "the server does not permit this user to subscribe to a subject of `subjects`: the others go on");
            }
            subscription.state = State::Refused;
            self.refused.push(subscription.pattern.clone());
        }
        drop(life);
        if any {
            self.compare();
        }
        let covered = |pattern: &Pattern| self.refused.contains(pattern);
        if self.subjects.iter().all(covered) {
            let all: Vec<_> = self.refused.iter().map(Pattern::as_str).collect();
            return Err(Right::Subscribe.denied(&all.join("`, `"), "subjects"));
        }
        Ok(())
    }

    /// Asks again for what was refused, when it is time, and for what that covered. Returns whether a subject that had been
    /// refused is read from now on. Cancel safe.
    pub(super) async fn look_after(&mut self, client: &Client) -> Result<bool, SourceError> {
        let mut back = false;
        for subscription in &mut self.subscriptions {
            if matches!(subscription.state, State::Asked(at) if at.elapsed() >= TAKEN) {
                tracing::info!(source = %self.source, subject = %subscription.pattern, "the server permits a subject again");
                (subscription.state, back) = (State::Taken, true);
            }
        }
        if back {
            self.compare();
        }
        if back || self.refused.is_empty() {
            return Ok(back);
        }
        for pattern in self.missing() {
            self.subscribe(client, &pattern, State::Taken).await?;
        }
        if Instant::now() >= self.again {
            while let Some(pattern) = self.refused.pop() {
                self.subscribe(client, &pattern, State::Asked(Instant::now())).await?;
            }
            self.again = Instant::now() + AGAIN;
        }
        Ok(false)
    }

    /// From each in turn, so that their messages stay about in order. Pending when there is nothing.
    pub(super) fn poll_take(&mut self, cx: &mut Context<'_>, batch: &mut Vec<Item>, limit: usize) -> Poll<Taken> {
        let before = batch.len();
        // They have been read together.
        let mut received = None;
        loop {
            let (mut any, mut ended) = (false, false);
            for n in 0..self.subscriptions.len() {
                if batch.len() - before >= limit {
                    return Poll::Ready(Taken::Some);
                }
                if matches!(self.subscriptions[n].state, State::Asked(_)) {
                    continue;
                }
                match self.subscriptions[n].queue.poll_next_unpin(cx) {
                    Poll::Ready(Some(message)) => {
                        any = true;
                        self.taken += 1;
                        let received = *received.get_or_insert_with(Timestamp::now);
                        if let Some(message) = self.message(n, message, received, batch.last()) {
                            batch.push(Item::Message(message));
                        }
                    }
                    Poll::Ready(None) => ended = true,
                    Poll::Pending => {}
                }
            }
            match (any, ended, batch.len() > before) {
                (true, ..) => {}
                (_, true, _) => return Poll::Ready(Taken::Ended),
                (.., true) => return Poll::Ready(Taken::All),
                _ => {
                    self.subscriptions.retain(|subscription| subscription.state != State::Refused);
                    return Poll::Pending;
                }
            }
        }
    }

    /// `None` for what another subscription delivers too. `before`: what was handed out last.
    fn message(&self, n: usize, message: async_nats::Message, time: Timestamp, before: Option<&Item>) -> Option<Message> {
        let earlier = &self.subscriptions[n].earlier;
        if earlier.iter().any(|pattern| pattern.matches(&message.subject)) || message.subject.starts_with(&self.own) {
            return None;
        }
        // Often a subject is the same as the one before: then they share it.
        let subject = match before {
            Some(Item::Message(before)) if before.subject.is_unchanged(message.subject.as_bytes()) => before.subject.clone(),
            _ => Subject::from_broker(message.subject.as_bytes(), &self.unnamed),
        };
        // Not copied, though it keeps the whole read buffer: it is handed in at once, and there it is encoded and let go.
        let mut taken = Message::new(subject, message.payload, time, None);
        headers::take(&mut taken, message.subject.as_bytes(), headers::read(message.headers.as_ref()));
        Some(taken)
    }
}
