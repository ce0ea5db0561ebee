//! RabbitMQ super streams: several partitions as one source.

use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::Value;

use crate::support::bridge::{numbers, run};
use crate::support::rabbit::Amqp;
use crate::support::{Bridge, Rabbit, Sse, eventually};

async fn stream(client: &Amqp, name: &str) {
    let (durable, mut table) = (QueueDeclareOptions { durable: true, ..Default::default() }, FieldTable::default());
    table.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
    client.channel.queue_declare(name.into(), durable, table).await.unwrap();
}

/// Makes a partition as `rabbitmq-streams add_super_stream` does, which RabbitMQ has since 3.11.
async fn partition(client: &Amqp, number: usize) {
    let name = format!("invoices-{number}");
    stream(client, &name).await;
    let (key, none) = (number.to_string(), FieldTable::default());
    client.channel.queue_bind(name.into(), "invoices".into(), key.into(), QueueBindOptions::default(), none).await.unwrap();
}

/// Publishes these numbers, each to the partition that is its rest.
async fn publish(client: &Amqp, partitions: u64, numbers: std::ops::Range<u64>) {
    for n in numbers {
        client.publish("invoices", &(n % partitions).to_string(), format!("{{\"n\":{n}}}").as_bytes()).await;
    }
}

/// So many numbers, sorted; nothing but events may come, and those of each partition in their order.
async fn read(sse: &mut Sse, count: usize) -> Vec<u64> {
    let (mut seen, mut last) = (Vec::new(), std::collections::BTreeMap::<String, u64>::new());
    while seen.len() < count {
        let event = sse.event().await;
        assert!(!event.is_control(), "{event:?} after {seen:?}");
        let (subject, n) = (event.subject(), numbers(&[event])[0]);
        assert!(last.insert(subject, n).is_none_or(|before| before < n), "{n} after {seen:?}");
        seen.push(n);
    }
    seen.sort_unstable();
    seen
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one story, in its order")]
async fn rabbitmq_super_stream_is_one_source_that_resumes_exactly_and_grows() {
    let rabbit = Rabbit::start().await;
    let client = rabbit.client().await;
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    client.channel.exchange_declare("invoices".into(), ExchangeKind::Direct, options, FieldTable::default()).await.unwrap();
    for number in 0..3 {
        partition(&client, number).await;
    }
    // The third is empty at first.
    publish(&client, 2, 0..10).await;
    let url = rabbit.url();
    let config = format!(
        r##"
auth: {{ anonymous: {{ subscribe: [">"] }} }}
sources:
  counted: {{ amqp: {{ url: "{url}", queue: invoices, queue_type: super_stream }} }}
  named: {{ amqp: {{ url: "{url}", queue_type: super_stream, partitions: [invoices-1, invoices-2] }} }}
routes:
  - {{ match: {{ source: counted, subject: "*" }}, subject: "all.{{1}}" }}
  - {{ match: {{ source: named, subject: "*" }}, subject: "some.{{1}}" }}
"##
    );
    let mut bridge = Bridge::start(&config).await;
    let mut all = bridge.subscribe("subject=all.*&since=all").await;
    assert_eq!(read(&mut all, 10).await, (0..10).collect::<Vec<_>>());
    let id = all.last_id().to_owned();
    drop(all);
    bridge.kill();
    publish(&client, 2, 10..20).await;
    bridge.launch();
    // Before the partitions are known: the client waits for all of them.
    bridge.alive().await;
    let mut all = bridge.resume("subject=all.*", &id).await;
    assert_eq!(read(&mut all, 10).await, (10..20).collect::<Vec<_>>());
    bridge.ready().await;
    publish(&client, 3, 20..30).await;
    assert_eq!(read(&mut all, 10).await, (20..30).collect::<Vec<_>>());
    let mut some = bridge.subscribe("subject=some.*&since=all").await;
    let expected = (0..20).filter(|n| n % 2 == 1).chain((20..30).filter(|n| n % 3 > 0));
    let expected: Vec<u64> = expected.collect();
    assert_eq!(read(&mut some, expected.len()).await, expected);

    // One that is added is found, and nothing of it is missing.
    partition(&client, 3).await;
    publish(&client, 4, 30..50).await;
    assert_eq!(read(&mut all, 20).await, (30..50).collect::<Vec<_>>());
    let id = all.last_id().to_owned();
    drop(all);
    publish(&client, 4, 50..60).await;
    let mut all = bridge.resume("subject=all.*", &id).await;
    assert_eq!(read(&mut all, 10).await, (50..60).collect::<Vec<_>>());

    // From outside it is one source.
    let (_, ready) = bridge.readyz().await;
    assert_eq!(ready["sources"].as_object().unwrap().keys().collect::<Vec<_>>(), ["counted", "named"]);
    eventually("all to be counted", async || {
        let metrics = bridge.metrics().await;
        let lines = metrics.lines().filter(|line| line.starts_with("brokercast_source_messages_total") && line.contains("counted"));
        let lines: Vec<_> = lines.collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        // Twenty were read in a warm-up.
        (lines[0].ends_with(" 60")).then_some(())
    })
    .await;
    assert_eq!(bridge.metric("brokercast_source_reconnects_total", &["counted"]).await, 0.0);

    // A change of routes, and of settings, goes on where it stood.
    for (before, after) in [("all.", "each."), ("queue: invoices,", "queue: invoices, prefetch: 10,")] {
        let changed = std::fs::read_to_string(bridge.folder().join("config.yaml")).unwrap().replace(before, after);
        bridge.configure(&changed);
        let reloaded = bridge.http.post(bridge.admin_url("/reload")).send().await.unwrap();
        assert_eq!(reloaded.json::<Value>().await.unwrap()["applied"], true);
        let mut each = bridge.subscribe("subject=each.*").await;
        publish(&client, 4, 60..80).await;
        assert_eq!(read(&mut each, 20).await, (60..80).collect::<Vec<_>>());
    }
    let checked = tokio::task::spawn_blocking({
        let file = bridge.folder().join("config.yaml").display().to_string();
        move || run(&["check", "--connect", "--config", &file])
    });
    assert!(checked.await.unwrap().status.success());

    // Two of these have the same tag: found by trying names.
    for number in 0..5 {
        stream(&client, &format!("q906919-{number}")).await;
    }
    let same = format!("sources:\n  same: {{ required: false, amqp: {{ url: \"{url}\", queue: q906919, queue_type: super_stream }} }}\n");
    let changed = std::fs::read_to_string(bridge.folder().join("config.yaml")).unwrap().replace("sources:\n", &same);
    bridge.configure(&changed);
    assert_eq!(bridge.http.post(bridge.admin_url("/reload")).send().await.unwrap().status(), 200);
    let refused = bridge.source_is("same", "down").await;
    let words = "could not tell partition `q906919-4` from partition `q906919-1` of source `same`";
    assert!(refused["error"].as_str().unwrap().contains(words), "{refused}");
    assert_eq!(refused["kind"], "configuration");
}
