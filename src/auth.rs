//! Who asks, and what they may see: a token or its absence becomes a [`Grant`].

use std::sync::Arc;

use crate::event::Timestamp;
use crate::subject::Pattern;

/// What a request may do, and for how long.
#[derive(Debug, Clone)]
pub struct Grant {
    /// Subjects it may subscribe to: claim, templates and anonymous together.
    pub subscribe: Arc<[Pattern]>,
    /// Subjects it may publish to, likewise.
    pub publish: Arc<[Pattern]>,
    /// The token's `sub`.
    pub identity: Option<Arc<str>>,
    /// When the token would be refused: `exp` plus leeway. `None`: anonymous.
    pub expires: Option<Timestamp>,
}
