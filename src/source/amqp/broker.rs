//! Where an AMQP broker is and who we are to it: `url`, `url_file` or `urls`, `user`, `password`, `name`, `heartbeat`, `tls`.
//!
//! Files are read again whenever that is asked for, since secrets change. Opens no connection.

use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lapin::uri::{AMQPScheme, AMQPUri};
use parking_lot::Mutex;
use url::Url;

use super::config::MAX_NAME;
use crate::settings::{File, Secret, Section};
use crate::source::SourceError;
use crate::source::expiry::Expiry;
use crate::source::tls::Tls;
use crate::support::host;

/// Addresses that are tried last.
pub(super) type Unreached = Mutex<HashSet<SocketAddr>>;

/// Where the broker is and who we are to it. Its `Debug` holds no password.
#[derive(Clone)]
pub(crate) struct Broker {
    /// At least one, tried in turn.
    uris: Vec<AMQPUri>,
    /// The setting that they come from.
    key: &'static str,
    /// Instead of these, once it was read when the settings were.
    url_file: Option<PathBuf>,
    user: Option<String>,
    password: Option<String>,
    /// An address has a password too.
    twice: bool,
    /// Instead of the password, likewise.
    pub(in crate::source) password_file: Option<PathBuf>,
    /// In seconds.
    heartbeat: Option<u16>,
    tls: Tls,
    /// What the broker's lists call us: a name and this machine's.
    pub(in crate::source) name: String,
    /// Live readers that have connected.
    turn: Arc<AtomicUsize>,
    /// Where no connection could be opened when it was tried last, or none that what is read can be read over.
    pub(super) unreached: Arc<Unreached>,
    /// Of what the last connection was opened with.
    pub(in crate::source) expiry: Arc<Expiry>,
}

/// One address of the broker. Its `Display` holds no password.
#[derive(Clone)]
pub(in crate::source) struct Address {
    /// With user and password.
    pub(in crate::source) uri: AMQPUri,
    /// For `amqps`.
    pub(in crate::source) tls: Tls,
    /// The setting that it comes from.
    pub(in crate::source) key: &'static str,
    /// The settings that say who we are.
    pub(in crate::source) login: &'static str,
}

impl Broker {
    pub(super) fn read(amqp: &Section<'_>) -> Option<Self> {
        let has_password = Cell::new(false);
        let parse = |url: Secret| {
            let password = url.expose_str().ok().and_then(|text| Url::parse(text.trim()).ok()).is_some_and(|url| url.password().is_some());
            has_password.set(has_password.get() || password);
            parse_url(&url).map_err(str::to_owned)
        };
        let one = amqp.address("url").convert(parse).optional();
        let several = amqp.key("urls").list(|item| item.address().convert(parse).required());
        let several = several.check(|urls| !urls.is_empty(), "must list at least one address").optional();
        match (amqp.has("url") || amqp.has("url_file"), amqp.has("urls")) {
            (false, false) => amqp.problem("url", "must be there (or `url_file`, or `urls`): an address such as amqp://host:5672/%2f"),
            (true, true) => amqp.problem("urls", "goes without `url` and `url_file`"),
            _ => {}
        }
        let uris = several.or(one.map(|uri| vec![uri]));
        let user = amqp.key("user").text().optional();
        let text = |secret: Secret| secret.expose_str().map(str::to_owned).map_err(|_| "must be UTF-8 text".to_owned());
        let password = amqp.secret("password").convert(text).optional();
        if amqp.has("user") && !amqp.has("password") && !amqp.has("password_file") {
            amqp.problem("password", "must be there beside `user` (or `password_file`)");
        }
        let whole = |beat: &Duration| beat.subsec_nanos() == 0 && (1..=60).contains(&beat.as_secs());
        let heartbeat = amqp.key("heartbeat").duration().check(whole, "must be whole seconds, 1s to 60s").optional();
        if amqp.has("tls") && uris.iter().flatten().any(|uri| uri.scheme != AMQPScheme::AMQPS) {
            amqp.problem("tls", "needs an address that begins with amqps://");
        }
        let tls = amqp.key("tls").optional_section().map_or_else(Tls::default, |tls| Tls::read(&tls));
        let word = |name: &String| (1..=64).contains(&name.len()) && !name.contains(char::is_control);
        let name = amqp.key("name").text().check(word, "must be 1 to 64 bytes without control characters");
        let name = format!("{}@{}", name.or("brokercast".to_owned()), host::name());
        let file = |key: &str| if amqp.has(key) { amqp.key(key).path().optional() } else { None };
        let (url_file, password_file) = (file("url_file"), file("password_file"));
        let heartbeat = heartbeat.and_then(|beat| u16::try_from(beat.as_secs()).ok());
        let key = ["urls", "url_file", "url"].into_iter().find(|key| amqp.has(key)).unwrap_or("url");
        Some(Self {
            uris: uris?,
            key,
            url_file,
            user,
            twice: has_password.get() && password.is_some(),
            password,
            password_file,
            heartbeat,
            tls,
            name,
            turn: Arc::default(),
            unreached: Arc::default(),
            expiry: Arc::default(),
        })
    }

