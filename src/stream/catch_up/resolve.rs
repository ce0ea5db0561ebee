//! Where a client is in the windows, and what it has lost on the way there.

use super::broker::Reading;
use super::followed::{Newest, Origin, Track, followed};
use super::{CatchUp, Wanted, is_known};
use crate::cursor::{Point, Position};
use crate::event::{Gap, GapReason, Timestamp};
use crate::hub::{Place, Source, State};

impl CatchUp {
    /// Finds where the client is in the windows.
    pub(super) fn resolve(&mut self, state: &State) {
        if self.volatile.is_none() {
            self.resolve_volatile(state);
        }
        for source in 0..self.sources.len() {
            let Some(of) = state.source(self.sources[source].info.key) else { continue };
            if !self.sources[source].concerned {
                self.resolve_unconcerned(source, of, state);
                continue;
            }
            if self.sources[source].track == Track::Fresh && self.point(source).is_some() {
                // It did not concern the client so far.
                self.sources[source].track = Track::Pending;
            }
            match self.sources[source].track {
                Track::Fresh if of.warm() => {
                    if of.info().returned() && !self.sources[source].is_told {
                        self.gaps.push((Some(source), Gap::UNKNOWN));
                    }
                    let began = of.began();
                    self.sources[source].track = Track::Follow(began.map_or(state.seq(), |b| b.seq));
                    let position = began.and_then(|b| b.position);
                    self.move_to(source, position.map_or(Point::Earliest, Point::At));
                }
                Track::Pending if of.warm() => self.resolve_pending(source, of, state),
                _ => continue,
            }
            if self.sources[source].track != Track::Pending {
                (self.sources[source].at_tail, self.sources[source].origin) = (false, Origin::Id);
                self.end_history(source);
            }
        }
        self.let_another_be_read(state);
    }

    /// A source that can have nothing for the client is followed from its window's end on, or from when it becomes live.
    fn resolve_unconcerned(&mut self, source: usize, of: &Source, state: &State) {
        match self.sources[source].track {
            Track::Pending | Track::Fresh if of.warm() => {
                self.sources[source].track = Track::Follow(state.seq());
                self.pass(source, of.window().head());
            }
            Track::Pending => self.sources[source].track = Track::Fresh,
            _ => {}
        }
    }

    /// The client needs nothing of a source up to this position: its point moves there, as a live stream's does. It does not go
    /// back, as another replica may have been farther in the log.
    pub(super) fn pass(&mut self, source: usize, to: Option<Position>) {
        let ahead = matches!(self.point(source), Some(Point::At(at)) if to.is_none_or(|to| to.seq < at.seq));
        if !ahead {
            self.move_to(source, to.map_or(Point::Earliest, Point::At));
        }
    }

    /// The client is about to be live. The ids of live streams are the bridge's, which have no point of a source that is not live
    /// yet, or that another replica has and this one does not have yet. If the client has one and comes back with a filter that the
    /// source concerns, it has to be told that its place is lost.
    pub(super) fn leave_points(&self, state: &mut State) {
        if !matches!(self.wanted, Wanted::Id) {
            return;
        }
        for (tag, _) in &self.client.at.durable {
            if !is_known(*tag, state) {
                state.note_left_behind(*tag);
            }
        }
        for (source, of) in followed(&self.sources, state) {
            if self.sources[source].track == Track::Fresh && self.point(source).is_some() {
                of.info().note_returned();
            }
        }
    }

    /// Of a log that was read to its end, the reading ends where another log can be read. A log that has grown since is read on, even
    /// while another one, read to its end too, waits for its window.
    fn let_another_be_read(&mut self, state: &State) {
        for source in 0..self.sources.len() {
            let Some(of) = state.source(self.sources[source].info.key).filter(|_| self.sources[source].at_tail) else { continue };
            let grown = match (of.window().head(), self.point(source)) {
                (Some(head), Some(Point::At(at))) => head.seq > at.seq,
                (head, Some(Point::Earliest)) => head.is_some(),
                _ => false,
            };
            self.sources[source].at_tail &= !grown || self.is_reading(source);
        }
        if let Some(Reading { source, .. }) = self.reading
            && self.sources[source].at_tail
            && self.readable(state).any(|other| !self.sources[other].at_tail)
        {
            self.end_history(source);
        }
    }

