use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::cursor::Tag;
use crate::event::{Envelope, GapReason, Message};
use crate::frame::Form;
use crate::transport::framing::{Chunked, Plain};

fn spec(name: &str, durable: bool) -> SourceSpec {
    SourceSpec { name: name.parse().unwrap(), tag: durable.then(|| Tag::of(name)), part: false, concerns: Concerns(Arc::new(|_| true)) }
}

fn hub(limits: Limits) -> Arc<Hub> {
    let hub = Hub::new(limits, 7);
    let add = |name, durable| hub.add(spec(name, durable), now(), |_| {});
    assert_eq!([add("volatile", false), add("log", true)], [VOLATILE, LOG]);
    hub
}

/// The first two sources of a hub.
const VOLATILE: SourceKey = SourceKey::new(0, 1);
const LOG: SourceKey = SourceKey::new(1, 2);

const WIDE: Limits = Limits { bytes: 1 << 20, age: Duration::from_secs(600) };

fn now() -> Timestamp {
    Timestamp::from_micros(1_000_000_000)
}

fn event(subject: &str, payload: &str) -> Input {
    Input::Event(Event {
        envelope: Envelope::Raw,
        ..Event::of(Message::new(subject.parse().unwrap(), Bytes::copy_from_slice(payload.as_bytes()), now(), None))
    })
}

fn filter(patterns: &[&str]) -> Arc<Filter> {
    Arc::new(Filter::new(patterns.iter().map(|p| p.parse().unwrap()).collect(), Form::Routed))
}

fn join(hub: &Arc<Hub>, patterns: &[&str]) -> (Seat, u64) {
    hub.join(&mut hub.state(), &filter(patterns))
}

fn text(read: Read) -> (String, u64) {
    match read {
        Read::Piece(piece) => (String::from_utf8(piece.bytes.to_vec()).unwrap(), piece.to),
        other => panic!("{other:?}"),
    }
}

#[test]
fn equal_filters_share_a_channel_and_its_bytes() {
    let hub = hub(WIDE);
    let (a, at_a) = join(&hub, &["a.>", "a.b"]);
    let (b, at_b) = join(&hub, &["a.>"]);
    assert!(Arc::ptr_eq(a.channel(), b.channel()));
    hub.publish(VOLATILE, &mut vec![event("a.b", "1"), event("x", "2"), event("a.c", "3")], now());
    let (Read::Piece(Piece { bytes: x, .. }), Read::Piece(Piece { bytes: y, .. })) =
        (a.channel().read_from::<Plain>(at_a), b.channel().read_from::<Plain>(at_b))
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
    hub.publish(VOLATILE, &mut vec![event("a.b", "1")], now());
    assert_eq!(text(seat.channel().read_from::<Plain>(at)).0.matches("data: 1").count(), 1);
}

#[test]
fn chunks_on_the_wire_hold_the_same_events() {
    let hub = hub(WIDE);
    let (seat, at) = join(&hub, &[">"]);
    hub.publish(VOLATILE, &mut vec![event("a", "1"), event("b", "2")], now());
    let (plain, _) = text(seat.channel().read_from::<Plain>(at));
    let (mut chunked, place) = text(seat.channel().read_from::<Chunked>(at));
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
    let (beat, at) = text(seat.channel().read_from::<Plain>(at));
    assert_eq!(beat, ":\n\n");
    hub.publish(VOLATILE, &mut vec![event("other", "1")], now());
    hub.beat(0, 1, now());
    let (beat, at) = text(seat.channel().read_from::<Plain>(at));
    assert_eq!(beat, format!(":\nid: {}\n\n", hub.state().id()));
    hub.publish(VOLATILE, &mut vec![event("a", "1")], now());
    let (_, at) = text(seat.channel().read_from::<Plain>(at));
    hub.beat(0, 1, now());
    assert_eq!(text(seat.channel().read_from::<Plain>(at)).0, ":\n\n");
}

