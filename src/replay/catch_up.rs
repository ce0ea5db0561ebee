//! A client on its way to live: where it stands in every source, and what it gets next.
//!
//! Each source is followed in its window; one whose window does not reach back to the client is read from the
//! broker until it does. When all are followed to their ends, the client takes its seat in a channel under the
//! same lock, and so without seam.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;

use super::history::History;
use super::{From, Log, Streams};
use crate::cursor::{Cursor, Point, Position, Tag};
use crate::event::{Event, Gap, GapReason, Timestamp};
use crate::frame;
use crate::hub::{Encoded, Entry, Filter, Kind, Place, Seat, State};
use crate::source::Item;

/// Bytes after which what was gathered is sent.
const PIECE: usize = 64 << 10;
/// Entries looked at while the hub's lock is held.
const SCAN: usize = 1024;
/// Bytes kept at most while the newest of each subject is looked for in a broker's history: past that, one that is
/// overtaken by routing may be sent all the same.
const LAST: usize = 16 << 20;

/// What a client gets next.
pub(super) enum Step {
    /// Bytes, and there is more to catch up with.
    Bytes(Bytes),
    /// It is live from this place on, behind these bytes.
    Live(Seat, u64, Bytes),
}

enum Gathered {
    Step(Step),
    /// Nothing yet, but there is more to look at.
    More,
    Nothing,
}

/// How a client follows one source.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Track {
    /// With the other volatile ones, by the bridge's sequence.
    Volatile,
    /// In the window, behind this sequence.
    Follow(u64),
    /// Not in the window yet: where it stands is in the cursor.
    Pending,
    /// From the moment on when the source becomes live.
    Fresh,
}

/// A client on its way to live.
pub(super) struct CatchUp {
    streams: Arc<Streams>,
    filter: Arc<Filter>,
    /// Where the client stands.
    at: Cursor,
    /// What it was told of that last.
    told: Vec<u8>,
    /// The volatile sources have been consumed up to this sequence; `None`: not looked up yet.
    volatile: Option<u64>,
    /// For each source the sequence up to which a loss has been told or is none.
    covered: Vec<u64>,
    tracks: Vec<Track>,
    /// Gaps to be told next, by source; `None` is all of them. They stand before `at`.
    notes: Vec<(Option<usize>, Gap)>,
    opening: bool,
    history: Option<History>,
    newest: Option<Newest>,
    /// The newest of each subject of a broker's history, after routing: sequence and body.
    last: HashMap<String, (u64, Vec<u8>)>,
    last_bytes: usize,
    beat: Option<tokio::time::Interval>,
    scratch: Vec<u8>,
}

/// Looking for the newest event of each subject in the windows, newest first.
struct Newest {
    sources: Vec<usize>,
    volatile: bool,
    top: u64,
    below: u64,
    heads: Vec<Option<Position>>,
    seen: HashSet<String>,
    found: Vec<Entry>,
    scanned: bool,
}

impl CatchUp {
    pub(super) fn new(streams: Arc<Streams>, filter: Arc<Filter>, from: From) -> Self {
        Self::start(streams, filter, from, true)
    }

    /// For a client that is being served already.
    pub(super) fn resumed(streams: Arc<Streams>, filter: Arc<Filter>, from: From) -> Self {
        Self::start(streams, filter, from, false)
    }

