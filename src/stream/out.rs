//! What a stream sends next: text of its own and, where an event is large, bytes that it shares with others.
//!
//! A client that takes nothing keeps what it was to be sent. So a large event is not copied for each of them.

use std::ops::Range;

use bytes::Bytes;
use memchr::memmem;

use crate::event::Event;
use crate::frame::{self, Form, Origin};

/// Bytes to be sent, in order.
#[derive(Debug)]
pub(super) struct Out {
    /// From so many bytes on, what is shared is not copied.
    share: usize,
    parts: Vec<Bytes>,
    /// What follows these.
    own: Vec<u8>,
}

impl Out {
    pub(super) fn new(share: usize) -> Self {
        Self { share, parts: Vec::new(), own: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.own.is_empty()
    }

    /// For text of its own, which is appended.
    pub(super) fn own(&mut self) -> &mut Vec<u8> {
        &mut self.own
    }

    /// Appends a range of a block that others have too.
    pub(super) fn push(&mut self, block: &Bytes, range: Range<usize>) {
        if range.len() < self.share {
            self.own.extend_from_slice(&block[range]);
        } else {
            self.end_own();
            self.parts.push(block.slice(range));
        }
    }

    /// Appends all of an event but its `id` line. Its payload stays shared with others, where it is large and written as it is.
    pub(super) fn push_event(&mut self, event: &Event, form: Form, origin: Origin<'_>) {
        let (payload, length) = frame::body(&mut self.own, event, form, origin);
        if length < self.share {
            return;
        }
        let end = self.own.len() - payload.behind();
        if let Some(at) = memmem::find(&event.payload, &self.own[end - length..end]) {
            let behind = self.own[end..].to_vec();
            self.own.truncate(end - length);
            self.end_own();
            self.parts.push(event.payload.slice(at..at + length));
            self.own = behind;
        }
    }

    /// Takes all of it.
    pub(super) fn take(&mut self) -> Vec<Bytes> {
        self.end_own();
        std::mem::take(&mut self.parts)
    }

    /// Keeps no more memory than the text needs: it may have grown, or may have been larger.
    fn end_own(&mut self) {
        if !self.own.is_empty() {
            self.parts.push(std::mem::take(&mut self.own).into_boxed_slice().into());
        }
    }
}
