//! Checks every few seconds that what was declared is still there, and how much waits in the queue. A queue without its exchange
//! or its binding stays healthy and gets nothing, and the broker sends no notice of it.

use std::sync::Arc;
use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, ExchangeKind};

use super::config::Binding;
use super::error::{is, lost};
use super::link::{Link, short};
use super::recurring::Recurring;
use super::topology::{Memory, look_for_queue};
use crate::source::SourceError;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(5);
/// For how long a deleted exchange is left deleted: it is made anew when the connection is. Once it is there again another replica cannot see
/// that it was gone, and that its own queue got nothing meanwhile. Longer than [`EVERY`], so that each replica looks in this time.
const SETTLE: Duration = Duration::from_secs(6);

/// Looks whether an exchange is still there, binds a queue to it again, and notes in `memory` how much waits in the queue.
/// `None` where none of that is wanted.
pub(in crate::source) async fn upkeep(
    link: &Link,
    binding: Option<Binding>,
    queue: &ShortString,
    memory: Option<&Arc<Memory>>,
) -> Result<Option<Recurring>, SourceError> {
    if binding.is_none() && memory.is_none() {
        return Ok(None);
    }
    // A channel of its own: an error closes it.
    let binding = match binding {
        Some(binding) => Some((link.channel().await?, binding)),
        None => None,
    };
    let (queue, memory) = (queue.clone(), memory.cloned());
    // The first look is at once, for what waits to be known.
    Ok(Some(Recurring::new(Duration::ZERO, EVERY, move |link| {
        let (binding, queue, memory) = (binding.clone(), queue.clone(), memory.clone());
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
    })))
}

/// Has no time limit: the answers follow messages that may wait to be taken. A broker that is gone is noticed elsewhere.
async fn look(channel: Channel, binding: Binding, queue: ShortString) -> Result<(), SourceError> {
    let exchange = &binding.exchange;
    // Only looks: declaring the exchange here would hide that messages were missed.
    let passive = ExchangeDeclareOptions { passive: true, durable: true, ..ExchangeDeclareOptions::default() };
    let found = async {
        channel.exchange_declare(short(exchange), ExchangeKind::default(), passive, FieldTable::default()).await?;
        // Nothing happens where it is bound.
        for key in &binding.keys {
            channel.queue_bind(queue.clone(), short(exchange), short(key), QueueBindOptions::default(), FieldTable::default()).await?;
        }
        Ok(())
    };
    match found.await {
        Ok(()) => Ok(()),
        Err(e) if is(&e, AMQPSoftError::NOTFOUND) => {
            tokio::time::sleep(SETTLE).await;
            Err(SourceError::missing(format!("exchange `{exchange}` was deleted")))
        }
        Err(e) => Err(lost(&queue, Some(e))),
    }
}
