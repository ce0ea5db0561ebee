//! Rates: how often an identity or an address may connect, publish, or ask for history.
//!
//! Bounded: a rate knows at most [`MAX`] keys, as hashes. Knows no request and no status code.

use std::hash::{BuildHasher as _, Hash, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock as _, MonotonicClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use parking_lot::Mutex;

use super::settings::{Rate, RateSettings};
use super::{Identity, counted};

/// Keys that a rate knows at a time. When there are more, all of them begin anew.
const MAX: usize = 65_536;
/// Keys that are as good as new are dropped when there are so many, and later when they have doubled.
const SWEEP: usize = 1024;

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// A request for a stream.
    Connect,
    /// A message that is published.
    Publish,
    /// A request for a stream that begins in the past.
    History,
}

/// Why something is not done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{whose} {what} more often than `rates` permits")]
pub(crate) struct TooOften {
    whose: &'static str,
    what: &'static str,
    /// When it may be tried again.
    pub wait: Duration,
}

/// All rates. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rates(Arc<[[Limiter; 2]; 3]>);

/// One rate for many keys.
#[derive(Debug, Default)]
struct Limiter {
    keys: RandomState,
    state: Mutex<Option<State>>,
}

#[derive(Debug)]
struct State {
    rate: Rate,
    limiter: RateLimiter<u64, HashMapStateStore<u64>, MonotonicClock>,
    sweep_at: usize,
}

impl State {
    fn new(rate: Rate) -> Self {
        let quota = Quota::with_period(rate.period).unwrap_or(Quota::per_second(rate.burst)).allow_burst(rate.burst);
        Self { rate, limiter: RateLimiter::new(quota, HashMapStateStore::default(), MonotonicClock), sweep_at: SWEEP }
    }

    fn check(&mut self, key: u64) -> Result<(), Duration> {
        if self.limiter.len() >= self.sweep_at {
            self.limiter.retain_recent();
            self.limiter.shrink_to_fit();
            if self.limiter.len() >= MAX {
                *self = Self::new(self.rate);
            }
            self.sweep_at = (self.limiter.len() * 2).clamp(SWEEP, MAX);
        }
        self.limiter.check_key(&key).map_err(|not_until| not_until.wait_time_from(MonotonicClock.now()))
    }
}

impl Limiter {
    fn configure(&self, rate: Option<Rate>) {
        let mut state = self.state.lock();
        // What is the same goes on counting.
        if state.as_ref().map(|state| state.rate) != rate {
            *state = rate.map(State::new);
        }
    }

    fn check(&self, key: impl Hash) -> Result<(), Duration> {
        let mut state = self.state.lock();
        state.as_mut().map_or(Ok(()), |state| state.check(self.keys.hash_one(key)))
    }
}

impl Rates {
    /// With these rates.
    #[must_use]
    pub(crate) fn new(settings: RateSettings) -> Self {
        let rates = Self::default();
        rates.configure(settings);
        rates
    }

    /// Other rates hold from now on.
    pub(crate) fn configure(&self, settings: RateSettings) {
        let RateSettings { connect, publish, history } = settings;
        for (limiters, rates) in self.0.iter().zip([connect, publish, history]) {
            for (limiter, rate) in limiters.iter().zip(rates) {
                limiter.configure(rate);
            }
        }
    }

    /// Counts something that is done from an address.
    ///
    /// # Errors
    /// If that is too often.
    pub(crate) fn of_address(&self, act: Act, address: IpAddr) -> Result<(), TooOften> {
        self.0[act as usize][1].check(counted(address)).map_err(|wait| TooOften { whose: "this address", what: act.done(), wait })
    }

    /// Counts something that is done by an identity, if there is one.
    ///
    /// # Errors
    /// If that is too often.
    pub(crate) fn of_identity(&self, act: Act, identity: Option<&Identity>) -> Result<(), TooOften> {
        let Some(identity) = identity else { return Ok(()) };
        self.0[act as usize][0].check(identity).map_err(|wait| TooOften { whose: "this identity", what: act.done(), wait })
    }

    #[cfg(test)]
    fn known(&self, act: Act) -> usize {
        self.0[act as usize][1].state.lock().as_ref().map_or(0, |state| state.limiter.len())
    }
}

impl Act {
    fn done(self) -> &'static str {
        match self {
            Self::Connect => "connects",
            Self::Publish => "publishes",
            Self::History => "asks for history",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::num::NonZeroU32;

    use super::*;

    fn rate(period: Duration, burst: u32) -> Option<Rate> {
        Some(Rate { period, burst: NonZeroU32::new(burst).unwrap() })
    }

    fn address(n: u32) -> IpAddr {
        Ipv4Addr::from_bits(n).into()
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn each_key_has_its_burst_and_is_told_how_long_to_wait() {
        let rates = Rates::new(RateSettings { connect: [rate(HOUR, 3), rate(HOUR, 2)], ..RateSettings::default() });
        for n in 0..2 {
            for _ in 0..2 {
                rates.of_address(Act::Connect, address(n)).unwrap();
            }
            let refused = rates.of_address(Act::Connect, address(n)).unwrap_err();
            assert!(refused.wait <= HOUR && refused.wait > HOUR / 2, "{refused:?}");
            assert_eq!(refused.to_string(), "this address connects more often than `rates` permits");
        }
        let identity = |issuer: Option<&str>, name: &str| Identity { issuer: issuer.map(Arc::from), name: name.into() };
        for identity in [identity(None, "a"), identity(None, "b"), identity(Some("i"), "a")] {
            let count = (0..9).filter(|_| rates.of_identity(Act::Connect, Some(&identity)).is_ok()).count();
            assert_eq!(count, 3);
        }
        for _ in 0..100 {
            rates.of_identity(Act::Connect, None).unwrap();
            rates.of_address(Act::Publish, address(0)).unwrap();
        }
        // The network of an IPv6 address counts, as with the caps.
        let [one, other]: [IpAddr; 2] = ["2001:db8::1", "2001:db8::2"].map(|text| text.parse().unwrap());
        let used = [one, other, one].map(|address| rates.of_address(Act::Connect, address).is_ok());
        assert_eq!(used, [true, true, false]);
    }

    #[test]
    fn other_rates_begin_anew_and_equal_ones_go_on() {
        let with = |burst| RateSettings { history: [None, rate(HOUR, burst)], ..RateSettings::default() };
        let rates = Rates::new(with(1));
        let allowed = || rates.of_address(Act::History, address(1)).is_ok();
        assert!(allowed() && !allowed());
        rates.configure(with(1));
        assert!(!allowed());
        rates.configure(with(2));
        assert!(allowed() && allowed() && !allowed());
        rates.configure(RateSettings::default());
        assert!((0..9).all(|_| allowed()));
    }

    #[test]
    fn what_is_known_of_addresses_is_bounded() {
        let slow = Rates::new(RateSettings { publish: [None, rate(HOUR, 1)], ..RateSettings::default() });
        let quick = Rates::new(RateSettings { publish: [None, rate(Duration::from_nanos(1), 1)], ..RateSettings::default() });
        for n in 0..200_000 {
            slow.of_address(Act::Publish, address(n)).unwrap();
            quick.of_address(Act::Publish, address(n)).unwrap();
            assert!(slow.known(Act::Publish) <= MAX);
        }
        assert!(quick.known(Act::Publish) <= 2 * SWEEP, "those that are as good as new are dropped");
    }
}
