//! The stream byte by byte: head, opening, framing, ids, heartbeats.

use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};

use crate::support::bridge::OPEN;
use crate::support::sse::Parser;
use crate::support::{Bridge, Item, Raw};

fn with_server(server: &str) -> String {
    format!("{OPEN}\nserver: {{ {server} }}\n")
}

#[tokio::test]
async fn head_and_opening_are_what_the_contract_says_and_come_at_once() {
    let bridge = Bridge::open().await;
    let start = Instant::now();
    let mut raw = Raw::get(&bridge.address(), "/events?subject=demo.%3E").await;
    let head = raw.head().await;
    assert_eq!(head.lines[0], "HTTP/1.1 200 OK");
    assert_eq!(head.header("content-type"), Some("text/event-stream"));
    assert_eq!(head.header("cache-control"), Some("no-store, no-transform"));
    assert_eq!(head.header("x-accel-buffering"), Some("no"));
    assert_eq!(head.header("transfer-encoding"), Some("chunked"));
    for absent in ["content-length", "content-encoding", "set-cookie", "server"] {
        assert_eq!(head.header(absent), None, "{head:?}");
    }
    let mut text = String::new();
    while !text.contains("\n\n") || !text.contains("id:") {
        text.push_str(&String::from_utf8(raw.chunk().await).unwrap());
    }
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert!(text.starts_with(':'), "{text:?}");
    assert!(text.ends_with("\n\n"), "{text:?}");
    let mut parser = Parser::default();
    parser.feed(text.as_bytes());
    let retry = parser.items.iter().find_map(|i| if let Item::Retry(ms) = i { Some(*ms) } else { None });
    assert!((1500..=6000).contains(&retry.expect("a retry line")), "{retry:?}");
    assert!(parser.items.iter().any(|i| matches!(i, Item::Id(_))), "{text:?}");
}

#[tokio::test]
async fn retry_is_jittered_around_what_is_configured() {
    let bridge = Bridge::start(&with_server("retry: 8s")).await;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..12 {
        let mut sse = crate::support::Sse::open(bridge.events("")).await;
        loop {
            if let Item::Retry(ms) = sse.next().await.unwrap() {
                assert!((4000..=16000).contains(&ms), "{ms}");
                seen.insert(ms);
                break;
            }
        }
    }
    assert!(seen.len() > 3, "no jitter: {seen:?}");
}

