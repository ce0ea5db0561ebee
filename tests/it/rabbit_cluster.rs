//! A cluster of three RabbitMQ nodes: one is killed while messages are published and read.

use std::collections::BTreeSet;
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Confirmation, Connection, ConnectionProperties};

use crate::support::bridge::{numbers, run};
use crate::support::{Bridge, Rabbit, Sse, within};

/// Publishes numbers until each of them has been confirmed. Returns how many were refused, and may be in one of both all the same.
async fn publish(url: &str, range: std::ops::Range<u64>) -> usize {
    let mut refused = 0;
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    for n in range {
        let (properties, text) = (BasicProperties::default().with_delivery_mode(2), format!("{{\"n\":{n}}}"));
        loop {
            let sending =
                channel.basic_publish("X".into(), "a".into(), BasicPublishOptions::default(), text.as_bytes(), properties.clone());
            // A queue whose leader has just died may refuse it.
            if matches!(sending.await.unwrap().await.unwrap(), Confirmation::Ack(_)) {
                break;
            }
            refused += 1;
        }
    }
    refused
}

/// Reads until all of these have come; nothing but events may. Returns how many came, and the last id.
async fn read(sse: &mut Sse, range: std::ops::Range<u64>) -> (usize, String) {
    let (mut missing, mut count): (BTreeSet<u64>, _) = (range.collect(), 0);
    let reading = async {
        while !missing.is_empty() {
            let event = sse.event().await;
            assert!(!event.is_control(), "{event:?}, {} are missing", missing.len());
            missing.remove(&numbers(&[event])[0]);
            count += 1;
        }
    };
    tokio::time::timeout(Duration::from_secs(90), reading).await.unwrap();
    (count, sse.last_id().to_owned())
}

#[tokio::test]
#[ignore = "takes three nodes a minute; scripts/test-rabbitmq4 runs it"]
async fn rabbitmq_node_that_is_killed_takes_nothing_along() {
    let mut nodes = Rabbit::cluster().await;
    let urls = nodes.each_ref().map(Rabbit::url);
    let list = urls.join("\", \"");
    let config = format!(
        r##"
auth: {{ anonymous: {{ subscribe: [">"] }} }}
server: {{ heartbeat: 1s }}
sources:
  queue: {{ amqp: {{ urls: ["{list}"], exchange: X, queue: Q, declare: true, queue_type: quorum }} }}
  stream: {{ amqp: {{ urls: ["{list}"], exchange: X, queue: S, declare: true, queue_type: stream }} }}
routes:
  - {{ match: {{ source: queue }}, subject: queue }}
  - {{ match: {{ source: stream }}, subject: stream }}
"##
    );
    let bridge = Bridge::start(&config).await;
    // Both have a replica on each node.
    for queue in ["Q", "S"] {
        within(Duration::from_secs(60), "three replicas", async || {
            let listed = nodes[1].ctl(&["-q", "list_queues", "name", "members", "--no-table-headers"]);
            let line = listed.lines().find(|line| line.starts_with(queue))?;
            (line.matches('@').count() == 3).then_some(())
        })
        .await;
    }
    let mut queue = bridge.subscribe("subject=queue").await;
    let mut stream = bridge.subscribe("subject=stream").await;
    let publishing = tokio::spawn({
        let url = urls[2].clone();
        async move { publish(&url, 0..600).await }
    });
    let (_, id) = read(&mut stream, 0..100).await;
    let mut behind = bridge.resume("subject=stream", &id).await;
    // Both sources began at the first.
    nodes[0].kill();
    read(&mut stream, 100..600).await;
    read(&mut queue, 0..600).await;
    let (count, _) = read(&mut behind, 100..600).await;
    let refused = publishing.await.unwrap();
    assert!(count <= 500 + refused, "each came once: {count}, {refused}");
    // Only what had not been acknowledged may come twice.
    assert!(bridge.metric("brokercast_source_messages_total", &["queue"]).await < 600.0 + 1100.0);
    for source in ["queue", "stream"] {
        assert!(bridge.metric("brokercast_source_reconnects_total", &[source]).await >= 1.0, "{source}");
    }
}

