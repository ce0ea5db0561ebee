//! What the service manager is told, where there is one that asks: `sd_notify` of systemd, by `NOTIFY_SOCKET` and
//! `WATCHDOG_USEC` in the environment.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::hub::Hub;

/// It serves. Brokers need not be there.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// It reads its configuration again. [`ready`] follows.
pub(super) fn reloading() {
    // Newer managers want the time, to tell this reload from an earlier one.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "cannot read the time for the service manager"),
    }
}

/// It is about to end.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Tells that the process works, for ever, twice in each interval of the watchdog's. A hub that is stuck is not working.
pub(super) async fn watchdog(hub: Arc<Hub>) {
    let Some(interval) = sd_notify::watchdog_enabled() else { return pending().await };
    let mut ticks = tokio::time::interval((interval / 2).max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        drop(hub.state());
        tell(&[NotifyState::Watchdog]);
    }
}

fn tell(state: &[NotifyState<'_>]) {
    // Nothing depends on it here: what the manager does not hear, it acts on.
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}
