//! The public listener: requests, refusals and answers.
//!
//! Owns routing, refusals, CORS, the dashboard, TLS and connections. Knows grants and the pool; of streams only that
//! they can be opened, and of sources only those that take messages from HTTP.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Router};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Uri, header};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::auth::Authenticator;
use crate::metrics::{Metrics, Route};
use crate::pool::{Pool, Rates};
use crate::source::http::Handle;
use crate::stream;
use crate::subject::Subject;
use crate::support::network::Networks;
use crate::telemetry::{Span, Traces};

pub(crate) mod admin;
mod agents;
mod announced;
mod body;
mod budget;
pub(crate) mod connection;
mod dashboard;
mod events;
mod files;
mod forwarded;
pub(crate) mod handoff;
mod lenient;
pub(crate) mod listen;
mod origin;
mod problem;
mod publish;
mod query;
mod refusals;
mod sender;
mod session;
pub(crate) mod settings;
mod stall;
#[cfg(test)]
mod tests;
pub(crate) mod tls;

pub(crate) use listen::ListenError;
pub(crate) use listen::Listener;
#[cfg(test)]
pub(crate) use origin::Hosts;
pub(crate) use origin::Listed;
pub(crate) use settings::{Limits, Settings};

pub(crate) use agents::Agents;
pub(crate) use budget::Budget;
use connection::Peer;
use dashboard::Dashboard;
use files::Files;
use forwarded::{Proxies, Seen};
use handoff::Handover;
use origin::{Origin, Origins};
use problem::Problem;
pub(crate) use refusals::{Refusal, Refusals};

/// A source that takes messages from HTTP.
#[derive(Clone)]
pub(crate) struct Inbox {
    /// Bytes of one payload.
    pub(crate) max_payload: usize,
    /// Where to hand it in.
    pub(crate) handle: Handle,
}

/// Finds the source that takes a subject.
pub(crate) type FindInbox = dyn Fn(&Subject) -> Option<Inbox> + Send + Sync;

/// What the handlers need of the others.
pub(crate) struct Rooms {
    /// What requests are answered by, at this moment.
    pub(crate) policy: watch::Receiver<Current>,
    pub(crate) pool: Pool,
    pub(crate) rates: Rates,
    pub(crate) metrics: Arc<Metrics>,
    /// The source that takes a subject.
    pub(crate) inbox: Box<FindInbox>,
    /// For the messages that publishers send.
    pub(crate) budget: Budget,
    /// For own pages that clients have not taken yet.
    pub(crate) pages: Budget,
    /// Cancelled when no stream is to be opened any more.
    pub(crate) draining: CancellationToken,
    /// Opens a stream. Never waits.
    pub(crate) open: Box<dyn Fn(stream::Request) -> Handover + Send + Sync>,
    /// What clients call themselves.
    pub(crate) agents: Agents,
    /// Where refusals are told.
    pub(crate) refusals: Arc<Refusals>,
    /// Where spans go.
    pub(crate) traces: Traces,
}

/// What the configuration says of requests. It is exchanged as a whole, and a request is answered by the one of its start.
pub(crate) struct Policy {
    auth: Arc<Authenticator>,
    origins: Origins,
    limits: Limits,
    proxies: Proxies,
    /// Whose connections begin with a header of the PROXY protocol.
    announcing: Networks,
    /// The path under which a proxy offers all of this: `/live`, or nothing.
    base: String,
    /// How long a publisher may take to send its message.
    body_timeout: Duration,
    dashboard: Option<Dashboard>,
    dashboards: Option<Files>,
    /// The reconnection time told to clients, before jitter.
    retry: Duration,
    /// Who may ask what of the admin listener.
    admin: Arc<admin::Access>,
}

/// The policy of the moment.
#[derive(Clone)]
pub(crate) struct Current {
    pub(crate) policy: Arc<Policy>,
    /// False while grants, routes and sources change: a stream that began now might be sent by some of the old and some of the
    /// new.
    pub(crate) settled: bool,
}

impl Policy {
    /// `retry`: the reconnection time told to clients, before jitter.
    pub(crate) fn new(settings: Settings, auth: Arc<Authenticator>, retry: Duration) -> Self {
        let admin = Arc::new(settings.admin.access());
        let Settings { origins, limits, proxies, announcing, base, bounds, dashboard, dashboards, .. } = settings;
        Self {
            origins,
            limits,
            proxies,
            announcing,
            base,
            body_timeout: bounds.header * 3,
            dashboard: dashboard.then(|| Dashboard::new(auth.cookie())),
            dashboards: dashboards.map(Files::new),
            auth,
            retry,
            admin,
        }
    }

