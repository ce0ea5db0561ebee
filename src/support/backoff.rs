//! How long to wait before the next attempt. Knows nothing of what is attempted.

use std::ops::Range;
use std::time::Duration;

use super::random;

/// Pauses that grow by a factor from failure to failure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backoff {
    /// The pause after the first failure.
    pub(crate) first: Duration,
    /// By how much the next pause is longer.
    pub(crate) factor: f64,
    /// No pause is longer.
    pub(crate) most: Duration,
}

impl Backoff {
    /// Returns the pause after this many failures in a row, without jitter.
    #[must_use]
    pub(crate) fn after(&self, failures: u32) -> Duration {
        let steps = i32::try_from(failures.saturating_sub(1).min(30)).unwrap_or_default();
        self.first.mul_f64(self.factor.powi(steps)).min(self.most)
    }
}

/// Returns a random share of a span, so that many who wait for the same do not all come back at the same moment.
#[must_use]
pub(crate) fn jittered(span: Duration, shares: Range<f64>) -> Duration {
    span.mul_f64(random::in_range(shares))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound() {
        let backoff = Backoff { first: Duration::from_millis(200), factor: 2.0, most: Duration::from_secs(6) };
        let pauses: Vec<_> = [0, 1, 2, 3, 5, 6, u32::MAX].map(|failures| backoff.after(failures).as_millis()).to_vec();
        assert_eq!(pauses, [200, 200, 400, 800, 3200, 6000, 6000]);
        for _ in 0..100 {
            assert!((1.5..3.0).contains(&jittered(Duration::from_secs(2), 0.75..1.5).as_secs_f64()));
        }
    }
}
