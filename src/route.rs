//! Routing: what becomes of a source's message. First match wins; what no route matches passes unchanged.
//!
//! Pure. Knows messages, events and rules; not where messages come from or who gets the events.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::event::{Envelope, Event, Message, SourceName};
use crate::subject::{self, Cover, Pattern, Subject};

mod explain;
mod reach;
pub(crate) mod settings;
mod template;
#[cfg(test)]
mod tests;

pub(crate) use explain::Fate;
use template::{NameTemplate, Nameless, SubjectTemplate};

/// The prefix of control events' names; no route may give an event such a name.
pub(crate) const RESERVED: &str = "brokercast.";

/// The most patterns that [`Router::inputs`] gives.
const MAX_INPUTS: usize = 32;

/// What can happen to one source's messages.
#[derive(Debug)]
pub(crate) struct Router {
    /// Those that can match, in order.
    rules: Box<[Rule]>,
    /// The subjects that its events can have.
    outputs: Box<[reach::Output]>,
    /// The subjects that its messages can have.
    inputs: Box<[Pattern]>,
    /// No two subjects become one.
    keeps_apart: bool,
    counts: Arc<Counts>,
}

/// What was changed more than its rule says, by the routers that share this.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    shortened: AtomicU64,
    reserved: AtomicU64,
}

/// One of `routes`.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    /// The key path at which it is configured.
    key: Arc<str>,
    /// Only messages of this source.
    source: Option<SourceName>,
    /// Only these subjects.
    matches: Pattern,
    action: Action,
}

#[derive(Debug, Clone, PartialEq)]
enum Action {
    Drop,
    Pass(Arc<Pass>),
}

/// What becomes of a message that goes on.
#[derive(Debug, PartialEq)]
struct Pass {
    subject: Option<SubjectTemplate>,
    name: Option<NameTemplate>,
    envelope: Envelope,
    /// The headers that the `json` envelope shows.
    headers: Option<Arc<[Box<str>]>>,
    /// Whether a message without a payload says that its subject was deleted.
    deleted: bool,
}

impl Rule {
    /// Drops the messages of one subject of a source, because of what is configured at the key path `key`.
    #[must_use]
    pub(crate) fn hide(source: SourceName, matches: Pattern, key: &str) -> Self {
        Self { key: key.into(), source: Some(source), matches, action: Action::Drop }
    }

    fn is_of(&self, source: &SourceName) -> bool {
        self.source.as_ref().is_none_or(|of| of == source)
    }

    /// Whether it matches a subject of `reach`.
    fn meets(&self, reach: &[Pattern]) -> bool {
        reach.iter().any(|of| of.intersects(&self.matches))
    }

    /// Whether it takes every message whose subject it matches. A template that needs a header may not.
    fn takes_all(&self) -> bool {
        self.renames().is_none_or(|template| !template.needs_header())
    }

    fn renames(&self) -> Option<&SubjectTemplate> {
        match &self.action {
            Action::Drop => None,
            Action::Pass(pass) => pass.subject.as_ref(),
        }
    }
}

/// The key paths of rules that can never match, since others before them take all of it that `sources` can have. Each with
/// those that do.
#[must_use]
pub(crate) fn shadowed<'a>(rules: &'a [Rule], sources: &[(&SourceName, Vec<Pattern>)]) -> Vec<(&'a str, Vec<&'a str>)> {
    let mut matching: Vec<Option<bool>> = vec![None; rules.len()];
    for (source, reach) in sources {
        let mut taken = Cover::default();
        for (rule, matching) in rules.iter().zip(&mut matching).filter(|(rule, _)| rule.is_of(source)) {
            if rule.meets(reach) {
                *matching = Some(*matching == Some(true) || reach::left(reach, &rule.matches, &taken));
            }
            if rule.takes_all() {
                taken.add(&rule.matches);
            }
        }
    }
    let never = matching.iter().enumerate().filter(|(_, matching)| **matching == Some(false));
    never.map(|(n, _)| (&*rules[n].key, takers(&rules[..n], &rules[n], sources))).collect()
}

/// The key paths of the rules `before` that take messages from a rule.
fn takers<'a>(before: &'a [Rule], rule: &Rule, sources: &[(&SourceName, Vec<Pattern>)]) -> Vec<&'a str> {
    let concerned = |(source, reach): &&(&SourceName, Vec<Pattern>)| rule.is_of(source) && rule.meets(reach);
    let sources: Vec<_> = sources.iter().filter(concerned).map(|(source, _)| *source).collect();
    let takes =
        |other: &&Rule| other.takes_all() && other.matches.intersects(&rule.matches) && sources.iter().any(|source| other.is_of(source));
    before.iter().filter(takes).map(|other| &*other.key).collect()
}

