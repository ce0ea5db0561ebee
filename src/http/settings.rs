//! `server` and `admin`: listeners, certificates, origins, and bounds of what a request may bring.
//!
//! Certificates are read into what handshakes use. Opens no listener.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::admin::Access;
use super::connection::Bounds;
use super::origin::{Origins, host_name, parse_origin};
use super::tls::Tls;
use crate::settings::{Secret, Section, Slot};
use crate::support::network;

/// What the listeners need.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The public listener's address.
    pub(crate) listen: SocketAddr,
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
    /// Networks whose `X-Forwarded-For` is believed.
    pub(crate) trusted_proxies: Vec<IpNet>,
}

/// The admin listener.
#[derive(Debug)]
pub(crate) struct Admin {
    /// Its address.
    pub(crate) listen: SocketAddr,
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
            loopback: self.listen.ip().is_loopback(),
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
    /// there is access without a token.
    pub(crate) fn read(server: &Section<'_>, admin: &Section<'_>, subscribers: &Section<'_>, anonymous: bool) -> Option<Self> {
        let listen = listen(server.key("listen"), 8080);
        let tls = server.key("tls").optional_section().map(|tls| Tls::read(&tls));
        let origins = origins(server, listen.is_some_and(|listen| listen.ip().is_loopback()) && anonymous);
        let limits = server.key("limits").section();
        let seconds = Duration::from_secs;
        let bounds = Bounds {
            handshake: limits.key("handshake_timeout").duration().positive().or(seconds(10)),
            header: limits.key("header_timeout").duration().positive().or(seconds(10)),
            stall: subscribers.key("max_stall").duration().positive().or(seconds(30)),
            header_bytes: limits.key("header_bytes").size().within(8 << 10, 1 << 20).or(16 << 10),
        };
        let limits = Limits {
            patterns: limits.key("patterns").number().at_least(1).or(64),
            pattern_bytes: limits.key("pattern_bytes").size().within(1, crate::subject::MAX_SUBJECT).or(256),
            pattern_tokens: limits.key("pattern_tokens").number().at_least(1).or(16),
        };
        let expected = "must be a network or an address: 10.0.0.0/8, 192.168.1.7, fd00::/8 (without host bits)";
        let proxy = |item: Slot<'_>| item.text().read(expected, network::parse).required();
        let dashboard = server.key("dashboard").flag().or(true);
        let dashboards = server.key("dashboards").path().optional();
        let trusted_proxies = subscribers.key("trusted_proxies").list(proxy).or(Vec::new());
        let admin = Admin::read(admin);
        let tls = match tls {
            Some(tls) => Some(Arc::new(tls?)),
            None => None,
        };
        Some(Self { listen: listen?, admin: admin?, tls, origins, dashboard, dashboards, limits, bounds, trusted_proxies })
    }
}

fn listen(slot: Slot<'_>, port: u16) -> Option<SocketAddr> {
    let default = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let read = |text: &str| match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}").parse().ok(),
        None => text.parse().ok(),
    };
    let expected = format!("must be an address and a port: {default}, 0.0.0.0:{port} or [::]:{port}");
    slot.text().default(default.to_string()).read(&expected, read).required()
}

/// Whether two listeners cannot be there at once. Port 0 is a free one.
pub(crate) fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    let all = |ip: IpAddr| ip.is_unspecified();
    a.port() == b.port() && a.port() != 0 && (a.ip() == b.ip() || all(a.ip()) || all(b.ip()))
}

fn origins(server: &Section<'_>, open_on_loopback: bool) -> Origins {
    let cors = server.key("cors").section();
    let expected = "must be an origin, scheme and host without a path: https://dash.example.com";
    let read = |text: &str| if text == "*" { Some(text.to_owned()) } else { parse_origin(text) };
    let alone = |origins: &Vec<String>| origins.len() < 2 || origins.iter().all(|origin| origin != "*");
    let listed = cors.key("origins").list(|item| item.text().read(expected, read).required());
    let listed = listed.check(alone, "must be `*` alone, or a list without it").or(Vec::new());
    let credentials = cors.key("credentials").flag().or(false);
    let any = listed.iter().any(|origin| origin == "*");
    if any && credentials {
        cors.problem("credentials", "must not be true where `origins` is `*`: list the origins that may bring cookies");
    }
    if credentials && listed.is_empty() {
        cors.problem("origins", "must list the origins that `credentials` is about");
    }
    let public = server.key("public_url").text();
    let expected = "must be scheme and host, without a path: https://live.example.com";
    let public = public.read(expected, |url| parse_origin(url.strip_suffix('/').unwrap_or(url))).optional();
    let expected = "must be a host name or address, with its port if it has one: live.example.com";
    let some = "must list at least one name, or be left out to answer to all";
    let hosts = server.key("hosts").texts(|item| item.text().read(expected, host_name).required()).check(|hosts| !hosts.is_empty(), some);
    let hosts = if open_on_loopback {
        // A foreign page whose name was made to resolve to this machine must not read what is open to everybody here.
        let mut names: Vec<String> = ["localhost", "127.0.0.1", "[::1]"].map(str::to_owned).into();
        // The name that a proxy in front was given for this server.
        names.extend(public.as_ref().and_then(|url| url.split_once("://")).map(|(_, name)| name.to_owned()));
        Some(hosts.or(names))
    } else {
        hosts.optional()
    };
    Origins { listed, any, credentials, public, hosts }
}
