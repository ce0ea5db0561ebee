//! What a client that catches up does while it holds the hub's lock, for which publishing waits.

use std::sync::atomic::AtomicUsize;

use super::*;

/// Steps until a client with so many patterns, which want nothing of 1,024 events in a window, is live.
fn steps(patterns: usize) -> usize {
    let (hub, streams, now) = bare();
    let core = streams.add(source("core", volatile(">")), now);
    hub.publish(core, &mut (0..1024).map(|_| named("other", None)).collect(), now);
    let patterns = (0..patterns).map(|n| format!("a.{n}").parse().unwrap()).collect();
    let filter = Arc::new(Filter::new(patterns, Form::Routed));
    let mut stream = streams.open(Request { filter, begin: Begin::At(Point::Earliest), ..request(">") }, now);
    (1..).find(|_| matches!(stream.step(now), Step::Live)).unwrap()
}

#[test]
fn a_client_looks_at_the_fewer_entries_in_a_step_the_more_patterns_it_has() {
    // Two more find that there is nothing left, and tell so.
    assert_eq!([1, 16, 64, 700].map(steps), [3, 3, 6, 46]);
}

#[test]
fn what_concerns_a_client_is_not_asked_under_the_lock() {
    let (hub, streams, now) = bare();
    let asked = Arc::<AtomicUsize>::default();
    let add = |name: &str, log: bool| {
        let (weak, asked) = (Arc::downgrade(&hub), asked.clone());
        let concerns = Concerns(Arc::new(move |_| {
            assert!(weak.upgrade().is_some_and(|hub| !hub.is_looked_at()), "publishing waits");
            asked.fetch_add(1, Ordering::Relaxed);
            true
        }));
        let name: SourceName = name.parse().unwrap();
        let tag = log.then(|| Tag::of(name.as_str()));
        hub.add(SourceSpec { name, tag, part: log, concerns }, now, |_| {})
    };
    add("core", false);
    let log = add("log", true);
    hub.publish(log, &mut vec![Input::Tail(None)], now);
    // Of another process, in which the durable source had another name.
    let other = Cursor { epoch: 2, volatile: Point::At(Position::unverified(0)), durable: vec![(Tag::of("down"), Point::Earliest)] };
    for begin in [Begin::Now, Begin::At(Point::Since(0)), Begin::After(other)] {
        let mut stream = streams.open(Request { begin, ..request(">") }, now);
        sent(&mut stream, now);
    }
    let [down, part] = [Begin::Now, Begin::At(Point::Earliest)].map(|begin| streams.open(Request { begin, ..request(">") }, now));
    let before = asked.load(Ordering::Relaxed);
    add("late", false);
    add("down", true);
    let (mut down, mut part) = (down, part);
    sent(&mut down, now);
    part.read(&mut Vec::new());
    assert_eq!(asked.load(Ordering::Relaxed) - before, 4, "two sources for two clients");
}

#[test]
fn whom_a_gap_concerns_is_asked_once_of_each_channel_and_not_under_the_lock() {
    let (hub, streams, now) = bare();
    let (all, locked) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let spec = || {
        let (weak, all, locked) = (Arc::downgrade(&hub), all.clone(), locked.clone());
        let concerns = Concerns(Arc::new(move |patterns| {
            all.fetch_add(1, Ordering::Relaxed);
            locked.fetch_add(usize::from(weak.upgrade().is_some_and(|hub| hub.is_looked_at())), Ordering::Relaxed);
            patterns[0].as_str() != "a.1"
        }));
        SourceSpec { name: "core".parse().unwrap(), tag: None, part: false, concerns }
    };
    let core = hub.add(spec(), now, |_| {});
    let open = |n: usize| {
        let mut stream = streams.open(request(&format!("a.{n}")), now);
        sent(&mut stream, now);
        stream.into_live().unwrap()
    };
    let asked = || (all.swap(0, Ordering::Relaxed), locked.swap(0, Ordering::Relaxed));
    let lose = |of| {
        asked();
        let gap = Gap { reason: GapReason::Reconnect, from: None, to: None, position: None };
        hub.publish(of, &mut vec![Input::Gap(gap)], now);
        asked()
    };
    let mut live: Vec<_> = (0..100).map(open).collect();
    assert_eq!(lose(core), (100, 0));
    assert_eq!(lose(core), (0, 0));
    // One in the place of another, and one more.
    drop(live.pop());
    live.extend([open(100), open(101)]);
    assert_eq!(lose(core), (2, 0));
    // Whose logs may hold events of a source that is routed otherwise is the same question.
    asked();
    let other = hub.replace(core, spec(), true, now, |_| {}).0;
    assert_eq!(asked(), (0, 0));
    assert_eq!(lose(other), (101, 0));
    let gaps = |(live, _): &(Live, Arc<str>)| hub.place_in_channel(live.channel().filter(), 0).1;
    assert_eq!([0, 1, 99, 100].map(|n| gaps(&live[n])), [4, 0, 2, 2]);
}
