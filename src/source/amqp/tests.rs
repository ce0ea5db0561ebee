//! Configuration, reach and frames; what needs a broker is in `tests/amqp`.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::FutureExt as _;
use proptest::prelude::*;
use serde_json::json;

use super::config::{Binding, ExchangeType, Origin};
use super::flow::Flow;
use super::scrub::{OddKeys, Scrub};
use super::*;
use crate::settings::tests::{path, read_at};

fn check(value: serde_json::Value) -> Result<Config, Vec<String>> {
    let problems = match read_at(&["s", "amqp"], &value, Config::read) {
        Ok(config) => return Ok(config),
        Err(problems) => problems,
    };
    assert!(problems.iter().all(|line| !line.contains("hush")), "{problems:?}");
    Err(problems.iter().map(|line| path(line).to_owned()).collect())
}

#[test]
fn addresses_are_read_as_the_amqp_uri_specification_says() {
    for (url, host, port, vhost, user) in [
        ("amqp://rabbitmq:5672/%2f", "rabbitmq", 5672, "/", "guest"),
        ("amqp://rabbitmq", "rabbitmq", 5672, "/", "guest"),
        ("amqp://rabbitmq/", "rabbitmq", 5672, "/", "guest"),
        ("amqps://a%40b:hush%3F@h.example/prod%2feu", "h.example", 5671, "prod/eu", "a@b"),
        ("amqp://[::1]:5673/v", "::1", 5673, "v", "guest"),
        ("amqp://127.0.0.1:1/v?heartbeat=9", "127.0.0.1", 1, "v", "guest"),
    ] {
        let uri = check(json!({ "url": url, "exchange": "x" }))
            .expect(url)
            .broker
            .addresses()
            .now_or_never()
            .expect("no file")
            .expect("an address")
            .remove(0)
            .uri;
        assert_eq!((&*uri.authority.host, uri.authority.port, &*uri.vhost), (host, port, vhost), "{url}");
        assert_eq!(uri.authority.userinfo.username, user, "{url}");
        assert_eq!(uri.query.heartbeat, Some(if url.contains("heartbeat") { 9 } else { 5 }));
    }
    let config = check(json!({ "url": "amqp://u:hush@h", "user": "me", "password": "hush2", "exchange": "x" })).expect("valid");
    let addresses = config.broker.addresses().now_or_never().expect("no file").expect("an address");
    assert_eq!(addresses[0].uri.authority.userinfo.password, "hush2");
    assert!(!format!("{config:?} {}", addresses[0]).contains("hush"));
    let several = json!({ "urls": ["amqp://u:hush@a", "amqp://u:hush@b:7/v"], "name": "web", "exchange": "x" });
    let broker = check(several).expect("valid").broker;
    let hosts = || {
        broker
            .addresses()
            .now_or_never()
            .expect("no file")
            .expect("an address")
            .into_iter()
            .map(|address| address.uri.authority.host)
            .collect::<Vec<_>>()
    };
    let next = || {
        broker.next_turn();
        hosts()
    };
    let (there, back) = (vec!["a".to_owned(), "b".to_owned()], vec!["b".to_owned(), "a".to_owned()]);
    assert_eq!([hosts(), next(), next(), hosts(), next()], [there.clone(), there.clone(), back.clone(), back, there]);
    assert!(broker.name.starts_with("web@"), "{}", broker.name);
}

