//! A stream as the body of a response that hyper writes: HTTP/2, TLS, HTTP/1.0.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::vec;

use bytes::Bytes;
use http_body::Frame;

use super::behind::{Behind, Ends, Next, Order};
use super::framing::Plain;
use crate::event::Timestamp;
use crate::frame;
use crate::hub::{Hub, Read, Transport, WakerSeat};
use crate::stream::{Live, Stream};

/// The bytes of `text/event-stream`, without framing.
pub(crate) struct Body {
    state: State,
    /// What is sent before anything else: the rest of what was gathered for a stream that catches up.
    pub(crate) rest: vec::IntoIter<Bytes>,
    /// The last id of a live stream's client.
    last_id: Vec<u8>,
    hub: Arc<Hub>,
    transport: Transport,
}

enum State {
    CatchingUp(Pin<Box<dyn Future<Output = Next> + Send>>),
    Live(Seated),
    Ended,
}

/// A live stream whose waker has a seat in its channel.
struct Seated {
    live: Live,
    waker: WakerSeat,
    ends: Ends,
}

/// What a live stream does next.
enum Turn {
    /// With so many events.
    Send(Bytes, u64),
    /// Nothing follows.
    Last(Bytes),
    /// It has fallen out of its channel's log, or is to be sent something else.
    Resume,
}

impl Body {
    /// Of this stream.
    #[must_use]
    pub(crate) fn new(stream: Stream) -> Self {
        let (hub, transport) = (stream.streams().hub().clone(), stream.transport());
        Self { state: State::catching_up(Behind::new(stream)), rest: Vec::new().into_iter(), last_id: Vec::new(), hub, transport }
    }

    /// The next bytes; `None` when the server has ended the stream.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let next = ready!(self.poll_uncounted(cx));
        if let Some(bytes) = &next {
            // hyper adds this. HTTP/2's frames are not counted.
            let framing = if self.transport == Transport::Http11 { frame::chunk_overhead(bytes.len()) } else { 0 };
            self.hub.deliveries().sent(self.transport, 0, (bytes.len() + framing) as u64);
        }
        Poll::Ready(next)
    }

    fn poll_uncounted(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if let Some(part) = self.rest.next() {
                return Poll::Ready(Some(part));
            }
            match &mut self.state {
                State::Ended => return Poll::Ready(None),
                State::CatchingUp(next) => match ready!(next.as_mut().poll(cx)) {
                    Next::Send(parts, behind) => {
                        self.state = State::catching_up(behind);
                        self.rest = parts.into_iter();
                    }
                    Next::Last(bytes) => return self.last(bytes),
                    Next::Live(live, id, ends) => {
                        id.as_bytes().clone_into(&mut self.last_id);
                        let waker = live.channel().waker_seat();
                        self.state = State::Live(Seated { live, waker, ends });
                    }
                },
                State::Live(seated) => match ready!(seated.poll(cx, &mut self.last_id)) {
                    Turn::Send(bytes, events) => {
                        self.hub.deliveries().sent(self.transport, events, 0);
                        self.hub.deliveries().taken(Timestamp::now);
                        return Poll::Ready(Some(bytes));
                    }
                    Turn::Last(bytes) => return self.last(bytes),
                    Turn::Resume => self.resume(),
                },
            }
        }
    }

    fn last(&mut self, bytes: Bytes) -> Poll<Option<Bytes>> {
        self.state = State::Ended;
        Poll::Ready(Some(bytes))
    }

    fn resume(&mut self) {
        if let State::Live(Seated { live, .. }) = std::mem::replace(&mut self.state, State::Ended) {
            self.state = State::catching_up(Behind::new(live.resume(&self.last_id, Timestamp::now())));
        }
    }
}

impl State {
    fn catching_up(behind: Behind) -> Self {
        Self::CatchingUp(Box::pin(behind.next()))
    }
}

