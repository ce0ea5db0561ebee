//! How clients share readers that are few.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::*;
use crate::cursor::Position;
use crate::event::{Message, Timestamp};
use crate::source::{Connection, Item, SourceError, Start};

/// A log whose broker takes its time, first to open a reader, then for each message.
struct Slow {
    opening: Duration,
    each: Duration,
    messages: u64,
}

/// A log whose readers come to a message that they cannot pass.
struct Broken {
    opened: Arc<AtomicU32>,
}

struct BrokenReader {
    left: std::ops::Range<u64>,
}

impl Adapter for Broken {
    fn kind(&self) -> &'static str {
        "broken"
    }
    fn durable(&self) -> bool {
        true
    }
    fn keeps_last(&self) -> bool {
        true
    }
    fn reach(&self) -> Vec<Pattern> {
        vec![Pattern::all()]
    }
    fn connect(&self, _: Start) -> BoxFuture<'_, Result<Box<dyn Connection>, SourceError>> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Ok(Box::new(BrokenReader { left: 1..11 }) as Box<dyn Connection>) })
    }
}

impl Connection for BrokenReader {
    fn next<'a>(&'a mut self, batch: &'a mut Vec<Item>, _: usize) -> BoxFuture<'a, Result<(), SourceError>> {
        let left = std::mem::take(&mut self.left);
        Box::pin(async {
            if left.is_empty() {
                return Err(SourceError::lost("the connection was lost"));
            }
            batch.extend(left.map(message));
            Ok(())
        })
    }
    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

fn message(seq: u64) -> Item {
    let position = Some(Position::unverified(seq));
    Item::Message(Message::new("a".parse().expect("a subject"), Bytes::new(), Timestamp::default(), position))
}

struct SlowReader {
    each: Duration,
    left: std::ops::RangeInclusive<u64>,
}

impl Adapter for Slow {
    fn kind(&self) -> &'static str {
        "slow"
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
    fn connect(&self, _: Start) -> BoxFuture<'_, Result<Box<dyn Connection>, SourceError>> {
        Box::pin(async {
            sleep(self.opening).await;
            let reader = SlowReader { each: self.each, left: 1..=self.messages };
            Ok(Box::new(reader) as Box<dyn Connection>)
        })
    }
}

impl Connection for SlowReader {
    fn next<'a>(&'a mut self, batch: &'a mut Vec<Item>, _: usize) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async {
            sleep(self.each).await;
            let Some(seq) = self.left.next() else { return std::future::pending().await };
            batch.push(message(seq));
            if self.left.is_empty() {
                batch.push(Item::Tail(Some(Position::unverified(seq))));
            }
            Ok(())
        })
    }
    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

/// Several clients, each with a wish of its own, share one reader. Each is to come to the log's end.
async fn all_come_to_the_end(log: Slow, from: Point) {
    let histories = Arc::new(Histories::new(Settings { readers: 1, rate: 1 << 20, cache: 1 << 20 }));
    let source = SourceKey::new(0, 0);
    histories.add(
        source,
        Log {
            name: "s".parse().expect("a name"),
            adapter: Arc::new(log),
            max_payload: 1000,
            up: Arc::new(|| true),
            resets: Arc::new(|| 0),
        },
    );
    let mut clients = JoinSet::new();
    for number in 0..4 {
        let histories = histories.clone();
        clients.spawn(async move {
            // What it wants nobody else reads.
            let wanted = Some([format!("subject.{number}").parse().expect("a pattern")].into());
            let asker = Asker { identity: number.into(), wanted };
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
    let log = Slow { opening: Duration::from_millis(2500), each: Duration::ZERO, messages: 1 };
    all_come_to_the_end(log, Point::Earliest).await;
}

#[tokio::test(start_paused = true)]
async fn the_newest_of_many_subjects_are_read_to_their_end_though_others_wait() {
    let log = Slow { opening: Duration::ZERO, each: Duration::from_millis(100), messages: 30 };
    all_come_to_the_end(log, Point::Last).await;
}

#[tokio::test(start_paused = true)]
async fn the_newest_that_cannot_be_read_to_their_end_are_given_up() {
    let opened = Arc::new(AtomicU32::new(0));
    let histories = Histories::new(Settings { readers: 4, rate: 1 << 20, cache: 1 << 20 });
    let source = SourceKey::new(0, 0);
    let adapter = Arc::new(Broken { opened: opened.clone() });
    histories
        .add(source, Log { name: "s".parse().expect("a name"), adapter, max_payload: 1000, up: Arc::new(|| true), resets: Arc::new(|| 0) });
    let asker = Asker { identity: 0, wanted: None };
    let mut reader = histories.reader(Request { source, number: 0, from: Point::Last }, asker).expect("a log");
    let (begun, mut items) = (tokio::time::Instant::now(), Vec::new());
    timeout(Duration::from_secs(120), async { while reader.next(&mut items, Point::Last).await.is_ok() {} }).await.expect("in time");
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    let opened = opened.load(Ordering::Relaxed);
    assert!((3..30).contains(&opened) && items.len() == 10 * opened as usize, "{opened} {}", items.len());
}
