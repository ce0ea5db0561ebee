//! Every metric: its name, its help and its handle.
//!
//! What happens often is counted through a handle that is held, not looked up. What others count themselves (sources,
//! hub, pool) is read when somebody asks, as [`Readings`]. Labels come from the configuration or from a fixed set,
//! never from a request.

use std::fmt;
use std::hash::Hasher as _;

use fnv::FnvHasher;
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::event::Timestamp;
use crate::support::words::words;

mod process;
mod read;
mod text;

pub(crate) use read::{Readings, SourceReading};
pub(crate) use text::Format;

/// Names and values, at most two of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Labels(Vec<(&'static str, String)>);

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }
}

words! {
    /// What a request was for.
    pub(crate) enum Route {
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
    pub(crate) enum Published {
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
        /// The client publishes more often than `rates` permits.
        Rate = "rate",
    }
}

words! {
    /// Why a stream was refused.
    pub(crate) enum Refused {
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
        /// Who asks cannot be verified at the moment.
        Unavailable = "unavailable",
        /// The client comes more often than `rates` permits.
        Rate = "rate",
    }
}

words! {
    /// What became of a configuration that was read again.
    pub(crate) enum Reloaded {
        /// It is in use, at most without what needs a restart.
        Applied = "applied",
        /// Something is wrong with it, and nothing of it is in use.
        Refused = "refused",
    }
}

/// One counter for each value of a label.
#[derive(Debug)]
pub(crate) struct Counts<const N: usize>([Counter; N]);

impl<const N: usize> Counts<N> {
    fn new(family: &Family<Labels, Counter>, label: &'static str, words: [&'static str; N]) -> Self {
        Self(words.map(|word| family.get_or_create_owned(&Labels(vec![(label, word.to_owned())]))))
    }
}

impl Counts<{ Published::ALL.len() }> {
    /// Counts one.
    pub(crate) fn published(&self, outcome: Published) {
        self.0[outcome as usize].inc();
    }
}

impl Counts<{ Reloaded::ALL.len() }> {
    /// Counts one.
    pub(crate) fn reloaded(&self, result: Reloaded) {
        self.0[result as usize].inc();
    }
}

impl Counts<{ Refused::ALL.len() }> {
    /// Counts one.
    pub(crate) fn refused(&self, reason: Refused) {
        self.0[reason as usize].inc();
    }
}

/// See the module.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Vec<[Counter; 5]>,
    /// Messages sent to `/publish/…`.
    pub published: Counts<{ Published::ALL.len() }>,
    /// Streams that were refused.
    pub refused: Counts<{ Refused::ALL.len() }>,
    /// Connections and streams that hyper wrote and that were cut because their client took nothing for `max_stall`.
    pub stalled: Counter,
    /// Configurations that were read again.
    pub reloads: Counts<{ Reloaded::ALL.len() }>,
    /// 1 while the configuration that was read last is in use as a whole.
    pub in_sync: Gauge,
    config_hash: Gauge,
    config_read: Gauge,
}

impl Metrics {
    /// All at 0; `readings` is asked whenever the metrics are.
    pub(crate) fn new(readings: impl Fn() -> Readings + Send + Sync + 'static) -> Self {
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
        let reloads = family(ours, "reloads", "Configurations read again, by result");
        let in_sync = Gauge::<i64>::default();
        in_sync.set(1);
        let help = "1 while all of the configuration that was read last is in use, 0 if it was refused or needs a restart";
        ours.register("config_in_sync", help, in_sync.clone());
        let (config_hash, config_read) = (Gauge::<i64>::default(), Gauge::<i64>::default());
        let help = "A hash of the configuration in use, secrets left out: replicas of the same configuration show the same number";
        ours.register("config_hash", help, config_hash.clone());
        let help = "When the configuration in use was read, in seconds since 1970";
        ours.register("config_last_success_timestamp_seconds", help, config_read.clone());
        ours.register_collector(Box::new(read::Read { readings: Box::new(readings), stalled: stalled.clone() }));
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
        Self { registry, requests, published, refused, stalled, reloads, in_sync, config_hash, config_read }
    }

    /// Counts a request.
    pub(crate) fn requested(&self, route: Route, status: u16) {
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        self.requests[route as usize][class].inc();
    }

    /// Notes that a configuration is in use from now on, by its text without secrets.
    pub(crate) fn configured(&self, text: &str, now: Timestamp) {
        // FNV-1a, of which a 64-bit float holds 48 bits exactly. Not a hash against somebody who wants two equal ones.
        let mut hasher = FnvHasher::default();
        hasher.write(text.as_bytes());
        self.config_hash.set((hasher.finish() & 0xffff_ffff_ffff) as i64);
        self.config_read.set((now.as_millis() / 1000) as i64);
    }

