//! Clients whose filter a durable source can hold nothing for: its log is neither read nor waited for, and their ids stay right.

use super::*;

fn at(seq: u64) -> Option<Position> {
    Some(Position::unverified(seq))
}

fn log(name: &str, subjects: &'static str) -> Source {
    source(name, FakeLog::of(subjects))
}

/// The logs `orders` and `trades` of a bridge, as two replicas see them.
struct World {
    hub: Arc<Hub>,
    streams: Arc<Streams>,
    orders: SourceKey,
    trades: SourceKey,
    now: Timestamp,
}

impl World {
    /// `orders` is live from position 9 on, and `trades` is not live yet.
    fn new(epoch: u32, window: usize) -> Self {
        let hub = Hub::new(Limits { bytes: window, age: Duration::from_secs(60) }, epoch);
        let (streams, now) = (Streams::new(hub.clone(), histories(1), settings()), Timestamp::from_micros(1_000_000));
        let [orders, trades] = [("orders", "orders.>"), ("trades", "trades.>")].map(|(name, all)| streams.add(log(name, all), now));
        hub.publish(orders, &mut vec![Input::Tail(at(9))], now);
        Self { hub, streams, orders, trades, now }
    }

    /// Both are live.
    fn live() -> Self {
        let world = Self::new(1, 1 << 20);
        world.publish(world.trades, Input::Tail(at(9)));
        world
    }

    fn publish(&self, source: SourceKey, input: Input) {
        self.hub.publish(source, &mut vec![input], self.now);
    }

    fn open(&self, pattern: &str, begin: Begin) -> Stream {
        self.streams.open(Request { begin, named: false, ..request(pattern) }, self.now)
    }

    fn behind(&self, orders: u64, trades: u64) -> Begin {
        let point = |seq| Point::At(Position::unverified(seq));
        behind(&self.hub, &[("orders", point(orders)), ("trades", point(trades))])
    }

    fn sent(&self, stream: &mut Stream) -> String {
        sent(stream, self.now)
    }

    /// Whose log the stream waits for, and from where.
    fn reads(&self, stream: &mut Stream) -> Option<(SourceKey, Point)> {
        let Step::Wait { history, .. } = stream.step(self.now) else { panic!("it waits for nothing") };
        history.map(|request| (request.source, request.from))
    }

    /// What a client gets that comes back with its last id and this pattern.
    fn comes_back(&self, pattern: &str, id: &str) -> String {
        let mut stream = self.open(pattern, Begin::After(Cursor::from_id(id).unwrap()));
        let text = self.sent(&mut stream);
        assert!(stream.into_live().is_ok(), "{text}");
        text
    }
}

fn last_id(text: &str) -> &str {
    text.lines().rev().find_map(|line| line.strip_prefix("id: ")).unwrap()
}

fn trades(id: &str) -> Option<Point> {
    point(id, "trades")
}

#[test]
fn a_log_that_can_hold_nothing_for_a_client_is_not_read() {
    let world = World::live();
    for begin in [Begin::At(Point::Earliest), Begin::At(Point::Last), Begin::At(Point::Since(1)), world.behind(1, 1), world.behind(1, 9)] {
        let mut stream = world.open("orders.>", begin.clone());
        world.sent(&mut stream);
        assert_eq!(world.reads(&mut stream).map(|(source, _)| source), Some(world.orders), "{begin:?}");
        stream.read(&mut vec![Item::Tail(at(9))]);
        let text = world.sent(&mut stream);
        assert!(!text.contains("gap"), "{begin:?}: {text}");
        assert!(stream.into_live().is_ok(), "{begin:?}: it waits for the other log");
    }
}

#[test]
fn a_broker_that_is_down_holds_nobody_up_whom_it_does_not_concern() {
    let world = World::new(1, 1 << 20);
    for begin in [Begin::Now, world.behind(9, 5)] {
        let mut stream = world.open("orders.>", begin);
        world.sent(&mut stream);
        assert!(stream.into_live().is_ok());
    }
    // A client that has to read, and so is not live yet, keeps its place.
    let mut stream = world.open("orders.>", world.behind(1, 5));
    world.sent(&mut stream);
    let message = Message::new("orders.2".parse().unwrap(), Bytes::new(), world.now, at(2));
    stream.read(&mut vec![Item::Message(message)]);
    assert_eq!(trades(last_id(&world.sent(&mut stream))), Some(Point::At(Position::unverified(5))));
    // Whoever wants the source waits for it.
    let mut stream = world.open(">", world.behind(9, 5));
    world.sent(&mut stream);
    assert_eq!(world.reads(&mut stream), None);
    world.publish(world.trades, Input::Tail(at(9)));
    assert_eq!(world.reads(&mut stream), Some((world.trades, Point::At(Position::unverified(5)))));
}

