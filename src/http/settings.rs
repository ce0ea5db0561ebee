//! `server` and `admin`: listeners, certificates, origins, and bounds of what a request may bring.
//!
//! Certificates are read into what handshakes use. Opens no listener.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::admin::Access;
use super::connection::Bounds;
use super::forwarded::{Headers, Proxies};
use super::origin::{Hosts, Listed, Origins, host_name, parse_public};
use super::tls::Tls;
use crate::settings::{Secret, Section, Slot};
use crate::support::address::Address;
use crate::support::network::{Entry, Networks};

/// Request headers that pages of listed origins may send: what clients of events need (`Cache-Control` and `X-Requested-With` are what
/// EventSource polyfills send), and what tracing libraries add to every request.
const CORS_HEADERS: [&str; 9] = [
    "authorization",
    "last-event-id",
    "content-type",
    "cache-control",
    "x-requested-with",
    "baggage",
    "traceparent",
    "tracestate",
    "sentry-trace",
];

/// What the listeners need.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Where the public listener is.
    pub(crate) listen: Address,
    /// The mode of the listeners' files, where they are Unix sockets.
    pub(crate) socket_mode: u32,
    /// The admin listener.
    pub(crate) admin: Admin,
    /// HTTPS on the public listener.
    pub(crate) tls: Option<Arc<Tls>>,
    /// Whose pages may ask, and under which names.
    pub(crate) origins: Origins,
    /// Whether the built-in page is at `/`.
    pub(crate) dashboard: bool,
    /// A folder of own pages, served under `/dashboards/`.
    pub(crate) dashboards: Option<PathBuf>,
    /// Bounds of one request's parameters.
    pub(super) limits: Limits,
    /// Bounds of a connection.
    pub(crate) bounds: Bounds,
    /// Which proxies are believed, and what of them.
    pub(crate) proxies: Proxies,
    /// Whose connections begin with a header of the PROXY protocol.
    pub(crate) announcing: Networks,
    /// The path under which a proxy offers all of this: `/live`, or nothing.
    pub(super) base: String,
}

/// The admin listener.
#[derive(Debug)]
pub(crate) struct Admin {
    /// Where it is.
    pub(crate) listen: Address,
    /// HTTPS there.
    pub(crate) tls: Option<Arc<Tls>>,
    /// What requests bring as a bearer token.
    pub(crate) token: Option<Secret>,
}

impl Admin {
    fn read(admin: &Section<'_>) -> Option<Self> {
        let listen = listen(admin.key("listen"), 8081);
        let tls = admin.key("tls").optional_section().map(|tls| Tls::read_admin(&tls).map(Arc::new));
        let sendable = |token: &Secret| !token.expose().is_empty() && token.expose().iter().all(u8::is_ascii_graphic);
        let token = admin.secret("token").check(sendable, "must be printable ASCII without white space, at least one character").optional();
        // One that cannot be used must not leave the listener open.
        let tls = match tls {
            Some(tls) => Some(tls?),
            None => None,
        };
        Some(Self { listen: listen?, tls, token })
    }

    /// Who may ask what of it.
    pub(super) fn access(&self) -> Access {
        Access {
            token: self.token.clone(),
            certificates: self.tls.as_ref().is_some_and(|tls| tls.verifies_clients()),
            loopback: !self.listen.is_remote(),
        }
    }
}

/// `server.limits`, as far as it is about the parameters of a request.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Patterns in one request.
    pub(crate) patterns: usize,
    /// Bytes of one pattern.
    pub(crate) pattern_bytes: usize,
    /// Tokens of one pattern.
    pub(crate) pattern_tokens: usize,
}

impl Settings {
    /// Takes the keys of `server` and `admin`, and those of `subscribers` that concern connections. `anonymous`: whether
    /// there is access without a token. `served`: where the public listener is, in a process that runs. `heartbeat`: that of streams.
    pub(crate) fn read(
        server: &Section<'_>,
        admin: &Section<'_>,
        subscribers: &Section<'_>,
        anonymous: bool,
        served: Option<&Address>,
        heartbeat: Duration,
    ) -> Option<Self> {
        let listen = listen(server.key("listen"), 8080);
        let expected = "must be the mode of a file, in octal digits: 0660";
        let mode = |text: &str| u32::from_str_radix(text.strip_prefix("0o").unwrap_or(text), 8).ok().filter(|mode| *mode <= 0o777);
        let mode = server.key("socket_mode").text().default("0660".to_owned()).read(expected, mode).optional();
        let tls = server.key("tls").optional_section().map(|tls| Tls::read(&tls));
        // Which names are answered depends on the address that is listened on, until a restart.
        let origins = origins(server, served.or(listen.as_ref()).is_some_and(Address::is_loopback) && anonymous);
        let limits = server.key("limits").section();
        let seconds = Duration::from_secs;
        let bounds = Bounds {
            handshake: limits.key("handshake_timeout").duration().positive().or(seconds(10)),
            header: limits.key("header_timeout").duration().positive().or(seconds(10)),
            stall: subscribers.key("max_stall").duration().positive().or(seconds(30)),
            heartbeat,
            header_bytes: limits.key("header_bytes").size().within(8 << 10, 1 << 20).or(16 << 10),
        };
        let limits = Limits {
            patterns: limits.key("patterns").number().at_least(1).or(64),
            pattern_bytes: limits.key("pattern_bytes").size().within(1, crate::subject::MAX_SUBJECT).or(256),
            pattern_tokens: limits.key("pattern_tokens").number().at_least(1).or(16),
        };
        let dashboard = server.key("dashboard").flag().or(true);
        let dashboards = server.key("dashboards").path().optional();
        let proxies = proxies(server, subscribers);
        let announcing = networks(server.key("proxy_protocol"));
        let expected = "must be a path such as /live, of letters, digits and - . _ ~, which is none of brokercast's own";
        let base = server.key("base_path").text().default(String::new()).read(expected, base_path).optional();
        let admin = Admin::read(admin);
        let tls = match tls {
            Some(tls) => Some(Arc::new(tls?)),
            None => None,
        };
        Some(Self {
            listen: listen?,
            socket_mode: mode?,
            admin: admin?,
            tls,
            origins: origins?,
            dashboard,
            dashboards,
            limits,
            bounds,
            proxies,
            announcing,
            base: base?,
        })
    }
}

