//! `/streams` on the admin listener: who is there, and ending some of it.
//!
//! Knows what a list says and what may be asked for; of streams only that they are listed and ended.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use axum::response::Response;
use http::request::Parts;
use http::{Method, StatusCode};
use serde::Serialize;
use serde_json::json;

use super::respond;
use crate::event::Timestamp;
use crate::http::problem::Problem;
use crate::stream::{Listed, StreamId, Streams, Wanted};
use crate::subject::Pattern;

/// Streams in one answer, where `limit` does not say fewer.
const LIMIT: usize = 10_000;

/// What a request asks for.
#[derive(Debug, Default, PartialEq)]
struct Asked {
    wanted: Wanted,
    after: Option<StreamId>,
    limit: Option<usize>,
}

/// Answers a request for `/streams`.
///
/// # Errors
/// With 400 for a parameter that is unknown, empty or given twice, or where all would be ended; 405 for other methods.
pub(super) fn answer(streams: &Arc<Streams>, request: &Parts) -> Result<Response, Problem> {
    let asked = Asked::read(request.uri.query().unwrap_or_default()).map_err(Problem::bad_request)?;
    let Asked { wanted, after, limit } = &asked;
    match &request.method {
        method @ (&Method::GET | &Method::HEAD) => {
            let (listed, next) = streams.list(wanted, *after, limit.unwrap_or(LIMIT));
            let answer = Answer { streams: listed.iter().map(Entry::of).collect(), next: next.map(|next| next.to_string()) };
            let body = serde_json::to_string(&answer).map_err(|_| Problem::internal())?;
            Ok(respond(method, StatusCode::OK, "application/json", body + "\n"))
        }
        &Method::DELETE => {
            if after.is_some() || limit.is_some() || *wanted == Wanted::default() {
                let which = "which streams are ended is said by `id`, `identity`, `address` or `pattern`, and by nothing else";
                return Err(Problem::bad_request(which));
            }
            let ended = streams.end_listed(wanted, Timestamp::now());
            let Wanted { id, identity, address, pattern } = wanted;
            let (id, address) = (id.map(|id| id.to_string()), address.map(|address| address.to_string()));
            tracing::info!(
                ended,
                id,
                identity,
                address,
                pattern = pattern.as_ref().map(Pattern::as_str),
                "streams ended by the admin listener"
            );
            let body = json!({ "ended": ended });
            Ok(respond(&Method::DELETE, StatusCode::OK, "application/json", body.to_string() + "\n"))
        }
        _ => Err(Problem::method("GET, HEAD, DELETE")),
    }
}

/// An answer. Written without a tree of values in between: there may be many thousand streams.
#[derive(Serialize)]
struct Answer<'a> {
    streams: Vec<Entry<'a>>,
    next: Option<String>,
}

/// An open stream, as it is listed.
#[derive(Serialize)]
struct Entry<'a> {
    id: String,
    identity: Option<&'a str>,
    token_id: Option<&'a str>,
    address: IpAddr,
    user_agent: Option<&'a str>,
    patterns: Vec<&'a str>,
    transport: &'static str,
    since: String,
    position: Option<&'a str>,
    behind: Option<u64>,
    events: u64,
    bytes: u64,
    expires: Option<String>,
}

impl<'a> Entry<'a> {
    fn of(listed: &'a Listed) -> Self {
        let owner = listed.owner.as_deref();
        Self {
            id: listed.id.to_string(),
            identity: owner.and_then(|owner| owner.identity.as_deref()),
            token_id: owner.and_then(|owner| owner.token_id.as_deref()),
            address: listed.visitor.address,
            user_agent: listed.visitor.user_agent.as_deref(),
            patterns: listed.filter.patterns().iter().map(Pattern::as_str).collect(),
            transport: listed.visitor.transport.as_str(),
            since: listed.since.to_string(),
            position: Some(&*listed.position).filter(|position| !position.is_empty()),
            behind: listed.behind,
            events: listed.events,
            bytes: listed.bytes,
            expires: listed.end.map(|end| end.at.to_string()),
        }
    }
}

impl Asked {
    fn read(query: &str) -> Result<Self, String> {
        let mut asked = Self::default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            if value.is_empty() {
                return Err(format!("the parameter `{name}` is empty"));
            }
            asked.take(&name, value)?;
        }
        Ok(asked)
    }

    fn take(&mut self, name: &str, value: Cow<'_, str>) -> Result<(), String> {
        let wrong = |expected: &str| format!("the parameter `{name}` must be {expected}");
        let Self { wanted, after, limit } = self;
        let before = match name {
            "id" => wanted.id.replace(value.parse().map_err(|_| wrong("the id of a stream, as it is listed"))?).is_some(),
            "identity" => wanted.identity.replace(value.into_owned()).is_some(),
            "address" => {
                let address: IpAddr = value.parse().map_err(|_| wrong("an address: 192.0.2.1 or 2001:db8::1"))?;
                // As streams have it.
                wanted.address.replace(address.to_canonical()).is_some()
            }
            "pattern" => wanted.pattern.replace(value.parse().map_err(|_| wrong("a pattern, as it is listed"))?).is_some(),
            "after" => after.replace(value.parse().map_err(|_| wrong("the `next` of an earlier answer"))?).is_some(),
            "limit" => {
                let read = value.parse().ok().filter(|limit| (1..=100_000).contains(limit));
                limit.replace(read.ok_or_else(|| wrong("a number from 1 to 100000"))?).is_some()
            }
            _ => return Err(format!("there is no parameter `{name}`: there are id, identity, address, pattern, limit and after")),
        };
        if before { Err(format!("the parameter `{name}` is given twice")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_read_whole_or_not_at_all() {
        let asked = Asked::read("identity=a%20b&address=::1&pattern=a.>&id=3-7&limit=5&after=4-9").unwrap();
        assert_eq!(asked.wanted.identity.as_deref(), Some("a b"));
        assert_eq!(asked.wanted.pattern.as_ref().map(Pattern::as_str), Some("a.>"));
        assert_eq!(
            (asked.wanted.id.unwrap().to_string(), asked.after.unwrap().to_string(), asked.limit),
            ("3-7".into(), "4-9".into(), Some(5))
        );
        assert_eq!(Asked::read("address=::ffff:192.0.2.1").unwrap(), Asked::read("address=192.0.2.1").unwrap());
        assert_eq!(Asked::read("").unwrap(), Asked::default());
        for (query, named) in [
            ("identity=", "identity"),
            ("identity", "identity"),
            ("identities=a", "identities"),
            ("id=3", "id"),
            ("id=x-y", "id"),
            ("address=localhost", "address"),
            ("pattern=a..b", "pattern"),
            ("limit=0", "limit"),
            ("limit=-1", "limit"),
            ("identity=a&identity=b", "identity"),
        ] {
            assert!(Asked::read(query).unwrap_err().contains(&format!("`{named}`")), "{query}");
        }
    }
}
