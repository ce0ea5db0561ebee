use std::time::Duration;

use futures_util::future::BoxFuture;
use http_body_util::BodyExt as _;
use tokio::sync::watch;
use tower::ServiceExt as _;

use super::*;
use crate::event::GapReason;
use crate::metrics::SourceReading;
use crate::source::supervisor::Supervisor;
use crate::source::{Adapter, Connection, Intake, Item, SourceError, Start};

/// A source that can connect as long as it is told so.
struct Switch(watch::Receiver<bool>);

impl Adapter for Switch {
    fn kind(&self) -> &'static str {
        "switch"
    }

    fn reach(&self) -> Vec<Pattern> {
        vec![Pattern::all()]
    }

    fn connect(&self, _: Start) -> BoxFuture<'_, Result<Box<dyn Connection>, SourceError>> {
        Box::pin(async { if *self.0.borrow() { Ok(Box::new(Held(self.0.clone())) as _) } else { Err(SourceError::missing("it is off")) } })
    }
}

struct Held(watch::Receiver<bool>);

impl Connection for Held {
    fn next<'a>(&'a mut self, _: &'a mut Vec<Item>, _: usize) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async {
            drop(self.0.wait_for(|on| !on).await);
            Err(SourceError::missing("it was switched off"))
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

struct Nowhere;

impl Intake for Nowhere {
    fn take<'a>(&'a self, items: &'a mut Vec<Item>) -> BoxFuture<'a, String> {
        items.clear();
        Box::pin(async { String::new() })
    }
}

struct Admin {
    router: Router,
    leaving: CancellationToken,
}

impl Admin {
    async fn get(&self, path: &str) -> (u16, Value) {
        let request = http::Request::get(path).header("host", "localhost").body(Body::empty()).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        (status, serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap())
    }

    async fn status(&self) -> (u16, String) {
        let (code, body) = self.get("/readyz").await;
        (code, body["status"].as_str().unwrap().to_owned())
    }

