//! Models of `notify`: loom runs them with every order of events, and every stale value that a relaxed load may read.
//!
//! They compile `notify.rs` a second time, over loom's primitives. The hub, a channel's log, a loop, its waker and tokio's
//! `Notify` are replaced by models, as small as possible and with the same locks. A notification that is lost ends in a
//! deadlock, which loom reports, or leaves an entry unread. Knows nothing else of the hub.

use std::sync::Arc;

use loom::sync::Condvar;
use loom::thread;
use notify::{Audience, Backpressure, Listener, Listeners};
use sync::Mutex;

#[path = "notify.rs"]
#[allow(clippy::duplicate_mod, reason = "over other primitives")]
#[expect(unreachable_pub, dead_code, reason = "the hub exports some of it, the models nothing")]
mod notify;

mod sync {
    pub(super) use std::sync::Arc;

    pub(super) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

    /// As `parking_lot`'s.
    #[derive(Default)]
    pub(super) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(super) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(super) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
            self.0.lock().expect("nothing panics under it")
        }
    }
}

const CHANNEL: u32 = 0;

/// Counts how often it is raised, and lets others wait for that: as a loop's waker, and as tokio's `Notify`.
struct Signal {
    raised: Mutex<u64>,
    changed: Condvar,
}

impl Signal {
    fn new() -> Arc<Self> {
        Arc::new(Self { raised: Mutex::new(0), changed: Condvar::new() })
    }

    fn raise(&self) {
        *self.raised.lock() += 1;
        self.changed.notify_all();
    }

    fn raised(&self) -> u64 {
        *self.raised.lock()
    }

    /// Waits until it was raised once more than `seen` says. Returns how often it was.
    fn wait(&self, seen: u64) -> u64 {
        let mut raised = self.raised.lock();
        while *raised == seen {
            raised = self.changed.wait(raised).expect("nothing panics under it");
        }
        *raised
    }
}

/// A channel's log: its entries are numbered, and entry n came with batch n.
struct Log {
    start: u64,
    end: u64,
}

/// A hub with one channel. One mutex models its two locks.
struct World {
    listeners: Mutex<Listeners>,
    log: Mutex<Log>,
    /// Entries above which the log is trimmed.
    limit: u64,
    audience: Audience,
    backpressure: Backpressure,
    room: Arc<Signal>,
}

impl World {
    fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            listeners: Mutex::new(Listeners::default()),
            log: Mutex::new(Log { start: 1, end: 1 }),
            limit,
            audience: Audience::new(),
            backpressure: Backpressure::new(),
            room: Signal::new(),
        })
    }

    fn publish(&self) {
        let mut listeners = self.listeners.lock();
        let batch = {
            let mut log = self.log.lock();
            log.end += 1;
            log.end - 1
        };
        let room = self.trim(&listeners, Some(batch));
        listeners.mark(&self.audience, CHANNEL);
        listeners.notify(batch);
        drop(listeners);
        self.announce_room(room);
    }

    fn make_room(&self) {
        let room = self.trim(&self.listeners.lock(), None);
        self.announce_room(room);
    }

    fn trim(&self, listeners: &Listeners, undelivered: Option<u64>) -> bool {
        let keep = listeners.pending().into_iter().chain(undelivered).min();
        let mut log = self.log.lock();
        while log.end - log.start > self.limit && keep.is_none_or(|keep| log.start < keep) {
            log.start += 1;
        }
        let full = log.end - log.start > self.limit;
        drop(log);
        self.backpressure.update(full, listeners)
    }

    fn announce_room(&self, room: bool) {
        if room {
            self.room.raise();
        }
    }

    /// As a source does.
    fn publish_when_there_is_room(&self) {
        loop {
            let seen = self.room.raised();
            if !self.backpressure.crowded() {
                return self.publish();
            }
            self.room.wait(seen);
        }
    }

    /// Publishes from a thread of its own.
    fn source(self: &Arc<Self>, publish: impl FnOnce(&Self) + Send + 'static) {
        let world = self.clone();
        thread::spawn(move || publish(&world));
    }
}

