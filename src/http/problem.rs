//! Every refusal of the HTTP layer, and the one place where it becomes a response (RFC 9457).
//!
//! Knows status codes and their headers (`WWW-Authenticate`, `Allow`, `Retry-After`); not when to refuse.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::json;

use crate::auth::{AuthError, INSUFFICIENT_SCOPE, Owner, Refused};
use crate::settings::{self, SettingsError};

/// A request that is not granted, as `application/problem+json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    status: StatusCode,
    detail: Cow<'static, str>,
    /// What the refusal is about, as a member of its own: `("pattern", "orders.>")`.
    about: Option<Box<(&'static str, serde_json::Value)>>,
    extra: Extra,
    cause: Cause,
    /// Whose token the request brought, if that is good. Not told to the client.
    whose: Option<Arc<Owner>>,
}

/// What a refusal is about, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The token, or its absence.
    Token(AuthError),
    /// The page that asks.
    Origin,
    /// The grant, which does not cover what is asked for.
    Grant,
    /// Anything else.
    Other,
}

impl Cause {
    /// Whether the log tells of it.
    pub(super) fn is_logged(&self) -> bool {
        *self != Self::Other
    }

    /// What only the log tells.
    pub(super) fn why(&self) -> Option<String> {
        match self {
            Self::Token(AuthError::Invalid(why)) => Some(why.to_string()),
            Self::Token(error) => Some(error.to_string()),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Extra {
    None,
    Challenge(HeaderValue),
    Allow(&'static str),
    RetryAfter(Duration),
    /// The rest of the request is not read, so the connection ends.
    Close,
}

impl Problem {
    fn new(status: StatusCode, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { status, detail: detail.into(), about: None, extra: Extra::None, cause: Cause::Other, whose: None }
    }

    /// 400: the request cannot be understood.
    pub(crate) fn bad_request(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// 400 about one parameter.
    pub(crate) fn parameter(name: &str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { about: Some(Box::new(("parameter", name.into()))), ..Self::bad_request(detail) }
    }

    /// 400, and the connection ends: the request must not have a body.
    pub(crate) fn unexpected_body() -> Self {
        Self { extra: Extra::Close, ..Self::bad_request("a request for events has no body") }
    }

    /// 401 with its challenge (RFC 6750 section 3) and a code, or 400 if no other token would help. Clients do not learn more
    /// of why a token failed than the code says.
    pub(crate) fn denied(error: &AuthError) -> Self {
        let problem = match error {
            AuthError::Malformed(why) => Self::bad_request(*why),
            AuthError::Missing => Self::new(StatusCode::UNAUTHORIZED, "this request needs a token and has none"),
            AuthError::Invalid(Refused::Expired) => Self::new(StatusCode::UNAUTHORIZED, "the token of this request has expired"),
            _ => Self::new(StatusCode::UNAUTHORIZED, "the token of this request is not valid"),
        };
        let about = error.code().map(|code| Box::new(("code", code.into())));
        Self { about, extra: error.challenge().map_or(Extra::None, Extra::Challenge), cause: Cause::Token(*error), ..problem }
    }

    /// 401 of the admin listener, which has a token of its own (RFC 6750 section 3).
    pub(crate) fn admin_token() -> Self {
        let challenge = Extra::Challenge(HeaderValue::from_static("Bearer realm=\"admin\""));
        Self {
            extra: challenge,
            cause: Cause::Token(AuthError::Missing),
            ..Self::new(StatusCode::UNAUTHORIZED, "the admin listener asks for its token here; see `admin.token_file`")
        }
    }

    /// 403.
    pub(crate) fn forbidden(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::FORBIDDEN, detail)
    }

    /// 403 to a page that may not ask.
    pub(crate) fn foreign(detail: &'static str) -> Self {
        Self { cause: Cause::Origin, ..Self::forbidden(detail) }
    }

    /// 403 where the grant covers nothing at all.
    pub(crate) fn nothing_granted() -> Self {
        Self { cause: Cause::Grant, ..Self::forbidden("the grant of this request covers no subject") }
    }

    /// 403 naming the pattern or subject that the grant does not cover.
    pub(crate) fn not_granted(kind: &'static str, name: &str) -> Self {
        Self {
            about: Some(Box::new((kind, name.into()))),
            extra: Extra::Challenge(INSUFFICIENT_SCOPE),
            cause: Cause::Grant,
            ..Self::new(StatusCode::FORBIDDEN, format!("the grant of this request does not cover the {kind} `{name}`"))
        }
    }

    /// 404.
    pub(crate) fn not_found(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// 405 with the allowed methods.
    pub(crate) fn method(allow: &'static str) -> Self {
        Self { extra: Extra::Allow(allow), ..Self::new(StatusCode::METHOD_NOT_ALLOWED, format!("the methods here are {allow}")) }
    }

    /// 408: the body did not come in time.
    pub(crate) fn timeout() -> Self {
        Self { extra: Extra::Close, ..Self::new(StatusCode::REQUEST_TIMEOUT, "the request's body did not come in time") }
    }

    /// 413: the body is larger than `max` bytes.
    pub(crate) fn too_large(max: usize) -> Self {
        Self { extra: Extra::Close, ..Self::new(StatusCode::PAYLOAD_TOO_LARGE, format!("a payload here has at most {max} bytes")) }
    }

    /// 415: the body has a content coding, and none is decoded here (RFC 9110 section 15.5.16).
    pub(crate) fn content_coding() -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "a payload is taken as it is: send it without a `Content-Encoding` or a `Transfer-Encoding` but chunked",
        )
    }

    /// 421: this server does not answer to that name (RFC 9110 section 15.5.20).
    pub(crate) fn misdirected() -> Self {
        Self::new(StatusCode::MISDIRECTED_REQUEST, "this server does not answer to the host name of this request; see `server.hosts`")
    }

    /// 422: the configuration is refused, with all that is wrong with it.
    pub(crate) fn configuration(error: &SettingsError) -> Self {
        let one = |problem: &settings::Problem| json!({ "file": problem.file(), "line": problem.line(), "key": problem.key(), "message": problem.message() });
        let problems = error.problems().iter().map(one).collect();
        Self {
            about: Some(Box::new(("problems", problems))),
            ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "the configuration is refused; the one before it stays in use")
        }
    }

    /// 429: the client's own cap.
    pub(crate) fn too_many(detail: impl Into<Cow<'static, str>>, retry: Duration) -> Self {
        Self { extra: Extra::RetryAfter(retry), ..Self::new(StatusCode::TOO_MANY_REQUESTS, detail) }
    }

    /// 503: trying again later can succeed.
    pub(crate) fn unavailable(detail: impl Into<Cow<'static, str>>, retry: Duration) -> Self {
        Self { extra: Extra::RetryAfter(retry), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, detail) }
    }

    /// 500: our own fault; the log says more.
    pub(crate) fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "something went wrong here; the log says more")
    }

    /// The same with a member of its own.
    pub(super) fn about(self, name: &'static str, value: &str) -> Self {
        Self { about: Some(Box::new((name, value.into()))), ..self }
    }

    /// The same, to the bearer of a good token.
    pub(super) fn to(self, whose: Option<&Arc<Owner>>) -> Self {
        Self { whose: whose.cloned(), ..self }
    }

    /// The status it answers with.
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// What it is about, for the log.
    pub(super) fn cause(&self) -> &Cause {
        &self.cause
    }

    /// Whose token the request brought, if that is good.
    pub(super) fn whose(&self) -> Option<&Owner> {
        self.whose.as_deref()
    }

    /// What it says.
    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    /// Why, in a word.
    pub(super) fn reason(&self) -> &'static str {
        match (&self.cause, self.status.as_u16()) {
            (Cause::Token(error), _) => error.code().unwrap_or("token_unreadable"),
            (Cause::Origin, _) => "origin",
            (Cause::Grant, _) => "grant",
            (_, 400) => "invalid",
            (_, 403) => "forbidden",
            (_, 404) => "not_found",
            (_, 405) => "method",
            (_, 408) => "timeout",
            (_, 413) => "too_large",
            (_, 415) => "content_coding",
            (_, 421) => "host",
            (_, 429) => "own_cap",
            (_, 503) => "unavailable",
            _ => "error",
        }
    }

    fn body(&self) -> Vec<u8> {
        let mut object = serde_json::Map::new();
        object.insert("type".into(), "about:blank".into());
        object.insert("title".into(), self.status.canonical_reason().unwrap_or("Error").into());
        object.insert("status".into(), self.status.as_u16().into());
        object.insert("detail".into(), self.detail.clone().into());
        if let Some((key, value)) = self.about.as_deref() {
            object.insert((*key).into(), value.clone());
        }
        let mut body = serde_json::Value::Object(object).to_string().into_bytes();
        body.push(b'\n');
        body
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.body()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        match self.extra {
            Extra::None => {}
            Extra::Challenge(challenge) => {
                headers.insert(header::WWW_AUTHENTICATE, challenge);
            }
            Extra::Allow(methods) => {
                headers.insert(header::ALLOW, HeaderValue::from_static(methods));
            }
            Extra::RetryAfter(wait) => {
                headers.insert(header::RETRY_AFTER, seconds(wait).into());
            }
            Extra::Close => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
        }
        response
    }
}

/// Whole seconds, at least one: `Retry-After: 0` would be a loop.
fn seconds(wait: Duration) -> u64 {
    wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_pattern_that_is_not_covered() {
        let body: serde_json::Value = serde_json::from_slice(&Problem::not_granted("pattern", "a.\"b").body()).unwrap();
        assert_eq!(body["status"], 403);
        assert_eq!(body["title"], "Forbidden");
        assert_eq!(body["pattern"], "a.\"b");
        assert!(body["detail"].as_str().unwrap().contains("a.\"b"));
    }

    #[test]
    fn retry_after_is_whole_seconds_and_never_zero() {
        for (wait, said) in [(0, "1"), (1, "1"), (1000, "1"), (1001, "2"), (3000, "3")] {
            let response = Problem::unavailable("full", Duration::from_millis(wait)).into_response();
            assert_eq!(response.headers()[header::RETRY_AFTER], said);
            assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        }
    }
}
