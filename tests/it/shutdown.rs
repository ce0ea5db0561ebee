//! Signals, draining, ports that are taken.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::support::bridge::OPEN;
use crate::support::{Bridge, Item, Nats, PATIENCE, Sse, within};

#[tokio::test]
async fn sigterm_ends_every_stream_with_its_cursor_and_the_process_within_drain() {
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT] {
        let mut bridge = Bridge::start(&format!("{OPEN}\nserver: {{ drain: 4s }}\n")).await;
        let mut streams = Vec::new();
        for _ in 0..20 {
            streams.push(bridge.subscribe("").await);
        }
        let last = bridge.publish("demo.a", "1").await;
        for sse in &mut streams {
            sse.event().await;
        }
        let start = Instant::now();
        bridge.signal(signal);
        for sse in &mut streams {
            let items = sse.rest().await;
            let events: Vec<_> = items.iter().filter_map(|i| if let Item::Event(e) = i { Some(e) } else { None }).collect();
            assert_eq!(events.len(), 1, "{items:?}");
            assert_eq!((events[0].name.as_str(), events[0].reason().as_str()), ("brokercast.closing", "draining"));
            assert_eq!(sse.last_id(), last);
        }
        let status = bridge.exit(PATIENCE).await;
        assert_eq!(status.code(), Some(0), "{}", bridge.log());
        assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    }
}

#[tokio::test]
async fn draining_bridge_says_so_and_takes_nobody_new() {
    let mut bridge = Bridge::start(&format!("{OPEN}\nserver: {{ drain: 5s }}\n")).await;
    let mut held = Vec::new();
    for _ in 0..10 {
        held.push(bridge.subscribe("").await);
    }
    bridge.signal(Signal::TERM);
    let (admin, http) = (bridge.admin_url("/readyz"), bridge.http.clone());
    // Seen while it lasts: once the streams are gone, so is the process.
    let told = within(Duration::from_secs(5), "readiness to be withdrawn", async || {
        let answer = http.get(&admin).send().await.ok()?;
        (answer.status() == 503).then_some(answer)
    })
    .await;
    let body: serde_json::Value = told.json().await.unwrap();
    assert_eq!(body["status"], "draining");
    // A newcomer is refused, told to come again, or finds the port closed; it never gets a stream that stays.
    if let Ok(answer) = bridge.events("").header("Accept", "text/event-stream").send().await {
        let text = answer.text().await.unwrap_or_default();
        assert!(text.contains("brokercast.closing"), "{text}");
    }
    drop(held);
    assert_eq!(bridge.exit(PATIENCE).await.code(), Some(0));
}

#[tokio::test]
async fn client_that_never_reads_does_not_hold_up_the_end() {
    let mut bridge = Bridge::start(&format!("{OPEN}\nserver: {{ drain: 2s }}\n")).await;
    let mut stuck = crate::support::Raw::connect_narrow(&bridge.address()).await;
    stuck.send(format!("GET /events HTTP/1.1\r\nHost: {}\r\n\r\n", bridge.address())).await;
    stuck.head().await;
    for _ in 0..100 {
        bridge.publish("demo.a", "x".repeat(100_000)).await;
    }
    let start = Instant::now();
    bridge.signal(Signal::TERM);
    assert_eq!(bridge.exit(PATIENCE).await.code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn second_signal_ends_it_at_once() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let mut bridge = Bridge::start(&format!("{OPEN}\nserver: {{ drain: 60s }}\n")).await;
        let mut stuck = crate::support::Raw::connect_narrow(&bridge.address()).await;
        stuck.send(format!("GET /events HTTP/1.1\r\nHost: {}\r\n\r\n", bridge.address())).await;
        stuck.head().await;
        for _ in 0..100 {
            bridge.publish("demo.a", "x".repeat(100_000)).await;
        }
        bridge.signal(signal);
        let (admin, http) = (bridge.admin_url("/readyz"), bridge.http.clone());
        within(PATIENCE, "the drain to begin", async || {
            let answer = http.get(&admin).send().await.ok()?;
            (answer.status() == 503).then_some(())
        })
        .await;
        bridge.signal(signal);
        let status = bridge.exit(Duration::from_secs(5)).await;
        use std::os::unix::process::ExitStatusExt as _;
        let code_seen = status.code().or(status.signal().map(|s| 128 + s));
        assert_eq!(code_seen, Some(code), "{status}");
    }
}

