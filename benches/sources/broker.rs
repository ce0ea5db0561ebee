//! The broker, and what piles up at it.

use std::time::Duration;

use async_nats::jetstream;
use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};

use super::support::rabbit::Amqp;
use super::support::{Nats, Rabbit, within};
use super::{Kind, PAYLOAD};

/// For all to be stored.
const PATIENCE: Duration = Duration::from_secs(60);

/// A private broker with a connection to publish on.
pub(super) struct Broker {
    kind: Kind,
    // Dropped before the broker.
    publisher: Publisher,
    url: String,
    _process: (Option<Nats>, Option<Rabbit>),
}

enum Publisher {
    Nats(async_nats::Client),
    Amqp(Amqp),
}

impl Broker {
    pub(super) async fn start(kind: Kind) -> Self {
        match kind {
            Kind::Core | Kind::JetStream => {
                // What a stopped consumer does not take waits in the server.
                let nats = Nats::with("max_pending: 1GB\nwrite_deadline: \"60s\"").await;
                let publisher = Publisher::Nats(nats.client().await);
                Self { kind, publisher, url: nats.url(), _process: (Some(nats), None) }
            }
            Kind::Queue | Kind::Stream => {
                let rabbit = Rabbit::start().await;
                let publisher = Publisher::Amqp(rabbit.client().await);
                Self { kind, publisher, url: rabbit.url(), _process: (None, Some(rabbit)) }
            }
        }
    }

    pub(super) fn url(&self) -> String {
        self.url.clone()
    }

    /// Makes what brokercast makes for itself.
    pub(super) async fn prepare(&self, name: &str) {
        match (&self.publisher, self.kind) {
            (Publisher::Nats(client), Kind::JetStream) => {
                let config = jetstream::stream::Config {
                    name: name.to_owned(),
                    subjects: vec![format!("{name}.>")],
                    max_age: Duration::from_secs(24 * 3600),
                    max_bytes: 1 << 30,
                    allow_direct: true,
                    ..jetstream::stream::Config::default()
                };
                jetstream::new(client.clone()).create_stream(config).await.unwrap();
            }
            (Publisher::Nats(_), _) => {}
            (Publisher::Amqp(amqp), kind) => {
                let mut table = FieldTable::default();
                if kind == Kind::Stream {
                    table.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
                }
                let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
                amqp.channel.queue_declare(name.into(), options, table).await.unwrap();
            }
        }
    }

    /// Publishes, and returns when the broker has everything.
    pub(super) async fn fill(&self, name: &str, messages: u64) {
        let payload = format!("{{\"text\":\"{}\"}}", "x".repeat(PAYLOAD - 11));
        match &self.publisher {
            Publisher::Nats(client) => {
                let stored = self.stored(name).await;
                let (subject, payload) = (async_nats::Subject::from(format!("{name}.it")), bytes::Bytes::from(payload));
                for _ in 0..messages {
                    client.publish(subject.clone(), payload.clone()).await.unwrap();
                }
                client.flush().await.unwrap();
                if stored.is_some() {
                    let due = stored.map(|stored| stored + messages);
                    within(PATIENCE, "the stream to hold all", async || (self.stored(name).await == due).then_some(())).await;
                }
            }
            Publisher::Amqp(amqp) => {
                let mut confirms = Vec::new();
                for _ in 0..messages {
                    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
                    let sending = amqp.channel.basic_publish("".into(), name.into(), options, payload.as_bytes(), properties);
                    confirms.push(sending.await.unwrap());
                }
                for confirm in confirms {
                    confirm.await.unwrap();
                }
            }
        }
    }

    async fn stored(&self, name: &str) -> Option<u64> {
        let (Publisher::Nats(client), Kind::JetStream) = (&self.publisher, self.kind) else { return None };
        let mut stream = jetstream::new(client.clone()).get_stream(name).await.unwrap();
        Some(stream.info().await.unwrap().state.last_sequence)
    }
}
