//! The oracle: holds what one client was sent against what was ever written, block by block.
//!
//! A client's id is taken at its word: whatever it claims to have, the client must have been sent, or told to be lost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::broker::{Fault, Handed, Issued, JET, Names, RENAMED, SOURCES, SUBJECTS, State, Written, routed};
use crate::cursor::{Cursor, Point, Position, Tag};
use crate::event::Timestamp;
use crate::frame::Closing;

/// A block of a stream.
#[derive(Debug, Default)]
pub(super) struct Block {
    pub(super) id: Option<Cursor>,
    pub(super) content: Content,
}

#[derive(Debug, Default)]
pub(super) enum Content {
    #[default]
    Nothing,
    Event {
        source: usize,
        index: usize,
        /// Where the envelope says it.
        subject: Option<String>,
    },
    Gap {
        /// `None`: all.
        source: Option<usize>,
        reason: String,
        from: Option<u64>,
        to: Option<u64>,
    },
    /// Why.
    Closing(String),
}

/// Where a client asks to begin.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Start {
    Now,
    Earliest,
    Since(Timestamp),
    Last,
    /// Behind its last id.
    Resume,
    /// With an id that nobody can read.
    Unreadable,
}

/// What one client has had of a log.
struct Follower {
    mode: Mode,
    /// Everything written before this index was sent or accounted for.
    next: usize,
    /// Gaps that were told since.
    gaps: Vec<(Option<u64>, Option<u64>)>,
    /// So many borders were told.
    borders: usize,
    /// The last id's point.
    point: Option<Point>,
    /// Since the last reset, the client stood at a place without a check: another bridge may tell it again.
    unverified: bool,
    /// When the stream was opened, the bridge had not noticed yet that the log was made anew or cut.
    stale: bool,
    /// It was told a reset by such a bridge since: it may have gone back into the old log, and is told again behind that.
    went_back: bool,
    /// The bridge has to say first that the client's id knew nothing of this source.
    expects_unknown: bool,
    /// It was told that the newest of each subject cannot be read.
    newest_lost: bool,
}

impl Follower {
    fn new() -> Self {
        Self {
            mode: Mode::Unknown,
            next: 0,
            gaps: Vec::new(),
            borders: 0,
            point: None,
            unverified: false,
            stale: false,
            went_back: false,
            expects_unknown: false,
            newest_lost: false,
        }
    }

