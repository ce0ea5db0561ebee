//! The validated configuration: what every other room is given.
//!
//! Owns the shape; `config/raw.rs` reads it, `config/load.rs` layers the files and the environment. Knows no room's
//! inner workings.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::event::{Envelope, SourceName};
use crate::subject::Pattern;

pub mod load;
mod node;
mod raw;
mod render;
mod validate;
pub mod value;

pub use load::{ConfigError, Loaded, load};

/// Everything, checked.
#[derive(Debug)]
pub struct Config {
    /// The public listener and what it serves.
    pub server: Server,
    /// The admin listener.
    pub admin: Admin,
    /// Who may subscribe and publish.
    pub auth: Auth,
    /// The pool of subscribers.
    pub subscribers: Subscribers,
    /// Events kept in memory for resuming, of each source.
    pub window: Window,
    /// Reading brokers' own logs for clients that are behind the window.
    pub history: History,
    /// Logging.
    pub log: Log,
    /// By name, in the order of names.
    pub sources: BTreeMap<SourceName, Source>,
    /// First match wins.
    pub routes: Vec<RouteRule>,
}

/// `server`
#[derive(Debug, Serialize)]
pub struct Server {
    /// Default `127.0.0.1:8080`.
    pub listen: SocketAddr,
    /// HTTPS, where set.
    pub tls: Option<Tls>,
    /// Listed origins.
    pub cors: Cors,
    /// Time between heartbeats; default 15 s.
    #[serde(serialize_with = "value::serialize_duration")]
    pub heartbeat: Duration,
    /// The reconnection time told to clients; default 3 s, jittered for each connection.
    #[serde(serialize_with = "value::serialize_duration")]
    pub retry: Duration,
    /// How long a shutdown may take; default 10 s.
    #[serde(serialize_with = "value::serialize_duration")]
    pub drain: Duration,
    /// Whether the built-in page stands at `/`; default true.
    pub dashboard: bool,
    /// A folder of own pages, served under `/dashboards/`.
    pub dashboards: Option<PathBuf>,
    /// What "same origin" is behind a proxy, as `scheme://host[:port]`.
    pub public_url: Option<String>,
    /// `Host` names that are answered; `None`: all. Already holds loopback's names where the listener is on loopback
    /// with anonymous access.
    pub hosts: Option<Vec<String>>,
    /// Bounds of what a request may bring.
    pub limits: Limits,
}

/// `server.limits`
#[derive(Debug, Clone, Serialize)]
pub struct Limits {
    /// Patterns in one request; default 64.
    pub patterns: usize,
    /// Bytes of one pattern; default 256.
    #[serde(serialize_with = "value::serialize_size")]
    pub pattern_bytes: usize,
    /// Tokens of one pattern; default 16.
    pub pattern_tokens: usize,
    /// Bytes of a request's head; default 16 KiB, at least 8 KiB.
    #[serde(serialize_with = "value::serialize_size")]
    pub header_bytes: usize,
    /// Bytes of a token; default 8 KiB.
    #[serde(serialize_with = "value::serialize_size")]
    pub token_bytes: usize,
    /// For a TLS handshake; default 10 s.
    #[serde(serialize_with = "value::serialize_duration")]
    pub handshake_timeout: Duration,
    /// For a request's head; default 10 s.
    #[serde(serialize_with = "value::serialize_duration")]
    pub header_timeout: Duration,
}

/// `server.tls`: PEM files.
#[derive(Debug, Clone, Serialize)]
pub struct Tls {
    /// Certificate chain.
    pub certificate: PathBuf,
    /// Private key.
    pub private_key: PathBuf,
}

/// `server.cors`
#[derive(Debug, Clone, Default, Serialize)]
pub struct Cors {
    /// Serialised origins, lower case; `*` alone is all (never with credentials).
    pub origins: Vec<String>,
    /// Whether cookies may come along.
    pub credentials: bool,
}

/// `admin`
#[derive(Debug, Serialize)]
pub struct Admin {
    /// Default `127.0.0.1:8081`.
    pub listen: SocketAddr,
}

/// `auth`
#[derive(Debug)]
pub struct Auth {
    /// Tokens; without it only anonymous access.
    pub jwt: Option<Jwt>,
    /// Where a token may stand in a request.
    pub carriers: Carriers,
    /// Beside the token's own claims.
    pub grants: Grants,
    /// Without a token.
    pub anonymous: Anonymous,
}

/// `auth.jwt`
#[derive(Debug)]
pub struct Jwt {
    /// Required `iss`, where set.
    pub issuer: Option<String>,
    /// Required `aud`, where set.
    pub audience: Option<String>,
    /// Clock tolerance; default 30 s.
    pub leeway: Duration,
    /// At least one.
    pub keys: Vec<KeySource>,
    /// Where the token says what it may.
    pub claims: Claims,
}

