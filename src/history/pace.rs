//! How fast brokers' histories are read: one rate for all who read.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// What may be read at once after a pause, as a span at the full rate: shorter waits would be rounded up.
const BURST: Duration = Duration::from_millis(100);
/// Of one read, in seconds: no message is so large.
const LONGEST: f64 = 3600.0;

/// A rate in bytes per second that many share.
#[derive(Debug)]
pub(super) struct Pace {
    rate: AtomicUsize,
    /// Until when all that was read would have taken, at the full rate.
    paid: Mutex<Option<Instant>>,
}

impl Pace {
    pub(super) fn new(rate: usize) -> Self {
        Self { rate: AtomicUsize::new(rate.max(1)), paid: Mutex::default() }
    }

    /// What is read from now on counts at another rate.
    pub(super) fn configure(&self, rate: usize) {
        self.rate.store(rate.max(1), Relaxed);
    }

    /// So many bytes have been read: until when whoever read them waits; `None`: not at all.
    pub(super) fn took(&self, bytes: usize, now: Instant) -> Option<Instant> {
        let span = Duration::from_secs_f64((bytes as f64 / self.rate.load(Relaxed) as f64).min(LONGEST));
        let mut paid = self.paid.lock();
        let until = paid.unwrap_or(now).max(now) + span;
        *paid = Some(until);
        until.checked_sub(BURST).filter(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_together_keep_to_the_rate_and_a_pause_saves_up_no_more_than_a_burst() {
        let (pace, now) = (Pace::new(1000), Instant::now());
        let millis = |at: Option<Instant>| at.map(|at| (at - now).as_millis());
        assert_eq!(millis(pace.took(100, now)), None);
        assert_eq!(millis(pace.took(1, now)), Some(1));
        assert_eq!(millis(pace.took(899, now)), Some(900));
        let later = now + Duration::from_secs(60);
        assert_eq!(millis(pace.took(100, later)), None);
        assert_eq!(millis(pace.took(500, later)), Some(60_500));
        assert_eq!(millis(Pace::new(1).took(usize::MAX, now)), Some(3_599_900));
    }
}
