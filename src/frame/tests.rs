use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::event::{GapReason, Message, Timestamp};

fn event(payload: &[u8], envelope: Envelope, name: Option<&str>) -> Event {
    Event {
        name: name.map(Arc::from),
        envelope,
        ..Event::of(Message::new("orders.eu".parse().unwrap(), Bytes::copy_from_slice(payload), Timestamp::from_micros(1_000_000), None))
    }
}

const ORIGIN: Origin<'static> = Origin { source: "orders", epoch: 7, seq: 9 };

fn encode(event: &Event, form: Form) -> String {
    let mut out = Vec::new();
    body(&mut out, event, form, ORIGIN);
    String::from_utf8(out).unwrap()
}

/// What the standard makes of a stream: (event, data) of each dispatch.
fn parse(stream: &str) -> Vec<(String, String)> {
    let mut out = Vec::new();
    let (mut name, mut data) = (String::new(), String::new());
    for line in stream.replace("\r\n", "\n").split(['\n', '\r']) {
        if line.is_empty() {
            if !data.is_empty() {
                data.pop();
                out.push((std::mem::take(&mut name), std::mem::take(&mut data)));
            }
            name.clear();
            continue;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut name),
            "data" => {
                data.push_str(value);
                data.push('\n');
            }
            _ => {}
        }
    }
    out
}

