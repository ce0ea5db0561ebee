//! The settings of the whole program: each room takes its keys, and what concerns several rooms is checked here.
//!
//! Nothing is started. Only the files that the settings name are read.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::cursor::Tag;
use crate::event::SourceName;
use crate::route::Rule;
use crate::settings::{Places, Section, SettingsError};
use crate::source::settings::Source;
use crate::support::address::Address;
use crate::{auth, history, http, hub, pool, route, settings, source, stream, telemetry};

mod advice;
#[cfg(test)]
mod tests;

/// The settings that count where no file is given, and what problems call them.
const BUILT_IN: (&str, &str) = ("built-in config/default.yaml", include_str!("../../config/default.yaml"));

/// More durable sources would make ids longer than what is looked at.
pub(super) const MAX_DURABLE: usize = 60;

/// What the bridge runs by.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The listeners.
    pub(crate) http: http::Settings,
    /// How long a shutdown may take.
    pub(crate) drain: Duration,
    /// How long the process says that it is not ready, and serves as before, until the shutdown begins.
    pub(crate) drain_delay: Duration,
    /// Who may subscribe and publish.
    pub(crate) auth: auth::Settings,
    /// Bytes of the longest token.
    pub(crate) token_bytes: usize,
    /// The pool of subscribers.
    pub(crate) pool: pool::Settings,
    /// How often clients may do something.
    pub(crate) rates: pool::RateSettings,
    /// Events kept in memory, of each source.
    pub(crate) window: hub::Limits,
    /// Streams.
    pub(crate) streams: stream::Settings,
    /// Histories read for streams.
    pub(crate) histories: history::Settings,
    /// In the order of their names.
    pub sources: Vec<Source>,
    /// The first that matches counts.
    pub(crate) routes: Vec<Rule>,
    /// Where spans are exported.
    pub(crate) traces: Option<telemetry::TraceSettings>,
    /// Whether files are read again when they change.
    pub(crate) watch: bool,
}

/// Settings that were read and are right.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// What the bridge runs by.
    pub settings: Settings,
    /// The log's settings.
    pub log: telemetry::Settings,
    /// All settings as YAML, defaults included, secrets and URLs' passwords withheld.
    pub yaml: String,
    /// What is allowed but may not be meant, each with its key path.
    pub warnings: Vec<String>,
    /// What is good to know, each with its key path.
    pub notes: Vec<String>,
    /// Files and folders that the settings name.
    pub files: Vec<PathBuf>,
    /// Where the values of key paths were written.
    pub(crate) places: Places,
}

/// Reads `files`, later over earlier, then this process's environment.
///
/// # Errors
/// With all problems at once.
pub(crate) fn load(files: &[PathBuf]) -> Result<Loaded, SettingsError> {
    load_with(files, std::env::vars_os(), None)
}

/// The same for a process that runs, whose public listener stays at `served`: a file that is empty is one that is being written, and
/// is refused.
///
/// # Errors
/// With all problems at once.
pub(super) fn load_again(files: &[PathBuf], served: &Address) -> Result<Loaded, SettingsError> {
    load_with(files, std::env::vars_os(), Some(served))
}

fn load_with(
    files: &[PathBuf],
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    served: Option<&Address>,
) -> Result<Loaded, SettingsError> {
    let loaded = settings::load(files, variables, BUILT_IN, served.is_some(), |root| read(root, served))?;
    let settings::Loaded { value: (settings, log), yaml, files, places } = loaded;
    let (warnings, notes) = (advice::warnings(&settings), advice::notes(&settings));
    Ok(Loaded { settings, log, yaml, warnings, notes, files, places })
}

/// Reads a text as the only configuration, for fuzzing. Returns what `check` prints.
///
/// # Errors
/// With all problems at once.
#[cfg(feature = "internals")]
pub fn check_text(text: &str) -> Result<String, SettingsError> {
    Ok(settings::load(&[], [], ("text", text), false, |root| read(root, None))?.yaml)
}