#[test]
fn what_cannot_work_is_refused_with_its_key_and_without_its_value() {
    let with = |extra: serde_json::Value| {
        let mut value = json!({ "url": "amqp://u:hush@h" });
        value.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        check(value).expect_err("refused")
    };
    for url in ["hush", "http://u:hush@h", "amqp:hush", "amqp://u:hush@h/a/b", "amqp://u:hush@h?x=1", "amqp:///hush"] {
        assert_eq!(check(json!({ "url": url, "queue": "q" })).expect_err(url), ["s.amqp.url"], "{url}");
    }
    assert_eq!(check(json!({ "queue": "q" })).expect_err("no url"), ["s.amqp.url"]);
    assert_eq!(check(json!({ "urls": [], "queue": "q" })).expect_err("no url"), ["s.amqp.urls"]);
    assert_eq!(check(json!({ "urls": ["amqp://h", "hush"], "queue": "q" })).expect_err("no url"), ["s.amqp.urls[1]"]);
    assert_eq!(with(json!({ "urls": ["amqp://h"], "queue": "q" })), ["s.amqp.urls"]);
    assert_eq!(with(json!({ "name": "", "queue": "q" })), ["s.amqp.name"]);
    assert_eq!(with(json!({})), ["s.amqp"]);
    assert_eq!(with(json!({ "queue": "q", "exchange": "x" })), ["s.amqp.queue"]);
    assert_eq!(with(json!({ "exchange": "" })), ["s.amqp.exchange"]);
    assert_eq!(with(json!({ "exchange": "x", "queue_type": "quorum" })), ["s.amqp.queue_type"]);
    assert_eq!(with(json!({ "exchange": "x", "declare": true })), ["s.amqp.declare"]);
    assert_eq!(with(json!({ "exchange": "x", "binding_keys": [] })), ["s.amqp.binding_keys"]);
    assert_eq!(with(json!({ "exchange": "x", "binding_keys": ["a.#", "a.>"] })), ["s.amqp.binding_keys[1]"]);
    assert_eq!(with(json!({ "exchange": "x", "exchange_type": "direct" })), ["s.amqp.binding_keys"]);
    assert_eq!(with(json!({ "exchange": "x", "exchange_type": "direct", "binding_keys": ["a.*"] })), ["s.amqp.binding_keys[0]"]);
    assert_eq!(with(json!({ "exchange": "x", "exchange_type": "" })), ["s.amqp.exchange_type"]);
    assert_eq!(with(json!({ "queue": "q", "binding_keys": ["a"], "exchange_type": "direct" })).len(), 2);
    assert_eq!(with(json!({ "queue": "q", "queue_type": "stream", "max_age": "1h" })), ["s.amqp.max_age"]);
    assert_eq!(with(json!({ "exchange": "x", "max_bytes": "1MiB" })), ["s.amqp.max_bytes"]);
    assert_eq!(with(json!({ "queue": "q", "prefetch": 0, "heartbeat": "90s", "user": "x" })).len(), 3);
    assert_eq!(with(json!({ "queue": "q", "tls": { "certificate": "c" } })), ["s.amqp.tls", "s.amqp.tls.private_key"]);
    assert_eq!(with(json!({ "queue": "q", "que": 1 })), ["s.amqp.que"]);
}

#[test]
fn an_exchange_has_an_exclusive_queue_or_a_stream_of_its_own_name() {
    let name: SourceName = "trades".parse().expect("a name");
    let config = check(json!({ "url": "amqp://h", "exchange": "x" })).expect("valid");
    assert!(matches!(config.origin, Origin::Exclusive(_)) && !config.stream && !config.splits());
    let key = "k".parse().expect("a subject");
    assert!(config.narrowed(&key, &name).is_some());
    for (kind, splits) in [("x-consistent-hash", true), ("x-random", true), ("x-delayed-message", false)] {
        let config = check(json!({ "url": "amqp://h", "exchange": "x", "exchange_type": kind })).expect("valid");
        assert_eq!((config.splits(), config.narrowed(&key, &name).is_none()), (splits, splits), "{kind}");
    }
    let config = check(json!({ "url": "amqp://h", "exchange": "x", "queue_type": "stream" })).expect("valid");
    assert_eq!(config.queue(&name).as_deref(), Some("brokercast.trades"));
    assert!(config.stream && !config.splits());
    let config = check(json!({ "url": "amqp://h", "queue": "jobs" })).expect("valid");
    assert_eq!(config.queue(&name).as_deref(), Some("jobs"));
    assert!(matches!(config.origin, Origin::Named { declare: None, .. }) && config.splits());
}

