//! `since=last` in the windows: the newest event of each subject.

use std::collections::HashSet;

use super::broker::Reading;
use super::followed::{Followed, Track};
use super::{CatchUp, Task};
use crate::cursor::{Point, Position};
use crate::frame::{Encoded, Form, Kind};
use crate::hub::{Filter, State};
use crate::stream::Settings;

/// Looking for the newest event of each subject in the windows, newest first.
pub(super) struct Newest {
    /// Each with the end of its log when this began.
    sources: Vec<(usize, Option<Position>)>,
    /// The sources are the volatile ones.
    volatile: bool,
    /// The bridge's sequence when it began: what came later is not looked at.
    top: u64,
    /// Everything from this sequence on has been looked at.
    below: u64,
    /// Subjects whose newest event was found; empty once all has been looked at.
    seen: HashSet<String>,
    /// Each found event's source and sequence, the oldest last. Their bytes stay the windows' own: each client that reads slowly
    /// would keep a window of its own otherwise.
    found: Vec<(usize, u64)>,
    scanned: bool,
    /// A log that was being read when this began: goes on behind it.
    interrupted: Option<Reading>,
}

impl Newest {
    /// No longer goes on to read this source's log.
    pub(super) fn forget_history(&mut self, source: usize) {
        self.interrupted.take_if(|reading| reading.source == source);
    }

    /// No longer looks into the window of this source.
    pub(super) fn forget(&mut self, source: usize) {
        self.sources.retain(|(of, _)| *of != source);
    }

    /// Looks at the next entries or, once all have been looked at, takes what is sent next.
    pub(super) fn advance(&mut self, state: &State, followed: &[Followed], filter: &Filter, settings: &Settings) -> Vec<Encoded> {
        if self.scanned {
            return self.take(state, followed, filter.form(), settings.piece);
        }
        self.scan(state, followed, filter, settings.scan);
        Vec::new()
    }

    fn scan(&mut self, state: &State, followed: &[Followed], filter: &Filter, most: usize) {
        for _ in 0..most {
            let windows = self.sources.iter().filter_map(|(source, _)| Some((*source, state.source(followed[*source].info.key)?.window())));
            let next = windows.filter_map(|(source, window)| Some((source, window.before(self.below).next()?)));
            let Some((source, entry)) = next.max_by_key(|(_, entry)| entry.seq) else {
                self.scanned = true;
                self.seen = HashSet::new();
                self.found.shrink_to_fit();
                return;
            };
            self.below = entry.seq;
            if matches!(entry.encoded.kind(), Kind::Event(_))
                && let Some(subject) = entry.encoded.subject()
                && !self.seen.contains(subject)
                && filter.matches(subject)
            {
                self.seen.insert(subject.to_owned());
                self.found.push((source, entry.seq));
            }
        }
    }

    /// About `most` bytes of what was found. Leaves out what has left its window meanwhile: a client that came now would not get
    /// it either.
    fn take(&mut self, state: &State, followed: &[Followed], form: Form, most: usize) -> Vec<Encoded> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while bytes < most {
            let Some((source, seq)) = self.found.pop() else { break };
            let Some(of) = state.source(followed[source].info.key) else { continue };
            if let Some(entry) = of.window().before(seq + 1).next().filter(|entry| entry.seq == seq) {
                bytes += entry.encoded.body(form).len();
                taken.push(entry.encoded.clone());
            }
        }
        taken
    }
}

impl CatchUp {
    pub(super) fn look_for_newest(&mut self, state: &State, volatile: bool, sources: Vec<usize>) {
        let head = |source: usize| state.source(self.sources[source].info.key).and_then(|of| of.window().head());
        let sources = sources.into_iter().map(|source| (source, head(source))).collect();
        let (top, below) = (state.seq(), state.seq() + 1);
        let interrupted = match std::mem::replace(&mut self.task, Task::Nothing) {
            Task::History(reading) => Some(reading),
            _ => None,
        };
        let (seen, found) = (HashSet::new(), Vec::new());
        self.task = Task::Newest(Newest { sources, volatile, top, below, seen, found, scanned: false, interrupted });
    }

    /// Sends what was taken of what the scan has found. Until all of it is sent the client's id asks for it again.
    pub(super) fn write_newest(&mut self, taken: Vec<Encoded>) {
        for encoded in taken {
            self.client.events += 1;
            self.client.write_id(&mut self.out);
            self.out.extend_from_slice(encoded.body(self.filter.form()));
        }
        if !matches!(&self.task, Task::Newest(newest) if newest.scanned && newest.found.is_empty()) {
            return;
        }
        let Task::Newest(newest) = std::mem::replace(&mut self.task, Task::Nothing) else { return };
        let Newest { sources, volatile, top, interrupted, .. } = newest;
        self.task = interrupted.map_or(Task::Nothing, Task::History);
        if volatile {
            self.follow_volatile(top);
            for (source, _) in sources {
                self.sources[source].covered = top;
            }
        } else {
            for (source, head) in sources {
                self.sources[source].track = Track::Follow(top);
                self.move_to(source, head.map_or(Point::Earliest, Point::At));
            }
        }
        self.client.write_id(&mut self.out);
        self.out.push(b'\n');
    }
}
