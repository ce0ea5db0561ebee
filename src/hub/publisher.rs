//! How events get their sequence, the cursor that stands behind them, and their bytes.

use std::task::Waker;

use super::{Entry, Input, Publisher, Pushed};
use crate::cursor::{Point, Position};
use crate::event::{Gap, GapReason, SourceKey, Timestamp};
use crate::frame::Origin;
use crate::subject::Subject;

impl Publisher {
    /// Gives an input its sequence, moves the cursor and encodes it.
    pub(super) fn prepare(&mut self, source: SourceKey, input: &Input, now: Timestamp) {
        let source = source.slot();
        self.seq += 1;
        self.cursor.volatile = Point::At(Position::unverified(self.seq));
        match input {
            &Input::Skip(position) => {
                self.stand(source, Some(position));
                self.entries.push(Pushed::Skip(position));
            }
            &Input::Tail(position) => {
                let was_warm = std::mem::replace(&mut self.feeds[source].warm, true);
                self.stand(source, position);
                self.entries.push(Pushed::Warm(self.seq, position));
                if !was_warm && self.feeds[source].info.returned() {
                    let entry = self.entry_of(source, None, &Gap::UNKNOWN, now);
                    self.entries.push(Pushed::Told(entry));
                }
            }
            Input::Gap(gap) => self.gap(source, None, gap, now),
            Input::Oversized(subject, gap) => self.gap(source, Some(subject), gap, now),
            Input::Event(event) => {
                if event.position.is_some() {
                    self.stand(source, event.position);
                }
                self.encode_id();
                let feed = &mut self.feeds[source];
                let origin = Origin { source: feed.info.name.as_str(), epoch: self.cursor.epoch, seq: self.seq };
                let encoded = self.encoder.event(&mut feed.block, &self.id, event, origin);
                let entry = Entry { seq: self.seq, position: event.position, time: event.time, came: now, encoded };
                self.entries.push(Pushed::Entry(entry, feed.warm));
            }
        }
    }

    /// A gap for all whom the source concerns, or for those who would have got this subject.
    fn gap(&mut self, source: usize, subject: Option<&Subject>, gap: &Gap, now: Timestamp) {
        self.stand(source, gap.position);
        let entry = self.entry_of(source, subject, gap, now);
        let feed = &self.feeds[source];
        let live = feed.warm;
        // What stood before has positions of another log.
        let anew = gap.reason == GapReason::Reset && feed.info.tag.is_some();
        self.entries.push(if anew { Pushed::Clear(entry, live) } else { Pushed::Entry(entry, live) });
    }

    fn entry_of(&mut self, source: usize, subject: Option<&Subject>, gap: &Gap, now: Timestamp) -> Entry {
        self.encode_id();
        let feed = &mut self.feeds[source];
        let encoded = self.encoder.gap(&mut feed.block, &self.id, feed.info.name.as_str(), subject.map(Subject::as_str), gap);
        Entry { seq: self.seq, position: gap.position, time: now, came: now, encoded }
    }

    /// Moves the cursor of a durable source that is live.
    fn stand(&mut self, slot: usize, position: Option<Position>) {
        let feed = &self.feeds[slot];
        let (Some(tag), true) = (feed.info.tag, feed.warm) else { return };
        // A log that knows no position yet is at its very beginning.
        let point = position.map_or(Point::Earliest, Point::At);
        match self.cursor.durable.iter_mut().find(|(of, _)| *of == tag) {
            Some((_, at)) => *at = point,
            None => self.cursor.durable.push((tag, point)),
        }
    }

    /// Notifies all who read the channels that this batch was appended to. No lock but the publisher's may be held.
    pub(super) fn notify(&mut self, batch: u64) {
        for channel in self.concerned.dirty.drain(..) {
            self.listeners.mark(&channel.audience, channel.key);
        }
        self.listeners.notify(batch);
        self.concerned.wakers.drain(..).for_each(Waker::wake);
    }

    pub(super) fn encode_id(&mut self) {
        self.id.clear();
        self.cursor.encode(&mut self.scratch, &mut self.id);
    }
}
