//! Streams over a hub, one decision at a time. What becomes of them together is the simulation's affair (`src/sim.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::*;
use crate::cursor::{Check, Position, Tag};
use crate::event::{Gap, GapReason, Message, SourceKey};
use crate::frame::Form;
use crate::hub::{Input, Limits};
use crate::source::http::{self, Http};
use crate::source::parts::{Counted, Parts};
use crate::source::{Adapter, Connection, Item, SourceError, Start};
use crate::subject::Pattern;

mod large;
mod locked;
mod newest;
mod unconcerned;
mod unfound;

/// Streams of a hub with one source, `demo`, that has no log.
pub(crate) fn demo(window: usize) -> Arc<Streams> {
    let hub = Hub::new(Limits { bytes: window, age: Duration::from_secs(60) }, 1);
    let streams = Streams::new(hub, histories(1), settings());
    streams.add(source("demo", volatile(">")), Timestamp::now());
    streams
}

/// The first source of these streams.
pub(crate) fn first(streams: &Streams) -> SourceKey {
    streams.hub().state().sources().next().unwrap().info().key
}

/// Adds a source with a log that is not live yet.
pub(crate) fn add_log(streams: &Streams, name: &str) -> SourceKey {
    streams.add(source(name, FakeLog::keeps_last()), Timestamp::now())
}

/// Publishes an event whose payload is its subject.
pub(crate) fn publish(streams: &Streams, source: SourceKey, subject: &str) {
    streams.hub().publish(source, &mut vec![named(subject, None)], Timestamp::now());
}

/// A source without routes.
pub(crate) fn source(name: &str, adapter: Arc<dyn Adapter>) -> Source {
    let name = name.parse().unwrap();
    let router = Arc::new(Router::new(&[], &name, &adapter.reach(), Arc::default()));
    let log = history::Log { name: name.clone(), adapter, max_payload: 1000, up: Arc::new(|| true), resets: Arc::new(|| 0) };
    Source { name, part: None, router, log }
}

fn volatile(subjects: &str) -> Arc<dyn Adapter> {
    Arc::new(Http::new(http::Config { subjects: vec![subjects.parse().unwrap()] }))
}

fn settings() -> Settings {
    let (heartbeat, retry) = (Duration::from_secs(15), Duration::from_secs(3));
    Settings { heartbeat, retry, scan: Settings::SCAN, piece: Settings::PIECE, share: Settings::SHARE }
}

fn histories(readers: usize) -> Arc<Histories> {
    Histories::new(history::Settings { readers, rate: 1 << 30, cache: 32 << 20 })
}

/// A client that wants this pattern from now on.
pub(crate) fn request(pattern: &str) -> Request {
    let filter = Arc::new(Filter::new(vec![pattern.parse().unwrap()], Form::Routed));
    Request { filter, named: true, begin: Begin::Now, expires: None, owner: None, visitor: Visitor::unknown(), permit: Box::new(()) }
}

fn event(m: Message) -> Input {
    Input::Event(crate::event::Event::of(m))
}

/// A log that holds subjects of this pattern; is never read here.
struct FakeLog {
    keeps_last: bool,
    subjects: &'static str,
    /// The logs of its source, if that has several.
    parts: Option<Arc<Parts>>,
}

impl FakeLog {
    /// Says the newest message of each subject.
    fn keeps_last() -> Arc<dyn Adapter> {
        Self::of(">")
    }

    /// Cannot say the newest message of each subject.
    fn window_only() -> Arc<dyn Adapter> {
        Arc::new(Self { keeps_last: false, subjects: ">", parts: None })
    }

    /// As [`Self::keeps_last`], of these subjects only.
    fn of(subjects: &'static str) -> Arc<dyn Adapter> {
        Arc::new(Self { keeps_last: true, subjects, parts: None })
    }

    /// As [`Self::keeps_last`], the first of several.
    fn first_of(parts: Parts) -> Arc<dyn Adapter> {
        Arc::new(Self { keeps_last: true, subjects: ">", parts: Some(Arc::new(parts)) })
    }
}

impl Adapter for FakeLog {
    fn kind(&self) -> &'static str {
        "fake"
    }
    fn durable(&self) -> bool {
        true
    }
    fn keeps_last(&self) -> bool {
        self.keeps_last
    }
    fn reach(&self) -> Vec<Pattern> {
        vec![self.subjects.parse().unwrap()]
    }
    fn connect(&self, _: Start) -> BoxFuture<'_, Result<Box<dyn Connection>, SourceError>> {
        Box::pin(std::future::pending())
    }
    fn parts(&self) -> Option<&Arc<Parts>> {
        self.parts.as_ref()
    }
}

#[test]
fn a_window_does_not_reach_back_to_a_time_because_a_publisher_says_so() {
    let (hub, streams, _) = bare();
    let now = Timestamp::from_micros(1_000_000_000);
    let log = streams.add(source("log", FakeLog::window_only()), now);
    let old = |seq, seconds: u64| {
        let time = Timestamp::from_micros(seconds * 1_000_000);
        event(Message::new("a".parse().unwrap(), Bytes::new(), time, Some(Position::unverified(seq))))
    };
    // What was there before the source was live has its publisher's time.
    hub.publish(log, &mut vec![old(8, 100), old(9, 990), Input::Tail(Some(Position::unverified(9)))], now);
    let reads_history = |seconds: u64| {
        let begin = Begin::At(Point::Since(seconds * 1000));
        let mut stream = streams.open(Request { begin, ..request(">") }, now);
        sent(&mut stream, now);
        matches!(stream.step(now), Step::Wait { history: Some(_), .. })
    };
    assert!(reads_history(950));
    hub.publish(log, &mut vec![old(10, 995)], now);
    assert!(reads_history(950) && !reads_history(996));
}