    /// See [`crate::source::Adapter::advice`].
    pub(in crate::source) fn advice(&self) -> Vec<(&'static str, String)> {
        let counts = if self.password_file.is_some() { "password_file" } else { "password" };
        let what = || format!("has a password, which does not count beside `{counts}`");
        self.twice.then(|| (self.key, what())).into_iter().collect()
    }

    /// The same broker for a reader that is concerned with other nodes: it has turns of its own, which begin at another address.
    pub(in crate::source) fn apart(&self, first: usize) -> Self {
        Self { turn: Arc::new(AtomicUsize::new(first)), unreached: Arc::default(), ..self.clone() }
    }

    /// How many addresses there are.
    pub(super) fn count(&self) -> usize {
        self.uris.len()
    }

    /// A live reader connects. Each time another address is the first one, for that connection and for all beside it.
    pub(in crate::source) fn next_turn(&self) {
        self.turn.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes whether a connection could be opened, and used.
    pub(super) fn tried(&self, at: SocketAddr, reached: bool) {
        let mut unreached = self.unreached.lock();
        if reached {
            unreached.remove(&at)
        } else {
            unreached.insert(at)
        };
    }

    /// Puts last what was not reached when it was tried last: all readers would wait for it.
    pub(super) fn sort<A>(&self, targets: &mut [(A, SocketAddr)]) {
        let mut unreached = self.unreached.lock();
        unreached.retain(|at| targets.iter().any(|(_, target)| target == at));
        targets.sort_by_key(|(_, at)| unreached.contains(at));
    }

    /// All addresses, as the files are now, in turn.
    ///
    /// # Errors
    /// When a file cannot be used now.
    pub(in crate::source) async fn addresses(&self) -> Result<Vec<Address>, SourceError> {
        let mut uris = match &self.url_file {
            Some(path) => {
                let text = secret("url_file", path).await?;
                let wrong = |expected| SourceError::configuration(format!("`url_file` {expected}"));
                vec![parse_url(&Secret::new(text)).map_err(wrong)?]
            }
            None => self.uris.clone(),
        };
        let password = match &self.password_file {
            Some(path) => Some(secret("password_file", path).await?),
            None => self.password.clone(),
        };
        for uri in &mut uris {
            let info = &mut uri.authority.userinfo;
            info.username = self.user.clone().unwrap_or_else(|| info.username.clone());
            info.password = password.clone().unwrap_or_else(|| info.password.clone());
            uri.query.heartbeat = self.heartbeat.or(uri.query.heartbeat).or(Some(5));
        }
        let first = self.turn.load(Ordering::Relaxed).saturating_sub(1) % uris.len();
        uris.rotate_left(first);
        let login = match (&self.user, &self.password_file) {
            (_, Some(_)) => "`user`, `password_file`",
            (Some(_), None) => "`user`, `password`",
            (None, None) => "its user and password",
        };
        Ok(uris.into_iter().map(|uri| Address { uri, tls: self.tls.clone(), key: self.key, login }).collect())
    }
}

/// What a file holds now, less one line break at its end.
pub(super) async fn secret(key: &str, path: &Path) -> Result<String, SourceError> {
    let failed = |why: &str| SourceError::configuration(format!("cannot read `{key}` from `{}`: {why}", path.display()));
    let secret = File::line_aside(path.to_owned()).await.map_err(|why| failed(&why))?;
    secret.expose_str().map(str::to_owned).map_err(|_| failed("it is not UTF-8"))
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

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(&self.uri, f)
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uris.iter().try_for_each(|uri| show(uri, f))
    }
}

fn show(uri: &AMQPUri, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let AMQPUri { scheme, authority, vhost, .. } = uri;
    let (open, close) = if authority.host.contains(':') { ("[", "]") } else { ("", "") };
    write!(f, "{scheme}://{open}{}{close}:{} (vhost `{vhost}`)", authority.host, authority.port)
}
