//! The conformance suite: what every adapter owes, and what one with a log owes besides.
//!
//! Knows adapters by the contract alone, and brokers as a [`Rig`]. Test programs outside the crate include this file: `contract`
//! is the crate to its own tests, and its facade `internals` to those.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::{BoxFuture, LocalBoxFuture};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::contract::{
    Adapter, Connection, ErrorKind, Gap, GapReason, Handle, Intake, Item, Message, Position, Start, State, Supervisor, Timestamp,
};

/// How long something may take that should come at once: generous, because the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// An intake that keeps what it is given.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) items: Mutex<Vec<Item>>,
    /// While set, nothing is taken.
    pub(crate) stalled: AtomicBool,
}

impl Intake for Recorder {
    fn take<'a>(&'a self, items: &'a mut Vec<Item>) -> BoxFuture<'a, String> {
        Box::pin(async move {
            while self.stalled.load(Ordering::SeqCst) {
                sleep(Duration::from_millis(5)).await;
            }
            let mut all = self.items.lock();
            all.append(items);
            all.len().to_string()
        })
    }
}

/// A supervised source, and what came out of it.
pub(crate) struct Running {
    pub(crate) handle: Arc<Handle>,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) cancel: CancellationToken,
    task: JoinSet<()>,
}

impl Running {
    pub(crate) fn start(adapter: Arc<dyn Adapter>) -> Self {
        Self::with_max_payload(adapter, 1 << 20)
    }

    pub(crate) fn with_max_payload(adapter: Arc<dyn Adapter>, max_payload: usize) -> Self {
        let recorder = Arc::<Recorder>::default();
        let handle = Arc::new(Handle::new("tested".parse().expect("a name"), &*adapter, true));
        let cancel = CancellationToken::new();
        let supervisor = Supervisor {
            adapter,
            intake: recorder.clone(),
            handle: handle.clone(),
            warm_up: Start::Recent { age: Duration::from_secs(600), bytes: 16 << 20 },
            max_payload,
        };
        let mut task = JoinSet::new();
        task.spawn(supervisor.run(cancel.clone()));
        Self { handle, recorder, cancel, task }
    }

    pub(crate) async fn until_state(&self, state: State) {
        eventually(&format!("state {state:?}"), async || {
            let status = self.handle.status.read();
            if status.state == state { Ok(()) } else { Err(format!("{status:?}")) }
        })
        .await;
    }

    /// Waits until so many messages have come in all.
    pub(crate) async fn until_messages(&self, count: usize) {
        eventually(&format!("{count} messages"), async || {
            let bodies = self.bodies();
            if bodies.len() >= count { Ok(()) } else { Err(format!("{} came, and {:?}", bodies.len(), self.gaps())) }
        })
        .await;
    }

    pub(crate) async fn until_gap(&self, reason: GapReason) -> Gap {
        let found = || self.gaps().into_iter().find(|gap| gap.reason == reason);
        eventually(&format!("gap {reason:?}"), async || found().map(|_| ()).ok_or(format!("{:?}", self.gaps()))).await;
        found().expect("it was there")
    }

    /// Waits until so many attempts to connect have failed.
    async fn until_errors(&self, count: u64) {
        let errors = || ErrorKind::ALL.iter().map(|kind| self.handle.counters.errors(*kind)).sum::<u64>();
        eventually("failed attempts", async || if errors() >= count { Ok(()) } else { Err(errors().to_string()) }).await;
    }

    pub(crate) fn bodies(&self) -> Vec<String> {
        messages(&self.recorder.items.lock()).iter().map(body).collect()
    }

    pub(crate) fn gaps(&self) -> Vec<Gap> {
        gaps(&self.recorder.items.lock())
    }

    /// Cancels, and says how long it took to end.
    pub(crate) async fn stop(mut self) -> Duration {
        let at = Instant::now();
        self.cancel.cancel();
        timeout(Duration::from_secs(5), self.task.join_next()).await.expect("ends in time").expect("was running").expect("no panic");
        at.elapsed()
    }
}

/// Waits for a condition, at most 30 s.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> Result<(), String>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match condition().await {
            Ok(()) => return,
            Err(now) if Instant::now() > deadline => panic!("waited in vain for {what}: {now}"),
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

fn messages(items: &[Item]) -> Vec<Message> {
    items.iter().filter_map(|item| if let Item::Message(message) = item { Some(message.clone()) } else { None }).collect()
}

fn gaps(items: &[Item]) -> Vec<Gap> {
    items.iter().filter_map(|item| if let Item::Gap(gap) = item { Some(gap.clone()) } else { None }).collect()
}