#[test]
fn a_loss_among_the_newest_of_each_subject_takes_none_of_the_others_away() {
    let (now, place) = (Timestamp::from_micros(1_000_000), |seq| Some(Position::unverified(seq)));
    let hub = Hub::new(Limits { bytes: 1 << 20, age: Duration::from_secs(60) }, 1);
    let streams = Streams::new(hub.clone(), histories(1), settings());
    let log = streams.add(source("log", FakeLog::keeps_last()), now);
    hub.publish(log, &mut vec![Input::Tail(place(9))], now);
    let mut stream = streams.open(Request { begin: Begin::At(Point::Last), ..request(">") }, now);
    assert!(matches!(stream.step(now), Step::Send(_)));
    assert!(matches!(stream.step(now), Step::Wait { history: Some(history::Request { from: Point::Last, .. }), .. }));
    let message = |subject: &str, seq| {
        let payload = Bytes::copy_from_slice(subject.as_bytes());
        Item::Message(Message::new(subject.parse().unwrap(), payload, now, place(seq)))
    };
    let gap = Gap { reason: GapReason::Oversized, from: Some(6), to: Some(8), position: place(7) };
    stream.read(&mut vec![message("a", 5), Item::Gap(gap), message("b", 8), Item::Tail(place(9))]);
    let Step::Send(parts) = stream.step(now) else { panic!("nothing is sent") };
    let text = String::from_utf8(parts.concat()).unwrap();
    let order = ["\"data\":\"a\"", "\"oversized\"", "\"data\":\"b\""].map(|part| text.find(part));
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{text}");
    assert!(matches!(stream.step(now), Step::Live));
    // What came of the broker's log counts too.
    assert_eq!(streams.list(&Wanted::default(), None, 1).0[0].events, 2);
}

#[test]
fn a_loss_of_one_volatile_source_begins_where_the_client_was_though_others_have_events() {
    let now = Timestamp::from_micros(1_000_000);
    let hub = Hub::new(Limits { bytes: 1000, age: Duration::from_secs(60) }, 1);
    let streams = Streams::new(hub.clone(), histories(1), settings());
    let [jobs, core] = ["jobs", "core"].map(|name| streams.add(source(name, volatile(">")), now));
    let message = |subject: &str| {
        let payload = Bytes::copy_from_slice(subject.as_bytes());
        event(Message::new(subject.parse().unwrap(), payload, now, None))
    };
    hub.publish(core, &mut vec![message("core.seen"), message("core.lost")], now);
    hub.publish(jobs, &mut vec![message("jobs.kept")], now);
    (0..20).for_each(|_| drop(hub.publish(core, &mut vec![message("core.later")], now)));
    let floor = hub.state().source(core).unwrap().window().floor();
    assert!(floor > 3);
    let cursor = Cursor { epoch: 1, volatile: Point::At(Position::unverified(1)), durable: Vec::new() };
    let mut stream = streams.open(Request { begin: Begin::After(cursor), ..request(">") }, now);
    let mut text = String::new();
    while let Step::Send(parts) = stream.step(now) {
        text.push_str(std::str::from_utf8(&parts.concat()).unwrap());
    }
    let blocks: Vec<_> = text.split("\n\n").collect();
    let gap = blocks.iter().position(|block| block.contains("\"retention\"")).unwrap();
    let bounds = format!("\"source\":\"core\",\"reason\":\"retention\",\"from\":\"1\",\"to\":\"{}\"", floor + 1);
    assert!(blocks[gap].contains(&bounds), "{text}");
    // It comes first, and its id does not pass what is still to come.
    assert!(blocks[gap + 1].contains("jobs.kept"), "{text}");
    let id = blocks[gap].lines().find_map(|line| line.strip_prefix("id: ")).unwrap();
    assert_eq!(Cursor::from_id(id).unwrap().volatile, Point::At(Position::unverified(2)));
    assert_eq!(text.matches("brokercast.gap").count(), 1);
    assert_eq!(text.matches("\"data\":\"core.later\"").count() as u64, 23 - floor);
}

#[test]
fn what_is_read_of_a_new_log_is_not_a_reset_where_the_window_still_holds_the_old_one() {
    let (hub, streams, now) = bare();
    let log = streams.add(source("log", FakeLog::keeps_last()), now);
    let message = |seq, log: &str| {
        let position = Some(Position { seq, check: Some(Check::of(&[log.as_bytes()])) });
        Message::new("a".parse().unwrap(), Bytes::copy_from_slice(log.as_bytes()), now, position)
    };
    hub.publish(log, &mut vec![Input::Tail(None), event(message(8, "old")), event(message(9, "old"))], now);
    let at = |seq, log| {
        Begin::After(Cursor {
            epoch: 1,
            volatile: Point::At(Position::unverified(0)),
            durable: vec![(crate::cursor::Tag::of("log"), Point::At(message(seq, log).position.unwrap()))],
        })
    };
    let mut stream = streams.open(Request { begin: at(5, "new"), ..request(">") }, now);
    assert!(matches!(stream.step(now), Step::Send(_)));
    assert!(matches!(stream.step(now), Step::Wait { history: Some(_), .. }));
    stream.read(&mut vec![Item::Message(message(8, "new")), Item::Message(message(9, "new"))]);
    let Step::Send(parts) = stream.step(now) else { panic!("nothing is sent") };
    assert_eq!(String::from_utf8_lossy(&parts.concat()).matches("\"data\":\"new\"").count(), 2);
    let Step::Wait { history: Some(reading), .. } = stream.step(now) else { panic!("it goes on otherwise") };
    assert!(matches!(reading.from, Point::At(Position { seq: 9, .. })));
    // Who comes with such an id is not known to be right.
    let mut stream = streams.open(Request { begin: at(8, "new"), ..request(">") }, now);
    let Step::Send(parts) = stream.step(now) else { panic!("nothing is sent") };
    assert!(String::from_utf8_lossy(&parts.concat()).contains("\"reset\""));
}

