//! The oracle: holds what one client was sent against what was ever written, block by block.
//!
//! A client's id is taken at its word: whatever it claims to have, the client must have been sent, or told to be lost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::broker::{Config, Fault, Handed, Issued, JET, Names, RENAMED, ROUTES, SOURCES, SUBJECTS, State, Taken, Written, routed};
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
        /// Which, and by which name; `None`: all.
        source: Option<(usize, &'static str)>,
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
#[derive(Clone)]
struct Follower {
    mode: Mode,
    /// Everything written before this index was sent or accounted for.
    next: usize,
    /// By which routes the client may have been led on since, each with how much had been written at the end of that.
    spans: Vec<(u8, usize)>,
    /// The point up to which that is accounted for.
    passed: Option<Point>,
    /// Gaps that were told since.
    gaps: Vec<(Option<u64>, Option<u64>)>,
    /// Which of the logs it stands in, by what it was told and sent: so many borders are before it.
    borders: usize,
    /// The last id's point.
    point: Option<Point>,
    /// Since the last reset, the client stood at a place without a check: another bridge may tell it again.
    unverified: bool,
    /// When the stream was opened, or its last reset was told, the bridge had not noticed yet that the log was made anew or cut.
    stale: bool,
    /// The bridge has to say first that the client's id knew nothing of this source.
    expects_unknown: bool,
    /// It was told that its place is not known, and no id has said a place since: one that goes behind that gap need not be told again, as the
    /// gap may be of the source as it is now.
    unplaced: bool,
    /// The source was gone for a while since the last id, or had another name.
    left: bool,
    /// It was told that the newest of each subject cannot be read.
    newest_lost: bool,
}

impl Follower {
    fn new() -> Self {
        Self {
            mode: Mode::Unknown,
            next: 0,
            spans: Vec::new(),
            passed: None,
            gaps: Vec::new(),
            borders: 0,
            point: None,
            unverified: false,
            stale: false,
            expects_unknown: false,
            unplaced: false,
            left: false,
            newest_lost: false,
        }
    }

    /// It stands nowhere, and begins with what the bridge says.
    fn forget(&mut self) {
        self.point = None;
        self.gaps.clear();
        self.spans.clear();
        self.next = 0;
        self.borders = 0;
        self.unverified = true;
        self.mode = Mode::Unknown;
        self.expects_unknown = false;
        self.unplaced = false;
        self.left = false;
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
    /// Lost where a log was made anew, and read on from a place without a check, or from one of which the log of now has nothing to
    /// compare.
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
#[derive(Clone)]
pub(super) struct Judge {
    pub(super) patterns: Vec<&'static str>,
    /// What the open stream is still limited to; empty: nothing.
    narrower: &'static [&'static str],
    /// What streams were limited to before. The client need not have had the rest of what had been written of each source by then, nor
    /// of what bridges had taken in up to these sequences.
    spared: &'static [&'static str],
    spared_written: [usize; 4],
    spared_taken: BTreeMap<u32, u64>,
    concerned: [bool; 4],
    /// Which of the bridge's configs the last block was made under, and what the bridge called its sources then.
    config: usize,
    names: Names,
    /// How many changes of bridges there had been when the stream was opened, when the last block was made, and when this one was.
    began_at: u64,
    before: u64,
    mark: u64,
    /// For each source, by which routes messages were passed over between the last block and this one, and how many had been
    /// written when these ended.
    spans: [Vec<(u8, usize)>; 4],
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
        let concerned_by = |routes| {
            SUBJECTS.map(|subjects| {
                let wanted = |subject: &str| patterns.iter().any(|pattern| matches(pattern, subject));
                subjects.iter().any(|subject| routed(subject, routes).is_some_and(wanted))
            })
        };
        let concerned = concerned_by(0);
        assert!((0..ROUTES).all(|routes| concerned_by(routes) == concerned), "a filter is concerned by some routes only");
        Self {
            patterns,
            narrower: &[],
            spared: &[],
            spared_written: [0; 4],
            spared_taken: BTreeMap::new(),
            concerned,
            config: 0,
            names: [None; 4],
            began_at: 0,
            before: 0,
            mark: 0,
            spans: Default::default(),
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

    fn matches(&self, subject: &str, routes: u8) -> bool {
        routed(subject, routes).is_some_and(|subject| self.patterns.iter().any(|pattern| matches(pattern, subject)))
    }

    /// The stream that was opened is limited to these patterns; empty: it is not.
    pub(super) fn narrow(&mut self, patterns: &'static [&'static str]) {
        self.narrower = patterns;
        if !patterns.is_empty() {
            (self.spared, self.spared_written) = (patterns, [usize::MAX; 4]);
            self.spared_taken.insert(self.epoch, u64::MAX);
        }
    }

    /// The open stream is not limited any more, from this sequence of its bridge on.
    pub(super) fn widen(&mut self, state: &State, seq: u64) {
        self.narrower = &[];
        self.spared_written = std::array::from_fn(|source| state.written[source].len());
        self.spared_taken.insert(self.epoch, seq);
    }

    /// Whether a subject is among those that streams were limited to.
    fn stays(&self, subject: &str, routes: u8, limits: &[&str]) -> bool {
        limits.is_empty() || routed(subject, routes).is_some_and(|subject| limits.iter().any(|pattern| matches(pattern, subject)))
    }

    fn wants(&self, written: &Written, routes: u8) -> bool {
        self.matches(written.subject, routes) && !written.oversized() && written.is_readable()
    }

    pub(super) fn is_concerned(&self, source: usize) -> bool {
        self.concerned[source] && self.names[source].is_some()
    }

    /// Something that the client must have been told of. The subject of what cannot be read is not known.
    fn must_know(&self, source: usize, index: usize, written: &Written) -> bool {
        if !written.is_readable() {
            return self.is_concerned(source);
        }
        let mut spans = self.logs[source].spans.iter().filter(|(_, end)| index < *end).peekable();
        let spared = if index < self.spared_written[source] { self.spared } else { &[] };
        spans.peek().is_some()
            && spans.all(|(routes, _)| self.matches(written.subject, *routes) && self.stays(written.subject, *routes, spared))
    }

    /// By which routes a message may be shown in this block: nothing is made by routes that had ended, but for what a stream that was
    /// open then still has of a source that was removed.
    fn shown_by<'a>(&self, state: &'a State, source: usize) -> impl Iterator<Item = u8> + use<'a> {
        let configs = state.configs(self.epoch);
        let (opened, made) = (state.config_at(self.epoch, self.began_at), state.config_at(self.epoch, self.mark));
        let now = configs[made..=made].iter().filter_map(move |config| config.routes[source]);
        let removed = configs[opened..=made].windows(2).filter(move |two| two[1].names[source] != two[0].names[source]);
        now.chain(removed.filter_map(move |two| two[0].routes[source]))
    }

    /// Whether a message with this subject may be shown in this block, by the name of `shown`.
    fn may_show(&self, state: &State, source: usize, subject: &str, shown: Option<&str>) -> bool {
        let fits = |routes| {
            self.matches(subject, routes)
                && self.stays(subject, routes, self.narrower)
                && shown.is_none_or(|shown| Some(shown) == routed(subject, routes))
        };
        self.shown_by(state, source).any(fits)
    }

    /// Notes when a block was made, and under which config.
    fn follow(&mut self, state: &State, block: &Block, mark: u64) {
        self.mark = mark;
        let (first, last) = (state.config_at(self.epoch, self.before), state.config_at(self.epoch, mark));
        let configs = state.configs(self.epoch);
        for (source, spans) in self.spans.iter_mut().enumerate() {
            spans.clear();
            // What is left of a source that was removed was routed as that was.
            let opened = state.config_at(self.epoch, self.began_at);
            let removed = configs[opened..=last].windows(2).filter(|two| two[0].names[source] != two[1].names[source]);
            spans.extend(removed.filter_map(|two| Some((two[0].routes[source]?, two[1].written[source]))));
            let ends = configs[first..=last].iter().skip(1).map(|config| config.written[source]).chain([state.written[source].len()]);
            spans.extend(configs[first..=last].iter().zip(ends).filter_map(|(config, end)| Some((config.routes[source]?, end))));
        }
        if let Some(config) = (self.config..=last).find(|config| self.fits(state, *config, block)) {
            while self.config < config {
                self.config += 1;
                self.enter(configs, self.config);
            }
        }
        // Only now each log is known by the name that the bridge has for it.
        for (source, log) in self.logs.iter_mut().enumerate() {
            for (routes, end) in &self.spans[source] {
                match log.spans.last_mut().filter(|(before, _)| before == routes) {
                    Some((_, before)) => *before = *end,
                    None => log.spans.push((*routes, *end)),
                }
            }
            if let Mode::Last(seen) = &mut log.mode
                && configs[first..=last].windows(2).any(|two| two[0].keys[source] != two[1].keys[source])
            {
                // What was found by the routes before is looked for again.
                seen.clear();
            }
        }
    }

    /// Which config a block was made under, as far as is known.
    fn stands(&self, state: &State) -> String {
        let configs: Vec<_> = state.configs(self.epoch).iter().map(|config| (config.from, config.names, config.routes)).collect();
        format!("opened at {}, made at {}, config {} of {configs:?}", self.began_at, self.mark, self.config)
    }

    /// What the client has had of a log under one of its names.
    fn follower(&self, source: usize, name: &str) -> &Follower {
        if (name == RENAMED[source]) == self.swapped[source] { &self.logs[source] } else { &self.others[source] }
    }

    /// Whether a block may have been made under this config or an earlier one.
    fn fits(&self, state: &State, at: usize, block: &Block) -> bool {
        let configs = state.configs(self.epoch);
        let (names, first) = (configs[at].names, state.config_at(self.epoch, self.before).min(at));
        let was_gone = |source: usize, name: &str| {
            self.logs[source].left || configs[self.config + 1..=at].iter().any(|config| config.names[source] != Some(name))
        };
        let stands = |id: &Cursor| {
            // What does not concern the client says nothing.
            let of = |source: usize| [SOURCES[source], RENAMED[source]].map(|name| (source, name));
            [of(0), of(1)].as_flattened().iter().filter(|(source, _)| self.concerned[*source]).all(|(source, name)| {
                let (before, now) = (self.follower(*source, name).point, point(id, name));
                if names[*source] == Some(name) {
                    now.is_some() || before.is_none() || was_gone(*source, name)
                } else {
                    now.is_none() || now == before || self.was_there(state, first..=at, *source, name)
                }
            })
        };
        let is_there = match &block.content {
            Content::Event { source, .. } => names[*source].is_some(),
            Content::Gap { source: Some((source, name)), reason, .. } => {
                let unknown = || self.follower(*source, name).point.is_none() || was_gone(*source, name);
                names[*source] == Some(name) && (reason != "unknown_cursor" || unknown())
            }
            _ => true,
        };
        is_there && block.id.as_ref().is_none_or(stands)
    }

    /// Whether the bridge had a source by this name under some of its configs.
    fn was_there(&self, state: &State, configs: std::ops::RangeInclusive<usize>, source: usize, name: &str) -> bool {
        state.configs(self.epoch)[configs].iter().any(|config| config.names[source] == Some(name))
    }

    /// The bridge has other sources.
    fn enter(&mut self, configs: &[Config], at: usize) {
        let before = std::mem::replace(&mut self.names, configs[at].names);
        self.swap();
        for (source, before) in before.iter().enumerate().take(2) {
            let log = &mut self.logs[source];
            if *before == self.names[source] {
                continue;
            }
            log.left = true;
            // Where no such source was before, nothing is missing.
            let returns = configs[..at].iter().any(|config| config.names[source].is_some());
            let is_new = self.names[source].is_some() && log.point.is_none() && !log.unplaced;
            log.expects_unknown = returns && is_new && self.concerned[source];
        }
    }

    /// Each log is known by the name that the bridge has for it.
    fn swap(&mut self) {
        for (source, renamed) in RENAMED.into_iter().enumerate() {
            let swapped = self.names[source].map_or(self.swapped[source], |name| name == renamed);
            if std::mem::replace(&mut self.swapped[source], swapped) != swapped {
                std::mem::swap(&mut self.logs[source], &mut self.others[source]);
            }
        }
    }

    /// The client opens a stream.
    pub(super) fn open(&mut self, state: &State, epoch: u32, start: &Start) {
        let configs = state.configs(epoch);
        self.config = configs.len() - 1;
        let Config { from, names, .. } = configs[self.config];
        (self.epoch, self.names, self.opened) = (epoch, names, Timestamp::now());
        (self.began_at, self.before, self.mark) = (from, from, from);
        self.swap();
        for (source, log) in self.logs.iter_mut().enumerate() {
            log.stale = state.noticed(epoch, source, u64::MAX) < state.logs[source].borders.len();
        }
        self.gaps.clear();
        self.restarted.clear();
        self.expects_unknown = *start == Start::Unreadable;
        if *start == Start::Resume {
            // An id of the same process is from before the source was live there.
            let knows_others = (0..2).any(|source| self.parked(source).any(|(_, other)| other.point.is_some()));
            let early = self.id_epoch == Some(epoch) && !knows_others;
            for (source, log) in self.logs.iter_mut().enumerate() {
                let name = names[source];
                let mut configs = configs.iter().skip_while(|config| config.names[source].is_none());
                let returned = configs.any(|config| config.names[source] != name);
                log.expects_unknown = log.point.is_none() && self.concerned[source] && name.is_some() && (!early || returned);
                log.left = false;
                log.unplaced = false;
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
    pub(super) fn block(&mut self, state: &State, floors: Floors<'_>, block: &Block, mark: u64) -> Result<(), String> {
        self.follow(state, block, mark);
        let judged = self.content(state, floors, block);
        self.before = mark;
        judged
    }

    fn content(&mut self, state: &State, floors: Floors<'_>, block: &Block) -> Result<(), String> {
        let mut told = None;
        match &block.content {
            Content::Closing(reason) if reason == Closing::Unavailable.as_str() => self.unavailable(state)?,
            Content::Nothing | Content::Closing(_) => {}
            Content::Event { source, index, subject } => {
                self.counts.events += 1;
                let written = state.written[*source].get(*index).ok_or("an event that nobody wrote")?;
                let may_show = self.may_show(state, *source, written.subject, subject.as_deref());
                if !may_show || written.oversized() || !written.is_readable() {
                    let routes: Vec<_> = self.shown_by(state, *source).collect();
                    return Err(format!(
                        "{} {index}, as {subject:?}, is not what the client may have by {routes:?} ({})",
                        written.subject,
                        self.stands(state)
                    ));
                }
                self.note_reload(state, *source, written.subject);
                let late = written.late.iter().filter(|late| late.epoch == self.epoch && late.arrived >= self.opened);
                self.effects.extend(late.flat_map(|late| &late.faults));
                if self.names[*source].is_none() {
                    return Err(format!("{} {index} is of a source that is not there ({})", written.subject, self.stands(state)));
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
            Content::Gap { source: Some((source, _)), reason, from, to } => {
                self.counts.gaps += 1;
                if !self.is_concerned(*source) {
                    return Err(format!("a gap of {} concerns nobody here ({})", SOURCES[*source], self.stands(state)));
                }
                if *source < 2 {
                    self.gap(state, *source, (reason, *from, *to), block)?;
                } else {
                    told = self.volatile_gap(state, floors, *source, (reason, *from, *to))?;
                }
            }
        }
        // A stream that ends before anything was told leaves the client's cursor as it is.
        if self.expects_unknown && (block.id.is_some() || !matches!(block.content, Content::Nothing | Content::Closing(_))) {
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
        let moved: Vec<_> =
            self.parked(source).filter_map(|(name, of)| Some((name, point(id, name).filter(|now| of.point != Some(*now))?))).collect();
        for (name, now) in moved {
            let first = state.config_at(self.epoch, self.before).min(self.config);
            if self.concerned[source] && !self.was_there(state, first..=self.config, source, name) {
                return Err(format!("its id moved to {now:?} in {name}, which is not there"));
            }
            // It was led on before the source went.
            let other = (name == RENAMED[source]) != self.swapped[source];
            if other {
                std::mem::swap(&mut self.logs[source], &mut self.others[source]);
            }
            let stands = self.stand(state, source, now);
            if other {
                std::mem::swap(&mut self.logs[source], &mut self.others[source]);
            }
            stands?;
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
            let left = self.logs[source].left && self.logs[source].point.is_some() && self.concerned[source];
            if left || !self.concerned[source] {
                self.logs[source].forget();
                self.logs[source].expects_unknown |= left;
            }
            let before = self.logs[source].point;
            return if before.is_none() { Ok(()) } else { Err(format!("its id lost where it was: {before:?}")) };
        };
        self.logs[source].left = false;
        self.logs[source].unplaced = false;
        if self.logs[source].expects_unknown {
            return Err(format!("its id stands at {point:?}, and it was not told that it was not known before"));
        }
        self.stand(state, source, point)
    }

    /// The client's id stands at a point of a log.
    fn stand(&mut self, state: &State, source: usize, point: Point) -> Result<(), String> {
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
        self.enter_log(state, source, index)?;
        self.pass(state, source, index).map_err(|error| format!("before {} {index}: {error}", written.subject))?;
        let log = &mut self.logs[source];
        log.next = index + 1;
        (log.point, log.passed) = (Some(Point::At(written.position())), Some(Point::At(written.position())));
        Ok(())
    }

    /// The client stands at a message, and so in a log that has it.
    fn enter_log(&mut self, state: &State, source: usize, index: usize) -> Result<(), String> {
        let log = &mut self.logs[source];
        let until = state.written[source][index].until;
        if until > log.borders {
            log.borders = log.borders.max(state.logs[source].borders.partition_point(|border| *border < index));
        } else if state.noticed(self.epoch, source, self.mark) < log.borders {
            // The bridge's window still holds an old log, into which it leads back. It tells the reset again behind that.
            log.borders = until - 1;
        } else {
            return Err(format!("{index} is not in log {}, and the bridge knew that", log.borders));
        }
        Ok(())
    }

    /// The client is said to have everything before an index.
    fn pass(&mut self, state: &State, source: usize, to: usize) -> Result<(), String> {
        let log = &self.logs[source];
        let mut blind = 0;
        if !matches!(log.mode, Mode::Unknown | Mode::Last(_)) {
            let mut removed = false;
            // A position that is gone from the new log is not compared: the gap then has the new log's numbers.
            let crossed = state.logs[source].borders.iter().any(|border| (log.next..to).contains(border));
            let mut passed = state.logs[source].passed.range(log.next.saturating_sub(1)..);
            let is_blind = state.logs[source].blind || passed.next().is_some_and(|passed| *passed < to);
            for (index, written) in state.written[source].iter().enumerate().take(to).skip(log.next) {
                removed |= written.removed;
                if !self.must_know(source, index, written) {
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
                if !excused && crossed && (is_blind || log.unverified) {
                    blind += 1;
                } else if !excused {
                    let how = if written.removed { "in silence" } else { "though it is in the log" };
                    return Err(format!(
                        "{} {index} at {} was lost {how} (gaps {:?}, routes {:?})",
                        written.subject, written.seq, log.gaps, log.spans
                    ));
                }
            }
            if log.mode == Mode::Follow && !log.gaps.is_empty() && !removed {
                return Err(format!("nothing was lost between {} and {to}, but gaps told: {:?}", log.next, log.gaps));
            }
        }
        self.counts.blind += blind;
        let log = &mut self.logs[source];
        log.gaps.clear();
        log.spans.clear();
        log.mode = Mode::Follow;
        Ok(())
    }

    /// An id says how far the client has come.
    fn claim(&mut self, state: &State, source: usize, now: Point) -> Result<(), String> {
        let log = &mut self.logs[source];
        let before = log.point.replace(now);
        if log.passed == Some(now) {
            log.spans.clear();
        }
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
        let log = &self.logs[source];
        match &log.mode {
            Mode::Follow if index + 1 < log.next => {
                return Err(format!("its id went back to {index} from {}", log.next));
            }
            Mode::Last(seen) if source == JET => self.newest(state, seen, index)?,
            _ => {}
        }
        self.enter_log(state, source, index)?;
        self.pass(state, source, index + 1).map_err(|error| format!("its id says {index} ({position:?}): {error}"))?;
        let log = &mut self.logs[source];
        (log.next, log.passed) = (index + 1, Some(now));
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
        let all = |subject: &&str| self.spans[JET].iter().all(|(routes, _)| self.matches(subject, *routes));
        for subject in SUBJECTS[JET].iter().copied().filter(all) {
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
            let same = |w: &Written| {
                self.may_show(state, source, w.subject, None) && w.oversized() && from == w.seq.checked_sub(1) && to == Some(w.seq + 1)
            };
            return if state.written[source].iter().any(same) { Ok(()) } else { Err(format!("{gap:?} is of no message")) };
        }
        let Some(Point::At(position)) = now else { return Err(format!("an oversized gap has an id of {now:?}")) };
        let index = self.find(state, source, position)?;
        if !state.written[source][index].oversized() || from != position.seq.checked_sub(1) || to != Some(position.seq + 1) {
            return Err(format!("{gap:?} is not that of {index} at {position:?}"));
        }
        if !self.may_show(state, source, state.written[source][index].subject, None) {
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

    /// The client's id is of a bridge that did not know this log, or not by this name, or the log was gone for a while.
    fn unknown(&mut self, state: &State, source: usize) -> Result<(), String> {
        let log = &mut self.logs[source];
        log.expects_unknown = false;
        if log.left {
            log.forget();
        }
        let (point, unknown) = (log.point, log.mode == Mode::Unknown);
        if point.is_some() || !unknown {
            return Err(format!("an unknown cursor was told to one who stood at {point:?}"));
        }
        self.logs[source].unplaced = true;
        let configs = &state.configs(self.epoch)[..=self.config];
        let since = configs.iter().rev().take_while(|config| config.names[source] == self.names[source]).last();
        self.effects.extend(since.map(|config| config.fault));
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
            return self.unknown(state, source);
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
            Some(issued) if issued.borders > log.borders || !by_window => issued.borders,
            // A window knows one log from another, but not how many there were. A log before may have been left at the same position.
            _ if by_window => state.logs[source].borders.len().min(log.borders + 1),
            _ => return Err(format!("{gap:?} is none that a reader was told of; the client stood at {stood:?}")),
        };
        let border = state.logs[source].borders.get(borders.wrapping_sub(1));
        let noticed = state.noticed(self.epoch, source, self.mark);
        if borders <= log.borders {
            // Where a log was only cut, what is before that stands in both: the bridge's window had it, and went on in the old one.
            let in_both = border.is_some_and(|border| log.next <= *border);
            if log.unverified {
                self.counts.unverified += 1;
            } else if by_window && noticed < log.borders || log.stale && in_both {
                self.counts.stale += 1;
            } else {
                return Err(format!("{gap:?}: {borders} resets were told before"));
            }
        }
        self.effects.extend(border.map(|border| state.written[source][*border].removed_by));
        let log = &mut self.logs[source];
        log.borders = borders.max(log.borders);
        log.mode = Mode::Earliest;
        log.next = 0;
        log.gaps.clear();
        log.unverified = false;
        // The log's reader may have told it while the live one knew nothing yet.
        log.stale = noticed < log.borders;
        Ok(())
    }

    fn volatile_gap(
        &mut self,
        state: &State,
        floors: Floors<'_>,
        source: usize,
        gap: (&str, Option<u64>, Option<u64>),
    ) -> Result<Option<(usize, Handed)>, String> {
        let (reason, from, to) = gap;
        match reason {
            "restart" => match self.volatile {
                Volatile::At(_, seq) if from == Some(seq) && to.is_none() && self.restarted.insert(source) => Ok(None),
                // Of this process, though the client may not have had an id of it yet.
                _ if to.is_some() => {
                    let Some(fault) = self.replaced(state, source) else {
                        return Err(format!("a restart of {} was told from {from:?}, but it was not made anew", SOURCES[source]));
                    };
                    self.effects.push(fault);
                    self.dropped(state, floors, (self.epoch, source), (from.unwrap_or_default(), to.unwrap_or(u64::MAX)), true)?;
                    Ok(None)
                }
                _ => Err(format!("restart of {} from {from:?} to {to:?}, at {:?}", SOURCES[source], self.volatile)),
            },
            "retention" => {
                // One who begins at some time is told so of a window that was made anew, too.
                let anew = matches!(self.volatile, Volatile::Since(_)) && self.replaced(state, source).is_some();
                self.dropped(state, floors, (self.epoch, source), (from.unwrap_or_default(), to.unwrap_or(u64::MAX)), anew)?;
                Ok(None)
            }
            _ => {
                let reasons = crate::event::GapReason::ALL;
                let reason = reasons.iter().copied().find(|r| r.as_str() == reason).ok_or("an unknown reason")?;
                Ok(Some((source, Handed::Gap(reason))))
            }
        }
    }

    /// The fault that made the window of a source another one behind where the client stands.
    fn replaced(&self, state: &State, source: usize) -> Option<Fault> {
        let stood = if let Volatile::At(at, seq) = self.volatile { if at == self.epoch { seq } else { 0 } } else { 0 };
        let others = state.configs(self.epoch).windows(2).filter(|two| two[0].keys[source] != two[1].keys[source]);
        others.filter(|two| two[1].seq > stood).map(|two| two[1].fault).next()
    }

    /// A window has dropped what stood there, and nothing of it came or was told before. `anew`: or it was made anew, and what the
    /// broker had meanwhile is in no window.
    fn dropped(
        &mut self,
        state: &State,
        floors: Floors<'_>,
        (epoch, source): (u32, usize),
        (from, to): (u64, u64),
        anew: bool,
    ) -> Result<(), String> {
        let name = SOURCES[source];
        let floor = floors(epoch, source);
        let stood = if let Volatile::At(at, seq) = self.volatile { if at == epoch { seq } else { 0 } } else { 0 };
        let mut lost = anew;
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
                if let Some(source) =
                    (2..4).find(|source| self.concerned[*source] && self.stayed(state, *source) && !self.restarted.contains(source))
                {
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
            let time = if let Handed::Message(index) = t.what { state.written[t.source][index].time } else { Timestamp::default() };
            let dropped = t.seq <= floors(epoch, t.source);
            let free = free || t.seq <= self.began[t.source];
            let early = matches!(self.volatile, Volatile::Since(since) if time < since);
            if self.is_due(state, epoch, t) && !self.gone(state, t) && !early && !(dropped && (free || self.told_lost(t.source, t.seq))) {
                return Err(format!("{} {:?} at {} was lost in silence before {seq} (told {told:?})", SOURCES[t.source], t.what, t.seq));
            }
        }
        if !found {
            return Err(format!("{told:?} came with sequence {seq}, where something else stands"));
        }
        Ok(())
    }

    /// Whether the client is to get what was taken in of a source without a log.
    fn is_due(&self, state: &State, epoch: u32, taken: &Taken) -> bool {
        let spared = if self.spared_taken.get(&epoch).is_some_and(|seq| taken.seq <= *seq) { self.spared } else { &[] };
        let stays = |index: usize| self.stays(state.written[taken.source][index].subject, taken.routes, spared);
        match taken.what {
            Handed::Message(index) => self.wants(&state.written[taken.source][index], taken.routes) && stays(index),
            Handed::Oversized(index) => self.matches(state.written[taken.source][index].subject, taken.routes) && stays(index),
            Handed::Gap(_) => self.concerned[taken.source],
        }
    }

    /// Whether what was taken in may be missing in silence, as its source was not there for a while since the last block.
    fn gone(&self, state: &State, taken: &Taken) -> bool {
        let configs = state.configs(self.epoch);
        let (first, last) = (state.config_at(self.epoch, taken.changes.max(self.before)), state.config_at(self.epoch, self.mark));
        configs.get(first..=last).unwrap_or_default().iter().any(|config| config.keys[taken.source].is_none())
    }

    /// Whether a source was there all the time since the stream was opened.
    fn stayed(&self, state: &State, source: usize) -> bool {
        let (first, last) = (state.config_at(self.epoch, self.began_at), state.config_at(self.epoch, self.mark));
        state.configs(self.epoch)[first..=last].iter().all(|config| config.keys[source].is_some())
    }

    /// Changes of the sources since the stream was opened have an effect where the client gets this subject only by them.
    fn note_reload(&mut self, state: &State, source: usize, subject: &str) {
        let (first, last) = (state.config_at(self.epoch, self.began_at), state.config_at(self.epoch, self.mark));
        for two in state.configs(self.epoch)[first..=last].windows(2) {
            let shown =
                |config: &Config| config.routes[source].filter(|routes| self.matches(subject, *routes)).and_then(|of| routed(subject, of));
            if shown(&two[0]) != shown(&two[1]) {
                self.effects.push(two[1].fault);
            }
        }
    }

    /// Whether the newest of each subject of the sources without a log came.
    fn newest_taken(
        &self,
        state: &State,
        floors: Floors<'_>,
        seen: &BTreeMap<(usize, &'static str), usize>,
        (epoch, seq): (u32, u64),
    ) -> Result<(), String> {
        for subject in SUBJECTS[2].iter().chain(SUBJECTS[3]).copied() {
            let source = 2 + usize::from(SUBJECTS[3].contains(&subject));
            let of_it = |t: &&Taken| match t.what {
                Handed::Message(index) => t.source == source && state.written[source][index].subject == subject,
                Handed::Oversized(_) | Handed::Gap(_) => false,
            };
            let newest = state.taken.get(&epoch).and_then(|taken| taken.iter().rev().find(of_it));
            // What a newer one has overtaken meanwhile need not come: that one will.
            let due = newest
                .is_some_and(|t| t.seq <= seq && t.seq > floors(epoch, source) && self.matches(subject, t.routes) && !self.gone(state, t));
            if due && !seen.contains_key(&(source, subject)) {
                return Err(format!("the newest of {subject} up to {seq} did not come"));
            }
        }
        Ok(())
    }

    /// After quiet: what the client has not got.
    pub(super) fn missing(&self, state: &State) -> Option<String> {
        let configs = state.configs(self.epoch);
        let last = configs.last()?;
        // Where nothing has come since the sources changed last, the id may have known all of them before. What does come may have
        // been made before that all the same, so this judge does not change.
        let knows = |source: usize| last.names[source].is_none_or(|name| self.follower(source, name).point.is_some());
        if self.config + 1 < configs.len() && (0..2).all(|source| !self.concerned[source] || knows(source)) {
            let mut later = self.clone();
            while later.config + 1 < configs.len() {
                later.config += 1;
                later.enter(configs, later.config);
            }
            return later.missing(state);
        }
        if (0..2).any(|source| self.concerned[source] && self.names[source] != last.names[source]) {
            return Some(format!("its ids know {:?} of {:?}", self.names, last.names));
        }
        if let Some(source) = (0..2).find(|source| self.logs[*source].expects_unknown) {
            return Some(format!("it was not told that {} came back", SOURCES[source]));
        }
        let due = |source: usize, index: usize, w: &Written| match last.routes[source] {
            Some(routes) if w.is_readable() => {
                let spared = if index < self.spared_written[source] { self.spared } else { &[] };
                self.matches(w.subject, routes) && self.stays(w.subject, routes, spared)
            }
            routes => routes.is_some() && self.concerned[source],
        };
        for (source, log) in self.logs.iter().enumerate() {
            let since = if let Mode::Since(time) = log.mode { time } else { Timestamp::default() };
            let missing = |(index, w): &(usize, &Written)| !w.removed && w.time >= since && due(source, *index, w);
            if self.is_concerned(source)
                && !matches!(log.mode, Mode::Unknown | Mode::Last(_))
                && let Some((_, written)) = state.written[source].iter().enumerate().skip(log.next).find(missing)
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
        let later = |t: &&Taken| t.seq > seq && self.is_due(state, epoch, t);
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