/// A writer's loop with one member in the channel.
struct Loop {
    world: Arc<World>,
    listener: Arc<Listener>,
    woken: Arc<Signal>,
    orders: Arc<Mutex<usize>>,
    /// The next entry to be read.
    place: u64,
    ready: Vec<u32>,
}

impl Loop {
    fn new(world: &Arc<World>) -> Self {
        let woken = Signal::new();
        let waker = woken.clone();
        let listener = world.listeners.lock().add(Box::new(move || waker.raise())).expect("a listener");
        let orders = Arc::default();
        let mut this = Self { world: world.clone(), listener, woken, orders, place: 0, ready: Vec::new() };
        this.join();
        this
    }

    /// Adds the member, at the log's end. Reads whatever came since, as with a new socket's first event.
    fn join(&mut self) {
        self.place = self.world.log.lock().end;
        self.world.audience.set_member(&self.listener, true);
        self.world.audience.looked(&self.listener);
        self.read();
    }

    /// Removes the member, in the middle of a round.
    fn leave(&mut self) {
        self.world.audience.set_member(&self.listener, false);
        self.ready.clear();
        self.turn();
    }

    fn read(&mut self) {
        let log = self.world.log.lock();
        assert!(self.place >= log.start, "entry {} was dropped before it was read", self.place);
        self.place = log.end;
    }

    fn turn(&mut self) {
        if self.listener.turn(&mut self.ready) {
            self.world.make_room();
        }
    }

    /// Works until it has read everything before entry `end`, and has the orders that it needs.
    fn run(&mut self, end: u64, mut orders: usize) {
        let mut seen = 0;
        loop {
            if self.listener.has_orders() {
                orders -= std::mem::take(&mut *self.orders.lock());
            }
            if self.listener.has_news() {
                self.turn();
            }
            while !self.ready.is_empty() {
                self.world.audience.looked(&self.listener);
                self.read();
                self.turn();
            }
            if self.place == end && orders == 0 {
                return;
            }
            if self.listener.may_sleep() {
                seen = self.woken.wait(seen);
            }
        }
    }
}

/// Tries all orders of events in which at most so many threads are interrupted where they need not be.
fn check(interruptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(interruptions);
    builder.check(model);
}

#[test]
fn every_entry_is_read_before_it_is_dropped() {
    check(3, || {
        let world = World::new(0);
        let mut running = Loop::new(&world);
        world.source(|world| (0..2).for_each(|_| world.publish()));
        running.run(3, 0);
    });
}

#[test]
fn a_source_that_waits_for_room_goes_on() {
    check(2, || {
        let world = World::new(1);
        let mut running = Loop::new(&world);
        world.publish();
        world.source(|world| (0..2).for_each(|_| world.publish_when_there_is_room()));
        // A heartbeat does not wait, and trims the logs too.
        world.source(World::publish);
        running.run(5, 0);
    });
}

#[test]
fn room_waits_for_the_last_of_several_loops() {
    check(2, || {
        let world = World::new(0);
        let (mut first, mut second) = (Loop::new(&world), Loop::new(&world));
        world.source(|world| (0..2).for_each(|_| world.publish_when_there_is_room()));
        thread::spawn(move || first.run(3, 0));
        second.run(3, 0);
    });
}

#[test]
fn a_member_that_comes_back_is_notified() {
    check(3, || {
        let world = World::new(4);
        let mut running = Loop::new(&world);
        world.source(|world| (0..2).for_each(|_| world.publish()));
        running.woken.wait(0);
        running.turn();
        running.leave();
        running.join();
        running.run(3, 0);
    });
}

#[test]
fn orders_and_news_do_not_hide_each_other() {
    check(3, || {
        let world = World::new(4);
        let mut running = Loop::new(&world);
        world.source(World::publish);
        let (orders, listener) = (running.orders.clone(), running.listener.clone());
        thread::spawn(move || {
            *orders.lock() += 1;
            listener.order();
        });
        running.run(2, 1);
    });
}
