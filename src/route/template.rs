//! Templates of routes: `shop.{1}.{header.Event-Type}`, compiled so that a capture is the number of a token.
//!
//! Pure. `*` takes exactly one token and `>` is always last, so the number of a token says what a wildcard took.

use std::sync::Arc;

use super::RESERVED;
use crate::event::Headers;
use crate::subject::{MAX_SUBJECT, Pattern, Subject, SubjectError};
use crate::support::braces::{Piece, pieces};

/// Why a text is not a valid template of a route. Never echoes the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(super) enum TemplateError {
    /// `{x}`, `{0}` or `{`.
    #[error(
        "has braces that are none of `{{1}}`, `{{2}}`, …, `{{>}}` and `{{header.NAME}}` (write `{{{{` and `}}}}` for braces themselves)"
    )]
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
    /// The result would not be a valid subject.
    #[error("does not give a valid subject: it {0}")]
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
    /// The template alone is longer than half of the longest subject.
    #[error("is longer than {MAX_TEMPLATE} bytes")]
    TooLong,
}

/// Leaves at least as much room for the captures.
pub(super) const MAX_TEMPLATE: usize = MAX_SUBJECT / 2;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    Literal(Box<str>),
    /// The subject's token with this number, from 0.
    Token(usize),
    /// All tokens from this one on.
    Tail(usize),
    /// The value of a header.
    Header(Box<str>),
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
        Piece::Placeholder(name) if name.strip_prefix("header.").is_some_and(|name| !name.is_empty()) => {
            Ok(Part::Header(name["header.".len()..].into()))
        }
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

/// Returns the text that a part becomes, for a subject that the pattern matches. `None`: there is no such header.
fn captured<'a>(part: &'a Part, subject: &'a str, headers: &'a Headers) -> Option<&'a str> {
    Some(match part {
        Part::Literal(text) => text,
        Part::Token(number) => subject.split('.').nth(*number).unwrap_or_default(),
        Part::Tail(0) => subject,
        Part::Tail(number) => subject.match_indices('.').nth(*number - 1).map_or("", |(dot, _)| &subject[dot + 1..]),
        Part::Header(name) => headers.get(name)?,
    })
}

/// Whether a header's value can be put into a subject: who chooses it must not be able to choose other tokens with it.
fn is_token(value: &str) -> bool {
    let unclean = |c: char| matches!(c, '.' | '*' | '>') || c.is_whitespace() || c.is_control();
    !value.is_empty() && !value.contains(unclean)
}

/// Returns the longest prefix of at most `room` bytes that splits no character and does not end in a dot.
fn cut(text: &str, room: usize) -> &str {
    text[..text.floor_char_boundary(room)].trim_end_matches('.')
}

/// Makes one subject of another.
#[derive(Debug, PartialEq)]
pub(super) struct SubjectTemplate {
    pub(super) parts: Vec<Part>,
    /// The result, where nothing is captured.
    fixed: Option<Subject>,
    /// The longest that a capture may be if all of them together are too long, in bytes.
    room: usize,
}

impl SubjectTemplate {
    pub(super) fn new(text: &str, matches: &Pattern) -> Result<Self, TemplateError> {
        let parts = parse(text, matches)?;
        // A subject's tokens are never empty, so whether the result is a valid subject does not depend on the captures.
        let sample: String = parts.iter().map(|part| if let Part::Literal(text) = part { text } else { "x" }).collect();
        let sample = Subject::new(sample).map_err(TemplateError::Subject)?;
        let captures = parts.iter().filter(|part| !matches!(part, Part::Literal(_))).count();
        let room = (MAX_SUBJECT - text.len()) / captures.max(1);
        // A character takes up to four bytes.
        if room < 4 {
            return Err(TemplateError::TooLong);
        }
        Ok(Self { fixed: (captures == 0).then_some(sample), parts, room })
    }

