//! What these tests stand on: the support that all test programs share, and a driver of one source.
#![allow(dead_code, reason = "each test program uses its own part")]

#[path = "../it/support/certs.rs"]
pub mod certs;
#[path = "../it/support/port.rs"]
pub mod port;
#[path = "../it/support/process.rs"]
pub mod process;
#[path = "../it/support/proxy.rs"]
pub mod proxy;
#[path = "../it/support/rabbit.rs"]
pub mod rabbit;
#[path = "../it/support/wait.rs"]
pub mod wait;

pub mod drive;
pub mod entries;
pub mod plain;

use brokercast::internals as contract;

/// The suite that every adapter passes.
#[path = "../../src/source/tests/conformance.rs"]
pub mod conformance;
