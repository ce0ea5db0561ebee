//! `rates`: how often a client may connect, publish and ask for history.

use serde_json::{Value, json};

use crate::support::bridge::run;
use crate::support::token::{jwt, mint};
use crate::support::{Bridge, Item, Sse, eventually};

fn config(rates: &str) -> String {
    format!(
        "auth:\n{}rates: {rates}\nsubscribers: {{ max_per_identity: false, trusted_proxies: [127.0.0.0/8] }}\n\
         sources: {{ inbox: {{ http: {{ subjects: [\">\"] }} }} }}\n",
        jwt()
    )
}

fn token(identity: &str) -> String {
    mint(json!({"sub": identity, "subjects": [">"], "publish": [">"]}))
}

#[tokio::test]
async fn who_comes_too_often_is_told_when_to_come_back() {
    let rates =
        "{ connect: { per_identity: 3/h, per_address: 10/h }, publish: { per_identity: 2/m }, history: { per_address: 60/h, burst: 1 } }";
    let bridge = Bridge::start(&config(rates)).await;
    let events = |identity: &str, query: &str| bridge.events(query).bearer_auth(token(identity)).header("x-forwarded-for", "192.0.2.1");
    for _ in 0..3 {
        assert_eq!(events("ada", "").send().await.unwrap().status(), 200);
    }
    let answer = events("ada", "").send().await.unwrap();
    assert_eq!(answer.status(), 429);
    let wait: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1000..=1200).contains(&wait), "{wait}");
    let body: Value = answer.json().await.unwrap();
    assert!(body["detail"].as_str().unwrap().contains("this identity connects more often"), "{body}");
    // An EventSource survives it, and waits.
    let mut sse = Sse::open(events("ada", "").header("accept", "text/event-stream")).await;
    let items = sse.rest().await;
    assert!(items.iter().any(|item| matches!(item, Item::Retry(1_000_000..))), "{items:?}");
    let Some(Item::Event(last)) = items.last() else { panic!("{items:?}") };
    assert_eq!(last.reason(), "busy");
    // Others go on, until their address has come too often: then nobody looks who asks.
    for n in 0..5 {
        assert_eq!(events(&format!("bob{n}"), "").send().await.unwrap().status(), 200);
    }
    assert_eq!(events("eve", "subject=..").send().await.unwrap().status(), 429);
    let elsewhere = |query: &str| bridge.events(query).bearer_auth(token("zoe")).header("x-forwarded-for", "192.0.2.2");
    assert_eq!(elsewhere("since=all").send().await.unwrap().status(), 200);
    let history = elsewhere("since=10m").send().await.unwrap();
    assert_eq!((history.status().as_u16(), history.text().await.unwrap().contains("asks for history")), (429, true));
    assert_eq!(elsewhere("since=now").send().await.unwrap().status(), 200);
    let publish = async |identity: &str| {
        let answer = bridge.http.post(bridge.url("/publish/x")).bearer_auth(token(identity)).body("1").send().await.unwrap();
        (answer.status().as_u16(), answer.headers().contains_key("retry-after"))
    };
    assert_eq!([publish("ada").await, publish("ada").await, publish("ada").await], [(202, false), (202, false), (429, true)]);
    assert_eq!(publish("bob").await.0, 202);
    let refused = async |name: &str| bridge.metric(name, &["\"rate\""]).await;
    assert!(refused("brokercast_refused_subscribers_total").await >= 4.0);
    assert!((refused("brokercast_published_messages_total").await - 1.0).abs() < 0.1);
    // By a reload they are lifted, without a restart.
    bridge.configure(&config("{}"));
    eventually("the rates to be lifted", async || (events("ada", "").send().await.unwrap().status() == 200).then_some(())).await;
}

#[tokio::test]
async fn a_rate_fills_up_again() {
    let bridge = Bridge::start(&config("{ connect: { per_identity: 2/s, burst: 1 } }")).await;
    let status = async || bridge.events("").bearer_auth(token("ada")).send().await.unwrap().status().as_u16();
    let mut seen = Vec::new();
    eventually("a refusal", async || {
        seen.push(status().await);
        (seen.last() == Some(&429)).then_some(())
    })
    .await;
    eventually("the next turn", async || (status().await == 200).then_some(())).await;
}

#[test]
fn check_says_what_a_rate_is() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    let check = |rates: &str| {
        std::fs::write(&file, format!("rates: {rates}\nsources: {{ inbox: {{ http: {{ subjects: [\">\"] }} }} }}\n")).unwrap();
        let output = run(&["check", "--config", file.to_str().unwrap()]);
        (output.status.code(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = check(
        "{ connect: { per_identity: 10/s, per_address: \"100 / m\", burst: 20 }, publish: { per_address: 5000/d }, history: { per_identity: false } }",
    );
    assert!(code == Some(0) && said.contains("per_identity: 10/s") && said.contains("burst: 20"), "{said}");
    for (rates, key) in [
        ("{ connect: { per_identity: 10 } }", "rates.connect.per_identity"),
        ("{ connect: { per_identity: 0/s } }", "rates.connect.per_identity"),
        ("{ connect: { per_identity: 10/w } }", "rates.connect.per_identity"),
        ("{ connect: { per_address: true } }", "rates.connect.per_address"),
        ("{ publish: { per_address: -1/s } }", "rates.publish.per_address"),
        ("{ publish: { per_address: 1.5/s } }", "rates.publish.per_address"),
        ("{ history: { per_address: 1/s, burst: 0 } }", "rates.history.burst"),
        ("{ history: { burst: 5 } }", "rates.history.burst"),
        ("{ events: { per_address: 1/s } }", "rates.events"),
        ("{ connect: { per_ip: 1/s } }", "rates.connect.per_ip"),
    ] {
        let (code, said) = check(rates);
        assert!(code == Some(78) && said.contains(key), "{rates}: {said}");
    }
}
