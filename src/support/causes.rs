//! An error's causes in one line. Knows no particular error.

/// Returns an error and its causes in one line, for the log and for standard error. A cause whose text is already part of
/// the line is left out: many libraries print their cause themselves.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Failed(&'static str, #[source] Option<Box<dyn std::error::Error>>);

    #[test]
    fn a_chain_says_each_cause_once() {
        let error = Failed("no water: the pipe burst", Some(Failed("the pipe burst", None).into()));
        assert_eq!(chain(&error), "no water: the pipe burst");
        let error = Failed("no water", Some(Failed("no pipe", Some(Failed("no money", None).into())).into()));
        assert_eq!(chain(&error), "no water: no pipe: no money");
    }
}
