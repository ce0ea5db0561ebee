//! `traces`: where spans are exported, and how many of them.

use http::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

use crate::settings::{Secret, Section, Slot};
use crate::support::web::is_plain;

/// `traces`
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    /// Where the collector takes spans.
    pub(super) endpoint: Url,
    /// Sent with each export; their values are secrets.
    pub(super) headers: HeaderMap,
    /// What collectors call this service.
    pub(super) service_name: String,
    /// The share of traces that begin here and are recorded, from 0 to 1.
    pub(super) ratio: f64,
}

impl Settings {
    /// Takes the keys of `traces`. `built_in`: whether this build can export spans.
    pub(crate) fn read(slot: Slot<'_>, built_in: bool) -> Option<Self> {
        let traces = slot.optional_section()?;
        if !built_in {
            traces.problem_here("needs a brokercast that was built with the cargo feature `otlp`");
        }
        let expected = "must be a URL without a user in it: http://collector:4318/v1/traces";
        let endpoint = traces.key("endpoint").address().convert(|url| endpoint(&url).ok_or_else(|| expected.to_owned())).required();
        let headers = headers(&traces);
        let service_name = traces.key("service_name").text().check(|name| !name.trim().is_empty(), "must not be empty");
        let service_name = service_name.or("brokercast".to_owned());
        let share = |text: &str| text.trim().parse().ok().filter(|share| (0.0..=1.0).contains(share));
        let ratio = traces.key("ratio").text().default("1".to_owned()).read("must be a number from 0 to 1", share).optional();
        Some(Self { endpoint: endpoint?, headers: headers?, service_name, ratio: ratio? }).filter(|_| built_in)
    }
}

fn endpoint(url: &Secret) -> Option<Url> {
    let mut url: Url = url.expose_str().ok()?.parse().ok()?;
    let plain = is_plain(&url);
    // What the OTLP specification adds to an endpoint for all signals.
    if url.path() == "/" {
        url.set_path("/v1/traces");
    }
    plain.then_some(url)
}

fn headers(traces: &Section<'_>) -> Option<HeaderMap> {
    let (inline, file) = (traces.has("headers"), traces.has("headers_file"));
    let read = |text: Secret| lines(&text).ok_or_else(|| "must hold one header in each line, such as Authorization: Bearer …".to_owned());
    let headers = traces.secret("headers").convert(read).optional();
    if inline || file { headers } else { Some(HeaderMap::new()) }
}

fn lines(text: &Secret) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for line in text.expose_str().ok()?.lines().filter(|line| !line.trim().is_empty()) {
        let (name, value) = line.split_once(':')?;
        let mut value: HeaderValue = value.trim().parse().ok()?;
        value.set_sensitive(true);
        headers.append(name.trim().parse::<HeaderName>().ok()?, value);
    }
    Some(headers)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::settings::tests::read_at;

    fn read(traces: &serde_json::Value, built_in: bool) -> Result<Settings, Vec<String>> {
        read_at(&["traces"], traces, |section| Settings::read(section.key("in"), built_in))
    }

    #[test]
    fn an_endpoint_without_a_path_gets_that_of_traces_and_headers_are_lines() {
        let settings = read(
            &json!({"in": {"endpoint": "http://collector:4318", "headers": "Authorization: Bearer s3cret\n\nx-a:b", "ratio": 0.5}}),
            true,
        )
        .unwrap();
        assert_eq!((settings.endpoint.as_str(), settings.ratio), ("http://collector:4318/v1/traces", 0.5));
        assert_eq!((&settings.headers["authorization"], settings.headers.len()), (&HeaderValue::from_static("Bearer s3cret"), 2));
        assert!(!format!("{settings:?}").contains("s3cret"));
        let plain = read(&json!({"in": {"endpoint": "https://c/p?q=1"}}), true).unwrap();
        assert_eq!((plain.endpoint.path(), plain.service_name.as_str(), plain.ratio), ("/p", "brokercast", 1.0));
    }

    #[test]
    fn what_is_wrong_is_named_and_a_build_without_the_feature_names_it() {
        for (traces, key) in [
            (json!({}), "traces.in.endpoint"),
            (json!({"endpoint": "grpc://c:4317"}), "traces.in.endpoint"),
            (json!({"endpoint": "http://a:b@c"}), "traces.in.endpoint"),
            (json!({"endpoint": "http://c", "ratio": "2"}), "traces.in.ratio"),
            (json!({"endpoint": "http://c", "ratio": "NaN"}), "traces.in.ratio"),
            (json!({"endpoint": "http://c", "service_name": " "}), "traces.in.service_name"),
            (json!({"endpoint": "http://c", "headers": "no header"}), "traces.in.headers"),
        ] {
            let problems = read(&json!({"in": traces}), true).unwrap_err();
            assert!(problems.len() == 1 && problems[0].contains(key), "{problems:?}");
        }
        let problems = read(&json!({"in": {"endpoint": "http://c"}}), false).unwrap_err();
        assert!(problems.len() == 1 && problems[0].contains("cargo feature `otlp`"), "{problems:?}");
    }
}