#[test]
fn an_id_of_another_log_than_the_windows_is_read_from_the_broker_while_the_source_is_down() {
    let (hub, streams, now) = bare();
    let up = Arc::new(AtomicBool::new(false));
    let of = source("log", FakeLog::keeps_last());
    let is_up = up.clone();
    let log = streams.add(Source { log: history::Log { up: Arc::new(move || is_up.load(Ordering::SeqCst)), ..of.log }, ..of }, now);
    let at = |seq, log: &str| Position { seq, check: Some(Check::of(&[log.as_bytes()])) };
    let message = |seq, log: &str| Message::new("a".parse().unwrap(), Bytes::copy_from_slice(log.as_bytes()), now, Some(at(seq, log)));
    hub.publish(log, &mut vec![Input::Tail(None), event(message(3, "old")), event(message(9, "old"))], now);
    let begin = || behind(&hub, &[("log", Point::At(at(3, "new")))]);
    let mut stream = streams.open(Request { begin: begin(), ..request(">") }, now);
    assert!(!sent(&mut stream, now).contains("data:"));
    assert!(matches!(stream.step(now), Step::Wait { history: Some(_), .. }));
    stream.read(&mut vec![Item::Message(message(4, "new")), Item::Tail(Some(at(4, "new")))]);
    let text = sent(&mut stream, now);
    assert!(text.matches("\"data\":\"new\"").count() == 1 && !text.contains("reset"), "{text}");
    // A source that is up knows its log.
    up.store(true, Ordering::SeqCst);
    let mut stream = streams.open(Request { begin: begin(), ..request(">") }, now);
    assert!(sent(&mut stream, now).contains("reset"));
}

/// Everything that a stream sends until it waits or is live.
fn sent(stream: &mut Stream, now: Timestamp) -> String {
    let mut all = String::new();
    while let Step::Send(parts) = stream.step(now) {
        all.push_str(std::str::from_utf8(&parts.concat()).unwrap());
    }
    all
}

fn named(subject: &str, seq: Option<u64>) -> Input {
    let payload = Bytes::copy_from_slice(subject.as_bytes());
    let position = seq.map(Position::unverified);
    event(Message::new(subject.parse().unwrap(), payload, Timestamp::from_micros(1_000_000), position))
}

fn bare() -> (Arc<Hub>, Arc<Streams>, Timestamp) {
    let hub = Hub::new(Limits { bytes: 1 << 20, age: Duration::from_secs(60) }, 1);
    (hub.clone(), Streams::new(hub, histories(1), settings()), Timestamp::from_micros(1_000_000))
}

/// What a live stream is still to be sent, and its id after that.
fn rest(live: &Live) -> (String, String) {
    let entries = live.channel().entries_from(live.offset(), usize::MAX).unwrap();
    let text = entries.iter().map(|entry| String::from_utf8_lossy(&entry.bytes()[entry.text(Form::Routed)]).into_owned());
    let id = live.channel().id_before(live.offset() + entries.len() as u64).unwrap_or_default();
    (text.collect(), String::from_utf8(id.to_vec()).unwrap())
}

#[test]
fn live_streams_get_an_added_source_and_keep_what_they_had_of_the_others() {
    let (hub, streams, now) = bare();
    let log = streams.add(source("log", FakeLog::keeps_last()), now);
    hub.publish(log, &mut vec![Input::Tail(Some(Position::unverified(9)))], now);
    let mut stream = streams.open(request(">"), now);
    sent(&mut stream, now);
    let (live, _) = stream.into_live().unwrap();
    let core = streams.add(source("core", volatile(">")), now);
    let other = streams.add(source("other", FakeLog::keeps_last()), now);
    hub.publish(core, &mut vec![named("core.1", None)], now);
    hub.publish(other, &mut vec![named("other.1", Some(1)), Input::Tail(None), named("other.2", Some(2))], now);
    let (text, id) = rest(&live);
    assert!(text.contains("core.1") && text.contains("other.2") && !text.contains("other.1") && !text.contains("gap"), "{text}");
    let tags = |id: &str| Cursor::from_id(id).unwrap().durable;
    assert_eq!(tags(&id).len(), 2);
    // Without it, the other's point is what it was, and an id that still has its point is taken as it is.
    streams.remove(other);
    assert_eq!(tags(hub.state().id()), [(Tag::of("log"), Point::At(Position::unverified(9)))]);
    hub.publish(core, &mut vec![named("core.2", None)], now);
    let mut stream = streams.open(Request { begin: Begin::After(Cursor::from_id(&id).unwrap()), ..request(">") }, now);
    let text = sent(&mut stream, now);
    assert!(text.contains("core.2") && !text.contains("core.1") && !text.contains("gap"), "{text}");
    assert!(stream.into_live().is_ok());
}

