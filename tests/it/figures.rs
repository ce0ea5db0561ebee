//! Figures of reading brokers' logs for many clients, printed. Ignored, as they take minutes:
//! `cargo nextest run --release --test it figures:: --run-ignored only --no-capture`.

use std::time::{Duration, Instant};

use async_nats::jetstream::Context;
use async_nats::jetstream::stream::Config;

use crate::support::bridge::numbers;
use crate::support::{Bridge, Nats, Raw, Sse, eventually};

fn config(nats: &Nats, more: &str) -> String {
    format!(
        "auth: {{ anonymous: {{ subscribe: [\">\"] }} }}\n{more}\nsources:\n  state: {{ nats: {{ servers: [\"{}\"], \
         subjects: [\"state.>\"], jetstream: {{ stream: STATE }} }} }}\n",
        nats.url()
    )
}

async fn stream(nats: &Nats, more: Config) -> Context {
    let context = nats.jetstream().await;
    context.create_stream(Config { name: "STATE".into(), subjects: vec!["state.>".into()], ..more }).await.unwrap();
    context
}

async fn publish(context: &Context, count: u64, filler: usize, subject: impl Fn(u64) -> String) {
    let filler = "x".repeat(filler);
    for n in 0..count {
        let sent = context.publish(subject(n), format!("{{\"n\":{n},\"x\":\"{filler}\"}}").into()).await.unwrap();
        if n % 500 == 499 || n + 1 == count {
            sent.await.unwrap();
        }
    }
}

/// Reads up to an event that holds this text: after how long the first bytes of an event came, and that event. Nothing else is
/// looked at: a parser's work in the test would be measured too.
async fn read(request: reqwest::RequestBuilder, last: String) -> Result<(Duration, Duration), String> {
    const TAIL: usize = 512;
    let begun = Instant::now();
    let mut response = request.send().await.unwrap();
    let (mut first, mut tail, mut bytes) = (None, Vec::new(), 0);
    while !tail.windows(last.len()).any(|text| text == last.as_bytes()) {
        let piece = tokio::time::timeout(Duration::from_secs(120), response.chunk()).await;
        let Ok(piece) = piece else { return Err(format!("{bytes} bytes, then nothing, not even a heartbeat")) };
        let piece = piece.unwrap().unwrap();
        bytes += piece.len();
        // The head of the stream and heartbeats are shorter.
        if piece.len() > TAIL {
            first = first.or_else(|| Some(begun.elapsed()));
        }
        if begun.elapsed() > Duration::from_secs(500) {
            return Err(format!("{bytes} bytes"));
        }
        // An event may come in two pieces.
        tail.drain(..tail.len().saturating_sub(TAIL));
        tail.extend_from_slice(&piece[piece.len().saturating_sub(TAIL)..]);
    }
    Ok((first.unwrap(), begun.elapsed()))
}

fn median(times: &mut [Duration]) -> (Duration, Duration) {
    times.sort_unstable();
    (times[times.len() / 2], times[times.len() - 1])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "figures"]
