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
    let now = descriptors();
    if (subscribers as u64).saturating_add(OTHERS) > now {
        tracing::warn!(
            subscribers,
            descriptors = now,
            "`subscribers.max` needs more open descriptors than the system allows; raise `ulimit -n` or lower it"
        );
    }
}

/// How many descriptors clients may have, so that brokers, files and the admin listener find some.
pub(super) fn client_descriptors() -> u64 {
    let all = descriptors();
    all - OTHERS.min(all / 4)
}

fn descriptors() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// What the process is told by signals.
pub(super) struct Signals {
    pub(super) ends: Ends,
    pub(super) hangups: Hangups,
    /// SIGUSR1 and SIGUSR2, which would end the process if they were not taken: some supervisors send them to every program.
    _ignored: [Signal; 2],
}

/// SIGTERM, SIGINT and SIGQUIT.
pub(super) struct Ends {
    term: Signal,
    int: Signal,
    quit: Signal,
}

/// SIGHUP.
pub(super) struct Hangups(Signal);

impl Signals {
    /// From now on they are ours.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn new() -> std::io::Result<Self> {
        let ends =
            Ends { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())?, quit: signal(SignalKind::quit())? };
        let ignored = [signal(SignalKind::user_defined1())?, signal(SignalKind::user_defined2())?];
        Ok(Self { ends, hangups: Hangups(signal(SignalKind::hangup())?), _ignored: ignored })
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
        let Self { term, int, quit } = self;
        tokio::select! {
            Some(()) = term.recv() => SignalKind::terminate().as_raw_value(),
            Some(()) = int.recv() => SignalKind::interrupt().as_raw_value(),
            Some(()) = quit.recv() => SignalKind::quit().as_raw_value(),
            else => std::future::pending().await,
        }
    }
}
