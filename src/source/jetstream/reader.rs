//! Reads on from a place: pulls, order, and the proof that what was skipped was not lost.
//!
//! Sequences have holes for good reasons: other subjects, deleted messages. A hole is a loss only where the stream's
//! start has passed it. So before messages behind a hole are handed out, the stream is asked for its start. An earlier answer is
//! not enough: a purge takes what it finds, also what was published a moment before and has not been delivered.
//!
//! Servers have moved consumers past messages when a subject was purged (nats-server pull requests 3838, 5075 and 8572). So where
//! a hole can only be of deleted messages, or the consumer owes fewer messages than it should, the stream is asked for the first
//! message in the hole.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::api::{self, Place, StreamInfo};
use super::detour::{Next, Trouble};
use super::holes::{Batch, Hole};
use super::line::{Delivery, Heard, Line, status};
use super::names::Names;
use super::pull::{Credit, Pulls};
use super::purge::Known;
use crate::cursor::Position;
use crate::event::{Gap, GapReason, Message, Timestamp};
use crate::source::nats::headers;
use crate::source::{Connection, Item, SourceError};
use crate::subject::Subject;

/// Time between questions to the stream, and the unit of patience.
const TICK: Duration = Duration::from_secs(1);
/// Questions about holes are no closer together: a busy stream that is mostly others' has a hole before each message.
const PACE: Duration = Duration::from_millis(5);
/// Ticks without a sign of life of the consumer.
const SILENT: u32 = 9;
/// Ticks without an answer.
const UNANSWERED: u32 = 5;
/// Ticks without a message of a consumer that still has some.
const STUCK: u32 = 5;
/// Asks a consumer for a message, if it has one.
const NONE_WAITS: &str = r#"{"batch":1,"no_wait":true}"#;
/// Ticks after which the position moves over what the stream holds for others.
const ADVANCE: u32 = 15;

/// How a reader begins.
pub(super) struct Begin {
    /// What is handed out first.
    pub(super) items: Vec<Item>,
    /// Everything up to here has been read, where that is known.
    pub(super) floor: Option<u64>,
    /// The stream's end at the beginning.
    pub(super) end: Position,
    /// Messages that the consumer has to deliver.
    pub(super) pending: u64,
    /// What the consumer delivers first.
    pub(super) next: Next,
    /// What is asked for at a time.
    pub(super) credit: Credit,
    /// What the consumer delivers; empty: everything.
    pub(super) filters: Vec<String>,
    /// It is the live reader.
    pub(super) live: bool,
    /// What the live reader notes.
    pub(super) known: Arc<Mutex<Known>>,
    /// Where it is noted that nothing came of it.
    pub(super) trouble: Arc<Mutex<Trouble>>,
}

/// A reader's life after it was attached.
pub(super) struct Reader {
    line: Line,
    stream: String,
    consumer: String,
    names: Names,
    filters: Vec<String>,
    /// The last subject as it came, and as it is called here; `None`: it is not of this source.
    named: (Bytes, Option<Subject>),
    live: bool,
    known: Arc<Mutex<Known>>,
    outset: Outset,
    watch: Watch,
    progress: Progress,
    pulls: Pulls,
    output: Output,
}

/// Whether anything can be read at all.
struct Outset {
    /// What is to come first, while nothing has come.
    next: Option<Next>,
    trouble: Arc<Mutex<Trouble>>,
}

/// What the stream said of itself last, and signs of life.
struct Watch {
    info: StreamInfo,
    asked_at: Instant,
    /// The last message when the stream was asked.
    asked_behind: u64,
    tick: Interval,
    /// Ticks since the question that has no answer yet.
    unanswered: Option<u32>,
    /// Ticks without a sign of life of the consumer.
    silent: u32,
    /// Messages came since the last answer.
    moved: bool,
    /// Answers in a row between which no message came.
    idle: u32,
    suspect: Option<Suspect>,
}

/// Messages that the consumer may have left out: the stream is asked for the first one of them.
struct Suspect {
    after: u64,
    /// They are before this sequence.
    to: u64,
    /// A message came behind them. Else none came, and the stream has gone on all the same.
    hole: bool,
    /// What is still to be asked for.
    filters: Vec<String>,
}

