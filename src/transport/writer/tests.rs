use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::task::Poll;

use bytes::Bytes;

use super::*;
use crate::cursor::Point;
use crate::event::{Envelope, Event, Message, Timestamp};
use crate::frame::Closing;
use crate::frame::Form;
use crate::hub::{Filter, Input};
use crate::stream::tests::{demo, first, request};
use crate::stream::{Begin, Request, Selection, Streams};

struct World {
    streams: Arc<Streams>,
    writer: Arc<Writer>,
    ends: Ends,
    listener: TcpListener,
}

fn world(loops: usize, stall: Duration) -> World {
    let streams = demo(64 << 20);
    let (writer, ends) = Writer::start(streams.hub(), loops, stall, Duration::from_secs(15)).unwrap();
    World { streams, writer, ends, listener: TcpListener::bind("127.0.0.1:0").unwrap() }
}

impl World {
    /// A client whose stream is with the writer.
    async fn client(&self, pattern: &str, expires: Option<Timestamp>) -> TcpStream {
        self.connect(Request { expires, ..request(pattern) }).await
    }

    async fn client_of(&self, pattern: &str, owner: Option<Arc<crate::auth::Owner>>) -> TcpStream {
        self.connect(Request { owner, ..request(pattern) }).await
    }

    async fn connect(&self, request: Request) -> TcpStream {
        let client = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let (socket, _) = self.listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut stream = self.streams.open(request, Timestamp::now());
        // What goes with the head.
        stream.step(Timestamp::now());
        self.writer.write(tokio::net::TcpStream::from_std(socket).unwrap(), stream, 0).await;
        client
    }

    fn publish(&self, subject: &str, payload: &str) {
        self.publish_all(subject, &[payload.to_owned()]);
    }

    /// All in one batch.
    fn publish_all(&self, subject: &str, payloads: &[String]) {
        let event = |payload: &String| Event {
            envelope: Envelope::Raw,
            ..Event::of(Message::new(subject.parse().unwrap(), Bytes::copy_from_slice(payload.as_bytes()), Timestamp::now(), None))
        };
        let mut batch = payloads.iter().map(event).map(Input::Event).collect();
        self.streams.hub().publish(first(&self.streams), &mut batch, Timestamp::now());
    }

    fn eventually(&self, what: &str, mut check: impl FnMut() -> bool) {
        let until = std::time::Instant::now() + Duration::from_secs(20);
        while !check() {
            assert!(std::time::Instant::now() < until, "{what}");
            std::thread::yield_now();
        }
    }
}

/// The events' data, in order, and the last reason of a closing.
fn read(client: &mut TcpStream, count: usize) -> Vec<String> {
    let mut body = Vec::new();
    let mut data = Vec::new();
    let mut buffer = [0; 4096];
    while data.len() < count {
        let n = client.read(&mut buffer).unwrap();
        if n == 0 {
            break;
        }
        body.extend_from_slice(&buffer[..n]);
        data = lines(&body);
    }
    data
}

fn lines(body: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(body).split('\n').filter_map(|l| l.strip_prefix("data: ")).map(str::to_owned).collect()
}

#[tokio::test]
async fn every_member_of_a_channel_gets_every_event_in_order_over_any_loop() {
    let world = world(3, Duration::from_secs(10));
    let mut clients = Vec::new();
    for n in 0..30 {
        clients.push(world.client(["a", "b", ">"][n % 3], None).await);
    }
    for n in 0..200 {
        world.publish(if n % 2 == 0 { "a" } else { "b" }, &n.to_string());
    }
    for (n, client) in clients.iter_mut().enumerate() {
        let expected: Vec<_> = (0..200).filter(|e| n % 3 == 2 || e % 2 == n % 3).map(|e| e.to_string()).collect();
        assert_eq!(read(client, expected.len()), expected, "client {n}");
    }
    assert_eq!(world.writer.streams(), 30);
    drop(clients);
    world.eventually("departed clients are let go", || world.streams.opened() == 0 && world.streams.hub().channels() == 0);
    assert_eq!(world.writer.streams(), 0);
}

#[tokio::test]
async fn what_does_not_fit_into_one_piece_is_written_as_well() {
    let world = world(1, Duration::from_secs(10));
    // One that is a piece by itself, and several that fill one: both leave the rest of the log to another piece.
    for (count, size) in [(4, 20 << 10), (45, 2 << 10)] {
        let mut clients = [world.client("a", None).await, world.client("a", None).await, world.client("a", None).await];
        let mut payloads: Vec<_> = (0..count).map(|n| format!("{n:0size$}")).collect();
        payloads.push("end".to_owned());
        world.publish_all("a", &payloads);
        for client in &mut clients {
            let read = read(client, payloads.len());
            assert!(read[..count] == payloads[..count], "of {count} events of {size} bytes");
        }
    }
}

