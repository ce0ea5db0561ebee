//! Exchanges and queues.

use std::time::Duration;

use brokercast::source::Start;
use serde_json::json;

use crate::support::drive::{Reading, chain, source, subjects, texts};
use crate::support::plain::{Plain, long, short};
use crate::support::rabbit::Rabbit;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_exchange_gets_arrives_under_its_routing_key_whatever_bytes_that_is() {
    let rabbit = Rabbit::start().await;
    let config = json!({ "url": rabbit.url(), "exchange": "trades" });
    let trades = source("trades", config.clone());
    let mut reading = Reading::open(&trades, Start::Now).await.unwrap();
    let client = rabbit.client().await;
    for (key, payload) in [("eu.acme", "1"), ("", "2"), ("a..b", "3"), ("with space", "4"), ("100%", "5")] {
        client.publish("trades", key, payload.as_bytes()).await;
    }
    let read = reading.messages(5).await;
    assert_eq!(subjects(&read), ["eu.acme", "trades", "a.%2Eb", "with%20space", "100%25"]);
    assert_eq!(texts(&read), ["1", "2", "3", "4", "5"]);

    let mut plain = Plain::connect(rabbit.port());
    let nested = {
        // A table in a table in a table …, 2,000 deep.
        let mut table = long(b"");
        for _ in 0..2000 {
            table = long(&[short(b"t"), vec![b'F'], table].concat());
        }
        [&[0b0010_0000, 0], &*table].concat()
    };
    plain.publish(b"trades", b"caf\xe9.\xff", &[0, 0], b"6");
    plain.publish(b"trades", b"odd.props", &[&[0b1000_0000, 0][..], &short(b"\xff\xfe")].concat(), b"7");
    let table = long(&[short(b"\xfe"), vec![b'S'], long(b"\xff")].concat());
    plain.publish(b"trades", b"odd.header", &[&[0b0010_0000, 0], &*table].concat(), b"8");
    plain.publish(b"trades", b"deep", &nested, b"9");
    plain.publish(b"trades", b"last", &[0, 0], b"10");
    let read = reading.messages(10).await;
    assert_eq!(subjects(&read[5..]), ["caf%E9.%FF", "odd.props", "odd.header", "deep", "last"]);
    assert_eq!(texts(&read[5..]), ["6", "7", "8", "9", "10"]);
    reading.close().await;

    trades.publish("eu.x", "out".into()).await.unwrap();
    let mut reading = Reading::open(&trades, Start::Now).await.unwrap();
    trades.publish("eu.x", "in".into()).await.unwrap();
    // Nobody kept what came while nobody was there, and the adapter says so.
    assert_eq!(texts(&reading.messages(1).await), ["in"]);
    assert!(trades.loses_while_away());
    reading.during(Duration::from_millis(100)).await;
    let wrong = source("other", json!({ "url": rabbit.url(), "exchange": "trades", "exchange_type": "fanout" }));
    let error = chain(&Reading::open(&wrong, Start::Now).await.err().unwrap());
    assert!(error.contains("exchange `trades` is there, but not as a durable fanout exchange"), "{error}");
}
