//! The log: where it goes, in which form, and how much of it. Beside it the access log and traces.
//!
//! The log goes to standard error; standard output is for a command's results. Knows nothing of what is logged.

use std::io::IsTerminal as _;

use tracing::{Level, Metadata};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{ParseError, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{EnvFilter, Registry, reload};

mod access;
mod settings;
mod traces;

pub(crate) use access::{Access, Line, Lines};
pub(crate) use settings::{AccessFormat, Format, Settings};
pub(crate) use traces::{Settings as TraceSettings, Span, SpanRef, Traces};

/// Why the log cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Error {
    /// `RUST_LOG` is not a filter. `log.filter` was checked with the configuration.
    #[error("`RUST_LOG` is not a filter such as info or brokercast=debug,warn")]
    Filter(#[source] ParseError),
    /// There is one already.
    #[error("a log is set up already")]
    Twice(#[source] TryInitError),
}

/// Log targets, and the level from which on they show what goes over the wire. hyper's shows a path that is no URL with
/// its token, brokers' libraries show passwords and payloads at `TRACE`.
const TELLTALE: (&str, Level) = ("h2::server", Level::DEBUG);

/// The filter without these libraries, unless it names them: they log every lost connection as an error of their own,
/// which the sources log once, and with its cause.
fn quietened(filter: &str, libraries: &[&str]) -> String {
    let unasked = libraries.iter().filter(|name| !filter.contains(*name));
    unasked.map(|name| format!("{name}=off,")).collect::<String>() + filter
}

/// Whether an event may be logged, whatever the filter says.
fn discreet(event: &Metadata<'_>, libraries: &[&str]) -> bool {
    let within = |(name, level): (&str, Level)| event.level() >= &level && event.target().starts_with(name);
    !libraries.iter().map(|name| (*name, Level::TRACE)).chain([TELLTALE]).any(within)
}

/// Sets the log up for the whole process. `RUST_LOG`, where set, counts instead of `log.filter`.
///
/// # Errors
/// If `RUST_LOG` is not a filter, or the log is set up already.
pub(crate) fn init(log: Settings) -> Result<(Log, Written), Error> {
    let Settings { format, filter, libraries, .. } = log;
    let asked = std::env::var("RUST_LOG").ok().filter(|text| !text.trim().is_empty());
    let from_environment = asked.is_some();
    let filter: EnvFilter = match asked {
        Some(asked) => quietened(&asked, &libraries).parse().map_err(Error::Filter)?,
        None => filter,
    };
    let (filter, handle) = reload::Layer::new(filter);
    let terminal = std::io::stderr().is_terminal();
    let text = match format {
        Format::Auto => terminal,
        Format::Text => true,
        Format::Json => false,
    };
    let registry = tracing_subscriber::registry().with(filter).with(filter_fn(move |event| discreet(event, &libraries)));
    // A pipe that nobody reads, or a terminal that is held, must hold up nobody who logs: a thread of its own writes.
    let (writer, written) = NonBlockingBuilder::default().buffered_lines_limit(QUEUE).thread_name("log").finish(std::io::stderr());
    let left_out = writer.error_counter();
    // If standard error is closed, reporting that there would panic.
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).log_internal_errors(false);
    let done = if text {
        let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        registry.with(layer.with_ansi(colours)).try_init()
    } else {
        registry.with(layer.json().flatten_event(true).with_current_span(false).with_span_list(false)).try_init()
    };
    done.map_err(Error::Twice)?;
    // A panic becomes one line of the log. Only its place is logged: its message could hold a payload.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(String::new, ToString::to_string);
        tracing::error!(place, "panicked");
    }));
    if from_environment {
        tracing::info!("`RUST_LOG` counts instead of `log.filter`");
    }
    Ok((Log { filter: Some(handle).filter(|_| !from_environment), left_out }, Written(written)))
}

/// Lines that wait to be written. What comes when they are as many is left out.
const QUEUE: usize = 16 << 10;

/// Dropped at the end of the process: waits until all that was logged is written, for about a second at most.
#[derive(Debug)]
pub(crate) struct Written(#[expect(dead_code, reason = "what counts is when it is dropped")] WorkerGuard);

/// The log of the process.
#[derive(Debug)]
pub(crate) struct Log {
    /// Its filter, which can be exchanged; `None`: it cannot, as `RUST_LOG` counts.
    filter: Option<reload::Handle<EnvFilter, Registry>>,
    left_out: ErrorCounter,
}

impl Log {
    /// Counts the lines that were left out, as standard error took them too slowly.
    pub(crate) fn left_out(&self) -> impl Fn() -> u64 + Send + Sync + 'static {
        let left_out = self.left_out.clone();
        move || left_out.dropped_lines() as u64
    }

    /// From now on `log.filter` is this one's.
    pub(crate) fn configure(&self, log: Settings) {
        if let Some(handle) = &self.filter {
            // It fails only when the log is gone, with the process.
            handle.reload(log.filter).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loud_library_is_heard_only_when_asked_for() {
        let libraries = ["lapin", "async_nats"];
        assert_eq!(quietened("info", &libraries), "lapin=off,async_nats=off,info");
        assert_eq!(quietened("info,lapin=debug", &libraries), "async_nats=off,info,lapin=debug");
        assert!(quietened("brokercast=debug,warn", &libraries).parse::<EnvFilter>().is_ok());
    }
}
