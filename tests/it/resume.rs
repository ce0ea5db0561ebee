//! Where a stream begins: `since`, cursors, the window, and gaps where it does not reach.

use serde_json::json;

use crate::support::bridge::{OPEN, numbers};
use crate::support::{Bridge, Sse, eventually};

#[tokio::test]
async fn since_says_where_a_stream_begins() {
    let bridge = Bridge::open().await;
    bridge.publish_numbers("demo.a", 0..3).await;
    // Times count to the millisecond, and a stream begins at the latest there: keep clear of both neighbours.
    let clear = async |than: i64| {
        eventually("the next millisecond", async || (jiff::Timestamp::now().as_millisecond() > than + 1).then_some(())).await
    };
    clear(jiff::Timestamp::now().as_millisecond()).await;
    let between = jiff::Timestamp::now();
    clear(between.as_millisecond()).await;
    bridge.publish_numbers("demo.b", 3..5).await;

    let mut all = Sse::open(bridge.events("since=all")).await;
    assert_eq!(numbers(&all.events(5).await), [0, 1, 2, 3, 4]);
    let mut minutes = Sse::open(bridge.events("since=10m")).await;
    assert_eq!(numbers(&minutes.events(5).await), [0, 1, 2, 3, 4]);
    let mut time = Sse::open(bridge.events(&format!("since={between}"))).await;
    assert_eq!(numbers(&time.events(2).await), [3, 4]);
    let mut last = Sse::open(bridge.events("since=last")).await;
    assert_eq!(numbers(&last.events(2).await), [2, 4]);
    let mut filtered = Sse::open(bridge.events("since=all&subject=demo.b")).await;
    assert_eq!(numbers(&filtered.events(2).await), [3, 4]);
    let mut now = bridge.subscribe("since=now").await;
    let mut plain = bridge.subscribe("").await;

    // All of them are live from there, without a seam.
    bridge.publish_numbers("demo.b", 5..7).await;
    for sse in [&mut all, &mut minutes, &mut time, &mut last, &mut filtered, &mut now, &mut plain] {
        assert_eq!(numbers(&sse.events(2).await), [5, 6]);
    }
}

#[tokio::test]
async fn header_beats_parameter_beats_since() {
    let bridge = Bridge::open().await;
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(bridge.publish("demo.a", format!("{{\"n\":{n}}}")).await);
    }
    let first = async |request: reqwest::RequestBuilder| numbers(&Sse::open(request).await.events(1).await)[0];
    assert_eq!(first(bridge.events("since=all")).await, 0);
    assert_eq!(first(bridge.events(&format!("since=all&last_event_id={}", ids[0]))).await, 1);
    assert_eq!(first(bridge.events(&format!("since=all&lastEventId={}", ids[1]))).await, 2);
    let both = bridge.events(&format!("since=all&last_event_id={}", ids[0])).header("Last-Event-ID", &ids[3]);
    assert_eq!(first(both).await, 4);
    let later = bridge.events(&format!("since=now&last_event_id={}", ids[2]));
    assert_eq!(first(later).await, 3);
}

#[tokio::test]
async fn every_id_resumes_exactly_behind_itself() {
    let bridge = Bridge::open().await;
    let mut sse = bridge.subscribe("subject=demo.even").await;
    let start = sse.last_id().to_owned();
    for n in 0..40 {
        bridge.publish(if n % 2 == 0 { "demo.even" } else { "demo.odd" }, format!("{{\"n\":{n}}}")).await;
    }
    let events = sse.events(20).await;
    let expected: Vec<u64> = (0..40).step_by(2).collect();
    assert_eq!(numbers(&events), expected);
    let mut ids = vec![start];
    ids.extend(events.iter().map(|e| e.id.clone()));
    for (n, id) in ids.iter().enumerate() {
        let mut again = bridge.resume("subject=demo.even", id).await;
        // What follows each id is what followed it the first time, ids included.
        let rest = again.events(20 - n).await;
        assert_eq!(numbers(&rest), expected[n..]);
    }
    // A wider filter from the same id gets what the narrow one had not asked for, from there on.
    let mut wider = bridge.resume("subject=demo.*", &events[9].id).await;
    assert_eq!(numbers(&wider.events(3).await), [19, 20, 21]);
}