    /// For each token of the result what it is made of, where that is one capture and nothing else.
    pub(super) fn places(&self) -> Vec<Option<&Part>> {
        // How many parts a token has, and the last of them.
        let mut tokens: Vec<(usize, Option<&Part>)> = vec![(0, None)];
        for part in &self.parts {
            if let Part::Literal(text) = part {
                for (n, piece) in text.split('.').enumerate() {
                    if n > 0 {
                        tokens.push((0, None));
                    }
                    if let Some(last) = tokens.last_mut().filter(|_| !piece.is_empty()) {
                        *last = (last.0 + 2, None);
                    }
                }
            } else if let Some(last) = tokens.last_mut() {
                *last = (last.0 + 1, Some(part));
            }
        }
        tokens.into_iter().map(|(parts, part)| part.filter(|_| parts == 1)).collect()
    }

    /// The first token of the result that a tail is in.
    pub(super) fn tail(&self) -> Option<usize> {
        let tail = self.parts.iter().position(|part| matches!(part, Part::Tail(_)))?;
        let dots = |part: &Part| if let Part::Literal(text) = part { text.matches('.').count() } else { 0 };
        Some(self.parts[..tail].iter().map(dots).sum())
    }

    /// Whether the tail is in it more than once.
    pub(super) fn has_two_tails(&self) -> bool {
        self.parts.iter().filter(|part| matches!(part, Part::Tail(_))).count() > 1
    }

    /// Whether what stands for a capture is all of it. What was shortened is at most a character and a dot shorter than its room.
    pub(super) fn fits(&self, capture: &str) -> bool {
        capture.len() + 4 < self.room
    }

    /// Whether two subjects that the pattern matches never get the same name (unless they have to be shortened).
    pub(super) fn keeps_all_of(&self, matches: &Pattern) -> bool {
        let places = self.places();
        let mut wildcards = matches.tokens().enumerate().filter(|(_, token)| matches!(*token, "*" | ">"));
        wildcards.all(|(number, token)| {
            let part = if token == ">" { Part::Tail(number) } else { Part::Token(number) };
            places.contains(&Some(&part))
        })
    }

    /// Whether it depends on a header.
    pub(super) fn needs_header(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Header(_)))
    }

    /// Returns the new subject, and whether captures had to be shortened for it. A shortened subject keeps its shape (each
    /// `{1}` is still one token), so it still matches its grants and routes; but different names may become the same.
    /// `None`: a header that it needs is missing, or is not one clean token.
    pub(super) fn apply(&self, subject: &Subject, headers: &Headers) -> Option<(Subject, bool)> {
        if let Some(fixed) = &self.fixed {
            return Some((fixed.clone(), false));
        }
        let mut whole = 0;
        for part in &self.parts {
            let text = captured(part, subject.as_str(), headers)?;
            if matches!(part, Part::Header(_)) && !is_token(text) {
                return None;
            }
            whole += text.len();
        }
        let shorten = whole > MAX_SUBJECT;
        let mut out = String::with_capacity(whole.min(MAX_SUBJECT));
        for part in &self.parts {
            let text = captured(part, subject.as_str(), headers)?;
            out.push_str(if shorten && !matches!(part, Part::Literal(_)) { cut(text, self.room) } else { text });
        }
        // Cannot fail: see `new`. If it did, the message would keep its subject.
        Some((Subject::new(out).unwrap_or_else(|_| subject.clone()), shorten))
    }
}

/// Makes an event's name of a subject.
#[derive(Debug, PartialEq)]
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

    /// Returns the event's name, of one line. A broker's publisher must not be able to fake a gap, so none becomes the name of
    /// a control event. An event without a name goes to `onmessage`.
    pub(super) fn apply(&self, subject: &str, headers: &Headers) -> Result<Arc<str>, Nameless> {
        if let Some(fixed) = &self.fixed {
            return Ok(Arc::clone(fixed));
        }
        let texts: Option<Vec<&str>> = self.parts.iter().map(|part| captured(part, subject, headers)).collect();
        let name = texts.ok_or(Nameless::Missing)?.concat();
        let line = name.split(['\n', '\r', '\0']).next().unwrap_or_default();
        let line = &line[..line.floor_char_boundary(MAX_SUBJECT)];
        match line {
            "" => Err(Nameless::Missing),
            _ if line.starts_with(RESERVED) => Err(Nameless::Reserved),
            _ => Ok(line.into()),
        }
    }
}

/// Why an event gets no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nameless {
    /// There is no such header, or its first line is empty.
    Missing,
    /// It would be the name of a control event.
    Reserved,
}
