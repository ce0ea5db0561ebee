//! What is worth saying of settings that are right: warnings of what may not be meant, and notes.

use std::sync::Arc;

use super::Settings;
use crate::auth::{self, Header};
use crate::http::Listed;
use crate::route::{self, Fate, Router};
use crate::settings::value::show_size;

/// Durable sources whose positions fit an id of 128 bytes, which browsers send to another origin without asking first
/// (Fetch standard, section 2.2.2).
const MAX_DURABLE_SHORT: usize = 7;

/// Shorter tokens of the admin listener may be guessed.
const MIN_ADMIN_TOKEN: usize = 16;

pub(super) fn warnings(settings: &Settings) -> Vec<String> {
    let mut found = Vec::new();
    let mut warn = |path: &str, what: &str| found.push(format!("{path}: {what}"));
    tokens(settings, &mut warn);
    listeners(settings, &mut warn);
    subscribers(settings, &mut warn);
    let Settings { auth, window, sources, .. } = settings;
    if sources.is_empty() {
        warn("sources", "there are none: nothing will ever be streamed");
    }
    for source in sources {
        if source.max_payload > window.bytes {
            let what = format!("a message of {} does not fit `window.bytes`", show_size(source.max_payload));
            warn(&format!("sources.{}.max_payload", source.name), &what);
        }
        for (key, what) in source.adapter.advice() {
            warn(&format!("sources.{}.{}.{key}", source.name, source.adapter.kind()), &what);
        }
    }
    shown_revocations(settings, &mut warn);
    let reaches: Vec<_> = sources.iter().map(|source| (&source.name, source.adapter.reach())).collect();
    for (rule, by) in route::shadowed(&settings.routes, &reaches) {
        warn(rule, &format!("can never match: what it is about is taken before it, by {}", by.join(", ")));
    }
    if !auth.anonymous.publish.is_empty() && sources.iter().all(|source| source.adapter.inbox().is_none()) {
        warn("auth.anonymous.publish", "has no effect: no http source takes what is published");
    }
    found
}

/// The messages of `auth.revocations` are hidden of the source that it names. Another one may read them too.
fn shown_revocations(settings: &Settings, warn: &mut impl FnMut(&str, &str)) {
    let Settings { auth, sources, routes, .. } = settings;
    let Some(control) = &auth.revocations else { return };
    let Some(own) = sources.iter().find(|source| source.name.as_str() == control.source) else { return };
    for other in sources.iter().filter(|other| other.name != own.name && other.adapter.kind() == own.adapter.kind()) {
        let reach = other.adapter.reach();
        let reads = reach.iter().any(|pattern| pattern.matches(control.subject.as_str()));
        let fates = Router::new(routes, &other.name, &reach, Arc::default()).fates(&control.subject);
        if !reads || matches!(fates.first(), Some(Fate::Drops(_))) {
            continue;
        }
        let what = format!(
            "reads `{}` too, the subject of `auth.revocations` (source `{}`): if the broker is the same, its clients see revocations; a \
             route that drops this subject of the source hides them",
            control.subject, own.name
        );
        warn(&format!("sources.{}", other.name), &what);
    }
}

fn tokens(settings: &Settings, warn: &mut impl FnMut(&str, &str)) {
    let auth = &settings.auth;
    if auth.carriers.query.is_some() {
        warn("auth.carriers.query", "a token in a URL ends in proxies' logs and in browsers' histories: prefer the cookie");
    }
    if auth.backend.as_ref().is_some_and(auth::BackendSettings::in_the_clear) {
        warn("auth.backend.url", "has http: who is on the way can read credentials and replace answers; use https");
    }
    if auth.issuers.is_empty() {
        if auth.anonymous.subscribe.is_empty() && auth.backend.is_none() {
            let what =
                "nobody may subscribe: there is neither `auth.jwt`, nor `auth.issuers`, nor `auth.backend`, nor `auth.anonymous.subscribe`";
            warn("auth", what);
        }
        if !auth.grants.is_empty() {
            warn("auth.grants", "grants nothing without `auth.jwt` or `auth.issuers`: only a token's bearer gets it");
        }
        return;
    }
    let carriers = &auth.carriers;
    if carriers.header == Header::Off && carriers.cookie.is_none() && carriers.query.is_none() {
        warn("auth.carriers", "all are off: no token can reach brokercast");
    }
    if let Header::Named(name) = &carriers.header
        && ["host", "origin", "last-event-id", "accept"].contains(&name.as_str())
    {
        warn("auth.carriers.header", "is a header that clients send for another purpose: what it holds is taken for a token, and refused");
    }
    for issuer in &auth.issuers {
        if issuer.audiences.is_empty() && issuer.has_key_set() {
            let what = "is not set: tokens that the same issuer made for other services are taken too, since it signs all with these keys";
            warn(&format!("{}.audience", issuer.path), what);
        }
        if issuer.fetches_in_the_clear() {
            let what = "has a `jwks_url` with http: who is on the way can replace the keys; use https";
            warn(&format!("{}.keys", issuer.path), what);
        }
    }
    if auth.issuers.len() > 1 && auth.grants.subscribe.iter().chain(&auth.grants.publish).any(auth::Template::has_claims) {
        let what = "has a placeholder and holds for all issuers: each can name another's users and see what is theirs; use `grants` of an \
                    issuer";
        warn("auth.grants", what);
    }
    if settings.token_bytes > settings.http.bounds.header_bytes {
        warn("server.limits.token_bytes", "is more than `server.limits.header_bytes`: a token so long cannot arrive");
    }
}

