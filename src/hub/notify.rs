//! How the publisher wakes the loops that write channels to sockets, and how those loops hold it back.
//!
//! A [`Listener`] is one loop. An [`Audience`] says which loops read a channel. The publisher appends a batch to the channels'
//! logs and marks each channel for its listeners. Then it delivers the marked channels to each listener at once, and wakes
//! the listener. A loop works in rounds: [`Listener::turn`] ends one and begins the next. The logs must keep what a loop has
//! not written yet. So each listener says which batch is the oldest that it may not have written ([`Listeners::pending`]).
//! While the logs are full of such entries, [`Backpressure`] makes the publishers wait.
//!
//! Knows nothing of logs, sockets or mio. `models.rs` compiles this file a second time, over loom's primitives, and tries
//! every order of events.
//!
//! All atomics are relaxed: every order that matters comes from a mutex. A flag is set after the entry that it announces was
//! stored under a mutex. It is cleared before that mutex is taken to look for entries. If the look misses an entry, the mutex
//! orders the clearing before the setting, so the setter finds the flag clear and notifies.

use super::sync::{Arc, AtomicBool, AtomicU8, AtomicU64, Mutex, Ordering::Relaxed};

/// Signal: channels were delivered.
const NEWS: u8 = 1;
/// Signal: the loop has orders from elsewhere.
const ORDERS: u8 = 2;

/// Which listeners have members in a channel, and which of those were notified and have not looked since: a bit for each.
pub(super) struct Audience {
    members: AtomicU64,
    notified: AtomicU64,
}

impl Audience {
    pub(super) fn new() -> Self {
        Self { members: AtomicU64::new(0), notified: AtomicU64::new(0) }
    }

    /// Says that a listener has members in this channel, or has none left. A listener that looks at the channel's log
    /// after this is notified of everything that it has not seen then.
    pub(super) fn set_member(&self, listener: &Listener, member: bool) {
        if member {
            self.members.fetch_or(listener.bit, Relaxed);
        } else {
            self.members.fetch_and(!listener.bit, Relaxed);
        }
    }

    /// To be called by a listener before it looks at the channel's log: it is notified of whatever comes after.
    pub(super) fn looked(&self, listener: &Listener) {
        self.notified.fetch_and(!listener.bit, Relaxed);
    }

    /// The listeners that have members here.
    pub(super) fn members(&self) -> u64 {
        self.members.load(Relaxed)
    }

    /// Marks all listeners that have members here. Returns those that were not marked yet.
    fn mark(&self) -> u64 {
        match self.members() {
            0 => 0,
            members => members & !self.notified.fetch_or(members, Relaxed),
        }
    }
}

/// One loop, as the publisher and those who give it orders see it.
pub struct Listener {
    bit: u64,
    /// [`NEWS`] and [`ORDERS`]. While any is set, the loop is awake or about to be woken.
    signals: AtomicU8,
    news: Mutex<News>,
    /// [`News::oldest`], to be read without the lock; `u64::MAX` where that is `None`.
    oldest: AtomicU64,
    wake: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct News {
    channels: Vec<u32>,
    /// The batch that brought the first of `channels`.
    since: Option<u64>,
    /// The oldest batch that the loop may not have written: that of its round, else `since`.
    oldest: Option<u64>,
    /// Publishers wait for the loop to get beyond `oldest`.
    room_wanted: bool,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("bit", &self.bit).finish_non_exhaustive()
    }
}

impl Listener {
    /// Its number among the hub's listeners, from 0.
    #[must_use]
    pub fn number(&self) -> usize {
        self.bit.trailing_zeros() as usize
    }

    /// Whether the loop may sleep until it is woken.
    #[must_use]
    pub fn may_sleep(&self) -> bool {
        self.signals.load(Relaxed) == 0
    }