impl Router {
    /// Applies `rules` to a source, with the patterns that hold all it can produce.
    #[must_use]
    pub(crate) fn new(rules: &[Rule], source: &SourceName, reach: &[Pattern], counts: Arc<Counts>) -> Self {
        let mut before = Cover::default();
        let mut applicable = Vec::new();
        for rule in rules {
            if !rule.is_of(source) || !reach::left(reach, &rule.matches, &before) {
                continue;
            }
            if rule.takes_all() {
                before.add(&rule.matches);
            }
            applicable.push(rule.clone());
        }
        Self {
            outputs: reach::outputs(reach, &applicable).into(),
            inputs: reach.into(),
            keeps_apart: reach::keeps_apart(reach, &applicable),
            rules: applicable.into(),
            counts,
        }
    }

    /// What becomes of a message; `None`: a route dropped it.
    #[must_use]
    pub(crate) fn route(&self, message: Message) -> Option<Event> {
        for rule in self.rules.iter().filter(|rule| rule.matches.matches(message.subject.as_str())) {
            let Action::Pass(pass) = &rule.action else { return None };
            let renamed = match &pass.subject {
                None => None,
                Some(template) => match template.apply(&message.subject, &message.headers) {
                    None => continue,
                    Some((renamed, shortened)) => {
                        self.counts.shortened.fetch_add(u64::from(shortened), Relaxed);
                        Some(renamed)
                    }
                },
            };
            return Some(self.pass(pass, renamed, message));
        }
        Some(Event::of(message))
    }

    fn pass(&self, pass: &Pass, renamed: Option<Subject>, message: Message) -> Event {
        let name = pass.name.as_ref().and_then(|name| match name.apply(message.subject.as_str(), &message.headers) {
            Ok(name) => Some(name),
            Err(nameless) => {
                self.counts.reserved.fetch_add(u64::from(nameless == Nameless::Reserved), Relaxed);
                None
            }
        });
        let mut event = Event { name, envelope: pass.envelope, shown: pass.headers.clone(), ..Event::of(message) };
        event.deleted |= pass.deleted && event.payload.is_empty();
        event.subject = renamed.unwrap_or(event.subject);
        event
    }

    /// Patterns that together hold every subject that the source's events can have after routing: at times more, as
    /// a pattern cannot say "all but". [`Router::concerns`] is exact there.
    #[must_use]
    pub(crate) fn reach(&self) -> Vec<Pattern> {
        reach::patterns(&self.outputs)
    }

    /// Whether events of the source can, after routing, match one of `patterns`: whom a gap in it concerns.
    #[must_use]
    pub(crate) fn concerns(&self, patterns: &[Pattern]) -> bool {
        reach::concerns(&self.outputs, &self.rules, patterns)
    }

    /// The subjects before routing that can, after it, match one of `patterns`, as disjoint patterns; at times more.
    /// `None`: all, or they cannot be said so.
    #[must_use]
    pub(crate) fn inputs(&self, patterns: &[Pattern]) -> Option<Vec<Pattern>> {
        let inputs = reach::inputs(&self.inputs, &self.rules, patterns);
        // A name of a broker that is no subject was escaped: nobody knows from what.
        if patterns.iter().chain(&inputs).any(|pattern| pattern.as_str().contains('%')) {
            return None;
        }
        let all = || self.inputs.iter().all(|input| input.covered_by(&inputs));
        (inputs.len() <= MAX_INPUTS && subject::disjoint(&inputs) && !all()).then_some(inputs)
    }

    /// Whether events of the source that have the same subject before routing may have different ones after it: then the newest
    /// of each before it are not the newest of each after it.
    #[must_use]
    pub(crate) fn splits(&self) -> bool {
        self.rules.iter().any(|rule| !rule.takes_all())
    }

    /// Whether this router does with every message what the other does.
    #[must_use]
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        let same = |(a, b): (&Rule, &Rule)| a.matches == b.matches && a.action == b.action;
        self.inputs == other.inputs && self.rules.len() == other.rules.len() && self.rules.iter().zip(&other.rules).all(same)
    }

    /// Whether events of the source that have different subjects before routing have different ones after it.
    #[must_use]
    pub(crate) fn keeps_apart(&self) -> bool {
        self.keeps_apart
    }
}

impl Counts {
    /// How many renamed subjects had to be shortened to be no longer than a subject may be.
    #[must_use]
    pub(crate) fn shortened(&self) -> u64 {
        self.shortened.load(Relaxed)
    }

    /// How many events lost their name because a capture made it one of the [`RESERVED`].
    #[must_use]
    pub(crate) fn reserved_names(&self) -> u64 {
        self.reserved.load(Relaxed)
    }
}
