//! Which subjects a source's events can have after routing.
//!
//! Pure. Sets of subjects are patterns. The intersection of two patterns is a pattern, but their difference is not: what
//! earlier routes take away is kept as a list beside the pattern.

use std::slice;

use super::template::{Part, SubjectTemplate};
use super::{Action, Rule};
use crate::subject::{self, Cover, Pattern};

/// The subjects in both sets.
fn intersection(a: &Pattern, b: &Pattern) -> Option<Pattern> {
    if !a.intersects(b) {
        return None;
    }
    let (mut left, mut right) = (a.tokens(), b.tokens());
    let mut out: Vec<&str> = Vec::new();
    loop {
        match (left.next(), right.next()) {
            (Some(">"), Some(token)) => {
                out.push(token);
                out.extend(right);
                break;
            }
            (Some(token), Some(">")) => {
                out.push(token);
                out.extend(left);
                break;
            }
            (Some("*"), Some(token)) | (Some(token), Some(_)) => out.push(token),
            _ => break,
        }
    }
    // At most as long as both together. If that is too long for a pattern, use one of the two: it covers the intersection.
    Some(out.join(".").parse().unwrap_or_else(|_| a.clone()))
}

/// Whether a message of `reach` can match `pattern` and none of the patterns `before` it.
pub(super) fn left(reach: &[Pattern], pattern: &Pattern, before: &Cover) -> bool {
    reach.iter().filter_map(|of| intersection(of, pattern)).any(|both| !before.covers(&both))
}

/// Returns a pattern for the subjects that a template makes of all subjects of `of`.
fn rename(template: &SubjectTemplate, of: &Pattern) -> Pattern {
    let tokens: Vec<&str> = of.tokens().collect();
    let mut out = vec![String::new()];
    for part in &template.parts {
        let (pieces, tail): (Vec<&str>, bool) = match part {
            Part::Literal(text) => (text.split('.').collect(), false),
            Part::Token(number) => (vec![tokens.get(*number).copied().unwrap_or("*")], false),
            Part::Header(_) => (vec!["*"], false),
            Part::Tail(number) => {
                let tail = tokens.get(*number..).unwrap_or(&[">"]);
                (tail.to_vec(), tail.last() == Some(&">"))
            }
        };
        for (i, piece) in pieces.iter().enumerate() {
            if i > 0 {
                out.push(String::new());
            }
            let Some(last) = out.last_mut() else { continue };
            // A token that is partly text and partly wildcard can only be written as `*`.
            if *piece == "*" || last == "*" {
                "*".clone_into(last);
            } else {
                last.push_str(piece);
            }
        }
        if tail {
            // The rest of the template comes somewhere after that.
            if let Some(last) = out.last_mut() {
                ">".clone_into(last);
            }
            break;
        }
    }
    out.join(".").parse().unwrap_or_else(|_| Pattern::all())
}

/// Of the subjects in `of`, those that a template may give a name that `asked` matches; at times more.
fn unrename(template: &SubjectTemplate, of: &Pattern, asked: &Pattern) -> Pattern {
    let mut tokens: Vec<String> = of.tokens().map(str::to_owned).collect();
    let mut asked = asked.tokens();
    let (places, tail_at) = (template.places(), template.tail());
    for (n, place) in places.iter().enumerate() {
        match (place, asked.clone().next()) {
            (_, None | Some(">")) => break,
            // A capture that is as long may have been cut.
            (Some(Part::Token(number)), Some(token)) if token != "*" && template.fits(token) => {
                if let Some(raw) = tokens.get_mut(*number).filter(|raw| *raw == "*") {
                    token.clone_into(raw);
                }
            }
            (Some(Part::Tail(number)), Some(_)) => {
                // What stands behind the tail takes the last tokens, if it is known which these are.
                let behind = places.len() - 1 - n;
                let mut rest: Vec<&str> = asked.clone().collect();
                if behind > 0 && (rest.contains(&">") || template.has_two_tails()) {
                    break;
                }
                rest.truncate(rest.len().saturating_sub(behind));
                let rest = rest.join(".");
                let tail = tokens.get(*number..).unwrap_or_default().join(".");
                if let (Ok(rest), Ok(tail)) = (rest.parse::<Pattern>(), tail.parse::<Pattern>())
                    && rest.tokens().all(|token| template.fits(token))
                    && let Some(both) = intersection(&tail, &rest)
                {
                    tokens.truncate(*number);
                    tokens.extend(both.tokens().map(str::to_owned));
                }
                break;
            }
            // Of how many tokens it is made is not known.
            _ if Some(n) == tail_at => break,
            _ => {}
        }
        asked.next();
    }
    tokens.join(".").parse().unwrap_or_else(|_| of.clone())
}

