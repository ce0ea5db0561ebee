use std::time::SystemTime;

use axum::body::Body;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;
use crate::auth::Algorithm;
use crate::cursor::Point;
use crate::frame::Form;
use crate::settings::Secret;
use crate::source::http::Http;
use crate::source::{Adapter as _, Connection, Item, Start};
use crate::subject::Pattern;
use crate::{auth, pool, settings};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// The router over rooms of which only the streams are made up.
struct Face {
    router: Router,
    /// What was opened; a slot is taken for as long as it stands here.
    opened: Arc<Mutex<Vec<stream::Request>>>,
    draining: CancellationToken,
    pool: Pool,
    metrics: Arc<Metrics>,
    inbox: Http,
    /// Each takes the place of the policy while a stream is opened.
    reloads: Arc<Mutex<Vec<Policy>>>,
    yaml: String,
    _folder: tempfile::TempDir,
}

fn read(yaml: &str) -> (Policy, pool::Settings, pool::RateSettings) {
    settings::tests::read(yaml, |root| {
        let section = |name: &str| root.key(name).section();
        let (server, subscribers) = (section("server"), section("subscribers"));
        let auth = auth::Settings::read(&section("auth"));
        let open = !auth.anonymous.is_empty();
        let settings = Settings::read(&server, &section("admin"), &subscribers, open, None, Duration::from_secs(15))?;
        let auth = Authenticator::new(auth, auth::token_bytes(&server.key("limits").section()));
        let policy = Policy::new(settings, Arc::new(auth), Duration::from_secs(3));
        Some((policy, pool::Settings::read(&subscribers), pool::RateSettings::read(&section("rates"))))
    })
    .unwrap()
}

const OPEN: &str = "auth: { anonymous: { subscribe: ['>'], publish: ['demo.>', 'other.>'] } }";

impl Face {
    fn new(yaml: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let yaml = yaml.replace("FOLDER", folder.path().to_str().unwrap());
        let (policy, pool, rates) = read(&yaml);
        let opened = Arc::new(Mutex::new(Vec::new()));
        let draining = CancellationToken::new();
        let pool = Pool::new(pool);
        let metrics = crate::metrics::unread();
        let inbox = Http::new(crate::source::http::Config { subjects: vec!["demo.>".parse().unwrap()] });
        let (open, reloads) = (opened.clone(), Arc::new(Mutex::new(Vec::new())));
        let present = watch::Sender::new(Current { policy: Arc::new(policy), settled: true });
        let next = reloads.clone();
        let rooms = Rooms {
            policy: present.subscribe(),
            pool: pool.clone(),
            rates: Rates::new(rates),
            metrics: metrics.clone(),
            inbox: {
                let (reach, inbox) = (inbox.reach(), Inbox { max_payload: 64, handle: inbox.inbox().unwrap() });
                Box::new(move |subject| reach.iter().any(|pattern| pattern.matches(subject.as_str())).then(|| inbox.clone()))
            },
            draining: draining.clone(),
            open: Box::new(move |opening| {
                open.lock().push(opening);
                if let Some(policy) = next.lock().pop() {
                    present.send_replace(Current { policy: Arc::new(policy), settled: true });
                }
                Handover::gone()
            }),
            budget: Budget::default(),
            pages: Budget::default(),
            agents: Agents::default(),
            refusals: Arc::new(Refusals::new(|_| {})),
            traces: Traces::default(),
        };
        Self { router: router(rooms), opened, draining, pool, metrics, inbox, reloads, yaml, _folder: folder }
    }

