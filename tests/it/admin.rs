//! The admin listener: readiness, metrics, sources.

use serde_json::Value;

use crate::support::bridge::OPEN;
use crate::support::{Bridge, Nats, eventually};

#[tokio::test]
async fn readiness_waits_for_required_sources_and_then_only_degrades() {
    let mut nats = Nats::absent("");
    let config = format!(
        r#"
auth: {{ anonymous: {{ subscribe: [">"], publish: [">"] }} }}
sources:
  inbox: {{ http: {{ subjects: ["demo.>"] }} }}
  chat: {{ nats: {{ servers: ["{}"], subjects: ["chat.>"] }} }}
"#,
        nats.url()
    );
    let bridge = Bridge::builder(&config).spawn().await;
    let (status, body) = bridge.readyz().await;
    assert_eq!((status, body["status"].as_str()), (503, Some("starting")), "{body}");
    assert_eq!(body["sources"]["chat"]["required"], true);
    assert!(["connecting", "down"].contains(&body["sources"]["chat"]["state"].as_str().unwrap()), "{body}");
    bridge.source_is("inbox", "up").await;
    // The bridge serves all the while.
    let mut sse = bridge.subscribe("subject=demo.>").await;
    bridge.publish("demo.a", "1").await;
    sse.event().await;

    nats.restart().await;
    bridge.source_is("chat", "up").await;
    let (status, body) = bridge.readyz().await;
    assert_eq!((status, body["status"].as_str()), (200, Some("ready")), "{body}");

    nats.kill();
    let source = eventually("chat to be down", async || {
        let (_, body) = bridge.readyz().await;
        (body["sources"]["chat"]["state"] != "up").then(|| body["sources"]["chat"].clone())
    })
    .await;
    source["since"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let (status, body) = bridge.readyz().await;
    assert_eq!((status, body["status"].as_str()), (200, Some("degraded")), "{body}");
    eventually("the error to be told", async || {
        let (_, body) = bridge.readyz().await;
        body["sources"]["chat"]["error"].as_str().map(str::to_owned)
    })
    .await;
}

#[tokio::test]
async fn with_a_token_all_but_the_probes_ask_for_it_and_a_reload_exchanges_it() {
    let config = |token: &str| {
        format!(
            "reload: {{ watch: false }}\nadmin: {{ token: {token} }}\nauth: {{ anonymous: {{ subscribe: ['>'] }} }}\nsources: {{ a: {{ http: {{ subjects: [a] }} }} }}\n"
        )
    };
    let bridge = Bridge::start(&config("first")).await;
    let ask = async |method: reqwest::Method, path: &str, token: Option<&str>| {
        let request = bridge.http.request(method, bridge.admin_url(path));
        let request = token.into_iter().fold(request, |request, token| request.bearer_auth(token));
        request.send().await.unwrap().status().as_u16()
    };
    use reqwest::Method;
    for path in ["/livez", "/readyz"] {
        assert_eq!(ask(Method::GET, path, None).await, 200, "{path}");
    }
    for path in ["/metrics", "/sources", "/nonsense"] {
        assert_eq!(ask(Method::GET, path, None).await, 401, "{path}");
    }
    assert_eq!(ask(Method::POST, "/reload", Some("second")).await, 401);
    assert_eq!(ask(Method::GET, "/metrics", Some("first")).await, 200);
    bridge.configure(&config("second"));
    assert_eq!(ask(Method::POST, "/reload", Some("first")).await, 200);
    assert_eq!([ask(Method::GET, "/metrics", Some("first")).await, ask(Method::GET, "/metrics", Some("second")).await], [401, 200]);
    assert!(!bridge.process().output().contains("second"), "the log holds a token");
}

#[tokio::test]
async fn no_web_page_reaches_the_admin_listener() {
    let bridge = Bridge::start(OPEN).await;
    let page = bridge.http.get(bridge.admin_url("/metrics")).header("Origin", "http://localhost:8081");
    assert_eq!(page.send().await.unwrap().status(), 403);
    let rebound = bridge.http.post(bridge.admin_url("/reload")).header("Host", "evil.example");
    let answer = rebound.send().await.unwrap();
    assert_eq!(answer.status(), 403);
    assert!(answer.text().await.unwrap().contains("admin.token_file"));
}

#[tokio::test]
async fn source_that_is_not_required_is_not_waited_for() {
    let nats = Nats::absent("");
    let config = format!(
        r#"
auth: {{ anonymous: {{ subscribe: [">"], publish: [">"] }} }}
sources:
  inbox: {{ http: {{ subjects: ["demo.>"] }} }}
  chat: {{ required: false, nats: {{ servers: ["{}"], subjects: ["chat.>"] }} }}
"#,
        nats.url()
    );
    let bridge = Bridge::builder(&config).start().await;
    let (_, body) = bridge.readyz().await;
    assert_eq!(body["sources"]["chat"]["required"], false);
    assert_ne!(body["sources"]["chat"]["state"], "up");
}

#[tokio::test]
async fn metrics_are_prometheus_text_and_count_what_happened() {
    let bridge = Bridge::open().await;
    let mut sse = bridge.subscribe("").await;
    bridge.publish_numbers("demo.a", 0..5).await;
    sse.events(5).await;
    bridge.events("subject=a..b").send().await.unwrap();
    let answer = bridge.http.get(bridge.admin_url("/metrics")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
    assert!(kind.starts_with("application/openmetrics-text") || kind.starts_with("text/plain"), "{kind}");
    let text = answer.text().await.unwrap();
    let (mut types, mut series) = (std::collections::HashMap::new(), std::collections::HashSet::new());
    for line in text.lines().filter(|l| !l.is_empty()) {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice");
            continue;
        }
        if line.starts_with('#') {
            continue;
        }
        let (key, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
        value.parse::<f64>().unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(series.insert(key.to_owned()), "{key} twice");
        let name = key.split('{').next().unwrap();
        assert!(name.starts_with("brokercast_") || name.starts_with("process_"), "{name}");
        assert!(types.keys().any(|t| name.starts_with(t.as_str())), "no type for {name}");
        // No subject, path or token is ever a label.
        assert!(!line.contains("demo."), "{line}");
    }
    if kind.starts_with("application/openmetrics-text") {
        assert!(text.ends_with("# EOF\n"));
    }
    assert_eq!(bridge.metric("brokercast_subscribers", &[]).await, 1.0, "{text}");
    assert!(text.contains("source=\"inbox\""), "{text}");
}

#[tokio::test]
async fn sources_are_listed_and_the_public_listener_has_no_admin_page() {
    let bridge = Bridge::open().await;
    let answer = bridge.http.get(bridge.admin_url("/sources")).send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/json");
    let body: Value = answer.json().await.unwrap();
    assert!(body.to_string().contains("inbox"), "{body}");
    assert_eq!(bridge.http.get(bridge.admin_url("/livez")).send().await.unwrap().status(), 200);
    for path in ["/metrics", "/readyz", "/livez", "/sources"] {
        assert_eq!(bridge.get(path).send().await.unwrap().status(), 404, "{path}");
        assert_eq!(bridge.http.post(bridge.admin_url(path)).send().await.unwrap().status(), 405, "{path}");
    }
    assert_eq!(bridge.http.get(bridge.admin_url("/events")).send().await.unwrap().status(), 404);
}

#[tokio::test]
async fn labels_never_grow_with_what_clients_send() {
    let bridge = Bridge::start(OPEN).await;
    let count = async || bridge.metrics().await.lines().filter(|l| !l.starts_with('#')).count();
    let visit = async |n: usize| {
        bridge.publish(&format!("demo.s{n}"), "1").await;
        bridge.get(&format!("/nothing-{n}")).send().await.unwrap();
        bridge.events(&format!("subject=x{n}..y")).send().await.unwrap();
        bridge.events("").bearer_auth(format!("t{n}")).send().await.unwrap();
    };
    visit(0).await;
    let before = count().await;
    for n in 1..20 {
        visit(n).await;
    }
    assert_eq!(count().await, before);
}
