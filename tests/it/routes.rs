//! Routing: first match wins; rename, drop, name, wrap.

use serde_json::json;

use crate::support::{Bridge, Sse};

const CONFIG: &str = r#"
auth: { anonymous: { subscribe: [">"], publish: [">"] } }
sources:
  inbox: { http: { subjects: ["orders.>", "internal.>", "demo.>"] } }
  other: { http: { subjects: ["other.>"] } }
routes:
  - match: { source: inbox, subject: "orders.*.created" }
    subject: "shop.{1}.created"
    event: order-created
    envelope: cloudevents
  - match: { subject: "orders.*.*.>" }
    subject: "deep.{2}.{1}.{>}"
    event: "deep-{2}"
  - match: { subject: "internal.>" }
    drop: true
  - match: { subject: "demo.raw.>" }
    envelope: raw
  - match: { subject: "demo.raw.never" }
    drop: true
  - match: { source: inbox, subject: "other.>" }
    drop: true
"#;

#[tokio::test]
async fn first_match_renames_drops_names_and_wraps() {
    let bridge = Bridge::start(CONFIG).await;
    let mut sse = bridge.subscribe("").await;
    bridge.publish("internal.secret", "1").await;
    bridge.publish("orders.eu.created", "{\"id\":7}").await;
    let cloud = sse.event().await;
    assert_eq!(cloud.name, "order-created");
    let body = cloud.json();
    assert_eq!(body["specversion"], "1.0");
    for required in ["id", "source", "type"] {
        assert!(body[required].as_str().is_some_and(|s| !s.is_empty()), "{required} in {body}");
    }
    assert_eq!(body["subject"], "shop.eu.created");
    assert_eq!(body["datacontenttype"], "application/json");
    assert_eq!(body["data"], json!({"id": 7}));
    body["time"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    for name in body.as_object().unwrap().keys() {
        assert!(
            name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) || name == "data_base64",
            "{name} is no attribute's name"
        );
    }

    bridge.publish("orders.a.b.c.d", "2").await;
    let deep = sse.event().await;
    assert_eq!((deep.name.as_str(), deep.subject().as_str()), ("deep-b", "deep.b.a.c.d"));

    // The earlier route wins, and a route of one source leaves the others' subjects.
    for (subject, payload) in [("demo.raw.never", "first"), ("other.a", "\"passes\"")] {
        bridge.publish(subject, payload).await;
    }
    assert_eq!(sse.event().await.data, "first");
    assert_eq!(sse.event().await.subject(), "other.a");
    bridge.publish("orders.unrouted", "3").await;
    assert_eq!(sse.event().await.subject(), "orders.unrouted");
}

#[tokio::test]
async fn patterns_and_grants_see_only_the_routed_subject() {
    let bridge = Bridge::start(CONFIG).await;
    let mut before = bridge.subscribe("subject=orders.>").await;
    let mut after = bridge.subscribe("subject=shop.>").await;
    bridge.publish("orders.eu.created", "1").await;
    bridge.publish("orders.end", "2").await;
    assert_eq!(after.event().await.json()["subject"], "shop.eu.created");
    assert_eq!(before.event().await.subject(), "orders.end");
    let mut replayed = Sse::open(bridge.events("since=all&subject=shop.eu.*")).await;
    assert_eq!(replayed.event().await.json()["subject"], "shop.eu.created");
}

#[tokio::test]
async fn raw_envelope_sends_text_as_it_is_and_falls_back_for_bytes() {
    let bridge = Bridge::start(CONFIG).await;
    let mut sse = bridge.subscribe("subject=demo.raw.>").await;
    for text in [
        "plain",
        "",
        "{\"json\": [1, 2]}",
        "two\nlines",
        "\nleading",
        "trailing\n",
        "id: x",
        ": comment",
        " space",
        "ünï 🦀",
        "\n\n\n",
        "data:",
    ] {
        bridge.publish("demo.raw.a", text).await;
        let event = sse.event().await;
        assert_eq!((event.data.as_str(), event.name.as_str()), (text, "message"));
    }
    // CR ends a line of the stream as LF does: a reader sees LF.
    for (text, seen) in [("a\r\nb", "a\nb"), ("a\rb", "a\nb"), ("\r\n", "\n"), ("a\r\r\nb\r", "a\n\nb\n")] {
        bridge.publish("demo.raw.a", text).await;
        assert_eq!(sse.event().await.data, seen, "{text:?}");
    }
    bridge.publish("demo.raw.b", vec![0xff, 0x00]).await;
    let event = sse.event().await.json();
    assert_eq!((event["subject"].as_str(), event["data_base64"].as_str()), (Some("demo.raw.b"), Some("/wA=")));
}

#[tokio::test]
async fn cloudevents_carry_every_kind_of_payload() {
    let bridge = Bridge::start(CONFIG).await;
    let mut sse = bridge.subscribe("subject=shop.>").await;
    let mut ids = std::collections::HashSet::new();
    bridge.publish("orders.x.created", "text").await;
    let text = sse.event().await.json();
    assert_eq!(text["data"], "text");
    bridge.publish("orders.x.created", vec![0xff]).await;
    let bytes = sse.event().await.json();
    assert_eq!(bytes["data_base64"], "/w==");
    assert!(bytes.get("data").is_none());
    bridge.publish("orders.x.created", "").await;
    let empty = sse.event().await.json();
    for event in [text, bytes, empty] {
        assert!(ids.insert(event["id"].as_str().unwrap().to_owned()), "an id twice: {event}");
    }
}
