//! The AMQP source against a real RabbitMQ, by the adapter contract.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "this whole crate is tests")]
#![allow(unreachable_pub, reason = "the support is shared by several test programs")]

mod accounts;
mod conforms;
mod queue;
mod stream;
mod support;
mod unreadable;