    async fn raw(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &'static str) -> http::Response<Body> {
        self.send(method, path, headers, if body.is_empty() { Body::empty() } else { Body::from(body) }).await
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Body) -> http::Response<Body> {
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost:8080");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(body).unwrap();
        request.extensions_mut().insert(Peer { address: "127.0.0.1:4711".parse().ok(), tls: false, connection: 0, verified: false });
        self.router.clone().oneshot(request).await.unwrap()
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> (StatusCode, HeaderMap) {
        let response = self.raw(method, path, headers, "").await;
        (response.status(), response.headers().clone())
    }

    async fn status(&self, path: &str, headers: &[(&str, &str)]) -> u16 {
        self.ask("GET", path, headers).await.0.as_u16()
    }

    /// Status and problem.
    async fn problem(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &'static str) -> (u16, Value) {
        let response = self.raw(method, path, headers, body).await;
        assert_eq!(response.headers()["content-type"], "application/problem+json", "{method} {path}");
        let status = response.status().as_u16();
        let value: Value = serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
        assert_eq!(value["status"], status);
        (status, value)
    }

    fn last(&self) -> stream::Request {
        self.opened.lock().pop().expect("a stream was opened")
    }
}

fn tokens() -> String {
    format!("auth: {{ jwt: {{ keys: [{{ algorithms: [HS256], secret: {SECRET} }}] }} }}\nsubscribers: {{ max: 2, max_per_identity: 1 }}")
}

fn bearer(claims: &Value) -> String {
    let mut claims = claims.clone();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    claims["exp"] = (now + 600).into();
    let token = crate::auth::mint(&Secret::new(SECRET), Algorithm::HS256, &claims, None).unwrap();
    format!("Bearer {token}")
}

const EVENT_STREAM: (&str, &str) = ("accept", "text/event-stream");

#[tokio::test]
async fn a_stream_has_exactly_these_headers_and_what_was_asked_for() {
    let face = Face::new(OPEN);
    let (status, headers) = face.ask("GET", "/events?subject=a.%3E&subject=b&since=10m&envelope=json&x=1", &[]).await;
    assert_eq!(status, 200);
    assert_eq!(headers["content-type"], "text/event-stream");
    assert_eq!(headers["cache-control"], "no-store, no-transform");
    assert_eq!(headers["x-accel-buffering"], "no");
    assert_eq!(headers.len(), 3, "{headers:?}");
    let opening = face.last();
    assert_eq!(opening.filter.patterns().iter().map(Pattern::as_str).collect::<Vec<_>>(), ["a.>", "b"]);
    assert!(
        opening.filter.form() == Form::Json && matches!(opening.begin, stream::Begin::At(Point::Since(_))) && opening.expires.is_none()
    );
    assert_eq!(face.pool.taken(), 1);
    drop(opening);
    assert_eq!(face.pool.taken(), 0);
}

#[tokio::test]
async fn head_and_options_take_no_slot_and_other_methods_are_405() {
    let face = Face::new(OPEN);
    let get = face.ask("GET", "/events", &[]).await;
    drop(face.last());
    assert_eq!(face.ask("HEAD", "/events", &[]).await, get);
    assert_eq!(face.ask("HEAD", "/events?subject=..", &[]).await.0, 400);
    let (status, headers) = face.ask("OPTIONS", "/events", &[]).await;
    assert_eq!((status.as_u16(), headers["allow"].to_str().unwrap()), (204, "GET, HEAD, OPTIONS"));
    for method in ["POST", "PUT", "DELETE", "PATCH", "TRACE", "QUERY"] {
        assert_eq!(face.problem(method, "/events", &[], "").await.0, 405, "{method}");
    }
    assert!(face.opened.lock().is_empty());
    assert_eq!(face.ask("DELETE", "/publish/demo.a", &[]).await.1["allow"], "POST, OPTIONS");
    assert_eq!(face.ask("POST", "/", &[]).await.1["allow"], "GET, HEAD");
    assert_eq!(face.problem("GET", "/nothing", &[], "").await.0, 404);
    assert_eq!(face.problem("GET", "/events/", &[], "").await.0, 404);
}

#[tokio::test]
async fn a_body_where_none_may_be_is_refused_and_ends_the_connection() {
    let face = Face::new(OPEN);
    let response = face.raw("GET", "/events", &[], "body").await;
    assert_eq!((response.status().as_u16(), response.headers()["connection"].to_str().unwrap()), (400, "close"));
    assert!(face.opened.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_empty_body_may_end_in_a_frame_of_its_own() {
    use futures_util::stream::{self, StreamExt as _};
    let face = Face::new(OPEN);
    let frames = |frames: &[&'static str]| {
        let frames: Vec<_> = frames.iter().map(|data| Ok::<_, std::io::Error>(bytes::Bytes::from_static(data.as_bytes()))).collect();
        stream::iter(frames)
    };
    let bodies = [
        (Body::from_stream(frames(&[])), 200),
        (Body::from_stream(frames(&["", ""])), 200),
        (Body::from_stream(frames(&["", "x"])), 400),
        (Body::from_stream(frames(&[]).chain(stream::pending())), 400),
        (Body::from_stream(stream::iter([Err::<bytes::Bytes, _>(std::io::Error::other("broken"))])), 400),
    ];
    for (number, (body, status)) in bodies.into_iter().enumerate() {
        assert_eq!(face.send("GET", "/events", &[], body).await.status(), status, "{number}");
    }
    assert_eq!(face.opened.lock().len(), 2);
}

#[tokio::test]
async fn refusals_come_in_their_order() {
    let face = Face::new(&tokens());
    let narrow = bearer(&json!({ "sub": "u", "subjects": ["orders.eu.>"] }));
    let auth = ("authorization", narrow.as_str());
    let foreign = ("origin", "https://evil.example");
    assert_eq!(face.problem("GET", "/events?subject=a..b", &[foreign], "").await.0, 400);
    let (status, problem) = face.problem("GET", "/events?subject=x", &[foreign], "").await;
    assert_eq!((status, &problem["code"]), (401, &json!("token_missing")));
    let (status, problem) = face.problem("GET", "/events", &[("authorization", "Bearer nonsense")], "").await;
    assert_eq!((status, &problem["code"]), (401, &json!("token_invalid")));
    assert_eq!(face.ask("GET", "/events", &[]).await.1["www-authenticate"], r#"Bearer realm="brokercast""#);
    let (_, headers) = face.ask("GET", "/events", &[("authorization", "Bearer nonsense")]).await;
    assert!(headers["www-authenticate"].to_str().unwrap().contains("invalid_token"));
    let cookie = format!("brokercast={}", &narrow[7..]);
    assert_eq!(face.problem("GET", "/events", &[("cookie", &cookie), foreign], "").await.0, 403);
    let (status, problem) = face.problem("GET", "/events?subject=orders.eu.a&subject=orders.%3E", &[auth], "").await;
    assert_eq!((status, problem["pattern"].as_str()), (403, Some("orders.>")));
    assert_eq!(face.status("/events", &[auth]).await, 200);
    assert_eq!(face.opened.lock()[0].filter.patterns(), ["orders.eu.>".parse().unwrap()]);
    assert!(face.opened.lock()[0].expires.is_some());
    // The cap is reached only by who may see something.
    assert_eq!(face.problem("GET", "/events?subject=orders.us", &[auth], "").await.0, 403);
    assert_eq!(face.problem("GET", "/events", &[auth], "").await.0, 429);
}

#[tokio::test]
async fn caps_are_refused_as_the_client_can_bear_it() {
    let face = Face::new(&tokens());
    let of = |sub: &str| bearer(&json!({ "sub": sub, "subjects": [">"] }));
    let (a, b, c) = (of("a"), of("b"), of("c"));
    assert_eq!(face.status("/events", &[("authorization", &a)]).await, 200);
    let own = face.ask("GET", "/events", &[("authorization", &a)]).await;
    assert_eq!(own.0, 429);
    assert!(own.1["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(face.status("/events", &[("authorization", &b)]).await, 200);
    assert_eq!(face.status("/events", &[("authorization", &c)]).await, 503);
    let response = face.raw("GET", "/events", &[("authorization", &c), EVENT_STREAM], "").await;
    assert_eq!((response.status().as_u16(), response.headers()["content-type"].to_str().unwrap()), (200, "text/event-stream"));
    let text = String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    assert!(text.contains("retry: ") && text.contains("event: brokercast.closing\ndata: {\"reason\":\"busy\"}\n\n"), "{text}");
    assert!(!text.contains("id:"), "{text}");
    // HEAD looks at no cap.
    assert_eq!(face.ask("HEAD", "/events", &[("authorization", &c)]).await.0, 200);
    assert_eq!(face.opened.lock().len(), 2);
    face.opened.lock().clear();
    assert_eq!(face.status("/events", &[("authorization", &c)]).await, 200);
    assert!(face.metrics.encode(crate::metrics::Format::Text).unwrap().contains("brokercast_refused_subscribers_total{reason=\"busy\"} 2"));
}

#[tokio::test]
async fn whoever_comes_while_draining_is_told_to_come_back() {
    let face = Face::new(OPEN);
    face.draining.cancel();
    assert_eq!(face.problem("GET", "/events", &[], "").await.0, 503);
    let response = face.raw("GET", "/events", &[EVENT_STREAM], "").await;
    assert_eq!(response.status(), 200);
    let text = response.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&text).contains("{\"reason\":\"draining\"}"));
    assert_eq!(face.status("/events?subject=..", &[EVENT_STREAM]).await, 400);
}

#[tokio::test]
async fn listed_origins_are_answered_on_errors_too_and_in_the_preflight() {
    let face = Face::new(&format!("{OPEN}\nserver: {{ cors: {{ origins: ['https://dash.example.com'], credentials: true }} }}"));
    let listed = ("origin", "https://dash.example.com");
    for (path, status) in [("/events", 200), ("/events?subject=..", 400), ("/nothing", 404)] {
        let (got, headers) = face.ask("GET", path, &[listed]).await;
        assert_eq!(got.as_u16(), status);
        assert_eq!(headers["access-control-allow-origin"], "https://dash.example.com", "{path}");
        assert_eq!(headers["access-control-allow-credentials"], "true");
        assert_eq!(headers["vary"], "Origin");
    }
    let preflight = [listed, ("access-control-request-method", "GET"), ("access-control-request-headers", "authorization,last-event-id")];
    let (status, headers) = face.ask("OPTIONS", "/events", &preflight).await;
    assert_eq!(status, 204);
    let allowed = headers["access-control-allow-headers"].to_str().unwrap();
    assert!(allowed.contains("authorization") && allowed.contains("last-event-id"), "{allowed}");
    assert!(headers["access-control-allow-methods"].to_str().unwrap().contains("GET"));
    assert!(face.ask("OPTIONS", "/publish/demo.a", &preflight).await.1["access-control-allow-methods"].to_str().unwrap().contains("POST"));
    let (status, headers) = face.ask("OPTIONS", "/events", &[("origin", "https://evil.example")]).await;
    assert_eq!(status, 204);
    assert!(!headers.contains_key("access-control-allow-origin") && !headers.contains_key("access-control-allow-headers"));
    assert_eq!(face.status("/events", &[("origin", "https://evil.example")]).await, 403);
    assert_eq!(face.status("/events", &[("origin", "http://localhost:8080")]).await, 200);
}

#[tokio::test]
async fn only_own_names_are_answered() {
    let face = Face::new(OPEN);
    let with_host = |host: &'static str| {
        let request = Request::builder().uri("/events").header("host", host).body(Body::empty()).unwrap();
        let router = face.router.clone();
        async move { router.oneshot(request).await.unwrap().status().as_u16() }
    };
    assert_eq!(with_host("localhost:8080").await, 200);
    assert_eq!(with_host("127.0.0.1").await, 200);
    assert_eq!(with_host("evil.example:8080").await, 421);
}

/// Takes in what is published, and answers with this id.
async fn take(inbox: &Http, id: &str) -> Vec<(String, Vec<u8>)> {
    let mut connection: Box<dyn Connection> = inbox.connect(Start::Now).await.unwrap();
    let mut batch = Vec::new();
    connection.next(&mut batch, 16).await.unwrap();
    assert!(connection.acknowledge(id).is_none());
    let message = |item| match item {
        Item::Message(m) => (m.subject.to_string(), m.payload.to_vec()),
        other => panic!("{other:?}"),
    };
    batch.into_iter().map(message).collect()
}

#[tokio::test]
async fn what_is_published_is_answered_with_its_id() {
    let face = Face::new(OPEN);
    let (response, taken) = tokio::join!(face.raw("POST", "/publish/demo.%C3%A4", &[], "{\"a\":1}"), take(&face.inbox, "the-id"));
    assert_eq!(response.status(), 202);
    assert_eq!(response.headers()["content-type"], "application/json");
    let body: Value = serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(body, json!({ "id": "the-id" }));
    assert_eq!(taken, [("demo.ä".to_owned(), b"{\"a\":1}".to_vec())]);
    let (response, taken) = tokio::join!(face.raw("POST", "/publish/demo.empty", &[], ""), take(&face.inbox, "x"));
    assert_eq!((response.status().as_u16(), taken), (202, vec![("demo.empty".to_owned(), Vec::new())]));
}

#[tokio::test]
async fn what_may_not_be_published_is_refused() {
    let face = Face::new(OPEN);
    let large = "x".repeat(65).leak();
    assert_eq!(face.problem("POST", "/publish/demo..a", &[], "x").await.0, 400);
    assert_eq!(face.problem("POST", "/publish/demo.a/b", &[], "x").await.0, 400);
    assert_eq!(face.problem("POST", "/publish/", &[], "x").await.0, 400);
    assert_eq!(face.problem("POST", "/publish/secret.a", &[], "x").await.0, 403);
    assert_eq!(face.problem("POST", "/publish/other.a", &[], "x").await.0, 404);
    assert_eq!(face.problem("POST", "/publish/demo.a", &[], large).await.0, 413);
    assert_eq!(face.problem("POST", "/publish/demo.a", &[("content-length", "65")], "x").await.0, 413);
    assert_eq!(face.problem("POST", "/publish/demo.a", &[("origin", "https://evil.example")], "x").await.0, 403);
    let cross = [("sec-fetch-site", "cross-site"), ("cookie", "brokercast=x")];
    assert_eq!(face.problem("POST", "/publish/demo.a", &cross, "x").await.0, 403);
    assert!(
        face.metrics.encode(crate::metrics::Format::Text).unwrap().contains("brokercast_published_messages_total{outcome=\"too_large\"} 2")
    );
}

#[tokio::test]
async fn a_cookie_never_publishes() {
    let face = Face::new(&tokens());
    let token = bearer(&json!({ "publish": ["demo.>"], "subjects": ["demo.>"] }));
    let cookie = format!("brokercast={}", token.strip_prefix("Bearer ").unwrap());
    assert_eq!(face.problem("POST", "/publish/demo.a", &[("cookie", &cookie)], "x").await.0, 401);
    assert_eq!(face.status("/events", &[("cookie", &cookie)]).await, 200);
    let authorization = [("authorization", token.as_str())];
    let (response, _) = tokio::join!(face.raw("POST", "/publish/demo.a", &authorization, "x"), take(&face.inbox, "id"));
    assert_eq!(response.status(), 202);
}

#[tokio::test]
async fn a_message_that_comes_too_slowly_is_408() {
    let face = Face::new(&format!("{OPEN}\nserver: {{ limits: {{ header_timeout: 100ms }} }}"));
    let body = Body::from_stream(futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>());
    let request = Request::post("/publish/demo.a").header("host", "localhost").body(body).unwrap();
    assert_eq!(face.router.clone().oneshot(request).await.unwrap().status(), 408);
}

#[tokio::test]
async fn the_dashboard_and_own_pages_are_served_safely() {
    let face = Face::new(&format!("{OPEN}\nserver: {{ dashboards: FOLDER }}"));
    for path in ["/", "/dashboard.js", "/dashboard.css"] {
        let (status, headers) = face.ask("GET", path, &[]).await;
        assert_eq!(status, 200);
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert!(headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
    }
    std::fs::write(face._folder.path().join("a.html"), "a").unwrap();
    let (status, headers) = face.ask("GET", "/dashboards/a.html", &[]).await;
    assert_eq!((status.as_u16(), headers["content-type"].to_str().unwrap()), (200, "text/html; charset=utf-8"));
    assert_eq!(headers["x-content-type-options"], "nosniff");
    assert_eq!(face.ask("GET", "/dashboards", &[]).await.1["location"], "/dashboards/");
    assert_eq!(face.problem("GET", "/dashboards/%2e%2e/x", &[], "").await.0, 404);
    // Below a path of a proxy's, whether the proxy takes it off or not.
    let below = Face::new(&format!("{OPEN}\nserver: {{ dashboards: FOLDER, base_path: /live/ }}"));
    std::fs::write(below._folder.path().join("a.html"), "a").unwrap();
    for path in ["/", "/dashboard.js", "/dashboards/a.html", "/events", "/session"] {
        assert_eq!([below.status(path, &[]).await, below.status(&format!("/live{path}"), &[]).await], [200, 200], "{path}");
    }
    for path in ["/publish/demo.a", "/live/publish/demo.a%2Fb?x=1"] {
        // As far as the source, which does not run here.
        assert_eq!(below.raw("POST", path, &[], "1").await.status(), 503, "{path}");
    }
    for (path, location) in [
        ("/live", "/live/"),
        ("/live?x=1&y=%3E", "/live/?x=1&y=%3E"),
        ("/live/dashboards", "/live/dashboards/"),
        ("/dashboards?x", "/live/dashboards/?x"),
    ] {
        let (status, headers) = below.ask("GET", path, &[]).await;
        assert_eq!((status.as_u16(), headers["location"].to_str().unwrap()), (308, location), "{path}");
    }
    for path in ["/liver/events", "/live/live/events", "//live/events", "/Live/events"] {
        assert_eq!(below.status(path, &[]).await, 404, "{path}");
    }
    let page = below.raw("GET", "/live/", &[], "").await.into_body().collect().await.unwrap().to_bytes();
    let page = String::from_utf8(page.to_vec()).unwrap();
    assert!(!page.contains("=\"/") && page.contains("\"dashboard.js\""), "an absolute link in {page}");
    let off = Face::new(&format!("{OPEN}\nserver: {{ dashboard: false }}"));
    for path in ["/", "/dashboard.js", "/dashboards/a.html"] {
        assert_eq!(off.problem("GET", path, &[], "").await.0, 404, "{path}");
    }
}

#[tokio::test]
async fn only_a_bearer_token_in_its_header_is_taken_from_a_foreign_origin() {
    const FOREIGN: (&str, &str) = ("origin", "capacitor://elsewhere");
    let face = Face::new(&format!("{}\nserver: {{ cors: {{ origins: ['capacitor://localhost'] }} }}", tokens()));
    let token = bearer(&json!({ "sub": "a", "subjects": ["a"], "publish": ["demo.a"] }));
    let cookie = format!("brokercast={}", &token[7..]);
    for path in ["/events", "/session"] {
        assert_eq!(face.status(path, &[FOREIGN, ("authorization", &token)]).await, 200, "{path}");
        face.opened.lock().clear();
        // A cookie beside it changes nothing: it is not what counts.
        assert_eq!(face.status(path, &[FOREIGN, ("authorization", &token), ("cookie", &cookie)]).await, 200, "{path}");
        assert_eq!(face.status(path, &[FOREIGN, ("cookie", &cookie)]).await, 403, "{path}");
        assert_eq!(face.status(path, &[FOREIGN, ("cookie", &cookie), ("authorization", "Basic eDp5")]).await, 403, "{path}");
        face.opened.lock().clear();
    }
    // As far as the source, which does not run here.
    assert_eq!(face.raw("POST", "/publish/demo.a", &[FOREIGN, ("authorization", &token)], "1").await.status(), 503);
    let (_, headers) = face.ask("GET", "/events", &[FOREIGN, ("authorization", &token)]).await;
    assert!(!headers.contains_key("access-control-allow-origin"), "an app that is not listed reads nothing in a browser");

    let other = tokens().replace("jwt: {", "carriers: { header: Cf-Access-Jwt-Assertion }, jwt: {");
    let face = Face::new(&other);
    assert_eq!(face.status("/events", &[("cf-access-jwt-assertion", &token[7..])]).await, 200);
    face.opened.lock().clear();
    assert_eq!(face.status("/events", &[FOREIGN, ("cf-access-jwt-assertion", &token[7..])]).await, 403);
    assert_eq!(face.status("/events", &[FOREIGN, ("cf-access-jwt-assertion", &token[7..]), ("authorization", &token)]).await, 403);
}

#[tokio::test]
async fn a_stream_that_is_opened_while_policies_are_exchanged_counts_once_for_its_rates() {
    let rates = "rates: { connect: { per_identity: 1/h }, history: { per_identity: 1/h, per_address: 2/h } }";
    let face = Face::new(&format!("{}\n{rates}", tokens().replace("max: 2, max_per_identity: 1", "max: 9")));
    face.reloads.lock().extend([read(&face.yaml).0, read(&face.yaml).0]);
    let of = |who: &str| bearer(&json!({ "sub": who, "subjects": [">"] }));
    assert_eq!(face.status("/events?since=10m", &[("authorization", &of("a"))]).await, 200);
    assert_eq!(face.opened.lock().len(), 3, "opened by each policy");
    for (who, status) in [("a", 429), ("b", 200), ("c", 429)] {
        assert_eq!(face.status("/events?since=10m", &[("authorization", &of(who))]).await, status, "{who}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_content_coding_is_refused_on_whichever_line_it_is() {
    let face = Face::new(OPEN);
    let status = async |lines: &[(&str, &str)]| face.raw("POST", "/publish/demo.a", lines, "x").await.status().as_u16();
    let (plain, packed) = (("content-encoding", "identity"), ("content-encoding", "gzip"));
    let twice = [plain, plain];
    assert_eq!(tokio::join!(status(&twice), take(&face.inbox, "x")).0, 202);
    for lines in [[packed, plain], [plain, packed]] {
        assert_eq!(status(&lines).await, 415, "{lines:?}");
    }
}
