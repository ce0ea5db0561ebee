use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::FutureExt as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::super::vanished::PARTS;
use super::*;
use crate::event::{Envelope, Event, Message};
use crate::hub::Input;
use crate::stream::tests::{demo, first, request};
use crate::stream::{Request, Selection, Streams};
use crate::support::peer::AGAIN;

const STALL: Duration = Duration::from_secs(10);
const HEARTBEAT: Duration = Duration::from_secs(2);

/// What a client has got, and how many bytes its socket takes at present.
#[derive(Default)]
struct Wire {
    got: Vec<u8>,
    room: usize,
    shut: bool,
    silence: Duration,
    /// What happens elsewhere while the loop writes to it.
    on_write: Option<Box<dyn FnOnce() + Send>>,
}

struct FakeSocket(Arc<Mutex<Wire>>);

impl Socket for FakeSocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let on_write = self.0.lock().unwrap().on_write.take();
        if let Some(happens) = on_write {
            happens();
        }
        let mut wire = self.0.lock().unwrap();
        let count = bytes.len().min(wire.room);
        wire.room -= count;
        wire.got.extend_from_slice(&bytes[..count]);
        if count == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(count) }
    }

    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn shutdown(&mut self) {
        self.0.lock().unwrap().shut = true;
    }
}

#[derive(Default)]
struct FakeIo {
    watched: Vec<u32>,
    returned: Vec<Returned<FakeSocket>>,
}

impl Io for FakeIo {
    type Socket = FakeSocket;

    fn watch(&mut self, _: &mut FakeSocket, key: u32) -> io::Result<()> {
        self.watched.push(key);
        Ok(())
    }

    fn give_back(&mut self, returned: Returned<FakeSocket>) {
        self.returned.push(returned);
    }
}

struct World {
    streams: Arc<Streams>,
    handle: Arc<Handle<FakeSocket>>,
    writer: WriterLoop<FakeIo>,
    clients: BTreeMap<u32, Arc<Mutex<Wire>>>,
    published: usize,
    now: Now,
}

impl World {
    fn new(budget: usize, copied: usize) -> Self {
        let streams = demo(64 << 20);
        let handle = Handle::new(streams.hub().listen(|| ()).unwrap());
        let settings = Settings { budget, copied, stall: STALL };
        let writer = WriterLoop::new(streams.hub().clone(), handle.clone(), settings, FakeIo::default());
        let now = Now { system: Timestamp::from_micros(1_000_000_000), monotonic: Instant::now() };
        Self { streams, handle, writer, clients: BTreeMap::new(), published: 0, now }
    }

    /// Leaves a new client's stream for the loop.
    fn hand_over(&mut self, request: Request) -> Arc<Mutex<Wire>> {
        let mut stream = self.streams.open(request, self.now.system);
        while !matches!(stream.step(self.now.system), crate::stream::Step::Live) {}
        let (live, id) = stream.into_live().unwrap();
        let wire = Arc::<Mutex<Wire>>::default();
        // The future is dropped where it yields.
        self.handle.adopt(New { socket: FakeSocket(wire.clone()), live, id, read_ahead: 0 }).now_or_never();
        wire
    }

    fn add(&mut self, expires: Option<Timestamp>) -> u32 {
        self.add_of(Request { expires, ..request("a") })
    }

    /// One that gets all that it may, which is `a` so far.
    fn add_unnamed(&mut self) -> u32 {
        self.add_of(Request { named: false, ..request("a") })
    }

    fn add_of(&mut self, request: Request) -> u32 {
        let wire = self.hand_over(request);
        self.writer.turn(self.now);
        let key = *self.writer.io().watched.last().unwrap();
        self.clients.insert(key, wire);
        self.writer.ready(key, false, true, self.now);
        key
    }

    fn publish(&mut self) {
        self.publish_as("a");
    }

    fn publish_as(&mut self, subject: &str) {
        publish(&self.streams, subject, self.published);
        self.published += 1;
    }

    fn widen(&self) {
        widen(&self.streams);
    }

    fn make_room(&mut self, key: u32, room: usize) {
        self.clients[&key].lock().unwrap().room += room;
        self.writer.ready(key, false, true, self.now);
    }

    fn pass(&mut self, span: Duration) -> Now {
        self.now = Now { system: self.now.system.after(span), monotonic: self.now.monotonic + span };
        self.now
    }

