//! How events get their sequence, the cursor that stands behind them, and their bytes.

use bytes::{BufMut, BytesMut};

use super::{Encoded, Entry, Input, Kind, Publisher, Pushed, SourceId};
use crate::cursor::{Point, Position};
use crate::event::{GapReason, Timestamp};
use crate::frame::{self, Form};

/// Bytes of the blocks of memory that events of one source share: a page for each would cost more than writing it.
const BLOCK: usize = 16 << 10;

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
                self.bodies[0].clear();
                frame::gap(&mut self.bodies[0], self.names[source].as_str(), &gap);
                let entry = self.entry(source, None, gap.position, (now, now), false);
                let live = self.warm[source];
                // What stood before has positions of another log.
                let anew = gap.reason == GapReason::Reset && self.tags[source].is_some();
                self.entries.push(if anew { Pushed::Clear(entry, live) } else { Pushed::Entry(entry, live) });
            }
            Input::Event(event) => {
                if event.position.is_some() {
                    self.stand(source, event.position);
                }
                let origin = frame::Origin { source: self.names[source].as_str(), epoch: self.cursor.epoch, seq: self.seq };
                let both = frame::forms_differ(&event);
                for (form, body) in [Form::Routed, Form::Json].into_iter().zip(&mut self.bodies).take(1 + usize::from(both)) {
                    body.clear();
                    frame::body(body, &event, form, origin);
                }
                let entry = self.entry(source, Some(event.subject.as_str()), event.position, (event.time, now), both);
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

    pub(super) fn encode_id(&mut self) {
        self.id.clear();
        self.cursor.encode(&mut self.scratch, &mut self.id);
    }

    fn entry(
        &mut self,
        source: SourceId,
        subject: Option<&str>,
        position: Option<Position>,
        (time, came): (Timestamp, Timestamp),
        both: bool,
    ) -> Entry {
        self.encode_id();
        let subject = subject.unwrap_or_default();
        let id_line = b"id: \n".len() + self.id.len();
        let mut bodies = [0, 0];
        let mut split = 0;
        let length: usize = self.bodies.iter().take(1 + usize::from(both)).map(|b| b.len() + id_line + 32).sum();
        // Of one source's events, which are dropped in the order in which they came: a block has few survivors.
        let block = &mut self.blocks[source];
        if block.capacity() < subject.len() + length {
            *block = BytesMut::with_capacity(BLOCK.max(subject.len() + length));
        }
        block.extend_from_slice(subject.as_bytes());
        for (form, body) in self.bodies.iter().take(1 + usize::from(both)).enumerate() {
            frame::chunk_head(&mut *block, id_line + body.len());
            block.extend_from_slice(b"id: ");
            block.extend_from_slice(&self.id);
            block.put_u8(b'\n');
            bodies[form] = block.len() as u32;
            block.extend_from_slice(body);
            block.extend_from_slice(frame::CHUNK_END);
            if form == 0 {
                split = block.len() as u32;
            }
        }
        let encoded =
            Encoded { bytes: block.split().freeze(), subject: subject.len() as u16, body: bodies[0], split, json_body: bodies[1] };
        Entry { seq: self.seq, position, time, came, kind: if subject.is_empty() { Kind::Gap } else { Kind::Event }, encoded }
    }
}