#[tokio::test]
async fn a_delay_before_draining_serves_as_before_and_a_signal_ends_it() {
    let mut bridge = Bridge::start(&format!("{OPEN}\nserver: {{ drain: 60s, drain_delay: 10m }}\n")).await;
    for ignored in [Signal::USR1, Signal::USR2] {
        bridge.signal(ignored);
    }
    let mut held = bridge.subscribe("").await;
    let mut stuck = crate::support::Raw::connect_narrow(&bridge.address()).await;
    stuck.send(format!("GET /events HTTP/1.1\r\nHost: {}\r\n\r\n", bridge.address())).await;
    stuck.head().await;
    for _ in 0..100 {
        bridge.publish("demo.a", "x".repeat(100_000)).await;
    }
    held.events(100).await;
    bridge.signal(Signal::QUIT);
    within(PATIENCE, "readiness to be withdrawn", async || (bridge.readyz().await.0 == 503).then_some(())).await;
    // Over new connections too.
    let mut late = bridge.subscribe("subject=demo.b").await;
    bridge.publish("demo.b", "1").await;
    assert_eq!((held.event().await.subject(), late.event().await.subject()), ("demo.b".to_owned(), "demo.b".to_owned()));
    bridge.signal(Signal::TERM);
    for sse in [&mut held, &mut late] {
        assert_eq!(sse.event().await.reason(), "draining");
    }
    // It waits for the client that does not read.
    bridge.signal(Signal::INT);
    use std::os::unix::process::ExitStatusExt as _;
    let status = bridge.exit(PATIENCE).await;
    assert_eq!(status.code().or(status.signal().map(|s| 128 + s)), Some(130), "{status}");

    let mut bridge = Bridge::start(&format!("{OPEN}\nserver: {{ drain_delay: 500ms }}\n")).await;
    let start = Instant::now();
    assert_eq!(bridge.terminate().await.code(), Some(0));
    assert!(start.elapsed() >= Duration::from_millis(500), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_reload_that_a_delayed_end_meets_half_way_is_finished() {
    let nats = Nats::start().await;
    let sources =
        (0..6).map(|n| format!("  s{n}: {{ nats: {{ servers: [\"{}\"], subjects: [\"s{n}.>\"], name: before }} }}\n", nats.url()));
    let config = format!(
        "auth: {{ anonymous: {{ subscribe: [\"s0.>\"] }} }}\nserver: {{ drain_delay: 10m }}\nreload: {{ watch: false }}\nsources:\n{}",
        sources.collect::<String>()
    );
    let mut bridge = Bridge::start(&config).await;
    for n in 0..6 {
        bridge.source_is(&format!("s{n}"), "up").await;
    }
    // Each source takes a second to end.
    nats.freeze();
    bridge.configure(&config.replace("before", "behind").replace("[\"s0.>\"] } }", "[\"s0.>\", \"s1.>\"] } }"));
    let reload = bridge.http.post(bridge.admin_url("/reload")).send();
    let mut reload = std::pin::pin!(reload);
    let half_way = async || {
        let asked = bridge.events("subject=s0.a").timeout(Duration::from_millis(300)).send().await;
        asked.is_err().then_some(())
    };
    tokio::select! {
        answer = &mut reload => panic!("it takes seconds: {answer:?}"),
        () = within(PATIENCE, "a request that waits for the reload", half_way) => {}
    }
    bridge.signal(Signal::TERM);
    within(PATIENCE, "readiness to be withdrawn", async || (bridge.readyz().await.0 == 503).then_some(())).await;
    nats.thaw();
    let mut sse = bridge.subscribe("subject=s1.%3E").await;
    let published = async {
        loop {
            nats.publish("s1.a", "1").await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        event = sse.event() => assert_eq!(event.subject(), "s1.a"),
        () = published => {}
    }
    bridge.signal(Signal::TERM);
    sse.event_where(|event| event.name == "brokercast.closing" && event.reason() == "draining").await;
    assert_eq!(bridge.exit(PATIENCE).await.code(), Some(0), "{}", bridge.log());
}

#[tokio::test]
async fn taken_port_is_an_error_that_names_the_key() {
    let first = Bridge::open().await;
    for (variable, address, key) in [
        ("BROKERCAST__SERVER__LISTEN", first.address(), "server.listen"),
        ("BROKERCAST__ADMIN__LISTEN", first.admin_address(), "admin.listen"),
    ] {
        let mut second = Bridge::builder(OPEN).build();
        second.launch_with(&[(variable, &address)]);
        let status = second.exit(PATIENCE).await;
        assert_eq!(status.code(), Some(1), "{}", second.log());
        assert!(second.log().contains(key), "{}", second.log());
    }
    let mut sse = first.subscribe("").await;
    first.publish("demo.a", "1").await;
    assert_eq!(sse.event().await.payload(), json!(1));
}

#[tokio::test]
async fn restart_on_the_same_port_works_while_clients_hold_on() {
    let mut bridge = Bridge::open().await;
    let mut held: Vec<Sse> = Vec::new();
    for _ in 0..5 {
        held.push(bridge.subscribe("").await);
    }
    bridge.kill();
    for sse in &mut held {
        assert_eq!(sse.next().await, None);
    }
    bridge.restart().await;
    bridge.subscribe("").await;
}
