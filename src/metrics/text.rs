//! The forms in which metrics are written, and which of them a request wants.
//!
//! The library writes OpenMetrics only. Most of what reads metrics, and every person with curl, wants the older text format
//! of Prometheus (version 0.0.4). The two differ in a few comment lines, so a converter of these lines is enough; another
//! library would bring a second registry.

use std::collections::HashSet;

/// How metrics are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Prometheus' text format 0.0.4.
    Text,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// What an `Accept` header wants most; `None`: there is none. What names neither form gets the text.
    #[must_use]
    pub(crate) fn accepted(accept: Option<&str>) -> Self {
        let (mut open, mut text) = (0.0, 0.0);
        for range in accept.unwrap_or("*/*").split(',') {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
            let quality: f64 = quality.map_or(1.0, |quality| quality.trim().parse().unwrap_or(0.0));
            match kind.as_str() {
                "application/openmetrics-text" | "application/*" => open = f64::max(open, quality),
                "text/plain" | "text/*" | "*/*" => text = f64::max(text, quality),
                _ => {}
            }
        }
        if open > 0.0 && open >= text { Self::OpenMetrics } else { Self::Text }
    }

    /// `Content-Type`
    #[must_use]
    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Rewrites OpenMetrics as Prometheus' text format: a counter is described by the name of its samples, which ends in `_total`,
/// and there are neither units nor an end mark.
pub(super) fn from_open_metrics(open: &str) -> String {
    let counter = |line: &str| Some(line.strip_prefix("# TYPE ")?.strip_suffix(" counter")?.to_owned());
    let counters: HashSet<String> = open.lines().filter_map(counter).collect();
    let mut text = String::with_capacity(open.len() + 8 * counters.len());
    for line in open.lines() {
        if line.starts_with("# UNIT ") || line == "# EOF" {
            continue;
        }
        let described = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE "));
        let name = described.and_then(|described| described.split(' ').next());
        match name.filter(|name| counters.contains(*name)) {
            Some(name) => {
                let (before, behind) = line.split_at("# HELP ".len() + name.len());
                text.push_str(before);
                text.push_str("_total");
                text.push_str(behind);
            }
            None => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_follows_what_is_accepted_most() {
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;\
                          version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, wanted) in [
            (None, Format::Text),
            (Some(""), Format::Text),
            (Some("*/*"), Format::Text),
            (Some("text/plain"), Format::Text),
            (Some("text/plain; version=0.0.4"), Format::Text),
            (Some("application/json"), Format::Text),
            (Some("text/html, */*;q=0.1"), Format::Text),
            (Some("application/openmetrics-text"), Format::OpenMetrics),
            (Some("Application/OpenMetrics-Text; version=1.0.0; charset=utf-8"), Format::OpenMetrics),
            (Some("application/openmetrics-text;q=0, text/plain"), Format::Text),
            (Some("application/openmetrics-text;q=0.4,text/plain;q=0.5"), Format::Text),
            (Some(prometheus), Format::OpenMetrics),
        ] {
            assert_eq!(Format::accepted(accept), wanted, "{accept:?}");
        }
    }

    #[test]
    fn counters_are_described_by_the_name_of_their_samples() {
        let open = "# HELP a_b Help of a.\n# TYPE a_b counter\na_b_total{x=\"# TYPE a_b counter\"} 1\n# HELP c Of c a_b.\n# TYPE c gauge\n\
                    # UNIT c bytes\nc 2\n# EOF\n";
        let text = "# HELP a_b_total Help of a.\n# TYPE a_b_total counter\na_b_total{x=\"# TYPE a_b counter\"} 1\n# HELP c Of c a_b.\n\
                    # TYPE c gauge\nc 2\n";
        assert_eq!(from_open_metrics(open), text);
    }
}
