//! The program without any configuration: what a new user meets first.

use std::process::Command;

use serde_json::json;

use crate::support::{Bridge, Sse, eventually};

#[tokio::test]
async fn without_configuration_a_ticker_ticks_and_what_curl_publishes_is_seen() {
    let bridge = Bridge::bare().start().await;
    let mut ticks = bridge.subscribe("subject=clock.>").await;
    let first = ticks.event().await;
    assert_eq!((first.name.as_str(), first.subject().as_str()), ("message", "clock.tick"));
    assert!(first.payload().is_object(), "{first:?}");
    let second = ticks.event().await;
    assert_ne!(first.id, second.id);
    assert_ne!(first.payload(), second.payload());

    let mut demo = bridge.subscribe("subject=demo.>").await;
    let curl = Command::new("curl")
        .args(["-sS", "--noproxy", "*", "-w", "%{http_code}", "-d", r#"{"hello":"world"}"#])
        .arg(bridge.url("/publish/demo.hello"))
        .output()
        .expect("curl; install it: apt-get install curl");
    let printed = String::from_utf8(curl.stdout).unwrap();
    assert!(printed.ends_with("202"), "{printed}");
    let event = demo.event().await;
    assert_eq!(event.subject(), "demo.hello");
    assert_eq!(event.payload(), json!({"hello": "world"}));

    let mut all = bridge.subscribe("").await;
    bridge.publish("demo.other", "1").await;
    assert_eq!(all.event_where(|e| e.subject().starts_with("demo.")).await.subject(), "demo.other");
}

#[tokio::test]
async fn dashboard_is_served_whole_from_the_bridge_itself() {
    let bridge = Bridge::bare().start().await;
    let page = bridge.get("/").send().await.unwrap();
    assert_eq!(page.status(), 200);
    assert!(page.headers()["content-type"].to_str().unwrap().starts_with("text/html"));
    assert!(page.headers().contains_key("content-security-policy"), "{:?}", page.headers());
    let html = page.text().await.unwrap();
    assert!(html.contains("<!doctype html>") || html.contains("<!DOCTYPE html>"));
    for marker in ["src=\"http", "href=\"http", "src='http", "@import"] {
        assert!(!html.contains(marker), "the page loads from another host: {marker}");
    }
}

#[tokio::test]
async fn default_listeners_are_loopback_and_another_host_name_is_refused() {
    let bridge = Bridge::bare().start().await;
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|f| std::fs::read_to_string(f).unwrap_or_default()).join("\n");
    for address in [bridge.address(), bridge.admin_address()] {
        let port: u16 = address.rsplit(':').next().unwrap().parse().unwrap();
        let entry = format!(":{port:04X}");
        let listening: Vec<_> = tables
            .lines()
            .filter_map(|l| {
                let mut words = l.split_whitespace().skip(1);
                let (local, _, state) = (words.next()?, words.next()?, words.next()?);
                (state == "0A" && local.ends_with(&entry)).then(|| local.to_owned())
            })
            .collect();
        assert_eq!(listening, [format!("0100007F{entry}")]);
    }
    let rebound = bridge.get("/events").header("Host", "evil.example.com").send().await.unwrap();
    assert_eq!(rebound.status(), 421);
    assert_eq!(rebound.headers()["content-type"], "application/problem+json");
}

#[tokio::test]
async fn independent_client_library_reads_the_stream() {
    use eventsource_stream::Eventsource as _;
    use futures_util::StreamExt as _;

    let bridge = Bridge::open().await;
    let response = bridge.events("subject=demo.>").send().await.unwrap();
    let mut stream = response.bytes_stream().eventsource();
    for n in 0..50 {
        bridge.publish("demo.lib", format!("{{\n  \"n\": {n}\r\n}}")).await;
    }
    for n in 0..50 {
        let event = tokio::time::timeout(crate::support::PATIENCE, stream.next()).await.unwrap().unwrap().unwrap();
        let data: serde_json::Value = serde_json::from_str(&event.data).unwrap();
        assert_eq!(data["data"], json!({ "n": n }));
        assert!(!event.id.is_empty());
    }
}

#[tokio::test]
async fn readiness_of_the_default_run_says_ready_and_health_agrees() {
    let bridge = Bridge::bare().start().await;
    let (status, body) = bridge.readyz().await;
    assert_eq!((status, body["status"].as_str()), (200, Some("ready")));
    let sse = Sse::open(bridge.events("")).await;
    drop(sse);
    eventually("the slot to be free", async || (bridge.metric("brokercast_subscribers", &[]).await == 0.0).then_some(())).await;
}
