//! What readers of queues and of streams share: a consumer, its acknowledgements, the upkeep of what feeds it, and the round in
//! which these are polled.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use lapin::Consumer;
use lapin::message::Delivery;
use lapin::types::ShortString;

use super::acks::Acks;
use super::error::lost;
use super::link::Link;
use super::recurring::Recurring;
use crate::source::{Item, SourceError};

/// So many bytes of payloads are handed out at a time, and one message more.
const BATCH: usize = 4 << 20;

/// A consumer of a queue or a stream.
pub(in crate::source) struct Feed {
    pub(in crate::source) consumer: Consumer,
    pub(in crate::source) acks: Acks,
    pub(in crate::source) upkeep: Option<Recurring>,
    /// Of its password.
    pub(in crate::source) renewal: Option<Recurring>,
    pub(in crate::source) queue: ShortString,
    /// The number of the consumer's channel.
    pub(in crate::source) channel: u16,
    pub(in crate::source) link: Arc<Link>,
}

/// A message that came.
pub(in crate::source) struct Came {
    pub(in crate::source) delivery: Delivery,
    /// Its routing key, if that is not UTF-8.
    odd: Option<Box<[u8]>>,
}

impl Came {
    /// Its routing key.
    pub(in crate::source) fn key(&self) -> &[u8] {
        self.odd.as_deref().unwrap_or(self.delivery.routing_key.as_str().as_bytes())
    }
}

impl Feed {
    /// What comes next.
    pub(in crate::source) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Came, SourceError>> {
        let delivery = match ready!(self.consumer.poll_next_unpin(cx)) {
            Some(Ok(delivery)) => delivery,
            Some(Err(e)) => return Poll::Ready(Err(lost(&self.queue, Some(e)))),
            None => return Poll::Ready(Err(lost(&self.queue, None))),
        };
        if self.link.flow().meters(self.channel) {
            self.link.flow().took(delivery.data.len());
        }
        Poll::Ready(Ok(self.came(delivery)))
    }

    /// A delivery with its routing key.
    pub(in crate::source) fn came(&self, delivery: Delivery) -> Came {
        let odd = self.link.odd().take(self.channel, delivery.delivery_tag);
        Came { delivery, odd }
    }

    /// Sends acknowledgements that are due, and looks after what feeds the consumer. Ready only with an error.
    pub(in crate::source) fn poll_duties(&mut self, cx: &mut Context<'_>) -> Poll<SourceError> {
        if let Poll::Ready(e) = self.acks.poll(cx) {
            return Poll::Ready(lost(&self.queue, Some(e)));
        }
        let recurring = [&mut self.renewal, &mut self.upkeep].into_iter().flatten();
        match recurring.map(|recurring| recurring.poll(&self.link, cx)).find(Poll::is_ready) {
            Some(ready) => ready,
            None => Poll::Pending,
        }
    }

    /// Closes the connection, unless others use it.
    pub(in crate::source) async fn close(self) {
        let Self { consumer, acks, upkeep, renewal, link, .. } = self;
        drop((acks, upkeep, renewal));
        if let Some(link) = Arc::into_inner(link) {
            link.close().await;
        }
        drop(consumer);
    }
}

/// A reader that goes step by step.
pub(in crate::source) trait Reads: Send {
    fn feed(&mut self) -> &mut Feed;
    /// Takes what comes next; pending where nothing does.
    fn poll_step(&mut self, cx: &mut Context<'_>, batch: &mut Vec<Item>) -> Poll<Result<(), SourceError>>;
    /// Does what is due beside reading. Ready only with an error.
    fn poll_duties(&mut self, cx: &mut Context<'_>) -> Poll<SourceError> {
        self.feed().poll_duties(cx)
    }
}

/// Waits for something, then appends all that is ready, at most about `limit` items. What the socket brings meanwhile is ready too,
/// so large messages are bounded by their bytes.
pub(in crate::source) fn next<'a>(
    reader: &'a mut impl Reads,
    batch: &'a mut Vec<Item>,
    limit: usize,
) -> BoxFuture<'a, Result<(), SourceError>> {
    let before = batch.len();
    Box::pin(poll_fn(move |cx| {
        let (mut seen, mut bytes) = (before, 0);
        while batch.len() - before < limit && bytes < BATCH {
            match reader.poll_step(cx, batch) {
                Poll::Pending => break,
                Poll::Ready(taken) => taken?,
            }
            bytes += batch[seen..].iter().map(Item::payload_len).sum::<usize>();
            seen = batch.len();
        }
        if let Poll::Ready(error) = reader.poll_duties(cx) {
            return Poll::Ready(Err(error));
        }
        if batch.len() > before { Poll::Ready(Ok(())) } else { Poll::Pending }
    }))
}
