//! Core NATS, with real servers.

use std::time::Duration;

use async_nats::ConnectOptions;
use serde_json::json;

use crate::support::bridge::numbers;
use crate::support::certs::Certs;
use crate::support::proxy::Proxy;
use crate::support::{Bridge, Nats, Sse, eventually};

/// A bridge with one source `chat` of these settings.
fn config(nats: &str) -> String {
    format!(
        "auth: {{ anonymous: {{ subscribe: [\">\"], publish: [\">\"] }} }}\nserver: {{ heartbeat: 1s }}\nsources:\n  chat: {{ max_payload: 2KiB, nats: {{ {nats} }} }}\n"
    )
}

async fn publish_numbers(client: &async_nats::Client, subject: &str, numbers: impl IntoIterator<Item = u64>) {
    for n in numbers {
        client.publish(subject.to_owned(), format!("{{\"n\":{n}}}").into()).await.unwrap();
    }
    client.flush().await.unwrap();
}

#[tokio::test]
async fn several_subjects_with_wildcards_give_each_message_once_and_each_subject_in_order() {
    let nats = Nats::start().await;
    // Overlapping patterns: NATS itself would deliver twice.
    let settings = format!("servers: [\"{}\"], subjects: [\"chat.*\", \"chat.>\", \"news.eu.>\", \"chat.a\"]", nats.url());
    let bridge = Bridge::start(&config(&settings)).await;
    let mut sse = bridge.subscribe("").await;
    let client = nats.client().await;
    publish_numbers(&client, "elsewhere.a", [900]).await;
    publish_numbers(&client, "news.us.a", [901]).await;
    for n in 0..300 {
        let subject = ["chat.a", "chat.b.c", "news.eu.x"][n as usize % 3];
        publish_numbers(&client, subject, [n]).await;
    }
    let events = sse.events(300).await;
    // Order holds within a subject.
    let mut seen = numbers(&events);
    for part in 0..3 {
        let of_subject: Vec<_> = seen.iter().copied().filter(|n| n % 3 == part).collect();
        assert_eq!(of_subject, (0..300).filter(|n| n % 3 == part).collect::<Vec<_>>());
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..300).collect::<Vec<_>>());
    sse.stays_quiet(Duration::from_millis(300)).await;
    let second = numbers(&events).iter().position(|n| *n == 1).unwrap();
    assert_eq!(events[second].subject(), "chat.b.c");
}

#[tokio::test]
async fn payloads_of_any_bytes_pass_and_too_large_ones_are_a_gap() {
    let nats = Nats::start().await;
    let bridge = Bridge::start(&config(&format!("servers: [\"{}\"], subjects: [\">\"]", nats.url()))).await;
    let mut sse = bridge.subscribe("subject=a").await;
    nats.publish("a", vec![0xff, 0xfe]).await;
    assert_eq!(sse.event().await.json()["data_base64"], "//4=");
    nats.publish("a", "").await;
    assert_eq!(sse.event().await.payload(), json!(""));
    nats.publish("a", "x".repeat(2048)).await;
    assert_eq!(sse.event().await.payload().as_str().unwrap().len(), 2048);
    nats.publish("a", "x".repeat(2049)).await;
    nats.publish("a", "after").await;
    let gap = sse.event().await;
    assert_eq!((gap.name.as_str(), gap.reason().as_str()), ("brokercast.gap", "oversized"));
    assert_eq!(gap.json()["source"], "chat");
    assert_eq!(sse.event().await.payload(), json!("after"));
    // Resuming behind the gap does not tell it again; resuming before it does.
    let mut behind = bridge.resume("subject=a", &gap.id).await;
    assert_eq!(behind.event().await.payload(), json!("after"));
    // Names that NATS allows and that are no plain subjects.
    nats.publish("a%b", "1").await;
    let mut odd = Sse::open(bridge.events("since=all")).await;
    let event = odd.event_where(|e| !e.is_control() && e.subject() != "a").await;
    assert_eq!(event.subject(), "a%25b");
}

#[tokio::test]
async fn queue_group_shares_the_messages_between_bridges() {
    let nats = Nats::start().await;
    let settings = config(&format!("servers: [\"{}\"], subjects: [\"jobs.>\"], queue_group: bridges", nats.url()));
    let (one, two) = tokio::join!(Bridge::start(&settings), Bridge::start(&settings));
    let client = nats.client().await;
    publish_numbers(&client, "jobs.a", 0..200).await;
    let all = async |bridge: &Bridge| bridge.metric("brokercast_source_messages_total", &["chat"]).await;
    eventually("both to have all", async || (all(&one).await + all(&two).await >= 200.0).then_some(())).await;
    let (a, b) = (all(&one).await, all(&two).await);
    assert_eq!(a + b, 200.0);
    assert!(a > 20.0 && b > 20.0, "{a} and {b}");
}

