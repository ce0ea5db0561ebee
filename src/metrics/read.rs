//! What others count, read at the moment somebody asks, and how it is written.
//!
//! Knows names, helps and what the counters of other rooms look like; not where they are.

use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::ConstGauge;

use super::Labels;
use crate::auth::{BackendLoad, KeySet};
use crate::event::{GapReason, Timestamp};
use crate::{history, hub};

/// A source as its owner reads it when somebody asks.
#[derive(Debug, Clone, Default)]
pub(crate) struct SourceReading {
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
    /// When its last message came.
    pub last_message: Option<Timestamp>,
    /// How old that was then, by the broker's time; of a durable source.
    pub lag: Option<Duration>,
    /// Messages of its log that have not come yet, where its broker tells that.
    pub behind: Option<u64>,
    /// Messages that readers of its log took for clients that were behind.
    pub history_events: u64,
    /// Bytes of them.
    pub history_bytes: u64,
    /// Readers of its log that could not be opened or were lost, by kind.
    pub history_errors: Vec<(&'static str, u64)>,
    /// Messages that wait in the broker's queue, where that is known.
    pub ready: Option<u64>,
    /// When our credentials expire, in seconds since 1970, by what they are.
    pub expires: [(&'static str, Option<u64>); 2],
    /// Offsets of its log at which nothing came, where that is counted.
    pub passed: Option<u64>,
    /// Events in its window.
    pub window_events: u64,
    /// Bytes of them.
    pub window_bytes: u64,
}

/// What others count, at the moment somebody asks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Readings {
    /// All sources.
    pub sources: Vec<SourceReading>,
    /// Bytes that each window may hold.
    pub window_max: u64,
    /// Streams that are open.
    pub subscribers: u64,
    /// How many there may be.
    pub subscribers_max: u64,
    /// Streams that ended, by reason.
    pub ended: Vec<(&'static str, u64)>,
    /// How long they lasted.
    pub lasted: hub::SpansReading,
    /// Filters with subscribers.
    pub channels: u64,
    /// Bytes of their logs.
    pub logs: u64,
    /// How many there may be.
    pub logs_max: u64,
    /// What is read of brokers' logs for clients that are behind.
    pub history: history::Load,
    /// Connections to the public listener.
    pub connections: u64,
    /// Streams and sockets that were cut because their client took nothing, beside those that [`super::Metrics::stalled`] counts.
    pub stalled: u64,
    /// Events and bytes that sockets took, by transport.
    pub delivered: Vec<(&'static str, u64, u64)>,
    /// How long events took to the sockets, by where that begins.
    pub latencies: Vec<(&'static str, hub::SpansReading)>,
    /// Requests whose token was refused, by reason.
    pub refused_tokens: Vec<(&'static str, u64)>,
    /// How `auth.backend` is asked, where there is one.
    pub backend: Option<BackendLoad>,
    /// Key sets behind URLs, no two of the same URL.
    pub key_sets: Vec<KeySet>,
    /// When the listeners' certificates expire.
    pub certificates: Vec<(&'static str, Timestamp)>,
    /// Renamed subjects that had to be shortened.
    pub shortened_subjects: u64,
    /// Event names left out because they are reserved.
    pub reserved_names: u64,
    /// Lines of the access log that were left out.
    pub access_left_out: u64,
    /// Lines of the log that were left out.
    pub log_left_out: u64,
    /// Revocations that are kept.
    pub revocations: u64,
    /// Messages of `auth.revocations`, by what became of them.
    pub revocation_messages: [(&'static str, u64); 2],
}

/// [`Readings`], whenever they are asked for.
pub(super) struct Read {
    pub(super) readings: Box<dyn Fn() -> Readings + Send + Sync>,
    pub(super) stalled: Counter,
}

impl fmt::Debug for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Read")
    }
}

type Row<T = u64> = (Vec<(&'static str, String)>, T);

/// Writes metrics one after the other.
struct Writer<'e>(DescriptorEncoder<'e>);

impl Writer<'_> {
    fn counter(&mut self, name: &str, help: &str, rows: impl IntoIterator<Item = Row>) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in rows {
            if labels.is_empty() {
                return ConstCounter::new(value).encode(metric);
            }
            ConstCounter::new(value).encode(metric.encode_family(&Labels(labels))?)?;
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, rows: impl IntoIterator<Item = Row>) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        let gauge = |value: u64| ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        for (labels, value) in rows {
            if labels.is_empty() {
                return gauge(value).encode(metric);
            }
            gauge(value).encode(metric.encode_family(&Labels(labels))?)?;
        }
        Ok(())
    }

    fn seconds(&mut self, name: &str, help: &str, rows: impl IntoIterator<Item = Row<f64>>) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        rows.into_iter().try_for_each(|(labels, value)| ConstGauge::new(value).encode(metric.encode_family(&Labels(labels))?))
    }

    fn single(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(metric)
    }

    fn histogram<'a>(&mut self, name: &str, help: &str, rows: impl IntoIterator<Item = Row<&'a hub::SpansReading>>) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, hub::SpansReading { buckets, sum }) in rows {
            let count = buckets.iter().map(|(_, count)| count).sum();
            if labels.is_empty() {
                return metric.encode_histogram::<NoLabelSet>(*sum, count, buckets, None);
            }
            metric.encode_family(&Labels(labels))?.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)?;
        }
        Ok(())
    }
}

fn label(name: &'static str, value: impl Into<String>) -> Vec<(&'static str, String)> {
    vec![(name, value.into())]
}

/// One row for each source.
fn by<T>(all: &Readings, value: impl Fn(&SourceReading) -> Option<T>) -> impl Iterator<Item = Row<T>> {
    all.sources.iter().filter_map(move |source| Some((label("source", &source.name), value(source)?)))
}

/// One row for each source and each word that it counts by.
fn by_word<'a>(
    all: &'a Readings,
    name: &'static str,
    words: impl Fn(&'a SourceReading) -> Vec<(&'static str, u64)>,
) -> impl Iterator<Item = Row> {
    all.sources.iter().flat_map(move |source| {
        let row = move |(word, n): (&str, u64)| (vec![("source", source.name.clone()), (name, word.to_owned())], n);
        words(source).into_iter().map(row)
    })
}

