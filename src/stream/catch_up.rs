//! A client on its way to live: where it is in every source, and what it gets next.
//!
//! Each source is followed in its window. A source whose window does not reach back to the client is read from the broker
//! until it does. When all are followed to their ends, the client takes its seat in a channel under the same lock, and so
//! without a seam.

use std::iter::Peekable;
use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::MutexGuard;

use super::out::Out;
use super::{Begin, Settings, Step, Streams, Visit};
use crate::cursor::{Cursor, Point, Position, Tag};
use crate::event::{Gap, GapReason, SourceKey, Timestamp};
use crate::frame::{self, Encoded};
use crate::hub::{Entry, Filter, Hub, Seat, Source, SourceInfo, State, Window};

mod broker;
mod followed;
mod resolve;
mod unfound;

use broker::Reading;
use followed::{Followed, Newest, Track};
use unfound::Unfound;

/// So many patterns of a filter are compared with [`Settings::scan`] entries in one step.
const PATTERNS: usize = 16;

/// What came of a step.
pub(super) enum Moved {
    Step(Step),
    /// It is live from this offset on and has this id, behind these bytes.
    Live(Seat, u64, Arc<str>, Vec<Bytes>),
}

/// A client on its way to live.
pub(super) struct CatchUp {
    streams: Arc<Streams>,
    filter: Arc<Filter>,
    client: Client,
    /// The volatile sources have been consumed up to this sequence; `None`: not looked up yet.
    volatile: Option<u64>,
    /// Of what volatile sources' windows hold up to this sequence, only the newest event of each subject is sent. Until that is done the
    /// client's point asks for these.
    newest: Option<u64>,
    /// Where it wanted to begin.
    wanted: Wanted,
    /// It came with an id of another process.
    is_foreign: bool,
    /// Logs that it waits for before it is live.
    unfound: Unfound,
    /// The sources, as of this version of the hub's.
    sources: Vec<Followed>,
    version: u64,
    /// Gaps to be told next, by source; `None` is all of them. They are before the client's cursor.
    gaps: Vec<(Option<usize>, Gap)>,
    /// The source whose log is read beside following the windows.
    reading: Option<Reading>,
    /// Readings that were begun.
    readings: u32,
    /// The source whose log was read last.
    read_last: usize,
    next_beat: Timestamp,
    /// What is to be sent next.
    out: Out,
}

/// Where a client wanted to begin, for logs that are found later.
#[derive(Debug, Clone, Copy)]
enum Wanted {
    Now,
    /// Behind an id.
    Id,
    /// At this point of each source.
    Point(Point),
}

impl Wanted {
    fn of(begin: &Begin) -> Self {
        match begin {
            Begin::Now | Begin::Unreadable => Self::Now,
            Begin::After(_) => Self::Id,
            Begin::At(point) => Self::Point(*point),
        }
    }
}

/// Where the client is.
struct Client {
    at: Cursor,
    /// The id that was written last.
    last_id: Vec<u8>,
    scratch: Vec<u8>,
    /// Events that were written for it.
    events: u64,
}

/// An entry of a window that the client has come to.
struct Picked {
    source: usize,
    seq: u64,
    position: Option<Position>,
    /// What is sent of it, if the client wants it.
    encoded: Option<Encoded>,
}

/// What a client is still to get of a source's window.
type Front<'a, I> = (usize, &'a Window, Peekable<I>);

/// What picking in the windows led to.
enum Windows {
    /// There may be more.
    More,
    /// All has been looked at; some source is not in its window yet.
    Behind,
    /// All has been looked at: the client is live, from this offset on, and has this id.
    Live(Seat, u64, Arc<str>),
}

impl Client {
    /// Makes the id of where the client is now the last one.
    fn note_id(&mut self) {
        self.last_id.clear();
        self.at.encode(&mut self.scratch, &mut self.last_id);
    }

    /// Appends an `id` line of where the client is now.
    fn write_id(&mut self, out: &mut Vec<u8>) {
        self.note_id();
        frame::id_line(out, &self.last_id);
    }

    fn point(&self, tag: Option<Tag>) -> Option<Point> {
        point(&self.at, tag?)
    }