#[tokio::test]
async fn user_token_and_nkey_open_the_door_and_wrong_ones_do_not() {
    let key = nkeys::KeyPair::new_user();
    let seed = key.seed().unwrap();
    let cases = [
        ("authorization { user: ada, password: \"s3cret pass\" }".to_owned(), "user: ada, password: \"s3cret pass\"".to_owned()),
        ("authorization { token: \"tok-123\" }".to_owned(), "token: tok-123".to_owned()),
        (format!("authorization {{ users: [ {{ nkey: {} }} ] }}", key.public_key()), format!("nkey: {seed}")),
    ];
    for (server, ours) in cases {
        let nats = Nats::with(&server).await;
        let settings = |extra: &str| config(&format!("servers: [\"{}\"], subjects: [\"chat.>\"], {extra}", nats.url()));
        let bridge = Bridge::start(&settings(&ours)).await;
        let mut sse = bridge.subscribe("").await;
        let options = match () {
            () if server.contains("ada") => ConnectOptions::with_user_and_password("ada".into(), "s3cret pass".into()),
            () if server.contains("tok-123") => ConnectOptions::with_token("tok-123".into()),
            () => ConnectOptions::with_nkey(seed.clone()),
        };
        publish_numbers(&nats.client_with(options).await, "chat.a", [5]).await;
        assert_eq!(numbers(&sse.events(1).await), [5]);

        let wrong = Bridge::builder(&settings("user: eve, password: wrong-secret")).spawn().await;
        let (status, _) = wrong.readyz().await;
        assert_eq!(status, 503);
        let error = eventually("the error to be told", async || {
            let (_, body) = wrong.readyz().await;
            let chat = &body["sources"]["chat"];
            chat["error"].as_str().map(|error| format!("{}: {error}", chat["kind"]))
        })
        .await;
        assert!(error.starts_with("\"denied\"") && error.to_lowercase().contains("auth"), "{error}");
        assert!(!wrong.log().contains("wrong-secret") && !error.contains("wrong-secret"));
        assert!(!bridge.log().contains(&seed) && !bridge.log().contains("s3cret") && !bridge.log().contains("tok-123"));
    }
}

#[tokio::test]
async fn client_library_is_heard_without_what_it_carries() {
    let nats = Nats::with("authorization { user: ada, password: \"s3cret pass\" }").await;
    let ours = format!("servers: [\"{}\"], subjects: [\"chat.>\"], user: ada, password: \"s3cret pass\"", nats.url());
    let bridge = Bridge::start(&(config(&ours) + "log: { filter: \"info,async_nats=trace\", format: json }\n")).await;
    let mut sse = bridge.subscribe("").await;
    let client = nats.client_with(ConnectOptions::with_user_and_password("ada".into(), "s3cret pass".into())).await;
    client.publish("chat.a", "\"a payload\"".into()).await.unwrap();
    client.flush().await.unwrap();
    assert_eq!(sse.event().await.payload(), "a payload");
    let log = bridge.log_with("async_nats").await;
    assert!(!log.contains("s3cret") && !log.contains("a payload"), "{log}");
}

#[tokio::test]
async fn subjects_that_a_stream_never_takes_are_told() {
    let nats = Nats::start().await;
    nats.stream("LOG", &["chat.eu.>"]).await;
    let ours = "subjects: [\"chat.>\", \"user.>\"], jetstream: { stream: LOG, create: true }";
    let bridge = Bridge::start(&config(&format!("servers: [\"{}\"], {ours}", nats.url()))).await;
    let log = bridge.log_with("nothing of it will come").await;
    let told: Vec<_> = log.lines().filter(|line| line.contains("nothing of it will come")).collect();
    assert!(matches!(told[..], [one] if one.contains("user.>") && one.contains("LOG") && one.contains("\"source\":\"chat\"")), "{log}");
}

