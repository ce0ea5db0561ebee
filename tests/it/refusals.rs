//! What is refused: with which status, in which order, with which body.

use serde_json::{Value, json};

use crate::support::token::{forge, jwt, mint, mint_with, now};
use crate::support::{Bridge, Raw, Sse};

/// Tokens only, nothing anonymous.
fn closed() -> String {
    format!("auth:\n{}sources: {{ inbox: {{ http: {{ subjects: [\"demo.>\"] }}, max_payload: 1KiB }} }}\n", jwt())
}

async fn problem(answer: reqwest::Response, status: u16) -> Value {
    assert_eq!(answer.status(), status);
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let text = answer.text().await.unwrap();
    let body: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(body["status"], status);
    assert!(body["title"].is_string(), "{body}");
    body
}

#[tokio::test]
async fn bad_patterns_and_parameters_are_400_before_anything_else() {
    let bridge = Bridge::start(&closed()).await;
    let long = format!("a.{}", "b".repeat(300));
    let deep = vec!["a"; 17].join(".");
    for bad in ["a..b", ".a", "a.", "", "#", "a.#", "a.#.b", "a.>.b", "a*", "b.c>", "a b", "a\tb", "a\nb", "\u{7f}", &long, &deep] {
        let url = reqwest::Url::parse_with_params(&bridge.url("/events"), [("subject", bad)]).unwrap();
        // No token came either: 400 stands before 401.
        let body = problem(bridge.http.get(url.clone()).send().await.unwrap(), 400).await;
        assert!(body["detail"].is_string(), "{body}");
        // A stream that waiting can't mend is a status for a browser too.
        problem(bridge.http.get(url).header("Accept", "text/event-stream").send().await.unwrap(), 400).await;
    }
    let many = (0..65).map(|n| format!("subject=a{n}")).collect::<Vec<_>>().join("&");
    for query in [&many, "since=yesterday", "since=10", "since=-1m", "since=", "since=2024-13-01T00:00:00Z", "envelope=xml"] {
        problem(bridge.events(query).send().await.unwrap(), 400).await;
    }
    let enough = (0..64).map(|n| format!("subject=demo.s{n}")).collect::<Vec<_>>().join("&");
    let token = mint(json!({"subjects": ["demo.>"]}));
    assert_eq!(bridge.events(&enough).bearer_auth(&token).send().await.unwrap().status(), 200);
    for raw in ["subject=%ff", "subject=a%00b"] {
        let mut client = Raw::get(&bridge.address(), &format!("/events?{raw}")).await;
        assert_eq!(client.head().await.status, 400, "{raw}");
    }
}

