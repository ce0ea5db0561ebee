//! Many clients that are behind, and one broker's log: shared, fair, bounded; and what it means when the log cannot be read.

use std::time::{Duration, Instant};

use async_nats::jetstream::stream::Config;

use crate::support::bridge::numbers;
use crate::support::{Bridge, Nats, Raw, eventually};

fn config(nats: &Nats, more: &str) -> String {
    format!(
        "auth: {{ anonymous: {{ subscribe: [\">\"] }} }}\n{more}\nsources:\n  state: {{ nats: {{ servers: [\"{}\"], \
         subjects: [\"state.>\"], jetstream: {{ stream: STATE }} }} }}\n",
        nats.url()
    )
}

async fn stream(nats: &Nats, more: Config) -> async_nats::jetstream::Context {
    let context = nats.jetstream().await;
    context.create_stream(Config { name: "STATE".into(), subjects: vec!["state.>".into()], ..more }).await.unwrap();
    context
}

/// Publishes `{"n":N}` and a filler to `state.N`, or to one subject.
async fn publish(context: &async_nats::jetstream::Context, count: u64, size: usize, subject: impl Fn(u64) -> String) {
    let filler = "x".repeat(size);
    let mut last = None;
    for n in 0..count {
        let text = format!("{{\"n\":{n},\"x\":\"{filler}\"}}");
        let sent = context.publish(subject(n), text.into()).await.unwrap();
        if n % 200 == 199 || n + 1 == count {
            last = Some(sent.await.unwrap());
        }
    }
    assert_eq!(last.unwrap().sequence, count);
}

