//! Who gets the next reader. Pure: time is an argument.
//!
//! Identities take turns, and within an identity who came first goes first. Who does not ask at this moment (its socket is
//! full) keeps its place and holds nobody up. Thousands may wait and each asks often, so no function here visits all of them.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::time::Instant;

use crate::cursor::Point;
use crate::event::SourceKey;

/// A place in the queue. Later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Ticket(u64);

impl Ticket {
    const FIRST: Self = Self(0);
    const LAST: Self = Self(u64::MAX);
}

/// What somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Wait {
    pub(super) identity: u64,
    pub(super) source: SourceKey,
    pub(super) at: Point,
    /// A hash of the only subjects that it wants. `None`: it wants all, so whoever reads on from a place near before serves it too.
    pub(super) filter: Option<u64>,
}

impl Wait {
    fn seq(&self) -> Option<u64> {
        if let Point::At(at) = self.at { Some(at.seq) } else { None }
    }
}

#[derive(Debug)]
struct Waiting {
    wait: Wait,
    since: Instant,
    asks: bool,
    bell: Arc<Notify>,
}

/// After so many others an identity that was served counts as one that never was: it would come before all of them anyway.
const REMEMBERED: usize = 4096;

/// All who wait for a reader.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: HashMap<Ticket, Waiting>,
    tickets: u64,
    /// For each identity that was served lately, when it last got a reader: a count of all that were given.
    served: HashMap<u64, u64>,
    given: u64,
    /// Who got a reader lately, and when.
    lately: VecDeque<(u64, u64)>,
    /// Those who ask: by their age,
    asking: BTreeSet<Ticket>,
    /// by their identity,
    identities: BTreeSet<(u64, Ticket)>,
    /// and by their place.
    places: BTreeSet<(SourceKey, Option<u64>, Option<u64>, Ticket)>,
    /// Of each identity, when it was served and the first of it who asks.
    turns: BTreeSet<(u64, Ticket)>,
}

impl Queue {
    /// Joins the queue, or says again what is waited for.
    pub(super) fn ask(&mut self, ticket: Option<Ticket>, wait: Wait, now: Instant) -> Ticket {
        let known = ticket.and_then(|ticket| Some((ticket, self.waiting.get(&ticket)?)));
        let ticket = match known {
            Some((ticket, waiting)) if waiting.asks && waiting.wait == wait => return ticket,
            Some((ticket, _)) => ticket,
            None => {
                self.tickets += 1;
                let ticket = Ticket(self.tickets);
                self.waiting.insert(ticket, Waiting { wait, since: now, asks: false, bell: Arc::default() });
                ticket
            }
        };
        self.pause(ticket);
        if let Some(waiting) = self.waiting.get_mut(&ticket) {
            waiting.wait = wait;
        }
        self.index(ticket, true);
        ticket
    }

    /// It does not ask at this moment.
    pub(super) fn pause(&mut self, ticket: Ticket) {
        self.index(ticket, false);
    }

    pub(super) fn leave(&mut self, ticket: Ticket) {
        self.pause(ticket);
        self.waiting.remove(&ticket);
        if self.waiting.is_empty() {
            self.served.clear();
            self.lately.clear();
        }
    }

    /// Whose turn it is. `near`: whoever starts at most so much before another one's place serves both.
    pub(super) fn first(&self, near: u64) -> Option<Ticket> {
        let (_, first) = *self.turns.first()?;
        let wait = &self.waiting.get(&first)?.wait;
        let (Some(seq), None) = (wait.seq(), wait.filter) else { return Some(first) };
        self.at(wait.source, None, Some(seq.saturating_sub(near))..=Some(seq)).next()
    }

    /// It was given a reader.
    pub(super) fn serve(&mut self, ticket: Ticket) {
        self.given += 1;
        if let Some(identity) = self.waiting.get(&ticket).map(|waiting| waiting.wait.identity) {
            self.pause(ticket);
            let given = self.given;
            self.change(identity, |queue| {
                queue.served.insert(identity, given);
            });
            self.lately.push_back((identity, given));
        }
        while self.lately.len() > REMEMBERED
            && let Some((identity, given)) = self.lately.pop_front()
        {
            if self.served.get(&identity) == Some(&given) {
                self.change(identity, |queue| {
                    queue.served.remove(&identity);
                });
            }
        }
        self.leave(ticket);
    }

