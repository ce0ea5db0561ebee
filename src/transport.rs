//! What moves a stream to a socket: hyper's body, a task while the stream catches up, a loop while it is live.
//!
//! Owns how each transport frames entries. Knows streams and the hub's pieces; nothing of requests.

mod behind;
pub(crate) mod body;
pub(crate) mod framing;
pub(crate) mod task;
pub(crate) mod writer;