#[tokio::test]
async fn members_that_come_and_go_between_events_are_notified_of_the_next() {
    let world = world(1, Duration::from_secs(10));
    for n in 0..300 {
        let mut stays = world.client("a", None).await;
        let goes = world.client("a", None).await;
        world.publish("a", &n.to_string());
        drop(goes);
        let mut late = world.client("a", None).await;
        world.publish("a", "next");
        assert_eq!(read(&mut stays, 2), [n.to_string(), "next".to_owned()]);
        assert_eq!(read(&mut late, 1), ["next"]);
    }
}

#[tokio::test]
async fn news_of_a_channel_without_members_leave_nothing_pending() {
    let world = world(1, Duration::from_secs(10));
    let listener = world.writer.loops[0].listener();
    let filter = Arc::new(Filter::new(vec!["a".parse().unwrap()], Form::Routed));
    let (seat, _) = world.streams.hub().join(&mut world.streams.hub().state(), &filter);
    // As when the loop's last member here has just left.
    seat.channel().set_member(listener, true);
    world.publish("a", "1");
    world.eventually("nothing is pending", || listener.pending().is_none() && listener.may_sleep());
}

#[tokio::test]
async fn a_stuck_socket_is_closed_and_its_neighbours_go_on() {
    let world = world(1, Duration::from_millis(300));
    let mut good = world.client("a", None).await;
    let stuck = world.client("a", None).await;
    let payload = "x".repeat(1 << 20);
    for _ in 0..16 {
        world.publish("a", &payload);
        assert_eq!(read(&mut good, 1).len(), 1);
    }
    world.eventually("the stuck socket is closed", || world.writer.streams() == 1);
    assert_eq!(world.streams.closed(Closing::Slow), 1);
    world.publish("a", "after");
    assert_eq!(read(&mut good, 1), ["after"]);
    drop(stuck);
}

#[tokio::test]
async fn one_that_fell_out_of_the_log_is_given_back_behind_a_true_id() {
    let mut world = world(1, Duration::from_secs(300));
    let slow = world.client("a", None).await;
    let payload = "y".repeat(1 << 20);
    for _ in 0..60 {
        world.publish("a", &payload);
        // As the intake does.
        world.eventually("there is room", || !world.streams.hub().crowded());
    }
    let mut slow = slow;
    let reading = std::thread::spawn(move || {
        let mut sink = vec![0; 1 << 20];
        let mut total = 0;
        while let Ok(n) = slow.read(&mut sink) {
            total += n;
            if n == 0 {
                break;
            }
        }
        total
    });
    world.eventually("it is given back", || world.writer.streams() == 0);
    // On its way it is not lost sight of: the end of the process waits for it.
    assert_eq!(world.writer.sockets(), 1);
    let (returned, counted) = world.ends.returned.try_recv().unwrap();
    let id = String::from_utf8(returned.last_id).unwrap();
    let cursor = crate::cursor::Cursor::from_id(&id).unwrap();
    assert!(matches!(cursor.volatile, crate::cursor::Point::At(p) if (1..60).contains(&p.seq)), "{cursor:?}");
    drop((returned.socket, returned.live, counted));
    assert_eq!(world.writer.sockets(), 0);
    assert!(reading.join().unwrap() > 1 << 20);
}

#[tokio::test]
async fn streams_end_with_their_reason_and_the_last_chunk() {
    let world = world(2, Duration::from_secs(10));
    let mut expires = world.client("a", Some(Timestamp::from_micros(Timestamp::now().as_micros() + 300_000))).await;
    let mut drains = world.client("a", None).await;
    world.publish("a", "1");
    let mut text = String::new();
    expires.read_to_string(&mut text).unwrap();
    assert!(text.ends_with("data: {\"reason\":\"expired\"}\n\n\r\n0\r\n\r\n") && text.contains("data: 1\n"), "{text}");
    world.publish("a", "2");
    world.streams.end(Selection::All, Closing::Draining, Timestamp::now(), Duration::from_millis(50));
    text.clear();
    drains.read_to_string(&mut text).unwrap();
    assert!(text.ends_with("data: {\"reason\":\"draining\"}\n\n\r\n0\r\n\r\n") && text.contains("data: 2\n"), "{text}");
    assert!(text.contains(&*world.streams.hub().state().id().clone()));
    world.eventually("all have ended", || world.writer.streams() == 0);
}