fn body(message: &Message) -> String {
    String::from_utf8_lossy(&message.payload).into_owned()
}

/// Without what came again.
fn once(bodies: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    bodies.into_iter().filter(|body| seen.insert(body.clone())).collect()
}

/// A broker of a test, and a source that reads from it.
pub(crate) trait Rig {
    /// The source. Where it has a broker, a new adapter each time, as another process would have one.
    fn adapter(&self) -> Arc<dyn Adapter>;
    /// Publishes a message that the source reads; returns when the broker has it.
    fn publish<'a>(&'a mut self, body: &'a str) -> LocalBoxFuture<'a, ()>;
    /// Ends the broker at once; false: there is none that could end.
    fn kill(&mut self) -> LocalBoxFuture<'_, bool> {
        Box::pin(async { false })
    }
    /// Starts it again, with what it kept on disk.
    fn revive(&mut self) -> LocalBoxFuture<'_, ()> {
        Box::pin(async {})
    }
    /// What a message says, so that it can be compared with what was published.
    fn read(&self, message: &Message) -> String {
        body(message)
    }
}

async fn publish(rig: &mut dyn Rig, expected: &mut Vec<String>, bodies: impl IntoIterator<Item = String>) {
    for body in bodies {
        rig.publish(&body).await;
        expected.push(body);
    }
}

/// What every adapter owes: it delivers in order, reconnects by itself (with a gap where something may be lost), gives
/// again what was not acknowledged where its broker keeps that, is up only when it is, and ends promptly.
pub(crate) async fn conformance(rig: &mut dyn Rig) {
    let adapter = rig.adapter();
    // What a queue has seen acknowledged just before its broker crashes may come again.
    let again = !adapter.durable() && !adapter.loses_while_away();
    let running = Running::start(adapter.clone());
    let came = |rig: &dyn Rig| -> Vec<_> { messages(&running.recorder.items.lock()).iter().map(|message| rig.read(message)).collect() };
    running.until_state(State::Up).await;
    assert!(running.handle.status.was_up());
    let mut expected = Vec::new();
    publish(rig, &mut expected, (0..100).map(|n| format!("first {n}"))).await;
    running.until_messages(100).await;
    assert_eq!(came(rig), expected);
    assert_eq!(running.gaps(), []);

    if rig.kill().await {
        running.until_state(State::Down).await;
        assert!(running.handle.status.read().fault.is_some());
        running.until_errors(3).await;
        rig.revive().await;
        running.until_state(State::Up).await;
        publish(rig, &mut expected, (0..100).map(|n| format!("second {n}"))).await;
        let last = expected.last().cloned();
        eventually("the last", async || if came(rig).last() == last.as_ref() { Ok(()) } else { Err(format!("{:?}", came(rig).last())) })
            .await;
        assert_eq!(if again { once(came(rig)) } else { came(rig) }, expected);
        // A server that is going may let us in once more.
        let reconnects = running.handle.counters.reconnects();
        assert!(reconnects >= 1);
        let reasons: Vec<_> = running.gaps().iter().map(|gap| gap.reason).collect();
        let each = if adapter.loses_while_away() { usize::try_from(reconnects).expect("few") } else { 0 };
        assert_eq!(reasons, vec![GapReason::Reconnect; each]);
    }
    // The supervisor counts what was taken once it has been.
    let counted = || running.handle.counters.messages();
    let all = came(rig).len() as u64;
    eventually("all to be counted", async || if counted() == all { Ok(()) } else { Err(format!("{} of {all}", counted())) }).await;
    let took = running.stop().await;
    assert!(took < Duration::from_millis(1500), "took {took:?}");
}

/// Reads and acknowledges until `enough`.
async fn read(connection: &mut dyn Connection, items: &mut Vec<Item>, enough: impl Fn(&[Item]) -> bool) {
    let reading = async {
        while !enough(items) {
            connection.next(items, 100).await.expect("reads");
            if let Some(acknowledging) = connection.acknowledge("id") {
                acknowledging.await.expect("acknowledges");
            }
        }
    };
    timeout(PATIENCE, reading).await.expect("in time");
}

