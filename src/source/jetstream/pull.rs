//! Asking a consumer for messages. Knows how much is on its way; not what it is.

use std::time::Duration;

use super::line::{Delivery, number, status};
use crate::source::{ErrorKind, SourceError};

/// Of a pull; and of the signs of life between.
const EXPIRES: Duration = Duration::from_secs(30);
const HEARTBEAT: Duration = Duration::from_secs(3);

/// What a reader asks for at a time, and so about how much may wait in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Credit {
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

/// What has been asked of the consumer and has not come yet.
pub(super) struct Pulls {
    credit: Credit,
    /// A pull ended for its bytes, and no message has come since.
    cramped: bool,
    outstanding: usize,
    /// How much of that was asked for before the last pull.
    earlier: usize,
}

impl Pulls {
    /// `largest` is the largest message that may come, in bytes.
    pub(super) fn new(credit: Credit, largest: usize) -> Self {
        Self { credit: Credit { bytes: credit.bytes.max(largest), ..credit }, cramped: false, outstanding: 0, earlier: 0 }
    }

    /// Asks for more, unless that much is held or on its way already; returns the request.
    pub(super) fn more(&mut self, held: Credit) -> Option<String> {
        let messages = held.messages + self.outstanding;
        if messages > self.credit.messages / 2 || held.bytes > self.credit.bytes / 2 {
            return None;
        }
        let (more, bytes) = (self.credit.messages - messages, self.credit.bytes);
        let (expires, heartbeat) = (EXPIRES.as_nanos(), HEARTBEAT.as_nanos());
        self.earlier = self.outstanding;
        self.outstanding += more;
        Some(format!(r#"{{"batch":{more},"max_bytes":{bytes},"expires":{expires},"idle_heartbeat":{heartbeat}}}"#))
    }

    /// Whether something is on its way.
    pub(super) fn waits(&self) -> bool {
        self.outstanding > 0
    }

    /// A message came; returns whether it was the last of its pull.
    pub(super) fn came(&mut self) -> bool {
        self.cramped = false;
        self.outstanding = self.outstanding.saturating_sub(1);
        let last = self.outstanding == 0 || self.earlier == 1;
        self.earlier = self.earlier.saturating_sub(1);
        last
    }

    /// Something other than a message came; returns whether that ended a pull.
    pub(super) fn answered(&mut self, answer: &Delivery) -> Result<bool, SourceError> {
        let (code, words) = status(answer).unwrap_or_default();
        match code {
            100 => return Ok(false),
            404 | 408 => {}
            409 if words.eq_ignore_ascii_case("batch completed") => {}
            409 if words.to_ascii_lowercase().starts_with("message size exceeds") => {
                // Larger than anything the server takes today: it took more once.
                if std::mem::replace(&mut self.cramped, true) {
                    self.credit.bytes = self.credit.bytes.saturating_mul(2);
                }
            }
            503 => return Err(SourceError::lost("the consumer is gone")),
            _ => return Err(SourceError::new(ended(code, &words), format!("JetStream ended the reading: {words}"))),
        }
        let left = number(answer, "Nats-Pending-Messages").and_then(|left| usize::try_from(left).ok());
        let left = left.unwrap_or(self.outstanding);
        self.outstanding = self.outstanding.saturating_sub(left);
        self.earlier = self.earlier.saturating_sub(left);
        Ok(true)
    }
}

/// Of which kind a pull's end is.
fn ended(code: u16, words: &str) -> ErrorKind {
    match code {
        // The consumer's or the account's limits are below what one pull asks for.
        409 if words.to_ascii_lowercase().starts_with("exceeded") => ErrorKind::Configuration,
        400 => ErrorKind::Protocol,
        // The consumer was deleted, its leader has changed, or the server goes down.
        _ => ErrorKind::Lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_asked_for_while_few_but_large_messages_are_held() {
        let asks =
            |messages, bytes| Pulls::new(Credit { messages: 512, bytes: 4 << 20 }, 1 << 20).more(Credit { messages, bytes }).is_some();
        assert!(asks(0, 0) && asks(256, 1 << 20) && asks(2, 2 << 20));
        assert!(!asks(257, 0) && !asks(3, 3 << 20));
        // A message of the largest size is no reason to stop.
        let mut pulls = Pulls::new(Credit { messages: 512, bytes: 4 << 20 }, 64 << 20);
        assert!(pulls.more(Credit { messages: 1, bytes: 32 << 20 }).is_some());
    }
}
