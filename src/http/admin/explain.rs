//! `/explain` on the admin listener: why somebody sees a subject or does not.
//!
//! Knows what a question looks like; the answer is made elsewhere. The token is in the body, where no log of requests shows it.

use axum::body::Body;
use axum::response::Response;
use futures_util::future::BoxFuture;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use super::{body, respond};
use crate::http::problem::Problem;
use crate::subject::Subject;

/// Answers for a token (`None`: for somebody without one) and a subject.
pub(crate) type Explain = dyn Fn(Option<String>, Subject) -> BoxFuture<'static, Value> + Send + Sync;

/// A question.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    token: Option<String>,
    subject: String,
}

/// Answers a request for `/explain`.
///
/// # Errors
/// With 400 for what is no question, 405 for other methods.
pub(super) async fn answer(explain: &Explain, method: &Method, content: Body) -> Result<Response, Problem> {
    if method != Method::POST {
        return Err(Problem::method("POST"));
    }
    let expected = "must be a JSON object with `subject` and, where there is one, `token` (texts), and nothing else";
    let Asked { token, subject } =
        serde_json::from_slice(&body::read(content).await?).map_err(|_| Problem::bad_request(format!("the question {expected}")))?;
    let subject = subject.parse().map_err(|error| Problem::bad_request(format!("`subject` {error}")))?;
    let told = explain(token.map(|token| token.trim().to_owned()), subject).await;
    Ok(respond(method, StatusCode::OK, "application/json", told.to_string() + "\n"))
}
