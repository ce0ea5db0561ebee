//! `auth.backend`: whom to ask about requests without a token, and what is forwarded of them.
//!
//! Asks nothing.

use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderName};
use reqwest::Url;

use crate::auth::backend::Forward;
use crate::settings::{Secret, Section, Slot};
use crate::support::web::{is_plain, trusted};

/// `auth.backend`
#[derive(Debug, Clone)]
pub(crate) struct Backend {
    /// Where it is asked.
    pub(in crate::auth) url: Url,
    /// At least one.
    pub(in crate::auth) forward: Arc<[Forward]>,
    /// How long an answer may take, from connecting to its last byte.
    pub(in crate::auth) timeout: Duration,
    /// How long an answer counts for new requests.
    pub(in crate::auth) cache: Duration,
    /// How long an answer counts for open streams.
    pub(in crate::auth) recheck: Duration,
}

/// What belongs to a connection, or is set by brokercast.
const OWN: &[&str] = &[
    "accept",
    "accept-encoding",
    "connection",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "range",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "x-forwarded-for",
];

impl Backend {
    pub(super) fn read(backend: &Section<'_>) -> Option<Self> {
        let seconds = Duration::from_secs;
        let parse = |url: Secret| url.expose_str().ok().and_then(|url| url.parse().ok()).filter(is_plain);
        let expected = "must be a URL without a user in it: https://app.example.com/live/auth";
        let url = backend.key("url").address().convert(|url| parse(url).ok_or_else(|| expected.to_owned())).required();
        let some = "must list at least one of `cookie:NAME`, `cookie`, `authorization` and other headers";
        let forward = backend.key("forward").list(forward).check(|list| !list.is_empty(), some);
        let forward = forward
            .check(|list| distinct(list), "must name nothing twice, and no single cookie beside `cookie`, which is all of them")
            .required();
        let timeout = backend.key("timeout").duration().within(Duration::from_millis(1), seconds(60)).or(seconds(2));
        let cache = backend.key("cache").duration().within(Duration::ZERO, seconds(24 * 3600)).or(seconds(30));
        let recheck = backend.key("recheck").duration().within(Duration::from_millis(100), seconds(24 * 3600)).or(seconds(300));
        Some(Self { url: url?, forward: forward?.into(), timeout, cache, recheck })
    }

    /// Whether credentials cross a network in the clear.
    #[must_use]
    pub(crate) fn in_the_clear(&self) -> bool {
        !trusted(&self.url)
    }
}

fn forward(item: Slot<'_>) -> Option<Forward> {
    let expected =
        "must be `cookie:NAME`, `cookie`, `authorization` or the name of another header that identifies somebody, such as x-api-key";
    item.text().read(expected, one).required()
}

fn one(text: &str) -> Option<Forward> {
    if let Some((kind, name)) = text.split_once(':') {
        let name = name.trim();
        return (kind.trim().eq_ignore_ascii_case("cookie") && super::is_cookie(name)).then(|| Forward::Cookie(name.to_owned()));
    }
    let name: HeaderName = text.trim().parse().ok()?;
    (!OWN.contains(&name.as_str())).then_some(Forward::Header(name))
}

fn distinct(list: &[Forward]) -> bool {
    let whole = list.contains(&Forward::Header(header::COOKIE));
    let superfluous = |one: &Forward| whole && matches!(one, Forward::Cookie(_));
    list.iter().enumerate().all(|(at, one)| !list[..at].contains(one) && !superfluous(one))
}
