//! Who sends a request, and whether the page that sends it may.
//!
//! Knows that a token comes first, and that the backend is asked only for pages that may ask. Not what becomes of a refusal.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use http::request::Parts;

use super::forwarded::client_address;
use super::problem::Problem;
use super::{Peer, Policy, origin_of};
use crate::auth::{AuthError, Grant};

/// How long a request waits for keys that are on their way.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why a request gets no grant.
#[derive(Debug)]
pub(super) enum Denied {
    /// Because of who sends it.
    Sender(AuthError),
    /// Because of the page that sends it.
    Page(Problem),
}

impl Policy {
    /// What a request may subscribe to, by whichever carrier.
    pub(super) async fn subscriber(&self, parts: &Parts) -> Result<Grant, Denied> {
        if let Some(question) = self.auth.question(&parts.headers, parts.uri.query(), false) {
            self.may_ask(parts)?;
            return self.auth.ask(question, self.client(parts)).await.map_err(Denied::Sender);
        }
        let grant = self.auth.authenticate_within(&parts.headers, parts.uri.query(), PATIENCE).await.map_err(Denied::Sender)?;
        self.may_ask(parts)?;
        Ok(grant)
    }

    /// What a request may publish to, by its `Authorization` header alone.
    pub(super) async fn publisher(&self, parts: &Parts) -> Result<Grant, Denied> {
        if let Some(question) = self.auth.question(&parts.headers, None, true) {
            self.may_ask(parts)?;
            return self.auth.ask(question, self.client(parts)).await.map_err(Denied::Sender);
        }
        let grant = self.auth.authenticate_publisher_within(&parts.headers, PATIENCE).await.map_err(Denied::Sender)?;
        self.may_ask(parts)?;
        Ok(grant)
    }

    fn may_ask(&self, parts: &Parts) -> Result<(), Denied> {
        self.origins.allow(&origin_of(parts), &parts.headers).map_err(Denied::Page)
    }

    /// The client's address.
    pub(super) fn client(&self, parts: &Parts) -> IpAddr {
        let peer = parts.extensions.get::<Peer>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.address.ip());
        client_address(peer, &parts.headers, &self.trusted_proxies)
    }
}