#[test]
fn logs_are_bounded_together_and_who_falls_out_is_told() {
    let hub = hub(Limits { bytes: 1000, ..WIDE });
    let (quiet, at_quiet) = join(&hub, &["quiet"]);
    let (seat, at) = join(&hub, &["a"]);
    hub.publish(VOLATILE, &mut vec![event("quiet", "1")], now());
    let payload = "x".repeat(1 << 20);
    for _ in 0..36 {
        hub.publish(VOLATILE, &mut vec![event("a", &payload)], now());
    }
    assert!(matches!(seat.channel().read_from::<Plain>(at), Read::Lagged));
    assert!(matches!(quiet.channel().read_from::<Plain>(at_quiet), Read::Lagged));
    let state = hub.state();
    assert!(state.logged <= LOGS);
    assert!(state.source(VOLATILE).unwrap().window.bytes() <= 1000);
}

#[test]
fn what_is_read_before_the_tail_is_not_live() {
    let hub = hub(WIDE);
    let (seat, at) = join(&hub, &[">"]);
    let at_position = |n: u64| {
        let Input::Event(e) = event("a", "1") else { panic!() };
        Input::Event(Event { position: Some(Position::unverified(n)), ..e })
    };
    let before = hub.publish(LOG, &mut vec![at_position(1), at_position(2)], now());
    assert!(matches!(seat.channel().read_from::<Plain>(at), Read::AtEnd));
    assert!(Cursor::from_id(&before).unwrap().durable.is_empty());
    let after = hub.publish(LOG, &mut vec![Input::Tail(Some(Position::unverified(2))), at_position(3)], now());
    assert_eq!(text(seat.channel().read_from::<Plain>(at)).0.matches("data: 1").count(), 1);
    assert_eq!(Cursor::from_id(&after).unwrap().durable, [(Tag::of("log"), Point::At(Position::unverified(3)))]);
}

#[test]
fn a_listener_is_notified_once_until_it_looks() {
    let hub = hub(WIDE);
    let woken = Arc::new(AtomicUsize::new(0));
    let wakes = woken.clone();
    let listener = hub.listen(move || _ = wakes.fetch_add(1, Ordering::Relaxed)).unwrap();
    let mut ready = Vec::new();
    let (seat, _) = join(&hub, &["a"]);
    let (other, _) = join(&hub, &["b"]);
    hub.publish(VOLATILE, &mut vec![event("a", "1")], now());
    assert!(!listener.has_news());
    seat.channel().set_member(&listener, true);
    for _ in 0..3 {
        hub.publish(VOLATILE, &mut vec![event("a", "1"), event("a", "2")], now());
    }
    assert!(!listener.turn(&mut ready));
    assert_eq!((&*ready, woken.load(Ordering::Relaxed)), (&[seat.channel().key()][..], 1));
    seat.channel().looked(&listener);
    other.channel().set_member(&listener, true);
    hub.publish(VOLATILE, &mut vec![event("a", "1"), event("b", "1")], now());
    assert!(!listener.turn(&mut ready));
    assert_eq!((ready.len(), woken.load(Ordering::Relaxed)), (2, 2), "woken once for both");
}

#[test]
fn a_hub_has_at_most_64_listeners() {
    let hub = hub(WIDE);
    let listeners: Vec<_> = (0..65).map_while(|_| hub.listen(|| ())).collect();
    assert_eq!(listeners.len(), 64);
}

/// A heartbeat trims the logs too. The listener that has just ended its round then finds nothing crowded any more.
#[test]
fn room_that_a_heartbeat_makes_is_announced() {
    let hub = hub(WIDE);
    let listener = hub.listen(|| ()).unwrap();
    let (seat, _) = join(&hub, &["a"]);
    seat.channel().set_member(&listener, true);
    let payload = "x".repeat(1 << 20);
    while !hub.crowded() {
        hub.publish(VOLATILE, &mut vec![event("a", &payload)], now());
    }
    let waiting = hub.room().notified();
    let mut ready = Vec::new();
    assert!(!listener.turn(&mut ready), "the round only begins");
    let room_wanted = listener.turn(&mut ready);
    hub.beat(0, 1, now());
    assert!(room_wanted && !hub.crowded());
    assert!(futures_util::FutureExt::now_or_never(waiting).is_some(), "the source that waited goes on");
}

