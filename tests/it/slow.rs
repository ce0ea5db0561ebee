//! Readers that are slow, stuck or gone, and everybody else.

use std::time::Duration;

use crate::support::bridge::{OPEN, numbers};
use crate::support::sse::Parser;
use crate::support::{Bridge, Item, Raw, eventually};

fn filler(n: u64, size: usize) -> String {
    format!("{{\"n\":{n},\"filler\":\"{}\"}}", "x".repeat(size))
}

#[tokio::test]
async fn stuck_reader_delays_nobody_costs_no_memory_and_is_closed_after_max_stall() {
    let config = format!("{OPEN}\nwindow: {{ bytes: 4MiB }}\nsubscribers: {{ max_stall: 2s }}\n");
    let bridge = Bridge::start(&config).await;
    let mut stuck = Vec::new();
    for _ in 0..10 {
        let mut raw = Raw::connect_narrow(&bridge.address()).await;
        raw.send(format!("GET /events HTTP/1.1\r\nHost: {}\r\n\r\n", bridge.address())).await;
        raw.head().await;
        stuck.push(raw);
    }
    let mut reader = bridge.subscribe("").await;
    let before = bridge.process().memory();
    let count = 1200;
    // In turns: this test's one thread reads more slowly than it publishes, and the reader is not to be one that falls behind.
    for wave in (0..count).step_by(50) {
        for n in wave..wave + 50 {
            bridge.publish("demo.a", filler(n, 64 * 1024)).await;
        }
        assert_eq!(numbers(&reader.events(50).await), (wave..wave + 50).collect::<Vec<_>>());
    }
    let grown = bridge.process().memory().saturating_sub(before);
    assert!(grown < 64 << 20, "78 MB published, memory grew by {grown} bytes");
    eventually("the stuck readers to be closed", async || (bridge.metric("brokercast_subscribers", &[]).await == 1.0).then_some(())).await;
    for mut raw in stuck {
        raw.read_to_end().await;
    }
    bridge.publish("demo.a", filler(count, 1)).await;
    assert_eq!(numbers(&reader.events(1).await), [count]);
}

#[tokio::test]
async fn own_pages_that_nobody_reads_take_no_descriptors_from_others() {
    let pages = tempfile::tempdir().unwrap();
    let big = pages.path().join("big.bin");
    std::fs::File::create(&big).unwrap().set_len(30 << 20).unwrap();
    std::fs::write(pages.path().join("small.html"), "small").unwrap();
    let config = format!("{OPEN}\nserver: {{ dashboards: {} }}\nsubscribers: {{ max_stall: 10m }}\n", pages.path().display());
    let bridge = Bridge::start(&config).await;
    let before = bridge.process().descriptors();
    let mut stuck = Vec::new();
    for _ in 0..40 {
        let mut raw = Raw::connect_narrow(&bridge.address()).await;
        raw.send(format!("GET /dashboards/big.bin HTTP/1.1\r\nHost: {}\r\n\r\n", bridge.address())).await;
        assert_eq!(raw.head().await.status, 200);
        stuck.push(raw);
    }
    // Each has the one of its socket.
    eventually("files to be closed", async || (bridge.process().descriptors() <= before + 40).then_some(())).await;
    assert_eq!(bridge.get("/dashboards/small.html").send().await.unwrap().text().await.unwrap(), "small");
}

#[tokio::test]
async fn slow_reader_that_comes_back_reads_on_without_loss() {
    let config = format!("{OPEN}\nwindow: {{ bytes: 64MiB }}\nsubscribers: {{ max_stall: 60s }}\n");
    let bridge = Bridge::start(&config).await;
    let mut slow = Raw::connect_narrow(&bridge.address()).await;
    slow.send(format!("GET /events HTTP/1.1\r\nHost: {}\r\n\r\n", bridge.address())).await;
    slow.head().await;
    let count = 300;
    for n in 0..count {
        bridge.publish("demo.a", filler(n, 64 * 1024)).await;
    }
    let mut parser = Parser::default();
    let mut seen = Vec::new();
    while seen.len() < count as usize {
        let chunk = slow.chunk().await;
        assert!(!chunk.is_empty(), "the stream ended after {} events", seen.len());
        parser.feed(&chunk);
        while let Some(item) = parser.items.pop_front() {
            if let Item::Event(event) = item {
                assert!(!event.is_control(), "{event:?}");
                seen.extend(numbers(&[event]));
            }
        }
    }
    assert_eq!(seen, (0..count).collect::<Vec<_>>());
}

#[tokio::test]
async fn reader_that_fell_behind_the_window_meets_a_gap_and_reads_on() {
    let config = format!("{OPEN}\nwindow: {{ bytes: 1MiB }}\nsubscribers: {{ max_stall: 60s }}\n");
    let bridge = Bridge::start(&config).await;
    let mut slow = Raw::connect_narrow(&bridge.address()).await;
    slow.send(format!("GET /events HTTP/1.1\r\nHost: {}\r\n\r\n", bridge.address())).await;
    slow.head().await;
    let count = 1000;
    for n in 0..count {
        bridge.publish("demo.a", filler(n, 64 * 1024)).await;
    }
    let mut parser = Parser::default();
    let (mut last, mut gaps, mut holes) = (None::<u64>, 0, 0);
    let mut declared = false;
    while last != Some(count - 1) {
        let chunk = slow.chunk().await;
        assert!(!chunk.is_empty(), "the stream ended after {last:?}");
        parser.feed(&chunk);
        while let Some(item) = parser.items.pop_front() {
            let Item::Event(event) = item else { continue };
            if event.is_control() {
                assert_eq!((event.name.as_str(), event.reason().as_str()), ("brokercast.gap", "retention"));
                gaps += 1;
                declared = true;
                continue;
            }
            let n = numbers(&[event])[0];
            let expected = last.map_or(0, |l| l + 1);
            assert!(n >= expected, "{n} after {last:?}");
            if n > expected {
                assert!(declared, "an undeclared hole: {n} after {last:?}");
                holes += 1;
            } else {
                assert!(!declared, "a false gap before {n}");
            }
            declared = false;
            last = Some(n);
        }
    }
    assert!(holes >= 1 && gaps == holes, "{gaps} gaps, {holes} holes");
}

#[tokio::test]
async fn subscriber_that_is_only_idle_is_not_closed() {
    let config = format!("{OPEN}\nserver: {{ heartbeat: 1s }}\nsubscribers: {{ max_stall: 1s }}\n");
    let bridge = Bridge::start(&config).await;
    let mut idle = bridge.subscribe("").await;
    idle.stays_quiet(Duration::from_secs(3)).await;
    bridge.publish_numbers("demo.a", [7]).await;
    assert_eq!(numbers(&idle.events(1).await), [7]);
}
