//! What the tests stand on: processes, brokers, clients, tokens, waiting.
//!
//! Shared by the test programs. Knows brokercast only from outside: its binary, its ports, its contract.
#![allow(dead_code, unused_imports, reason = "each test program uses its own part")]

#[path = "support/bridge.rs"]
pub mod bridge;
#[path = "support/certs.rs"]
pub mod certs;
#[path = "support/chromium.rs"]
pub mod chromium;
#[path = "support/nats.rs"]
pub mod nats;
#[path = "support/port.rs"]
pub mod port;
#[path = "support/process.rs"]
pub mod process;
#[path = "support/proxy.rs"]
pub mod proxy;
#[path = "support/rabbit.rs"]
pub mod rabbit;
#[path = "support/raw.rs"]
pub mod raw;
#[path = "support/server.rs"]
pub mod server;
#[path = "support/sse.rs"]
pub mod sse;
#[path = "support/sse_parser.rs"]
pub mod sse_parser;
#[path = "support/token.rs"]
pub mod token;
#[path = "support/wait.rs"]
pub mod wait;

pub use bridge::Bridge;
pub use nats::Nats;
pub use rabbit::Rabbit;
pub use raw::Raw;
pub use server::Server;
pub use sse::{Item, Sse};
pub use wait::{PATIENCE, eventually, within};
