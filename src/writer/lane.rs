//! One loop, as others see it: how sockets, news and orders reach its thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use mio::{Poll, Token, Waker};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::Returned;
use super::work::Work;
use crate::hub::{Channel, Hub, Listener};
use crate::replay::Live;

pub(super) const WAKE: Token = Token(usize::MAX);
/// No batch is being waited for.
pub(super) const IDLE: u64 = u64::MAX;

/// A loop, as others see it.
pub(super) struct Lane {
    pub(super) inbox: Mutex<Inbox>,
    pub(super) told: AtomicBool,
    waker: Waker,
    pub(super) members: AtomicUsize,
    /// The oldest batch that the loop may not have written yet.
    pub(super) pending: AtomicU64,
}

/// What waits for the loop.
#[derive(Default)]
pub(super) struct Inbox {
    pub(super) new: Vec<(std::net::TcpStream, Live, usize)>,
    pub(super) dirty: Vec<u32>,
    /// The batch of the first of `dirty`.
    pub(super) since: Option<u64>,
    pub(super) drain: Option<Duration>,
    pub(super) stop: bool,
}

impl Listener for Lane {
    fn ready(&self, channel: &Arc<Channel>, batch: u64) {
        {
            let mut inbox = self.inbox.lock();
            inbox.dirty.push(channel.key());
            inbox.since.get_or_insert(batch);
            // Under the lock, so that the loop does not call itself idle in between.
            self.pending.fetch_min(batch, Ordering::SeqCst);
        }
    }

    fn wake(&self) {
        self.tell();
    }

    fn pending(&self) -> u64 {
        self.pending.load(Ordering::SeqCst)
    }
}

impl Lane {
    pub(super) fn start(
        hub: &Arc<Hub>,
        number: usize,
        stall: Duration,
        returned: mpsc::UnboundedSender<Returned>,
    ) -> io::Result<(Arc<Self>, oneshot::Receiver<()>)> {
        let poll = Poll::new()?;
        let lane = Arc::new(Self {
            inbox: Mutex::default(),
            told: AtomicBool::new(false),
            waker: Waker::new(poll.registry(), WAKE)?,
            members: AtomicUsize::new(0),
            pending: AtomicU64::new(IDLE),
        });
        let listener = hub.listen(lane.clone());
        let (alive, ended) = oneshot::channel();
        let work = Work::new(listener, lane.clone(), hub.clone(), poll, stall, returned);
        std::thread::Builder::new().name(format!("writer-{number}")).spawn(move || {
            work.run();
            drop(alive);
        })?;
        Ok((lane, ended))
    }

    fn tell(&self) {
        if !self.told.swap(true, Ordering::AcqRel)
            && let Err(error) = self.waker.wake()
        {
            tracing::error!(%error, "a writer cannot be woken");
        }
    }

    /// Leaves a socket for the loop, which finds it when it is told next.
    pub(super) fn put(&self, socket: std::net::TcpStream, live: Live, beyond: usize) {
        self.members.fetch_add(1, Ordering::Relaxed);
        self.inbox.lock().new.push((socket, live, beyond));
    }

    /// Tells of sockets that were left, unless the loop has found them.
    pub(super) fn tell_of_new(&self) {
        if !self.inbox.lock().new.is_empty() {
            self.tell();
        }
    }

    pub(super) fn drain(&self, within: Duration) {
        self.inbox.lock().drain = Some(within);
        self.tell();
    }

    pub(super) fn stop(&self) {
        self.inbox.lock().stop = true;
        self.tell();
    }

    pub(super) fn members(&self) -> usize {
        self.members.load(Ordering::Relaxed)
    }
}
