//! `since=last` from the windows.

use super::*;

#[test]
fn newest_events_that_have_left_their_window_are_not_kept_for_a_client_that_reads_slowly() {
    let now = Timestamp::from_micros(1_000_000);
    let hub = Hub::new(Limits { bytes: 20_000, age: Duration::from_secs(60) }, 1);
    // One event is a piece.
    let streams = Streams::new(hub.clone(), histories(1), Settings { piece: 1, ..settings() });
    let core = streams.add(source("core", volatile(">")), now);
    let subjects: Vec<_> = (0..10).map(|n| format!("early.{n}")).collect();
    hub.publish(core, &mut subjects.iter().map(|subject| named(subject, None)).collect(), now);
    let mut stream = streams.open(Request { begin: Begin::At(Point::Last), ..request(">") }, now);
    let mut text = String::new();
    while !text.contains("early.1") {
        let Step::Send(parts) = stream.step(now) else { panic!("nothing is sent: {text}") };
        text.push_str(std::str::from_utf8(&parts.concat()).unwrap());
    }
    assert!(text.contains("early.0") && !text.contains("early.2"), "{text}");
    (0..200).for_each(|_| drop(hub.publish(core, &mut vec![named("late", None)], now)));
    assert!(hub.state().source(core).unwrap().window().floor() > 10);
    let text = sent(&mut stream, now);
    // What came later, and is lost too, is told.
    assert!(!text.contains("early") && text.contains("\"data\":\"late\"") && text.matches("\"retention\"").count() == 1, "{text}");
    assert!(stream.into_live().is_ok());
}

#[test]
fn newest_events_that_were_found_before_a_change_of_routes_are_not_sent_after_it() {
    let now = Timestamp::from_micros(1_000_000);
    let hub = Hub::new(Limits { bytes: 1 << 20, age: Duration::from_secs(60) }, 1);
    // One event is a piece.
    let streams = Streams::new(hub.clone(), histories(1), Settings { piece: 1, ..settings() });
    let [demo, other] = ["demo", "other"].map(|name| streams.add(source(name, volatile(">")), now));
    hub.publish(demo, &mut vec![named("demo.sent", None), named("demo.found", None)], now);
    hub.publish(other, &mut vec![named("other.found", None)], now);
    let mut stream = streams.open(Request { begin: Begin::At(Point::Last), ..request(">") }, now);
    let mut text = String::new();
    while !text.contains("demo.sent") {
        if let Step::Send(parts) = stream.step(now) {
            text.push_str(std::str::from_utf8(&parts.concat()).unwrap());
        }
    }
    assert!(!text.contains("found"), "{text}");
    streams.replace(demo, source("demo", volatile(">")), true, now);
    let rest = sent(&mut stream, now);
    assert!(rest.contains("other.found") && !rest.contains("demo.found"), "{rest}");
}

#[test]
fn an_event_that_is_overtaken_while_a_client_reads_the_newest_comes_once() {
    let now = Timestamp::from_micros(1_000_000);
    let hub = Hub::new(Limits { bytes: 1 << 20, age: Duration::from_secs(60) }, 1);
    // One event is a piece.
    let streams = Streams::new(hub.clone(), histories(1), Settings { piece: 1, ..settings() });
    let [core, other] = ["core", "other"].map(|name| streams.add(source(name, volatile(">")), now));
    let log = streams.add(source("log", FakeLog::window_only()), now);
    hub.publish(log, &mut vec![Input::Tail(Some(Position::unverified(3)))], now);
    hub.publish(core, &mut ["a", "b", "c"].map(|subject| named(subject, None)).into(), now);
    hub.publish(other, &mut vec![named("b", None)], now);
    hub.publish(log, &mut ["l", "m", "l"].iter().zip(4..).map(|(subject, seq)| named(subject, Some(seq))).collect(), now);
    let mut stream = streams.open(Request { begin: Begin::At(Point::Last), ..request(">") }, now);
    let mut text = String::new();
    while !text.contains("\"data\":\"a\"") {
        let Step::Send(parts) = stream.step(now) else { continue };
        text.push_str(std::str::from_utf8(&parts.concat()).unwrap());
    }
    hub.publish(core, &mut vec![named("c", None), named("c", None)], now);
    let before = text.len();
    loop {
        match stream.step(now) {
            Step::Send(parts) => text.push_str(std::str::from_utf8(&parts.concat()).unwrap()),
            Step::Again => {}
            Step::Live => break,
            Step::Wait { .. } => panic!("{text}"),
        }
    }
    let data: Vec<_> = text.lines().filter_map(|line| line.split_once("\"data\":\"")?.1.split('"').next()).collect();
    // What came while it read is all sent, as it would be to a live stream.
    assert_eq!(data, ["a", "b", "m", "l", "c", "c"]);
    // Until all of these are sent, each id asks for all of them.
    let ids = text[before..].lines().filter_map(|line| Some(Cursor::from_id(line.strip_prefix("id: ")?).unwrap().volatile));
    let ids: Vec<_> = ids.map(|point| if let Point::At(at) = point { at.seq } else { 0 }).collect();
    assert_eq!(ids, [0, 0, 0, 8, 9, 10, 10], "{text}");
}
