//! Which subjects a binding can yield: binding keys translated to patterns.
//!
//! Pure. A topic exchange's `*` is one word and its `#` zero or more; words are separated by dots and may be empty. An
//! empty word is no token: its dot is escaped (`a..b` is `a.%2Eb`), so that where a wildcard may take an empty word, the
//! escaped form is a pattern of its own.

use super::config::{Binding, ExchangeType};
use crate::subject::{self, Pattern, Subject};

/// Of a key with more stars than this the rest is taken as `#`: each of them doubles the patterns.
const MAX_STARS: usize = 3;
/// Placeholder for "any word that is not empty" while a key is escaped. A configured key that holds it would only reach
/// further.
const ANY: char = '\u{F8FF}';

/// Patterns that together hold every subject that comes through `binding`; `empty` is what an empty key becomes.
pub(super) fn of(binding: &Binding, empty: &Subject) -> Vec<Pattern> {
    subject::minimal(match binding.kind {
        ExchangeType::Fanout | ExchangeType::Headers | ExchangeType::Other(_) => vec![Pattern::all()],
        ExchangeType::Direct => binding.keys.iter().map(|key| Pattern::from(&Subject::from_broker(key.as_bytes(), empty))).collect(),
        ExchangeType::Topic => binding.keys.iter().flat_map(|key| topic(key, empty)).collect(),
    })
}

fn topic(key: &str, empty: &Subject) -> Vec<Pattern> {
    if key.is_empty() {
        return vec![Pattern::from(empty)];
    }
    let words: Vec<&str> = key.split('.').collect();
    let stars = words.iter().enumerate().filter(|(_, word)| **word == "*").nth(MAX_STARS).map(|(at, _)| at);
    let hash = words.iter().position(|word| *word == "#");
    let tail = match (hash, stars) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    let heads = spellings(&words[..tail.unwrap_or(words.len())]);
    let Some(tail) = tail else {
        // A key that is one empty word does not exist: it is the empty key, which `*` does not take.
        return heads.into_iter().filter(|head| !head.is_empty()).map(|head| pattern(&head, empty)).collect();
    };
    if tail == 0 {
        return vec![Pattern::all()];
    }
    // Nothing more, more words, or one empty word at the end.
    let zero = words[tail..].iter().all(|word| *word == "#");
    let mut patterns = Vec::new();
    for head in heads {
        let escaped_end = pattern(&format!("{head}."), empty);
        if head.is_empty() {
            patterns.push(Pattern::all());
            continue;
        }
        if zero {
            patterns.push(pattern(&head, empty));
        }
        patterns.push(escaped_end);
        // The head's end is in the middle of a key here, where an empty word is spelled otherwise.
        let before = pattern(&format!("{head}.{ANY}"), empty);
        patterns.push(widen_last(&before));
    }
    patterns
}

/// The key's words joined, with each star once as [`ANY`] and once as an empty word.
fn spellings(words: &[&str]) -> Vec<String> {
    let mut out = vec![String::new()];
    for (n, word) in words.iter().enumerate() {
        let choices: &[String] = &if *word == "*" { vec![ANY.to_string(), String::new()] } else { vec![(*word).to_owned()] };
        out = out
            .iter()
            .flat_map(|head| choices.iter().map(move |word| if n == 0 { word.clone() } else { format!("{head}.{word}") }))
            .collect();
    }
    out
}

/// The pattern of a key in which [`ANY`] is the placeholder for any word.
fn pattern(key: &str, empty: &Subject) -> Pattern {
    let subject = Subject::from_broker(key.as_bytes(), empty);
    let tokens: Vec<&str> = subject.tokens().map(|token| if token.contains(ANY) { "*" } else { token }).collect();
    tokens.join(".").parse().unwrap_or_else(|_| Pattern::all())
}

/// `a.b.*` as `a.b.>`.
fn widen_last(pattern: &Pattern) -> Pattern {
    let text = pattern.as_str();
    let head = text.rfind('.').map_or("", |at| &text[..=at]);
    format!("{head}>").parse().unwrap_or_else(|_| Pattern::all())
}