    /// All of them.
    ///
    /// # Errors
    /// Never, as a `String` takes everything.
    pub(crate) fn encode(&self, format: Format) -> Result<String, fmt::Error> {
        let mut open = String::new();
        prometheus_client::encoding::text::encode(&mut open, &self.registry)?;
        Ok(match format {
            Format::OpenMetrics => open,
            Format::Text => text::from_open_metrics(&open),
        })
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// Metrics that nothing reads, for tests.
#[cfg(test)]
pub(crate) fn unread() -> std::sync::Arc<Metrics> {
    std::sync::Arc::new(Metrics::new(Readings::default))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::auth::{BackendLoad, KeySet};
    use crate::event::GapReason;
    use crate::hub::SpansReading;

    /// With a number of its own for each metric.
    fn sample() -> Metrics {
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
            ready: Some(3),
            expires: [("certificate", None), ("token", Some(1_900_000_000))],
            passed: Some(31),
            window_events: 4,
            window_bytes: 400,
            last_message: Some(Timestamp::from_micros(1_500_000)),
            lag: Some(Duration::from_millis(250)),
            behind: Some(13),
        };
        let spans = SpansReading { buckets: vec![(0.5, 2), (f64::INFINITY, 1)], sum: 7.5 };
        Metrics::new(move || Readings {
            sources: vec![source.clone()],
            subscribers: 5,
            ended: vec![("slow", 6)],
            lasted: spans.clone(),
            stalled: 2,
            delivered: vec![("http/1.1", 21, 22)],
            latencies: vec![("broker", spans.clone()), ("receipt", SpansReading::default())],
            refused_tokens: vec![("expired", 23)],
            backend: Some(BackendLoad { questions: [("granted", 27); 4], cached: 28, in_flight: 29, breaker_open: true }),
            key_sets: vec![KeySet { url: "https://a/b".into(), age: Some(Duration::from_secs(24)) }],
            certificates: vec![("public", Timestamp::from_micros(25_000_000))],
            ..Readings::default()
        })
    }

    #[test]
    fn what_is_counted_is_written() {
        let metrics = sample();
        metrics.stalled.inc();
        metrics.configured("a", Timestamp::from_micros(26_000_000));
        metrics.requested(Route::Events, 200);
        metrics.requested(Route::Other, 404);
        metrics.published.published(Published::TooLarge);
        metrics.refused.refused(Refused::OwnCap);
        let text = metrics.encode(Format::OpenMetrics).unwrap();
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
            "brokercast_source_last_message_timestamp_seconds{source=\"a\\\"b\"} 1.5",
            "brokercast_source_lag_seconds{source=\"a\\\"b\"} 0.25",
            "brokercast_source_lag_messages{source=\"a\\\"b\"} 13",
            "brokercast_source_passed_offsets_total{source=\"a\\\"b\"} 31",
            "brokercast_stalled_connections_total 3",
            "brokercast_stream_seconds_bucket{le=\"0.5\"} 2",
            "brokercast_stream_seconds_bucket{le=\"+Inf\"} 3",
            "brokercast_stream_seconds_count 3",
            "brokercast_delivered_events_total{transport=\"http/1.1\"} 21",
            "brokercast_delivered_bytes_total{transport=\"http/1.1\"} 22",
            "brokercast_delivery_seconds_bucket{le=\"+Inf\",from=\"broker\"} 3",
            "brokercast_delivery_seconds_sum{from=\"broker\"} 7.5",
            "brokercast_refused_tokens_total{reason=\"expired\"} 23",
            "brokercast_backend_questions_total{result=\"granted\"} 27",
            "brokercast_backend_cached_answers_total 28",
            "brokercast_backend_questions_in_flight 29",
            "brokercast_backend_breaker_open 1",
            "brokercast_jwks_loaded{url=\"https://a/b\"} 1",
            "brokercast_jwks_age_seconds{url=\"https://a/b\"} 24.0",
            "brokercast_certificate_expiry_timestamp_seconds{listener=\"public\"} 25.0",
            "brokercast_config_last_success_timestamp_seconds 26",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_process_says_what_it_takes() {
        let text = unread().encode(Format::Text).unwrap();
        for name in ["process_resident_memory_bytes ", "process_open_fds ", "process_start_time_seconds ", "process_cpu_seconds_total "] {
            let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{name} in {text}"));
            assert!(line[name.len()..].parse::<f64>().unwrap() >= 0.0, "{line}");
        }
    }

    /// What `promtool check metrics` looks for, so that it is found where there is no promtool too.
    #[test]
    fn every_metric_has_a_help_a_type_and_a_name_that_follows_the_rules() {
        let text = unread().encode(Format::Text).unwrap();
        let mut types = std::collections::HashMap::new();
        let mut helped = std::collections::HashSet::new();
        for line in text.lines() {
            if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|line| line.split_once(' ')) {
                assert!(!help.is_empty() && helped.insert(name), "{line}");
            } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) {
                assert!(types.insert(name, kind).is_none() && helped.contains(name), "{line}");
                assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
                for word in name.split('_') {
                    let not_base =
                        ["ms", "milliseconds", "minutes", "hours", "days", "kilobytes", "megabytes", "counter", "gauge", "histogram"];
                    assert!(!not_base.contains(&word), "{line}");
                }
                assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{line}");
            } else {
                let name = line.split(['{', ' ']).next().unwrap();
                let base =
                    ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).filter(|base| types.contains_key(base));
                let kind = types.get(base.unwrap_or(name)).unwrap_or_else(|| panic!("{line} has no type"));
                assert_eq!(base.is_some(), *kind == "histogram", "{line}");
            }
        }
        assert!(types.len() > 40, "{types:?}");
    }
}
