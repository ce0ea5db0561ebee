//! What is done at most every so often, such as a line of the log that anybody could cause. Knows nothing of what is done.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Something that may be done again only after a while.
#[derive(Debug)]
pub(crate) struct Seldom {
    every: Duration,
    last: Mutex<Option<Instant>>,
}

impl Seldom {
    /// At most every so often, and the first time at once.
    pub(crate) fn every(every: Duration) -> Self {
        Self { every, last: Mutex::new(None) }
    }

    /// Whether it may be done now. If so, it counts as done.
    #[must_use]
    pub(crate) fn may(&self, now: Instant) -> bool {
        let mut last = self.last.lock();
        let may = last.is_none_or(|last| now.duration_since(last) >= self.every);
        if may {
            *last = Some(now);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_may_be_done_again_after_a_while() {
        let (seldom, begin) = (Seldom::every(Duration::from_secs(10)), Instant::now());
        let at = |seconds| seldom.may(begin + Duration::from_secs(seconds));
        assert_eq!([0, 9, 10, 11, 19, 20].map(at), [true, false, true, false, false, true]);
    }
}
