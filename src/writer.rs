//! Writers: the loops that write channels to the sockets of HTTP/1.1 streams which hyper has handed over.
//!
//! A thread for each core, each with an epoll set of its own. A subscriber is a socket, a seat in a channel and a
//! place in its log: no task, no timer, no buffer. Whoever is not live yet, or has fallen out of its channel's log, is
//! written by [`pump`] until it is. Knows the hub's channels and live streams; nothing of HTTP but its chunks.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use crate::hub::Hub;
use crate::replay::Live;

mod lane;
pub mod pump;
mod socket;
#[cfg(test)]
mod tests;
mod work;

use lane::Lane;

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
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("lanes", &self.lanes.len()).finish_non_exhaustive()
    }
}

/// What starting gives beside the writer.
#[derive(Debug)]
pub struct Ends {
    /// Streams that are to be written by [`pump`] for a while.
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
        Ok((Arc::new(Self { lanes, next: AtomicUsize::new(0) }), Ends { returned, ended }))
    }

    /// Takes a socket over, `beyond` bytes of whose input were read already.
    pub async fn adopt(&self, socket: TcpStream, live: Live, beyond: usize) {
        let lane = &self.lanes[self.next.fetch_add(1, Ordering::Relaxed) % self.lanes.len()];
        // A socket that cannot leave the runtime is closed, and so its client comes back.
        if let Ok(socket) = socket.into_std() {
            lane.put(socket, live, beyond);
            // Of a crowd that connects, many have arrived when this goes on: the loop is woken once for all of them.
            tokio::task::yield_now().await;
            lane.order_new();
        }
    }

    /// Ends all streams, those that are there and those that come, at random times within this span.
    pub fn drain(&self, within: Duration) {
        self.lanes.iter().for_each(|lane| lane.drain(within));
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
