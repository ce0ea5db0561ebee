//! What moves a stream to a socket: hyper's body, a task while the stream catches up, a loop while it is live.
//!
//! Owns how each transport frames entries. Knows streams and the hub's pieces; nothing of requests.

mod behind;
pub mod body;
pub mod framing;
pub mod task;
pub mod writer;
