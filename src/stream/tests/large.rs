//! Large events: a client that catches up and takes nothing keeps no copy of one.

use super::*;
use crate::event::{Envelope, Event};
use crate::frame::{self, Origin};

const LARGE: usize = 1 << 20;

fn message(payload: &Bytes, seq: Option<u64>, now: Timestamp) -> Message {
    Message::new("a".parse().unwrap(), payload.clone(), now, seq.map(Position::unverified))
}

/// The parts that lie in a block, and how many bytes the others have.
fn shared<'a>(parts: &'a [Bytes], block: &Bytes) -> (Vec<&'a Bytes>, usize) {
    let (shared, own): (Vec<_>, Vec<_>) = parts.iter().partition(|part| block.as_ptr_range().contains(&part.as_ptr()));
    (shared, own.into_iter().map(Bytes::len).sum())
}

#[test]
fn a_large_event_is_sent_from_its_window_and_not_copied() {
    let now = Timestamp::from_micros(1_000_000);
    let hub = Hub::new(Limits { bytes: 8 << 20, age: Duration::from_secs(60) }, 1);
    let streams = Streams::new(hub.clone(), histories(1), settings());
    let core = streams.add(source("core", volatile(">")), now);
    let large = Bytes::from("x".repeat(LARGE));
    let raw = |payload| Event { envelope: Envelope::Raw, ..Event::of(message(payload, None, now)) };
    let events = [&Bytes::from_static(b"before"), &large, &Bytes::from_static(b"behind")];
    hub.publish(core, &mut events.map(|payload| Input::Event(raw(payload))).into(), now);
    let block = hub.state().source(core).unwrap().window().after(1).next().unwrap().encoded.bytes().clone();
    for form in [Form::Routed, Form::Json] {
        let filter = Arc::new(Filter::new(vec!["a".parse().unwrap()], form));
        let mut stream = streams.open(Request { filter, begin: Begin::At(Point::Earliest), ..request("a") }, now);
        let (mut parts, mut steps) = (Vec::new(), 0);
        while let Step::Send(more) = stream.step(now) {
            parts.extend(more);
            steps += 1;
        }
        assert_eq!(steps, 2, "what follows a large event is another piece");
        let (shared, own) = shared(&parts, &block);
        assert!(matches!(shared[..], [part] if part.len() > LARGE) && own < 1024, "{} shared, {own} copied", shared.len());
        let text = String::from_utf8(parts.concat()).unwrap();
        let places = ["before", &"x".repeat(LARGE), "behind"].map(|payload| text.find(payload));
        assert!(places.iter().all(Option::is_some) && places.is_sorted() && text.matches("\nid: ").count() == 4);
    }
}

#[test]
fn a_large_payload_of_a_log_is_shared_by_those_who_are_sent_it() {
    let (hub, streams, now) = bare();
    let log = streams.add(source("log", FakeLog::keeps_last()), now);
    hub.publish(log, &mut vec![Input::Tail(Some(Position::unverified(9)))], now);
    let text = "x".repeat(LARGE);
    let json = format!(" {{\"x\":\"{text}\"}}\n");
    // What has to be written otherwise than it is, and what is small, is copied.
    let (lines, binary, small) = (format!("{text}\n{text}"), vec![0xff; LARGE], "x".repeat(1000));
    for (payload, copied) in
        [(text.clone().into(), false), (json.into(), false), (lines.into(), true), (binary.into(), true), (Bytes::from(small), true)]
    {
        let mut stream = streams.open(Request { begin: Begin::At(Point::Earliest), ..request("a") }, now);
        sent(&mut stream, now);
        let message = message(&payload, Some(3), now);
        stream.read(&mut vec![Item::Message(message.clone())]);
        let Step::Send(parts) = stream.step(now) else { panic!("nothing is sent") };
        let (shared, own) = shared(&parts, &payload);
        assert!(if copied { shared.is_empty() } else { shared.len() == 1 && own < 1024 }, "{} shared, {own} copied", shared.len());
        let mut body = Vec::new();
        frame::body(&mut body, &Event::of(message), Form::Routed, Origin { source: "log", epoch: 1, seq: 0 });
        assert!(parts.concat().ends_with(&body));
    }
}
