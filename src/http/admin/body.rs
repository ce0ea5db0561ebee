//! The body of a request to the admin listener: bounded in bytes and in time.

use std::time::Duration;

use axum::body::Body;
use http_body_util::{BodyExt as _, Limited};

use crate::http::problem::Problem;

/// Bytes of a body, and how long it may take to arrive.
const MAX_BYTES: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(10);

/// Reads a body.
///
/// # Errors
/// With 413 if it is too large, 408 if it does not come in time, 400 if it breaks off.
pub(super) async fn read(body: Body) -> Result<Vec<u8>, Problem> {
    match tokio::time::timeout(PATIENCE, Limited::new(body, MAX_BYTES).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes().into()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(Problem::too_large(MAX_BYTES)),
        Ok(Err(_)) => Err(Problem::bad_request("the request's body is broken")),
        Err(_) => Err(Problem::timeout()),
    }
}
