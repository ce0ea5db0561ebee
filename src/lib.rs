//! brokercast: message-broker traffic for browsers, over Server-Sent Events.
//!
//! The rooms and what each may know are drawn in ARCHITECTURE.md. Data flows one way:
//! `source -> Message -> route -> Event -> hub -> Subscription -> SSE body`.

pub mod app;
pub mod auth;
pub mod cli;
pub mod config;
pub mod cursor;
pub mod event;
pub mod frame;
pub mod http;
pub mod hub;
pub mod metrics;
pub mod pool;
pub mod replay;
pub mod route;
pub mod source;
pub mod subject;
pub mod support;
pub mod telemetry;
pub mod transport;
pub mod writer;
