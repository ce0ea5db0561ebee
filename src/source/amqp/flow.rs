//! How much one consumer has on its way to it, in bytes.
//!
//! The prefetch counts messages, whatever their size, and the library's queue has no bound of its own. So the socket is
//! not read while much waits to be taken; the broker then waits too.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::task::Context;

use futures_util::task::AtomicWaker;

/// So much may wait for a live reader, and one message more.
pub(in crate::source) const LIVE: u64 = 32 << 20;
/// The same for a reader of history. There are several of them.
pub(in crate::source) const HISTORY: u64 = 8 << 20;

/// What waits for the consumer of one channel. Without such a channel nothing is measured.
#[derive(Debug, Default)]
pub(in crate::source) struct Flow {
    channel: AtomicU16,
    /// So much may wait, and one message more.
    most: AtomicU64,
    messages: AtomicU64,
    bytes: AtomicU64,
    waker: AtomicWaker,
}

impl Flow {
    /// Measures this channel from now on: so many bytes may wait, and one message more.
    pub(in crate::source) fn meter(&self, channel: u16, most: u64) {
        self.most.store(most, Ordering::SeqCst);
        self.channel.store(channel, Ordering::SeqCst);
    }

    /// Whether this channel is measured.
    pub(in crate::source) fn meters(&self, channel: u16) -> bool {
        channel != 0 && self.channel.load(Ordering::Relaxed) == channel
    }

    /// A message has come in whole.
    pub(in crate::source) fn came(&self, size: u64) {
        self.bytes.fetch_add(size, Ordering::SeqCst);
        self.messages.fetch_add(1, Ordering::SeqCst);
    }

    /// A message was taken.
    pub(in crate::source) fn took(&self, size: usize) {
        let less = |counter: &AtomicU64, n: u64| {
            let less = counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |before| Some(before.saturating_sub(n)));
            less.unwrap_or_default()
        };
        less(&self.messages, 1);
        let before = less(&self.bytes, size as u64);
        if before > self.most() / 2 {
            self.waker.wake();
        }
    }

    fn most(&self) -> u64 {
        self.most.load(Ordering::SeqCst)
    }

    /// Whether enough waits. If so, the waker is woken when that changes, and at least one whole message can be taken.
    pub(in crate::source) fn full(&self, cx: &mut Context<'_>) -> bool {
        let full = || self.bytes.load(Ordering::SeqCst) > self.most() && self.messages.load(Ordering::SeqCst) > 0;
        if !full() {
            return false;
        }
        self.waker.register(cx.waker());
        full()
    }
}
