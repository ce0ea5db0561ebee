//! `/publish/{subject}`: a message by HTTP, into the source that takes its subject.
//!
//! The token counts in the header only: with a cookie any page could publish in its visitor's name.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use percent_encoding::percent_decode_str;
use tokio::time::Instant;

use super::budget::{Held, Party};
use super::events::{LATER, Later, preflight};
use super::problem::Problem;
use super::sender::{Denied, identity_of};
use super::{Inbox, Policy, Rooms, client_of};
use crate::auth::{AuthError, Grant};
use crate::event::Headers;
use crate::metrics::Published;
use crate::pool::{Act, TooOften};
use crate::source::http::PublishError;
use crate::subject::Subject;
use crate::support::backoff::jittered;
use crate::telemetry::SpanRef;

const ALLOW: &str = "POST, OPTIONS";

/// How often, and at which interval, is looked for the source that takes the place of one that has ended.
const EXCHANGING: usize = 100;
const LOOK: Duration = Duration::from_millis(20);

type Refusal = (Problem, Published);

pub(super) async fn answer(State(rooms): State<Arc<Rooms>>, Extension(policy): Extension<Arc<Policy>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let began = Instant::now();
    match parts.method {
        Method::POST => {}
        Method::OPTIONS => return preflight(&policy, &parts, ALLOW),
        _ => return rooms.refuse(&policy, &parts, Problem::method(ALLOW), began),
    }
    let span = rooms.traces.request("publish", &parts.headers);
    let (response, outcome) = match publish(&rooms, &policy, &parts, body, span.for_children()).await {
        Ok(response) => (response, Published::Accepted),
        Err((problem, outcome)) => (rooms.refuse(&policy, &parts, problem, began), outcome),
    };
    rooms.metrics.published.published(outcome);
    super::end(span, &parts, &response, outcome.as_str());
    response
}