#[test]
fn a_place_that_was_given_up_for_being_live_is_told_as_lost_to_a_wider_filter() {
    for (begin, gaps) in [(Begin::At(Point::Earliest), 0), (Begin::Now, 0), (World::new(1, 1 << 20).behind(9, 5), 1)] {
        let world = World::new(1, 1 << 20);
        let mut stream = world.open("orders.>", begin.clone());
        world.sent(&mut stream);
        if let Begin::At(_) = begin {
            stream.read(&mut vec![Item::Tail(at(9))]);
            world.sent(&mut stream);
        }
        let (narrow, id) = stream.into_live().unwrap();
        assert_eq!(trades(&id), None);
        let mut early = world.open(">", Begin::After(Cursor::from_id(&id).unwrap()));
        world.sent(&mut early);
        let (early, _) = early.into_live().unwrap();
        world.hub.publish(world.trades, &mut vec![Input::Tail(at(9)), named("trades.10", Some(10))], world.now);
        let late = world.open(">", Begin::After(Cursor::from_id(&id).unwrap()));
        let told = |text: &str| assert_eq!(text.matches("\"unknown_cursor\"").count(), gaps, "{begin:?}: {text}");
        let text = rest(&early).0;
        told(&text);
        assert!(text.contains("trades.10"));
        let mut late = late;
        told(&world.sent(&mut late));
        assert!(!rest(&narrow).0.contains("gap"));
    }
}

#[test]
fn a_client_that_comes_back_with_a_wider_filter_loses_and_repeats_nothing() {
    let world = World::live();
    world.publish(world.trades, named("trades.10", Some(10)));
    let mut stream = world.open("orders.>", world.behind(1, 1));
    world.sent(&mut stream);
    world.publish(world.trades, named("trades.11", Some(11)));
    world.sent(&mut stream);
    let message = Message::new("orders.2".parse().unwrap(), Bytes::new(), world.now, at(2));
    stream.read(&mut vec![Item::Message(message), Item::Tail(at(9))]);
    let text = world.sent(&mut stream);
    let first = text.lines().find_map(|line| line.strip_prefix("id: ")).unwrap();
    assert_eq!(trades(first), Some(Point::At(Position::unverified(11))), "the id moves along while it catches up");
    let live = stream.into_live().unwrap().1;
    // On another replica too, which has the same of both logs.
    let other = World::new(2, 1 << 20);
    let missed = [named("trades.11", Some(11)), named("trades.12", Some(12))];
    world.publish(world.trades, missed[1].clone());
    other.hub.publish(other.trades, &mut vec![Input::Tail(at(10)), missed[0].clone(), missed[1].clone()], other.now);
    for world in [&world, &other] {
        let text = world.comes_back(">", &live);
        assert!(text.contains("trades.12") && !text.contains("trades.11") && !text.contains("gap"), "{text}");
    }
}

#[test]
fn an_id_does_not_go_back_in_a_log_where_another_replica_was_farther() {
    let world = World::live();
    let mut stream = world.open("orders.>", world.behind(1, 12));
    world.sent(&mut stream);
    world.publish(world.trades, named("trades.10", Some(10)));
    world.sent(&mut stream);
    let message = |seq| Item::Message(Message::new("orders.x".parse().unwrap(), Bytes::new(), world.now, at(seq)));
    stream.read(&mut vec![message(2)]);
    assert_eq!(trades(last_id(&world.sent(&mut stream))), Some(Point::At(Position::unverified(12))));
    world.publish(world.trades, named("trades.13", Some(13)));
    world.sent(&mut stream);
    stream.read(&mut vec![message(3)]);
    assert_eq!(trades(last_id(&world.sent(&mut stream))), Some(Point::At(Position::unverified(13))));
}

