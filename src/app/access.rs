//! What the access log says: of each stream that has ended, and of each request that was refused.

use std::sync::Arc;

use crate::http::{Refusal, Refusals};
use crate::stream::{Ended, Streams};
use crate::subject::Pattern;
use crate::telemetry::{Access, Line};

/// Why a stream ended whose client has gone.
const GONE: &str = "gone";

/// Lets `access` say each stream that ends from now on.
pub(super) fn follow(streams: &Streams, access: &Arc<Access>) {
    let access = access.clone();
    streams.on_end(move |ended| access.say(move |line| stream(line, &ended)));
}

/// Where refusals are told, so that `access` says them.
pub(super) fn refusals(access: &Arc<Access>) -> Refusals {
    let access = access.clone();
    Refusals::new(move |refusal| {
        if !access.is_on() {
            return;
        }
        let Refusal { parts, address, whose, status, reason, detail, elapsed } = *refusal;
        let (method, path, agent) =
            (parts.method.to_string(), parts.uri.path().to_owned(), parts.headers.get(http::header::USER_AGENT).cloned());
        let identity = whose.and_then(|owner| owner.identity.clone());
        let token_id = whose.and_then(|owner| owner.token_id.clone());
        let (reason, detail) = (reason.to_owned(), detail.to_owned());
        access.say(move |line| {
            line.text("event", Some("refusal"));
            line.text("identity", identity.as_deref());
            line.text("token_id", token_id.as_deref());
            line.text("address", Some(&address.to_string()));
            line.text("method", Some(&method));
            // Never the query, which may hold a token.
            line.text("path", Some(&path));
            line.number("status", status.into());
            line.text("reason", Some(&reason));
            line.text("detail", Some(&detail).filter(|detail| **detail != reason).map(String::as_str));
            line.seconds("seconds", elapsed);
            line.number("events", 0);
            line.number("bytes", 0);
            line.text("user_agent", agent.as_ref().map(|agent| String::from_utf8_lossy(agent.as_bytes())).as_deref());
        });
    })
}

fn stream(line: &mut Line, ended: &Ended) {
    let owner = ended.owner.as_deref();
    line.text("event", Some("stream"));
    line.text("identity", owner.and_then(|owner| owner.identity.as_deref()));
    line.text("token_id", owner.and_then(|owner| owner.token_id.as_deref()));
    line.text("address", Some(&ended.visitor.address.to_string()));
    line.text("method", Some("GET"));
    line.text("path", Some("/events"));
    line.texts("patterns", ended.filter.patterns().iter().map(Pattern::as_str));
    line.number("status", 200);
    line.text("reason", Some(ended.reason.map_or(GONE, |reason| reason.as_str())));
    line.seconds("seconds", ended.lasted);
    line.number("events", ended.events);
    line.number("bytes", ended.bytes);
    line.text("transport", Some(ended.visitor.transport.as_str()));
    line.text("user_agent", ended.visitor.user_agent.as_deref());
}
