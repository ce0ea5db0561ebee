//! Subjects and patterns: what events are called and how a set of them is described.
//!
//! Pure. Knows nothing of sources, grants or the hub.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::str::FromStr;

use bytestring::ByteString;

pub(crate) mod index;
#[cfg(test)]
mod tests;

/// The longest subject in bytes: what fits the two-byte length that the hub keeps of it.
pub(crate) const MAX_SUBJECT: usize = 16 * 1024;

/// Why a text is not a valid subject or pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubjectError {
    /// Nothing at all.
    #[error("is empty")]
    Empty,
    /// `a..b`, `.a` or `a.`.
    #[error("has an empty token")]
    EmptyToken,
    /// White space or a control character.
    #[error("has white space or a control character")]
    Character,
    /// A wildcard in a subject.
    #[error("has a wildcard: `*` and `>` are only for patterns")]
    Wildcard,
    /// `a*` or `>b`.
    #[error("has a wildcard inside a token: `*` and `>` must be whole tokens")]
    PartialWildcard,
    /// `>` before the end.
    #[error("has `>` before its last token")]
    TailNotLast,
    /// `a.#`: nobody means a subject of that name.
    #[error("has the wildcard `#` of AMQP: here `>` at the end stands for one or more tokens, and `*` for one")]
    Hash,
    /// More than [`MAX_SUBJECT`] bytes.
    #[error("is longer than {MAX_SUBJECT} bytes")]
    TooLong,
}

fn forbidden(c: char) -> bool {
    c.is_whitespace() || c.is_control()
}

/// The name of an event: dot-separated, non-empty tokens without white space, control characters or
/// wildcards.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject(ByteString);

impl Subject {
    /// Takes a text as it is.
    ///
    /// # Errors
    /// If it is not a valid subject.
    pub fn new(text: impl Into<ByteString>) -> Result<Self, SubjectError> {
        let text = text.into();
        check_subject(&text)?;
        Ok(Self(text))
    }

    /// Makes a subject of a broker's name for a message. A valid subject without `%` is kept unchanged; any other name is
    /// percent-escaped, byte by byte, so that different names stay different. An empty name becomes `empty`.
    #[must_use]
    pub fn from_broker(name: &[u8], empty: &Subject) -> Self {
        match std::str::from_utf8(name) {
            Ok("") => empty.clone(),
            Ok(text) if !name.contains(&b'%') && check_subject(text).is_ok() => Self(ByteString::from(text)),
            _ => Self::escaped(name),
        }
    }

    /// Whether [`Self::from_broker`] makes this of a name and keeps the name unchanged. False for what had to be escaped.
    #[must_use]
    pub(crate) fn is_unchanged(&self, name: &[u8]) -> bool {
        self.0.as_bytes() == name && !name.contains(&b'%')
    }

    fn escaped(name: &[u8]) -> Self {
        let mut out = String::with_capacity(name.len() + 16);
        let mut at_token_start = true;
        let mut rest = name;
        while !rest.is_empty() && out.len() + 12 < MAX_SUBJECT {
            let (good, bad_len) = match std::str::from_utf8(rest) {
                Ok(text) => (text, 0),
                Err(e) => {
                    let good = std::str::from_utf8(&rest[..e.valid_up_to()]).unwrap_or_default();
                    (good, e.error_len().unwrap_or(rest.len() - e.valid_up_to()))
                }
            };
            for (i, c) in good.char_indices() {
                if out.len() + 12 >= MAX_SUBJECT {
                    break;
                }
                let last = bad_len == 0 && i + c.len_utf8() == good.len();
                if c == '.' && !at_token_start && !last {
                    out.push('.');
                    at_token_start = true;
                    continue;
                }
                if matches!(c, '.' | '%' | '*' | '>') || forbidden(c) {
                    let mut buffer = [0; 4];
                    for byte in c.encode_utf8(&mut buffer).bytes() {
                        push_escape(&mut out, byte);
                    }
                } else {
                    out.push(c);
                }
                at_token_start = false;
            }
            for byte in &rest[good.len()..good.len() + bad_len] {
                push_escape(&mut out, *byte);
                at_token_start = false;
            }
            rest = &rest[good.len() + bad_len..];
        }
        if at_token_start {
            // Only if the length bound cut the text right after a dot.
            out.push_str("%2E");
        }
        Self(ByteString::from(out))
    }

    /// The subject's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its tokens, first to last.
    pub fn tokens(&self) -> impl Iterator<Item = &str> {
        self.0.split('.')
    }
}

