//! Messages as publishers send them: compressed, with headers, as CloudEvents, as deletions.

use std::io::Write as _;

use async_nats::HeaderMap;
use async_nats::jetstream::stream;
use flate2::Compression;
use flate2::write::GzEncoder;
use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use serde_json::{Value, json};

use crate::support::{Bridge, Nats, Rabbit, Sse};

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn zstd(text: &str) -> Vec<u8> {
    compress_to_vec(text.as_bytes(), CompressionLevel::Fastest)
}

fn headers(headers: &[(&str, &str)]) -> HeaderMap {
    headers.iter().map(|(name, value)| (*name, *value)).fold(HeaderMap::new(), |mut map, (name, value)| {
        map.append(name, value);
        map
    })
}

/// The next event without its time.
async fn next(sse: &mut Sse) -> (String, Value) {
    let event = sse.event().await;
    let mut json = event.json();
    json.as_object_mut().unwrap().remove("time");
    (event.name, json)
}

const ROUTES: &str = r#"
routes:
  - match: { subject: "named.>" }
    event: "{header.Event-Type}"
    headers: [event-type, type, Nats-Msg-Id, message_id, tenant, absent]
  - match: { subject: "tenants.>" }
    subject: "tenant.{header.tenant}.{>}"
  - match: { subject: "tenants.>" }
    subject: "tenantless.{>}"
  - match: { subject: "cloud.>" }
    envelope: cloudevents
  - match: { subject: "state.>" }
    deleted: empty
"#;

fn structured() -> Value {
    json!({ "specversion": "1.0", "id": "1", "type": "t", "source": "/s", "data": "d" })
}