    /// How many ask at this moment, and how long one of them has waited at most.
    pub(super) fn asking(&self, now: Instant) -> (usize, Duration) {
        let oldest = self.asking.first().and_then(|ticket| self.waiting.get(ticket));
        (self.asking.len(), oldest.map_or(Duration::ZERO, |oldest| now.duration_since(oldest.since)))
    }

    /// Resolves when the client is to look again.
    pub(super) fn rung(&self, ticket: Ticket) -> OwnedNotified {
        self.waiting.get(&ticket).map(|waiting| waiting.bell.clone()).unwrap_or_default().notified_owned()
    }

    /// Wakes it.
    pub(super) fn ring(&self, ticket: Ticket) {
        if let Some(waiting) = self.waiting.get(&ticket) {
            waiting.bell.notify_one();
        }
    }

    /// Wakes those who ask, want the same and are in this range. `None` stands for places that are no positions.
    pub(super) fn ring_at(&self, source: SourceKey, filter: Option<u64>, range: RangeInclusive<Option<u64>>) {
        self.at(source, filter, range).for_each(|ticket| self.ring(ticket));
    }

    /// Those who ask, want the same and are in this range, the farthest behind first.
    fn at(&self, source: SourceKey, filter: Option<u64>, range: RangeInclusive<Option<u64>>) -> impl Iterator<Item = Ticket> {
        let (from, to) = range.into_inner();
        self.places.range((source, filter, from, Ticket::FIRST)..=(source, filter, to, Ticket::LAST)).map(|(.., ticket)| *ticket)
    }

    /// Notes whether it asks.
    fn index(&mut self, ticket: Ticket, asks: bool) {
        let Some(waiting) = self.waiting.get_mut(&ticket).filter(|waiting| waiting.asks != asks) else { return };
        waiting.asks = asks;
        let Wait { identity, source, filter, .. } = waiting.wait;
        let place = (source, filter, waiting.wait.seq(), ticket);
        self.change(identity, |queue| {
            if asks {
                queue.asking.insert(ticket);
                queue.identities.insert((identity, ticket));
                queue.places.insert(place);
            } else {
                queue.asking.remove(&ticket);
                queue.identities.remove(&(identity, ticket));
                queue.places.remove(&place);
            }
        });
    }