#[tokio::test]
async fn all_streams_of_an_identity_end_by_one_call_in_each_driver() {
    let world = world(2, Duration::from_secs(10));
    let owner = |identity: &str| Some(Arc::new(crate::auth::Owner { identity: Some(identity.into()), ..Default::default() }));
    let mut alices = [world.client_of("a", owner("alice")).await, world.client_of("a", owner("alice")).await];
    let mut bobs = world.client_of("a", owner("bob")).await;
    let request = Request { owner: owner("alice"), ..request("a") };
    let mut body = crate::transport::body::Body::new(world.streams.open(request, Timestamp::now()));
    let mut next = async || std::future::poll_fn(|cx| body.poll_next(cx)).await;
    assert!(next().await.is_some());
    let ends = world.streams.end(Selection::Identity("alice"), Closing::Revoked, Timestamp::now(), Duration::ZERO);
    assert_eq!(ends, 3);
    let last = next().await.expect("the reason");
    assert!(last.ends_with(b"data: {\"reason\":\"revoked\"}\n\n"), "{last:?}");
    assert_eq!(next().await, None);
    for alice in &mut alices {
        let mut text = String::new();
        alice.read_to_string(&mut text).unwrap();
        assert!(text.ends_with("data: {\"reason\":\"revoked\"}\n\n\r\n0\r\n\r\n"), "{text}");
    }
    world.publish("a", "1");
    assert_eq!(read(&mut bobs, 1), ["1"]);
    assert_eq!((world.writer.streams(), world.streams.closed(Closing::Revoked)), (1, 3));
}

#[tokio::test]
async fn a_client_that_talks_into_its_stream_is_cut_off() {
    let world = world(1, Duration::from_secs(10));
    let mut client = world.client("a", None).await;
    let chatter = vec![b'z'; 4 * task::IGNORED];
    // It may be reset before all of it is sent.
    client.write_all(&chatter).ok();
    world.eventually("it is cut off", || world.writer.streams() == 0);
}

#[test]
fn a_loop_ends_when_it_is_stopped() {
    let mut world = world(2, Duration::from_secs(10));
    world.writer.stop();
    for ended in world.ends.ended.drain(..) {
        assert!(ended.blocking_recv().is_err());
    }
}

#[tokio::test]
async fn a_client_that_is_far_behind_lets_others_have_their_turn_after_each_piece() {
    let world = world(1, Duration::from_secs(10));
    world.publish_all("a", &vec!["x".repeat(1000); 300]);
    let request = Request { begin: Begin::At(Point::Earliest), ..request("a") };
    let mut body = crate::transport::body::Body::new(world.streams.open(request, Timestamp::now()));
    let (mut pieces, mut turns, mut seen) = (0, 0, 0);
    while seen < 300 {
        match std::future::poll_fn(|cx| Poll::Ready(body.poll_next(cx))).await {
            Poll::Ready(piece) => {
                pieces += 1;
                seen += lines(&piece.expect("it has not ended")).len();
            }
            Poll::Pending => {
                turns += 1;
                tokio::task::yield_now().await;
            }
        }
    }
    assert!(pieces >= 4 && turns >= pieces - 1, "{turns} turns of others between {pieces} pieces");
}

#[tokio::test]
async fn a_client_that_catches_up_gets_large_events_in_whole_chunks() {
    let world = world(1, Duration::from_secs(10));
    let mut payloads: Vec<_> = (0..4).map(|n| n.to_string().repeat(1 << 20)).collect();
    payloads.push("end".to_owned());
    world.publish_all("a", &payloads);
    // The first goes with the head.
    let request = Request { begin: Begin::At(Point::Earliest), ..request("a") };
    let client = std::thread::spawn({
        let address = world.listener.local_addr().unwrap();
        move || {
            let mut client = TcpStream::connect(address).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let mut text = Vec::new();
            let mut buffer = vec![0; 64 << 10];
            while !text.ends_with(b"data: end\n\n\r\n") {
                let n = client.read(&mut buffer).unwrap();
                assert_ne!(n, 0, "it has ended");
                text.extend_from_slice(&buffer[..n]);
            }
            text
        }
    });
    let (socket, _) = world.listener.accept().unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut stream = world.streams.open(request, Timestamp::now());
    stream.step(Timestamp::now());
    world.writer.write(tokio::net::TcpStream::from_std(socket).unwrap(), stream, 0).await;
    let read = client.join().unwrap();
    let (mut rest, mut text) = (&read[..], Vec::new());
    while let Some(line) = memchr::memmem::find(rest, b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
        let (chunk, behind) = rest[line + 2..].split_at(size);
        text.extend_from_slice(chunk);
        rest = behind.strip_prefix(b"\r\n").expect("a chunk's end");
    }
    assert!(lines(&text) == payloads[1..], "{} bytes", text.len());
}