/// Signature algorithms of RFC 7518 section 3.1 and RFC 8037.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize, Serialize)]
#[allow(clippy::upper_case_acronyms)]
pub enum Algorithm {
    HS256,
    HS384,
    HS512,
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

/// One of `auth.jwt.keys`, bound to its algorithms.
#[derive(Debug)]
pub struct KeySource {
    /// At least one, all of the key's family.
    pub algorithms: Vec<Algorithm>,
    /// `kid` this key answers to; `None`: any.
    pub id: Option<String>,
    /// Where it comes from.
    pub key: KeyMaterial,
}

/// Where a key comes from; files have been read already.
#[derive(Debug)]
pub enum KeyMaterial {
    /// HMAC, at least as long as the longest hash of its algorithms.
    Secret(Secret),
    /// A public key in PEM.
    Pem(String),
    /// A JWK set (RFC 7517), as read from a file.
    Jwks(String),
    /// A JWK set to fetch.
    JwksUrl(String),
}

/// `auth.jwt.claims`: paths whose steps are separated by dots.
#[derive(Debug, Clone, Serialize)]
pub struct Claims {
    /// Default `subjects`.
    #[serde(serialize_with = "value::serialize_path")]
    pub subscribe: Vec<String>,
    /// Default `publish`.
    #[serde(serialize_with = "value::serialize_path")]
    pub publish: Vec<String>,
}

/// `auth.carriers`
#[derive(Debug, Clone, Serialize)]
pub struct Carriers {
    /// `Authorization: Bearer`; default true.
    pub header: bool,
    /// A cookie's name; default `brokercast`.
    #[serde(serialize_with = "value::serialize_switch")]
    pub cookie: Option<String>,
    /// A query parameter's name; off by default.
    #[serde(serialize_with = "value::serialize_switch")]
    pub query: Option<String>,
}

/// `auth.grants`: templates such as `user.{sub}.>`; `{a.b}` is a claim's path.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Grants {
    /// Beside the token's claim.
    pub subscribe: Vec<String>,
    /// Beside the token's claim.
    pub publish: Vec<String>,
}

/// `auth.anonymous`
#[derive(Debug, Clone, Default, Serialize)]
pub struct Anonymous {
    /// Patterns anybody may subscribe to.
    pub subscribe: Vec<Pattern>,
    /// Patterns anybody may publish to.
    pub publish: Vec<Pattern>,
    /// Whether that holds on a listener that is not loopback's.
    pub beyond_loopback: bool,
}

/// `subscribers`
#[derive(Debug, Clone)]
pub struct Subscribers {
    /// Default 10,000.
    pub max: usize,
    /// Of one token's `sub`; default 20.
    pub max_per_identity: Option<usize>,
    /// Of one client address; off by default.
    pub max_per_address: Option<usize>,
    /// Networks whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<ipnet::IpNet>,
    /// How long a newcomer may wait for a slot; default 0: refused at once.
    pub wait: Duration,
    /// How many may wait; default 100.
    pub waiting: usize,
    /// A socket that takes nothing for so long, though something waits, is closed; default 30 s.
    pub max_stall: Duration,
}

/// `window`
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Window {
    /// Default 16 MiB.
    #[serde(serialize_with = "value::serialize_size")]
    pub bytes: usize,
    /// Default 10 min.
    #[serde(serialize_with = "value::serialize_duration")]
    pub age: Duration,
}

/// `history`
#[derive(Debug, Clone, Copy, Serialize)]
pub struct History {
    /// At a time; default 16.
    pub readers: usize,
    /// Bytes per second that all of them read together; default 64 MiB.
    #[serde(serialize_with = "value::serialize_size")]
    pub rate: usize,
}

/// `log`
#[derive(Debug, Clone, Serialize)]
pub struct Log {
    /// Default `auto`.
    pub format: LogFormat,
    /// A `tracing-subscriber` filter; default `info`.
    pub filter: String,
}

/// `log.format`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    #[default]
    Auto,
    /// For people.
    Text,
    /// A JSON object a line.
    Json,
}

/// One of `sources`.
#[derive(Debug)]
pub struct Source {
    /// Whether readiness waits for it; default true.
    pub required: bool,
    /// Bytes of one message's payload; default 1 MiB.
    pub max_payload: usize,
    /// The adapter's own part.
    pub adapter: crate::source::AdapterConfig,
}

/// One of `routes`.
#[derive(Debug, Clone)]
pub struct RouteRule {
    /// Only of this source.
    pub source: Option<SourceName>,
    /// Only these subjects.
    pub matches: Pattern,
    /// What becomes of them.
    pub action: RouteAction,
}

/// What a route does.
#[derive(Debug, Clone)]
pub enum RouteAction {
    /// Nothing goes on.
    Drop,
    /// It goes on.
    Pass {
        /// The new subject, with `{1}` and `{>}`; `None`: unchanged.
        subject: Option<String>,
        /// The SSE event name, with the same.
        event: Option<String>,
        /// How `data` is written.
        envelope: Envelope,
    },
}

/// A text that nobody may see: its `Debug` says nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    /// Wraps the bytes.
    #[must_use]
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into().into())
    }

    /// The bytes, for whoever must have them.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as text.
    ///
    /// # Errors
    /// When they are no UTF-8.
    pub fn expose_str(&self) -> Result<&str, std::str::Utf8Error> {
        std::str::from_utf8(&self.0)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("«secret»")
    }
}

/// Problems found while validating, each with the key path it is about and what was expected; never a value.
#[derive(Debug, Default)]
pub struct Problems(pub Vec<Problem>);

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `sources.orders.nats.servers[0]`
    pub path: String,
    /// `must be a URL such as nats://host:4222`
    pub expected: String,
}

impl Problems {
    /// Notes one.
    pub fn add(&mut self, path: impl Into<String>, expected: impl Into<String>) {
        self.0.push(Problem { path: path.into(), expected: expected.into() });
    }
}
