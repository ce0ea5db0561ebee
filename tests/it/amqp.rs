//! RabbitMQ by AMQP 0-9-1, with real nodes. A node takes its time to start: the checks share them.

use std::time::Duration;

use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;

use crate::support::bridge::{numbers, run};
use crate::support::certs::Certs;
use crate::support::rabbit::Amqp;
use crate::support::{Bridge, Rabbit, Sse, eventually};

async fn declare_queue(client: &Amqp, name: &str) {
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    client.channel.queue_declare(name.into(), options, FieldTable::default()).await.unwrap();
}

/// Messages in a queue that wait for a consumer.
async fn waiting(client: &Amqp, name: &str) -> u32 {
    let options = QueueDeclareOptions { passive: true, durable: true, ..Default::default() };
    client.channel.queue_declare(name.into(), options, FieldTable::default()).await.unwrap().message_count()
}

/// The numbers of the next events, gaps of whatever source left out.
async fn next_numbers(sse: &mut Sse, count: usize) -> Vec<u64> {
    let mut seen = Vec::new();
    while seen.len() < count {
        seen.extend(numbers(&[sse.event().await]));
    }
    seen
}

async fn publish_numbers(client: &Amqp, exchange: &str, key: &str, numbers: impl IntoIterator<Item = u64>) {
    for n in numbers {
        client.publish(exchange, key, format!("{{\"n\":{n}}}").as_bytes()).await;
    }
}

#[tokio::test]
async fn exchanges_and_queues_of_a_rabbitmq_node_reach_the_browser() {
    let certs = Certs::new();
    let file = |name: &str| certs.path(name).display().to_string();
    let rabbit = Rabbit::with(&format!(
        "listeners.ssl.1 = {{tls}}\nssl_options.cacertfile = {}\nssl_options.certfile = {}\nssl_options.keyfile = {}\n\
         ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true",
        file("ca.crt"),
        file("server.crt"),
        file("server.key")
    ))
    .await;
    let url = rabbit.url();
    let tls_url = format!("amqps://127.0.0.1:{}/%2f", rabbit.tls_port());
    let config = format!(
        r##"
auth: {{ anonymous: {{ subscribe: [">"], publish: [">"] }} }}
server: {{ heartbeat: 1s }}
log: {{ filter: "info,lapin=trace", format: json }}
sources:
  trades: {{ max_payload: 4KiB, amqp: {{ url: "{url}", exchange: trades, binding_keys: ["#"] }} }}
  bound: {{ amqp: {{ url: "{url}", exchange: trades, binding_keys: ["eu.*", "us.#"] }} }}
  jobs: {{ required: false, amqp: {{ url: "{url}", queue: jobs.done }} }}
  own: {{ amqp: {{ url: "{url}", queue: own.queue, declare: true }} }}
  safe: {{ amqp: {{ url: "{tls_url}", exchange: trades, binding_keys: ["safe.#"],
           tls: {{ ca: "{}", certificate: "{}", private_key: "{}" }} }} }}
routes:
  - {{ match: {{ source: bound, subject: ">" }}, subject: "bound.{{>}}" }}
  - {{ match: {{ source: safe, subject: ">" }}, subject: "over-tls.{{>}}" }}
  - {{ match: {{ source: jobs, subject: ">" }}, subject: "from-jobs" }}
  - {{ match: {{ source: own, subject: ">" }}, subject: "from-own" }}
  - {{ match: {{ source: trades, subject: "safe.>" }}, drop: true }}
"##,
        file("ca.crt"),
        file("client.crt"),
        file("client.key")
    );
    let bridge = Bridge::start(&config).await;
    let client = rabbit.client().await;
    exchange_is_declared_and_bindings_choose(&bridge, &client).await;
    published_message_arrives_or_its_publisher_is_told(&bridge, &url).await;
    routing_keys_of_any_kind_become_subjects(&bridge, &client).await;
    too_large_message_is_a_gap(&bridge, &client).await;
    tls_source_delivers(&bridge, &client).await;
    missing_queue_is_waited_for(&bridge, &client).await;
    deleted_queue_is_set_up_again(&bridge, &client).await;
    client_library_is_heard_without_what_it_carries(&bridge);
    queue_is_emptied_only_into_the_window(bridge, &client).await;
}

