//! JetStream: a stream as a log that can be read from any place.
//!
//! Owns where a reader starts, and what it says of a log that is not what it was: made anew, cut, purged, past its
//! limits. [`reader`] reads on from there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::nats::servers::Servers;
use super::nats::wire::GRACE;
use super::nats::{self, Config, JetStream};
use super::{Adapter, Connection, ErrorKind, Gauges, Item, SourceError, Start};
use crate::cursor::Position;
use crate::event::{Gap, GapReason, SourceName, Timestamp};
use crate::subject::{Pattern, Subject};

mod api;
mod detour;
mod holes;
mod limits;
mod line;
mod names;
mod newest;
mod pull;
mod purge;
mod reader;
mod single;
#[cfg(test)]
mod tests;

use api::{ConsumerInfo, NewConsumer, NewStream, Stored, StreamInfo};
use detour::{Detour, Next, Trouble};
use line::{ANSWER, Line, Shared};
use names::Names;
use pull::Credit;
use purge::Known;
use reader::{Begin, Reader};

/// Messages that the live reader asks for at a time, and a history's.
const LIVE: Credit = Credit { messages: 4096, bytes: 32 << 20 };
const HISTORY: Credit = Credit { messages: 512, bytes: 4 << 20 };
/// What is worth a reader of its own for some subjects: this many messages, of which it wants one in so many.
const MANY: u64 = 512;
const FEW: u64 = 10;
/// How long the server keeps a consumer that asks for nothing, such as that of a process that was killed. A reader whose
/// connection is lost makes another one.
const INACTIVE: Duration = Duration::from_secs(10);
/// A stream that is gone is made anew after this.
const SETTLE: Duration = Duration::from_secs(1);
/// A server may be behind the one that a position was read from: so long it may catch up.
const CATCH_UP: Duration = Duration::from_secs(2);

/// How a consumer is made that begins with the newest message of each subject.
const LAST_PER_SUBJECT: &str = "last_per_subject";

/// A NATS source that reads a stream.
pub(crate) struct JetStreamSource {
    config: Config,
    stream: JetStream,
    name: SourceName,
    names: Names,
    /// The connection of all this source's readers. It is kept when the last of them is dropped: the library forgets what
    /// it has not sent when a connection is dropped, such as that a consumer is to be deleted.
    shared: Mutex<Option<Arc<Shared>>>,
    /// The connection of histories, where some have to do with messages that the library cannot read: then the live
    /// reader does not lose its own over them.
    aside: Mutex<Option<Arc<Shared>>>,
    known: Arc<Mutex<Known>>,
    trouble: Arc<Mutex<Trouble>>,
    servers: Servers,
    /// How long the server took to answer when a consumer was made last, in milliseconds.
    made_in: AtomicU64,
}

impl JetStreamSource {
    /// Of this configuration; connects nothing.
    #[must_use]
    pub(crate) fn new(config: Config, stream: JetStream, name: &SourceName) -> Self {
        let unnamed = Subject::new(name.as_str()).expect("a source's name is made of what subjects are made of");
        let names = Names::new(&config, &stream, unnamed);
        Self {
            config,
            stream,
            name: name.clone(),
            names,
            shared: Mutex::default(),
            aside: Mutex::default(),
            known: Arc::default(),
            trouble: Arc::default(),
            servers: Servers::default(),
            made_in: AtomicU64::default(),
        }
    }

    async fn line(&self, live: bool) -> Result<Line, SourceError> {
        let living = |shared: &Option<Arc<Shared>>| shared.clone().filter(|shared| shared.takes_readers());
        let apart = !live && self.trouble.lock().is_known();
        let slot = if apart { &self.aside } else { &self.shared };
        let known = living(&slot.lock());
        if let Some(shared) = known {
            return Line::new(shared).await;
        }
        // Not under the lock: a future that waits here may not be polled for long. If two connect, the first one is used.
        let fresh = Shared::connect(&self.config, &self.stream, &self.servers, &self.name).await?;
        let first = {
            let mut shared = slot.lock();
            let first = living(&shared).unwrap_or(fresh);
            *shared = Some(first.clone());
            first
        };
        Line::new(first).await
    }