/// The subjects before routing whose events one of the patterns `asked` may match; at times more.
pub(super) fn inputs(reach: &[Pattern], rules: &[Rule], asked: &[Pattern]) -> Vec<Pattern> {
    let mut out = Vec::new();
    for rule in rules {
        let Action::Pass(pass) = &rule.action else { continue };
        for both in reach.iter().filter_map(|of| intersection(of, &rule.matches)) {
            for asked in asked {
                match &pass.subject {
                    Some(template) if !rename(template, &both).intersects(asked) => {}
                    Some(template) => out.push(unrename(template, &both, asked)),
                    None => out.extend(intersection(&both, asked)),
                }
            }
        }
    }
    out.extend(reach.iter().flat_map(|of| asked.iter().filter_map(|asked| intersection(of, asked))));
    subject::minimal(out)
}

/// Whether routing never gives two subjects one name.
pub(super) fn keeps_apart(reach: &[Pattern], rules: &[Rule]) -> bool {
    let whole = |rule: &Rule| rule.renames().is_none_or(|template| template.keeps_all_of(&rule.matches));
    let apart = || subject::disjoint(outputs(reach, rules).iter().map(|output| &output.pattern));
    let renames = rules.iter().any(|rule| rule.renames().is_some());
    !renames || (rules.iter().all(whole) && apart())
}

/// The subjects that the first so many of `rules` leave to none of the later ones: grows as far as is asked for.
struct Taken<'a> {
    by: Cover<'a>,
    rest: slice::Iter<'a, Rule>,
    rules: usize,
}

impl<'a> Taken<'a> {
    fn by_none(rules: &'a [Rule]) -> Self {
        Self { by: Cover::default(), rest: rules.iter(), rules: rules.len() }
    }

    /// Asked for ever more.
    fn by_first(&mut self, count: usize) -> &Cover<'a> {
        let known = self.rules - self.rest.len();
        for rule in self.rest.by_ref().take(count - known).filter(|rule| rule.takes_all()) {
            self.by.add(&rule.matches);
        }
        &self.by
    }
}

/// Some of the subjects that a source's events can have.
#[derive(Debug)]
pub(super) struct Output {
    pattern: Pattern,
    /// The first so many rules take their subjects away from this pattern.
    first: usize,
}

/// Returns the outputs of each rule, and of the messages that no rule matches.
pub(super) fn outputs(reach: &[Pattern], rules: &[Rule]) -> Vec<Output> {
    let mut out = Vec::new();
    let mut taken = Taken::by_none(rules);
    for (number, rule) in rules.iter().enumerate() {
        let Action::Pass(pass) = &rule.action else { continue };
        let before = taken.by_first(number);
        for both in reach.iter().filter_map(|of| intersection(of, &rule.matches)) {
            if before.covers(&both) {
                continue;
            }
            out.push(match &pass.subject {
                Some(template) => Output { pattern: rename(template, &both), first: 0 },
                None => Output { pattern: both, first: number },
            });
        }
    }
    let all = taken.by_first(rules.len());
    let unchanged = reach.iter().filter(|of| !all.covers(of));
    out.extend(unchanged.map(|of| Output { pattern: of.clone(), first: rules.len() }));
    out
}

/// The outputs as patterns, none within another.
pub(super) fn patterns(outputs: &[Output]) -> Vec<Pattern> {
    subject::minimal(outputs.iter().map(|output| output.pattern.clone()).collect())
}

/// Whether an event can have a subject that one of the patterns `asked` matches.
pub(super) fn concerns(outputs: &[Output], rules: &[Rule], asked: &[Pattern]) -> bool {
    let mut taken = Taken::by_none(rules);
    outputs.iter().any(|Output { pattern, first }| {
        asked
            .iter()
            .filter(|asked| asked.intersects(pattern))
            .any(|asked| *first == 0 || intersection(pattern, asked).is_some_and(|both| !taken.by_first(*first).covers(&both)))
    })
}
