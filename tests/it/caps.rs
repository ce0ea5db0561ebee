//! The pool of subscribers: caps, who gets freed slots, how a full pool answers.

use std::time::Duration;

use serde_json::json;

use crate::support::bridge::OPEN;
use crate::support::token::{jwt, mint};
use crate::support::{Bridge, Item, Raw, Sse, eventually};

fn with_pool(pool: &str) -> String {
    format!("{OPEN}\nsubscribers: {{ {pool} }}\n")
}

/// A refusal that EventSource survives.
async fn is_told_to_wait(request: reqwest::RequestBuilder) {
    let mut sse = Sse::open(request.header("Accept", "text/event-stream")).await;
    let items = sse.rest().await;
    assert!(items.iter().any(|i| matches!(i, Item::Retry(ms) if *ms > 0)), "{items:?}");
    let events: Vec<_> = items.iter().filter_map(|i| if let Item::Event(e) = i { Some(e) } else { None }).collect();
    assert_eq!(events.len(), 1, "{items:?}");
    assert_eq!((events[0].name.as_str(), events[0].reason().as_str()), ("brokercast.closing", "busy"));
}

#[tokio::test]
async fn full_pool_refuses_each_client_in_the_way_it_survives() {
    let bridge = Bridge::start(&with_pool("max: 3")).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(bridge.subscribe("").await);
    }
    for accept in ["*/*", "text/event-stream, */*", "text/event-stream, application/json;q=0.1", "text/html"] {
        let refused = bridge.events("").header("Accept", accept).send().await.unwrap();
        assert_eq!(refused.status(), 503, "{accept}");
        let seconds: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds), "{seconds}");
        assert_eq!(refused.headers()["content-type"], "application/problem+json");
    }
    is_told_to_wait(bridge.events("")).await;
    let quality = bridge.events("").header("Accept", "text/event-stream, */*;q=0").send().await.unwrap();
    assert_eq!(quality.status(), 200);
    assert!(quality.text().await.unwrap().contains("brokercast.closing"));
    // Refusals stand behind 400; HEAD and OPTIONS need no slot.
    assert_eq!(bridge.events("subject=a..b").send().await.unwrap().status(), 400);
    assert_eq!(bridge.http.head(bridge.url("/events")).send().await.unwrap().status(), 200);
    let options = bridge.http.request(reqwest::Method::OPTIONS, bridge.url("/events")).send().await.unwrap();
    assert_eq!(options.status(), 204);
    assert!(options.headers()["allow"].to_str().unwrap().contains("GET"));

    // A slot that is freed is there at once.
    held.pop();
    let freed = std::time::Instant::now();
    let again = eventually("the freed slot", async || {
        let answer = bridge.events("").send().await.unwrap();
        (answer.status() == 200).then_some(answer)
    })
    .await;
    assert!(freed.elapsed() < Duration::from_secs(2), "{:?}", freed.elapsed());
    assert_eq!(again.headers()["content-type"], "text/event-stream");
    assert_eq!(bridge.events("").send().await.unwrap().status(), 503);
}

#[tokio::test]
async fn head_and_options_take_no_slot_and_answer_like_get() {
    let bridge = Bridge::start(&with_pool("max: 1")).await;
    for _ in 0..3 {
        let head = bridge.http.head(bridge.url("/events")).send().await.unwrap();
        assert_eq!(head.status(), 200);
        assert_eq!(head.headers()["content-type"], "text/event-stream");
        assert_eq!(head.headers()["cache-control"], "no-store, no-transform");
        assert_eq!(head.headers()["x-accel-buffering"], "no");
    }
    bridge.subscribe("").await;
    assert_eq!(bridge.http.head(bridge.url("/events?subject=a..b")).send().await.unwrap().status(), 400);
}

#[tokio::test]
async fn cap_is_never_exceeded_by_a_race_of_two_hundred() {
    let bridge = Bridge::start(&with_pool("max: 50")).await;
    let address = bridge.address();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let address = address.clone();
        tasks.spawn(async move {
            let mut raw = Raw::get(&address, "/events").await;
            let status = raw.head().await.status;
            (status, raw)
        });
    }
    let answers = tasks.join_all().await;
    let accepted = answers.iter().filter(|(s, _)| *s == 200).count();
    assert_eq!(accepted, 50);
    assert!(answers.iter().all(|(s, _)| *s == 200 || *s == 503));
    assert_eq!(bridge.metric("brokercast_subscribers", &[]).await, 50.0);
    // All leave at once; the whole pool is there again.
    drop(answers);
    eventually("an empty pool", async || (bridge.metric("brokercast_subscribers", &[]).await == 0.0).then_some(())).await;
    let mut held = Vec::new();
    for _ in 0..50 {
        held.push(bridge.subscribe("").await);
    }
    assert_eq!(bridge.events("").send().await.unwrap().status(), 503);
}

