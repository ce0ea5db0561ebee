//! NATS.

use std::sync::Arc;

use super::{Adapter, Common};
use crate::event::SourceName;

mod config;

pub use config::{Auth, Config, JetStream, Limits, Raw, Server, Tls};

impl Config {
    /// Makes the adapter; connects nothing.
    #[must_use]
    pub fn build(self, _: &SourceName, _: Common) -> Arc<dyn Adapter> {
        todo!("in the next delivery")
    }
}
