//! `amqp: { … }`: the settings of an AMQP 0-9-1 source, as written and checked.
//!
//! Opens no connection and reads no file but secrets'.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use lapin::uri::{AMQPScheme, AMQPUri};
use serde::Deserialize;
use url::Url;

use crate::config::value::{DurationText, SizeText, resolve_secret};
use crate::config::{Problems, Secret};
use crate::event::SourceName;

/// How many messages the broker may have on the way to us, unless `prefetch` says otherwise.
const PREFETCH: u16 = 1000;
/// The longest name of a queue, an exchange or a routing key: AMQP's short string.
pub(in crate::source) const MAX_NAME: usize = 255;

/// `amqp` as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    #[serde(default)]
    url: Option<Secret>,
    #[serde(default)]
    url_file: Option<PathBuf>,
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    password: Option<Secret>,
    #[serde(default)]
    password_file: Option<PathBuf>,
    #[serde(default)]
    exchange: Option<String>,
    #[serde(default)]
    exchange_type: Option<ExchangeType>,
    #[serde(default)]
    binding_keys: Option<Vec<String>>,
    #[serde(default)]
    queue: Option<String>,
    #[serde(default)]
    declare: Option<bool>,
    #[serde(default)]
    queue_type: Option<QueueType>,
    #[serde(default)]
    prefetch: Option<u64>,
    #[serde(default)]
    max_age: Option<DurationText>,
    #[serde(default)]
    max_bytes: Option<SizeText>,
    #[serde(default)]
    tls: Option<RawTls>,
    #[serde(default)]
    heartbeat: Option<DurationText>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTls {
    #[serde(default)]
    ca: Option<PathBuf>,
    #[serde(default)]
    certificate: Option<PathBuf>,
    #[serde(default)]
    private_key: Option<PathBuf>,
}

/// `amqp.exchange_type`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExchangeType {
    /// By words of the routing key.
    #[default]
    Topic,
    /// By the whole routing key.
    Direct,
    /// Everything.
    Fanout,
    /// By headers; brokercast asks for none, so it gets everything.
    Headers,
}

/// `amqp.queue_type`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueType {
    /// On one node.
    Classic,
    /// Replicated.
    Quorum,
    /// A log: what was read stays.
    Stream,
}

/// `amqp`, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the broker is.
    pub broker: Broker,
    /// What is read.
    pub origin: Origin,
    /// Whether what is read is a stream.
    pub stream: bool,
    /// Messages that may be on the way to us, unacknowledged.
    pub prefetch: u16,
}

/// Where the broker is and who we are to it. Its `Debug` and `Display` hold no password.
#[derive(Clone)]
pub struct Broker {
    /// With user and password.
    pub(in crate::source) uri: AMQPUri,
    /// For `amqps`.
    pub(in crate::source) tls: Tls,
}

/// `amqp.tls`: PEM files, read at each connection.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// Instead of the system's authorities.
    pub ca: Option<PathBuf>,
    /// The client's certificate and key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// What is read.
#[derive(Debug, Clone)]
pub enum Origin {
    /// What an exchange gives an exclusive queue of this process.
    Exclusive(Binding),
    /// A queue with a name (`None`: `brokercast.` and the source's).
    Named {
        /// Its name.
        queue: Option<String>,
        /// How to make it; `None`: it is somebody else's and waited for.
        declare: Option<Declare>,
    },
}

/// An exchange and what of it is wanted.
#[derive(Debug, Clone)]
pub struct Binding {
    /// Its name.
    pub exchange: String,
    /// Its type.
    pub kind: ExchangeType,
    /// At least one.
    pub keys: Vec<String>,
}

/// How to make a named queue.
#[derive(Debug, Clone)]
pub struct Declare {
    /// Of which type.
    pub queue_type: QueueType,
    /// Bound to what, if to anything.
    pub binding: Option<Binding>,
    /// How long a stream keeps messages; default 24 h.
    pub max_age: Duration,
    /// How many bytes a stream keeps; default 1 GiB.
    pub max_bytes: u64,
}

impl Config {
    /// Whether each replica gets its own part: several readers of one queue share it, except of a stream.
    #[must_use]
    pub fn splits(&self) -> bool {
        !self.stream && matches!(self.origin, Origin::Named { .. })
    }

    /// The name of the queue, where it has one of its own.
    pub(in crate::source) fn queue(&self, source: &SourceName) -> Option<String> {
        match &self.origin {
            Origin::Exclusive(_) => None,
            Origin::Named { queue, .. } => Some(queue.clone().unwrap_or_else(|| format!("brokercast.{source}"))),
        }
    }