    fn start(streams: Arc<Streams>, filter: Arc<Filter>, from: From, opening: bool) -> Self {
        let epoch = streams.hub.epoch();
        let mut notes = Vec::new();
        let mut tracks = Vec::new();
        let (at, volatile) = {
            let state = streams.hub.state();
            let all = |point: Point| Cursor {
                epoch,
                volatile: point,
                durable: state.sources().iter().filter_map(|s| Some((s.tag()?, point))).collect(),
            };
            // The bridge's own ids can be read.
            let bridge = || Cursor::from_id(state.id()).unwrap_or_else(|_| all(Point::Earliest));
            let now = matches!(from, From::Now | From::Unreadable);
            let (mut at, volatile) = match from {
                From::Cursor(cursor) => (cursor, None),
                From::Earliest => (all(Point::Earliest), None),
                From::Last => (all(Point::Last), None),
                From::Since(time) => (all(Point::Since(time.as_millis())), None),
                From::Now => (bridge(), Some(state.seq())),
                From::Unreadable => {
                    notes.push((None, Gap { reason: GapReason::UnknownCursor, from: None, to: None, position: None }));
                    (bridge(), Some(state.seq()))
                }
            };
            for source in state.sources() {
                tracks.push(match source.tag() {
                    None => Track::Volatile,
                    Some(tag) if !now && point(&at, tag).is_some() => Track::Pending,
                    // New to this client: from now on.
                    Some(tag) if source.warm() => {
                        if point(&at, tag).is_none() {
                            at.durable.push((tag, source.window().head().map_or(Point::Earliest, Point::At)));
                        }
                        Track::Follow(state.seq())
                    }
                    Some(_) => Track::Fresh,
                });
            }
            (at, volatile)
        };
        let mut this = Self {
            covered: vec![0; tracks.len()],
            streams,
            filter,
            at,
            told: Vec::new(),
            volatile,
            tracks,
            notes,
            opening,
            history: None,
            newest: None,
            last: HashMap::new(),
            last_bytes: 0,
            beat: None,
            scratch: Vec::new(),
        };
        if !opening {
            this.write_id(&mut Vec::new());
        }
        this
    }

    /// The last id that was told.
    pub(super) fn told(&self, out: &mut Vec<u8>) {
        out.clone_from(&self.told);
    }

    /// The first step, where it needs no waiting.
    pub(super) fn try_next(&mut self, last_id: &mut Vec<u8>) -> Option<Step> {
        let gathered = self.gather();
        self.told(last_id);
        match gathered {
            Gathered::Step(step) => Some(step),
            Gathered::More | Gathered::Nothing => None,
        }
    }

    /// Waits for what comes next.
    pub(super) async fn next(&mut self) -> Step {
        let hub = self.streams.hub.clone();
        let mut items = Vec::new();
        let mut beat = self.beat.take().unwrap_or_else(|| {
            let mut beat = tokio::time::interval(self.streams.settings.heartbeat);
            beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
            beat.reset();
            beat
        });
        let step = loop {
            let changed = hub.changed().notified();
            tokio::pin!(changed);
            // Before looking, so that nothing published in between is missed.
            changed.as_mut().enable();
            match self.gather() {
                Gathered::Step(step) => break step,
                Gathered::More => {
                    tokio::task::yield_now().await;
                    continue;
                }
                Gathered::Nothing => {}
            }
            self.choose_history();
            let at = self.history.as_ref().and_then(|h| self.point(h.source)).unwrap_or(Point::Earliest);
            tokio::select! {
                () = read(&mut self.history, &mut items, at) => {
                    if let Some(bytes) = self.read(&mut items) {
                        break Step::Bytes(bytes);
                    }
                }
                () = changed => {}
                _ = beat.tick() => break Step::Bytes(self.heartbeat()),
            }
        };
        self.beat = Some(beat);
        step
    }

    fn heartbeat(&mut self) -> Bytes {
        let before = std::mem::take(&mut self.told);
        self.write_id(&mut Vec::new());
        let mut out = Vec::new();
        frame::heartbeat(&mut out, (before != self.told).then_some(&self.told));
        out.into()
    }

    /// Appends an `id` line of where the client stands now.
    fn write_id(&mut self, out: &mut Vec<u8>) {
        self.told.clear();
        self.at.encode(&mut self.scratch, &mut self.told);
        frame::id_line(out, &self.told);
    }

    fn point(&self, source: usize) -> Option<Point> {
        let tag = self.tag(source)?;
        point(&self.at, tag)
    }

    fn tag(&self, source: usize) -> Option<Tag> {
        self.streams.hub.tag(source)
    }

    fn stand(&mut self, source: usize, point: Point) {
        let Some(tag) = self.tag(source) else { return };
        match self.at.durable.iter_mut().find(|(t, _)| *t == tag) {
            Some((_, at)) => *at = point,
            None => self.at.durable.push((tag, point)),
        }
    }

