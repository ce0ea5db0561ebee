//! What the process asks of the system: descriptors and signals.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Descriptors that are not subscribers': brokers, listeners, files, admin.
const OTHERS: u64 = 64;

/// Raises the soft limit of open descriptors to the hard one, and says when it is less than the pool may need.
pub(super) fn raise_descriptors(subscribers: usize) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::warn!(%error, "cannot raise the limit of open descriptors");
    }
    let now = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if (subscribers as u64).saturating_add(OTHERS) > now {
        tracing::warn!(
            subscribers,
            descriptors = now,
            "`subscribers.max` needs more open descriptors than the system allows; raise `ulimit -n` or lower it"
        );
    }
}

/// What the process is told by signals.
pub(super) struct Signals {
    pub(super) ends: Ends,
    pub(super) hangups: Hangups,
}

/// SIGTERM and SIGINT.
pub(super) struct Ends {
    term: Signal,
    int: Signal,
}

/// SIGHUP.
pub(super) struct Hangups(Signal);

impl Signals {
    /// From now on they are ours.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn new() -> std::io::Result<Self> {
        let ends = Ends { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? };
        Ok(Self { ends, hangups: Hangups(signal(SignalKind::hangup())?) })
    }
}

impl Hangups {
    /// The next one. Several that come at once are one. Cancel safe.
    pub(super) async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending().await
        }
    }
}

impl Ends {
    /// The number of the next one. Cancel safe.
    pub(super) async fn next(&mut self) -> i32 {
        let (term, int) = (&mut self.term, &mut self.int);
        tokio::select! {
            Some(()) = term.recv() => SignalKind::terminate().as_raw_value(),
            Some(()) = int.recv() => SignalKind::interrupt().as_raw_value(),
            else => std::future::pending().await,
        }
    }
}