#[test]
fn a_super_stream_has_the_partitions_that_are_written_or_counts_them() {
    let with = |extra: serde_json::Value| {
        let mut value = json!({ "url": "amqp://h", "queue_type": "super_stream" });
        value.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        check(value)
    };
    let name: SourceName = "s".parse().expect("a name");
    let names = |extra| {
        let adapter = with(extra).expect("valid").build()(&name);
        let parts = adapter.parts().expect("several").clone();
        (parts.names().iter().map(ToString::to_string).collect::<Vec<_>>(), parts.counted().is_some())
    };
    assert_eq!(names(json!({ "queue": "x" })), (vec!["x-0".to_owned()], true));
    assert_eq!(names(json!({ "queue": "x", "partitions": ["x-eu", "x-us"] })), (vec!["x-eu".to_owned(), "x-us".to_owned()], false));
    assert_eq!(names(json!({ "partitions": ["a"] })), (vec!["a".to_owned()], false));
    assert_eq!(with(json!({})).expect_err("no name"), ["s.amqp.queue"]);
    assert_eq!(with(json!({ "partitions": [] })).expect_err("none"), ["s.amqp.partitions"]);
    assert_eq!(with(json!({ "partitions": ["a", ""] })).expect_err("no name"), ["s.amqp.partitions[1]"]);
    assert_eq!(with(json!({ "partitions": ["a", "b", "a"] })).expect_err("twice"), ["s.amqp.partitions"]);
    assert_eq!(with(json!({ "queue": "x", "declare": true, "exchange": "y", "max_age": "1h" })).expect_err("made").len(), 3);
    assert_eq!(with(json!({ "queue": "x".repeat(252) })).expect_err("long"), ["s.amqp.queue"]);
    let other = json!({ "url": "amqp://h", "queue": "q", "queue_type": "stream", "partitions": ["a"] });
    assert_eq!(check(other).expect_err("no super stream"), ["s.amqp.partitions"]);
}

fn reach_of(kind: ExchangeType, keys: &[&str]) -> Vec<String> {
    let keys = keys.iter().map(|key| (*key).to_owned()).collect();
    let binding = Binding { exchange: "x".into(), kind, keys, chosen: true };
    let patterns = reach::of(&binding, &"source".parse().expect("a subject"));
    patterns.iter().map(ToString::to_string).collect()
}

#[test]
fn binding_keys_are_translated_to_patterns() {
    use ExchangeType::{Direct, Fanout, Headers, Topic};
    assert_eq!(reach_of(Topic, &["#"]), [">"]);
    assert_eq!(reach_of(Topic, &["a.#"]), ["a", "a%2E", "a.>"]);
    assert_eq!(reach_of(Topic, &["orders.*.created"]), ["orders.%2Ecreated", "orders.*.created"]);
    assert_eq!(reach_of(Topic, &["a.#.z"]), ["a%2E", "a.>"]);
    assert_eq!(reach_of(Topic, &["a.b", "a.b", ""]), ["a.b", "source"]);
    assert_eq!(reach_of(Direct, &["a.*", "", "b..c"]), ["a.%2A", "b.%2Ec", "source"]);
    assert_eq!(reach_of(Fanout, &["a"]), [">"]);
    assert_eq!(reach_of(Headers, &["a"]), [">"]);
    assert_eq!(reach_of(ExchangeType::Other("x-rtopic".into()), &["a"]), [">"]);
}

/// RabbitMQ's rule, word by word; an empty key has no words.
fn selects(key: &[&str], words: &[&str]) -> bool {
    match (key.split_first(), words.split_first()) {
        (None, None) => true,
        (Some((&"#", rest)), _) => selects(rest, words) || !words.is_empty() && selects(key, &words[1..]),
        (Some((k, key)), Some((w, words))) => (*k == "*" || k == w) && selects(key, words),
        _ => false,
    }
}

fn words(key: &str) -> Vec<&str> {
    if key.is_empty() { Vec::new() } else { key.split('.').collect() }
}

proptest! {
    #[test]
    fn whatever_a_binding_key_selects_is_within_reach(
        binding in "([ab*#]|aa|%|)(\\.([ab*#]||\\*)){0,5}",
        picks in prop::collection::vec(0_usize..5, 1..20),
    ) {
        let mut picks = picks.into_iter().cycle();
        let mut pick = || ["a", "b", "", "c%", ">"][picks.next().unwrap_or_default()];
        let mut key = Vec::new();
        for word in words(&binding) {
            match word {
                "*" => key.push(pick()),
                "#" => (0..pick().len() + pick().len()).for_each(|_| key.push(pick())),
                word => key.push(word),
            }
        }
        let key = key.join(".");
        // One empty word alone is no word at all.
        prop_assume!(selects(&words(&binding), &words(&key)));
        let empty: Subject = "source".parse().expect("a subject");
        let subject = Subject::from_broker(key.as_bytes(), &empty);
        let patterns = reach_of(ExchangeType::Topic, &[&binding]);
        let held = patterns.iter().any(|pattern| pattern.parse::<Pattern>().expect("a pattern").matches(subject.as_str()));
        prop_assert!(held, "{binding} selects {key} ({subject}), but reaches {patterns:?}");
    }

    #[test]
    fn frames_pass_unchanged_however_they_are_cut(bytes in prop::collection::vec(any::<u8>(), 0..200), kinds in prop::collection::vec(3_u8..4, 1..4), cut in 1_usize..50) {
        let mut wire = Vec::new();
        for kind in kinds {
            wire.extend(frame(kind, 1, &bytes));
            wire.extend(frame(8, 0, b""));
        }
        wire.extend(deliver(b"a.b", 1));
        prop_assert_eq!(&scrubbed(&wire, cut, &OddKeys::default()), &wire);
    }

    #[test]
    fn nothing_that_comes_in_stops_the_scrubbing(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 1_usize..50) {
        let headers: Vec<u8> = [frame(2, 1, &bytes), frame(1, 1, &[&[0, 60, 0, 60][..], &bytes].concat()), deliver(b"\xff", 9)].concat();
        let odd = OddKeys::default();
        prop_assert_eq!(scrubbed(&headers, cut, &odd).len(), headers.len());
        prop_assert_eq!(odd.take(1, 9), Some(b"\xff"[..].into()));
    }
}

fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).expect("short");
    [&[kind][..], &channel.to_be_bytes(), &size.to_be_bytes(), payload, &[0xce]].concat()
}

fn deliver(key: &[u8], tag: u64) -> Vec<u8> {
    let length = u8::try_from(key.len()).expect("short");
    let rest = [&[0, 60, 0, 60, 1, b't'][..], &tag.to_be_bytes(), &[0, 1, b'x', length], key].concat();
    frame(1, 1, &rest)
}

fn scrubbed(bytes: &[u8], cut: usize, odd: &OddKeys) -> Vec<u8> {
    let (mut scrub, mut buffer, mut out) = (Scrub::default(), Vec::new(), Vec::new());
    for piece in bytes.chunks(cut) {
        buffer.extend_from_slice(piece);
        scrub.advance(&mut buffer, odd, &Flow::default());
        let ready = scrub.ready();
        out.extend(buffer.drain(..ready));
        scrub.took(ready);
    }
    out
}

#[test]
fn what_waits_is_measured_in_whole_messages() {
    let flow = Flow::default();
    flow.meter(1, flow::LIVE);
    let header = |channel, size: u64| frame(2, channel, &[&[0, 60, 0, 0][..], &size.to_be_bytes(), &[0, 0]].concat());
    let half = vec![0; usize::try_from(flow::LIVE / 2).expect("fits")];
    let mut bytes = [header(1, flow::LIVE), frame(3, 1, &half), header(2, 9), frame(3, 1, &half), header(1, 1), frame(3, 1, b"x")].concat();
    let all = bytes.len();
    let (mut scrub, mut cx) = (Scrub::default(), std::task::Context::from_waker(std::task::Waker::noop()));
    for (seen, full) in [(100, false), (all - 50, false), (all - 1, false), (all, true)] {
        scrub.advance(&mut bytes[..seen], &OddKeys::default(), &flow);
        assert_eq!(flow.full(&mut cx), full, "{seen} of {all}");
    }
    flow.took(half.len() * 2);
    assert!(!flow.full(&mut cx));
    flow.took(1);
    flow.took(1);
    assert!(!flow.full(&mut cx), "it never counts below nothing");
}

#[test]
fn a_key_that_is_no_text_is_kept_aside_until_its_message_is_taken() {
    let odd = OddKeys::default();
    let clean = scrubbed(&[deliver(b"caf\xe9", 7), deliver(b"ok", 8)].concat(), 3, &odd);
    assert_eq!(clean, [deliver(b"????", 7), deliver(b"ok", 8)].concat());
    assert_eq!(odd.take(2, 7), None);
    assert_eq!(odd.take(1, 8), None);
    assert_eq!(odd.take(1, 7).as_deref(), Some(&b"caf\xe9"[..]));
    assert_eq!(odd.take(1, 7), None);
    // Its number used anew, a channel has no keys of the old one.
    let open_ok = frame(1, 1, &[0, 20, 0, 11, 0, 0, 0, 0]);
    scrubbed(&[deliver(b"\xe9", 7), open_ok].concat(), 100, &odd);
    assert_eq!(odd.take(1, 7), None);
}

