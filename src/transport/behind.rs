//! Moves a stream that is not live: steps it, reads brokers' logs for it, waits for what it waits for. For both drivers
//! that are tasks: hyper's body and [`super::task`].

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::event::Timestamp;
use crate::frame::Closing;
use crate::history::{self, Reader, Unavailable};
use crate::source::Item;
use crate::stream::{Driver, End, Live, Step, Stream, StreamId};
use bytes::Bytes;

/// A timer is not set for longer: the system's clock may be set meanwhile.
const LONGEST: Duration = Duration::from_secs(60);
/// Between two looks at the windows at least. A crowd that waits for one source would look at every event of all others.
const LOOK: Duration = Duration::from_millis(50);

/// A stream that is not live, and what a driver needs beside it.
pub(super) struct Behind {
    stream: Stream,
    reader: Option<Reader>,
    items: Vec<Item>,
    ends: Ends,
    /// It was sent a piece since it last let others have their turn.
    sent: bool,
}

/// What became of a stream.
pub(super) enum Next {
    /// Send these, one behind the other and nothing between them, and go on.
    Send(Vec<Bytes>, Behind),
    /// It is live, and its client has this id.
    Live(Live, Arc<str>, Ends),
    /// Send this: nothing follows.
    Last(Bytes),
}

impl Behind {
    pub(super) fn new(stream: Stream) -> Self {
        let ends = Ends::of(&stream);
        Self { stream, reader: None, items: Vec::new(), ends, sent: false }
    }

    /// Ends a stream that nothing can be sent any more.
    pub(super) fn abandon(self, reason: Closing) {
        self.stream.abandon(reason);
    }

    /// Waits for what comes next.
    pub(super) async fn next(mut self) -> Next {
        if std::mem::take(&mut self.sent) {
            // A socket may take a whole history without a wait. Of a crowd of clients the last would get its first event when all
            // others have everything.
            tokio::task::yield_now().await;
        }
        let moved = loop {
            let Self { stream, reader, items, ends, .. } = &mut self;
            tokio::select! {
                biased;
                order = ends.wait() => match order {
                    Order::End(reason) => break Err(reason),
                    // It does so at its next step.
                    Order::Follow => {}
                },
                moved = advance(stream, reader, items) => break moved.map_err(|Unavailable| Closing::Unavailable),
            }
        };
        match moved {
            Ok(Some(parts)) => Next::Send(parts, Self { sent: true, ..self }),
            Ok(None) => match self.stream.into_live() {
                Ok((live, id)) => Next::Live(live, id, self.ends),
                // Not so: `advance` returned because it is live.
                Err(stream) => Next::Last(stream.close(Closing::Unavailable)),
            },
            Err(reason) => Next::Last(self.stream.close(reason)),
        }
    }
}

/// Waits for something to send; `None`: the stream is live.
async fn advance(stream: &mut Stream, reader: &mut Option<Reader>, items: &mut Vec<Item>) -> Result<Option<Vec<Bytes>>, Unavailable> {
    let streams = stream.streams().clone();
    loop {
        let mut changed = pin!(streams.hub().changed().notified());
        // Before looking, so that nothing published in between is missed.
        changed.as_mut().enable();
        let again = Instant::now() + LOOK;
        let (until, history) = match stream.step(Timestamp::now()) {
            Step::Send(parts) => return Ok(Some(parts)),
            Step::Live => return Ok(None),
            Step::Again => {
                tokio::task::yield_now().await;
                continue;
            }
            Step::Wait { until, history } => (until, history),
        };
        match history {
            Some(request) if !reader.as_ref().is_some_and(|reader| reader.serves(request)) => {
                *reader = stream.reader(request);
            }
            Some(_) => {}
            None => *reader = None,
        }
        let left = until.since(Timestamp::now());
        tokio::select! {
            // A history that brings much must not hold the heartbeat up; the windows are looked at anyway.
            biased;
            () = sleep(left) => {}
            read = read(reader, items, history) => {
                read?;
                stream.read(items);
            }
            () = async { changed.await; sleep_until(again).await } => {}
        }
    }
}

async fn read(reader: &mut Option<Reader>, items: &mut Vec<Item>, request: Option<history::Request>) -> Result<(), Unavailable> {
    match (reader, request) {
        (Some(reader), Some(request)) => reader.next(items, request.from).await,
        _ => std::future::pending().await,
    }
}

/// What a task is told of the stream that it moves.
pub(super) enum Order {
    /// It ends now.
    End(Closing),
    /// It is to be sent something else.
    Follow,
}

/// When a stream ends that a task moves.
pub(super) struct Ends {
    news: Arc<News>,
    end: Option<End>,
    sleep: Option<Pin<Box<Sleep>>>,
}

/// How a task hears of another end of its stream.
#[derive(Default)]
struct News {
    end: Mutex<Option<End>>,
    moved: AtomicBool,
    waker: AtomicWaker,
}

impl Driver for News {
    fn end(&self, _: u32, _: StreamId, end: End) {
        *self.end.lock() = Some(end.noted());
        self.waker.wake();
    }

    fn moved(&self, _: u32, _: StreamId) {
        self.moved.store(true, Ordering::Release);
        self.waker.wake();
    }
}