#[test]
fn what_comes_for_a_removed_source_is_dropped_also_where_its_slot_was_given_away() {
    let (hub, streams, now) = bare();
    let old = streams.add(source("a", volatile(">")), now);
    streams.remove(old);
    let new = streams.add(source("b", volatile(">")), now);
    hub.publish(old, &mut vec![named("late", None)], now);
    assert!(hub.state().source(old).is_none());
    assert!(hub.state().source(new).unwrap().window().is_empty());
}

#[test]
fn a_changed_volatile_source_is_a_gap_for_whom_lost_its_window_and_none_for_live_streams() {
    let (hub, streams, now) = bare();
    let old = streams.add(source("core", volatile(">")), now);
    let stay = streams.add(source("stay", volatile(">")), now);
    hub.publish(old, &mut vec![named("core.1", None)], now);
    let before = hub.state().id().to_string();
    hub.publish(old, &mut vec![named("core.2", None)], now);
    hub.publish(stay, &mut vec![named("stay.1", None)], now);
    let mut stream = streams.open(request(">"), now);
    sent(&mut stream, now);
    let (live, _) = stream.into_live().unwrap();
    let (new, point) = streams.replace(old, source("core", volatile(">")), false, now);
    assert_eq!(point, None);
    hub.publish(new, &mut vec![named("core.3", None)], now);
    let (text, after) = rest(&live);
    assert!(text.contains("core.3") && !text.contains("gap"), "{text}");
    let resumed = |id: &str| {
        let begin = Begin::After(Cursor::from_id(id).unwrap());
        let mut stream = streams.open(Request { begin, ..request(">") }, now);
        let text = sent(&mut stream, now);
        assert!(stream.into_live().is_ok());
        text
    };
    let text = resumed(&before);
    assert!(text.matches("\"restart\"").count() == 1 && text.contains("stay.1") && text.contains("core.3"), "{text}");
    assert!(!text.contains("core.2"), "{text}");
    assert!(!resumed(&after).contains("gap"));
    // The same where it was removed and came back later.
    streams.remove(new);
    let id = hub.state().id().to_string();
    let _again = streams.add(source("core", volatile(">")), now);
    assert!(resumed(&after).contains("\"restart\"") && !resumed(&id).contains("gap"));
}

#[test]
fn a_changed_durable_source_goes_on_where_it_stood_and_its_readers_behind_it_too() {
    let (hub, streams, now) = bare();
    let at = |seq| Some(Position::unverified(seq));
    let old = streams.add(source("log", FakeLog::keeps_last()), now);
    hub.publish(old, &mut vec![Input::Tail(at(3)), named("log.4", Some(4)), named("log.5", Some(5))], now);
    let mut stream = streams.open(request(">"), now);
    sent(&mut stream, now);
    let (live, _) = stream.into_live().unwrap();
    // One whose log is being read, and one that is in the window.
    let begin = |seq| {
        let durable = vec![(Tag::of("log"), Point::At(Position::unverified(seq)))];
        Begin::After(Cursor { epoch: 1, volatile: Point::At(Position::unverified(hub.state().seq())), durable })
    };
    let mut behind = streams.open(Request { begin: begin(1), ..request(">") }, now);
    sent(&mut behind, now);
    let Step::Wait { history: Some(first), .. } = behind.step(now) else { panic!("it reads the log") };
    let (new, point) = streams.replace(old, source("log", FakeLog::keeps_last()), false, now);
    assert_eq!(point, Some(Point::At(Position::unverified(5))));
    assert!(streams.histories().reader(first, history::Asker::default()).is_none(), "the old log is read on");
    // What was read through the old routes is not sent.
    behind.read(&mut vec![Item::Message(Message::new("old".parse().unwrap(), Bytes::new(), now, at(2)))]);
    let Step::Wait { history: Some(second), .. } = behind.step(now) else { panic!("it reads the new log") };
    assert_eq!((second.source, second.from), (new, first.from));
    assert_ne!(second.number, first.number);
    hub.publish(new, &mut vec![named("log.6", Some(6)), Input::Tail(at(6))], now);
    let (text, _) = rest(&live);
    assert!(text.contains("log.6") && !text.contains("gap"), "{text}");
    let mut resumed = streams.open(Request { begin: begin(5), ..request(">") }, now);
    let text = sent(&mut resumed, now);
    assert!(text.contains("log.6") && !text.contains("gap"), "{text}");
    assert!(resumed.into_live().is_ok());
    // Of what was before, only the log knows.
    let mut resumed = streams.open(Request { begin: begin(4), ..request(">") }, now);
    sent(&mut resumed, now);
    assert!(matches!(resumed.step(now), Step::Wait { history: Some(_), .. }));
    // Removed, it keeps nobody from being live.
    streams.remove(new);
    sent(&mut resumed, now);
    assert!(resumed.into_live().is_ok());
}

#[test]
fn a_log_is_read_on_while_another_source_is_down() {
    let (hub, streams, now) = bare();
    let [log, down] = ["log", "down"].map(|name| streams.add(source(name, FakeLog::keeps_last()), now));
    let place = |seq| Position::unverified(seq);
    hub.publish(log, &mut vec![Input::Tail(Some(place(9)))], now);
    let begin = behind(&hub, &[("log", Point::At(place(1))), ("down", Point::At(place(1)))]);
    let mut stream = streams.open(Request { begin, ..request(">") }, now);
    sent(&mut stream, now);
    let Step::Wait { history: Some(first), .. } = stream.step(now) else { panic!("it reads the log") };
    assert_eq!(first.source, log);
    // The bridge itself has not come so far yet.
    stream.read(&mut vec![Item::Tail(Some(place(10)))]);
    sent(&mut stream, now);
    let Step::Wait { history: Some(second), .. } = stream.step(now) else { panic!("it reads the log") };
    assert_eq!(second, history::Request { from: Point::At(place(10)), ..first }, "another reading begins from scratch");
    hub.publish(down, &mut vec![Input::Tail(Some(place(9)))], now);
    let Step::Wait { history: Some(third), .. } = stream.step(now) else { panic!("it reads the other log") };
    assert_eq!(third.source, down);
}