async fn two_thousand_clients_that_come_back_ten_thousand_events_behind() {
    const EVENTS: u64 = 10_000;
    // A debug build takes minutes for 200.
    let clients: usize = std::env::var("BROKERCAST_TEST_CLIENTS").map_or(2000, |text| text.parse().unwrap());
    let nats = Nats::start().await;
    let context = stream(&nats, Config::default()).await;
    publish(&context, EVENTS + 1, 50, |_| "state.a".into()).await;
    // All connect at once, from a program that shares the machine.
    let bounds = "server: { limits: { header_timeout: 60s } }\nwindow: { bytes: 64KiB }\nsubscribers: { max: 3000 }";
    let bridge = Bridge::start(&config(&nats, bounds)).await;
    let mut one = bridge.subscribe("since=all").await;
    let id = one.events(1).await.remove(0).id;
    drop(one);
    let read = || read(bridge.events("").header("last-event-id", &id), format!("{{\"n\":{EVENTS},"));
    let (_, alone) = read().await.unwrap();
    // What was read for it is not there for the others.
    eventually("the cache to be empty", async || (bridge.metric("brokercast_history_cache_bytes", &[]).await == 0.0).then_some(())).await;
    let before = bridge.metric("brokercast_history_events_total", &[]).await;
    let processor = bridge.process().processor();
    let mut crowd = tokio::task::JoinSet::new();
    for _ in 0..clients {
        crowd.spawn(read());
    }
    let (mut firsts, mut ends) = (Vec::new(), Vec::new());
    while let Some(done) = crowd.join_next().await {
        let (first, end) = match done.unwrap() {
            Ok(times) => times,
            Err(starved) => panic!("{} of {clients} have all, one has {starved}\n{}", ends.len(), bridge.metrics().await),
        };
        firsts.push(first);
        ends.push(end);
    }
    let sent = bridge.metric("brokercast_history_events_total", &[]).await - before;
    let ((first, late), (end, last)) = (median(&mut firsts), median(&mut ends));
    let processor = bridge.process().processor() - processor;
    let fair = alone * u32::try_from(clients).unwrap();
    println!(
        "{clients} clients, {EVENTS} events behind: the broker sent each event {:.2} times; first event after {first:?} (median), {late:?} \
         (slowest); all after {end:?} (median), {last:?} (slowest): {:.2} times the median; one alone: {alone:?}, with a fair share {fair:?}: \
         the slowest takes {:.2} times that; {processor:?} of the bridge's processor time",
        sent / EVENTS as f64,
        last.as_secs_f64() / end.as_secs_f64(),
        last.as_secs_f64() / fair.as_secs_f64(),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "figures"]
async fn memory_of_clients_that_read_nothing_of_the_newest() {
    let nats = Nats::start().await;
    let context = stream(&nats, Config { max_messages_per_subject: 1, ..Config::default() }).await;
    publish(&context, 20_000, 500, |n| format!("state.{n}")).await;
    let bridge = Bridge::start(&config(&nats, "window: { bytes: 1MiB }\nsubscribers: { max: 300 }")).await;
    drop(bridge.subscribe("since=last").await.events(20_000).await);
    let before = bridge.process().memory();
    let mut stalled = Vec::new();
    for _ in 0..100 {
        let mut raw = Raw::connect_narrow(&bridge.address()).await;
        raw.send(format!("GET /events?since=last HTTP/1.1\r\nHost: {}\r\n\r\n", bridge.address())).await;
        stalled.push(raw);
    }
    let (mut most, begun) = (0, Instant::now());
    while begun.elapsed() < Duration::from_secs(15) {
        most = most.max(bridge.process().memory());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let mib = |bytes: u64| bytes / (1 << 20);
    println!("100 stalled clients of 20,000 subjects: {} MiB more than {} MiB before", mib(most.saturating_sub(before)), mib(before));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "figures"]
async fn the_newest_of_one_of_two_hundred_thousand_subjects() {
    let nats = Nats::start().await;
    let context = stream(&nats, Config { max_messages_per_subject: 1, ..Config::default() }).await;
    publish(&context, 200_000, 10, |n| format!("state.{n}")).await;
    let bridge = Bridge::start(&config(&nats, "window: { bytes: 64KiB }")).await;
    let stream = context.get_stream("STATE").await.unwrap();
    let (mut broker, mut ours) = (Vec::new(), Vec::new());
    for n in 0..20 {
        let begun = Instant::now();
        let mut consumer = stream
            .create_consumer(async_nats::jetstream::consumer::pull::OrderedConfig {
                filter_subject: format!("state.{}", n * 97),
                deliver_policy: async_nats::jetstream::consumer::DeliverPolicy::LastPerSubject,
                ..Default::default()
            })
            .await
            .unwrap()
            .messages()
            .await
            .unwrap();
        futures_util::StreamExt::next(&mut consumer).await.unwrap().unwrap();
        broker.push(begun.elapsed());
        let begun = Instant::now();
        let mut sse = bridge.subscribe(&format!("subject=state.{}&since=last", n * 97)).await;
        assert_eq!(numbers(&sse.events(1).await), [n * 97]);
        ours.push(begun.elapsed());
    }
    let sent = bridge.metric("brokercast_history_events_total", &[]).await;
    let publishing = async |clients: usize| {
        let mut waiting = tokio::task::JoinSet::new();
        for n in 0..clients {
            let request = bridge.events(&format!("subject=state.{}&since=last", 1000 + n));
            waiting.spawn(async move { Sse::open(request).await.events(1).await.len() });
        }
        let mut times = Vec::new();
        for n in 0..500 {
            let begun = Instant::now();
            context.publish(format!("state.{}", 150_000 + n), "{\"n\":1}".into()).await.unwrap().await.unwrap();
            times.push(begun.elapsed());
        }
        waiting.join_all().await;
        times.sort_unstable();
        times[times.len() * 99 / 100]
    };
    let (quiet, busy) = (publishing(0).await, publishing(20).await);
    let ((ours, slowest), (broker, _)) = (median(&mut ours), median(&mut broker));
    println!(
        "newest of one of 200,000 subjects: {ours:?} (median), {slowest:?} (slowest), a consumer of the test's own {broker:?}; the broker sent \
         {} message a client; a publisher's p99: {quiet:?} alone, {busy:?} beside 20 such clients",
        sent / 20.0
    );
}
