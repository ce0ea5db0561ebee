//! The configuration is read again while the bridge runs.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::certs::Certs;
use crate::support::sse::Parser;
use crate::support::{Bridge, Item, Nats, Raw, Sse, eventually};

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
log: { format: json, filter: debug }
window: { bytes: 2MiB }
";
    let certs = Certs::new();
    let [certificate, key, ca] = ["server.crt", "server.key", "ca.crt"].map(|name| certs.path(name).display().to_string());
    let tls = format!("admin: {{ tls: {{ certificate: {certificate}, private_key: {key}, client_ca: {ca} }} }}\n");
    bridge.configure(&still(&(tls + more)));
    let (status, body) = reload(&bridge).await;
    assert_eq!((status, body), (200, json!({ "applied": true, "needs_restart": ["server.heartbeat", "admin.tls", "log.format"] })));
    assert_eq!(bridge.metric("brokercast_config_in_sync", &[]).await, 0.0);
    // The stream goes on, follows the new source, and gets no gap.
    bridge.publish("c.1", "1").await;
    bridge.publish("a.1", "1").await;
    assert_eq!([sse.event().await.subject(), sse.event().await.subject()], ["c.1", "a.1"]);
    assert_eq!(publish_status(&bridge, "b.1").await, 404);
    assert_eq!(bridge.metric("brokercast_subscribers_max", &[]).await, 2.0);
    let answer = bridge.get("/").header("Origin", "https://app.example.com").send().await.unwrap();
    assert_eq!(answer.headers()["access-control-allow-origin"], "https://app.example.com");
    assert!(bridge.log().contains("\"level\":\"DEBUG\""), "{}", bridge.log());
    let _second = bridge.subscribe("").await;
    assert_eq!(bridge.events("").send().await.unwrap().status(), 503);
    // No certificate is asked for by a listener that does not speak TLS yet.
    assert_eq!(bridge.http.get(bridge.admin_url("/streams")).send().await.unwrap().status(), 200);

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
    for nothing in ["", " \n", "# what comes first\n", "~\n", "\u{feff}"] {
        bridge.configure(nothing);
        let (status, body) = reload(&bridge).await;
        assert_eq!((status, &body["problems"][0]["message"]), (422, &json!("this configuration file is empty")), "{nothing:?}");
    }
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

#[tokio::test]
async fn changed_routes_lose_nothing_and_leak_nothing() {
    let config = |routes: &str| {
        still(&format!("sources: {{ a: {{ http: {{ subjects: [a.>] }} }}, b: {{ http: {{ subjects: [b.>] }} }} }}\nroutes: [{routes}]"))
    };
    let bridge = Bridge::start(&config("")).await;
    let mut sse = Sse::open(bridge.events("")).await;
    let start = sse.id().await;
    bridge.publish("a.secret", "1").await;
    bridge.publish("b.1", "1").await;
    let id = sse.events(2).await.pop().unwrap().id;
    apply(&bridge, &config("{ match: { subject: a.secret }, drop: true }, { match: { subject: 'a.*' }, subject: 'n.{1}' }")).await;
    bridge.publish("a.secret", "2").await;
    bridge.publish("a.1", "3").await;
    assert_eq!(sse.event().await.subject(), "n.1");
    // Who had all of the old window has lost nothing. Who had not gets a gap in its place. The other source is as it was.
    assert_eq!(bridge.resume("", &id).await.event().await.subject(), "n.1");
    let mut resumed = bridge.resume("", &start).await;
    let gap = resumed.event().await;
    assert_eq!((gap.reason().as_str(), &gap.json()["source"]), ("restart", &json!("a")));
    let mut all = Sse::open(bridge.events("since=all")).await;
    for sse in [&mut resumed, &mut all] {
        assert_eq!([sse.event().await.subject(), sse.event().await.subject()], ["b.1", "n.1"]);
    }
}

