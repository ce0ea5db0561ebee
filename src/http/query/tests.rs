use http::header::ACCEPT;
use http::{HeaderMap, HeaderValue, StatusCode};

use super::*;
use crate::cursor::{Point, Position};

const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

fn limits() -> Limits {
    Limits { patterns: 3, pattern_bytes: 20, pattern_tokens: 4 }
}

fn read(query: &str) -> Result<Query, StatusCode> {
    Query::read(Some(query), &HeaderMap::new(), &limits(), Some("access_token"), NOW).map_err(|p| p.status())
}

fn patterns(query: &str) -> Vec<String> {
    match read(query).unwrap().wanted {
        Wanted::All => Vec::new(),
        Wanted::These(patterns) => patterns.iter().map(ToString::to_string).collect(),
    }
}

fn id() -> String {
    Cursor { epoch: 7, volatile: Point::At(Position::unverified(3)), durable: Vec::new() }.to_id()
}

#[test]
fn patterns_are_decoded_gathered_and_told_once() {
    assert_eq!(patterns(""), Vec::<String>::new());
    assert_eq!(patterns("subject=a.%3E&x=1&subject=b.*&subject=a.>"), ["a.>", "b.*"]);
    assert_eq!(patterns("subject=%C3%A4"), ["ä"]);
}

#[test]
fn what_is_no_pattern_or_too_much_of_it_is_refused() {
    for bad in [
        "subject=",
        "subject",
        "subject=a..b",
        "subject=a+b",
        "subject=%FF",
        "subject=a>",
        "subject=a.b.c.d.e",
        "subject=aaaaaaaaaaaaaaaaaaaaa",
    ] {
        assert_eq!(read(bad), Err(StatusCode::BAD_REQUEST), "{bad}");
    }
    assert!(read("subject=a&subject=b&subject=c&subject=a").is_ok());
    assert_eq!(read("subject=a&subject=b&subject=c&subject=d"), Err(StatusCode::BAD_REQUEST));
}

#[test]
fn since_is_a_word_a_duration_or_a_time() {
    let since = |text: &str| read(&format!("since={text}")).map(|q| q.begin);
    assert_eq!(since("now"), Ok(Begin::Now));
    assert_eq!(since("all"), Ok(Begin::At(Point::Earliest)));
    assert_eq!(since("last"), Ok(Begin::At(Point::Last)));
    assert_eq!(since("10m"), Ok(super::since(NOW.before(Duration::from_secs(600)))));
    let noon = super::since(Timestamp::from_micros(1_577_880_000_000_000));
    for text in ["2020-01-01T12:00:00Z", "2020-01-01T14:00:00%2B02:00", "2020-01-01T14:00:00+02:00", "2020-01-01%2014:00:00+02:00"] {
        assert_eq!(since(text), Ok(noon.clone()), "{text}");
    }
    assert_eq!(since("1960-01-01T00:00:00Z"), Ok(super::since(Timestamp::from_micros(0))));
    for text in ["", "yesterday", "10", "-10m", "2999-01-01T00:00:00Z", "2020-01-01", "99999999999d"] {
        assert_eq!(since(text), Err(StatusCode::BAD_REQUEST), "{text}");
    }
    assert_eq!(read("since=now&since=all"), Err(StatusCode::BAD_REQUEST));
}

#[test]
fn header_beats_parameter_beats_since() {
    let begin = |query: &str, header: Option<&str>| {
        let headers = header.map(|h| (http::HeaderName::from_static("last-event-id"), HeaderValue::from_str(h).unwrap()));
        Query::read(Some(query), &headers.into_iter().collect(), &limits(), Some("access_token"), NOW).unwrap().begin
    };
    let (id, at) = (id(), Begin::After(Cursor::from_id(&id()).unwrap()));
    assert_eq!(begin(&format!("since=all&last_event_id={id}"), None), at);
    assert_eq!(begin(&format!("lastEventId={id}"), None), at);
    assert_eq!(begin("last_event_id=nonsense", Some(&id)), at);
    assert_eq!(begin(&format!("last_event_id={id}"), Some("nonsense")), Begin::Unreadable);
    assert_eq!(begin(&format!("last_event_id={id}&lastEventId="), None), at);
    assert_eq!(begin("since=all&last_event_id=nonsense", None), Begin::Unreadable);
    assert_eq!(begin("since=all&last_event_id=", Some("")), Begin::At(Point::Earliest));
}

#[test]
fn only_json_is_an_envelope_to_ask_for() {
    assert!(read("envelope=json").unwrap().json);
    assert!(!read("").unwrap().json);
    assert_eq!(read("envelope=raw"), Err(StatusCode::BAD_REQUEST));
}

#[test]
fn a_client_takes_only_streams_when_no_other_range_has_quality() {
    let only = |values: &[&'static str]| {
        let headers: HeaderMap = values.iter().map(|v| (ACCEPT, HeaderValue::from_static(v))).collect();
        takes_only_streams(&headers)
    };
    assert!(only(&["text/event-stream"]));
    assert!(only(&["Text/Event-Stream;q=0.5, */*;q=0.0"]));
    assert!(!only(&[]));
    assert!(!only(&["*/*"]));
    assert!(!only(&["text/event-stream, application/json"]));
    assert!(!only(&["text/event-stream", "text/html;q=0.1"]));
    assert!(!only(&["text/event-stream;q=0"]));
}

#[test]
fn a_slip_of_the_pen_is_refused_by_the_right_name_and_other_parameters_pass() {
    let refused = |query: &str| {
        let read = Query::read(Some(query), &HeaderMap::new(), &limits(), Some("access_token"), NOW);
        read.err().map(|problem| format!("{problem:?}"))
    };
    for (query, right) in [
        ("subjects=a", "`subject`"),
        ("Subject=a", "`subject`"),
        ("subject%5B%5D=a", "`subject`"),
        ("subject=a&sincee=1m", "`since`"),
        ("lasteventid=x", "`last_event_id`"),
        ("envelop=json", "`envelope`"),
        ("access_tokens=x", "`access_token`"),
    ] {
        let said = refused(query).unwrap_or_else(|| panic!("{query}"));
        assert!(said.contains(right) && said.contains("400"), "{query}: {said}");
    }
    for query in ["access_token=x", "_=1", "t=1&v=2", "utm_source=x", "lastEventId=", "last_event_id=", "=", "%FF=1", "topic=a"] {
        assert_eq!(refused(query), None, "{query}");
    }
}
