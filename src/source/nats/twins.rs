//! Messages that come twice because a source is subscribed at two servers for a moment. Core NATS has no numbers, so equal
//! messages are taken for the same one, as far as that can lose none.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::time::Duration;

use tokio::time::Instant;

use crate::event::Message;

/// How far the servers of a cluster are apart, at most, in delivering a message.
pub(super) const APART: Duration = Duration::from_millis(500);
/// So many messages are remembered before old ones are looked for.
const FEW: usize = 65_536;

/// Which of two connections a message came on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Old,
    New,
}

#[derive(Clone, Copy)]
enum Seen {
    Once(Side),
    Twice,
    /// There are several equal ones: which belongs to which is not known.
    Often,
}

/// What has come lately on either connection.
#[derive(Default)]
pub(super) struct Twins {
    seen: HashMap<u64, (Seen, Instant)>,
    hasher: RandomState,
    /// How many are remembered when old ones are forgotten next.
    forget_at: usize,
}

impl Twins {
    /// Takes all that has come as having come just now: it took a while until the other connection was read.
    pub(super) fn renew(&mut self, now: Instant) {
        self.seen.values_mut().for_each(|(_, at)| *at = now);
    }

    /// Whether this message has come on the other connection, and is to be dropped. Of messages that are equal although
    /// there are several of them, none is dropped, but for the first pair.
    pub(super) fn has(&mut self, message: &Message, side: Side, now: Instant) -> bool {
        if self.seen.len() >= self.forget_at {
            self.seen.retain(|_, (_, at)| now.duration_since(*at) < APART);
            // Not at each message, where all of them are young.
            self.forget_at = FEW.max(2 * self.seen.len());
        }
        let hash = self.hasher.hash_one((message.subject.as_str(), &message.payload, &message.headers));
        let before = self.seen.get(&hash).filter(|(_, at)| now.duration_since(*at) < APART);
        let (seen, twin) = match before {
            None => (Seen::Once(side), false),
            Some((Seen::Once(other), _)) if *other != side => (Seen::Twice, true),
            Some(_) => (Seen::Often, false),
        };
        self.seen.insert(hash, (seen, now));
        twin
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Timestamp;

    #[test]
    fn a_message_of_both_connections_comes_once_and_none_is_lost() {
        let message = |body: &str| Message::new("a".parse().expect("a subject"), body.to_owned().into(), Timestamp::now(), None);
        let (mut twins, start) = (Twins::default(), Instant::now());
        let mut dropped = |body: &str, side, millis| twins.has(&message(body), side, start + Duration::from_millis(millis));
        assert!(!dropped("1", Side::Old, 0));
        assert!(dropped("1", Side::New, 10));
        assert!(!dropped("2", Side::New, 20));
        assert!(dropped("2", Side::Old, 30));
        // The same words again, soon: rather twice than never.
        assert!(!dropped("1", Side::New, 40) && !dropped("1", Side::Old, 50));
        // And later, when the other connection may have ended.
        assert!(!dropped("2", Side::New, 600));
        assert!(!dropped("3", Side::Old, 0) && !dropped("3", Side::New, 500));
    }

    #[test]
    fn many_young_ones_are_not_looked_at_for_each_message() {
        let (mut twins, now) = (Twins::default(), Instant::now());
        let mut come = |n: usize| {
            let message = Message::new("a".parse().expect("a subject"), n.to_string().into(), Timestamp::now(), None);
            assert!(!twins.has(&message, Side::Old, now));
            twins.forget_at
        };
        let changes: std::collections::HashSet<usize> = (0..3 * FEW).map(&mut come).collect();
        assert_eq!(changes, [FEW, 2 * FEW, 4 * FEW].into());
    }
}