    pub(super) fn resolve_volatile(&mut self, state: &State) {
        let volatile = || followed(&self.sources, state).filter(|(_, s)| s.tag().is_none());
        let seq = match self.client.at.volatile {
            Point::At(p) if self.client.at.epoch == self.streams.hub.epoch() && p.seq <= state.seq() => p.seq,
            Point::At(p) => {
                // Another process counted: of what was before this one, nothing is known.
                for (source, _) in volatile().filter(|(source, _)| self.sources[*source].concerned) {
                    self.gaps.push((Some(source), Gap { reason: GapReason::Restart, from: Some(p.seq), to: None, position: None }));
                }
                self.cover_floors(state);
                0
            }
            Point::Earliest => {
                self.cover_floors(state);
                0
            }
            Point::Since(millis) => {
                let time = Timestamp::from_micros(millis.saturating_mul(1000));
                for (source, of) in volatile() {
                    let window = of.window();
                    let lost = window.floor() > 0 && window.floor_time() >= time && self.sources[source].concerned;
                    if lost {
                        let to = window.after(0).next().map_or(window.floor() + 1, |e| e.seq);
                        let gap = Gap { reason: GapReason::Retention, from: None, to: Some(to), position: None };
                        self.gaps.push((Some(source), gap));
                    }
                }
                let first = volatile().filter_map(|(_, s)| s.window().after(0).find(|e| e.time >= time)).map(|e| e.seq).min();
                self.cover_floors(state);
                first.map_or(state.seq(), |seq| seq - 1)
            }
            Point::Last => {
                (self.volatile, self.newest) = (Some(0), Some(state.seq()));
                return;
            }
        };
        self.follow_volatile(seq);
    }

    /// No loss of what the windows of volatile sources have dropped so far is left to be told.
    fn cover_floors(&mut self, state: &State) {
        for of in &mut self.sources {
            if let Some(source) = state.source(of.info.key).filter(|source| source.tag().is_none()) {
                of.covered = source.window().floor();
            }
        }
    }

    /// From now on the volatile sources are followed in the windows, behind this sequence.
    pub(super) fn follow_volatile(&mut self, seq: u64) {
        self.volatile = Some(seq);
        self.client.at.epoch = self.streams.hub.epoch();
        self.client.at.volatile = Point::At(Position::unverified(seq));
    }

    /// Whether the window may still hold a log that is gone: the client has read that its log is new, and of the new one no message
    /// whose check could be compared. What the window has beyond the client's place is read from the broker then.
    fn may_be_old(&self, source: usize, of: &Source, at: Option<u64>) -> bool {
        self.sources[source].origin == Origin::NewLog && of.window().head().map(|head| head.seq) != at
    }

    fn resolve_pending(&mut self, source: usize, of: &Source, state: &State) {
        let Some(at) = self.point(source) else { return };
        match at {
            Point::At(position) => match of.window().find(position) {
                Place::After(_) | Place::Unverified(_) if self.may_be_old(source, of, Some(position.seq)) => {}
                // Another replica may have found that the log was made anew, and the window here holds the old one. The broker tells what
                // is behind that, if anything.
                Place::Unverified(_) if self.sources[source].origin == Origin::Id && !self.sources[source].at_tail => {}
                Place::After(seq) | Place::Unverified(seq) => self.sources[source].track = Track::Follow(seq),
                Place::Outside => {}
                // What was read is the broker's log of now: then it is the window that still holds an old one.
                Place::Other if self.is_reading(source) || self.sources[source].origin != Origin::Id => {}
                // Another replica may have found already that the log was made anew, while the source here looks for it: the broker can
                // tell which one the id is of.
                Place::Other if !self.streams.histories.is_up(of.info().key) => {}
                Place::Other => {
                    let gap = Gap { reason: GapReason::Reset, from: Some(position.seq), to: None, position: None };
                    self.gaps.push((Some(source), gap));
                    self.end_history(source);
                    self.streams.histories.outdate(self.sources[source].info.key);
                    self.move_to(source, Point::Earliest);
                }
            },
            Point::Earliest => {
                if let Some(seq) = of.whole().filter(|_| !self.may_be_old(source, of, None)) {
                    self.sources[source].track = Track::Follow(seq);
                }
            }
            Point::Since(millis) => {
                let time = Timestamp::from_micros(millis.saturating_mul(1000));
                let seq = match of.whole() {
                    Some(whole) => Some(of.window().after(whole).find(|e| e.time >= time).map_or(u64::MAX, |e| e.seq - 1)),
                    None => {
                        // What the window was filled with may have its publishers' times.
                        let dated =
                            if self.streams.histories.dates(of.info().key) { 0 } else { of.began().map_or(u64::MAX, |began| began.seq) };
                        of.window().since(time, dated)
                    }
                };
                if let Some(seq) = seq {
                    self.sources[source].track = Track::Follow(seq.min(state.seq()));
                }
            }
            Point::Last => {
                if !self.keeps_last(source) {
                    self.sources[source].track = Track::Follow(of.window().floor());
                    self.sources[source].newest = Some(Newest { top: state.seq(), head: of.window().head() });
                }
            }
        }
    }
}
