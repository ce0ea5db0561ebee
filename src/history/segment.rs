//! What one reader has read of a log, in its order, as far as it is kept. Pure.

use std::collections::VecDeque;

use crate::cursor::{Point, Position};
use crate::source::Item;

/// What a message counts for beside its subject, payload and headers, in bytes, about.
const OVERHEAD: usize = 64;

/// Items that follow one another in a source's log.
#[derive(Debug)]
pub(super) struct Segment {
    /// Where the reader began.
    start: Point,
    items: VecDeque<Kept>,
    /// The number of the first item that is kept: so many were dropped.
    first: u64,
    bytes: usize,
    /// Where whoever took all of it stands, where that is known.
    end: Option<Position>,
    /// It came to the log's end: what comes is new.
    ended: bool,
    /// What comes is the newest message of each subject, up to the log's end: nobody who stands at one of them has what lies
    /// between it and the next.
    newest: bool,
}

#[derive(Debug)]
struct Kept {
    item: Item,
    /// The position that it has itself: whoever is there has it.
    position: Option<Position>,
    /// The sequence that this segment has come to.
    reached: Option<u64>,
}

impl Segment {
    pub(super) fn new(start: Point) -> Self {
        let end = if let Point::At(position) = start { Some(position) } else { None };
        Self { start, items: VecDeque::new(), first: 0, bytes: 0, end, ended: false, newest: start == Point::Last }
    }

    pub(super) fn start(&self) -> Point {
        self.start
    }

    /// The number of the first item that is kept.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// The number of the item that comes next.
    pub(super) fn next(&self) -> u64 {
        self.first + self.items.len() as u64
    }

    /// Where whoever took all of it stands.
    pub(super) fn end(&self) -> Option<Position> {
        self.end
    }

    /// Whether its reader has come to the log's end.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether it has the newest of each subject, and not all of them yet.
    pub(super) fn is_newest(&self) -> bool {
        self.newest
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends what was read.
    pub(super) fn append(&mut self, items: &mut Vec<Item>) {
        for item in items.drain(..) {
            let position = match &item {
                Item::Tail(position) => {
                    (self.newest, self.ended) = (false, true);
                    *position
                }
                _ if self.newest => None,
                Item::Message(message) | Item::Oversized(message) => message.position,
                Item::Gap(gap) => gap.position,
            };
            let before = self.items.back().and_then(|kept| kept.reached);
            self.end = position.or(self.end);
            self.bytes += weight(&item);
            self.items.push_back(Kept { item, position, reached: position.map(|position| position.seq).max(before) });
        }
    }

    /// Drops the first item, and returns what it counted for.
    pub(super) fn drop_first(&mut self) -> usize {
        let Some(kept) = self.items.pop_front() else { return 0 };
        self.first += 1;
        let weight = weight(&kept.item);
        self.bytes -= weight;
        weight
    }

    /// The number of the item that follows a point, if that is a place in here.
    pub(super) fn find(&self, point: Point) -> Option<u64> {
        if point == self.start && self.first == 0 {
            return Some(0);
        }
        let Point::At(at) = point else { return None };
        // Sequences never go back: what follows a log that was made anew is another segment.
        let low = self.items.partition_point(|kept| kept.reached < Some(at.seq));
        let found = self.items.get(low)?.position?;
        found.agrees(&at).then(|| self.first + low as u64 + 1)
    }

    /// The number from which on there is something new for whoever is at a point: ends of the log that it knows are not.
    pub(super) fn past_tails(&self, from: u64, at: Point) -> u64 {
        let skipped = usize::try_from(from - self.first).unwrap_or(usize::MAX);
        let known = |kept: &&Kept| matches!(kept.item, Item::Tail(Some(end)) if Point::At(end) == at);
        from + self.items.iter().skip(skipped).take_while(known).count() as u64
    }

    /// Appends what follows to `out`, up to about `most` bytes and at least one item; returns the number after it.
    pub(super) fn take(&self, from: u64, most: usize, out: &mut Vec<Item>) -> u64 {
        let (mut number, mut bytes) = (from, 0);
        let skipped = usize::try_from(from - self.first).unwrap_or(usize::MAX);
        for Kept { item, .. } in self.items.iter().skip(skipped) {
            if bytes >= most {
                break;
            }
            number += 1;
            bytes += weight(item);
            out.push(item.clone());
        }
        number
    }
}

/// What an item counts for, in bytes, about.
pub(super) fn weight(item: &Item) -> usize {
    let (Item::Message(message) | Item::Oversized(message)) = item else { return OVERHEAD };
    OVERHEAD + message.subject.as_str().len() + message.payload.len() + message.headers.bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cursor::Check;
    use crate::event::{Message, Timestamp};

    fn at(seq: u64) -> Position {
        Position { seq, check: Some(Check::of(&[&seq.to_be_bytes()])) }
    }

    fn message(seq: u64) -> Item {
        let (subject, payload, time) = ("a.b".parse().expect("a subject"), Vec::new().into(), Timestamp::default());
        Item::Message(Message::new(subject, payload, time, Some(at(seq))))
    }

    #[test]
    fn the_newest_of_each_subject_are_no_places_to_go_on_from() {
        let mut segment = Segment::new(Point::Last);
        segment.append(&mut vec![message(3), message(7), Item::Tail(Some(at(9))), message(10)]);
        assert_eq!(segment.find(Point::At(at(3))), None, "4 to 6 are not in it");
        assert_eq!(segment.find(Point::At(at(7))), None);
        assert_eq!(segment.find(Point::At(at(9))), Some(3), "from the log's end on it is whole");
        assert_eq!(segment.find(Point::At(at(10))), Some(4));
        assert_eq!(segment.find(Point::Last), Some(0));
    }
}
