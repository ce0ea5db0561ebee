//! `/session`: who a page is here, until when, and why it may see what it sees.
//!
//! Tells a token's bearer about this token: never the token itself, and nothing of the configuration but key paths. Counts as a
//! connection does, since it may ask the backend as one does.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use http::request::Parts;
use http::{Method, header};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::events::{LATER, Later, preflight};
use super::problem::Problem;
use super::sender::Denied;
use super::{Policy, Rooms, client_of};
use crate::auth::GrantRule;
use crate::pool::Act;
use crate::support::backoff::jittered;

const ALLOW: &str = "GET, HEAD, OPTIONS";

pub(super) async fn answer(State(rooms): State<Arc<Rooms>>, Extension(policy): Extension<Arc<Policy>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let began = Instant::now();
    let told = match parts.method {
        Method::GET | Method::HEAD => tell(&rooms, &policy, &parts).await,
        Method::OPTIONS => return preflight(&policy, &parts, ALLOW),
        _ => Err(Problem::method(ALLOW)),
    };
    told.unwrap_or_else(|problem| rooms.refuse(&policy, &parts, problem, began))
}

async fn tell(rooms: &Rooms, policy: &Policy, parts: &Parts) -> Result<Response, Problem> {
    rooms.rates.of_address(Act::Connect, client_of(parts)).map_err(|rate| Later::Rate(rate).problem(rate.wait))?;
    let unavailable = || Later::Unavailable.problem(jittered(policy.retry, LATER));
    let grant = policy.subscriber(parts).await.map_err(|denied| match denied {
        Denied::Page(problem) => problem,
        Denied::Sender(error) if error.passes() => unavailable(),
        Denied::Sender(error) => Problem::denied(&error),
    })?;
    let (subscribe, _) = policy.auth.explain(grant.owner.as_deref());
    // Only the `Authorization` header publishes: with another carrier a page publishes as one without a token.
    let publish = match policy.grant(parts, true).await {
        Ok(grant) => policy.auth.explain(grant.owner.as_deref()).1,
        Err(Denied::Sender(error)) if error.passes() => {
            policy.auth.count_refused(&error);
            return Err(unavailable());
        }
        Err(_) => Vec::new(),
    };
    let body = json!({
        "identity": grant.identity(),
        "expires": grant.expires,
        "subscribe": listed(&subscribe),
        "publish": listed(&publish),
    });
    let headers =
        [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store"), (header::VARY, "Authorization, Cookie")];
    Ok((headers, format!("{body}\n")).into_response())
}

fn listed(rules: &[GrantRule]) -> Value {
    let one =
        |rule: &GrantRule| rule.gives.iter().map(|pattern| json!({ "pattern": pattern.as_str(), "rule": rule.name })).collect::<Vec<_>>();
    rules.iter().flat_map(one).collect()
}