    /// The stream as it is, made if it is missing and to be made.
    async fn info(&self, line: &mut Line, create: bool) -> Result<StreamInfo, SourceError> {
        let name = &*self.stream.stream;
        if let Some(info) = api::stream_info(line, name).await? {
            return Ok(info);
        }
        let Some(limits) = self.stream.create.filter(|_| create) else {
            return Err(self.missing());
        };
        // Server 2.9 may still be busy with a stream that was just deleted, and a consumer of a new one made meanwhile may never
        // deliver. And whoever deletes a stream to make it otherwise comes first.
        if self.known.lock().created.is_some() {
            sleep(SETTLE).await;
            if let Some(info) = api::stream_info(line, name).await? {
                return Ok(info);
            }
        }
        let new = NewStream {
            name,
            subjects: self.names.subjects.iter().map(Pattern::as_str).collect(),
            retention: "limits",
            storage: "file",
            discard: "old",
            max_consumers: -1,
            max_msgs: -1,
            max_bytes: limits.max_bytes,
            max_age: nanos(limits.max_age),
            num_replicas: limits.replicas,
            allow_direct: true,
        };
        api::create_stream(line, &new).await?;
        tracing::info!(source = %self.name, stream = name, "made a stream");
        let made = api::stream_info(line, name).await?;
        made.ok_or_else(|| SourceError::missing(format!("the stream `{name}` was made and is not there")))
    }

    /// All that is wrong with what a reader needs. Asks for what it needs in a form that makes nothing.
    async fn faults(&self) -> Result<Vec<SourceError>, SourceError> {
        let mut line = self.line(true).await?;
        let name = &*self.stream.stream;
        let consumer = line.new_consumer_name();
        let (info, next) = (api::info_question(name), api::next_question(name, &consumer));
        let create = [format!("CONSUMER.CREATE.{name}.{consumer}"), format!("CONSUMER.CREATE.{name}")];
        // A consumer that is not there says nothing, and one without a configuration is not made.
        for question in create.iter().chain([&next]) {
            line.ask(question, "x", "");
        }
        let mut faults = Vec::new();
        match api::stream_info(&mut line, name).await {
            Ok(Some(info)) => {
                faults.extend(self.suits(&info).err());
                if faults.is_empty() {
                    faults.extend(self.what_never_comes(&info).map(|ours| SourceError::configuration(never(name, ours))));
                }
            }
            Ok(None) => match self.could_make(&mut line).await {
                Ok(obstacles) => faults.extend(obstacles),
                Err(error) => faults.push(error),
            },
            Err(error) => faults.push(error),
        }
        // What is refused is known by the time that the next question is answered, or after a while.
        tokio::time::sleep(GRACE).await;
        if line.is_refused(&info) {
            // Where it was answered so, this is known.
            let denied = line.denied(&info);
            faults.retain(|fault| fault.to_string() != denied.to_string());
            faults.push(denied);
        }
        // An older way to make a consumer is enough.
        if create.iter().all(|question| line.is_refused(question)) {
            faults.push(line.denied(&format!("CONSUMER.CREATE.{name}.>")));
        }
        if line.is_refused(&next) {
            faults.push(line.denied(&api::next_question(name, ">")));
        }
        line.close().await;
        Ok(faults)
    }