#[tokio::test]
async fn warnings_of_missing_rights_name_the_source() {
    let rights = "\"$JS.API.STREAM.INFO.LOG\", \"$JS.API.CONSUMER.CREATE.LOG.>\", \"$JS.API.CONSUMER.MSG.NEXT.LOG.>\"";
    let few = format!("{{ user: few, password: p, permissions: {{ publish: [{rights}] }} }}");
    let nats = Nats::with(&format!("authorization {{ users: [ {{ user: admin, password: p }}, {few} ] }}")).await;
    let admin = nats.client_with(ConnectOptions::with_user_and_password("admin".into(), "p".into())).await;
    let jetstream = async_nats::jetstream::new(admin);
    let stream = async_nats::jetstream::stream::Config { name: "LOG".into(), subjects: vec!["chat.>".into()], ..Default::default() };
    jetstream.create_stream(stream).await.unwrap();
    jetstream.publish("chat.a", "1".into()).await.unwrap().await.unwrap();
    let ours =
        format!("servers: [\"{}\"], name: web, user: few, password: p, subjects: [\"chat.>\"], jetstream: {{ stream: LOG }}", nats.url());
    let bridge = Bridge::start(&(config(&ours) + "log: { format: json }\n")).await;
    let mut sse = Sse::open(bridge.events("since=all")).await;
    assert_eq!(sse.event().await.payload(), json!(1));
    let log = bridge.log_with("$JS.API.STREAM.MSG.GET.LOG").await;
    let lines = || log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    assert!(lines().any(|line| line["right"] == "$JS.API.STREAM.MSG.GET.LOG"), "{log}");
    assert!(lines().filter_map(|line| line.get("source").cloned()).all(|source| source == "chat"), "{log}");
}

#[tokio::test]
async fn tls_with_an_own_authority_and_a_client_certificate() {
    let certs = Certs::new();
    let file = |name: &str| certs.path(name).display().to_string();
    let (crt, key, ca) = (file("server.crt"), file("server.key"), file("ca.crt"));
    let nats = Nats::with(&format!("tls {{ cert_file: \"{crt}\", key_file: \"{key}\", ca_file: \"{ca}\", verify: true }}")).await;
    let url = nats.url();
    let good = format!(
        "servers: [\"{url}\"], subjects: [\"chat.>\"], tls: {{ ca: \"{ca}\", certificate: \"{}\", private_key: \"{}\" }}",
        file("client.crt"),
        file("client.key")
    );
    let bridge = Bridge::start(&config(&good)).await;
    let mut sse = bridge.subscribe("").await;
    let options = ConnectOptions::new()
        .require_tls(true)
        .add_root_certificates(certs.path("ca.crt"))
        .add_client_certificate(certs.path("client.crt"), certs.path("client.key"));
    publish_numbers(&nats.client_with(options).await, "chat.a", [1]).await;
    assert_eq!(numbers(&sse.events(1).await), [1]);
    // Without the authority, and without the certificate, nothing connects; and of what cannot be used the file is named.
    let other = Certs::new();
    std::fs::write(other.path("empty.crt"), "").unwrap();
    let (none, empty) = (other.path("none.crt"), other.path("empty.crt"));
    let (none, empty) = (none.display(), empty.display());
    let foreign_ca = other.path("ca.crt").display().to_string();
    for (tls, kind, said) in [
        (format!("ca: \"{foreign_ca}\""), "configuration", "certificate".to_owned()),
        (format!("ca: \"{ca}\""), "denied", "TLS failed".to_owned()),
        (format!("ca: \"{none}\""), "configuration", format!("cannot read `tls.ca` from `{none}`")),
        (format!("ca: \"{empty}\""), "configuration", format!("there is no certificate in `{empty}`")),
        (
            format!("ca: \"{ca}\", certificate: \"{crt}\", private_key: \"{}\"", file("client.key")),
            "configuration",
            "do not go together".to_owned(),
        ),
    ] {
        let bad = format!("servers: [\"{url}\"], subjects: [\"chat.>\"], tls: {{ {tls} }}");
        let bridge = Bridge::builder(&config(&bad)).spawn().await;
        let error = eventually("the error to be told", async || {
            let (status, body) = bridge.readyz().await;
            assert_eq!(status, 503);
            let chat = &body["sources"]["chat"];
            Some((chat["kind"].as_str()?.to_owned(), chat["error"].as_str()?.to_owned()))
        })
        .await;
        assert_eq!(error.0, kind, "{}", error.1);
        assert!(error.1.contains(&said), "{}", error.1);
    }
}