#[test]
fn what_was_read_of_a_new_log_is_no_reset_either_while_another_log_is_read() {
    let (hub, streams, now) = bare();
    let [log, far] = ["log", "far"].map(|name| streams.add(source(name, FakeLog::keeps_last()), now));
    let at = |seq, log: &str| Position { seq, check: Some(Check::of(&[log.as_bytes()])) };
    hub.publish(log, &mut vec![Input::Tail(None)], now);
    let old = |seq| Message::new("a".parse().unwrap(), Bytes::new(), now, Some(at(seq, "old")));
    hub.publish(log, &mut vec![event(old(8)), event(old(9))], now);
    hub.publish(far, &mut vec![Input::Tail(Some(Position::unverified(9)))], now);
    let begin = behind(&hub, &[("log", Point::At(at(5, "new"))), ("far", Point::At(Position::unverified(1)))]);
    let mut stream = streams.open(Request { begin, ..request(">") }, now);
    sent(&mut stream, now);
    assert!(matches!(stream.step(now), Step::Wait { history: Some(request), .. } if request.source == log));
    stream.read(&mut vec![Item::Message(Message { position: Some(at(9, "new")), ..old(9) }), Item::Tail(Some(at(9, "new")))]);
    let text = sent(&mut stream, now);
    assert!(!text.contains("reset"), "{text}");
    assert!(matches!(stream.step(now), Step::Wait { history: Some(request), .. } if request.source == far));
}

#[test]
fn whoever_has_read_that_a_log_is_new_does_not_go_back_into_a_window_of_the_old_one() {
    let (hub, streams, now) = bare();
    let log = streams.add(source("log", FakeLog::keeps_last()), now);
    let at = |seq| Position { seq, check: Some(Check::of(&[b"old"])) };
    let old = |seq| event(Message::new("a".parse().unwrap(), Bytes::from("old"), now, Some(at(seq))));
    let reset = |to| Gap { reason: GapReason::Reset, from: Some(1), to: Some(to), position: Some(Position::unverified(to - 1)) };
    hub.publish(log, &mut vec![Input::Tail(Some(at(2))), old(3), old(9)], now);
    // The first message of the new log is its fifth; that is not written yet.
    let mut stream = streams.open(Request { begin: behind(&hub, &[("log", Point::At(at(1)))]), ..request(">") }, now);
    sent(&mut stream, now);
    assert!(matches!(stream.step(now), Step::Wait { history: Some(_), .. }));
    stream.read(&mut vec![Item::Gap(reset(5)), Item::Tail(Some(Position::unverified(4)))]);
    let text = sent(&mut stream, now);
    assert!(text.contains("\"reset\"") && !text.contains("data: old"), "{text}");
    assert!(matches!(stream.step(now), Step::Wait { history: Some(_), .. }));
    // The bridge's own reader finds out.
    hub.publish(log, &mut vec![Input::Gap(reset(5))], now);
    let text = sent(&mut stream, now);
    assert!(!text.contains("data:"), "{text}");
    assert!(stream.into_live().is_ok());
}

#[test]
fn whoever_has_read_that_a_log_is_new_and_empty_waits_until_the_window_is_new_too() {
    let (hub, streams, now) = bare();
    let log = streams.add(source("log", FakeLog::keeps_last()), now);
    let reset = || Gap { reason: GapReason::Reset, from: Some(9), to: None, position: None };
    // The window holds the old log from its beginning on.
    hub.publish(log, &mut vec![Input::Tail(None), named("log.0", Some(0)), named("log.1", Some(1))], now);
    let mut stream = streams.open(Request { begin: behind(&hub, &[("log", Point::At(Position::unverified(9)))]), ..request(">") }, now);
    sent(&mut stream, now);
    stream.read(&mut vec![Item::Gap(reset()), Item::Tail(None)]);
    let text = sent(&mut stream, now);
    assert!(text.contains("\"reset\"") && !text.contains("data: log"), "{text}");
    hub.publish(log, &mut vec![Input::Gap(reset())], now);
    let text = sent(&mut stream, now);
    assert!(!text.contains("data:"), "{text}");
    assert!(stream.into_live().is_ok());
}

/// A cursor behind these positions of durable sources, and all that the hub has of the others.
fn behind(hub: &Hub, durable: &[(&str, Point)]) -> Begin {
    let durable = durable.iter().map(|(name, point)| (Tag::of(name), *point)).collect();
    Begin::After(Cursor { epoch: 1, volatile: Point::At(Position::unverified(hub.state().seq())), durable })
}

