//! Every metric: its name, its help and its handle.
//!
//! What happens often is counted through a handle that is held, not looked up. What others count themselves (sources,
//! hub, pool) is read when somebody asks, as [`Readings`]. Labels come from the configuration or from a fixed set,
//! never from a request.

use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, LabelSetEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

use crate::event::GapReason;

mod process;

/// What [`Metrics::encode`] writes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Names and values, at most two of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Labels(Vec<(&'static str, String)>);

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }
        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];
            /// The label's value.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }
    };
}

words! {
    /// What a request was for.
    Route {
        /// `/events`
        Events = "events",
        /// `/publish/…`
        Publish = "publish",
        /// `/` and what belongs to it.
        Dashboard = "dashboard",
        /// `/dashboards/…`
        Dashboards = "dashboards",
        /// Everything else.
        Other = "other",
    }
}

words! {
    /// What became of a message that was sent to `/publish/…`.
    Published {
        /// It is in the window.
        Accepted = "accepted",
        /// The subject is not valid.
        Invalid = "invalid",
        /// The token is invalid or insufficient.
        Denied = "denied",
        /// No source takes that subject.
        Unknown = "unknown",
        /// It is too large.
        TooLarge = "too_large",
        /// It did not come in time.
        Timeout = "timeout",
        /// The source could not keep up, or had ended.
        Unavailable = "unavailable",
    }
}

words! {
    /// Why a stream was refused.
    Refused {
        /// A query parameter is invalid.
        Invalid = "invalid",
        /// The token is invalid or missing.
        Unauthorized = "unauthorized",
        /// The grant does not cover what was asked for, or the page may not ask.
        Forbidden = "forbidden",
        /// The pool is full.
        Busy = "busy",
        /// The client has reached a cap of its own.
        OwnCap = "own_cap",
        /// The process is about to end.
        Draining = "draining",
        /// The signing keys are not loaded yet.
        Unavailable = "unavailable",
    }
}

words! {
    /// What became of a configuration that was read again.
    Reloaded {
        /// It is in use, at most without what needs a restart.
        Applied = "applied",
        /// Something is wrong with it, and nothing of it is in use.
        Refused = "refused",
    }
}

/// One counter for each value of a label.
#[derive(Debug)]
pub struct Counts<const N: usize>([Counter; N]);

impl<const N: usize> Counts<N> {
    fn new(family: &Family<Labels, Counter>, label: &'static str, words: [&'static str; N]) -> Self {
        Self(words.map(|word| family.get_or_create_owned(&Labels(vec![(label, word.to_owned())]))))
    }
}

impl Counts<{ Published::ALL.len() }> {
    /// Counts one.
    pub fn published(&self, outcome: Published) {
        self.0[outcome as usize].inc();
    }
}

impl Counts<{ Reloaded::ALL.len() }> {
    /// Counts one.
    pub fn reloaded(&self, result: Reloaded) {
        self.0[result as usize].inc();
    }
}

impl Counts<{ Refused::ALL.len() }> {
    /// Counts one.
    pub fn refused(&self, reason: Refused) {
        self.0[reason as usize].inc();
    }
}

