//! What is known of credentials: answers that still count, questions under way, and for which credentials streams are open.
//!
//! Bounded. Takes the time as an argument. Holds a credential itself only while a stream of it is open; of all others it has
//! the [`Fingerprint`]. Knows no HTTP.

use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::{BoxFuture, Shared, WeakShared};
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use super::answer::Answer;
use super::breaker::Breaker;
use super::forward::{Forward, Question};
use crate::auth::Owner;
use crate::auth::fingerprint::{Fingerprint, Keys};
use crate::event::Timestamp;
use crate::support::backoff::jittered;

/// Questions at a time.
pub(super) const SEATS: usize = 64;
/// Credentials without streams of which something is known. Beyond that they are forgotten.
pub(super) const MAX: usize = 16_384;
/// Newcomers between two sweeps, at least.
const SWEEP: usize = 64;
/// How long a refusal counts.
pub(super) const REFUSED: Duration = Duration::from_secs(5);
/// After a question that failed, streams' credentials are asked for again at the latest after this.
const AGAIN: Duration = Duration::from_secs(15);

/// What became of a question.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    Granted(Arc<Answer>),
    Refused,
    Failed,
}

/// A question under way. Whoever waits for it moves it on; it is dropped when all who wait are gone.
pub(super) type Asking = Shared<BoxFuture<'static, Outcome>>;

/// How long what is answered counts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    /// For new requests.
    pub(super) cache: Duration,
    /// For open streams.
    pub(super) recheck: Duration,
}

/// A credential of which a stream is open, or is about to be.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) question: Question,
    /// From where it was used first.
    pub(super) address: IpAddr,
    /// What is forwarded of requests, for which it was made.
    pub(super) forward: Arc<[Forward]>,
    /// What counts now; `None`: it was refused.
    granted: Mutex<Option<Arc<Answer>>>,
}

impl Known {
    pub(super) fn new(question: Question, address: IpAddr, forward: Arc<[Forward]>, granted: Arc<Answer>) -> Self {
        Self { question, address, forward, granted: Mutex::new(Some(granted)) }
    }

    pub(super) fn granted(&self) -> Option<Arc<Answer>> {
        self.granted.lock().clone()
    }

    /// Takes in a newer answer. Returns whether that concerns streams that are open.
    fn learn(&self, newer: Option<&Arc<Answer>>) -> bool {
        let mut granted = self.granted.lock();
        let concerns = match (&*granted, newer) {
            (Some(before), Some(newer)) => newer.differs(before),
            (before, newer) => before.is_some() || newer.is_some(),
        };
        *granted = newer.cloned();
        concerns
    }
}

/// What is known of a credential.
struct Entry {
    answer: Option<(Outcome, Instant)>,
    asking: Option<WeakShared<BoxFuture<'static, Outcome>>>,
    known: Weak<Known>,
    /// The one that was made of the latest answer.
    owner: Weak<Owner>,
    /// When it is asked for again, while streams of it are open.
    next: Instant,
}

impl Entry {
    fn new(now: Instant) -> Self {
        Self { answer: None, asking: None, known: Weak::new(), owner: Weak::new(), next: now }
    }

    /// What was answered and still counts.
    fn fresh(&self, now: Instant, clock: Timestamp) -> Option<&Outcome> {
        let (outcome, until) = self.answer.as_ref()?;
        let expired = matches!(outcome, Outcome::Granted(answer) if answer.expires.is_some_and(|expires| clock >= expires));
        (now < *until && !expired).then_some(outcome)
    }

    fn is_asking(&self) -> Option<Asking> {
        self.asking.as_ref()?.upgrade()
    }

    fn is_held(&self) -> bool {
        self.known.strong_count() > 0 || self.is_asking().is_some()
    }
}

