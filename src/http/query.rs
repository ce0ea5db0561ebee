//! What a request for events asks for: its parameters and its `Last-Event-ID`, read and checked.
//!
//! Pure. Knows the limits, but not what the request is permitted to see.

use std::borrow::Cow;
use std::time::Duration;

use http::HeaderMap;

use super::problem::Problem;
use super::settings::Limits;
use crate::auth::Wanted;
use crate::cursor::{Cursor, Point};
use crate::event::Timestamp;
use crate::settings::value::parse_duration;
use crate::stream::Begin;
use crate::subject::Pattern;
use crate::support::form;

/// How far a client's clock may be ahead of ours.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// What they are called.
const PARAMETERS: [&str; 4] = ["subject", "since", "envelope", "last_event_id"];

/// The parameters of `GET /events`.
#[derive(Debug, PartialEq)]
pub(crate) struct Query {
    /// Which events are wanted.
    pub(crate) wanted: Wanted,
    /// Where to begin.
    pub(crate) begin: Begin,
    /// `envelope=json`: everything in one envelope, for one `onmessage`.
    pub(crate) json: bool,
}

impl Query {
    /// Reads the query and the header. `token` is the parameter that may hold a token. Unknown parameters are ignored, since clients
    /// add some to bypass caches, but those that are a slip of the pen: `subjects=…` would else be all that a token permits.
    ///
    /// # Errors
    /// With 400 for an invalid parameter.
    pub(crate) fn read(
        query: Option<&str>,
        headers: &HeaderMap,
        limits: &Limits,
        token: Option<&str>,
        now: Timestamp,
    ) -> Result<Self, Problem> {
        let mut patterns = Vec::new();
        let (mut since, mut envelope, mut cursor) = (None, None, None);
        for (name, value) in form::pairs(query.unwrap_or_default()) {
            match &*name {
                b"subject" => {
                    let value = text("subject", value)?;
                    let pattern = pattern(&value, limits)?;
                    if !patterns.contains(&pattern) {
                        if patterns.len() == limits.patterns {
                            return Err(Problem::parameter("subject", format!("at most {} patterns in one request", limits.patterns)));
                        }
                        patterns.push(pattern);
                    }
                }
                b"since" => once("since", &mut since, text("since", value)?)?,
                b"envelope" => once("envelope", &mut envelope, text("envelope", value)?)?,
                // The last one counts: clients append it to a URL that may have one already. An empty one means that the client
                // has no id (HTML, "last event ID string"), and is ignored.
                b"last_event_id" | b"lastEventId" if !value.is_empty() => cursor = Some(value),
                b"last_event_id" | b"lastEventId" => {}
                name if token.is_some_and(|token| token.as_bytes() == name) => {}
                name => not_near(name, token)?,
            }
        }
        let since = since.as_deref().map(|s| parse_since(s, now)).transpose()?;
        let json = match envelope.as_deref() {
            None => false,
            Some("json") => true,
            Some(_) => return Err(Problem::parameter("envelope", "`envelope` is `json` or absent")),
        };
        let sent = headers.get("last-event-id").map(http::HeaderValue::as_bytes).filter(|id| !id.is_empty());
        let sent = sent.map(Cow::Borrowed).or(cursor);
        let begin = match sent {
            Some(id) => match std::str::from_utf8(&id).ok().and_then(|id| Cursor::from_id(id).ok()) {
                Some(cursor) => Begin::After(cursor),
                None => Begin::Unreadable,
            },
            None => since.unwrap_or(Begin::Now),
        };
        let wanted = if patterns.is_empty() { Wanted::All } else { Wanted::These(patterns) };
        Ok(Self { wanted, begin, json })
    }
}

/// Refuses a name that is a slip of the pen.
fn not_near(name: &[u8], token: Option<&str>) -> Result<(), Problem> {
    let Some(meant) = near::meant(name, PARAMETERS.into_iter().chain(token)) else { return Ok(()) };
    let name = String::from_utf8_lossy(name);
    Err(Problem::parameter(meant, format!("there is no parameter `{}`: it is `{meant}`", name.escape_debug())))
}

fn text(name: &'static str, value: Cow<'_, [u8]>) -> Result<String, Problem> {
    String::from_utf8(value.into_owned()).map_err(|_| Problem::parameter(name, format!("`{name}` is not valid UTF-8")))
}

fn once(name: &'static str, slot: &mut Option<String>, value: String) -> Result<(), Problem> {
    if slot.replace(value).is_some() {
        return Err(Problem::parameter(name, format!("`{name}` is given more than once")));
    }
    Ok(())
}

fn pattern(text: &str, limits: &Limits) -> Result<Pattern, Problem> {
    if text.len() > limits.pattern_bytes {
        return Err(Problem::parameter("subject", format!("a pattern has at most {} bytes", limits.pattern_bytes)));
    }
    let pattern: Pattern = text.parse().map_err(|e| Problem::parameter("subject", format!("the pattern `{}` {e}", text.escape_debug())))?;
    if pattern.tokens().count() > limits.pattern_tokens {
        return Err(Problem::parameter("subject", format!("a pattern has at most {} tokens", limits.pattern_tokens)));
    }
    Ok(pattern)
}

fn since(time: Timestamp) -> Begin {
    Begin::At(Point::Since(time.as_millis()))
}

fn parse_since(text: &str, now: Timestamp) -> Result<Begin, Problem> {
    match text {
        "now" => return Ok(Begin::Now),
        "all" => return Ok(Begin::At(Point::Earliest)),
        "last" => return Ok(Begin::At(Point::Last)),
        _ => {}
    }
    if let Some(span) = parse_duration(text) {
        return Ok(since(now.before(span)));
    }
    let time = parse_time(text).ok_or_else(|| {
        Problem::parameter(
            "since",
            "`since` is `now`, `all`, `last`, a duration such as `10m`, or an RFC 3339 time such as `2026-01-31T12:00:00Z`",
        )
    })?;
    if time.before(CLOCK_SKEW) > now {
        return Err(Problem::parameter("since", "`since` lies in the future"));
    }
    Ok(since(time))
}

/// Reads an RFC 3339 time. An unescaped `+` was decoded to a space, so the last space is read as `+`.
fn parse_time(text: &str) -> Option<Timestamp> {
    let time: jiff::Timestamp = text.parse().ok().or_else(|| {
        let (time, offset) = text.rsplit_once(' ')?;
        format!("{time}+{offset}").parse().ok()
    })?;
    // A time before 1970 is before all events.
    Some(Timestamp::from_micros(u64::try_from(time.as_microsecond()).unwrap_or(0)))
}

/// Whether a client accepts only event streams, so that only a stream can tell it anything: `Accept` has no other range
/// with `q` above 0 (RFC 9110 section 12.5.1). Without `Accept` a client accepts everything.
pub(crate) fn takes_only_streams(headers: &HeaderMap) -> bool {
    let mut stream = false;
    for value in headers.get_all(http::header::ACCEPT) {
        let Ok(value) = value.to_str() else { return false };
        for range in value.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let Some(kind) = parts.next().filter(|kind| !kind.is_empty()) else { continue };
            let quality = parts.filter_map(|p| p.split_once('=')).find(|(name, _)| name.trim().eq_ignore_ascii_case("q"));
            if quality.is_some_and(|(_, q)| q.trim().parse() == Ok(0.0_f32)) {
                continue;
            }
            if !kind.eq_ignore_ascii_case("text/event-stream") {
                return false;
            }
            stream = true;
        }
    }
    stream
}

mod near;
#[cfg(test)]
mod tests;