#[tokio::test]
async fn broker_that_comes_late_dies_and_comes_back_is_taken_up_and_the_gap_is_told_once() {
    let mut nats = Nats::absent("");
    let settings = format!("servers: [\"{}\"], subjects: [\"chat.>\"]", nats.url());
    let both = config(&settings) + "  inbox: { http: { subjects: [\"demo.>\"] } }\n";
    let bridge = Bridge::builder(&both).spawn().await;
    let mut chat = bridge.subscribe("subject=chat.>").await;
    let mut demo = bridge.subscribe("subject=demo.>").await;
    bridge.publish_numbers("demo.a", [1]).await;
    assert_eq!(numbers(&demo.events(1).await), [1]);
    nats.restart().await;
    bridge.source_is("chat", "up").await;
    nats.publish("chat.a", "{\"n\":1}").await;
    // Nothing is known to be lost before the first connection.
    let first = chat.event().await;
    assert_eq!(numbers(std::slice::from_ref(&first)), [1]);

    nats.kill();
    eventually("the loss to be noticed", async || (bridge.readyz().await.1["sources"]["chat"]["state"] != "up").then_some(())).await;
    nats.restart().await;
    bridge.source_is("chat", "up").await;
    nats.publish("chat.a", "{\"n\":2}").await;
    let gap = chat.event().await;
    assert_eq!((gap.name.as_str(), gap.reason().as_str()), ("brokercast.gap", "reconnect"));
    assert_eq!(gap.json()["source"], "chat");
    assert_eq!(numbers(&chat.events(1).await), [2]);
    // Who was away meets it where it stands; who stands behind it does not.
    let mut away = bridge.resume("subject=chat.>", &first.id).await;
    assert_eq!(away.event().await.reason(), "reconnect");
    assert_eq!(numbers(&away.events(1).await), [2]);
    let mut behind = bridge.resume("subject=chat.>", &gap.id).await;
    assert_eq!(numbers(&behind.events(1).await), [2]);
    // The other source's readers heard nothing of it.
    bridge.publish_numbers("demo.a", [2]).await;
    assert_eq!(numbers(&demo.events(1).await), [2]);
}

#[tokio::test]
async fn dead_peer_is_noticed_without_any_word_from_it() {
    let nats = Nats::start().await;
    let proxy = Proxy::start(nats.port());
    let settings = format!("servers: [\"nats://127.0.0.1:{}\"], subjects: [\"chat.>\"]", proxy.port());
    let bridge = Bridge::start(&config(&settings)).await;
    let start = std::time::Instant::now();
    proxy.set_silent(true);
    eventually("the silence to be noticed", async || (bridge.readyz().await.1["sources"]["chat"]["state"] != "up").then_some(())).await;
    assert!(start.elapsed() < Duration::from_secs(16), "{:?}", start.elapsed());
    proxy.set_silent(false);
    bridge.source_is("chat", "up").await;
    let mut sse = bridge.subscribe("").await;
    nats.publish("chat.a", "{\"n\":1}").await;
    assert_eq!(numbers(&sse.events(1).await), [1]);
}

#[tokio::test]
async fn connections_cut_in_the_middle_of_a_message_lose_nothing_undeclared() {
    let nats = Nats::start().await;
    let proxy = Proxy::start(nats.port());
    let settings = format!("servers: [\"nats://127.0.0.1:{}\"], subjects: [\"chat.>\"]", proxy.port());
    let bridge = Bridge::start(&config(&settings)).await;
    let mut sse = bridge.subscribe("").await;
    let client = nats.client().await;
    let mut n = 0;
    for bytes in [1, 17, 400] {
        proxy.cut_after(bytes);
        publish_numbers(&client, "chat.a", n..n + 50).await;
        n += 50;
        eventually("the cut to be noticed", async || {
            let cut = bridge.metric("brokercast_source_gaps_total", &["chat", "reconnect"]).await;
            (cut >= (n / 50) as f64).then_some(())
        })
        .await;
        bridge.source_is("chat", "up").await;
    }
    publish_numbers(&client, "chat.end", [n]).await;
    let mut expected = 0;
    let mut declared = 0;
    loop {
        let event = sse.event().await;
        if event.is_control() {
            assert_eq!(event.reason(), "reconnect");
            declared += 1;
            continue;
        }
        let got = numbers(std::slice::from_ref(&event))[0];
        assert!(got >= expected, "{got} after {expected}");
        assert!(got == expected || declared > 0, "an undeclared hole before {got}");
        expected = got + 1;
        if event.subject() == "chat.end" {
            break;
        }
    }
    assert_eq!(declared, 3);
}

#[tokio::test]
async fn one_dead_source_leaves_the_others_alone() {
    let nats = Nats::start().await;
    let settings = format!("servers: [\"{}\"], subjects: [\"chat.>\"]", nats.url());
    let absent = Nats::absent("");
    let config = config(&settings)
        + &format!("  dead: {{ nats: {{ servers: [\"{}\"], subjects: [\"dead.>\"] }} }}\n", absent.url())
        + "  lost: { nats: { servers: [\"nats://no-such-host.invalid:4222\"], subjects: [\"lost.>\"] } }\n";
    let bridge = Bridge::builder(&config).spawn().await;
    bridge.source_is("chat", "up").await;
    let mut sse = bridge.subscribe("").await;
    let client = nats.client().await;
    publish_numbers(&client, "chat.a", 0..100).await;
    assert_eq!(numbers(&sse.events(100).await), (0..100).collect::<Vec<_>>());
}
