//! What keeps a source going: connecting, backing off, handing batches in, acknowledging, cancelling; its status, its
//! counters, its logs. Once, for all adapters.
//!
//! Knows an adapter only by the contract, and what takes the batches only as [`Intake`].

use std::future::Future;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::poll_immediate;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{Adapter, Connection, ErrorKind, Fault, Fitted, Handle, Intake, Item, SourceError, Start, State, fit};
use crate::cursor::Position;
use crate::event::{Gap, GapReason, Timestamp};
use crate::support::backoff::Backoff;
use crate::support::causes::chain;
use crate::support::random;

#[cfg(test)]
mod tests;

/// Items of one batch.
const BATCH: usize = 512;
/// Time to connect. Adapters have shorter limits, whose errors say more.
const CONNECT: Duration = Duration::from_secs(30);
/// Time for the broker to take an acknowledgement.
const ACKNOWLEDGE: Duration = Duration::from_secs(10);
/// Time to finish what is in hand once the source is cancelled.
const LEAVE: Duration = Duration::from_secs(1);
/// A connection that held this long clears the failures before it.
const HEALTHY: Duration = Duration::from_secs(30);

/// Runs one source.
#[derive(Clone)]
pub struct Supervisor {
    /// What connects.
    pub adapter: Arc<dyn Adapter>,
    /// Where batches go.
    pub intake: Arc<dyn Intake>,
    /// Status and counters.
    pub handle: Arc<Handle>,
    /// Where the first connection of a durable source starts: [`Start::Recent`] with the window's bounds.
    pub warm_up: Start,
    /// Bytes of one message's payload; what is larger becomes a gap.
    pub max_payload: usize,
}

/// Why a connection ended.
enum End {
    Cancelled,
    Failed(Failure),
}

enum Failure {
    Source(SourceError),
    Panic,
}

impl Failure {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Source(error) => error.kind(),
            Self::Panic => ErrorKind::Protocol,
        }
    }
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Supervisor {
    /// Runs the source until it is cancelled; then what is in hand is finished and the connection closed, within two
    /// seconds. A panic of the adapter is a lost connection.
    pub async fn run(self, cancel: CancellationToken) {
        let mut run = Run {
            last: None,
            log_was_empty: false,
            warm: !self.adapter.durable(),
            connected_at: None,
            was_connected: false,
            logged: Vec::new(),
            batch: Vec::with_capacity(BATCH),
            cancel,
            source: self,
        };
        let mut retry = Retry::default();
        loop {
            let end = run.connection().await;
            let held = run.connected_at.take().map(|at| at.elapsed());
            match end {
                End::Cancelled => break,
                End::Failed(failure) => {
                    run.note_failure(&failure);
                    let pause = run.source.handle.pause(retry.next(failure.kind(), held));
                    if run.cancel.run_until_cancelled(pause).await.is_none() {
                        break;
                    }
                }
            }
        }
        debug!(source = %run.source.handle.name, "source has ended");
    }
}

struct Run {
    source: Supervisor,
    cancel: CancellationToken,
    /// The last place in the log that was handed in.
    last: Option<Position>,
    /// The log held no message when its tail was reached.
    log_was_empty: bool,
    warm: bool,
    connected_at: Option<Instant>,
    was_connected: bool,
    /// The failures of this outage that were logged.
    logged: Vec<String>,
    batch: Vec<Item>,
}

impl Run {
    async fn connection(&mut self) -> End {
        let adapter = self.source.adapter.clone();
        let connecting = guarded(within(CONNECT, "the broker did not answer in time", async { adapter.connect(self.start()).await }));
        let mut connection = match self.cancel.run_until_cancelled(connecting).await {
            None => return End::Cancelled,
            Some(Err(failure)) => return failure.into(),
            Some(Ok(connection)) => connection,
        };
        self.batch.clear();
        self.note_connected();
        match self.read(&mut connection).await {
            Ok(()) => {
                if timeout(
                    LEAVE,
                    guarded(async {
                        connection.close().await;
                        Ok(())
                    }),
                )
                .await
                .is_err()
                {
                    debug!(source = %self.source.handle.name, "source did not close in time");
                }
                End::Cancelled
            }
            Err(failure) => failure.into(),
        }
    }

    fn start(&self) -> Start {
        match self.last {
            _ if !self.source.adapter.durable() => Start::Now,
            Some(position) => Start::After(position),
            // The log was empty: all that it holds now has come since.
            None if self.log_was_empty => Start::Earliest,
            None => self.source.warm_up,
        }
    }