impl Seated {
    fn poll(&mut self, cx: &mut Context<'_>, last_id: &mut Vec<u8>) -> Poll<Turn> {
        let read = self.waker.poll_read::<Plain>(self.live.offset(), cx.waker());
        // Behind the reading: then all is known that was ordered before something in the piece was published.
        match self.ends.poll(cx) {
            Poll::Ready(Order::End(reason)) => return Poll::Ready(Turn::Last(self.live.close(reason, Some(last_id)))),
            Poll::Ready(Order::Follow) => cx.waker().wake_by_ref(),
            Poll::Pending => {}
        }
        // Not only when it is ordered: the order may have come when its last piece was sent and it was not known to be live.
        if self.live.is_moved() {
            return Poll::Ready(Turn::Resume);
        }
        Poll::Ready(match read {
            Read::AtEnd => return Poll::Pending,
            Read::Lagged => Turn::Resume,
            Read::Piece(piece) => {
                self.live.advance(piece.to, piece.events, piece.bytes.len() as u64);
                if let Some(id) = piece.last_id() {
                    id.clone_into(last_id);
                }
                Turn::Send(piece.bytes, piece.events)
            }
        })
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if matches!(self.state, State::Live(_)) {
            self.hub.deliveries().forget();
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.poll_next(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;
    use std::time::Duration;

    use super::*;
    use crate::cursor::Point;
    use crate::event::{Event, Message};
    use crate::frame::Closing;
    use crate::hub::Input;
    use crate::stream::tests::{demo, first, request};
    use crate::stream::{Begin, Request, Selection, Streams};

    fn open(streams: &Arc<Streams>) -> Body {
        Body::new(streams.open(Request { named: false, ..request("a") }, Timestamp::now()))
    }

    fn publish(streams: &Streams, subject: &str) {
        let message = Message::new(subject.parse().unwrap(), Bytes::copy_from_slice(subject.as_bytes()), Timestamp::now(), None);
        streams.hub().publish(first(streams), &mut vec![Input::Event(Event::of(message))], Timestamp::now());
    }

    fn widen(streams: &Streams) {
        let all: Arc<[_]> = [">".parse().unwrap()].into();
        assert_eq!(streams.widen(|_| Some(all.clone())), 1);
    }

    /// The data of what comes until it waits.
    async fn data(body: &mut Body) -> Vec<String> {
        let mut text = String::new();
        // It lets others have their turn after each piece.
        for _ in 0..8 {
            while let Poll::Ready(piece) = body.poll_next(&mut Context::from_waker(Waker::noop())) {
                text.push_str(std::str::from_utf8(&piece.expect("it has not ended")).unwrap());
            }
            tokio::task::yield_now().await;
        }
        assert!(!text.contains("gap"), "{text}");
        let events = text.split('\n').filter_map(|line| line.strip_prefix("data: "));
        events.map(|data| serde_json::from_str::<serde_json::Value>(data).unwrap()["data"].as_str().unwrap().to_owned()).collect()
    }

    #[tokio::test]
    async fn a_stream_that_is_to_be_sent_more_gets_what_it_has_not_got_yet_and_nothing_twice() {
        let streams = demo(64 << 20);
        let mut body = open(&streams);
        assert_eq!(data(&mut body).await, Vec::<String>::new());
        publish(&streams, "a");
        widen(&streams);
        ["b", "a"].into_iter().for_each(|subject| publish(&streams, subject));
        assert_eq!(data(&mut body).await, ["a", "b", "a"]);
        publish(&streams, "b");
        assert_eq!(data(&mut body).await, ["b"]);
    }

    #[tokio::test]
    async fn a_stream_that_is_to_be_sent_more_while_its_last_piece_before_it_is_live_is_sent_gets_it() {
        let streams = demo(64 << 20);
        let mut body = open(&streams);
        assert!(body.poll_next(&mut Context::from_waker(Waker::noop())).is_ready(), "the opening");
        widen(&streams);
        assert_eq!(data(&mut body).await, Vec::<String>::new());
        publish(&streams, "b");
        assert_eq!(data(&mut body).await, ["b"]);
    }

    #[tokio::test]
    async fn a_stream_that_ends_is_sent_all_of_a_large_event_before() {
        let streams = demo(64 << 20);
        let payload = Bytes::from("x".repeat(1 << 20));
        let message = Message::new("a".parse().unwrap(), payload.clone(), Timestamp::now(), None);
        streams.hub().publish(first(&streams), &mut vec![Input::Event(Event::of(message))], Timestamp::now());
        let request = Request { begin: Begin::At(Point::Earliest), ..request("a") };
        let mut body = Body::new(streams.open(request, Timestamp::now()));
        let mut next = async || std::future::poll_fn(|cx| body.poll_next(cx)).await;
        let mut sent = next().await.expect("what comes before it").to_vec();
        assert!(sent.len() < 1024, "{}", sent.len());
        assert_eq!(streams.end(Selection::All, Closing::Revoked, Timestamp::now(), Duration::ZERO), 1);
        while let Some(part) = next().await {
            sent.extend_from_slice(&part);
        }
        let text = String::from_utf8(sent).unwrap();
        let (before, behind) = text.split_once(str::from_utf8(&payload).unwrap()).expect("the event");
        let id = before.lines().rev().find(|line| line.starts_with("id: ")).unwrap();
        assert_eq!(behind, format!("\"}}\n\n{id}\nevent: brokercast.closing\ndata: {{\"reason\":\"revoked\"}}\n\n"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_was_to_end_at_once_ends_though_the_clock_is_set_back_before_it_is_polled() {
        use crate::support::clock;
        let start = std::time::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        clock::follow_runtime(start);
        let streams = demo(64 << 20);
        let mut body = open(&streams);
        assert_eq!(data(&mut body).await, Vec::<String>::new());
        assert_eq!(streams.end(Selection::All, Closing::Revoked, Timestamp::now(), Duration::ZERO), 1);
        // Its client's window was full meanwhile.
        clock::follow_runtime(start - Duration::from_secs(3600));
        publish(&streams, "a");
        let Poll::Ready(Some(piece)) = body.poll_next(&mut Context::from_waker(Waker::noop())) else { panic!("it waits") };
        let text = String::from_utf8_lossy(&piece).into_owned();
        assert!(text.contains("revoked") && !text.contains("data: {\"subject\""), "{text}");
    }
}
