//! A source's log, and what is counted and logged of reading it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::segment::weight;
use super::{Counted, Log};
use crate::source::{ErrorKind, Item, SourceError};
use crate::support::causes::chain;

/// An error that was logged is not logged again for so long.
const QUIET: Duration = Duration::from_secs(60);

/// See the module.
pub(super) struct Known {
    pub(super) log: Log,
    events: AtomicU64,
    bytes: AtomicU64,
    errors: [AtomicU64; ErrorKind::ALL.len()],
    /// What was logged last, and when.
    logged: Mutex<Option<(String, Instant)>>,
}

impl Known {
    pub(super) fn new(log: Log) -> Self {
        Self { log, events: 0.into(), bytes: 0.into(), errors: Default::default(), logged: Mutex::default() }
    }

    pub(super) fn counted(&self) -> Counted {
        Counted {
            events: self.events.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            errors: self.errors.each_ref().map(|errors| errors.load(Ordering::Relaxed)),
        }
    }

    pub(super) fn note_read(&self, items: &[Item]) {
        let messages = items.iter().filter(|item| matches!(item, Item::Message(_))).count();
        self.events.fetch_add(messages as u64, Ordering::Relaxed);
        self.bytes.fetch_add(items.iter().map(weight).sum::<usize>() as u64, Ordering::Relaxed);
    }

    /// Counts an error, and logs it: once for each cause, then at intervals.
    pub(super) fn note_error(&self, error: &SourceError, now: Instant) {
        self.errors[error.kind() as usize].fetch_add(1, Ordering::Relaxed);
        let text = chain(error);
        let mut logged = self.logged.lock();
        let old = logged.as_ref().is_some_and(|(last, at)| *last == text && now.duration_since(*at) < QUIET);
        if !old {
            let kind = error.kind().as_str();
            tracing::warn!(source = %self.log.name, kind, error = text, "the log cannot be read for clients that are behind");
            *logged = Some((text, now));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn an_error_is_logged_with_the_brokers_reason_and_again_when_that_is_another() {
        let adapter = crate::source::nats::tests::adapter(serde_json::json!({ "servers": ["nats://h"], "subjects": ["a"] }));
        let name = "s".parse().unwrap();
        let known = Known::new(Log { name, adapter, max_payload: 1, up: Arc::new(|| true), resets: Arc::new(|| 0) });
        for reason in ["user connection limit (1) is reached", "the vhost is down"] {
            known.note_error(&SourceError::lost("refused the connection").because(reason), Instant::now());
            let logged = known.logged.lock().as_ref().map(|(text, _)| text.clone());
            assert_eq!(logged, Some(format!("refused the connection: {reason}")));
        }
    }
}