#[tokio::test]
async fn clients_that_come_and_go_while_events_flow_get_each_exactly_once() {
    let bridge = Bridge::open().await;
    let count = 400;
    let writer = bridge.publish_numbers("demo.flow", 0..count);
    let reader = async {
        let mut seen = Vec::new();
        let mut id: Option<String> = None;
        while seen.len() < count as usize {
            let mut sse = match &id {
                None => Sse::open(bridge.events("since=all")).await,
                Some(id) => bridge.resume("", id).await,
            };
            for _ in 0..7.min(count as usize - seen.len()) {
                let event = sse.event().await;
                seen.extend(numbers(std::slice::from_ref(&event)));
                id = Some(event.id);
            }
        }
        seen
    };
    let ((), seen) = tokio::join!(writer, reader);
    assert_eq!(seen, (0..count).collect::<Vec<_>>());
}

#[tokio::test]
async fn restart_of_a_bridge_whose_source_has_no_log_is_told_once_as_a_gap() {
    let mut bridge = Bridge::start(
        r#"
auth: { anonymous: { subscribe: [">"], publish: [">"] } }
sources:
  inbox: { http: { subjects: ["demo.>"] } }
  other: { http: { subjects: ["other.>"] } }
"#,
    )
    .await;
    let id = bridge.publish("demo.a", "1").await;
    bridge.kill();
    bridge.restart().await;
    bridge.publish("demo.a", "2").await;
    bridge.publish("other.a", "3").await;

    let mut sse = bridge.resume("subject=demo.>", &id).await;
    let gap = sse.event().await;
    assert_eq!(gap.name, "brokercast.gap");
    let told = gap.json();
    assert_eq!((told["source"].as_str(), told["reason"].as_str()), (Some("inbox"), Some("restart")));
    assert_eq!(told.as_object().unwrap().keys().collect::<Vec<_>>(), ["from", "reason", "source", "to"]);
    assert_eq!(sse.event().await.payload(), json!(2));

    // Its id stands behind it: told once, and nothing that follows is lost.
    let mut again = bridge.resume("subject=demo.>", &gap.id).await;
    assert_eq!(again.event().await.payload(), json!(2));

    // Whoever could not see that source hears nothing of it; whoever sees both hears of both.
    let mut other = bridge.resume("subject=other.>", &id).await;
    let told = other.event().await.json();
    assert_eq!(told["source"], "other");
    let mut neither = bridge.resume("subject=elsewhere", &id).await;
    neither.stays_quiet(std::time::Duration::from_millis(300)).await;
    let mut both = bridge.resume("", &id).await;
    let events = both.events(4).await;
    let mut sources: Vec<_> = events.iter().filter(|e| e.is_control()).map(|e| e.json()["source"].as_str().unwrap().to_owned()).collect();
    sources.sort();
    assert_eq!(sources, ["inbox", "other"]);
}

#[tokio::test]
async fn what_the_window_dropped_is_a_retention_gap_then_all_that_is_left() {
    let bridge = Bridge::start(&format!("{OPEN}\nwindow: {{ bytes: 64KiB }}\n")).await;
    let filler = "x".repeat(2000);
    let mut ids = Vec::new();
    for n in 0..100 {
        ids.push(bridge.publish("demo.a", format!("{{\"n\":{n},\"filler\":\"{filler}\"}}")).await);
    }
    let mut sse = bridge.resume("", &ids[3]).await;
    let gap = sse.event().await;
    assert_eq!((gap.name.as_str(), gap.reason().as_str()), ("brokercast.gap", "retention"));
    assert_eq!(gap.json()["source"], "inbox");
    let first = numbers(&sse.events(1).await)[0];
    assert!(first > 4 && first < 99, "{first}");
    assert_eq!(numbers(&sse.events(99 - first as usize).await), (first + 1..100).collect::<Vec<_>>());

    let mut after = bridge.resume("", &gap.id).await;
    assert_eq!(numbers(&after.events(1).await), [first]);
    // Inside the window nothing is told.
    let mut inside = bridge.resume("", &ids[first as usize + 2]).await;
    assert_eq!(numbers(&inside.events(1).await), [first + 3]);
}

