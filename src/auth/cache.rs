//! Tokens that were verified lately, so that a crowd that reconnects costs little.
//!
//! Bounded; holds no token, only 128 bits of a keyed hash of each (SipHash under two random keys of this process: who
//! doesn't know them can't make two tokens that agree).

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;

use super::Grant;
use crate::event::Timestamp;
use crate::subject::Pattern;

/// How many tokens each of two generations holds.
const GENERATION: usize = 8192;

/// What a token is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Fingerprint(u64, u64);

#[derive(Debug, Default)]
pub(super) struct Cache {
    keys: (RandomState, RandomState),
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Counts changes of the keys: what was verified with older ones is not taken in.
    epoch: u64,
    /// Used since the last turn of generations.
    young: HashMap<Fingerprint, Grant>,
    /// Not used since: gone at the next turn.
    old: HashMap<Fingerprint, Grant>,
    /// Lists of patterns, so that tokens that permit the same share them.
    lists: HashSet<Arc<[Pattern]>>,
}

impl Cache {
    pub(super) fn fingerprint(&self, token: &str) -> Fingerprint {
        Fingerprint(self.keys.0.hash_one(token), self.keys.1.hash_one(token))
    }

    /// The grant of a token that was verified before and is still good.
    pub(super) fn get(&self, fingerprint: Fingerprint, now: Timestamp) -> Option<Grant> {
        let mut state = self.state.lock();
        let good = |grant: &Grant| grant.expires.is_some_and(|expires| now < expires);
        if let Some(grant) = state.young.get(&fingerprint) {
            return good(grant).then(|| grant.clone());
        }
        let grant = state.old.remove(&fingerprint).filter(good)?;
        state.insert(fingerprint, grant.clone());
        Some(grant)
    }

    /// Remembers a grant, unless the keys have changed since `epoch`; gives it back with its lists shared.
    pub(super) fn insert(&self, fingerprint: Fingerprint, mut grant: Grant, epoch: u64) -> Grant {
        let mut state = self.state.lock();
        grant.subscribe = state.share(grant.subscribe);
        grant.publish = state.share(grant.publish);
        if state.epoch == epoch {
            state.insert(fingerprint, grant.clone());
        }
        grant
    }

    /// Forgets everything: the keys are others now.
    pub(super) fn clear(&self, epoch: u64) {
        let mut state = self.state.lock();
        state.epoch = epoch;
        state.young = HashMap::new();
        state.old = HashMap::new();
    }

    #[cfg(test)]
    pub(super) fn lists(&self) -> usize {
        self.state.lock().lists.len()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let state = self.state.lock();
        state.young.len() + state.old.len()
    }
}

impl State {
    fn insert(&mut self, fingerprint: Fingerprint, grant: Grant) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
            self.lists.retain(|list| Arc::strong_count(list) > 1);
        }
        self.young.insert(fingerprint, grant);
    }

    fn share(&mut self, list: Arc<[Pattern]>) -> Arc<[Pattern]> {
        if let Some(shared) = self.lists.get(&list) {
            return Arc::clone(shared);
        }
        // Lists that nobody has any more go at the next turn.
        if self.lists.len() < 4 * GENERATION {
            self.lists.insert(Arc::clone(&list));
        }
        list
    }
}
