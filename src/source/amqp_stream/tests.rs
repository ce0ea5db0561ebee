//! Where a reader begins; what needs a broker is in `tests/amqp`.

use super::log::{Log, Plan, beyond, plan};
use super::*;
use crate::cursor::Check;

fn message(seq: u64) -> Position {
    Position { seq, check: Some(Check::of(&[&seq.to_be_bytes()])) }
}

fn log(first: u64, at: Option<u64>, last: u64) -> Log {
    Log { first: message(first), unread: None, at: at.map(message), last: message(last), mean: 1000, size: 1000, noted: false }
}

fn of(start: Start, log: &Log) -> Plan {
    plan(start, Some(log))
}

#[test]
fn a_place_that_is_there_is_read_again_and_left_out() {
    let plan = of(Start::After(message(7)), &log(3, Some(7), 9));
    assert_eq!((plan.gap, plan.from, plan.expect, plan.after), (None, 7, Some(message(7)), Some(7)));
    assert_eq!(plan.tail, Some(message(9)));
    // Where no message was seen, what follows is at or behind it.
    let plan = of(Start::After(Position::unverified(7)), &log(3, Some(8), 9));
    assert_eq!((plan.gap, plan.from, plan.after), (None, 8, Some(7)));
}

#[test]
fn a_message_that_is_not_what_it_was_is_a_reset() {
    let other = Position { seq: 7, check: Some(Check::of(&[b"other"])) };
    for (at, log) in [(other, log(3, Some(7), 9)), (message(6), log(3, Some(7), 9)), (message(20), log(3, None, 9))] {
        let plan = of(Start::After(at), &log);
        let gap = plan.gap.unwrap();
        assert_eq!((gap.reason, gap.from, gap.to), (GapReason::Reset, Some(at.seq), Some(3)));
        assert_eq!((gap.position, plan.from, plan.after), (Some(Position::unverified(2)), 3, None));
    }
    assert!(beyond(Start::After(message(20)), Some(&log(3, None, 9))));
    assert!(beyond(Start::After(message(0)), None));
    assert!(!beyond(Start::After(message(9)), Some(&log(3, Some(9), 9))) && !beyond(Start::Now, None));
    let plan = plan(Start::After(message(7)), None);
    let gap = plan.gap.unwrap();
    assert_eq!((gap.reason, gap.from, gap.to, gap.position, plan.from), (GapReason::Reset, Some(7), None, None, 0));
    // At the very beginning there is no place before the first message.
    assert_eq!(of(Start::After(message(20)), &log(0, None, 9)).gap.unwrap().position, None);
}

#[test]
fn what_was_dropped_at_the_start_is_a_gap_unless_nothing_was() {
    let plan = of(Start::After(message(2)), &log(5, Some(5), 9));
    let gap = plan.gap.unwrap();
    assert_eq!((gap.reason, gap.from, gap.to, gap.position), (GapReason::Retention, Some(2), Some(5), Some(Position::unverified(4))));
    // One offset alone is a note where segments are known to begin with them, else it may be a message.
    for (last_seen, noted, told) in [(4, false, false), (4, true, false), (3, true, false), (3, false, true), (2, true, true)] {
        for place in [message(last_seen), Position::unverified(last_seen)] {
            let plan = of(Start::After(place), &Log { noted, ..log(5, Some(5), 9) });
            let reason = plan.gap.map(|gap| gap.reason);
            assert_eq!((reason, plan.from), (told.then_some(GapReason::Retention), 5), "{last_seen} {noted}");
        }
    }
}

#[test]
fn a_window_is_filled_by_age_and_about_by_bytes() {
    let recent = |bytes| Start::Recent { age: Duration::from_secs(600), bytes };
    assert_eq!(of(recent(1 << 20), &log(0, Some(50), 100)).from, 50);
    assert_eq!(of(recent(10_000), &log(0, Some(50), 100)).from, 90);
    let nothing = of(recent(10_000), &log(0, None, 100));
    assert_eq!((nothing.after, nothing.tail), (Some(100), Some(message(100))));
}

#[test]
fn a_beginning_that_cannot_be_read_is_left_to_the_reader() {
    let log = Log { unread: Some(0), ..log(50, None, 90) };
    let recent = Start::Recent { age: Duration::from_secs(600), bytes: 1 << 20 };
    for (start, log) in [(Start::Earliest, log), (recent, Log { at: Some(log.first), ..log })] {
        let plan = of(start, &log);
        assert_eq!((plan.gap, plan.from, plan.expect, plan.after, plan.tail), (None, 0, None, None, Some(message(90))));
    }
    // Behind the place of a client that knows of some of it already.
    for place in [Position::unverified(20), Position::unverified(49), message(3)] {
        let plan = of(Start::After(place), &log);
        assert_eq!((plan.gap, plan.from, plan.expect, plan.after), (None, place.seq + 1, None, Some(place.seq)));
    }
    let reset = of(Start::After(message(99)), &log);
    assert_eq!(reset.gap.map(|gap| (gap.to, gap.position)), Some((Some(0), None)));
    assert_eq!(reset.from, 0);
}