    /// Reads until cancelled.
    async fn read(&mut self, connection: &mut Box<dyn Connection>) -> Result<(), Failure> {
        if std::mem::replace(&mut self.was_connected, true) && self.source.adapter.loses_while_away() {
            self.batch.push(Item::Gap(Gap { reason: GapReason::Reconnect, from: None, to: None, position: None }));
            let Some(id) = self.hand_in().await else { return Ok(()) };
            self.acknowledge(connection, &id).await?;
        }
        if self.warm {
            self.source.handle.status.set(State::Up, None);
        } else {
            self.source.handle.status.set(State::Warming, None);
        }
        let cancel = self.cancel.clone();
        let mut cancelled = pin!(cancel.cancelled());
        loop {
            let read = tokio::select! {
                biased;
                () = &mut cancelled => None,
                read = guarded(async { connection.next(&mut self.batch, BATCH).await }) => Some(read),
            };
            self.source.handle.counters.note_behind(connection.behind());
            if !self.batch.is_empty() {
                let Some(id) = self.hand_in().await else { return Ok(()) };
                // A connection that is lost takes no acknowledgement of what it had handed out.
                if !matches!(read, Some(Err(_))) {
                    self.acknowledge(connection, &id).await?;
                }
            }
            match read {
                None => return Ok(()),
                Some(read) => read?,
            }
        }
    }

    async fn acknowledge(&self, connection: &mut Box<dyn Connection>, id: &str) -> Result<(), Failure> {
        let begun = catch_unwind(AssertUnwindSafe(move || {
            // Moved in: what is returned borrows from it.
            let connection = connection;
            connection.acknowledge(id)
        }));
        let Some(acknowledging) = begun.map_err(|_| Failure::Panic)? else { return Ok(()) };
        let acknowledging = guarded(within(ACKNOWLEDGE, "the broker did not take an acknowledgement", acknowledging));
        self.until_the_end(acknowledging).await.unwrap_or(Ok(()))
    }

    /// Hands the batch in, piece by piece; `None` when it was not taken before the end.
    async fn hand_in(&mut self) -> Option<String> {
        loop {
            let Fitted { items, oversized } = fit(&mut self.batch, self.source.max_payload);
            let rest = self.batch.split_off(items);
            let id = self.hand_in_piece(oversized).await?;
            if rest.is_empty() {
                return Some(id);
            }
            self.batch = rest;
            // Unpacking takes a while.
            tokio::task::yield_now().await;
        }
    }

    /// Counts what is in the batch and hands it in.
    async fn hand_in_piece(&mut self, oversized: usize) -> Option<String> {
        let (handle, came) = (self.source.handle.clone(), Timestamp::now());
        if oversized > 0 {
            warn!(source = %handle.name, messages = oversized, max_payload = self.source.max_payload, "dropped messages larger than max_payload");
        }
        let (mut messages, mut bytes, mut last, mut tail, mut newest) = (0, 0, self.last, None, None);
        for item in &self.batch {
            match item {
                Item::Message(message) => {
                    messages += 1;
                    bytes += message.payload.len() as u64;
                    last = message.position.or(last);
                    newest = Some(message.time);
                }
                Item::Gap(gap) => {
                    handle.counters.count_gap(gap.reason);
                    // A log that was made anew and has no position yet is read from its very beginning.
                    let anew = gap.reason == GapReason::Reset && gap.position.is_none();
                    last = if anew { None } else { gap.position.or(last) };
                    warn!(source = %handle.name, reason = gap.reason.as_str(), from = gap.from, to = gap.to, "messages may be missing");
                }
                Item::Oversized(message) => {
                    handle.counters.count_gap(GapReason::Oversized);
                    last = message.position.or(last);
                }
                Item::Tail(position) => {
                    last = position.or(last);
                    tail = Some(last.is_none());
                }
            }
        }
        let id = match self.take().await? {
            Ok(id) => id,
            Err(lost) => {
                // How much of this batch was published is unknown: it counts as lost, and the next one goes on.
                error!(source = %handle.name, "taking messages in panicked, they are dropped");
                handle.counters.count_error(ErrorKind::Protocol);
                self.batch.clear();
                let seq = |position: Option<Position>| position.map(|p| p.seq);
                let hole = Gap { reason: GapReason::Overflow, from: seq(self.last), to: seq(last), position: last };
                handle.counters.count_gap(hole.reason);
                self.batch.push(Item::Gap(hole));
                self.batch.extend(lost);
                self.take().await?.unwrap_or_default()
            }
        };
        self.batch.clear();
        handle.counters.count_messages(messages, bytes);
        if let Some(time) = newest {
            handle.counters.note_last(time, came);
        }
        self.last = last;
        if let Some(empty) = tail {
            self.log_was_empty = empty;
            if !std::mem::replace(&mut self.warm, true) {
                handle.status.set(State::Up, None);
                info!(source = %handle.name, "source has warmed up");
            }
        }
        Some(id)
    }

    /// `None` when it was not taken before the end; `Err` with the tail of the batch when that panicked.
    async fn take(&mut self) -> Option<Result<String, Option<Item>>> {
        let tail = self.batch.iter().rfind(|item| matches!(item, Item::Tail(_))).cloned();
        let intake = self.source.intake.clone();
        let mut batch = std::mem::take(&mut self.batch);
        let taken = self.until_the_end(guarded(async { Ok(intake.take(&mut batch).await) })).await;
        self.batch = batch;
        Some(taken?.map_err(|_| tail))
    }

