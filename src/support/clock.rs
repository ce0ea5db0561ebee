//! The system's clock.
//!
//! Monotonic time is tokio's `Instant`, which the runtime can pause. In unit tests the system's clock can follow it:
//! see [`follow_runtime`].

use std::time::SystemTime;

/// The system's time.
pub(crate) fn now() -> SystemTime {
    #[cfg(test)]
    if let Some(time) = followed() {
        return time;
    }
    SystemTime::now()
}

#[cfg(test)]
thread_local! {
    static FOLLOWED: std::cell::Cell<Option<(SystemTime, tokio::time::Instant)>> = const { std::cell::Cell::new(None) };
}

#[cfg(test)]
fn followed() -> Option<SystemTime> {
    let (start, began) = FOLLOWED.get()?;
    Some(start + began.elapsed())
}

/// From now on the system's clock shows `start` and goes on with the runtime's clock, on this thread.
#[cfg(test)]
pub(crate) fn follow_runtime(start: SystemTime) {
    FOLLOWED.set(Some((start, tokio::time::Instant::now())));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_clock_follows_a_paused_runtime() {
        let start = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000);
        follow_runtime(start);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(now(), start + Duration::from_secs(5));
    }
}
