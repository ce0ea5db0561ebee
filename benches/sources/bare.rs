//! The loop that only counts: what the client libraries give when nothing is done with a message.
//!
//! A process of its own. Prefetch, acknowledging and pulling are as in brokercast's sources.

use std::io::BufRead as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::jetstream::{self, consumer};
use futures_util::StreamExt as _;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties};

use super::Kind;

/// The argument with which this program is that loop.
pub(super) const ARGUMENT: &str = "counting-loop";

/// As brokercast asks for.
const PULL: usize = 4096;
const PULL_BYTES: usize = 32 << 20;
const PREFETCH: u16 = 1000;
const ACKNOWLEDGE: u64 = 100;

/// Counts until standard input ends; answers each line there with the count. The first answer comes when it consumes.
pub(super) async fn run(kind: Kind, url: &str, name: &str) {
    let count = Arc::new(AtomicU64::new(0));
    match kind {
        Kind::Core => {
            let client = async_nats::connect(url).await.unwrap();
            let mut messages = client.subscribe(format!("{name}.>")).await.unwrap();
            client.flush().await.unwrap();
            answer(&count);
            while messages.next().await.is_some() {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
        Kind::JetStream => {
            let client = async_nats::connect(url).await.unwrap();
            let stream = jetstream::new(client).get_stream(name).await.unwrap();
            let config = consumer::pull::Config {
                deliver_policy: consumer::DeliverPolicy::New,
                ack_policy: consumer::AckPolicy::None,
                inactive_threshold: Duration::from_secs(60),
                num_replicas: 1,
                memory_storage: true,
                ..consumer::pull::Config::default()
            };
            let consumer = stream.create_consumer(config).await.unwrap();
            let pulling = consumer.stream().max_messages_per_batch(PULL).max_bytes_per_batch(PULL_BYTES);
            let mut messages = pulling.expires(Duration::from_secs(30)).heartbeat(Duration::from_secs(3)).messages().await.unwrap();
            answer(&count);
            while let Some(message) = messages.next().await {
                message.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
        Kind::Queue | Kind::Stream => {
            let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
            let channel = connection.create_channel().await.unwrap();
            channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.unwrap();
            let mut table = FieldTable::default();
            if kind == Kind::Stream {
                table.insert("x-stream-offset".into(), AMQPValue::LongString("next".into()));
            }
            let consuming = channel.basic_consume(name.into(), "".into(), BasicConsumeOptions::default(), table);
            let mut deliveries = consuming.await.unwrap();
            answer(&count);
            while let Some(delivery) = deliveries.next().await {
                let tag = delivery.unwrap().delivery_tag;
                count.fetch_add(1, Ordering::Relaxed);
                if tag.is_multiple_of(ACKNOWLEDGE) {
                    channel.basic_ack(tag, BasicAckOptions { multiple: true }).await.unwrap();
                }
            }
        }
    }
}

fn answer(count: &Arc<AtomicU64>) {
    println!("0");
    let count = count.clone();
    std::thread::spawn(move || {
        for _ in std::io::stdin().lock().lines() {
            println!("{}", count.load(Ordering::Relaxed));
        }
        std::process::exit(0);
    });
}
