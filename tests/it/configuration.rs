//! Configuration: the examples that come with the program, its layers, and what is refused at start.

use std::path::{Path, PathBuf};

use crate::support::bridge::{OPEN, command};
use crate::support::{Bridge, Nats, Rabbit};

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)
}

/// Starts with this configuration, which must be refused, and returns what it says.
fn refused(config: &str, env: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    std::fs::write(&path, config).unwrap();
    let output = command().arg("--config").arg(&path).envs(env.iter().copied()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{config}\n{said}");
    said
}

#[tokio::test]
async fn default_example_starts_as_it_stands() {
    let bridge = Bridge::bare().file(example("default.yaml")).start().await;
    let mut sse = bridge.subscribe("subject=clock.tick").await;
    sse.event().await;
    bridge.publish("demo.hello", "1").await;
}

#[tokio::test]
async fn nats_example_starts_and_streams() {
    let nats = Nats::start().await;
    let over =
        format!("sources:\n  chat: {{ nats: {{ servers: [\"{0}\"] }} }}\n  orders: {{ nats: {{ servers: [\"{0}\"] }} }}\n", nats.url());
    let builder = Bridge::bare().file(example("nats.yaml"));
    let path = builder.folder().join("over.yaml");
    std::fs::write(&path, over).unwrap();
    let bridge = builder.file(path).start().await;
    let mut sse = bridge.subscribe("").await;
    nats.publish("chat.lobby", "hello").await;
    assert_eq!(sse.event().await.subject(), "chat.lobby");
    nats.publish("orders.internal.a", "1").await;
    nats.publish("orders.eu.created", "2").await;
    let event = sse.event().await;
    assert_eq!((event.name.as_str(), event.subject().as_str()), ("order-created", "shop.eu.created"));
}

#[tokio::test]
async fn rabbitmq_and_compose_examples_start_and_stream() {
    let (rabbit, nats) = tokio::join!(Rabbit::start(), Nats::start());
    let client = rabbit.client().await;
    let url = rabbit.url();
    let over = format!(
        "sources:\n  news: {{ amqp: {{ url: \"{url}\" }} }}\n  trades: {{ amqp: {{ url: \"{url}\" }} }}\n  jobs: {{ amqp: {{ url: \"{url}\" }} }}\n"
    );
    let builder = Bridge::bare().file(example("rabbitmq.yaml"));
    let path = builder.folder().join("over.yaml");
    std::fs::write(&path, &over).unwrap();
    let bridge = builder.file(path).start().await;
    bridge.source_is("jobs", "up").await;
    let mut sse = bridge.subscribe("").await;
    client.publish("news", "news.eu", b"1").await;
    assert_eq!(sse.event_where(|e| !e.is_control()).await.subject(), "news.eu");
    client.publish("trades", "trades.xetra.sap", b"{\"price\": 201.3}").await;
    assert_eq!(sse.event().await.subject(), "trades.xetra.sap");
    client.publish("", "jobs.done", b"3").await;
    assert_eq!(sse.event().await.subject(), "jobs.done");
    drop(bridge);

    let over = over.lines().filter(|l| !l.contains("jobs")).collect::<Vec<_>>().join("\n");
    let over =
        format!("{over}\n  chat: {{ nats: {{ servers: [\"{0}\"] }} }}\n  orders: {{ nats: {{ servers: [\"{0}\"] }} }}\n", nats.url());
    let builder = Bridge::bare().file(example("compose.yaml"));
    let path = builder.folder().join("over.yaml");
    std::fs::write(&path, &over).unwrap();
    // What the image brings stands beside the example here.
    let pages = example("dashboards").display().to_string();
    let bridge = builder.file(path).env("BROKERCAST__SERVER__DASHBOARDS", pages).start().await;
    let mut sse = bridge.subscribe("subject=chat.>&subject=orders.>&subject=news.>&subject=demo.>").await;
    nats.publish("chat.lobby", "1").await;
    nats.publish("orders.a", "2").await;
    client.publish("news", "news.eu", b"3").await;
    bridge.publish("demo.a", "4").await;
    let mut subjects = Vec::new();
    while subjects.len() < 4 {
        subjects.extend(Some(sse.event().await).filter(|e| !e.is_control()).map(|e| e.subject()));
    }
    subjects.sort();
    assert_eq!(subjects, ["chat.lobby", "demo.a", "news.eu", "orders.a"]);
    let page = bridge.get("/dashboards/orders.html").send().await.unwrap();
    assert_eq!(page.status(), 200, "{page:?}");
}

#[test]
fn every_problem_is_told_at_once_with_its_place_and_path_and_no_value() {
    let said = refused(
        r#"
server: { listen: "nonsense-value", heartbeat: fast, unknown_key: 1 }
auth:
  jwt: { keys: [ { algorithms: [HS256], secret: "too-short-secret" } ] }
  anonymous: { subscribe: ["a..b"] }
window: { bytes: "lots-of-bytes" }
subscribers: { max: 0 }
sources:
  chat: { nats: { servers: ["ftp://pass-word-in-url@x"], subjects: [] } }
  bad name: { http: { subjects: ["a"] } }
  two: { http: { subjects: ["a"] }, ticker: { every: 1s, subject: t } }
  none: {}
routes:
  - { match: { source: nobody, subject: "a" } }
  - { match: { subject: "a" }, subject: "{7}" }
"#,
        &[],
    );
    for path in [
        "server.listen",
        "server.heartbeat",
        "server.unknown_key",
        "auth.jwt.keys[0].secret",
        "auth.anonymous.subscribe",
        "window.bytes",
        "subscribers.max",
        "sources.chat.nats.servers",
        "sources.chat.nats.subjects",
        "sources.two",
        "sources.none",
        "routes[0]",
        "routes[1]",
    ] {
        assert!(said.contains(path), "{path} in:\n{said}");
    }
    for value in ["nonsense-value", "too-short-secret", "lots-of-bytes", "pass-word-in-url"] {
        assert!(!said.contains(value), "{value} in:\n{said}");
    }
    assert!(said.lines().filter(|l| l.contains("config.yaml:")).count() >= 10, "places are missing:\n{said}");
}

#[test]
fn what_yaml_lets_slip_is_refused() {
    for (config, path) in [
        ("server: { heartbeat: 15s }\nserver: { retry: 3s }\n", "server"),
        ("sources: { a: { http: { subjects: [a] } }, a: { http: { subjects: [b] } } }", "a"),
        ("sources: { a: { http: { subjects: [\"a.>\"] } }, b: { http: { subjects: [\"a.b\"] } } }", "sources.b"),
        ("server: { cors: { origins: [\"*\"], credentials: true } }", "server.cors.credentials"),
        ("server: { drain: 15 }", "server.drain"),
        ("server: { dashboard: yes }", "server.dashboard"),
        ("a: [1, 2", ""),
        ("- a\n- b\n", ""),
    ] {
        let said = refused(config, &[]);
        assert!(said.contains(path), "{path} in: {said}");
    }
    let said = refused(OPEN, &[("BROKERCAST__SERVER__HEARTBEAT", "secret-nonsense"), ("BROKERCAST__WINDOW__AGE", "x")]);
    assert!(said.contains("server.heartbeat") && said.contains("window.age") && !said.contains("secret-nonsense"), "{said}");
}

#[test]
fn anonymous_access_beyond_loopback_needs_a_word() {
    let open = "auth: { anonymous: { subscribe: [\">\"] } }\nserver: { listen: \"0.0.0.0:0\" }\n";
    assert!(refused(open, &[]).contains("beyond_loopback"));
    let publishing = "auth: { anonymous: { publish: [\">\"] } }\nserver: { listen: \"[::]:0\" }\n";
    assert!(refused(publishing, &[]).contains("beyond_loopback"));
}

#[tokio::test]
async fn later_layers_win_maps_merge_lists_replace_and_null_removes() {
    let builder = Bridge::builder(
        r#"
auth: { anonymous: { subscribe: ["first.>", "second.>"], publish: [">"] } }
server: { heartbeat: 1s, retry: 30s }
sources:
  one: { http: { subjects: ["first.>"] } }
  two: { http: { subjects: ["second.>"] } }
"#,
    );
    let path = builder.folder().join("over.yaml");
    std::fs::write(&path, "auth: { anonymous: { subscribe: [\"first.>\"] } }\nsources: { two: null }\n").unwrap();
    let bridge = builder.file(path).env("BROKERCAST__SERVER__RETRY", "5s").start().await;
    let (_, body) = bridge.readyz().await;
    assert!(body["sources"].get("one").is_some() && body["sources"].get("two").is_none(), "{body}");
    assert_eq!(bridge.events("subject=second.a").send().await.unwrap().status(), 403);
    let mut sse = crate::support::Sse::open(bridge.events("subject=first.a")).await;
    loop {
        if let crate::support::Item::Retry(ms) = sse.next().await.unwrap() {
            assert!((2500..=10_000).contains(&ms), "{ms}");
            break;
        }
    }
}

#[tokio::test]
async fn secrets_come_from_files_and_from_the_environment_whatever_they_look_like() {
    let secret = "12345678901234567890123456789012";
    let config = "auth: { jwt: { leeway: 0s, keys: [ { algorithms: [HS256], secret_file: ./secret } ] } }\nsources: { a: { http: { subjects: [\">\"] } } }\n";
    let builder = Bridge::builder(config);
    std::fs::write(builder.folder().join("secret"), format!("{secret}\n")).unwrap();
    let bridge = builder.start().await;
    let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
    let token = crate::support::token::mint_with(&header, secret, serde_json::json!({"subjects": ["a"]}));
    assert_eq!(bridge.events("").bearer_auth(&token).send().await.unwrap().status(), 200);
}
