//! The admin listener: liveness, readiness, metrics, the state of the sources, who is there, reading the configuration again,
//! revocations, and why somebody sees a subject.
//!
//! Knows sources by their handles only. Meant for the machine's own network: what names clients or changes something is
//! answered beyond it only with a token or a client's certificate.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use futures_util::future::BoxFuture;
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode, header};
use serde_json::{Map, Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Refusals;
use super::connection::Peer;
use super::origin::one_host;
use super::problem::Problem;
use crate::metrics::{Format, Metrics, Readings};
use crate::settings::SettingsError;
use crate::source;
use crate::stream::Streams;
use crate::subject::Pattern;
use crate::telemetry::SpanRef;

mod access;
mod body;
mod explain;
mod revocations;
mod streams;

pub(crate) use access::Access;
use access::Matter;
pub(crate) use explain::Explain;
pub(crate) use revocations::{Revoking, Wire};

/// What the admin listener needs of other rooms.
pub(crate) struct Rooms {
    /// Who may ask what, at this moment.
    pub(crate) access: Box<dyn Fn() -> Arc<Access> + Send + Sync>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) sources: Box<dyn Fn() -> Vec<Source> + Send + Sync>,
    pub(crate) readings: Arc<dyn Fn() -> Readings + Send + Sync>,
    /// Cancelled when the process is not ready any more.
    pub(crate) leaving: CancellationToken,
    /// Reads the configuration again.
    pub(crate) reload: Arc<Reload>,
    pub(crate) revoking: Revoking,
    /// Where refusals are told.
    pub(crate) refusals: Arc<Refusals>,
    /// Says why somebody sees a subject or does not.
    pub(crate) explain: Box<Explain>,
    pub(crate) streams: Arc<Streams>,
    /// Where runs what is not to end with its request.
    pub(crate) tasks: TaskTracker,
}

/// Reads the configuration again, within the span of whoever asks: which keys need a restart, or what is wrong with it. `None`: the process is about to end.
pub(crate) type Reload = dyn Fn(Option<SpanRef>) -> BoxFuture<'static, Option<Result<Vec<&'static str>, SettingsError>>> + Send + Sync;

/// A source, and the subjects that its events can have after routing.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) handle: Arc<source::Handle>,
    pub(crate) reach: Vec<Pattern>,
}

/// `status` in `/readyz`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Readiness {
    Starting,
    Ready,
    Degraded,
    Draining,
}

impl Readiness {
    fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::Draining => "draining",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::Starting | Self::Draining => StatusCode::SERVICE_UNAVAILABLE,
            Self::Ready | Self::Degraded => StatusCode::OK,
        }
    }
}

/// The admin listener's router.
pub(crate) fn router(rooms: Rooms) -> Router {
    Router::new().fallback(answer).with_state(Arc::new(rooms))
}

async fn answer(State(rooms): State<Arc<Rooms>>, request: Request) -> Response {
    let (request, body) = request.into_parts();
    let allowed = one_host(&request).and_then(|()| (rooms.access)().allow(Matter::of(request.uri.path()), &request));
    if let Err(problem) = allowed {
        let address = request.extensions.get::<Peer>().copied().unwrap_or_default().ip();
        rooms.refusals.problem(&request, address, &problem, None, Instant::now());
        return problem.into_response();
    }
    if Revoking::rest(request.uri.path()).is_some() {
        // A client that hangs up cancels this future, but not a task: a revocation that holds here is also published.
        let asked = rooms.clone();
        let answer = rooms.tasks.spawn(async move { asked.revoking.answer(Request::from_parts(request, body)).await });
        return answer.await.unwrap_or_else(|_| Err(Problem::internal())).unwrap_or_else(Problem::into_response);
    }
    if request.uri.path() == "/explain" {
        return explain::answer(&*rooms.explain, &request.method, body).await.unwrap_or_else(Problem::into_response);
    }
    if request.uri.path() == "/streams" {
        return streams::answer(&rooms.streams, &request).unwrap_or_else(Problem::into_response);
    }
    if request.uri.path() == "/reload" {
        return rooms.reload(&request).await.unwrap_or_else(Problem::into_response);
    }
    let known = ["/livez", "/readyz", "/metrics", "/sources"].contains(&request.uri.path());
    if known && request.method != Method::GET && request.method != Method::HEAD {
        return Problem::method("GET, HEAD").into_response();
    }
    let (status, kind, text) = match request.uri.path() {
        "/livez" => (StatusCode::OK, "application/json", json!({ "status": "live" }).to_string() + "\n"),
        "/readyz" => {
            let sources = (rooms.sources)();
            let readiness = rooms.readiness(&sources);
            let sources: Map<_, _> = sources.iter().map(|s| (s.handle.name.to_string(), state(&s.handle))).collect();
            let mut body = json!({ "status": readiness.as_str(), "sources": sources });
            if !rooms.revoking.revocations.are_known() {
                body["revocations"] = "loading".into();
            }
            (readiness.status(), "application/json", body.to_string() + "\n")
        }
        "/sources" => (StatusCode::OK, "application/json", rooms.sources().to_string() + "\n"),
        "/metrics" => {
            // Several lines are one list (RFC 9110 section 5.3).
            let accept: Vec<&str> = request.headers.get_all(header::ACCEPT).iter().filter_map(|line| line.to_str().ok()).collect();
            let format = Format::accepted(Some(accept.join(",")).filter(|list| !list.is_empty()).as_deref());
            match rooms.metrics.encode(format) {
                Ok(text) => (StatusCode::OK, format.content_type(), text),
                Err(_) => return Problem::internal().into_response(),
            }
        }
        _ => {
            return Problem::not_found("there are /livez, /readyz, /metrics, /sources, /streams, /revocations, /explain and /reload")
                .into_response();
        }
    };
    respond(&request.method, status, kind, text)
}

