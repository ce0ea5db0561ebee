//! How many bytes may be on their way: of published messages, received in part or not taken in yet; of own pages, which their
//! clients have not taken yet.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::BytesMut;
use parking_lot::Mutex;

use crate::pool::{Identity, counted};

/// Of all parties together. One message alone may be larger.
const ON_THE_WAY: usize = 64 << 20;

/// What all messages, or all pages, that are on their way share. A party may have as much as is left for others: so however many
/// messages one begins, others can publish. Clones share it.
#[derive(Clone)]
pub(crate) struct Budget(Arc<Mutex<Used>>);

struct Used {
    free: usize,
    by: HashMap<Party, usize>,
}

/// Who has a share.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Party {
    Identity(Identity),
    /// Of somebody without a name.
    Address(IpAddr),
}

impl Party {
    pub(super) fn at(address: IpAddr) -> Self {
        Self::Address(counted(address))
    }
}

/// A message or page that is on its way. Its share of the budget is free when its last reference is gone.
pub(super) struct Held {
    payload: BytesMut,
    share: usize,
    party: Party,
    budget: Budget,
}

impl Default for Budget {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Used { free: ON_THE_WAY, by: HashMap::new() })))
    }
}

impl Budget {
    /// A message or page of which nothing has come yet.
    pub(super) fn hold(&self, party: Party) -> Held {
        Held { payload: BytesMut::new(), share: 0, party, budget: self.clone() }
    }
}

impl Used {
    /// Takes `more` for a message that has `share`. False: there is not so much for its party.
    fn take(&mut self, party: &Party, share: usize, more: usize) -> bool {
        let all = self.by.get(party).copied().unwrap_or(0);
        // The only message of a party may have all that is left.
        let leaves_enough = all == share || all + more <= self.free.saturating_sub(more);
        if more > self.free || !leaves_enough {
            return false;
        }
        self.free -= more;
        if more > 0 {
            self.by.insert(party.clone(), all + more);
        }
        true
    }

    fn give_back(&mut self, party: &Party, share: usize) {
        self.free += share;
        if let Some(all) = self.by.get_mut(party) {
            *all -= share;
            if *all == 0 {
                self.by.remove(party);
            }
        }
    }
}

impl Held {
    /// Adds `data`. False: the budget is used up.
    pub(super) fn add(&mut self, data: &[u8]) -> bool {
        let reserved = self.reserve(data.len());
        if reserved {
            self.payload.extend_from_slice(data);
        }
        reserved
    }

    /// Takes a share for so many bytes, which are kept elsewhere. False: the budget is used up.
    pub(super) fn reserve(&mut self, bytes: usize) -> bool {
        let more = bytes.min(ON_THE_WAY - self.share);
        let reserved = self.budget.0.lock().take(&self.party, self.share, more);
        if reserved {
            self.share += more;
        }
        reserved
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.share > 0 {
            self.budget.0.lock().give_back(&self.party, self.share);
        }
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.payload
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn publisher(number: u8) -> Party {
        Party::Address([127, 0, 0, number].into())
    }

    fn is_unused(budget: &Budget) -> bool {
        let used = budget.0.lock();
        used.free == ON_THE_WAY && used.by.is_empty()
    }

    #[test]
    fn messages_on_their_way_are_bounded_together() {
        let budget = Budget::default();
        let (mut one, mut other) = (budget.hold(publisher(1)), budget.hold(publisher(2)));
        assert!(one.add(&vec![0; ON_THE_WAY - 10]) && other.add(&[0; 10]) && !other.add(&[0]));
        drop(other);
        // What has all of it may be larger.
        assert!(one.add(&[0; 11]) && one.add(&[0; 1000]) && !budget.hold(publisher(2)).add(&[0]));
        let message = Bytes::from_owner(one);
        let part = message.slice(5..6);
        drop(message);
        assert!(!is_unused(&budget));
        drop(part);
        assert!(is_unused(&budget));
    }

    #[test]
    fn a_publisher_leaves_others_as_much_as_it_has() {
        const PART: usize = 1 << 20;
        let budget = Budget::default();
        let begin = |number, count: usize| -> Vec<Held> {
            let messages = (0..count).map(|_| budget.hold(publisher(number)));
            messages.filter_map(|mut held| held.add(&[0; PART]).then_some(held)).collect()
        };
        let (greedy, other) = (begin(1, 100), begin(2, 100));
        assert_eq!((greedy.len(), other.len()), (32, 16));
        let third = begin(3, 1);
        assert_eq!(third.len(), 1);
        drop((greedy, other, third));
        assert!(is_unused(&budget));
        assert_eq!(begin(2, 100).len(), 32);
    }
}