#[derive(Default)]
struct State {
    entries: HashMap<Fingerprint, Entry>,
    /// Credentials whose streams have to hear of a newer answer.
    changed: Vec<Arc<Known>>,
    /// Counts changes of the backend: what the one before answered is not kept.
    epoch: u64,
    /// Entries that nobody needs are dropped when there are so many.
    sweep_at: usize,
}

impl State {
    fn entry(&mut self, of: Fingerprint, now: Instant, clock: Timestamp) -> &mut Entry {
        if !self.entries.contains_key(&of) && self.entries.len() >= self.sweep_at {
            self.sweep(now, clock);
        }
        self.entries.entry(of).or_insert_with(|| Entry::new(now))
    }

    fn sweep(&mut self, now: Instant, clock: Timestamp) {
        self.entries.retain(|_, entry| entry.is_held() || entry.fresh(now, clock).is_some());
        let held = self.entries.values().filter(|entry| entry.is_held()).count();
        if self.entries.len() - held >= MAX / 2 {
            // First refusals: anybody can invent credentials.
            self.entries.retain(|_, entry| entry.is_held() || matches!(entry.answer, Some((Outcome::Granted(_), _))));
        }
        if self.entries.len().saturating_sub(held) >= MAX / 2 {
            self.entries.retain(|_, entry| entry.is_held());
        }
        // However many are held: a sweep costs as much as there are, so that many newcomers have to come before the next.
        self.sweep_at = held + (2 * self.entries.len().saturating_sub(held)).clamp(SWEEP, MAX);
        if self.entries.capacity() > 1024 && self.entries.len() < self.entries.capacity() / 8 {
            self.entries.shrink_to(self.sweep_at);
        }
    }
}

/// See the module.
pub(super) struct Desk {
    keys: Keys,
    pub(super) seats: Semaphore,
    /// There are credentials whose streams have to hear of a newer answer.
    pub(super) changed: Notify,
    /// Apart from the rest, because a question that is dropped tells the breaker so, and may be dropped under the other lock.
    breaker: Mutex<Breaker>,
    state: Mutex<State>,
}

impl Default for Desk {
    fn default() -> Self {
        let seats = Semaphore::new(SEATS);
        Self { keys: Keys::default(), seats, changed: Notify::new(), breaker: Mutex::default(), state: Mutex::default() }
    }
}

/// What is there for a question.
pub(super) enum Found {
    Answer(Outcome),
    Asking(Asking),
}

impl Desk {
    pub(super) fn fingerprint(&self, question: &Question) -> Fingerprint {
        self.keys.fingerprint(&question.encoded())
    }

    /// Returns the known answer if `known` allows it, else the question under way, else a new one made by `ask`.
    pub(super) fn find(&self, of: Fingerprint, known: bool, now: Instant, ask: impl FnOnce() -> Asking) -> Found {
        let clock = Timestamp::now();
        let mut state = self.state.lock();
        let entry = state.entry(of, now, clock);
        if let Some(outcome) = entry.fresh(now, clock).filter(|_| known) {
            return Found::Answer(outcome.clone());
        }
        if let Some(asking) = entry.is_asking() {
            return Found::Asking(asking);
        }
        let asking = ask();
        entry.asking = asking.downgrade();
        Found::Asking(asking)
    }

    /// Takes in what became of a question. Nothing of it counts where another backend is asked by now.
    pub(super) fn store(&self, of: Fingerprint, epoch: u64, outcome: &Outcome, timing: Timing, now: Instant) {
        let mut state = self.state.lock();
        if state.epoch != epoch {
            return;
        }
        let Some(entry) = state.entries.get_mut(&of) else { return };
        entry.asking = None;
        let again = match outcome {
            Outcome::Failed => timing.recheck.min(AGAIN),
            Outcome::Granted(_) | Outcome::Refused => timing.recheck,
        };
        // Never later than configured, and not for all at the same moment.
        entry.next = now + jittered(again, 0.8..1.0);
        let known = entry.known.upgrade();
        let answer = match outcome {
            Outcome::Granted(answer) => Some(answer),
            Outcome::Refused => None,
            Outcome::Failed => {
                if known.is_none() && entry.answer.is_none() {
                    state.entries.remove(&of);
                }
                return;
            }
        };
        entry.answer = Some((outcome.clone(), now + if answer.is_some() { timing.cache } else { REFUSED }));
        if let Some(known) = known.filter(|known| known.learn(answer)) {
            state.changed.push(known);
            self.changed.notify_one();
        }
    }

