//! The configuration as it is written: every key optional, nothing checked but its type.
//!
//! What a key means, its default and its bounds stand in `validate.rs`; the validated shape in `config.rs`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::value::{DurationText, SizeText, Switch};
use super::{Algorithm, LogFormat, Secret};
use crate::event::Envelope;
use crate::source;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Raw {
    pub(super) server: Server,
    pub(super) admin: Admin,
    pub(super) auth: Auth,
    pub(super) subscribers: Subscribers,
    pub(super) window: Window,
    pub(super) history: History,
    pub(super) log: Log,
    pub(super) sources: BTreeMap<String, Source>,
    pub(super) routes: Vec<Route>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Server {
    pub(super) listen: Option<String>,
    pub(super) tls: Option<Tls>,
    pub(super) cors: Cors,
    pub(super) heartbeat: Option<DurationText>,
    pub(super) retry: Option<DurationText>,
    pub(super) drain: Option<DurationText>,
    pub(super) dashboard: Option<bool>,
    pub(super) dashboards: Option<PathBuf>,
    pub(super) public_url: Option<String>,
    pub(super) hosts: Option<Vec<String>>,
    pub(super) limits: Limits,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Tls {
    pub(super) certificate: Option<PathBuf>,
    pub(super) private_key: Option<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Cors {
    pub(super) origins: Vec<String>,
    pub(super) credentials: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Limits {
    pub(super) patterns: Option<usize>,
    pub(super) pattern_bytes: Option<SizeText>,
    pub(super) pattern_tokens: Option<usize>,
    pub(super) header_bytes: Option<SizeText>,
    pub(super) token_bytes: Option<SizeText>,
    pub(super) handshake_timeout: Option<DurationText>,
    pub(super) header_timeout: Option<DurationText>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Admin {
    pub(super) listen: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Auth {
    pub(super) jwt: Option<Jwt>,
    pub(super) carriers: Carriers,
    pub(super) grants: Grants,
    pub(super) anonymous: Anonymous,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Jwt {
    pub(super) issuer: Option<String>,
    pub(super) audience: Option<String>,
    pub(super) leeway: Option<DurationText>,
    pub(super) keys: Vec<Key>,
    pub(super) claims: Claims,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Key {
    pub(super) id: Option<String>,
    pub(super) algorithms: Vec<Algorithm>,
    pub(super) secret: Option<Secret>,
    pub(super) secret_file: Option<PathBuf>,
    pub(super) public_key: Option<String>,
    pub(super) public_key_file: Option<PathBuf>,
    pub(super) jwks_file: Option<PathBuf>,
    pub(super) jwks_url: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Claims {
    pub(super) subscribe: Option<String>,
    pub(super) publish: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Carriers {
    pub(super) header: Option<bool>,
    pub(super) cookie: Option<Switch<String>>,
    pub(super) query: Option<Switch<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Grants {
    pub(super) subscribe: Vec<String>,
    pub(super) publish: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Anonymous {
    pub(super) subscribe: Vec<String>,
    pub(super) publish: Vec<String>,
    pub(super) beyond_loopback: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Subscribers {
    pub(super) max: Option<usize>,
    pub(super) max_per_identity: Option<Switch<usize>>,
    pub(super) max_per_address: Option<Switch<usize>>,
    pub(super) trusted_proxies: Vec<String>,
    pub(super) when_full: WhenFull,
    pub(super) max_stall: Option<DurationText>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WhenFull {
    pub(super) wait: Option<DurationText>,
    pub(super) waiting: Option<usize>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Window {
    pub(super) bytes: Option<SizeText>,
    pub(super) age: Option<DurationText>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct History {
    pub(super) readers: Option<usize>,
    pub(super) rate: Option<SizeText>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Log {
    pub(super) format: Option<LogFormat>,
    pub(super) filter: Option<String>,
}

/// One of `sources`: exactly one adapter's tag, and what all sources share beside it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Source {
    pub(super) required: Option<bool>,
    pub(super) max_payload: Option<SizeText>,
    pub(super) ticker: Option<source::ticker::Raw>,
    pub(super) http: Option<source::http::Raw>,
    pub(super) nats: Option<source::nats::Raw>,
    pub(super) amqp: Option<source::amqp::Raw>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Route {
    #[serde(rename = "match")]
    pub(super) matches: Option<RouteMatch>,
    pub(super) drop: Option<bool>,
    pub(super) subject: Option<String>,
    pub(super) event: Option<String>,
    pub(super) envelope: Option<Envelope>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RouteMatch {
    pub(super) source: Option<String>,
    pub(super) subject: Option<String>,
}
