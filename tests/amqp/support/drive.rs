//! Drives one source by its contract, as the supervisor does.

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use brokercast::internals::chain;
use brokercast::internals::{Adapter, Connection, Gap, Item, Message, SourceError, Start};

/// How long something may take that should come at once.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The adapter for a configuration as it would be written.
pub fn source(name: &str, config: serde_json::Value) -> Arc<dyn Adapter> {
    brokercast::internals::adapter(&serde_json::json!({ "sources": { name: { "amqp": config } } }).to_string()).unwrap()
}

/// An open connection and what it has handed out.
pub struct Reading {
    connection: Box<dyn Connection>,
    pub items: Vec<Item>,
}

impl Reading {
    /// Connects once.
    pub async fn open(source: &Arc<dyn Adapter>, start: Start) -> Result<Self, SourceError> {
        Ok(Self { connection: source.connect(start).await?, items: Vec::new() })
    }

    /// Connects, again and again until it works.
    pub async fn insist(source: &Arc<dyn Adapter>, start: Start) -> Self {
        let begin = Instant::now();
        loop {
            match Self::open(source, start).await {
                Ok(reading) => return reading,
                Err(e) => assert!(begin.elapsed() < PATIENCE, "no connection: {}", chain(&e)),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A reader of history.
    pub async fn history(source: &Arc<dyn Adapter>, start: Start) -> Result<Self, SourceError> {
        Ok(Self { connection: source.history(start).await?, items: Vec::new() })
    }

    /// Reads and acknowledges until so many messages are there.
    pub async fn messages(&mut self, n: usize) -> Vec<Message> {
        let read = self.until(|items| items.iter().filter(|item| matches!(item, Item::Message(_))).count() >= n);
        if tokio::time::timeout(PATIENCE, read).await.is_err() {
            panic!("only {} of {n} messages came: {:?}", self.all().len(), self.items.last());
        }
        self.all()
    }

    /// The messages so far.
    pub fn all(&self) -> Vec<Message> {
        self.items.iter().filter_map(|item| if let Item::Message(m) = item { Some(m.clone()) } else { None }).collect()
    }

    /// The gaps so far.
    pub fn gaps(&self) -> Vec<Gap> {
        self.items.iter().filter_map(|item| if let Item::Gap(gap) = item { Some(gap.clone()) } else { None }).collect()
    }

    /// Reads and acknowledges until `enough`.
    pub async fn until(&mut self, mut enough: impl FnMut(&[Item]) -> bool) {
        while !enough(&self.items) {
            self.connection.next(&mut self.items, 1000).await.unwrap();
            self.acknowledge().await.unwrap();
        }
    }

    /// Reads and acknowledges once.
    pub async fn once(&mut self) -> Result<(), SourceError> {
        self.connection.next(&mut self.items, 1000).await?;
        self.acknowledge().await
    }

    async fn acknowledge(&mut self) -> Result<(), SourceError> {
        match self.connection.acknowledge("id") {
            Some(acknowledging) => acknowledging.await,
            None => Ok(()),
        }
    }

    /// Reads without acknowledging until so many items are there.
    pub async fn take(&mut self, n: usize) {
        while self.items.len() < n {
            let limit = n - self.items.len();
            tokio::time::timeout(PATIENCE, self.connection.next(&mut self.items, limit)).await.unwrap().unwrap();
        }
    }

    /// Reads and acknowledges for this long.
    pub async fn during(&mut self, span: Duration) -> &mut Self {
        tokio::time::timeout(span, self.until(|_| false)).await.unwrap_err();
        self
    }

    /// Reads and acknowledges until the connection breaks, and returns why and after how long.
    pub async fn broken(&mut self) -> (SourceError, Duration) {
        let begin = Instant::now();
        loop {
            let ended = match tokio::time::timeout(PATIENCE, self.connection.next(&mut self.items, 1000)).await.unwrap() {
                Ok(()) => self.acknowledge().await,
                Err(e) => Err(e),
            };
            if let Err(e) = ended {
                return (e, begin.elapsed());
            }
        }
    }

    pub async fn close(self) {
        let begin = Instant::now();
        self.connection.close().await;
        assert!(begin.elapsed() < Duration::from_millis(1500), "closing took {:?}", begin.elapsed());
    }
}

/// Payloads as text.
pub fn texts(messages: &[Message]) -> Vec<String> {
    messages.iter().map(|m| String::from_utf8_lossy(&m.payload).into_owned()).collect()
}

/// Subjects as text.
pub fn subjects(messages: &[Message]) -> Vec<String> {
    messages.iter().map(|m| m.subject.to_string()).collect()
}
