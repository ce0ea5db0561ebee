//! Traces, as a collector of the tests gets them by OTLP.

use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tokio::net::TcpListener;

use crate::support::{Bridge, Server, eventually};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{PARENT}-{flags}")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A collector that takes everything.
struct Collector {
    endpoint: String,
    got: Mutex<Vec<(String, ExportTraceServiceRequest)>>,
}

impl Collector {
    async fn start() -> Arc<Self> {
        let server = Server::bind().await;
        let collector = Arc::new(Self { endpoint: server.url.clone(), got: Mutex::default() });
        let own = collector.clone();
        server.serve(move |head, body| {
            own.got.lock().unwrap().push((head.to_lowercase(), ExportTraceServiceRequest::decode(&*body).unwrap()));
            let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
            std::future::ready(Some(answer.to_owned()))
        });
        collector
    }

    fn spans(&self) -> Vec<Span> {
        let got = self.got.lock().unwrap();
        let resources = got.iter().flat_map(|(_, export)| &export.resource_spans);
        resources.flat_map(|of| &of.scope_spans).flat_map(|of| of.spans.clone()).collect()
    }

    /// The first span of a name with this result.
    async fn span(&self, name: &str, result: &str) -> Span {
        let is = |span: &Span| span.name == name && attribute(&span.attributes, "brokercast.result") == result;
        eventually(&format!("the span {name} {result}"), async || self.spans().into_iter().find(is)).await
    }
}

/// An attribute's value as text.
fn attribute(all: &[KeyValue], name: &str) -> String {
    match all.iter().find(|one| one.key == name).and_then(|one| one.value.clone()) {
        Some(AnyValue { value: Some(Value::StringValue(text)) }) => text,
        Some(AnyValue { value: Some(Value::IntValue(number)) }) => number.to_string(),
        _ => String::new(),
    }
}

fn config(endpoint: &str) -> String {
    format!(
        "traces: {{ endpoint: '{endpoint}', headers: 'Authorization: Bearer s3cret', service_name: live, ratio: 0 }}\n\
         log: {{ format: text }}\nauth: {{ anonymous: {{ subscribe: ['>'], publish: ['demo.>'] }} }}\n\
         sources: {{ inbox: {{ http: {{ subjects: ['demo.>'] }} }} }}\n\
         routes: [{{ match: {{ source: inbox }}, headers: [traceparent] }}]\n"
    )
}

#[tokio::test]
async fn streams_publishes_and_reloads_are_spans_below_their_parents() {
    let collector = Collector::start().await;
    let mut bridge = Bridge::start(&config(&collector.endpoint)).await;
    let parent = traceparent("01");
    let mut sse = crate::support::Sse::open(bridge.events("subject=demo.>").header("traceparent", &parent)).await;
    sse.id().await;
    let refused = bridge.events("subject=a..b&access_token=in-the-query").header("traceparent", &parent).send().await.unwrap();
    assert_eq!(refused.status(), 400);
    let publish = |flags: &str| bridge.http.post(bridge.url("/publish/demo.a")).header("traceparent", traceparent(flags)).body("1");
    assert_eq!(publish("01").send().await.unwrap().status(), 202);
    let event = sse.event().await;
    let named = event.json()["headers"]["traceparent"].as_str().unwrap().to_owned();
    let other = bridge.http.post(bridge.url("/publish/other")).header("traceparent", &parent).body("1").send().await.unwrap();
    assert_eq!(other.status(), 403);
    let reload = bridge.http.post(bridge.admin_url("/reload")).header("traceparent", &parent).send().await.unwrap();
    assert_eq!(reload.status(), 200);
    for (name, result, kind, status) in [
        ("connect", "opened", 2, "200"),
        ("connect", "invalid", 2, "400"),
        ("publish", "accepted", 2, "202"),
        ("publish", "denied", 2, "403"),
        ("reload", "applied", 1, ""),
    ] {
        let span = collector.span(name, result).await;
        assert_eq!((hex(&span.trace_id).as_str(), hex(&span.parent_span_id).as_str(), span.kind), (TRACE, PARENT, kind), "{span:?}");
        assert_eq!(attribute(&span.attributes, "http.response.status_code"), status, "{span:?}");
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano, "{span:?}");
    }
    let accepted = collector.span("publish", "accepted").await;
    assert_eq!(named, format!("00-{TRACE}-{}-01", hex(&accepted.span_id)), "the event names the span of its publishing");
    assert_eq!(attribute(&accepted.attributes, "url.path"), "/publish/demo.a");
    assert_eq!(attribute(&accepted.attributes, "client.address"), "127.0.0.1");

    // Neither what its sender does not record, nor, with `ratio: 0`, what begins here.
    assert_eq!(publish("00").send().await.unwrap().status(), 202);
    assert!(sse.event().await.json()["headers"]["traceparent"].as_str().unwrap().ends_with("-00"));
    bridge.publish("demo.b", "1").await;
    // The last one is exported by the end.
    assert_eq!(publish("01").send().await.unwrap().status(), 202);
    assert!(bridge.terminate().await.success());
    let spans = collector.spans();
    assert_eq!(spans.iter().filter(|span| span.name == "publish").count(), 3, "{spans:?}");
    let got = collector.got.lock().unwrap();
    let (head, export) = &got[0];
    assert!(head.starts_with("post /v1/traces ") && head.contains("authorization: bearer s3cret"), "{head}");
    assert_eq!(attribute(&export.resource_spans[0].resource.as_ref().unwrap().attributes, "service.name"), "live");
    assert!(!format!("{spans:?}").contains("in-the-query"), "{spans:?}");
    assert!(!bridge.log().contains("s3cret"), "{}", bridge.log());
}

#[tokio::test]
async fn a_collector_that_is_away_is_logged_and_a_reload_takes_another() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", gone.local_addr().unwrap());
    drop(gone);
    let collector = Collector::start().await;
    let mut bridge = Bridge::start(&config(&endpoint)).await;
    let publish = || bridge.http.post(bridge.url("/publish/demo.a")).header("traceparent", traceparent("01")).body("1").send();
    assert_eq!(publish().await.unwrap().status(), 202);
    let warned = |log: &str| log.matches("traces cannot be exported").count();
    eventually("a warning", async || (warned(&bridge.log()) > 0).then_some(())).await;
    for _ in 0..3000 {
        assert_eq!(publish().await.unwrap().status(), 202);
    }
    assert_eq!(warned(&bridge.log()), 1, "{}", bridge.log());
    bridge.configure(&config(&collector.endpoint));
    assert_eq!(bridge.http.post(bridge.admin_url("/reload")).send().await.unwrap().status(), 200);
    assert_eq!(publish().await.unwrap().status(), 202);
    collector.span("publish", "accepted").await;
    bridge.configure(&config(&endpoint));
    assert_eq!(bridge.http.post(bridge.admin_url("/reload")).send().await.unwrap().status(), 200);
    assert_eq!(publish().await.unwrap().status(), 202);
    assert!(bridge.terminate().await.success(), "a collector that is away does not hold up the end");
}
