//! `/revocations` on the admin listener: tokens that are refused from now on, and whose streams end.
//!
//! Knows what a revocation is, and that streams can be ended by one; not how.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, StatusCode};
use serde_json::json;

use super::{body, respond};
use crate::auth::{Criteria, Revocation, RevocationError, Revocations};
use crate::event::Timestamp;
use crate::http::problem::Problem;
use crate::settings::value::show_duration;

/// What is needed of other rooms.
pub(crate) struct Revoking {
    pub(crate) revocations: Arc<Revocations>,
    /// Ends the streams whose tokens are meant. Returns how many.
    pub(crate) end: Box<dyn Fn(&Criteria) -> usize + Send + Sync>,
    /// What reaches the other replicas, if there is anything.
    pub(crate) wire: Box<dyn Fn() -> Option<Arc<Wire>> + Send + Sync>,
}

/// A broker that takes revocations to all replicas.
pub(crate) struct Wire {
    /// Whether it keeps them for those that start later.
    pub(crate) durable: bool,
    /// Publishes a message. Says why where the broker does not take it.
    pub(crate) publish: Box<dyn Fn(Bytes) -> BoxFuture<'static, Result<(), String>> + Send + Sync>,
    /// For how long it keeps a message, as far as that is known.
    pub(crate) keeps_for: Box<dyn Fn() -> BoxFuture<'static, Option<Duration>> + Send + Sync>,
}

impl Wire {
    fn scope(&self) -> &'static str {
        if self.durable { "durable" } else { "connected" }
    }
}

const PATH: &str = "/revocations";
/// When to try again where the broker does not take a revocation.
const RETRY: Duration = Duration::from_secs(5);

