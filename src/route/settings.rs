//! `routes`: what they match, and what becomes of it.
//!
//! Templates are read into what routing uses.

use std::sync::Arc;

use super::template::{NameTemplate, SubjectTemplate};
use super::{Action, Pass, Rule};
use crate::event::{Envelope, SourceName};
use crate::settings::{Choice, Slot};
use crate::subject::Pattern;

impl Choice for Envelope {
    const WORDS: &'static [(&'static str, Self)] = &[("json", Self::Json), ("raw", Self::Raw), ("cloudevents", Self::CloudEvents)];
}

/// Reads `routes`. `sources` are the names that are configured.
#[must_use]
pub(crate) fn read(routes: Slot<'_>, sources: &[&str]) -> Vec<Rule> {
    let rules = routes.list(|route| rule(route, sources)).or(Vec::new());
    rules.into_iter().enumerate().map(|(n, rule)| Rule { key: format!("routes[{n}]").into(), ..rule }).collect()
}

fn rule(route: Slot<'_>, sources: &[&str]) -> Option<Rule> {
    let route = route.section().terse();
    let matches = route.key("match").optional_section();
    if matches.is_none() {
        route.problem_here("must say what it is about: `match: { source: …, subject: … }`");
    }
    let mut source = None;
    let mut pattern = Some(Pattern::all());
    if let Some(matches) = matches {
        let known = if sources.is_empty() { "none are configured".to_owned() } else { format!("configured: {}", sources.join(", ")) };
        let expected = format!("must be the name of a source ({known})");
        let name = matches.key("source").text().check(|name| sources.contains(&name.as_str()), &expected).optional();
        // A name that cannot be one is a problem of the source itself.
        source = name.and_then(|name| name.parse::<SourceName>().ok());
        if matches.has("subject") {
            pattern = matches.key("subject").text().parse("must be a pattern such as orders.*.created").optional();
        }
    }
    let drop = route.key("drop").flag().optional() == Some(true);
    if drop && ["subject", "event", "envelope", "headers", "deleted"].map(|name| route.has(name)).contains(&true) {
        route.problem_here("must give nothing else to what it drops");
    }
    let (subject, event, envelope) = (route.key("subject").text(), route.key("event").text(), route.key("envelope").choice().optional());
    let header = |item: Slot<'_>| item.text().check(|name| good_header(name), "must be the name of a header").required();
    let headers = route.key("headers").texts(header).check(|names| !names.is_empty(), "must list at least one header").optional();
    let deleted = route.key("deleted").choice::<Empty>().optional().is_some();
    let matches = pattern?;
    // Whether a template fits depends on the pattern.
    let subject = subject.convert(|text| SubjectTemplate::new(&text, &matches).map_err(|e| e.to_string())).optional();
    let name = event.convert(|text| NameTemplate::new(&text, &matches).map_err(|e| e.to_string())).optional();
    let headers = headers.map(|names| names.into_iter().map(String::into_boxed_str).collect());
    let pass = Pass { subject, name, envelope: envelope.unwrap_or_default(), headers, deleted };
    Some(Rule { key: Arc::from(""), source, matches, action: if drop { Action::Drop } else { Action::Pass(Arc::new(pass)) } })
}

fn good_header(name: &str) -> bool {
    !name.is_empty() && name.len() <= 255 && !name.contains(char::is_control)
}

/// `routes[].deleted`
#[derive(Debug, Clone, Copy, PartialEq)]
struct Empty;

impl Choice for Empty {
    const WORDS: &'static [(&'static str, Self)] = &[("empty", Self)];
}
