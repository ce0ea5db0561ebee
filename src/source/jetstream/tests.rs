//! Against real servers; published to, and the streams managed, by an independent client.

mod bucket;
mod cluster;
mod limits;
mod rights;
mod slow;
mod storm;

use std::sync::atomic::Ordering;

use async_nats::jetstream::{self, stream};
use futures_util::StreamExt as _;
use futures_util::future::LocalBoxFuture;
use tokio::time::{sleep, timeout};

use super::*;
use crate::cursor::Check;
use crate::source::State;
use crate::source::nats::tests::{Server, adapter};
use crate::source::tests::{LogRig, Rig, Running, conformance, durable_conformance, eventually, retention_conformance};

async fn client(server: &Server) -> jetstream::Context {
    jetstream::new(async_nats::connect(server.url()).await.expect("connects"))
}

async fn make(context: &jetstream::Context, config: stream::Config) -> stream::Stream {
    context.create_stream(config).await.expect("makes the stream")
}

fn named(subjects: &[&str]) -> stream::Config {
    stream::Config { name: "S".into(), subjects: subjects.iter().map(|s| (*s).to_owned()).collect(), ..Default::default() }
}

fn source(server: &Server, subjects: &[&str]) -> Arc<dyn Adapter> {
    adapter(serde_json::json!({"servers": [server.url()], "subjects": subjects, "jetstream": {"stream": "S"}}))
}

async fn publish(context: &jetstream::Context, subject: &'static str, bodies: std::ops::Range<usize>) {
    let mut acks = Vec::new();
    for n in bodies {
        acks.push(context.publish(subject, n.to_string().into()).await.expect("publishes"));
        if acks.len() == 500 {
            for ack in acks.drain(..) {
                ack.await.expect("is stored");
            }
        }
    }
    for ack in acks {
        ack.await.expect("is stored");
    }
}

/// Reads a history up to its tail, the tail included.
async fn read(source: &Arc<dyn Adapter>, start: Start) -> Vec<Item> {
    let mut connection = source.history(start).await.expect("opens");
    let mut items = Vec::new();
    while !items.iter().any(|item| matches!(item, Item::Tail(_))) {
        timeout(Duration::from_secs(10), connection.next(&mut items, 100)).await.expect("in time").expect("reads");
    }
    items
}

/// `12`, `gap reset 3..7@6`, `tail 9`: positions that have a check end in `!`.
fn texts(items: &[Item]) -> Vec<String> {
    let place = |p: &Option<Position>| p.map_or("-".into(), |p| format!("{}{}", p.seq, if p.check.is_some() { "!" } else { "" }));
    let end = |e: Option<u64>| e.map_or("-".into(), |e| e.to_string());
    let text = |item: &Item| match item {
        Item::Message(m) => String::from_utf8_lossy(&m.payload).into_owned(),
        Item::Gap(g) => format!("gap {} {}..{}@{}", g.reason.as_str(), end(g.from), end(g.to), place(&g.position)),
        Item::Tail(p) => format!("tail {}", place(p)),
        Item::Oversized(_) => unreachable!("no reader knows a limit"),
    };
    items.iter().map(text).collect()
}

fn position_of(items: &[Item], body: &str) -> Position {
    let found = items.iter().find_map(|item| match item {
        Item::Message(m) if m.payload == body.as_bytes() => m.position,
        _ => None,
    });
    found.expect("it was read")
}

/// Checks that numbers come in order, once, and that whatever is missing is missing at a gap; returns the gaps.
fn ledger(items: &[Item], upto: usize) -> Vec<Gap> {
    let (mut next, mut gaps, mut at_gap) = (0, Vec::new(), false);
    for item in items {
        match item {
            Item::Message(m) => {
                let n: usize = String::from_utf8_lossy(&m.payload).parse().expect("a number");
                assert!(n == next || (at_gap && n > next), "{n} came where {next} was expected, gaps: {gaps:?}");
                assert!(n != next || !at_gap, "a gap before {n} where nothing is missing: {:?}", gaps.last());
                (next, at_gap) = (n + 1, false);
            }
            Item::Gap(gap) => {
                gaps.push(gap.clone());
                at_gap = true;
            }
            Item::Tail(_) | Item::Oversized(_) => {}
        }
    }
    assert_eq!(next, upto, "the end is missing");
    gaps
}

struct StreamRig {
    server: Server,
    context: Option<jetstream::Context>,
    politely: bool,
    /// How the source makes the stream.
    create: serde_json::Value,
}

impl StreamRig {
    async fn new(politely: bool, create: serde_json::Value) -> Self {
        Self { server: Server::start().await, context: None, politely, create }
    }

    async fn context(&mut self) -> &jetstream::Context {
        if self.context.is_none() {
            self.context = Some(client(&self.server).await);
        }
        self.context.as_ref().expect("just made")
    }
}

impl Rig for StreamRig {
    fn adapter(&self) -> Arc<dyn Adapter> {
        let stream = serde_json::json!({"stream": "S", "create": self.create});
        adapter(serde_json::json!({"servers": [self.server.url()], "subjects": ["a.>"], "jetstream": stream}))
    }
    fn publish<'a>(&'a mut self, body: &'a str) -> LocalBoxFuture<'a, ()> {
        Box::pin(async move {
            self.context().await.publish("a.b", body.to_owned().into()).await.expect("publishes").await.expect("is stored");
        })
    }
    fn kill(&mut self) -> LocalBoxFuture<'_, bool> {
        self.context = None;
        Box::pin(async move {
            if self.politely {
                self.server.terminate().await
            } else {
                self.server.kill()
            };
            true
        })
    }
    fn revive(&mut self) -> LocalBoxFuture<'_, ()> {
        Box::pin(self.server.revive())
    }
}

impl LogRig for StreamRig {
    fn delete(&mut self) -> LocalBoxFuture<'_, ()> {
        Box::pin(async move {
            self.context().await.delete_stream("S").await.expect("deletes");
        })
    }
}

#[tokio::test]
async fn jetstream_conforms_when_its_server_is_killed() {
    conformance(&mut StreamRig::new(false, true.into()).await).await;
}