/// How far the reading has come.
struct Progress {
    /// Everything up to here has come, or is not of this source; `None`: not known.
    floor: Option<u64>,
    last: Option<Place>,
    /// Messages that the consumer had to deliver at the beginning.
    pending: u64,
    /// The last sequence that was handed out, as a message, by a gap or by a tail.
    handed: u64,
    /// The consumer had nothing more, and has been asked for more ever since: what comes is sent at once.
    caught_up: bool,
    /// The end as it was at the beginning, until it is handed out.
    tail: Option<Position>,
    /// What comes is the newest of each subject: its sequences say nothing of what lies between.
    last_only: bool,
}

impl Progress {
    /// Messages that the consumer has to deliver, as it said last.
    fn owed(&self) -> u64 {
        self.last.map_or(self.pending, |last| last.pending)
    }

    /// What the consumer had to deliver is gone, or was not of this source.
    fn is_owed_nothing_before(&mut self, to: u64) {
        self.caught_up = true;
        self.floor = self.floor.max(to.checked_sub(1));
        self.pending = 0;
        if let Some(last) = &mut self.last {
            last.pending = 0;
        }
    }
}

/// What has come, by whether it may be handed out.
#[derive(Default)]
struct Output {
    /// It may.
    out: VecDeque<Item>,
    /// It waits for the answer to the question that was sent behind it.
    checking: Batch,
    /// It came after that question.
    ready: Batch,
    /// Payloads in all of these.
    bytes: usize,
    /// Why it ends, behind all that may be handed out.
    failed: Option<SourceError>,
}

