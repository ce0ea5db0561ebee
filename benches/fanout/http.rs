//! As much of HTTP/1.1 as the load needs: messages with a `content-length`, and where one ends.

/// What the limit server answers to a publisher.
pub(super) const ANSWERED: &[u8] = b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n";
/// What it answers to a subscriber.
pub(super) const OPENED: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n9\r\n: limit\n\n\r\n";

/// A message at the beginning of some bytes.
pub(super) struct Message {
    /// Where its body begins.
    pub(super) head: usize,
    /// Where it ends.
    pub(super) end: usize,
}

/// The first message, if all of it is there.
pub(super) fn first(bytes: &[u8]) -> Option<Message> {
    let head = memchr::memmem::find(bytes, b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    let end = head + length.unwrap_or(0);
    (bytes.len() >= end).then_some(Message { head, end })
}

/// A request to publish `body`.
pub(super) fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let mut request = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len()).into_bytes();
    request.extend_from_slice(body);
    request
}