#[test]
fn windows_drop_what_is_too_old() {
    let hub = hub(Limits { age: Duration::from_secs(10), ..WIDE });
    hub.publish(VOLATILE, &mut vec![event("a", "1")], now());
    assert_eq!(hub.state().sources[VOLATILE.slot()].window.len(), 1);
    hub.beat(0, 1, Timestamp::from_micros(now().as_micros() + 11_000_000));
    assert_eq!(hub.state().sources[VOLATILE.slot()].window.len(), 0);
    assert_eq!(hub.state().sources[VOLATILE.slot()].window.floor(), 1);
}

#[test]
fn windows_keep_what_was_old_when_it_came() {
    let hub = hub(Limits { age: Duration::from_secs(10), ..WIDE });
    let Input::Event(mut waited) = event("a", "1") else { unreachable!() };
    // In a queue, say, that the broker has acknowledged to its publisher long ago.
    waited.time = now().before(Duration::from_secs(3600));
    hub.publish(VOLATILE, &mut vec![Input::Event(waited)], now());
    hub.beat(0, 1, Timestamp::from_micros(now().as_micros() + 9_000_000));
    assert_eq!(hub.state().sources[VOLATILE.slot()].window.len(), 1);
    hub.beat(0, 1, Timestamp::from_micros(now().as_micros() + 11_000_000));
    assert_eq!(hub.state().sources[VOLATILE.slot()].window.len(), 0);
}

#[test]
fn a_socket_may_stop_anywhere_in_a_piece() {
    let hub = hub(WIDE);
    let (seat, at) = join(&hub, &["a"]);
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(hub.publish(VOLATILE, &mut vec![event("a", &n.to_string())], now()));
    }
    // The heartbeat has no id: the cursor has not moved since.
    hub.beat(0, 1, now());
    let Read::Piece(piece) = seat.channel().read_from::<Chunked>(at) else { panic!() };
    let (mut ends, mut end) = (Vec::new(), 0);
    for n in 0..6 {
        let Read::Piece(one) = seat.channel().read_from::<Chunked>(at + 5 - n) else { panic!() };
        ends.push(piece.bytes.len() - one.bytes.len());
    }
    ends.reverse();
    ends.push(piece.bytes.len());
    for taken in 0..piece.bytes.len() {
        let entries = ends[1..].iter().position(|end| taken <= *end).unwrap() + 1;
        let stop = piece.stop(taken);
        assert_eq!((stop.entries, stop.rest), (entries as u64, taken..ends[entries]), "{taken}");
        assert_eq!(&piece.bytes[stop.id.unwrap()], ids[entries.min(5) - 1].as_bytes());
        end = taken;
    }
    assert_eq!(end + 1, piece.bytes.len());
    assert_eq!(piece.last_id(), Some(ids[4].as_bytes()));
}

#[test]
fn a_position_whose_message_a_route_dropped_is_compared_too() {
    let position = |seq, message: &str| Position { seq, check: Some(crate::cursor::Check::of(&[message.as_bytes()])) };
    let at = |seq| {
        let Input::Event(event) = event("a", "1") else { panic!() };
        Input::Event(Event { position: Some(position(seq, "event")), ..event })
    };
    let limits = Limits { bytes: 2000, ..WIDE };
    let hub = hub(limits);
    let skip = |seq| Input::Skip(position(seq, "dropped"));
    hub.publish(LOG, &mut vec![Input::Tail(Some(position(9, "event"))), at(10), skip(11), skip(12), at(14)], now());
    let find = |seq, message| hub.state().source(LOG).unwrap().window().find(position(seq, message));
    assert_eq!([find(11, "dropped"), find(12, "dropped")], [Place::After(2); 2]);
    assert_eq!([find(11, "other"), find(12, "other")], [Place::Other; 2]);
    // Where nothing was seen, the broker has to say which log it is; without a check it cannot either.
    assert_eq!(find(13, "event"), Place::Outside);
    assert_eq!(hub.state().source(LOG).unwrap().window().find(Position::unverified(13)), Place::Unverified(2));
    // What is remembered is bounded, and goes with the events before it.
    hub.publish(LOG, &mut (15..100).map(skip).collect(), now());
    assert_eq!(find(12, "other"), Place::Outside);
    assert_eq!([find(99, "dropped"), find(99, "other")], [Place::After(5), Place::Other]);
    assert_eq!(hub.state().source(LOG).unwrap().window().skipped.len(), 2000 / 16 / 16);
    hub.publish(LOG, &mut (100..130).map(at).collect(), now());
    assert!(hub.state().source(LOG).unwrap().window().skipped.is_empty());
}

