//! NATS headers, and what they say of deletions in key-value buckets.

use async_nats::HeaderMap;

use crate::event::{Headers, Message};

/// What the subjects of all buckets' keys begin with.
pub(in crate::source) const KEYS: &str = "$KV.";
/// What a bucket's clients write for a deletion, and the server for what has expired or was purged.
const OPERATION: &str = "KV-Operation";
const MARKER: &str = "Nats-Marker-Reason";

/// Notes what a message carries. `subject` is as the broker has it: outside buckets these headers mean nothing.
pub(in crate::source) fn take(message: &mut Message, subject: &[u8], headers: Headers) {
    let deletes = || matches!(headers.get(OPERATION), Some("DEL" | "PURGE")) || headers.get(MARKER).is_some();
    message.deleted = subject.starts_with(KEYS.as_bytes()) && deletes();
    message.headers = headers;
}

/// The first value of each name.
pub(in crate::source) fn read(map: Option<&HeaderMap>) -> Headers {
    let mut headers = Headers::default();
    for (name, values) in map.into_iter().flat_map(HeaderMap::iter) {
        if let Some(value) = values.first() {
            headers.push(name.as_ref(), value.as_str());
        }
    }
    headers
}

/// From the bytes as the server keeps them, as far as they can be read.
pub(in crate::source) fn parse(bytes: &[u8]) -> Headers {
    let mut headers = Headers::default();
    // The first line says the version.
    for line in String::from_utf8_lossy(bytes).lines().skip(1) {
        if let Some((name, value)) = line.split_once(':').filter(|(name, _)| !name.is_empty()) {
            headers.push(name, value.trim());
        }
    }
    headers
}
