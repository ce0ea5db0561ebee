//! From what is written to what is meant: defaults, bounds, and what must agree with what.
//!
//! Every problem is noted with its key path and what was expected; no value stands in one. Reads the files that hold
//! keys and secrets, opens nothing else.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::node::{KeyPath, Kind, Node};
use super::value::{DurationText, SizeText, Switch};
use super::{Admin, Anonymous, Config, Cors, History, Limits, Log, Problems, Server, Source, Subscribers, Tls, Window, raw};
use crate::cursor::Tag;
use crate::event::SourceName;
use crate::source::AdapterConfig;
use crate::subject::MAX_SUBJECT;
use crate::support::network;

mod auth;
mod routes;
#[cfg(test)]
mod tests;

/// Durable sources beyond which an id would outgrow what is looked at.
const MAX_DURABLE: usize = 60;

/// Checks everything. `whole` is the tree that `raw` was read from, before anything was taken out of it.
pub(super) fn validate(raw: raw::Raw, whole: &Node, problems: &mut Problems) -> Option<Config> {
    let auth = auth::validate(raw.auth, problems);
    let server = server(raw.server, &auth.anonymous, problems);
    let admin = Admin { listen: listen(raw.admin.listen, 8081, "admin.listen", problems) };
    if clash(server.listen, admin.listen) {
        problems.add("admin.listen", "must be another address than `server.listen`");
    }
    let open = !auth.anonymous.subscribe.is_empty() || !auth.anonymous.publish.is_empty();
    if open && !server.listen.ip().is_loopback() && !auth.anonymous.beyond_loopback {
        problems.add(
            "auth.anonymous.beyond_loopback",
            "must be true where anonymous access is granted and `server.listen` is no loopback address",
        );
    }
    let subscribers = subscribers(raw.subscribers, problems);
    let window = Window {
        bytes: size(raw.window.bytes, 16 << 20, 1, usize::MAX, "window.bytes", problems),
        age: duration(raw.window.age, 600_000, 1, "window.age", problems),
    };
    let history = History {
        readers: number(raw.history.readers, 16, "history.readers", problems),
        rate: size(raw.history.rate, 64 << 20, 1 << 10, usize::MAX, "history.rate", problems),
    };
    let log = log(raw.log, problems);
    let sources = sources(raw.sources, problems);
    let routes = routes::validate(raw.routes, &source_names(whole), problems);
    if !problems.0.iter().any(|p| p.path.starts_with("auth")) {
        auth::try_keys(&auth, &server.limits, problems);
    }
    problems.0.is_empty().then_some(Config { server, admin, auth, subscribers, window, history, log, sources, routes })
}

/// The names under `sources`, also of those that are at fault themselves.
fn source_names(whole: &Node) -> Vec<&str> {
    match whole.get(&KeyPath::default().key("sources")).map(|node| &node.kind) {
        Some(Kind::Map(entries)) => entries.iter().map(|(name, _)| name.as_str()).collect(),
        _ => Vec::new(),
    }
}

fn server(raw: raw::Server, anonymous: &Anonymous, problems: &mut Problems) -> Server {
    let listen = listen(raw.listen, 8080, "server.listen", problems);
    let public_url = raw.public_url.and_then(|url| {
        let found = origin(url.strip_suffix('/').unwrap_or(&url));
        if found.is_none() {
            problems.add("server.public_url", "must be scheme and host, without a path: https://live.example.com");
        }
        found
    });
    let hosts = match raw.hosts {
        Some(hosts) => {
            if hosts.is_empty() {
                problems.add("server.hosts", "must list at least one name, or be left out to answer to all");
            }
            let host = |(n, host): (usize, String)| {
                let found = host_name(&host);
                if found.is_none() {
                    problems
                        .add(format!("server.hosts[{n}]"), "must be a host name or address, with its port if it has one: live.example.com");
                }
                found
            };
            Some(hosts.into_iter().enumerate().filter_map(host).collect())
        }
        // A page of somebody else's, whose name was made to resolve to this machine, must not read what is open to
        // everybody here.
        None if listen.ip().is_loopback() && !(anonymous.subscribe.is_empty() && anonymous.publish.is_empty()) => {
            let mut names: Vec<String> = ["localhost", "127.0.0.1", "[::1]"].map(str::to_owned).into();
            // The name that a proxy in front was given for this server.
            names.extend(public_url.as_ref().and_then(|url| url.split_once("://")).map(|(_, name)| name.to_owned()));
            Some(names)
        }
        None => None,
    };
    Server {
        listen,
        tls: raw.tls.and_then(|tls| self::tls(tls, problems)),
        cors: cors(raw.cors, problems),
        heartbeat: duration(raw.heartbeat, 15_000, 1, "server.heartbeat", problems),
        retry: duration(raw.retry, 3000, 1, "server.retry", problems),
        drain: duration(raw.drain, 10_000, 0, "server.drain", problems),
        dashboard: raw.dashboard.unwrap_or(true),
        dashboards: raw.dashboards.filter(|folder| !blank(folder, "server.dashboards", problems)),
        public_url,
        hosts,
        limits: limits(&raw.limits, problems),
    }
}