    fn move_to(&mut self, tag: Option<Tag>, point: Point) {
        let Some(tag) = tag else { return };
        match self.at.durable.iter_mut().find(|(t, _)| *t == tag) {
            Some((_, at)) => *at = point,
            None => self.at.durable.push((tag, point)),
        }
    }
}

impl CatchUp {
    /// For a client that has just come: the first bytes are a comment, `retry` and, where nothing is to be told before it,
    /// its id.
    pub(super) fn open(streams: Arc<Streams>, filter: Arc<Filter>, begin: Begin, now: Timestamp) -> Self {
        let mut this = Self::start(streams, filter, begin, now);
        // Until the gaps have been told the client is where it says it is.
        if this.gaps.is_empty() {
            this.client.note_id();
        }
        let id = Some(&*this.client.last_id).filter(|id| !id.is_empty());
        frame::opening(this.out.own(), this.streams.retry(), id);
        this
    }

    /// For a client that is being served already. `last_id`: what it was sent last, if it need not be sent where it begins.
    pub(super) fn resume(streams: Arc<Streams>, filter: Arc<Filter>, begin: Begin, last_id: Option<&[u8]>, now: Timestamp) -> Self {
        let mut this = Self::start(streams, filter, begin, now);
        // Not the id of where it is by now: that may be behind gaps that it was not told yet.
        this.client.last_id.extend_from_slice(last_id.unwrap_or_default());
        this
    }

    fn start(streams: Arc<Streams>, filter: Arc<Filter>, begin: Begin, now: Timestamp) -> Self {
        let mut gaps: Vec<_> = (begin == Begin::Unreadable).then_some((None, Gap::UNKNOWN)).into_iter().collect();
        let (state, concerned) = ask(&streams.hub, &filter, None, &[]);
        let concerned = |info: &SourceInfo| concerned.get(&info.key) == Some(&true);
        let fresh = matches!(begin, Begin::Now | Begin::Unreadable);
        let wanted = Wanted::of(&begin);
        let mut at = match begin {
            Begin::After(cursor) => cursor,
            Begin::At(point) => everywhere(&streams, &state, point),
            // The bridge's own ids can be read.
            Begin::Now | Begin::Unreadable => Cursor::from_id(state.id()).unwrap_or_else(|_| everywhere(&streams, &state, Point::Earliest)),
        };
        let (version, is_foreign) = (state.version(), at.epoch != streams.hub.epoch());
        let mut sources = Vec::new();
        let early = is_early(&at, &streams, &state);
        for source in state.sources() {
            if let Some(tag) = source.tag().filter(|tag| !fresh && point(&at, *tag).is_none()) {
                // One that came back and is not live yet tells it once it is.
                if (if source.info().returned() { source.warm() } else { !early }) && concerned(source.info()) {
                    gaps.push((Some(sources.len()), Gap::UNKNOWN));
                }
                if let Some(began) = source.began().filter(|_| early && source.warm()) {
                    at.durable.push((tag, began.position.map_or(Point::Earliest, Point::At)));
                }
            }
            let track = match source.tag() {
                None => Track::Volatile,
                Some(tag) if !fresh && point(&at, tag).is_some() => Track::Pending,
                // New to this client: from now on.
                Some(tag) if source.warm() => {
                    if point(&at, tag).is_none() {
                        at.durable.push((tag, source.window().head().map_or(Point::Earliest, Point::At)));
                    }
                    Track::Follow(state.seq())
                }
                Some(_) => Track::Fresh,
            };
            let is_told = gaps.iter().any(|(of, _)| *of == Some(sources.len()));
            sources.push(Followed { is_told, ..Followed::new(source.info().clone(), track, concerned(source.info())) });
        }
        let volatile = fresh.then(|| state.seq());
        let unfound = Unfound::of(&at, &streams, &state, now);
        drop(state);
        let client = Client { at, last_id: Vec::new(), scratch: Vec::new(), events: 0 };
        let next_beat = now.after(streams.settings.heartbeat);
        let (newest, reading, readings, read_last, out) = (None, None, 0, usize::MAX, Out::new(streams.settings.share));
        Self {
            streams,
            filter,
            client,
            volatile,
            newest,
            wanted,
            is_foreign,
            unfound,
            sources,
            version,
            gaps,
            reading,
            readings,
            read_last,
            next_beat,
            out,
        }
    }