/// What an adapter owes whose broker keeps a message until it is acknowledged: that is not done by reading alone.
pub(crate) async fn acknowledges_after_the_window(rig: &mut dyn Rig) {
    let adapter = rig.adapter();
    assert!(!adapter.durable() && !adapter.loses_while_away());
    let mut connection = adapter.connect(Start::Now).await.expect("connects");
    let mut expected = Vec::new();
    publish(rig, &mut expected, (0..20).map(|n| n.to_string())).await;
    let mut items = Vec::new();
    while items.len() < 20 {
        timeout(PATIENCE, connection.next(&mut items, 20)).await.expect("in time").expect("reads");
    }
    // Long enough for acknowledgements to be sent, if any were due.
    timeout(Duration::from_millis(500), connection.next(&mut items, 20)).await.expect_err("nothing more comes");
    // A process that is gone has acknowledged nothing, though it had read all.
    drop(connection);
    let mut connection = adapter.connect(Start::Now).await.expect("connects again");
    let mut items = Vec::new();
    read(&mut *connection, &mut items, |items| items.len() >= 20).await;
    assert_eq!(messages(&items).iter().map(body).collect::<Vec<_>>(), expected);
    connection.close().await;
    // What was acknowledged does not come again: the next that comes is new.
    let mut connection = adapter.connect(Start::Now).await.expect("connects once more");
    rig.publish("new").await;
    let mut items = Vec::new();
    read(&mut *connection, &mut items, |items| !items.is_empty()).await;
    assert_eq!(messages(&items).iter().map(body).collect::<Vec<_>>(), ["new"]);
    connection.close().await;
}

/// A rig whose source reads a log. The source makes the log where it is missing.
pub(crate) trait LogRig: Rig {
    /// Deletes the log, while its broker lives.
    fn delete(&mut self) -> LocalBoxFuture<'_, ()>;
}

/// What a history holds up to its tail.
struct History {
    bodies: Vec<String>,
    positions: Vec<Position>,
    gaps: Vec<Gap>,
    tail: Option<Position>,
}

async fn history(adapter: &dyn Adapter, start: Start) -> History {
    let mut connection = adapter.history(start).await.expect("opens");
    let mut items = Vec::new();
    read(&mut *connection, &mut items, |items| items.iter().any(|item| matches!(item, Item::Tail(_)))).await;
    let Some(Item::Tail(tail)) = items.last() else { panic!("the tail comes last: {items:?}") };
    let tails = items.iter().filter(|item| matches!(item, Item::Tail(_))).count();
    assert_eq!(tails, 1, "{start:?}");
    let came = messages(&items);
    assert!(items.iter().skip_while(|item| matches!(item, Item::Gap(_))).all(|item| !matches!(item, Item::Gap(_))), "gaps come first");
    History {
        bodies: came.iter().map(body).collect(),
        positions: came.iter().map(|message| message.position.expect("a place in the log")).collect(),
        gaps: gaps(&items),
        tail: *tail,
    }
}

/// What an adapter with a log owes besides: every place to start at, the tail once and behind all that was there, the same
/// places for every reader, and a `reset` where the log was made anew.
pub(crate) async fn durable_conformance(rig: &mut dyn LogRig) {
    let adapter = rig.adapter();
    assert!(adapter.durable() && !adapter.loses_while_away());
    let running = Running::start(adapter.clone());
    running.until_state(State::Up).await;
    let window = Start::Recent { age: Duration::from_secs(600), bytes: 1 << 20 };
    for start in [Start::Now, Start::Earliest, window, Start::Since(Timestamp::now().before(Duration::from_secs(60)))] {
        let empty = history(&*adapter, start).await;
        assert!(empty.bodies.is_empty() && empty.gaps.is_empty(), "{start:?} of an empty log: {:?} {:?}", empty.bodies, empty.gaps);
    }

    let mut expected = Vec::new();
    publish(rig, &mut expected, (0..20).map(|n| n.to_string())).await;
    running.until_messages(20).await;
    let all = every_start(&*adapter, &expected).await;
    // Another process makes the same of the log, and so did the live reader.
    assert_eq!(history(&*rig.adapter(), Start::Earliest).await.positions, all.positions);
    let live: Vec<_> = messages(&running.recorder.items.lock()).iter().filter_map(|message| message.position).collect();
    assert_eq!((running.bodies(), live), (expected.clone(), all.positions.clone()));

    // A history goes on beyond its tail.
    let mut connection = adapter.history(Start::After(all.positions[18])).await.expect("opens");
    let mut items = Vec::new();
    read(&mut *connection, &mut items, |items| items.iter().any(|item| matches!(item, Item::Tail(_)))).await;
    rig.publish("beyond").await;
    read(&mut *connection, &mut items, |items| messages(items).len() >= 2).await;
    assert_eq!(messages(&items).iter().map(body).collect::<Vec<_>>(), ["19", "beyond"]);
    connection.close().await;
    running.until_messages(21).await;
    assert_eq!(running.gaps(), []);

    recreation(rig, &running, all.positions[9]).await;
    running.stop().await;
}