#[test]
fn whoever_is_told_that_a_log_was_made_anew_stands_at_its_beginning_and_becomes_live() {
    let (hub, streams, now) = bare();
    let at = |seq| Point::At(Position::unverified(seq));
    let [log, far] = ["log", "far"].map(|name| streams.add(source(name, FakeLog::keeps_last()), now));
    hub.publish(log, &mut vec![Input::Tail(Some(Position::unverified(4)))], now);
    hub.publish(far, &mut vec![Input::Tail(Some(Position::unverified(9)))], now);
    // It follows one source in its window while it reads the other's log.
    let mut stream = streams.open(Request { begin: behind(&hub, &[("log", at(4)), ("far", at(1))]), ..request(">") }, now);
    sent(&mut stream, now);
    hub.publish(log, &mut vec![named("log.5", Some(5))], now);
    assert!(sent(&mut stream, now).contains("log.5"));
    let reset = Gap { reason: GapReason::Reset, from: Some(5), to: None, position: None };
    hub.publish(log, &mut vec![Input::Gap(reset)], now);
    let text = sent(&mut stream, now);
    let id = text.lines().rev().find_map(|line| line.strip_prefix("id: ")).unwrap();
    assert!(text.contains("\"reset\""), "{text}");
    assert_eq!(point(id, "log"), Some(Point::Earliest), "the id still stands in the log that is gone");
    // Nothing was written since: the window has all that there is.
    let mut stream = streams.open(Request { begin: behind(&hub, &[("log", Point::Earliest), ("far", at(9))]), ..request(">") }, now);
    let text = sent(&mut stream, now);
    assert!(!text.contains("gap"), "{text}");
    assert!(stream.into_live().is_ok());
}

fn point(id: &str, name: &str) -> Option<Point> {
    Cursor::from_id(id).unwrap().durable.iter().find(|(tag, _)| *tag == Tag::of(name)).map(|(_, point)| *point)
}

#[test]
fn an_id_of_a_source_comes_only_behind_the_gap_that_says_that_it_was_not_known() {
    let (hub, streams, now) = bare();
    for name in ["one", "two"] {
        let log = streams.add(source(name, FakeLog::keeps_last()), now);
        hub.publish(log, &mut vec![Input::Tail(Some(Position::unverified(9)))], now);
    }
    // Of another process, in which the sources had other names.
    let begin = Begin::After(Cursor { epoch: 2, volatile: Point::At(Position::unverified(0)), durable: Vec::new() });
    let mut stream = streams.open(Request { begin, ..request(">") }, now);
    let text = sent(&mut stream, now);
    let blocks: Vec<_> = text.split("\n\n").filter(|block| block.contains("unknown_cursor")).collect();
    let ids: Vec<_> = blocks.iter().filter_map(|block| block.lines().find_map(|line| line.strip_prefix("id: "))).collect();
    assert_eq!((blocks.len(), ids.len()), (2, 2), "{text}");
    assert_eq!((point(ids[0], "one"), point(ids[0], "two")), (None, None), "a client that is cut off here is told both again");
    let at = Some(Point::At(Position::unverified(9)));
    assert_eq!((point(ids[1], "one"), point(ids[1], "two")), (at, at));
}

#[test]
fn a_stream_that_ends_right_after_it_fell_behind_has_no_id_behind_what_it_was_not_told() {
    let (hub, streams, now) = bare();
    let old = streams.add(source("log", FakeLog::keeps_last()), now);
    hub.publish(old, &mut vec![Input::Tail(Some(Position::unverified(3)))], now);
    streams.remove(old);
    let mut stream = streams.open(request(">"), now);
    sent(&mut stream, now);
    let (live, id) = stream.into_live().unwrap();
    // It comes back: the stream is to be told that by its channel, but is behind there.
    let new = streams.add(source("log", FakeLog::keeps_last()), now);
    hub.publish(new, &mut vec![Input::Tail(Some(Position::unverified(9)))], now);
    let stream = live.resume(id.as_bytes(), now);
    let last = String::from_utf8(stream.close(Closing::Expired).to_vec()).unwrap();
    assert!(last.contains(&format!("id: {id}\n")), "{last}");
    let begin = Begin::After(Cursor::from_id(&id).unwrap());
    assert!(sent(&mut streams.open(Request { begin, ..request(">") }, now), now).contains("\"unknown_cursor\""));
}

#[test]
fn a_window_that_may_be_of_an_old_log_is_followed_only_when_the_broker_has_nothing_behind_an_id_without_a_check() {
    let (hub, streams, now) = bare();
    let log = streams.add(source("log", FakeLog::keeps_last()), now);
    let message = |seq: u64, text: &str| {
        let position = Position { seq, check: Some(Check::of(&[text.as_bytes()])) };
        event(Message::new("log.old".parse().unwrap(), Bytes::copy_from_slice(text.as_bytes()), now, Some(position)))
    };
    hub.publish(log, &mut vec![Input::Tail(None), message(19, "old"), message(20, "old")], now);
    // Another replica has told that the log was purged up to here.
    let request = || Request { begin: behind(&hub, &[("log", Point::At(Position::unverified(19)))]), ..request(">") };
    let mut stream = streams.open(request(), now);
    let text = sent(&mut stream, now);
    let wanted =
        matches!(stream.step(now), Step::Wait { history: Some(request), .. } if request.from == Point::At(Position::unverified(19)));
    assert!(wanted && !text.contains("log.old"), "{text}");
    // It has no message that could be compared.
    stream.read(&mut vec![Item::Tail(Some(Position::unverified(19)))]);
    assert!(sent(&mut stream, now).contains("log.old") && stream.into_live().is_ok());
}