    /// What the windows hold for the client.
    fn gather(&mut self) -> Gathered {
        let mut out = Vec::new();
        // Before anything is looked up: until the gaps have been told the client stands where it says it does.
        if std::mem::take(&mut self.opening) {
            if self.notes.is_empty() {
                self.write_id(&mut Vec::new());
            }
            frame::opening(&mut out, self.streams.retry(), (!self.told.is_empty()).then_some(&self.told));
        }
        let mut picked = Vec::new();
        let mut more = true;
        let mut seat = None;
        {
            let hub = self.streams.hub.clone();
            let mut state = hub.state();
            let before = self.at.clone();
            self.resolve(&state);
            if !self.notes.is_empty() {
                drop(state);
                self.write_notes(&before, &mut out);
                return Gathered::Step(Step::Bytes(out.into()));
            }
            if self.newest.is_some() {
                self.scan(&state);
            } else {
                more = self.pick(&state, &mut picked);
                if !more && self.tracks.iter().all(|t| *t != Track::Pending) && self.volatile.is_some() {
                    seat = Some((hub.join(&mut state, &self.filter), state.id().clone()));
                }
            }
        }
        self.write_picked(picked, &mut out);
        if let Some(((seat, place), id)) = seat {
            // All that the bridge has, this client has: from here on it shares the bridge's ids.
            if self.told != id.as_bytes() {
                frame::id_line(&mut out, id.as_bytes());
                out.push(b'\n');
                self.told.clear();
                self.told.extend_from_slice(id.as_bytes());
            }
            return Gathered::Step(Step::Live(seat, place, out.into()));
        }
        self.write_newest(&mut out);
        if !self.notes.is_empty() {
            let before = self.at.clone();
            self.write_notes(&before, &mut out);
        }
        match (out.is_empty(), more) {
            (false, _) => Gathered::Step(Step::Bytes(out.into())),
            (true, true) => Gathered::More,
            (true, false) => Gathered::Nothing,
        }
    }

    /// Finds where the client stands in the windows.
    fn resolve(&mut self, state: &State) {
        if self.volatile.is_none() && self.newest.is_none() {
            self.resolve_volatile(state);
        }
        for source in 0..self.tracks.len() {
            let of = &state.sources()[source];
            match self.tracks[source] {
                Track::Fresh if of.warm() => {
                    let began = of.began();
                    self.tracks[source] = Track::Follow(began.map_or(state.seq(), |b| b.seq));
                    let position = began.and_then(|b| b.position);
                    self.stand(source, position.map_or(Point::Earliest, Point::At));
                }
                Track::Pending if of.warm() => self.resolve_pending(source, state),
                _ => continue,
            }
            if self.tracks[source] != Track::Pending && self.history.as_ref().is_some_and(|h| h.source == source) {
                self.history = None;
            }
        }
    }

    fn resolve_volatile(&mut self, state: &State) {
        let volatile = || state.sources().iter().enumerate().filter(|(_, s)| s.tag().is_none());
        let floors = |covered: &mut Vec<u64>| volatile().for_each(|(n, s)| covered[n] = s.window().floor());
        let seq = match self.at.volatile {
            Point::At(p) if self.at.epoch == state_epoch(&self.streams) && p.seq <= state.seq() => p.seq,
            Point::At(p) => {
                // Another process counted: of what was before this one, nothing is known.
                for (source, _) in volatile().filter(|(_, s)| s.concerns(&self.filter)) {
                    self.notes.push((Some(source), Gap { reason: GapReason::Restart, from: Some(p.seq), to: None, position: None }));
                }
                floors(&mut self.covered);
                0
            }
            Point::Earliest => {
                floors(&mut self.covered);
                0
            }
            Point::Since(millis) => {
                let time = Timestamp::from_micros(millis.saturating_mul(1000));
                for (source, of) in volatile() {
                    let window = of.window();
                    let lost = window.floor() > 0 && window.floor_time() >= time && of.concerns(&self.filter);
                    if lost {
                        let to = window.after(0).next().map(|e| e.seq);
                        self.notes.push((Some(source), Gap { reason: GapReason::Retention, from: None, to, position: None }));
                    }
                }
                floors(&mut self.covered);
                let first = volatile().filter_map(|(_, s)| s.window().after(0).find(|e| e.time >= time)).map(|e| e.seq).min();
                first.map_or(state.seq(), |seq| seq - 1)
            }
            Point::Last => {
                self.look_for_newest(state, true, volatile().map(|(n, _)| n).collect());
                return;
            }
        };
        self.volatile = Some(seq);
        self.at.epoch = state_epoch(&self.streams);
        self.at.volatile = Point::At(Position::unverified(seq));
    }