/// What cannot change while the process runs: keys, and their values as text.
#[derive(Debug)]
pub(super) struct Fixed([(&'static str, String); 11]);

impl Fixed {
    /// The keys whose values differ.
    pub(super) fn changed(&self, newer: &Self) -> Vec<&'static str> {
        self.0.iter().zip(&newer.0).filter(|(before, now)| before.1 != now.1).map(|(before, _)| before.0).collect()
    }
}

impl Settings {
    pub(super) fn fixed(&self, format: telemetry::Format) -> Fixed {
        let http::connection::Bounds { handshake, header, stall, heartbeat, header_bytes } = self.http.bounds;
        Fixed([
            ("server.listen", self.http.listen.to_string()),
            ("server.socket_mode", format!("{:o}", self.http.socket_mode)),
            // Certificates are exchanged; whether there is one decides what the port speaks.
            ("server.tls", self.http.tls.is_some().to_string()),
            ("server.heartbeat", format!("{heartbeat:?}")),
            ("server.limits.handshake_timeout", format!("{handshake:?}")),
            ("server.limits.header_timeout", format!("{header:?}")),
            ("server.limits.header_bytes", header_bytes.to_string()),
            ("admin.listen", self.http.admin.listen.to_string()),
            ("admin.tls", self.http.admin.tls.is_some().to_string()),
            ("subscribers.max_stall", format!("{stall:?}")),
            ("log.format", format!("{format:?}")),
        ])
    }
}

/// `served`: where the public listener is, in a process that runs.
fn read(root: &Section<'_>, served: Option<&Address>) -> Option<(Settings, telemetry::Settings)> {
    // Known from here on, in the order in which they are printed.
    let section = |name: &str| root.key(name).section();
    let [server, admin, auth] = ["server", "admin", "auth"].map(section);
    let [subscribers, rates, window, history, log] = ["subscribers", "rates", "window", "history", "log"].map(section);
    let traces = telemetry::TraceSettings::read(root.key("traces"), cfg!(feature = "otlp"));
    let watch = section("reload").key("watch").flag().or(true);
    let sources = section("sources");

    let auth_settings = auth::Settings::read(&auth);
    let open = !auth_settings.anonymous.is_empty();
    let streams = stream::Settings::read(&server);
    let http = http::Settings::read(&server, &admin, &subscribers, open, served, streams.heartbeat);
    if let Some(http) = &http {
        if http.listen.clashes(&http.admin.listen) {
            admin.problem("listen", "must be another address than `server.listen`");
        }
        let loopback = served.into_iter().chain([&http.listen]).all(Address::is_loopback) && http.announcing.is_empty();
        if open && !loopback && !auth_settings.beyond_loopback {
            let expected = "must be true where anonymous access is granted, and `server.listen` is no loopback address or \
                            `server.proxy_protocol` is set";
            auth.key("anonymous").section().problem("beyond_loopback", expected);
        }
    }
    let histories = history::Settings::read(&history);
    let drain = server.key("drain").duration().or(Duration::from_secs(10));
    let drain_delay = server.key("drain_delay").duration().or(Duration::ZERO);
    let token_bytes = auth::token_bytes(&server.key("limits").section());
    let pool = pool::Settings::read(&subscribers);
    let rates = pool::RateSettings::read(&rates);
    let window = hub::Limits::read(&window);
    let libraries = source::settings::ADAPTERS.iter().filter_map(|kind| kind.library).collect();
    let log = telemetry::Settings::read(&log, libraries);
    // Also of sources that are wrong themselves: a route may name them.
    let names: Vec<&str> = sources.entries().iter().filter(|(_, slot)| slot.is_set()).map(|(name, _)| *name).collect();
    let found = source::settings::read(&sources);
    overlaps(&found, &sources);
    tags(&found, root, &sources);
    let routes = route::settings::read(root.key("routes"), &names);
    control(&auth_settings, &found, &names, &auth);
    // Before all routes: no client sees what is about them.
    let routes = auth_settings.revocations.as_ref().and_then(super::revocations::hidden).into_iter().chain(routes).collect();
    let settings = Settings {
        http: http?,
        drain,
        drain_delay,
        auth: auth_settings,
        token_bytes,
        pool,
        rates,
        window,
        streams,
        histories,
        sources: found,
        routes,
        traces,
        watch,
    };
    Some((settings, log?))
}

/// Revocations must reach every replica.
fn control(settings: &auth::Settings, sources: &[Source], names: &[&str], section: &Section<'_>) {
    let Some(control) = &settings.revocations else { return };
    let section = section.key("revocations").section();
    let Some(source) = sources.iter().find(|source| source.name.as_str() == control.source) else {
        // One that is wrong itself has problems enough.
        if !names.contains(&control.source.as_str()) {
            let known = if names.is_empty() { "none are configured".to_owned() } else { format!("configured: {}", names.join(", ")) };
            section.problem("source", format!("must be the name of a source ({known})"));
        }
        return;
    };
    if source.adapter.splits() || source.adapter.narrowed(&control.subject).is_none() {
        let expected = "must be a source whose broker gives every replica all messages: `nats` without `queue_group` and `kv`, or `amqp` \
                        with an exchange and no `queue`, or with `queue_type: stream`";
        section.problem("source", expected);
    } else if !source.adapter.reach().iter().any(|pattern| pattern.matches(control.subject.as_str())) {
        let reach: Vec<String> = source.adapter.reach().iter().map(ToString::to_string).collect();
        section.problem("subject", format!("must be a subject that the source `{}` reads (it reads: {})", source.name, reach.join(", ")));
    } else if let Some(only) = source.adapter.publishes_only().filter(|only| only != control.subject.as_str()) {
        section.problem(
            "subject",
            format!("must be `{only}`: nothing else can be published to the source `{}` as it is configured", source.name),
        );
    }
}

/// A published message must have one inbox to go to.
fn overlaps(sources: &[Source], section: &Section<'_>) {
    let inboxes: Vec<_> = sources.iter().filter(|source| source.adapter.inbox().is_some()).collect();
    for (at, source) in inboxes.iter().enumerate() {
        for other in &inboxes[..at] {
            let others = other.adapter.reach();
            if source.adapter.reach().iter().any(|a| others.iter().any(|b| a.intersects(b))) {
                let own = section.key(source.name.as_str()).section().key(source.adapter.kind()).section();
                let expected = format!("must not overlap with those of the http source `{}`: a subject could go to either", other.name);
                own.problem("subjects", expected);
            }
        }
    }
}

/// Cursors call a durable source by 16 bits of its name, and hold only so many of them.
fn tags(sources: &[Source], root: &Section<'_>, section: &Section<'_>) {
    let tags = sources.iter().flat_map(|source| source.tags().into_iter().map(move |tag| (tag, &source.name)));
    let (mut seen, mut logs) = (BTreeMap::<Tag, &SourceName>::new(), 0);
    for (tag, name) in tags {
        logs += 1;
        if let Some(other) = seen.insert(tag, name) {
            let expected = format!("must have another name: clients' cursors could not tell it from `{other}`");
            section.problem(name.as_str(), expected);
        }
    }
    if logs > MAX_DURABLE {
        let expected = format!(
            "must not hold more than {MAX_DURABLE} durable sources (JetStream, RabbitMQ streams, each partition of a super stream): \
             ids would grow too long"
        );
        root.problem("sources", expected);
    }
}