    /// `None` when it takes longer than the end allows.
    async fn until_the_end<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        // Mostly it is done at once, and what waits for the end is never made.
        if let Some(done) = poll_immediate(future.as_mut()).await {
            return Some(done);
        }
        let end = async {
            self.cancel.cancelled().await;
            sleep(LEAVE).await;
        };
        tokio::select! {
            biased;
            done = future => Some(done),
            () = end => None,
        }
    }

    fn note_connected(&mut self) {
        let handle = &self.source.handle;
        handle.counters.count_connect();
        self.connected_at = Some(Instant::now());
        self.logged.clear();
        info!(source = %handle.name, kind = handle.kind, "source is connected");
    }

    fn note_failure(&mut self, failure: &Failure) {
        let handle = &self.source.handle;
        let kind = failure.kind();
        handle.counters.count_error(kind);
        handle.counters.note_behind(None);
        let text = match failure {
            Failure::Source(error) => chain(error),
            Failure::Panic => "the adapter panicked".to_owned(),
        };
        if matches!(failure, Failure::Panic) {
            error!(source = %handle.name, kind = handle.kind, "source panicked, it is started again");
        } else if self.logged.len() < 4 && !self.logged.contains(&text) {
            warn!(source = %handle.name, kind = handle.kind, error_kind = kind.as_str(), error = %text, "source is down, trying again");
            self.logged.push(text.clone());
        } else {
            debug!(source = %handle.name, kind = handle.kind, error_kind = kind.as_str(), error = %text, "source is still down");
        }
        handle.status.set(State::Down, Some(Fault { error: text, kind }));
    }
}

async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = Result<T, SourceError>>) -> Result<T, SourceError> {
    timeout(limit, future).await.unwrap_or_else(|_| Err(SourceError::lost(what)))
}

/// Catches a panic of the future. The caller throws away or resets what the future had borrowed.
async fn guarded<T>(future: impl Future<Output = Result<T, SourceError>>) -> Result<T, Failure> {
    match AssertUnwindSafe(future).catch_unwind().await {
        Ok(result) => result.map_err(Failure::Source),
        Err(_) => Err(Failure::Panic),
    }
}

/// How soon the next attempt to connect follows a failure.
///
/// In general: full jitter below a ceiling that grows by half from 250 ms to 15 s. It comes down with the time that
/// connections hold, to the bottom after [`HEALTHY`]. A link that had stood is made again at once. What time alone does not
/// mend is tried every 15 to 30 s: a wrong configuration, and a refusal that came several times in a row. What was there before and is
/// missing is looked for often: until its source knows that a log was made anew, it hands out the old one to clients that other
/// replicas have told of the new one.
#[derive(Default)]
struct Retry {
    failures: u32,
    /// Refusals in a row.
    denied: u32,
    /// A connection has stood.
    was_up: bool,
}

impl Retry {
    const GROWING: Backoff = Backoff { first: Duration::from_millis(250), factor: 1.5, most: Duration::from_secs(15) };
    /// Below this, the first attempt after a connection that stood.
    const QUICK: Duration = Duration::from_millis(100);
    /// At most, until what is missing and was there is looked for again.
    const GONE: Duration = Duration::from_secs(2);
    const SLOW: RangeInclusive<Duration> = Duration::from_secs(15)..=Duration::from_secs(30);
    /// A broker that boots may refuse users that it has not loaded yet.
    const DENIED: u32 = 3;
    /// More failures than this are not remembered.
    const MOST: u32 = 20;

    /// Returns how long to wait; `held` is how long the connection that failed had stood.
    fn next(&mut self, kind: ErrorKind, held: Option<Duration>) -> Duration {
        random::in_range(self.within(kind, held))
    }

    fn within(&mut self, kind: ErrorKind, held: Option<Duration>) -> RangeInclusive<Duration> {
        let stood = held.is_some_and(|held| held >= Duration::from_secs(1));
        if let Some(held) = held {
            let forgiven = if held >= HEALTHY { u32::MAX } else { u32::try_from(held.as_secs() / 5).unwrap_or(u32::MAX) };
            self.failures = self.failures.saturating_sub(forgiven);
        }
        self.was_up |= held.is_some();
        let first = self.failures == 0;
        let growing = Self::GROWING.after(self.failures);
        self.failures = (self.failures + 1).min(Self::MOST);
        self.denied = match kind {
            ErrorKind::Denied if stood => 1,
            ErrorKind::Denied => self.denied.saturating_add(1),
            _ => 0,
        };
        match kind {
            ErrorKind::Configuration => Self::SLOW,
            ErrorKind::Denied if self.denied >= Self::DENIED => Self::SLOW,
            ErrorKind::Lost if stood => Duration::ZERO..=Duration::ZERO,
            ErrorKind::Missing if self.was_up && !first && !stood => Duration::ZERO..=growing.min(Self::GONE),
            _ => Duration::ZERO..=if first || stood { Self::QUICK } else { growing },
        }
    }
}
