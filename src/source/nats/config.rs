//! `nats: { … }`: the settings of a NATS source.
//!
//! Opens no connection and reads no file but secrets', which may be renewed while it runs.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::settings::{File, Key, Secret, Section, Slot};
use crate::source::SourceError;
use crate::source::settings::patterns;
use crate::source::tls::Tls;
use crate::subject::{Pattern, Subject};

/// What the subjects of JetStream's API begin with, unless a domain or an account gives them another name.
pub(in crate::source) const API: &str = "$JS.API";

/// `nats`
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// At least one; tried in a random order.
    pub servers: Vec<Server>,
    /// At least one.
    pub subjects: Vec<Pattern>,
    /// What the server's subjects begin with and events' subjects do not: `$KV.` of a bucket, else nothing.
    pub hidden: &'static str,
    /// Shared with others who are in it.
    pub queue_group: Option<String>,
    /// How it says who it is.
    pub auth: Auth,
    /// Whether `tls` was written: then no connection is without it.
    pub tls_required: bool,
    /// Files of its own.
    pub tls: Tls,
    /// Whether TLS begins before the server has said anything.
    pub handshake_first: bool,
    /// What the server calls the connection, before the host's name.
    pub name: String,
    /// What the subjects of answers begin with, without a dot at the end.
    pub inbox_prefix: String,
    /// Read from a stream.
    pub jetstream: Option<JetStream>,
}

/// A server's address. Its `Debug` and `Display` hold no password.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Server {
    /// Name or address, without brackets.
    pub host: String,
    /// Default 4222.
    pub port: u16,
    /// Whether it was written as `tls://`.
    pub tls: bool,
    /// What stood in the address.
    pub auth: Auth,
    /// What its certificate has to be made for, where that is not `host`: the name in the settings of a server that has
    /// named this one.
    pub certified: Option<String>,
}

/// How a client says who it is.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) enum Auth {
    /// Not at all.
    #[default]
    None,
    /// User and password.
    User(String, Renewed),
    /// A token.
    Token(Renewed),
    /// An nkey's seed.
    Nkey(Renewed),
    /// A credentials file: JWT and seed; read at each connection, for it may be renewed.
    Credentials(PathBuf),
}

/// A secret; one from a file is read at each connection, for it may be renewed. Its `Debug` holds no secret.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Renewed {
    /// As the settings say.
    written: Secret,
    /// The key that names the file, and the file.
    file: Option<(String, PathBuf)>,
}

/// `nats.jetstream`
#[derive(Debug, Clone)]
pub(crate) struct JetStream {
    /// The stream's name.
    pub stream: String,
    /// How to make it where it is missing.
    pub create: Option<Limits>,
    /// What the subjects of JetStream's API begin with, without a dot at the end.
    pub api: String,
}

/// Limits of a stream that brokercast makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// 0: for ever.
    pub max_age: Duration,
    /// Bytes in all.
    pub max_bytes: u64,
    /// Servers that keep a copy.
    pub replicas: usize,
}

