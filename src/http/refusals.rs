//! What was refused, and to whom: a line of the log for origins, grants and tokens, at most ten in a second, and whatever else
//! wants to know it.
//!
//! Texts of clients are made harmless here. A token is never shown, only what it says of its key and its issuer.

use std::net::IpAddr;
use std::time::Duration;

use http::header;
use http::request::Parts;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::problem::{Cause, Problem};
use crate::auth::{Authenticator, Owner, Presented};
use crate::support::plain::plain;

/// Lines of the log in a second.
const LINES: u32 = 10;
const SECOND: Duration = Duration::from_secs(1);
/// Characters of one text.
const MOST: usize = 128;

/// A request that was refused.
pub(crate) struct Refusal<'a> {
    /// The request, whose query may hold a token.
    pub(crate) parts: &'a Parts,
    pub(crate) address: IpAddr,
    /// Whose token it brought, if that is good.
    pub(crate) whose: Option<&'a Owner>,
    pub(crate) status: u16,
    /// Why, in a word.
    pub(crate) reason: &'a str,
    /// Why, in a sentence.
    pub(crate) detail: &'a str,
    pub(crate) elapsed: Duration,
}

/// Where refusals are told.
pub(crate) struct Refusals {
    /// Whoever wants to know all of them. Must not block.
    tell: Box<dyn Fn(&Refusal<'_>) + Send + Sync>,
    limit: Mutex<Limit>,
    left_out: Notify,
}

/// How many lines there were in the present second.
#[derive(Default)]
struct Limit {
    since: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Limit {
    /// Whether there may be one more line.
    fn admits(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.duration_since(since) >= SECOND) {
            (self.since, self.lines) = (Some(now), 0);
        }
        let admitted = self.lines < LINES;
        self.lines += u32::from(admitted);
        self.left_out += u64::from(!admitted);
        admitted
    }
}

impl Refusals {
    pub(crate) fn new(tell: impl Fn(&Refusal<'_>) + Send + Sync + 'static) -> Self {
        Self { tell: Box::new(tell), limit: Mutex::default(), left_out: Notify::new() }
    }

    /// Tells of a problem that is the answer to a request. `auth`: by which its token was refused, if it was.
    pub(super) fn problem(&self, parts: &Parts, address: IpAddr, problem: &Problem, auth: Option<&Authenticator>, began: Instant) {
        let detail = problem.cause().why().unwrap_or_else(|| problem.detail().to_owned());
        let (status, reason, whose) = (problem.status().as_u16(), problem.reason(), problem.whose());
        self.any(&Refusal { parts, address, whose, status, reason, detail: &detail, elapsed: began.elapsed() });
        if problem.cause().is_logged() && self.admits() {
            self.log(parts, address, problem, &detail, auth.and_then(|auth| auth.presented(&parts.headers, parts.uri.query())));
        }
    }

    /// Tells of any refusal, but for the log.
    pub(super) fn any(&self, refusal: &Refusal<'_>) {
        (self.tell)(refusal);
    }

    fn admits(&self) -> bool {
        let admits = self.limit.lock().admits(Instant::now());
        if !admits {
            self.left_out.notify_one();
        }
        admits
    }

    fn log(&self, parts: &Parts, address: IpAddr, problem: &Problem, why: &str, token: Option<Presented>) {
        let header = |name| Some(plain(&String::from_utf8_lossy(parts.headers.get(name)?.as_bytes()), MOST));
        let identity = problem.whose().and_then(|owner| owner.identity.as_deref());
        let (path, identity) = (plain(parts.uri.path(), MOST), identity.map(|identity| plain(identity, MOST)));
        let why = plain(why, 2 * MOST);
        match problem.cause() {
            Cause::Token(_) => {
                let of = |text: fn(&Presented) -> Option<&String>| token.as_ref().and_then(text).map(|text| plain(text, MOST));
                let (kid, iss) = (of(|token| token.key_id.as_ref()), of(|token| token.issuer.as_ref()));
                let carrier = token.as_ref().map(|token| token.carrier);
                tracing::info!(%address, reason = why, carrier, kid, iss, path, "token refused");
            }
            Cause::Origin => tracing::info!(%address, reason = why, origin = header(header::ORIGIN), identity, path, "origin refused"),
            Cause::Grant => tracing::info!(%address, reason = why, identity, path, "grant refused"),
            Cause::Other => {}
        }
    }

    /// Tells how many lines were left out, once their second is over. Never ends.
    pub(crate) async fn tell_left_out(&self) {
        loop {
            self.left_out.notified().await;
            sleep(SECOND).await;
            let left_out = std::mem::take(&mut self.limit.lock().left_out);
            if left_out > 0 {
                tracing::info!(left_out, "refusals left out of the log");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ten_lines_a_second_and_then_a_count() {
        let mut limit = Limit::default();
        let admitted = |limit: &mut Limit| (0..25).filter(|_| limit.admits(Instant::now())).count();
        assert_eq!((admitted(&mut limit), limit.left_out), (10, 15));
        tokio::time::advance(SECOND).await;
        assert_eq!((admitted(&mut limit), limit.left_out), (10, 30));
    }
}
