//! `subscribers`: how many there may be, and how a newcomer waits for a slot.

use std::time::Duration;

use crate::settings::Section;

/// The pool's part of `subscribers`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Slots in all.
    pub max: usize,
    /// Slots for one token's `sub`; `None`: not capped.
    pub max_per_identity: Option<usize>,
    /// Slots for one client address; `None`: not capped.
    pub max_per_address: Option<usize>,
    /// How long a newcomer may wait for a slot; 0: refused at once.
    pub wait: Duration,
    /// How many may wait at a time.
    pub waiting: usize,
}

impl Settings {
    /// Takes the keys of `subscribers`.
    #[must_use]
    pub fn read(subscribers: &Section<'_>) -> Self {
        let max = subscribers.key("max").number().at_least(1).or(10_000);
        let max_per_identity = subscribers.key("max_per_identity").or_off(Some(20), |key| key.number().at_least(1));
        let max_per_address = subscribers.key("max_per_address").or_off(None, |key| key.number().at_least(1));
        let when_full = subscribers.key("when_full").section();
        Self {
            max,
            max_per_identity,
            max_per_address,
            wait: when_full.key("wait").duration().or(Duration::ZERO),
            waiting: when_full.key("waiting").number().or(100),
        }
    }
}
