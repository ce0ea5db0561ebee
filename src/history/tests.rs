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
#[derive(Clone, Default)]
struct Fake {
    opening: Duration,
    each: Duration,
    messages: u64,
    /// So many messages come together.
    at_once: usize,
    /// What comes behind the messages cannot be read. Else that is the log's end.
    broken: bool,
    /// Readers that were opened.
    opened: Arc<AtomicU32>,
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
    fn connect(&self, _: Start) -> BoxFuture<'_, Result<Box<dyn Connection>, SourceError>> {
        Box::pin(async {
            self.opened.fetch_add(1, Ordering::Relaxed);
            sleep(self.opening).await;
            Ok(Box::new(FakeReader { log: self.clone(), left: 1..=self.messages }) as Box<dyn Connection>)
        })
    }
}

impl Connection for FakeReader {
    fn next<'a>(&'a mut self, batch: &'a mut Vec<Item>, _: usize) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async {
            sleep(self.log.each).await;
            if self.left.is_empty() {
                return if self.log.broken { Err(SourceError::lost("the connection was lost")) } else { std::future::pending().await };
            }
            let place = |seq| Some(Position::unverified(seq));
            let message = |seq| Message::new("a".parse().expect("a subject"), Bytes::new(), Timestamp::default(), place(seq));
            batch.extend(self.left.by_ref().take(self.log.at_once).map(message).map(Item::Message));
            if self.left.is_empty() && !self.log.broken {
                batch.push(Item::Tail(place(self.log.messages)));
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
    let histories = Arc::new(Histories::new(Settings { readers, rate: 1 << 20, cache: 1 << 20 }));
    let (source, name) = (SourceKey::new(0, 0), "s".parse().expect("a name"));
    histories.add(source, Log { name, adapter: Arc::new(log), max_payload: 1000, up: Arc::new(|| true), resets: Arc::new(|| 0) });
    (histories, source)
}

/// Several clients, each with a wish of its own, share one reader. Each is to come to the log's end.
async fn all_come_to_the_end(log: Fake, from: Point) {
    let (histories, source) = of(log, 1);
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
    let log = Fake { opening: Duration::from_millis(2500), messages: 1, at_once: 1, ..Fake::default() };
    all_come_to_the_end(log, Point::Earliest).await;
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