    fn data(&self, key: u32) -> Vec<usize> {
        let wire = self.clients[&key].lock().unwrap();
        let text = String::from_utf8(wire.got.clone()).unwrap();
        text.split('\n').filter_map(|line| line.strip_prefix("data: ")?.parse().ok()).collect()
    }
}

fn publish(streams: &Streams, subject: &str, number: usize) {
    let now = Timestamp::from_micros(1_000_000_000);
    let message = Message::new(subject.parse().unwrap(), Bytes::from(number.to_string()), now, None);
    let event = Event { envelope: Envelope::Raw, ..Event::of(message) };
    streams.hub().publish(first(streams), &mut vec![Input::Event(event)], now);
}

/// All that named no patterns get everything from now on.
fn widen(streams: &Streams) {
    let all: Arc<[_]> = [">".parse().unwrap()].into();
    assert_eq!(streams.widen(|_| Some(all.clone())), 1);
}

#[test]
fn sockets_that_take_any_number_of_bytes_at_any_time_get_every_event_once() {
    for seed in 0..200 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = World::new(rng.random_range(1..4), [0, 16 << 10][rng.random_range(0..2)]);
        let since: BTreeMap<_, _> = (0..3).map(|_| (world.add(None), 0)).collect();
        let mut late = BTreeMap::new();
        for _ in 0..100 {
            match rng.random_range(0..4) {
                0 => world.publish(),
                1 => world.make_room(rng.random_range(0..3), rng.random_range(1..200)),
                2 => drop(world.writer.turn(world.now)),
                _ if late.len() < 3 => drop(late.insert(world.add(None), world.published)),
                _ => {}
            }
        }
        for (key, first) in since.into_iter().chain(late) {
            world.make_room(key, 1 << 20);
            while world.writer.turn(world.now) == Next::Turn {}
            assert_eq!(world.data(key), (first..world.published).collect::<Vec<_>>(), "client {key} of seed {seed}");
        }
        assert_eq!(world.handle.streams(), 6);
    }
}

#[test]
fn a_budget_of_one_writes_to_one_socket_at_a_time() {
    let mut world = World::new(1, 0);
    let keys = [world.add(None), world.add(None), world.add(None)];
    keys.iter().for_each(|key| world.make_room(*key, 1 << 20));
    world.publish();
    for (count, next) in [(1, Next::Turn), (2, Next::Turn), (3, Next::Sleep { until: None })] {
        assert_eq!(world.writer.turn(world.now), next);
        assert_eq!(keys.iter().filter(|key| !world.data(**key).is_empty()).count(), count);
    }
}

#[test]
fn a_stream_whose_hand_over_was_dropped_half_way_is_taken_at_the_next_turn() {
    let mut world = World::new(512, 0);
    let wire = world.hand_over(request("a"));
    assert_eq!(world.writer.turn(world.now), Next::Sleep { until: None });
    assert_eq!(world.writer.io().watched.len(), 1);
    wire.lock().unwrap().room = 1 << 20;
    world.publish();
    world.writer.turn(world.now);
    assert!(wire.lock().unwrap().got.ends_with(b"data: 0\n\n\r\n"));
}

#[test]
fn a_stream_ends_at_its_time_and_hangs_up() {
    let mut world = World::new(512, 0);
    let expires = world.now.system.after(Duration::from_secs(2));
    let key = world.add(Some(expires));
    world.make_room(key, 1 << 20);
    let until = Some(world.now.monotonic + Duration::from_secs(2));
    assert_eq!(world.writer.turn(world.now), Next::Sleep { until });
    let now = world.pass(Duration::from_millis(1_999));
    assert_eq!(world.writer.turn(now), Next::Sleep { until });
    assert_eq!(world.handle.streams(), 1, "not before its time");
    let now = world.pass(Duration::from_millis(1));
    assert_eq!(world.writer.turn(now), Next::Sleep { until: None });
    let wire = world.clients[&key].lock().unwrap();
    assert!(wire.shut && wire.got.ends_with(b"data: {\"reason\":\"expired\"}\n\n\r\n0\r\n\r\n"));
    assert_eq!((world.handle.streams(), world.streams.opened()), (0, 0));
}

