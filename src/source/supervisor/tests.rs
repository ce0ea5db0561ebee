//! The supervisor with an adapter that does what a script says, on a clock that nobody waits for.

use std::collections::VecDeque;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::*;
use crate::event::{Message, Timestamp};
use crate::source::tests::{Running, eventually};
use crate::subject::Pattern;

#[derive(Debug)]
enum Step {
    Items(Vec<Item>),
    Fail,
    Panic,
    Hang,
    /// The acknowledgement of the batch before.
    PanicAcknowledging,
    /// The same.
    HangAcknowledging,
}
use Step::{Fail, Hang, HangAcknowledging, Items, Panic, PanicAcknowledging};

#[derive(Debug, Clone, PartialEq)]
enum Seen {
    Connect(Start),
    Acknowledge(String),
    Close,
}

/// Each connection is `None` (it cannot be made) or the steps of its life; after the last script all hang.
#[derive(Default)]
struct Scripted {
    durable: bool,
    /// Of every connection that cannot be made; `None`: of those the scripts say, as [`ErrorKind::Lost`].
    failing: Option<ErrorKind>,
    scripts: Mutex<VecDeque<Option<Vec<Step>>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Scripted {
    fn new(durable: bool, scripts: Vec<Option<Vec<Step>>>) -> Arc<Self> {
        Arc::new(Self { durable, scripts: Mutex::new(scripts.into()), ..Self::default() })
    }
    fn failing(kind: ErrorKind) -> Arc<Self> {
        Arc::new(Self { failing: Some(kind), ..Self::default() })
    }
    fn starts(&self) -> Vec<Start> {
        let start = |seen: &Seen| if let Seen::Connect(start) = seen { Some(*start) } else { None };
        self.seen.lock().iter().filter_map(start).collect()
    }
}

impl Adapter for Scripted {
    fn kind(&self) -> &'static str {
        "scripted"
    }
    fn durable(&self) -> bool {
        self.durable
    }
    fn reach(&self) -> Vec<Pattern> {
        vec![Pattern::all()]
    }
    fn connect(&self, start: Start) -> BoxFuture<'_, Result<Box<dyn Connection>, SourceError>> {
        self.seen.lock().push(Seen::Connect(start));
        let script = self.scripts.lock().pop_front().unwrap_or(self.failing.is_none().then(Vec::new));
        let kind = self.failing.unwrap_or(ErrorKind::Lost);
        let seen = self.seen.clone();
        Box::pin(async move {
            let steps = script.ok_or_else(|| SourceError::new(kind, "could not connect").because(std::io::Error::other("no route")))?;
            Ok(Box::new(Playing { steps: steps.into(), seen }) as Box<dyn Connection>)
        })
    }
}

struct Playing {
    steps: VecDeque<Step>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Connection for Playing {
    fn next<'a>(&'a mut self, batch: &'a mut Vec<Item>, _: usize) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            match self.steps.pop_front() {
                Some(Items(items)) => batch.extend(items),
                Some(Fail) => return Err(SourceError::lost("cut")),
                Some(Panic | PanicAcknowledging) => panic!("as the script says"),
                Some(Hang | HangAcknowledging) | None => std::future::pending().await,
            }
            Ok(())
        })
    }
    fn acknowledge<'a>(&'a mut self, id: &'a str) -> Option<BoxFuture<'a, Result<(), SourceError>>> {
        self.seen.lock().push(Seen::Acknowledge(id.to_owned()));
        match self.steps.front() {
            Some(PanicAcknowledging) => panic!("as the script says"),
            Some(HangAcknowledging) => Some(Box::pin(std::future::pending())),
            _ => Some(Box::pin(async { Ok(()) })),
        }
    }
    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        self.seen.lock().push(Seen::Close);
        Box::pin(async {})
    }
}

fn message(body: &str, seq: Option<u64>) -> Item {
    let payload = Bytes::from(body.to_owned());
    let position = seq.map(Position::unverified);
    Item::Message(Message::new("a.b".parse().expect("a subject"), payload, Timestamp::now(), position))
}

