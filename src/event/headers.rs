//! What a message carries beside its payload: named texts. Pure. Knows no broker's names for them.

/// Names and values in the order in which they came.
///
/// All of them are one text, so that a message with headers costs one allocation more, and one without none. A NUL ends each
/// name and each value; NULs within them are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Headers {
    /// Names and values, each with a NUL behind it.
    texts: String,
    /// How many there are.
    count: u32,
    /// Which of the first 64 values are integers or truth values: a bit for each.
    literals: u64,
}

impl Headers {
    /// Appends a header.
    pub fn push(&mut self, name: &str, value: &str) {
        for text in [name, value] {
            self.texts.reserve(text.len() + 1);
            self.texts.extend(text.split('\0'));
            self.texts.push('\0');
        }
        self.count += 1;
    }

    /// Appends a header whose value its publisher wrote as an integer or a truth value, here as JSON.
    pub fn push_literal(&mut self, name: &str, value: &str) {
        self.literals |= 1_u64.checked_shl(self.count).unwrap_or(0);
        self.push(name, value);
    }

    /// The first value of a name. If no name is written in exactly this way, upper and lower case are taken as equal.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        if self.count == 0 {
            return None;
        }
        let mut alike = None;
        for (other, value) in self.iter() {
            if other == name {
                return Some(value);
            }
            if alike.is_none() && other.eq_ignore_ascii_case(name) {
                alike = Some(value);
            }
        }
        alike
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut texts = self.texts.split_terminator('\0');
        std::iter::from_fn(move || Some((texts.next()?, texts.next()?)))
    }

    /// All of them, each with whether its value is an integer or a truth value.
    pub fn typed(&self) -> impl Iterator<Item = (&str, &str, bool)> {
        self.iter().enumerate().map(|(at, (name, value))| (name, value, at < 64 && self.literals >> at & 1 == 1))
    }

    /// Leaves out all of these names, whatever their case.
    pub fn remove(&mut self, names: &[&str]) {
        let mut left = Self::default();
        for (name, value, literal) in self.typed().filter(|(n, ..)| !names.iter().any(|name| n.eq_ignore_ascii_case(name))) {
            if literal {
                left.push_literal(name, value);
            } else {
                left.push(name, value);
            }
        }
        *self = left;
    }

    /// Bytes that they take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.texts.len()
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
        for n in 0..70 {
            headers.push_literal(&format!("n{n}"), "1");
        }
        headers.remove(&["n0"]);
        let literals = headers.typed().filter(|(.., literal)| *literal).map(|(name, ..)| name);
        assert_eq!(literals.collect::<Vec<_>>(), (1..63).map(|n| format!("n{n}")).collect::<Vec<_>>());
    }
}
