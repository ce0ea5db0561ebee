//! Recently verified tokens, so that many clients who reconnect at once cost little.
//!
//! Bounded. Holds no token, only its [`Fingerprint`].

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;

use super::Grant;
use super::fingerprint::{Fingerprint, Keys};
use crate::event::Timestamp;
use crate::subject::Pattern;

/// How many tokens each of two generations holds.
const GENERATION: usize = 8192;

#[derive(Debug, Default)]
pub(super) struct Cache {
    keys: Keys,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Counts changes of the keys: a grant that was verified with older keys is not kept.
    epoch: u64,
    /// Used since the generations were last exchanged.
    young: HashMap<Fingerprint, Grant>,
    /// Not used since then: dropped at the next exchange.
    old: HashMap<Fingerprint, Grant>,
    /// Lists of patterns, shared by tokens that permit the same.
    lists: HashSet<Arc<[Pattern]>>,
}

impl Cache {
    pub(super) fn fingerprint(&self, token: &str) -> Fingerprint {
        self.keys.fingerprint(token)
    }

    /// Returns the grant of a token that was verified before and has not expired.
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

    /// Remembers a grant, unless the keys have changed since `epoch`. Returns it with its lists shared.
    pub(super) fn insert(&self, fingerprint: Fingerprint, mut grant: Grant, epoch: u64) -> Grant {
        let mut state = self.state.lock();
        grant.subscribe = state.share(grant.subscribe);
        grant.publish = state.share(grant.publish);
        if state.epoch == epoch {
            state.insert(fingerprint, grant.clone());
        }
        grant
    }

    /// What [`Self::insert`] is told later, so that it knows whether the keys have changed meanwhile.
    pub(super) fn epoch(&self) -> u64 {
        self.state.lock().epoch
    }

    /// Forgets everything, because the keys have changed.
    pub(super) fn clear(&self) {
        let mut state = self.state.lock();
        state.epoch += 1;
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
        // Lists without a user are dropped at the next exchange.
        if self.lists.len() < 4 * GENERATION {
            self.lists.insert(Arc::clone(&list));
        }
        list
    }
}