async fn exchange_is_declared_and_bindings_choose(bridge: &Bridge, client: &Amqp) {
    // It exists, durable and of the topic kind: declaring it alike succeeds.
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    client.channel.exchange_declare("trades".into(), ExchangeKind::Topic, options, FieldTable::default()).await.unwrap();
    let mut bound = bridge.subscribe("subject=bound.>").await;
    let mut all = bridge.subscribe("subject=eu.>&subject=us.>&subject=asia.>&subject=us").await;
    for (n, key) in ["eu.a", "eu.a.b", "asia.a", "us", "us.a.b", "eu.c"].iter().enumerate() {
        publish_numbers(client, "trades", key, [n as u64]).await;
    }
    assert_eq!(numbers(&bound.events(4).await), [0, 3, 4, 5]);
    assert_eq!(numbers(&all.events(6).await), [0, 1, 2, 3, 4, 5]);
}

async fn published_message_arrives_or_its_publisher_is_told(bridge: &Bridge, url: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    let source = |exchange: &str| format!("  {exchange}: {{ amqp: {{ url: \"{url}\", exchange: {exchange} }} }}\n");
    std::fs::write(&file, format!("sources:\n{}{}", source("trades"), source("unbound"))).unwrap();
    let publish = async |source: &'static str| {
        let file = file.display().to_string();
        tokio::task::spawn_blocking(move || run(&["publish", "-c", &file, source, "eu.a.cli", "\"hello\""])).await.unwrap()
    };
    let mut sse = bridge.subscribe("subject=eu.a.cli").await;
    assert!(publish("trades").await.status.success());
    assert_eq!(sse.event().await.payload(), "hello");
    let output = publish("unbound").await;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("NO_ROUTE"), "{output:?}");
}

async fn routing_keys_of_any_kind_become_subjects(bridge: &Bridge, client: &Amqp) {
    let mut sse = bridge.subscribe("").await;
    let long = "k".repeat(255);
    for (key, subject) in [
        ("", "trades"),
        ("a..b", "a.%2Eb"),
        ("a b", "a%20b"),
        ("a.*.b", "a.%2A.b"),
        (">", "%3E"),
        ("50%", "50%25"),
        ("zürich.ü", "zürich.ü"),
        ("line\nbreak", "line%0Abreak"),
        ("tab\t\u{1}", "tab%09%01"),
        (&long, &long),
    ] {
        client.publish("trades", key, b"1").await;
        let event = sse.event().await;
        assert_eq!(event.subject(), subject, "{key:?}");
    }
    client.publish("trades", "bytes", &[0xff]).await;
    assert_eq!(sse.event().await.json()["data_base64"], "/w==");
}

async fn too_large_message_is_a_gap(bridge: &Bridge, client: &Amqp) {
    let mut sse = bridge.subscribe("subject=big").await;
    client.publish("trades", "big", &[b'x'; 4097]).await;
    client.publish("trades", "big", b"\"after\"").await;
    let gap = sse.event().await;
    assert_eq!((gap.reason().as_str(), gap.json()["source"].as_str()), ("oversized", Some("trades")));
    assert_eq!(sse.event().await.payload(), json!("after"));
}

async fn tls_source_delivers(bridge: &Bridge, client: &Amqp) {
    let mut sse = bridge.subscribe("subject=over-tls.>").await;
    publish_numbers(client, "trades", "safe.a", [1, 2]).await;
    assert_eq!(numbers(&sse.events(2).await), [1, 2]);
}