    /// Why the stream, which is not there, could not be made.
    async fn could_make(&self, line: &mut Line) -> Result<Vec<SourceError>, SourceError> {
        let name = &*self.stream.stream;
        let Some(limits) = &self.stream.create else { return Ok(vec![self.missing()]) };
        let mut obstacles = Vec::from_iter(line.may_not(&format!("STREAM.CREATE.{name}"), None).await?);
        if limits.replicas > 1 && !line.is_in_cluster() {
            let what = format!("the server is in no cluster: `jetstream.create.replicas` cannot be {}", limits.replicas);
            obstacles.push(SourceError::configuration(what));
        }
        for ours in &self.names.subjects {
            if let Some(other) = api::stream_of(line, ours.as_str()).await? {
                let what = format!("the stream `{other}` takes subjects of `{ours}` already: it is to be read (`jetstream.stream`)");
                obstacles.push(SourceError::configuration(what));
            }
        }
        Ok(obstacles)
    }

    /// The stream is not there, and is not made now.
    fn missing(&self) -> SourceError {
        let name = &*self.stream.stream;
        let hint = match (&self.names.bucket, &self.stream.create) {
            (Some(bucket), _) => format!(": make the bucket `{bucket}` (`kv`)"),
            (None, None) => " (`jetstream.stream`; with `jetstream.create` it would be made)".to_owned(),
            (None, Some(_)) => String::new(),
        };
        SourceError::missing(format!("there is no stream `{name}`{hint}"))
    }

    fn suits(&self, info: &StreamInfo) -> Result<(), SourceError> {
        let name = &self.stream.stream;
        if !info.config.retention.is_empty() && info.config.retention != "limits" {
            let retention = &info.config.retention;
            return Err(SourceError::configuration(format!(
                "the stream `{name}` has `{retention}` retention: only `limits` can be read again"
            )));
        }
        let theirs = info.own_subjects();
        if !theirs.is_empty() && !theirs.iter().any(|theirs| self.names.subjects.iter().any(|ours| ours.intersects(theirs))) {
            let theirs: Vec<_> = theirs.iter().map(Pattern::as_str).collect();
            return Err(SourceError::configuration(format!(
                "the stream `{name}` takes none of these subjects (it has: {})",
                theirs.join(", ")
            )));
        }
        self.names.are_keys(info)
    }

    /// `create` leaves a stream that is there as it is: what it does not take would be missed in silence.
    fn tell_what_never_comes(&self, info: &StreamInfo) {
        self.what_never_comes(info).for_each(|ours| tracing::warn!(source = %self.name, "{}", never(&self.stream.stream, ours)));
    }

    fn what_never_comes(&self, info: &StreamInfo) -> impl Iterator<Item = &Pattern> {
        let theirs = info.own_subjects();
        self.names.subjects.iter().filter(move |ours| !theirs.is_empty() && !theirs.iter().any(|theirs| theirs.intersects(ours)))
    }

    /// What the server may leave out. Servers before 2.10 ignore a list; so the reader filters all the same. A stream that does not
    /// take one of our subjects may be made to take it while it is read, and filters for it may be refused until then: so it is read
    /// as a whole.
    fn filters(&self, info: &StreamInfo) -> Vec<String> {
        let (theirs, ours) = (info.own_subjects(), &self.names.subjects);
        if theirs.is_empty() && ours.len() > 1 || !theirs.is_empty() && theirs.iter().all(|theirs| theirs.covered_by(ours)) {
            return Vec::new();
        }
        let all_come = self.what_never_comes(info).next().is_none();
        if all_come && info.takes(ours) { ours.iter().map(ToString::to_string).collect() } else { Vec::new() }
    }

    async fn attach(&self, start: Start, live: bool) -> Result<Reader, SourceError> {
        let mut line = self.line(live).await?;
        let info = self.info(&mut line, live).await?;
        let filters = self.filters(&info);
        Ok(self.read(line, info, start, live, filters).await?.1)
    }