#[tokio::test]
async fn jetstream_conforms_when_its_server_is_restarted() {
    conformance(&mut StreamRig::new(true, true.into()).await).await;
}

#[tokio::test]
async fn jetstream_conforms_as_a_log() {
    durable_conformance(&mut StreamRig::new(true, true.into()).await).await;
}

#[tokio::test]
async fn jetstream_conforms_as_a_log_that_drops_what_is_old() {
    retention_conformance(&mut StreamRig::new(true, serde_json::json!({"max_bytes": "64KiB"})).await).await;
}

#[tokio::test]
async fn what_was_published_while_away_comes_after_all() {
    let mut server = Server::start().await;
    make(&client(&server).await, named(&["a"])).await;
    let running = Running::start(source(&server, &["a"]));
    running.until_state(State::Up).await;
    publish(&client(&server).await, "a", 0..10).await;
    running.until_messages(10).await;
    // The reader is cut off, the publisher is not: both after a restart, but the publisher first.
    server.terminate().await;
    running.until_state(State::Down).await;
    sleep(Duration::from_millis(300)).await;
    server.revive().await;
    publish(&client(&server).await, "a", 10..1000).await;
    running.until_messages(1000).await;
    assert_eq!(ledger(&running.recorder.items.lock(), 1000), []);
}

#[tokio::test]
async fn every_start_reads_what_it_should_and_tells_the_tail_once() {
    let server = Server::start().await;
    let context = client(&server).await;
    make(&context, named(&["a.*"])).await;
    let source = source(&server, &["a.>"]);
    assert_eq!(texts(&read(&source, Start::Earliest).await), ["tail 0"]);
    assert_eq!(texts(&read(&source, Start::Now).await), ["tail 0"]);
    assert_eq!(texts(&read(&source, Start::LastPerSubject).await), ["tail 0"]);
    publish(&context, "a.x", 1..3).await;
    publish(&context, "a.y", 3..5).await;
    sleep(Duration::from_millis(20)).await;
    let noon = Timestamp::now();
    sleep(Duration::from_millis(20)).await;
    publish(&context, "a.x", 5..7).await;
    let all = read(&source, Start::Earliest).await;
    assert_eq!(texts(&all), ["1", "2", "3", "4", "5", "6", "tail 6!"]);
    assert_eq!(texts(&read(&source, Start::Since(noon)).await), ["5", "6", "tail 6!"]);
    assert_eq!(texts(&read(&source, Start::Since(Timestamp::now())).await), ["tail 6!"]);
    assert_eq!(texts(&read(&source, Start::LastPerSubject).await), ["4", "6", "tail 6!"]);
    assert_eq!(texts(&read(&source, Start::Now).await), ["tail 6!"]);
    assert_eq!(texts(&read(&source, Start::After(position_of(&all, "4"))).await), ["5", "6", "tail 6!"]);
    assert_eq!(texts(&read(&source, Start::After(position_of(&all, "6"))).await), ["tail 6!"]);
    assert_eq!(texts(&read(&source, Start::After(Position::unverified(2))).await), ["3", "4", "5", "6", "tail 6!"]);
    let recent = |bytes| Start::Recent { age: Duration::from_secs(60), bytes };
    assert_eq!(texts(&read(&source, recent(1 << 20)).await), ["1", "2", "3", "4", "5", "6", "tail 6!"]);
    assert_eq!(texts(&read(&source, Start::Recent { age: Duration::ZERO, bytes: 1000 }).await), ["tail 6!"]);
    let some = read(&source, recent(100)).await.len();
    assert!((2..=5).contains(&some), "{some}");
    // Another reader on the same connection, and one of another process, make the same positions.
    let again = read(&self::source(&server, &["a.x", "a.y"]), Start::Earliest).await;
    assert_eq!(position_of(&all, "3"), position_of(&again, "3"));
    let Some(Item::Tail(Some(tail))) = all.last() else { panic!("a tail") };
    assert_eq!(*tail, position_of(&all, "6"));
    // A history goes on beyond its tail.
    let mut connection = source.history(Start::After(*tail)).await.expect("opens");
    let mut items = Vec::new();
    connection.next(&mut items, 10).await.expect("the tail");
    publish(&context, "a.x", 7..8).await;
    connection.next(&mut items, 10).await.expect("what follows");
    assert_eq!(texts(&items), ["tail 6!", "7"]);
}

#[tokio::test]
async fn readers_share_a_connection_and_leave_nothing_behind() {
    let server = Server::configured("http: \"127.0.0.1:0\"").await;
    let context = client(&server).await;
    let mut stream = make(&context, named(&["a"])).await;
    publish(&context, "a", 0..2000).await;
    let source = source(&server, &["a"]);
    let running = Running::start(source.clone());
    running.until_messages(2000).await;
    let mut histories = Vec::new();
    for _ in 0..5 {
        histories.push(source.history(Start::Earliest).await.expect("opens"));
    }
    // The live reader stalls, and the histories still read through it.
    running.recorder.stalled.store(true, Ordering::SeqCst);
    publish(&context, "a", 2000..4000).await;
    for history in &mut histories {
        let mut items = Vec::new();
        while items.iter().filter(|item| matches!(item, Item::Message(_))).count() < 4000 {
            timeout(Duration::from_secs(10), history.next(&mut items, 256)).await.expect("in time").expect("reads");
        }
        assert_eq!(ledger(&items, 4000), []);
    }
    running.recorder.stalled.store(false, Ordering::SeqCst);
    running.until_messages(4000).await;
    assert_eq!(ledger(&running.recorder.items.lock(), 4000), []);
    assert_eq!(stream.info().await.expect("info").state.consumer_count, 6);
    drop(histories);
    until_consumers(&context, 1).await;
    running.stop().await;
    until_consumers(&context, 0).await;
}

async fn consumers(context: &jetstream::Context) -> usize {
    context.get_stream("S").await.expect("is there").get_info().await.expect("info").state.consumer_count
}

