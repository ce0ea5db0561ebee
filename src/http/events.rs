//! `/events`: from a request to a stream, or to a refusal in a form that its client understands.
//!
//! Refusals are checked in a fixed order: the address's rate (429), invalid requests (400), identity (401), permission (403), and only
//! then the identity's rates and the caps.

use std::convert::Infallible;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use http_body_util::BodyExt as _;
use tokio::time::Instant;

use super::problem::Problem;
use super::query::{Query, takes_only_streams};
use super::sender::{Denied, identity_of};
use super::{Policy, Rooms, client_of, origin_of, peer_of};
use crate::auth::{AuthError, NotGranted, Owner, Wanted};
use crate::event::Timestamp;
use crate::frame::{self, Closing, Form};
use crate::hub::Filter;
use crate::metrics::Refused;
use crate::pool::{self, Act, Identity, TooOften};
use crate::stream::{Begin, Transport, Visitor};
use crate::support::backoff::jittered;

/// Without a charset: a widely used proxy breaks on one, and the standard has only UTF-8.
pub(super) const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("text/event-stream");
const ALLOW: &str = "GET, HEAD, OPTIONS";
/// Shares of the usual time to come back: clients that were refused together shall not come back together.
pub(super) const LATER: Range<f64> = 1.0..2.0;
/// How long a request waits while the configuration is exchanged, and its own end may take to come.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why there is no stream.
enum Refusal {
    /// Trying again would not help.
    Problem(Problem, Refused),
    /// Trying again later can succeed; whose token it is that was found good.
    Later(Later, Option<Arc<Owner>>),
}

/// A refusal after which trying again later can succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Later {
    /// A cap of the pool is reached.
    Cap(pool::Refusal),
    /// The process is about to end.
    Draining,
    /// Who sends the request cannot be found out at the moment.
    Unavailable,
    /// The client comes too often.
    Rate(TooOften),
}

pub(super) async fn answer(State(rooms): State<Arc<Rooms>>, Extension(policy): Extension<Arc<Policy>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let began = Instant::now();
    match parts.method {
        Method::GET | Method::HEAD => {}
        Method::OPTIONS => return preflight(&policy, &parts, ALLOW),
        _ => return rooms.refuse(&policy, &parts, Problem::method(ALLOW), began),
    }
    let metrics = &rooms.metrics;
    // `HEAD` opens no stream.
    let span = (parts.method == Method::GET).then(|| rooms.traces.request("connect", &parts.headers));
    let (response, result) = match open(&rooms, &parts, body).await {
        Ok(response) => (response, "opened"),
        Err(Refusal::Problem(problem, reason)) => {
            metrics.refused.refused(reason);
            (rooms.refuse(&policy, &parts, problem, began), reason.as_str())
        }
        Err(Refusal::Later(later, whose)) => {
            metrics.refused.refused(later.counted());
            let response = later.answer(&parts.headers, policy.retry);
            let (status, reason, address) = (response.status().as_u16(), later.counted().as_str(), client_of(&parts));
            let (whose, elapsed) = (whose.as_deref(), began.elapsed());
            rooms.refusals.any(&super::Refusal { parts: &parts, address, whose, status, reason, detail: reason, elapsed });
            (response, reason)
        }
    };
    if let Some(span) = span {
        super::end(span, &parts, &response, result);
    }
    response
}

async fn open(rooms: &Rooms, parts: &Parts, body: Body) -> Result<Response, Refusal> {
    let mut present = rooms.policy.clone();
    // First: an address that comes too often shall cost little, and ask no backend.
    let address = client_of(parts);
    rooms.rates.of_address(Act::Connect, address).map_err(|rate| Refusal::Later(Later::Rate(rate), None))?;
    if !is_empty(body).await {
        // hyper notices no disconnect while a body is unread, and an endless stream leaves no moment to read it.
        return Err(Refusal::Problem(Problem::unexpected_body(), Refused::Invalid));
    }
    let mut counted = false;
    loop {
        // What is being exchanged is waited for.
        let settled = tokio::time::timeout(PATIENCE, present.wait_for(|current| current.settled)).await;
        let Ok(Ok(policy)) = settled.map(|current| current.map(|current| current.policy.clone())) else {
            return Err(Refusal::Later(Later::Unavailable, None));
        };
        // A grant of a policy that was exchanged meanwhile counts no more, and whoever exchanged it may not have seen the stream.
        // Likewise with the backend's answers.
        if let Some(response) = open_by(rooms, &policy, parts, &mut counted).await?
            && Arc::ptr_eq(&policy, &present.borrow().policy)
        {
            return Ok(response);
        }
    }
}

