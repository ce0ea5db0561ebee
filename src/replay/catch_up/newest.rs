//! `since=last` in the windows: the newest event of each subject.

use std::collections::HashSet;

use super::{CatchUp, Newest, PIECE, SCAN, Track, state_epoch};
use crate::cursor::{Point, Position};
use crate::frame;
use crate::hub::State;

impl CatchUp {
    pub(super) fn look_for_newest(&mut self, state: &State, volatile: bool, sources: Vec<usize>) {
        let heads = sources.iter().map(|s| state.sources()[*s].window().head()).collect();
        let (top, below) = (state.seq(), state.seq() + 1);
        self.newest = Some(Newest { sources, volatile, top, below, heads, seen: HashSet::new(), found: Vec::new(), scanned: false });
    }

    pub(super) fn scan(&mut self, state: &State) {
        let Some(newest) = &mut self.newest else { return };
        for _ in 0..SCAN {
            let next = newest.sources.iter().filter_map(|s| state.sources()[*s].window().before(newest.below).next()).max_by_key(|e| e.seq);
            let Some(entry) = next else {
                newest.scanned = true;
                return;
            };
            newest.below = entry.seq;
            if let Some(subject) = entry.encoded.subject()
                && !newest.seen.contains(subject)
                && self.filter.matches(subject)
            {
                newest.seen.insert(subject.to_owned());
                newest.found.push(entry.clone());
            }
        }
    }

    /// Sends what the scan has found, once it is through. Until all of it is sent the client's id asks for it again.
    pub(super) fn write_newest(&mut self, out: &mut Vec<u8>) {
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
}