async fn until_consumers(context: &jetstream::Context, expected: usize) {
    eventually(&format!("{expected} consumers"), async || match consumers(context).await {
        n if n == expected => Ok(()),
        n => Err(n.to_string()),
    })
    .await;
}

#[tokio::test]
async fn a_history_that_is_suspended_anywhere_holds_up_nobody() {
    let server = Server::start().await;
    let context = client(&server).await;
    make(&context, named(&["a"])).await;
    let source = source(&server, &["a"]);
    let running = Running::start(source.clone());
    running.until_state(State::Up).await;
    // Polled until it waits, and then no more, as a client's does that takes nothing: while opening, and while reading.
    let mut opening = source.history(Start::Earliest);
    assert!(futures_util::poll!(&mut opening).is_pending());
    let mut history = source.history(Start::Earliest).await.expect("opens");
    let (mut tail, mut items) = (Vec::new(), Vec::new());
    history.next(&mut tail, 10).await.expect("the tail");
    let mut reading = history.next(&mut items, 10);
    assert!(futures_util::poll!(&mut reading).is_pending());
    for round in 0..5 {
        publish(&context, "a", round * 1000..(round + 1) * 1000).await;
        running.until_messages((round + 1) * 1000).await;
    }
    assert_eq!(ledger(&running.recorder.items.lock(), 5000), []);
    let mut other = source.history(Start::Earliest).await.expect("opens");
    let mut all = Vec::new();
    while all.len() < 5001 {
        timeout(Duration::from_secs(10), other.next(&mut all, 100)).await.expect("in time").expect("reads");
    }
    reading.await.expect("goes on");
    assert_eq!(texts(&items)[0], "0");
}

#[tokio::test]
async fn a_stream_made_anew_is_a_reset_for_the_live_reader_and_for_histories() {
    let server = Server::start().await;
    let context = client(&server).await;
    make(&context, named(&["a"])).await;
    let source = source(&server, &["a"]);
    let running = Running::start(source.clone());
    running.until_state(State::Up).await;
    publish(&context, "a", 0..10).await;
    running.until_messages(10).await;
    let old = running.recorder.items.lock().clone();
    context.delete_stream("S").await.expect("deletes");
    running.until_state(State::Down).await;
    make(&context, named(&["a"])).await;
    // It grows past where the old one was.
    publish(&context, "a", 100..130).await;
    running.until_messages(40).await;
    let mut after = texts(&running.recorder.items.lock()[old.len()..]);
    // The reader may come before the first message: then the new log's end is told first.
    after.retain(|text| !text.starts_with("tail"));
    assert_eq!(after[..3], ["gap reset 10..1@0", "100", "101"], "{after:?}");
    assert_eq!(after.iter().filter(|text| text.starts_with("gap")).count(), 1);

    let read = read(&source, Start::After(position_of(&old, "4"))).await;
    assert_eq!(texts(&read)[..2], ["gap reset 5..1@0", "100"]);
    // Of a place where no message was seen nothing can be said, but a place that is not there yet is told.
    let ahead = self::read(&source, Start::After(Position::unverified(1000))).await;
    assert_eq!(texts(&ahead)[..2], ["gap reset 1000..1@0", "100"]);
    running.stop().await;
}

/// A message as no client library would send it.
fn raw(subject: &[u8], headers: &[u8], payload: &str) -> Vec<u8> {
    let sizes = if headers.is_empty() {
        format!(" {}\r\n", payload.len())
    } else {
        format!(" {} {}\r\n", headers.len(), headers.len() + payload.len())
    };
    let verb: &[u8] = if headers.is_empty() { b"PUB " } else { b"HPUB " };
    [verb, subject, sizes.as_bytes(), headers, payload.as_bytes(), b"\r\n"].concat()
}

/// Publishes such messages, and waits until the stream holds so many in all.
async fn publish_raw(server: &Server, stream: &mut stream::Stream, bytes: &[u8], stored: u64) {
    let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", server.port)).await.expect("connects");
    let all = [&b"CONNECT {\"verbose\":false,\"headers\":true,\"user\":\"admin\",\"pass\":\"p\"}\r\n"[..], bytes].concat();
    tokio::io::AsyncWriteExt::write_all(&mut socket, &all).await.expect("writes");
    eventually("all to be stored", async || match stream.info().await.expect("info").state.messages {
        n if n == stored => Ok(()),
        n => Err(n.to_string()),
    })
    .await;
}

/// As [`read`], by a client who comes again from where it stands when the reading fails.
async fn read_on(source: &Arc<dyn Adapter>, start: Start) -> Vec<Item> {
    let (mut items, mut start, mut failures) = (Vec::new(), start, 0);
    while failures < 20 {
        let Ok(mut connection) = source.history(start).await else {
            failures += 1;
            continue;
        };
        let result = loop {
            let result = timeout(Duration::from_secs(10), connection.next(&mut items, 100)).await.expect("in time");
            if result.is_err() || items.iter().any(|item| matches!(item, Item::Tail(_))) {
                break result;
            }
        };
        let Err(_) = result else { return items };
        failures += 1;
        let place = |item: &Item| if let Item::Message(m) = item { m.position } else { None };
        if let (Some(at), false) = (items.iter().rev().find_map(place), matches!(start, Start::LastPerSubject)) {
            start = Start::After(at);
        }
    }
    panic!("the history does not come to its end: {:?}", texts(&items));
}

