//! How clients share readers that are few.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::*;
use crate::cursor::{Check, Position};
use crate::event::{Message, Timestamp};
use crate::source::{Connection, Item, SourceError, Start};

/// A log whose broker takes its time, first to open a reader, then for each message.
#[derive(Clone, Default)]
struct Fake {
    opening: Duration,
    each: Duration,
    messages: u64,
    /// So many messages come together.
    at_once: usize,
    /// What comes behind the messages cannot be read. Else that is the log's end.
    broken: bool,
    /// It cannot be opened.
    denied: bool,
    /// What comes behind the messages makes it panic, or, where there are none, opening it does.
    panics: bool,
    /// Readers that were opened.
    opened: Arc<AtomicU32>,
    /// Readers that are open.
    open: Arc<AtomicU32>,
    /// How often somebody looked whether what was read is of use to it.
    looks: Arc<AtomicU64>,
}

struct FakeReader {
    log: Fake,
    left: std::ops::RangeInclusive<u64>,
}

impl Adapter for Fake {
    fn kind(&self) -> &'static str {
        "fake"
    }
    fn durable(&self) -> bool {
        true
    }
    fn keeps_last(&self) -> bool {
        true
    }
    fn selects(&self) -> bool {
        true
    }
    fn selected<'a>(&'a self, start: Start, _: &'a [Pattern]) -> BoxFuture<'a, Result<Option<Box<dyn Connection>>, SourceError>> {
        Box::pin(async move { self.connect(start).await.map(Some) })
    }
    fn reach(&self) -> Vec<Pattern> {
        vec![Pattern::all()]
    }
    fn connect(&self, start: Start) -> BoxFuture<'_, Result<Box<dyn Connection>, SourceError>> {
        Box::pin(async move {
            self.opened.fetch_add(1, Ordering::Relaxed);
            sleep(self.opening).await;
            assert!(!self.panics || self.messages > 0, "it cannot be opened");
            if self.denied {
                return Err(SourceError::denied("no right to read"));
            }
            self.open.fetch_add(1, Ordering::Relaxed);
            let after = if let Start::After(position) = start { position.seq } else { 0 };
            Ok(Box::new(FakeReader { log: self.clone(), left: after + 1..=self.messages }) as Box<dyn Connection>)
        })
    }
}

impl Drop for FakeReader {
    fn drop(&mut self) {
        self.log.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The place of a message.
fn place(seq: u64) -> Position {
    Position { seq, check: Some(Check::of(&[&seq.to_be_bytes()])) }
}

impl Connection for FakeReader {
    fn next<'a>(&'a mut self, batch: &'a mut Vec<Item>, _: usize) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async {
            sleep(self.log.each).await;
            assert!(!self.left.is_empty() || !self.log.panics, "it cannot be read");
            if self.left.is_empty() {
                return if self.log.broken { Err(SourceError::lost("the connection was lost")) } else { std::future::pending().await };
            }
            let message = |seq| Message::new("a".parse().expect("a subject"), Bytes::new(), Timestamp::default(), Some(place(seq)));
            batch.extend(self.left.by_ref().take(self.log.at_once).map(message).map(Item::Message));
            if self.left.is_empty() && !self.log.broken && !self.log.panics {
                batch.push(Item::Tail(Some(place(self.log.messages))));
            }
            Ok(())
        })
    }
    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

/// One source with this log.
fn of(log: Fake, readers: usize) -> (Arc<Histories>, SourceKey) {
    let histories = Histories::new(Settings { readers, rate: 1 << 20, cache: 1 << 20 });
    (histories.clone(), add(&histories, 0, log))
}

fn add(histories: &Arc<Histories>, slot: u32, log: Fake) -> SourceKey {
    let (source, name, looks) = (SourceKey::new(slot, 0), "s".parse().expect("a name"), log.looks.clone());
    let resets = Arc::new(move || {
        looks.fetch_add(1, Ordering::Relaxed);
        0
    });
    histories.add(source, Log { name, adapter: Arc::new(log), max_payload: 1000, up: Arc::new(|| true), resets });
    source
}

/// Wants what nobody else wants.
fn filter(number: u32) -> Option<Arc<[Pattern]>> {
    Some([format!("subject.{number}").parse().expect("a pattern")].into())
}

/// Reads from a point to the log's end, and returns the sequences of what comes.
async fn read(mut reader: Reader, mut at: Point) -> Vec<u64> {
    let (mut seen, mut items, mut ended) = (Vec::new(), Vec::new(), false);
    while !ended {
        reader.next(&mut items, at).await.expect("the log can be read");
        for item in items.drain(..) {
            match item {
                Item::Message(message) => {
                    let position = message.position.expect("a position");
                    at = Point::At(position);
                    seen.push(position.seq);
                }
                Item::Tail(_) => ended = true,
                other => panic!("{other:?}"),
            }
        }
    }
    seen
}