#[tokio::test]
async fn identity_and_address_have_caps_of_their_own() {
    let config = format!(
        "auth:\n{}sources: {{ inbox: {{ http: {{ subjects: [\"demo.>\"] }} }} }}\nsubscribers: {{ max: 10, max_per_identity: 2 }}\n",
        jwt()
    );
    let bridge = Bridge::start(&config).await;
    let token = |sub: &str| mint(json!({"sub": sub, "subjects": ["demo.>"]}));
    let (ada, bob) = (token("ada"), token("bob"));
    let open = async |token: &str| Sse::open(bridge.events("").bearer_auth(token)).await;
    let held = [open(&ada).await, open(&ada).await];
    let refused = bridge.events("").bearer_auth(&ada).send().await.unwrap();
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    is_told_to_wait(bridge.events("").bearer_auth(&ada)).await;
    let _bob = open(&bob).await;
    // Another token of the same person counts as the same; one without `sub` has no identity cap.
    assert_eq!(bridge.events("").bearer_auth(mint(json!({"sub": "ada", "subjects": [">"]}))).send().await.unwrap().status(), 429);
    let nameless = mint(json!({"subjects": ["demo.>"]}));
    let _nameless = [open(&nameless).await, open(&nameless).await, open(&nameless).await];
    drop(held);
    eventually("ada's slot", async || (bridge.events("").bearer_auth(&ada).send().await.unwrap().status() == 200).then_some(())).await;

    let bridge = Bridge::start(&with_pool("max_per_address: 2")).await;
    let _held = [bridge.subscribe("").await, bridge.subscribe("").await];
    // Nobody's word is believed about where it comes from, unless it is a trusted proxy.
    let claimed = bridge.events("").header("X-Forwarded-For", "192.0.2.1").send().await.unwrap();
    assert_eq!(claimed.status(), 429);

    let bridge = Bridge::start(&with_pool("max_per_address: 1, trusted_proxies: [\"127.0.0.0/8\"]")).await;
    let from = |address: &str| bridge.events("").header("X-Forwarded-For", address.to_owned());
    let _first = Sse::open(from("192.0.2.1")).await;
    assert_eq!(from("192.0.2.1").send().await.unwrap().status(), 429);
    let _second = Sse::open(from("192.0.2.2")).await;
    // What a client claims stands left of what the proxy saw.
    assert_eq!(from("198.51.100.9, 192.0.2.2").send().await.unwrap().status(), 429);
}

#[tokio::test]
async fn newcomer_waits_for_a_slot_where_that_is_configured() {
    let bridge = Bridge::start(&with_pool("max: 1, when_full: { wait: 20s, waiting: 1 }")).await;
    let held = bridge.subscribe("").await;
    let (mut one, mut two) = (Raw::get(&bridge.address(), "/events").await, Raw::get(&bridge.address(), "/events").await);
    // One of two newcomers finds the queue full, the other waits.
    let (refused, mut waiting) = tokio::select! {
        head = one.head() => (head, two),
        head = two.head() => (head, one),
    };
    assert_eq!(refused.status, 503);
    drop(held);
    assert_eq!(waiting.head().await.status, 200);

    let bridge = Bridge::start(&with_pool("max: 1, when_full: { wait: 1s, waiting: 5 }")).await;
    let _held = bridge.subscribe("").await;
    let start = std::time::Instant::now();
    assert_eq!(bridge.events("").send().await.unwrap().status(), 503);
    assert!(start.elapsed() >= Duration::from_millis(900), "{:?}", start.elapsed());
}

#[tokio::test]
async fn disconnects_free_their_slots_without_any_event() {
    let bridge = Bridge::start(&with_pool("max: 20")).await;
    for _ in 0..3 {
        let mut held = Vec::new();
        for _ in 0..20 {
            held.push(Raw::get(&bridge.address(), "/events").await);
            held.last_mut().unwrap().head().await;
        }
        drop(held);
        let start = std::time::Instant::now();
        eventually("no subscriber", async || (bridge.metric("brokercast_subscribers", &[]).await == 0.0).then_some(())).await;
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    }
}