    /// A history of `wanted` only, if that is little of what there is.
    async fn select(&self, start: Start, wanted: &[Pattern]) -> Result<Option<Reader>, SourceError> {
        let mut line = self.line(false).await?;
        let info = self.info(&mut line, false).await?;
        let stored = |shown: &Pattern| self.names.stored(shown.as_str(), &info).parse();
        let Ok(wanted) = wanted.iter().map(stored).collect::<Result<Vec<Pattern>, _>>() else { return Ok(None) };
        let last = start == Start::LastPerSubject;
        let left = match start {
            Start::After(place) => info.state.last_seq.saturating_sub(place.seq).min(info.state.messages),
            _ => info.state.messages,
        };
        if !info.takes(&wanted) || (!last && left < MANY) {
            return Ok(None);
        }
        let filters = wanted.iter().map(ToString::to_string).collect();
        let (pending, reader) = match self.read(line, info, start, false, filters).await {
            // Servers before 2.10 refuse `$KV.*.KEY` of a mirror.
            Err(error) if error.kind() == ErrorKind::Configuration => return Ok(None),
            read => read?,
        };
        Ok((last || pending.saturating_mul(FEW) <= left).then_some(reader))
    }

    /// A reader of what these filters take, and how many messages it has to deliver.
    async fn read(
        &self,
        mut line: Line,
        mut info: StreamInfo,
        start: Start,
        live: bool,
        filters: Vec<String>,
    ) -> Result<(u64, Reader), SourceError> {
        self.suits(&info)?;
        if live {
            self.tell_what_never_comes(&info);
        }
        let (begin, consumer) = loop {
            let (mut begin, new) = self.begin(&mut line, &info, start, live, &filters).await?;
            let consumer = self.consume(&mut line, &info, new, &mut begin).await?;
            let Some(grown) = self.grown(&mut line, &info, start).await? else { break (begin, consumer) };
            self.discard(&mut line, &consumer).await?;
            info = grown;
        };
        let stream = self.stream.stream.clone();
        tracing::debug!(source = %self.name, stream, consumer, first = info.first(), last = info.state.last_seq, pending = begin.pending, "reads a stream");
        Ok((begin.pending, Reader::new(line, stream, consumer, info, self.names.clone(), begin)))
    }

    /// How a reader begins, and the consumer for it.
    async fn begin(
        &self,
        line: &mut Line,
        info: &StreamInfo,
        start: Start,
        live: bool,
        filters: &[String],
    ) -> Result<(Begin, NewConsumer), SourceError> {
        let end = self.position(line, info.state.last_seq).await?;
        let credit = if live { LIVE } else { HISTORY };
        let (items, known, trouble) = (Vec::new(), self.known.clone(), self.trouble.clone());
        // Which sequence the consumer delivers first, it says itself.
        let (next, all) = (Next::Sequence(0), filters.to_vec());
        let mut begin = Begin { items, floor: None, end, pending: 0, next, credit, filters: all, live, known, trouble };
        let mut new = NewConsumer::of(filters);
        let mut follow = |begin: &mut Begin, seq: u64, gap: Option<Gap>| {
            begin.items.extend(gap.map(Item::Gap));
            begin.floor = Some(seq);
            new.start_behind(seq);
        };
        match start {
            Start::Now => follow(&mut begin, end.seq, None),
            Start::After(place) => {
                let (after, gap) = self.resume(line, info, place, end, live).await?;
                follow(&mut begin, after, gap);
            }
            Start::LastPerSubject => match self.newest(line, filters, end.seq).await? {
                Some(items) => {
                    begin.items = items;
                    follow(&mut begin, end.seq, None);
                }
                None if self.trouble.lock().stops_newest() => {
                    begin.items = self.newest_past_odd(line, info, filters, end).await?;
                    follow(&mut begin, end.seq, None);
                }
                None => {
                    new = NewConsumer::of_newest(filters);
                    begin.next = Next::Newest;
                }
            },
            Start::Earliest => new.deliver_policy = "all",
            Start::Since(time) => new.start_at(time),
            Start::Recent { age, bytes } => {
                let time = Timestamp::now().before(age);
                match self.recent(line, info, bytes).await? {
                    Some(stored) if stored.time / 1000 > time.as_micros() => new.start_behind(stored.seq - 1),
                    _ => new.start_at(time),
                }
            }
        }
        Ok((begin, new))
    }