    /// It is sent something else from now on.
    pub(super) fn follow(&mut self, filter: Arc<Filter>) {
        if *self.filter == *filter {
            return;
        }
        self.filter = filter;
        for of in &mut self.sources {
            of.concerned = of.info.concerns(&self.filter);
        }
        // What is read of a log may have been chosen by the filter. The newest of each subject are not read twice.
        if let Some(Reading { source, .. }) = self.reading
            && self.point(source) != Some(Point::Last)
        {
            self.end_history(source);
        }
    }

    /// The last id that was written.
    pub(super) fn last_id(&self) -> &[u8] {
        &self.client.last_id
    }

    /// Events that were written for the client since this was asked last.
    pub(super) fn take_events(&mut self) -> u64 {
        std::mem::take(&mut self.client.events)
    }

    /// What comes next.
    pub(super) fn step(&mut self, visit: &Visit, now: Timestamp) -> Moved {
        let windows = self.gather(visit, now);
        if let Windows::Live(seat, offset, id) = windows {
            // All that the bridge has, this client has: from here on it shares the bridge's ids.
            if self.client.last_id != id.as_bytes() {
                frame::id_line(self.out.own(), id.as_bytes());
                self.out.own().push(b'\n');
            }
            return Moved::Live(seat, offset, id, self.out.take());
        }
        if self.out.is_empty() && self.beats(now) {
            self.heartbeat(now);
        }
        Moved::Step(if !self.out.is_empty() {
            Step::Send(self.out.take())
        } else if matches!(windows, Windows::More) {
            Step::Again
        } else {
            self.choose_history();
            let until = self.unfound.until(now).map_or(self.next_beat, |until| until.min(self.next_beat));
            Step::Wait { until, history: self.history() }
        })
    }

    fn beats(&self, now: Timestamp) -> bool {
        // Also when the clock was set back.
        now >= self.next_beat || now.after(self.streams.settings.heartbeat) < self.next_beat
    }

    fn heartbeat(&mut self, now: Timestamp) {
        self.next_beat = now.after(self.streams.settings.heartbeat);
        let before = std::mem::take(&mut self.client.last_id);
        self.client.note_id();
        frame::heartbeat(self.out.own(), (before != self.client.last_id).then_some(&self.client.last_id));
    }

    fn tag(&self, source: usize) -> Option<Tag> {
        self.sources[source].info.tag
    }

    fn point(&self, source: usize) -> Option<Point> {
        self.client.point(self.tag(source))
    }

    fn move_to(&mut self, source: usize, point: Point) {
        let tag = self.tag(source);
        self.client.move_to(tag, point);
    }

