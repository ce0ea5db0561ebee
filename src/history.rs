//! Reading brokers' own logs for clients that are behind the windows.
//!
//! Owns how many read at a time and how fast they read together. A stream says what it needs ([`Request`]); whoever moves
//! the stream reads it ([`Reader`]). Knows adapters only by their contract; nothing of windows, filters or clients.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::cursor::Point;
use crate::source::Adapter;

mod pace;
mod reader;
mod settings;

use pace::Pace;
pub use reader::Reader;
pub use settings::Settings;

/// One of the hub's sources, as its log is read.
#[derive(Clone)]
pub struct Log {
    /// What opens readers.
    pub adapter: Arc<dyn Adapter>,
    /// Bytes of one message's payload; larger ones become gaps.
    pub max_payload: usize,
}

/// What a stream needs of a source's log.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Request {
    /// Which source, by the hub's number.
    pub source: usize,
    /// Which of this client's readings: another number needs another [`Reader`].
    pub number: u32,
    /// What follows this point. [`Point::Last`] only where the broker keeps the last message of each subject.
    pub from: Point,
}

/// The logs of all sources, by the hub's number, and what all readers share.
pub struct Histories {
    logs: Vec<Log>,
    readers: usize,
    permits: Arc<Semaphore>,
    pace: Arc<Pace>,
}

impl std::fmt::Debug for Histories {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Histories").field("readers", &self.readers).finish_non_exhaustive()
    }
}

impl Histories {
    /// Of these logs, in the hub's order.
    #[must_use]
    pub fn new(logs: Vec<Log>, settings: Settings) -> Self {
        let permits = Arc::new(Semaphore::new(settings.readers));
        Self { logs, readers: settings.readers, permits, pace: Arc::new(Pace::new(settings.rate)) }
    }

    /// A reader for a request and those that follow it with the same number. It opens nothing before it is asked.
    #[must_use]
    pub fn reader(&self, request: Request) -> Reader {
        let Request { source, number, .. } = request;
        Reader::new(number, self.logs[source].clone(), self.permits.clone(), self.pace.clone())
    }

    /// Whether the broker can say the newest message of each subject.
    #[must_use]
    pub fn keeps_last(&self, source: usize) -> bool {
        self.logs[source].adapter.keeps_last()
    }

    /// Readers that are open at this moment.
    #[must_use]
    pub fn reading(&self) -> usize {
        self.readers - self.permits.available_permits()
    }
}
