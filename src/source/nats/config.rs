//! `nats: { … }`: the settings of a NATS source, as written and checked.
//!
//! Opens no connection and reads no file but secrets'.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::config::value::{DurationText, SizeText, resolve_secret};
use crate::config::{Problems, Secret};
use crate::subject::Pattern;

/// `nats` as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    servers: Vec<String>,
    subjects: Vec<String>,
    #[serde(default)]
    queue_group: Option<String>,
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    password: Option<Secret>,
    #[serde(default)]
    password_file: Option<PathBuf>,
    #[serde(default)]
    token: Option<Secret>,
    #[serde(default)]
    token_file: Option<PathBuf>,
    #[serde(default)]
    nkey: Option<Secret>,
    #[serde(default)]
    nkey_file: Option<PathBuf>,
    #[serde(default)]
    credentials_file: Option<PathBuf>,
    #[serde(default)]
    tls: Option<RawTls>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    jetstream: Option<RawJetStream>,
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

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawJetStream {
    stream: String,
    #[serde(default)]
    create: Option<RawCreate>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "must be true, false or { max_age, max_bytes, replicas }")]
enum RawCreate {
    Flag(bool),
    Limits(RawLimits),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    #[serde(default)]
    max_age: Option<DurationText>,
    #[serde(default)]
    max_bytes: Option<SizeText>,
    #[serde(default)]
    replicas: Option<u64>,
}

/// `nats`, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// At least one; tried in a random order.
    pub servers: Vec<Server>,
    /// At least one.
    pub subjects: Vec<Pattern>,
    /// Shared with others who are in it.
    pub queue_group: Option<String>,
    /// How it says who it is.
    pub auth: Auth,
    /// Of its own.
    pub tls: Tls,
    /// What the server calls the connection; default `brokercast`.
    pub name: String,
    /// Read from a stream.
    pub jetstream: Option<JetStream>,
}

/// A server's address. Its `Debug` and `Display` hold no password.
#[derive(Clone, PartialEq, Eq)]
pub struct Server {
    /// Name or address, without brackets.
    pub host: String,
    /// Default 4222.
    pub port: u16,
    /// Whether it was written as `tls://`.
    pub tls: bool,
    /// What stood in the address.
    pub auth: Auth,
}

/// How a client says who it is.
#[derive(Clone, PartialEq, Eq, Default)]
pub enum Auth {
    /// Not at all.
    #[default]
    None,
    /// User and password.
    User(String, Secret),
    /// A token.
    Token(Secret),
    /// An nkey's seed.
    Nkey(Secret),
    /// A credentials file: JWT and seed; read at each connection, for it may be renewed.
    Credentials(PathBuf),
}

/// `nats.tls`: PEM files, read at each connection.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// Whether `tls` is there at all: then it is never without.
    pub required: bool,
    /// Instead of the system's authorities.
    pub ca: Option<PathBuf>,
    /// The client's certificate and key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// `nats.jetstream`
#[derive(Debug, Clone)]
pub struct JetStream {
    /// The stream's name.
    pub stream: String,
    /// How to make it where it is missing.
    pub create: Option<Limits>,
}

/// Limits of a stream that brokercast makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Default 24 h.
    pub max_age: Duration,
    /// Default 1 GiB.
    pub max_bytes: u64,
    /// Default 1.
    pub replicas: usize,
}

impl Config {
    /// Whether each member of a group gets its own part.
    #[must_use]
    pub fn splits(&self) -> bool {
        self.queue_group.is_some()
    }
}

impl Raw {
    /// Checks it; `path` is its key path.
    pub fn validate(self, path: &str, problems: &mut Problems) -> Option<Config> {
        let before = problems.0.len();
        let servers = servers(&self.servers, &format!("{path}.servers"), problems);
        let subjects = crate::source::validate_patterns(&self.subjects, &format!("{path}.subjects"), problems);
        for (key, text) in [("queue_group", &self.queue_group), ("name", &self.name)] {
            if text.as_ref().is_some_and(|text| text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control())) {
                problems.add(format!("{path}.{key}"), "must be a word without white space");
            }
        }
        if self.jetstream.is_some() && self.queue_group.is_some() {
            problems.add(format!("{path}.queue_group"), "does not go with `jetstream`: every replica reads the whole stream");
        }
        let password = resolve_secret(self.password, self.password_file, path, "password", problems);
        let token = resolve_secret(self.token, self.token_file, path, "token", problems);
        let nkey = resolve_secret(self.nkey, self.nkey_file, path, "nkey", problems);
        let mut ways = Vec::new();
        match (self.user, password) {
            (Some(user), Some(password)) => ways.push(Auth::User(user, password)),
            (Some(_), None) => problems.add(format!("{path}.password"), "must be there beside `user` (or `password_file`)"),
            (None, Some(_)) => problems.add(format!("{path}.user"), "must be there beside `password`"),
            (None, None) => {}
        }
        ways.extend(token.map(Auth::Token));
        if let Some(seed) = nkey {
            if seed.expose_str().is_ok_and(|seed| nkeys::KeyPair::from_seed(seed.trim()).is_ok()) {
                ways.push(Auth::Nkey(seed));
            } else {
                problems.add(format!("{path}.nkey"), "must be the seed of a user's nkey: it begins with `SU`");
            }
        }
        ways.extend(self.credentials_file.map(Auth::Credentials));
        if ways.len() > 1 {
            problems.add(path, "must have only one of `user`, `token`, `nkey` and `credentials_file`");
        }
        let tls = self.tls.map_or_else(Tls::default, |tls| tls.validate(&format!("{path}.tls"), problems));
        let jetstream = self.jetstream.map(|jetstream| jetstream.validate(&format!("{path}.jetstream"), problems));
        if problems.0.len() > before {
            return None;
        }
        Some(Config {
            servers: servers?,
            subjects: subjects?,
            queue_group: self.queue_group,
            auth: ways.pop().unwrap_or_default(),
            tls,
            name: self.name.unwrap_or_else(|| "brokercast".to_owned()),
            jetstream,
        })
    }
}