/// Reads from every place of a log that holds `expected`, and returns the whole of it.
async fn every_start(adapter: &dyn Adapter, expected: &[String]) -> History {
    let all = history(adapter, Start::Earliest).await;
    assert_eq!((&*all.bodies, &*all.gaps), (expected, &[][..]));
    assert_eq!(all.tail, all.positions.last().copied());
    let hour = Duration::from_secs(3600);
    let window = |bytes| Start::Recent { age: hour, bytes };
    let later = Timestamp::from_micros(Timestamp::now().as_micros() + 3_600_000_000);
    let mut starts = vec![
        (Start::Now, expected.len()),
        (Start::Since(Timestamp::now().before(hour)), 0),
        (Start::Since(later), expected.len()),
        (window(1 << 20), 0),
    ];
    starts.extend(all.positions.iter().enumerate().map(|(n, position)| (Start::After(*position), n + 1)));
    starts.extend(all.positions.iter().enumerate().map(|(n, position)| (Start::After(Position::unverified(position.seq)), n + 1)));
    if adapter.keeps_last() {
        starts.push((Start::LastPerSubject, expected.len() - 1));
    }
    for (start, from) in starts {
        let read = history(adapter, start).await;
        assert_eq!((&*read.bodies, &*read.gaps, read.tail), (&expected[from..], &[][..], all.tail), "{start:?}");
    }
    // About as much as a small window holds, but always the end.
    let some = history(adapter, window(300)).await.bodies;
    assert_eq!(some, expected[expected.len() - some.len()..]);
    all
}

/// The log is deleted and made anew: a `reset` for the live reader, told once, and for whoever comes back to an old place.
async fn recreation(rig: &mut dyn LogRig, running: &Running, old: Position) {
    rig.delete().await;
    let gap = running.until_gap(GapReason::Reset).await;
    running.until_state(State::Up).await;
    let before = running.bodies().len();
    let mut expected = Vec::new();
    publish(rig, &mut expected, (0..30).map(|n| format!("new {n}"))).await;
    running.until_messages(before + 30).await;
    assert_eq!(running.bodies()[before..], expected);
    assert_eq!(running.gaps(), [gap]);
    let adapter = rig.adapter();
    let back = history(&*adapter, Start::After(old)).await;
    assert_eq!(back.bodies, expected);
    let [gap] = &back.gaps[..] else { panic!("one gap, not {:?}", back.gaps) };
    assert_eq!((gap.reason, gap.from), (GapReason::Reset, Some(old.seq)));
    // Told once: the places behind it lead on without another.
    assert_eq!(history(&*adapter, Start::After(back.positions[4])).await.gaps, []);
}

/// A log that keeps less than is published to it: `retention` for whoever comes back to what is gone, and to no one else.
pub(crate) async fn retention_conformance(rig: &mut dyn Rig) {
    let adapter = rig.adapter();
    let running = Running::start(adapter.clone());
    running.until_state(State::Up).await;
    let mut expected = Vec::new();
    publish(rig, &mut expected, (0..300).map(|n| format!("{n} {}", "x".repeat(1000)))).await;
    running.until_messages(300).await;
    assert_eq!((running.bodies(), running.gaps()), (expected.clone(), vec![]));
    let places: Vec<_> = messages(&running.recorder.items.lock()).iter().filter_map(|message| message.position).collect();
    let left = history(&*adapter, Start::Earliest).await;
    let first = 300 - left.bodies.len();
    assert!((1..299).contains(&first) && left.gaps.is_empty(), "{first} are gone, {:?}", left.gaps);
    assert_eq!(left.bodies, expected[first..]);
    for n in [0, first - 1, first, first + 1, 299] {
        let back = history(&*adapter, Start::After(places[n])).await;
        assert_eq!(back.bodies, expected[first.max(n + 1)..], "after {n}");
        assert_eq!(back.gaps.len(), usize::from(n + 1 < first), "after {n} of which {first} are gone: {:?}", back.gaps);
        if let [gap] = &back.gaps[..] {
            assert_eq!((gap.reason, gap.from, gap.to), (GapReason::Retention, Some(places[n].seq), Some(places[first].seq)));
            let again = history(&*adapter, Start::After(gap.position.expect("a place behind the gap"))).await;
            assert_eq!((again.bodies, again.gaps), (left.bodies.clone(), vec![]), "told once");
        }
    }
    running.stop().await;
}
