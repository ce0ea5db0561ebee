//! Writers: the loops that write channels to the sockets of live HTTP/1.1 streams.
//!
//! There is a thread for each core, each with an epoll set of its own. A subscriber is a socket, a seat in a channel and an
//! offset in its log: it has no task, timer or buffer. A stream that is not live, or has fallen out of its channel's log, is
//! written by a [`task`] until it is live. Knows the hub's channels and live streams; nothing of HTTP but its chunks.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::task;
use crate::event::Timestamp;
use crate::hub::Hub;
use crate::stream::{Live, Stream};
use crate::support::peer::Watched;

mod driver;
pub(crate) mod handle;
mod members;
mod round;
pub(crate) mod socket;
pub(crate) mod step;
#[cfg(test)]
mod tests;
mod vanished;

use driver::Socket;
use handle::{Handle, New};

/// How a loop writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// A socket that takes nothing for so long, though something waits, is closed.
    pub(crate) stall: Duration,
    /// Sockets that are written to before the loop looks at what else has happened.
    pub(crate) budget: usize,
    /// Bytes up to which the rest of an entry is copied for a full socket.
    pub(crate) copied: usize,
}

impl Settings {
    fn new(stall: Duration) -> Self {
        Self { stall, budget: 512, copied: 16 << 10 }
    }
}

/// A stream that a loop gives back, since it has fallen out of its channel's log.
#[derive(Debug)]
pub(crate) struct Returned<S> {
    /// Its socket.
    pub socket: S,
    /// The stream.
    pub live: Live,
    /// Its client's last id.
    pub last_id: Vec<u8>,
}

/// All loops.
pub(crate) struct Writer {
    loops: Vec<Arc<Handle<Socket>>>,
    next: AtomicUsize,
    /// Sockets that tasks write to, or will.
    tasks: Arc<AtomicUsize>,
    stall: Duration,
    heartbeat: Duration,
}

/// Counts one, until it is dropped.
#[derive(Debug)]
pub(crate) struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("loops", &self.loops.len()).finish_non_exhaustive()
    }
}

/// What starting gives beside the writer.
#[derive(Debug)]
pub(crate) struct Ends {
    /// Streams that fell behind: for [`Writer::carry_on`].
    pub returned: mpsc::UnboundedReceiver<(Returned<Socket>, Counted)>,
    /// Resolves, one for each loop, when that loop ends; it does not by itself.
    pub ended: Vec<oneshot::Receiver<()>>,
}

impl Writer {
    /// Starts `loops` threads. A socket that takes nothing for `stall`, though something waits, is closed, and so is one whose client has
    /// vanished. `heartbeat`: the interval at which the hub's channels get one.
    ///
    /// # Errors
    /// When the system has no threads or epoll sets left.
    pub(crate) fn start(hub: &Arc<Hub>, loops: usize, stall: Duration, heartbeat: Duration) -> io::Result<(Arc<Self>, Ends)> {
        // Bounded by the sockets there are: each comes back at most once before it is adopted again.
        let (give, returned) = mpsc::unbounded_channel();
        let tasks = Arc::<AtomicUsize>::default();
        let mut handles = Vec::new();
        let mut ended = Vec::new();
        for number in 0..loops.clamp(1, 64) {
            let (handle, end) = driver::start(hub, number, Settings::new(stall), heartbeat, (give.clone(), tasks.clone()))?;
            handles.push(handle);
            ended.push(end);
        }
        Ok((Arc::new(Self { loops: handles, next: AtomicUsize::new(0), tasks, stall, heartbeat }), Ends { returned, ended }))
    }

    /// Writes a stream to a socket until it has ended, or until a loop has taken it over. `read_ahead` bytes were read from
    /// the socket behind the request.
    pub(crate) async fn write(&self, socket: TcpStream, stream: Stream, read_ahead: usize) {
        self.write_counted(Counted::new(&self.tasks), socket, stream, read_ahead).await;
    }

    async fn write_counted(&self, counted: Counted, socket: TcpStream, stream: Stream, read_ahead: usize) {
        let socket = Watched::new(socket, self.heartbeat);
        let Some((socket, live, id)) = task::catch_up(socket, stream, self.stall).await else { return };
        let handle = &self.loops[self.next.fetch_add(1, Ordering::Relaxed) % self.loops.len()];
        // A socket that cannot leave the runtime is closed, so its client comes back.
        if let Ok(socket) = driver::from_runtime(socket.into_inner()) {
            handle.adopt(New { socket, live, id, read_ahead }).await;
            // Only now: it is always counted, here or there.
            drop(counted);
        }
    }

    /// Carries on the streams that have fallen behind, each in a task of the tracker, until it is `cut`.
    pub(crate) async fn carry_on(
        self: Arc<Self>,
        mut returned: mpsc::UnboundedReceiver<(Returned<Socket>, Counted)>,
        tasks: TaskTracker,
        cut: CancellationToken,
    ) {
        while let Some((Returned { socket, live, last_id }, counted)) = returned.recv().await {
            // A socket that the runtime cannot take is closed, so its client comes back.
            let Ok(socket) = driver::into_runtime(socket) else { continue };
            let (this, cut, stream) = (self.clone(), cut.clone(), live.resume(&last_id, Timestamp::now()));
            tasks.spawn(async move { cut.run_until_cancelled(this.write_counted(counted, socket, stream, 0)).await });
        }
        std::future::pending().await
    }

    /// Streams that the loops hold.
    #[must_use]
    pub(crate) fn streams(&self) -> usize {
        self.loops.iter().map(|handle| handle.streams()).sum()
    }

    /// Sockets that it has, of streams that are live or catch up.
    #[must_use]
    pub(crate) fn sockets(&self) -> usize {
        self.tasks.load(Ordering::Relaxed) + self.streams()
    }

    /// Ends the loops, with the streams that they still hold.
    pub(crate) fn stop(&self) {
        self.loops.iter().for_each(|handle| handle.stop());
    }
}
