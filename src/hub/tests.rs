use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::event::Envelope;
use crate::frame::Form;

fn spec(name: &str, durable: bool) -> SourceSpec {
    SourceSpec { name: name.parse().unwrap(), durable, concerns: Concerns(Arc::new(|_| true)) }
}

fn hub(limits: Limits) -> Arc<Hub> {
    Hub::new(vec![spec("volatile", false), spec("log", true)], limits, 7)
}

const WIDE: Limits = Limits { bytes: 1 << 20, age: Duration::from_secs(600) };

fn now() -> Timestamp {
    Timestamp::from_micros(1_000_000_000)
}

fn event(subject: &str, payload: &str) -> Input {
    Input::Event(Event {
        subject: subject.parse().unwrap(),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        time: now(),
        position: None,
        name: None,
        envelope: Envelope::Raw,
    })
}

fn filter(patterns: &[&str]) -> Arc<Filter> {
    Arc::new(Filter::new(patterns.iter().map(|p| p.parse().unwrap()).collect(), Form::Routed))
}

fn join(hub: &Arc<Hub>, patterns: &[&str]) -> (Seat, u64) {
    hub.join(&mut hub.state(), &filter(patterns))
}

fn text(take: Take) -> (String, u64) {
    match take {
        Take::Bytes { bytes, to: place, .. } => (String::from_utf8(bytes.to_vec()).unwrap(), place),
        other => panic!("{other:?}"),
    }
}

#[test]
fn equal_filters_share_a_channel_and_its_bytes() {
    let hub = hub(WIDE);
    let (a, at_a) = join(&hub, &["a.>", "a.b"]);
    let (b, at_b) = join(&hub, &["a.>"]);
    assert!(Arc::ptr_eq(a.channel(), b.channel()));
    hub.publish(0, &mut vec![event("a.b", "1"), event("x", "2"), event("a.c", "3")], now());
    let (Take::Bytes { bytes: x, .. }, Take::Bytes { bytes: y, .. }) =
        (a.channel().take(at_a, Wire::Plain), b.channel().take(at_b, Wire::Plain))
    else {
        panic!()
    };
    assert_eq!(x.as_ptr(), y.as_ptr());
    assert_eq!(String::from_utf8_lossy(&x).matches("data: ").count(), 2);
    assert_eq!(hub.channels(), 1);
    drop((a, b));
    assert_eq!(hub.channels(), 0);
    assert!(hub.state().index.is_empty());
}

#[test]
fn an_event_that_matches_two_patterns_comes_once() {
    let hub = hub(WIDE);
    let (seat, at) = join(&hub, &["a.*", "*.b"]);
    hub.publish(0, &mut vec![event("a.b", "1")], now());
    assert_eq!(text(seat.channel().take(at, Wire::Plain)).0.matches("data: 1").count(), 1);
}

#[test]
fn chunks_on_the_wire_hold_the_same_events() {
    let hub = hub(WIDE);
    let (seat, at) = join(&hub, &[">"]);
    hub.publish(0, &mut vec![event("a", "1"), event("b", "2")], now());
    let (plain, _) = text(seat.channel().take(at, Wire::Plain));
    let (mut chunked, place) = text(seat.channel().take(at, Wire::Chunked));
    let mut back = String::new();
    while !chunked.is_empty() {
        let (length, rest) = chunked.split_once("\r\n").unwrap();
        let n = usize::from_str_radix(length, 16).unwrap();
        back.push_str(&rest[..n]);
        assert_eq!(&rest[n..n + 2], "\r\n");
        chunked = rest[n + 2..].to_owned();
    }
    assert_eq!(back, plain);
    let id = seat.channel().id_before(place).unwrap();
    assert!(plain.contains(std::str::from_utf8(&id).unwrap()));
    assert_eq!(&*id, hub.state().id().as_bytes());
}

#[test]
fn heartbeats_carry_an_id_only_when_it_has_moved() {
    let hub = hub(WIDE);
    let (seat, at) = join(&hub, &["a"]);
    hub.beat(0, 1, now());
    let (beat, at) = text(seat.channel().take(at, Wire::Plain));
    assert_eq!(beat, ":\n\n");
    hub.publish(0, &mut vec![event("other", "1")], now());
    hub.beat(0, 1, now());
    let (beat, at) = text(seat.channel().take(at, Wire::Plain));
    assert_eq!(beat, format!(":\nid: {}\n\n", hub.state().id()));
    hub.publish(0, &mut vec![event("a", "1")], now());
    let (_, at) = text(seat.channel().take(at, Wire::Plain));
    hub.beat(0, 1, now());
    assert_eq!(text(seat.channel().take(at, Wire::Plain)).0, ":\n\n");
}

