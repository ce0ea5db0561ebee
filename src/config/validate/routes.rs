//! `routes`: what they match, and templates that fit it.

use crate::config::{Problems, RouteAction, RouteRule, raw};
use crate::event::SourceName;
use crate::route::{self, RouteError};
use crate::subject::{Pattern, SubjectError};

pub(super) fn validate(raw: Vec<raw::Route>, sources: &[&str], problems: &mut Problems) -> Vec<RouteRule> {
    raw.into_iter().enumerate().filter_map(|(n, raw)| rule(raw, sources, &format!("routes[{n}]"), problems)).collect()
}

fn rule(raw: raw::Route, sources: &[&str], path: &str, problems: &mut Problems) -> Option<RouteRule> {
    let Some(matches) = raw.matches else {
        problems.add(path, "must say what it is about: `match: { source: …, subject: … }`");
        return None;
    };
    let source = matches.source.and_then(|name| {
        if !sources.contains(&name.as_str()) {
            let known = if sources.is_empty() { "none are configured".to_owned() } else { format!("configured: {}", sources.join(", ")) };
            problems.add(format!("{path}.match.source"), format!("must be the name of a source ({known})"));
        }
        // A name that is no name is a problem of the source itself.
        name.parse::<SourceName>().ok()
    });
    let pattern = match matches.subject.map(|text| text.parse::<Pattern>()) {
        None => Pattern::all(),
        Some(Ok(pattern)) => pattern,
        Some(Err(error)) => {
            let error: SubjectError = error;
            problems.add(format!("{path}.match.subject"), format!("{error}; must be a pattern such as orders.*.created"));
            return None;
        }
    };
    let shapes = raw.subject.is_some() || raw.event.is_some() || raw.envelope.is_some();
    let action = if raw.drop == Some(true) {
        if shapes {
            problems.add(path, "must not give subject, event or envelope to what it drops");
        }
        RouteAction::Drop
    } else {
        RouteAction::Pass { subject: raw.subject, event: raw.event, envelope: raw.envelope.unwrap_or_default() }
    };
    let rule = RouteRule { source, matches: pattern, action };
    check(&rule, path, problems);
    Some(rule)
}

/// Asks the router whether it can use the rule, each template for itself so that both are told of.
fn check(rule: &RouteRule, path: &str, problems: &mut Problems) {
    let RouteAction::Pass { subject, event, envelope } = &rule.action else { return };
    let alone = |subject: Option<String>, event: Option<String>| RouteRule {
        source: None,
        matches: rule.matches.clone(),
        action: RouteAction::Pass { subject, event, envelope: *envelope },
    };
    for rule in [alone(subject.clone(), None), alone(None, event.clone())] {
        match route::check(&rule) {
            Ok(()) => {}
            Err(RouteError::Subject(error)) => problems.add(format!("{path}.subject"), error.to_string()),
            Err(RouteError::Event(error)) => problems.add(format!("{path}.event"), error.to_string()),
        }
    }
}
