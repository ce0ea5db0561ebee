//! Writers: the loops that write channels to the sockets of HTTP/1.1 streams which hyper has handed over.
//!
//! A thread for each core, each with an epoll set of its own. A subscriber is a socket, a seat in a channel and an offset
//! in its log: no task, no timer, no buffer. A stream that is not live yet, or has fallen out of its channel's log, is
//! written by [`task`] until it is. Knows the hub's channels and live streams; nothing of HTTP but its chunks.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::event::Timestamp;
use crate::hub::Hub;
use crate::stream::{Live, Stream};
use crate::transport::task;

mod lane;
mod socket;
#[cfg(test)]
mod tests;
mod work;

use lane::{Lane, New};

/// A stream that a loop gives back: it has fallen out of its channel's log, behind this id.
#[derive(Debug)]
pub struct Returned {
    /// Its socket.
    pub socket: std::net::TcpStream,
    /// The stream.
    pub live: Live,
    /// Where it stands.
    pub last_id: Vec<u8>,
}

/// All loops.
pub struct Writer {
    lanes: Vec<Arc<Lane>>,
    next: AtomicUsize,
    stall: Duration,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("lanes", &self.lanes.len()).finish_non_exhaustive()
    }
}

/// What starting gives beside the writer.
#[derive(Debug)]
pub struct Ends {
    /// Streams that fell behind: for [`Writer::carry_on`].
    pub returned: mpsc::UnboundedReceiver<Returned>,
    /// Resolves, one for each loop, when that loop ends; it does not by itself.
    pub ended: Vec<oneshot::Receiver<()>>,
}

impl Writer {
    /// Starts `loops` threads. A socket that takes nothing for `stall`, though something waits, is closed.
    ///
    /// # Errors
    /// When the system has no threads or epoll sets left.
    pub fn start(hub: &Arc<Hub>, loops: usize, stall: Duration) -> io::Result<(Arc<Self>, Ends)> {
        // Bounded by the sockets there are: each comes back at most once before it is adopted again.
        let (give, returned) = mpsc::unbounded_channel();
        let mut lanes = Vec::new();
        let mut ended = Vec::new();
        for number in 0..loops.clamp(1, 64) {
            let (lane, end) = Lane::start(hub, number, stall, give.clone())?;
            lanes.push(lane);
            ended.push(end);
        }
        Ok((Arc::new(Self { lanes, next: AtomicUsize::new(0), stall }), Ends { returned, ended }))
    }

    /// Writes a stream to a socket, `beyond` bytes of whose input were read already: until it has ended, or until a loop has
    /// taken it over.
    pub async fn write(&self, socket: TcpStream, stream: Stream, beyond: usize) {
        let Some((socket, live, id)) = task::catch_up(socket, stream, self.stall).await else { return };
        let lane = &self.lanes[self.next.fetch_add(1, Ordering::Relaxed) % self.lanes.len()];
        // A socket that cannot leave the runtime is closed, and so its client comes back.
        if let Ok(socket) = socket.into_std() {
            lane.put(New { socket, live, id, beyond });
            // Of a crowd that connects, many have arrived when this goes on: the loop is woken once for all of them.
            tokio::task::yield_now().await;
            lane.order_new();
        }
    }

    /// Carries on the streams that have fallen behind, each in a task of the tracker, until it is `cut`.
    pub async fn carry_on(self: Arc<Self>, mut returned: mpsc::UnboundedReceiver<Returned>, tasks: TaskTracker, cut: CancellationToken) {
        while let Some(Returned { socket, live, last_id }) = returned.recv().await {
            // A socket that the runtime cannot take is closed, and so its client comes back.
            let Ok(socket) = TcpStream::from_std(socket) else { continue };
            let (this, cut, stream) = (self.clone(), cut.clone(), live.resume(&last_id, Timestamp::now()));
            tasks.spawn(async move { cut.run_until_cancelled(this.write(socket, stream, 0)).await });
        }
        std::future::pending().await
    }

    /// Streams in the loops' hands.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.lanes.iter().map(|lane| lane.members()).sum()
    }

    /// Ends the loops and whatever they still hold.
    pub fn stop(&self) {
        self.lanes.iter().for_each(|lane| lane.stop());
    }
}