#[tokio::test]
async fn without_a_good_token_it_is_401_with_a_code_that_says_no_more_than_the_client_may_know() {
    let bridge = Bridge::start(&closed()).await;
    let good = json!({"subjects": ["demo.>"], "exp": now() + 3600});
    let parts: Vec<String> = mint(good.clone()).split('.').map(str::to_owned).collect();
    let mut late = good.clone();
    late["nbf"] = json!(now() + 3600);
    let bad = [
        String::new(),
        "x".into(),
        "a.b.c".into(),
        format!("{}.{}.", parts[0], parts[1]),
        format!("{}.{}.{}", parts[0], parts[1], "A".repeat(parts[2].len())),
        format!("{}.{}", parts[0], parts[1]),
        forge(&json!({"alg": "none"}), &good, None),
        forge(&json!({"alg": "None", "typ": "JWT"}), &good, None),
        mint(late),
        forge(&json!({"alg": "HS256", "typ": "JWT"}), &json!({"subjects": ["demo.>"]}), Some(crate::support::token::SECRET)),
        // Expired, but of another's key.
        mint_with(&jsonwebtoken::Header::default(), "another secret of the tests, 32 bytes and more", json!({"exp": now() - 60})),
        mint(json!({"subjects": ["demo.>"], "exp": (now() + 60) * 1000})),
    ];
    let challenge = |answer: &reqwest::Response| answer.headers()["www-authenticate"].to_str().unwrap().to_owned();
    let code = async |request: reqwest::RequestBuilder, code: &str| {
        let answer = request.send().await.unwrap();
        let told = challenge(&answer);
        let body = problem(answer, 401).await;
        assert_eq!(body["code"], code, "{body}");
        (told, body.to_string())
    };
    for request in [
        bridge.events("subject=demo.%3E"),
        bridge.events("").header("Authorization", mint(good.clone())),
        bridge.events("").header("Authorization", "Basic YTpi"),
        bridge.http.post(bridge.url("/publish/demo.a")).header("Cookie", format!("brokercast={}", mint(good.clone()))).body("1"),
    ] {
        assert_eq!(code(request, "token_missing").await.0, r#"Bearer realm="brokercast""#);
    }
    let expired = mint(json!({"subjects": ["demo.>"], "exp": now() - 60}));
    let told = r#"Bearer realm="brokercast", error="invalid_token", error_description="token_expired""#;
    assert_eq!(code(bridge.events("").bearer_auth(&expired), "token_expired").await.0, told);
    assert_eq!(code(bridge.events("").header("Cookie", format!("brokercast={expired}")), "token_expired").await.0, told);
    let mut bodies = std::collections::BTreeSet::new();
    let told = r#"Bearer realm="brokercast", error="invalid_token", error_description="token_invalid""#;
    for token in &bad {
        let request = bridge.events("").header("Authorization", format!("Bearer {token}"));
        let (challenge, body) = code(request, "token_invalid").await;
        assert_eq!(challenge, told, "{token}");
        bodies.insert(body);
        let browser = bridge.events("").header("Accept", "text/event-stream").header("Cookie", format!("brokercast={token}x"));
        problem(browser.send().await.unwrap(), 401).await;
    }
    assert_eq!(bodies.len(), 1, "{bodies:?}");
}

#[tokio::test]
async fn pattern_beyond_the_grant_is_403_and_named() {
    let bridge = Bridge::start(&closed()).await;
    let token = mint(json!({"subjects": ["demo.mine.>", "demo.*.shared"]}));
    for covered in ["demo.mine.>", "demo.mine.a", "demo.mine.*", "demo.*.shared", "demo.x.shared"] {
        let answer = bridge.events_with(&[("subject", covered)]).bearer_auth(&token).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{covered}");
    }
    for beyond in [">", "demo.>", "demo.mine", "demo.*.*", "other"] {
        let query = [("subject", "demo.mine.a"), ("subject", beyond)];
        let answer = bridge.events_with(&query).bearer_auth(&token).send().await.unwrap();
        let body = problem(answer, 403).await;
        assert!(body["detail"].as_str().unwrap().contains(beyond), "{body}");
    }
    // A token that permits nothing at all.
    let nothing = bridge.events("").bearer_auth(mint(json!({"sub": "a"}))).send().await.unwrap();
    problem(nothing, 403).await;
}

#[tokio::test]
async fn paths_methods_and_bodies_that_do_not_fit_are_refused() {
    let bridge = Bridge::open().await;
    for path in ["/nothing", "/events/", "/publish", "/publish/", "/EVENTS", "/%00", "/events/../x"] {
        let mut raw = Raw::get(&bridge.address(), path).await;
        let head = raw.head().await;
        assert!([404, 405].contains(&head.status), "{path}: {head:?}");
        assert_eq!(head.header("content-type"), Some("application/problem+json"), "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "PATCH", "BREW"] {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let answer = bridge.http.request(method, bridge.url("/events")).send().await.unwrap();
        let allow = answer.headers()["allow"].to_str().unwrap().to_owned();
        assert!(["GET", "HEAD", "OPTIONS"].iter().all(|m| allow.contains(m)), "{allow}");
        problem(answer, 405).await;
    }
    let answer = bridge.get("/publish/demo.a").send().await.unwrap();
    assert!(answer.headers()["allow"].to_str().unwrap().contains("POST"));
    problem(answer, 405).await;
    // A GET with a body.
    let mut raw = Raw::connect(&bridge.address()).await;
    raw.send(format!("GET /events HTTP/1.1\r\nHost: {}\r\nContent-Length: 5\r\n\r\nhello", bridge.address())).await;
    assert_eq!(raw.head().await.status, 400);
    let mut raw = Raw::connect(&bridge.address()).await;
    raw.send(format!("GET /events HTTP/1.1\r\nHost: {}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", bridge.address()))
        .await;
    assert_eq!(raw.head().await.status, 400);
}

#[tokio::test]
async fn publishing_is_refused_where_it_must_be() {
    let bridge = Bridge::start(&closed()).await;
    let post = |subject: &str| bridge.http.post(bridge.url(&format!("/publish/{subject}")));
    let publisher = mint(json!({"publish": ["demo.in.>"], "subjects": ["demo.>"]}));
    problem(post("demo.in.a").body("1").send().await.unwrap(), 401).await;
    problem(post("demo.out").body("1").bearer_auth(&publisher).send().await.unwrap(), 403).await;
    problem(post("demo.in.a").body("1").bearer_auth(mint(json!({"subjects": ["demo.>"]}))).send().await.unwrap(), 403).await;
    for bad in ["demo..a", "demo.in.*", "demo.%20a", "demo.in.%3E", "demo.in.", "%FF"] {
        let answer = post(bad).body("1").bearer_auth(&publisher).send().await.unwrap();
        problem(answer, 400).await;
    }
    let anything = mint(json!({"publish": [">"]}));
    problem(post("elsewhere.a").body("1").bearer_auth(&anything).send().await.unwrap(), 404).await;
    assert_eq!(post("demo.in.a").body("x".repeat(1024)).bearer_auth(&publisher).send().await.unwrap().status(), 202);
    problem(post("demo.in.a").body("x".repeat(1025)).bearer_auth(&publisher).send().await.unwrap(), 413).await;
    // Announced too large: refused without reading; streamed too large: likewise.
    let mut raw = Raw::connect(&bridge.address()).await;
    let head = format!("POST /publish/demo.in.a HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {publisher}\r\n", bridge.address());
    raw.send(format!("{head}Content-Length: 99999999999\r\n\r\n")).await;
    assert_eq!(raw.head().await.status, 413);
    let mut raw = Raw::connect(&bridge.address()).await;
    raw.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n800\r\n{}\r\n", "x".repeat(0x800))).await;
    assert_eq!(raw.head().await.status, 413);
    let mut raw = Raw::connect(&bridge.address()).await;
    raw.send(format!("{head}Transfer-Encoding: gzip, chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n")).await;
    assert_eq!(raw.head().await.status, 415);
    let zipped = post("demo.in.a").header("Content-Encoding", "gzip").body("x").bearer_auth(&publisher).send().await.unwrap();
    problem(zipped, 415).await;
}

#[tokio::test]
async fn limits_of_head_and_token_are_kept_within_milliseconds() {
    let bridge = Bridge::start(&closed()).await;
    let start = std::time::Instant::now();
    let mut raw = Raw::connect(&bridge.address()).await;
    // The refusal may come before all was taken.
    raw.try_send(format!("GET /events HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(40_000))).await.ok();
    let answer = String::from_utf8_lossy(&raw.read_to_end().await).into_owned();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    let mut raw = Raw::connect(&bridge.address()).await;
    raw.try_send(format!("GET /events?subject={} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(100_000))).await.ok();
    let answer = String::from_utf8_lossy(&raw.read_to_end().await).into_owned();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    let token = mint(json!({"subjects": ["demo.>"], "filler": "x".repeat(9000)}));
    let answer = bridge.events("").bearer_auth(&token).send().await.unwrap();
    assert!([400, 401, 413, 431].contains(&answer.status().as_u16()), "{answer:?}");
    let mut raw = Raw::connect(&bridge.address()).await;
    raw.send("\0\u{1}\u{2} nonsense\r\n\r\n").await;
    let answer = String::from_utf8_lossy(&raw.read_to_end().await).into_owned();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(start.elapsed() < std::time::Duration::from_secs(5), "{:?}", start.elapsed());
    let mut sse = Sse::open(bridge.events("").bearer_auth(mint(json!({"subjects": ["demo.>"]})))).await;
    sse.id().await;
}

#[tokio::test]
async fn head_that_never_ends_loses_its_connection_in_time() {
    let config = format!("{}server: {{ limits: {{ header_timeout: 1s }} }}\n", closed());
    let bridge = Bridge::start(&config).await;
    let mut raw = Raw::connect(&bridge.address()).await;
    raw.send("GET /events HTTP/1.1\r\nHost: a\r\n").await;
    let mut silent = Raw::connect(&bridge.address()).await;
    let limit = std::time::Duration::from_secs(6);
    assert!(raw.end_within(limit).await.is_some(), "a head that never ends is waited for");
    assert!(silent.end_within(limit).await.is_some(), "a client that sends nothing is waited for");
}

#[tokio::test]
async fn a_slip_of_the_pen_names_the_parameter_that_is_meant() {
    let bridge = Bridge::open().await;
    for (query, right) in [
        ("subjects=demo.a", "subject"),
        ("SUBJECT=demo.a", "subject"),
        ("subject[]=demo.a", "subject"),
        ("subjct=demo.a", "subject"),
        ("subject=demo.a&Since=all", "since"),
        ("last-event-id=x", "last_event_id"),
        ("envelopes=json", "envelope"),
    ] {
        let body = problem(bridge.events(query).send().await.unwrap(), 400).await;
        assert_eq!(body["parameter"], right, "{body}");
        assert!(body["detail"].as_str().unwrap().contains(&format!("`{right}`")), "{body}");
    }
    for query in ["_=123", "t=1", "cachebust=x", "utm_source=y", "access_token=z", "topic=demo.a"] {
        assert_eq!(bridge.events(query).send().await.unwrap().status(), 200, "{query}");
    }
}

#[tokio::test]
async fn amqps_wildcard_is_refused_where_it_is_written_and_warned_of_in_a_token() {
    let bridge = Bridge::start(&closed()).await;
    let token = mint(json!({"subjects": ["demo.#", "demo.a"]}));
    let body = problem(bridge.events("subject=demo.%23").bearer_auth(&token).send().await.unwrap(), 400).await;
    assert!(body["detail"].as_str().unwrap().contains("`>`"), "{body}");
    assert_eq!(bridge.events("subject=demo.a").bearer_auth(&token).send().await.unwrap().status(), 200);
    assert_eq!(bridge.events("subject=demo.b").bearer_auth(&token).send().await.unwrap().status(), 403);
    bridge.log_with("wildcard of AMQP").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    for (config, key) in [
        ("auth: { anonymous: { subscribe: [\"orders.#\"] } }", "auth.anonymous.subscribe[0]"),
        ("auth: { grants: { subscribe: [\"{sub}.#\"] } }", "auth.grants.subscribe[0]"),
        ("routes: [ { match: { subject: \"orders.#\" }, drop: true } ]", "routes[0].match.subject"),
        ("sources: { s: { http: { subjects: [\"#\"] } } }", "sources.s.http.subjects[0]"),
    ] {
        std::fs::write(&file, format!("{config}\n")).unwrap();
        let output = crate::support::bridge::run(&["check", "--config", file.to_str().unwrap()]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(78) && said.contains(key) && said.contains("`>`"), "{config}: {said}");
    }
}
