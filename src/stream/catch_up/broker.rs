//! What a broker's own log holds for a client: routed and filtered like what is live.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::followed::{Origin, Track, followed};
use super::{CatchUp, Out, Streams};
use crate::cursor::{Point, Position};
use crate::event::{Event, Gap, GapReason, Message, SourceKey};
use crate::frame;
use crate::history;
use crate::hub::{SourceInfo, State};
use crate::route::Router;
use crate::source::Item;
use crate::subject::Pattern;

/// Bytes kept at most while the newest of each subject is looked for in a broker's log, where routing may give two subjects
/// one name: past that, one that is overtaken by routing may be sent all the same.
const LAST: usize = 256 << 10;

/// A source whose log is read.
pub(super) struct Reading {
    pub(super) source: usize,
    /// Tells it from this client's other readings.
    number: u32,
    /// For [`Point::Last`], the newest event of each subject, after routing: sequence and body.
    last: BTreeMap<String, (u64, Vec<Bytes>)>,
    last_bytes: usize,
    /// For [`Point::Last`], the last sequence that was read: a reader that had to be opened again begins before it.
    reached: Option<u64>,
}

impl Reading {
    /// Keeps an event until it is known whether routing gave a newer one the same subject.
    fn keep(&mut self, subject: &str, seq: u64, body: Vec<Bytes>) {
        let length = |body: &[Bytes]| body.iter().map(Bytes::len).sum::<usize>();
        self.last_bytes += length(&body);
        if let Some((_, old)) = self.last.insert(subject.to_owned(), (seq, body)) {
            self.last_bytes -= length(&old);
        }
    }
}

impl CatchUp {
    /// Starts to read the broker's log for the first source that needs it.
    pub(super) fn choose_history(&mut self) {
        if self.reading.is_some() {
            return;
        }
        let state = self.streams.hub.state();
        // The windows of those that are at their logs' ends need not be there yet: the others come first. Then those whose beginning is
        // to be found, and each in its turn.
        let order = |s: &usize| (self.sources[*s].at_tail, !self.has_no_position(*s), *s <= self.read_last, *s);
        let chosen = self.readable(&state).min_by_key(order);
        drop(state);
        if let Some(source) = chosen {
            self.readings = self.readings.wrapping_add(1);
            self.read_last = source;
            self.reading = Some(Reading { source, number: self.readings, last: BTreeMap::new(), last_bytes: 0, reached: None });
        }
    }

    /// Whether nothing of a log that can be read has been read yet: as long as the client's id has no position of it, it does not show
    /// what retention takes of the log's beginning.
    fn has_no_position(&self, source: usize) -> bool {
        let of = &self.sources[source];
        let none = matches!(self.point(source), Some(Point::Earliest | Point::Since(_)));
        none && of.track == Track::Pending && of.concerned && !of.at_tail && self.streams.histories.is_up(of.info.key)
    }

    /// The sources whose logs the client needs and can be read now. The log of one that was never live is not there yet.
    pub(super) fn readable(&self, state: &State) -> impl Iterator<Item = usize> {
        let windows_only = |s: usize| self.point(s) == Some(Point::Last) && !self.keeps_last(s);
        let warm = followed(&self.sources, state).filter(|(_, of)| of.warm()).map(|(source, _)| source);
        warm.filter(move |source| self.sources[*source].track == Track::Pending && !windows_only(*source))
    }

    /// What is to be read.
    pub(super) fn history(&self) -> Option<history::Request> {
        let Reading { source, number, .. } = *self.reading.as_ref()?;
        Some(history::Request { source: self.sources[source].info.key, number, from: self.point(source)? })
    }

    /// Whether the broker can say the newest message of each subject of this source, as clients see these.
    pub(super) fn keeps_last(&self, source: usize) -> bool {
        let key = self.sources[source].info.key;
        self.streams.histories.keeps_last(key) && self.streams.router(key).is_some_and(|router| !router.splits())
    }

    /// Whether this source's log is read.
    pub(super) fn is_reading(&self, of: usize) -> bool {
        self.reading.as_ref().is_some_and(|reading| reading.source == of)
    }

    /// The only subjects of a source, before routing, that are of use to it, where the broker can leave out others.
    pub(in crate::stream) fn wanted(&self, source: SourceKey) -> Option<Vec<Pattern>> {
        if !self.streams.histories.selects(source) {
            return None;
        }
        self.streams.router(source)?.inputs(self.filter.patterns())
    }

    /// No longer reads this source's log.
    pub(super) fn end_history(&mut self, of: usize) {
        self.reading.take_if(|reading| reading.source == of);
    }