#[tokio::test]
#[ignore = "takes three nodes a minute; scripts/test-rabbitmq4 runs it"]
async fn rabbitmq_node_without_a_replica_is_left_for_another() {
    let nodes = Rabbit::cluster().await;
    for (node, name) in nodes.iter().zip(["P-0", "P-1"]) {
        let (durable, mut table) = (QueueDeclareOptions { durable: true, ..Default::default() }, FieldTable::default());
        table.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
        table.insert("x-queue-leader-locator".into(), AMQPValue::LongString("client-local".into()));
        table.insert("x-initial-cluster-size".into(), AMQPValue::LongInt(1));
        let client = node.client().await;
        client.channel.queue_declare(name.into(), durable, table).await.unwrap();
        for n in 0..10 {
            client.publish("", name, format!("{{\"n\":{n}}}").as_bytes()).await;
        }
    }
    let list = nodes.each_ref().map(Rabbit::url);
    let config = format!(
        r##"
auth: {{ anonymous: {{ subscribe: [">"] }} }}
sources:
  alone: {{ required: false, amqp: {{ url: "{2}", queue: P-0, queue_type: stream }} }}
  stream: {{ amqp: {{ urls: ["{1}", "{0}"], queue: P-0, queue_type: stream }} }}
  super: {{ amqp: {{ urls: ["{2}", "{1}", "{0}"], queue: P, queue_type: super_stream }} }}
routes:
  - {{ match: {{ source: super }}, subject: super }}
  - {{ match: {{ source: stream }}, subject: stream }}
"##,
        list[0], list[1], list[2]
    );
    let bridge = Bridge::start(&config).await;
    for (subject, count) in [("stream", 10), ("super", 20)] {
        let mut all = bridge.subscribe(&format!("subject={subject}&since=all")).await;
        for _ in 0..count {
            let event = all.event().await;
            assert!(!event.is_control(), "{event:?}");
        }
        assert_eq!(bridge.metric("brokercast_source_errors_total", &[subject, "configuration"]).await, 0.0);
    }
    let down = bridge.source_is("alone", "down").await;
    assert!(down["error"].as_str().unwrap().contains("runs no replica of stream `P-0`"), "{down}");
    assert_eq!(down["kind"], "lost");
    let checked = tokio::task::spawn_blocking({
        let file = bridge.folder().join("config.yaml").display().to_string();
        move || run(&["check", "--connect", "--config", &file])
    });
    let said = String::from_utf8(checked.await.unwrap().stderr).unwrap();
    assert_eq!(said.matches("runs no replica of stream `P-0`").count(), 1, "{said}");
    assert!(said.contains("sources.alone"), "{said}");
}

#[tokio::test]
#[ignore = "takes three nodes a minute; scripts/test-rabbitmq4 runs it"]
async fn rabbitmq_replica_that_is_deleted_is_left_for_another() {
    let nodes = Rabbit::cluster().await;
    let (durable, mut table) = (QueueDeclareOptions { durable: true, ..Default::default() }, FieldTable::default());
    table.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
    table.insert("x-queue-leader-locator".into(), AMQPValue::LongString("client-local".into()));
    table.insert("x-initial-cluster-size".into(), AMQPValue::LongInt(3));
    let client = nodes[0].client().await;
    client.channel.queue_declare("S".into(), durable, table).await.unwrap();
    let publish = async |range: std::ops::Range<u64>| {
        for n in range {
            client.publish("", "S", format!("{{\"n\":{n}}}").as_bytes()).await;
        }
    };
    let (other, first) = (nodes[1].url(), nodes[0].url());
    let bridge = Bridge::start(&format!(
        r##"
auth: {{ anonymous: {{ subscribe: [">"] }} }}
sources: {{ stream: {{ amqp: {{ urls: ["{other}", "{first}"], queue: S, queue_type: stream }} }} }}
"##
    ))
    .await;
    let mut live = bridge.subscribe("").await;
    publish(0..10).await;
    read(&mut live, 0..10).await;
    // The broker does not tell those who read there.
    let node = nodes[1].ctl(&["-q", "eval", "node()."]);
    let deleting = format!("rabbit_stream_queue:delete_replica(<<\"/\">>, <<\"S\">>, {}).", node.trim());
    assert!(nodes[0].ctl(&["-q", "eval", &deleting]).contains("ok"));
    publish(10..20).await;
    let (count, _) = read(&mut live, 10..20).await;
    assert_eq!(count, 10);
}
