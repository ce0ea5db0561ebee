//! Who is there: listing streams and ending some.

use serde_json::Value;

use crate::support::bridge::OPEN;
use crate::support::{Bridge, eventually};

async fn listed(bridge: &Bridge, query: &str) -> Value {
    let answer = bridge.http.get(bridge.admin_url(&format!("/streams?{query}"))).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{query}");
    answer.json().await.unwrap()
}

#[tokio::test]
async fn open_streams_are_listed_with_who_has_them_and_what_they_were_sent() {
    let bridge = Bridge::start(OPEN).await;
    let mut one = bridge.subscribe("subject=demo.>").await;
    let _other = bridge.subscribe("subject=other.*").await;
    let mut last = String::new();
    for number in ["0", "1", "2"] {
        bridge.publish("demo.a", number).await;
        last = one.event().await.id.clone();
    }
    let stream = eventually("the counts to be there", async || {
        let all = listed(&bridge, "pattern=demo.>").await;
        let stream = all["streams"][0].clone();
        (stream["events"] == 3).then_some(stream)
    })
    .await;
    assert_eq!(stream["patterns"], serde_json::json!(["demo.>"]));
    assert_eq!((stream["address"].as_str(), stream["transport"].as_str()), (Some("127.0.0.1"), Some("http/1.1")));
    assert_eq!((&stream["identity"], &stream["token_id"], &stream["expires"]), (&Value::Null, &Value::Null, &Value::Null));
    assert_eq!((stream["position"].as_str(), stream["behind"].as_u64()), (Some(&*last), Some(0)));
    assert!(stream["bytes"].as_u64().unwrap() > 3 * 20, "{stream}");
    stream["since"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    // In pages, and each once.
    let first = listed(&bridge, "limit=1").await;
    let second = listed(&bridge, &format!("limit=1&after={}", first["next"].as_str().unwrap())).await;
    assert_ne!(first["streams"][0]["id"], second["streams"][0]["id"]);
    assert_eq!((second["streams"].as_array().unwrap().len(), &second["next"]), (1, &Value::Null));
    assert_eq!(listed(&bridge, "address=127.0.0.9").await["streams"], serde_json::json!([]));
}

#[tokio::test]
async fn some_streams_are_ended_and_never_all_by_mistake() {
    let bridge = Bridge::start(OPEN).await;
    let mut one = bridge.subscribe("subject=demo.a").await;
    let mut other = bridge.subscribe("subject=demo.b").await;
    let delete = async |query: &str| {
        let answer = bridge.http.delete(bridge.admin_url(&format!("/streams{query}"))).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    for query in ["", "?", "?limit=1", "?after=0-1", "?identity=", "?who=me", "?pattern=demo.a&limit=1"] {
        assert_eq!(delete(query).await.0, 400, "{query}");
    }
    assert_eq!(delete("?pattern=demo.a").await, (200, serde_json::json!({ "ended": 1 })));
    let rest = one.rest_events().await;
    assert_eq!((rest[0].name.as_str(), rest[0].reason().as_str()), ("brokercast.closing", "ended"));
    bridge.publish("demo.b", "1").await;
    assert_eq!(other.event().await.subject(), "demo.b");
    assert_eq!(delete("?pattern=demo.a").await, (200, serde_json::json!({ "ended": 0 })));
}