#[test]
fn logs_are_bounded_together_and_who_falls_out_is_told() {
    let hub = hub(Limits { bytes: 1000, ..WIDE });
    let (quiet, at_quiet) = join(&hub, &["quiet"]);
    let (seat, at) = join(&hub, &["a"]);
    hub.publish(0, &mut vec![event("quiet", "1")], now());
    let payload = "x".repeat(1 << 20);
    for _ in 0..36 {
        hub.publish(0, &mut vec![event("a", &payload)], now());
    }
    assert_eq!(seat.channel().take(at, Wire::Plain), Take::Lagged);
    assert_eq!(quiet.channel().take(at_quiet, Wire::Plain), Take::Lagged);
    let state = hub.state();
    assert!(state.logged <= LOGS);
    assert!(state.sources[0].window.bytes() <= 1000);
}

#[test]
fn what_is_read_before_the_tail_is_not_live() {
    let hub = hub(WIDE);
    let (seat, at) = join(&hub, &[">"]);
    let at_position = |n: u64| {
        let Input::Event(e) = event("a", "1") else { panic!() };
        Input::Event(Event { position: Some(Position::unverified(n)), ..e })
    };
    let before = hub.publish(1, &mut vec![at_position(1), at_position(2)], now());
    assert_eq!(seat.channel().take(at, Wire::Plain), Take::Empty);
    assert!(Cursor::from_id(&before).unwrap().durable.is_empty());
    let after = hub.publish(1, &mut vec![Input::Tail(Some(Position::unverified(2))), at_position(3)], now());
    assert_eq!(text(seat.channel().take(at, Wire::Plain)).0.matches("data: 1").count(), 1);
    assert_eq!(Cursor::from_id(&after).unwrap().durable, [(Tag::of("log"), Point::At(Position::unverified(3)))]);
}

#[test]
fn a_listener_is_told_once_until_it_looks() {
    struct Count(AtomicUsize, AtomicUsize);
    impl Listener for Count {
        fn ready(&self, _: &Arc<Channel>, _: u64) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn wake(&self) {
            self.1.fetch_add(1, Ordering::Relaxed);
        }
        fn pending(&self) -> u64 {
            u64::MAX
        }
    }
    let hub = hub(WIDE);
    let count = Arc::new(Count(AtomicUsize::new(0), AtomicUsize::new(0)));
    let number = hub.listen(count.clone());
    let (seat, _) = join(&hub, &["a"]);
    let (other, _) = join(&hub, &["b"]);
    hub.publish(0, &mut vec![event("a", "1")], now());
    assert_eq!(count.0.load(Ordering::Relaxed), 0);
    seat.channel().set_member(number, true);
    for _ in 0..3 {
        hub.publish(0, &mut vec![event("a", "1"), event("a", "2")], now());
    }
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
    assert_eq!(count.1.load(Ordering::Relaxed), 1);
    seat.channel().looked(number);
    other.channel().set_member(number, true);
    hub.publish(0, &mut vec![event("a", "1"), event("b", "1")], now());
    assert_eq!((count.0.load(Ordering::Relaxed), count.1.load(Ordering::Relaxed)), (3, 2), "woken once for both");
}

#[test]
fn windows_drop_what_is_too_old() {
    let hub = hub(Limits { age: Duration::from_secs(10), ..WIDE });
    hub.publish(0, &mut vec![event("a", "1")], now());
    assert_eq!(hub.state().sources[0].window.len(), 1);
    hub.beat(0, 1, Timestamp::from_micros(now().as_micros() + 11_000_000));
    assert_eq!(hub.state().sources[0].window.len(), 0);
    assert_eq!(hub.state().sources[0].window.floor(), 1);
}

#[test]
fn windows_keep_what_was_old_when_it_came() {
    let hub = hub(Limits { age: Duration::from_secs(10), ..WIDE });
    let Input::Event(mut waited) = event("a", "1") else { unreachable!() };
    // In a queue, say, that the broker has acknowledged to its publisher long ago.
    waited.time = now().before(Duration::from_secs(3600));
    hub.publish(0, &mut vec![Input::Event(waited)], now());
    hub.beat(0, 1, Timestamp::from_micros(now().as_micros() + 9_000_000));
    assert_eq!(hub.state().sources[0].window.len(), 1);
    hub.beat(0, 1, Timestamp::from_micros(now().as_micros() + 11_000_000));
    assert_eq!(hub.state().sources[0].window.len(), 0);
}
