//! Reads on from a place: pulls, order, and the proof that what was skipped was not lost.
//!
//! Sequences have holes for good reasons: other subjects, deleted messages. A hole is a loss only where the stream's
//! start has passed it. So before messages behind a hole are handed out, the stream is asked for its start; unless its
//! limits cannot have reached so far since it was last asked, which is the common case.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::api::{self, Place, StreamInfo};
use super::detour::Trouble;
use super::line::{Delivery, Line, number, status};
use super::{Known, now};
use crate::cursor::Position;
use crate::event::{Gap, GapReason, Message, Timestamp};
use crate::source::{Connection, ErrorKind, Item, SourceError};
use crate::subject::{Pattern, Subject};

/// Time between questions to the stream, and the unit of patience.
const TICK: Duration = Duration::from_secs(1);
/// Of a pull; and of the signs of life between.
const EXPIRES: Duration = Duration::from_secs(30);
const HEARTBEAT: Duration = Duration::from_secs(3);
/// Ticks without a sign of life of the consumer.
const SILENT: u32 = 9;
/// Ticks without an answer.
const UNANSWERED: u32 = 5;
/// Ticks after which the position moves over what the stream holds for others.
const ADVANCE: u32 = 15;
/// No stream takes more than this in a second.
const FASTEST_MESSAGES: u64 = 2_000_000;
const FASTEST_BYTES: u64 = 512 << 20;

/// What a reader asks for at a time: that much may wait for it in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Credit {
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

/// How a reader begins.
pub(super) struct Begin {
    /// What is told first.
    pub(super) items: Vec<Item>,
    /// Everything up to here has been read, where that is known.
    pub(super) floor: Option<u64>,
    /// The stream's end at the beginning.
    pub(super) end: Position,
    /// Messages that the consumer has to deliver.
    pub(super) pending: u64,
    /// First only the newest of each subject.
    pub(super) last_only: bool,
    /// What is asked for at a time.
    pub(super) credit: Credit,
    /// What the live reader notes.
    pub(super) known: Option<Arc<Mutex<Known>>>,
    /// The first sequence that the consumer may deliver, and where it is noted that nothing came of it.
    pub(super) next: u64,
    pub(super) trouble: Arc<Mutex<Trouble>>,
}

/// A hole before an item.
struct Hole {
    /// The item's index in its batch.
    at: usize,
    after: u64,
    /// The time of the message there, in nanoseconds.
    time: Option<u64>,
    to: u64,
    /// Nothing was left to deliver when the message before it came.
    calm: bool,
}

#[derive(Default)]
struct Batch {
    items: Vec<Item>,
    holes: Vec<Hole>,
}

/// A reader's life after it was attached.
pub(super) struct Reader {
    line: Line,
    stream: String,
    consumer: String,
    subjects: Vec<Pattern>,
    unnamed: Subject,
    /// The last subject as it came, and as it is called here; `None`: it is not of this source.
    called: (Bytes, Option<Subject>),
    info: StreamInfo,
    asked_at: Instant,
    /// The last message when the stream was asked.
    asked_behind: u64,
    known: Option<Arc<Mutex<Known>>>,
    /// The sequence that is to come, while nothing has come.
    first: Option<u64>,
    trouble: Arc<Mutex<Trouble>>,

    /// What can be handed out.
    out: VecDeque<Item>,
    /// What waits for the answer to the question that was sent behind it.
    checking: Batch,
    /// What came after that question.
    ready: Batch,
    failed: Option<SourceError>,

    /// Everything up to here has come, or is not of this source; `None`: not known.
    floor: Option<u64>,
    last: Option<Place>,
    /// The place that was told last.
    told: u64,
    /// The consumer had nothing more, and has been asked for more ever since: what comes is sent at once.
    caught_up: bool,
    /// Until it is told.
    tail: Option<Position>,
    last_only: bool,

    credit: Credit,
    /// A pull ended for its bytes, and no message has come since.
    cramped: bool,
    outstanding: usize,
    /// How much of that was asked for before the last pull.
    earlier: usize,
    tick: Interval,
    silent: u32,
    /// Ticks since the question that has no answer yet.
    unanswered: Option<u32>,
    /// Messages came since the last answer.
    moved: bool,
    idle: u32,
}

