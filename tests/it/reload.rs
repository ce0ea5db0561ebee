//! The configuration is read again while the bridge runs.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Bridge, eventually};

/// Without the watcher, so that only what the test asks for happens.
fn still(rest: &str) -> String {
    format!("reload: {{ watch: false }}\nauth: {{ anonymous: {{ subscribe: ['>'], publish: ['>'] }} }}\n{rest}")
}

async fn reload(bridge: &Bridge) -> (u16, Value) {
    let answer = bridge.http.post(bridge.admin_url("/reload")).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// Reloads with another configuration, all of which can be applied.
async fn apply(bridge: &Bridge, config: &str) {
    bridge.configure(config);
    assert_eq!(reload(bridge).await, (200, json!({ "applied": true, "needs_restart": [] })));
}

async fn publish_status(bridge: &Bridge, subject: &str) -> u16 {
    bridge.http.post(bridge.url(&format!("/publish/{subject}"))).body("1").send().await.unwrap().status().as_u16()
}

#[tokio::test]
async fn post_reload_applies_what_has_changed_and_names_what_needs_a_restart() {
    let first = still("sources: { a: { http: { subjects: [a.>] } }, b: { http: { subjects: [b.>] } } }");
    let bridge = Bridge::start(&first).await;
    let mut sse = bridge.subscribe("").await;
    let more = "\
sources: { a: { http: { subjects: [a.>] } }, c: { http: { subjects: [c.>], } } }
subscribers: { max: 2 }
server: { cors: { origins: ['https://app.example.com'] }, heartbeat: 14s }
log: { format: json }
";
    bridge.configure(&still(more));
    let (status, body) = reload(&bridge).await;
    assert_eq!((status, body), (200, json!({ "applied": true, "needs_restart": ["server.heartbeat", "log.format"] })));
    assert_eq!(bridge.metric("brokercast_config_in_sync", &[]).await, 0.0);
    // The stream goes on, follows the new source, and gets no gap.
    bridge.publish("c.1", "1").await;
    bridge.publish("a.1", "1").await;
    assert_eq!([sse.event().await.subject(), sse.event().await.subject()], ["c.1", "a.1"]);
    assert_eq!(publish_status(&bridge, "b.1").await, 404);
    assert_eq!(bridge.metric("brokercast_subscribers_max", &[]).await, 2.0);
    let answer = bridge.get("/").header("Origin", "https://app.example.com").send().await.unwrap();
    assert_eq!(answer.headers()["access-control-allow-origin"], "https://app.example.com");
    let _second = bridge.subscribe("").await;
    assert_eq!(bridge.events("").send().await.unwrap().status(), 503);

    apply(&bridge, &first).await;
    assert_eq!(bridge.metric("brokercast_config_in_sync", &[]).await, 1.0);
    assert_eq!(bridge.metric("brokercast_reloads_total", &["result=\"applied\""]).await, 2.0);
    assert_eq!(publish_status(&bridge, "b.1").await, 202);
    assert_eq!(sse.event().await.subject(), "b.1");
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_is_explained_as_check_does() {
    let good = still("sources: { a: { http: { subjects: [a.>] } } }");
    let bridge = Bridge::start(&good).await;
    let mut sse = bridge.subscribe("").await;
    let bad = still("sources: { a: { http: { subjects: [z.>] } }, b: { htp: {} } }\nserver: { heartbeat: often }");
    bridge.configure(&bad);
    let answer = bridge.http.post(bridge.admin_url("/reload")).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["content-type"]), (422, &"application/problem+json".parse().unwrap()));
    let body: Value = answer.json().await.unwrap();
    let problems = body["problems"].as_array().unwrap();
    let about = |key: &str| problems.iter().find(|problem| problem["key"] == key).unwrap_or_else(|| panic!("{key} in {body}"));
    assert_eq!(about("server.heartbeat")["line"], 4);
    assert!(about("server.heartbeat")["file"].as_str().unwrap().ends_with("config.yaml"));
    assert!(about("server.heartbeat")["message"].as_str().unwrap().starts_with("must be a duration"), "{body}");
    about("sources.b");
    // The log has the lines of `check`.
    let file = bridge.folder().join("config.yaml");
    let check = crate::support::bridge::run(&["check", "--config", file.to_str().unwrap()]);
    assert_eq!(check.status.code(), Some(78));
    let said = String::from_utf8(check.stderr).unwrap();
    let lines: Vec<_> = said.lines().filter(|line| line.starts_with("  ")).map(str::trim).collect();
    assert_eq!(lines.len(), problems.len(), "{said}");
    let log = eventually("the log to have all", async || {
        let log = bridge.log();
        (log.matches("configuration refused").count() == lines.len()).then_some(log)
    })
    .await;
    assert!(lines.iter().all(|line| log.contains(line)), "{log}\n{said}");
    assert_eq!(bridge.metric("brokercast_config_in_sync", &[]).await, 0.0);
    assert_eq!(bridge.metric("brokercast_reloads_total", &["result=\"refused\""]).await, 1.0);
    bridge.publish("a.1", "1").await;
    assert_eq!((sse.event().await.subject().as_str(), publish_status(&bridge, "z.1").await), ("a.1", 404));

    // A file in which nothing is yet is refused too, unlike at the start.
    bridge.configure("");
    let (status, body) = reload(&bridge).await;
    assert_eq!((status, &body["problems"][0]["message"]), (422, &json!("this configuration file is empty")));
    assert_eq!(bridge.http.get(bridge.admin_url("/reload")).send().await.unwrap().status(), 405);
    apply(&bridge, &good).await;
}