    /// The hub's state, with what [`follow_sources`](Self::follow_sources) needs for it.
    fn look<'a>(&self, hub: &'a Hub) -> (MutexGuard<'a, State>, HashMap<SourceKey, bool>) {
        ask(hub, &self.filter, Some(self.version), &self.sources)
    }

    /// Takes note of sources that were added, replaced or removed. `concerned`: of those that were added, whether they can have
    /// something for the client.
    fn follow_sources(&mut self, state: &State, concerned: &HashMap<SourceKey, bool>) {
        if std::mem::replace(&mut self.version, state.version()) == state.version() {
            return;
        }
        for source in 0..self.sources.len() {
            if state.source(self.sources[source].info.key).is_none() {
                self.sources[source].track = Track::Gone;
                self.end_history(source);
                // Another source may take its place here before it is told that its place is not known. One with the same log tells that then.
                if self.gaps.extract_if(.., |(of, _)| *of == Some(source)).count() > 0 {
                    let tag = self.tag(source);
                    self.client.at.durable.retain(|(of, _)| Some(*of) != tag);
                }
            }
        }
        self.unfound.follow(state);
        let mut late = Vec::new();
        for of in state.sources() {
            if self.sources.iter().any(|known| known.info.key == of.info().key) {
                continue;
            }
            let concerned = concerned.get(&of.info().key) == Some(&true);
            let track = match of.tag() {
                None => Track::Volatile,
                // In another's place: behind what the client has of that one.
                Some(tag) if self.client.point(Some(tag)).is_some() => Track::Pending,
                // Another log of a source that it wanted to have read.
                Some(tag)
                    if of.info().part
                        && !of.warm()
                        && let Wanted::Point(point) = self.wanted =>
                {
                    self.client.at.durable.push((tag, point));
                    Track::Pending
                }
                Some(_) => {
                    let missed = of.info().part && !of.warm() && matches!(self.wanted, Wanted::Id) && concerned;
                    if missed && self.is_foreign {
                        late.push(of.info().key);
                    }
                    Track::Fresh
                }
            };
            let followed = Followed { is_told: late.contains(&of.info().key), ..Followed::new(of.info().clone(), track, concerned) };
            match self.sources.iter_mut().find(|of| of.track == Track::Gone) {
                Some(gone) => *gone = followed,
                None => self.sources.push(followed),
            }
        }
        let place = |key| self.sources.iter().position(|known| known.info.key == key);
        self.gaps.extend(late.into_iter().map(|key| (place(key), Gap::UNKNOWN)));
    }

    /// Writes what the windows hold for the client.
    fn gather(&mut self, visit: &Visit, now: Timestamp) -> Windows {
        let (mut picked, mut windows) = (Vec::new(), Windows::More);
        let before = self.client.at.clone();
        {
            let hub = self.streams.hub.clone();
            let (mut state, concerned) = self.look(&hub);
            if visit.is_moved() || visit.is_over() {
                drop(state);
                // What was read of a log may have led the id on already: then its gaps are told before anything else.
                self.write_gaps(&before);
                // The windows may hold already what was published behind that: nothing of it is passed over.
                return Windows::More;
            }
            self.follow_sources(&state, &concerned);
            self.resolve(&state);
            if !self.gaps.is_empty() {
                drop(state);
                self.write_gaps(&before);
                return Windows::More;
            }
            if !self.pick(&state, &mut picked) {
                windows = Windows::Behind;
                let followed = self.sources.iter().all(|of| of.track != Track::Pending) && self.volatile.is_some();
                if followed && self.unfound.until(now).is_none() {
                    self.leave_points(&mut state);
                    let (seat, offset) = hub.join(&mut state, &self.filter);
                    windows = Windows::Live(seat, offset, state.id().clone());
                }
            }
        }
        self.write_picked(picked);
        if !matches!(windows, Windows::More) {
            self.end_newest_volatile();
            (0..self.sources.len()).for_each(|source| self.end_newest(source));
        }
        self.write_gaps(&before);
        windows
    }

    /// Entries that are looked at in one step. Each is compared with all patterns while publishing waits: the more patterns, the fewer
    /// entries.
    fn scan(&self) -> usize {
        let Settings { scan, .. } = self.streams.settings;
        (scan * PATTERNS / self.filter.patterns().len().max(PATTERNS)).max(1)
    }

    /// Picks what follows in the windows, oldest first. Returns whether there is more.
    fn pick(&mut self, state: &State, picked: &mut Vec<Picked>) -> bool {
        // The windows drop nothing while they are looked at.
        if self.note_losses(state) {
            return true;
        }
        let mut fronts = self.fronts(state);
        let mut bytes = 0;
        for _ in 0..self.scan() {
            if bytes >= self.streams.settings.piece {
                return true;
            }
            let first = fronts.iter_mut().filter_map(|(source, _, entries)| Some((entries.peek()?.seq, *source, entries)));
            let Some((_, source, entries)) = first.min_by_key(|(seq, ..)| *seq) else { return false };
            let Some(entry) = entries.next() else { return false };
            match &mut self.sources[source].track {
                Track::Follow(seq) => *seq = entry.seq,
                _ => self.volatile = Some(entry.seq),
            }
            let all = self.top(source) < Some(entry.seq);
            let wanted = match entry.encoded.subject() {
                Some(subject) if self.filter.matches(subject) => {
                    all || entry.encoded.is_event() && self.is_newest(source, subject, entry.seq, &fronts)
                }
                Some(_) => false,
                None => all && self.sources[source].concerned,
            };
            let encoded = wanted.then(|| entry.encoded.clone());
            bytes += encoded.as_ref().map_or(0, |encoded| encoded.body(self.filter.form()).len());
            picked.push(Picked { source, seq: entry.seq, position: entry.position, encoded });
        }
        true
    }

    /// What the client is still to get of each window that is followed. Under one lock the windows don't change.
    fn fronts<'a>(&mut self, state: &'a State) -> Vec<Front<'a, impl Iterator<Item = &'a Entry> + use<'a>>> {
        let mut fronts = Vec::with_capacity(self.sources.len());
        for (source, of) in self.sources.iter_mut().enumerate() {
            let Some(window) = state.source(of.info.key).map(Source::window) else { continue };
            let after = match (of.track, self.volatile) {
                (Track::Follow(seq), _) if window.floor() > seq.max(of.newest.map_or(0, |newest| newest.top)) && of.concerned => {
                    // The window has moved on beyond this client: the broker still has it.
                    of.track = Track::Pending;
                    if let Some(Newest { head, .. }) = of.newest.take() {
                        self.client.move_to(of.info.tag, head.map_or(Point::Earliest, Point::At));
                    }
                    continue;
                }
                (Track::Follow(seq), _) | (Track::Volatile, Some(seq)) => seq,
                _ => continue,
            };
            fronts.push((source, window, window.after(after).peekable()));
        }
        fronts
    }

    /// Notes what the windows of volatile sources have dropped before the client had it. Returns whether that is anything.
    fn note_losses(&mut self, state: &State) -> bool {
        let Some(after) = self.volatile else { return false };
        let mut end = None;
        // One sequence stands for all volatile sources: it may not pass what another one still has for the client.
        let mut next = u64::MAX;
        for (source, of) in self.sources.iter_mut().enumerate().filter(|(_, of)| of.track == Track::Volatile) {
            let Some(there) = state.source(of.info.key) else { continue };
            let window = there.window();
            next = next.min(window.after(after).next().map_or(u64::MAX, |entry| entry.seq));
            let (floor, from) = (window.floor(), after.max(of.covered).max(self.newest.unwrap_or_default()));
            if floor <= from || !of.concerned {
                continue;
            }
            let to = window.after(floor).next().map_or(floor + 1, |entry| entry.seq);
            let from = Some(from).filter(|from| *from > 0);
            // The window of the source that this one has replaced is gone.
            let reason = if after < there.replaced() { GapReason::Restart } else { GapReason::Retention };
            self.gaps.push((Some(source), Gap { reason, from, to: Some(to), position: None }));
            of.covered = floor;
            end = end.max(Some(floor));
        }
        self.volatile = Some(end.map_or(after, |end| end.min(next - 1).max(after)));
        end.is_some()
    }

    fn write_picked(&mut self, picked: Vec<Picked>) {
        for Picked { source, seq, position, encoded } in picked {
            let tag = self.tag(source);
            if self.top(source).is_some_and(|top| seq > top) {
                self.end_newest(source);
            }
            match tag {
                // Until all of the newest are sent, the client's id asks for them again.
                _ if self.top(source).is_some() => {}
                None => self.client.at.volatile = Point::At(Position::unverified(seq)),
                // A log that was made anew and knows no position yet is at its very beginning.
                Some(_) if self.sources[source].concerned => self.client.move_to(tag, position.map_or(Point::Earliest, Point::At)),
                Some(_) => self.pass(source, position),
            }
            if let Some(encoded) = encoded {
                self.client.events += u64::from(encoded.is_event());
                self.client.write_id(self.out.own());
                self.out.push(encoded.bytes(), encoded.body(self.filter.form()));
            }
        }
        if let Some(seq) = self.volatile.filter(|seq| self.newest < Some(*seq)) {
            self.newest = None;
            self.follow_volatile(seq);
        }
    }

    /// The sequence up to which only the newest events of a source are sent.
    fn top(&self, source: usize) -> Option<u64> {
        let of = &self.sources[source];
        if of.info.tag.is_none() { self.newest } else { Some(of.newest?.top) }
    }

    /// Whether no event with this subject is newer. Volatile sources count as one.
    fn is_newest<I: Iterator>(&self, source: usize, subject: &str, seq: u64, fronts: &[Front<'_, I>]) -> bool {
        let is_volatile = |source: usize| self.sources[source].track == Track::Volatile;
        let mut same = fronts.iter().filter(|(of, ..)| *of == source || is_volatile(*of) && is_volatile(source));
        same.all(|(_, window, _)| window.newest(subject) <= Some(seq))
    }

    /// All of a source's newest events have been sent: the client's point moves behind them.
    fn end_newest(&mut self, source: usize) {
        if self.tag(source).is_none() {
            return self.end_newest_volatile();
        }
        let Some(Newest { top, head }) = self.sources[source].newest.take() else { return };
        if let Track::Follow(seq) = &mut self.sources[source].track {
            *seq = top.max(*seq);
        }
        self.move_to(source, head.map_or(Point::Earliest, Point::At));
        self.client.write_id(self.out.own());
        self.out.own().push(b'\n');
    }

    /// The same for all volatile sources, also where there is none.
    fn end_newest_volatile(&mut self) {
        let Some(top) = self.newest.take() else { return };
        self.volatile = self.volatile.max(Some(top));
        self.client.at.epoch = self.streams.hub.epoch();
        self.client.at.volatile = Point::At(Position::unverified(top));
        self.client.write_id(self.out.own());
        self.out.own().push(b'\n');
    }

    /// Tells the gaps. Only the last of them carries the client's cursor behind all of them: a client that is cut off
    /// between two is told both again.
    fn write_gaps(&mut self, before: &Cursor) {
        let gaps = std::mem::take(&mut self.gaps);
        let Some(last) = gaps.len().checked_sub(1) else { return };
        let mut before = before.clone();
        // A source that the client's id did not know has its place in the cursor already.
        let unknown =
            |tag: &Tag| gaps.iter().any(|(source, gap)| *gap == Gap::UNKNOWN && source.is_some_and(|of| self.tag(of) == Some(*tag)));
        before.durable.retain(|(tag, _)| !unknown(tag));
        for (n, (source, gap)) in gaps.into_iter().enumerate() {
            if n == last {
                self.client.write_id(self.out.own());
            } else if source.is_some() {
                frame::id_line(self.out.own(), before.to_id().as_bytes());
            }
            let name = source.map_or("*", |source| self.sources[source].info.name.as_str());
            frame::gap(self.out.own(), name, &gap);
        }
    }
}