    /// Who may ask what of the admin listener.
    pub(crate) fn admin(&self) -> &Arc<admin::Access> {
        &self.admin
    }

    /// Whether a connection from an address, or over a Unix socket, begins with a header of the PROXY protocol.
    pub(crate) fn announces(&self, peer: Option<std::net::IpAddr>) -> bool {
        self.announcing.contain(peer)
    }

    /// Takes the base path off, if it is there: some proxies do so themselves.
    fn take_base_off(&self, uri: &mut Uri) {
        let below = |rest: &str| rest.starts_with('/');
        if self.base.is_empty() || !uri.path().strip_prefix(&*self.base).is_some_and(below) {
            return;
        }
        let mut parts = std::mem::take(uri).into_parts();
        parts.path_and_query = parts.path_and_query.and_then(|all| PathAndQuery::try_from(&all.as_str()[self.base.len()..]).ok());
        *uri = Uri::from_parts(parts).unwrap_or_default();
    }

    /// Puts the base path before a path to which a browser is sent.
    fn put_base_on(&self, headers: &mut HeaderMap) {
        if let Some(path) = headers.get(header::LOCATION).filter(|_| !self.base.is_empty()).and_then(|path| path.to_str().ok())
            && let Ok(path) = HeaderValue::try_from(format!("{}{path}", self.base))
        {
            headers.insert(header::LOCATION, path);
        }
    }
}

impl Rooms {
    /// Answers with a problem, and tells of it.
    fn refuse(&self, policy: &Policy, parts: &http::request::Parts, problem: Problem, began: Instant) -> Response {
        self.refusals.problem(parts, client_of(parts), &problem, Some(&policy.auth), began);
        problem.into_response()
    }
}

/// The public listener's router.
pub(crate) fn router(rooms: Rooms) -> Router {
    Router::new().fallback(guard).with_state(Arc::new(rooms))
}

/// Wraps every request: checks the host name first; afterwards adds headers for origins and browsers, and counts the request.
async fn guard(State(rooms): State<Arc<Rooms>>, request: Request) -> Response {
    let (mut parts, body) = request.into_parts();
    let policy = rooms.policy.borrow().policy.clone();
    policy.take_base_off(&mut parts.uri);
    let route = route_of(parts.uri.path());
    let seen = policy.proxies.seen(&peer_of(&parts), &parts.headers);
    let origin = policy.origins.classify(&parts, &seen);
    let host = policy.origins.host(&parts, &seen);
    parts.extensions.insert(origin.clone());
    parts.extensions.insert(seen);
    let mut response = match host {
        Err(problem) => rooms.refuse(&policy, &parts, problem, Instant::now()),
        Ok(()) => dispatch(&rooms, &policy, Request::from_parts(parts, body)).await,
    };
    let headers = response.headers_mut();
    policy.put_base_on(headers);
    policy.origins.answer(&origin, headers);
    if headers.get(header::CONTENT_TYPE).is_none_or(|kind| kind != events::CONTENT_TYPE) {
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    }
    rooms.metrics.requested(route, response.status().as_u16());
    response
}

fn route_of(path: &str) -> Route {
    match path {
        "/events" => Route::Events,
        _ if path.starts_with("/publish/") => Route::Publish,
        _ if dashboard::PATHS.contains(&path) => Route::Dashboard,
        _ if path.starts_with("/dashboards/") => Route::Dashboards,
        _ => Route::Other,
    }
}

/// Whether a query, with this `Last-Event-ID`, is one of `GET /events`, for fuzzing.
#[cfg(feature = "internals")]
pub fn read_query(query: &str, last_event_id: &[u8]) -> bool {
    let id = HeaderValue::from_bytes(last_event_id).ok().map(|id| (http::HeaderName::from_static("last-event-id"), id));
    let limits = Limits { patterns: 64, pattern_bytes: 256, pattern_tokens: 16 };
    query::Query::read(Some(query), &http::HeaderMap::from_iter(id), &limits, None, crate::event::Timestamp::now()).is_ok()
}

