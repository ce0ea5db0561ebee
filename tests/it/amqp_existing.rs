//! RabbitMQ things that were there before brokercast: used as they are, or refused with the key to change.

use lapin::ExchangeKind;
use lapin::options::{ExchangeBindOptions, ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};

use crate::support::bridge::numbers;
use crate::support::rabbit::Amqp;
use crate::support::{Bridge, Rabbit, eventually};

async fn exchange(client: &Amqp, name: &str, kind: &str, options: ExchangeDeclareOptions, arguments: &[(&str, &str)]) {
    let kind = ExchangeKind::Custom(kind.into());
    client.channel.exchange_declare(name.into(), kind, options, table(arguments)).await.unwrap();
}

async fn queue(client: &Amqp, name: &str, arguments: &[(&str, &str)]) {
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    client.channel.queue_declare(name.into(), options, table(arguments)).await.unwrap();
}

fn table(arguments: &[(&str, &str)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (key, value) in arguments {
        table.insert((*key).into(), AMQPValue::LongString((*value).into()));
    }
    table
}

/// Lines of the log that warn of differences of this source.
fn warnings(bridge: &Bridge, source: &str) -> Vec<String> {
    let (message, source) = ("what is there differs from the settings and is used as it is", format!("\"source\":\"{source}\""));
    bridge.log().lines().filter(|line| line.contains(message) && line.contains(&source)).map(str::to_owned).collect()
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one story, in its order")]
async fn rabbitmq_things_that_are_there_are_used_as_they_are_and_one_warning_names_the_difference() {
    let mut rabbit = Rabbit::absent("");
    rabbit.enable(&["rabbitmq_consistent_hash_exchange"]);
    rabbit.restart().await;
    let client = rabbit.client().await;
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    exchange(&client, "lost", "fanout", durable, &[]).await;
    exchange(&client, "alternate", "topic", durable, &[("alternate-exchange", "lost")]).await;
    exchange(&client, "auto", "topic", ExchangeDeclareOptions { auto_delete: true, ..durable }, &[]).await;
    exchange(&client, "inner", "topic", ExchangeDeclareOptions { internal: true, ..durable }, &[]).await;
    exchange(&client, "outer", "topic", durable, &[]).await;
    client.channel.exchange_bind("inner".into(), "outer".into(), "#".into(), ExchangeBindOptions::default(), table(&[])).await.unwrap();
    exchange(&client, "transient", "topic", ExchangeDeclareOptions::default(), &[]).await;
    exchange(&client, "hash", "x-consistent-hash", durable, &[]).await;
    exchange(&client, "fan", "fanout", durable, &[]).await;
    exchange(&client, "direct", "direct", durable, &[]).await;
    exchange(&client, "odd", "topic", ExchangeDeclareOptions { auto_delete: true, internal: true, ..Default::default() }, &[]).await;
    queue(&client, "jobs", &[("x-queue-type", "quorum"), ("x-dead-letter-exchange", "lost")]).await;
    queue(&client, "days", &[("x-queue-type", "stream"), ("x-max-age", "1D")]).await;
    queue(&client, "plain", &[("x-queue-type", "stream")]).await;
    let mut limits = table(&[]);
    limits.insert("x-max-length".into(), AMQPValue::LongInt(1000));
    limits.insert("x-message-ttl".into(), AMQPValue::LongInt(3_600_000));
    limits.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    let options = QueueDeclareOptions { auto_delete: true, ..Default::default() };
    client.channel.queue_declare("fleeting".into(), options, limits).await.unwrap();
    let url = rabbit.url();
    let config = format!(
        r##"
auth: {{ anonymous: {{ subscribe: [">"] }} }}
log: {{ format: json }}
sources:
  alternate: {{ amqp: {{ url: "{url}", exchange: alternate }} }}
  auto: {{ amqp: {{ url: "{url}", exchange: auto }} }}
  inner: {{ amqp: {{ url: "{url}", exchange: inner }} }}
  transient: {{ amqp: {{ url: "{url}", exchange: transient }} }}
  hash: {{ amqp: {{ url: "{url}", exchange: hash }} }}
  weight: {{ amqp: {{ url: "{url}", exchange: hash, exchange_type: x-consistent-hash, binding_keys: ["1"] }} }}
  fan: {{ amqp: {{ url: "{url}", exchange: fan }} }}
  direct: {{ amqp: {{ url: "{url}", exchange: direct, binding_keys: [a.b] }} }}
  odd: {{ amqp: {{ url: "{url}", exchange: odd }} }}
  jobs: {{ amqp: {{ url: "{url}", queue: jobs, declare: true, queue_type: quorum }} }}
  days: {{ amqp: {{ url: "{url}", queue: days, declare: true, queue_type: stream, max_age: 48h }} }}
  fleeting: {{ amqp: {{ url: "{url}", queue: fleeting, declare: true }} }}
  untyped: {{ required: false, amqp: {{ url: "{url}", queue: plain }} }}
  classic: {{ required: false, amqp: {{ url: "{url}", queue: plain, declare: true, queue_type: classic }} }}
  narrow: {{ required: false, amqp: {{ url: "{url}", exchange: fan, binding_keys: [a.b] }} }}
  keyless: {{ required: false, amqp: {{ url: "{url}", exchange: direct }} }}
  unknown: {{ required: false, amqp: {{ url: "{url}", exchange: never, exchange_type: x-never }} }}
  weightless: {{ required: false, amqp: {{ url: "{url}", exchange: hash, exchange_type: x-consistent-hash, binding_keys: [a] }} }}
routes:
  - {{ match: {{ source: weight, subject: ">" }}, drop: true }}
  - {{ match: {{ source: hash, subject: ">" }}, subject: "hash" }}
"##
    );
    let bridge = Bridge::start(&config).await;

    let mut sse = bridge.subscribe("").await;
    let into =
        [("alternate", "a.b"), ("auto", "a.b"), ("outer", "a.b"), ("transient", "a.b"), ("fan", "x"), ("direct", "a.b"), ("", "jobs")];
    for (n, (exchange, key)) in into.into_iter().chain([("", "days"), ("", "fleeting")]).enumerate() {
        client.publish(exchange, key, format!("{{\"n\":{n}}}").as_bytes()).await;
        assert_eq!(numbers(&[sse.event().await]), [n as u64], "{exchange} {key}");
    }
    // Each message goes to one of both queues.
    let mut hashed = bridge.subscribe("subject=hash").await;
    for n in 0..50_u64 {
        client.publish("hash", &format!("key{n}"), format!("{{\"n\":{n}}}").as_bytes()).await;
    }
    hashed.event().await;

    for (source, words) in [
        ("alternate", "arg 'alternate-exchange'"),
        ("auto", "arg 'auto_delete'"),
        ("inner", "arg 'internal'"),
        ("transient", "arg 'durable'"),
        ("hash", "arg 'type'"),
        ("fan", "current is 'fanout'"),
        ("direct", "current is 'direct'"),
        ("odd", "arg 'durable'"),
        ("odd", "arg 'auto_delete'"),
        ("odd", "arg 'internal'"),
        ("jobs", "arg 'x-dead-letter-exchange'"),
        ("days", "arg 'x-max-length-bytes'"),
        ("days", "received '172800s' but current is '1D'"),
        ("fleeting", "arg 'durable'"),
        ("fleeting", "arg 'auto_delete'"),
        ("fleeting", "arg 'x-max-length'"),
        ("fleeting", "arg 'x-message-ttl'"),
        ("fleeting", "arg 'x-single-active-consumer'"),
    ] {
        let warned = warnings(&bridge, source);
        assert!(warned.len() == 1 && warned[0].contains(words), "{source}: {warned:?}");
    }
    assert!(warnings(&bridge, "weight").is_empty());

    for (source, words) in [
        ("untyped", "queue `plain` is a stream: `queue_type: stream` reads it as one"),
        ("classic", "queue `plain` is a stream: `queue_type: stream` reads it as one"),
        ("narrow", "`exchange_type` must be its type"),
        ("keyless", "exchange `direct` is a direct one: `binding_keys` must name the keys"),
        ("unknown", "the broker knows no exchange type `x-never` (`exchange_type`"),
        ("weightless", "cannot bind a queue to exchange `hash` (`binding_keys`)"),
    ] {
        let fault = eventually("the fault", async || {
            let fault = bridge.readyz().await.1["sources"][source].clone();
            fault["error"].is_string().then_some(fault)
        })
        .await;
        assert!(fault["kind"] == "configuration" && fault["error"].as_str().unwrap().contains(words), "{source}: {fault}");
    }

    // The next connection finds the same difference, and says nothing of it.
    rabbit.ctl(&["close_all_connections", "again"]);
    eventually("the source to have connected again", async || {
        (bridge.metric("brokercast_source_reconnects_total", &["source=\"transient\""]).await > 0.0).then_some(())
    })
    .await;
    bridge.source_is("transient", "up").await;
    assert_eq!(warnings(&bridge, "transient").len(), 1);
}

#[tokio::test]
async fn rabbitmq_makes_queues_of_the_type_that_is_written_whatever_the_vhosts_default_is() {
    let rabbit = Rabbit::start().await;
    for vhost in ["quorum", "stream"] {
        rabbit.ctl(&["add_vhost", vhost, "--default-queue-type", vhost]);
        rabbit.ctl(&["set_permissions", "-p", vhost, "guest", ".*", ".*", ".*"]);
    }
    let source = |vhost: &str, name: &str, kind: &str| {
        let url = rabbit.url().replace("%2f", vhost);
        format!("  {name}-in-{vhost}: {{ amqp: {{ url: \"{url}\", queue: {name}, declare: true {kind} }} }}\n")
    };
    let sources: String = ["quorum", "stream"]
        .into_iter()
        .flat_map(|vhost| {
            [
                source(vhost, "written", ", queue_type: classic"),
                source(vhost, "default", ""),
                source(vhost, "other", ", queue_type: quorum"),
            ]
        })
        .collect();
    let bridge = Bridge::start(&format!("auth: {{ anonymous: {{ subscribe: [\">\"] }} }}\nsources:\n{sources}")).await;
    for vhost in ["quorum", "stream"] {
        let listed = rabbit.ctl(&["-q", "list_queues", "-p", vhost, "name", "type", "--no-table-headers"]);
        let mut types: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
        types.sort();
        assert_eq!(types, [["default", "classic"], ["other", "quorum"], ["written", "classic"]], "{listed}");
    }
    drop(bridge);
}

#[tokio::test]
async fn rabbitmq_queue_that_was_deleted_is_a_reconnect_gap_and_one_that_was_only_away_is_none() {
    let mut rabbit = Rabbit::start().await;
    let client = rabbit.client().await;
    queue(&client, "theirs", &[]).await;
    let url = rabbit.url();
    let config = format!(
        r##"
auth: {{ anonymous: {{ subscribe: [">"] }} }}
sources:
  ours: {{ amqp: {{ url: "{url}", exchange: nqx, queue: nq, declare: true }} }}
  theirs: {{ amqp: {{ url: "{url}", queue: theirs }} }}
"##
    );
    let bridge = Bridge::start(&config).await;
    let mut sse = bridge.subscribe("").await;
    client.publish("nqx", "a", b"{\"n\":1}").await;
    assert_eq!(numbers(&[sse.event().await]), [1]);

    rabbit.ctl(&["delete_queue", "nq"]);
    let gap = sse.event().await;
    assert_eq!((gap.reason().as_str(), gap.json()["source"].as_str()), ("reconnect", Some("ours")));
    client.publish("nqx", "a", b"{\"n\":2}").await;
    assert_eq!(numbers(&[sse.event().await]), [2]);

    // Of somebody else's, whether it is made again at once or later.
    for later in [false, true] {
        rabbit.ctl(&["delete_queue", "theirs"]);
        if later {
            bridge.source_is("theirs", "down").await;
        }
        queue(&client, "theirs", &[]).await;
        let gap = sse.event().await;
        assert_eq!((gap.reason().as_str(), gap.json()["source"].as_str()), ("reconnect", Some("theirs")), "{later}");
    }

    // A restart of the broker, or a lost connection, loses nothing of a durable queue.
    let before = bridge.metric("brokercast_source_reconnects_total", &["source=\"ours\""]).await;
    rabbit.ctl(&["close_all_connections", "again"]);
    eventually("another connection", async || {
        (bridge.metric("brokercast_source_reconnects_total", &["source=\"ours\""]).await > before).then_some(())
    })
    .await;
    drop(client);
    rabbit.kill();
    bridge.source_is("ours", "down").await;
    rabbit.restart().await;
    bridge.source_is("ours", "up").await;
    rabbit.client().await.publish("nqx", "a", b"{\"n\":3}").await;
    assert_eq!(numbers(&[sse.event().await]), [3]);
}