#[test]
fn an_order_to_end_is_carried_out_by_the_loop_that_holds_the_stream() {
    let mut world = World::new(512, 0);
    let key = world.add(None);
    world.make_room(key, 1 << 20);
    world.streams.end(Selection::All, Closing::Revoked, world.now.system, Duration::ZERO);
    world.writer.turn(world.now);
    assert!(world.clients[&key].lock().unwrap().got.ends_with(b"{\"reason\":\"revoked\"}\n\n\r\n0\r\n\r\n"));
}

#[test]
fn a_full_socket_is_closed_when_it_has_taken_nothing_for_too_long() {
    let mut world = World::new(512, 0);
    let (stuck, slow) = (world.add(None), world.add(None));
    world.make_room(stuck, 10);
    world.make_room(slow, 10);
    world.publish();
    let deadline = world.now.monotonic + STALL;
    assert_eq!(world.writer.turn(world.now), Next::Sleep { until: Some(deadline) });
    world.pass(STALL / 2);
    world.make_room(slow, 10);
    let now = world.pass(STALL / 2);
    assert_eq!(world.writer.turn(now), Next::Sleep { until: Some(deadline + STALL / 2) });
    assert_eq!((world.handle.streams(), world.streams.closed(Closing::Slow)), (1, 1));
}

#[test]
fn a_socket_that_is_full_when_it_comes_is_closed_in_time() {
    let mut world = World::new(512, 0);
    world.hand_over(request("a"));
    world.publish();
    assert_eq!(world.writer.turn(world.now), Next::Sleep { until: Some(world.now.monotonic + STALL) });
    let now = world.pass(STALL);
    world.writer.turn(now);
    assert_eq!((world.handle.streams(), world.streams.closed(Closing::Slow)), (0, 1));
}

#[test]
fn a_full_socket_is_closed_in_time_though_the_system_s_clock_is_set_back() {
    let mut world = World::new(512, 0);
    world.add(None);
    world.publish();
    world.writer.turn(world.now);
    let now = world.pass(STALL);
    world.writer.turn(Now { system: now.system.before(Duration::from_secs(600)), ..now });
    assert_eq!((world.handle.streams(), world.streams.closed(Closing::Slow)), (0, 1));
}

#[test]
fn a_full_socket_is_kept_little_when_the_process_drains() {
    let mut world = World::new(512, 0);
    let key = world.add(None);
    (0..5000).for_each(|_| world.publish());
    world.streams.end(Selection::All, Closing::Draining, world.now.system, Duration::ZERO);
    world.writer.turn(world.now);
    world.make_room(key, 1 << 20);
    let got = String::from_utf8(world.clients[&key].lock().unwrap().got.clone()).unwrap();
    assert!(got.len() < 70 << 10 && got.ends_with("{\"reason\":\"draining\"}\n\n\r\n0\r\n\r\n"), "{} bytes", got.len());
    // It resumes behind what it has.
    let data: Vec<usize> = got.split('\n').filter_map(|line| line.strip_prefix("data: ")?.parse().ok()).collect();
    assert!(data.len() > 500 && data == (0..data.len()).collect::<Vec<_>>());
    let ids: Vec<&str> = got.split('\n').filter_map(|line| line.strip_prefix("id: ")).collect();
    assert_eq!(ids[ids.len() - 1], ids[ids.len() - 2]);
}

#[test]
fn an_ended_stream_that_cannot_be_sent_its_end_counts_once() {
    let mut world = World::new(512, 0);
    let key = world.add(Some(world.now.system));
    world.writer.turn(world.now);
    assert_eq!((world.handle.streams(), world.data(key).len()), (1, 0));
    let now = world.pass(STALL);
    world.writer.turn(now);
    assert_eq!(world.handle.streams(), 0);
    assert_eq!((world.streams.closed(Closing::Expired), world.streams.closed(Closing::Slow)), (1, 0));
}

#[test]
fn a_loop_that_is_stopped_ends() {
    let mut world = World::new(512, 0);
    world.add(None);
    world.handle.stop();
    assert_eq!(world.writer.turn(world.now), Next::Stop);
}

/// What a stream that was given back is sent next.
fn resumed(Returned { live, last_id, .. }: Returned<FakeSocket>, now: Timestamp) -> (Vec<usize>, String) {
    let mut stream = live.resume(&last_id, now);
    let mut text = String::new();
    while let crate::stream::Step::Send(parts) = stream.step(now) {
        text.push_str(std::str::from_utf8(&parts.concat()).unwrap());
    }
    assert!(!text.contains("gap"), "{text}");
    (text.split('\n').filter_map(|line| line.strip_prefix("data: ")?.parse().ok()).collect(), text)
}

