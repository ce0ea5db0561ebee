//! The life of a core connection after it was subscribed: messages, the gaps for what the library dropped, refused subjects,
//! and the way to another server when this one is about to stop.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::task::unconstrained;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::inbox::Taken;
use super::moving::Moving;
use super::{Core, Subscribed};
use crate::event::{Gap, GapReason};
use crate::source::{Connection, Item, SourceError};

/// Time between looks at a connection that says nothing.
const TICK: Duration = Duration::from_secs(1);

pub(super) struct Reading {
    core: Arc<Core>,
    open: Subscribed,
    moving: Moving,
    tick: Interval,
    /// Times that a queue was full, as far as that is known here.
    slow: u64,
    /// Since when messages may be missing without a gap.
    suspected: Option<Instant>,
    /// Messages that gaps have accounted for.
    lost: u64,
}

fn gap(reason: GapReason) -> Item {
    Item::Gap(Gap { reason, from: None, to: None, position: None })
}

impl Reading {
    pub(super) fn new(core: Arc<Core>, open: Subscribed) -> Self {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { core, open, moving: Moving::No, tick, slow: 0, suspected: None, lost: 0 }
    }

    /// A gap for what the library has dropped, behind what it dropped it for. `received` is the count from before the
    /// last look into the queues, where that found them empty.
    fn dropped(&mut self, received: Option<u64>) -> Option<Item> {
        let slow = self.open.wire.life.borrow().slow;
        if std::mem::replace(&mut self.slow, slow) != slow {
            self.suspected.get_or_insert_with(Instant::now);
        }
        let missing = received.map(|received| received.saturating_sub(self.open.inbox.taken));
        let since = self.suspected?;
        match missing {
            Some(missing) => {
                self.suspected = None;
                if std::mem::replace(&mut self.lost, missing) >= missing {
                    return None;
                }
            }
            // A reader that never empties its queues has to hand out the gap all the same.
            None if since.elapsed() > TICK => self.suspected = Some(Instant::now()),
            None => return None,
        }
        Some(gap(GapReason::Overflow))
    }

    /// What is done now and then. Cancel safe.
    async fn look_after(&mut self, batch: &mut Vec<Item>) -> Result<(), SourceError> {
        if self.open.inbox.look_after(&self.open.wire.client).await? {
            // A subject that was refused for a while is read again.
            batch.push(gap(GapReason::Reconnect));
        }
        if self.moving.look_after().await.is_some_and(|slow| slow > 0) {
            batch.push(gap(GapReason::Overflow));
        }
        if matches!(self.moving, Moving::No) && self.open.wire.life.borrow().leaving {
            let core = self.core.clone();
            tracing::info!(source = %core.name, "the server is about to stop: subscribing at another one");
            self.moving = Moving::to(Box::pin(async move { core.open().await }));
        }
        Ok(())
    }

    /// Goes over to another server, if it was found.
    fn take_over(&mut self) {
        match std::mem::replace(&mut self.moving, Moving::No) {
            Moving::Opened { opened: Ok(new), twins } => {
                let old = std::mem::replace(&mut self.open, *new);
                (self.slow, self.suspected, self.lost) = (0, None, 0);
                self.moving = Moving::both(old, twins, self.core.config.queue_group.is_some());
            }
            Moving::Opened { opened: Err(error), .. } => {
                let error = crate::support::causes::chain(&error);
                tracing::warn!(source = %self.core.name, error, "the server is about to stop, and no other one was found: trying again");
            }
            other => self.moving = other,
        }
    }
}

impl Connection for Reading {
    fn next<'a>(&'a mut self, batch: &'a mut Vec<Item>, limit: usize) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let before = batch.len();
            loop {
                let received = self.open.wire.received();
                let Self { open: Subscribed { wire, inbox }, moving, tick, .. } = self;
                let taken = tokio::select! {
                    biased;
                    // The scheduler's budget would look like an empty queue.
                    taken = unconstrained(poll_fn(|cx| moving.poll_take(inbox, cx, batch, limit))) => taken,
                    changed = wire.life.changed() => if changed.is_ok() { Taken::All } else { Taken::Ended },
                    _ = tick.tick() => {
                        // Boxed, as it is rare: every call of `next` would otherwise make room for it.
                        Box::pin(self.look_after(batch)).await?;
                        Taken::All
                    }
                };
                batch.extend(self.dropped(if matches!(taken, Taken::Some) { None } else { Some(received) }));
                let refused = self.open.inbox.hear(&self.open.wire);
                self.take_over();
                if batch.len() > before {
                    return Ok(());
                }
                if let Some(error) = self.open.wire.end() {
                    return Err(error);
                }
                refused?;
                if matches!(taken, Taken::Ended) {
                    return Err(SourceError::lost("the connection has ended"));
                }
            }
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            drop(self.open.inbox);
            self.open.wire.close().await;
        })
    }
}
