//! A small executor whose order follows from the seed: of all tasks that are ready, a random one runs next.
//!
//! It is one future inside a runtime with a paused clock. The runtime's clock moves on only when no task is ready.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::future::BoxFuture;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use slab::Slab;

use crate::support::random;

/// Tasks that are killed together.
pub(super) type Group = u32;

/// See the module.
#[derive(Clone, Default)]
pub(super) struct Executor {
    tasks: Rc<RefCell<Slab<Task>>>,
    ready: Arc<Ready>,
}

#[derive(Default)]
struct Ready {
    queue: Mutex<Vec<Arc<Signal>>>,
    /// Tasks that a [`Spawner`] was given.
    spawned: Mutex<Vec<(Group, BoxFuture<'static, ()>)>>,
    root: AtomicWaker,
}

/// Takes tasks for an executor, from code that does not know that there is but one thread.
#[derive(Clone)]
pub(super) struct Spawner(Arc<Ready>);

impl Spawner {
    pub(super) fn spawn(&self, group: Group, task: BoxFuture<'static, ()>) {
        self.0.spawned.lock().push((group, task));
        self.0.root.wake();
    }
}

struct Task {
    group: Group,
    /// `None` while it runs.
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    signal: Arc<Signal>,
}

/// A task's waker.
struct Signal {
    key: usize,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            let ready = self.ready.clone();
            ready.queue.lock().push(self);
            ready.root.wake();
        }
    }
}

impl Executor {
    pub(super) fn spawn(&self, group: Group, future: impl Future<Output = ()> + 'static) {
        let mut tasks = self.tasks.borrow_mut();
        let entry = tasks.vacant_entry();
        let signal = Arc::new(Signal { key: entry.key(), queued: AtomicBool::new(false), ready: self.ready.clone() });
        entry.insert(Task { group, future: Some(Box::pin(future)), signal: signal.clone() });
        signal.wake();
    }

    pub(super) fn spawner(&self) -> Spawner {
        Spawner(self.ready.clone())
    }

    /// Drops all tasks of a group where they wait. A task must not kill its own group.
    pub(super) fn kill(&self, group: Group) {
        let killed: Vec<_> = {
            let mut tasks = self.tasks.borrow_mut();
            let keys: Vec<_> = tasks.iter().filter(|(_, task)| task.group == group).map(|(key, _)| key).collect();
            keys.into_iter().map(|key| tasks.remove(key)).collect()
        };
        // Only now: what a task drops may wake others.
        drop(killed);
    }

    /// Runs all tasks until `main` has ended.
    pub(super) async fn run<T: 'static>(&self, main: impl Future<Output = T> + 'static) -> T {
        let result = Rc::new(RefCell::new(None));
        let slot = result.clone();
        self.spawn(Group::MAX, async move {
            let value = main.await;
            *slot.borrow_mut() = Some(value);
        });
        let value = tokio::task::unconstrained(poll_fn(|cx| {
            self.ready.root.register(cx.waker());
            loop {
                if let Some(value) = result.borrow_mut().take() {
                    return Poll::Ready(value);
                }
                if !self.step() {
                    return Poll::Pending;
                }
            }
        }))
        .await;
        let rest: Vec<_> = self.tasks.borrow_mut().drain().collect();
        drop(rest);
        value
    }

    /// Lets one of the ready tasks run; false if none is.
    fn step(&self) -> bool {
        let spawned = std::mem::take(&mut *self.ready.spawned.lock());
        spawned.into_iter().for_each(|(group, task)| self.spawn(group, task));
        let signal = {
            let mut queue = self.ready.queue.lock();
            match queue.len() {
                0 => return false,
                count => queue.swap_remove(random::in_range(0..count)),
            }
        };
        signal.queued.store(false, Ordering::Relaxed);
        let mut future = {
            let mut tasks = self.tasks.borrow_mut();
            let task = tasks.get_mut(signal.key).filter(|task| Arc::ptr_eq(&task.signal, &signal));
            match task.and_then(|task| task.future.take()) {
                Some(future) => future,
                None => return true,
            }
        };
        let waker = Waker::from(signal.clone());
        let done = future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        let mut tasks = self.tasks.borrow_mut();
        if let Some(task) = tasks.get_mut(signal.key).filter(|task| Arc::ptr_eq(&task.signal, &signal)) {
            if done {
                tasks.remove(signal.key);
            } else {
                task.future = Some(future);
                return true;
            }
        }
        drop(tasks);
        drop(future);
        true
    }
}