/// The hub's state, and whether its sources that are not followed can have something for a filter, if its version is another one. The more
/// patterns and routes there are, the longer that takes: it is not asked under the lock, for which publishing waits.
fn ask<'a>(
    hub: &'a Hub,
    filter: &Filter,
    version: Option<u64>,
    followed: &[Followed],
) -> (MutexGuard<'a, State>, HashMap<SourceKey, bool>) {
    let mut asked = HashMap::new();
    loop {
        let state = hub.state();
        if Some(state.version()) == version {
            return (state, asked);
        }
        let is_known = |key| asked.contains_key(&key) || followed.iter().any(|of| of.info.key == key);
        let unknown: Vec<_> = state.sources().map(Source::info).filter(|info| !is_known(info.key)).cloned().collect();
        if unknown.is_empty() {
            return (state, asked);
        }
        drop(state);
        asked.extend(unknown.into_iter().map(|info| (info.key, info.concerns(filter))));
    }
}

/// Whether a source that this cursor lacks was not live yet when it was made. A cursor of another process may have been made while
/// the source had another name, or was of another kind.
fn is_early(at: &Cursor, streams: &Streams, state: &State) -> bool {
    at.epoch == streams.hub.epoch() && at.durable.iter().all(|(tag, _)| is_known(*tag, state))
}

/// Whether some source is called so by cursors.
fn is_known(tag: Tag, state: &State) -> bool {
    state.sources().any(|source| source.tag() == Some(tag))
}

/// The cursor of a client that is at the same point of every source.
fn everywhere(streams: &Streams, state: &State, point: Point) -> Cursor {
    let durable = state.sources().filter_map(|s| Some((s.tag()?, point))).collect();
    Cursor { epoch: streams.hub.epoch(), volatile: point, durable }
}

fn point(cursor: &Cursor, tag: Tag) -> Option<Point> {
    cursor.durable.iter().find(|(t, _)| *t == tag).map(|(_, p)| *p)
}