    /// Makes the consumer, behind messages that the library cannot read, and returns its name.
    async fn consume(&self, line: &mut Line, info: &StreamInfo, mut new: NewConsumer, begin: &mut Begin) -> Result<String, SourceError> {
        let name = &*self.stream.stream;
        let gone = || SourceError::missing(format!("the stream `{name}` has just gone"));
        let mut consumer = self.create(line, info, new.clone()).await?.ok_or_else(gone)?;
        if begin.next != Next::Newest {
            let next = consumer.delivered.stream_seq + 1;
            begin.next = Next::Sequence(next);
            let near = self.trouble.lock().is_near(next);
            let detour = if near { self.detour(line, info, next, &new).await? } else { Detour::default() };
            if let Some(place) = detour.end {
                self.discard(line, &consumer.name).await?;
                begin.items.extend(detour.items);
                begin.floor = Some(place.seq);
                begin.next = Next::Sequence(place.seq + 1);
                if place.seq > begin.end.seq {
                    begin.end = place;
                }
                new.start_behind(place.seq);
                consumer = self.create(line, info, new).await?.ok_or_else(gone)?;
            }
        }
        begin.pending = consumer.num_pending;
        if consumer.config.max_batch > 0 {
            begin.credit.messages = begin.credit.messages.min(consumer.config.max_batch);
        }
        Ok(consumer.name)
    }

    /// The stream, if it goes as far as a place that seemed to be beyond its end. A leader that is cut off from the others knows nothing of
    /// what they have taken since, and answers until it notices. It makes no consumer alone: so this is asked behind that. A stream that was
    /// cut grows too: without the message of that place, it is taken for one.
    async fn grown(&self, line: &mut Line, info: &StreamInfo, start: Start) -> Result<Option<StreamInfo>, SourceError> {
        let Start::After(place) = start else { return Ok(None) };
        let anew = self.known.lock().created.as_ref().is_some_and(|created| *created != info.created);
        if anew || place.check.is_none() || place.seq <= info.state.last_seq {
            return Ok(None);
        }
        // The consumer waits meanwhile.
        let patience = CATCH_UP.min(Duration::from_nanos(self.inactive(info)) / 2);
        let begun = Instant::now();
        loop {
            let now = self.info(line, false).await?;
            if place.seq <= now.state.last_seq {
                let there = self.position(line, place.seq).await?;
                return Ok((there.check == place.check).then_some(now));
            }
            if begun.elapsed() > patience {
                return Ok(None);
            }
            sleep(patience / 10).await;
        }
    }

    async fn discard(&self, line: &mut Line, consumer: &str) -> Result<(), SourceError> {
        // Without the right to it, it expires.
        line.try_request(&api::delete_question(&self.stream.stream, consumer), "", ANSWER).await?;
        Ok(())
    }

