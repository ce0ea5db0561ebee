//! Streams.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use brokercast::internals::{Adapter, ErrorKind, GapReason, Item, Message, Position, SourceError, Start, Timestamp};
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::drive::{Reading, chain, source, texts};
use crate::support::entries::{Entries, Entry};
use crate::support::plain::{Plain, long as long_string, short};
use crate::support::proxy::Proxy;
use crate::support::rabbit::{Amqp, Rabbit};
use crate::support::wait::eventually;

const STREAM: &str = "brokercast.trades";

fn trades(rabbit: &Rabbit) -> Arc<dyn Adapter> {
    source("trades", json!({ "url": rabbit.url(), "exchange": "trades", "queue_type": "stream" }))
}

async fn publish(client: &Amqp, from: usize, to: usize) {
    for n in from..to {
        client.publish("trades", "t", n.to_string().as_bytes()).await;
    }
}

fn numbers(from: usize, to: usize) -> Vec<String> {
    (from..to).map(|n| n.to_string()).collect()
}

/// A stream of the test's own with segments as small as can be.
async fn declare_small(client: &Amqp, name: &str, segment: i64, max: i64) {
    let mut table = FieldTable::default();
    table.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
    table.insert("x-stream-max-segment-size-bytes".into(), AMQPValue::LongLongInt(segment));
    table.insert("x-max-length-bytes".into(), AMQPValue::LongLongInt(max));
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    client.channel.queue_declare(name.into(), options, table).await.unwrap();
}

async fn delete(client: &Amqp, name: &str) {
    client.channel.queue_delete(name.into(), QueueDeleteOptions::default()).await.unwrap();
}