#[tokio::test]
async fn streams_follow_their_grants_and_end_with_them() {
    let config = |grants: &str, anonymous: &str| {
        let jwt = crate::support::token::jwt();
        format!(
            "reload: {{ watch: false }}\nauth:\n  anonymous: {{ subscribe: [{anonymous}], publish: ['>'] }}\n  grants: {{ subscribe: [{grants}] }}\n{jwt}\
             sources: {{ a: {{ http: {{ subjects: ['>'] }} }} }}"
        )
    };
    let bridge = Bridge::start(&config("'user.{sub}.>'", "'open.>'")).await;
    let token = crate::support::token::mint(json!({ "sub": "alice" }));
    let open = async |query: &str, token: Option<&str>| {
        let request = bridge.events(query);
        let mut sse = Sse::open(if let Some(token) = token { request.bearer_auth(token) } else { request }).await;
        sse.id().await;
        sse
    };
    let (mut anonymous, mut own) = (open("", None).await, open("", Some(&token)).await);
    let (mut named, mut other) = (open("subject=user.alice.>", Some(&token)).await, open("subject=open.1", Some(&token)).await);
    // Wider: those that named nothing get more, without a gap, and publishing goes on all the while.
    apply(&bridge, &config("'user.{sub}.>', 'team.>'", "'open.>', 'news.>'")).await;
    for subject in ["team.1", "news.1", "user.alice.1", "open.1"] {
        bridge.publish(subject, "1").await;
    }
    let subjects =
        async |sse: &mut Sse, count: usize| sse.events(count).await.iter().map(crate::support::sse::Event::subject).collect::<Vec<_>>();
    assert_eq!(subjects(&mut anonymous, 2).await, ["news.1", "open.1"]);
    assert_eq!(subjects(&mut own, 4).await, ["team.1", "news.1", "user.alice.1", "open.1"]);
    assert_eq!((subjects(&mut named, 1).await, subjects(&mut other, 1).await), (vec!["user.alice.1".into()], vec!["open.1".into()]));
    // Narrower: what is no longer covered ends, and nothing else.
    apply(&bridge, &config("'team.>'", "'open.>'")).await;
    for sse in [&mut anonymous, &mut own, &mut named] {
        let end = sse.event().await;
        assert_eq!((end.name.as_str(), end.reason().as_str()), ("brokercast.closing", "revoked"));
        assert_eq!(sse.next().await, None);
    }
    bridge.publish("open.1", "2").await;
    assert_eq!(subjects(&mut other, 1).await, ["open.1"]);
    assert_eq!(bridge.events("subject=user.alice.>").bearer_auth(&token).send().await.unwrap().status(), 403);
}

