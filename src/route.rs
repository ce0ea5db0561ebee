//! Routing: what becomes of a source's message. First match wins; what no route matches passes unchanged.
//!
//! Pure. Knows messages, events and rules; not where messages come from or who gets the events.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::event::{Envelope, Event, Message, SourceName};
use crate::subject::{Pattern, Subject};

mod reach;
pub mod settings;
mod template;
#[cfg(test)]
mod tests;

use template::{NameTemplate, SubjectTemplate};

/// The prefix of control events' names; no route may give an event such a name.
pub const RESERVED: &str = "brokercast.";

/// The most patterns that [`Router::inputs`] gives.
const MAX_INPUTS: usize = 32;

/// What can happen to one source's messages.
#[derive(Debug)]
pub struct Router {
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
pub struct Counts {
    shortened: AtomicU64,
    reserved: AtomicU64,
}

/// One of `routes`.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Only messages of this source.
    source: Option<SourceName>,
    /// Only these subjects.
    matches: Pattern,
    action: Action,
}

#[derive(Debug, Clone)]
enum Action {
    Drop,
    Pass { subject: Option<Arc<SubjectTemplate>>, name: Option<Arc<NameTemplate>>, envelope: Envelope },
}

impl Router {
    /// Applies `rules` to a source, with the patterns that hold all it can produce.
    #[must_use]
    pub fn new(rules: &[Rule], source: &SourceName, reach: &[Pattern], counts: Arc<Counts>) -> Self {
        let mut before: Vec<Pattern> = Vec::new();
        let mut applicable = Vec::new();
        for rule in rules {
            if rule.source.as_ref().is_some_and(|of| of != source) || !reach::left(reach, &rule.matches, &before) {
                continue;
            }
            before.push(rule.matches.clone());
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
    pub fn route(&self, message: Message) -> Option<Event> {
        let subject = message.subject.as_str();
        let Some(rule) = self.rules.iter().find(|rule| rule.matches.matches(subject)) else {
            return Some(event(message, None, None, Envelope::default()));
        };
        match &rule.action {
            Action::Drop => None,
            Action::Pass { subject: to, name, envelope } => {
                let name = name.as_ref().and_then(|name| {
                    let made = name.apply(subject);
                    self.counts.reserved.fetch_add(u64::from(made.is_none()), Relaxed);
                    made
                });
                let renamed = to.as_ref().map(|to| {
                    let (renamed, shortened) = to.apply(&message.subject);
                    self.counts.shortened.fetch_add(u64::from(shortened), Relaxed);
                    renamed
                });
                Some(event(message, renamed, name, *envelope))
            }
        }
    }

    /// Patterns that together hold every subject that the source's events can have after routing: at times more, as
    /// a pattern cannot say "all but". [`Router::concerns`] is exact there.
    #[must_use]
    pub fn reach(&self) -> Vec<Pattern> {
        reach::patterns(&self.outputs)
    }

    /// Whether events of the source can, after routing, match one of `patterns`: whom a gap in it concerns.
    #[must_use]
    pub fn concerns(&self, patterns: &[Pattern]) -> bool {
        reach::concerns(&self.outputs, &self.rules, patterns)
    }

    /// The subjects before routing that can, after it, match one of `patterns`, as disjoint patterns; at times more.
    /// `None`: all, or they cannot be said so.
    #[must_use]
    pub fn inputs(&self, patterns: &[Pattern]) -> Option<Vec<Pattern>> {
        // A name of a broker that is no subject was escaped: nobody knows from what.
        if patterns.iter().any(|pattern| pattern.as_str().contains('%')) {
            return None;
        }
        let inputs = reach::inputs(&self.inputs, &self.rules, patterns);
        let disjoint = inputs.iter().enumerate().all(|(n, input)| !inputs[..n].iter().any(|other| other.intersects(input)));
        let all = self.inputs.iter().all(|input| input.covered_by(&inputs));
        (disjoint && !all && inputs.len() <= MAX_INPUTS).then_some(inputs)
    }

    /// Whether events of the source that have different subjects before routing have different ones after it.
    #[must_use]
    pub fn keeps_apart(&self) -> bool {
        self.keeps_apart
    }
}

impl Counts {
    /// How many renamed subjects had to be shortened to be no longer than a subject may be.
    #[must_use]
    pub fn shortened(&self) -> u64 {
        self.shortened.load(Relaxed)
    }

    /// How many events lost their name because a capture made it one of the [`RESERVED`].
    #[must_use]
    pub fn reserved_names(&self) -> u64 {
        self.reserved.load(Relaxed)
    }
}

fn event(message: Message, renamed: Option<Subject>, name: Option<Arc<str>>, envelope: Envelope) -> Event {
    let Message { subject, payload, time, position } = message;
    Event { subject: renamed.unwrap_or(subject), payload, time, position, name, envelope }
}