#[test]
fn a_stream_that_is_to_be_sent_more_gets_each_event_once_whatever_it_has_got_before() {
    // How much its socket takes, what was published and written before, and what was published before and behind the widening.
    let full = 3;
    for (room, written, before, behind) in [
        (1 << 20, &["a"][..], &[][..], &["b", "a"][..]),
        (1 << 20, &[], &[], &["b", "a", "b"]),
        (1 << 20, &["a"], &["a"], &["b", "a"]),
        (1 << 20, &[], &["a", "a"], &["b", "a"]),
        (full, &["a"], &[], &["b", "a"]),
        (full, &["a"], &["a"], &["b", "a"]),
        (full, &[], &["a", "a"], &["b", "a"]),
    ] {
        let mut world = World::new(512, 0);
        let key = world.add_unnamed();
        world.make_room(key, room);
        written.iter().for_each(|subject| world.publish_as(subject));
        world.writer.turn(world.now);
        before.iter().for_each(|subject| world.publish_as(subject));
        world.widen();
        behind.iter().for_each(|subject| world.publish_as(subject));
        world.writer.turn(world.now);
        world.make_room(key, 1 << 20);
        let returned = world.writer.io().returned.pop().expect("it was given back");
        let (data, text) = resumed(returned, world.now.system);
        let all: Vec<_> = world.data(key).into_iter().chain(data).collect();
        assert_eq!(all, (0..world.published).collect::<Vec<_>>(), "{room} {written:?} {before:?} {behind:?}: {text}");
    }
}

#[test]
fn a_loop_that_is_writing_already_sends_nothing_by_old_patterns_of_what_was_published_behind_a_widening() {
    for in_round in [true, false] {
        let mut world = World::new(512, 0);
        let (other, key) = (world.add_of(request("c")), world.add_unnamed());
        let widen_and_publish = {
            let streams = world.streams.clone();
            move || {
                widen(&streams);
                ["b", "a"].into_iter().zip(1..).for_each(|(subject, number)| publish(&streams, subject, number));
            }
        };
        if in_round {
            // While another channel is written, before this one is read.
            world.make_room(other, 1 << 20);
            world.make_room(key, 1 << 20);
            publish(&world.streams, "c", 9);
            publish(&world.streams, "a", 0);
            world.clients[&other].lock().unwrap().on_write = Some(Box::new(widen_and_publish));
            world.writer.turn(world.now);
        } else {
            world.make_room(key, 3);
            publish(&world.streams, "a", 0);
            world.writer.turn(world.now);
            world.clients[&key].lock().unwrap().on_write = Some(Box::new(widen_and_publish));
            world.make_room(key, 1 << 20);
        }
        assert_eq!(world.data(key), [0]);
        let returned = world.writer.io().returned.pop().expect("it was given back");
        assert_eq!(resumed(returned, world.now.system).0, [1, 2]);
    }
}

#[test]
fn a_stream_that_has_followed_its_grant_elsewhere_is_not_given_back_by_the_order_to_do_so() {
    let mut world = World::new(512, 0);
    let key = world.add_unnamed();
    let patterns: Arc<[_]> = ["a".parse().unwrap(), "b".parse().unwrap()].into();
    assert_eq!(world.streams.widen(|_| Some(patterns.clone())), 1);
    world.writer.turn(world.now);
    let Returned { socket, live, last_id } = world.writer.io().returned.pop().expect("it was given back");
    world.widen();
    let mut stream = live.resume(&last_id, world.now.system);
    while !matches!(stream.step(world.now.system), crate::stream::Step::Live) {}
    let (live, id) = stream.into_live().unwrap();
    world.handle.adopt(New { socket, live, id, read_ahead: 0 }).now_or_never();
    world.writer.turn(world.now);
    assert_eq!(world.writer.io().watched, [key, key]);
    assert!(world.writer.io().returned.is_empty());
    world.make_room(key, 1 << 20);
    world.publish_as("c");
    world.writer.turn(world.now);
    assert_eq!(world.data(key), [0]);
}

