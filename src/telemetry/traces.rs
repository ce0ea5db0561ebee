//! Traces: one span for each opening of a stream, each message published by HTTP and each reload.
//!
//! Spans are recorded only in a build with the feature `otlp`, where `traces` is configured: `traces/otlp.rs` exports them. In every
//! build a publisher's `traceparent` goes on with its message. Knows nothing of what a span is about.

use std::fmt;

use http::HeaderMap;
#[cfg(feature = "otlp")]
use std::{sync::Arc, time::Duration};

#[cfg(feature = "otlp")]
mod otlp;
mod settings;

pub(crate) use settings::Settings;

/// The header that names the span within which a request was sent (W3C Trace Context).
const TRACEPARENT: &str = "traceparent";

/// A span of any process: what `traceparent` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SpanRef {
    trace: u128,
    span: u64,
    flags: u8,
}

impl SpanRef {
    /// The span that a request names, if it names exactly one in the right form.
    #[must_use]
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut lines = headers.get_all(TRACEPARENT).iter();
        let (line, more) = (lines.next()?, lines.next());
        Self::read(line.to_str().ok()?).filter(|_| more.is_none())
    }

    /// W3C Trace Context, section 3.2. A later version may add fields behind those of version 0.
    fn read(text: &str) -> Option<Self> {
        let hex = |part: &str, digits: usize| {
            let good = part.len() == digits && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            good.then(|| u128::from_str_radix(part, 16).ok())?
        };
        let mut parts = text.trim().split('-');
        let mut next = |digits| hex(parts.next()?, digits);
        let (version, trace, span, flags) = (next(2)?, next(32)?, next(16)?, next(2)?);
        let good = version != 0xff && (version > 0 || parts.next().is_none()) && trace != 0 && span != 0;
        good.then(|| Some(Self { trace, span: u64::try_from(span).ok()?, flags: u8::try_from(flags).ok()? }))?
    }
}

/// As `traceparent` is written.
impl fmt::Display for SpanRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace, span, flags } = self;
        write!(f, "00-{trace:032x}-{span:016x}-{flags:02x}")
    }
}

