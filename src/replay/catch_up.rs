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
use crate::event::{Gap, GapReason};
use crate::frame;
use crate::frame::Encoded;
use crate::hub::{Entry, Filter, Seat, State};
use crate::source::Item;

mod broker;
mod newest;
mod resolve;

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

/// An entry of a window that the client has come to.
struct Picked {
    source: usize,
    seq: u64,
    position: Option<Position>,
    /// What is sent of it, if the client wants it.
    encoded: Option<Encoded>,
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

    fn log(&self, source: usize) -> &Log {
        &self.streams.logs[source]
    }

    /// Picks what follows in the windows, oldest first. Returns whether there is more.
    fn pick(&mut self, state: &State, picked: &mut Vec<Picked>) -> bool {
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
            let wanted = match entry.encoded.subject() {
                Some(subject) => self.filter.matches(subject),
                None => state.sources()[source].concerns(&self.filter),
            };
            let encoded = wanted.then(|| entry.encoded.clone());
            bytes += encoded.as_ref().map_or(0, |encoded| encoded.body(self.filter.form()).len());
            picked.push(Picked { source, seq: entry.seq, position: entry.position, encoded });
        }
        true
    }

    fn write_picked(&mut self, picked: Vec<Picked>, out: &mut Vec<u8>) {
        for Picked { source, seq, position, encoded } in picked {
            if self.tag(source).is_none() {
                self.at.volatile = Point::At(Position::unverified(seq));
            } else if let Some(position) = position {
                self.stand(source, Point::At(position));
            }
            if let Some(encoded) = encoded {
                self.write_id(out);
                out.extend_from_slice(encoded.body(self.filter.form()));
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
