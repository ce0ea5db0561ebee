//! Texts with placeholders in braces, such as `user.{sub}.>`. Pure; knows no placeholder.

/// A part of such a text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// Text as it is meant: `{{` and `}}` have become single braces. Never empty.
    Text(String),
    /// What is between `{` and `}`. Never empty.
    Placeholder(&'a str),
}

/// Splits a text into its pieces. Returns `None` for a brace without its partner, and for a placeholder that is empty, holds
/// another `{`, or begins or ends with white space.
#[must_use]
pub(crate) fn pieces(text: &str) -> Option<Vec<Piece<'_>>> {
    let (mut pieces, mut literal, mut rest) = (Vec::new(), String::new(), text);
    let flush = |pieces: &mut Vec<_>, literal: &mut String| {
        if !literal.is_empty() {
            pieces.push(Piece::Text(std::mem::take(literal)));
        }
    };
    while let Some(at) = rest.find(['{', '}']) {
        literal.push_str(&rest[..at]);
        let brace = &rest[at..];
        if brace.starts_with("{{") || brace.starts_with("}}") {
            literal.push_str(&brace[..1]);
            rest = &brace[2..];
            continue;
        }
        let (inside, after) = brace.strip_prefix('{')?.split_once('}')?;
        if inside.is_empty() || inside.contains('{') || inside.trim() != inside {
            return None;
        }
        flush(&mut pieces, &mut literal);
        pieces.push(Piece::Placeholder(inside));
        rest = after;
    }
    literal.push_str(rest);
    flush(&mut pieces, &mut literal);
    Some(pieces)
}

#[cfg(test)]
mod tests {
    use super::Piece::{Placeholder, Text};
    use super::*;

    #[test]
    fn a_text_is_split_at_its_placeholders() {
        assert_eq!(pieces(""), Some(vec![]));
        assert_eq!(pieces("a.{b}{c}.d"), Some(vec![Text("a.".into()), Placeholder("b"), Placeholder("c"), Text(".d".into())]));
        assert_eq!(pieces("{{{a}}}"), Some(vec![Text("{".into()), Placeholder("a"), Text("}".into())]));
        for bad in ["{", "}", "{}", "a{b", "a}b", "{a{b}", "{ a }", "{a }", "{a{{b}}"] {
            assert_eq!(pieces(bad), None, "{bad}");
        }
    }
}
