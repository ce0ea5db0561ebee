//! The capped pool of subscribers: in total, of each identity, of each client address. Rates beside it.
//!
//! Owns the counts and the queue for a slot. Knows nothing of tokens, HTTP status codes or streams: a [`Permit`] is a slot,
//! and dropping it is the only way to give it back.

use std::collections::VecDeque;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::oneshot;

mod rates;
mod settings;
#[cfg(test)]
mod tests;

pub(crate) use rates::{Act, Rates, TooOften};
pub(crate) use settings::{RateSettings, Settings};

/// Why a subscriber gets no slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub(crate) enum Refusal {
    /// All slots are taken, and the queue is full or waiting took too long.
    #[error("all subscriber slots are taken")]
    Full,
    /// This identity has reached its cap.
    #[error("this identity has reached its maximum of streams")]
    Identity,
    /// This client address has reached its cap.
    #[error("this address has reached its maximum of streams")]
    Address,
}

/// Who is counted: a name, and who vouches for it, as two may call different people the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub(crate) issuer: Option<Arc<str>>,
    pub(crate) name: Arc<str>,
}

/// The pool. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Pool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    settings: Settings,
    /// Slots that are taken. Below `max` only while the queue is empty: a freed slot goes to the first in the queue. Above it
    /// after `max` was lowered.
    taken: usize,
    /// Waiting clients are counted too, so that a single one cannot fill the queue.
    identities: Counter<Identity>,
    addresses: Counter<IpAddr>,
    queue: VecDeque<Waiter>,
    next_ticket: u64,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    slot: oneshot::Sender<()>,
}

/// The address that is counted: IPv4 as it is, IPv6 by its /64 network, because a client usually has one of those to itself.
pub(crate) fn counted(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

/// The number of uses of each key. A key without uses is removed.
#[derive(Debug)]
struct Counter<K> {
    by_key: HashMap<K, u32>,
    counts: Slab<(K, usize)>,
}

impl<K> Default for Counter<K> {
    fn default() -> Self {
        Self { by_key: HashMap::new(), counts: Slab::new() }
    }
}

/// Sentinel index for keys without a cap, which are not counted.
const NONE: u32 = u32::MAX;

impl<K: Hash + Eq + Clone> Counter<K> {
    /// Counts one more, unless there are `max` already.
    fn add(&mut self, key: &K, max: usize) -> Option<u32> {
        if let Some(&at) = self.by_key.get(key) {
            let (_, count) = self.counts.get_mut(at as usize)?;
            if *count >= max {
                return None;
            }
            *count += 1;
            return Some(at);
        }
        if max == 0 {
            return None;
        }
        let at = u32::try_from(self.counts.vacant_key()).ok().filter(|at| *at != NONE)?;
        self.counts.insert((key.clone(), 1));
        self.by_key.insert(key.clone(), at);
        Some(at)
    }

    fn remove(&mut self, at: u32) {
        let Some((_, count)) = self.counts.get_mut(at as usize) else { return };
        *count -= 1;
        if *count == 0 {
            let (key, _) = self.counts.remove(at as usize);
            self.by_key.remove(&key);
            // Give memory back once a large number of clients has gone.
            if self.by_key.capacity() > 1024 && self.by_key.len() < self.by_key.capacity() / 8 {
                self.by_key.shrink_to(self.by_key.len() * 2);
            }
            if self.counts.is_empty() {
                self.counts.shrink_to_fit();
            }
        }
    }
}

impl State {
    /// Takes a slot back.
    fn release_slot(&mut self) {
        self.taken -= 1;
        self.hand_out();
    }

    fn own_refusal(&self, identity: Option<&Identity>, address: IpAddr) -> Option<Refusal> {
        fn full<K: Hash + Eq>(counter: &Counter<K>, key: &K, max: Option<usize>) -> bool {
            let count = counter.by_key.get(key).and_then(|at| counter.counts.get(*at as usize)).map_or(0, |(_, count)| *count);
            max.is_some_and(|max| count >= max)
        }
        if identity.is_some_and(|identity| full(&self.identities, identity, self.settings.max_per_identity)) {
            return Some(Refusal::Identity);
        }
        full(&self.addresses, &counted(address), self.settings.max_per_address).then_some(Refusal::Address)
    }

    /// Hands free slots to the clients that have waited longest.
    fn hand_out(&mut self) {
        while self.taken < self.settings.max
            && let Some(waiter) = self.queue.pop_front()
        {
            // Fails if the waiter has just left: then try the next one.
            self.taken += usize::from(waiter.slot.send(()).is_ok());
        }
    }
}

/// A client that is counted for its identity and its address, until this is dropped.
#[derive(Debug)]
struct Counted {
    pool: Arc<Shared>,
    identity: u32,
    address: u32,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut state = self.pool.state.lock();
        if self.identity != NONE {
            state.identities.remove(self.identity);
        }
        if self.address != NONE {
            state.addresses.remove(self.address);
        }
    }
}

