//! Templates of routes: `shop.{1}.created`, compiled so that a capture is the number of a token.
//!
//! Pure. Since `*` takes exactly one token and `>` stands last, what a wildcard took is known by its place alone.

use std::sync::Arc;

use super::RESERVED;
use crate::subject::{MAX_SUBJECT, Pattern, Subject, SubjectError};
use crate::support::braces::{Piece, pieces};

/// Why a text is no template of a route. Never echoes the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// `{x}`, `{0}` or `{`.
    #[error("has braces that are neither `{{1}}`, `{{2}}`, … nor `{{>}}` (write `{{{{` and `}}}}` for braces themselves)")]
    Placeholder,
    /// `{3}` where `match` has two `*`.
    #[error("uses `{{{asked}}}`, but the pattern in `match` has {stars} `*`")]
    NoStar {
        /// The number in braces.
        asked: usize,
        /// How many there are.
        stars: usize,
    },
    /// `{>}` where `match` has no `>`.
    #[error("uses `{{>}}`, but the pattern in `match` does not end in `>`")]
    NoTail,
    /// What it gives is no subject.
    #[error("gives no subject: it {0}")]
    Subject(SubjectError),
    /// Nothing at all.
    #[error("is empty")]
    Empty,
    /// A control character in an event name.
    #[error("has a control character")]
    Control,
    /// The names of control events.
    #[error("begins with `{RESERVED}`, which is reserved for control events")]
    Reserved,
    /// It alone takes more than half of what a subject may have.
    #[error("is longer than {MAX_TEMPLATE} bytes")]
    TooLong,
}

/// Leaves at least as much room to what is captured.
pub(super) const MAX_TEMPLATE: usize = MAX_SUBJECT / 2;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    Literal(Box<str>),
    /// The subject's token with this number, from 0.
    Token(usize),
    /// All tokens from this one on.
    Tail(usize),
}

fn parse(text: &str, matches: &Pattern) -> Result<Vec<Part>, TemplateError> {
    if text.is_empty() {
        return Err(TemplateError::Empty);
    }
    if text.len() > MAX_TEMPLATE {
        return Err(TemplateError::TooLong);
    }
    let tokens: Vec<&str> = matches.tokens().collect();
    let stars: Vec<usize> = (0..tokens.len()).filter(|i| tokens[*i] == "*").collect();
    let part = |piece| match piece {
        Piece::Text(text) => Ok(Part::Literal(text.into())),
        Piece::Placeholder(">") if tokens.last() == Some(&">") => Ok(Part::Tail(tokens.len() - 1)),
        Piece::Placeholder(">") => Err(TemplateError::NoTail),
        Piece::Placeholder(number) => {
            if number.starts_with('0') || !number.bytes().all(|b| b.is_ascii_digit()) {
                return Err(TemplateError::Placeholder);
            }
            let asked: usize = number.parse().map_err(|_| TemplateError::Placeholder)?;
            Ok(Part::Token(*stars.get(asked - 1).ok_or(TemplateError::NoStar { asked, stars: stars.len() })?))
        }
    };
    pieces(text).ok_or(TemplateError::Placeholder)?.into_iter().map(part).collect()
}

/// What a part stands for, of a subject that the pattern matches.
fn captured<'a>(part: &'a Part, subject: &'a str) -> &'a str {
    match part {
        Part::Literal(text) => text,
        Part::Token(number) => subject.split('.').nth(*number).unwrap_or_default(),
        Part::Tail(0) => subject,
        Part::Tail(number) => subject.match_indices('.').nth(*number - 1).map_or("", |(dot, _)| &subject[dot + 1..]),
    }
}

/// The longest beginning of at most `room` bytes that is whole characters and doesn't end in a dot.
fn cut(text: &str, room: usize) -> &str {
    text[..text.floor_char_boundary(room)].trim_end_matches('.')
}

/// Makes one subject of another.
#[derive(Debug)]
pub(super) struct SubjectTemplate {
    pub(super) parts: Vec<Part>,
    /// The result, where nothing is captured.
    fixed: Option<Subject>,
    /// How long each capture may be where all together would be too long.
    room: usize,
}

impl SubjectTemplate {
    pub(super) fn new(text: &str, matches: &Pattern) -> Result<Self, TemplateError> {
        let parts = parse(text, matches)?;
        // Tokens of a subject are never empty, so that whether the result is one does not depend on what is captured.
        let sample: String = parts.iter().map(|part| if let Part::Literal(text) = part { text } else { "x" }).collect();
        let sample = Subject::new(sample).map_err(TemplateError::Subject)?;
        let captures = parts.iter().filter(|part| !matches!(part, Part::Literal(_))).count();
        let room = (MAX_SUBJECT - text.len()) / captures.max(1);
        // Four bytes are what a character may take.
        if room < 4 {
            return Err(TemplateError::TooLong);
        }
        Ok(Self { fixed: (captures == 0).then_some(sample), parts, room })
    }

    /// The new subject, and whether captures had to be shortened for it. That keeps its shape (each `{1}` is still one
    /// token), so that it stands where its grants and routes expect it; only distinct names may become one.
    pub(super) fn apply(&self, subject: &Subject) -> (Subject, bool) {
        if let Some(fixed) = &self.fixed {
            return (fixed.clone(), false);
        }
        let of = subject.as_str();
        let whole: usize = self.parts.iter().map(|part| captured(part, of).len()).sum();
        let shorten = whole > MAX_SUBJECT;
        let mut out = String::with_capacity(whole.min(MAX_SUBJECT));
        for part in &self.parts {
            match (part, captured(part, of)) {
                (Part::Token(_) | Part::Tail(_), text) if shorten => out.push_str(cut(text, self.room)),
                (_, text) => out.push_str(text),
            }
        }
        // Cannot fail: see `new`. If it did, the message would keep its name.
        (Subject::new(out).unwrap_or_else(|_| subject.clone()), shorten)
    }
}

/// Makes an event's name of a subject.
#[derive(Debug)]
pub(super) struct NameTemplate {
    parts: Vec<Part>,
    fixed: Option<Arc<str>>,
}

impl NameTemplate {
    pub(super) fn new(text: &str, matches: &Pattern) -> Result<Self, TemplateError> {
        let parts = parse(text, matches)?;
        let fixed: String = parts.iter().map_while(|part| if let Part::Literal(text) = part { Some(&**text) } else { None }).collect();
        if fixed.starts_with(RESERVED) {
            return Err(TemplateError::Reserved);
        }
        if text.contains(char::is_control) {
            return Err(TemplateError::Control);
        }
        let captures = parts.iter().any(|part| !matches!(part, Part::Literal(_)));
        Ok(Self { fixed: (!captures).then(|| fixed.into()), parts })
    }

    /// The name; `None` where a capture would make it a control event's: whoever names a broker's messages must not
    /// be able to say "there is a gap". The event then goes to `onmessage`, its subject says what it is.
    pub(super) fn apply(&self, subject: &str) -> Option<Arc<str>> {
        if let Some(fixed) = &self.fixed {
            return Some(Arc::clone(fixed));
        }
        let name: String = self.parts.iter().map(|part| captured(part, subject)).collect();
        (!name.starts_with(RESERVED)).then(|| name.into())
    }
}
