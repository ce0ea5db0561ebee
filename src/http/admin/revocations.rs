//! `/revocations` on the admin listener: tokens that are refused from now on, and whose streams end.
//!
//! Knows what a revocation is, and that streams can be ended by one; not how.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use serde_json::json;

use super::respond;
use crate::auth::{Criteria, Revocation, RevocationError, Revocations};
use crate::event::Timestamp;
use crate::http::problem::Problem;

/// What is needed of other rooms.
pub(crate) struct Revoking {
    pub(crate) revocations: Arc<Revocations>,
    /// Ends the streams whose tokens are meant. Returns how many.
    pub(crate) end: Box<dyn Fn(&Criteria) -> usize + Send + Sync>,
}

const PATH: &str = "/revocations";
/// Bytes of an order, and how long it may take to arrive.
const MAX_BYTES: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(10);

impl Revoking {
    /// The rest of a path of ours: empty, or the name of a revocation behind a slash.
    pub(super) fn rest(path: &str) -> Option<&str> {
        path.strip_prefix(PATH).filter(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Answers a request for a path of ours.
    pub(super) async fn answer(&self, request: Request) -> Result<Response, Problem> {
        let (parts, body) = request.into_parts();
        match (Self::rest(parts.uri.path()).unwrap_or_default().strip_prefix('/'), &parts.method) {
            (None, &Method::POST) => self.add(&read(body).await?),
            (None, method @ (&Method::GET | &Method::HEAD)) => {
                let body = json!({ "revocations": self.revocations.list(Timestamp::now()) });
                Ok(respond(method, StatusCode::OK, "application/json", body.to_string() + "\n"))
            }
            (None, _) => Err(Problem::method("GET, HEAD, POST")),
            (Some(id), &Method::DELETE) if self.revocations.remove(id) => {
                tracing::info!(id, "revocation taken back");
                Ok(StatusCode::NO_CONTENT.into_response())
            }
            (Some(_), &Method::DELETE) => Err(Problem::not_found("there is no revocation of this id")),
            (Some(_), _) => Err(Problem::method("DELETE")),
        }
    }

    fn add(&self, order: &[u8]) -> Result<Response, Problem> {
        let now = Timestamp::now();
        let refused = |error| match error {
            RevocationError::Full => Problem::unavailable(error.to_string(), Duration::from_secs(60)),
            _ => Problem::bad_request(format!("the revocation {error}")),
        };
        let revocation = Revocation::read(order, now).map_err(refused)?;
        let Revocation { id, criteria, .. } = revocation.clone();
        // First: what is opened from here on is refused, what was opened before is found.
        self.revocations.add(revocation, now).map_err(refused)?;
        let ended = (self.end)(&criteria);
        tracing::info!(id, ended, "tokens revoked");
        let body = json!({ "id": id, "ended": ended, "scope": "process" });
        Ok(respond(&Method::POST, StatusCode::CREATED, "application/json", body.to_string() + "\n"))
    }
}

async fn read(body: Body) -> Result<Vec<u8>, Problem> {
    match tokio::time::timeout(PATIENCE, Limited::new(body, MAX_BYTES).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes().into()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(Problem::too_large(MAX_BYTES)),
        Ok(Err(_)) => Err(Problem::bad_request("the request's body is broken")),
        Err(_) => Err(Problem::timeout()),
    }
}
