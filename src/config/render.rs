//! The effective configuration as YAML, secrets withheld, and what is worth a warning though it is no error.

use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::Value;

use super::load::Loaded;
use super::node::{KeyPath, Kind, Node, Shown};
use super::value::{show_duration, show_size};
use super::{Anonymous, Auth, Carriers, Claims, Config, Grants, Jwt, Source, Subscribers};
use crate::source::AdapterConfig;

mod adapters;
#[cfg(test)]
mod tests;

/// Durable sources whose places fit an id of 128 bytes, which browsers send to another origin without asking first
/// (Fetch standard, section 2.2.2).
const MAX_DURABLE_SHORT: usize = 7;

impl Loaded {
    /// The configuration as it counts, defaults included, secrets and URLs' passwords withheld.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        // Nothing in it can fail to be written; if it could, an empty text would say so.
        serde_saphyr::to_string(&Effective(self)).unwrap_or_default()
    }

    /// What is allowed but may not be meant, each with its key path.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        warnings(&self.config)
    }

    /// What is as it was meant, but good to know, each with its key path.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        notes(&self.config)
    }
}

struct Effective<'a>(&'a Loaded);

impl Serialize for Effective<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(Loaded { config, tree }) = self;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("server", &config.server)?;
        map.serialize_entry("admin", &config.admin)?;
        map.serialize_entry("auth", &AuthShown(&config.auth, tree))?;
        map.serialize_entry("subscribers", &SubscribersShown(&config.subscribers))?;
        map.serialize_entry("window", &config.window)?;
        map.serialize_entry("history", &config.history)?;
        map.serialize_entry("log", &config.log)?;
        map.serialize_entry("sources", &SourcesShown(config, tree))?;
        match tree.get(&KeyPath::default().key("routes")) {
            Some(routes) => map.serialize_entry("routes", &Shown(routes, "routes"))?,
            None => map.serialize_entry::<_, [(); 0]>("routes", &[])?,
        }
        map.end()
    }
}

struct AuthShown<'a>(&'a Auth, &'a Node);

impl Serialize for AuthShown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(serde::Serialize)]
        struct Fields<'a> {
            jwt: Option<JwtShown<'a>>,
            carriers: &'a Carriers,
            grants: &'a Grants,
            anonymous: &'a Anonymous,
        }
        let Self(Auth { jwt, carriers, grants, anonymous }, tree) = *self;
        Fields { jwt: jwt.as_ref().map(|jwt| JwtShown(jwt, tree)), carriers, grants, anonymous }.serialize(serializer)
    }
}

struct JwtShown<'a>(&'a Jwt, &'a Node);

impl Serialize for JwtShown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(serde::Serialize)]
        struct Fields<'a> {
            issuer: Option<&'a str>,
            audience: Option<&'a str>,
            leeway: String,
            keys: Option<Shown<'a>>,
            claims: &'a Claims,
        }
        let Self(jwt, tree) = *self;
        Fields {
            issuer: jwt.issuer.as_deref(),
            audience: jwt.audience.as_deref(),
            leeway: show_duration(jwt.leeway),
            keys: tree.get(&KeyPath::default().key("auth").key("jwt").key("keys")).map(|keys| Shown(keys, "keys")),
            claims: &jwt.claims,
        }
        .serialize(serializer)
    }
}

struct SubscribersShown<'a>(&'a Subscribers);

impl Serialize for SubscribersShown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        /// `false`: off, as it would be written.
        #[derive(serde::Serialize)]
        #[serde(untagged)]
        enum Cap {
            Off(bool),
            At(usize),
        }
        #[derive(serde::Serialize)]
        struct WhenFull {
            wait: String,
            waiting: usize,
        }
        #[derive(serde::Serialize)]
        struct Fields {
            max: usize,
            max_per_identity: Cap,
            max_per_address: Cap,
            trusted_proxies: Vec<String>,
            when_full: WhenFull,
            max_stall: String,
        }
        let Self(s) = *self;
        let cap = |cap: Option<usize>| cap.map_or(Cap::Off(false), Cap::At);
        Fields {
            max: s.max,
            max_per_identity: cap(s.max_per_identity),
            max_per_address: cap(s.max_per_address),
            trusted_proxies: s.trusted_proxies.iter().map(ToString::to_string).collect(),
            when_full: WhenFull { wait: show_duration(s.wait), waiting: s.waiting },
            max_stall: show_duration(s.max_stall),
        }
        .serialize(serializer)
    }
}

struct SourcesShown<'a>(&'a Config, &'a Node);

impl Serialize for SourcesShown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(config, tree) = *self;
        let written = tree.get(&KeyPath::default().key("sources"));
        let entries = match written.map(|node| &node.kind) {
            Some(Kind::Map(entries)) => entries.as_slice(),
            _ => &[],
        };
        let mut map = serializer.serialize_map(Some(entries.len()))?;
        for (name, node) in entries {
            let source = config.sources.iter().find(|(n, _)| n.as_str() == name).map(|(_, source)| source);
            map.serialize_entry(name, &SourceShown(node, source))?;
        }
        map.end()
    }
}

/// The adapter's part as it was written, and what stands beside it with its defaults.
struct SourceShown<'a>(&'a Node, Option<&'a Source>);