/// The address that `X-Forwarded-For` names, for fuzzing.
#[cfg(feature = "internals")]
pub fn read_forwarded(peer: std::net::IpAddr, lines: &[&[u8]], trusted: &[ipnet::IpNet]) -> std::net::IpAddr {
    let values = lines.iter().filter_map(|line| HeaderValue::from_bytes(line).ok());
    let mut headers = http::HeaderMap::new();
    for value in values {
        headers.append("x-forwarded-for", value);
    }
    let trusted = trusted.iter().copied().map(crate::support::network::Entry::Ip).collect();
    let peer = Peer { address: Some((peer, 0).into()), ..Peer::default() };
    Proxies { trusted, headers: forwarded::Headers::X }.seen(&peer, &headers).client
}

/// What a connection that sends these bytes announces by the PROXY protocol, and what is left of them, for fuzzing. `None`: it is closed.
#[cfg(feature = "internals")]
pub fn read_announced(data: &[u8]) -> Option<(Option<std::net::SocketAddr>, Vec<u8>)> {
    use std::io::Write as _;

    use tokio::io::AsyncReadExt as _;

    let (mut proxy, bridge) = std::os::unix::net::UnixStream::pair().ok()?;
    bridge.set_nonblocking(true).ok()?;
    proxy.write_all(data).ok()?;
    drop(proxy);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().ok()?;
    runtime.block_on(async {
        let mut socket = tokio::net::TcpStream::from_std(std::os::fd::OwnedFd::from(bridge).into()).ok()?;
        let announced = announced::read(&mut socket).await.ok()?;
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).await.ok()?;
        Some((announced, rest))
    })
}

/// By the path itself, not by its decoded parts: a subject may hold an escaped slash.
async fn dispatch(rooms: &Arc<Rooms>, policy: &Arc<Policy>, request: Request) -> Response {
    let (state, policy) = (State(rooms.clone()), Extension(policy.clone()));
    match request.uri().path() {
        "/events" => events::answer(state, policy, request).await,
        "/session" => session::answer(state, policy, request).await,
        path if path.starts_with("/publish/") => publish::answer(state, policy, request).await,
        _ => page(rooms, &policy, request).await,
    }
}

/// Everything outside the API: the dashboard, the operator's own pages, else 404.
async fn page(rooms: &Rooms, policy: &Policy, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let path = parts.uri.path();
    let moved = |to: &'static str| {
        let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        (http::StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, format!("{to}{query}"))]).into_response()
    };
    let answer = if !policy.base.is_empty() && path == policy.base {
        // Without the slash the page's relative links would be wrong.
        Ok(moved("/"))
    } else if let Some(page) = policy.dashboard.as_ref().filter(|_| dashboard::PATHS.contains(&path)) {
        page.answer(&parts.method, path)
    } else if let Some(files) = policy.dashboards.as_ref().filter(|_| path == "/dashboards" || path.starts_with("/dashboards/")) {
        match path.strip_prefix("/dashboards/") {
            Some(rest) => files.answer(&parts.method, rest, &parts.headers, client_of(&parts), &rooms.pages).await,
            None => Ok(moved("/dashboards/")),
        }
    } else {
        Err(Problem::not_found("there is nothing here"))
    };
    answer.unwrap_or_else(Problem::into_response)
}

/// Ends the span of a request that was answered.
fn end(span: Span, parts: &http::request::Parts, response: &Response, result: &'static str) {
    let status = response.status();
    span.end(status.is_server_error(), || {
        let version = match parts.version {
            http::Version::HTTP_2 => "2",
            http::Version::HTTP_11 => "1.1",
            _ => "1.0",
        };
        vec![
            ("http.request.method", parts.method.to_string().into()),
            // Never the query, which may hold a token.
            ("url.path", parts.uri.path().to_owned().into()),
            ("http.response.status_code", status.as_u16().into()),
            ("network.protocol.version", version.into()),
            ("client.address", client_of(parts).to_string().into()),
            ("brokercast.result", result.into()),
        ]
    });
}

/// Where a request comes from, as the guard found it.
fn origin_of(parts: &http::request::Parts) -> Origin {
    parts.extensions.get().cloned().unwrap_or(Origin::Absent)
}

/// Who sent a request, as its connection found it.
fn peer_of(parts: &http::request::Parts) -> Peer {
    parts.extensions.get().copied().unwrap_or_default()
}

/// The address that a request comes from, as the guard found it.
fn client_of(parts: &http::request::Parts) -> std::net::IpAddr {
    parts.extensions.get::<Seen>().map_or(std::net::Ipv4Addr::UNSPECIFIED.into(), |seen| seen.client)
}
