//! What a broker's own log holds for a client: routed and filtered like what is live.

use bytes::Bytes;

use super::{CatchUp, LAST, Track};
use crate::cursor::Point;
use crate::event::{Event, GapReason};
use crate::frame;
use crate::replay::history::History;
use crate::source::Item;

impl CatchUp {
    /// Starts to read the broker's log for the first source that needs it.
    pub(super) fn choose_history(&mut self) {
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
            self.history = Some(History::new(source, self.log(source).clone(), self.streams.readers.clone(), self.streams.pace.clone()));
        }
    }

    /// Routes and filters what a history brought.
    pub(super) fn read(&mut self, items: &mut Vec<Item>) -> Option<Bytes> {
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

    pub(super) fn write_body(&self, source: usize, event: &Event, out: &mut Vec<u8>) {
        let origin = frame::Origin { source: self.streams.hub.name(source).as_str(), epoch: self.streams.hub.epoch(), seq: 0 };
        frame::body(out, event, self.filter.form(), origin);
    }

    /// Keeps an event until it is known whether routing gave a newer one the same subject.
    pub(super) fn keep_last(&mut self, source: usize, event: &Event, seq: u64, out: &mut Vec<u8>) {
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
    pub(super) fn write_last(&mut self, out: &mut Vec<u8>) {
        let mut events: Vec<_> = std::mem::take(&mut self.last).into_values().collect();
        self.last_bytes = 0;
        events.sort_unstable_by_key(|(seq, _)| *seq);
        for (_, body) in events {
            self.write_id(out);
            out.extend_from_slice(&body);
        }
    }
}
