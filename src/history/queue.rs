//! Who gets the next reader. Pure: time is an argument.
//!
//! Identities take turns, and within an identity who came first goes first. Who does not ask at this moment (its socket is
//! full) keeps its place and holds nobody up.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::cursor::Point;
use crate::event::SourceKey;

/// A place in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket(u64);

/// What somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Wait {
    pub(super) identity: u64,
    pub(super) source: SourceKey,
    pub(super) at: Point,
    /// It wants all subjects: then whoever reads on from a place near before it serves it too.
    pub(super) all: bool,
}

#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    wait: Wait,
    since: Instant,
    asks: bool,
}

/// All who wait for a reader.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Vec<Waiting>,
    tickets: u64,
    /// For each identity that waits, when it last got a reader: a count of all that were given.
    served: HashMap<u64, u64>,
    given: u64,
}

impl Queue {
    /// Joins the queue, or says again what is waited for.
    pub(super) fn ask(&mut self, ticket: Option<Ticket>, wait: Wait, now: Instant) -> Ticket {
        if let Some(waiting) = self.waiting.iter_mut().find(|waiting| Some(waiting.ticket) == ticket) {
            (waiting.wait, waiting.asks) = (wait, true);
            return waiting.ticket;
        }
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.waiting.push(Waiting { ticket, wait, since: now, asks: true });
        ticket
    }

    /// It does not ask at this moment.
    pub(super) fn pause(&mut self, ticket: Ticket) {
        if let Some(waiting) = self.waiting.iter_mut().find(|waiting| waiting.ticket == ticket) {
            waiting.asks = false;
        }
    }

    pub(super) fn leave(&mut self, ticket: Ticket) {
        self.waiting.retain(|waiting| waiting.ticket != ticket);
        if self.waiting.is_empty() {
            self.served.clear();
        }
    }

    /// Whose turn it is. `near`: whoever starts at most so much before another one's place serves both.
    pub(super) fn first(&self, near: u64) -> Option<Ticket> {
        let turn = |waiting: &&Waiting| (self.served.get(&waiting.wait.identity).copied().unwrap_or_default(), waiting.ticket.0);
        let asking = || self.waiting.iter().filter(|waiting| waiting.asks);
        let first = asking().min_by_key(turn)?;
        let (Point::At(at), true) = (first.wait.at, first.wait.all) else { return Some(first.ticket) };
        let before = |waiting: &&Waiting| match waiting.wait.at {
            Point::At(other) if waiting.wait.all && waiting.wait.source == first.wait.source => {
                (other.seq <= at.seq && at.seq - other.seq <= near).then_some(other.seq).is_some()
            }
            _ => false,
        };
        let seq = |waiting: &&Waiting| if let Point::At(at) = waiting.wait.at { at.seq } else { u64::MAX };
        asking().filter(before).min_by_key(seq).map(|waiting| waiting.ticket)
    }

    /// It was given a reader.
    pub(super) fn serve(&mut self, ticket: Ticket) {
        self.given += 1;
        if let Some(waiting) = self.waiting.iter().find(|waiting| waiting.ticket == ticket) {
            self.served.insert(waiting.wait.identity, self.given);
        }
        self.leave(ticket);
    }

    /// How many ask at this moment, and how long one of them has waited at most.
    pub(super) fn asking(&self, now: Instant) -> (usize, Duration) {
        let asking = self.waiting.iter().filter(|waiting| waiting.asks);
        asking.fold((0, Duration::ZERO), |(n, oldest), waiting| (n + 1, oldest.max(now.duration_since(waiting.since))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cursor::Position;

    fn wait(identity: u64, seq: u64) -> Wait {
        Wait { identity, source: SourceKey::new(0, 0), at: Point::At(Position::unverified(seq)), all: true }
    }

    #[test]
    fn identities_take_turns_and_who_does_not_ask_holds_nobody_up() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let crowd: Vec<_> = (0..3).map(|n| queue.ask(None, wait(1, 1_000_000 * (n + 1)), now)).collect();
        let other = queue.ask(None, wait(2, 9_000_000), now);
        assert_eq!(queue.first(100), Some(crowd[0]));
        queue.serve(crowd[0]);
        assert_eq!(queue.first(100), Some(other));
        queue.pause(other);
        assert_eq!(queue.first(100), Some(crowd[1]));
        assert_eq!(queue.ask(Some(other), wait(2, 9_000_000), now), other);
        assert_eq!(queue.first(100), Some(other));
        assert_eq!(queue.asking(now + Duration::from_secs(3)), (3, Duration::from_secs(3)));
        queue.leave(other);
        queue.serve(crowd[1]);
        queue.leave(crowd[2]);
        assert_eq!((queue.first(100), queue.served.len()), (None, 0));
    }

    #[test]
    fn of_those_who_are_near_each_other_the_one_farthest_behind_goes_first() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let first = queue.ask(None, wait(1, 1000), now);
        let behind = queue.ask(None, wait(1, 950), now);
        let far = queue.ask(None, wait(1, 10), now);
        let narrow = queue.ask(None, Wait { all: false, ..wait(1, 940) }, now);
        assert_eq!(queue.first(100), Some(behind));
        queue.serve(behind);
        assert_eq!(queue.first(0), Some(first));
        queue.leave(first);
        assert_eq!(queue.first(100), Some(far));
        queue.leave(far);
        assert_eq!(queue.first(100), Some(narrow));
    }
}