#[tokio::test]
async fn messages_that_the_library_cannot_read_hold_up_nobody() {
    let server = Server::start().await;
    let context = client(&server).await;
    let mut stream = make(&context, named(&["a.*", "b"])).await;
    let source = source(&server, &["a.>"]);
    // What there is before the first reader comes.
    publish_raw(&server, &mut stream, &raw(b"a.\xff", b"", "0"), 1).await;
    publish(&context, "a.x", 1..4).await;
    let running = Running::start(source.clone());
    running.until_messages(4).await;
    // While it reads, among others' messages, with odd subjects and odd headers, one behind the other.
    publish(&context, "b", 0..10).await;
    let odd = [
        raw(b"a.x", b"NATS/1.0\r\nA: \xff\r\n\r\n", "4"),
        raw(b"a.\xe2\x82", b"", "5"),
        raw(b"a.x", b"NATS/1.0 what is this\r\n\r\n", "6"),
        raw(b"a.x", b"NATS/1.0\r\nno colon\r\n\r\n", "7"),
        raw("a.\u{a0}".as_bytes(), b"NATS/1.0\r\nA: b\r\n\r\n", "8"),
        // At this one the library panics.
        raw(b"a.x", b"NATS/1.0\r\nA: a\rb\r\n\r\n", "9"),
    ];
    publish_raw(&server, &mut stream, &odd.concat(), 20).await;
    publish(&context, "b", 0..10).await;
    publish(&context, "a.x", 10..100).await;
    running.until_messages(100).await;
    assert_eq!(ledger(&running.recorder.items.lock(), 100), []);
    let live = running.recorder.items.lock().clone();
    let messages = |items: &[Item]| {
        items
            .iter()
            .filter_map(|i| if let Item::Message(m) = i { Some((m.subject.to_string(), m.position)) } else { None })
            .collect::<Vec<_>>()
    };
    assert_eq!(messages(&live)[0].0, "a.\u{fffd}");
    assert_eq!(messages(&live)[5].0, "a.\u{fffd}\u{fffd}");
    // Histories come past them too, and find their places again; the live reader's connection is not theirs.
    let reconnects = running.handle.counters.reconnects();
    let all = read_on(&source, Start::Earliest).await;
    assert_eq!(messages(&all), messages(&live));
    for (n, (_, place)) in messages(&all).iter().enumerate().take(12) {
        let on = read_on(&source, Start::After(place.expect("a place"))).await;
        assert_eq!((messages(&on), ledger(&[&all[..=n], &on[..]].concat(), 100)), (messages(&all)[n + 1..].to_vec(), vec![]), "behind {n}");
    }
    assert!(running.handle.counters.reconnects() <= reconnects + 1);
    // Where the newest of a subject is such a message, it comes, or it is told between which places it is.
    publish_raw(&server, &mut stream, &raw(b"a.y", b"NATS/1.0\r\nno colon\r\n\r\n", "100"), 121).await;
    publish(&context, "a.z", 101..102).await;
    let odd: Vec<u64> =
        messages(&live).iter().filter(|(subject, _)| subject.contains('\u{fffd}')).filter_map(|(_, at)| Some((*at)?.seq)).collect();
    for _ in 0..2 {
        let last = read_on(&source, Start::LastPerSubject).await;
        let newest = &last[last.iter().position(|item| texts(std::slice::from_ref(item)) == ["8"]).expect("it comes")..];
        assert_eq!(
            texts(newest).iter().filter(|text| !text.starts_with("gap")).collect::<Vec<_>>(),
            ["8", "99", "100", "101", "tail 122!"]
        );
        let gaps: Vec<_> = last.iter().filter_map(|item| if let Item::Gap(gap) = item { Some(gap) } else { None }).collect();
        let [gap] = gaps[..] else { panic!("{:?}", texts(&last)) };
        assert_eq!(gap.reason, GapReason::Unreadable);
        assert!(odd.iter().all(|odd| gap.from < Some(*odd) && Some(*odd) < gap.to), "{gap:?} {odd:?}");
    }
    running.stop().await;
}

#[tokio::test]
async fn the_newest_messages_that_are_asked_for_one_by_one_are_bounded_in_bytes() {
    let server = Server::start().await;
    let context = client(&server).await;
    let mut stream = make(&context, named(&["a.*"])).await;
    publish_raw(&server, &mut stream, &raw(b"a.odd", b"NATS/1.0\r\nno colon\r\n\r\n", "odd"), 1).await;
    let payload = Bytes::from(vec![b'x'; 900_000]);
    for n in 0..45 {
        context.publish(format!("a.{n}"), payload.clone()).await.expect("sends").await.expect("is stored");
    }
    let last = read_on(&source(&server, &["a.>"]), Start::LastPerSubject).await;
    let bytes: usize = last.iter().map(|item| if let Item::Message(message) = item { message.payload.len() } else { 0 }).sum();
    assert!((30 << 20..34 << 20).contains(&bytes), "{bytes} of {}", 45 * payload.len());
    let rest: Vec<_> = last.iter().filter(|item| !matches!(item, Item::Message(_))).cloned().collect();
    assert_eq!(texts(&rest), ["gap unreadable 0..47@-", "tail 46!"]);
}

#[tokio::test]
async fn a_purge_is_a_reset_for_who_had_not_read_it_and_nothing_for_who_had() {
    let server = Server::start().await;
    let context = client(&server).await;
    let stream = make(&context, named(&["a"])).await;
    let source = source(&server, &["a"]);
    let running = Running::start(source.clone());
    running.until_state(State::Up).await;
    publish(&context, "a", 0..10).await;
    running.until_messages(10).await;
    let before = running.recorder.items.lock().clone();
    let watching = async_nats::connect(server.url()).await.expect("connects");
    let mut asked = watching.subscribe("$JS.API.STREAM.INFO.S").await.expect("subscribes");
    watching.flush().await.expect("flushes");
    stream.purge().await.expect("purges");
    // The reader sees by its questions that the stream is empty now.
    for _ in 0..3 {
        timeout(Duration::from_secs(10), asked.next()).await.expect("in time").expect("a question");
    }
    publish(&context, "a", 10..20).await;
    running.until_messages(20).await;
    assert_eq!(ledger(&running.recorder.items.lock(), 20), []);
    let read = read(&source, Start::After(position_of(&before, "4"))).await;
    assert_eq!(texts(&read)[..2], ["gap reset 5..11@10", "10"]);
    running.stop().await;
}

/// A reader of an empty stream, who takes nothing more.
async fn stalled() -> (Server, jetstream::Context, stream::Stream, Running) {
    let server = Server::start().await;
    let context = client(&server).await;
    let stream = make(&context, named(&["a"])).await;
    let running = Running::start(source(&server, &["a"]));
    running.until_state(State::Up).await;
    running.recorder.stalled.store(true, Ordering::SeqCst);
    (server, context, stream, running)
}