fn listeners(settings: &Settings, warn: &mut impl FnMut(&str, &str)) {
    let http = &settings.http;
    if http.listen.is_remote() && http.tls.is_none() && (!settings.auth.issuers.is_empty() || settings.auth.backend.is_some()) {
        warn("server.tls", "is not set: tokens and cookies cross the network in the clear, unless a proxy in front of brokercast ends TLS");
    }
    let admin = &http.admin;
    if admin.listen.is_remote() && admin.token.is_none() && !admin.tls.as_ref().is_some_and(|tls| tls.verifies_clients()) {
        warn("admin.listen", "is no loopback address: metrics and sources' states are open to who can reach it; see `admin.token_file`");
    }
    if admin.listen.is_remote() && admin.token.is_some() && admin.tls.is_none() {
        warn("admin.tls", "is not set: the admin listener's token crosses the network in the clear");
    }
    if admin.token.as_ref().is_some_and(|token| token.expose().len() < MIN_ADMIN_TOKEN) {
        warn("admin.token", &format!("is shorter than {MIN_ADMIN_TOKEN} bytes, and may be guessed"));
    }
    for (key, networks) in [("trusted_proxies", &http.proxies.trusted), ("proxy_protocol", &http.announcing)] {
        if networks.contain_everybody() {
            let what = "takes everybody for a proxy: any client can say that it has another address, or came to another host";
            warn(&format!("server.{key}"), what);
        }
    }
    if http.origins.credentials && http.origins.listed.iter().any(Listed::is_broad) {
        warn("server.cors.origins", "lets pages of all names below a top-level domain bring their visitors' cookies");
    }
    if http.dashboards.as_ref().is_some_and(|folder| !folder.is_dir()) {
        warn("server.dashboards", "names no folder that is there now");
    }
}

fn subscribers(settings: &Settings, warn: &mut impl FnMut(&str, &str)) {
    let (pool, http) = (&settings.pool, &settings.http);
    if pool.max_per_address.is_some() && http.proxies.trusted.is_empty() && http.listen.is_remote() {
        warn("subscribers.max_per_address", "behind a proxy all clients share its address: set `server.trusted_proxies` if there is one");
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    if let Some(limit) = limit.filter(|limit| u64::try_from(pool.max).unwrap_or(u64::MAX) > *limit) {
        let what = format!("is beyond the hard limit of open files, {limit}: raise that (ulimit -Hn, LimitNOFILE=)");
        warn("subscribers.max", &what);
    }
}

pub(super) fn notes(settings: &Settings) -> Vec<String> {
    let adapters = || settings.sources.iter().map(|source| (&source.name, &source.adapter));
    let split = |name| format!("sources.{name}: splits: of several replicas of brokercast each gets only a part of its messages");
    let mut found: Vec<String> = adapters().filter(|(_, adapter)| adapter.splits()).map(|(name, _)| split(name)).collect();
    let durable = settings.sources.iter().map(|source| source.tags().len()).sum::<usize>();
    if durable > MAX_DURABLE_SHORT {
        found.push(format!(
            "sources: with {durable} durable sources an event's id can be longer than 128 bytes: a browser then asks first (preflight) \
             before it sends it as Last-Event-ID to another origin"
        ));
    }
    found
}
