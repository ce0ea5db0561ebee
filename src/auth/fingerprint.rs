//! What tells credentials apart without keeping them: 128 bits of a keyed hash of each.
//!
//! SipHash with two random keys of this process. An attacker who does not know the keys cannot make two credentials with the same
//! hash.

use std::hash::{BuildHasher as _, Hash, RandomState};

/// The hash that identifies a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Fingerprint(u64, u64);

/// The keys of the hash: other ones in each process, and in each store.
#[derive(Debug, Default)]
pub(super) struct Keys(RandomState, RandomState);

impl Keys {
    /// `credential` has to be encoded without ambiguity.
    pub(super) fn fingerprint(&self, credential: &(impl Hash + ?Sized)) -> Fingerprint {
        Fingerprint(self.0.hash_one(credential), self.1.hash_one(credential))
    }
}