impl Config {
    /// Takes the keys of `nats`.
    pub(super) fn read(nats: &Section<'_>) -> Option<Self> {
        let expected = "must be an address such as nats://host:4222 or tls://host:4222";
        let server = |address: Secret| address.expose_str().ok().and_then(Server::parse).ok_or_else(|| expected.to_owned());
        let servers = nats.key("servers").list(|item| item.address().convert(server).required());
        let servers = servers.check(|servers| !servers.is_empty(), "must list at least one server such as nats://host:4222").required();
        let kv = nats.key("kv").text().check(|name| is_bucket(name), "must be a bucket's name: letters, digits, `-` and `_`");
        let is_kv = nats.has("kv");
        for key in ["subjects", "jetstream", "queue_group"].into_iter().filter(|key| is_kv && nats.has(key)) {
            nats.problem(key, "does not go with `kv`, which says what is read");
        }
        let bucket = kv.optional();
        let subjects = match &bucket {
            _ if !is_kv => patterns(nats.key("subjects")),
            Some(bucket) => format!("$KV.{bucket}.>").parse().ok().map(|pattern| vec![pattern]),
            None => None,
        };
        let word = |text: &String| !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control());
        let word = |name: &str| nats.key(name).text().check(word, "must be a word without white space");
        let queue_group = word("queue_group").optional();
        let auth = Auth::read(nats);
        let tls = nats.key("tls").optional_section();
        let jetstream = nats.key("jetstream").optional_section();
        if jetstream.is_some() && nats.has("queue_group") {
            nats.problem("queue_group", "does not go with `jetstream`: every replica reads the whole stream");
        }
        let jetstream = match jetstream {
            _ if is_kv => bucket.map(|bucket| Some(JetStream { stream: format!("KV_{bucket}"), create: None, api: API.to_owned() })),
            Some(jetstream) => JetStream::read(&jetstream).map(Some),
            None => Some(None),
        };
        let name = word("name").or("brokercast".to_owned());
        let inbox_prefix = prefix(nats.key("inbox_prefix")).or("_INBOX".to_owned());
        let handshake_first = tls.as_ref().is_some_and(|tls| tls.key("handshake_first").flag().or(false));
        let (tls_required, tls) = (tls.is_some(), tls.map_or_else(Tls::default, |tls| Tls::read(&tls)));
        let (servers, subjects, jetstream) = (servers?, subjects?, jetstream?);
        let hidden = if is_kv { "$KV." } else { "" };
        Some(Self { servers, subjects, hidden, queue_group, auth, tls_required, tls, handshake_first, name, inbox_prefix, jetstream })
    }

    /// See [`crate::source::Adapter::advice`].
    pub(in crate::source) fn advice(&self) -> Vec<(&'static str, String)> {
        let counts = match self.auth {
            Auth::None => return Vec::new(),
            Auth::User(..) => "user",
            Auth::Token(_) => "token",
            Auth::Nkey(_) => "nkey",
            Auth::Credentials(_) => "credentials_file",
        };
        let twice = self.servers.iter().any(|server| server.auth != Auth::None);
        let what = || format!("has a user or token in an address, which does not count beside `{counts}`");
        twice.then(|| ("servers", what())).into_iter().collect()
    }

    /// What the subjects of our answers begin with, up to the part that is different for each.
    pub(super) fn inbox(&self) -> String {
        format!("{}.brokercast.", self.inbox_prefix)
    }
}