/// A source as its owner reads it when somebody asks.
#[derive(Debug, Clone)]
pub struct SourceReading {
    /// Its name in the configuration.
    pub name: String,
    /// Messages taken from the broker.
    pub messages: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
    /// Events that routing let go on.
    pub events: u64,
    /// Messages that a route dropped.
    pub dropped: u64,
    /// Gaps by reason.
    pub gaps: Vec<(GapReason, u64)>,
    /// Whether it is connected.
    pub up: bool,
    /// Connections after the first.
    pub reconnects: u64,
    /// Failed attempts and lost connections, by kind.
    pub errors: Vec<(&'static str, u64)>,
    /// Messages that readers of its log took for clients that were behind.
    pub history_events: u64,
    /// Bytes of them.
    pub history_bytes: u64,
    /// Readers of its log that could not be opened or were lost, by kind.
    pub history_errors: Vec<(&'static str, u64)>,
    /// Events in its window.
    pub window_events: u64,
    /// Bytes of them.
    pub window_bytes: u64,
}

/// What is read of brokers' logs at the moment somebody asks.
#[derive(Debug, Clone, Copy, Default)]
pub struct HistoryReading {
    /// Readers that are open.
    pub readers: u64,
    /// Clients that read a log, or wait for it.
    pub clients: u64,
    /// Clients that wait for a reader.
    pub waiting: u64,
    /// How long the one that has waited longest has waited.
    pub oldest: Duration,
}

/// What others count, at the moment somebody asks.
#[derive(Debug, Clone, Default)]
pub struct Readings {
    /// All sources.
    pub sources: Vec<SourceReading>,
    /// Streams that are open.
    pub subscribers: u64,
    /// How many there may be.
    pub subscribers_max: u64,
    /// Streams that ended, by reason.
    pub ended: Vec<(&'static str, u64)>,
    /// Filters with subscribers.
    pub channels: u64,
    /// What is read of brokers' logs for clients that are behind.
    pub history: HistoryReading,
    /// Sockets that are open.
    pub connections: u64,
    /// Renamed subjects that had to be shortened.
    pub shortened_subjects: u64,
    /// Event names left out because they are reserved.
    pub reserved_names: u64,
}

/// See the module.
pub struct Metrics {
    registry: Registry,
    requests: Vec<[Counter; 5]>,
    /// Messages sent to `/publish/…`.
    pub published: Counts<{ Published::ALL.len() }>,
    /// Streams that were refused.
    pub refused: Counts<{ Refused::ALL.len() }>,
    /// Connections and streams that were cut because their client took nothing for `max_stall`.
    pub stalled: Counter,
    /// Configurations that were read again.
    pub reloads: Counts<{ Reloaded::ALL.len() }>,
    /// 1 while the configuration that was read last is in use as a whole.
    pub in_sync: Gauge,
}

impl Metrics {
    /// All at 0; `readings` is asked whenever the metrics are.
    pub fn new(readings: impl Fn() -> Readings + Send + Sync + 'static) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(process::Process::default()));
        let ours = registry.sub_registry_with_prefix("brokercast");
        let family = |registry: &mut Registry, name: &str, help: &str| {
            let family = Family::<Labels, Counter>::default();
            registry.register(name, help, family.clone());
            family
        };
        let requests = family(ours, "http_requests", "Requests answered, by route and class of status");
        let published = family(ours, "published_messages", "Messages sent to /publish, by outcome");
        let refused = family(ours, "refused_subscribers", "Streams refused, by reason");
        let stalled = Counter::default();
        ours.register("stalled_connections", "Connections and streams cut because the client took nothing", stalled.clone());
        let reloads = family(ours, "reloads", "Configurations read again, by result");
        let in_sync = Gauge::<i64>::default();
        in_sync.set(1);
        let help = "1 while all of the configuration that was read last is in use, 0 if it was refused or needs a restart";
        ours.register("config_in_sync", help, in_sync.clone());
        ours.register_collector(Box::new(Read(Box::new(readings))));
        let cell = |route: &Route, class| {
            requests.get_or_create_owned(&Labels(vec![("route", route.as_str().to_owned()), ("class", format!("{class}xx"))]))
        };
        let words = |n: usize| Published::ALL[n].as_str();
        let published = Counts::new(&published, "outcome", std::array::from_fn(words));
        let words = |n: usize| Refused::ALL[n].as_str();
        let refused = Counts::new(&refused, "reason", std::array::from_fn(words));
        let words = |n: usize| Reloaded::ALL[n].as_str();
        let reloads = Counts::new(&reloads, "result", std::array::from_fn(words));
        let requests = Route::ALL.iter().map(|route| std::array::from_fn(|class| cell(route, class + 1))).collect();
        Self { registry, requests, published, refused, stalled, reloads, in_sync }
    }

    /// Counts a request.
    pub fn requested(&self, route: Route, status: u16) {
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        self.requests[route as usize][class].inc();
    }

    /// All of them, as [`CONTENT_TYPE`].
    ///
    /// # Errors
    /// Never, as a `String` takes everything.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// [`Readings`], whenever they are asked for.
struct Read(Box<dyn Fn() -> Readings + Send + Sync>);

impl fmt::Debug for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Read")
    }
}

type Row = (Vec<(&'static str, String)>, u64);

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, rows: impl IntoIterator<Item = Row>) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in rows {
        if labels.is_empty() {
            return ConstCounter::new(value).encode(metric);
        }
        ConstCounter::new(value).encode(metric.encode_family(&Labels(labels))?)?;
    }
    Ok(())
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, rows: impl IntoIterator<Item = Row>) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    let gauge = |value: u64| ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    rows.into_iter().try_for_each(|(labels, value)| gauge(value).encode(metric.encode_family(&Labels(labels))?))
}

fn single(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

/// What is read of brokers' logs for clients that are behind.
fn history(e: &mut DescriptorEncoder<'_>, all: &Readings) -> fmt::Result {
    let by = |value: fn(&SourceReading) -> u64| all.sources.iter().map(move |s| (vec![("source", s.name.clone())], value(s)));
    let HistoryReading { readers, clients, waiting, oldest } = all.history;
    single(e, "history_readers", "Readers of brokers' logs that are open for clients that are behind", readers)?;
    single(e, "history_clients", "Clients that read a broker's log, or wait for it", clients)?;
    single(e, "history_waiting", "Clients that wait for a reader", waiting)?;
    let metric = e.encode_descriptor("history_oldest_wait_seconds", "The longest of these waits", None, MetricType::Gauge)?;
    ConstGauge::new(oldest.as_secs_f64()).encode(metric)?;
    counter(e, "history_events", "Messages that readers took from the source's log", by(|s| s.history_events))?;
    counter(e, "history_bytes", "Bytes of these messages", by(|s| s.history_bytes))?;
    let row = |s: &SourceReading, (kind, n): &(&'static str, u64)| (vec![("source", s.name.clone()), ("kind", (*kind).to_owned())], *n);
    let errors = all.sources.iter().flat_map(|s| s.history_errors.iter().map(|error| row(s, error)));
    counter(e, "history_errors", "Readers of the source's log that could not be opened or were lost, by kind", errors)
}

impl Collector for Read {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let e = &mut encoder;
        let all = (self.0)();
        let by = |value: fn(&SourceReading) -> u64| all.sources.iter().map(move |s| (vec![("source", s.name.clone())], value(s)));
        counter(e, "source_messages", "Messages taken from the source", by(|s| s.messages))?;
        counter(e, "source_payload_bytes", "Bytes of the payloads of these messages", by(|s| s.bytes))?;
        counter(e, "source_events", "Events that routing passed on", by(|s| s.events))?;
        counter(e, "source_dropped_messages", "Messages that a route dropped", by(|s| s.dropped))?;
        let gaps = all
            .sources
            .iter()
            .flat_map(|s| s.gaps.iter().map(|(reason, n)| (vec![("source", s.name.clone()), ("reason", reason.as_str().to_owned())], *n)));
        counter(e, "source_gaps", "Gaps that the source reported, by reason", gaps)?;
        counter(e, "source_reconnects", "Connections after the first", by(|s| s.reconnects))?;
        let errors = all
            .sources
            .iter()
            .flat_map(|s| s.errors.iter().map(|(kind, n)| (vec![("source", s.name.clone()), ("kind", (*kind).to_owned())], *n)));
        counter(e, "source_errors", "Failed attempts to connect and lost connections, by kind", errors)?;
        gauge(e, "source_up", "1 while the source is connected", by(|s| u64::from(s.up)))?;
        gauge(e, "window_events", "Events in the source's window", by(|s| s.window_events))?;
        gauge(e, "window_bytes", "Bytes of the events in the source's window", by(|s| s.window_bytes))?;
        single(e, "subscribers", "Streams that are open", all.subscribers)?;
        single(e, "subscribers_max", "Streams that may be open at most", all.subscribers_max)?;
        let ended = all.ended.iter().map(|(reason, n)| (vec![("reason", (*reason).to_owned())], *n));
        counter(e, "ended_subscribers", "Streams that ended, by reason", ended)?;
        single(e, "channels", "Distinct filters with subscribers", all.channels)?;
        self::history(e, &all)?;
        single(e, "connections", "Connections to the public listener", all.connections)?;
        let total = |value| [(Vec::new(), value)];
        counter(
            e,
            "route_shortened_subjects",
            "Renamed subjects that were too long and had to be shortened",
            total(all.shortened_subjects),
        )?;
        counter(e, "route_reserved_names", "Event names left out because they are reserved", total(all.reserved_names))?;
        let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        gauge(e, "build_info", "Always 1; the label says which version runs", [(version, 1)])
    }
}

/// Metrics that nothing reads, for tests.
#[cfg(test)]
pub(crate) fn unread() -> std::sync::Arc<Metrics> {
    std::sync::Arc::new(Metrics::new(Readings::default))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_written() {
        let source = SourceReading {
            name: "a\"b".into(),
            messages: 7,
            bytes: 70,
            events: 9,
            dropped: 1,
            gaps: vec![(GapReason::Overflow, 2)],
            up: true,
            reconnects: 1,
            errors: vec![("denied", 3)],
            history_events: 11,
            history_bytes: 110,
            history_errors: vec![("missing", 12)],
            window_events: 4,
            window_bytes: 400,
        };
        let metrics = Metrics::new(move || Readings {
            sources: vec![source.clone()],
            subscribers: 5,
            ended: vec![("slow", 6)],
            ..Readings::default()
        });
        metrics.requested(Route::Events, 200);
        metrics.requested(Route::Other, 404);
        metrics.published.published(Published::TooLarge);
        metrics.refused.refused(Refused::OwnCap);
        let text = metrics.encode().unwrap();
        for line in [
            "brokercast_http_requests_total{route=\"events\",class=\"2xx\"} 1",
            "brokercast_http_requests_total{route=\"other\",class=\"4xx\"} 1",
            "brokercast_published_messages_total{outcome=\"too_large\"} 1",
            "brokercast_refused_subscribers_total{reason=\"own_cap\"} 1",
            "brokercast_source_events_total{source=\"a\\\"b\"} 9",
            "brokercast_source_dropped_messages_total{source=\"a\\\"b\"} 1",
            "brokercast_source_messages_total{source=\"a\\\"b\"} 7",
            "brokercast_source_gaps_total{source=\"a\\\"b\",reason=\"overflow\"} 2",
            "brokercast_source_errors_total{source=\"a\\\"b\",kind=\"denied\"} 3",
            "brokercast_source_up{source=\"a\\\"b\"} 1",
            "brokercast_history_events_total{source=\"a\\\"b\"} 11",
            "brokercast_history_errors_total{source=\"a\\\"b\",kind=\"missing\"} 12",
            "brokercast_history_oldest_wait_seconds 0.0",
            "brokercast_subscribers 5",
            "brokercast_ended_subscribers_total{reason=\"slow\"} 6",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_process_says_what_it_takes() {
        let text = unread().encode().unwrap();
        for name in ["process_resident_memory_bytes ", "process_open_fds ", "process_start_time_seconds ", "process_cpu_seconds_total "] {
            let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{name} in {text}"));
            assert!(line[name.len()..].parse::<f64>().unwrap() >= 0.0, "{line}");
        }
    }
}
