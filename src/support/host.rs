//! The name of this machine, as brokers are told it. Knows no broker.

/// The host's name up to its first dot, as a word of letters, digits, `-` and `_`: `host` where it has none.
pub(crate) fn name() -> String {
    word(&rustix::system::uname().nodename().to_string_lossy())
}

fn word(name: &str) -> String {
    let first = name.split('.').next().unwrap_or_default();
    let word: String = first.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).take(64).collect();
    if word.is_empty() { "host".to_owned() } else { word }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_named_by_one_word() {
        for (name, expected) in [("web-1.example.com", "web-1"), ("a b*é", "a_b__"), ("", "host"), (".x", "host")] {
            assert_eq!(word(name), expected);
        }
        assert!(!super::name().is_empty());
    }
}
