//! Texts from outside, made harmless for a person's terminal and for a log's lines.

use std::fmt::Write as _;

/// Whether a character could forge a line, or hide what stands beside it: control characters, line and paragraph separators,
/// and what changes the direction of writing.
pub(crate) fn is_hidden(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// A text in quotation marks, as JSON: in it everything hidden is escaped, and what is behind the first `most` characters is
/// left out.
pub(crate) fn quote(out: &mut String, text: &str, most: usize) {
    out.push('"');
    for c in text.chars().take(most) {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // All of these have at most four digits. Writing to a text cannot fail.
            c if is_hidden(c) => write!(out, "\\u{:04x}", u32::from(c)).unwrap_or_default(),
            c => out.push(c),
        }
    }
    if text.chars().nth(most).is_some() {
        out.push('…');
    }
    out.push('"');
}

/// A text in which everything hidden is escaped, cut behind `most` characters.
pub(crate) fn plain(text: &str, most: usize) -> String {
    let mut out = String::with_capacity(text.len().min(most) + 2);
    for c in text.chars().take(most) {
        if is_hidden(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    if text.chars().nth(most).is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_hidden_is_left() {
        let text = "a\"\\\n\r\t\0\u{1b}[2J\u{7f}\u{85}\u{9b}\u{2028}\u{202e}ü€😀";
        let mut quoted = String::new();
        quote(&mut quoted, text, 100);
        assert!(!quoted.contains(is_hidden), "{quoted}");
        assert_eq!(serde_json::from_str::<String>(&quoted).unwrap(), text);
        assert!(!plain(text, 100).contains(is_hidden));
        let mut cut = String::new();
        quote(&mut cut, "äöü", 2);
        assert_eq!((cut.as_str(), plain("äöü", 2).as_str(), plain("äö", 2).as_str()), ("\"äö…\"", "äö…", "äö"));
    }
}