#[test]
fn of_the_brokers_own_headers_the_first_counts_where_a_publisher_repeats_them() {
    let entry = |name: &str, value: &[u8]| [&[u8::try_from(name.len()).expect("short")][..], name.as_bytes(), value].concat();
    let header = |names: [&str; 5]| {
        let numbered = names.iter().zip(0_u64..).map(|(name, n)| entry(name, &[&b"l"[..], &n.to_be_bytes()].concat()));
        let table = [numbered.collect::<Vec<_>>().concat(), entry("last", b"x\0\0\0\x01a")].concat();
        let size = u32::try_from(table.len()).expect("short");
        frame(2, 1, &[&[0, 60, 0, 0][..], &[0; 8], &[0x20, 0], &size.to_be_bytes(), &table].concat())
    };
    let came = header(["x-stream-offset", "timestamp_in_ms", "x-stream-offset", "timestamp_in_ms", "x-stream-offset"]);
    let hidden = "?".repeat(15);
    let clean = header(["x-stream-offset", "timestamp_in_ms", &hidden, &hidden, &hidden]);
    // Each message has its own, and a publisher's other names are left.
    let others = header(["x-stream-offset", "a", "a", "b", "last"]);
    let wire = [&came[..], &others, &came].concat();
    assert_eq!(scrubbed(&wire, 7, &OddKeys::default()), [&clean[..], &others, &clean].concat());
}

#[test]
fn ages_are_read_as_rabbitmq_writes_them() {
    let day = 24 * 3600;
    for (text, seconds) in [("1Y", 365 * day), ("2M", 60 * day), ("7D", 7 * day), ("24h", day), ("90m", 5400), ("7200s", 7200), ("0s", 0)] {
        assert_eq!(topology::age(text), Some(Duration::from_secs(seconds)), "{text}");
    }
    for text in ["", "s", "5", "5w", "-1s", "1.5h", "99999999999999999Y", "5é"] {
        assert_eq!(topology::age(text), None, "{text}");
    }
}

#[test]
fn what_the_broker_says_of_an_exchange_is_taken_over() {
    let said = |property: &str, rest: &str| format!("inequivalent arg '{property}' for exchange 'x' in vhost '/': received {rest}");
    let mut asked = Binding { exchange: "x".into(), kind: ExchangeType::Topic, keys: vec!["#".into()], chosen: false };
    let mut options = lapin::options::ExchangeDeclareOptions { durable: true, ..Default::default() };
    for said in [
        said("type", "'topic' but current is ''x-odd''"),
        said("durable", "'true' but current is 'false'"),
        said("auto_delete", "'false' but current is 'true'"),
        said("internal", "'false' but current is 'true'"),
    ] {
        assert!(topology::adopt_property(&mut asked, &mut options, &said), "{said}");
    }
    assert_eq!(asked.kind.as_str(), "x-odd");
    assert_eq!((options.durable, options.auto_delete, options.internal), (false, true, true));
    let lost = said("alternate-exchange", "none but current is the value 'lost' of type 'longstr'");
    assert!(!topology::adopt_property(&mut asked, &mut options, &lost) && !topology::adopt_property(&mut asked, &mut options, "odd"));
}

#[test]
fn what_the_broker_says_of_an_argument_is_taken_over() {
    use lapin::types::AMQPValue::{Boolean, LongLongInt, LongString};
    let sent = || BTreeMap::from([("x-max-age".into(), LongString("9s".into())), ("x-max-length-bytes".into(), LongLongInt(9))]);
    let said = |argument: &str, rest: &str| format!("inequivalent arg '{argument}' for queue 'q' in vhost '/': received {rest}");
    for (argument, rest, expected) in [
        ("x-max-age", "'9s' but current is '1D'", Some(LongString("1D".into()))),
        ("x-max-age", "the value '9s' of type 'longstr' but current is none", None),
        ("x-max-length-bytes", "'9' but current is '7'", Some(LongLongInt(7))),
        ("x-expires", "none but current is the value '7' of type 'signedint'", Some(LongLongInt(7))),
        ("x-single-active-consumer", "none but current is the value 'true' of type 'bool'", Some(Boolean(true))),
        ("x-dead-letter-exchange", "none but current is the value '7' of type 'longstr'", Some(LongString("7".into()))),
    ] {
        let mut asked = sent();
        assert!(topology::adopt(&mut asked, &said(argument, rest)), "{rest}");
        assert_eq!(asked.get(argument), expected.as_ref(), "{rest}");
    }
    // What cannot be taken over, or changes nothing, is not asked again.
    for said in [said("durable", "'true' but current is 'false'"), said("x-max-age", "'9s' but current is '9s'"), "odd".to_owned()] {
        assert!(!topology::adopt(&mut sent(), &said), "{said}");
    }
}