async fn missing_queue_is_waited_for(bridge: &Bridge, client: &Amqp) {
    let (_, body) = bridge.readyz().await;
    assert_ne!(body["sources"]["jobs"]["state"], "up", "{body}");
    declare_queue(client, "jobs.done").await;
    publish_numbers(client, "", "jobs.done", 0..3).await;
    let mut sse = bridge.subscribe("subject=from-jobs&since=all").await;
    assert_eq!(next_numbers(&mut sse, 3).await, [0, 1, 2]);
    eventually("all to be acknowledged", async || (waiting(client, "jobs.done").await == 0).then_some(())).await;
}

async fn deleted_queue_is_set_up_again(bridge: &Bridge, client: &Amqp) {
    let mut own = bridge.subscribe("subject=from-own").await;
    publish_numbers(client, "", "own.queue", [1]).await;
    assert_eq!(next_numbers(&mut own, 1).await, [1]);
    for queue in ["own.queue", "jobs.done"] {
        client.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    }
    // What brokercast declared is declared again; somebody's is waited for.
    eventually("the queue to be there again", async || {
        let connection = client.connection.create_channel().await.unwrap();
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        connection.queue_declare("own.queue".into(), options, FieldTable::default()).await.ok()
    })
    .await;
    bridge.source_is("own", "up").await;
    publish_numbers(client, "", "own.queue", [2]).await;
    assert_eq!(next_numbers(&mut own, 1).await, [2]);
    eventually("the loss of the queue to be noticed", async || (bridge.readyz().await.1["sources"]["jobs"]["state"] != "up").then_some(()))
        .await;
    declare_queue(client, "jobs.done").await;
    bridge.source_is("jobs", "up").await;
    let mut jobs = bridge.subscribe("subject=from-jobs").await;
    publish_numbers(client, "", "jobs.done", [9]).await;
    assert_eq!(next_numbers(&mut jobs, 1).await, [9]);
}

/// At its lowest level it writes each frame as numbers: the login's, and all payloads.
fn client_library_is_heard_without_what_it_carries(bridge: &Bridge) {
    let log = bridge.log();
    assert!(log.contains("lapin::"), "{log}");
    assert!(!log.contains("TRACE"), "{log}");
}

async fn queue_is_emptied_only_into_the_window(mut bridge: Bridge, client: &Amqp) {
    let mut sse = bridge.subscribe("subject=from-jobs").await;
    publish_numbers(client, "", "jobs.done", 100..150).await;
    let mut seen = next_numbers(&mut sse, 50).await;
    eventually("all to be acknowledged", async || (waiting(client, "jobs.done").await == 0).then_some(())).await;
    // Frozen, it takes messages into its sockets and acknowledges none; killed, it has lost them, and the broker has not.
    bridge.signal(rustix::process::Signal::STOP);
    publish_numbers(client, "", "jobs.done", 150..200).await;
    bridge.kill();
    let back =
        eventually("the messages to be back in the queue", async || Some(waiting(client, "jobs.done").await).filter(|count| *count >= 50))
            .await;
    bridge.restart().await;
    bridge.source_is("jobs", "up").await;
    let mut sse = bridge.subscribe("subject=from-jobs&since=all").await;
    // The last ones seen before may not have been acknowledged yet: those come again, nothing else does.
    let again = next_numbers(&mut sse, back as usize).await;
    assert_eq!(again, (200 - u64::from(back)..200).collect::<Vec<_>>());
    seen.extend(&again[back as usize - 50..]);
    assert_eq!(seen, (100..200).collect::<Vec<_>>());
    // Ended in good order, nothing is left half acknowledged.
    publish_numbers(client, "", "jobs.done", 200..250).await;
    assert_eq!(next_numbers(&mut sse, 50).await, (200..250).collect::<Vec<_>>());
    assert_eq!(bridge.terminate().await.code(), Some(0));
    eventually("the consumer to be gone", async || {
        let options = QueueDeclareOptions { passive: true, durable: true, ..Default::default() };
        let queue = client.channel.queue_declare("jobs.done".into(), options, FieldTable::default()).await.unwrap();
        (queue.consumer_count() == 0).then_some(())
    })
    .await;
    assert_eq!(waiting(client, "jobs.done").await, 0);
    client.channel.queue_purge("jobs.done".into(), QueuePurgeOptions::default()).await.unwrap();
}