#[tokio::test]
async fn a_hangup_reloads_and_ends_nothing() {
    let bridge = Bridge::start(&still("sources: { a: { http: { subjects: [a.>] } } }")).await;
    let mut sse = bridge.subscribe("").await;
    bridge.configure(&still("sources: { a: { http: { subjects: [a.>] } }, b: { http: { subjects: [b.>] } } }"));
    bridge.signal(Signal::HUP);
    bridge.source_is("b", "up").await;
    bridge.publish("b.1", "1").await;
    assert_eq!(sse.event().await.subject(), "b.1");
}

#[tokio::test]
async fn changed_files_and_exchanged_links_are_noticed() {
    // As Kubernetes does: the file is a link into a folder, which is a link that is exchanged.
    let config = |name: &str| {
        format!("auth: {{ anonymous: {{ subscribe: ['>'] }} }}\nsources: {{ {name}: {{ http: {{ subjects: [{name}.>] }} }} }}")
    };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (version, name) in [("v1", "a"), ("v2", "b")] {
        std::fs::create_dir(at(version)).unwrap();
        std::fs::write(at(version).join("bridge.yaml"), config(name)).unwrap();
    }
    std::os::unix::fs::symlink("v1", at("..data")).unwrap();
    std::os::unix::fs::symlink("..data/bridge.yaml", at("bridge.yaml")).unwrap();
    let bridge = Bridge::bare().file(at("bridge.yaml")).start().await;
    bridge.source_is("a", "up").await;
    std::os::unix::fs::symlink("v2", at("..new")).unwrap();
    std::fs::rename(at("..new"), at("..data")).unwrap();
    bridge.source_is("b", "up").await;
    // A file that is written over, by way of nothing: what is empty is refused.
    std::fs::write(at("v2/bridge.yaml"), "").unwrap();
    eventually("the empty file to be refused", async || bridge.log().contains("this configuration file is empty").then_some(())).await;
    bridge.source_is("b", "up").await;
    // Another one is renamed over it.
    std::fs::write(at("v2/other"), config("c")).unwrap();
    std::fs::rename(at("v2/other"), at("v2/bridge.yaml")).unwrap();
    bridge.source_is("c", "up").await;
    assert_eq!(bridge.metric("brokercast_reloads_total", &["applied"]).await, 2.0);
}