    fn resolve_pending(&mut self, source: usize, state: &State) {
        let of = &state.sources()[source];
        let Some(at) = self.point(source) else { return };
        match at {
            Point::At(position) => match of.window().find(position) {
                Place::After(seq) => self.tracks[source] = Track::Follow(seq),
                Place::Outside => {}
                Place::Other => {
                    if of.concerns(&self.filter) {
                        let gap = Gap { reason: GapReason::Reset, from: Some(position.seq), to: None, position: None };
                        self.notes.push((Some(source), gap));
                    }
                    self.history = None;
                    self.stand(source, Point::Earliest);
                }
            },
            Point::Earliest => {
                if let Some(began) = of.began().filter(|b| b.empty && of.window().floor() <= b.seq) {
                    self.tracks[source] = Track::Follow(began.seq);
                }
            }
            Point::Since(millis) => {
                let time = Timestamp::from_micros(millis.saturating_mul(1000));
                // The window holds all that ever was where the log was empty when this process first saw it.
                let whole = of.began().filter(|b| b.empty && of.window().floor() <= b.seq);
                let seq = match whole {
                    Some(began) => Some(of.window().after(began.seq).find(|e| e.time >= time).map_or(u64::MAX, |e| e.seq - 1)),
                    None => of.window().since(time),
                };
                if let Some(seq) = seq {
                    self.tracks[source] = Track::Follow(seq.min(state.seq()));
                }
            }
            Point::Last => {
                if !self.log(source).adapter.keeps_last() && self.newest.is_none() {
                    self.look_for_newest(state, false, vec![source]);
                }
            }
        }
    }

    fn log(&self, source: usize) -> &Log {
        &self.streams.logs[source]
    }

    /// Picks what follows in the windows, oldest first. Returns whether there is more.
    fn pick(&mut self, state: &State, picked: &mut Vec<(usize, Entry)>) -> bool {
        let mut bytes = 0;
        for _ in 0..SCAN {
            if bytes >= PIECE {
                return true;
            }
            let mut next: Option<(usize, u64, Option<&Entry>)> = None;
            for source in 0..self.tracks.len() {
                let of = &state.sources()[source];
                let window = of.window();
                let after = match (self.tracks[source], self.volatile) {
                    (Track::Follow(seq), _) => seq,
                    (Track::Volatile, Some(seq)) => seq,
                    _ => continue,
                };
                if window.floor() > after.max(self.covered[source]) {
                    if self.tracks[source] != Track::Volatile {
                        // The window has moved on beyond this client: the broker still has it.
                        self.tracks[source] = Track::Pending;
                        continue;
                    }
                    // In its turn, so that what others have up to there comes first.
                    if of.concerns(&self.filter) && next.is_none_or(|(_, seq, _)| window.floor() < seq) {
                        next = Some((source, window.floor(), None));
                    }
                }
                if let Some(entry) = window.after(after).next()
                    && next.is_none_or(|(_, seq, _)| entry.seq < seq)
                {
                    next = Some((source, entry.seq, Some(entry)));
                }
            }
            let Some((source, seq, entry)) = next else { return false };
            let Some(entry) = entry else {
                let to = state.sources()[source].window().after(seq).next().map_or(seq + 1, |e| e.seq);
                let from = self.volatile.filter(|seq| *seq > 0);
                self.notes.push((Some(source), Gap { reason: GapReason::Retention, from, to: Some(to), position: None }));
                self.volatile = Some(seq);
                return true;
            };
            match &mut self.tracks[source] {
                Track::Follow(seq) => *seq = entry.seq,
                _ => self.volatile = Some(entry.seq),
            }
            let wanted = match entry.kind {
                Kind::Event => self.filter.matches(entry.encoded.subject()),
                Kind::Gap => state.sources()[source].concerns(&self.filter),
            };
            if wanted {
                bytes += entry.encoded.body(self.filter.form()).len();
            }
            picked.push((source, if wanted { entry.clone() } else { Entry { kind: Kind::Gap, encoded: Encoded::default(), ..*entry } }));
        }
        true
    }