#[test]
fn json_payloads_stand_verbatim_in_their_envelope() {
    let text = encode(&event(br#" {"a":1.50,"b":"\u00e4","a":2} "#, Envelope::Json, None), Form::Routed);
    assert_eq!(
        text,
        "data: {\"subject\":\"orders.eu\",\"time\":\"1970-01-01T00:00:01.000000Z\",\"data\":{\"a\":1.50,\"b\":\"\\u00e4\",\"a\":2}}\n\n"
    );
}

#[test]
fn printed_json_keeps_its_meaning_over_several_data_lines() {
    for ends in ["\n", "\r\n", "\r"] {
        let payload = format!("{{{ends}  \"a\": [1,{ends}2]{ends}}}");
        let got = parse(&encode(&event(payload.as_bytes(), Envelope::Json, None), Form::Routed));
        let value: serde_json::Value = serde_json::from_str(&got[0].1).unwrap();
        assert_eq!(value["data"], serde_json::json!({"a": [1, 2]}));
    }
}

#[test]
fn text_becomes_a_string_and_other_bytes_base64() {
    for (payload, key, expected) in [
        (&b""[..], "data", ""),
        (b"hello", "data", "hello"),
        (b"a\r\nb\0\"\\", "data", "a\r\nb\0\"\\"),
        (b"{broken", "data", "{broken"),
        (b"NaN", "data", "NaN"),
        (b"\xff\x00", "data_base64", "/wA="),
        (b"\"\xff\"", "data_base64", "Iv8i"),
    ] {
        let got = parse(&encode(&event(payload, Envelope::Json, None), Form::Routed));
        let value: serde_json::Value = serde_json::from_str(&got[0].1).unwrap();
        assert_eq!(value[key], expected, "{payload:?}");
    }
}

#[test]
fn strings_are_escaped_as_the_library_does_wherever_that_is_needed() {
    let long = "x".repeat(70);
    for escaped in ('\0'..='\u{a0}').chain(['\u{2028}', '\u{feff}', '😀']) {
        for at in [0, 1, 15, 16, 33, 69, 70] {
            let text = format!("{}{escaped}{}", &long[..at], &long[at..]);
            let mut out = Vec::new();
            string(&mut out, &text);
            assert_eq!(out, serde_json::to_vec(&text).unwrap(), "{escaped:?} at {at}");
        }
    }
}

#[test]
fn raw_text_goes_line_by_line_and_raw_bytes_fall_back_to_json() {
    assert_eq!(encode(&event(b" a\r\nb\rc\n", Envelope::Raw, Some("x")), Form::Routed), "event: x\ndata:  a\ndata: b\ndata: c\ndata: \n\n");
    assert_eq!(encode(&event(b"", Envelope::Raw, None), Form::Routed), "data: \n\n");
    assert!(encode(&event(b"\xff", Envelope::Raw, None), Form::Routed).contains("data_base64"));
}

#[test]
fn the_json_form_carries_the_name_inside() {
    let got = parse(&encode(&event(b"1", Envelope::Raw, Some("made")), Form::Json));
    assert_eq!(got[0].0, "");
    let value: serde_json::Value = serde_json::from_str(&got[0].1).unwrap();
    assert_eq!(value["event"], "made");
    assert_eq!(value["data"], 1);
}

#[test]
fn cloudevents_have_the_required_attributes() {
    for (payload, content_type) in [(&b"{}"[..], "application/json"), (b"x", "text/plain"), (b"\xff", "application/octet-stream")] {
        let got = parse(&encode(&event(payload, Envelope::CloudEvents, Some("made")), Form::Routed));
        let value: serde_json::Value = serde_json::from_str(&got[0].1).unwrap();
        assert_eq!(value["specversion"], "1.0");
        assert_eq!(value["id"], "00000007-9");
        assert_eq!(value["source"], "/brokercast/orders");
        assert_eq!(value["type"], "made");
        assert_eq!(value["subject"], "orders.eu");
        assert_eq!(value["datacontenttype"], content_type);
        assert_eq!(got[0].0, "made");
    }
}

#[test]
fn control_events_are_typed_json() {
    let mut out = Vec::new();
    gap(&mut out, "orders", &Gap { reason: GapReason::Retention, from: Some(3), to: None, position: None });
    closing(&mut out, Closing::Draining);
    let got = parse(std::str::from_utf8(&out).unwrap());
    assert_eq!(got[0], (GAP.to_owned(), r#"{"source":"orders","reason":"retention","from":"3","to":null}"#.to_owned()));
    assert_eq!(got[1], (CLOSING.to_owned(), r#"{"reason":"draining"}"#.to_owned()));
}

#[test]
fn chunk_heads_are_hexadecimal() {
    for n in [0, 1, 15, 16, 255, 4096, usize::MAX] {
        let mut out = Vec::new();
        chunk_head(&mut out, n);
        assert_eq!(out, format!("{n:x}\r\n").into_bytes());
    }
}

proptest! {
    #[test]
    fn whatever_the_payload_one_event_with_that_payload_comes_out(payload in prop::collection::vec(any::<u8>(), 0..60), name in prop::option::of("[a-z]{1,5}")) {
        for envelope in [Envelope::Json, Envelope::Raw, Envelope::CloudEvents] {
            let event = event(&payload, envelope, name.as_deref());
            for form in [Form::Routed, Form::Json] {
                let got = parse(&encode(&event, form));
                prop_assert_eq!(got.len(), 1);
                let text = std::str::from_utf8(&payload).ok();
                if envelope == Envelope::Raw && form == Form::Routed && text.is_some() {
                    let text = text.unwrap().replace("\r\n", "\n").replace('\r', "\n");
                    prop_assert_eq!(&got[0].1, &text);
                } else {
                    let value: serde_json::Value = serde_json::from_str(&got[0].1).unwrap();
                    let expected = match (serde_json::from_slice::<serde_json::Value>(&payload), text) {
                        (Ok(json), _) => ("data", json),
                        (_, Some(text)) => ("data", text.into()),
                        _ => ("data_base64", STANDARD.encode(&payload).into()),
                    };
                    prop_assert_eq!(&value[expected.0], &expected.1);
                }
            }
        }
    }
}

/// What `HTTP/1.1` chunks hold, and that they are whole.
fn unchunk(mut chunk: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while !chunk.is_empty() {
        let at = chunk.windows(2).position(|w| w == b"\r\n").unwrap();
        let length = usize::from_str_radix(std::str::from_utf8(&chunk[..at]).unwrap(), 16).unwrap();
        let (content, rest) = chunk[at + 2..].split_at(length);
        out.extend_from_slice(content);
        chunk = rest.strip_prefix(b"\r\n").unwrap();
    }
    out
}

proptest! {
    #[test]
    fn an_encoded_event_knows_its_parts(payload in prop::collection::vec(any::<u8>(), 0..60), text in "\\PC{0,20}", lines in prop::bool::ANY, name in prop::option::of("[a-z]{1,5}"), id in "[A-Za-z0-9_-]{1,90}") {
        let json = serde_json::to_vec(&serde_json::json!({"a": [text.clone(), 1]})).unwrap();
        let printed = serde_json::to_vec_pretty(&serde_json::json!({"a": [text.clone(), 1]})).unwrap();
        let several = if lines { format!("{text}\n{text}") } else { text };
        let (mut encoder, mut block) = (Encoder::default(), bytes::BytesMut::new());
        for payload in [&payload[..], &json, &printed, several.as_bytes()] {
            for envelope in [Envelope::Json, Envelope::Raw, Envelope::CloudEvents] {
                let event = event(payload, envelope, name.as_deref());
                let encoded = encoder.event(&mut block, id.as_bytes(), &event, ORIGIN);
                prop_assert_eq!(encoded.subject(), Some("orders.eu"));
                prop_assert_eq!(encoded.name(), name.as_deref());
                prop_assert_eq!(encoded.id(), Some(id.as_bytes()));
                let written = encoded.payload().unwrap();
                match std::str::from_utf8(payload) {
                    Ok(text) if envelope == Envelope::Raw => prop_assert_eq!(String::from_utf8_lossy(&written), text.replace("\r\n", "\n").replace('\r', "\n")),
                    Ok(text) => match serde_json::from_str::<serde_json::Value>(text) {
                        Ok(value) => prop_assert_eq!(serde_json::from_slice::<serde_json::Value>(&written).unwrap(), value),
                        Err(_) => prop_assert_eq!(&*written, payload),
                    },
                    Err(_) => prop_assert_eq!(&*written, payload),
                }
                for form in [Form::Routed, Form::Json] {
                    let body = encode(&event, form);
                    prop_assert_eq!(&encoded.bytes()[encoded.body(form)], body.as_bytes());
                    let text = format!("id: {id}\n{body}");
                    prop_assert_eq!(&encoded.bytes()[encoded.text(form)], text.as_bytes());
                    prop_assert_eq!(unchunk(&encoded.bytes()[encoded.chunk(form)]), text.as_bytes());
                    prop_assert_eq!(&encoded.bytes()[encoded.id_range(form).unwrap()], id.as_bytes());
                }
            }
        }
    }
}

#[test]
fn gaps_and_heartbeats_know_what_they_are() {
    let lost = Gap { reason: GapReason::Retention, from: Some(3), to: None, position: None };
    for subject in [None, Some("a.b")] {
        let gap = Encoder::default().gap(&mut bytes::BytesMut::new(), b"x", "orders", subject, &lost);
        assert_eq!((gap.kind(), gap.subject(), gap.id(), gap.payload()), (encoded::Kind::Gap, subject, Some(&b"x"[..]), None));
    }
    for id in [None, Some(&b"abc"[..])] {
        let beat = encode_heartbeat(id);
        assert_eq!((beat.kind(), beat.subject(), beat.id()), (encoded::Kind::Heartbeat, None, id));
        let mut text = Vec::new();
        heartbeat(&mut text, id);
        assert_eq!(&beat.bytes()[beat.text(Form::Json)], &text);
        assert_eq!(unchunk(&beat.bytes()[beat.chunk(Form::Routed)]), text);
    }
}

#[test]
fn an_encoded_event_stays_small() {
    // A window of 16 MiB holds as many events as these bytes allow.
    assert_eq!((size_of::<Encoded>(), size_of::<crate::hub::Entry>()), (56, 96));
}

fn with_headers(headers: &[(&str, &str)], event: Event) -> Event {
    let mut event = event;
    headers.iter().for_each(|(name, value)| event.headers.push(name, value));
    event
}

/// The payload as it can be read back.
fn payload(event: &Event) -> Vec<u8> {
    let mut block = bytes::BytesMut::new();
    let encoded = Encoder::default().event(&mut block, b"id", event, ORIGIN);
    encoded.payload().expect("an event").into_owned()
}

#[test]
fn chosen_headers_stand_in_the_json_envelope() {
    let shown: Arc<[Box<str>]> = ["Event-Type".into(), "none".into(), "type".into()].into();
    let headers = [("type", "a\"b"), ("event-type", "made"), ("secret", "x")];
    for envelope in [Envelope::Json, Envelope::Raw] {
        let event = Event { shown: Some(shown.clone()), ..with_headers(&headers, event(b"1", envelope, None)) };
        assert_eq!(
            encode(&event, Form::Json),
            "data: {\"subject\":\"orders.eu\",\"time\":\"1970-01-01T00:00:01.000000Z\",\
             \"headers\":{\"Event-Type\":\"made\",\"type\":\"a\\\"b\"},\"data\":1}\n\n"
        );
        assert_eq!(payload(&event), b"1");
    }
    let none = Event { shown: Some(shown), ..event(b"1", Envelope::Json, None) };
    assert!(!encode(&none, Form::Json).contains("headers"));
}

#[test]
fn what_was_deleted_has_no_data() {
    let deleted = |envelope| Event { deleted: true, ..event(b"", envelope, None) };
    let json = "data: {\"subject\":\"orders.eu\",\"time\":\"1970-01-01T00:00:01.000000Z\",\"deleted\":true}\n\n";
    assert_eq!(encode(&deleted(Envelope::Json), Form::Routed), json);
    assert_eq!(encode(&deleted(Envelope::Raw), Form::Json), json);
    assert_eq!(encode(&deleted(Envelope::Raw), Form::Routed), "data: \n\n");
    let cloud = encode(&deleted(Envelope::CloudEvents), Form::Routed);
    assert!(cloud.ends_with("Z\",\"deleted\":true}\n\n") && !cloud.contains("datacontenttype"), "{cloud}");
    for envelope in [Envelope::Json, Envelope::Raw, Envelope::CloudEvents] {
        assert_eq!(payload(&deleted(envelope)), b"");
    }
}

#[test]
fn cloud_events_pass_as_they_came() {
    let cloud = |headers: &[(&str, &str)], payload: &[u8]| with_headers(headers, event(payload, Envelope::CloudEvents, Some("n")));
    let data = |event: &Event| parse(&encode(event, Form::Routed)).remove(0).1;
    let structured = r#"{ "specversion": "1.0", "type":"t", "source":"/s", "id":"7", "data": {"a": 1.50}, "ext":"x" }"#;
    assert_eq!(data(&cloud(&[], structured.as_bytes())), structured);
    assert_eq!(payload(&cloud(&[], structured.as_bytes())), structured.as_bytes());
    let escaped = structured.replace("specversion", r"spec\u0076ersion");
    assert_eq!(data(&cloud(&[], escaped.as_bytes())), escaped);
    let lines = structured.replace(", ", ",\n ");
    assert_eq!(data(&cloud(&[], lines.as_bytes())), lines);
    let nats = [
        ("ce-id", "%E2%82%AC%201"),
        ("Ce-Source", "/s"),
        ("ce-specversion", "1.0"),
        ("ce-type", "t"),
        ("ce-my ext", "no"),
        ("ce-ext", "e"),
    ];
    let binary = cloud(&[&nats[..], &[("Content-Type", "application/json")]].concat(), b"{\"a\":1}");
    let expected = "{\"specversion\":\"1.0\",\"id\":\"\u{20ac} 1\",\"source\":\"/s\",\"type\":\"t\",\"ext\":\"e\",\
                    \"datacontenttype\":\"application/json\",\"data\":{\"a\":1}}";
    assert_eq!(data(&binary), expected);
    assert_eq!(payload(&binary), b"{\"a\":1}");
    let amqp = [
        ("content_type", "text/plain"),
        ("cloudEvents:id", "a%20"),
        ("cloudEvents:source", "/s"),
        ("cloudEvents_type", "t"),
        ("cloudEvents:specversion", "1.0"),
    ];
    assert!(
        data(&cloud(&amqp, b"12"))
            .ends_with("\"id\":\"a%20\",\"source\":\"/s\",\"type\":\"t\",\"datacontenttype\":\"text/plain\",\"data\":\"12\"}")
    );
    assert!(data(&cloud(&amqp[1..], b"")).ends_with("\"type\":\"t\"}"));
    assert!(data(&cloud(&amqp[1..], b"\xff")).ends_with("\"type\":\"t\",\"data_base64\":\"/w==\"}"));
    // What the content type says decides, where the headers have all that a CloudEvent needs: the data may be one, too.
    let inner = cloud(&[&nats[..], &[("Content-Type", "application/json")]].concat(), structured.as_bytes());
    assert!(data(&inner).starts_with("{\"specversion\":\"1.0\",\"id\":\"\u{20ac} 1\""), "{}", data(&inner));
    assert_eq!(payload(&inner), structured.as_bytes());
    let said = cloud(&[&nats[..], &[("content-type", "application/CloudEvents+json; charset=utf-8")]].concat(), structured.as_bytes());
    assert_eq!(data(&said), structured);
    // Integers and truth values are so in JSON, where the standard does not say that the attribute is text.
    let mut typed = cloud(&amqp[..3], b"");
    for (name, value) in [("cloudEvents:type", "5"), ("cloudEvents:n", "-7"), ("cloudEvents:time", "1"), ("cloudEvents:b", "true")] {
        typed.headers.push_literal(name, value);
    }
    typed.headers.push("cloudEvents:specversion", "1.0");
    typed.headers.push("cloudEvents:text", "5");
    let (_, of_it) = parse(&encode(&typed, Form::Routed)).remove(0);
    assert!(of_it.contains("\"type\":\"5\",\"n\":-7,\"time\":\"1\",\"b\":true,\"text\":\"5\","), "{of_it}");
    // The client's own envelope is around what came.
    assert!(encode(&binary, Form::Json).contains("\"subject\":\"orders.eu\",\"event\":\"n\""));
}

#[test]
fn what_is_no_whole_cloud_event_becomes_one() {
    for payload in [
        r#"{"specversion":"1.0","type":"t","source":"/s"}"#,
        r#"{"specversion":"1.0","type":"t","source":"/s","id":""}"#,
        r#"{"specversion":"0.3","type":"t","source":"/s","id":"1"}"#,
        r#"{"specversion":"1.0","type":"t","source":"/s","id":"1","data":1,"data_base64":""}"#,
        r#"[{"specversion":"1.0","type":"t","source":"/s","id":"1"}]"#,
    ] {
        let text = encode(&event(payload.as_bytes(), Envelope::CloudEvents, None), Form::Routed);
        assert!(text.contains("\"source\":\"/brokercast/orders\"") && text.contains(&format!("\"data\":{payload}")), "{text}");
    }
    let part = with_headers(&[("ce-id", "1"), ("ce-type", "t"), ("ce-specversion", "1.0")], event(b"1", Envelope::CloudEvents, None));
    assert!(encode(&part, Form::Routed).contains("/brokercast/orders"));
}

#[test]
fn the_overhead_of_a_chunk_is_what_is_written_around_it() {
    for len in [1, 9, 15, 16, 17, 255, 256, 4095, 4096, 65_535, 65_536, 1 << 20] {
        let mut head = Vec::new();
        chunk_head(&mut head, len);
        assert_eq!(chunk_overhead(len), head.len() + CHUNK_END.len(), "{len}");
    }
}