    /// It stands nowhere, and begins with what the bridge says.
    fn forget(&mut self) {
        self.point = None;
        self.gaps.clear();
        self.next = 0;
        self.unverified = true;
        self.mode = Mode::Unknown;
        self.expects_unknown = false;
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Mode {
    /// From wherever the first id stands.
    Unknown,
    /// All that is left.
    Earliest,
    Since(Timestamp),
    /// The newest of each subject, of which these came.
    Last(BTreeMap<&'static str, usize>),
    Follow,
}

/// What one client has had of the sources without a log.
#[derive(Debug, Clone, PartialEq)]
enum Volatile {
    Unknown,
    Earliest,
    Since(Timestamp),
    Last(BTreeMap<(usize, &'static str), usize>),
    At(u32, u64),
}

/// What is counted.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Counts {
    pub(super) events: u64,
    pub(super) gaps: u64,
    /// A reset that was told again, as a place without a check says too little.
    pub(super) unverified: u64,
    /// A reset that was told again by a bridge whose window still held the old log.
    pub(super) stale: u64,
    /// Lost where a log was made anew, and read on from a place without a check.
    pub(super) blind: u64,
    /// Two messages with the same sequence and the same check.
    pub(super) collisions: u64,
    /// Streams that were closed since a log could not be read.
    pub(super) unavailable: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.gaps += other.gaps;
        self.unverified += other.unverified;
        self.stale += other.stale;
        self.blind += other.blind;
        self.collisions += other.collisions;
        self.unavailable += other.unavailable;
    }
}

/// The last sequence that a bridge's window has dropped, by epoch and source.
pub(super) type Floors<'a> = &'a dyn Fn(u32, usize) -> u64;

/// See the module.
pub(super) struct Judge {
    pub(super) patterns: Vec<&'static str>,
    concerned: [bool; 4],
    /// What the bridge calls its sources.
    names: Names,
    logs: [Follower; 2],
    /// What the client has had of the same logs under their other names, and whether `logs` is what it had under these.
    others: [Follower; 2],
    swapped: [bool; 2],
    /// The process that the last id is of.
    id_epoch: Option<u32>,
    volatile: Volatile,
    /// What the windows had dropped, by source, when the client came to this process: it need not know of that.
    began: [u64; 4],
    /// Retention gaps of sources without a log that reach beyond the last id.
    gaps: Vec<(usize, u64, u64)>,
    /// Sources whose restart was told.
    restarted: BTreeSet<usize>,
    expects_unknown: bool,
    /// The bridge that it is at, and since when.
    epoch: u32,
    opened: Timestamp,
    /// Faults that changed what the client was sent: see the simulation's definition.
    pub(super) effects: Vec<Fault>,
    pub(super) counts: Counts,
}

/// Whether a subject is in a pattern's set; written here anew, so that the bridge's own matcher is not its judge.
fn matches(pattern: &str, subject: &str) -> bool {
    let (mut patterns, mut subjects) = (pattern.split('.'), subject.split('.'));
    loop {
        match (patterns.next(), subjects.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some(p), Some(s)) if p == "*" || p == s => {}
            _ => return false,
        }
    }
}

impl Judge {
    pub(super) fn new(patterns: Vec<&'static str>) -> Self {
        let concerned = SUBJECTS.map(|subjects| {
            let wanted = |subject: &str| patterns.iter().any(|pattern| matches(pattern, subject));
            subjects.iter().any(|subject| routed(subject).is_some_and(wanted))
        });
        Self {
            patterns,
            concerned,
            names: [None; 4],
            logs: [Follower::new(), Follower::new()],
            others: [Follower::new(), Follower::new()],
            swapped: [false; 2],
            id_epoch: None,
            volatile: Volatile::Unknown,
            began: [0; 4],
            gaps: Vec::new(),
            restarted: BTreeSet::new(),
            expects_unknown: false,
            epoch: 0,
            opened: Timestamp::default(),
            effects: Vec::new(),
            counts: Counts::default(),
        }
    }

    fn matches(&self, subject: &str) -> bool {
        routed(subject).is_some_and(|subject| self.patterns.iter().any(|pattern| matches(pattern, subject)))
    }

    fn wants(&self, written: &Written) -> bool {
        self.matches(written.subject) && !written.oversized() && written.is_readable()
    }

    pub(super) fn is_concerned(&self, source: usize) -> bool {
        self.concerned[source] && self.names[source].is_some()
    }

    /// Something that the client must have been told of. The subject of what cannot be read is not known.
    fn must_know(&self, source: usize, written: &Written) -> bool {
        if written.is_readable() { self.matches(written.subject) } else { self.is_concerned(source) }
    }

    /// The client opens a stream.
    pub(super) fn open(&mut self, state: &State, (epoch, names): (u32, Names), start: &Start) {
        (self.epoch, self.names, self.opened) = (epoch, names, Timestamp::now());
        for source in 0..2 {
            let swapped = names[source].map_or(self.swapped[source], |name| name == RENAMED[source]);
            if std::mem::replace(&mut self.swapped[source], swapped) != swapped {
                std::mem::swap(&mut self.logs[source], &mut self.others[source]);
            }
        }
        for (source, log) in self.logs.iter_mut().enumerate() {
            log.stale =
                log.went_back || state.noticed.get(&(epoch, source)).is_none_or(|noticed| *noticed < state.logs[source].borders.len());
        }
        self.gaps.clear();
        self.restarted.clear();
        self.expects_unknown = *start == Start::Unreadable;
        if *start == Start::Resume {
            // An id of the same process is from before the source was live there.
            let knows_others = (0..2).any(|source| self.parked(source).any(|(_, other)| other.point.is_some()));
            let early = self.id_epoch == Some(epoch) && !knows_others;
            for (source, log) in self.logs.iter_mut().enumerate() {
                log.expects_unknown = log.point.is_none() && self.concerned[source] && names[source].is_some() && !early;
                log.unverified |= !matches!(log.point, Some(Point::At(Position { check: Some(_), .. })));
                if let Mode::Last(seen) = &mut log.mode {
                    seen.clear();
                }
            }
            if let Volatile::Last(seen) = &mut self.volatile {
                seen.clear();
            }
            return;
        }
        self.others.iter_mut().for_each(Follower::forget);
        for (log, name) in self.logs.iter_mut().zip(names) {
            log.forget();
            log.newest_lost = false;
            log.mode = match start {
                _ if name.is_none() => Mode::Unknown,
                Start::Earliest => Mode::Earliest,
                Start::Since(time) => Mode::Since(*time),
                Start::Last => Mode::Last(BTreeMap::new()),
                _ => Mode::Unknown,
            };
        }
        self.volatile = match start {
            Start::Earliest => Volatile::Earliest,
            Start::Since(time) => Volatile::Since(*time),
            Start::Last => Volatile::Last(BTreeMap::new()),
            _ => Volatile::Unknown,
        };
    }

    /// Judges what came next.
    pub(super) fn block(&mut self, state: &State, floors: Floors<'_>, block: &Block) -> Result<(), String> {
        let mut told = None;
        match &block.content {
            Content::Closing(reason) if reason == Closing::Unavailable.as_str() => self.unavailable(state)?,
            Content::Nothing | Content::Closing(_) => {}
            Content::Event { source, index, subject } => {
                self.counts.events += 1;
                let written = state.written[*source].get(*index).ok_or("an event that nobody wrote")?;
                if !self.wants(written) {
                    return Err(format!("{} {index} is not what the client may have", written.subject));
                }
                if subject.as_deref().is_some_and(|subject| Some(subject) != routed(written.subject)) {
                    return Err(format!("{} {index} came as {subject:?}", written.subject));
                }
                let late = written.late.iter().filter(|late| late.epoch == self.epoch && late.arrived >= self.opened);
                self.effects.extend(late.flat_map(|late| &late.faults));
                if self.names[*source].is_none() {
                    return Err(format!("{} {index} is of a source that is not there", written.subject));
                }
                if *source < 2 {
                    self.event(state, *source, *index, block)?;
                }
                told = Some((*source, Handed::Message(*index)));
            }
            Content::Gap { source: None, .. } => {
                self.counts.gaps += 1;
                if !std::mem::take(&mut self.expects_unknown) {
                    return Err("an unknown cursor was told, but there was none".into());
                }
            }
            Content::Gap { source: Some(source), reason, from, to } => {
                self.counts.gaps += 1;
                if !self.is_concerned(*source) {
                    return Err(format!("a gap of {} concerns nobody here", SOURCES[*source]));
                }
                if *source < 2 {
                    self.gap(state, *source, (reason, *from, *to), block)?;
                } else {
                    told = self.volatile_gap(state, floors, *source, (reason, *from, *to), block)?;
                }
            }
        }
        if self.expects_unknown && (block.id.is_some() || !matches!(block.content, Content::Nothing)) {
            return Err("the unreadable cursor was not told first".into());
        }
        let Some(id) = &block.id else { return Ok(()) };
        self.id_epoch = Some(id.epoch);
        for (source, name) in SOURCES.iter().enumerate().take(2) {
            self.claims(state, source, id).map_err(|error| format!("{name}: {error}"))?;
        }
        self.volatile_claim(state, floors, id, told)
    }

    /// Where an id stands in a source, as the bridge calls it.
    fn point(&self, id: &Cursor, source: usize) -> Option<Point> {
        point(id, self.names[source]?)
    }

    /// What the client has had of a log under names that the bridge does not know, with these names.
    fn parked(&self, source: usize) -> impl Iterator<Item = (&'static str, &Follower)> {
        let names = if self.swapped[source] { [RENAMED[source], SOURCES[source]] } else { [SOURCES[source], RENAMED[source]] };
        let log = self.names[source].is_none().then_some((names[0], &self.logs[source]));
        log.into_iter().chain([(names[1], &self.others[source])])
    }

    /// What an id says of a log, under each of its names.
    fn claims(&mut self, state: &State, source: usize, id: &Cursor) -> Result<(), String> {
        if let Some((name, other)) = self.parked(source).find(|(name, other)| point(id, name).is_some_and(|now| other.point != Some(now))) {
            return Err(format!("its id moved from {:?} in {name}, which is not there", other.point));
        }
        if point(id, if self.swapped[source] { SOURCES[source] } else { RENAMED[source] }).is_none() {
            self.others[source].forget();
        }
        if self.names[source].is_none() {
            if point(id, if self.swapped[source] { RENAMED[source] } else { SOURCES[source] }).is_none() {
                self.logs[source].forget();
            }
            return Ok(());
        }
        let Some(point) = self.point(id, source) else {
            // Of what does not concern it, an id knows nothing before the source is live.
            if !self.concerned[source] {
                self.logs[source].forget();
            }
            let before = self.logs[source].point;
            return if before.is_none() { Ok(()) } else { Err(format!("its id lost where it was: {before:?}")) };
        };
        if self.logs[source].expects_unknown {
            return Err(format!("its id stands at {point:?}, and it was not told that it was not known before"));
        }
        // Of what does not concern it, a client is not told: there its id moves as it may.
        if self.concerned[source] {
            return self.claim(state, source, point);
        }
        self.logs[source].point = Some(point);
        Ok(())
    }

    /// A bridge gives a stream up when it could not read a log for 20 s.
    fn unavailable(&mut self, state: &State) -> Result<(), String> {
        self.counts.unavailable += 1;
        let long_ago = Timestamp::now().before(Duration::from_secs(20));
        let fails = |source: usize| state.failing.get(&(self.epoch, source)).is_some_and(|since| *since <= long_ago);
        if (0..2).any(fails) { Ok(()) } else { Err("it was given up, though no log could not be read for long".into()) }
    }

    fn event(&mut self, state: &State, source: usize, index: usize, block: &Block) -> Result<(), String> {
        let written = &state.written[source][index];
        let now = block.id.as_ref().and_then(|id| self.point(id, source));
        let log = &mut self.logs[source];
        if let (Mode::Last(seen), Some(Point::Last)) = (&mut log.mode, now) {
            if seen.insert(written.subject, index) == Some(index) {
                return Err(format!("{} {index} came twice as the newest", written.subject));
            }
            return Ok(());
        }
        if now != Some(Point::At(written.position())) {
            return Err(format!("{} {index} at {:?} has an id of {now:?}", written.subject, written.position()));
        }
        self.reach(state, source, index)
    }

    /// The client was sent what stands at an index.
    fn reach(&mut self, state: &State, source: usize, index: usize) -> Result<(), String> {
        let written = &state.written[source][index];
        let log = &self.logs[source];
        if log.mode == Mode::Follow && index < log.next {
            return Err(format!("{} {index} came twice or late: all before {} had come", written.subject, log.next));
        }
        self.pass(state, source, index).map_err(|error| format!("before {} {index}: {error}", written.subject))?;
        let log = &mut self.logs[source];
        log.next = index + 1;
        log.point = Some(Point::At(written.position()));
        Ok(())
    }

    /// The client is said to have everything before an index.
    fn pass(&mut self, state: &State, source: usize, to: usize) -> Result<(), String> {
        let log = &self.logs[source];
        let mut blind = 0;
        if !matches!(log.mode, Mode::Unknown | Mode::Last(_)) {
            let mut removed = false;
            // What stands there in another log is compared by nobody, if the place of old has gone from it: the gap is told,
            // but by the numbers of the new one.
            let crossed = state.logs[source].borders.iter().any(|border| (log.next..to).contains(border));
            for (index, written) in state.written[source].iter().enumerate().take(to).skip(log.next) {
                removed |= written.removed;
                if !self.must_know(source, written) {
                    continue;
                }
                if log.mode == Mode::Follow && written.removed {
                    self.effects.push(written.removed_by);
                }
                if written.cut {
                    continue;
                }
                let excused = match &log.mode {
                    Mode::Follow => written.removed && log.gaps.iter().any(|gap| crossed || covers(*gap, written.seq)),
                    Mode::Since(time) => written.removed || written.time < *time,
                    _ => written.removed,
                };
                if !excused && crossed && (state.logs[source].blind || log.unverified) {
                    blind += 1;
                } else if !excused {
                    let how = if written.removed { "in silence" } else { "though it is in the log" };
                    return Err(format!("{} {index} at {} was lost {how} (gaps {:?})", written.subject, written.seq, log.gaps));
                }
            }
            if log.mode == Mode::Follow && !log.gaps.is_empty() && !removed {
                return Err(format!("nothing was lost between {} and {to}, but gaps told: {:?}", log.next, log.gaps));
            }
        }
        self.counts.blind += blind;
        let log = &mut self.logs[source];
        log.gaps.clear();
        log.mode = Mode::Follow;
        Ok(())
    }

    /// An id says how far the client has come.
    fn claim(&mut self, state: &State, source: usize, now: Point) -> Result<(), String> {
        let before = self.logs[source].point.replace(now);
        if before == Some(now) {
            return Ok(());
        }
        let Point::At(position) = now else {
            // A log that was made anew and knows no position stands at its beginning, and what was told of it says so.
            let log = &self.logs[source];
            return match (now, &log.mode) {
                (Point::Earliest, Mode::Follow) if !state.logs[source].live.is_empty() && before.is_some() => {
                    Err(format!("its id went back from {before:?} to the beginning"))
                }
                _ => Ok(()),
            };
        };
        if position.check.is_none() {
            let log = &mut self.logs[source];
            if matches!(log.mode, Mode::Last(_)) {
                log.mode = Mode::Unknown;
            }
            return Ok(());
        }
        let index = self.find(state, source, position)?;
        let log = &mut self.logs[source];
        let borders = state.logs[source].borders.partition_point(|border| *border < index);
        log.went_back &= borders < log.borders;
        log.borders = log.borders.max(borders);
        let log = &self.logs[source];
        match &log.mode {
            Mode::Follow if index + 1 < log.next => {
                return Err(format!("its id went back to {index} from {}", log.next));
            }
            Mode::Last(seen) if source == JET => self.newest(state, seen, index)?,
            _ => {}
        }
        self.pass(state, source, index + 1).map_err(|error| format!("its id says {index} ({position:?}): {error}"))?;
        self.logs[source].next = index + 1;
        Ok(())
    }

    /// Which message stands at a position.
    fn find(&mut self, state: &State, source: usize, position: Position) -> Result<usize, String> {
        let written = &state.written[source];
        let borders = &state.logs[source].borders;
        let ends = borders.iter().copied().chain([written.len()]).rev();
        let starts = std::iter::once(0).chain(borders.iter().map(|border| border + 1)).rev();
        let mut found = None;
        for (start, end) in starts.zip(ends) {
            let part = &written[start..end];
            let at = part.partition_point(|w| w.seq < position.seq);
            if part.get(at).is_some_and(|w| w.seq == position.seq && w.position() == position) {
                if found.is_some() {
                    self.counts.collisions += 1;
                }
                // The earliest that does not go back.
                if found.is_none() || start + at + 1 >= self.logs[source].next {
                    found = Some(start + at);
                }
            }
        }
        found.ok_or_else(|| format!("nothing ever stood at {position:?}"))
    }

    /// Whether the newest of each subject came.
    fn newest(&self, state: &State, seen: &BTreeMap<&'static str, usize>, to: usize) -> Result<(), String> {
        if self.logs[JET].newest_lost {
            return Ok(());
        }
        for subject in SUBJECTS[JET].iter().copied().filter(|subject| self.matches(subject)) {
            let of_it = |w: &&Written| w.subject == subject;
            let newest = state.written[JET][..=to].iter().rev().find(of_it).filter(|w| !w.removed && !w.oversized() && w.is_readable());
            if let Some(newest) = newest
                && !seen.contains_key(subject)
            {
                return Err(format!("the newest of {subject} at {} did not come", newest.seq));
            }
        }
        Ok(())
    }

    /// A gap in place of a message that was too large, with this place as its id.
    fn oversized(&mut self, state: &State, source: usize, gap: (&str, Option<u64>, Option<u64>), now: Option<Point>) -> Result<(), String> {
        let (_, from, to) = gap;
        if now == Some(Point::Last) {
            let same = |w: &Written| self.matches(w.subject) && w.oversized() && from == w.seq.checked_sub(1) && to == Some(w.seq + 1);
            return if state.written[source].iter().any(same) { Ok(()) } else { Err(format!("{gap:?} is of no message")) };
        }
        let Some(Point::At(position)) = now else { return Err(format!("an oversized gap has an id of {now:?}")) };
        let index = self.find(state, source, position)?;
        if !state.written[source][index].oversized() || from != position.seq.checked_sub(1) || to != Some(position.seq + 1) {
            return Err(format!("{gap:?} is not that of {index} at {position:?}"));
        }
        if !self.matches(state.written[source][index].subject) {
            return Err(format!("{gap:?} is of a subject that the client may not have"));
        }
        self.reach(state, source, index)
    }

    /// A gap in place of messages that cannot be read: all of them and only they are between its bounds.
    fn unreadable(
        &mut self,
        state: &State,
        source: usize,
        gap: (&str, Option<u64>, Option<u64>),
        now: Option<Point>,
    ) -> Result<(), String> {
        let (_, from, to) = gap;
        let written = &state.written[source];
        let Some(to) = to else {
            let log = &mut self.logs[source];
            if source != JET || from.is_some() || now != Some(Point::Last) || !matches!(log.mode, Mode::Last(_)) {
                return Err(format!("{gap:?} at {now:?} is not of the newest messages"));
            }
            log.newest_lost = true;
            self.effects.extend(written.iter().map(|w| w.unreadable).max());
            return Ok(());
        };
        let first = from.map_or(0, |from| from + 1);
        let mut unreadable = written.iter().enumerate().filter(|(_, w)| !w.is_readable());
        let Some((begin, _)) = unreadable.find(|(_, w)| w.seq == first) else { return Err(format!("{gap:?} begins at no such message")) };
        let count = written[begin..].iter().take_while(|w| !w.is_readable() && w.seq < to).count();
        let end = begin + count;
        if written[end - 1].seq != to - 1 || now != Some(Point::At(Position::unverified(to - 1))) {
            return Err(format!("{gap:?} at {now:?} is not of messages {begin} to {end}"));
        }
        let next = self.logs[source].next;
        if self.logs[source].mode == Mode::Follow && end <= next {
            return Err(format!("{gap:?} was told twice or late: all before {next} had come"));
        }
        self.effects.extend(written[begin..end].iter().map(|w| w.unreadable));
        self.pass(state, source, begin.max(next)).map_err(|error| format!("before {gap:?}: {error}"))?;
        let log = &mut self.logs[source];
        (log.next, log.point, log.unverified) = (end, now, true);
        Ok(())
    }

    fn gap(&mut self, state: &State, source: usize, gap: (&str, Option<u64>, Option<u64>), block: &Block) -> Result<(), String> {
        let (reason, from, to) = gap;
        let now = block.id.as_ref().and_then(|id| self.point(id, source));
        if reason == "oversized" {
            return self.oversized(state, source, gap, now);
        }
        if reason == "unreadable" {
            return self.unreadable(state, source, gap, now);
        }
        if reason == "unknown_cursor" {
            // It came from a bridge that did not know this log, or not by this name.
            let log = &mut self.logs[source];
            let (point, unknown) = (log.point, log.mode == Mode::Unknown);
            if std::mem::take(&mut log.expects_unknown) {
                self.effects.extend(state.renamed.get(&self.epoch));
            }
            return if point.is_none() && unknown { Ok(()) } else { Err(format!("{gap:?} was told to one who stood at {point:?}")) };
        }
        let log = &mut self.logs[source];
        let stood = match log.point {
            Some(Point::At(position)) => Some(position.seq),
            _ => None,
        };
        let issued = state.logs[source].issued.iter().find(|((r, f, t), _)| (*r, *f, *t) == gap).map(|(_, issued)| issued);
        // The same numbers may have been told again since, of a log that was made anew once more.
        let of_news = |issued: &&Issued| !issued.goes_on && issued.borders > log.borders;
        let known = issued.and_then(|issued| issued.iter().find(of_news).or(issued.last()));
        let by_window = reason == "reset" && to.is_none() && from >= stood;
        let borders = match known {
            Some(issued) if issued.goes_on => {
                if let (Some(stood), Some(to), Mode::Follow) = (stood, to, &log.mode)
                    && stood + 1 >= to
                {
                    return Err(format!("{gap:?} was told to one who stood at {stood}: twice"));
                }
                log.gaps.push((from, to));
                return Ok(());
            }
            Some(issued) => issued.borders,
            // A window knows one log from another, but not how many there were.
            None if by_window => state.logs[source].borders.len().min(log.borders + 1),
            None => return Err(format!("{gap:?} is none that a reader was told of; the client stood at {stood:?}")),
        };
        if borders <= log.borders {
            let log = &mut self.logs[source];
            if log.unverified {
                self.counts.unverified += 1;
            } else if log.stale && (by_window || log.went_back) {
                log.went_back |= by_window;
                self.counts.stale += 1;
            } else {
                return Err(format!("{gap:?}: {borders} resets were told before"));
            }
        }
        let border = state.logs[source].borders.get(borders.wrapping_sub(1));
        self.effects.extend(border.map(|border| state.written[source][*border].removed_by));
        let log = &mut self.logs[source];
        log.borders = borders.max(log.borders);
        log.mode = Mode::Earliest;
        log.next = 0;
        log.gaps.clear();
        log.unverified = false;
        log.stale = log.went_back;
        Ok(())
    }

    fn volatile_gap(
        &mut self,
        state: &State,
        floors: Floors<'_>,
        source: usize,
        gap: (&str, Option<u64>, Option<u64>),
        block: &Block,
    ) -> Result<Option<(usize, Handed)>, String> {
        let (reason, from, to) = gap;
        match reason {
            "restart" => match self.volatile {
                Volatile::At(_, seq) if from == Some(seq) && to.is_none() && self.restarted.insert(source) => Ok(None),
                _ => Err(format!("restart of {} from {from:?} to {to:?}, at {:?}", SOURCES[source], self.volatile)),
            },
            "retention" => {
                let epoch = block.id.as_ref().map_or(0, |id| id.epoch);
                self.dropped(state, floors, (epoch, source), (from.unwrap_or_default(), to.unwrap_or(u64::MAX)))?;
                Ok(None)
            }
            _ => {
                let reasons = crate::event::GapReason::ALL;
                let reason = reasons.into_iter().find(|r| r.as_str() == reason).ok_or("an unknown reason")?;
                Ok(Some((source, Handed::Gap(reason))))
            }
        }
    }

    /// A window has dropped what stood there, and nothing of it came or was told before.
    fn dropped(&mut self, state: &State, floors: Floors<'_>, (epoch, source): (u32, usize), (from, to): (u64, u64)) -> Result<(), String> {
        let name = SOURCES[source];
        let floor = floors(epoch, source);
        let stood = if let Volatile::At(at, seq) = self.volatile { if at == epoch { seq } else { 0 } } else { 0 };
        let mut lost = false;
        for taken in state.taken.get(&epoch).into_iter().flatten().filter(|t| t.source == source && t.seq > from && t.seq < to) {
            if taken.seq <= stood || taken.seq > floor {
                return Err(format!(
                    "{name} at {} is not lost, though between {from} and {to} (stood at {stood}, floor {floor})",
                    taken.seq
                ));
            }
            lost |= !self.told_lost(source, taken.seq);
        }
        if !lost {
            return Err(format!("nothing of {name} was dropped between {from} and {to}, floor {floor}, told before: {:?}", self.gaps));
        }
        self.gaps.push((source, from, to));
        Ok(())
    }

    fn told_lost(&self, source: usize, seq: u64) -> bool {
        self.gaps.iter().any(|(of, from, to)| *of == source && *from < seq && seq < *to)
    }

    fn volatile_claim(&mut self, state: &State, floors: Floors<'_>, id: &Cursor, told: Option<(usize, Handed)>) -> Result<(), String> {
        let told = told.filter(|(source, _)| *source >= 2);
        let Point::At(Position { seq, .. }) = id.volatile else {
            if let (Volatile::Last(seen), Some((source, Handed::Message(index)))) = (&mut self.volatile, told) {
                let subject = state.written[source][index].subject;
                if seen.insert((source, subject), index) == Some(index) {
                    return Err(format!("{subject} {index} came twice as the newest"));
                }
            }
            return Ok(());
        };
        let mut free = true;
        let after = match &self.volatile {
            Volatile::Unknown => {
                self.volatile = Volatile::At(id.epoch, seq);
                return Ok(());
            }
            Volatile::Last(seen) => {
                self.newest_taken(state, floors, seen, (id.epoch, seq))?;
                self.volatile = Volatile::At(id.epoch, seq);
                return Ok(());
            }
            Volatile::At(epoch, before) if *epoch == id.epoch => {
                free = false;
                if seq < *before || (seq == *before && told.is_some()) {
                    return Err(format!("sequence {seq} came behind {before}, with {told:?}"));
                }
                *before
            }
            Volatile::At(..) => {
                if let Some(source) = (2..4).find(|source| self.is_concerned(*source) && !self.restarted.contains(source)) {
                    return Err(format!("{} has another epoch, and no restart was told", SOURCES[source]));
                }
                0
            }
            Volatile::Earliest | Volatile::Since(_) => 0,
        };
        self.take(state, floors, (id.epoch, after, seq), told, free)?;
        self.gaps.retain(|(_, _, to)| *to > seq + 1);
        if free {
            self.restarted.clear();
            self.began = [0, 1, 2, 3].map(|source| floors(id.epoch, source));
        }
        self.volatile = Volatile::At(id.epoch, seq);
        Ok(())
    }

    /// Everything that the bridge took in between two sequences was told, or need not be.
    fn take(
        &mut self,
        state: &State,
        floors: Floors<'_>,
        (epoch, after, seq): (u32, u64, u64),
        told: Option<(usize, Handed)>,
        free: bool,
    ) -> Result<(), String> {
        let none = Vec::new();
        let taken = state.taken.get(&epoch).unwrap_or(&none);
        let from = taken.partition_point(|t| t.seq <= after);
        let mut found = told.is_none();
        for t in taken[from..].iter().take_while(|t| t.seq <= seq) {
            if t.seq == seq && told == Some((t.source, t.what.shown())) && !self.told_lost(t.source, t.seq) {
                found = true;
                self.effects.extend(&t.faults);
                continue;
            }
            let (required, time) = match t.what {
                Handed::Message(index) => {
                    let written = &state.written[t.source][index];
                    (self.wants(written), written.time)
                }
                Handed::Oversized(index) => (self.matches(state.written[t.source][index].subject), Timestamp::default()),
                Handed::Gap(_) => (self.is_concerned(t.source), Timestamp::default()),
            };
            let dropped = t.seq <= floors(epoch, t.source);
            let free = free || t.seq <= self.began[t.source];
            let early = matches!(self.volatile, Volatile::Since(since) if time < since);
            if required && !early && !(dropped && (free || self.told_lost(t.source, t.seq))) {
                return Err(format!("{} {:?} at {} was lost in silence before {seq} (told {told:?})", SOURCES[t.source], t.what, t.seq));
            }
        }
        if !found {
            return Err(format!("{told:?} came with sequence {seq}, where something else stands"));
        }
        Ok(())
    }

    /// Whether the newest of each subject of the sources without a log came.
    fn newest_taken(
        &self,
        state: &State,
        floors: Floors<'_>,
        seen: &BTreeMap<(usize, &'static str), usize>,
        (epoch, seq): (u32, u64),
    ) -> Result<(), String> {
        for subject in SUBJECTS[2].iter().chain(SUBJECTS[3]).copied().filter(|subject| self.matches(subject)) {
            let source = 2 + usize::from(SUBJECTS[3].contains(&subject));
            let of_it = |t: &&super::broker::Taken| match t.what {
                Handed::Message(index) => t.source == source && state.written[source][index].subject == subject && t.seq <= seq,
                Handed::Oversized(_) | Handed::Gap(_) => false,
            };
            let newest = state.taken.get(&epoch).and_then(|taken| taken.iter().rev().find(of_it));
            if newest.is_some_and(|t| t.seq > floors(epoch, source)) && !seen.contains_key(&(source, subject)) {
                return Err(format!("the newest of {subject} up to {seq} did not come"));
            }
        }
        Ok(())
    }

    /// After quiet: what the client has not got.
    pub(super) fn missing(&self, state: &State) -> Option<String> {
        for (source, log) in self.logs.iter().enumerate() {
            let since = if let Mode::Since(time) = log.mode { time } else { Timestamp::default() };
            let missing = |w: &&Written| !w.removed && w.time >= since && self.must_know(source, w);
            if self.is_concerned(source)
                && !matches!(log.mode, Mode::Unknown | Mode::Last(_))
                && let Some(written) = state.written[source].iter().skip(log.next).find(missing)
            {
                return Some(format!(
                    "{} at {} has not come ({:?}, {} of {})",
                    written.subject,
                    written.seq,
                    log.mode,
                    log.next,
                    state.written[source].len()
                ));
            }
        }
        let Volatile::At(epoch, seq) = self.volatile else { return Some(format!("{:?}", self.volatile)) };
        let later = |t: &&super::broker::Taken| {
            t.seq > seq
                && match t.what {
                    Handed::Message(index) => self.wants(&state.written[t.source][index]),
                    Handed::Oversized(index) => self.matches(state.written[t.source][index].subject),
                    Handed::Gap(_) => self.is_concerned(t.source),
                }
        };
        state.taken.get(&epoch).and_then(|taken| taken.iter().find(later)).map(|t| format!("{t:?} has not come"))
    }
}

fn covers((from, to): (Option<u64>, Option<u64>), seq: u64) -> bool {
    from.is_none_or(|from| seq > from) && to.is_none_or(|to| seq < to)
}

fn point(id: &Cursor, name: &str) -> Option<Point> {
    let tag = Tag::of(name);
    id.durable.iter().find(|(t, _)| *t == tag).map(|(_, point)| *point)
}
