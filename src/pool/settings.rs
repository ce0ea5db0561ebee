//! `subscribers`: how many there may be, and how a newcomer waits for a slot. `rates`: how often something may be done.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::settings::Section;

/// The pool's part of `subscribers`.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
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
    pub(crate) fn read(subscribers: &Section<'_>) -> Self {
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

/// How often something may be done: once in each period, and so often at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    /// After this it may be done once more.
    pub period: Duration,
    /// So often at once by who has not done it for a while.
    pub burst: NonZeroU32,
}

/// `rates`: each for one identity, then for one address. `None`: as often as one likes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RateSettings {
    /// Requests for streams.
    pub connect: [Option<Rate>; 2],
    /// Published messages.
    pub publish: [Option<Rate>; 2],
    /// Requests for streams that begin in the past.
    pub history: [Option<Rate>; 2],
}

impl RateSettings {
    /// Takes the keys of `rates`.
    #[must_use]
    pub(crate) fn read(rates: &Section<'_>) -> Self {
        let of = |name: &str| {
            let act = rates.key(name).section();
            let expected = "must be a whole number of times in a second, minute, hour or day: 10/s, 100/m, 1000/h or 5000/d";
            let written = ["per_identity", "per_address"].map(|name| act.key(name).or_off(None, |key| key.text().read(expected, per)));
            let burst = act.key("burst").number().within(1, 1_000_000).optional();
            if burst.is_some() && written.iter().all(Option::is_none) {
                act.problem("burst", "has no effect without `per_identity` or `per_address`");
            }
            written.map(|written| {
                let (times, span) = written?;
                // Without `burst` the whole number may be used up at once.
                let burst = burst.and_then(|burst| u32::try_from(burst).ok()).and_then(NonZeroU32::new).unwrap_or(times);
                Some(Rate { period: span / times.get(), burst })
            })
        };
        Self { connect: of("connect"), publish: of("publish"), history: of("history") }
    }
}

/// Reads `10/s`.
fn per(text: &str) -> Option<(NonZeroU32, Duration)> {
    let (times, unit) = text.split_once('/')?;
    let seconds = match unit.trim() {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    let times = times.trim().parse().ok().filter(|times: &NonZeroU32| times.get() <= 1_000_000)?;
    Some((times, Duration::from_secs(seconds)))
}
