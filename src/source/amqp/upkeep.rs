//! Checks every few seconds that what was declared is still there, and how much waits in the queue. A queue without its exchange
//! or its binding stays healthy and gets nothing, and the broker sends no notice of it.

use std::pin::Pin;
use std::sync::Arc;
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
use super::topology::{Memory, look_for_queue};
use crate::source::SourceError;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(5);

/// Looks whether an exchange is still there, and binds a queue to it again.
pub(in crate::source) struct Upkeep {
    link: Arc<Link>,
    /// With its channel, which an error closes. `None`: nothing is known to feed the queue.
    binding: Option<(Channel, Binding)>,
    queue: ShortString,
    /// Where it is noted how much waits in the queue.
    memory: Option<Arc<Memory>>,
    due: Pin<Box<Sleep>>,
    looking: Option<BoxFuture<'static, Result<(), SourceError>>>,
}

impl Upkeep {
    /// For a queue that was bound, or whose depth is noted; `None` for any other.
    pub(in crate::source) async fn start(
        link: &Arc<Link>,
        binding: Option<Binding>,
        queue: &ShortString,
        memory: Option<&Arc<Memory>>,
    ) -> Result<Option<Self>, SourceError> {
        if binding.is_none() && memory.is_none() {
            return Ok(None);
        }
        let binding = match binding {
            Some(binding) => Some((link.channel().await?, binding)),
            None => None,
        };
        let (link, queue, memory) = (link.clone(), queue.clone(), memory.cloned());
        // The first look is at once, for what waits to be known.
        Ok(Some(Self { link, binding, queue, memory, due: Box::pin(sleep(Duration::ZERO)), looking: None }))
    }

    /// Ready only with an error: something has to be declared again.
    pub(in crate::source) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<SourceError> {
        loop {
            match &mut self.looking {
                None if self.due.poll_unpin(cx).is_pending() => return Poll::Pending,
                None => self.looking = Some(self.look()),
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

impl Upkeep {
    fn look(&self) -> BoxFuture<'static, Result<(), SourceError>> {
        let (link, binding, queue, memory) = (self.link.clone(), self.binding.clone(), self.queue.clone(), self.memory.clone());
        Box::pin(async move {
            if let Some((channel, binding)) = binding {
                look(channel, binding, queue.clone()).await?;
            }
            if let Some(memory) = memory {
                // Reading goes on where this cannot be told.
                let found = look_for_queue(&link, queue.as_str()).await.ok().and_then(Result::ok);
                memory.waits(found.map(|queue| queue.message_count().into()));
            }
            Ok(())
        })
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