#[test]
fn a_position_of_another_log_is_not_taken_for_where_a_gap_ends() {
    let position = |seq, message: &str| Position { seq, check: Some(crate::cursor::Check::of(&[message.as_bytes()])) };
    let hub = hub(WIDE);
    // The log was made anew, and its first 122 messages are gone already.
    let reset = Gap { reason: GapReason::Reset, position: Some(Position::unverified(122)), ..Gap::UNKNOWN };
    hub.publish(LOG, &mut vec![Input::Tail(Some(position(200, "old"))), Input::Gap(reset)], now());
    let find = |position| hub.state().source(LOG).unwrap().window().find(position);
    assert_eq!(find(position(122, "old")), Place::Outside);
    assert!(matches!(find(Position::unverified(122)), Place::After(_)));
}

#[test]
fn what_a_publishing_that_panicked_left_is_not_taken_for_another_source() {
    let hub = hub(WIDE);
    let other = hub.add(spec("other", false), now(), |_| {});
    let (seat, offset) = join(&hub, &[">"]);
    hub.publisher.lock().prepare(other, &event("a.lost", "1"), now());
    hub.publish(VOLATILE, &mut vec![event("a.b", "2")], now());
    let (text, _) = text(seat.channel().read_from::<Plain>(offset));
    assert!(text.contains("data: 2\n") && !text.contains("data: 1\n"), "{text}");
}

#[test]
fn a_message_that_was_too_large_is_no_event() {
    let hub = hub(WIDE);
    let (seat, offset) = join(&hub, &[">"]);
    let gap = Gap { reason: GapReason::Oversized, ..Gap::UNKNOWN };
    hub.publish(VOLATILE, &mut vec![event("a.b", "1"), Input::Oversized("a.c".parse().unwrap(), gap)], now());
    let Read::Piece(piece) = seat.channel().read_from::<Plain>(offset) else { panic!("nothing was published") };
    assert_eq!((piece.to - piece.from, piece.events), (2, 1));
}

#[test]
fn a_window_knows_the_newest_event_of_each_subject_and_counts_what_that_costs() {
    let hub = hub(Limits { bytes: 20_000, age: Duration::from_secs(10) });
    for n in 0..500_u64 {
        let subjects = [n % 7, n * n % 31].map(|subject| event(&format!("a.{subject}"), "text"));
        hub.publish(VOLATILE, &mut subjects.into(), now());
        let state = hub.state();
        let window = state.source(VOLATILE).unwrap().window();
        for subject in (0..31).map(|subject| format!("a.{subject}")) {
            let newest = window.after(0).filter(|entry| entry.encoded.subject() == Some(&subject)).last();
            assert_eq!(window.newest(&subject), newest.map(|entry| entry.seq));
        }
    }
    assert!(hub.state().source(VOLATILE).unwrap().window().floor() > 100);
    hub.beat(0, 1, now().after(Duration::from_secs(11)));
    let state = hub.state();
    let window = state.source(VOLATILE).unwrap().window();
    assert_eq!((window.len(), window.bytes(), window.newest("a.1")), (0, 0, None));
}