#[tokio::test]
async fn cursor_that_cannot_be_read_is_one_gap_of_all_sources_and_never_an_error() {
    let bridge = Bridge::open().await;
    let id = bridge.publish("demo.a", "1").await;
    let cut = id[..id.len() - 3].to_owned();
    let turned: String = id.chars().rev().collect();
    let long = "A".repeat(4000);
    for bad in ["x", "not a cursor", "%00%ff", "0", "🦀", &cut, &turned, &long, "{\"a\":1}", "-1"] {
        let query = reqwest::Url::parse_with_params("http://x", [("last_event_id", bad)]).unwrap();
        let mut sse = Sse::open(bridge.events(query.query().unwrap())).await;
        let gap = sse.event().await;
        assert_eq!((gap.name.as_str(), gap.reason().as_str()), ("brokercast.gap", "unknown_cursor"), "{bad}");
        assert_eq!(gap.json()["source"], "*");
        // The id it carries can be read.
        let mut again = bridge.resume("", &gap.id).await;
        bridge.publish("demo.a", "\"probe\"").await;
        loop {
            let event = again.event().await;
            assert!(!event.is_control(), "{event:?}");
            if event.payload() == json!("probe") {
                break;
            }
        }
    }
    for bad in [&b"\xff\xfe"[..], b"", b" "] {
        let request = bridge.events("").header("Last-Event-ID", reqwest::header::HeaderValue::from_bytes(bad).unwrap());
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200, "{bad:?}");
    }
}

#[tokio::test]
async fn empty_last_event_id_is_none() {
    let bridge = Bridge::open().await;
    bridge.publish("demo.a", "1").await;
    // A browser's EventSource sends none; some libraries send an empty one at first.
    let mut sse = Sse::open(bridge.events("since=all").header("Last-Event-ID", "")).await;
    assert_eq!(sse.event().await.payload(), json!(1));
}

#[tokio::test]
async fn envelope_parameter_wraps_every_event_alike() {
    let bridge = Bridge::start(
        r#"
auth: { anonymous: { subscribe: [">"], publish: [">"] } }
sources: { inbox: { http: { subjects: ["demo.>"] } } }
routes:
  - { match: { subject: "demo.raw" }, event: rawest, envelope: raw }
  - { match: { subject: "demo.cloud" }, event: "cloudy", envelope: cloudevents }
"#,
    )
    .await;
    let mut sse = bridge.subscribe("envelope=json").await;
    for (subject, event) in [("demo.raw", Some("rawest")), ("demo.cloud", Some("cloudy")), ("demo.plain", None)] {
        bridge.publish(subject, "{\"x\":1}").await;
        let got = sse.event().await;
        assert_eq!(got.name, "message");
        assert_eq!(got.subject(), subject);
        assert_eq!(got.json().get("event").and_then(|e| e.as_str()), event);
        assert_eq!(got.payload(), json!({"x": 1}));
    }
    let mut replayed = Sse::open(bridge.events("since=all&envelope=json")).await;
    assert_eq!(replayed.event().await.json()["event"], "rawest");
    let mut routed = Sse::open(bridge.events("since=all")).await;
    let first = routed.event().await;
    assert_eq!((first.name.as_str(), first.data.as_str()), ("rawest", "{\"x\":1}"));
    assert_eq!(bridge.events("envelope=other").send().await.unwrap().status(), 400);
}
