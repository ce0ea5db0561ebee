//! What the metrics say, held against what clients saw.

use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::support::bridge::OPEN;
use crate::support::certs::Certs;
use crate::support::{Bridge, Raw, Sse, eventually};

/// Feeds a text to `promtool`, and returns what it complains of.
pub fn promtool(arguments: &[&str], input: &str) -> String {
    let started = Command::new("promtool").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = started.unwrap_or_else(|e| panic!("promtool: {e}; Debian has it in the package `prometheus`"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() || !said.is_empty(), "promtool fails without a word");
    if output.status.success() { String::new() } else { said }
}

#[tokio::test]
async fn promtool_is_content_and_each_form_is_served_to_whom_accepts_it() {
    let certs = Certs::new();
    let config = format!(
        "{OPEN}\nserver: {{ tls: {{ certificate: {}, private_key: {} }} }}\n",
        certs.path("server.crt").display(),
        certs.path("server.key").display()
    );
    let bridge = Bridge::builder(&config).tls(&certs.ca_pem).start().await;
    let ask = async |accept: Option<&str>| {
        let request = bridge.http.get(bridge.admin_url("/metrics"));
        let request = accept.into_iter().fold(request, |request, accept| request.header("Accept", accept));
        let answer = request.send().await.unwrap();
        (answer.headers()["content-type"].to_str().unwrap().to_owned(), answer.text().await.unwrap())
    };
    for accept in [None, Some("*/*"), Some("text/plain"), Some("text/plain;version=0.0.4;q=0.5,*/*;q=0.1")] {
        let (kind, text) = ask(accept).await;
        assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8", "{accept:?}");
        assert!(!text.contains("# EOF") && text.contains("# TYPE brokercast_http_requests_total counter\n"), "{text}");
        assert_eq!(promtool(&["check", "metrics"], &text), "");
    }
    let (kind, text) = ask(Some("application/openmetrics-text;version=1.0.0,text/plain;q=0.5")).await;
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(text.ends_with("# EOF\n") && text.contains("# TYPE brokercast_http_requests counter\n"), "{text}");
    let expiry = bridge.metric("brokercast_certificate_expiry_timestamp_seconds", &["listener=\"public\""]).await;
    assert!(expiry > jiff::Timestamp::now().as_second() as f64, "{expiry}");
}

#[tokio::test]
async fn connections_deliveries_and_ends_are_those_that_clients_saw() {
    let bridge = Bridge::start(OPEN).await;
    let metric = async |name: &str, labels: &[&str]| bridge.metric(&format!("brokercast_{name}"), labels).await;
    let is = async |name: &str, labels: &[&str], wanted: f64| {
        let what = format!("{name} {labels:?} to be {wanted}");
        eventually(&what, async || (metric(name, labels).await == wanted).then_some(())).await;
    };
    let before = metric("connections", &[]).await;
    let mut streams = Vec::new();
    for _ in 0..5 {
        let mut raw = Raw::get(&bridge.address(), "/events?subject=demo.%3E").await;
        raw.head().await;
        raw.read_until("\n\n\r\n").await;
        streams.push(raw);
    }
    is("connections", &[], before + 5.0).await;
    is("subscribers", &[], 5.0).await;
    // Four streams over one connection.
    let http2 = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let mut multiplexed = Vec::new();
    for _ in 0..4 {
        let mut sse = Sse::open(http2.get(bridge.url("/events?subject=demo.%3E"))).await;
        sse.id().await;
        multiplexed.push(sse);
    }
    is("connections", &[], before + 6.0).await;
    let (http1, h2) = (["transport=\"http/1.1\""], ["transport=\"http/2\""]);
    let bytes_before = metric("delivered_bytes_total", &http1).await;
    // The publisher's own connection is one more, maybe.
    bridge.publish_numbers("demo.a", 0..7).await;
    let mut bytes = 0;
    for raw in &mut streams {
        bytes += raw.read_until("{\"n\":6}}\n\n\r\n").await.len();
    }
    for sse in &mut multiplexed {
        sse.events(7).await;
    }
    is("delivered_events_total", &http1, 35.0).await;
    is("delivered_events_total", &h2, 28.0).await;
    is("delivered_bytes_total", &http1, bytes_before + bytes as f64).await;
    assert!(metric("delivered_bytes_total", &h2).await > 28.0 * 50.0);
    // Seven events, in at most each loop's rounds and once for all of HTTP/2: never once for each subscriber.
    let loops = std::thread::available_parallelism().unwrap().get() as f64;
    for from in ["from=\"broker\"", "from=\"receipt\""] {
        let counted = metric("delivery_seconds_count", &[from]).await;
        assert!((14.0..=7.0 * (loops.min(5.0) + 1.0)).contains(&counted), "{counted} observations");
        assert_eq!(metric("delivery_seconds_bucket", &[from, "le=\"60.0\""]).await, counted);
    }
    let counted = metric("delivery_seconds_count", &[]).await;
    drop((streams, multiplexed, http2));
    is("subscribers", &[], 0.0).await;
    is("ended_subscribers_total", &["reason=\"client_gone\""], 9.0).await;
    is("stream_seconds_count", &[], 9.0).await;
    // Nobody wants this one.
    bridge.publish("demo.b", "1").await;
    assert_eq!(metric("delivery_seconds_count", &[]).await, counted);
    eventually("the connections to end", async || (metric("connections", &[]).await <= before + 1.0).then_some(())).await;
    let age = jiff::Timestamp::now().as_millisecond() as f64 / 1e3 - metric("source_last_message_timestamp_seconds", &["inbox"]).await;
    assert!((-1.0..60.0).contains(&age), "{age}");
    assert!(metric("window_max_bytes", &[]).await > 0.0 && metric("config_hash", &[]).await > 0.0);
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_counted_whatever_wrote_to_it() {
    let bridge =
        Bridge::start(&format!("{OPEN}\nsubscribers: {{ max_stall: 1s }}\nwindow: {{ bytes: 16MiB }}\nlog: {{ access: text }}\n")).await;
    let filler = format!("{{\"filler\":\"{}\"}}", "x".repeat(64 << 10));
    let http2 = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let mut open = Vec::new();
    // Written by a loop, by a task, and by hyper: HTTP/1.0, HTTP/2 whose socket is full, and HTTP/2 of which one stream is.
    for (n, way) in [(1.0, " HTTP/1.1"), (2.0, "since=all HTTP/1.1"), (3.0, " HTTP/1.0"), (4.0, "socket"), (5.0, "stream")] {
        if way == "stream" {
            open.push(Err(http2.get(bridge.url("/events")).send().await.unwrap()));
        } else {
            let mut raw = Raw::connect_narrow(&bridge.address()).await;
            if way == "socket" {
                raw.send(wide_http2_request(&bridge.address())).await;
            } else {
                raw.send(format!("GET /events?{way}\r\nHost: {}\r\n\r\n", bridge.address())).await;
                raw.head().await;
            }
            open.push(Ok(raw));
        }
        eventually("its stream to be open", async || (bridge.metric("brokercast_subscribers", &[]).await == 1.0).then_some(())).await;
        for _ in 0..200 {
            bridge.publish("demo.a", filler.clone()).await;
        }
        let stalls = async || (bridge.metric("brokercast_stalled_connections_total", &[]).await == n).then_some(());
        eventually("the stalled client to be counted", stalls).await;
        let slow = async || (bridge.metric("brokercast_ended_subscribers_total", &["reason=\"slow\""]).await == n).then_some(());
        eventually("its stream to be counted", slow).await;
    }
    assert_eq!(bridge.metric("brokercast_ended_subscribers_total", &["reason=\"client_gone\""]).await, 0.0);
    // A thread of its own writes the access log.
    let slow = async || (bridge.log().matches("reason=\"slow\"").count() == 5).then_some(());
    eventually("their lines in the access log", slow).await;
    assert!(!bridge.log().contains("reason=\"gone\""), "{}", bridge.log());
}

/// The bytes of a request for `/events` by HTTP/2, from a client whose windows are as large as they can be.
fn wide_http2_request(address: &str) -> Vec<u8> {
    let frame = |kind: u8, flags: u8, stream: u8, content: &[u8]| {
        [&[0, 0, u8::try_from(content.len()).unwrap(), kind, flags, 0, 0, 0, stream], content].concat()
    };
    let literal = |index: u8, value: &str| [&[index, u8::try_from(value.len()).unwrap()], value.as_bytes()].concat();
    // `:method: GET` and `:scheme: http` of HPACK's table, then `:path` and `:authority`.
    let head = [vec![0x82, 0x86], literal(0x04, "/events"), literal(0x01, address)].concat();
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(0x4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]),
        frame(0x8, 0, 0, &[0x7f, 0, 0, 0]),
        frame(0x1, 0x5, 1, &head),
    ]
    .concat()
}

#[tokio::test]
async fn refused_tokens_are_counted_by_reason() {
    let config = "auth: { jwt: { keys: [{ algorithms: [HS256], secret: 0123456789abcdef0123456789abcdef }] } }\n\
                  sources: { inbox: { http: { subjects: [a] } } }\n";
    let bridge = Bridge::start(config).await;
    assert_eq!(bridge.events("").send().await.unwrap().status(), 401);
    assert_eq!(bridge.events("").bearer_auth("no-token").send().await.unwrap().status(), 401);
    for (reason, count) in [("missing", 1.0), ("malformed", 1.0), ("expired", 0.0)] {
        let label = format!("reason=\"{reason}\"");
        assert_eq!(bridge.metric("brokercast_refused_tokens_total", &[&label]).await, count, "{reason}");
    }
}
