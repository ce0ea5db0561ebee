//! What moves a stream to a socket.
//!
//! Owns how each transport frames entries. Knows the hub's pieces; nothing of requests.

pub mod framing;
