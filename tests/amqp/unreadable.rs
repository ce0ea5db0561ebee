//! Streams with entries that the broker cannot deliver by AMQP 0-9-1.

use std::sync::Arc;
use std::time::Duration;

use brokercast::internals::{Adapter, Gap, GapReason, Item, Message, Start};
use serde_json::json;

use crate::support::drive::{Reading, source, texts};
use crate::support::entries::{Entries, Entry};
use crate::support::rabbit::Rabbit;

const BAD: Entry = Entry::Raw(b"{\"plain\":1}");

async fn broker() -> Rabbit {
    let mut rabbit = Rabbit::absent("stream.listeners.tcp.1 = {tls}");
    rabbit.enable(&["rabbitmq_stream"]);
    rabbit.restart().await;
    rabbit
}

fn stream(rabbit: &Rabbit, name: &str) -> Arc<dyn Adapter> {
    source("s", json!({ "url": rabbit.url(), "queue": name, "queue_type": "stream" }))
}

/// From where to where each gap is.
fn holes(gaps: &[Gap]) -> Vec<(Option<u64>, Option<u64>)> {
    assert!(gaps.iter().all(|gap| gap.reason == GapReason::Unreadable), "{gaps:?}");
    gaps.iter().map(|gap| (gap.from, gap.to)).collect()
}

