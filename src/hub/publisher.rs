//! How events get their sequence, the cursor that stands behind them, and their bytes.

use std::task::Waker;

use super::{Entry, Input, Publisher, Pushed, SourceId};
use crate::cursor::{Point, Position};
use crate::event::{GapReason, Timestamp};
use crate::frame::Origin;

impl Publisher {
    /// Gives an input its sequence, moves the cursor and encodes it.
    pub(super) fn prepare(&mut self, source: SourceId, input: Input, now: Timestamp) {
        self.seq += 1;
        self.cursor.volatile = Point::At(Position::unverified(self.seq));
        match input {
            Input::Skip(position) => {
                self.stand(source, Some(position));
                self.entries.push(Pushed::Skip(position));
            }
            Input::Tail(position) => {
                self.warm[source] = true;
                self.stand(source, position);
                self.entries.push(Pushed::Warm(self.seq, position));
            }
            Input::Gap(gap) => {
                self.stand(source, gap.position);
                self.encode_id();
                let encoded = self.encoder.gap(&mut self.blocks[source], &self.id, self.names[source].as_str(), &gap);
                let entry = Entry { seq: self.seq, position: gap.position, time: now, came: now, encoded };
                let live = self.warm[source];
                // What stood before has positions of another log.
                let anew = gap.reason == GapReason::Reset && self.tags[source].is_some();
                self.entries.push(if anew { Pushed::Clear(entry, live) } else { Pushed::Entry(entry, live) });
            }
            Input::Event(event) => {
                if event.position.is_some() {
                    self.stand(source, event.position);
                }
                self.encode_id();
                let origin = Origin { source: self.names[source].as_str(), epoch: self.cursor.epoch, seq: self.seq };
                let encoded = self.encoder.event(&mut self.blocks[source], &self.id, &event, origin);
                let entry = Entry { seq: self.seq, position: event.position, time: event.time, came: now, encoded };
                self.entries.push(Pushed::Entry(entry, self.warm[source]));
            }
        }
    }

    /// Moves the cursor of a durable source that is live.
    fn stand(&mut self, source: SourceId, position: Option<Position>) {
        let (Some(tag), true) = (self.tags[source], self.warm[source]) else { return };
        let place = *self.places[source].get_or_insert_with(|| {
            self.cursor.durable.push((tag, Point::Earliest));
            self.cursor.durable.len() - 1
        });
        // A log that knows no position yet is at its very beginning.
        self.cursor.durable[place].1 = position.map_or(Point::Earliest, Point::At);
    }

    /// Notifies all who read the channels that this batch was appended to. No lock but the publisher's may be held.
    pub(super) fn notify(&mut self, batch: u64) {
        for channel in self.dirty.drain(..) {
            self.listeners.mark(&channel.audience, channel.key);
        }
        self.listeners.notify(batch);
        self.wakers.drain(..).for_each(Waker::wake);
    }

    pub(super) fn encode_id(&mut self) {
        self.id.clear();
        self.cursor.encode(&mut self.scratch, &mut self.id);
    }
}
