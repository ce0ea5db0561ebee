//! What the adapters' tests share: an intake that records, a running supervisor, the conformance suite.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::supervisor::Supervisor;
use super::*;

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

    pub(crate) fn bodies(&self) -> Vec<String> {
        let body = |item: &Item| match item {
            Item::Message(message) => Some(String::from_utf8_lossy(&message.payload).into_owned()),
            _ => None,
        };
        self.recorder.items.lock().iter().filter_map(body).collect()
    }

    pub(crate) fn gaps(&self) -> Vec<Gap> {
        let gap = |item: &Item| if let Item::Gap(gap) = item { Some(gap.clone()) } else { None };
        self.recorder.items.lock().iter().filter_map(gap).collect()
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
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match condition().await {
            Ok(()) => return,
            Err(now) if Instant::now() > deadline => panic!("waited in vain for {what}: {now}"),
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

/// A broker of a test, and a source that reads from it.
pub(crate) trait Rig: Send {
    fn adapter(&self) -> Arc<dyn Adapter>;
    /// Publishes a message that the source reads; returns when the broker has it.
    fn publish<'a>(&'a mut self, body: &'a str) -> BoxFuture<'a, ()>;
    /// Ends the broker at once; false: there is none that could end.
    fn kill(&mut self) -> BoxFuture<'_, bool>;
    /// Starts it again, with what it kept on disk.
    fn revive(&mut self) -> BoxFuture<'_, ()>;
}

/// What every adapter owes: it delivers in order, reconnects by itself (with a gap where something may be lost),
/// is up only when it is, and ends promptly.
pub(crate) async fn conformance(rig: &mut dyn Rig) {
    let adapter = rig.adapter();
    let running = Running::start(adapter.clone());
    running.until_state(State::Up).await;
    assert!(running.handle.status.was_up());
    let mut expected = Vec::new();
    for n in 0..100 {
        rig.publish(&format!("first {n}")).await;
        expected.push(format!("first {n}"));
    }
    running.until_messages(100).await;
    assert_eq!(running.bodies(), expected);
    assert_eq!(running.gaps(), []);

    if rig.kill().await {
        running.until_state(State::Down).await;
        assert!(running.handle.status.read().fault.is_some());
        sleep(Duration::from_millis(500)).await;
        rig.revive().await;
        running.until_state(State::Up).await;
        for n in 0..100 {
            rig.publish(&format!("second {n}")).await;
            expected.push(format!("second {n}"));
        }
        running.until_messages(200).await;
        assert_eq!(running.bodies(), expected);
        // A server that is going may let us in once more.
        let reconnects = running.handle.counters.reconnects();
        assert!(reconnects >= 1);
        let reasons: Vec<_> = running.gaps().iter().map(|gap| gap.reason).collect();
        let each = if adapter.loses_while_away() { usize::try_from(reconnects).expect("few") } else { 0 };
        assert_eq!(reasons, vec![GapReason::Reconnect; each]);
    }
    assert_eq!(running.handle.counters.messages(), expected.len() as u64);
    let took = running.stop().await;
    assert!(took < Duration::from_millis(1500), "took {took:?}");
}

struct InboxRig(Arc<http::Http>);

impl Rig for InboxRig {
    fn adapter(&self) -> Arc<dyn Adapter> {
        self.0.clone()
    }
    fn publish<'a>(&'a mut self, body: &'a str) -> BoxFuture<'a, ()> {
        let handle = self.0.inbox().expect("an inbox");
        Box::pin(async move {
            let subject = "demo.a".parse().expect("a subject");
            handle.publish(subject, Bytes::from(body.to_owned())).await.expect("published");
        })
    }
    fn kill(&mut self) -> BoxFuture<'_, bool> {
        Box::pin(async { false })
    }
    fn revive(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

#[tokio::test]
async fn the_inbox_conforms() {
    let config = http::Config { subjects: vec!["demo.>".parse().expect("a pattern")] };
    conformance(&mut InboxRig(Arc::new(http::Http::new(config)))).await;
}

#[test]
fn what_is_larger_than_allowed_becomes_a_gap_in_its_place() {
    let message = |seq: Option<u64>, bytes: usize| {
        let position = seq.map(Position::unverified);
        let subject = "a".parse().expect("a subject");
        Item::Message(Message { subject, payload: vec![b'x'; bytes].into(), time: Timestamp::now(), position })
    };
    let mut items = [message(Some(4), 10), message(Some(5), 11), message(None, 11), message(Some(7), 10)];
    assert_eq!(drop_oversized(&mut items, 10), 2);
    let gap = |from, to, position| Gap { reason: GapReason::Oversized, from, to, position };
    let Item::Gap(first) = &items[1] else { panic!("a gap") };
    assert_eq!(*first, gap(Some(4), Some(6), Some(Position::unverified(5))));
    let Item::Gap(second) = &items[2] else { panic!("a gap") };
    assert_eq!(*second, gap(None, None, None));
    assert!(matches!((&items[0], &items[3]), (Item::Message(_), Item::Message(_))));
}