/// The value of an attribute.
#[derive(Debug)]
#[cfg_attr(not(feature = "otlp"), expect(dead_code, reason = "nothing reads attributes in this build"))]
pub(crate) enum Value {
    /// A word of ours.
    Word(&'static str),
    /// A text of a request.
    Text(String),
    /// A number.
    Number(i64),
}

impl From<&'static str> for Value {
    fn from(word: &'static str) -> Self {
        Self::Word(word)
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

/// A name and a value.
pub(super) type Attribute = (&'static str, Value);

/// Where spans go. Cheap to clone; all clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Traces {
    #[cfg(feature = "otlp")]
    exporter: Arc<arc_swap::ArcSwapOption<otlp::Exporter>>,
}

impl Traces {
    /// Where the settings say. Must be called within the runtime.
    #[must_use]
    pub(crate) fn of(settings: Option<&Settings>) -> Self {
        let traces = Self::default();
        traces.configure(settings);
        traces
    }

    /// Begins a span that serves a request, below the span that the request names.
    #[must_use]
    pub(crate) fn request(&self, name: &'static str, headers: &HeaderMap) -> Span {
        self.begin(name, true, SpanRef::of(headers))
    }

    /// Begins a span of the process's own work.
    #[must_use]
    pub(crate) fn work(&self, name: &'static str, parent: Option<SpanRef>) -> Span {
        self.begin(name, false, parent)
    }
}

#[cfg(not(feature = "otlp"))]
impl Traces {
    /// Does nothing: the settings are refused in this build.
    pub fn configure(&self, settings: Option<&Settings>) {
        debug_assert!(settings.is_none());
    }

    fn begin(&self, _: &'static str, _: bool, parent: Option<SpanRef>) -> Span {
        Span { parent }
    }

    /// Does nothing.
    pub async fn end(&self) {}
}

#[cfg(feature = "otlp")]
impl Traces {
    /// How long the end waits for the collector to take what is left.
    const FLUSH: Duration = Duration::from_secs(1);

    /// From now on spans go where the settings say. Must be called within the runtime.
    pub(crate) fn configure(&self, settings: Option<&Settings>) {
        if self.exporter.load().as_ref().map(|exporter| exporter.settings()) == settings {
            return;
        }
        let newer = settings.and_then(|settings| match otlp::Exporter::start(settings) {
            Ok(exporter) => Some(Arc::new(exporter)),
            Err(error) => {
                tracing::error!(%error, "traces are not exported");
                None
            }
        });
        if let Some(before) = self.exporter.swap(newer) {
            // Nobody waits for it.
            drop(tokio::task::spawn_blocking(move || before.end(Self::FLUSH)));
        }
    }

    fn begin(&self, name: &'static str, serves: bool, parent: Option<SpanRef>) -> Span {
        Span { parent, recorded: self.exporter.load().as_ref().map(|exporter| exporter.begin(name, serves, parent)) }
    }

    /// Exports what is left, within a second. Spans that end later are lost.
    pub(crate) async fn end(&self) {
        if let Some(exporter) = self.exporter.swap(None) {
            // Fails only where the runtime is gone.
            drop(tokio::task::spawn_blocking(move || exporter.end(Self::FLUSH)).await);
        }
    }
}

/// A span that has begun. Dropped without [`Self::end`] it has no attributes: its client has gone.
#[derive(Debug)]
pub(crate) struct Span {
    parent: Option<SpanRef>,
    #[cfg(feature = "otlp")]
    recorded: Option<otlp::Recorded>,
}

#[cfg(not(feature = "otlp"))]
impl Span {
    /// The span that is to be the parent of what follows from this one: it itself, or its parent where it is not recorded.
    #[must_use]
    pub fn for_children(&self) -> Option<SpanRef> {
        self.parent
    }

    /// Ends it.
    pub fn end(self, _failed: bool, _attributes: impl FnOnce() -> Vec<Attribute>) {}
}

#[cfg(feature = "otlp")]
impl Span {
    /// The span that is to be the parent of what follows from this one: it itself, or its parent where it is not recorded.
    #[must_use]
    pub(crate) fn for_children(&self) -> Option<SpanRef> {
        self.recorded.as_ref().map(otlp::Recorded::reference).or(self.parent)
    }

    /// Ends it. `failed`: by a fault of this side.
    pub(crate) fn end(self, failed: bool, attributes: impl FnOnce() -> Vec<Attribute>) {
        if let Some(recorded) = self.recorded {
            recorded.end(failed, attributes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_strictly_and_written_again() {
        for good in [GOOD, "00-00000000000000000000000000000001-0000000000000001-00"] {
            assert_eq!(SpanRef::read(good).unwrap().to_string(), good);
        }
        let later = GOOD.replacen("00", "cc", 1);
        assert_eq!(SpanRef::read(&format!("{later}-more")).unwrap().to_string(), GOOD);
        for bad in [
            "",
            "00",
            &GOOD[..54],
            &format!("{GOOD}0"),
            &format!("{GOOD}-more"),
            &GOOD.replacen("00", "ff", 1),
            &GOOD.to_uppercase(),
            &GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", "00000000000000000000000000000000"),
            &GOOD.replace("00f067aa0ba902b7", "0000000000000000"),
            &GOOD.replace("4bf", "+bf"),
            &GOOD.replace('-', "_"),
        ] {
            assert_eq!(SpanRef::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn two_parents_are_none() {
        let mut headers = HeaderMap::new();
        headers.append(TRACEPARENT, GOOD.parse().unwrap());
        assert_eq!(SpanRef::of(&headers).map(|parent| parent.to_string()).as_deref(), Some(GOOD));
        headers.append(TRACEPARENT, GOOD.parse().unwrap());
        assert_eq!(SpanRef::of(&headers), None);
    }
}
