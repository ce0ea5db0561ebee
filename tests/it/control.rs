//! Revocations through a broker: one call reaches all replicas, and a log outlives them.

use serde_json::{Value, json};

use crate::support::bridge::run;
use crate::support::token::{jwt, mint};
use crate::support::{Bridge, Item, Nats, Rabbit, Raw, Sse, eventually};

const SUBJECT: &str = "control.revoked";

fn config(source: &str, rest: &str) -> String {
    format!("auth:\n{}  revocations: {{ source: bus, subject: {SUBJECT} }}\nsources: {{ bus: {{ {source} }} }}\n{rest}", jwt())
}

async fn ask(request: reqwest::RequestBuilder) -> (u16, Value) {
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default())
}

async fn revoke(bridge: &Bridge, order: Value) -> (u16, Value) {
    ask(bridge.http.post(bridge.admin_url("/revocations")).body(order.to_string())).await
}

async fn ids(bridge: &Bridge) -> Vec<String> {
    let (_, listed) = ask(bridge.http.get(bridge.admin_url("/revocations"))).await;
    listed["revocations"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
}

fn token(sub: &str) -> String {
    mint(json!({"sub": sub, "subjects": [">"]}))
}

async fn open(bridge: &Bridge, sub: &str) -> Sse {
    let mut sse = Sse::open(bridge.events("").bearer_auth(token(sub))).await;
    sse.id().await;
    sse
}

async fn status(bridge: &Bridge, sub: &str) -> u16 {
    bridge.events("").bearer_auth(token(sub)).send().await.unwrap().status().as_u16()
}

/// Its events until it ends, which has to be as revoked.
async fn is_ended_as_revoked(mut sse: Sse) -> Vec<String> {
    let items = sse.rest().await;
    let events: Vec<_> = items.iter().filter_map(|item| if let Item::Event(event) = item { Some(event) } else { None }).collect();
    assert_eq!(events.last().map(|last| (last.name.as_str(), last.reason())), Some(("brokercast.closing", "revoked".into())), "{items:?}");
    events.iter().filter(|event| !event.is_control()).map(|event| event.subject()).collect()
}

async fn follows(bridge: &Bridge, id: &str) {
    eventually("the other replica to know it", async || ids(bridge).await.iter().any(|known| known == id).then_some(())).await;
}

#[tokio::test]
async fn a_jetstream_log_takes_revocations_to_all_replicas_and_outlives_them() {
    let mut nats = Nats::start().await;
    let source = |name: &str| {
        let stream = format!("jetstream: {{ stream: {name}, create: {{ max_age: 2h }} }}");
        format!("nats: {{ servers: [\"{}\"], subjects: [\"control.>\", \"a.>\"], {stream} }}", nats.url())
    };
    let config = config(&source("BUS"), "window: { age: 1s }\n");
    let (mut one, mut two) = (Bridge::start(&config).await, Bridge::start(&config).await);
    let (here, there) = (open(&one, "ada").await, open(&two, "ada").await);
    nats.publish("a.b", "1").await;
    let (code, body) = revoke(&one, json!({"identity": "ada", "until": "1h"})).await;
    assert_eq!((code, &body["scope"], &body["ended"]), (201, &json!("durable"), &json!(1)), "{body}");
    let id = body["id"].as_str().unwrap();
    for sse in [here, there] {
        assert!(is_ended_as_revoked(sse).await.iter().all(|subject| subject == "a.b"));
    }
    follows(&two, id).await;
    assert_eq!([status(&one, "ada").await, status(&two, "ada").await, status(&two, "eve").await], [401, 401, 200]);
    // By hand, without an id and with nonsense before it; what a client sees is none of it, live or from the log.
    for message in ["nonsense", r#"{"identity":"eve","until":"1h","unknown":1}"#, r#"{"identity":"eve","until":"1h"}"#] {
        nats.publish(SUBJECT, message).await;
    }
    eventually("the message by hand", async || (status(&two, "eve").await == 401 && status(&one, "eve").await == 401).then_some(())).await;
    assert_eq!(ids(&one).await, ids(&two).await);
    assert_eq!(two.metric("brokercast_revocation_messages_total", &["refused"]).await, 2.0);
    let mut all = Sse::open(one.events("since=all").bearer_auth(token("bob"))).await;
    nats.publish("a.last", "2").await;
    let seen = [all.event().await.subject(), all.event().await.subject()];
    assert_eq!(seen, ["a.b", "a.last"]);
    // A later `until` than the log keeps what it is told.
    let (code, body) = revoke(&one, json!({"identity": "x", "until": "3h"})).await;
    assert!(code == 400 && body["detail"].as_str().unwrap().contains("2h"), "{body}");

    // Taken back there, gone here; and a replica that starts later reads what holds.
    assert_eq!(ask(two.http.delete(two.admin_url(&format!("/revocations/{id}")))).await.0, 204);
    eventually("it to be taken back here", async || (status(&one, "ada").await == 200).then_some(())).await;
    // As is what is said anew under its id with a time that is over.
    for (until, code) in [("1h", 401), ("2001-01-01T00:00:00Z", 200)] {
        nats.publish(SUBJECT, json!({"id": "z", "identity": "zoe", "until": until}).to_string()).await;
        eventually("it to count", async || (status(&one, "zoe").await == code).then_some(())).await;
    }
    two.restart().await;
    assert_eq!([status(&two, "ada").await, status(&two, "eve").await, status(&two, "zoe").await], [200, 401, 200]);
    assert_eq!(ids(&one).await, ids(&two).await);

    // Until the log is read, nobody can say what was revoked.
    nats.kill();
    two.launch();
    two.alive().await;
    let (code, body) = two.readyz().await;
    assert_eq!((code, &body["revocations"]), (503, &json!("loading")), "{body}");
    let mut sse = Sse::open(two.events("").bearer_auth(token("bob")).header("accept", "text/event-stream")).await;
    assert_eq!(sse.event().await.reason(), "unavailable");
    assert_eq!(status(&two, "eve").await, 503);
    let (code, body) = revoke(&one, json!({"identity": "mallory", "until": "1h"})).await;
    assert!(code == 503 && body["detail"].as_str().unwrap().contains("others may not get it") && body["id"].is_string(), "{body}");
    assert_eq!(status(&one, "mallory").await, 401);
    // Nor where a reload brings the key; but what is known stays so without it.
    let key = format!("  revocations: {{ source: bus, subject: {SUBJECT} }}\n");
    for (config, expected) in [(config.replace(&key, ""), [200, 200, 401]), (config.clone(), [503, 503, 503])] {
        one.configure(&config);
        assert_eq!(ask(one.http.post(one.admin_url("/reload"))).await.0, 200);
        assert_eq!([one.readyz().await.0, status(&one, "bob").await, status(&one, "mallory").await], expected);
    }
    nats.restart().await;
    for bridge in [&mut one, &mut two] {
        bridge.ready().await;
        assert_eq!([status(bridge, "eve").await, status(bridge, "ada").await], [401, 200]);
    }
}

#[tokio::test]
async fn a_revocation_reaches_the_others_while_this_process_drains() {
    let mut nats = Nats::start().await;
    let stream =
        format!("nats: {{ servers: [\"{}\"], subjects: [\"control.>\"], jetstream: {{ stream: BUS, create: true }} }}", nats.url());
    let sources = format!("{stream} }}, inbox: {{ http: {{ subjects: [in] }}");
    let config = config(&sources, "").replace("  revocations:", "  anonymous: { publish: [in] }\n  revocations:");
    let (mut one, two) = (Bridge::start(&config).await, Bridge::start(&config).await);
    // A request that does not end holds the drain.
    let mut stuck = Raw::connect(&one.address()).await;
    stuck.send(format!("POST /publish/in HTTP/1.1\r\nHost: {}\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n", one.address())).await;
    stuck.read_until("100 Continue").await;
    one.signal(rustix::process::Signal::TERM);
    eventually("it to drain", async || tokio::net::TcpStream::connect(one.address()).await.is_err().then_some(())).await;
    let (code, body) = revoke(&one, json!({"identity": "eve", "until": "1h"})).await;
    assert_eq!((code, &body["scope"]), (201, &json!("durable")), "{body}");
    let id = body["id"].as_str().unwrap();
    follows(&two, id).await;
    assert_eq!(status(&two, "eve").await, 401);
    drop(stuck);
    assert!(one.exit(crate::support::PATIENCE).await.success());
    // What the broker did not take can be taken back again.
    nats.kill();
    let delete = async || ask(two.http.delete(two.admin_url(&format!("/revocations/{id}")))).await.0;
    assert_eq!(delete().await, 503);
    nats.restart().await;
    assert_eq!(delete().await, 204);
    one.restart().await;
    assert_eq!([status(&one, "eve").await, status(&two, "eve").await], [200, 200]);
}

#[tokio::test]
async fn core_nats_reaches_those_who_are_connected_and_a_reload_follows() {
    let nats = Nats::start().await;
    let source = format!("nats: {{ servers: [\"{}\"], subjects: [\">\"] }}", nats.url());
    let config = config(&source, "");
    let (one, two) = (Bridge::start(&config).await, Bridge::start(&config).await);
    eventually("both to have subscribed", async || {
        nats.publish(SUBJECT, r#"{"id":"probe","identity":"nobody","until":"1h"}"#).await;
        (ids(&one).await.len() + ids(&two).await.len() == 2).then_some(())
    })
    .await;
    let (here, there) = (open(&one, "ada").await, open(&two, "ada").await);
    let (code, body) = revoke(&two, json!({"identity": "ada", "until": "1h"})).await;
    assert_eq!((code, &body["scope"]), (201, &json!("connected")), "{body}");
    for sse in [here, there] {
        assert_eq!(is_ended_as_revoked(sse).await, Vec::<String>::new());
    }
    // By a client that hangs up while the broker takes its time.
    nats.freeze();
    let mut hasty = Raw::connect(&two.admin_address()).await;
    let order = r#"{"identity":"bob","until":"1h"}"#;
    let head = format!("POST /revocations HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n", two.admin_address(), order.len());
    hasty.send(head + order).await;
    let hasty_id = eventually("it to hold here", async || ids(&two).await.into_iter().find(|id| id != "probe" && *id != body["id"])).await;
    drop(hasty);
    // By the time that others were answered, the bridge has seen the end of that connection.
    for _ in 0..10 {
        assert_eq!(status(&two, "bob").await, 401);
    }
    nats.thaw();
    follows(&one, &hasty_id).await;
    let mut watching = open(&one, "eve").await;
    nats.publish(SUBJECT, "nonsense").await;
    nats.publish("a.b", "1").await;
    assert_eq!(watching.event().await.subject(), "a.b");
    let told = ask(one.http.post(one.admin_url("/explain")).body(json!({"token": token("eve"), "subject": SUBJECT}).to_string())).await.1;
    assert_eq!((&told["seen"], &told["sources"][0]["routes"][0]["rule"]), (&json!(false), &json!("auth.revocations")), "{told}");
    // Without the key what was revoked stays so, and what comes is a message like any other.
    one.configure(&config.replace(&format!("  revocations: {{ source: bus, subject: {SUBJECT} }}\n"), ""));
    assert_eq!(ask(one.http.post(one.admin_url("/reload"))).await.0, 200);
    assert_eq!(status(&one, "ada").await, 401);
    let (code, body) = revoke(&one, json!({"identity": "carol", "until": "1h"})).await;
    assert_eq!((code, &body["scope"]), (201, &json!("process")), "{body}");
    nats.publish(SUBJECT, r#"{"id":"late","identity":"eve","until":"1h"}"#).await;
    assert_eq!(watching.event().await.subject(), SUBJECT);
    follows(&two, "late").await;
    assert_eq!([status(&one, "eve").await, status(&two, "eve").await, status(&two, "carol").await], [200, 401, 200]);
}

#[tokio::test]
async fn a_rabbitmq_stream_and_an_exchange_take_revocations() {
    let rabbit = Rabbit::start().await;
    let url = rabbit.url();
    let stream = "exchange: bus, queue: log, queue_type: stream, declare: true, max_age: 2h";
    for (keys, scope) in [(stream, "durable"), ("exchange: other", "connected")] {
        let config = config(&format!("amqp: {{ url: \"{url}\", {keys} }}"), "");
        let (one, mut two) = (Bridge::start(&config).await, Bridge::start(&config).await);
        let (code, body) = revoke(&one, json!({"identity": "first", "until": "1h"})).await;
        assert_eq!((code, &body["scope"]), (201, &json!(scope)), "{body}");
        // Whoever is connected by now.
        eventually("a revocation to reach the other replica", async || {
            revoke(&one, json!({"identity": "ada", "until": "1h"})).await;
            (status(&two, "ada").await == 401).then_some(())
        })
        .await;
        let mut watching = open(&two, "eve").await;
        assert_eq!(revoke(&two, json!({"identity": "bob", "until": "1h"})).await.0, 201);
        eventually("it to reach the first", async || (status(&one, "bob").await == 401).then_some(())).await;
        let client = rabbit.client().await;
        client.publish(if scope == "durable" { "bus" } else { "other" }, "a.b", b"1").await;
        assert_eq!(watching.event().await.subject(), "a.b");
        if scope == "durable" {
            // The stream is used as it is, so its own age counts and not that of the settings.
            two.configure(&config.replace("2h", "4h"));
            two.restart().await;
            assert_eq!([status(&two, "first").await, status(&two, "bob").await, status(&two, "eve").await], [401, 401, 200]);
            for bridge in [&one, &two] {
                let (code, body) = revoke(bridge, json!({"identity": "x", "until": "3h"})).await;
                assert!(code == 400 && body["detail"].as_str().unwrap().contains("at most 2h"), "{code} {body}");
            }
        } else {
            // The broker may have the message already: nobody is told that others do not get it.
            rabbit.ctl(&["set_vm_memory_high_watermark", "0.00001"]);
            let refused = eventually("a revocation to be blocked", async || {
                let (code, body) = revoke(&one, json!({"identity": "late", "until": "1h"})).await;
                (code == 503).then_some(body)
            });
            let detail = refused.await["detail"].as_str().unwrap().to_owned();
            assert!(detail.contains("because of an alarm") && detail.contains("may still take the message"), "{detail}");
            assert!(detail.contains("the revocation holds in this process, and others may not get it"), "{detail}");
            assert_eq!(status(&one, "late").await, 401);
        }
    }
}

#[test]
fn a_source_that_splits_or_reads_something_else_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    for (source, key) in [
        ("http: { subjects: ['control.>'] }", "auth.revocations.source"),
        ("ticker: { subject: control.revoked }", "auth.revocations.source"),
        ("amqp: { url: 'amqp://127.0.0.1', queue: jobs }", "auth.revocations.source"),
        ("nats: { servers: ['nats://127.0.0.1'], subjects: ['>'], queue_group: g }", "auth.revocations.source"),
        ("nats: { servers: ['nats://127.0.0.1'], kv: control }", "auth.revocations.source"),
        ("nats: { servers: ['nats://127.0.0.1'], subjects: ['orders.>'] }", "auth.revocations.subject"),
        ("amqp: { url: 'amqp://127.0.0.1', queue: log, queue_type: stream }", "auth.revocations.subject: must be `log`"),
    ] {
        std::fs::write(&file, config(source, "")).unwrap();
        let output = run(&["check", "--config", file.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(78) && said.contains(key), "{source}: {said}");
    }
}