/// `within`: the span that the message names as that of its origin.
async fn publish(rooms: &Rooms, policy: &Policy, parts: &Parts, body: Body, within: Option<SpanRef>) -> Result<Response, Refusal> {
    rooms.rates.of_address(Act::Publish, client_of(parts)).map_err(too_often)?;
    let subject = subject(parts.uri.path()).map_err(|problem| (problem, Published::Invalid))?;
    let grant = policy.publisher(parts).await.map_err(|denied| refusal(denied, policy.retry))?;
    let taken = take(rooms, policy, &grant, subject, (parts, body), within).await;
    // The access log says who was refused.
    let id = taken.map_err(|(problem, outcome)| (problem.to(grant.owner.as_ref()), outcome))?;
    let mut response = Response::new(Body::from(format!("{}\n", serde_json::json!({ "id": &*id }))));
    *response.status_mut() = StatusCode::ACCEPTED;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Takes a message of somebody who may be permitted to publish it. Returns the event's id.
async fn take(
    rooms: &Rooms,
    policy: &Policy,
    grant: &Grant,
    subject: Subject,
    (parts, body): (&Parts, Body),
    within: Option<SpanRef>,
) -> Result<Arc<str>, Refusal> {
    if !grant.permits_publish(&subject) {
        return Err((Problem::not_granted("subject", subject.as_str()), Published::Denied));
    }
    let identity = identity_of(grant);
    rooms.rates.of_identity(Act::Publish, identity.as_ref()).map_err(too_often)?;
    let Some(inbox) = (rooms.inbox)(&subject) else {
        let detail = format!("no `http` source takes the subject `{subject}`");
        return Err((Problem::not_found(detail), Published::Unknown));
    };
    let held = rooms.budget.hold(identity.map_or_else(|| Party::at(client_of(parts)), Party::Identity));
    let payload = read(held, policy, inbox.max_payload, &parts.headers, body).await?;
    let mut headers = Headers::default();
    if let Some(within) = within {
        headers.push("traceparent", &within.to_string());
    }
    hand_in(rooms, inbox, subject, payload, headers).await.map_err(|error| {
        let wait = jittered(policy.retry, LATER);
        let problem = match error {
            PublishError::Overloaded => Problem::unavailable("more messages come in than can be taken", wait),
            PublishError::Closed => Later::Draining.problem(wait),
        };
        (problem, Published::Unavailable)
    })
}

/// Hands a message in. A source that is just being exchanged for another is waited for.
async fn hand_in(rooms: &Rooms, mut inbox: Inbox, subject: Subject, payload: Bytes, headers: Headers) -> Result<Arc<str>, PublishError> {
    for _ in 0..EXCHANGING {
        match inbox.handle.publish(subject.clone(), payload.clone(), headers.clone()).await {
            Err(PublishError::Closed) if !rooms.draining.is_cancelled() => tokio::time::sleep(LOOK).await,
            done => return done,
        }
        inbox = (rooms.inbox)(&subject).ok_or(PublishError::Closed)?;
    }
    Err(PublishError::Closed)
}

fn too_often(rate: TooOften) -> Refusal {
    (Problem::too_many(rate.to_string(), rate.wait), Published::Rate)
}

fn refusal(denied: Denied, retry: Duration) -> Refusal {
    match denied {
        Denied::Page(problem) => (problem, Published::Denied),
        Denied::Sender(error) if error.passes() => (Later::Unavailable.problem(jittered(retry, LATER)), Published::Unavailable),
        Denied::Sender(error @ AuthError::Malformed(_)) => (Problem::denied(&error), Published::Invalid),
        Denied::Sender(error) => (Problem::denied(&error), Published::Denied),
    }
}

/// The one segment behind `/publish/`.
fn subject(path: &str) -> Result<Subject, Problem> {
    let segment = path.strip_prefix("/publish/").unwrap_or_default();
    if segment.contains('/') {
        return Err(Problem::bad_request("a subject is one segment of the path; its tokens are separated by dots"));
    }
    let text = percent_decode_str(segment).decode_utf8().map_err(|_| Problem::bad_request("the subject is not valid UTF-8"))?;
    text.parse().map_err(|e| Problem::bad_request(format!("the subject `{}` {e}", text.escape_debug())))
}

async fn read(mut held: Held, policy: &Policy, max: usize, headers: &HeaderMap, body: Body) -> Result<Bytes, Refusal> {
    let too_large = || (Problem::too_large(max), Published::TooLarge);
    // A compressed payload would reach browsers as bytes that they cannot read.
    let other = |name, than: &[u8]| headers.get_all(name).iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(than));
    if other(header::CONTENT_ENCODING, b"identity") || other(header::TRANSFER_ENCODING, b"chunked") {
        return Err((Problem::content_coding(), Published::Invalid));
    }
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    if declared.is_some_and(|length| length > max as u64) {
        return Err(too_large());
    }
    let overloaded =
        || (Problem::unavailable("more is published than can be taken", jittered(policy.retry, LATER)), Published::Unavailable);
    let mut body = Limited::new(body, max);
    let receive = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| match error.is::<LengthLimitError>() {
                true => too_large(),
                false => (Problem::bad_request("the request's body is broken"), Published::Invalid),
            })?;
            if frame.data_ref().is_some_and(|data| !held.add(data)) {
                return Err(overloaded());
            }
        }
        Ok(Bytes::from_owner(held))
    };
    match tokio::time::timeout(policy.body_timeout, receive).await {
        Ok(received) => received,
        Err(_) => Err((Problem::timeout(), Published::Timeout)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_one_decoded_segment() {
        let text = |path: &str| subject(path).map(|s| s.to_string()).map_err(|p| p.status());
        assert_eq!(text("/publish/demo.hello"), Ok("demo.hello".into()));
        assert_eq!(text("/publish/demo.%C3%A4%2Fb"), Ok("demo.ä/b".into()));
        for bad in ["/publish/", "/publish/a..b", "/publish/a/b", "/publish/a.*", "/publish/a%20b", "/publish/%ff", "/publish/a%00"] {
            assert_eq!(text(bad), Err(StatusCode::BAD_REQUEST), "{bad}");
        }
    }
}