#[test]
fn a_source_that_another_replica_had_first_is_told_to_those_who_came_from_there() {
    let (hub, streams, now) = bare();
    let mut stream = streams.open(Request { begin: behind(&hub, &[("log", Point::At(Position::unverified(3)))]), ..request(">") }, now);
    sent(&mut stream, now);
    let (live, id) = stream.into_live().unwrap();
    let log = streams.add(source("log", FakeLog::keeps_last()), now);
    hub.publish(log, &mut vec![Input::Tail(Some(Position::unverified(9))), named("log.10", Some(10))], now);
    let told = |text: &str| text.matches("\"unknown_cursor\"").count() == 1 && text.matches("brokercast.gap").count() == 1;
    let (text, _) = rest(&live);
    assert!(told(&text) && text.find("unknown_cursor") < text.find("log.10"), "{text}");
    let again = Request { begin: Begin::After(Cursor::from_id(&id).unwrap()), ..request(">") };
    assert!(told(&sent(&mut streams.open(again, now), now)));
    // Of a source that nobody knew, nothing is missing.
    let other = streams.add(source("other", FakeLog::keeps_last()), now);
    hub.publish(other, &mut vec![Input::Tail(Some(Position::unverified(9)))], now);
    assert!(told(&rest(&live).0));
}

#[test]
fn a_log_that_grows_behind_its_end_is_read_on_though_another_waits_at_its_own() {
    let (hub, streams, now) = bare();
    let place = Position::unverified;
    let logs = ["one", "two"].map(|name| streams.add(source(name, FakeLog::keeps_last()), now));
    for log in logs {
        hub.publish(log, &mut vec![Input::Tail(Some(place(9)))], now);
    }
    let begin = behind(&hub, &[("one", Point::At(place(1))), ("two", Point::At(place(1)))]);
    let mut stream = streams.open(Request { begin, ..request(">") }, now);
    let reading = |stream: &mut Stream| {
        sent(stream, now);
        let Step::Wait { history: Some(request), .. } = stream.step(now) else { panic!("it reads no log") };
        request.source
    };
    // Both end where the windows do not reach back to.
    for log in logs {
        assert_eq!(reading(&mut stream), log);
        stream.read(&mut vec![Item::Tail(Some(place(5)))]);
    }
    assert_eq!(reading(&mut stream), logs[0], "the windows have come farther than the first log's end");
}

#[test]
fn the_beginnings_of_all_logs_are_read_before_more_of_any() {
    for from in [Point::Earliest, Point::Since(1)] {
        let (hub, streams, now) = bare();
        let place = Position::unverified;
        let mut down = source("down", FakeLog::keeps_last());
        down.log.up = Arc::new(|| false);
        let logs = [source("one", FakeLog::keeps_last()), down, source("two", FakeLog::keeps_last())].map(|of| streams.add(of, now));
        for log in logs {
            hub.publish(log, &mut vec![Input::Tail(Some(place(9)))], now);
        }
        let mut stream = streams.open(Request { begin: Begin::At(from), ..request(">") }, now);
        let mut read = |log: usize, seq: u64| {
            sent(&mut stream, now);
            let Step::Wait { history: Some(request), .. } = stream.step(now) else { panic!("it reads no log") };
            assert_eq!(request.source, logs[log], "{from:?}");
            let message = Message::new("a.b".parse().unwrap(), Bytes::new(), now, Some(place(seq)));
            stream.read(&mut vec![Item::Message(message)]);
        };
        read(0, 3);
        read(2, 5);
        // Of one that is not connected nothing can be read now.
        read(2, 6);
        read(2, 7);
        let text = sent(&mut stream, now);
        let id = text.lines().rev().find_map(|line| line.strip_prefix("id: ")).unwrap();
        assert_eq!(["one", "two"].map(|name| point(id, name)), [3, 7].map(|seq| Some(Point::At(place(seq)))));
    }
}

#[test]
fn nobody_who_is_a_moment_behind_gets_events_of_routes_that_were_changed() {
    let (hub, streams, now) = bare();
    let old = streams.add(source("core", volatile(">")), now);
    let stay = streams.add(source("stay", volatile(">")), now);
    hub.publish(old, &mut vec![named("core.1", None)], now);
    let opened = || {
        let mut stream = streams.open(request(">"), now);
        sent(&mut stream, now);
        stream.into_live().unwrap()
    };
    // One is behind by an event of the source, and one has it all, but for another source's.
    let behind = opened();
    hub.publish(old, &mut vec![named("core.2", None)], now);
    let ahead = opened();
    hub.publish(stay, &mut vec![named("stay.1", None)], now);
    streams.replace(old, source("core", volatile(">")), true, now);
    for ((live, id), gaps) in [(behind, 1), (ahead, 0)] {
        assert!(matches!(live.channel().read_from::<crate::transport::framing::Plain>(live.offset()), crate::hub::Read::Lagged));
        assert!(live.channel().entries_from(live.offset(), usize::MAX).is_none());
        let mut stream = live.resume(id.as_bytes(), now);
        let text = sent(&mut stream, now);
        assert!(text.contains("stay.1") && !text.contains("core.2") && text.matches("\"restart\"").count() == gaps, "{text}");
        assert!(stream.into_live().is_ok());
    }
}