    /// The exchange that feeds the queue and the keys it is bound with, as far as that is known here.
    pub(in crate::source) fn binding(&self) -> Option<&Binding> {
        match &self.origin {
            Origin::Exclusive(binding) => Some(binding),
            Origin::Named { declare, .. } => declare.as_ref().and_then(|declare| declare.binding.as_ref()),
        }
    }
}

impl Raw {
    /// Checks it; `path` is its key path.
    pub fn validate(self, path: &str, problems: &mut Problems) -> Option<Config> {
        let before = problems.0.len();
        let broker = self.broker(path, problems);
        let origin = self.origin(path, problems);
        let prefetch = match self.prefetch.map(u16::try_from) {
            None => PREFETCH,
            Some(Ok(n)) if n > 0 => n,
            Some(_) => {
                problems.add(format!("{path}.prefetch"), "must be 1 to 65535");
                PREFETCH
            }
        };
        if problems.0.len() > before {
            return None;
        }
        Some(Config { broker: broker?, origin: origin?, stream: self.queue_type == Some(QueueType::Stream), prefetch })
    }

    #[expect(clippy::too_many_lines, reason = "to be taken apart")]
    fn origin(&self, path: &str, problems: &mut Problems) -> Option<Origin> {
        let before = problems.0.len();
        let named = self.queue.is_some();
        let declared = self.declare == Some(true);
        let stream = self.queue_type == Some(QueueType::Stream);
        for (key, name) in [("exchange", &self.exchange), ("queue", &self.queue)] {
            if name.as_ref().is_some_and(|name| name.is_empty() || name.len() > MAX_NAME || name.contains(char::is_control)) {
                problems.add(format!("{path}.{key}"), "must be a name of 1 to 255 bytes without control characters");
            }
        }
        match (&self.exchange, named) {
            (None, false) => problems.add(path, "must have an `exchange` or a `queue`"),
            (Some(_), true) if !declared => problems.add(
                format!("{path}.queue"),
                "is used as it stands, so it goes without `exchange`; `declare: true` makes the queue and binds it",
            ),
            _ => {}
        }
        if self.declare.is_some() && !named {
            problems.add(format!("{path}.declare"), "belongs to `queue`; what an `exchange` needs is declared anyway");
        }
        if self.queue_type.is_some_and(|kind| kind != QueueType::Stream) && !named {
            problems.add(format!("{path}.queue_type"), "must be `stream`, or be left out: an exchange's queue is this process's own");
        }
        if self.exchange.is_none() {
            if self.exchange_type.is_some() {
                problems.add(format!("{path}.exchange_type"), "belongs to `exchange`");
            }
            if self.binding_keys.is_some() {
                problems.add(format!("{path}.binding_keys"), "belongs to `exchange`");
            }
        }
        for (key, set) in [("max_age", self.max_age.is_some()), ("max_bytes", self.max_bytes.is_some())] {
            if set && !(stream && (declared || !named)) {
                problems.add(format!("{path}.{key}"), "belongs to a stream that brokercast declares (`queue_type: stream`)");
            }
        }
        let max_age = self.max_age.map_or(Duration::from_secs(24 * 3600), |age| age.0);
        if max_age < Duration::from_secs(1) || max_age.subsec_nanos() != 0 {
            problems.add(format!("{path}.max_age"), "must be whole seconds, at least 1s");
        }
        let max_bytes = self.max_bytes.map_or(1 << 30, |bytes| bytes.0);
        if max_bytes == 0 {
            problems.add(format!("{path}.max_bytes"), "must be at least 1");
        }
        let binding = self.exchange.as_ref().map(|exchange| Binding {
            exchange: exchange.clone(),
            kind: self.exchange_type.unwrap_or_default(),
            keys: self.keys(path, problems),
        });
        if problems.0.len() > before {
            return None;
        }
        if let (Some(binding), false, false) = (&binding, named, stream) {
            return Some(Origin::Exclusive(binding.clone()));
        }
        let declare = (declared || !named).then(|| Declare {
            queue_type: self.queue_type.unwrap_or(QueueType::Classic),
            binding,
            max_age,
            max_bytes,
        });
        Some(Origin::Named { queue: self.queue.clone(), declare })
    }

    fn keys(&self, path: &str, problems: &mut Problems) -> Vec<String> {
        let Some(keys) = &self.binding_keys else { return vec!["#".to_owned()] };
        if keys.is_empty() {
            problems.add(format!("{path}.binding_keys"), "must list at least one key such as `orders.#`");
        }
        for (n, key) in keys.iter().enumerate() {
            if key.len() > MAX_NAME {
                problems.add(format!("{path}.binding_keys[{n}]"), "must be at most 255 bytes");
            }
        }
        keys.clone()
    }

