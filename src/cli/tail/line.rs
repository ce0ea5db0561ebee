//! Events as lines for people (`text`) or programs (`json`).
//!
//! Pure. A line is a line whatever the payload: no line break and nothing that a terminal would obey goes through.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::client::plain;
use super::Event;

/// How an event is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// Time, subject and payload
    Text,
    /// The event's json envelope, for jq and the like
    Json,
}

/// The json envelope.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    subject: Cow<'a, str>,
    #[serde(borrow)]
    time: Option<Cow<'a, str>>,
    #[serde(borrow)]
    event: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    data_base64: Option<Cow<'a, str>>,
}

/// A `null` is data, too.
fn present<'de: 'a, 'a, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
struct Gap<'a> {
    #[serde(borrow)]
    source: Cow<'a, str>,
    #[serde(borrow)]
    reason: Cow<'a, str>,
    #[serde(borrow)]
    from: Option<Cow<'a, str>>,
    #[serde(borrow)]
    to: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Closing<'a> {
    #[serde(borrow)]
    reason: Cow<'a, str>,
}

/// A control event in words; `None` where it is none.
pub(super) fn control(event: &Event) -> Option<String> {
    let kind = event.name.strip_prefix("brokercast.")?;
    let said = match kind {
        "gap" => serde_json::from_str(&event.data).ok().map(|gap: Gap<'_>| {
            let between = match (gap.from, gap.to) {
                (None, None) => String::new(),
                (from, to) => format!(", between {} and {}", from.as_deref().unwrap_or("?"), to.as_deref().unwrap_or("?")),
            };
            let source = if gap.source == "*" { "any source".into() } else { gap.source };
            format!("gap: events of {source} may be missing ({}{between})", gap.reason)
        }),
        "closing" => serde_json::from_str(&event.data).ok().map(|closing: Closing<'_>| format!("closing: {}", closing.reason)),
        _ => None,
    };
    Some(plain(&said.unwrap_or_else(|| format!("{}: {}", event.name, one_line(&event.data)))))
}

/// An event in one line.
pub(super) fn event(event: &Event, format: Format) -> String {
    // A line break in a JSON text can only stand between its tokens.
    let data = one_line(&event.data);
    if format == Format::Json {
        return data.into_owned();
    }
    let Ok(envelope) = serde_json::from_str::<Envelope<'_>>(&data) else { return plain(&data) };
    let payload = match (envelope.data, &envelope.data_base64) {
        (Some(raw), _) => match serde_json::from_str::<String>(raw.get()) {
            Ok(text) => plain(&text),
            Err(_) => plain(raw.get()),
        },
        (None, Some(base64)) => format!("(base64) {}", plain(base64)),
        (None, None) => String::new(),
    };
    let head = [envelope.time.as_deref(), Some(&*envelope.subject)].into_iter().flatten().map(plain);
    let name = envelope.event.as_deref().map(|name| format!("[{}]", plain(name)));
    head.chain(name).chain([payload]).collect::<Vec<_>>().join("  ")
}

fn one_line(text: &str) -> Cow<'_, str> {
    if text.contains(['\n', '\r']) { text.replace(['\n', '\r'], " ").into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, data: &str) -> Event {
        Event { name: name.into(), data: data.into() }
    }

    #[test]
    fn an_event_is_one_line_whatever_it_holds() {
        let json = "{\"subject\":\"a.b\",\"time\":\"T\",\"data\":{\n  \"n\": 12345678901234567890.10\n}}";
        assert_eq!(event(&of("", json), Format::Text), "T  a.b  {   \"n\": 12345678901234567890.10 }");
        assert_eq!(event(&of("", json), Format::Json), json.replace('\n', " "));
        let text = r#"{"subject":"a","time":"T","event":"e","data":"x\n\u001b[2J"}"#;
        assert_eq!(event(&of("", text), Format::Text), "T  a  [e]  x\\n\\u{1b}[2J");
        let binary = r#"{"subject":"a","time":"T","data_base64":"/w=="}"#;
        assert_eq!(event(&of("", binary), Format::Text), "T  a  (base64) /w==");
        assert_eq!(event(&of("", "no envelope\u{7}"), Format::Text), "no envelope\\u{7}");
        assert_eq!(event(&of("", r#"{"subject":"a","time":"T","data":null}"#), Format::Text), "T  a  null");
    }

    #[test]
    fn control_events_are_told_in_words() {
        let gap = r#"{"source":"orders","reason":"retention","from":"5","to":null}"#;
        let told = control(&of("brokercast.gap", gap)).unwrap();
        assert_eq!(told, "gap: events of orders may be missing (retention, between 5 and ?)");
        let unknown = r#"{"source":"*","reason":"unknown_cursor","from":null,"to":null}"#;
        assert_eq!(control(&of("brokercast.gap", unknown)).unwrap(), "gap: events of any source may be missing (unknown_cursor)");
        assert_eq!(control(&of("brokercast.closing", r#"{"reason":"draining"}"#)).unwrap(), "closing: draining");
        assert_eq!(control(&of("brokercast.later", "x\ny")).unwrap(), "brokercast.later: x y");
        assert_eq!(control(&of("order", "{}")), None);
    }
}