fn push_escape(out: &mut String, byte: u8) {
    // Writing into a String cannot fail.
    write!(out, "%{byte:02X}").unwrap_or_default();
}

fn check_subject(text: &str) -> Result<(), SubjectError> {
    if text.len() > MAX_SUBJECT {
        return Err(SubjectError::TooLong);
    }
    let mut at_token_start = true;
    for byte in text.bytes() {
        match byte {
            b'.' if at_token_start => return Err(if text.is_empty() { SubjectError::Empty } else { SubjectError::EmptyToken }),
            b'.' => at_token_start = true,
            b'*' | b'>' => return Err(SubjectError::Wildcard),
            0..=b' ' | 0x7f => return Err(SubjectError::Character),
            _ => at_token_start = false,
        }
    }
    if text.is_empty() {
        return Err(SubjectError::Empty);
    }
    if at_token_start {
        return Err(SubjectError::EmptyToken);
    }
    if !text.is_ascii() && text.contains(forbidden) {
        return Err(SubjectError::Character);
    }
    Ok(())
}

impl FromStr for Subject {
    type Err = SubjectError;
    fn from_str(text: &str) -> Result<Self, SubjectError> {
        check_subject(text)?;
        Ok(Self(ByteString::from(text)))
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// A set of subjects: a subject in which `*` stands for one token and a last `>` for one or more.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pattern(Box<str>);

impl Pattern {
    /// The pattern that every subject matches.
    #[must_use]
    pub fn all() -> Self {
        Self(">".into())
    }

    /// The pattern's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its tokens, first to last.
    pub fn tokens(&self) -> impl Iterator<Item = &str> + Clone {
        self.0.split('.')
    }

    /// Its tokens before the first wildcard.
    fn beginning(&self) -> &str {
        let length = self.tokens().take_while(|token| !matches!(*token, "*" | ">")).map(|token| token.len() + 1).sum::<usize>();
        &self.as_str()[..length.saturating_sub(1)]
    }

    /// Whether `subject` is in the set.
    #[must_use]
    pub fn matches(&self, subject: &str) -> bool {
        matches(self.0.as_bytes(), subject.as_bytes())
    }

    /// Whether some subject is in both sets.
    #[must_use]
    pub fn intersects(&self, other: &Pattern) -> bool {
        let (mut a, mut b) = (self.tokens(), other.tokens());
        loop {
            match (a.next(), b.next()) {
                (None, None) => return true,
                (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
                (Some(x), Some(y)) if x == y || x == "*" || y == "*" => {}
                _ => return false,
            }
        }
    }

    /// Whether every subject of this set is in one of `others`. Exact: several patterns may cover it
    /// only together.
    #[must_use]
    pub fn covered_by<'a>(&self, others: impl IntoIterator<Item = &'a Pattern>) -> bool {
        // The unread rest of each pattern that matches so far. The hardest token to cover is one that no pattern names: a
        // pattern that takes it (by `*` or `>`) takes every other token too.
        let mut left: Vec<_> = others.into_iter().map(Pattern::tokens).collect();
        let mut tokens = self.tokens();
        loop {
            let token = tokens.next();
            let mut ends = false;
            let mut tail = false;
            left.retain_mut(|pattern| match (token, pattern.next()) {
                (None, None) => {
                    ends = true;
                    false
                }
                (Some(_), Some(">")) => {
                    tail = true;
                    true
                }
                (Some(t), Some(p)) => p == "*" || (t == p && t != ">"),
                _ => false,
            });
            match token {
                None => return ends,
                _ if tail => return true,
                Some(">") => return tail_covered(left),
                Some(_) if left.is_empty() => return false,
                Some(_) => {}
            }
        }
    }
}

/// As [`Pattern::matches`], of a pattern's text.
fn matches(pattern: &[u8], subject: &[u8]) -> bool {
    // Most differ at once.
    let apart = |a: &u8, b: &u8| a != b && !matches!(a, b'*' | b'>');
    if pattern.iter().zip(subject).next().is_some_and(|(a, b)| apart(a, b)) {
        return false;
    }
    let dot = |byte: &u8| *byte == b'.';
    let mut subject = subject.split(dot);
    for token in pattern.split(dot) {
        match (token, subject.next()) {
            (b">", Some(_)) => return true,
            (b"*", Some(_)) => {}
            (t, Some(s)) if t == s => {}
            _ => return false,
        }
    }
    subject.next().is_none()
}

/// A set of patterns that is asked often which others it covers.
///
/// What helps to cover a pattern begins with tokens of this pattern, up to its own first wildcard: only such are compared.
#[derive(Debug, Default)]
pub(crate) struct Cover<'a>(BTreeMap<&'a str, Vec<&'a Pattern>>);

impl<'a> Cover<'a> {
    /// Of these patterns.
    pub(crate) fn new(patterns: impl IntoIterator<Item = &'a Pattern>) -> Self {
        let mut cover = Self::default();
        patterns.into_iter().for_each(|pattern| cover.add(pattern));
        cover
    }

    pub(crate) fn add(&mut self, pattern: &'a Pattern) {
        self.0.entry(pattern.beginning()).or_default().push(pattern);
    }

    fn remove(&mut self, pattern: &Pattern) {
        if let Some(alike) = self.0.get_mut(pattern.beginning()) {
            alike.retain(|other| *other != pattern);
        }
    }

    /// As [`Pattern::covered_by`].
    pub(crate) fn covers(&self, pattern: &Pattern) -> bool {
        pattern.covered_by(self.around(pattern))
    }

    /// Those whose tokens before the first wildcard are the first tokens of `pattern`.
    fn around(&self, pattern: &Pattern) -> impl Iterator<Item = &'a Pattern> {
        let beginning = pattern.beginning();
        let ends = beginning.match_indices('.').map(|(dot, _)| dot).chain([beginning.len()]);
        let within = std::iter::once("").chain(ends.map(|end| &beginning[..end]).filter(|part| !part.is_empty()));
        within.filter_map(|part| self.0.get(part)).flatten().copied()
    }
}

/// Whether no subject is in two of the patterns.
#[must_use]
pub(crate) fn disjoint<'a>(patterns: impl IntoIterator<Item = &'a Pattern>) -> bool {
    // Of two that have a subject in common the beginning of one is the beginning of the other: the shorter comes first.
    let mut patterns: Vec<_> = patterns.into_iter().collect();
    patterns.sort_by_key(|pattern| pattern.beginning().len());
    let mut before = Cover::default();
    patterns.into_iter().all(|pattern| {
        let apart = before.around(pattern).all(|other| !other.intersects(pattern));
        before.add(pattern);
        apart
    })
}

