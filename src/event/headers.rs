//! What a message carries beside its payload: named texts. Pure. Knows no broker's names for them.

/// Names and values in the order in which they came.
///
/// All of them are one text, so that a message with headers costs one allocation more, and one without none. A NUL ends each
/// name and each value; NULs within them are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Headers(String);

impl Headers {
    /// Appends a header.
    pub fn push(&mut self, name: &str, value: &str) {
        for text in [name, value] {
            self.0.reserve(text.len() + 1);
            self.0.extend(text.split('\0'));
            self.0.push('\0');
        }
    }

    /// The first value of a name. If no name is written in exactly this way, upper and lower case are taken as equal.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let exact = self.iter().find(|(n, _)| *n == name);
        exact.or_else(|| self.iter().find(|(n, _)| n.eq_ignore_ascii_case(name))).map(|(_, value)| value)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut texts = self.0.split_terminator('\0');
        std::iter::from_fn(move || Some((texts.next()?, texts.next()?)))
    }

    /// Leaves out all of these names, whatever their case.
    pub fn remove(&mut self, names: &[&str]) {
        let mut left = Self::default();
        for (name, value) in self.iter().filter(|(n, _)| !names.iter().any(|name| n.eq_ignore_ascii_case(name))) {
            left.push(name, value);
        }
        *self = left;
    }

    /// Bytes that they take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_name_and_the_exact_name_comes_first() {
        let mut headers = Headers::default();
        for (name, value) in [("type", "a"), ("Type", "b"), ("empty", ""), ("Type", "c"), ("nul\0", "x\0y")] {
            headers.push(name, value);
        }
        assert_eq!(headers.get("Type"), Some("b"));
        assert_eq!(headers.get("TYPE"), Some("a"));
        assert_eq!((headers.get("empty"), headers.get("nul"), headers.get("none")), (Some(""), Some("xy"), None));
        headers.remove(&["tYPE", "nul"]);
        assert_eq!(headers.iter().collect::<Vec<_>>(), [("empty", "")]);
        assert_eq!(headers.bytes(), 7);
    }
}