    fn broker(&self, path: &str, problems: &mut Problems) -> Option<Broker> {
        let before = problems.0.len();
        let password = resolve_secret(self.password.clone(), self.password_file.clone(), path, "password", problems);
        let missing = self.url.is_none() && self.url_file.is_none();
        let url = resolve_secret(self.url.clone(), self.url_file.clone(), path, "url", problems);
        if missing {
            problems.add(format!("{path}.url"), "must be there (or `url_file`): an address such as amqp://host:5672/%2f");
        }
        let key = format!("{path}.{}", if self.url_file.is_some() { "url_file" } else { "url" });
        let mut uri = url.and_then(|url| match parse_url(&url) {
            Ok(uri) => Some(uri),
            Err(expected) => {
                problems.add(key, expected);
                None
            }
        });
        if let (Some(uri), Some(tls)) = (&uri, &self.tls) {
            if uri.scheme != AMQPScheme::AMQPS {
                problems.add(format!("{path}.tls"), "needs an address that begins with amqps://");
            }
            for (have, need, other) in [
                (&tls.certificate, &tls.private_key, ("private_key", "certificate")),
                (&tls.private_key, &tls.certificate, ("certificate", "private_key")),
            ] {
                if have.is_some() && need.is_none() {
                    problems.add(format!("{path}.tls.{}", other.0), format!("must be there beside `{}`", other.1));
                }
            }
        }
        if let Some(uri) = &mut uri {
            match (&self.user, password.as_ref().map(Secret::expose_str)) {
                (None, None) => {}
                (Some(user), Some(Ok(password))) => {
                    uri.authority.userinfo.username.clone_from(user);
                    password.clone_into(&mut uri.authority.userinfo.password);
                }
                (None, Some(Ok(password))) => password.clone_into(&mut uri.authority.userinfo.password),
                (_, Some(Err(_))) => problems.add(format!("{path}.password"), "must be UTF-8 text"),
                (Some(_), None) => problems.add(format!("{path}.password"), "must be there beside `user` (or `password_file`)"),
            }
            match self.heartbeat {
                None => {
                    uri.query.heartbeat.get_or_insert(5);
                }
                Some(DurationText(beat)) if beat.subsec_nanos() == 0 && (1..=60).contains(&beat.as_secs()) => {
                    uri.query.heartbeat = u16::try_from(beat.as_secs()).ok();
                }
                Some(_) => problems.add(format!("{path}.heartbeat"), "must be whole seconds, 1s to 60s"),
            }
        }
        if problems.0.len() > before {
            return None;
        }
        let tls = self.tls.clone().map_or_else(Tls::default, |tls| Tls { ca: tls.ca, identity: tls.certificate.zip(tls.private_key) });
        Some(Broker { uri: uri?, tls })
    }
}

/// Reads an address by the AMQP URI specification, or says what is expected; never what was read.
fn parse_url(url: &Secret) -> Result<AMQPUri, &'static str> {
    const EXPECTED: &str =
        "must be an address such as amqp://host:5672/%2f or amqps://user:password@host/vhost, special characters percent-encoded";
    let text = url.expose_str().map_err(|_| EXPECTED)?.trim();
    let parsed = Url::parse(text).map_err(|_| EXPECTED)?;
    let known = |key: &str| matches!(key, "heartbeat" | "connection_timeout" | "auth_mechanism" | "channel_max" | "frame_max");
    if parsed.query_pairs().any(|(key, _)| !known(&key)) || parsed.fragment().is_some() {
        return Err("must have no parameter but `heartbeat` and `auth_mechanism`");
    }
    let mut uri: AMQPUri = text.parse().map_err(|_| EXPECTED)?;
    // The library's own reading takes `localhost` for an address in brackets, and an empty path for a nameless vhost.
    uri.authority.host = match parsed.host() {
        Some(url::Host::Domain(name)) if !name.is_empty() => {
            percent_encoding::percent_decode_str(name).decode_utf8().map_err(|_| EXPECTED)?.into_owned()
        }
        Some(url::Host::Ipv4(address)) => address.to_string(),
        Some(url::Host::Ipv6(address)) => address.to_string(),
        _ => return Err(EXPECTED),
    };
    if uri.vhost.is_empty() {
        uri.vhost = "/".to_owned();
    }
    if uri.vhost.len() > MAX_NAME || (parsed.path().len() > 1 && parsed.path()[1..].contains('/')) {
        return Err("must name one vhost after the host, a slash in it written as %2f");
    }
    if uri.query.heartbeat.is_some_and(|beat| !(1..=60).contains(&beat)) {
        return Err("must have a `heartbeat` of 1 to 60 seconds");
    }
    Ok(uri)
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AMQPUri { scheme, authority, vhost, .. } = &self.uri;
        let (open, close) = if authority.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}://{open}{}{close}:{} (vhost `{vhost}`)", authority.host, authority.port)
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} {:?}", self.tls)
    }
}