    /// Whether channels were delivered since the last [`turn`](Self::turn).
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.signals.load(Relaxed) & NEWS != 0
    }

    /// Ends a round: all of its channels are written. Begins the next: `channels` becomes the keys of those to be written
    /// in it. An idle loop calls this when it [has news](Self::has_news). Returns whether publishers wait for room that
    /// this may have made: then the logs have to be trimmed.
    #[must_use]
    pub fn turn(&self, channels: &mut Vec<u32>) -> bool {
        channels.clear();
        // Cleared before looking: whatever is delivered from here on signals again.
        let delivered = self.has_news() && self.signals.fetch_and(!NEWS, Relaxed) & NEWS != 0;
        let mut news = self.news.lock();
        let before = news.oldest;
        if delivered {
            std::mem::swap(channels, &mut news.channels);
            news.oldest = news.since.take();
        } else {
            news.oldest = news.since;
        }
        self.oldest.store(news.oldest.unwrap_or(u64::MAX), Relaxed);
        before != news.oldest && std::mem::take(&mut news.room_wanted)
    }

    /// Tells the loop of orders, which were stored under a mutex.
    pub fn order(&self) {
        self.signal(ORDERS);
    }

    /// Whether there are new orders. If so, the loop has to look for them now: this is true only once.
    #[must_use]
    pub fn has_orders(&self) -> bool {
        self.signals.load(Relaxed) & ORDERS != 0 && self.signals.fetch_and(!ORDERS, Relaxed) & ORDERS != 0
    }

    /// Whether there are orders that the loop has not looked for. Asked behind reading a log, this knows of all that was ordered before
    /// something in it was published.
    #[must_use]
    pub fn is_ordered(&self) -> bool {
        self.signals.load(Relaxed) & ORDERS != 0
    }

    /// The oldest batch that the loop may not have written all of, if there is one.
    #[must_use]
    pub fn pending(&self) -> Option<u64> {
        Some(self.oldest.load(Relaxed)).filter(|batch| *batch != u64::MAX)
    }

    fn signal(&self, signal: u8) {
        // One wake-up is enough: the loop does not sleep while a signal is set.
        if self.signals.fetch_or(signal, Relaxed) == 0 {
            (self.wake)();
        }
    }

    fn deliver(&self, channels: &mut Vec<u32>, batch: u64) {
        {
            let mut news = self.news.lock();
            news.channels.append(channels);
            news.since.get_or_insert(batch);
            if news.oldest.is_none() {
                news.oldest = Some(batch);
                self.oldest.store(batch, Relaxed);
            }
        }
        self.signal(NEWS);
    }

    /// Asks the loop to say when it has got further. False if it has nothing to write, and so will not say.
    fn ask_for_room(&self) -> bool {
        let mut news = self.news.lock();
        news.room_wanted = news.oldest.is_some();
        news.room_wanted
    }
}

/// All listeners, as the publisher sees them. A thread that publishes holds it from before a batch is appended until the
/// batch's channels are delivered.
#[derive(Default)]
pub(super) struct Listeners {
    all: Vec<Arc<Listener>>,
    /// For each listener the keys of channels that were marked and not delivered yet.
    marked: Vec<Vec<u32>>,
}

impl Listeners {
    /// Adds a listener, which is woken by `wake`: that must not block. `None` when there are 64 already.
    pub(super) fn add(&mut self, wake: Box<dyn Fn() + Send + Sync>) -> Option<Arc<Listener>> {
        let bit = 1_u64.checked_shl(self.all.len() as u32)?;
        let (signals, news, oldest) = (AtomicU8::new(0), Mutex::new(News::default()), AtomicU64::new(u64::MAX));
        let listener = Arc::new(Listener { bit, signals, news, oldest, wake });
        self.all.push(listener.clone());
        self.marked.push(Vec::new());
        Some(listener)
    }

    /// The oldest batch that some listener may not have written all of.
    pub(super) fn pending(&self) -> Option<u64> {
        self.all.iter().filter_map(|listener| listener.pending()).min()
    }

    /// Marks a channel, whose log was appended to, for its listeners.
    pub(super) fn mark(&mut self, audience: &Audience, channel: u32) {
        let mut listeners = audience.mark();
        while listeners != 0 {
            self.marked[listeners.trailing_zeros() as usize].push(channel);
            listeners &= listeners - 1;
        }
    }

    /// Delivers the channels that were marked in this batch. All at once: a loop that shares a core with the publisher would
    /// otherwise look, sleep and be woken again for each channel.
    pub(super) fn notify(&mut self, batch: u64) {
        for (listener, channels) in self.all.iter().zip(&mut self.marked) {
            if !channels.is_empty() {
                listener.deliver(channels, batch);
            }
        }
    }

    fn ask_for_room(&self) -> bool {
        // All of them are asked, so that there is room as soon as the loop with the oldest batch has written it.
        self.all.iter().fold(false, |asked, listener| listener.ask_for_room() | asked)
    }
}

/// Makes publishers wait while the logs are full of what listeners have not written.
pub(super) struct Backpressure {
    crowded: AtomicBool,
}

impl Backpressure {
    pub(super) fn new() -> Self {
        Self { crowded: AtomicBool::new(false) }
    }

    /// Whether publishers have to wait.
    pub(super) fn crowded(&self) -> bool {
        self.crowded.load(Relaxed)
    }

    /// To be called, by one thread at a time, when the logs were trimmed as far as they may be. `full` says that they are
    /// still too large. Returns whether the publishers that wait have to be woken.
    #[must_use]
    pub(super) fn update(&self, full: bool, listeners: &Listeners) -> bool {
        // Publishers wait only if some listener has something to write: no other would say that there is room.
        let crowded = full && listeners.ask_for_room();
        let before = self.crowded();
        if crowded != before {
            self.crowded.store(crowded, Relaxed);
        }
        before && !crowded
    }
}