#[tokio::test]
async fn a_purge_of_what_a_slow_reader_had_before_it_is_told_even_if_nothing_follows() {
    let (_server, context, stream, running) = stalled().await;
    publish(&context, "a", 0..20_000).await;
    stream.purge().await.expect("purges");
    running.recorder.stalled.store(false, Ordering::SeqCst);
    let gap = running.until_gap(GapReason::Reset).await;
    assert_eq!((gap.to, gap.position), (Some(20_001), Some(Position::unverified(20_000))));
    publish(&context, "a", 20_000..20_100).await;
    eventually("the last", async || running.bodies().last().filter(|b| *b == "20099").map(|_| ()).ok_or("not yet".into())).await;
    assert_eq!(ledger(&running.recorder.items.lock(), 20_100).len(), 1);
    assert_eq!(running.handle.counters.reconnects(), 0);
}

#[tokio::test]
async fn a_purge_of_what_a_history_had_before_it_is_told_where_messages_follow() {
    let server = Server::start().await;
    let context = client(&server).await;
    let stream = make(&context, named(&["a"])).await;
    publish(&context, "a", 0..20_000).await;
    let mut history = source(&server, &["a"]).history(Start::Earliest).await.expect("opens");
    let mut items = Vec::new();
    history.next(&mut items, 10).await.expect("reads");
    publish(&context, "a", 20_000..20_005).await;
    // All that was there when the history was opened, and some of what came since.
    stream.purge().sequence(20_003).await.expect("purges");
    while !texts(&items).contains(&"20004".into()) {
        timeout(Duration::from_secs(10), history.next(&mut items, 100)).await.expect("in time").expect("reads");
    }
    let gaps: Vec<_> = ledger(&items, 20_005).into_iter().map(|gap| (gap.reason, gap.to, gap.position.map(|at| at.seq))).collect();
    assert_eq!(gaps, [(GapReason::Reset, Some(20_001), Some(20_000)), (GapReason::Reset, Some(20_003), Some(20_002))]);
}

#[tokio::test]
async fn a_purge_of_what_came_when_a_reader_had_asked_for_no_more_is_told() {
    let (_server, context, stream, running) = stalled().await;
    // One at a time: with each the server says that nothing is left, with the last that was asked for too.
    for n in 0..LIVE.messages + 100 {
        publish(&context, "a", n..n + 1).await;
    }
    stream.purge().await.expect("purges");
    running.recorder.stalled.store(false, Ordering::SeqCst);
    let gap = running.until_gap(GapReason::Reset).await;
    assert_eq!(gap.to, Some(LIVE.messages as u64 + 101));
    running.stop().await;
}

#[tokio::test]
async fn a_purge_of_a_subject_takes_no_other_messages_from_readers_that_are_behind() {
    tokio::join!(purge_of_a_subject(0), purge_of_a_subject(1));
}

/// `more` messages come behind the purge.
async fn purge_of_a_subject(more: usize) {
    let server = Server::start().await;
    let context = client(&server).await;
    let stream = make(&context, named(&["a.*"])).await;
    let source = source(&server, &["a.*"]);
    let running = Running::start(source.clone());
    running.until_state(State::Up).await;
    running.recorder.stalled.store(true, Ordering::SeqCst);
    publish(&context, "a.b", 0..LIVE.messages + 1000).await;
    let mut history = source.history(Start::Earliest).await.expect("opens");
    let mut items = Vec::new();
    history.next(&mut items, 10).await.expect("reads");
    // Behind what both have asked for.
    let (from, to) = (LIVE.messages + 1000, LIVE.messages + 1100);
    publish(&context, "a.c", from..to).await;
    publish(&context, "a.b", to..LIVE.messages + 3000).await;
    stream.purge().filter("a.c").await.expect("purges");
    let end = LIVE.messages + 3000 + more;
    publish(&context, "a.b", end - more..end).await;
    let expected: Vec<String> = (0..from).chain(to..end).map(|n| n.to_string()).collect();
    running.recorder.stalled.store(false, Ordering::SeqCst);
    running.until_messages(expected.len()).await;
    assert_eq!(running.bodies(), expected);
    // Neither gaps nor tails.
    let numbers = |items: &[Item]| -> Vec<String> { texts(items).into_iter().filter(|text| !text.contains(' ')).collect() };
    while numbers(&items).len() < expected.len() {
        let read = timeout(Duration::from_secs(20), history.next(&mut items, 100)).await.expect("in time");
        if read.is_err() {
            let last = position_of(&items, numbers(&items).last().expect("some came"));
            history = source.history(Start::After(last)).await.expect("opens");
        }
    }
    assert_eq!(numbers(&items), expected);
    assert_eq!(running.gaps(), []);
    running.stop().await;
}

#[tokio::test]
async fn what_limits_drop_before_a_slow_reader_is_told_as_retention() {
    let server = Server::start().await;
    let context = client(&server).await;
    make(&context, stream::Config { max_messages: 1000, ..named(&["a"]) }).await;
    let source = source(&server, &["a"]);
    let running = Running::start(source.clone());
    running.until_state(State::Up).await;
    publish(&context, "a", 0..10).await;
    running.until_messages(10).await;
    let early = position_of(&running.recorder.items.lock(), "5");
    for round in 0..3 {
        running.recorder.stalled.store(true, Ordering::SeqCst);
        publish(&context, "a", (10 + round * 20_000)..(10 + (round + 1) * 20_000)).await;
        running.recorder.stalled.store(false, Ordering::SeqCst);
        let last = (9 + (round + 1) * 20_000).to_string();
        eventually("the last", async || running.bodies().last().filter(|b| **b == last).map(|_| ()).ok_or("not yet".into())).await;
    }
    let gaps = ledger(&running.recorder.items.lock(), 60_010);
    assert!(gaps.len() >= 3 && gaps.iter().all(|gap| gap.reason == GapReason::Retention), "{gaps:?}");
    assert_eq!(running.handle.counters.reconnects(), 0);
    let read = read(&source, Start::After(early)).await;
    assert_eq!(texts(&read)[..2], ["gap retention 6..59011@59010", "59010"]);
    running.stop().await;
}