#[test]
fn a_client_that_is_to_be_sent_more_follows_what_concerns_it_from_then_on() {
    let wide: Arc<[Pattern]> = vec!["orders.>".parse().unwrap(), "trades.>".parse().unwrap()].into();
    for is_live in [true, false] {
        let world = if is_live { World::live() } else { World::new(1, 1 << 20) };
        let mut stream = world.open("orders.>", world.behind(1, 5));
        world.sent(&mut stream);
        if is_live {
            world.publish(world.trades, named("trades.10", Some(10)));
            world.sent(&mut stream);
        }
        assert_eq!(world.streams.widen(|_| Some(wide.clone())), 1);
        stream.follow();
        if is_live {
            world.publish(world.trades, named("trades.11", Some(11)));
            let text = world.sent(&mut stream);
            assert!(text.contains("trades.11") && !text.contains("trades.10"), "{text}");
        } else {
            // Its place is known: it is read from there.
            world.publish(world.trades, Input::Tail(at(9)));
            world.sent(&mut stream);
            assert_eq!(world.reads(&mut stream), Some((world.trades, Point::At(Position::unverified(5)))));
        }
    }
}

#[test]
fn sources_that_come_and_change_concern_a_client_by_what_they_hold_then() {
    let world = World::live();
    let mut stream = world.open("orders.>", Begin::At(Point::Earliest));
    world.sent(&mut stream);
    // Another log of a source, which would be read if it concerned the client.
    let part = Source { part: Some("1".into()), ..log("quotes", "quotes.>") };
    world.streams.add(part, world.now);
    world.sent(&mut stream);
    let (trades, _) = world.streams.replace(world.trades, log("trades", "orders.>"), false, world.now);
    world.publish(trades, named("orders.10", Some(10)));
    let text = world.sent(&mut stream);
    assert!(text.contains("orders.10") && !text.contains("gap"), "{text}");
    // And not any more.
    let (trades, _) = world.streams.replace(trades, log("trades", "trades.>"), false, world.now);
    world.publish(trades, named("trades.11", Some(11)));
    assert_eq!(world.reads(&mut stream).map(|(source, _)| source), Some(world.orders));
    stream.read(&mut vec![Item::Tail(at(9))]);
    assert!(!world.sent(&mut stream).contains("trades.11"));
    assert!(stream.into_live().is_ok());
}

#[test]
fn a_window_that_moves_on_is_not_made_up_for_from_a_log_that_does_not_concern_the_client() {
    let world = World::new(1, 1000);
    world.publish(world.trades, Input::Tail(at(9)));
    let mut stream = world.open("orders.>", world.behind(1, 1));
    world.sent(&mut stream);
    (10..100).for_each(|seq| world.publish(world.trades, named("trades.x", Some(seq))));
    world.sent(&mut stream);
    assert_eq!(world.reads(&mut stream).map(|(source, _)| source), Some(world.orders));
    stream.read(&mut vec![Item::Tail(at(9))]);
    (100..200).for_each(|seq| world.publish(world.trades, named("trades.x", Some(seq))));
    world.sent(&mut stream);
    assert!(stream.into_live().is_ok());
}

#[test]
fn that_a_place_is_unknown_is_told_once_though_another_client_gives_its_place_up_meanwhile() {
    let world = World::new(1, 1 << 20);
    // Of another process, without a place in `trades`.
    let cursor =
        Cursor { epoch: 7, volatile: Point::At(Position::unverified(1)), durable: vec![(Tag::of("orders"), Point::At(at(1).unwrap()))] };
    let mut wide = world.open(">", Begin::After(cursor));
    let mut text = world.sent(&mut wide);
    assert_eq!(text.matches("unknown_cursor").count(), 1, "{text}");
    let mut narrow = world.open("orders.>", world.behind(9, 5));
    world.sent(&mut narrow);
    assert!(narrow.into_live().is_ok());
    world.publish(world.trades, Input::Tail(at(9)));
    text.push_str(&world.sent(&mut wide));
    assert_eq!(text.matches("unknown_cursor").count(), 1, "{text}");
}

#[test]
fn a_gap_of_a_source_that_is_removed_before_it_is_told_is_not_told_of_the_one_that_takes_its_place() {
    let world = World::live();
    let cursor =
        Cursor { epoch: 7, volatile: Point::At(Position::unverified(1)), durable: vec![(Tag::of("orders"), Point::At(at(9).unwrap()))] };
    let mut stream = world.open(">", Begin::After(cursor));
    world.streams.remove(world.trades);
    world.streams.add(source("chat", volatile("chat.>")), world.now);
    let text = world.sent(&mut stream);
    let unknown = text.lines().filter(|line| line.contains("unknown_cursor") && line.contains("chat")).count();
    assert_eq!(unknown, 0, "{text}");
}