    async fn comes_to(&self, code: u16, status: &str) {
        let wanted = (code, status.to_owned());
        let waiting = async {
            while self.status().await != wanted {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(10), waiting).await.is_err() {
            assert_eq!(self.status().await, wanted);
        }
    }
}

/// An admin listener over a required and another source, with the tasks that drive them.
fn admin(on: [&watch::Receiver<bool>; 2]) -> (Admin, impl Future<Output = ()>) {
    let build = |name: &str, on: &watch::Receiver<bool>, required| {
        let adapter: Arc<dyn Adapter> = Arc::new(Switch(on.clone()));
        let handle = Arc::new(source::Handle::new(name.parse().unwrap(), &*adapter, required));
        let run = Supervisor { adapter, intake: Arc::new(Nowhere), handle: handle.clone(), warm_up: Start::Now, max_payload: 1 };
        (Source { handle, reach: vec![Pattern::all()] }, run.run(CancellationToken::new()))
    };
    let (first, second) = (build("main", on[0], true), build("side", on[1], false));
    let leaving = CancellationToken::new();
    let reading = SourceReading {
        name: "main".into(),
        messages: 3,
        bytes: 30,
        events: 3,
        dropped: 0,
        gaps: vec![(GapReason::Overflow, 1)],
        up: true,
        reconnects: 0,
        errors: vec![("lost", 2), ("denied", 1)],
        last_message: None,
        lag: None,
        behind: None,
        history_events: 0,
        history_bytes: 0,
        history_errors: Vec::new(),
        ready: Some(3),
        expires: [("certificate", None), ("token", Some(1_900_000_000))],
        passed: None,
        window_events: 2,
        window_bytes: 20,
    };
    let readings = Readings { sources: vec![reading], ..Readings::default() };
    let access = Arc::new(Access { token: None, certificates: false, loopback: true });
    let rooms = Rooms {
        access: Box::new(move || access.clone()),
        metrics: crate::metrics::unread(),
        sources: Box::new(move || vec![first.0.clone(), second.0.clone()]),
        readings: Arc::new(move || readings.clone()),
        leaving: leaving.clone(),
        reload: Arc::new(|_| Box::pin(async { None })),
        streams: crate::stream::tests::demo(1 << 20),
        tasks: TaskTracker::new(),
        refusals: Arc::new(Refusals::new(|_| {})),
        explain: Box::new(|_, _| Box::pin(async { Value::Null })),
        revoking: Revoking { revocations: Arc::default(), end: Box::new(|_| 0), wire: Box::new(|| None) },
    };
    let both = async {
        let ((), ()) = tokio::join!(first.1, second.1);
    };
    (Admin { router: router(rooms), leaving }, both)
}

#[tokio::test]
async fn readiness_waits_for_what_is_required_and_is_never_lost_again() {
    let (main, main_on) = watch::channel(false);
    let (side, side_on) = watch::channel(false);
    let (admin, running) = admin([&main_on, &side_on]);
    let checks = async {
        assert_eq!(admin.status().await, (503, "starting".into()));
        side.send_replace(true);
        assert_eq!(admin.status().await, (503, "starting".into()));
        main.send_replace(true);
        admin.comes_to(200, "ready").await;
        side.send_replace(false);
        admin.comes_to(200, "degraded").await;
        side.send_replace(true);
        admin.comes_to(200, "ready").await;
        main.send_replace(false);
        admin.comes_to(200, "degraded").await;
        let (_, body) = admin.get("/readyz").await;
        assert_eq!((&body["sources"]["main"]["state"], &body["sources"]["main"]["required"]), (&json!("down"), &json!(true)));
        assert!(body["sources"]["main"]["error"].is_string() && body["sources"]["main"]["since"].is_string(), "{body}");
        assert_eq!(body["sources"]["main"]["kind"], json!("missing"), "{body}");
        let (_, body) = admin.get("/sources").await;
        let main = &body["sources"]["main"];
        assert_eq!((&main["kind"], &main["error_kind"]), (&json!("switch"), &json!("missing")), "{body}");
        admin.leaving.cancel();
        assert_eq!(admin.status().await, (503, "draining".into()));
        assert_eq!(admin.get("/livez").await.0, 200);
    };
    tokio::select! { () = running => panic!("a source has ended"), () = checks => {} }
}

#[tokio::test]
async fn sources_say_what_they_have_counted() {
    let (_main, on) = watch::channel(true);
    let (admin, _running) = admin([&on, &on]);
    let (status, body) = admin.get("/sources").await;
    assert_eq!(status, 200);
    let main = &body["sources"]["main"];
    assert_eq!((&main["kind"], &main["durable"], &main["subjects"]), (&json!("switch"), &json!(false), &json!([">"])));
    assert_eq!((&main["counters"]["messages"], &main["counters"]["gaps"]["overflow"]), (&json!(3), &json!(1)));
    assert_eq!(main["counters"]["errors"], json!(3));
    assert_eq!(main["window"], json!({ "events": 2, "bytes": 20 }));
}

#[tokio::test]
async fn the_admin_listener_is_read_only() {
    let (_main, on) = watch::channel(true);
    let (admin, _running) = admin([&on, &on]);
    let ask = |method: &str, path: &str| {
        let request = http::Request::builder().method(method).uri(path).header("host", "localhost").body(Body::empty()).unwrap();
        admin.router.clone().oneshot(request)
    };
    for path in ["/livez", "/metrics", "/sources"] {
        let get = ask("GET", path).await.unwrap();
        let head = ask("HEAD", path).await.unwrap();
        assert_eq!((get.status().as_u16(), head.status().as_u16()), (200, 200), "{path}");
        assert_eq!(get.headers()["content-type"], head.headers()["content-type"]);
        assert!(head.into_body().collect().await.unwrap().to_bytes().is_empty());
        let post = ask("POST", path).await.unwrap();
        assert_eq!((post.status().as_u16(), &post.headers()["allow"]), (405, &HeaderValue::from_static("GET, HEAD")));
    }
    assert_eq!(ask("GET", "/metrics").await.unwrap().headers()["content-type"], Format::Text.content_type());
    let lines = http::Request::get("/metrics").header("host", "localhost").header("accept", "text/plain;q=0.5");
    let lines = lines.header("accept", "application/openmetrics-text").body(Body::empty()).unwrap();
    let open = admin.router.clone().oneshot(lines).await.unwrap();
    assert_eq!(open.headers()["content-type"], Format::OpenMetrics.content_type(), "on several lines");
    assert_eq!(ask("GET", "/events").await.unwrap().status(), 404);
    let two = http::Request::post("/reload").header("host", "localhost").header("host", "evil.example").body(Body::empty()).unwrap();
    assert_eq!(admin.router.clone().oneshot(two).await.unwrap().status(), 400);
}