#[tokio::test(start_paused = true)]
async fn batches_are_acknowledged_after_they_were_taken_with_the_id_that_was_given() {
    let adapter =
        Scripted::new(false, vec![Some(vec![Items(vec![message("1", None), message("2", None)]), Items(vec![message("3", None)])])]);
    let running = Running::start(adapter.clone());
    running.until_messages(3).await;
    assert_eq!(running.bodies(), ["1", "2", "3"]);
    eventually("acknowledgements", async || {
        let seen = adapter.seen.lock().clone();
        let acknowledged = |id: &str| Seen::Acknowledge(id.to_owned());
        if seen[1..] == [acknowledged("2"), acknowledged("3")] { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
    assert_eq!((running.handle.counters.messages(), running.handle.counters.bytes()), (3, 3));
    assert!(running.stop().await < Duration::from_secs(1));
    assert_eq!(adapter.seen.lock().last(), Some(&Seen::Close));
}

#[tokio::test(start_paused = true)]
async fn an_acknowledgement_that_panics_or_is_not_taken_ends_the_connection() {
    let life = |body: &str, then: Step| Some(vec![Items(vec![message(body, None)]), then]);
    let adapter = Scripted::new(false, vec![life("1", PanicAcknowledging), life("2", HangAcknowledging), life("3", Hang)]);
    let running = Running::start(adapter.clone());
    let began = Instant::now();
    running.until_messages(3).await;
    assert!(began.elapsed() >= ACKNOWLEDGE, "{:?}", began.elapsed());
    assert_eq!(running.bodies(), ["1", "2", "3"]);
    let counters = &running.handle.counters;
    assert_eq!((counters.errors(ErrorKind::Protocol), counters.errors(ErrorKind::Lost), counters.reconnects()), (1, 1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_source_without_a_log_tells_a_gap_each_time_it_is_back_but_not_the_first() {
    let life = |body: &str| Some(vec![Items(vec![message(body, None)]), Fail]);
    let adapter = Scripted::new(false, vec![None, life("1"), None, None, life("2"), life("3")]);
    let running = Running::start(adapter.clone());
    running.until_messages(3).await;
    eventually("the last gap", async || if running.gaps().len() == 3 { Ok(()) } else { Err(format!("{:?}", running.gaps())) }).await;
    let order: Vec<_> = running.recorder.items.lock().iter().map(|item| matches!(item, Item::Gap(_))).collect();
    assert_eq!(order, [false, true, false, true, false, true]);
    assert!(adapter.starts().iter().all(|start| *start == Start::Now));
    let counters = &running.handle.counters;
    assert_eq!((counters.reconnects(), counters.errors(ErrorKind::Lost), counters.gaps(GapReason::Reconnect)), (3, 6, 3));
}

#[tokio::test(start_paused = true)]
async fn a_durable_source_warms_up_and_then_goes_on_after_the_last_place_it_handed_in() {
    let tail = |seq| Item::Tail(Some(Position::unverified(seq)));
    let adapter = Scripted::new(
        true,
        vec![
            None,
            Some(vec![Fail]),
            Some(vec![Items(vec![message("1", Some(7))]), Fail]),
            Some(vec![Items(vec![message("2", Some(8)), tail(8)]), Fail]),
            Some(vec![Items(vec![tail(8), message("3", Some(12))]), Fail]),
        ],
    );
    let running = Running::start(adapter.clone());
    running.until_messages(3).await;
    eventually("the last connection", async || if adapter.starts().len() == 6 { Ok(()) } else { Err(String::new()) }).await;
    let after = |seq| Start::After(Position::unverified(seq));
    let recent = Start::Recent { age: Duration::from_secs(600), bytes: 16 << 20 };
    assert_eq!(adapter.starts(), [recent, recent, recent, after(7), after(8), after(12)]);
    assert_eq!(running.gaps(), []);
}

#[tokio::test(start_paused = true)]
async fn what_comes_into_an_empty_log_while_away_is_read_from_its_start() {
    let adapter = Scripted::new(true, vec![Some(vec![Items(vec![Item::Tail(None)]), Fail])]);
    let running = Running::start(adapter.clone());
    eventually("the second connection", async || if adapter.starts().len() == 2 { Ok(()) } else { Err(String::new()) }).await;
    assert_eq!(adapter.starts()[1], Start::Earliest);
    running.until_state(State::Up).await;
}

#[tokio::test(start_paused = true)]
async fn what_may_have_been_wrong_has_changed_so_the_next_attempt_is_made_at_once() {
    let adapter = Scripted::failing(ErrorKind::Configuration);
    let running = Running::start(adapter.clone());
    let attempts = || adapter.starts().len();
    eventually("the first attempt", async || if attempts() == 1 { Ok(()) } else { Err(String::new()) }).await;
    // The clock goes on only while all wait.
    let settle = async || {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    };
    settle().await;
    let before = attempts();
    running.handle.try_again();
    settle().await;
    assert_eq!(attempts(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn a_durable_source_is_up_only_when_it_has_warmed_up() {
    let mut scripts: Vec<_> = (0..8).map(|_| None).collect();
    scripts.push(Some(vec![Items(vec![message("1", Some(1))]), Hang]));
    let adapter = Scripted::new(true, scripts);
    let running = Running::start(adapter);
    assert_eq!(running.handle.status.read().state, State::Connecting);
    running.until_state(State::Down).await;
    assert_eq!(running.handle.status.read().fault.as_ref().map(|fault| &*fault.error), Some("could not connect: no route"));
    running.until_state(State::Warming).await;
    running.until_messages(1).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(running.handle.status.read().state, State::Warming);
    assert!(!running.handle.status.was_up());
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_adapter_starts_it_again_and_leaves_other_sources_alone() {
    let bad = Scripted::new(false, vec![Some(vec![Items(vec![message("1", None)]), Panic]), Some(vec![Items(vec![message("2", None)])])]);
    let good = Scripted::new(false, vec![Some(vec![Items(vec![message("good", None)]), Hang])]);
    let (running, other) = (Running::start(bad), Running::start(good));
    running.until_messages(2).await;
    assert_eq!(running.gaps().len(), 1);
    assert_eq!(running.gaps()[0].reason, GapReason::Reconnect);
    other.until_messages(1).await;
    assert_eq!((ErrorKind::ALL.iter().map(|kind| other.handle.counters.errors(*kind)).sum::<u64>(), other.gaps().len()), (0, 0));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_end_does_not_wait_for_a_broker_nor_for_an_intake_that_hangs() {
    let adapter = Scripted::new(false, vec![Some(vec![Items(vec![message("1", None)])])]);
    let running = Running::start(adapter);
    running.recorder.stalled.store(true, std::sync::atomic::Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(running.stop().await <= Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn large_messages_are_gaps_and_the_place_behind_them_is_kept() {
    let adapter = Scripted::new(true, vec![Some(vec![Items(vec![message("1", Some(1)), message("too large", Some(2))]), Fail])]);
    let running = Running::with_max_payload(adapter.clone(), 3);
    eventually("the second connection", async || if adapter.starts().len() == 2 { Ok(()) } else { Err(String::new()) }).await;
    assert_eq!(adapter.starts()[1], Start::After(Position::unverified(2)));
    assert_eq!(running.bodies(), ["1"]);
    assert_eq!((running.handle.counters.messages(), running.handle.counters.gaps(GapReason::Oversized)), (1, 1));
}

struct PanicsOnce(Mutex<bool>, crate::source::tests::Recorder);

impl Intake for PanicsOnce {
    fn take<'a>(&'a self, items: &'a mut Vec<Item>) -> BoxFuture<'a, String> {
        assert!(!std::mem::take(&mut *self.0.lock()), "as the test says");
        self.1.take(items)
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_cannot_be_taken_in_is_a_gap_and_the_next_one_goes_on() {
    let lost = vec![message("1", Some(1)), Item::Tail(Some(Position::unverified(1)))];
    let adapter = Scripted::new(true, vec![Some(vec![Items(lost), Items(vec![message("2", Some(2))])])]);
    let intake = Arc::new(PanicsOnce(Mutex::new(true), Default::default()));
    let handle = Arc::new(Handle::new("tested".parse().expect("a name"), &*adapter, true));
    let warm_up = Start::Earliest;
    let its = Supervisor { adapter, intake: intake.clone(), handle: handle.clone(), warm_up, max_payload: 100 };
    let cancel = CancellationToken::new();
    let mut task = tokio::task::JoinSet::new();
    task.spawn(its.run(cancel.clone()));
    eventually("both batches", async || if intake.1.items.lock().len() == 3 { Ok(()) } else { Err(String::new()) }).await;
    let items = std::mem::take(&mut *intake.1.items.lock());
    let hole = Gap { reason: GapReason::Overflow, from: None, to: Some(1), position: Some(Position::unverified(1)) };
    assert!(matches!(&items[..], [Item::Gap(gap), Item::Tail(Some(_)), Item::Message(_)] if *gap == hole), "{items:?}");
    assert_eq!(handle.status.read().state, State::Up);
    cancel.cancel();
    task.join_next().await.expect("runs").expect("no panic");
}

#[test]
fn waiting_grows_to_its_bound_and_shrinks_with_health() {
    let seconds = |s| Some(Duration::from_secs(s));
    let mut retry = Retry::default();
    let mut ceiling = |held| *retry.within(ErrorKind::Protocol, held).end();
    let growth: Vec<_> = (0..14).map(|_| ceiling(None).as_millis()).collect();
    assert_eq!(growth, [100, 250, 375, 562, 843, 1265, 1898, 2847, 4271, 6407, 9610, 14416, 15000, 15000]);
    // A connection that breaks at once is no reason to hurry; one that stood is.
    assert_eq!(ceiling(Some(Duration::from_millis(10))), Retry::GROWING.most);
    assert_eq!(ceiling(seconds(2)), Retry::QUICK);
    assert_eq!(ceiling(None), Retry::GROWING.most);
    assert_eq!(ceiling(seconds(30)), Retry::QUICK);
    assert_eq!(ceiling(None), Retry::GROWING.first);
    for _ in 0..100 {
        assert!(retry.next(ErrorKind::Protocol, None) <= Retry::GROWING.most);
    }
}

#[test]
fn what_was_there_before_is_looked_for_often_when_it_is_missing() {
    let mut retry = Retry::default();
    let mut ceiling = |kind, held| *retry.within(kind, held).end();
    let never_there = (0..20).map(|_| ceiling(ErrorKind::Missing, None)).max();
    assert_eq!(never_there, Some(Retry::GROWING.most));
    ceiling(ErrorKind::Missing, Some(Duration::from_secs(60)));
    let gone = (0..20).map(|_| ceiling(ErrorKind::Missing, None)).max();
    assert_eq!(gone, Some(Duration::from_secs(2)));
    assert_eq!(ceiling(ErrorKind::Lost, None), Retry::GROWING.most);
}

#[test]
fn waiting_follows_the_kind_of_the_error() {
    let quick = Duration::ZERO..=Retry::QUICK;
    let first = Duration::ZERO..=Retry::GROWING.first;
    let stood = Some(Duration::from_secs(2));
    let mut retry = Retry::default();
    assert_eq!(retry.within(ErrorKind::Configuration, None), Retry::SLOW);
    assert_eq!(retry.within(ErrorKind::Lost, None), first, "as after any failure");
    // A broker that boots may refuse twice.
    let mut retry = Retry::default();
    let denied = |retry: &mut Retry, held| retry.within(ErrorKind::Denied, held);
    assert_eq!([denied(&mut retry, None), denied(&mut retry, None)], [quick.clone(), first]);
    assert_eq!([denied(&mut retry, None), denied(&mut retry, None)], [Retry::SLOW, Retry::SLOW]);
    // What lies between refusals breaks their row.
    assert_ne!(retry.within(ErrorKind::Lost, None), Retry::SLOW);
    assert_ne!(denied(&mut retry, None), Retry::SLOW);
    assert_ne!(denied(&mut retry, None), Retry::SLOW);
    assert_eq!(denied(&mut retry, stood), quick);
    assert_ne!(denied(&mut retry, None), Retry::SLOW);
    assert_eq!(denied(&mut retry, None), Retry::SLOW);
    // A link that stood is made again at once, then as after any failure.
    let mut retry = Retry::default();
    assert_eq!(retry.next(ErrorKind::Lost, Some(Duration::from_secs(60))), Duration::ZERO);
    assert_eq!(retry.within(ErrorKind::Lost, None), Duration::ZERO..=Retry::GROWING.first);
    assert_eq!(retry.within(ErrorKind::Lost, Some(Duration::from_millis(10))), Duration::ZERO..=Duration::from_millis(375));
}

#[tokio::test(start_paused = true)]
async fn the_kind_of_an_error_is_shown_and_counted_and_sets_the_pace() {
    let adapter = Scripted::failing(ErrorKind::Configuration);
    let running = Running::start(adapter.clone());
    running.until_state(State::Down).await;
    let status = running.handle.status.read();
    assert_eq!(status.fault.as_ref().map(|fault| fault.kind), Some(ErrorKind::Configuration));
    let json = serde_json::to_value(&*status).expect("serialises");
    assert_eq!((&json["error"], &json["kind"]), (&"could not connect: no route".into(), &"configuration".into()));
    tokio::time::sleep(Duration::from_secs(90)).await;
    let attempts = running.handle.counters.errors(ErrorKind::Configuration);
    assert!((4..=7).contains(&attempts), "{attempts} attempts in 90 s");
    assert_eq!(running.handle.counters.errors(ErrorKind::Lost), 0);
    running.stop().await;
}
