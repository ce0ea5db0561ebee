//! From a server that is about to stop to another one, without a hole: subscribed at both for a moment.
//!
//! What comes twice is dropped (`twins.rs`). Knows neither settings nor gaps.

use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::Subscribed;
use super::inbox::{Inbox, Taken};
use super::twins::{APART, Side, Twins};
use crate::source::{Item, SourceError};

/// How long both are read: until every server of the cluster knows the new subscriptions, and longer than servers are apart.
const BOTH: Duration = Duration::from_millis(1500);
/// How long the old server may take to send what it has.
const LEAVING: Duration = Duration::from_secs(3);

/// How far the way to another server has come.
pub(super) enum Moving {
    No,
    /// Subscribing there. What comes meanwhile may come there too.
    Opening {
        opening: BoxFuture<'static, Result<Subscribed, SourceError>>,
        twins: Twins,
    },
    /// Subscribed there, or not: to be taken over.
    Opened {
        opened: Result<Box<Subscribed>, SourceError>,
        twins: Twins,
    },
    /// The old one is still read. With a queue group the server itself gives each message to one of both.
    Both {
        old: Box<Subscribed>,
        since: Instant,
        left: bool,
        ended: bool,
        twins: Option<Twins>,
    },
    /// The old one has ended, and what it brought may still come on the new one.
    After {
        since: Instant,
        twins: Twins,
    },
}

impl Moving {
    /// Begins to subscribe at another server.
    pub(super) fn to(opening: BoxFuture<'static, Result<Subscribed, SourceError>>) -> Self {
        Self::Opening { opening, twins: Twins::default() }
    }

    /// Begins to read both. With a `group` nothing comes twice.
    pub(super) fn both(old: Subscribed, mut twins: Twins, group: bool) -> Self {
        twins.renew(Instant::now());
        let twins = (!group).then_some(twins);
        Self::Both { old: Box::new(old), since: Instant::now(), left: false, ended: false, twins }
    }

    /// Takes from the old connection, if there is one, then from the new one.
    pub(super) fn poll_take(&mut self, inbox: &mut Inbox, cx: &mut Context<'_>, batch: &mut Vec<Item>, limit: usize) -> Poll<Taken> {
        match self {
            Self::No | Self::Opened { .. } => inbox.poll_take(cx, batch, limit),
            Self::Opening { opening, twins } => match opening.poll_unpin(cx) {
                Poll::Ready(opened) => {
                    *self = Self::Opened { opened: opened.map(Box::new), twins: std::mem::take(twins) };
                    Poll::Ready(Taken::All)
                }
                Poll::Pending => {
                    let before = batch.len();
                    let taken = inbox.poll_take(cx, batch, limit);
                    without_twins(Some(twins), batch, before, Side::Old);
                    taken
                }
            },
            Self::Both { old, ended, twins, .. } => {
                let before = batch.len();
                let first = if *ended { Poll::Pending } else { old.inbox.poll_take(cx, batch, limit) };
                *ended |= matches!(first, Poll::Ready(Taken::Ended));
                without_twins(twins.as_mut(), batch, before, Side::Old);
                let middle = batch.len();
                let second = inbox.poll_take(cx, batch, limit.saturating_sub(middle - before));
                without_twins(twins.as_mut(), batch, middle, Side::New);
                match (first, second) {
                    (_, Poll::Ready(Taken::Ended)) => Poll::Ready(Taken::Ended),
                    (Poll::Ready(Taken::Some), _) | (_, Poll::Ready(Taken::Some)) => Poll::Ready(Taken::Some),
                    (Poll::Pending, Poll::Pending) => Poll::Pending,
                    _ => Poll::Ready(Taken::All),
                }
            }
            Self::After { twins, .. } => {
                let before = batch.len();
                let taken = inbox.poll_take(cx, batch, limit);
                without_twins(Some(twins), batch, before, Side::New);
                taken
            }
        }
    }

    /// Leaves the old connection when both have been read long enough. Returns how often queues of a connection that has
    /// ended by now were full.
    pub(super) async fn look_after(&mut self) -> Option<u64> {
        match self {
            Self::Both { old, since, left: left @ false, .. } if since.elapsed() >= BOTH => {
                *left = true;
                // Then it ends behind the last message. An error means that it has ended.
                old.wire.client.drain().await.unwrap_or_default();
                None
            }
            Self::Both { old, since, ended, twins, .. } if *ended || since.elapsed() >= BOTH + LEAVING => {
                let slow = old.wire.life.borrow().slow;
                *self = match twins.take() {
                    Some(twins) => Self::After { since: Instant::now(), twins },
                    None => Self::No,
                };
                Some(slow)
            }
            Self::After { since, .. } if since.elapsed() >= APART => {
                *self = Self::No;
                None
            }
            _ => None,
        }
    }
}

/// Drops those from an index on that have come on the other connection.
fn without_twins(twins: Option<&mut Twins>, batch: &mut Vec<Item>, from: usize, side: Side) {
    let Some(twins) = twins else { return };
    let (now, mut index) = (Instant::now(), 0);
    batch.retain(|item| {
        index += 1;
        index <= from || !matches!(item, Item::Message(message) if twins.has(message, side, now))
    });
}
