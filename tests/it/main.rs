//! The real program against real brokers and real clients, one module per topic.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "this whole crate is tests")]
#![allow(unreachable_pub, reason = "the support is shared by two test programs")]

mod access;
mod admin;
mod amqp;
mod amqp_existing;
mod backend;
mod browser;
mod caps;
mod commands;
mod configuration;
mod control;
mod cors;
mod default_run;
mod deploy;
mod durable;
mod explain;
mod figures;
mod history;
mod issuers;
mod messages;
mod metrics;
mod nats;
mod proxies;
mod rabbit_cluster;
mod rates;
mod refusals;
mod reload;
mod resume;
mod revocation;
mod rotation;
mod routes;
mod shutdown;
mod slow;
mod sockets;
mod sse_bytes;
mod streams;
mod super_streams;
mod support;
mod tokens;
mod traces;
mod transports;
mod vanished;