#[test]
fn a_stream_that_has_ended_is_sent_nothing_of_what_was_published_behind_that() {
    for (later, in_round) in [(0, false), (1, false), (1, true)] {
        let mut world = World::new(512, 0);
        let (other, key) = (world.add_of(request("c")), world.add(None));
        [other, key].into_iter().for_each(|key| world.make_room(key, 1 << 20));
        // The turn begins before the order.
        let (streams, at) = (world.streams.clone(), world.now.system.after(Duration::from_millis(later)));
        let end_and_publish = move || {
            assert_eq!(streams.end(Selection::All, Closing::Revoked, at, Duration::ZERO), 2);
            publish(&streams, "a", 1);
        };
        if in_round {
            publish(&world.streams, "c", 9);
            publish(&world.streams, "a", 0);
            world.clients[&other].lock().unwrap().on_write = Some(Box::new(end_and_publish));
        } else {
            end_and_publish();
        }
        world.writer.turn(world.now);
        let wire = world.clients[&key].lock().unwrap();
        assert!(wire.shut && wire.got.ends_with(b"{\"reason\":\"revoked\"}\n\n\r\n0\r\n\r\n"));
        assert!(!wire.got.windows(8).any(|part| part == b"data: 1\n"), "{}", String::from_utf8_lossy(&wire.got));
    }
}

#[test]
fn a_stream_that_has_expired_is_sent_nothing_more() {
    let mut world = World::new(512, 0);
    let key = world.add(Some(world.now.system.after(Duration::from_secs(2))));
    world.make_room(key, 1 << 20);
    world.writer.turn(world.now);
    world.publish();
    let now = world.pass(Duration::from_secs(2));
    world.writer.turn(now);
    assert!(world.data(key).is_empty());
}

#[test]
fn a_stream_that_ends_before_it_was_sent_more_keeps_an_id_before_what_it_has_not_got() {
    for reason in [Closing::Draining, Closing::Ended] {
        for room in [3, 1 << 20] {
            let mut world = World::new(512, 0);
            let key = world.add_unnamed();
            world.make_room(key, room);
            world.publish();
            world.writer.turn(world.now);
            world.widen();
            ["b", "a"].into_iter().for_each(|subject| world.publish_as(subject));
            world.streams.end(Selection::All, reason, world.now.system, Duration::ZERO);
            world.writer.turn(world.now);
            world.make_room(key, 1 << 20);
            let data = world.data(key);
            let text = match world.writer.io().returned.pop() {
                // It had nothing to wait for, and ends elsewhere.
                Some(Returned { live, last_id, .. }) => {
                    String::from_utf8(live.resume(&last_id, world.now.system).close(reason).to_vec()).unwrap()
                }
                None => String::from_utf8(world.clients[&key].lock().unwrap().got.clone()).unwrap(),
            };
            assert!(text.contains(reason.as_str()), "{text}");
            let id = text.split('\n').filter_map(|line| line.strip_prefix("id: ")).next_back();
            let id = crate::cursor::Cursor::from_id(id.expect("an id")).unwrap();
            assert_eq!((data, id.volatile), (vec![0], crate::cursor::Point::At(crate::cursor::Position::unverified(1))), "{text}");
        }
    }
}

#[test]
fn a_stream_is_removed_once_its_client_was_silent_at_two_looks() {
    let mut world = World::new(512, 0);
    let keys: Vec<_> = (0..20).map(|_| world.add(None)).collect();
    let (silent, slow) = (keys[3], keys[14]);
    let mut looks = Looks::new(HEARTBEAT, world.now.monotonic);
    let silence = |world: &World, key: u32, silence: Duration| world.clients[&key].lock().unwrap().silence = silence;
    silence(&world, silent, looks.patience());
    silence(&world, slow, looks.patience());
    // For one heartbeat: all members are looked at twice.
    for look in 0..2 * PARTS {
        let now = world.pass(looks.wait(world.now.monotonic));
        assert_eq!(looks.wait(now.monotonic), Duration::ZERO);
        world.writer.look(&mut looks, now, |socket| socket.0.lock().unwrap().silence);
        if look == PARTS {
            assert_eq!(world.handle.streams(), 20, "one look is not enough");
            // An acknowledgement was on its way.
            silence(&world, slow, Duration::ZERO);
        }
    }
    let now = world.pass(AGAIN);
    world.writer.look(&mut looks, now, |socket| socket.0.lock().unwrap().silence);
    assert_eq!(world.handle.streams(), 19);
    silence(&world, slow, Duration::from_secs(60));
    assert!(world.writer.members.get_mut(silent).is_none() && world.writer.members.get_mut(slow).is_some());
}