impl Serialize for SourceShown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Kind::Map(entries) = &self.0.kind {
            let defaults = self.1.map_or(Value::Null, |source| adapters::settings(&source.adapter));
            for (key, node) in entries.iter().filter(|(key, _)| key != "required" && key != "max_payload") {
                map.serialize_entry(key, &Filled(node, &defaults, key))?;
            }
        }
        if let Some(source) = self.1 {
            map.serialize_entry("required", &source.required)?;
            map.serialize_entry("max_payload", &show_size(source.max_payload))?;
        }
        map.end()
    }
}

/// What was written, and from `settings` what was not.
struct Filled<'a>(&'a Node, &'a Value, &'a str);

impl Serialize for Filled<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(node, settings, name) = *self;
        let Value::Object(settings) = settings else { return Shown(node, name).serialize(serializer) };
        // `create: true` is short for a map.
        let Kind::Map(entries) = &node.kind else { return settings.serialize(serializer) };
        let mut map = serializer.serialize_map(None)?;
        for (key, node) in entries {
            map.serialize_entry(key, &Filled(node, settings.get(key).unwrap_or(&Value::Null), key))?;
        }
        for (key, value) in settings.iter().filter(|(key, _)| !entries.iter().any(|(k, _)| k == *key)) {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

#[expect(clippy::too_many_lines, reason = "to be taken apart")]
fn warnings(config: &Config) -> Vec<String> {
    let mut found = Vec::new();
    let mut warn = |path: &str, what: &str| found.push(format!("{path}: {what}"));
    let Config { server, admin, auth, subscribers, window, sources, .. } = config;
    let anonymous = &auth.anonymous;
    if auth.jwt.is_none() {
        if anonymous.subscribe.is_empty() {
            warn("auth", "nobody may subscribe: there is neither `auth.jwt` nor `auth.anonymous.subscribe`");
        }
        if !auth.grants.subscribe.is_empty() || !auth.grants.publish.is_empty() {
            warn("auth.grants", "grants nothing without `auth.jwt`: only a token's bearer gets it");
        }
    }
    let carriers = &auth.carriers;
    if auth.jwt.is_some() && !carriers.header && carriers.cookie.is_none() && carriers.query.is_none() {
        warn("auth.carriers", "all are off: no token can reach brokercast");
    }
    if carriers.query.is_some() {
        warn("auth.carriers.query", "a token in a URL ends in proxies' logs and in browsers' histories: prefer the cookie");
    }
    if auth.jwt.as_ref().is_some_and(|jwt| jwt.audience.is_none()) {
        warn(
            "auth.jwt.audience",
            "is not set: a token without an `aud` that the same key signed for another service is taken, one with an `aud` is refused",
        );
    }
    if !server.listen.ip().is_loopback() && server.tls.is_none() && auth.jwt.is_some() {
        warn("server.tls", "is not set: tokens cross the network in the clear, unless a proxy in front of brokercast ends TLS");
    }
    if subscribers.max_per_address.is_some() && subscribers.trusted_proxies.is_empty() && !server.listen.ip().is_loopback() {
        warn(
            "subscribers.max_per_address",
            "behind a proxy all clients share its address: set `subscribers.trusted_proxies` if there is one",
        );
    }
    if !subscribers.trusted_proxies.is_empty() && subscribers.max_per_address.is_none() {
        warn("subscribers.trusted_proxies", "has no effect without `subscribers.max_per_address`");
    }
    if !admin.listen.ip().is_loopback() {
        warn("admin.listen", "is no loopback address: metrics and sources' states are open to who can reach it");
    }
    if let Some(folder) = &server.dashboards
        && !folder.is_dir()
    {
        warn("server.dashboards", "names no folder that is there now");
    }
    if sources.is_empty() {
        warn("sources", "there are none: nothing will ever be streamed");
    }
    for (name, source) in sources {
        if source.max_payload > window.bytes {
            let what = format!("a message of {} does not fit `window.bytes`", show_size(source.max_payload));
            warn(&format!("sources.{name}.max_payload"), &what);
        }
    }
    if !anonymous.publish.is_empty() && !sources.values().any(|source| matches!(source.adapter, AdapterConfig::Http(_))) {
        warn("auth.anonymous.publish", "has no effect: no http source takes what is published");
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    if limit.is_some_and(|limit| u64::try_from(subscribers.max).unwrap_or(u64::MAX) > limit) {
        let what = format!("is beyond the hard limit of open files, {}: raise that (ulimit -Hn, LimitNOFILE=)", limit.unwrap_or_default());
        warn("subscribers.max", &what);
    }
    found
}

fn notes(config: &Config) -> Vec<String> {
    let mut found = Vec::new();
    for (name, source) in &config.sources {
        if source.adapter.splits() {
            found.push(format!("sources.{name}: splits: of several replicas of brokercast each gets only a part of its messages"));
        }
    }
    let durable = config.sources.values().filter(|source| source.adapter.durable()).count();
    if durable > MAX_DURABLE_SHORT {
        found.push(format!(
            "sources: with {durable} durable sources an event's id can be longer than 128 bytes: a browser then asks first (preflight) \
             before it sends it as Last-Event-ID to another origin"
        ));
    }
    found
}
