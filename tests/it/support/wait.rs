//! Waiting for conditions, with deadlines.

use std::time::{Duration, Instant};

/// How long a test waits for something that should come at once: generous, because the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks until there is an answer.
///
/// # Panics
/// When there is none within [`PATIENCE`].
pub async fn eventually<T>(what: &str, ask: impl AsyncFnMut() -> Option<T>) -> T {
    within(PATIENCE, what, ask).await
}

/// Asks until there is an answer.
///
/// # Panics
/// When there is none in time.
pub async fn within<T>(limit: Duration, what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(start.elapsed() < limit, "timed out after {limit:?} waiting for {what}");
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
}

/// Asserts that something stays true for a while: the only way to see that nothing happens.
pub async fn stays(span: Duration, what: &str, mut ask: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while start.elapsed() < span {
        assert!(ask().await, "{what} did not hold after {:?}", start.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