impl Reader {
    pub(super) fn new(
        line: Line,
        stream: &str,
        consumer: String,
        info: StreamInfo,
        subjects: Vec<Pattern>,
        unnamed: Subject,
        begin: Begin,
    ) -> Self {
        let mut tick = tokio::time::interval_at(Instant::now() + TICK, TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let largest = line.largest();
        let mut reader = Self {
            line,
            stream: stream.to_owned(),
            consumer,
            subjects,
            unnamed,
            called: (Bytes::new(), None),
            info,
            asked_at: Instant::now(),
            asked_behind: 0,
            known: begin.known,
            first: Some(begin.next),
            trouble: begin.trouble,
            out: begin.items.into(),
            checking: Batch::default(),
            ready: Batch::default(),
            failed: None,
            floor: begin.floor,
            last: None,
            told: begin.floor.unwrap_or_default(),
            caught_up: false,
            tail: Some(begin.end),
            last_only: begin.last_only,
            credit: Credit { bytes: begin.credit.bytes.max(largest), ..begin.credit },
            cramped: false,
            outstanding: 0,
            earlier: 0,
            tick,
            silent: 0,
            unanswered: None,
            moved: false,
            idle: 0,
        };
        if begin.pending == 0 {
            reader.tell_tail();
            reader.settle();
        }
        reader
    }

    fn pull(&mut self) {
        let held = self.out.len() + self.checking.items.len() + self.ready.items.len() + self.outstanding;
        if held > self.credit.messages / 2 {
            return;
        }
        let (more, bytes) = (self.credit.messages - held, self.credit.bytes);
        let (expires, heartbeat) = (EXPIRES.as_nanos(), HEARTBEAT.as_nanos());
        let what = format!(r#"{{"batch":{more},"max_bytes":{bytes},"expires":{expires},"idle_heartbeat":{heartbeat}}}"#);
        self.line.ask(&format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", self.stream, self.consumer), "p", &what);
        self.earlier = self.outstanding;
        self.outstanding += more;
    }

    fn ask_info(&mut self) {
        self.asked_behind = self.last.map_or(0, |last| last.seq);
        self.line.ask(&api::info_subject(&self.stream), "i", "");
        self.unanswered = Some(0);
    }

    fn process(&mut self, delivery: Delivery) -> Result<(), SourceError> {
        match self.line.answers(&delivery) {
            None => self.message(delivery),
            Some(b"p") => {
                self.silent = 0;
                self.pulled(&delivery)
            }
            Some(b"i") => self.informed(delivery.payload()),
            Some(b"c") => self.counted(delivery.payload()),
            Some(b"m") => self.looked_up(delivery.payload()),
            Some(_) => Ok(()),
        }
    }

    fn message(&mut self, delivery: Delivery) -> Result<(), SourceError> {
        let place = api::place(delivery.reply()).ok_or_else(|| SourceError::protocol("a message of the stream says no sequence"))?;
        self.silent = 0;
        self.moved = true;
        self.cramped = false;
        self.outstanding = self.outstanding.saturating_sub(1);
        if self.last.is_some_and(|last| place.seq <= last.seq) {
            return Err(SourceError::lost("the stream's sequences went back"));
        }
        if self.tail.is_some_and(|end| place.seq > end.seq) {
            self.tell_tail();
        }
        if let Some(floor) = self.floor.filter(|floor| place.seq > floor + 1) {
            let time = self.last.filter(|last| last.seq == floor).map(|last| last.time);
            let (at, to, calm) = (self.ready.items.len(), place.seq, self.caught_up);
            self.ready.holes.push(Hole { at, after: floor, time, to, calm });
        }
        self.last = Some(place);
        if !self.last_only {
            self.floor = self.floor.max(Some(place.seq));
        }
        // The last of a pull ends what the consumer owes; the next pull may have reached it much later.
        let last_of_pull = self.outstanding == 0 || self.earlier == 1;
        self.earlier = self.earlier.saturating_sub(1);
        self.caught_up = place.pending == 0 && !last_of_pull;
        if self.called.0 != delivery.subject() {
            let name = String::from_utf8_lossy(delivery.subject());
            let ours = self.subjects.iter().any(|pattern| pattern.matches(&name));
            let subject = ours.then(|| Subject::from_broker(delivery.subject(), &self.unnamed));
            self.called = (Bytes::copy_from_slice(delivery.subject()), subject);
        }
        if let Some(subject) = self.called.1.clone() {
            let check = api::check(delivery.subject(), delivery.payload(), place.time);
            let position = Some(Position { seq: place.seq, check: Some(check) });
            let time = Timestamp::from_micros(place.time / 1000);
            let payload = self.keep(delivery);
            self.ready.items.push(Item::Message(Message { subject, payload, time, position }));
            self.told = place.seq;
        }
        if place.pending == 0 && self.tail.is_some() {
            self.tell_tail();
        }
        Ok(())
    }

    /// The payload, apart from the buffer that it was read into where it may be kept: for an answer of the stream, or by a
    /// history for its client. What is handed in at once gives the buffer free soon.
    fn keep(&self, delivery: Delivery) -> Bytes {
        let waits = |batch: &Batch| !batch.holes.is_empty();
        if self.known.is_none() || waits(&self.checking) || waits(&self.ready) {
            return Bytes::copy_from_slice(delivery.payload());
        }
        delivery.into_payload()
    }

    /// All that the log held at the beginning has come.
    fn tell_tail(&mut self) {
        let Some(end) = self.tail.take() else { return };
        self.last_only = false;
        self.floor = self.floor.max(Some(end.seq)).max(self.last.map(|last| last.seq));
        // The end of the stream may be a message of somebody else's, and a gap may have gone beyond.
        let position = if end.seq >= self.told { end } else { Position::unverified(self.told) };
        self.told = position.seq;
        self.ready.items.push(Item::Tail(Some(position)));
    }

    /// Something other than a message came for a pull.
    fn pulled(&mut self, answer: &Delivery) -> Result<(), SourceError> {
        let (code, words) = status(answer).unwrap_or_default();
        match code {
            100 => Ok(()),
            404 | 408 => {
                self.give_back(answer);
                Ok(())
            }
            409 if words.eq_ignore_ascii_case("batch completed") => {
                self.give_back(answer);
                Ok(())
            }
            409 if words.to_ascii_lowercase().starts_with("message size exceeds") => {
                // Larger than anything the server takes today: it took more once.
                if std::mem::replace(&mut self.cramped, true) {
                    self.credit.bytes = self.credit.bytes.saturating_mul(2);
                }
                self.give_back(answer);
                Ok(())
            }
            503 => Err(SourceError::lost("the consumer is gone")),
            _ => Err(SourceError::new(ended(code, &words), format!("JetStream ended the reading: {words}"))),
        }
    }

    fn give_back(&mut self, answer: &Delivery) {
        let left = number(answer, "Nats-Pending-Messages").and_then(|left| usize::try_from(left).ok());
        let left = left.unwrap_or(self.outstanding);
        self.outstanding = self.outstanding.saturating_sub(left);
        self.earlier = self.earlier.saturating_sub(left);
        self.caught_up = false;
    }

    /// What the stream says of itself.
    fn informed(&mut self, answer: &[u8]) -> Result<(), SourceError> {
        self.unanswered = None;
        let info = api::read_info(answer)?.ok_or_else(|| SourceError::missing(format!("the stream `{}` was deleted", self.stream)))?;
        if info.created != self.info.created {
            return Err(SourceError::lost(format!("the stream `{}` was made anew", self.stream)));
        }
        if info.state.last_seq < self.info.state.last_seq.max(self.asked_behind) {
            return Err(SourceError::lost(format!("the stream `{}` was cut", self.stream)));
        }
        let before = std::mem::replace(&mut self.info, info);
        self.asked_at = Instant::now();
        let Batch { items, holes } = std::mem::take(&mut self.checking);
        let mut holes = holes.into_iter().peekable();
        for (at, item) in items.into_iter().enumerate() {
            while let Some(hole) = holes.next_if(|hole| hole.at == at) {
                self.out.extend(self.info.lost(&hole).map(Item::Gap));
            }
            self.out.push_back(item);
        }
        // Behind the last item: before messages of others.
        for gap in holes.filter_map(|hole| self.info.lost(&hole)) {
            self.told = self.told.max(gap.position.map_or(0, |position| position.seq));
            self.out.push_back(Item::Gap(gap));
        }
        self.rest(before.state.last_seq);
        Ok(())
    }

    /// While nothing comes: what that means.
    fn rest(&mut self, end_before: u64) {
        self.idle = if std::mem::take(&mut self.moved) { 0 } else { self.idle.saturating_add(1) };
        let (Some(floor), false) = (self.floor, self.idle < 2) else { return };
        let first = self.info.first();
        if self.caught_up {
            // Whatever of ours stood there a second ago would have come.
            let floor = floor.max(end_before).max(first - 1);
            self.floor = Some(floor);
            if self.idle.is_multiple_of(ADVANCE) && floor > self.told && self.tail.is_none() {
                self.line.ask(&format!("$JS.API.STREAM.MSG.GET.{}", self.stream), "m", &format!(r#"{{"seq":{floor}}}"#));
            }
        } else if self.outstanding > 0 {
            if first > floor + 1 {
                let time = self.last.filter(|last| last.seq == floor).map(|last| last.time);
                let hole = Hole { at: 0, after: floor, time, to: first, calm: false };
                self.ready.items.extend(self.info.lost(&hole).map(Item::Gap));
                self.told = first - 1;
                self.floor = Some(first - 1);
            }
            self.line.ask(&format!("$JS.API.CONSUMER.INFO.{}.{}", self.stream, self.consumer), "c", "");
        }
    }

    /// What the consumer has yet to deliver, asked when it delivered nothing: it may be gone from the stream.
    fn counted(&mut self, answer: &[u8]) -> Result<(), SourceError> {
        let consumer = api::read_consumer(answer)?.ok_or_else(|| SourceError::lost("the consumer is gone"))?;
        if consumer.num_pending == 0 && !self.moved {
            self.caught_up = true;
            self.tell_tail();
        }
        Ok(())
    }

    /// The message up to which there is nothing of ours: the place moves there.
    fn looked_up(&mut self, answer: &[u8]) -> Result<(), SourceError> {
        if let Some(stored) = api::read_message(answer)?
            && stored.seq > self.told
            && self.last.is_none_or(|last| last.seq <= stored.seq)
        {
            self.told = stored.seq;
            self.ready.items.push(Item::Tail(Some(Position { seq: stored.seq, check: Some(stored.check) })));
        }
        Ok(())
    }

    /// Lets go what is proven, and asks where that needs an answer.
    fn settle(&mut self) {
        if !self.checking.items.is_empty() || !self.checking.holes.is_empty() {
            return;
        }
        let since = self.asked_at.elapsed();
        if !self.ready.holes.iter().any(|hole| self.info.reaches(hole, since)) {
            self.ready.holes.clear();
            self.out.extend(self.ready.items.drain(..));
        } else if self.unanswered.is_none() {
            self.checking = std::mem::take(&mut self.ready);
            self.ask_info();
        }
    }

    fn ticked(&mut self) -> Result<(), SourceError> {
        self.silent += 1;
        if self.silent > SILENT {
            return Err(SourceError::lost("the consumer gives no sign of life"));
        }
        match &mut self.unanswered {
            Some(ticks) if *ticks >= UNANSWERED => return Err(SourceError::lost("JetStream does not answer")),
            Some(ticks) => *ticks += 1,
            None => self.ask_info(),
        }
        Ok(())
    }

    fn hand_out(&mut self, batch: &mut Vec<Item>, limit: usize) {
        let count = limit.min(self.out.len());
        let from = batch.len();
        batch.extend(self.out.drain(..count));
        let told = |item: &Item| match item {
            Item::Message(message) => message.position.is_some_and(|at| self.first.is_some_and(|first| at.seq >= first)),
            Item::Tail(_) => true,
            Item::Gap(_) => false,
        };
        if self.first.is_some() && batch[from..].iter().any(told) {
            self.trouble.lock().read_at(self.first.take().unwrap_or_default());
        }
        if let Some(known) = &self.known {
            let mut known = known.lock();
            if known.created.as_ref() != Some(&self.info.created) {
                known.created = Some(self.info.created.clone());
            }
            let message = |item: &Item| if let Item::Message(m) = item { Some((m.position?.seq, m.time.as_micros() * 1000)) } else { None };
            known.last = batch[from..].iter().rev().find_map(message).or(known.last);
        }
    }

    async fn read(&mut self, batch: &mut Vec<Item>, limit: usize) -> Result<(), SourceError> {
        loop {
            if !self.out.is_empty() {
                self.hand_out(batch, limit);
                self.pull();
                return Ok(());
            }
            if let Some(error) = self.failed.take() {
                if let Some(first) = self.first.take_if(|_| self.line.is_dead()) {
                    self.trouble.lock().lost_at(first);
                }
                return Err(error);
            }
            self.pull();
            for _ in 0..limit {
                let Some(delivery) = self.line.try_recv() else { break };
                if let Err(error) = self.process(delivery) {
                    self.failed = Some(error);
                    break;
                }
            }
            self.settle();
            if !self.out.is_empty() || self.failed.is_some() {
                continue;
            }
            let processed = tokio::select! {
                biased;
                delivery = self.line.recv() => delivery.and_then(|delivery| self.process(delivery)),
                _ = self.tick.tick() => self.ticked(),
            };
            // What was proven before it failed is handed out first.
            self.failed = processed.err();
        }
    }
}

/// Of which kind a pull's end is.
fn ended(code: u16, words: &str) -> ErrorKind {
    match code {
        // The consumer's or the account's limits are below what one pull asks for.
        409 if words.to_ascii_lowercase().starts_with("exceeded") => ErrorKind::Configuration,
        400 => ErrorKind::Protocol,
        // The consumer was deleted, its leader has changed, or the server goes down.
        _ => ErrorKind::Lost,
    }
}

impl StreamInfo {
    /// Whether the stream's limits, or time, can have passed a hole since it said so of itself.
    fn reaches(&self, hole: &Hole, since: Duration) -> bool {
        if !hole.calm || self.first() > hole.after + 1 {
            return true;
        }
        let (config, behind) = (&self.config, self.state.last_seq.saturating_sub(hole.after));
        let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX).saturating_add(50);
        let limit = |limit: i64| u64::try_from(limit).ok().filter(|limit| *limit > 0);
        // Half a limit is near enough.
        let by_count = limit(config.max_msgs).is_some_and(|most| behind + FASTEST_MESSAGES.saturating_mul(millis) / 1000 >= most / 2);
        let average = self.state.bytes / self.state.messages.max(1);
        let bytes = behind.saturating_mul(average).saturating_add(FASTEST_BYTES.saturating_mul(millis) / 1000);
        let by_bytes = limit(config.max_bytes).is_some_and(|most| bytes >= most / 2);
        let age = config.max_age;
        let by_age = age > 0 && hole.time.is_none_or(|time| now().saturating_sub(time) >= age / 2);
        by_count || by_bytes || by_age || behind > FASTEST_MESSAGES
    }

    /// The gap for a hole, as the stream is now.
    fn lost(&self, hole: &Hole) -> Option<Gap> {
        if self.first() <= hole.after + 1 {
            return None;
        }
        let reason: GapReason = self.why_gone(hole.after, hole.time)?;
        Some(Gap { reason, from: Some(hole.after), to: Some(hole.to), position: Some(Position::unverified(hole.to - 1)) })
    }
}

impl Connection for Reader {
    fn next<'a>(&'a mut self, batch: &'a mut Vec<Item>, limit: usize) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(self.read(batch, limit))
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(self.line.close())
    }
}