fn is_bucket(name: &str) -> bool {
    !name.is_empty() && name.len() <= 200 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// Reads a key that holds the beginning of subjects.
fn prefix(slot: Slot<'_>) -> Key<'_, String> {
    let subject = |text: &String| text.parse::<Subject>().is_ok() && !text.contains(['*', '>']);
    slot.text().check(subject, "must be one or more tokens such as _INBOX or a.b, without a dot at the end")
}

impl Auth {
    fn read(nats: &Section<'_>) -> Self {
        let user = nats.key("user").text().optional();
        let [password, token, nkey] = ["password", "token", "nkey"].map(|name| nats.secret(name));
        let renewed = |name: &str, written: Secret| {
            let key = format!("{name}_file");
            let file = nats.has(&key).then(|| nats.key(&key).path().optional()).flatten();
            Renewed { written, file: file.map(|file| (key, file)) }
        };
        let seed = |seed: &Secret| seed.expose_str().is_ok_and(|seed| nkeys::KeyPair::from_seed(seed.trim()).is_ok());
        let nkey = nkey.check(seed, "must be the seed of a user's nkey: it begins with `SU`").optional();
        // The library's error may quote the file.
        let signs = |file: &File| file.contents.expose_str().is_ok_and(|text| async_nats::ConnectOptions::with_credentials(text).is_ok());
        let credentials = nats.key("credentials_file").file().check(signs, "must hold a user's JWT and seed, as `nsc` writes them");
        let credentials = credentials.optional().map(|file| file.path);
        match (nats.has("user"), nats.has("password") || nats.has("password_file")) {
            (true, false) => nats.problem("password", "must be there beside `user` (or `password_file`)"),
            (false, true) => nats.problem("user", "must be there beside `password`"),
            _ => {}
        }
        let user = user.zip(password.optional()).map(|(user, password)| Self::User(user, renewed("password", password)));
        let token = token.optional().map(|token| Self::Token(renewed("token", token)));
        let others = [token, nkey.map(|seed| Self::Nkey(renewed("nkey", seed))), credentials.map(Self::Credentials)];
        let mut ways: Vec<Self> = user.into_iter().chain(others.into_iter().flatten()).collect();
        if ways.len() > 1 {
            nats.problem_here("must have only one of `user`, `token`, `nkey` and `credentials_file`");
        }
        ways.pop().unwrap_or_default()
    }
}

impl Renewed {
    fn fixed(written: Secret) -> Self {
        Self { written, file: None }
    }

    /// The secret as it is now, as text.
    pub(super) async fn read(&self) -> Result<String, SourceError> {
        let secret = match &self.file {
            None => self.written.clone(),
            Some((key, path)) => {
                let failed = |why: &str| SourceError::missing(format!("could not read `{key}` from `{}`: {why}", path.display()));
                File::line_aside(path.clone()).await.map_err(|why| failed(&why))?
            }
        };
        secret.expose_str().map(str::to_owned).map_err(|_| SourceError::configuration("a secret of this source is not UTF-8"))
    }
}

impl JetStream {
    fn read(jetstream: &Section<'_>) -> Option<Self> {
        let forbidden = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '.' | '*' | '>' | '/' | '\\');
        let good = |name: &String| !name.is_empty() && name.len() <= 255 && !name.contains(forbidden);
        let expected = "must be a stream's name: no white space, `.`, `*`, `>`, `/` or `\\`";
        let stream = jetstream.key("stream").text().check(good, expected).required();
        let create = jetstream.key("create").flag_or_section().map(|create| Limits::read(&create));
        let token = |text: &String| !text.is_empty() && !text.contains(forbidden);
        let domain =
            jetstream.key("domain").text().check(token, "must be a word without white space, `.`, `*`, `>`, `/` or `\\`").optional();
        let api = prefix(jetstream.key("api_prefix")).optional();
        if jetstream.has("domain") && jetstream.has("api_prefix") {
            jetstream.problem("api_prefix", "does not go with `domain`, which is short for `$JS.DOMAIN.API`");
        }
        let api = api.or(domain.map(|domain| format!("$JS.{domain}.API"))).unwrap_or_else(|| API.to_owned());
        Some(Self { stream: stream?, create, api })
    }
}

impl Limits {
    fn read(create: &Section<'_>) -> Self {
        let age = |age: &Duration| age.is_zero() || *age >= Duration::from_millis(100);
        let day = Duration::from_secs(24 * 3600);
        Self {
            max_age: create.key("max_age").duration().check(age, "must be at least 100ms, or 0 for ever").or(day),
            max_bytes: create.key("max_bytes").size().at_least(1).or(1 << 30) as u64,
            replicas: create.key("replicas").number().within(1, 5).or(1),
        }
    }
}

impl Server {
    /// `[nats://|tls://][user:password@]host[:4222]`
    pub(super) fn parse(text: &str) -> Option<Self> {
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
            (token, None) => Auth::Token(Renewed::fixed(Secret::new(text(token)?))),
            (user, Some(password)) => Auth::User(text(user)?, Renewed::fixed(Secret::new(text(password)?))),
        };
        let bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
        (!host.is_empty() && bare).then(|| Self { host, port: url.port().unwrap_or(4222), tls, auth, certified: None })
    }

    /// Whether it is the same address.
    pub(super) fn is_at(&self, other: &Self) -> bool {
        self.host == other.host && self.port == other.port
    }

    /// What its certificate has to be made for.
    pub(super) fn name(&self) -> &str {
        self.certified.as_deref().unwrap_or(&self.host)
    }

    /// Another server of its cluster, at an address that this one names: `10.0.0.1:4222`.
    pub(super) fn beside(&self, address: &str) -> Option<Self> {
        let other = Self::parse(address)?;
        Some(Self { tls: self.tls, auth: self.auth.clone(), certified: Some(self.name().to_owned()), ..other })
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