#[tokio::test]
async fn what_limits_drop_while_away_is_told_as_retention() {
    let mut server = Server::start().await;
    let context = client(&server).await;
    make(&context, stream::Config { max_messages: 100, ..named(&["a"]) }).await;
    let running = Running::start(source(&server, &["a"]));
    running.until_state(State::Up).await;
    publish(&context, "a", 0..10).await;
    running.until_messages(10).await;
    server.terminate().await;
    running.until_state(State::Down).await;
    // Behind the reader's back, on another port.
    let port = server.port;
    let conf = server.folder.path().join("nats.conf");
    let text = std::fs::read_to_string(&conf).expect("reads");
    let other = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its number").port();
    std::fs::write(&conf, text.replace(&port.to_string(), &other.to_string())).expect("writes");
    server.port = other;
    server.revive().await;
    publish(&client(&server).await, "a", 10..1000).await;
    server.terminate().await;
    std::fs::write(&conf, text).expect("writes");
    server.port = port;
    server.revive().await;
    running.until_messages(110).await;
    let gaps = ledger(&running.recorder.items.lock(), 1000);
    assert_eq!(gaps.iter().map(|gap| (gap.reason, gap.from, gap.to)).collect::<Vec<_>>(), [(GapReason::Retention, Some(10), Some(901))]);
}

#[tokio::test]
async fn holes_that_are_no_loss_are_no_gaps() {
    let server = Server::start().await;
    let context = client(&server).await;
    let config = stream::Config { max_messages_per_subject: 1, ..named(&["a.*", "b.*", "c.*"]) };
    let stream = make(&context, config).await;
    let source = source(&server, &["a.*", "b.*"]);
    let running = Running::start(source.clone());
    running.until_state(State::Up).await;
    let mut expected = Vec::new();
    for n in 0..300_usize {
        let subject = ["a.1", "c.1", "b.1", "c.2", "c.3"][n % 5];
        publish(&context, subject, n..n + 1).await;
        if n % 5 == 0 || n % 5 == 2 {
            expected.push(n.to_string());
            // The next one of its subject takes its place in the stream, read or not.
            running.until_messages(expected.len()).await;
        }
        if n == 150 {
            stream.delete_message(stream.get_info().await.expect("info").state.last_sequence).await.expect("deletes");
        }
    }
    assert_eq!(running.bodies(), expected);
    assert_eq!(running.gaps(), []);
    // The place moves on over what is others'.
    let all = running.recorder.items.lock().clone();
    let read = read(&source, Start::After(position_of(&all, "292"))).await;
    assert_eq!(texts(&read), ["295", "297", "tail 300!"]);
    running.stop().await;
}

#[tokio::test]
async fn the_newest_of_subjects_that_are_named_come_without_a_look_at_all_others() {
    let server = Server::start().await;
    let context = client(&server).await;
    make(&context, named(&["a.*"])).await;
    let source = source(&server, &["a.*"]);
    for (subject, bodies) in [("a.x", 1..3), ("a.y", 3..5), ("a.z", 5..7), ("a.x", 7..8)] {
        publish(&context, subject, bodies).await;
    }
    let wanted: Vec<Pattern> = ["a.x", "a.z", "a.none"].iter().map(|text| text.parse().expect("a pattern")).collect();
    let mut reader = source.selected(Start::LastPerSubject, &wanted).await.expect("opens").expect("it selects");
    let mut items = Vec::new();
    let until = async |reader: &mut Box<dyn Connection>, items: &mut Vec<Item>, last: &str| {
        while texts(items).last().is_none_or(|text| text != last) {
            timeout(Duration::from_secs(10), reader.next(items, 100)).await.expect("in time").expect("reads");
        }
    };
    until(&mut reader, &mut items, "tail 7!").await;
    assert_eq!(texts(&items), ["6", "7", "tail 7!"]);
    // Older servers take one filter only: then what else comes is left out further on.
    publish(&context, "a.z", 8..9).await;
    until(&mut reader, &mut items, "8").await;
    let (stream, mut policies) = (context.get_stream("S").await.expect("is there"), Vec::new());
    let mut consumers = stream.consumers();
    while let Some(consumer) = consumers.next().await {
        policies.push(consumer.expect("answers").config.deliver_policy);
    }
    assert_eq!(policies, [jetstream::consumer::DeliverPolicy::ByStartSequence { start_sequence: 8 }]);
}

#[tokio::test]
async fn a_purge_of_a_subject_is_no_gap_where_it_can_be_told_from_one_up_to_a_place() {
    let server = Server::start().await;
    let context = client(&server).await;
    let stream = make(&context, named(&["a", "b", "c"])).await;
    let config = serde_json::json!({"servers": [server.url()], "subjects": ["a", "b", "c"], "jetstream": {"stream": "S"}});
    let config = nats::tests::config(config).expect("valid");
    let jetstream =
        Arc::new(JetStreamSource::new(config.clone(), config.jetstream.clone().expect("a stream"), &"s".parse().expect("a name")));
    let source: Arc<dyn Adapter> = jetstream.clone();
    let running = Running::start(source.clone());
    running.until_state(State::Up).await;
    let seen = async |last: u64| {
        running.until_messages(last as usize).await;
        // The reader asks every second.
        eventually("the stream to be seen so", async || {
            let known = jetstream.known.lock();
            if known.holds(last) { Ok(()) } else { Err(format!("{known:?}")) }
        })
        .await;
    };
    publish(&context, "a", 1..6).await;
    publish(&context, "b", 6..7).await;
    seen(6).await;
    let all = running.recorder.items.lock().clone();
    let behind = |body: &str| Start::After(position_of(&all, body));
    stream.purge().filter("a").await.expect("purges");
    assert_eq!(texts(&read(&source, behind("3")).await), ["6", "tail 6!"]);
    // It is written again meanwhile.
    publish(&context, "a", 7..8).await;
    running.until_messages(7).await;
    assert_eq!(texts(&read(&source, behind("3")).await), ["6", "7", "tail 7!"]);
    // A purge up to a place leaves newer ones of the same subjects: it is told. So is one of everything, also if something
    // of another subject came after it.
    publish(&context, "b", 8..11).await;
    publish(&context, "a", 11..12).await;
    seen(11).await;
    stream.purge().sequence(9).await.expect("purges");
    assert_eq!(texts(&read(&source, behind("6")).await), ["gap reset 6..9@8", "9", "10", "11", "tail 11!"]);
    eventually("the stream to be seen so", async || if jetstream.known.lock().holds(11) { Ok(()) } else { Err("not yet".into()) }).await;
    stream.purge().await.expect("purges");
    publish(&context, "c", 12..13).await;
    assert_eq!(texts(&read(&source, behind("6")).await), ["gap reset 6..12@11", "12", "tail 12!"]);
    running.stop().await;
}

