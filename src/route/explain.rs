//! What routing does with one subject, rule by rule: for telling a person why it is seen or not.
//!
//! Pure. Reads templates backwards, which [`reach`] does for patterns only as far as a pattern can say it.

use std::sync::Arc;

use super::template::{Part, SubjectTemplate};
use super::{Action, Router, Rule, reach};
use crate::subject::{Cover, Pattern, Subject};

/// The most steps that reading one template backwards takes. Few placeholders in one token stay far below.
const MAX_STEPS: usize = 100_000;

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
    /// Whether an event of the source can have this subject after routing.
    #[must_use]
    pub(crate) fn gives(&self, subject: &Subject) -> bool {
        self.keeps(subject) || (0..self.rules.len()).any(|number| self.renames_to(number, subject))
    }

    /// What the rules do with messages that the broker calls so, up to the first that takes them, and which rules call other
    /// messages so.
    #[must_use]
    pub(crate) fn fates(&self, subject: &Subject) -> Vec<Fate> {
        let mut fates: Vec<Fate> = if self.comes(subject) { self.taken(subject) } else { Vec::new() };
        for (number, rule) in self.rules.iter().enumerate() {
            if self.renames_to(number, subject) && !fates.iter().any(|fate| fate.rule() == &*rule.key) {
                fates.push(Fate::Gives(rule.key.clone(), rule.matches.clone()));
            }
        }
        fates
    }

    /// Whether the source can produce a message of this subject.
    fn comes(&self, subject: &Subject) -> bool {
        self.inputs.iter().any(|input| input.matches(subject.as_str()))
    }

    /// Whether a message of this subject can go on as it is called.
    fn keeps(&self, subject: &Subject) -> bool {
        let taking = self.matching(subject).find(|rule| rule.takes_all());
        self.comes(subject) && taking.is_none_or(|rule| matches!(rule.action, Action::Pass(_)) && rule.renames().is_none())
    }

    /// Whether this rule renames a message to `subject` that the source can produce and no earlier rule takes.
    fn renames_to(&self, number: usize, subject: &Subject) -> bool {
        let (before, rule) = (&self.rules[..number], &self.rules[number]);
        let before = Cover::new(before.iter().filter(|rule| rule.takes_all()).map(|rule| &rule.matches));
        let comes = |of: &Pattern| reach::left(&self.inputs, of, &before);
        rule.renames().is_some_and(|template| match renamed(template, &rule.matches, subject) {
            Some(subjects) => subjects.iter().any(comes),
            None => comes(&rule.matches),
        })
    }

    fn matching(&self, subject: &Subject) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(|rule| rule.matches.matches(subject.as_str()))
    }

    fn taken(&self, subject: &Subject) -> Vec<Fate> {
        let mut fates = Vec::new();
        for rule in self.matching(subject) {
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

/// The subjects of `matches` that a template renames to `subject`. `None`: there are too many ways to try.
fn renamed(template: &SubjectTemplate, matches: &Pattern, subject: &Subject) -> Option<Vec<Pattern>> {
    let mut ways = Ways { found: Vec::new(), steps: 0 };
    ways.find(&template.parts, subject.as_str(), &mut Vec::new());
    let of_way = |way: Vec<(&Part, &str)>| {
        let mut tokens: Vec<&str> = matches.tokens().collect();
        // A capture that may have been cut could have been anything longer. `>` comes last, so no number moves.
        for (part, text) in way.into_iter().filter(|(_, text)| template.fits(text)) {
            match part {
                Part::Token(number) => tokens[*number] = text,
                Part::Tail(number) => tokens.splice(number.., text.split('.')).for_each(drop),
                Part::Literal(_) | Part::Header(_) => {}
            }
        }
        tokens.join(".").parse().ok()
    };
    (ways.steps <= MAX_STEPS).then(|| ways.found.into_iter().filter_map(of_way).collect())
}

/// The ways to read a subject as what a template made: what each placeholder stands for.
struct Ways<'a> {
    found: Vec<Vec<(&'a Part, &'a str)>>,
    steps: usize,
}

impl<'a> Ways<'a> {
    /// Reads `rest` as what `parts` became, after `way` was chosen for those before them.
    fn find(&mut self, parts: &'a [Part], rest: &'a str, way: &mut Vec<(&'a Part, &'a str)>) {
        self.steps += 1;
        let Some((part, parts)) = parts.split_first() else {
            if rest.is_empty() {
                self.found.push(way.clone());
            }
            return;
        };
        let known = match part {
            Part::Literal(text) => Some(&**text),
            _ => way.iter().find(|(of, _)| *of == part).map(|(_, text)| *text),
        };
        if let Some(rest) = known.and_then(|text| rest.strip_prefix(text)) {
            self.find(parts, rest, way);
        }
        // What was cut twice was cut in the same place.
        if known.is_some() {
            return;
        }
        let longest = if matches!(part, Part::Tail(_)) { rest.len() } else { rest.find('.').unwrap_or(rest.len()) };
        let ends = rest.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= longest);
        for (text, rest) in ends.map(|end| rest.split_at(end)) {
            if self.steps > MAX_STEPS {
                return;
            }
            // A subject has no empty tokens.
            if !text.starts_with('.') && !text.ends_with('.') {
                way.push((part, text));
                self.find(parts, rest, way);
                way.pop();
            }
        }
    }
}