/// A slot. It is taken until this is dropped.
#[derive(Debug)]
#[must_use = "dropping a permit gives its slot back"]
pub(crate) struct Permit(Counted);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.pool.state.lock().release_slot();
    }
}

/// A waiting client. Dropping it (timeout, or the client went away) removes it from the queue; a slot that was handed over at
/// that moment goes back through the permit.
struct Waiting {
    /// `None` once it has its permit.
    client: Option<Counted>,
    slot: oneshot::Receiver<()>,
    ticket: u64,
}

impl Waiting {
    /// Waits for a slot.
    async fn slot(&mut self) -> Option<Permit> {
        (&mut self.slot).await.ok()?;
        self.client.take().map(Permit)
    }

    /// Returns the permit if a slot was handed over meanwhile. After this call no slot can be handed over any more.
    fn settle(&mut self) -> Option<Permit> {
        self.slot.close();
        self.slot.try_recv().ok()?;
        self.client.take().map(Permit)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        drop(self.settle());
        if let Some(client) = &self.client {
            client.pool.state.lock().queue.retain(|waiter| waiter.ticket != self.ticket);
        }
    }
}

impl Pool {
    /// With all slots free.
    #[must_use]
    pub(crate) fn new(settings: Settings) -> Self {
        let (identities, addresses) = (Counter::default(), Counter::default());
        let state = State { settings, taken: 0, identities, addresses, queue: VecDeque::new(), next_ticket: 0 };
        Self(Arc::new(Shared { state: Mutex::new(state) }))
    }

    /// Other caps hold from now on. Streams that are open stay, and count for a cap that they were counted for when they came.
    pub(crate) fn configure(&self, settings: Settings) {
        let mut state = self.0.state.lock();
        state.settings = settings;
        state.hand_out();
    }

    /// Takes a slot for an identity and a client's address. If all are taken it waits as long as configured, first come,
    /// first served; it does not wait for the caps of an identity or address. Cancel safe: dropping the future undoes all.
    ///
    /// # Errors
    /// If a cap is reached.
    pub(crate) async fn acquire(&self, identity: Option<&Identity>, address: IpAddr) -> Result<Permit, Refusal> {
        let (mut waiting, wait) = match self.enter(identity, address)? {
            Entered::Slot(permit) => return Ok(permit),
            Entered::Queue(waiting, wait) => (waiting, wait),
        };
        if let Ok(Some(permit)) = tokio::time::timeout(wait, waiting.slot()).await {
            return Ok(permit);
        }
        // The slot may have arrived at the moment of the timeout.
        waiting.settle().ok_or(Refusal::Full)
    }

    fn enter(&self, identity: Option<&Identity>, address: IpAddr) -> Result<Entered, Refusal> {
        let mut state = self.0.state.lock();
        let state = &mut *state;
        let settings = &state.settings;
        let full = state.taken >= settings.max;
        if full && (settings.wait.is_zero() || state.queue.len() >= settings.waiting) {
            // The client's own caps come first: they tell it more, and waiting would not help.
            return Err(state.own_refusal(identity, address).unwrap_or(Refusal::Full));
        }
        let identity_at = match (identity, settings.max_per_identity) {
            (Some(identity), Some(max)) => state.identities.add(identity, max).ok_or(Refusal::Identity)?,
            _ => NONE,
        };
        let address_at = match settings.max_per_address.map(|max| state.addresses.add(&counted(address), max)) {
            Some(Some(at)) => at,
            Some(None) => {
                if identity_at != NONE {
                    state.identities.remove(identity_at);
                }
                return Err(Refusal::Address);
            }
            None => NONE,
        };
        let client = Counted { pool: Arc::clone(&self.0), identity: identity_at, address: address_at };
        if !full {
            state.taken += 1;
            return Ok(Entered::Slot(Permit(client)));
        }
        let (sender, slot) = oneshot::channel();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.queue.push_back(Waiter { ticket, slot: sender });
        Ok(Entered::Queue(Waiting { client: Some(client), slot, ticket }, settings.wait))
    }

    /// How many slots are taken.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> usize {
        self.0.state.lock().taken
    }

    /// How many slots there are.
    #[must_use]
    pub(crate) fn max(&self) -> usize {
        self.0.state.lock().settings.max
    }
}

enum Entered {
    Slot(Permit),
    /// And how long it may wait.
    Queue(Waiting, Duration),
}