    /// Makes a change that may move an identity's turn.
    fn change(&mut self, identity: u64, change: impl FnOnce(&mut Self)) {
        let turn = |queue: &Self| {
            let (_, first) = *queue.identities.range((identity, Ticket::FIRST)..=(identity, Ticket::LAST)).next()?;
            Some((queue.served.get(&identity).copied().unwrap_or_default(), first))
        };
        let before = turn(self);
        change(self);
        let after = turn(self);
        if before != after {
            if let Some(turn) = before {
                self.turns.remove(&turn);
            }
            self.turns.extend(after);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::{prop_assert_eq, proptest};

    use super::*;
    use crate::cursor::Position;

    fn wait(identity: u64, seq: u64) -> Wait {
        Wait { identity, source: SourceKey::new(0, 0), at: Point::At(Position::unverified(seq)), filter: None }
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
    fn identities_that_were_served_long_ago_take_no_memory_though_somebody_always_waits() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let [first, often] = [(); 2].map(|()| queue.ask(None, wait(0, 1), now));
        queue.serve(first);
        for identity in 1..10_000 {
            let ticket = queue.ask(None, wait(identity, identity * 100_000), now);
            // It was served before, and so it waits.
            assert_eq!(queue.first(0) == Some(ticket), identity <= REMEMBERED as u64, "{identity}");
            queue.serve(ticket);
        }
        assert!(queue.served.len() <= REMEMBERED && queue.lately.len() <= REMEMBERED);
        assert_eq!(queue.first(0), Some(often));
    }

    #[test]
    fn of_those_who_are_near_each_other_the_one_farthest_behind_goes_first() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let first = queue.ask(None, wait(1, 1000), now);
        let behind = queue.ask(None, wait(1, 950), now);
        let far = queue.ask(None, wait(1, 10), now);
        let narrow = queue.ask(None, Wait { filter: Some(1), ..wait(1, 940) }, now);
        assert_eq!(queue.first(100), Some(behind));
        queue.serve(behind);
        assert_eq!(queue.first(0), Some(first));
        queue.leave(first);
        assert_eq!(queue.first(100), Some(far));
        queue.leave(far);
        assert_eq!(queue.first(100), Some(narrow));
    }

    /// The same, as it is said: by looking at all.
    #[derive(Default)]
    struct Naive {
        waiting: Vec<(Ticket, Wait, bool)>,
        served: HashMap<u64, u64>,
        given: u64,
    }

    impl Naive {
        fn of(&mut self, ticket: Ticket) -> &mut (Ticket, Wait, bool) {
            self.waiting.iter_mut().find(|(other, ..)| *other == ticket).expect("it waits")
        }

        fn serve(&mut self, ticket: Ticket) {
            self.given += 1;
            let identity = self.of(ticket).1.identity;
            self.served.insert(identity, self.given);
            self.leave(ticket);
        }

        fn leave(&mut self, ticket: Ticket) {
            self.waiting.retain(|(other, ..)| *other != ticket);
            if self.waiting.is_empty() {
                self.served.clear();
            }
        }

        fn first(&self, near: u64) -> Option<Ticket> {
            let asking = || self.waiting.iter().filter(|(.., asks)| *asks);
            let turn = |(ticket, wait, _): &&(Ticket, Wait, bool)| (self.served.get(&wait.identity).copied().unwrap_or_default(), *ticket);
            let (ticket, first, _) = asking().min_by_key(turn)?;
            let (Some(seq), None) = (first.seq(), first.filter) else { return Some(*ticket) };
            let serves = |wait: &Wait| wait.filter.is_none() && wait.source == first.source;
            let before = |wait: &Wait| wait.seq().is_some_and(|other| other <= seq && seq - other <= near);
            let nearest =
                asking().filter(|(_, wait, _)| serves(wait) && before(wait)).min_by_key(|(ticket, wait, _)| (wait.seq(), *ticket));
            nearest.map(|(ticket, ..)| *ticket)
        }
    }

    proptest! {
        #[test]
        fn whose_turn_it_is_does_not_depend_on_how_that_is_found(
            steps in vec((0..6_u8, 0..20_usize, 0..4_u64, 0..40_u64, 0..3_u64, 0..2_u32), 1..200),
        ) {
            let (mut queue, mut naive, now) = (Queue::default(), Naive::default(), Instant::now());
            for (step, which, identity, seq, filter, slot) in steps {
                let at = if seq == 0 { Point::Earliest } else { Point::At(Position::unverified(seq)) };
                let known = naive.waiting.get(which).map(|(ticket, wait, _)| (*ticket, wait.identity));
                let identity = known.map_or(identity, |(_, identity)| identity);
                let wait = Wait { identity, source: SourceKey::new(slot, 0), at, filter: filter.checked_sub(1) };
                match (step, known) {
                    (0..3, None) => naive.waiting.push((queue.ask(None, wait, now), wait, true)),
                    (0..3, Some((ticket, _))) => {
                        prop_assert_eq!(queue.ask(Some(ticket), wait, now), ticket);
                        *naive.of(ticket) = (ticket, wait, true);
                    }
                    (3, Some((ticket, _))) => {
                        queue.pause(ticket);
                        naive.of(ticket).2 = false;
                    }
                    (4, Some((ticket, _))) => {
                        queue.leave(ticket);
                        naive.leave(ticket);
                    }
                    _ => if let Some(ticket) = queue.first(10) {
                        queue.serve(ticket);
                        naive.serve(ticket);
                    },
                }
                prop_assert_eq!(queue.first(10), naive.first(10));
                prop_assert_eq!(queue.asking(now).0, naive.waiting.iter().filter(|(.., asks)| *asks).count());
                // Whoever does not ask is in no index, and whoever asks is in each.
                let sizes = [queue.asking.len(), queue.identities.len(), queue.places.len()];
                prop_assert_eq!(sizes, [queue.asking.len(); 3]);
            }
        }
    }
}