fn listen(slot: Slot<'_>, port: u16) -> Option<Address> {
    let default = format!("127.0.0.1:{port}");
    let expected = format!(
        "must be an address and a port: {default}, 0.0.0.0:{port} or [::]:{port}; or a Unix socket, whose path has at most 107 bytes: \
         unix:/run/brokercast.sock"
    );
    slot.text().default(default).read(&expected, Address::parse).required()
}

/// `trusted_proxies`, which may also stand in `subscribers`.
fn proxies(server: &Section<'_>, subscribers: &Section<'_>) -> Proxies {
    let (own, alias) = (server.key("trusted_proxies"), subscribers.key("trusted_proxies"));
    if own.is_set() && alias.is_set() {
        alias.problem("must be left out where `server.trusted_proxies` is set: it is the same");
    }
    let trusted = if alias.is_set() { networks(alias) } else { networks(own) };
    Proxies { trusted, headers: server.key("forwarded").choice().or(Headers::X) }
}

fn networks(slot: Slot<'_>) -> Networks {
    slot.list(|item| item.text().read(Entry::EXPECTED, Entry::parse).required()).or(Vec::new()).into_iter().collect()
}

/// Reads a path below which everything is offered: without the slash at its end, and empty for `/`.
fn base_path(text: &str) -> Option<String> {
    let base = text.strip_suffix('/').unwrap_or(text);
    if base.is_empty() {
        return Some(String::new());
    }
    let segment = |segment: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
        !segment.is_empty() && segment != "." && segment != ".." && segment.chars().all(plain)
    };
    let mut segments = base.strip_prefix('/')?.split('/');
    // Otherwise a path could be one with the base path or one without.
    let own = ["events", "session", "publish", "dashboards", "dashboard.js", "dashboard.css"];
    (segments.clone().all(segment) && segments.next().is_some_and(|first| !own.contains(&first))).then(|| base.to_owned())
}

/// `server.cors`: the origins that are listed, whether they may bring cookies, and the headers that they may send.
fn cors(server: &Section<'_>) -> Option<(Vec<Listed>, bool, HeaderValue)> {
    let cors = server.key("cors").section();
    let expected = "must be an origin, scheme and host without a path, of http, https, capacitor, tauri, ionic or an extension, or `null`: \
                    https://dash.example.com, or https://*.example.com for all names below it";
    let alone = |origins: &Vec<Listed>| origins.len() < 2 || !origins.contains(&Listed::Any);
    let origin = |item: Slot<'_>| if item.is_null() { Some(Listed::Null) } else { item.text().read(expected, Listed::parse).required() };
    let listed = cors.key("origins").list(origin).check(alone, "must be `*` alone, or a list without it").or(Vec::new());
    let credentials = cors.key("credentials").flag().or(false);
    if credentials && listed.iter().any(Listed::without_credentials) {
        let expected = "must not be true where `origins` has `*`, `null` or all hosts of a scheme: list the origins that may bring cookies";
        cors.problem("credentials", expected);
    }
    if credentials && listed.is_empty() {
        cors.problem("origins", "must list the origins that `credentials` is about");
    }
    let expected = "must be the name of a request header";
    let name = |text: &str| HeaderName::try_from(text).ok().filter(|_| text != "*").map(|name| name.as_str().to_owned());
    let headers = cors.key("headers").texts(|item| item.text().read(expected, name).required()).or(CORS_HEADERS.map(str::to_owned).into());
    Some((listed, credentials, HeaderValue::try_from(headers.join(", ")).ok()?))
}

fn origins(server: &Section<'_>, open_on_loopback: bool) -> Option<Origins> {
    let cors = cors(server);
    let expected = "must be scheme and host, without a path: https://live.example.com";
    let public = server.key("public_url").one_or_more(|url| url.text().read(expected, parse_public).optional());
    let expected = "must be a host name or address, with its port if it has one: live.example.com";
    let some = "must list at least one name, or be left out to answer to all";
    let hosts = server.key("hosts").texts(|item| item.text().read(expected, host_name).required()).check(|hosts| !hosts.is_empty(), some);
    let hosts = if open_on_loopback {
        // A foreign page whose name was made to resolve to this machine must not read what is open to everybody here.
        let mut names: Vec<String> = ["localhost", "127.0.0.1", "[::1]"].map(str::to_owned).into();
        // The name that a proxy in front was given for this server.
        names.extend(public.iter().filter_map(|url| url.split_once("://")).map(|(_, name)| name.to_owned()));
        if server.has("hosts") { Hosts::These(hosts.or(names)) } else { Hosts::Direct(hosts.or(names)) }
    } else {
        hosts.optional().map_or(Hosts::All, Hosts::These)
    };
    let (listed, credentials, headers) = cors?;
    Some(Origins { listed, credentials, headers, public, hosts })
}
