//! Which of many patterns match a subject: a tree of tokens, so that the cost is the depth of the subject
//! and not the number of patterns.
//!
//! Pure. Knows only patterns and the small values that are kept for each of them.

use hashbrown::HashMap;
use smallvec::SmallVec;

use super::Pattern;

/// Patterns that a node keeps as texts. Only when there are more it has children: a tree of all tokens of a client's patterns would
/// take hundreds of times the bytes of its request.
const FEW: usize = 8;
/// A node so deep has no children, however many patterns go on from it: what walks the tree needs a bounded stack.
const DEEPEST: usize = 64;

/// The values of one pattern. Up to two lie in the node itself: most patterns have one, and finding it is one look into memory less.
type Values<T> = SmallVec<[T; 2]>;

#[derive(Debug)]
struct Node<T> {
    /// What is left of patterns that go on from here, each with its value; they have no children yet.
    few: Vec<(Box<[u8]>, T)>,
    literal: HashMap<Box<[u8]>, Node<T>>,
    any: Option<Box<Node<T>>>,
    /// Patterns that end here.
    ends: Values<T>,
    /// Patterns that end in `>` below here.
    tails: Values<T>,
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self { few: Vec::new(), literal: HashMap::new(), any: None, ends: Values::new(), tails: Values::new() }
    }
}

impl<T: Copy + PartialEq> Node<T> {
    fn is_empty(&self) -> bool {
        self.few.is_empty() && self.has_no_children() && self.ends.is_empty() && self.tails.is_empty()
    }

    fn has_no_children(&self) -> bool {
        self.literal.is_empty() && self.any.is_none()
    }

    /// `rest`: what is left of the pattern; `None`: it ends here. `depth`: that of this node.
    fn insert(&mut self, rest: Option<&[u8]>, value: T, depth: usize) {
        match rest {
            None => self.ends.push(value),
            Some(b">") => self.tails.push(value),
            Some(rest) if depth == DEEPEST || (self.few.len() < FEW && self.has_no_children()) => self.few.push((rest.into(), value)),
            Some(rest) => {
                for (rest, value) in std::mem::take(&mut self.few) {
                    self.insert_below(&rest, value, depth + 1);
                }
                self.insert_below(rest, value, depth + 1);
            }
        }
    }

    fn insert_below(&mut self, rest: &[u8], value: T, depth: usize) {
        let (token, rest) = first(rest);
        let child = match token {
            b"*" => &mut **self.any.get_or_insert_default(),
            token => self.literal.entry(token.into()).or_default(),
        };
        child.insert(rest, value, depth);
    }

    fn remove(&mut self, rest: Option<&[u8]>, value: T) {
        let take_out = |values: &mut Values<T>| {
            if let Some(at) = values.iter().position(|other| *other == value) {
                values.swap_remove(at);
            }
        };
        let rest = match rest {
            None => return take_out(&mut self.ends),
            Some(b">") => return take_out(&mut self.tails),
            Some(rest) => rest,
        };
        if let Some(at) = self.few.iter().position(|(other, of)| **other == *rest && *of == value) {
            self.few.swap_remove(at);
            return;
        }
        match first(rest) {
            (b"*", rest) => {
                if let Some(child) = &mut self.any {
                    child.remove(rest, value);
                    self.any.take_if(|child| child.is_empty());
                }
            }
            (token, rest) => {
                if let Some(child) = self.literal.get_mut(token) {
                    child.remove(rest, value);
                    if child.is_empty() {
                        self.literal.remove(token);
                    }
                }
            }
        }
    }

    fn find(&self, rest: &[u8], found: &mut Vec<T>) {
        found.extend_from_slice(&self.tails);
        found.extend(self.few.iter().filter(|(pattern, _)| super::matches(pattern, rest)).map(|(_, value)| *value));
        if self.has_no_children() {
            return;
        }
        let (token, rest) = first(rest);
        let children = [self.literal.get(token), self.any.as_deref()];
        for child in children.into_iter().flatten() {
            match rest {
                Some(rest) => child.find(rest, found),
                None => found.extend_from_slice(&child.ends),
            }
        }
    }
}

/// The first token, and the rest if there is one.
fn first(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    // Tokens are short: `memchr` would cost more to start than it saves.
    match text.iter().position(|byte| *byte == b'.') {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
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
        self.root.insert(Some(pattern.as_str().as_bytes()), value, 0);
    }

    /// Removes `value` from `pattern`, and the branches that become empty.
    pub fn remove(&mut self, pattern: &Pattern, value: T) {
        self.root.remove(Some(pattern.as_str().as_bytes()), value);
    }

    /// Appends the values of all patterns that match `subject` to `found`. A value that several matching patterns have is
    /// appended once for each of them.
    pub fn find(&self, subject: &[u8], found: &mut Vec<T>) {
        self.root.find(subject, found);
    }

    /// How many nodes it has.
    #[cfg(test)]
    pub(crate) fn nodes(&self) -> usize {
        fn below<T>(node: &Node<T>) -> usize {
            1 + node.literal.values().map(below).sum::<usize>() + node.any.as_deref().map_or(0, below)
        }
        below(&self.root)
    }

    /// Whether nothing is left in it.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.root.is_empty()
    }
}
