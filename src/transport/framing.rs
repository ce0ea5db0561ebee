//! How each transport frames entries.
//!
//! An entry is encoded with the framing of HTTP/1.1 around it, so that both framings share its bytes.

use std::ops::Range;

use crate::frame::{Encoded, Form};
use crate::hub::Framing;

/// Text as it is: hyper frames it.
#[derive(Debug)]
pub(crate) struct Plain;

impl Framing for Plain {
    const SLOT: usize = 0;
    fn range(entry: &Encoded, form: Form) -> Range<usize> {
        entry.text(form)
    }
}

/// Each entry as a chunk of HTTP/1.1 (RFC 9112, section 7.1).
#[derive(Debug)]
pub(crate) struct Chunked;

impl Framing for Chunked {
    const SLOT: usize = 1;
    fn range(entry: &Encoded, form: Form) -> Range<usize> {
        entry.chunk(form)
    }
}
