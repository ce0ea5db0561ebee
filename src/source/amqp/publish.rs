//! Publishing with a source's settings: what `brokercast publish` does.

use bytes::Bytes;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Confirmation};

use super::error::failed;
use super::link::{Link, answer, short};
use super::{Amqp, topology};
use crate::event::Timestamp;
use crate::source::SourceError;

const PERSISTENT: u8 = 2;

/// Publishes one message and returns when the broker has it.
///
/// # Errors
/// Also while an alarm of the broker blocks publishing, where no queue takes the message, and where the source reads an existing queue
/// and `key` is not its name: what is published to a queue itself arrives under the queue's name.
pub(in crate::source) async fn publish(source: &Amqp, key: &str, payload: Bytes) -> Result<(), SourceError> {
    let routing_key = ShortString::try_new(key)
        .map_err(|e| SourceError::configuration("the subject is too long for a routing key of RabbitMQ").because(e))?;
    if let Some(queue) = source.publishes_only().filter(|queue| queue != key) {
        return Err(SourceError::configuration(format!(
            "this source reads queue `{queue}`, to which only subject `{queue}` can be published"
        )));
    }
    let link = Link::open(&source.config.broker, &source.name).await?;
    let exchange = match source.config.binding() {
        Some(binding) => {
            topology::exchange(&link, binding, source).await?;
            short(&binding.exchange)
        }
        None => ShortString::default(),
    };
    let channel = link.channel().await?;
    // A queue that is not there, or an exchange that nothing is bound to for this key, must not swallow it.
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let failed = |e| failed("the broker did not take the message", e);
    answer("asking for confirmations", channel.confirm_select(ConfirmSelectOptions::default())).await?.map_err(failed)?;
    let properties = BasicProperties::default().with_delivery_mode(PERSISTENT).with_timestamp(Timestamp::now().as_millis() / 1000);
    let publishing = async { channel.basic_publish(exchange, routing_key, options, &payload, properties).await?.await };
    let confirmation = tokio::select! {
        biased;
        confirmed = answer("publishing", publishing) => confirmed?.map_err(failed)?,
        reason = link.blocked() => {
            let what = format!("the broker has blocked publishing because of an alarm ({reason}), and may still take the message later");
            return Err(SourceError::lost(what));
        }
    };
    link.close().await;
    match confirmation {
        Confirmation::Ack(None) => Ok(()),
        Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
            let said = &returned.reply_text;
            Err(SourceError::missing(format!("the broker gave the message back: {said} (does a queue that is there take this subject?)")))
        }
        Confirmation::Nack(None) | Confirmation::NotRequested => Err(SourceError::lost("the broker did not take the message")),
    }
}