#[tokio::test]
async fn rabbitmq_that_comes_late_dies_and_comes_back_is_taken_up() {
    let mut rabbit = Rabbit::absent("");
    let config = format!(
        r##"
auth: {{ anonymous: {{ subscribe: [">"], publish: [">"] }} }}
sources:
  inbox: {{ http: {{ subjects: ["demo.>"] }} }}
  trades: {{ amqp: {{ url: "{}", exchange: trades, binding_keys: ["trades.#"] }} }}
"##,
        rabbit.url()
    );
    let bridge = Bridge::builder(&config).spawn().await;
    assert_eq!(bridge.readyz().await.0, 503);
    rabbit.restart().await;
    bridge.source_is("trades", "up").await;
    let mut trades = bridge.subscribe("subject=trades.>").await;
    let mut demo = bridge.subscribe("subject=demo.>").await;
    let client = rabbit.client().await;
    publish_numbers(&client, "trades", "trades.a", [1]).await;
    assert_eq!(numbers(&trades.events(1).await), [1]);
    rabbit.kill();
    eventually("the loss to be noticed", async || (bridge.readyz().await.1["sources"]["trades"]["state"] != "up").then_some(())).await;
    bridge.publish_numbers("demo.a", [1]).await;
    assert_eq!(numbers(&demo.events(1).await), [1]);
    rabbit.restart().await;
    bridge.source_is("trades", "up").await;
    let client = rabbit.client().await;
    publish_numbers(&client, "trades", "trades.a", [2]).await;
    let gap = trades.event().await;
    assert_eq!((gap.name.as_str(), gap.reason().as_str()), ("brokercast.gap", "reconnect"));
    assert_eq!(numbers(&trades.events(1).await), [2]);
    demo.stays_quiet(Duration::from_millis(200)).await;
    // Frozen, it says nothing more: noticed without its word.
    let start = std::time::Instant::now();
    rabbit.freeze();
    eventually("the silence to be noticed", async || (bridge.readyz().await.1["sources"]["trades"]["state"] != "up").then_some(())).await;
    assert!(start.elapsed() < Duration::from_secs(17), "{:?}", start.elapsed());
    rabbit.thaw();
    bridge.source_is("trades", "up").await;
}

#[tokio::test]
async fn history_of_large_messages_takes_little_memory() {
    let rabbit = Rabbit::start().await;
    let client = rabbit.client().await;
    let (durable, mut table) = (QueueDeclareOptions { durable: true, ..Default::default() }, FieldTable::default());
    table.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
    client.channel.queue_declare("large".into(), durable, table).await.unwrap();
    let large = vec![b'x'; 2 << 20];
    for _ in 0..200 {
        client.publish("", "large", &large).await;
    }
    // They are above `max_payload`: clients see gaps. The broker sends faster than is read.
    let config = format!(
        r#"
auth: {{ anonymous: {{ subscribe: [">"] }} }}
window: {{ bytes: 1MiB }}
history: {{ rate: 16MiB }}
sources: {{ large: {{ amqp: {{ url: "{}", queue: large, queue_type: stream }} }} }}
"#,
        rabbit.url()
    );
    let bridge = Bridge::start(&config).await;
    publish_numbers(&client, "", "large", [200]).await;
    let before = bridge.process().peak_memory();
    let mut sse = bridge.subscribe("since=all").await;
    assert_eq!(next_numbers(&mut sse, 1).await, [200]);
    let grown = (bridge.process().peak_memory() - before) >> 20;
    assert!(grown < 128, "it took {grown} MiB for a log of 400 MiB");
}
