//! Clients that come with the id of another process, which has found a log before this one.

use super::*;

fn part(number: usize, adapter: Arc<dyn Adapter>) -> Source {
    Source { part: Some(format!("p-{number}").into()), ..source("super", adapter) }
}

/// `p-0`, and those that may be found.
fn counted() -> Parts {
    let log = |_| unreachable!("none was found before");
    let counted = Counted { name: Box::new(|number| format!("p-{number}")), log: Box::new(log) };
    Parts::new("p-0".into(), Vec::new(), Some(counted))
}

/// Streams of a source of which only the log `p-0` is known, live from position 20 on. More may be found: `p-1` and so on.
fn first_found() -> (Arc<Hub>, Arc<Streams>, SourceKey, Timestamp) {
    let (hub, streams, now) = bare();
    let first = streams.add(part(0, FakeLog::first_of(counted())), now);
    hub.publish(first, &mut vec![Input::Tail(Some(Position::unverified(20)))], now);
    (hub, streams, first, now)
}

fn tag(log: &str) -> Tag {
    parts::tag(&"super".parse().unwrap(), Some(log))
}

fn at(seq: u64) -> Point {
    Point::At(Position::unverified(seq))
}

/// Behind an id of another process.
fn behind(streams: &Arc<Streams>, logs: &[(Tag, Point)], now: Timestamp) -> Stream {
    let cursor = Cursor { epoch: 7, volatile: at(3), durable: logs.to_vec() };
    streams.open(Request { begin: Begin::After(cursor), ..request(">") }, now)
}

#[test]
fn a_log_that_another_process_has_found_before_is_read_on_where_the_id_stands() {
    let (hub, streams, first, now) = first_found();
    let mut stream = behind(&streams, &[(tag("p-0"), at(20)), (tag("p-1"), at(30))], now);
    sent(&mut stream, now);
    assert!(matches!(stream.step(now), Step::Wait { history: None, .. }), "it waits for `p-1`");
    // It gets what comes of the others meanwhile, and its ids keep its place.
    hub.publish(first, &mut vec![named("first.21", Some(21))], now);
    let text = sent(&mut stream, now);
    let id = text.lines().rfind(|line| line.starts_with("id: ")).unwrap();
    assert!(text.contains("first.21") && !text.contains("gap"), "{text}");
    assert_eq!(Cursor::from_id(&id[4..]).unwrap().durable, [(tag("p-0"), at(21)), (tag("p-1"), at(30))]);
    let second = streams.add_new(part(1, FakeLog::keeps_last()), now);
    let all = ["second.29", "second.30", "second.31"];
    hub.publish(second, &mut all.iter().zip(29..).map(|(name, seq)| named(name, Some(seq))).collect(), now);
    let text = sent(&mut stream, now);
    assert!(text.contains("second.31") && !text.contains("second.30") && !text.contains("gap"), "{text}");
    assert!(stream.into_live().is_ok());
}

#[test]
fn a_log_that_is_not_found_is_not_waited_for_without_end() {
    let (_, streams, _, now) = first_found();
    let waits = |stream: &mut Stream, now| {
        sent(stream, now);
        matches!(stream.step(now), Step::Wait { .. })
    };
    let mut stream = behind(&streams, &[(tag("p-0"), at(20)), (tag("p-1"), at(30))], now);
    assert!(waits(&mut stream, now.after(Duration::from_secs(19))));
    assert!(!waits(&mut stream, now.after(Duration::from_secs(20))));
    assert!(stream.into_live().is_ok());
    // What this source cannot have is not waited for: far numbers, other sources.
    for other in [tag("p-99"), tag("q-1"), Tag::of("gone")] {
        let mut stream = behind(&streams, &[(tag("p-0"), at(20)), (other, at(30))], now);
        assert!(!waits(&mut stream, now));
        assert!(stream.into_live().is_ok());
    }
}

#[test]
fn a_log_without_a_place_in_another_process_id_is_told_however_late_it_is_entered_at_the_start() {
    // `p-1` is entered before the stream's first step, or behind it.
    for steps in [0, 1] {
        let (hub, streams, now) = bare();
        let first = streams.add(part(0, FakeLog::first_of(counted())), now);
        // The process has just started: neither log is live. The id is of a process that did not know `p-1`.
        let mut stream = behind(&streams, &[(tag("p-0"), at(20))], now);
        (0..steps).for_each(|_| drop(sent(&mut stream, now)));
        let second = streams.add(part(1, FakeLog::keeps_last()), now);
        let mut text = sent(&mut stream, now);
        // It holds messages that came behind the id.
        hub.publish(second, &mut vec![named("second.30", Some(30)), Input::Tail(Some(Position::unverified(30)))], now);
        hub.publish(first, &mut vec![Input::Tail(Some(Position::unverified(20)))], now);
        text.push_str(&sent(&mut stream, now));
        if let Step::Wait { history: Some(_), .. } = stream.step(now) {
            stream.read(&mut vec![Item::Tail(Some(Position::unverified(20)))]);
            text.push_str(&sent(&mut stream, now));
        }
        assert!(stream.into_live().is_ok());
        assert!(text.contains("second.30") || text.contains("unknown_cursor"), "{steps}: neither sent nor told: {text}");
    }
}

#[test]
fn that_a_place_is_unknown_is_told_once_of_a_source_that_came_back() {
    let (hub, streams, now) = bare();
    let before = streams.add(part(0, FakeLog::first_of(counted())), now);
    streams.remove(before);
    let first = streams.add(part(0, FakeLog::first_of(counted())), now);
    let mut stream = behind(&streams, &[(tag("p-0"), at(20))], now);
    let second = streams.add(part(1, FakeLog::keeps_last()), now);
    let mut text = sent(&mut stream, now);
    hub.publish(second, &mut vec![Input::Tail(Some(Position::unverified(30)))], now);
    hub.publish(first, &mut vec![Input::Tail(Some(Position::unverified(20)))], now);
    text.push_str(&sent(&mut stream, now));
    assert_eq!(text.matches("unknown_cursor").count(), 1, "{text}");
}