impl Reader {
    /// `info` is the stream as it was when the reader was attached.
    pub(super) fn new(line: Line, stream: String, consumer: String, info: StreamInfo, names: Names, begin: Begin) -> Self {
        let mut tick = tokio::time::interval_at(Instant::now() + TICK, TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reader = Self {
            pulls: Pulls::new(begin.credit, line.largest()),
            line,
            stream,
            consumer,
            names,
            filters: begin.filters,
            named: (Bytes::new(), None),
            live: begin.live,
            known: begin.known,
            outset: Outset { next: Some(begin.next), trouble: begin.trouble },
            watch: Watch {
                info,
                asked_at: Instant::now(),
                asked_behind: 0,
                tick,
                unanswered: None,
                silent: 0,
                moved: false,
                idle: 0,
                suspect: None,
            },
            progress: Progress {
                floor: begin.floor,
                last: None,
                pending: begin.pending,
                handed: begin.floor.unwrap_or_default(),
                caught_up: false,
                tail: Some(begin.end),
                last_only: begin.next == Next::Newest,
            },
            output: Output { out: begin.items.into(), ..Output::default() },
        };
        if begin.pending == 0 {
            reader.hand_out_tail();
            reader.settle();
        }
        reader
    }

    fn pull(&mut self) {
        let Output { out, checking, ready, bytes, .. } = &self.output;
        let held = Credit { messages: out.len() + checking.items.len() + ready.items.len(), bytes: *bytes };
        if let Some(what) = self.pulls.more(held) {
            self.line.ask(&api::next_question(&self.stream, &self.consumer), "p", &what);
        }
    }

    fn ask_info(&mut self) {
        self.watch.asked_at = Instant::now();
        self.watch.asked_behind = self.progress.last.map_or(0, |last| last.seq);
        self.line.ask(&api::info_question(&self.stream), "i", "");
        self.watch.unanswered = Some(0);
    }

    fn process(&mut self, delivery: Delivery) -> Result<(), SourceError> {
        match self.line.answers(&delivery) {
            None => self.message(delivery),
            Some(b"p") => {
                self.watch.silent = 0;
                if self.pulls.answered(&delivery)? {
                    self.progress.caught_up = false;
                }
                Ok(())
            }
            Some(b"i") => self.informed(delivery.payload()),
            Some(b"n") => self.counted(&delivery),
            Some(b"m") => self.looked_up(delivery.payload()),
            Some(b"s") => self.found(delivery.payload()),
            Some(_) => Ok(()),
        }
    }

    /// What this user may not ask. All that a reader asks is needed, but for single messages.
    fn refused(&mut self, questions: &[String]) -> Result<(), SourceError> {
        let (info, next) = (api::info_question(&self.stream), api::next_question(&self.stream, &self.consumer));
        let is = |question: &String| questions.contains(question);
        match () {
            () if is(&next) => Err(self.line.denied(&api::next_question(&self.stream, ">"))),
            () if is(&info) => Err(self.line.denied(&info)),
            () if is(&api::message_question(&self.stream)) => self.unasked(),
            () => Ok(()),
        }
    }

    fn message(&mut self, delivery: Delivery) -> Result<(), SourceError> {
        let place = api::placed(delivery.reply())?;
        (self.watch.silent, self.watch.moved) = (0, true);
        let last_of_pull = self.pulls.came();
        if self.progress.last.is_some_and(|last| place.seq < last.seq) {
            return Err(SourceError::lost("the stream's sequences went back"));
        }
        // Server 2.9 delivers the newest message of a subject again, if the subject is written meanwhile.
        let again = self.progress.last.is_some_and(|last| place.seq == last.seq);
        let suspect = !self.progress.last_only && (self.filters.is_empty() || place.pending + 1 < self.progress.owed());
        if let Some(end) = self.progress.tail.filter(|end| place.seq > end.seq) {
            // What was there at the beginning may be gone. The newest of each subject say nothing of what lies between.
            if !self.progress.last_only {
                self.note_hole(end.seq + 1, suspect);
            }
            self.hand_out_tail();
        }
        self.note_hole(place.seq, suspect);
        let progress = &mut self.progress;
        progress.last = Some(place);
        if !progress.last_only {
            progress.floor = progress.floor.max(Some(place.seq));
        }
        // The last of a pull ends what the consumer owes; the next pull may have reached it much later.
        progress.caught_up = place.pending == 0 && !last_of_pull;
        if let Some(subject) = self.name(delivery.subject()).filter(|_| !again) {
            let check = api::check(delivery.subject(), delivery.payload(), place.time);
            let position = Some(Position { seq: place.seq, check: Some(check) });
            let time = Timestamp::from_micros(place.time / 1000);
            let carried = delivery.headers();
            let mut message = Message::new(subject, self.keep(delivery), time, position);
            headers::take(&mut message, &self.named.0, carried);
            self.output.bytes += message.payload.len();
            self.output.ready.items.push(Item::Message(message));
            self.progress.handed = place.seq;
        }
        if place.pending == 0 && self.progress.tail.is_some() {
            self.hand_out_tail();
        }
        Ok(())
    }

    /// The next message is this one, or one that stands before it is gone.
    fn note_hole(&mut self, to: u64, suspect: bool) {
        if let Some(after) = self.progress.floor.filter(|floor| to > floor + 1) {
            let (at, time) = (self.output.ready.items.len(), self.time_at(after));
            self.output.ready.holes.push(Hole { at, after, time, to, suspect });
        }
    }

    /// A time, in nanoseconds, that nothing behind a sequence is older than.
    fn time_at(&self, seq: u64) -> Option<u64> {
        let last = self.progress.last.filter(|last| last.seq <= seq).map(|last| last.time);
        last.or_else(|| self.known.lock().time_at(seq, &self.watch.info))
    }

    /// What a message's subject is called here; `None`: it is not of this source.
    fn name(&mut self, subject: &[u8]) -> Option<Subject> {
        if self.named.0 != subject {
            self.named = (Bytes::copy_from_slice(subject), self.names.shown(subject));
        }
        self.named.1.clone()
    }

    /// The payload, apart from the buffer that it was read into where it may be kept: for an answer of the stream, or by a
    /// history for its client. What is handed in at once gives the buffer free soon.
    fn keep(&self, delivery: Delivery) -> Bytes {
        if !self.live || !self.output.checking.holes.is_empty() || !self.output.ready.holes.is_empty() {
            return Bytes::copy_from_slice(delivery.payload());
        }
        delivery.into_payload()
    }

    /// All that the log held at the beginning has come.
    fn hand_out_tail(&mut self) {
        let progress = &mut self.progress;
        let Some(end) = progress.tail.take() else { return };
        progress.last_only = false;
        progress.floor = progress.floor.max(Some(end.seq)).max(progress.last.map(|last| last.seq));
        // The end of the stream may be a message that is not of this source, and a gap may have gone beyond it.
        let position = if end.seq >= progress.handed { end } else { Position::unverified(progress.handed) };
        progress.handed = position.seq;
        self.output.ready.items.push(Item::Tail(Some(position)));
    }

    /// What the stream says of itself.
    fn informed(&mut self, answer: &[u8]) -> Result<(), SourceError> {
        let watch = &mut self.watch;
        watch.unanswered = None;
        let info = api::read_info(answer)?.ok_or_else(|| SourceError::missing(format!("the stream `{}` was deleted", self.stream)))?;
        if info.created != watch.info.created {
            return Err(SourceError::lost(format!("the stream `{}` was made anew", self.stream)));
        }
        let end_before = watch.info.state.last_seq;
        if info.state.last_seq < end_before.max(watch.asked_behind) {
            return Err(SourceError::lost(format!("the stream `{}` was cut", self.stream)));
        }
        watch.info = info;
        if self.live {
            self.known.lock().is(&watch.info, self.line.largest());
        }
        if self.verify()? { self.rest(end_before) } else { Ok(()) }
    }

    /// Hands over what waited for the stream's answer. Returns false while it is asked about a hole in it.
    fn verify(&mut self) -> Result<bool, SourceError> {
        let (first, holes) = (self.watch.info.first(), &mut self.output.checking.holes);
        let behind = |hole: &Hole| hole.after.max(first - 1);
        // One question for all: what a consumer leaves out reaches to what was the stream's end.
        let suspects = holes.iter().filter(|hole| hole.suspect && hole.to > behind(hole) + 1);
        let largest = suspects.max_by_key(|hole| hole.to - behind(hole)).map(|hole| (behind(hole), hole.to));
        holes.iter_mut().for_each(|hole| hole.suspect = false);
        let Some((after, to)) = largest else {
            self.hand_over();
            return Ok(true);
        };
        self.suspect(after, to, true)?;
        Ok(false)
    }

    /// Asks the stream for what the consumer may have left out.
    fn suspect(&mut self, after: u64, to: u64, hole: bool) -> Result<(), SourceError> {
        let filters = if self.filters.is_empty() { vec![">".to_owned()] } else { self.filters.clone() };
        self.ask_for(Suspect { after, to, hole, filters })
    }

    fn ask_for(&mut self, mut suspect: Suspect) -> Result<(), SourceError> {
        let question = api::message_question(&self.stream);
        // Without the right to ask it cannot be known.
        let filter = if self.line.is_refused(&question) { None } else { suspect.filters.pop() };
        let Some(filter) = filter else {
            if suspect.hole {
                self.verify()?;
            } else if !self.watch.moved {
                self.progress.is_owed_nothing_before(suspect.to);
                self.hand_out_tail();
            }
            return Ok(());
        };
        self.line.ask(&question, "s", &api::first_from(suspect.after + 1, &filter));
        (self.watch.suspect, self.watch.unanswered) = (Some(suspect), Some(0));
        Ok(())
    }

    /// The first message behind a place that the consumer may have left out.
    fn found(&mut self, answer: &[u8]) -> Result<(), SourceError> {
        let Some(suspect) = self.watch.suspect.take() else { return Ok(()) };
        self.watch.unanswered = None;
        match api::read_message(answer) {
            Ok(Some(stored)) if stored.seq < suspect.to && self.outset.trouble.lock().may_still_come(stored.seq) => {
                Err(SourceError::lost("the consumer left out messages that are in the stream"))
            }
            // What cannot be read is passed in another way.
            _ => self.ask_for(suspect),
        }
    }

    /// The question for single messages is refused.
    fn unasked(&mut self) -> Result<(), SourceError> {
        let Some(suspect) = self.watch.suspect.take() else { return Ok(()) };
        self.watch.unanswered = None;
        self.ask_for(Suspect { filters: Vec::new(), ..suspect })
    }

    /// What waited for the answer may go, with a gap for each hole that is a loss.
    fn hand_over(&mut self) {
        let (info, known, largest) = (&self.watch.info, self.known.lock(), self.line.largest());
        let Batch { items, holes } = std::mem::take(&mut self.output.checking);
        let mut holes = holes.into_iter().peekable();
        for (at, item) in items.into_iter().enumerate() {
            while let Some(hole) = holes.next_if(|hole| hole.at == at) {
                self.output.out.extend(info.lost(&hole, &known, largest).map(Item::Gap));
            }
            self.output.out.push_back(item);
        }
        // Behind the last item: before messages of others.
        for gap in holes.filter_map(|hole| info.lost(&hole, &known, largest)) {
            self.progress.handed = self.progress.handed.max(gap.position.map_or(0, |position| position.seq));
            self.output.out.push_back(Item::Gap(gap));
        }
    }

    /// While nothing comes: what that means.
    fn rest(&mut self, end_before: u64) -> Result<(), SourceError> {
        let (watch, progress) = (&mut self.watch, &mut self.progress);
        watch.idle = if std::mem::take(&mut watch.moved) { 0 } else { watch.idle.saturating_add(1) };
        if watch.idle < 2 {
            return Ok(());
        }
        let Some(floor) = progress.floor else {
            // Nothing has come yet, though the consumer counts messages. Servers have counted some that were replaced long ago.
            if !progress.caught_up && self.pulls.waits() {
                self.ask_whether_one_waits();
            }
            return Ok(());
        };
        let (first, time) = (watch.info.first(), self.time_at(floor));
        let (watch, progress) = (&self.watch, &mut self.progress);
        if first > floor + 1 && (progress.caught_up || self.pulls.waits()) {
            let hole = Hole { at: 0, after: floor, time, to: first, suspect: false };
            // While all came, a stream's limits take what is others': that is what they usually do. A purge takes what it finds.
            let told = |gap: &Gap| !progress.caught_up || self.filters.is_empty() || gap.reason == GapReason::Reset;
            let gap = watch.info.lost(&hole, &self.known.lock(), self.line.largest());
            if let Some(gap) = gap.filter(told) {
                self.output.ready.items.push(Item::Gap(gap));
                progress.handed = first - 1;
            }
            progress.floor = Some(first - 1);
        }
        if progress.caught_up && self.filters.is_empty() && self.asks_for_missing(end_before)? {
            return Ok(());
        }
        let (watch, progress) = (&mut self.watch, &mut self.progress);
        if progress.caught_up {
            // Whatever of ours stood there a second ago would have come.
            let floor = floor.max(end_before).max(first - 1);
            progress.floor = Some(floor);
            if watch.idle.is_multiple_of(ADVANCE) && floor > progress.handed && progress.tail.is_none() {
                let question = api::message_question(&self.stream);
                if self.line.is_refused(&question) {
                    self.advance(Position::unverified(floor));
                } else {
                    self.line.ask(&question, "m", &format!(r#"{{"seq":{floor}}}"#));
                }
            }
        } else if self.pulls.waits() {
            if floor >= end_before {
                // All that the stream holds has come, though the consumer still counts messages: nats-server 2.9 counts too many.
                self.progress.is_owed_nothing_before(end_before + 1);
                self.hand_out_tail();
                return Ok(());
            }
            if self.watch.idle >= STUCK && self.asks_for_missing(end_before)? {
                return Ok(());
            }
            self.ask_whether_one_waits();
        }
        Ok(())
    }

    fn ask_whether_one_waits(&mut self) {
        self.line.ask(&api::next_question(&self.stream, &self.consumer), "n", NONE_WAITS);
    }

    /// Asks for messages up to the stream's end that have not come though they should have, unless they were deleted. Returns
    /// whether there can be such.
    fn asks_for_missing(&mut self, end: u64) -> Result<bool, SourceError> {
        let Some(floor) = self.progress.floor.map(|floor| floor.max(self.watch.info.first() - 1)) else { return Ok(false) };
        let should_come = !self.progress.last_only && (self.filters.is_empty() || self.progress.owed() > 0);
        if !should_come || end <= floor {
            return Ok(false);
        }
        // One question at a time.
        if self.watch.unanswered.is_none() {
            self.suspect(floor, end + 1, false)?;
        }
        Ok(true)
    }

    /// Whether the consumer has anything to deliver, asked when it delivered nothing: it may be gone from the stream. A
    /// question that does not wait is answered by 404 only where there is nothing, and the right to it is there.
    fn counted(&mut self, answer: &Delivery) -> Result<(), SourceError> {
        match status(answer) {
            Some((404, _)) if !self.watch.moved => {
                if !self.asks_for_missing(self.watch.info.state.last_seq)? {
                    self.progress.caught_up = true;
                    self.hand_out_tail();
                }
                Ok(())
            }
            Some((503, _)) => Err(SourceError::lost("the consumer is gone")),
            _ => Ok(()),
        }
    }

    /// The message up to which there is nothing of ours: the place moves there.
    fn looked_up(&mut self, answer: &[u8]) -> Result<(), SourceError> {
        if let Some(stored) = api::read_message(answer)? {
            self.advance(Position { seq: stored.seq, check: Some(stored.check) });
        }
        Ok(())
    }

    fn advance(&mut self, place: Position) {
        let progress = &mut self.progress;
        if place.seq > progress.handed && progress.last.is_none_or(|last| last.seq <= place.seq) {
            progress.handed = place.seq;
            self.output.ready.items.push(Item::Tail(Some(place)));
        }
    }

    /// Lets go what is proven, and asks where that needs an answer.
    fn settle(&mut self) {
        let output = &mut self.output;
        if !output.checking.is_empty() {
            return;
        }
        if output.ready.holes.is_empty() {
            output.out.extend(output.ready.items.drain(..));
        } else if self.watch.unanswered.is_none() && self.watch.asked_at.elapsed() >= PACE {
            output.checking = std::mem::take(&mut output.ready);
            self.ask_info();
        }
    }

    /// Whether something waits for a question that may not be asked yet.
    fn is_paced(&self) -> bool {
        self.output.checking.is_empty() && !self.output.ready.holes.is_empty() && self.watch.unanswered.is_none()
    }

    fn ticked(&mut self) -> Result<(), SourceError> {
        self.watch.silent += 1;
        if self.watch.silent > SILENT {
            return Err(SourceError::lost("the consumer gives no sign of life"));
        }
        match &mut self.watch.unanswered {
            Some(ticks) if *ticks >= UNANSWERED => return Err(SourceError::lost("JetStream does not answer")),
            Some(ticks) => *ticks += 1,
            None => self.ask_info(),
        }
        Ok(())
    }

    fn hand_out(&mut self, batch: &mut Vec<Item>, limit: usize) {
        let count = limit.min(self.output.out.len());
        let from = batch.len();
        batch.extend(self.output.out.drain(..count));
        let handed = &batch[from..];
        let bytes: usize = handed.iter().map(Item::payload_len).sum();
        self.output.bytes = self.output.bytes.saturating_sub(bytes);
        if let Some(next) = self.outset.next.take_if(|next| handed.iter().any(|item| next.is_reached_by(item))) {
            self.outset.trouble.lock().read_at(next);
        }
        if self.live {
            let mut known = self.known.lock();
            known.begins(&self.watch.info, self.line.largest());
            handed.iter().for_each(|item| {
                if let Item::Message(message) = item {
                    known.read(message)
                }
            });
        }
    }

    async fn read(&mut self, batch: &mut Vec<Item>, limit: usize) -> Result<(), SourceError> {
        loop {
            if !self.output.out.is_empty() {
                self.hand_out(batch, limit);
                self.pull();
                return Ok(());
            }
            if let Some(error) = self.output.failed.take() {
                if let Some(next) = self.outset.next.take_if(|_| self.line.is_dead()) {
                    self.outset.trouble.lock().lost_at(next);
                }
                return Err(error);
            }
            self.pull();
            for _ in 0..limit {
                let Some(delivery) = self.line.try_recv() else { break };
                if let Err(error) = self.process(delivery) {
                    self.output.failed = Some(error);
                    break;
                }
            }
            self.settle();
            if !self.output.out.is_empty() || self.output.failed.is_some() {
                continue;
            }
            let (paced, may_ask) = (self.is_paced(), self.watch.asked_at + PACE);
            let processed = tokio::select! {
                biased;
                () = tokio::time::sleep_until(may_ask), if paced => Ok(()),
                heard = self.line.recv() => heard.and_then(|heard| match heard {
                    Heard::Delivery(delivery) => self.process(delivery),
                    Heard::Refused(questions) => self.refused(&questions),
                }),
                _ = self.watch.tick.tick() => self.ticked(),
            };
            // What was proven before it failed is handed out first.
            self.output.failed = processed.err();
        }
    }
}

impl Connection for Reader {
    fn next<'a>(&'a mut self, batch: &'a mut Vec<Item>, limit: usize) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(self.read(batch, limit))
    }

    fn behind(&self) -> Option<u64> {
        Some(self.progress.last.map_or(self.progress.pending, |last| last.pending))
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(self.line.close())
    }
}