/// Whether a body ends without a byte. Over HTTP/2 its end may come in a frame of its own (RFC 9113 section 8.1).
async fn is_empty(mut body: Body) -> bool {
    let end = async {
        while let Some(frame) = body.frame().await {
            if !frame.is_ok_and(|frame| frame.data_ref().is_none_or(Bytes::is_empty)) {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(PATIENCE, end).await.unwrap_or(false)
}

/// `None`: what the backend answered is not its latest answer any more, or the token's key counts no more. `counted`: whether the
/// request was counted for its rates, which is done once, however many policies it is judged by.
async fn open_by(rooms: &Rooms, policy: &Policy, parts: &Parts, counted: &mut bool) -> Result<Option<Response>, Refusal> {
    let invalid = |problem| Refusal::Problem(problem, Refused::Invalid);
    let forbidden = |problem| Refusal::Problem(problem, Refused::Forbidden);
    let query =
        Query::read(parts.uri.query(), &parts.headers, &policy.limits, policy.auth.parameter(), Timestamp::now()).map_err(invalid)?;
    let named = query.wanted != Wanted::All;
    let grant = policy.subscriber(parts).await.map_err(|denied| match denied {
        Denied::Sender(error) => self::denied(error),
        Denied::Page(problem) => forbidden(problem),
    })?;
    let whose = grant.owner.as_ref();
    let forbidden = |problem: Problem| forbidden(problem.to(whose));
    let patterns = grant.subscription(query.wanted).map_err(|NotGranted(pattern)| {
        forbidden(match pattern {
            Some(pattern) => Problem::not_granted("pattern", pattern.as_str()),
            None => Problem::nothing_granted(),
        })
    })?;
    if parts.method == Method::HEAD {
        // A body of unknown length, as the stream's would be.
        return Ok(Some(stream(Body::from_stream(futures_util::stream::empty::<Result<Bytes, Infallible>>()))));
    }
    if rooms.draining.is_cancelled() {
        return Err(Refusal::Later(Later::Draining, whose.cloned()));
    }
    let address = client_of(parts);
    let whose_rate = |rate| Refusal::Later(Later::Rate(rate), whose.cloned());
    let identity = identity_of(&grant);
    if !std::mem::replace(counted, true) {
        check_rates(rooms, &query.begin, identity.as_ref(), address).map_err(whose_rate)?;
    }
    let permit = rooms.pool.acquire(identity.as_ref(), address).await;
    let permit = permit.map_err(|refusal| Refusal::Later(Later::Cap(refusal), whose.cloned()))?;
    let form = if query.json { Form::Json } else { Form::Routed };
    let connection = peer_of(parts).connection;
    let handover = (rooms.open)(crate::stream::Request {
        filter: Arc::new(Filter::new(patterns, form)),
        named,
        begin: query.begin,
        expires: grant.expires,
        owner: grant.owner.clone(),
        visitor: Visitor { address, user_agent: rooms.agents.of(&parts.headers), transport: transport(parts.version), connection },
        permit: Box::new(permit),
    });
    policy.auth.check_revoked(grant.owner.as_deref()).map_err(denied)?;
    // The client may have waited for a slot since its token was verified.
    let lost_key = grant.owner.as_deref().is_some_and(|owner| policy.auth.lost_key(owner));
    if lost_key || !policy.auth.is_latest(grant.owner.as_deref()) {
        return Ok(None);
    }
    let mut response = stream(Body::new(handover.clone()));
    response.extensions_mut().insert(handover);
    Ok(Some(response))
}

/// The rates that count for a request that is in order.
fn check_rates(rooms: &Rooms, begin: &Begin, identity: Option<&Identity>, address: IpAddr) -> Result<(), TooOften> {
    rooms.rates.of_identity(Act::Connect, identity)?;
    match begin {
        Begin::Now | Begin::Unreadable => Ok(()),
        Begin::After(_) | Begin::At(_) => {
            rooms.rates.of_address(Act::History, address)?;
            rooms.rates.of_identity(Act::History, identity)
        }
    }
}

fn denied(error: AuthError) -> Refusal {
    match error {
        _ if error.passes() => Refusal::Later(Later::Unavailable, None),
        AuthError::Malformed(_) => Refusal::Problem(Problem::denied(&error), Refused::Invalid),
        _ => Refusal::Problem(Problem::denied(&error), Refused::Unauthorized),
    }
}

/// The version of HTTP, as it is listed.
fn transport(version: Version) -> Transport {
    match version {
        Version::HTTP_2 => Transport::Http2,
        Version::HTTP_11 => Transport::Http11,
        _ => Transport::Http10,
    }
}

fn stream(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, CONTENT_TYPE);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// `OPTIONS`, as a CORS preflight or on its own.
pub(super) fn preflight(policy: &Policy, parts: &Parts, methods: &'static str) -> Response {
    let mut response = (StatusCode::NO_CONTENT, [(header::ALLOW, methods)]).into_response();
    policy.origins.preflight(&origin_of(parts), methods, response.headers_mut());
    response
}

impl Later {
    fn counted(self) -> Refused {
        match self {
            Self::Cap(pool::Refusal::Full) => Refused::Busy,
            Self::Cap(pool::Refusal::Identity | pool::Refusal::Address) => Refused::OwnCap,
            Self::Draining => Refused::Draining,
            Self::Unavailable => Refused::Unavailable,
            Self::Rate(_) => Refused::Rate,
        }
    }

    /// A browser's EventSource gives up for good on any status but 200. So a client that accepts only streams gets a stream that
    /// says when to come back; every other client gets a status.
    pub(super) fn answer(self, headers: &HeaderMap, retry: Duration) -> Response {
        let wait = jittered(retry.max(self.wait()), LATER);
        if takes_only_streams(headers) {
            let mut text = Vec::new();
            frame::opening(&mut text, wait, None);
            frame::closing(&mut text, self.closing());
            return stream(Body::from(text));
        }
        self.problem(wait).into_response()
    }

    /// The same as a problem document, for clients that accept more than streams.
    pub(super) fn problem(self, wait: Duration) -> Problem {
        match self {
            Self::Cap(refusal @ pool::Refusal::Full) => Problem::unavailable(refusal.to_string(), wait),
            Self::Cap(refusal) => Problem::too_many(refusal.to_string(), wait),
            Self::Draining => Problem::unavailable("the server is about to stop", wait),
            // Exactly: the client has its rate for itself.
            Self::Rate(rate) => Problem::too_many(rate.to_string(), rate.wait),
            Self::Unavailable => Problem::unavailable("who sends this request cannot be verified at the moment", wait),
        }
    }

    /// How long waiting is needed at least.
    fn wait(self) -> Duration {
        if let Self::Rate(rate) = self { rate.wait } else { Duration::ZERO }
    }

    fn closing(self) -> Closing {
        match self {
            Self::Cap(_) | Self::Rate(_) => Closing::Busy,
            Self::Draining => Closing::Draining,
            Self::Unavailable => Closing::Unavailable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_of_streams_is_refused_by_a_stream_and_any_other_by_a_status() {
        let retry = Duration::from_secs(3);
        let eventsource = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static("text/event-stream"))]);
        for (later, status) in [
            (Later::Cap(pool::Refusal::Full), 503),
            (Later::Cap(pool::Refusal::Identity), 429),
            (Later::Draining, 503),
            (Later::Unavailable, 503),
        ] {
            let told = later.answer(&eventsource, retry);
            assert_eq!((told.status(), &told.headers()[header::CONTENT_TYPE]), (StatusCode::OK, &CONTENT_TYPE));
            let told = later.answer(&HeaderMap::new(), retry);
            assert_eq!(told.status().as_u16(), status);
            let seconds: u64 = told.headers()[header::RETRY_AFTER].to_str().unwrap().parse().unwrap();
            assert!((3..=6).contains(&seconds), "{seconds}");
        }
    }
}