fn limits(raw: &raw::Limits, problems: &mut Problems) -> Limits {
    let path = |name| format!("server.limits.{name}");
    Limits {
        patterns: number(raw.patterns, 64, &path("patterns"), problems),
        pattern_bytes: size(raw.pattern_bytes, 256, 1, MAX_SUBJECT, &path("pattern_bytes"), problems),
        pattern_tokens: number(raw.pattern_tokens, 16, &path("pattern_tokens"), problems),
        header_bytes: size(raw.header_bytes, 16 << 10, 8 << 10, 1 << 20, &path("header_bytes"), problems),
        token_bytes: size(raw.token_bytes, 8 << 10, 64, 1 << 20, &path("token_bytes"), problems),
        handshake_timeout: duration(raw.handshake_timeout, 10_000, 1, &path("handshake_timeout"), problems),
        header_timeout: duration(raw.header_timeout, 10_000, 1, &path("header_timeout"), problems),
    }
}

fn tls(raw: raw::Tls, problems: &mut Problems) -> Option<Tls> {
    let mut file = |name: &str, file: Option<PathBuf>| {
        let path = format!("server.tls.{name}");
        match file {
            None => {
                problems.add(path, "is missing: both `certificate` and `private_key` are needed, as PEM files");
                None
            }
            Some(file) if blank(&file, &path, problems) => None,
            Some(file) => match std::fs::File::open(&file) {
                Ok(_) => Some(file),
                Err(error) => {
                    problems.add(path, format!("must name a readable PEM file: {}", super::value::why(&file, &error)));
                    None
                }
            },
        }
    };
    let (certificate, private_key) = (file("certificate", raw.certificate), file("private_key", raw.private_key));
    let tls = Tls { certificate: certificate?, private_key: private_key? };
    // Whether they are a certificate and its key only shows when they are read.
    if let Err(error) = crate::http::tls::Tls::load(&tls) {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        problems.add(error.key(), format!("{}{cause}", error.expected()));
    }
    Some(tls)
}

fn cors(raw: raw::Cors, problems: &mut Problems) -> Cors {
    let credentials = raw.credentials.unwrap_or(false);
    let any = raw.origins.iter().any(|origin| origin == "*");
    if any && raw.origins.len() > 1 {
        problems.add("server.cors.origins", "must be `*` alone, or a list without it");
    }
    if any && credentials {
        problems.add("server.cors.credentials", "must not be true where `origins` is `*`: list the origins that may bring cookies");
    }
    if credentials && raw.origins.is_empty() {
        problems.add("server.cors.origins", "must list the origins that `credentials` is about");
    }
    let read = |(n, text): (usize, String)| {
        let found = if text == "*" { Some(text) } else { origin(&text) };
        if found.is_none() {
            problems
                .add(format!("server.cors.origins[{n}]"), "must be an origin, scheme and host without a path: https://dash.example.com");
        }
        found
    };
    Cors { origins: raw.origins.into_iter().enumerate().filter_map(read).collect(), credentials }
}

/// An origin as browsers serialise it: lower case, without a default port.
fn origin(text: &str) -> Option<String> {
    let text = text.to_ascii_lowercase();
    let (scheme, authority) = text.split_once("://")?;
    let default = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    let name = host_name(authority)?;
    Some(format!("{scheme}://{}", name.strip_suffix(&format!(":{default}")).unwrap_or(&name)))
}