/// Several clients, each with a wish of its own, share one reader. Each is to come to the log's end.
async fn all_come_to_the_end(log: Fake, from: Point) {
    let (histories, source) = of(log, 1);
    let mut clients = JoinSet::new();
    for number in 0..4 {
        let histories = histories.clone();
        clients.spawn(async move {
            let asker = Asker { identity: number.into(), wanted: filter(number) };
            let mut reader = histories.reader(Request { source, number, from }, asker).expect("a log");
            let mut items = Vec::new();
            while !items.iter().any(|item| matches!(item, Item::Tail(_))) {
                reader.next(&mut items, from).await.expect("the log can be read");
            }
        });
    }
    timeout(Duration::from_secs(120), clients.join_all()).await.expect("somebody gets nothing");
}

#[tokio::test(start_paused = true)]
async fn readers_that_open_slowly_are_waited_for_though_others_wait() {
    let log = Fake { opening: Duration::from_millis(2500), messages: 1, at_once: 1, ..Fake::default() };
    all_come_to_the_end(log, Point::Earliest).await;
}

#[tokio::test(start_paused = true)]
async fn what_comes_slowly_is_not_taken_for_the_logs_end() {
    // A reader that opens slowly, and a rate that is reached.
    for (opening, rate) in [(2500, 1 << 20), (0, 50)] {
        let opening = Duration::from_millis(opening);
        let (histories, source) = of(Fake { opening, messages: 5, at_once: 1, ..Fake::default() }, 1);
        histories.configure(Settings { readers: 1, rate, cache: 1 << 20 });
        let from = Point::At(place(1));
        let reader = histories.reader(Request { source, number: 0, from }, Asker::default()).expect("a log");
        assert_eq!(read(reader, from).await, [2, 3, 4, 5]);
    }
}

#[tokio::test(start_paused = true)]
async fn the_newest_of_many_subjects_are_read_to_their_end_though_others_wait() {
    let log = Fake { each: Duration::from_millis(100), messages: 30, at_once: 1, ..Fake::default() };
    all_come_to_the_end(log, Point::Last).await;
}

