//! One loop, as others see it: how sockets, news and orders reach its thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mio::{Poll, Token, Waker};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::Returned;
use super::work::Work;
use crate::hub::{Hub, Listener};
use crate::stream::{Driver, End, Live, StreamId};

pub(super) const WAKE: Token = Token(usize::MAX);

/// A loop, as others see it.
pub(super) struct Lane {
    pub(super) listener: Arc<Listener>,
    pub(super) inbox: Mutex<Inbox>,
    pub(super) members: AtomicUsize,
}

/// Orders that wait for the loop. Whoever stores some calls [`Listener::order`].
#[derive(Default)]
pub(super) struct Inbox {
    pub(super) new: Vec<New>,
    /// Members whose streams end at another time.
    pub(super) ends: Vec<(u32, StreamId, End)>,
    pub(super) stop: bool,
}

/// A socket that a loop takes over.
pub(super) struct New {
    pub(super) socket: std::net::TcpStream,
    pub(super) live: Live,
    /// Its client's id.
    pub(super) id: Arc<str>,
    /// Bytes of its input that were read already.
    pub(super) beyond: usize,
}

impl Driver for Lane {
    fn end(&self, member: u32, stream: StreamId, end: End) {
        self.inbox.lock().ends.push((member, stream, end));
        self.listener.order();
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
        let waker = Waker::new(poll.registry(), WAKE)?;
        let wake = move || {
            if let Err(error) = waker.wake() {
                tracing::error!(%error, "a writer cannot be woken");
            }
        };
        let listener = hub.listen(wake).ok_or_else(|| io::Error::other("a hub has at most 64 writers"))?;
        let lane = Arc::new(Self { listener, inbox: Mutex::default(), members: AtomicUsize::new(0) });
        let (alive, ended) = oneshot::channel();
        let work = Work::new(lane.clone(), hub.clone(), poll, stall, returned);
        std::thread::Builder::new().name(format!("writer-{number}")).spawn(move || {
            work.run();
            drop(alive);
        })?;
        Ok((lane, ended))
    }

    /// Leaves a socket for the loop, which finds it when it gets its next orders.
    pub(super) fn put(&self, new: New) {
        self.members.fetch_add(1, Ordering::Relaxed);
        self.inbox.lock().new.push(new);
    }

    /// Orders the loop to take the sockets that were left, unless it has found them.
    pub(super) fn order_new(&self) {
        if !self.inbox.lock().new.is_empty() {
            self.listener.order();
        }
    }

    pub(super) fn stop(&self) {
        self.inbox.lock().stop = true;
        self.listener.order();
    }

    pub(super) fn members(&self) -> usize {
        self.members.load(Ordering::Relaxed)
    }
}
