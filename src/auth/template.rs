//! What a token's claims permit: claims that are patterns, and templates such as `user.{sub}.>`.
//!
//! Pure. A claim's value never widens a grant: a value put into a template must be a single clean token, and a value that
//! is not a valid pattern permits nothing.

use serde_json::{Map, Value};

use super::token::as_text;
use crate::subject::{Pattern, SubjectError};
use crate::support::braces::{Piece, pieces};

/// Why a text is not a valid template of a grant. Never echoes the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum TemplateError {
    /// `{`, `}` or `{}`.
    #[error("has braces that hold no claim: write `{{sub}}` or `{{path.to.claim}}` (and `{{{{`, `}}}}` for braces themselves)")]
    Placeholder,
    /// The result would not be a valid pattern.
    #[error("does not give a valid pattern: it {0}")]
    Pattern(SubjectError),
}

/// Returns the value at a claim's path. The whole path is tried as one name first, because names may have dots, as URLs do;
/// then step by step, where a step may be a name with dots too.
pub(super) fn claim<'a>(claims: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(path) {
        return Some(value);
    }
    path.match_indices('.').rev().find_map(|(dot, _)| claim(claims.get(&path[..dot])?.as_object()?, &path[dot + 1..]))
}

/// Returns the patterns of a claim, and how many of its values are not valid patterns. It is a list with one pattern in each
/// text, or one text with spaces between the patterns, as a scope of OAuth. A text of a list is not taken apart: an issuer that
/// puts a user's name into it would let this name add patterns.
pub(super) fn patterns(value: Option<&Value>) -> (Vec<Pattern>, usize) {
    let texts: Vec<Option<&str>> = match value {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(text)) => text.split(' ').filter(|word| !word.is_empty()).map(Some).collect(),
        Some(Value::Array(values)) => values.iter().map(Value::as_str).collect(),
        Some(_) => vec![None],
    };
    let good: Vec<Pattern> = texts.iter().filter_map(|text| text.as_ref()?.parse().ok()).collect();
    let bad = texts.len() - good.len();
    (good, bad)
}

/// Whether a claim holds AMQP's wildcard `#`, which permits nothing here.
pub(super) fn has_hash(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Array(values)) => values.iter().any(|value| has_hash(Some(value))),
        Some(Value::String(text)) => text.split([' ', '.']).any(|token| token == "#"),
        _ => false,
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(Box<str>),
    Claim(Box<str>),
}

/// One of `auth.grants`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template(Vec<Part>);

/// The most patterns that one template gives: lists in several claims multiply.
pub(super) const MAX_PATTERNS: usize = 1024;

impl std::str::FromStr for Template {
    type Err = TemplateError;
    fn from_str(text: &str) -> Result<Self, TemplateError> {
        let part = |piece| match piece {
            Piece::Text(text) => Part::Literal(text.into()),
            Piece::Placeholder(path) => Part::Claim(path.into()),
        };
        let parts: Vec<Part> = pieces(text).ok_or(TemplateError::Placeholder)?.into_iter().map(part).collect();
        let sample: String = parts.iter().map(|part| if let Part::Literal(text) = part { text } else { "x" }).collect();
        sample.parse::<Pattern>().map_err(TemplateError::Pattern)?;
        Ok(Self(parts))
    }
}

/// As it is written in the settings.
impl std::fmt::Display for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|part| match part {
            Part::Literal(text) => f.write_str(&text.replace('{', "{{").replace('}', "}}")),
            Part::Claim(path) => write!(f, "{{{path}}}"),
        })
    }
}

impl Template {
    /// Whether it has a placeholder, so that it is filled from claims.
    pub(crate) fn has_claims(&self) -> bool {
        self.claims().next().is_some()
    }

    /// Why these claims make no pattern of the template, or not all that they could.
    pub(super) fn lacks(&self, claims: &Map<String, Value>) -> Option<String> {
        let lack = self.claims().find_map(|path| {
            let Some(value) = claim(claims, path) else { return Some(format!("the token has no claim `{path}`")) };
            let clean = tokens(Some(value)).len();
            match values(value).len() - clean {
                _ if clean == 0 => {
                    Some(format!("the claim `{path}` is not one clean token: a text or whole number without `.`, `*`, `>` and white space"))
                }
                0 => None,
                unclean => Some(format!("values of the claim `{path}` that are not clean tokens, and grant nothing: {unclean}")),
            }
        });
        lack.or_else(|| self.is_cut(claims).then(|| format!("the claims make more than {MAX_PATTERNS} patterns: the rest is left out")))
    }

    /// Whether these claims make more patterns than [`MAX_PATTERNS`].
    pub(super) fn is_cut(&self, claims: &Map<String, Value>) -> bool {
        self.claims().map(|path| tokens(claim(claims, path)).len()).fold(1, usize::saturating_mul) > MAX_PATTERNS
    }

    fn claims(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| if let Part::Claim(path) = part { Some(&**path) } else { None })
    }

    /// Returns the patterns that the claims make of the template. A claim that is missing, or whose value is not a clean
    /// token, gives none; a list gives one for each of its values.
    pub(super) fn fill(&self, claims: &Map<String, Value>) -> Vec<Pattern> {
        let mut texts = vec![String::new()];
        for part in &self.0 {
            match part {
                Part::Literal(text) => texts.iter_mut().for_each(|out| out.push_str(text)),
                Part::Claim(path) => {
                    let tokens = tokens(claim(claims, path));
                    texts =
                        texts.iter().flat_map(|out| tokens.iter().map(move |token| format!("{out}{token}"))).take(MAX_PATTERNS).collect();
                }
            }
        }
        texts.into_iter().filter_map(|text| text.parse().ok()).collect()
    }
}

/// Returns a claim's values that may be put into a subject.
fn tokens(value: Option<&Value>) -> Vec<String> {
    value.into_iter().flat_map(values).filter_map(token).collect()
}

fn values(claim: &Value) -> &[Value] {
    if let Value::Array(values) = claim { values } else { std::slice::from_ref(claim) }
}

/// Returns a value as one token. It must be clean: a user who chooses a claim's value, such as a user name, must not be able
/// to widen the grant.
fn token(value: &Value) -> Option<String> {
    let text = as_text(value)?;
    let unclean = |c: char| matches!(c, '.' | '*' | '>') || c.is_whitespace() || c.is_control();
    (!text.is_empty() && !text.contains(unclean)).then_some(text)
}