/// A configuration that differs from round to round: routes, a source's settings, a source that comes and goes, grants.
fn round(n: usize) -> String {
    let route = if n.is_multiple_of(2) { "" } else { "{ match: { source: a, subject: never }, drop: true }" };
    let payload = if n % 4 < 2 { "1MiB" } else { "2MiB" };
    let third = if n.is_multiple_of(3) { ", c: { http: { subjects: [c.>] } }" } else { "" };
    still(&format!(
        "sources: {{ a: {{ http: {{ subjects: [a.>, never] }} }}, b: {{ max_payload: {payload}, http: {{ subjects: [b.>] }} }}{third} }}\n\
         routes: [{route}]\nsubscribers: {{ max: {} }}",
        20_000 + n
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_streams_lose_nothing_over_twenty_reloads() {
    let bridge = std::sync::Arc::new(Bridge::start(&round(0)).await);
    let mut streams = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let mut sse = bridge.subscribe("subject=a.>&subject=b.>").await;
        streams.spawn(async move {
            // The numbers of each of the two sources, up to its last.
            let mut seen: [Vec<u64>; 2] = Default::default();
            while seen.iter().any(|numbers| numbers.last() != Some(&u64::MAX)) {
                let event = sse.event().await;
                assert!(!event.is_control(), "{event:?}");
                seen[usize::from(event.subject().starts_with('b'))].push(event.payload().as_u64().unwrap());
            }
            seen
        });
    }
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers = ["a.x", "b.x"].map(|subject| {
        let (bridge, stop) = (bridge.clone(), stop.clone());
        tokio::spawn(async move {
            let mut count = 0_u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                bridge.publish(subject, count.to_string()).await;
                count += 1;
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            bridge.publish(subject, u64::MAX.to_string()).await;
            count
        })
    });
    for n in 1..=20 {
        apply(&bridge, &round(n)).await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for (at, writer) in writers.into_iter().enumerate() {
        let count = writer.await.unwrap();
        assert!(count > 0);
        let expected: Vec<u64> = (0..count).chain([u64::MAX]).collect();
        // Each stream is looked at once for both writers.
        if at == 0 {
            continue;
        }
        while let Some(seen) = streams.join_next().await {
            let [a, b] = seen.unwrap();
            assert_eq!(b, expected);
            assert!(a.windows(2).all(|two| two[1] == two[0] + 1 || two[1] == u64::MAX) && a[0] == 0, "{a:?}");
        }
    }
    assert_eq!(bridge.metric("brokercast_source_gaps_total", &[]).await, 0.0);
}

#[tokio::test]
async fn a_storm_of_reloads_leaves_nothing_behind() {
    let bridge = Bridge::start(&round(0)).await;
    let mut sse = bridge.subscribe("subject=a.>&subject=b.>").await;
    let descriptors = || bridge.process().descriptors();
    let threads = || std::fs::read_dir(format!("/proc/{}/task", bridge.process().pid().as_raw_nonzero())).unwrap().count();
    for n in 1..20 {
        apply(&bridge, &round(n)).await;
    }
    let (open, memory) = (descriptors(), bridge.process().memory());
    for n in 20..=219 {
        apply(&bridge, &round(n)).await;
        if n.is_multiple_of(20) {
            bridge.publish("a.1", n.to_string()).await;
            bridge.publish("b.1", n.to_string()).await;
            assert_eq!(sse.payloads(2).await, [json!(n), json!(n)]);
        }
    }
    assert!(descriptors() <= open + 4, "{open} descriptors became {}", descriptors());
    assert!(threads() < 64, "{} threads", threads());
    let grown = bridge.process().memory().saturating_sub(memory);
    assert!(grown < 16 << 20, "memory grew by {grown} bytes");
    let sources: Value = bridge.http.get(bridge.admin_url("/sources")).send().await.unwrap().json().await.unwrap();
    assert_eq!(sources["sources"].as_object().unwrap().keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(bridge.metric("brokercast_channels", &[]).await, 1.0);
}

#[tokio::test]
async fn a_slow_reader_gets_of_old_routes_only_what_its_socket_holds() {
    let config = |routes: &str| still(&format!("sources: {{ a: {{ http: {{ subjects: [a.>] }} }} }}\nroutes: [{routes}]"));
    let bridge = Bridge::start(&config("")).await;
    let mut slow = Raw::connect_narrow(&bridge.address()).await;
    slow.send(format!("GET /events HTTP/1.1\r\nHost: {}\r\n\r\n", bridge.address())).await;
    slow.head().await;
    // Less than what a channel's log keeps.
    let count = 100;
    for _ in 0..count {
        bridge.publish("a.secret", format!("\"{}\"", "x".repeat(60_000))).await;
    }
    apply(&bridge, &config("{ match: { subject: a.secret }, drop: true }")).await;
    bridge.publish("a.end", "1").await;
    let (mut parser, mut seen, mut gaps) = (Parser::default(), 0, Vec::new());
    'reading: loop {
        let chunk = slow.chunk().await;
        assert!(!chunk.is_empty(), "the stream ended");
        parser.feed(&chunk);
        while let Some(item) = parser.items.pop_front() {
            match item {
                Item::Event(event) if event.is_control() => gaps.push(event.reason()),
                Item::Event(event) if event.subject() == "a.end" => break 'reading,
                Item::Event(_) => seen += 1,
                _ => {}
            }
        }
    }
    assert_eq!(gaps, ["restart"]);
    assert!(seen < count / 2, "{seen} events of {count}");
}

#[tokio::test]
async fn a_durable_source_is_read_again_through_the_new_routes() {
    let nats = Nats::start().await;
    let context = nats.stream("LOG", &["log.>"]).await;
    let publish = async |subject: &str| drop(context.publish(subject.to_owned(), "1".into()).await.unwrap().await.unwrap());
    let config = |routes: &str| {
        let jetstream = format!("{{ servers: ['{}'], subjects: [log.>], jetstream: {{ stream: LOG }} }}", nats.url());
        still(&format!("sources: {{ log: {{ nats: {jetstream} }} }}\nroutes: [{routes}]"))
    };
    let bridge = Bridge::start(&config("")).await;
    let mut sse = Sse::open(bridge.events("")).await;
    let start = sse.id().await;
    publish("log.secret").await;
    publish("log.1").await;
    assert_eq!([sse.event().await.subject(), sse.event().await.subject()], ["log.secret", "log.1"]);
    apply(&bridge, &config("{ match: { subject: log.secret }, drop: true }, { match: { subject: 'log.*' }, subject: 'n.{1}' }")).await;
    publish("log.2").await;
    // Who is live goes on, and who comes back reads the log anew: nobody gets a gap.
    assert_eq!(sse.event().await.subject(), "n.2");
    let mut resumed = bridge.resume("", &start).await;
    assert_eq!([resumed.event().await.subject(), resumed.event().await.subject()], ["n.1", "n.2"]);
    assert_eq!(bridge.metric("brokercast_source_reconnects_total", &[]).await, 0.0, "its connection stays");
}

#[tokio::test]
async fn a_log_that_came_back_or_took_another_name_tells_that_events_may_be_missing() {
    let nats = Nats::start().await;
    let context = nats.stream("LOG", &["log.>"]).await;
    let publish = async |subject: &str| drop(context.publish(subject.to_owned(), "1".into()).await.unwrap().await.unwrap());
    let config = |source: &str| still(&format!("sources: {{ other: {{ http: {{ subjects: [other.>] }} }}, {source} }}"));
    let nats_source =
        |name: &str, more: &str| config(&format!("{name}: {{ nats: {{ servers: ['{}'], subjects: [log.>]{more} }} }}", nats.url()));
    let log = |name: &str| nats_source(name, ", jetstream: { stream: LOG }");
    let bridge = Bridge::start(&nats_source("log", "")).await;
    let mut sse = Sse::open(bridge.events("")).await;
    let start = sse.id().await;
    publish("log.lost").await;
    assert_eq!(sse.event().await.subject(), "log.lost");
    // A source without a log becomes one with a log, is removed and comes back, and takes another name.
    for (n, (between, after, name)) in
        [(None, log("log"), "log"), (Some(config("")), log("log"), "log"), (None, log("renamed"), "renamed")].into_iter().enumerate()
    {
        if let Some(between) = between {
            apply(&bridge, &between).await;
        }
        publish("log.lost").await;
        apply(&bridge, &after).await;
        let gap = sse.event_where(crate::support::sse::Event::is_control).await;
        assert_eq!((gap.reason().as_str(), &gap.json()["source"]), ("unknown_cursor", &json!(name)));
        let event = format!("log.{n}");
        publish(&event).await;
        assert_eq!(sse.event().await.subject(), event);
        let mut resumed = bridge.resume("", &start).await;
        let gap = resumed.event().await;
        assert_eq!((gap.reason().as_str(), &gap.json()["source"]), ("unknown_cursor", &json!(name)));
    }
}

#[tokio::test]
async fn a_file_that_the_configuration_names_is_read_again_when_it_changes() {
    let config = |more: &str| {
        format!(
            "auth: {{ anonymous: {{ publish: ['>'] }}, jwt: {{ keys: [{{ algorithms: [HS256], secret_file: secret }}] }} }}\n\
             sources: {{ a: {{ http: {{ subjects: [a.>] }} }} }}\n{more}"
        )
    };
    let builder = Bridge::builder(&config(""));
    let secret = builder.folder().join("secret");
    std::fs::write(&secret, crate::support::token::SECRET).unwrap();
    let bridge = builder.start().await;
    let other = "another secret of the tests, which has 32 bytes too";
    let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
    let token = crate::support::token::mint_with(&header, other, json!({ "subjects": ["a.>"] }));
    let status = async || bridge.events("").bearer_auth(&token).send().await.unwrap().status().as_u16();
    assert_eq!(status().await, 401);
    std::fs::write(&secret, other).unwrap();
    eventually("the new key to be used", async || (status().await == 200).then_some(())).await;
    // What cannot be a key is refused, and the one before it stays.
    std::fs::write(&secret, "short").unwrap();
    eventually("the bad key to be refused", async || bridge.log().contains("configuration refused").then_some(())).await;
    assert_eq!(status().await, 200);
    // A file that comes later than the configuration that names it.
    bridge.configure(&config("").replace("secret_file: secret", "secret_file: later"));
    eventually("the missing key to be refused", async || bridge.log().contains("there is none of this name").then_some(())).await;
    std::fs::write(secret.with_file_name("later"), crate::support::token::SECRET).unwrap();
    eventually("the key that came later to be used", async || (status().await == 401).then_some(())).await;
}