    fn write_picked(&mut self, picked: Vec<(usize, Entry)>, out: &mut Vec<u8>) {
        for (source, entry) in picked {
            if self.tag(source).is_none() {
                self.at.volatile = Point::At(Position::unverified(entry.seq));
            } else if let Some(position) = entry.position {
                self.stand(source, Point::At(position));
            }
            let body = entry.encoded.body(self.filter.form());
            if !body.is_empty() {
                self.write_id(out);
                out.extend_from_slice(body);
            }
        }
        if let Some(seq) = self.volatile {
            self.at.volatile = Point::At(Position::unverified(seq));
        }
    }

    /// Tells the gaps. Only the last of them carries where the client stands behind all of them: a client that is
    /// cut off between two is told both again.
    fn write_notes(&mut self, before: &Cursor, out: &mut Vec<u8>) {
        let notes = std::mem::take(&mut self.notes);
        let last = notes.len().saturating_sub(1);
        for (n, (source, gap)) in notes.into_iter().enumerate() {
            if n == last {
                self.write_id(out);
            } else if gap.reason != GapReason::UnknownCursor {
                frame::id_line(out, before.to_id().as_bytes());
            }
            let name = source.map(|s| self.streams.hub.name(s));
            frame::gap(out, name.map_or("*", |n| n.as_str()), &gap);
        }
    }

    fn look_for_newest(&mut self, state: &State, volatile: bool, sources: Vec<usize>) {
        let heads = sources.iter().map(|s| state.sources()[*s].window().head()).collect();
        let (top, below) = (state.seq(), state.seq() + 1);
        self.newest = Some(Newest { sources, volatile, top, below, heads, seen: HashSet::new(), found: Vec::new(), scanned: false });
    }

    fn scan(&mut self, state: &State) {
        let Some(newest) = &mut self.newest else { return };
        for _ in 0..SCAN {
            let next = newest.sources.iter().filter_map(|s| state.sources()[*s].window().before(newest.below).next()).max_by_key(|e| e.seq);
            let Some(entry) = next else {
                newest.scanned = true;
                return;
            };
            newest.below = entry.seq;
            let subject = entry.encoded.subject();
            if entry.kind == Kind::Event && !newest.seen.contains(subject) && self.filter.matches(subject) {
                newest.seen.insert(subject.to_owned());
                newest.found.push(entry.clone());
            }
        }
    }

    /// Sends what the scan has found, once it is through. Until all of it is sent the client's id asks for it again.
    fn write_newest(&mut self, out: &mut Vec<u8>) {
        let Some(newest) = self.newest.as_mut().filter(|n| n.scanned) else { return };
        while let Some(entry) = newest.found.pop() {
            self.told.clear();
            self.at.encode(&mut self.scratch, &mut self.told);
            frame::id_line(out, &self.told);
            out.extend_from_slice(entry.encoded.body(self.filter.form()));
            if out.len() >= PIECE {
                return;
            }
        }
        let Some(newest) = self.newest.take() else { return };
        if newest.volatile {
            self.volatile = Some(newest.top);
            self.at.epoch = state_epoch(&self.streams);
            self.at.volatile = Point::At(Position::unverified(newest.top));
            for source in newest.sources {
                self.covered[source] = newest.top;
            }
        } else {
            for (source, head) in newest.sources.into_iter().zip(newest.heads) {
                self.tracks[source] = Track::Follow(newest.top);
                self.stand(source, head.map_or(Point::Earliest, Point::At));
            }
        }
        self.write_id(out);
        out.push(b'\n');
    }