#[tokio::test(start_paused = true)]
async fn the_newest_that_cannot_be_read_to_their_end_are_given_up() {
    let log = Fake { messages: 10, at_once: 10, broken: true, ..Fake::default() };
    let opened = log.opened.clone();
    let (histories, source) = of(log, 4);
    let asker = Asker { identity: 0, wanted: None };
    let mut reader = histories.reader(Request { source, number: 0, from: Point::Last }, asker).expect("a log");
    let (begun, mut items) = (tokio::time::Instant::now(), Vec::new());
    timeout(Duration::from_secs(120), async { while reader.next(&mut items, Point::Last).await.is_ok() {} }).await.expect("in time");
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    let opened = opened.load(Ordering::Relaxed);
    assert!((3..30).contains(&opened) && items.len() == 10 * opened as usize, "{opened} {}", items.len());
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_panics_is_one_that_failed_and_ends_no_client() {
    for messages in [0, 10] {
        let (histories, source) = of(Fake { messages, at_once: 3, panics: true, ..Fake::default() }, 4);
        let mut clients = JoinSet::new();
        for number in 0..3 {
            let mut reader = histories.reader(Request { source, number, from: Point::Earliest }, Asker::default()).expect("a log");
            clients.spawn(async move {
                let (mut at, mut items) = (Point::Earliest, Vec::new());
                while reader.next(&mut items, at).await.is_ok() {
                    let Some(Item::Message(message)) = items.last() else { panic!("{items:?}") };
                    at = Point::At(message.position.expect("a position"));
                }
                items.len() as u64
            });
        }
        let begun = tokio::time::Instant::now();
        assert_eq!(timeout(Duration::from_secs(120), clients.join_all()).await.expect("in time"), [messages; 3]);
        assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
        assert!(histories.counted(source).errors[ErrorKind::Protocol as usize] > 3);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_nobody_moves_ends_though_nobody_looks() {
    let log = Fake { messages: 1, at_once: 1, ..Fake::default() };
    let open = log.open.clone();
    let (histories, source) = of(log, 4);
    let mut reader = histories.reader(Request { source, number: 0, from: Point::Earliest }, Asker::default()).expect("a log");
    reader.next(&mut Vec::new(), Point::Earliest).await.expect("the log can be read");
    assert_eq!(open.load(Ordering::Relaxed), 1);
    // Its client takes nothing more, and there is no other.
    timeout(Duration::from_secs(4), histories.clone().tend()).await.expect_err("it never ends");
    assert_eq!(open.load(Ordering::Relaxed), 0);
    drop(reader);
}

#[tokio::test(start_paused = true)]
async fn what_is_read_for_one_wakes_nobody_whom_it_does_not_concern() {
    const WAITING: u32 = 300;
    let log = Fake { each: Duration::from_millis(2), messages: 200, at_once: 1, ..Fake::default() };
    let looks = log.looks.clone();
    let (histories, source) = of(log, 1);
    let (mut leading, mut waiting) = (JoinSet::new(), JoinSet::new());
    let leader = histories.reader(Request { source, number: 0, from: Point::Earliest }, Asker { identity: 0, wanted: filter(0) });
    leading.spawn(read(leader.expect("a log"), Point::Earliest));
    tokio::task::yield_now().await;
    for number in 1..=WAITING {
        let from = Point::At(place(1_000_000 * u64::from(number)));
        let wanted = filter(number).filter(|_| number % 2 == 0);
        let reader = histories.reader(Request { source, number, from }, Asker { identity: number.into(), wanted }).expect("a log");
        waiting.spawn(read(reader, from));
    }
    assert_eq!(leading.join_all().await, [(1..=200).collect::<Vec<_>>()]);
    // Each looked when it came, and has looked by itself every second.
    let looks = looks.load(Ordering::Relaxed);
    assert!(looks < 4 * u64::from(WAITING), "{looks} looks of {WAITING} who wait, for 200 messages of another");
    assert!(histories.load().waiting + 1 >= WAITING as usize);
}

#[tokio::test(start_paused = true)]
async fn all_who_are_on_the_way_of_a_reader_go_with_it_at_once() {
    let log = Fake { each: Duration::from_millis(1), messages: 10_000, at_once: 100, ..Fake::default() };
    let opened = log.opened.clone();
    let (histories, source) = of(log, 1);
    let (mut clients, begun) = (JoinSet::new(), tokio::time::Instant::now());
    for number in 0..100_u32 {
        let from = Point::At(place(u64::from(number * 37 % 100 * 100) + 1));
        let asker = Asker { identity: u64::from(number % 7), wanted: None };
        let reader = histories.reader(Request { source, number, from }, asker).expect("a log");
        clients.spawn(async move {
            let Point::At(Position { seq, .. }) = from else { unreachable!() };
            assert_eq!(read(reader, from).await, (seq + 1..=10_000).collect::<Vec<_>>());
        });
    }
    clients.join_all().await;
    // Whoever misses a call looks again a second later.
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
    assert_eq!(opened.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn who_waits_to_try_again_holds_nobody_up() {
    let histories = Histories::new(Settings { readers: 1, rate: 1 << 20, cache: 1 << 20 });
    let good = Fake { each: Duration::from_millis(50), messages: 100, at_once: 1, ..Fake::default() };
    let (bad, good) = (add(&histories, 0, Fake { denied: true, ..Fake::default() }), add(&histories, 1, good));
    let mut failing = JoinSet::new();
    for number in 0..3 {
        let from = Point::Earliest;
        let mut reader = histories.reader(Request { source: bad, number, from }, Asker::default()).expect("a log");
        failing.spawn(async move { reader.next(&mut Vec::new(), from).await });
    }
    let reader = histories.reader(Request { source: good, number: 0, from: Point::Earliest }, Asker::default()).expect("a log");
    let begun = tokio::time::Instant::now();
    assert_eq!(read(reader, Point::Earliest).await.len(), 100);
    assert!(begun.elapsed() < Duration::from_secs(7), "{:?}", begun.elapsed());
    assert!(failing.join_all().await.iter().all(|end| *end == Err(Unavailable)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_crowd_that_comes_goes_and_takes_breaks_misses_nothing() {
    let log = Fake { messages: 3000, at_once: 25, ..Fake::default() };
    let (histories, source) = of(log, 2);
    histories.configure(Settings { readers: 2, rate: 1 << 30, cache: 16 << 10 });
    let mut clients = JoinSet::new();
    for number in 0..120_u32 {
        let from = Point::At(place(u64::from(number * 37 % 100 * 20) + 1));
        let wanted = filter(number % 5).filter(|_| number % 3 == 0);
        let mut reader =
            histories.reader(Request { source, number, from }, Asker { identity: u64::from(number % 4), wanted }).expect("a log");
        clients.spawn(async move {
            let Point::At(Position { seq: mut last, .. }) = from else { unreachable!() };
            let mut items = Vec::new();
            while last < 3000 {
                // As often as something comes, or sooner: it is dropped while it waits, and leads.
                for _ in 0..number % 4 {
                    let mut next = std::pin::pin!(reader.next(&mut items, Point::At(place(last))));
                    if futures_util::poll!(next.as_mut()).is_ready() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                if items.is_empty() {
                    reader.next(&mut items, Point::At(place(last))).await.expect("the log can be read");
                }
                for item in items.drain(..) {
                    if let Item::Message(message) = item {
                        assert_eq!(message.position, Some(place(last + 1)));
                        last += 1;
                    }
                }
            }
        });
    }
    timeout(Duration::from_secs(120), clients.join_all()).await.expect("somebody gets nothing");
    assert_eq!((histories.load().clients, histories.load().waiting), (0, 0));
}

/// A log of ten messages, in turns of subject `a` and `b`, that cannot be opened at the first attempts.
struct Selecting {
    fails: AtomicU32,
}

impl Selecting {
    async fn open(&self, start: Start, wanted: Option<&[Pattern]>) -> Result<Box<dyn Connection>, SourceError> {
        sleep(Duration::from_millis(10)).await;
        if self.fails.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            return Err(SourceError::lost("the broker starts"));
        }
        let after = if let Start::After(position) = start { position.seq } else { 0 };
        let all = (after + 1..=10).map(|seq| (seq, if seq % 2 == 0 { "b" } else { "a" }));
        let of = all.filter(|(_, subject)| wanted.is_none_or(|wanted| wanted.iter().any(|pattern| pattern.matches(subject))));
        let message = |(seq, subject): (u64, &str)| {
            Message::new(subject.parse().expect("a subject"), Bytes::new(), Timestamp::default(), Some(place(seq)))
        };
        let items = of.map(message).map(Item::Message).chain([Item::Tail(Some(place(10)))]).collect();
        Ok(Box::new(Selected(items)) as Box<dyn Connection>)
    }
}

impl Adapter for Selecting {
    fn kind(&self) -> &'static str {
        "selecting"
    }
    fn durable(&self) -> bool {
        true
    }
    fn reach(&self) -> Vec<Pattern> {
        vec![Pattern::all()]
    }
    fn connect(&self, start: Start) -> BoxFuture<'_, Result<Box<dyn Connection>, SourceError>> {
        Box::pin(self.open(start, None))
    }
    fn selects(&self) -> bool {
        true
    }
    fn selected<'a>(&'a self, start: Start, wanted: &'a [Pattern]) -> BoxFuture<'a, Result<Option<Box<dyn Connection>>, SourceError>> {
        Box::pin(async move { self.open(start, Some(wanted)).await.map(Some) })
    }
}

struct Selected(Vec<Item>);

impl Connection for Selected {
    fn next<'a>(&'a mut self, batch: &'a mut Vec<Item>, _: usize) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async {
            if self.0.is_empty() {
                std::future::pending::<()>().await;
            }
            batch.append(&mut self.0);
            Ok(())
        })
    }
    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_opens_a_log_again_for_others_too_reads_all_that_they_want() {
    for from in [Point::Earliest, Point::At(place(2))] {
        let histories = Histories::new(Settings { readers: 4, rate: 1 << 20, cache: 1 << 20 });
        let (source, name) = (SourceKey::new(0, 0), "s".parse().expect("a name"));
        let adapter = Arc::new(Selecting { fails: AtomicU32::new(1) });
        histories.add(source, Log { name, adapter, max_payload: 1000, up: Arc::new(|| true), resets: Arc::new(|| 0) });
        let client = |identity: u64, wanted: Option<Arc<[Pattern]>>| {
            histories.reader(Request { source, number: 0, from }, Asker { identity, wanted }).expect("a log")
        };
        // The first has opened it, in vain, when the second comes to the same place, who wants less. Then the first does not ask for
        // a moment: its socket is full of what another source had for it.
        let mut all = client(1, None);
        timeout(Duration::from_millis(5), all.next(&mut Vec::new(), from)).await.expect_err("it opens");
        let some = client(2, Some(["a".parse().expect("a pattern")].into()));
        let some = timeout(Duration::from_secs(60), read(some, from)).await.expect("in time");
        let all = timeout(Duration::from_secs(60), read(all, from)).await.expect("in time");
        let first = if from == Point::Earliest { 1 } else { 3 };
        assert_eq!(all, (first..=10).collect::<Vec<_>>(), "who wants all, {from:?}; the other got {some:?}");
    }
}