/// Returns the same set of subjects in fewer patterns: sorted, none twice, and none that the others cover, alone or
/// together. Takes quadratic time for patterns that begin with the same tokens and then have a wildcard.
#[must_use]
pub(crate) fn minimal(mut patterns: Vec<Pattern>) -> Vec<Pattern> {
    if patterns.len() < 2 {
        return patterns;
    }
    patterns.sort_unstable();
    patterns.dedup();
    let mut cover = Cover::new(&patterns);
    let mut needed = Vec::new();
    for pattern in &patterns {
        cover.remove(pattern);
        if !cover.covers(pattern) {
            cover.add(pattern);
            needed.push(pattern.clone());
        }
    }
    needed
}

/// Whether patterns cover every sequence of one or more tokens whose first token they have already taken.
fn tail_covered<'a>(mut left: Vec<impl Iterator<Item = &'a str>>) -> bool {
    while !left.is_empty() {
        let mut ends = false;
        let mut tail = false;
        left.retain_mut(|pattern| match pattern.next() {
            None => {
                ends = true;
                false
            }
            Some(">") => {
                tail = true;
                true
            }
            Some(token) => token == "*",
        });
        if !ends {
            return false;
        }
        if tail {
            return true;
        }
    }
    false
}

impl FromStr for Pattern {
    type Err = SubjectError;
    fn from_str(text: &str) -> Result<Self, SubjectError> {
        if text.is_empty() {
            return Err(SubjectError::Empty);
        }
        if text.len() > MAX_SUBJECT {
            return Err(SubjectError::TooLong);
        }
        let mut tokens = text.split('.').peekable();
        while let Some(token) = tokens.next() {
            match token {
                "" => return Err(SubjectError::EmptyToken),
                ">" if tokens.peek().is_some() => return Err(SubjectError::TailNotLast),
                "*" | ">" => {}
                "#" => return Err(SubjectError::Hash),
                token if token.contains(['*', '>']) => return Err(SubjectError::PartialWildcard),
                token if token.contains(forbidden) => return Err(SubjectError::Character),
                _ => {}
            }
        }
        Ok(Self(text.into()))
    }
}

impl From<&Subject> for Pattern {
    fn from(subject: &Subject) -> Self {
        Self(subject.as_str().into())
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}
