//! TLS, HTTP/2, HTTP/1.0 and odd connections.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::support::bridge::OPEN;
use crate::support::certs::Certs;
use crate::support::process::Process;
use crate::support::{Bridge, Raw, Sse, eventually};

/// Reads a stream with curl for a while and returns what it printed.
fn curl(args: &[&str], url: &str) -> std::process::Child {
    Command::new("curl")
        .args(["-sSN", "--noproxy", "*", "-i", "-m", "30"])
        .args(args)
        .arg(url)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("curl; install it: apt-get install curl")
}

/// Publishes numbers until curl ends, which its `head` does once it has seen three events.
async fn read_with_curl(bridge: &Bridge, args: &[&str]) -> String {
    let url = bridge.url("/events?subject=demo.%3E");
    let child = curl(args, &url);
    eventually("curl to subscribe", async || (bridge.metric("brokercast_subscribers", &[]).await == 1.0).then_some(())).await;
    for n in 0..3 {
        bridge.publish("demo.a", format!("{{\"n\":{n}}}")).await;
    }
    // Nothing tells how far curl has read but the end of the stream: the bridge drains.
    bridge.signal(rustix::process::Signal::TERM);
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The line of `server` that has it speak TLS.
fn tls(certs: &Certs) -> String {
    let (certificate, key) = (certs.path("server.crt"), certs.path("server.key"));
    format!("tls: {{ certificate: \"{}\", private_key: \"{}\" }}", certificate.display(), key.display())
}

#[tokio::test]
async fn tls_speaks_http_2_and_http_1_by_alpn() {
    let certs = Certs::new();
    let config = format!("{OPEN}\nserver: {{ {} }}\n", tls(&certs));
    let ca = certs.path("ca.crt").display().to_string();
    for (flag, version) in [("--http2", "HTTP/2 200"), ("--http1.1", "HTTP/1.1 200 OK")] {
        let bridge = Bridge::builder(&config).tls(&certs.ca_pem).start().await;
        let printed = read_with_curl(&bridge, &[flag, "--cacert", &ca]).await;
        assert!(printed.starts_with(version), "{printed}");
        assert_eq!(printed.matches("\"n\":").count(), 3, "{printed}");
        assert!(printed.contains("content-type: text/event-stream"), "{printed}");
        assert!(printed.contains("brokercast.closing"), "{printed}");
    }
    // Plain text at a TLS port is refused, and hurts nobody.
    let bridge = Bridge::builder(&config).tls(&certs.ca_pem).start().await;
    let mut plain = Raw::get(&bridge.address(), "/events").await;
    let answer = plain.read_to_end().await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    let mut sse = Sse::open(bridge.events("")).await;
    sse.id().await;
    bridge.publish("demo.a", "1").await;
    assert_eq!(sse.event().await.payload(), json!(1));
    drop(sse);
    eventually("the slot to be freed", async || (bridge.metric("brokercast_subscribers", &[]).await == 0.0).then_some(())).await;
}

#[tokio::test]
async fn newer_certificate_is_served_without_a_restart_and_a_broken_one_is_not() {
    let (certs, renewed) = (Certs::new(), Certs::new());
    let bridge = Bridge::builder(&format!("{OPEN}\nserver: {{ {} }}\n", tls(&certs))).tls(&certs.ca_pem).start().await;
    let mut sse = Sse::open(bridge.events("")).await;
    sse.id().await;
    // Who trusts one authority only, and makes a new connection for each request.
    let trusting = |certs: &Certs| {
        let root = reqwest::Certificate::from_pem(certs.ca_pem.as_bytes()).unwrap();
        reqwest::Client::builder().no_proxy().tls_certs_only([root]).pool_max_idle_per_host(0).build().unwrap()
    };
    let (before, after) = (trusting(&certs), trusting(&renewed));
    let page = bridge.url("/");
    std::fs::write(certs.path("server.crt"), "no certificate").unwrap();
    eventually("a word in the log", async || bridge.log().contains("certificate cannot be read again").then_some(())).await;
    assert_eq!(before.get(&page).send().await.unwrap().status(), 200);
    assert!(after.get(&page).send().await.is_err());
    for name in ["server.key", "server.crt"] {
        std::fs::copy(renewed.path(name), certs.path(name)).unwrap();
    }
    eventually("the newer certificate", async || after.get(&page).send().await.ok()).await;
    assert!(before.get(&page).send().await.is_err());
    // What is open stays open.
    bridge.http.post(bridge.url("/publish/demo.a")).body("1").send().await.unwrap();
    assert_eq!(sse.event().await.payload(), json!(1));
}

#[tokio::test]
async fn patterns_may_be_typed_unescaped_in_every_request_of_a_connection() {
    let bridge = Bridge::open().await;
    let mut raw = Raw::connect(&bridge.address()).await;
    // As a proxy sends one client's request behind another's.
    for _ in 0..3 {
        raw.send(format!("GET /events?subject=a.>.b HTTP/1.1\r\nHost: {}\r\n\r\n", bridge.address())).await;
        let head = raw.head().await;
        assert!(raw.body(&head).await.contains("a.>.b"), "{head:?}");
    }
    raw.send(format!("GET /events?subject=demo.> HTTP/1.1\r\nHost: {}\r\n\r\n", bridge.address())).await;
    assert_eq!(raw.head().await.status, 200);
    raw.read_until("\n\n").await;
    bridge.publish("demo.a", "{\"n\":1}").await;
    raw.read_until("\"n\":1").await;
}

#[tokio::test]
async fn cleartext_http_2_works_with_prior_knowledge() {
    let bridge = Bridge::open().await;
    let printed = read_with_curl(&bridge, &["--http2-prior-knowledge"]).await;
    assert!(printed.starts_with("HTTP/2 200"), "{printed}");
    assert_eq!(printed.matches("\"n\":").count(), 3, "{printed}");
    assert!(printed.contains("\"draining\""), "{printed}");
}

#[tokio::test]
async fn reader_that_is_stuck_on_http_2_or_tls_is_closed_after_max_stall() {
    let certs = Certs::new();
    let server = format!("server: {{ {} }}\n", tls(&certs));
    let ca = certs.path("ca.crt").display().to_string();
    let pool = "subscribers: { max_stall: 2s }\n";
    for (flag, secure) in [("--http2-prior-knowledge", false), ("--http2", true), ("--http1.1", true)] {
        let config = format!("{OPEN}\n{pool}{}", if secure { server.as_str() } else { "" });
        let builder = Bridge::builder(&config);
        let bridge = if secure { builder.tls(&certs.ca_pem).start().await } else { builder.start().await };
        // Stopped, it reads nothing more and closes nothing.
        let mut command = Command::new("curl");
        command.args(["-sSN", "--noproxy", "*", flag, "--cacert", &ca, &bridge.url("/events")]);
        let stuck = Process::spawn("curl", &bridge.folder().join("curl"), "apt-get install curl", &mut command);
        eventually("curl to subscribe", async || (bridge.metric("brokercast_subscribers", &[]).await == 1.0).then_some(())).await;
        stuck.signal(rustix::process::Signal::STOP);
        let mut reader = bridge.subscribe("").await;
        // In turns: what one thread reads and decrypts is slower than what it publishes.
        for wave in (0..400_u64).step_by(50) {
            for n in wave..wave + 50 {
                bridge.publish("demo.a", format!("{{\"n\":{n},\"x\":\"{}\"}}", "x".repeat(64 * 1024))).await;
            }
            let events = reader.events(50).await;
            assert_eq!(crate::support::bridge::numbers(&events), (wave..wave + 50).collect::<Vec<_>>());
        }
        eventually(&format!("the stuck reader of {flag} to be closed"), async || {
            (bridge.metric("brokercast_subscribers", &[]).await == 1.0).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn http_1_0_gets_a_stream_without_chunks() {
    let bridge = Bridge::open().await;
    let mut raw = Raw::connect(&bridge.address()).await;
    raw.send(format!("GET /events HTTP/1.0\r\nHost: {}\r\n\r\n", bridge.address())).await;
    let head = raw.head().await;
    assert_eq!(head.status, 200);
    assert_eq!(head.header("transfer-encoding"), None);
    let opening = raw.read_until("\n\n").await;
    assert!(opening.starts_with(':'), "{opening:?}");
    bridge.publish("demo.a", "{\"n\":1}").await;
    let event = raw.read_until("\n\n").await;
    assert!(event.contains("\"n\":1"), "{event:?}");
    // Without a Host header too, as that version allows.
    let mut bare = Raw::connect(&bridge.address()).await;
    bare.send("GET /events HTTP/1.0\r\n\r\n").await;
    assert!([200, 400, 421].contains(&bare.head().await.status));
}

#[tokio::test]
async fn pipelined_request_behind_a_stream_hurts_nothing() {
    let bridge = Bridge::open().await;
    let mut raw = Raw::connect(&bridge.address()).await;
    let get = format!("GET /events HTTP/1.1\r\nHost: {}\r\n\r\n", bridge.address());
    raw.send(get.repeat(3)).await;
    assert_eq!(raw.head().await.status, 200);
    raw.read_until("\n\n").await;
    raw.read_until("\r\n").await;
    bridge.publish("demo.a", "{\"n\":1}").await;
    let text = String::from_utf8(raw.chunk().await).unwrap();
    assert!(text.contains("\"n\":1"), "{text:?}");
    assert_eq!(bridge.metric("brokercast_subscribers", &[]).await, 1.0);
    drop(raw);
    eventually("the slot to be freed", async || (bridge.metric("brokercast_subscribers", &[]).await == 0.0).then_some(())).await;
}

#[tokio::test]
async fn client_that_ends_its_sending_side_or_sends_rubbish_is_handled() {
    let bridge = Bridge::open().await;
    let mut raw = Raw::get(&bridge.address(), "/events").await;
    raw.head().await;
    raw.send("rubbish that is no request").await;
    raw.finish().await;
    // Whether it is ended at once or read on is not promised; that its slot comes back when it is gone is.
    drop(raw);
    eventually("the slot to be freed", async || (bridge.metric("brokercast_subscribers", &[]).await == 0.0).then_some(())).await;
    let mut keep_alive = Raw::connect(&bridge.address()).await;
    for _ in 0..3 {
        keep_alive.send(format!("GET /events?subject=a..b HTTP/1.1\r\nHost: {}\r\n\r\n", bridge.address())).await;
        let head = keep_alive.head().await;
        assert_eq!(head.status, 400);
        keep_alive.body(&head).await;
    }
    keep_alive.send(format!("GET /events HTTP/1.1\r\nHost: {}\r\n\r\n", bridge.address())).await;
    assert_eq!(keep_alive.head().await.status, 200);
}

#[tokio::test]
async fn tls_handshake_that_never_ends_loses_its_connection() {
    let certs = Certs::new();
    let config = format!("{OPEN}\nserver: {{ {}, limits: {{ handshake_timeout: 1s }} }}\n", tls(&certs));
    let bridge = Bridge::builder(&config).tls(&certs.ca_pem).start().await;
    let mut silent = Raw::connect(&bridge.address()).await;
    let mut half = Raw::connect(&bridge.address()).await;
    half.send([0x16, 0x03, 0x01, 0x02]).await;
    assert!(silent.end_within(Duration::from_secs(8)).await.is_some());
    assert!(half.end_within(Duration::from_secs(8)).await.is_some());
}
