//! The conformance suite, for queues and for streams.

use std::sync::Arc;

use brokercast::internals::Adapter;
use futures_util::future::LocalBoxFuture;
use lapin::options::QueueDeleteOptions;
use serde_json::json;

use crate::support::conformance::{LogRig, Rig, acknowledges_after_the_window, conformance, durable_conformance, retention_conformance};
use crate::support::drive::source;
use crate::support::rabbit::{Amqp, Rabbit};

/// A node, and the source of one queue or stream on it.
struct Node {
    rabbit: Rabbit,
    client: Option<Amqp>,
    config: serde_json::Value,
    /// Where messages are published: exchange and routing key.
    into: (&'static str, &'static str),
}

impl Node {
    fn queue(rabbit: Rabbit) -> Self {
        Self { rabbit, client: None, config: json!({ "queue": "jobs", "declare": true }), into: ("", "jobs") }
    }

    fn stream(rabbit: Rabbit, exchange: &'static str, max_bytes: &str) -> Self {
        let config = json!({ "exchange": exchange, "queue_type": "stream", "max_bytes": max_bytes });
        Self { rabbit, client: None, config, into: (exchange, "t") }
    }

    async fn client(&mut self) -> &Amqp {
        if self.client.is_none() {
            self.client = Some(self.rabbit.client().await);
        }
        self.client.as_ref().unwrap()
    }
}

impl Rig for Node {
    fn adapter(&self) -> Arc<dyn Adapter> {
        let mut config = self.config.clone();
        config["url"] = self.rabbit.url().into();
        source(if self.into.0.is_empty() { "jobs" } else { self.into.0 }, config)
    }

    fn publish<'a>(&'a mut self, body: &'a str) -> LocalBoxFuture<'a, ()> {
        let (exchange, key) = self.into;
        Box::pin(async move { self.client().await.publish(exchange, key, body.as_bytes()).await })
    }

    fn kill(&mut self) -> LocalBoxFuture<'_, bool> {
        self.client = None;
        self.rabbit.kill();
        Box::pin(async { true })
    }

    fn revive(&mut self) -> LocalBoxFuture<'_, ()> {
        Box::pin(self.rabbit.restart())
    }
}

impl LogRig for Node {
    fn delete(&mut self) -> LocalBoxFuture<'_, ()> {
        let stream = format!("brokercast.{}", self.into.0);
        Box::pin(async move {
            let channel = &self.client().await.channel;
            channel.queue_delete(stream.into(), QueueDeleteOptions::default()).await.unwrap();
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_conforms() {
    let mut node = Node::queue(Rabbit::start().await);
    acknowledges_after_the_window(&mut node).await;
    conformance(&mut node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_conforms_as_a_log_and_as_a_source() {
    let mut node = Node::stream(Rabbit::start().await, "small", "64KiB");
    retention_conformance(&mut node).await;
    let mut node = Node::stream(node.rabbit, "log", "1GiB");
    durable_conformance(&mut node).await;
    conformance(&mut Node::stream(node.rabbit, "trades", "1GiB")).await;
}
