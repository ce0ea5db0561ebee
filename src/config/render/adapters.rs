//! The settings of adapters that have defaults, as they count: what `check` shows beside what was written.
//!
//! Every value is written as it could stand in a file. No secret has a default, so none is here.

use serde_json::{Value, json};

use crate::config::value::{show_duration, show_size};
use crate::source::AdapterConfig;
use crate::source::amqp::{self, ExchangeType, Origin, QueueType};
use crate::source::nats;

pub(super) fn settings(adapter: &AdapterConfig) -> Value {
    match adapter {
        AdapterConfig::Ticker(config) => json!({ "every": show_duration(config.every) }),
        AdapterConfig::Http(_) => Value::Null,
        AdapterConfig::Nats(config) => nats(config),
        AdapterConfig::Amqp(config) => amqp(config),
    }
}

fn nats(config: &nats::Config) -> Value {
    let mut settings = json!({ "name": config.name });
    if let Some(limits) = config.jetstream.as_ref().and_then(|jetstream| jetstream.create) {
        settings["jetstream"]["create"] = json!({
            "max_age": show_duration(limits.max_age),
            "max_bytes": bytes(limits.max_bytes),
            "replicas": limits.replicas,
        });
    }
    settings
}

fn amqp(config: &amqp::Config) -> Value {
    let mut settings = json!({ "prefetch": config.prefetch });
    let binding = match &config.origin {
        Origin::Exclusive(binding) => Some(binding),
        Origin::Named { declare: None, .. } => None,
        Origin::Named { declare: Some(declare), .. } => {
            settings["queue_type"] = match declare.queue_type {
                QueueType::Classic => "classic",
                QueueType::Quorum => "quorum",
                QueueType::Stream => "stream",
            }
            .into();
            // Other queues have no such bounds, and must not be given any.
            if declare.queue_type == QueueType::Stream {
                settings["max_age"] = show_duration(declare.max_age).into();
                settings["max_bytes"] = bytes(declare.max_bytes).into();
            }
            declare.binding.as_ref()
        }
    };
    if let Some(binding) = binding {
        settings["exchange_type"] = match binding.kind {
            ExchangeType::Topic => "topic",
            ExchangeType::Direct => "direct",
            ExchangeType::Fanout => "fanout",
            ExchangeType::Headers => "headers",
        }
        .into();
        settings["binding_keys"] = json!(binding.keys);
    }
    settings
}

fn bytes(bytes: u64) -> String {
    usize::try_from(bytes).map_or_else(|_| bytes.to_string(), show_size)
}