    /// Makes a consumer that outlives the time until its first question, also where answers are slow.
    async fn create(&self, line: &mut Line, info: &StreamInfo, mut new: NewConsumer) -> Result<Option<ConsumerInfo>, SourceError> {
        new.inactive_threshold = self.inactive(info);
        let begun = Instant::now();
        let made = api::create_consumer(line, &self.stream.stream, new).await;
        self.made_in.store(u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        made
    }

    /// How long the server keeps a consumer that asks for nothing, in nanoseconds: no longer than the stream permits.
    fn inactive(&self, info: &StreamInfo) -> u64 {
        let before = Duration::from_millis(self.made_in.load(Ordering::Relaxed));
        let ours = nanos(INACTIVE.max(before * 3));
        match info.config.consumer_limits.inactive_threshold {
            0 => ours,
            most => ours.min(most),
        }
    }

    /// The place of a message, with its check where it is still there.
    async fn position(&self, line: &mut Line, seq: u64) -> Result<Position, SourceError> {
        let stored = if seq == 0 { None } else { api::message(line, &self.stream.stream, seq, false).await? };
        Ok(Position { seq, check: stored.map(|stored| stored.check) })
    }

    /// Behind which sequence a reader at `place` goes on, and what may be missing in between.
    async fn resume(
        &self,
        line: &mut Line,
        info: &StreamInfo,
        place: Position,
        end: Position,
        live: bool,
    ) -> Result<(u64, Option<Gap>), SourceError> {
        let first = info.first();
        let gap = |reason| Gap { reason, from: Some(place.seq), to: Some(first), position: Some(Position::unverified(first - 1)) };
        let anew = live && self.known.lock().created.as_ref().is_some_and(|created| *created != info.created);
        let other = match place.check {
            _ if anew || place.seq > info.state.last_seq => true,
            Some(_) if place.seq == end.seq => !place.agrees(&end),
            Some(_) if place.seq >= first => !place.agrees(&self.position(line, place.seq).await?),
            _ => false,
        };
        if other {
            return Ok((first - 1, Some(gap(GapReason::Reset))));
        }
        if place.seq + 1 >= first {
            return Ok((place.seq, None));
        }
        let (time, expired, limits) = {
            let known = self.known.lock();
            (known.time_at(place.seq, info), known.may_have_expired(info), known.limits(place.seq, info, line.largest()))
        };
        let mut reason = info.why_gone(place.seq, time, expired, limits);
        if reason.is_none() && !expired && purge::of_everything(line, &self.stream.stream, info).await? {
            reason = Some(GapReason::Reset);
        }
        if reason == Some(GapReason::Reset) {
            // What was purged by its subject is no longer content.
            let purged = purge::by_subject(&self.known, line, &self.stream.stream, info, place.seq, &self.names).await?;
            reason = reason.filter(|_| !purged);
        }
        Ok((first - 1, reason.map(gap)))
    }

    /// The message from which on there are about so many bytes; `None` where that is all.
    async fn recent(&self, line: &mut Line, info: &StreamInfo, bytes: u64) -> Result<Option<Stored>, SourceError> {
        let state = &info.state;
        if state.bytes <= bytes || state.messages == 0 {
            return Ok(None);
        }
        // Messages are taken to be alike, and spread evenly over the sequences.
        let span = (state.last_seq + 1).saturating_sub(info.first());
        let back = u64::try_from(u128::from(span) * u128::from(bytes) / u128::from(state.bytes)).unwrap_or(span);
        let seq = (state.last_seq + 1).saturating_sub(back).clamp(info.first(), state.last_seq);
        api::message(line, &self.stream.stream, seq, true).await
    }
}

fn never(stream: &str, ours: &Pattern) -> String {
    format!("the stream `{stream}` is not made for the subject `{ours}`: nothing of it will come")
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

impl NewConsumer {
    /// Of what these filters take; from where on is to be said yet.
    fn of(filters: &[String]) -> Self {
        let new = Self { ack_policy: "none", replay_policy: "instant", num_replicas: 1, mem_storage: true, ..Self::default() };
        match filters {
            [] => new,
            [one] => Self { filter_subject: Some(one.clone()), ..new },
            several => Self { filter_subjects: several.to_vec(), ..new },
        }
    }

    /// Of the newest message of each subject. It wants a filter, and older servers only one.
    fn of_newest(filters: &[String]) -> Self {
        let one = if let [one] = filters { one } else { ">" };
        Self { deliver_policy: LAST_PER_SUBJECT, ..Self::of(&[one.to_owned()]) }
    }

    fn is_of_newest(&self) -> bool {
        self.deliver_policy == LAST_PER_SUBJECT
    }

    /// At the last message of all.
    fn start_at_last(&mut self) {
        (self.deliver_policy, self.opt_start_seq, self.opt_start_time) = ("last", None, None);
    }

    fn start_behind(&mut self, seq: u64) {
        (self.deliver_policy, self.opt_start_seq, self.opt_start_time) = ("by_start_sequence", Some(seq + 1), None);
    }

    fn start_at(&mut self, time: Timestamp) {
        (self.deliver_policy, self.opt_start_time) = ("by_start_time", Some(time.to_string()));
    }
}

impl StreamInfo {
    /// The first sequence that is left, or the next one to come.
    fn first(&self) -> u64 {
        if self.state.messages == 0 { self.state.last_seq + 1 } else { self.state.first_seq.max(1) }
    }

    /// What it takes itself, where that says what it holds.
    fn own_subjects(&self) -> Vec<Pattern> {
        let config = &self.config;
        if config.mirror.is_some() || config.sources.is_some() || config.subject_transform.is_some() {
            return Vec::new();
        }
        config.subjects.iter().flatten().filter_map(|subject| subject.parse().ok()).collect()
    }

    /// Whether a consumer can have these filters. The server refuses those that overlap each other, or lie across the
    /// stream's subjects.
    fn takes(&self, filters: &[Pattern]) -> bool {
        let theirs = self.own_subjects();
        let within = |a: &Pattern, b: &Pattern| a.covered_by(std::slice::from_ref(b));
        let nested = |filter: &Pattern| theirs.is_empty() || theirs.iter().any(|t| within(t, filter) || within(filter, t));
        let disjoint = filters.iter().enumerate().all(|(n, a)| filters[..n].iter().all(|b| !a.intersects(b)));
        disjoint && filters.iter().all(nested)
    }
}

/// Nanoseconds since 1970.
fn now() -> u64 {
    Timestamp::now().as_micros().saturating_mul(1000)
}

impl Adapter for JetStreamSource {
    fn kind(&self) -> &'static str {
        "nats"
    }

    fn advice(&self) -> Vec<(&'static str, String)> {
        self.config.advice()
    }

    fn durable(&self) -> bool {
        true
    }

    fn dates(&self) -> bool {
        true
    }

    fn keeps_last(&self) -> bool {
        true
    }

    fn reach(&self) -> Vec<Pattern> {
        self.config.reach()
    }

    fn connect(&self, start: Start) -> BoxFuture<'_, Result<Box<dyn Connection>, SourceError>> {
        Box::pin(async move { Ok(Box::new(self.attach(start, true).await?) as Box<dyn Connection>) })
    }

