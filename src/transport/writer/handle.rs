//! A loop, as others see it: how streams and orders reach it.
//!
//! Knows nothing of what the loop does with them, nor what kind of socket it writes to.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::hub::Listener;
use crate::stream::{Driver, End, Live, StreamId};

/// A loop, as others see it.
pub(crate) struct Handle<S> {
    listener: Arc<Listener>,
    /// What the loop has not taken yet. [`Listener::order`] follows each change.
    orders: Mutex<Orders<S>>,
    streams: AtomicUsize,
}

/// What the loop has to do at its next turn.
pub(super) struct Orders<S> {
    pub(super) new: Vec<New<S>>,
    /// Members whose streams end earlier than they were to.
    pub(super) ends: Vec<(u32, StreamId, End)>,
    /// Members that are to be sent something else.
    pub(super) moved: Vec<(u32, StreamId)>,
    pub(super) stop: bool,
}

impl<S> Default for Orders<S> {
    fn default() -> Self {
        Self { new: Vec::new(), ends: Vec::new(), moved: Vec::new(), stop: false }
    }
}

/// A stream that a loop takes over.
pub(crate) struct New<S> {
    pub(crate) socket: S,
    pub(crate) live: Live,
    /// Its client's last id.
    pub(crate) id: Arc<str>,
    /// Bytes that were read from the socket behind the request.
    pub(crate) read_ahead: usize,
}

impl<S: Send> Driver for Handle<S> {
    fn end(&self, member: u32, stream: StreamId, end: End) {
        self.orders.lock().ends.push((member, stream, end));
        self.listener.order();
    }

    fn moved(&self, member: u32, stream: StreamId) {
        self.orders.lock().moved.push((member, stream));
        self.listener.order();
    }
}

impl<S> Handle<S> {
    pub(crate) fn new(listener: Arc<Listener>) -> Arc<Self> {
        Arc::new(Self { listener, orders: Mutex::default(), streams: AtomicUsize::new(0) })
    }

    /// Hands a stream over to the loop.
    pub(crate) async fn adopt(&self, new: New<S>) {
        self.streams.fetch_add(1, Ordering::Relaxed);
        self.orders.lock().new.push(new);
        let _announcement = Announcement(self);
        // Of a crowd that connects, many have arrived when this goes on: the loop is woken once for all of them.
        tokio::task::yield_now().await;
    }

    /// Ends the loop, with the streams that it still holds.
    pub(crate) fn stop(&self) {
        self.orders.lock().stop = true;
        self.listener.order();
    }

    /// Streams that the loop holds or is about to take.
    pub(crate) fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    pub(super) fn listener(&self) -> &Arc<Listener> {
        &self.listener
    }

    /// For the loop: what it has been ordered to do since it asked last.
    pub(super) fn take_orders(&self) -> Option<Orders<S>> {
        self.listener.has_orders().then(|| std::mem::take(&mut *self.orders.lock()))
    }

    /// For the loop: only what it has been ordered to do to its members, if that is anything.
    pub(super) fn take_orders_to_members(&self) -> Option<Orders<S>> {
        if !self.listener.is_ordered() {
            return None;
        }
        let mut orders = self.orders.lock();
        let (ends, moved) = (std::mem::take(&mut orders.ends), std::mem::take(&mut orders.moved));
        (!ends.is_empty() || !moved.is_empty()).then(|| Orders { ends, moved, ..Orders::default() })
    }

    /// For the loop: it no longer holds one of its streams.
    pub(super) fn left(&self) {
        self.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Orders the loop, when dropped, to take the streams that were left for it, unless it has done so. A guard, since the
/// future that holds it may be dropped where it yields.
struct Announcement<'a, S>(&'a Handle<S>);

impl<S> Drop for Announcement<'_, S> {
    fn drop(&mut self) {
        if !self.0.orders.lock().new.is_empty() {
            self.0.listener.order();
        }
    }
}