    /// Routes, filters and writes what was read.
    pub(in crate::stream) fn read(&mut self, items: &mut Vec<Item>) {
        let hub = self.streams.hub.clone();
        let (state, concerned) = self.look(&hub);
        self.follow_sources(&state, &concerned);
        drop(state);
        let Some(Reading { source, .. }) = self.reading else { return items.clear() };
        let Some(router) = self.streams.router(self.sources[source].info.key) else { return items.clear() };
        if !items.is_empty() && self.sources[source].origin == Origin::Id {
            self.sources[source].origin = Origin::Log;
        }
        for item in items.drain(..) {
            match item {
                Item::Message(message) => self.read_message(source, &router, message),
                Item::Gap(gap) => self.read_gap(source, self.sources[source].concerned, &gap),
                Item::Oversized(message) => {
                    let gap = Gap::oversized(message.position);
                    let wanted = router.route(message).is_some_and(|event| self.filter.matches(event.subject.as_str()));
                    self.read_gap(source, wanted, &gap);
                }
                Item::Tail(position) => self.read_tail(source, position),
            }
        }
        self.let_others_begin(source);
    }

    /// A log of which the client has a position waits for those of which it has none.
    fn let_others_begin(&mut self, source: usize) {
        let others = |state: &State| followed(&self.sources, state).any(|(other, of)| of.warm() && self.has_no_position(other));
        if matches!(self.point(source), Some(Point::At(_))) && others(&self.streams.hub.state()) {
            self.end_history(source);
        }
    }

    fn read_message(&mut self, source: usize, router: &Router, message: Message) {
        let position = message.position;
        if self.point(source) == Some(Point::Last) && !self.reach(position) {
            return;
        }
        let event = router.route(message).filter(|e| self.filter.matches(e.subject.as_str()));
        if self.point(source) == Some(Point::Last) {
            if let (Some(event), Some(position)) = (event, position) {
                self.keep_last(source, router, &event, position.seq);
            }
            return;
        }
        if let Some(position) = position {
            self.move_to(source, Point::At(position));
            self.sources[source].origin = Origin::Log;
        }
        if let Some(event) = event {
            self.write_event(source, &event);
        }
    }

    fn write_event(&mut self, source: usize, event: &Event) {
        self.client.events += 1;
        self.client.write_id(self.out.own());
        self.out.push_event(event, self.filter.form(), origin(&self.sources[source].info, &self.streams));
    }

    /// Notes how far the newest of each subject were read; whether this is beyond.
    fn reach(&mut self, position: Option<Position>) -> bool {
        let Some(Reading { reached, .. }) = &mut self.reading else { return false };
        let before = *reached;
        *reached = position.map(|position| position.seq).max(before);
        before < *reached
    }

    fn read_gap(&mut self, source: usize, wanted: bool, gap: &Gap) {
        if self.point(source) == Some(Point::Last) && gap.position.is_some() && !self.reach(gap.position) {
            return;
        }
        if gap.reason == GapReason::Reset {
            self.sources[source].origin = Origin::NewLog;
        }
        match gap.position {
            // What was kept of the newest events is sent at the tail: until then all are still wanted.
            _ if self.point(source) == Some(Point::Last) => {}
            Some(position) => self.move_to(source, Point::At(position)),
            // Made anew, and still without a position: at its very beginning.
            None if gap.reason == GapReason::Reset => self.move_to(source, Point::Earliest),
            None => {}
        }
        if wanted {
            self.client.write_id(self.out.own());
            frame::gap(self.out.own(), self.sources[source].info.name.as_str(), gap);
        }
    }

    fn read_tail(&mut self, source: usize, position: Option<Position>) {
        let last = self.point(source) == Some(Point::Last);
        if last {
            self.write_last();
        }
        if position.is_some_and(|position| position.check.is_some()) {
            self.sources[source].origin = Origin::Log;
        }
        match position {
            Some(position) => self.move_to(source, Point::At(position)),
            None if last => self.move_to(source, Point::Earliest),
            None => {}
        }
        if last {
            self.client.write_id(self.out.own());
            self.out.own().push(b'\n');
        }
        self.sources[source].at_tail = true;
    }

    fn keep_last(&mut self, source: usize, router: &Router, event: &Event, seq: u64) {
        if router.keeps_apart() {
            // Until all have come, all are wanted again: the cursor stays where it is.
            return self.write_event(source, event);
        }
        let mut body = Out::new(self.streams.settings.share);
        body.push_event(event, self.filter.form(), origin(&self.sources[source].info, &self.streams));
        let Some(reading) = &mut self.reading else { return };
        reading.keep(event.subject.as_str(), seq, body.take());
        if reading.last_bytes > LAST {
            self.write_last();
        }
    }

    /// The client's cursor stays where it is: until all have come, all are wanted again.
    fn write_last(&mut self) {
        let Some(reading) = &mut self.reading else { return };
        let mut events: Vec<_> = std::mem::take(&mut reading.last).into_values().collect();
        reading.last_bytes = 0;
        events.sort_unstable_by_key(|(seq, _)| *seq);
        self.client.events += events.len() as u64;
        for (_, body) in events {
            self.client.write_id(self.out.own());
            body.iter().for_each(|part| self.out.push(part, 0..part.len()));
        }
    }
}

/// What an event without a position is called in a CloudEvents envelope.
fn origin<'a>(source: &'a SourceInfo, streams: &Streams) -> frame::Origin<'a> {
    frame::Origin { source: source.name.as_str(), epoch: streams.hub.epoch(), seq: 0 }
}