    fn history(&self, start: Start) -> BoxFuture<'_, Result<Box<dyn Connection>, SourceError>> {
        Box::pin(async move { Ok(Box::new(self.attach(start, false).await?) as Box<dyn Connection>) })
    }

    fn check(&self) -> BoxFuture<'_, Vec<SourceError>> {
        Box::pin(async { self.faults().await.unwrap_or_else(|error| vec![error]) })
    }

    fn selects(&self) -> bool {
        true
    }

    fn selected<'a>(&'a self, start: Start, wanted: &'a [Pattern]) -> BoxFuture<'a, Result<Option<Box<dyn Connection>>, SourceError>> {
        Box::pin(async move { Ok(self.select(start, wanted).await?.map(|reader| Box::new(reader) as Box<dyn Connection>)) })
    }

    fn gauges(&self) -> Gauges {
        Gauges { expires: self.servers.expiry.get(), ..Gauges::default() }
    }

    fn narrowed(&self, subject: &Subject) -> Option<Arc<dyn Adapter>> {
        let config = self.config.narrowed(subject)?;
        let stream = config.jetstream.clone()?;
        Some(Arc::new(Self::new(config, stream, &self.name)))
    }

    fn keeps_for(&self) -> BoxFuture<'_, Result<Option<Duration>, SourceError>> {
        Box::pin(async move {
            let mut line = self.line(true).await?;
            let age = self.info(&mut line, false).await?.config.max_age;
            Ok((age > 0).then(|| Duration::from_nanos(age)))
        })
    }

    fn publish<'a>(&'a self, subject: &'a str, payload: Bytes) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(nats::publish(&self.config, subject, payload))
    }
}