#[test]
fn streams_that_named_no_patterns_follow_their_grant_and_others_only_end() {
    let (hub, streams, now) = bare();
    let core = streams.add(source("core", volatile(">")), now);
    let opened = |pattern: &str, named: bool| {
        let mut stream = streams.open(Request { named, ..request(pattern) }, now);
        sent(&mut stream, now);
        stream.into_live().unwrap().0
    };
    let (all, picky, other) = (opened("a.>", false), opened("a.>", true), opened("b.>", true));
    let mut behind = streams.open(Request { named: false, begin: Begin::At(Point::Earliest), ..request("a.>") }, now);
    let granted = |patterns: &[&str]| -> Arc<[Pattern]> { patterns.iter().map(|pattern| pattern.parse().unwrap()).collect() };
    let wide = granted(&["a.>", "b.>"]);
    assert_eq!((streams.narrow(|_| Some(wide.clone()), now), streams.widen(|_| Some(wide.clone()))), (0, 2));
    assert!(all.is_moved() && !picky.is_moved() && !other.is_moved());
    // Where it stood, it goes on with more.
    hub.publish(core, &mut vec![named("b.1", None), named("a.1", None)], now);
    let id = all.received_id().unwrap_or_default();
    let mut stream = all.resume(&id, now);
    let text = sent(&mut stream, now);
    assert!(text.contains("a.1") && text.contains("b.1") && !text.contains("gap"), "{text}");
    behind.follow();
    let text = sent(&mut behind, now);
    assert!(text.contains("a.1") && text.contains("b.1"), "{text}");
    let all = stream.into_live().unwrap().0;
    assert!(!all.is_moved());
    let narrow = granted(&["b.>"]);
    assert_eq!((streams.narrow(|_| Some(narrow.clone()), now), streams.widen(|_| Some(narrow.clone()))), (3, 0));
    let ended = |live: &Live| live.end().map(|end| end.reason);
    assert_eq!((ended(&all), ended(&picky), ended(&other)), (Some(Closing::Revoked), Some(Closing::Revoked), None));
}

#[test]
fn clients_of_many_streams_that_end_at_once_are_told_to_come_back_one_after_another() {
    let (_, streams, now) = bare();
    streams.add(source("core", volatile(">")), now);
    let open = || {
        let mut stream = streams.open(request("a.>"), now);
        sent(&mut stream, now);
        stream
    };
    let retry = |stream: Stream| {
        let text = String::from_utf8(stream.close(Closing::Revoked).to_vec()).unwrap();
        text.lines().find_map(|line| line.strip_prefix("retry: ")?.parse::<u64>().ok())
    };
    let alone = open();
    assert_eq!(streams.end(Selection::All, Closing::Revoked, Timestamp::now(), Duration::ZERO), 1);
    assert_eq!(retry(alone), None, "the usual time holds");
    let many: Vec<_> = (0..1000).map(|_| open()).collect();
    let one = many[0].lease.visit.id;
    assert_eq!(streams.end(Selection::All, Closing::Revoked, Timestamp::now(), Duration::ZERO), 1000);
    // One more does not end the spread of the many.
    streams.end(Selection::Listed(&Wanted { id: Some(one), ..Wanted::default() }), Closing::Ended, Timestamp::now(), Duration::ZERO);
    let retries: Vec<u64> = many.into_iter().map(|stream| retry(stream).unwrap()).collect();
    // About 3 s, and up to 10 s more.
    assert!(retries.iter().all(|retry| (2250..=13_750).contains(retry)), "{retries:?}");
    assert!([3000, 5000, 7000, 9000].iter().all(|from| retries.iter().any(|retry| (*from..from + 2000).contains(retry))), "{retries:?}");
}

#[test]
fn whoever_may_have_missed_events_of_a_log_that_came_back_is_told_once() {
    let log = FakeLog::keeps_last;
    let at = |seq| Some(Position::unverified(seq));
    // What it was, by which name it comes back, and whether in the other's place.
    for (of, name, replaced) in
        [(log(), "log", false), (log(), "renamed", false), (volatile(">"), "log", true), (volatile(">"), "log", false)]
    {
        let durable = of.durable();
        let (hub, streams, now) = bare();
        let old = streams.add(source("log", of), now);
        if durable {
            hub.publish(old, &mut vec![Input::Tail(at(3))], now);
        }
        let known = hub.state().id().to_string();
        let mut stream = streams.open(request(">"), now);
        sent(&mut stream, now);
        let (live, _) = stream.into_live().unwrap();
        let (new, between) = if replaced {
            let new = streams.replace(old, source(name, log()), false, now).0;
            (new, hub.state().id().to_string())
        } else {
            streams.remove(old);
            let between = hub.state().id().to_string();
            (streams.add(source(name, log()), now), between)
        };
        let resume = |id: &str| streams.open(Request { begin: Begin::After(Cursor::from_id(id).unwrap()), ..request(">") }, now);
        // It comes before the source is live.
        let mut waiting = resume(&between);
        hub.publish(new, &mut vec![Input::Tail(at(9)), named("log.10", Some(10))], now);
        let told = |text: &str| {
            let (gap, event) = (text.find("\"unknown_cursor\"").unwrap(), text.find("log.10").unwrap());
            assert!(gap < event && text.matches("brokercast.gap").count() == 1, "{name} {durable} {replaced}: {text}");
        };
        let (text, after) = rest(&live);
        told(&text);
        told(&sent(&mut waiting, now));
        let mut stream = resume(&between);
        let text = sent(&mut stream, now);
        assert!(text.matches("\"unknown_cursor\"").count() == 1, "{name} {durable} {replaced}: {text}");
        // It is read on from where the log began to be live.
        assert!(
            matches!(stream.step(now), Step::Wait { history: Some(request), .. } if request.from == Point::At(Position::unverified(9)))
        );
        let mut stream = resume(&known);
        let text = sent(&mut stream, now);
        if durable && name == "log" {
            // It has a place in that log: nothing is lost.
            assert!(!text.contains("gap") && matches!(stream.step(now), Step::Wait { history: Some(_), .. }), "{text}");
        } else {
            assert!(text.contains("\"unknown_cursor\""), "{name} {durable} {replaced}: {text}");
        }
        assert!(!sent(&mut resume(&after), now).contains("gap"));
    }
}