fn seconds(time: Timestamp) -> f64 {
    time.as_micros() as f64 / 1e6
}

fn sources(w: &mut Writer<'_>, all: &Readings) -> fmt::Result {
    w.counter("source_messages", "Messages taken from the source", by(all, |s| Some(s.messages)))?;
    w.counter("source_payload_bytes", "Bytes of the payloads of these messages", by(all, |s| Some(s.bytes)))?;
    w.counter("source_events", "Events that routing passed on", by(all, |s| Some(s.events)))?;
    w.counter("source_dropped_messages", "Messages that a route dropped", by(all, |s| Some(s.dropped)))?;
    let gaps = by_word(all, "reason", |s| s.gaps.iter().map(|(reason, n)| (reason.as_str(), *n)).collect());
    w.counter("source_gaps", "Gaps that the source reported, by reason", gaps)?;
    w.counter("source_reconnects", "Connections after the first", by(all, |s| Some(s.reconnects)))?;
    let help = "Failed attempts to connect and lost connections, by kind";
    w.counter("source_errors", help, by_word(all, "kind", |s| s.errors.clone()))?;
    w.gauge("source_up", "1 while the source is connected", by(all, |s| Some(u64::from(s.up))))?;
    let help = "When the source's last message came, in seconds since 1970; absent before the first";
    w.seconds("source_last_message_timestamp_seconds", help, by(all, |s| s.last_message.map(seconds)))?;
    let help = "How old the last message of a durable source was when it came, by the broker's time";
    w.seconds("source_lag_seconds", help, by(all, |s| s.lag.map(|lag| lag.as_secs_f64())))?;
    let help = "Messages of the source's log that have not come yet, where its broker tells that and the source is connected";
    w.gauge("source_lag_messages", help, by(all, |s| s.behind))?;
    let help = "Messages that wait in the broker's queue, as of a few seconds ago, while the source is connected";
    w.gauge("source_queue_messages", help, by(all, |s| s.ready))?;
    let help = "Offsets of a RabbitMQ stream at which the broker delivered nothing between two messages, and none was lost";
    w.counter("source_passed_offsets", help, by(all, |s| s.passed))?;
    let expires = by_word(all, "credential", |s| s.expires.iter().filter_map(|(what, at)| Some((*what, (*at)?))).collect());
    let help = "When our credentials expire with which the source was connected last, in seconds since 1970";
    w.gauge("source_credentials_expiry_timestamp_seconds", help, expires)?;
    w.gauge("window_events", "Events in the source's window", by(all, |s| Some(s.window_events)))?;
    w.gauge("window_bytes", "Bytes of the events in the source's window", by(all, |s| Some(s.window_bytes)))?;
    w.single("window_max_bytes", "Bytes that the window of each source may hold", all.window_max)
}

/// What is read of brokers' logs for clients that are behind.
fn history(w: &mut Writer<'_>, all: &Readings) -> fmt::Result {
    let history::Load { readers, clients, waiting, oldest, cached, cached_max } = all.history;
    w.single("history_readers", "Readers of brokers' logs that are open for clients that are behind", readers as u64)?;
    w.single("history_clients", "Clients that read a broker's log, or wait for it", clients as u64)?;
    w.single("history_waiting", "Clients that wait for a reader", waiting as u64)?;
    let metric = w.0.encode_descriptor("history_oldest_wait_seconds", "The longest of these waits", None, MetricType::Gauge)?;
    ConstGauge::new(oldest.as_secs_f64()).encode(metric)?;
    w.single("history_cache_bytes", "Bytes that were read of brokers' logs and are kept for clients that come later", cached as u64)?;
    w.single("history_cache_max_bytes", "Bytes that may be kept", cached_max as u64)?;
    w.counter("history_events", "Messages that readers took from the source's log", by(all, |s| Some(s.history_events)))?;
    w.counter("history_bytes", "Bytes of these messages", by(all, |s| Some(s.history_bytes)))?;
    let help = "Readers of the source's log that could not be opened or were lost, by kind";
    w.counter("history_errors", help, by_word(all, "kind", |s| s.history_errors.clone()))
}