impl Ends {
    fn of(stream: &Stream) -> Self {
        let news = Arc::new(News::default());
        let end = stream.drive(news.clone(), 0);
        Self { news, end, sleep: None }
    }

    async fn wait(&mut self) -> Order {
        poll_fn(|cx| self.poll(cx)).await
    }

    /// Whether there is an order for the stream.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Order> {
        self.news.waker.register(cx.waker());
        if self.news.moved.load(Ordering::Acquire) && self.news.moved.swap(false, Ordering::AcqRel) {
            return Poll::Ready(Order::Follow);
        }
        if let Some(end) = self.news.end.lock().take() {
            self.end = Some(end);
            self.sleep = None;
        }
        let Some(End { at, reason }) = self.end else { return Poll::Pending };
        loop {
            let left = at.since(Timestamp::now());
            if left.is_zero() {
                return Poll::Ready(Order::End(reason));
            }
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep(left.min(LONGEST))));
            std::task::ready!(sleep.as_mut().poll(cx));
            self.sleep = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cursor::{Cursor, Point, Position, Tag};
    use crate::stream::tests::{add_log, demo, first, publish, request};
    use crate::stream::{Begin, Request};

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_waits_for_a_source_does_not_look_at_each_event_of_another() {
        let streams = demo(1 << 20);
        add_log(&streams, "down");
        let durable = vec![(Tag::of("down"), Point::At(Position::unverified(1)))];
        let cursor = Cursor { epoch: streams.hub().epoch(), volatile: Point::At(Position::unverified(0)), durable };
        let request = Request { begin: Begin::After(cursor), ..request(">") };
        let mut behind = Behind::new(streams.open(request, Timestamp::now()));
        let publishing = async {
            for _ in 0..200 {
                publish(&streams, first(&streams), "demo.event");
                sleep(Duration::from_millis(5)).await;
            }
        };
        let reading = async {
            let (mut pieces, mut events) = (0, 0);
            while events < 200 {
                let Next::Send(parts, rest) = behind.next().await else { panic!("the source is down") };
                behind = rest;
                pieces += 1;
                events += String::from_utf8_lossy(&parts.concat()).matches("\"data\":\"demo.event\"").count();
            }
            pieces
        };
        let begun = Instant::now();
        let ((), pieces) = tokio::join!(publishing, reading);
        assert!(pieces < 30, "{pieces} pieces");
        assert!(begun.elapsed() < Duration::from_millis(1100), "{:?}", begun.elapsed());
    }

    /// A log at whose broker a message is published right after all streams were ended.
    struct Late(Arc<std::sync::OnceLock<Arc<crate::stream::Streams>>>);

    impl crate::source::Adapter for Late {
        fn kind(&self) -> &'static str {
            "late"
        }
        fn durable(&self) -> bool {
            true
        }
        fn reach(&self) -> Vec<crate::subject::Pattern> {
            vec![">".parse().unwrap()]
        }
        fn connect(
            &self,
            _: crate::source::Start,
        ) -> futures_util::future::BoxFuture<'_, Result<Box<dyn crate::source::Connection>, crate::source::SourceError>> {
            let reader = Box::new(Self(self.0.clone()));
            Box::pin(async move { Ok(reader as Box<dyn crate::source::Connection>) })
        }
    }

    impl crate::source::Connection for Late {
        fn next<'a>(
            &'a mut self,
            batch: &'a mut Vec<Item>,
            _: usize,
        ) -> futures_util::future::BoxFuture<'a, Result<(), crate::source::SourceError>> {
            Box::pin(async {
                let now = Timestamp::now();
                assert_eq!(self.0.get().unwrap().end(crate::stream::Selection::All, Closing::Revoked, now, Duration::ZERO), 1);
                let at = Some(Position::unverified(5));
                batch.push(Item::Message(crate::event::Message::new("late".parse().unwrap(), Bytes::from_static(b"late"), now, at)));
                Ok(())
            })
        }
        fn close(self: Box<Self>) -> futures_util::future::BoxFuture<'static, ()> {
            Box::pin(async {})
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_catches_up_is_sent_nothing_that_was_published_behind_its_end() {
        let streams = demo(1 << 20);
        let known = Arc::<std::sync::OnceLock<_>>::default();
        let log = streams.add(crate::stream::tests::source("log", Arc::new(Late(known.clone()))), Timestamp::now());
        assert!(known.set(streams.clone()).is_ok());
        streams.hub().publish(log, &mut vec![crate::hub::Input::Tail(Some(Position::unverified(9)))], Timestamp::now());
        let request = Request { begin: Begin::At(Point::Earliest), ..request(">") };
        let mut behind = Behind::new(streams.open(request, Timestamp::now()));
        loop {
            match behind.next().await {
                Next::Send(parts, rest) => {
                    behind = rest;
                    let text = String::from_utf8_lossy(&parts.concat()).into_owned();
                    assert!(!text.contains("late"), "{text}");
                }
                Next::Last(bytes) => return assert!(String::from_utf8_lossy(&bytes).contains("revoked")),
                Next::Live(..) => panic!("it was ended"),
            }
        }
    }
}