    /// Starts to read the broker's log for the first source that needs it.
    fn choose_history(&mut self) {
        if self.history.is_some() {
            return;
        }
        let chosen = {
            let state = self.streams.hub.state();
            let windows_only = |s: &usize| self.point(*s) == Some(Point::Last) && !self.log(*s).adapter.keeps_last();
            let behind = |s: &usize| self.tracks[*s] == Track::Pending && state.sources()[*s].warm() && !windows_only(s);
            (0..self.tracks.len()).find(behind)
        };
        if let Some(source) = chosen {
            self.history = Some(History::new(source, self.log(source).clone(), self.streams.readers.clone()));
        }
    }

    /// Routes and filters what a history brought.
    fn read(&mut self, items: &mut Vec<Item>) -> Option<Bytes> {
        let source = self.history.as_ref()?.source;
        let mut out = Vec::new();
        for item in items.drain(..) {
            match item {
                Item::Message(message) => {
                    let position = message.position;
                    let event = self.streams.router.route(source, message).filter(|e| self.filter.matches(e.subject.as_str()));
                    if self.point(source) == Some(Point::Last) {
                        if let (Some(event), Some(position)) = (event, position) {
                            self.keep_last(source, &event, position.seq, &mut out);
                        }
                        continue;
                    }
                    if let Some(position) = position {
                        self.stand(source, Point::At(position));
                    }
                    if let Some(event) = event {
                        self.write_id(&mut out);
                        self.write_body(source, &event, &mut out);
                    }
                }
                Item::Gap(gap) => {
                    match gap.position {
                        Some(position) => self.stand(source, Point::At(position)),
                        // Made anew, and still without a position: at its very beginning.
                        None if gap.reason == GapReason::Reset => self.stand(source, Point::Earliest),
                        None => {}
                    }
                    if self.streams.router.concerns(source, self.filter.patterns()) {
                        self.write_id(&mut out);
                        frame::gap(&mut out, self.streams.hub.name(source).as_str(), &gap);
                    }
                }
                Item::Tail(position) => {
                    let last = self.point(source) == Some(Point::Last);
                    if last {
                        self.write_last(&mut out);
                    }
                    match position {
                        Some(position) => self.stand(source, Point::At(position)),
                        None if last => self.stand(source, Point::Earliest),
                        None => {}
                    }
                    if last {
                        self.write_id(&mut out);
                        out.push(b'\n');
                    }
                }
            }
        }
        (!out.is_empty()).then(|| out.into())
    }

    fn write_body(&self, source: usize, event: &Event, out: &mut Vec<u8>) {
        let origin = frame::Origin { source: self.streams.hub.name(source).as_str(), epoch: self.streams.hub.epoch(), seq: 0 };
        frame::body(out, event, self.filter.form(), origin);
    }

    /// Keeps an event until it is known whether routing gave a newer one the same subject.
    fn keep_last(&mut self, source: usize, event: &Event, seq: u64, out: &mut Vec<u8>) {
        let mut body = Vec::new();
        self.write_body(source, event, &mut body);
        self.last_bytes += body.len();
        if let Some((_, old)) = self.last.insert(event.subject.as_str().to_owned(), (seq, body)) {
            self.last_bytes -= old.len();
        }
        if self.last_bytes > LAST {
            self.write_last(out);
        }
    }

    /// The id stays where it is: until all have come, all are wanted again.
    fn write_last(&mut self, out: &mut Vec<u8>) {
        let mut events: Vec<_> = std::mem::take(&mut self.last).into_values().collect();
        self.last_bytes = 0;
        events.sort_unstable_by_key(|(seq, _)| *seq);
        for (_, body) in events {
            self.write_id(out);
            out.extend_from_slice(&body);
        }
    }
}

fn state_epoch(streams: &Streams) -> u32 {
    streams.hub.epoch()
}

fn point(cursor: &Cursor, tag: Tag) -> Option<Point> {
    cursor.durable.iter().find(|(t, _)| *t == tag).map(|(_, p)| *p)
}

async fn read(history: &mut Option<History>, items: &mut Vec<Item>, at: Point) {
    match history {
        Some(history) => history.next(items, at).await,
        None => std::future::pending().await,
    }
}
