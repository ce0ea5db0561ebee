//! What routing does with one subject, rule by rule: for telling a person why nothing comes of it.
//!
//! Pure.

use std::sync::Arc;

use super::{Action, Router, reach};
use crate::subject::{Pattern, Subject};

/// What a rule does with a subject. The text is the rule's key path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Drops the messages of this subject.
    Drops(Arc<str>),
    /// Passes them on as they are called.
    Passes(Arc<str>),
    /// Passes them on by this name.
    Renames(Arc<str>, Subject),
    /// May rename them: its template needs a header.
    MayRename(Arc<str>),
    /// Gives this name to messages of other subjects, which this pattern holds.
    Gives(Arc<str>, Pattern),
}

impl Fate {
    /// The rule's key path.
    #[must_use]
    pub(crate) fn rule(&self) -> &str {
        match self {
            Self::Drops(rule) | Self::Passes(rule) | Self::Renames(rule, _) | Self::MayRename(rule) | Self::Gives(rule, _) => rule,
        }
    }
}

impl Router {
    /// What the rules do with messages that the broker calls so, up to the first that takes them, and which rules call other
    /// messages so.
    #[must_use]
    pub(crate) fn fates(&self, subject: &Subject) -> Vec<Fate> {
        let comes = self.inputs.iter().any(|input| input.matches(subject.as_str()));
        let mut fates: Vec<Fate> = if comes { self.taken(subject) } else { Vec::new() };
        let Ok(asked) = subject.as_str().parse::<Pattern>() else { return fates };
        for rule in self.rules.iter() {
            let Some(template) = rule.renames() else { continue };
            if reach::gives(&self.inputs, rule, template, &asked) && !fates.iter().any(|fate| fate.rule() == &*rule.key) {
                fates.push(Fate::Gives(rule.key.clone(), rule.matches.clone()));
            }
        }
        fates
    }

    fn taken(&self, subject: &Subject) -> Vec<Fate> {
        let mut fates = Vec::new();
        for rule in self.rules.iter().filter(|rule| rule.matches.matches(subject.as_str())) {
            let fate = match (&rule.action, rule.renames()) {
                (Action::Drop, _) => Fate::Drops(rule.key.clone()),
                (_, None) => Fate::Passes(rule.key.clone()),
                (_, Some(template)) => match template.apply(subject, &crate::event::Headers::default()) {
                    Some((renamed, _)) => Fate::Renames(rule.key.clone(), renamed),
                    None => Fate::MayRename(rule.key.clone()),
                },
            };
            let last = !matches!(fate, Fate::MayRename(_));
            fates.push(fate);
            if last {
                break;
            }
        }
        fates
    }
}
