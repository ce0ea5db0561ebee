//! The breaker: after ten failures in a row the backend is left alone for a while, then tried by one question.
//!
//! Pure: takes the time as an argument. Knows no question.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::backoff::Backoff;

/// So many failures in a row open it.
const FAILURES: u32 = 10;
/// How long it stays open.
const PAUSE: Backoff = Backoff { first: Duration::from_secs(1), factor: 2.0, most: Duration::from_secs(30) };

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// In a row.
    failures: u32,
    /// How often it was opened since the last success, and until when it is open; `None`: it is closed.
    open: Option<(u32, Instant)>,
    /// Whether a question is under way that tries whether the backend is back.
    trying: bool,
}

/// What a failure has led to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// It is closed still.
    Counted,
    /// It is open for so long from now on.
    Opened(Duration),
    /// It was open already.
    Open,
}

impl Breaker {
    /// Whether a question would be let through.
    pub(super) fn lets_through(&self, now: Instant) -> bool {
        self.open.is_none_or(|(_, until)| now >= until && !self.trying)
    }

    /// Whether the backend is left alone, or about to be tried.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Lets a question through, whose end must be told by one of the functions below. `Some(true)`: it tries whether the backend is
    /// back.
    pub(super) fn enter(&mut self, now: Instant) -> Option<bool> {
        let tries = self.lets_through(now).then_some(self.open.is_some())?;
        self.trying |= tries;
        Some(tries)
    }

    /// The backend has answered. Returns whether the breaker was open.
    pub(super) fn succeeded(&mut self) -> bool {
        let was_open = self.open.is_some();
        *self = Self::default();
        was_open
    }

    /// The backend has not answered, or not sensibly.
    pub(super) fn failed(&mut self, now: Instant) -> Failed {
        self.failures = self.failures.saturating_add(1);
        let times = match self.open {
            None if self.failures < FAILURES => return Failed::Counted,
            None => 1,
            // Questions of before it was opened say nothing new.
            Some((_, until)) if now < until || !self.trying => return Failed::Open,
            Some((times, _)) => times.saturating_add(1),
        };
        let pause = PAUSE.after(times);
        self.open = Some((times, now + pause));
        self.trying = false;
        Failed::Opened(pause)
    }

    /// The question that tries was dropped before its end.
    pub(super) fn abandoned(&mut self) {
        self.trying = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_failures_open_it_and_one_question_tries_after_pauses_that_double() {
        let mut breaker = Breaker::default();
        let mut now = Instant::now();
        for _ in 0..2 {
            for _ in 0..9 {
                assert_eq!(breaker.enter(now), Some(false));
                assert_eq!(breaker.failed(now), Failed::Counted);
            }
            assert!(!breaker.succeeded(), "it was not open");
        }
        for _ in 0..9 {
            breaker.failed(now);
        }
        let mut pauses = Vec::new();
        for _ in 0..7 {
            let Failed::Opened(pause) = breaker.failed(now) else { panic!("{breaker:?}") };
            assert_eq!(breaker.failed(now), Failed::Open, "one of before");
            pauses.push(pause.as_secs());
            assert_eq!((breaker.enter(now), breaker.enter(now + pause - Duration::from_millis(1))), (None, None));
            now += pause;
            assert_eq!(breaker.enter(now), Some(true));
            assert_eq!(breaker.enter(now), None, "one at a time tries");
            breaker.abandoned();
            assert_eq!(breaker.enter(now), Some(true), "another one, where the first was dropped");
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        assert!(breaker.succeeded());
        assert_eq!((breaker.enter(now), breaker.enter(now)), (Some(false), Some(false)));
        assert_eq!(breaker.failed(now), Failed::Counted);
    }
}