impl Revoking {
    /// The rest of a path of ours: empty, or the name of a revocation behind a slash.
    pub(super) fn rest(path: &str) -> Option<&str> {
        path.strip_prefix(PATH).filter(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Answers a request for a path of ours.
    pub(super) async fn answer(&self, request: Request) -> Result<Response, Problem> {
        let (parts, content) = request.into_parts();
        match (Self::rest(parts.uri.path()).unwrap_or_default().strip_prefix('/'), &parts.method) {
            (None, &Method::POST) => self.add(&body::read(content).await?).await,
            (None, method @ (&Method::GET | &Method::HEAD)) => {
                let body = json!({ "revocations": self.revocations.list(Timestamp::now()) });
                Ok(respond(method, StatusCode::OK, "application/json", body.to_string() + "\n"))
            }
            (None, _) => Err(Problem::method("GET, HEAD, POST")),
            (Some(id), &Method::DELETE) => self.remove(id).await,
            (Some(_), _) => Err(Problem::method("DELETE")),
        }
    }

    async fn add(&self, order: &[u8]) -> Result<Response, Problem> {
        let now = Timestamp::now();
        let refused = |error| match error {
            RevocationError::Full => Problem::unavailable(error.to_string(), Duration::from_secs(60)),
            _ => Problem::bad_request(format!("the revocation {error}")),
        };
        let revocation = Revocation::read(order, now).map_err(refused)?;
        let message = serde_json::to_vec(&revocation).map_err(|_| Problem::internal())?;
        let Revocation { id, criteria, until } = revocation.clone();
        // First: what is opened from here on is refused, what was opened before is found. No broker holds that up.
        self.revocations.add(revocation, now).map_err(refused)?;
        let ended = (self.end)(&criteria);
        let wire = (self.wire)();
        if let Some(wire) = wire.as_ref().filter(|wire| wire.durable)
            && let Some(age) = (wire.keeps_for)().await
            && until > now.after(age)
        {
            self.revocations.remove(&id);
            tracing::info!(id, ended, "revocation taken back, as its `until` is too late");
            let most = show_duration(age);
            return Err(Problem::bad_request(format!(
                "`until` is later than the log of `auth.revocations` keeps messages: at most {most} from now"
            )));
        }
        let scope = wire.as_ref().map_or("process", |wire| wire.scope());
        tracing::info!(id, ended, scope, "tokens revoked");
        publish(wire, message, &id, "the revocation holds in this process, and others may not get it").await?;
        let body = json!({ "id": id, "ended": ended, "scope": scope });
        Ok(respond(&Method::POST, StatusCode::CREATED, "application/json", body.to_string() + "\n"))
    }

    async fn remove(&self, id: &str) -> Result<Response, Problem> {
        let (known, wire) = (self.revocations.remove(id), (self.wire)());
        // Where it is not known here, other replicas may know it: an earlier request may have reached no broker.
        if !known && (wire.is_none() || !Revocation::is_id(id)) {
            return Err(Problem::not_found("there is no revocation of this id"));
        }
        tracing::info!(id, known, "revocation taken back");
        let message = json!({ "deleted": id }).to_string().into_bytes();
        publish(wire, message, id, "the revocation is taken back in this process, and others may keep it").await?;
        Ok(StatusCode::NO_CONTENT.into_response())
    }
}

/// Publishes a message, if there is a broker.
async fn publish(wire: Option<Arc<Wire>>, message: Vec<u8>, id: &str, else_said: &str) -> Result<(), Problem> {
    let Some(wire) = wire else { return Ok(()) };
    (wire.publish)(message.into()).await.map_err(|error| {
        tracing::error!(id, error, "a revocation could not be published");
        Problem::unavailable(format!("{else_said}: the source of `auth.revocations` did not take it: {error}"), RETRY).about("id", id)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

    use axum::body::Body;
    use futures_util::FutureExt as _;
    use parking_lot::Mutex;

    use super::*;

    /// A broker that keeps messages for an hour, is down at times, and may not say how long it keeps them.
    #[derive(Default)]
    struct Broker {
        down: AtomicBool,
        silent: AtomicBool,
        published: Mutex<Vec<String>>,
        ended: AtomicUsize,
    }

    fn revoking(broker: &Arc<Broker>) -> Revoking {
        let (end, publish, keeps_for) = (broker.clone(), broker.clone(), broker.clone());
        let publish = move |message: Bytes| -> BoxFuture<'static, Result<(), String>> {
            let broker = publish.clone();
            Box::pin(async move {
                if broker.down.load(SeqCst) {
                    return Err("it is down".to_owned());
                }
                broker.published.lock().push(String::from_utf8(message.to_vec()).unwrap());
                Ok(())
            })
        };
        let keeps_for = move || -> BoxFuture<'static, Option<Duration>> {
            let silent = keeps_for.silent.load(SeqCst);
            Box::pin(async move { if silent { std::future::pending().await } else { Some(Duration::from_secs(3600)) } })
        };
        let wire = Arc::new(Wire { durable: true, publish: Box::new(publish), keeps_for: Box::new(keeps_for) });
        Revoking {
            revocations: Arc::default(),
            end: Box::new(move |_| end.ended.fetch_add(1, SeqCst) + 1),
            wire: Box::new(move || Some(wire.clone())),
        }
    }

    fn request(method: Method, rest: &str, body: &str) -> Request {
        http::Request::builder().method(method).uri(format!("{PATH}{rest}")).body(Body::from(body.to_owned())).unwrap()
    }

    async fn status(revoking: &Revoking, method: Method, rest: &str, body: &str) -> u16 {
        let answer = revoking.answer(request(method, rest, body)).await;
        answer.map_or_else(|problem| problem.status(), |response| response.status()).as_u16()
    }

    const ORDER: &str = r#"{"identity":"ada","until":"30m"}"#;

    #[tokio::test]
    async fn a_revocation_holds_here_before_the_broker_says_anything() {
        let broker = Arc::<Broker>::default();
        let revoking = revoking(&broker);
        broker.silent.store(true, SeqCst);
        let posted = request(Method::POST, "", ORDER);
        assert!(revoking.answer(posted).now_or_never().is_none(), "the broker is still asked");
        assert_eq!((revoking.revocations.count(), broker.ended.load(SeqCst)), (1, 1));
        // What the log would forget too early is taken back again.
        broker.silent.store(false, SeqCst);
        assert_eq!(status(&revoking, Method::POST, "", &ORDER.replace("30m", "2h")).await, 400);
        assert_eq!((revoking.revocations.count(), broker.published.lock().len()), (1, 0));
        assert_eq!(status(&revoking, Method::POST, "", ORDER).await, 201);
        assert_eq!((revoking.revocations.count(), broker.published.lock().len()), (2, 1));
    }

    #[tokio::test]
    async fn taking_back_can_be_repeated_until_the_broker_takes_it() {
        let broker = Arc::<Broker>::default();
        let revoking = revoking(&broker);
        assert_eq!(status(&revoking, Method::POST, "", ORDER).await, 201);
        let rest = format!("/{}", revoking.revocations.list(Timestamp::now())[0].id);
        broker.down.store(true, SeqCst);
        for _ in 0..2 {
            assert_eq!(status(&revoking, Method::DELETE, &rest, "").await, 503);
        }
        assert_eq!(revoking.revocations.count(), 0);
        broker.down.store(false, SeqCst);
        assert_eq!(status(&revoking, Method::DELETE, &rest, "").await, 204);
        assert_eq!(broker.published.lock().last(), Some(&format!(r#"{{"deleted":"{}"}}"#, &rest[1..])));
        assert_eq!(status(&revoking, Method::DELETE, "/a%20b", "").await, 404);
        let alone = Revoking { wire: Box::new(|| None), ..revoking };
        assert_eq!(status(&alone, Method::DELETE, &rest, "").await, 404);
    }
}