#[tokio::test]
async fn payloads_of_every_kind_arrive_as_the_contract_says() {
    let bridge = Bridge::open().await;
    let mut sse = bridge.subscribe("subject=demo.>").await;
    let deep = format!("{}1{}", "[".repeat(100), "]".repeat(100));
    let huge = format!("{{\"text\":\"{}\"}}", "0123456789abcdef".repeat(60_000));
    let json_texts: Vec<&str> = vec![
        "{}",
        "null",
        "0",
        "-0.0",
        "\"text\"",
        "{\"a\":1,\n \"b\":[1,\n2]}",
        "{\r\n  \"pretty\": true,\r\n\r\n  \"x\": \"y\"\r\n}",
        "{\r\"cr\": 1}",
        "  [1, 2]  ",
        "\n{\"leading\":1}\n",
        "{\"s\":\"line\\r\\nline \\u2028 \\u0000 \u{1F600} ünï\"}",
        "[18446744073709551615, 1e300]",
        &deep,
        &huge,
    ];
    for text in json_texts {
        bridge.publish("demo.json", text.to_owned()).await;
        let event = sse.event().await;
        let expected: Value = serde_json::from_str(text).unwrap();
        let whole = event.json();
        assert_eq!(whole["data"], expected);
        assert_eq!(whole.as_object().unwrap().keys().collect::<Vec<_>>(), ["data", "subject", "time"]);
        whole["time"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        assert!(whole["time"].as_str().unwrap().ends_with('Z'));
    }
    // What a tree of values would change travels verbatim.
    for text in ["1.000", "1E+2", "123456789012345678901234567890", "{\"b\":1,\"a\":2,\"b\":3}", "\"\\u0041\\/\""] {
        bridge.publish("demo.verbatim", text).await;
        let event = sse.event().await;
        assert!(event.data.contains(&format!(":{text}")), "{event:?}");
    }
    for text in [
        "plain",
        "",
        "line\nline",
        "a\r\nb\rc\n",
        "{not json",
        "data: x\n\nid: evil",
        "\u{feff}bom",
        "nul\0nul",
        "01",
        "{\"a\":1} x",
        "NaN",
        "tab\t\u{7f}",
    ] {
        bridge.publish("demo.text", text).await;
        assert_eq!(sse.event().await.payload(), json!(text));
    }
    for bytes in [&b"\xff\xfe"[..], b"\x80", b"{\"a\":\"\xff\"}", b"\xed\xa0\x80", &[0, 159, 146, 150]] {
        bridge.publish("demo.bytes", bytes.to_vec()).await;
        let whole = sse.event().await.json();
        assert!(whole.get("data").is_none(), "{whole}");
        let decoded = base64::engine::general_purpose::STANDARD.decode(whole["data_base64"].as_str().unwrap()).unwrap();
        assert_eq!(decoded, bytes);
    }
}

#[tokio::test]
async fn ids_are_short_clean_unique_and_stand_before_the_data() {
    let bridge = Bridge::open().await;
    let mut raw = Raw::get(&bridge.address(), "/events").await;
    raw.head().await;
    let mut opening = String::new();
    while !opening.contains("id:") {
        opening.push_str(&String::from_utf8(raw.chunk().await).unwrap());
    }
    let mut seen = std::collections::HashSet::new();
    for n in 0..20 {
        bridge.publish("demo.a", format!("{n}")).await;
        let mut text = String::new();
        while !text.contains("data:") {
            text = String::from_utf8(raw.chunk().await).unwrap();
        }
        let id = text.lines().find_map(|l| l.strip_prefix("id: ").or(l.strip_prefix("id:"))).expect("an id").to_owned();
        assert!(id.len() <= 128 && !id.is_empty());
        assert!(id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'), "{id}");
        assert!(seen.insert(id), "an id twice");
        assert!(!text.contains("event:"), "{text}");
        assert!(text.find("id:").unwrap() < text.find("data:").unwrap());
        assert!(!text.contains('\r'), "{text:?}");
    }
}

#[tokio::test]
async fn heartbeat_carries_an_id_only_when_the_cursor_moved() {
    let bridge = Bridge::start(&with_server("heartbeat: 1s")).await;
    let mut sse = bridge.subscribe("subject=demo.narrow").await;
    let at_start = sse.last_id().to_owned();
    // Nothing happened: comments alone.
    for _ in 0..2 {
        match sse.next().await.unwrap() {
            Item::Comment(_) => {}
            other => panic!("{other:?} where only a comment is due"),
        }
    }
    let published = bridge.publish("demo.other", "1").await;
    let moved = sse.id().await;
    assert_ne!(moved, at_start);
    assert!(matches!(sse.next().await.unwrap(), Item::Comment(_)));
    assert!(matches!(sse.next().await.unwrap(), Item::Comment(_)));
    // Resuming from a heartbeat skips what did not match, and nothing else.
    bridge.publish("demo.narrow", "2").await;
    for id in [&moved, &published, &at_start] {
        let mut again = bridge.resume("subject=demo.narrow", id).await;
        assert_eq!(again.event().await.payload(), json!(2), "after {id}");
    }
}

#[tokio::test]
async fn heartbeats_come_in_time_on_a_silent_stream() {
    let bridge = Bridge::start(&with_server("heartbeat: 1s")).await;
    let mut sse = bridge.subscribe("").await;
    for _ in 0..3 {
        let start = Instant::now();
        assert!(matches!(sse.next().await, Some(Item::Comment(_))));
        assert!(start.elapsed() < Duration::from_millis(2500), "{:?}", start.elapsed());
    }
}

#[tokio::test]
async fn several_patterns_give_each_event_once_and_only_what_matches() {
    let bridge = Bridge::open().await;
    let mut sse = bridge.subscribe("subject=demo.a.*&subject=demo.b.%3E&subject=demo.b.c").await;
    for (n, subject) in ["demo.a", "demo.a.x", "demo.a.x.y", "demo.b", "demo.b.c", "demo.b.c.d", "demo.c"].iter().enumerate() {
        bridge.publish(subject, n.to_string()).await;
    }
    bridge.publish("demo.b.end", "true").await;
    let subjects: Vec<_> = sse.events(4).await.iter().map(|e| e.subject()).collect();
    assert_eq!(subjects, ["demo.a.x", "demo.b.c", "demo.b.c.d", "demo.b.end"]);
}
