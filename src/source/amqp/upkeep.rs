//! Checks every few seconds that what was declared is still there. A queue without its exchange or its binding stays healthy
//! and gets nothing, and the broker sends no notice of it.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, ExchangeKind};
use tokio::time::{Sleep, sleep};

use super::config::Binding;
use super::error::{is, lost};
use super::link::{Link, short};
use crate::source::SourceError;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(5);

/// Looks whether an exchange is still there, and binds a queue to it again.
pub(in crate::source) struct Upkeep {
    /// Of its own: an error closes it.
    channel: Channel,
    binding: Binding,
    queue: ShortString,
    due: Pin<Box<Sleep>>,
    looking: Option<BoxFuture<'static, Result<(), SourceError>>>,
}

impl Upkeep {
    /// For a queue that was bound; `None` where it was not.
    pub(in crate::source) async fn start(link: &Link, binding: Option<Binding>, queue: &ShortString) -> Result<Option<Self>, SourceError> {
        let Some(binding) = binding else { return Ok(None) };
        let channel = link.channel().await?;
        Ok(Some(Self { channel, binding, queue: queue.clone(), due: Box::pin(sleep(EVERY)), looking: None }))
    }

    /// Ready only with an error: something has to be declared again.
    pub(in crate::source) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<SourceError> {
        loop {
            match &mut self.looking {
                None if self.due.poll_unpin(cx).is_pending() => return Poll::Pending,
                None => self.looking = Some(Box::pin(look(self.channel.clone(), self.binding.clone(), self.queue.clone()))),
                Some(looking) => match looking.poll_unpin(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(error)) => return Poll::Ready(error),
                    Poll::Ready(Ok(())) => {
                        self.looking = None;
                        self.due = Box::pin(sleep(EVERY));
                    }
                },
            }
        }
    }
}

/// Has no time limit: the answers follow messages that may wait to be taken. A broker that is gone is noticed elsewhere.
async fn look(channel: Channel, binding: Binding, queue: ShortString) -> Result<(), SourceError> {
    let exchange = &binding.exchange;
    // Only looks: declaring the exchange here would hide that messages were missed.
    let passive = ExchangeDeclareOptions { passive: true, durable: true, ..ExchangeDeclareOptions::default() };
    let found = channel.exchange_declare(short(exchange), ExchangeKind::default(), passive, FieldTable::default()).await;
    let missing = |e| match is(&e, AMQPSoftError::NOTFOUND) {
        true => SourceError::missing(format!("exchange `{exchange}` was deleted")),
        false => lost(&queue, Some(e)),
    };
    found.map_err(missing)?;
    // Nothing happens where it is bound.
    for key in &binding.keys {
        let bound = channel.queue_bind(queue.clone(), short(exchange), short(key), QueueBindOptions::default(), FieldTable::default());
        bound.await.map_err(missing)?;
    }
    Ok(())
}