    /// Forgets an answer because a revocation came after it.
    pub(super) fn forget(&self, of: Fingerprint, answer: &Arc<Answer>) {
        let mut state = self.state.lock();
        let Some(entry) = state.entries.get_mut(&of) else { return };
        if matches!(&entry.answer, Some((Outcome::Granted(known), _)) if Arc::ptr_eq(known, answer)) {
            entry.answer = None;
        }
    }

    /// The owner of what an answer grants, the same for all that it grants something, and the answer that counts: a newer one
    /// may have come meanwhile. `None`: by that the credential is refused.
    pub(super) fn owner(&self, of: Fingerprint, answer: Arc<Answer>, known: impl FnOnce() -> Known) -> Option<(Arc<Owner>, Arc<Answer>)> {
        let mut state = self.state.lock();
        let entry = state.entry(of, Instant::now(), Timestamp::now());
        let answer = match &entry.answer {
            Some((Outcome::Refused, _)) => return None,
            Some((Outcome::Granted(newer), _)) if newer.asked > answer.asked => newer.clone(),
            _ => answer,
        };
        if let Some(owner) = entry.owner.upgrade().filter(|owner| owner.issued == Some(answer.asked)) {
            return Some((owner, answer));
        }
        let known = entry.known.upgrade().unwrap_or_else(|| Arc::new(known()));
        entry.known = Arc::downgrade(&known);
        let owner = Owner {
            identity: answer.identity.clone(),
            issued: Some(answer.asked),
            credential: Some(super::Credential(known.clone())),
            ..Owner::default()
        };
        let owner = Arc::new(owner);
        entry.owner = Arc::downgrade(&owner);
        if known.learn(Some(&answer)) {
            state.changed.push(known);
            self.changed.notify_one();
        }
        Some((owner, answer))
    }

    /// Credentials with open streams that are to be asked for again.
    pub(super) fn due(&self, now: Instant) -> Vec<(Fingerprint, Arc<Known>)> {
        let state = self.state.lock();
        let due = state.entries.iter().filter(|(_, entry)| entry.next <= now);
        due.filter_map(|(of, entry)| Some((*of, entry.known.upgrade()?))).collect()
    }

    /// Credentials whose streams have to hear of a newer answer. Told once.
    pub(super) fn take_changed(&self) -> Vec<Arc<Known>> {
        std::mem::take(&mut self.state.lock().changed)
    }

    /// Another backend is asked from now on, or by other rules: for open streams soon. Returns what its answers are handed to
    /// [`Self::store`] with.
    pub(super) fn begin_anew(&self, now: Instant) -> u64 {
        let mut state = self.state.lock();
        state.epoch += 1;
        for entry in state.entries.values_mut() {
            (entry.answer, entry.asking, entry.next) = (None, None, now);
        }
        let epoch = state.epoch;
        drop(state);
        *self.breaker.lock() = Breaker::default();
        epoch
    }

    /// Open streams are asked for again after at most `recheck`.
    pub(super) fn hurry(&self, now: Instant, recheck: Duration) {
        for entry in self.state.lock().entries.values_mut() {
            entry.next = entry.next.min(now + jittered(recheck, 0.8..1.0));
        }
    }

    /// Calls `act` with the breaker. It must not come back to the desk.
    pub(super) fn breaker<T>(&self, act: impl FnOnce(&mut Breaker) -> T) -> T {
        act(&mut self.breaker.lock())
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.state.lock().entries.len()
    }
}
