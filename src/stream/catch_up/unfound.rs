//! Logs that a client's id has a place in and that this process has not found yet, as another process has.
//!
//! The ids of live streams have no such place, and a log that is new is sent to live streams from its beginning. So the client is
//! not live before the log is found. It waits only for logs that may be found, and not without end: such a log may be gone.

use std::time::Duration;

use super::is_known;
use crate::cursor::{Cursor, Tag};
use crate::event::Timestamp;
use crate::hub::State;
use crate::stream::Streams;

/// A source looks for more logs every ten seconds.
const LONGEST: Duration = Duration::from_secs(20);

/// See the module.
pub(super) struct Unfound {
    tags: Vec<Tag>,
    until: Timestamp,
}

impl Unfound {
    /// Of what a client comes with.
    pub(super) fn of(at: &Cursor, streams: &Streams, state: &State, now: Timestamp) -> Self {
        let mut tags: Vec<_> = at.durable.iter().map(|(tag, _)| *tag).filter(|tag| !is_known(*tag, state)).collect();
        if !tags.is_empty() {
            let growing = streams.histories().growing();
            tags.retain(|tag| growing.contains(tag));
        }
        Self { tags, until: now.after(LONGEST) }
    }

    /// Takes note of what was found.
    pub(super) fn follow(&mut self, state: &State) {
        self.tags.retain(|tag| !is_known(*tag, state));
    }

    /// Until when there is something to wait for; `None`: there is nothing.
    pub(super) fn until(&self, now: Timestamp) -> Option<Timestamp> {
        // Not for longer, also when the clock was set back.
        (!self.tags.is_empty() && now < self.until && self.until <= now.after(LONGEST)).then_some(self.until)
    }
}