fn streams(w: &mut Writer<'_>, all: &Readings, stalled: u64) -> fmt::Result {
    w.single("subscribers", "Streams that are open", all.subscribers)?;
    w.single("subscribers_max", "Streams that may be open at most", all.subscribers_max)?;
    let ended = all.ended.iter().map(|(reason, n)| (label("reason", *reason), *n));
    w.counter("ended_subscribers", "Streams that ended, by reason", ended)?;
    w.histogram("stream_seconds", "How long the streams lasted that have ended", [(Vec::new(), &all.lasted)])?;
    w.single("channels", "Distinct filters with subscribers", all.channels)?;
    w.single("channel_log_bytes", "Bytes of the logs of all channels together", all.logs)?;
    w.single("channel_log_max_bytes", "Bytes beyond which their oldest entries are dropped", all.logs_max)?;
    w.single("connections", "Connections to the public listener", all.connections)?;
    let stalls = [(Vec::new(), all.stalled + stalled)];
    w.counter("stalled_connections", "Connections and streams cut because the client took nothing", stalls)?;
    let delivered = |value: fn(&(&'static str, u64, u64)) -> u64| all.delivered.iter().map(move |of| (label("transport", of.0), value(of)));
    w.counter("delivered_events", "Events that sockets took, once for each stream", delivered(|of| of.1))?;
    let help = "Bytes of streams that sockets took, before TLS and without heads";
    w.counter("delivered_bytes", help, delivered(|of| of.2))?;
    let help = "How long live events took to the sockets, once for each event and round of a writer: from the broker's time, or from the \
                receipt";
    w.histogram("delivery_seconds", help, all.latencies.iter().map(|(from, spans)| (label("from", *from), spans)))
}

fn security(w: &mut Writer<'_>, all: &Readings) -> fmt::Result {
    let refused = all.refused_tokens.iter().map(|(reason, n)| (label("reason", *reason), *n));
    w.counter("refused_tokens", "Requests refused for their token, by reason", refused)?;
    let asked = all.backend.iter();
    let questions = asked.clone().flat_map(|of| of.questions.iter().map(|(result, n)| (label("result", *result), *n)));
    let help = "Questions to `auth.backend`, by what became of them; not_asked: the breaker was open, or too many waited";
    w.counter("backend_questions", help, questions)?;
    let help = "Requests that an earlier answer of `auth.backend` served";
    w.counter("backend_cached_answers", help, asked.clone().map(|of| (Vec::new(), of.cached)))?;
    let in_flight = asked.clone().map(|of| (Vec::new(), of.in_flight));
    w.gauge("backend_questions_in_flight", "Questions to `auth.backend` that are under way", in_flight)?;
    let help = "1 while `auth.backend` is not asked, or only tried, since it failed too often";
    w.gauge("backend_breaker_open", help, asked.map(|of| (Vec::new(), u64::from(of.breaker_open))))?;
    let loaded = all.key_sets.iter().map(|set| (label("url", &set.url), u64::from(set.age.is_some())));
    w.gauge("jwks_loaded", "1 if the key set was fetched since the start", loaded)?;
    let sets = all.key_sets.iter().filter_map(|set| Some((label("url", &set.url), set.age?.as_secs_f64())));
    w.seconds("jwks_age_seconds", "Since the key set was fetched last; absent before the first time", sets)?;
    let expiry = all.certificates.iter().map(|(listener, at)| (label("listener", *listener), seconds(*at)));
    w.seconds("certificate_expiry_timestamp_seconds", "When the listener's certificate expires, in seconds since 1970", expiry)
}

impl Collector for Read {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (mut writer, all) = (Writer(encoder), (self.readings)());
        let w = &mut writer;
        sources(w, &all)?;
        streams(w, &all, self.stalled.get())?;
        history(w, &all)?;
        security(w, &all)?;
        let total = |value| [(Vec::new(), value)];
        let help = "Renamed subjects that were too long and had to be shortened";
        w.counter("route_shortened_subjects", help, total(all.shortened_subjects))?;
        w.counter("route_reserved_names", "Event names left out because they are reserved", total(all.reserved_names))?;
        w.single("revocations", "Revocations that are kept", all.revocations)?;
        let messages = all.revocation_messages.iter().map(|(result, n)| (label("result", *result), *n));
        w.counter("revocation_messages", "Messages of `auth.revocations`, by what became of them", messages)?;
        w.counter("access_log_left_out", "Lines of the access log that were left out", total(all.access_left_out))?;
        let help = "Lines of the log that were left out, as standard error took them too slowly";
        w.counter("log_left_out", help, total(all.log_left_out))?;
        w.gauge("build_info", "Always 1; the label says which version runs", [(label("version", env!("CARGO_PKG_VERSION")), 1)])
    }
}