#[tokio::test]
async fn clients_that_take_little_hold_no_reader_and_delay_nobody() {
    let nats = Nats::start().await;
    let context = stream(&nats, Config::default()).await;
    publish(&context, 8000, 1000, |_| "state.a".into()).await;
    let bridge = Bridge::start(&config(&nats, "window: { bytes: 1MiB }")).await;
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut raw = Raw::connect_narrow(&bridge.address()).await;
        raw.send(format!("GET /events?since=all HTTP/1.1\r\nHost: {}\r\n\r\n", bridge.address())).await;
        raw.head().await;
        slow.push(raw);
    }
    eventually("the slow ones to be full", async || {
        (bridge.metric("brokercast_history_clients", &[]).await == 20.0 && bridge.metric("brokercast_history_readers", &[]).await == 0.0)
            .then_some(())
    })
    .await;
    let begun = Instant::now();
    let mut late = bridge.subscribe("since=all").await;
    assert_eq!(numbers(&late.events(1).await), [0]);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let rest = numbers(&late.events(7999).await);
    assert_eq!(rest, (1..8000).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_crowd_that_comes_back_costs_the_broker_little_more_than_one_client() {
    let nats = Nats::start().await;
    let context = stream(&nats, Config::default()).await;
    publish(&context, 3000, 200, |_| "state.a".into()).await;
    let bridge = Bridge::start(&config(&nats, "window: { bytes: 64KiB }\nsubscribers: { max: 1000 }")).await;
    let mut one = bridge.subscribe("since=all").await;
    let ids: Vec<String> = one.events(100).await.into_iter().map(|event| event.id).collect();
    drop(one);
    let before = bridge.metric("brokercast_history_events_total", &[]).await;
    let mut crowd = tokio::task::JoinSet::new();
    for n in 0..60 {
        let (request, from) = (bridge.events("").header("last-event-id", &ids[n * 37 % 100]), n * 37 % 100 + 1);
        crowd.spawn(async move {
            let mut sse = crate::support::Sse::open(request).await;
            let seen = numbers(&sse.events(3000 - from).await);
            assert_eq!(seen, (from as u64..3000).collect::<Vec<_>>());
        });
    }
    while let Some(done) = crowd.join_next().await {
        done.unwrap();
    }
    let sent = bridge.metric("brokercast_history_events_total", &[]).await - before;
    assert!(sent <= 5.0 * 3000.0, "the broker sent {sent} messages for 3000 events and 60 clients");
}

#[tokio::test]
async fn the_newest_of_one_subject_costs_one_message() {
    let nats = Nats::start().await;
    let context = stream(&nats, Config { max_messages_per_subject: 1, ..Config::default() }).await;
    publish(&context, 5000, 10, |n| format!("state.{n}")).await;
    let bridge = Bridge::start(&config(&nats, "window: { bytes: 64KiB }")).await;
    let mut sse = bridge.subscribe("subject=state.42&since=last").await;
    assert_eq!(numbers(&sse.events(1).await), [42]);
    assert_eq!(bridge.metric("brokercast_history_events_total", &[]).await, 1.0);
    // What comes after it is live.
    context.publish("state.42", "{\"n\":6000}".into()).await.unwrap().await.unwrap();
    assert_eq!(numbers(&sse.events(1).await), [6000]);
}

#[tokio::test]
async fn a_few_of_many_subjects_are_read_without_the_others() {
    let nats = Nats::start().await;
    let context = stream(&nats, Config::default()).await;
    publish(&context, 5000, 10, |n| format!("state.{}", n % 100)).await;
    let routes = "routes: [{ match: { subject: 'state.*' }, subject: 'shop.{1}.now' }]\nwindow: { bytes: 16KiB }";
    let bridge = Bridge::start(&config(&nats, routes)).await;
    let mut sse = bridge.subscribe("subject=shop.7.now&since=all").await;
    let wanted: Vec<u64> = (0..50).map(|n| n * 100 + 7).collect();
    assert_eq!(numbers(&sse.events(50).await), wanted);
    let sent = bridge.metric("brokercast_history_events_total", &[]).await;
    assert!(sent <= 50.0, "{sent} messages for 50 events");
}

#[tokio::test]
async fn logs_that_can_hold_nothing_for_a_client_are_neither_read_nor_waited_for() {
    let nats = Nats::start().await;
    let context = stream(&nats, Config::default()).await;
    publish(&context, 2000, 100, |_| "state.a".into()).await;
    context.create_stream(Config { name: "TRADES".into(), subjects: vec!["trades.>".into()], ..Config::default() }).await.unwrap();
    publish(&context, 2000, 100, |_| "trades.a".into()).await;
    let source = |name: &str, stream: &str, url: &str| {
        format!(
            "  {name}: {{ required: false, nats: {{ servers: [\"{url}\"], subjects: [\"{name}.>\"], jetstream: {{ stream: {stream} }} }} }}\n"
        )
    };
    let others = source("trades", "TRADES", &nats.url()) + &source("down", "DOWN", "nats://127.0.0.1:1");
    let bridge = Bridge::start(&(config(&nats, "window: { bytes: 64KiB }") + &others)).await;
    bridge.source_is("trades", "up").await;
    let mut sse = bridge.subscribe("subject=state.>&since=all").await;
    assert_eq!(numbers(&sse.events(2000).await), (0..2000).collect::<Vec<_>>());
    eventually("the stream to be live", async || {
        let answer = bridge.http.get(bridge.admin_url("/streams")).send().await.unwrap();
        (answer.json::<serde_json::Value>().await.unwrap()["streams"][0]["behind"] == 0).then_some(())
    })
    .await;
    let read = async |source: &str| bridge.metric("brokercast_history_events_total", &[&format!("source=\"{source}\"")]).await;
    assert!(read("state").await > 0.0);
    assert_eq!(read("trades").await, 0.0);
}

#[tokio::test]
async fn a_log_that_cannot_be_read_is_told_counted_and_logged() {
    let nats = Nats::start().await;
    let context = stream(&nats, Config { max_consumers: 1, ..Config::default() }).await;
    publish(&context, 2000, 100, |_| "state.a".into()).await;
    let bridge = Bridge::start(&config(&nats, "window: { bytes: 64KiB }\nserver: { heartbeat: 1s }")).await;
    let begun = Instant::now();
    let mut sse = bridge.subscribe("since=all").await;
    let rest = sse.rest_events().await;
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    let last = rest.last().unwrap();
    assert_eq!((last.name.as_str(), last.reason().as_str()), ("brokercast.closing", "unavailable"), "{rest:?}");
    let errors = bridge.metrics().await;
    let counted = errors.lines().filter(|line| line.starts_with("brokercast_history_errors_total")).any(|line| !line.ends_with(" 0"));
    assert!(counted, "{errors}");
    let warning = "cannot be read for clients that are behind";
    let log = bridge.log_with(warning).await;
    assert_eq!(log.matches(warning).count(), 1, "{log}");
}
