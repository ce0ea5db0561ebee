//! Acknowledging in batches, beside the reading.
//!
//! Each acknowledgement costs the library a round through its thread, so many messages share one, and reading does not
//! wait for it. It belongs to one channel: what another channel delivered is never acknowledged here.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use lapin::Channel;
use lapin::options::BasicAckOptions;
use tokio::time::{Instant, Sleep};

/// So many messages are acknowledged at once, without waiting for more.
const BATCH: u64 = 100;
/// For the last ones.
const LEAVE: Duration = Duration::from_millis(300);

/// What of a channel has been acknowledged.
pub(in crate::source) struct Acks {
    channel: Channel,
    /// At once when so many wait.
    batch: u64,
    /// At the latest after this long.
    delay: Duration,
    /// Handed out.
    taken: u64,
    /// Of these, in the window.
    covered: u64,
    /// Of these, acknowledged.
    sent: u64,
    due: Option<Pin<Box<Sleep>>>,
    flight: Option<BoxFuture<'static, lapin::Result<()>>>,
}

impl Acks {
    /// For a channel with this prefetch: acknowledgements never wait for more than it lets through.
    pub(in crate::source) fn new(channel: Channel, prefetch: u16, delay: Duration) -> Self {
        let batch = (u64::from(prefetch) / 4).clamp(1, BATCH);
        Self { channel, batch, delay, taken: 0, covered: 0, sent: 0, due: None, flight: None }
    }

    /// The channel that they belong to.
    pub(in crate::source) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// A message was handed out.
    pub(in crate::source) fn took(&mut self, tag: u64) {
        self.taken = tag;
    }

    /// A message was passed over: it is done with as soon as those before it are.
    pub(in crate::source) fn skipped(&mut self, tag: u64) {
        let done = self.covered == self.taken;
        self.taken = tag;
        if done {
            self.cover();
        }
    }

    /// All that was handed out is in the window.
    pub(in crate::source) fn cover(&mut self) {
        self.covered = self.taken;
        if self.covered > self.sent && self.due.is_none() {
            self.due = Some(Box::pin(tokio::time::sleep_until(Instant::now() + self.delay)));
        }
    }

    /// Sends what is due. Ready only with an error: the channel is gone.
    pub(in crate::source) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<lapin::Error> {
        loop {
            if let Some(flight) = &mut self.flight {
                match flight.poll_unpin(cx) {
                    Poll::Ready(Ok(())) => self.flight = None,
                    Poll::Ready(Err(e)) => return Poll::Ready(e),
                    Poll::Pending => return Poll::Pending,
                }
            }
            let Some(due) = &mut self.due else { return Poll::Pending };
            if self.covered - self.sent < self.batch && due.poll_unpin(cx).is_pending() {
                return Poll::Pending;
            }
            self.send();
        }
    }

    fn send(&mut self) {
        self.due = None;
        self.sent = self.covered;
        let (channel, tag) = (self.channel.clone(), self.sent);
        self.flight = Some(Box::pin(async move { channel.basic_ack(tag, BasicAckOptions { multiple: true }).await }));
    }

    /// Sends the rest before the connection is closed, unless the broker does not take it.
    pub(in crate::source) async fn leave(&mut self) {
        match tokio::time::timeout(LEAVE, self.finish()).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::debug!(error = %e, "last acknowledgements failed"),
            Err(_) => tracing::debug!("a broker did not take the last acknowledgements"),
        }
    }

    async fn finish(&mut self) -> lapin::Result<()> {
        if let Some(flight) = self.flight.take() {
            flight.await?;
        }
        if self.covered > self.sent {
            self.send();
        }
        match self.flight.take() {
            Some(flight) => flight.await,
            None => Ok(()),
        }
    }
}
