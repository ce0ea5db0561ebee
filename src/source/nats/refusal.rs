//! What a server does not permit: single subjects, while the connection goes on. Knows no subscription and no request.

use std::collections::VecDeque;

use crate::source::SourceError;

/// Refusals of one connection that are remembered.
const MOST: usize = 256;

/// What a user may be permitted to do with a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::source) enum Right {
    Publish,
    Subscribe,
}

impl Right {
    /// As servers call it.
    const fn noun(self) -> &'static str {
        match self {
            Self::Publish => "Publish",
            Self::Subscribe => "Subscription",
        }
    }

    /// The error for a subject that is refused. `grant` is the form in which the right is granted, `key` the setting that
    /// needs it.
    pub(in crate::source) fn denied(self, grant: &str, key: &str) -> SourceError {
        SourceError::denied(format!("the server says: Permissions Violation for {} to `{grant}`; `{key}` needs this right", self.noun()))
    }
}

/// One refusal.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::source) struct Refusal {
    pub(in crate::source) right: Right,
    pub(in crate::source) subject: String,
}

impl Refusal {
    /// Reads the words of a server: `Permissions Violation for Publish to "x"`.
    pub(super) fn read(said: &str) -> Option<Self> {
        const KINDS: [(&str, Right); 2] = [("publish to \"", Right::Publish), ("subscription to \"", Right::Subscribe)];
        let start = "permissions violation for ";
        let is = |text: &str, from: usize| said.get(from..from + text.len()).is_some_and(|part| part.eq_ignore_ascii_case(text));
        let (kind, right) = KINDS.into_iter().find(|(kind, _)| is(start, 0) && is(kind, start.len()))?;
        // The subject is quoted as Go does: of what subjects are made of, only these two are escaped.
        let (mut subject, mut escaped) = (String::new(), false);
        for c in said[start.len() + kind.len()..].chars() {
            match c {
                '\\' if !escaped => escaped = true,
                '"' if !escaped => break,
                _ => {
                    subject.push(c);
                    escaped = false;
                }
            }
        }
        Some(Self { right, subject })
    }
}

/// The newest refusals of a connection.
#[derive(Debug, Default)]
pub(in crate::source) struct Refusals {
    newest: VecDeque<Refusal>,
    /// How many there were before those.
    forgotten: u64,
}

impl Refusals {
    pub(super) fn add(&mut self, refusal: Refusal) {
        if self.newest.len() >= MOST {
            self.newest.pop_front();
            self.forgotten += 1;
        }
        self.newest.push_back(refusal);
    }

    pub(in crate::source) fn contain(&self, right: Right, subject: &str) -> bool {
        self.newest.iter().any(|refusal| refusal.right == right && refusal.subject == subject)
    }

    /// Whether something below a subject is refused.
    pub(in crate::source) fn contain_below(&self, right: Right, subject: &str) -> bool {
        let below = |refused: &str| refused.strip_prefix(subject).is_some_and(|rest| rest.starts_with('.'));
        self.newest.iter().any(|refusal| refusal.right == right && below(&refusal.subject))
    }

    /// Those that came after the first `heard`; sets `heard` to the number of all.
    pub(in crate::source) fn after(&self, heard: &mut u64) -> impl Iterator<Item = &Refusal> {
        let skipped = heard.saturating_sub(self.forgotten);
        *heard = self.forgotten + self.newest.len() as u64;
        self.newest.iter().skip(usize::try_from(skipped).unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_its_right_and_its_subject() {
        let refusal = |right, subject: &str| Some(Refusal { right, subject: subject.to_owned() });
        for (said, expected) in [
            ("Permissions Violation for Publish to \"$JS.API.INFO\"", refusal(Right::Publish, "$JS.API.INFO")),
            ("permissions violation for subscription to \"a.>\"", refusal(Right::Subscribe, "a.>")),
            ("Permissions Violation for Subscription to \"a\" using queue \"q\"", refusal(Right::Subscribe, "a")),
            ("Permissions Violation for Subscription to \"a\" (sid \"3\")", refusal(Right::Subscribe, "a")),
            (r#"Permissions Violation for Publish to "a\"b\\c""#, refusal(Right::Publish, r#"a"b\c"#)),
            ("Permissions Violation for Publish to \"cut", refusal(Right::Publish, "cut")),
            ("Permissions Violation for Publish with Reply of \"a\"", None),
            ("Authorization Violation", None),
            ("é", None),
        ] {
            assert_eq!(Refusal::read(said), expected, "{said}");
        }
    }

    #[test]
    fn each_reader_hears_each_refusal_once_as_long_as_it_is_remembered() {
        let mut refusals = Refusals::default();
        let mut heard = 0;
        let add = |refusals: &mut Refusals, n: usize| refusals.add(Refusal { right: Right::Publish, subject: n.to_string() });
        let mut new = |refusals: &Refusals| refusals.after(&mut heard).map(|r| r.subject.clone()).collect::<Vec<_>>();
        assert!(new(&refusals).is_empty());
        add(&mut refusals, 1);
        add(&mut refusals, 2);
        assert_eq!(new(&refusals), ["1", "2"]);
        add(&mut refusals, 3);
        assert_eq!(new(&refusals), ["3"]);
        for n in 0..2 * MOST {
            add(&mut refusals, n);
        }
        assert_eq!(new(&refusals).len(), MOST);
        assert!(refusals.contain(Right::Publish, "511") && !refusals.contain(Right::Publish, "3"));
        assert!(!refusals.contain(Right::Subscribe, "511"));
    }
}