async fn to_the_tail(mut reading: Reading) -> Reading {
    let tail = reading.until(|items| items.iter().any(|item| matches!(item, Item::Tail(_))));
    tokio::time::timeout(Duration::from_secs(60), tail).await.expect("the tail");
    reading
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_cannot_be_delivered_is_a_gap_and_all_others_arrive() {
    let rabbit = broker().await;
    let mut entries = Entries::to(rabbit.tls_port(), "mixed");
    let mixed = stream(&rabbit, "mixed");
    let mut live = Reading::open(&mixed, Start::Earliest).await.unwrap();
    // Offsets 5, 11 and 12 cannot be delivered.
    for n in 0..13 {
        entries.publish(&if [5, 11, 12].contains(&n) { BAD } else { Entry::text(n) });
        if n == 2 {
            live.messages(3).await;
        }
    }
    let readable = |from: u64| (from..13).filter(|n| ![5, 11, 12].contains(n)).map(|n| n.to_string()).collect::<Vec<_>>();
    let expected = [(Some(4), Some(6)), (Some(10), Some(12)), (Some(11), Some(13))];
    let joined = [(Some(4), Some(6)), (Some(10), Some(13))];
    let right = |holes: &[(Option<u64>, Option<u64>)], from: usize| holes == &expected[from..] || holes == &joined[from..];
    live.messages(10).await;
    live.until(|items| items.iter().filter(|item| matches!(item, Item::Gap(_))).count() >= 2).await;
    assert_eq!(texts(&live.all()), readable(0));
    assert!(right(&holes(&live.gaps()), 0), "{:?}", live.gaps());

    for start in [Start::Earliest, Start::Recent { age: Duration::from_secs(600), bytes: 1 << 20 }] {
        let fresh = to_the_tail(Reading::open(&mixed, start).await.unwrap()).await;
        assert_eq!(texts(&fresh.all()), readable(0), "{start:?}");
        assert!(right(&holes(&fresh.gaps()), 0), "{:?}", fresh.gaps());
    }
    // From each message, and from the place behind each gap.
    let places: Vec<_> = live
        .items
        .iter()
        .filter_map(|item| match item {
            Item::Message(message) => message.position,
            Item::Gap(gap) => gap.position,
            Item::Tail(_) | Item::Oversized(_) => None,
        })
        .collect();
    for place in places.into_iter().skip(3).step_by(3) {
        let history = to_the_tail(Reading::history(&mixed, Start::After(place)).await.unwrap()).await;
        assert_eq!(texts(&history.all()), readable(place.seq + 1), "{place:?}");
        assert!(history.gaps().iter().all(|gap| gap.to > Some(place.seq + 1)), "told once: {place:?} {:?}", history.gaps());
        let from = [4, 10].iter().filter(|bad| **bad < place.seq).count();
        assert!(right(&holes(&history.gaps()), from) || place.seq > 10, "{place:?} {:?}", history.gaps());
    }

    // What comes behind the end's unreadable messages arrives, and a reader goes on as usual behind many readable ones.
    for n in 13..213 {
        entries.publish(&Entry::text(n));
    }
    let all = live.messages(210).await;
    assert_eq!(texts(&all[10..]), (13..213).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_begins_or_consists_of_what_cannot_be_delivered_is_read_behind_it() {
    let rabbit = broker().await;
    let mut entries = Entries::to(rabbit.tls_port(), "bad");
    // More than are passed one by one.
    for _ in 0..50 {
        entries.publish(&BAD);
    }
    let bad = stream(&rabbit, "bad");
    // The broker ends the connection for each unreadable message: one that is just being opened may be ended too.
    let mut live = Reading::insist(&bad, Start::Recent { age: Duration::from_secs(600), bytes: 1 << 20 }).await;
    live.until(|items| items.iter().any(|item| matches!(item, Item::Gap(_)))).await;
    assert_eq!(holes(&live.gaps()), [(None, Some(50))]);
    entries.publish(&Entry::text(50));
    assert_eq!(texts(&live.messages(1).await), ["50"]);
    let place = live.gaps()[0].position.unwrap();
    let fresh = to_the_tail(Reading::history(&bad, Start::Earliest).await.unwrap()).await;
    assert_eq!((texts(&fresh.all()), holes(&fresh.gaps())), (vec!["50".into()], vec![(None, Some(50))]));
    let again = to_the_tail(Reading::history(&bad, Start::After(place)).await.unwrap()).await;
    assert_eq!((texts(&again.all()), again.gaps()), (vec!["50".into()], vec![]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_between_many_that_cannot_be_delivered_arrive() {
    let rabbit = broker().await;
    for good in [0_u32, 2] {
        let name = format!("islands-{good}");
        let mut entries = Entries::to(rabbit.tls_port(), &name);
        let (runs, mut readable, mut offset) = ([(good, 40), (3, 10), (2, 0)], Vec::new(), 0);
        for (good, bad) in runs {
            for n in 0..good + bad {
                entries.publish(&if n < good { Entry::text(offset) } else { BAD });
                readable.extend((n < good).then(|| offset.to_string()));
                offset += 1;
            }
        }
        let islands = stream(&rabbit, &name);
        let behind = |n: u64| u64::from(good) + n;
        let gaps = [(behind(0).checked_sub(1), Some(behind(40))), (Some(behind(42)), Some(behind(53)))];
        let start = if good > 0 { Start::Earliest } else { Start::Recent { age: Duration::from_secs(600), bytes: 1 << 20 } };
        let live = to_the_tail(Reading::insist(&islands, start).await).await;
        assert_eq!((texts(&live.all()), holes(&live.gaps())), (readable.clone(), gaps.to_vec()), "{start:?}");
        // At the beginning, or behind the first message.
        let (start, first) = if good > 0 { (Start::After(live.all()[0].position.unwrap()), 1) } else { (Start::Earliest, 0) };
        let history = to_the_tail(Reading::history(&islands, start).await.unwrap()).await;
        assert_eq!((texts(&history.all()), holes(&history.gaps())), (readable[first..].to_vec(), gaps.to_vec()), "{start:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compressed_batch_stops_nothing_whether_the_broker_refuses_or_leaves_it_out() {
    let rabbit = broker().await;
    for last in [false, true] {
        let name = if last { "last" } else { "between" };
        let mut entries = Entries::to(rabbit.tls_port(), name);
        let zipped = stream(&rabbit, name);
        let mut live = Reading::open(&zipped, Start::Earliest).await.unwrap();
        let texts_of = |reading: &Reading| texts(&reading.all());
        let batches: &[Entry] = &[Entry::text(1), Entry::text(2), Entry::Compressed(10)];
        batches.iter().for_each(|entry| entries.publish(entry));
        let expected: &[&str] = if last {
            &["1", "2"]
        } else {
            entries.publish(&Entry::text(3));
            &["1", "2", "3"]
        };
        live.messages(expected.len()).await;
        assert_eq!(texts_of(&live), expected);
        // What is left out in silence is counted where something came behind it.
        let (passed, told) = (zipped.gauges().passed.unwrap(), live.gaps().len());
        let expected_passed = if last || told > 0 { 0..=1 } else { 10..=12 };
        assert!(expected_passed.contains(&passed), "{passed} {told}");
        for start in [Start::Earliest, Start::Recent { age: Duration::from_secs(600), bytes: 1 << 20 }] {
            let fresh = to_the_tail(Reading::open(&zipped, start).await.unwrap()).await;
            assert_eq!(texts_of(&fresh), expected, "{start:?}");
            for gap in fresh.gaps() {
                assert!(gap.reason == GapReason::Unreadable && gap.from == Some(1) && gap.to <= Some(12), "{gap:?}");
            }
        }
        let second = live.all()[1].position.unwrap();
        let history = to_the_tail(Reading::history(&zipped, Start::After(second)).await.unwrap()).await;
        assert_eq!(texts_of(&history), expected[2..]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_amqp_1_0_arrive_as_their_publishers_meant_them() {
    let rabbit = broker().await;
    let mut entries = Entries::to(rabbit.tls_port(), "sections");
    let one: &[(&[u8], &str)] = &[
        (b"\0\x53\x75\xa0\x04data", "data"),
        (b"\0\x53\x75\xa0\x03one\0\x53\x75\xa0\x03two", "onetwo"),
        (b"\0\x53\x77\xa1\x07{\"n\":1}", "{\"n\":1}"),
        (b"\0\x53\x77\xa0\x05bytes", "bytes"),
        (b"\0\x53\x77\xc1\x06\x02\xa1\x01a\x54\x01", "{\"a\":1}"),
        (b"\0\x53\x77\xc0\x06\x03\x40\xa1\x01a\x41", "[null,\"a\",true]"),
        (b"\0\x53\x76\xc0\x05\x02\x54\x01\x54\x02", "[1,2]"),
    ];
    for (sections, _) in one {
        entries.publish(&Entry::Sections(sections.to_vec()));
    }
    let sections = stream(&rabbit, "sections");
    let mut reading = Reading::open(&sections, Start::Earliest).await.unwrap();
    let expected: Vec<_> = one.iter().map(|(_, text)| (*text).to_owned()).collect();
    if rabbit.ctl(&["-q", "version"]).starts_with("3.1") {
        // 3.10 and 3.12 deliver data sections from a stream, of several the last, and nothing else.
        assert_eq!(texts(&reading.messages(2).await), ["data", "two"]);
        reading.until(|items| items.iter().any(|item| matches!(item, Item::Gap(gap) if gap.to == Some(7)))).await;
        return;
    }
    assert_eq!(texts(&reading.messages(one.len()).await), expected);
    // The broker's note that a body is encoded is no type that a publisher has set.
    let has_type = |message: &Message| message.headers.get("type").is_some();
    assert!(!reading.all().iter().any(has_type));
    // Positions are checked against the bytes as the broker has them.
    let place = reading.all()[3].position.unwrap();
    let mut history = Reading::history(&sections, Start::After(place)).await.unwrap();
    assert_eq!(texts(&history.messages(3).await), expected[4..]);
    assert!(history.gaps().is_empty());
}
