//! The inbox: messages that HTTP publishers hand to this process itself.
//!
//! Owns the bounded queue between them and the supervisor, and the answers. Knows nothing of HTTP: the listener calls
//! [`Handle::publish`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc, oneshot};
use tokio::time::timeout_at;

use super::settings::{AdapterKind, Build, patterns};
use super::{Adapter, Connection, Item, SourceError, Start};
use crate::event::{Headers, Message, Timestamp};
use crate::settings::Section;
use crate::subject::{Pattern, Subject};

#[cfg(test)]
mod tests;

/// Messages that wait to be taken in.
const QUEUE: usize = 1024;
/// How long a publisher waits for its place in the queue and for its answer, together.
const PATIENCE: Duration = Duration::from_secs(5);

/// `http`
pub(super) const KIND: AdapterKind = AdapterKind { tag: "http", read: |keys| Some(Config::read(keys)?.build()), library: None };

/// `http: { subjects: ["demo.>"] }`
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// What may be published into it; at least one.
    pub subjects: Vec<Pattern>,
}

impl Config {
    fn read(http: &Section<'_>) -> Option<Self> {
        Some(Self { subjects: patterns(http.key("subjects"))? })
    }

    fn build(self) -> Build {
        Box::new(|_| Arc::new(Http::new(self)))
    }
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// More comes in than goes out; to be tried again later.
    #[error("too many messages wait to be taken in")]
    Overloaded,
    /// The source has ended.
    #[error("the source has ended")]
    Closed,
}

struct Letter {
    message: Message,
    answer: oneshot::Sender<Arc<str>>,
}

/// Where publishers hand messages in. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    queue: mpsc::Sender<Letter>,
}

impl Handle {
    /// Hands a message in. Returns the id of a cursor at or after it, once it is in the window.
    ///
    /// # Errors
    /// [`PublishError::Overloaded`] after at most five seconds: then it is not published later either, unless it was
    /// being taken in at that very moment.
    pub async fn publish(&self, subject: Subject, payload: Bytes, headers: Headers) -> Result<Arc<str>, PublishError> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let place = match self.queue.try_reserve() {
            Ok(place) => place,
            Err(mpsc::error::TrySendError::Closed(())) => return Err(PublishError::Closed),
            Err(mpsc::error::TrySendError::Full(())) => match timeout_at(deadline, self.queue.reserve()).await {
                Ok(place) => place.map_err(|_| PublishError::Closed)?,
                Err(_) => return Err(PublishError::Overloaded),
            },
        };
        let (answer, answered) = oneshot::channel();
        let message = Message { headers, ..Message::new(subject, payload, Timestamp::now(), None) };
        place.send(Letter { message, answer });
        match timeout_at(deadline, answered).await {
            Ok(id) => id.map_err(|_| PublishError::Closed),
            Err(_) => Err(PublishError::Overloaded),
        }
    }
}

/// An inbox.
#[derive(Debug)]
pub(crate) struct Http {
    config: Config,
    handle: Handle,
    // One connection at a time holds the queue's end; a connection that is dropped, by a panic even, lets it go.
    queue: Arc<Mutex<mpsc::Receiver<Letter>>>,
}

impl Http {
    /// Of this configuration.
    #[must_use]
    pub(crate) fn new(config: Config) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        Self { config, handle: Handle { queue: sender }, queue: Arc::new(Mutex::new(receiver)) }
    }
}

impl Adapter for Http {
    fn kind(&self) -> &'static str {
        "http"
    }

    fn loses_while_away(&self) -> bool {
        // What could not be handed in was refused.
        false
    }

    fn splits(&self) -> bool {
        true
    }

    fn reach(&self) -> Vec<Pattern> {
        self.config.subjects.clone()
    }

    fn inbox(&self) -> Option<Handle> {
        Some(self.handle.clone())
    }

    fn connect(&self, _: Start) -> BoxFuture<'_, Result<Box<dyn Connection>, SourceError>> {
        Box::pin(async {
            let queue = self.queue.clone().lock_owned().await;
            Ok(Box::new(Inbox { queue, letters: Vec::new(), unanswered: Vec::new() }) as Box<dyn Connection>)
        })
    }
}

struct Inbox {
    queue: OwnedMutexGuard<mpsc::Receiver<Letter>>,
    letters: Vec<Letter>,
    unanswered: Vec<oneshot::Sender<Arc<str>>>,
}

impl Connection for Inbox {
    fn next<'a>(&'a mut self, batch: &'a mut Vec<Item>, limit: usize) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            loop {
                if self.queue.recv_many(&mut self.letters, limit).await == 0 {
                    return Err(SourceError::lost("the inbox was closed"));
                }
                for Letter { message, answer } in self.letters.drain(..) {
                    // A publisher that has gone, or whose time is over, was answered that its message is not published.
                    if !answer.is_closed() {
                        batch.push(Item::Message(message));
                        self.unanswered.push(answer);
                    }
                }
                if !batch.is_empty() {
                    return Ok(());
                }
            }
        })
    }

    fn acknowledge<'a>(&'a mut self, id: &'a str) -> Option<BoxFuture<'a, Result<(), SourceError>>> {
        let id: Arc<str> = id.into();
        for answer in self.unanswered.drain(..) {
            // A publisher that has gone needs no answer.
            drop(answer.send(id.clone()));
        }
        None
    }

    fn close(mut self: Box<Self>) -> BoxFuture<'static, ()> {
        // Those who still wait get `Closed` as their letters are dropped.
        self.queue.close();
        Box::pin(async move { while self.queue.recv().await.is_some() {} })
    }
}