fn tail(reading: &Reading) -> Option<Option<Position>> {
    reading.items.iter().find_map(|item| if let Item::Tail(position) = item { Some(*position) } else { None })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_read_from_any_place_and_by_every_reader_alike() {
    let rabbit = Rabbit::start().await;
    let trades = trades(&rabbit);
    assert!(trades.durable() && !trades.loses_while_away());
    let window = Start::Recent { age: Duration::from_secs(600), bytes: 1 << 20 };
    let mut live = Reading::open(&trades, window).await.unwrap();
    live.until(|items| items.len() == 1).await;
    assert_eq!(tail(&live), Some(None), "an empty stream knows no position");
    let client = rabbit.client().await;
    publish(&client, 0, 10).await;
    // Twins, and a key that is no text.
    Plain::connect(rabbit.port()).publish(b"trades", b"\xff", &[0, 0], b"10");
    publish(&client, 10, 11).await;
    publish(&client, 10, 20).await;
    let read = live.messages(22).await;
    let expected: Vec<String> = [numbers(0, 10), vec!["10".into()], numbers(10, 11), numbers(10, 20)].concat();
    assert_eq!(texts(&read), expected);
    assert_eq!(read[10].subject.to_string(), "%FF");

    // From each place, for a live reader and for history: what follows, no more and no less, and the same positions.
    let positions: Vec<_> = read.iter().map(|m| m.position.unwrap()).collect();
    let last = *positions.last().unwrap();
    for (n, position) in positions.iter().enumerate() {
        let mut reading = Reading::history(&trades, Start::After(*position)).await.unwrap();
        reading.until(|items| items.iter().any(|item| matches!(item, Item::Tail(_)))).await;
        let got: Vec<_> = reading.all().iter().map(|m| m.position.unwrap()).collect();
        assert_eq!(got, positions[n + 1..], "after {position:?}");
        assert_eq!((tail(&reading), reading.gaps()), (Some(Some(last)), vec![]));
        assert!(matches!(reading.items.last(), Some(Item::Tail(_))), "the tail comes last");
    }
    for (start, count) in [
        (Start::Now, 0),
        (Start::Earliest, 22),
        (Start::Since(Timestamp::now().before(Duration::from_secs(3600))), 22),
        (Start::Since(Timestamp::from_micros(Timestamp::now().as_micros() + 3_600_000_000)), 0),
        (window, 22),
        (Start::Recent { age: Duration::from_secs(600), bytes: 3000 }, 10),
    ] {
        let mut reading = Reading::open(&trades, start).await.unwrap();
        reading.until(|items| items.iter().any(|item| matches!(item, Item::Tail(_)))).await;
        let got = reading.all();
        assert_eq!(tail(&reading), Some(Some(last)), "{start:?}");
        assert!(
            got.len() == count || matches!(start, Start::Recent { .. }) && (1..=count).contains(&got.len()),
            "{start:?}: {}",
            got.len()
        );
        assert_eq!(texts(&got), expected[22 - got.len()..], "{start:?}");
        reading.close().await;
    }
    assert!(trades.history(Start::LastPerSubject).await.is_err());

    // History goes on beyond the tail, while it is kept.
    let mut history = Reading::history(&trades, Start::After(last)).await.unwrap();
    publish(&client, 20, 23).await;
    assert_eq!(texts(&history.messages(3).await), numbers(20, 23));
    assert_eq!(texts(&live.messages(25).await[22..]), numbers(20, 23));
    assert!(live.gaps().is_empty());
    history.close().await;
    live.close().await;
}

/// Connections of the client library in this process: it has a thread for each.
fn connections() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default());
    names.filter(|name| name.starts_with("lapin")).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_of_large_messages_has_a_connection_of_its_own_and_misses_nothing() {
    let rabbit = Rabbit::start().await;
    let client = rabbit.client().await;
    let trades = trades(&rabbit);
    drop(Reading::open(&trades, Start::Now).await.unwrap());
    let sizes: Vec<usize> = (0..700).map(|n| if (300..330).contains(&n) { 1 << 20 } else { 0 }).collect();
    for (n, size) in sizes.iter().enumerate() {
        client.publish("trades", "t", format!("{n}{}", " ".repeat(*size)).as_bytes()).await;
    }
    let read = |messages: &[Message]| texts(messages).iter().map(|text| text.trim_end().to_owned()).collect::<Vec<_>>();
    // One that waits at the end keeps the shared connection.
    let mut small = Reading::history(&trades, Start::Now).await.unwrap();
    small.until(|items| !items.is_empty()).await;
    eventually("the connection of the live reader to end", async || (connections() == 2).then_some(())).await;
    let mut whole = Reading::history(&trades, Start::Earliest).await.unwrap();
    assert_eq!(connections(), 2, "it begins with small messages");
    let messages = whole.messages(700).await;
    assert_eq!(read(&messages), numbers(0, 700));
    assert_eq!((whole.gaps().len(), connections()), (0, 3));
    drop(whole);
    // One that begins where they are large has its own from the beginning.
    eventually("the large one's connection to end", async || (connections() == 2).then_some(())).await;
    let mut large = Reading::history(&trades, Start::After(messages[310].position.unwrap())).await.unwrap();
    assert_eq!(connections(), 3);
    assert_eq!(read(&large.messages(389).await), numbers(311, 700));
    assert!(large.gaps().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_reader_that_is_far_behind_in_large_messages_is_told_what_the_broker_dropped() {
    let rabbit = Rabbit::start().await;
    let client = rabbit.client().await;
    declare_small(&client, "large", 10 << 20, 80 << 20).await;
    let large = source("large", json!({ "url": rabbit.url(), "queue": "large", "queue_type": "stream", "prefetch": 60 }));
    let mut live = Reading::open(&large, Start::Now).await.unwrap();
    for n in 0..250 {
        client.publish("", "large", format!("{n} {}", "x".repeat(1 << 20)).as_bytes()).await;
    }
    // Behind what is gone more waits than is read at a time: the answer to the question whether it is gone may not stand behind that.
    let last =
        |items: &[Item]| items.iter().rev().any(|item| matches!(item, Item::Message(message) if message.payload.starts_with(b"249 ")));
    live.until(last).await;
    assert!(!live.gaps().is_empty() && live.gaps().iter().all(|gap| gap.reason == GapReason::Retention), "{:?}", live.gaps());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_was_deleted_is_made_again_and_that_is_a_reset() {
    let rabbit = Rabbit::start().await;
    let trades = trades(&rabbit);
    let client = rabbit.client().await;
    let mut live = Reading::open(&trades, Start::Earliest).await.unwrap();
    publish(&client, 0, 20).await;
    let old = live.messages(20).await;
    let at = |n: usize| old[n].position.unwrap();

    delete(&client, STREAM).await;
    let (error, after) = live.broken().await;
    assert!(chain(&error).contains("was deleted"), "{}", chain(&error));
    assert!(after < Duration::from_secs(2), "{after:?}");
    // Empty: nothing is left, and it begins anew.
    let mut empty = Reading::open(&trades, Start::After(at(19))).await.unwrap();
    empty.until(|items| items.len() == 2).await;
    let gap = &empty.gaps()[0];
    assert_eq!((gap.reason, gap.from, gap.to, gap.position), (GapReason::Reset, Some(at(19).seq), None, None));
    assert_eq!(tail(&empty), Some(None));

    // Shorter than the position, then longer, with something else there.
    for (n, left) in [(5, 5), (30, 25)] {
        for i in 0..left {
            client.publish("trades", "t", format!("new {i}").as_bytes()).await;
        }
        let mut reading = Reading::open(&trades, Start::After(at(19))).await.unwrap();
        let got = reading.messages(n).await;
        assert_eq!(String::from_utf8_lossy(&got[0].payload), "new 0");
        let gap = &reading.gaps()[0];
        assert_eq!((gap.reason, gap.from, gap.to, reading.gaps().len()), (GapReason::Reset, Some(at(19).seq), Some(0), 1));
        assert!(matches!(reading.items[0], Item::Gap(_)), "the gap comes first");
        // Its positions can be gone on from.
        let mut again = Reading::history(&trades, Start::After(got[2].position.unwrap())).await.unwrap();
        assert_eq!(again.messages(n - 3).await.len(), n - 3);
        assert!(again.gaps().is_empty());
    }
    // What came to the reader that waited at the empty stream is all of it.
    assert_eq!(texts(&empty.messages(5).await[..5]), ["new 0", "new 1", "new 2", "new 3", "new 4"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_is_a_gap_exactly_where_something_was_lost() {
    let rabbit = Rabbit::start().await;
    let client = rabbit.client().await;
    // Where they came through an exchange, a reader that sees the stream for the first time knows of its notes.
    for (name, exchange) in [("small", ""), ("routed", "amq.fanout")] {
        declare_small(&client, name, 20_000, 60_000).await;
        let routed = !exchange.is_empty();
        if routed {
            client.channel.queue_bind(name.into(), exchange.into(), "".into(), Default::default(), Default::default()).await.unwrap();
        }
        let open = || source("small", json!({ "url": rabbit.url(), "queue": name, "queue_type": "stream" }));
        let small = open();
        let mut live = Reading::open(&small, Start::Now).await.unwrap();
        for n in 0..300 {
            client.publish(exchange, name, format!("{n} {}", "x".repeat(1000)).as_bytes()).await;
        }
        let all = live.messages(300).await;
        assert!(live.gaps().is_empty(), "holes in the offsets are no gaps: {:?}", live.gaps());
        let positions: Vec<_> = all.iter().map(|m| m.position.unwrap()).collect();
        assert!(positions.windows(2).any(|p| p[1].seq > p[0].seq + 1), "this test needs holes");

        let mut whole = Reading::history(&small, Start::Earliest).await.unwrap();
        whole.until(|items| items.iter().any(|item| matches!(item, Item::Tail(_)))).await;
        let left = whole.all().len();
        assert!((5..200).contains(&left), "{left} are left");
        let first = 300 - left;
        // Of each place just before and behind the cut: a gap if and only if something between is gone.
        let read = open();
        for n in [0, first - 2, first - 1, first, first + 1, 298, 299] {
            let fresh = if routed { open() } else { Arc::clone(&read) };
            for adapter in [&small, &fresh] {
                let mut reading = Reading::history(adapter, Start::After(positions[n])).await.unwrap();
                reading.until(|items| items.iter().any(|item| matches!(item, Item::Tail(_)))).await;
                let got = reading.all();
                assert_eq!(got.len(), left.min(299 - n), "after {n}");
                let gaps = reading.gaps();
                assert_eq!(gaps.len(), usize::from(n + 1 < first), "after {n} of which {first} are gone: {gaps:?}");
                if let Some(gap) = gaps.first() {
                    let range = (Some(positions[n].seq), Some(positions[first].seq));
                    assert_eq!((gap.reason, gap.from, gap.to), (GapReason::Retention, range.0, range.1));
                    // Told once: the place behind it leads on without another.
                    let mut again = Reading::history(adapter, Start::After(gap.position.unwrap())).await.unwrap();
                    assert_eq!(again.messages(left).await.len(), left);
                    assert!(again.gaps().is_empty(), "{:?}", again.gaps());
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_of_the_brokers_own_that_a_publisher_sent_is_not_taken_for_it() {
    let rabbit = Rabbit::start().await;
    let trades = trades(&rabbit);
    let mut live = Reading::open(&trades, Start::Now).await.unwrap();
    let mut plain = Plain::connect(rabbit.port());
    let long = |n: i64| [&b"l"[..], &n.to_be_bytes()].concat();
    let values = [long(0), long(1 << 40), b"x\0\0\0\x01a".to_vec(), b"t\x01".to_vec()];
    let mut published = 0;
    let mut publish = |properties: &[u8]| {
        plain.publish(b"trades", b"t", properties, published.to_string().as_bytes());
        published += 1;
    };
    // The broker replaces the first; it does not look for more.
    for value in &values {
        for times in [1, 2, 3] {
            let entry = [&short(b"x-stream-offset")[..], value].concat();
            publish(&[&[0x20, 0][..], &long_string(&entry.repeat(times))].concat());
            publish(&[0, 0]);
        }
    }
    let read = live.messages(published).await;
    assert_eq!((texts(&read), live.gaps()), (numbers(0, published), vec![]));
    let offsets: Vec<_> = read.iter().map(|m| m.position.unwrap().seq).collect();
    assert!(offsets.is_sorted_by(|a, b| a < b) && offsets[published - 1] < 100, "{offsets:?}");
    for (n, before) in read.iter().enumerate() {
        let mut history = Reading::history(&trades, Start::After(before.position.unwrap())).await.unwrap();
        assert_eq!(texts(&history.messages(published - n - 1).await), numbers(n + 1, published));
        assert!(history.gaps().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_lost_message_is_a_gap_where_segments_begin_without_notes() {
    let mut rabbit = Rabbit::absent("stream.listeners.tcp.1 = {tls}");
    rabbit.enable(&["rabbitmq_stream"]);
    rabbit.restart().await;
    let limits = [("max-length-bytes", "60000"), ("stream-max-segment-size-bytes", "20000")];
    let mut entries = Entries::with(rabbit.tls_port(), "bare", &limits);
    let open = || source("bare", json!({ "url": rabbit.url(), "queue": "bare", "queue_type": "stream" }));
    let bare = open();
    let mut live = Reading::open(&bare, Start::Now).await.unwrap();
    // One in each segment.
    for n in 0..10 {
        entries.publish(&Entry::text(format!("{n} {}", "x".repeat(30_000))));
        live.messages(n + 1).await;
    }
    let all = live.all();
    let places: Vec<_> = all.iter().map(|message| message.position.unwrap()).collect();
    assert!(live.gaps().is_empty() && places.windows(2).all(|two| two[1].seq == two[0].seq + 1), "this test needs no holes: {places:?}");
    for adapter in [bare, open()] {
        let each = async || {
            let mut single = 0;
            for place in &places[..9] {
                let mut reading = Reading::history(&adapter, Start::After(*place)).await.unwrap();
                let next = reading.messages(1).await[0].position.unwrap().seq;
                let gaps: Vec<_> = reading.gaps().iter().map(|gap| (gap.reason, gap.from, gap.to)).collect();
                let expected = (next > place.seq + 1).then_some((GapReason::Retention, Some(place.seq), Some(next)));
                assert_eq!(gaps, expected.into_iter().collect::<Vec<_>>(), "after {place:?}");
                single += usize::from(next == place.seq + 2);
            }
            // The broker may have dropped more meanwhile.
            (single == 1).then_some(())
        };
        eventually("one place to be followed by a single lost message", each).await;
    }
}

/// What a reader has seen.
#[derive(Default)]
struct Counts {
    /// Connections that broke.
    breaks: AtomicUsize,
    /// Attempts to connect that failed.
    failures: AtomicUsize,
    messages: AtomicUsize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::too_many_lines, reason = "one story, in its order")]
async fn whatever_breaks_each_message_comes_once_and_in_order() {
    let mut rabbit = Rabbit::start().await;
    let proxy = Proxy::start(rabbit.port());
    let url = format!("amqp://127.0.0.1:{}/%2f?heartbeat=1", proxy.port());
    let trades = source("trades", json!({ "url": url, "exchange": "trades", "queue_type": "stream" }));
    drop(Reading::insist(&trades, Start::Now).await);
    let done = Arc::new(AtomicBool::new(false));
    let counts = [(); 2].map(|()| Arc::<Counts>::default());

    // Two readers: one as the supervisor reads, one as histories are read. Each goes on from its last message.
    let readers: Vec<_> = [true, false]
        .into_iter()
        .zip(counts.clone())
        .map(|(live, counts)| {
            let (trades, done) = (trades.clone(), done.clone());
            tokio::spawn(async move {
                let (mut got, mut gaps) = (Vec::<Message>::new(), Vec::new());
                while !done.load(Ordering::SeqCst) {
                    let start = got.last().map_or(Start::Earliest, |m| Start::After(m.position.unwrap()));
                    let opened = if live { Reading::open(&trades, start).await } else { Reading::history(&trades, start).await };
                    let Ok(mut reading) = opened else {
                        counts.failures.fetch_add(1, Ordering::SeqCst);
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        continue;
                    };
                    while !done.load(Ordering::SeqCst) {
                        if let Ok(Err(_)) = tokio::time::timeout(Duration::from_millis(200), reading.once()).await {
                            break;
                        }
                        counts.messages.store(got.len() + reading.all().len(), Ordering::SeqCst);
                    }
                    got.extend(reading.all());
                    gaps.extend(reading.gaps());
                    counts.breaks.fetch_add(1, Ordering::SeqCst);
                }
                (got, gaps)
            })
        })
        .collect();

    let mut published = 0;
    for round in 0..7 {
        let client = rabbit.client().await;
        for _ in 0..300 {
            client.publish("trades", "t", format!("{published} {}", "x".repeat(published % 700)).as_bytes()).await;
            published += 1;
        }
        match round % 4 {
            0 => proxy.cut(),
            1 => proxy.cut_after(20_000),
            2 => {
                let losses = || counts.each_ref().map(|c| c.breaks.load(Ordering::SeqCst) + c.failures.load(Ordering::SeqCst));
                let before = losses();
                proxy.set_silent(true);
                let noticed = async || before.iter().zip(losses()).all(|(before, now)| *before < now).then_some(());
                eventually("both readers to notice the silence", noticed).await;
                proxy.set_silent(false);
            }
            _ => {
                drop(client);
                rabbit.kill();
                rabbit.restart().await;
                // Until the stream has come up RabbitMQ takes messages for it and loses them.
                drop(Reading::insist(&trades, Start::Now).await);
            }
        }
    }
    let mut whole = Reading::insist(&trades, Start::Earliest).await;
    let expected: Vec<_> = whole.messages(published).await.iter().map(|m| (m.position, m.payload.clone())).collect();
    assert_eq!(expected.len(), published, "the broker lost something by itself");
    let all = async || counts.iter().all(|counts| counts.messages.load(Ordering::SeqCst) >= published).then_some(());
    eventually("both readers to have read all", all).await;
    done.store(true, Ordering::SeqCst);
    for (reader, counts) in readers.into_iter().zip(counts) {
        let (got, gaps) = reader.await.unwrap();
        let breaks = counts.breaks.load(Ordering::SeqCst);
        let got: Vec<_> = got.iter().map(|m| (m.position, m.payload.clone())).collect();
        assert!(breaks > 3, "only {breaks} breaks");
        assert!(gaps.is_empty(), "{gaps:?}");
        assert_eq!(got.len(), expected.len());
        assert!(got == expected);
    }
}

#[tokio::test]
async fn histories_do_not_wait_for_one_anothers_attempts_to_connect() {
    // It accepts, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("amqp://{}/%2f", silent.local_addr().unwrap());
    let trades = source("trades", json!({ "url": url, "exchange": "trades", "queue_type": "stream" }));
    let mut histories = JoinSet::new();
    for _ in 0..4 {
        let trades = trades.clone();
        histories.spawn(async move { trades.history(Start::Earliest).await.is_ok() });
    }
    let mut attempts = Vec::new();
    let all = async {
        while attempts.len() < 4 {
            attempts.push(silent.accept().await.unwrap());
        }
    };
    // The broker has ten seconds to answer one attempt.
    timeout(Duration::from_secs(8), all).await.expect("each tries at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_partition_before_others_is_an_error_that_names_both() {
    let rabbit = Rabbit::start().await;
    let client = rabbit.client().await;
    let declare = async |number: u8| declare_small(&client, &format!("parted-{number}"), 1 << 20, 1 << 30).await;
    let parted = source("parted", json!({ "url": rabbit.url(), "queue": "parted", "queue_type": "super_stream" }));
    let names = |error: &SourceError, missing: u8, there: u8| {
        assert_eq!(error.kind(), ErrorKind::Missing);
        let text = chain(error);
        assert!(text.contains(&format!("`parted-{missing}` is missing, though `parted-{there}` is there")), "{text}");
    };
    declare(0).await;
    declare(3).await;
    names(&Reading::open(&parted, Start::Now).await.err().unwrap(), 1, 3);
    let faults = parted.check().await;
    names(&faults[0], 1, 3);
    assert_eq!(faults.len(), 1);
    // Added while it is read.
    declare(1).await;
    declare(2).await;
    let mut live = Reading::open(&parted, Start::Now).await.unwrap();
    declare(5).await;
    names(&live.broken().await.0, 4, 5);
}