fn servers(texts: &[String], path: &str, problems: &mut Problems) -> Option<Vec<Server>> {
    if texts.is_empty() {
        problems.add(path, "must list at least one server such as nats://host:4222");
    }
    let mut servers = Vec::new();
    for (n, text) in texts.iter().enumerate() {
        match Server::parse(text) {
            Some(server) => servers.push(server),
            None => problems.add(format!("{path}[{n}]"), "must be an address such as nats://host:4222 or tls://host:4222"),
        }
    }
    (servers.len() == texts.len() && !servers.is_empty()).then_some(servers)
}

impl Server {
    /// `[nats://|tls://][user:password@]host[:4222]`
    fn parse(text: &str) -> Option<Self> {
        let whole = if text.contains("://") { text.to_owned() } else { format!("nats://{text}") };
        let url: url::Url = whole.parse().ok()?;
        let tls = match url.scheme() {
            "nats" => false,
            "tls" => true,
            _ => return None,
        };
        let host = match url.host()? {
            // Of schemes it does not know the library leaves numbers as they are.
            url::Host::Domain(name) => name.to_owned(),
            url::Host::Ipv4(address) => address.to_string(),
            url::Host::Ipv6(address) => address.to_string(),
        };
        let text = |text: &str| Some(percent_encoding::percent_decode_str(text).decode_utf8().ok()?.into_owned());
        let auth = match (url.username(), url.password()) {
            ("", None) => Auth::None,
            (token, None) => Auth::Token(Secret::new(text(token)?)),
            (user, Some(password)) => Auth::User(text(user)?, Secret::new(text(password)?)),
        };
        let bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
        (!host.is_empty() && bare).then(|| Self { host, port: url.port().unwrap_or(4222), tls, auth })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "tls" } else { "nats" };
        if self.host.contains(':') {
            return write!(f, "{scheme}://[{}]:{}", self.host, self.port);
        }
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::User(..) => "user and password",
            Self::Token(_) => "token",
            Self::Nkey(_) => "nkey",
            Self::Credentials(_) => "credentials file",
        })
    }
}

impl RawTls {
    fn validate(self, path: &str, problems: &mut Problems) -> Tls {
        let identity = match (self.certificate, self.private_key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => {
                problems.add(format!("{path}.private_key"), "must be there beside `certificate`");
                None
            }
            (None, Some(_)) => {
                problems.add(format!("{path}.certificate"), "must be there beside `private_key`");
                None
            }
        };
        Tls { required: true, ca: self.ca, identity }
    }
}

impl RawJetStream {
    fn validate(self, path: &str, problems: &mut Problems) -> JetStream {
        let forbidden = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '.' | '*' | '>' | '/' | '\\');
        if self.stream.is_empty() || self.stream.len() > 255 || self.stream.contains(forbidden) {
            problems.add(format!("{path}.stream"), "must be a stream's name: no white space, `.`, `*`, `>`, `/` or `\\`");
        }
        let create = match self.create {
            None | Some(RawCreate::Flag(false)) => None,
            Some(RawCreate::Flag(true)) => Some(RawLimits { max_age: None, max_bytes: None, replicas: None }),
            Some(RawCreate::Limits(limits)) => Some(limits),
        };
        JetStream { stream: self.stream, create: create.map(|limits| limits.validate(&format!("{path}.create"), problems)) }
    }
}

impl RawLimits {
    fn validate(self, path: &str, problems: &mut Problems) -> Limits {
        let replicas = self.replicas.unwrap_or(1);
        if !(1..=5).contains(&replicas) {
            problems.add(format!("{path}.replicas"), "must be 1 to 5");
        }
        let max_age = self.max_age.map_or(Duration::from_secs(24 * 3600), |age| age.0);
        if !max_age.is_zero() && max_age < Duration::from_millis(100) {
            problems.add(format!("{path}.max_age"), "must be at least 100ms, or 0 for ever");
        }
        let max_bytes = self.max_bytes.map_or(1 << 30, |bytes| bytes.0);
        if max_bytes == 0 {
            problems.add(format!("{path}.max_bytes"), "must be at least 1");
        }
        Limits { max_age, max_bytes, replicas: usize::try_from(replicas).unwrap_or(1) }
    }
}