#[tokio::test]
async fn the_place_of_a_quiet_source_keeps_up_with_a_busy_stream() {
    let server = Server::start().await;
    let context = client(&server).await;
    make(&context, stream::Config { max_messages: 100, ..named(&["a", "b"]) }).await;
    let source = source(&server, &["a"]);
    let running = Running::start(source.clone());
    running.until_state(State::Up).await;
    publish(&context, "a", 0..1).await;
    publish(&context, "b", 1..1000).await;
    eventually("a place further on", async || {
        let items = running.recorder.items.lock();
        match items.last() {
            Some(Item::Tail(Some(Position { seq: 1000, check: Some(_) }))) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let Some(Item::Tail(Some(place))) = running.recorder.items.lock().last().cloned() else { panic!("a tail") };
    assert_eq!(texts(&read(&source, Start::After(place)).await), ["tail 1000!"]);
    publish(&context, "a", 1000..1001).await;
    running.until_messages(2).await;
    assert_eq!(running.gaps(), []);
}

#[tokio::test]
async fn a_reader_under_load_behind_a_filter_tells_no_false_gap() {
    let server = Server::start().await;
    let context = client(&server).await;
    make(&context, stream::Config { max_bytes: 64 << 20, ..named(&["a", "b"]) }).await;
    let running = Running::start(source(&server, &["a"]));
    running.until_state(State::Up).await;
    let bodies = |range: std::ops::Range<usize>| range;
    for round in 0..20 {
        publish(&context, "a", bodies(round * 500..(round + 1) * 500)).await;
        publish(&context, "b", bodies(0..300)).await;
    }
    running.until_messages(10_000).await;
    assert_eq!(ledger(&running.recorder.items.lock(), 10_000), []);
}

#[tokio::test]
async fn streams_that_do_not_suit_are_refused_with_what_to_do() {
    let server = Server::start().await;
    let context = client(&server).await;
    let refused = async |source: &Arc<dyn Adapter>| {
        let error = source.connect(Start::Now).await.err().expect("is refused");
        (error.kind(), crate::support::causes::chain(&error))
    };
    let source = source(&server, &["a"]);
    let missing = |text: &str| (ErrorKind::Missing, text.to_owned());
    assert_eq!(refused(&source).await, missing("there is no stream `S` (`jetstream.stream`; with `jetstream.create` it would be made)"));
    let work = stream::Config { retention: stream::RetentionPolicy::WorkQueue, ..named(&["a"]) };
    make(&context, work).await;
    let (kind, text) = refused(&source).await;
    assert!(kind == ErrorKind::Configuration && text.contains("has `workqueue` retention"), "{text}");
    context.delete_stream("S").await.expect("deletes");
    make(&context, named(&["x", "y.>"])).await;
    let unfit = "the stream `S` takes none of these subjects (it has: x, y.>)".to_owned();
    assert_eq!(refused(&source).await, (ErrorKind::Configuration, unfit));
    context.delete_stream("S").await.expect("deletes");

    // A source whose stream is missing is down, and up as soon as there is one.
    let running = Running::start(source);
    running.until_state(State::Down).await;
    make(&context, named(&["a"])).await;
    running.until_state(State::Up).await;

    let bare = Server::configured_without_jetstream("").await;
    assert_eq!(refused(&self::source(&bare, &["a"])).await, missing("the server has no JetStream, or not for this account (`jetstream`)"));
}

#[tokio::test]
async fn what_a_stream_takes_later_comes_from_the_first_message_on() {
    let server = Server::start().await;
    let context = client(&server).await;
    make(&context, named(&["a.x", "b"])).await;
    let source = source(&server, &["a.x", "a.y"]);
    let running = Running::start(source.clone());
    running.until_state(State::Up).await;
    publish(&context, "a.x", 0..1).await;
    running.until_messages(1).await;
    let mut history = source.history(Start::Earliest).await.expect("opens");
    let mut items = Vec::new();
    context.update_stream(named(&["a.x", "a.y", "b"])).await.expect("updates");
    // Before the readers ask the stream again, and among others.
    publish(&context, "a.y", 1..3).await;
    publish(&context, "b", 0..3).await;
    publish(&context, "a.x", 3..4).await;
    publish(&context, "a.y", 4..5).await;
    running.until_messages(5).await;
    assert_eq!(ledger(&running.recorder.items.lock(), 5), []);
    while !texts(&items).contains(&"4".into()) {
        timeout(Duration::from_secs(10), history.next(&mut items, 100)).await.expect("in time").expect("reads");
    }
    assert_eq!(ledger(&items, 5), []);
}

#[tokio::test]
async fn a_missing_stream_is_made_with_its_limits_and_published_to() {
    let server = Server::start().await;
    let limits = serde_json::json!({"stream": "S", "create": {"max_age": "1h", "max_bytes": "1MiB"}});
    let json = serde_json::json!({"servers": [server.url()], "subjects": ["a.>", "b", "a.b"], "jetstream": limits});
    let source = adapter(json);
    let running = Running::start(source.clone());
    running.until_state(State::Up).await;
    let info = client(&server).await.get_stream("S").await.expect("is there").get_info().await.expect("info");
    assert_eq!(info.config.subjects, ["a.>", "b"]);
    assert_eq!((info.config.max_age, info.config.max_bytes), (Duration::from_secs(3600), 1 << 20));
    source.publish("a.x", "hello".into()).await.expect("is stored");
    running.until_messages(1).await;
    let error = source.publish("other", "hello".into()).await.expect_err("nobody takes it").to_string();
    assert_eq!(error, "no stream takes this subject");
}

#[test]
fn why_messages_are_gone_is_judged_by_what_the_stream_says() {
    let now = now();
    let text = |nanos: u64| jiff::Timestamp::from_nanosecond(i128::from(nanos)).expect("a time").to_string();
    let (minute, hour) = (60_000_000_000, 3_600_000_000_000);
    let info = |config: serde_json::Value, messages: u64, bytes: u64, age: u64, last: u64| -> StreamInfo {
        let state = serde_json::json!({"messages": messages, "bytes": bytes, "first_seq": 101 - messages, "last_seq": 100,
            "last_ts": text(now - last)});
        serde_json::from_value(serde_json::json!({"config": config, "created": text(now - age), "state": state})).expect("reads")
    };
    let why_gone = |info: StreamInfo, after: u64, time: Option<u64>, expired: bool| {
        let limits = purge::Known::default().limits(after, &info, 100);
        info.why_gone(after, time, expired, limits)
    };
    let aged = serde_json::json!({"max_age": hour, "max_bytes": -1, "max_msgs": -1});
    let (retention, reset) = (Some(GapReason::Retention), Some(GapReason::Reset));
    // A stream that is younger than its limit has dropped nothing by age.
    assert_eq!(why_gone(info(aged.clone(), 10, 100, minute, 0), 50, None, false), reset);
    assert_eq!(why_gone(info(aged.clone(), 10, 100, 2 * hour, 0), 50, None, false), retention);
    // What followed a young message was younger still.
    assert_eq!(why_gone(info(aged.clone(), 10, 100, 2 * hour, 0), 50, Some(now - minute), false), reset);
    assert_eq!(why_gone(info(aged.clone(), 10, 100, 2 * hour, 0), 50, Some(now - hour), false), retention);
    // Nothing is left, though the last came just now.
    assert_eq!(why_gone(info(aged.clone(), 0, 0, 2 * hour, minute), 50, None, false), reset);
    assert_eq!(why_gone(info(aged, 0, 0, 2 * hour, hour), 50, None, false), retention);
    let counted = serde_json::json!({"max_msgs": 20});
    assert_eq!(why_gone(info(counted.clone(), 20, 100, hour, 0), 50, None, false), retention);
    assert_eq!(why_gone(info(counted.clone(), 5, 100, hour, 0), 50, None, false), reset);
    assert_eq!(why_gone(info(counted, 20, 100, hour, 0), 90, None, false), reset);
    let sized = serde_json::json!({"max_bytes": 1000});
    assert_eq!(why_gone(info(sized.clone(), 20, 900, hour, 0), 50, None, false), retention);
    assert_eq!(why_gone(info(sized, 2, 90, hour, 0), 50, None, false), reset);
    // What each subject's own limit takes is no loss.
    assert_eq!(why_gone(info(serde_json::json!({"max_msgs_per_subject": 1}), 20, 900, hour, 0), 50, None, false), None);
    assert_eq!(why_gone(info(serde_json::json!({"allow_msg_ttl": true}), 20, 900, hour, 0), 50, None, true), None);
    assert_eq!(why_gone(info(serde_json::json!({"allow_rollup_hdrs": true}), 20, 900, hour, 0), 50, None, false), None);
    assert_eq!(why_gone(info(serde_json::json!({"allow_msg_ttl": true}), 20, 900, hour, 0), 50, None, false), reset);
    // Fifty more of this kind would not have filled it, though fifty of the largest that the server takes would.
    let busy = |most: u64| info(serde_json::json!({"max_msgs_per_subject": 1, "max_bytes": most}), 20, 900, hour, 0);
    let taken = |most: u64| purge::Known::default().limits(50, &busy(most), 1 << 20).is_some();
    assert!(!taken(100_000) && taken(30_000));
    // But only a purge leaves nothing.
    assert_eq!(
        why_gone(info(serde_json::json!({"max_msgs_per_subject": 1, "allow_rollup_hdrs": true}), 0, 0, hour, 0), 50, None, false),
        reset
    );
}

#[test]
fn places_are_read_from_all_forms_of_the_reply() {
    let place = Some(api::Place { seq: 22, time: 1_700_000_000_000_000_001, pending: 5 });
    assert_eq!(api::place(b"$JS.ACK.S.c.1.22.3.1700000000000000001.5"), place);
    assert_eq!(api::place(b"$JS.ACK.hub.ABC.S.c.1.22.3.1700000000000000001.5"), place);
    assert_eq!(api::place(b"$JS.ACK._.ABC.S.c.1.22.3.1700000000000000001.5.tok"), place);
    for bad in ["", "$JS.ACK", "$JS.ACK.S.c.1.x.3.4.5", "_INBOX.a.b.c.d.e.f.g.h", "$JS.ACK.S.c.1.22.3.4"] {
        assert_eq!(api::place(bad.as_bytes()), None, "{bad}");
    }
}

#[test]
fn a_stored_message_has_the_check_of_the_delivered_one() {
    let answer = br#"{"type":"x","message":{"subject":"a.b","seq":7,"data":"aGk=","time":"2026-11-22T15:00:00.000000001Z"}}"#;
    let stored = api::read_message(answer).expect("reads").expect("is there");
    let time = stored.time;
    assert_eq!(time % 1_000_000_000, 1);
    assert_eq!(stored.check, Check::of(&[b"a.b", b"hi", &time.to_be_bytes()]));
    let missing = br#"{"error":{"code":404,"err_code":10037,"description":"no message found"}}"#;
    assert!(api::read_message(missing).expect("reads").is_none());
}