/// `host`, `host:port`, `1.2.3.4` or `[::1]:8080`, in lower case; no user, path or white space.
fn host_name(text: &str) -> Option<String> {
    let text = text.to_ascii_lowercase();
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            (&text[..address.len() + 2], port)
        }
        None => {
            let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            let label = |label: &str| {
                let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
                !label.is_empty() && label.len() <= 63 && label.chars().all(good)
            };
            if !host.strip_suffix('.').unwrap_or(host).split('.').all(label) {
                return None;
            }
            (host, port)
        }
    };
    let good =
        port.is_empty() || port.strip_prefix(':').is_some_and(|p| p.starts_with(|c: char| c.is_ascii_digit()) && p.parse::<u16>().is_ok());
    (good && host.len() <= 255).then_some(text)
}

fn listen(raw: Option<String>, port: u16, path: &str, problems: &mut Problems) -> SocketAddr {
    let default = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let Some(text) = raw else { return default };
    let named = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    named.as_deref().unwrap_or(&text).parse().unwrap_or_else(|_| {
        problems.add(path, format!("must be an address and a port: {default}, 0.0.0.0:{port} or [::]:{port}"));
        default
    })
}

/// Whether two listeners cannot be there at once. Port 0 is a free one.
fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    let all = |ip: IpAddr| ip.is_unspecified();
    a.port() == b.port() && a.port() != 0 && (a.ip() == b.ip() || all(a.ip()) || all(b.ip()))
}

fn subscribers(raw: raw::Subscribers, problems: &mut Problems) -> Subscribers {
    let mut cap = |raw: Option<Switch<usize>>, default: Option<usize>, path: &str| match raw {
        None => default,
        Some(switch) => switch.on().map(|n| number(Some(n), 0, path, problems)),
    };
    let max_per_identity = cap(raw.max_per_identity, Some(20), "subscribers.max_per_identity");
    let max_per_address = cap(raw.max_per_address, None, "subscribers.max_per_address");
    let trusted = |(n, text): (usize, String)| {
        let found = network::parse(&text);
        if found.is_none() {
            let expected = "must be a network or an address: 10.0.0.0/8, 192.168.1.7, fd00::/8 (without host bits)";
            problems.add(format!("subscribers.trusted_proxies[{n}]"), expected);
        }
        found
    };
    let trusted_proxies = raw.trusted_proxies.into_iter().enumerate().filter_map(trusted).collect();
    Subscribers {
        max: number(raw.max, 10_000, "subscribers.max", problems),
        max_per_identity,
        max_per_address,
        trusted_proxies,
        wait: duration(raw.when_full.wait, 0, 0, "subscribers.when_full.wait", problems),
        waiting: raw.when_full.waiting.unwrap_or(100),
        max_stall: duration(raw.max_stall, 30_000, 1, "subscribers.max_stall", problems),
    }
}

fn log(raw: raw::Log, problems: &mut Problems) -> Log {
    let filter = raw.filter.unwrap_or_else(|| "info".to_owned());
    if filter.trim().is_empty() || filter.parse::<tracing_subscriber::filter::EnvFilter>().is_err() {
        problems
            .add("log.filter", "must be a level (error, warn, info, debug, trace, off) or a list such as info,brokercast::source=debug");
    }
    Log { format: raw.format.unwrap_or_default(), filter }
}

fn sources(raw: BTreeMap<String, raw::Source>, problems: &mut Problems) -> BTreeMap<SourceName, Source> {
    let mut sources = BTreeMap::new();
    for (text, raw) in raw {
        let path = format!("sources.{text}");
        let name = text.parse::<SourceName>().map_err(|error| problems.add(&path, format!("a source's name {error}"))).ok();
        let required = raw.required.unwrap_or(true);
        let max_payload = size(raw.max_payload, 1 << 20, 1, 1 << 30, &format!("{path}.max_payload"), problems);
        let adapter = adapter(raw, &path, problems);
        if let (Some(name), Some(adapter)) = (name, adapter) {
            sources.insert(name, Source { required, max_payload, adapter });
        }
    }
    overlaps(&sources, problems);
    tags(&sources, problems);
    sources
}

