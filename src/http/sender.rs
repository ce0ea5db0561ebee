//! Who sends a request, and whether the page that sends it may.
//!
//! Knows that a token comes first, and that the backend is asked only for pages that may ask. Not what becomes of a refusal.

use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;

use super::problem::Problem;
use super::{Policy, client_of, origin_of};
use crate::auth::{AuthError, Grant, Owner};
use crate::pool::Identity;

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

/// Whom caps and rates count: the same name of two issuers may be two people's.
pub(super) fn identity_of(grant: &Grant) -> Option<Identity> {
    let owner = grant.owner.as_ref()?;
    Some(Identity { issuer: owner.issuer.clone(), name: owner.identity.clone()? })
}

impl Policy {
    /// What a request may subscribe to, by whichever carrier. A refusal counts.
    pub(super) async fn subscriber(&self, parts: &Parts) -> Result<Grant, Denied> {
        self.counted(self.grant(parts, false).await)
    }

    /// What a request may publish to, by its `Authorization` header alone. A refusal counts.
    pub(super) async fn publisher(&self, parts: &Parts) -> Result<Grant, Denied> {
        self.counted(self.grant(parts, true).await)
    }

    fn counted(&self, grant: Result<Grant, Denied>) -> Result<Grant, Denied> {
        grant.inspect_err(|denied| {
            if let Denied::Sender(error) = denied {
                self.auth.count_refused(error);
            }
        })
    }

    /// What a request may publish to, or else subscribe to. No refusal counts.
    pub(super) async fn grant(&self, parts: &Parts, publisher: bool) -> Result<Grant, Denied> {
        let (headers, query) = (&parts.headers, parts.uri.query());
        if let Some(question) = self.auth.question(headers, query, publisher).map_err(Denied::Sender)? {
            self.may_ask(parts, None, true)?;
            return self.auth.ask(question, client_of(parts)).await.map_err(Denied::Sender);
        }
        let grant = self.auth.authenticate(headers, query, publisher, PATIENCE).await.map_err(Denied::Sender)?;
        self.may_ask(parts, grant.owner.as_ref(), self.auth.is_sent_along(headers))?;
        Ok(grant)
    }

    /// Whether a page of some origin may have sent a request. A bearer token in `Authorization` says so itself: no browser sends it along
    /// for a page that does not have it. Browsers do so with cookies, and proxies with headers of their own. `whose`: whose good token
    /// it brings. `along`: a proxy may have set the header that it brings, or it is for the backend.
    fn may_ask(&self, parts: &Parts, whose: Option<&Arc<Owner>>, along: bool) -> Result<(), Denied> {
        if self.auth.is_bearer(&parts.headers) {
            return Ok(());
        }
        self.origins.allow(&origin_of(parts), &parts.headers, along).map_err(|problem| Denied::Page(problem.to(whose)))
    }
}