type Carried = (&'static str, Vec<(&'static str, &'static str)>, Vec<u8>);

/// What is published.
fn sent(text: &str) -> Vec<Carried> {
    let binary = vec![("ce-specversion", "1.0"), ("ce-id", "a%20b"), ("ce-type", "t"), ("ce-source", "/s")];
    let structured = structured();
    vec![
        ("packed.a", vec![("Content-Encoding", "gzip")], gzip(text)),
        ("packed.b", vec![("content-encoding", "zstd")], zstd("{\"n\":1}")),
        ("packed.c", vec![("Content-Encoding", "gzip")], gzip(&"0".repeat(100_000))),
        ("packed.d", vec![("Content-Encoding", "gzip")], b"plain".to_vec()),
        ("named.a", vec![("Event-Type", "made"), ("Nats-Msg-Id", "7"), ("tenant", "a"), ("tenant", "b")], b"1".to_vec()),
        ("named.b", vec![("Event-Type", "brokercast.gap")], b"2".to_vec()),
        ("tenants.x", vec![("tenant", "acme")], b"3".to_vec()),
        ("tenants.x", vec![("tenant", "acme.>")], b"4".to_vec()),
        ("cloud.a", binary, b"{\"a\":1}".to_vec()),
        ("cloud.b", vec![("content-type", "application/cloudevents+json")], structured.to_string().into()),
        ("state.a", vec![], b"".to_vec()),
    ]
}

/// What clients see of that: event names and data.
fn seen(text: &str) -> Vec<(String, Value)> {
    let message = |name: &str, json: Value| (name.to_owned(), json);
    vec![
        message("message", json!({ "subject": "packed.a", "data": text })),
        message("message", json!({ "subject": "packed.b", "data": { "n": 1 } })),
        message("brokercast.gap", json!({ "source": "s", "reason": "oversized" })),
        message("message", json!({ "subject": "packed.d", "data": "plain" })),
        message("made", json!({ "subject": "named.a", "headers": { "event-type": "made", "Nats-Msg-Id": "7", "tenant": "a" }, "data": 1 })),
        message("message", json!({ "subject": "named.b", "headers": { "event-type": "brokercast.gap" }, "data": 2 })),
        message("message", json!({ "subject": "tenant.acme.x", "data": 3 })),
        message("message", json!({ "subject": "tenantless.x", "data": 4 })),
        message("message", json!({ "specversion": "1.0", "id": "a b", "type": "t", "source": "/s", "data": { "a": 1 } })),
        message("message", structured()),
        message("message", json!({ "subject": "state.a", "deleted": true })),
    ]
}

#[tokio::test]
async fn what_a_nats_message_carries_reaches_the_client() {
    let nats = Nats::start().await;
    let subjects = ["packed.>", "named.>", "tenants.>", "cloud.>", "state.>"];
    let context = nats.stream("S", &subjects).await;
    let list = serde_json::to_string(&subjects).unwrap();
    let config = |jetstream: &str, window: &str| {
        format!(
            "auth: {{ anonymous: {{ subscribe: [\">\"] }} }}\nwindow: {{ bytes: {window} }}\nsources:\n  \
             s: {{ max_payload: 4KiB, nats: {{ servers: [\"{}\"], subjects: {list}{jetstream} }} }}\n{ROUTES}",
            nats.url()
        )
    };
    let (core, log) = (Bridge::start(&config("", "1KiB")).await, Bridge::start(&config(", jetstream: { stream: S }", "1KiB")).await);
    let mut lives = [core.subscribe("").await, log.subscribe("").await];
    let text = "words ".repeat(100);
    for (subject, with, payload) in sent(&text) {
        let with = headers(&with);
        context.publish_with_headers(subject, with, payload.into()).await.unwrap().await.unwrap();
    }
    let expected = seen(&text);
    let [live_core, live_log] = &mut lives;
    // The window holds few of them: the log is read again.
    let mut history = Sse::open(log.events("since=all")).await;
    for (n, sse) in [live_core, live_log, &mut history].into_iter().enumerate() {
        let mut came = Vec::new();
        for _ in &expected {
            let (name, mut json) = next(sse).await;
            for key in ["from", "to"] {
                json.as_object_mut().unwrap().remove(key);
            }
            came.push((name, json));
        }
        let mut expected = expected.to_vec();
        if n == 0 {
            // Core NATS keeps no order between several subscriptions.
            let order = |(_, json): &(String, Value)| json.to_string();
            came.sort_by_key(order);
            expected.sort_by_key(order);
        }
        assert_eq!(came, expected);
    }
    // Ids lead to the place behind the compressed bytes as the broker has them.
    let mut all = Sse::open(log.events("since=all")).await;
    let first = all.event().await;
    let mut resumed = log.resume("", &first.id).await;
    assert_eq!(next(&mut resumed).await.1["subject"], "packed.b");
    // Two subjects made of one, whose last message is all that the broker would name: the window knows both.
    let whole = Bridge::start(&config(", jetstream: { stream: S }", "1MiB")).await;
    let mut last = Sse::open(whole.events("since=last&subject=tenant.>&subject=tenantless.>")).await;
    assert_eq!(next(&mut last).await.1["data"], 3);
    assert_eq!(next(&mut last).await.1["data"], 4);
}

#[tokio::test]
async fn deletions_in_a_bucket_are_told_from_values() {
    let nats = Nats::start().await;
    let context = nats.jetstream().await;
    let (name, subjects) = ("KV_B".into(), vec!["$KV.B.>".into()]);
    context
        .create_stream(stream::Config { name, subjects, max_messages_per_subject: 5, allow_rollup: true, ..Default::default() })
        .await
        .unwrap();
    let config = format!(
        "auth: {{ anonymous: {{ subscribe: [\">\"] }} }}\nsources: {{ b: {{ nats: {{ servers: [\"{}\"], kv: B }} }} }}\n",
        nats.url()
    );
    let bridge = Bridge::start(&config).await;
    let mut sse = bridge.subscribe("").await;
    // What clients of buckets send, and server 2.11 and later when an entry has expired.
    for (key, with, value) in [
        ("a", vec![], "1"),
        ("a", vec![], ""),
        ("a", vec![("KV-Operation", "DEL")], ""),
        ("b", vec![("KV-Operation", "PUT")], "2"),
        ("b", vec![("KV-Operation", "PURGE"), ("Nats-Rollup", "sub")], ""),
        ("c", vec![("Nats-Marker-Reason", "MaxAge")], ""),
    ] {
        context.publish_with_headers(format!("$KV.B.{key}"), headers(&with), value.into()).await.unwrap().await.unwrap();
    }
    let expected = [
        json!({ "subject": "B.a", "data": 1 }),
        json!({ "subject": "B.a", "data": "" }),
        json!({ "subject": "B.a", "deleted": true }),
        json!({ "subject": "B.b", "data": 2 }),
        json!({ "subject": "B.b", "deleted": true }),
        json!({ "subject": "B.c", "deleted": true }),
    ];
    for expected in expected {
        assert_eq!(next(&mut sse).await.1, expected);
    }
    let mut last = Sse::open(bridge.events("since=last")).await;
    for key in ["a", "b", "c"] {
        assert_eq!(next(&mut last).await.1, json!({ "subject": format!("B.{key}"), "deleted": true }));
    }
}

#[tokio::test]
async fn what_an_amqp_message_carries_reaches_the_client() {
    let rabbit = Rabbit::start().await;
    let client = rabbit.client().await;
    let config = format!(
        "auth: {{ anonymous: {{ subscribe: [\">\"] }} }}\nsources:\n  \
         q: {{ max_payload: 4KiB, amqp: {{ url: \"{0}\", exchange: x, binding_keys: [\"#\"] }} }}\n  \
         s: {{ max_payload: 4KiB, amqp: {{ url: \"{0}\", exchange: x, queue_type: stream }} }}\n{ROUTES}",
        rabbit.url()
    );
    let log =
        "routes:\n  - { match: { source: s, subject: packed.> }, subject: \"log.packed.{>}\" }\n  - { match: { source: s }, drop: true }";
    let bridge = Bridge::start(&config.replace("routes:", log)).await;
    let mut sse = bridge.subscribe("subject=packed.>&subject=tenant.>&subject=tenantless.>&subject=state.>").await;
    let mut log = bridge.subscribe("subject=log.>").await;
    let publish = async |key: &str, properties: BasicProperties, payload: Vec<u8>| {
        let options = BasicPublishOptions::default();
        client.channel.basic_publish("x".into(), key.into(), options, &payload, properties).await.unwrap().await.unwrap();
    };
    let properties = BasicProperties::default;
    let table = |pairs: &[(&str, AMQPValue)]| {
        let mut table = FieldTable::default();
        for (name, value) in pairs {
            table.insert((*name).into(), value.clone());
        }
        table
    };
    publish("packed.a", properties().with_content_encoding("gzip".into()), gzip("\"words\"")).await;
    publish("packed.b", properties().with_content_encoding("zstd".into()), zstd(&"0".repeat(100_000))).await;
    publish("packed.c", properties().with_content_encoding("br".into()), b"as it came".to_vec()).await;
    for sse in [&mut sse, &mut log] {
        assert_eq!(sse.event().await.payload(), "words");
        assert_eq!(sse.event().await.reason(), "oversized");
        assert_eq!(sse.event_where(|event| !event.is_control()).await.payload(), "as it came");
    }
    drop(log);
    let tenant = |tenant: AMQPValue| properties().with_headers(table(&[("tenant", tenant)]));
    publish("tenants.x", tenant(AMQPValue::LongInt(7)), b"1".to_vec()).await;
    publish("tenants.x", tenant(AMQPValue::LongString("a b".into())), b"2".to_vec()).await;
    publish("state.a", properties(), Vec::new()).await;
    assert_eq!(next(&mut sse).await.1["subject"], "tenant.7.x");
    assert_eq!(next(&mut sse).await.1["subject"], "tenantless.x");
    assert_eq!(next(&mut sse).await.1, json!({ "subject": "state.a", "deleted": true }));

    let mut all = bridge.subscribe("subject=named.>&subject=cloud.>").await;
    let named = properties().with_type("made".into()).with_message_id("7".into());
    publish("named.a", named.with_headers(table(&[("Event-Type", AMQPValue::LongString("x".into()))])), b"1".to_vec()).await;
    let text = |text: &str| AMQPValue::LongString(text.into());
    let attributes = [
        ("cloudEvents:specversion", text("1.0")),
        ("cloudEvents:id", text("1")),
        ("cloudEvents:type", text("t")),
        ("cloudEvents_source", text("/s")),
    ];
    let cloud = properties().with_content_type("application/json".into()).with_headers(table(&attributes));
    publish("cloud.a", cloud, b"{}".to_vec()).await;
    let (name, json) = next(&mut all).await;
    assert_eq!(name, "x");
    assert_eq!(json["headers"], json!({ "event-type": "x", "type": "made", "message_id": "7" }));
    let expected =
        json!({ "specversion": "1.0", "id": "1", "type": "t", "source": "/s", "datacontenttype": "application/json", "data": {} });
    assert_eq!(next(&mut all).await.1, expected);
}

#[tokio::test]
async fn a_message_that_is_too_large_is_told_to_those_whom_it_concerns() {
    let nats = Nats::start().await;
    let context = nats.stream("S", &["x.>", "st.>", "dropped"]).await;
    let config = format!(
        "auth: {{ anonymous: {{ subscribe: [\">\"] }} }}\nwindow: {{ bytes: 1KiB }}\nsources:\n  \
         s: {{ max_payload: 1KiB, nats: {{ servers: [\"{}\"], subjects: [x.>, st.>, dropped], jetstream: {{ stream: S }} }} }}\n\
         routes: [{{ match: {{ subject: x.> }}, subject: \"y.{{>}}\" }}, {{ match: {{ subject: dropped }}, drop: true }}]\n",
        nats.url()
    );
    let bridge = Bridge::start(&config).await;
    let mut lives = [bridge.subscribe("subject=st.>").await, bridge.subscribe("subject=y.>").await];
    let publish = async |subject: &str, payload: String| {
        context.publish(subject.to_owned(), payload.into()).await.unwrap().await.unwrap();
    };
    let large = || "l".repeat(2000);
    publish("st.a", "1".into()).await;
    publish("x.big", large()).await;
    publish("dropped", large()).await;
    publish("x.a", "2".into()).await;
    publish("st.a", "3".into()).await;
    let [other, concerned] = &mut lives;
    let first = other.event().await;
    assert_eq!((first.payload(), other.event().await.payload()), (json!(1), json!(3)));
    let gap = concerned.event().await;
    assert_eq!((gap.reason(), gap.json()["from"].clone(), gap.json()["to"].clone()), ("oversized".into(), json!("1"), json!("3")));
    assert_eq!(concerned.event().await.payload(), 2);
    // The window does not hold the beginning: the log is read.
    for _ in 0..20 {
        publish("st.a", "f".repeat(500)).await;
    }
    other.events(20).await;
    let mut resumed = bridge.resume("subject=st.>", &first.id).await;
    assert_eq!(resumed.event().await.payload(), 3);
    let mut resumed = bridge.resume("subject=y.>", &first.id).await;
    assert_eq!(resumed.event().await.reason(), "oversized");
    assert_eq!(resumed.event().await.payload(), 2);
}
