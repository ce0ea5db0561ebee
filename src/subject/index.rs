//! Which of many patterns match a subject: a tree of tokens, so that the cost is the depth of the subject
//! and not the number of patterns.
//!
//! Pure. Knows only patterns and the small values that are kept for each of them.

use hashbrown::HashMap;

use super::Pattern;

#[derive(Debug)]
struct Node<T> {
    literal: HashMap<Box<str>, Node<T>>,
    any: Option<Box<Node<T>>>,
    /// Patterns that end here.
    ends: Vec<T>,
    /// Patterns that end in `>` below here.
    tails: Vec<T>,
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self { literal: HashMap::new(), any: None, ends: Vec::new(), tails: Vec::new() }
    }
}

impl<T> Node<T> {
    fn is_empty(&self) -> bool {
        self.literal.is_empty() && self.any.is_none() && self.ends.is_empty() && self.tails.is_empty()
    }
}

/// Values under patterns.
#[derive(Debug)]
pub struct Index<T> {
    root: Node<T>,
}

impl<T> Default for Index<T> {
    fn default() -> Self {
        Self { root: Node::default() }
    }
}

impl<T: Copy + PartialEq> Index<T> {
    /// Puts `value` under `pattern`; the pair must not be there yet.
    pub fn insert(&mut self, pattern: &Pattern, value: T) {
        let mut node = &mut self.root;
        for token in pattern.tokens() {
            node = match token {
                ">" => {
                    node.tails.push(value);
                    return;
                }
                "*" => node.any.get_or_insert_default(),
                token => node.literal.entry(token.into()).or_default(),
            };
        }
        node.ends.push(value);
    }

    /// Removes `value` from `pattern`, and the branches that become empty.
    pub fn remove(&mut self, pattern: &Pattern, value: T) {
        fn walk<'a, T: Copy + PartialEq>(node: &mut Node<T>, mut tokens: impl Iterator<Item = &'a str>, value: T) {
            let list = match tokens.next() {
                None => &mut node.ends,
                Some(">") => &mut node.tails,
                Some("*") => {
                    if let Some(next) = &mut node.any {
                        walk(next, tokens, value);
                        if next.is_empty() {
                            node.any = None;
                        }
                    }
                    return;
                }
                Some(token) => {
                    if let Some(next) = node.literal.get_mut(token) {
                        walk(next, tokens, value);
                        if next.is_empty() {
                            node.literal.remove(token);
                        }
                    }
                    return;
                }
            };
            if let Some(at) = list.iter().position(|v| *v == value) {
                list.swap_remove(at);
            }
        }
        // Boxed once: the recursion would otherwise nest the iterator's type.
        let tokens: Box<dyn Iterator<Item = &str>> = Box::new(pattern.tokens());
        walk(&mut self.root, tokens, value);
    }

    /// Appends the values of all patterns that match `subject` to `found`. A value that several matching patterns have is
    /// appended once for each of them.
    pub fn find(&self, subject: &str, found: &mut Vec<T>) {
        fn walk<T: Copy>(node: &Node<T>, rest: &str, found: &mut Vec<T>) {
            found.extend_from_slice(&node.tails);
            // Tokens are short: `memchr` would cost more to start than it saves.
            let (token, rest) = match rest.bytes().position(|b| b == b'.') {
                Some(at) => (&rest[..at], Some(&rest[at + 1..])),
                None => (rest, None),
            };
            let next = [node.literal.get(token), node.any.as_deref()];
            for node in next.into_iter().flatten() {
                match rest {
                    Some(rest) => walk(node, rest, found),
                    None => found.extend_from_slice(&node.ends),
                }
            }
        }
        walk(&self.root, subject, found);
    }

    /// Whether nothing is left in it.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.root.is_empty()
    }
}