fn respond(method: &Method, status: StatusCode, kind: &'static str, text: String) -> Response {
    let length = text.len();
    let mut response = Response::new(if method == Method::HEAD { Body::empty() } else { Body::from(text) });
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_LENGTH, length.into());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn state(handle: &source::Handle) -> Value {
    let status = handle.status.read();
    serde_json::to_value(&*status).unwrap_or_default()
}

impl Rooms {
    async fn reload(&self, request: &Parts) -> Result<Response, Problem> {
        if request.method != Method::POST {
            return Err(Problem::method("POST"));
        }
        let read = (self.reload)(SpanRef::of(&request.headers)).await;
        let read = read.ok_or_else(|| Problem::unavailable("the server is about to stop", Duration::from_secs(1)))?;
        let needs_restart = read.map_err(|error| Problem::configuration(&error))?;
        let body = json!({ "applied": true, "needs_restart": needs_restart });
        Ok(respond(&request.method, StatusCode::OK, "application/json", body.to_string() + "\n"))
    }

    fn readiness(&self, sources: &[Source]) -> Readiness {
        let down = |s: &Source| {
            let cell = &s.handle.status;
            match cell.read().state {
                source::State::Up => false,
                source::State::Down => true,
                // A source that connects for the first time does not count as down.
                source::State::Connecting | source::State::Warming => cell.was_up(),
            }
        };
        if self.leaving.is_cancelled() {
            Readiness::Draining
        } else if !sources.iter().all(|s| s.handle.is_ready()) || !self.revoking.revocations.are_known() {
            Readiness::Starting
        } else if sources.iter().any(down) {
            Readiness::Degraded
        } else {
            Readiness::Ready
        }
    }

    fn sources(&self) -> Value {
        let readings = (self.readings)();
        let one = |source: &Source| {
            let handle = &source.handle;
            let mut all = state(handle);
            if let Value::Object(object) = &mut all {
                // Here `kind` is the source's.
                if let Some(kind) = object.remove("kind") {
                    object.insert("error_kind".into(), kind);
                }
                object.insert("kind".into(), handle.kind.into());
                object.insert("durable".into(), handle.durable.into());
                object.insert("subjects".into(), source.reach.iter().map(Pattern::as_str).collect());
                if let Some(reading) = readings.sources.iter().find(|r| r.name == handle.name.as_str()) {
                    let gaps: Map<_, _> = reading.gaps.iter().map(|(reason, n)| (reason.as_str().to_owned(), (*n).into())).collect();
                    object.insert(
                        "counters".into(),
                        json!({
                            "messages": reading.messages, "bytes": reading.bytes, "gaps": gaps,
                            "reconnects": reading.reconnects, "errors": reading.errors.iter().map(|(_, n)| n).sum::<u64>(),
                        }),
                    );
                    object.insert("window".into(), json!({ "events": reading.window_events, "bytes": reading.window_bytes }));
                }
            }
            (handle.name.to_string(), all)
        };
        json!({ "sources": (self.sources)().iter().map(one).collect::<Map<_, _>>() })
    }
}

#[cfg(test)]
mod tests;