/// The one adapter that a source names.
fn adapter(raw: raw::Source, path: &str, problems: &mut Problems) -> Option<AdapterConfig> {
    let tags = [raw.ticker.is_some(), raw.http.is_some(), raw.nats.is_some(), raw.amqp.is_some()];
    if tags.iter().filter(|there| **there).count() != 1 {
        problems.add(path, "must hold exactly one of ticker, http, nats, amqp");
    }
    let at = |tag: &str| format!("{path}.{tag}");
    let found = [
        raw.ticker.and_then(|raw| raw.validate(&at("ticker"), problems)).map(AdapterConfig::Ticker),
        raw.http.and_then(|raw| raw.validate(&at("http"), problems)).map(AdapterConfig::Http),
        raw.nats.and_then(|raw| raw.validate(&at("nats"), problems)).map(|c| AdapterConfig::Nats(Box::new(c))),
        raw.amqp.and_then(|raw| raw.validate(&at("amqp"), problems)).map(|c| AdapterConfig::Amqp(Box::new(c))),
    ];
    found.into_iter().flatten().next()
}

/// A published message must have one inbox to go to.
fn overlaps(sources: &BTreeMap<SourceName, Source>, problems: &mut Problems) {
    let inboxes: Vec<_> = sources
        .iter()
        .filter_map(|(name, source)| match &source.adapter {
            AdapterConfig::Http(config) => Some((name, &config.subjects)),
            _ => None,
        })
        .collect();
    for (at, (name, subjects)) in inboxes.iter().enumerate() {
        for (other, others) in &inboxes[..at] {
            if subjects.iter().any(|a| others.iter().any(|b| a.intersects(b))) {
                let expected = format!("must not overlap with those of the http source `{other}`: a subject could go to either");
                problems.add(format!("sources.{name}.http.subjects"), expected);
            }
        }
    }
}

/// Cursors call a durable source by 16 bits of its name, and hold so many of them.
fn tags(sources: &BTreeMap<SourceName, Source>, problems: &mut Problems) {
    let durable: Vec<&SourceName> = sources.iter().filter(|(_, source)| source.adapter.durable()).map(|(name, _)| name).collect();
    let mut seen: BTreeMap<Tag, &SourceName> = BTreeMap::new();
    for name in &durable {
        if let Some(other) = seen.insert(Tag::of(name.as_str()), name) {
            let expected = format!("must have another name: clients' cursors could not tell it from `{other}`");
            problems.add(format!("sources.{name}"), expected);
        }
    }
    if durable.len() > MAX_DURABLE {
        let expected =
            format!("must not hold more than {MAX_DURABLE} durable sources (JetStream, RabbitMQ streams): ids would grow too long");
        problems.add("sources", expected);
    }
}

fn blank(path: &std::path::Path, key: &str, problems: &mut Problems) -> bool {
    let empty = path.as_os_str().is_empty();
    if empty {
        problems.add(key, "must not be empty");
    }
    empty
}

fn number(raw: Option<usize>, default: usize, path: &str, problems: &mut Problems) -> usize {
    if raw == Some(0) {
        problems.add(path, "must be a whole number, 1 or more");
    }
    raw.unwrap_or(default)
}

/// Defaults and bounds in milliseconds.
fn duration(raw: Option<DurationText>, default: u64, least: u64, path: &str, problems: &mut Problems) -> Duration {
    let found = raw.map_or(Duration::from_millis(default), |text| text.0);
    if found < Duration::from_millis(least) {
        problems.add(path, "must be a duration longer than 0, such as 500ms or 15s");
    }
    found
}

fn size(raw: Option<SizeText>, default: usize, least: usize, most: usize, path: &str, problems: &mut Problems) -> usize {
    let Some(raw) = raw else { return default };
    let found = usize::try_from(raw.0).unwrap_or(usize::MAX);
    if found < least || found > most {
        let show = super::value::show_size;
        let expected = if most == usize::MAX {
            format!("must be a size of at least {}", show(least))
        } else {
            format!("must be a size from {} to {}", show(least), show(most))
        };
        problems.add(path, expected);
    }
    found
}
