//! Users who may do little with JetStream's API.

use super::*;
use crate::source::nats::tests::config;

const LEAST: [&str; 3] = ["$JS.API.STREAM.INFO.S", "$JS.API.CONSUMER.CREATE.S.>", "$JS.API.CONSUMER.MSG.NEXT.S.>"];
const CHECKS: &str = "$JS.API.STREAM.MSG.GET.S";
const DELETES: &str = "$JS.API.CONSUMER.DELETE.S.>";

/// A server where user `u` may publish to these subjects, and what `admin` does there.
async fn limited(subscribe: &str, publish: &[&str]) -> (Server, jetstream::Context) {
    let user = format!("{{ user: u, password: p, permissions: {{ subscribe: \"{subscribe}\", publish: {publish:?} }} }}");
    let server = Server::configured(&format!("authorization {{ users: [ {{ user: admin, password: p }}, {user} ] }}")).await;
    let options = async_nats::ConnectOptions::with_user_and_password("admin".into(), "p".into());
    let context = jetstream::new(options.connect(server.url()).await.expect("connects"));
    make(&context, named(&["a"])).await;
    (server, context)
}

fn source(server: &Server, inbox_prefix: &str) -> Arc<dyn Adapter> {
    adapter(serde_json::json!({"servers": [server.url()], "subjects": ["a"], "user": "u", "password": "p",
        "inbox_prefix": inbox_prefix, "jetstream": {"stream": "S"}}))
}

/// Reads live, through histories that end, and over idle times; returns what came live.
async fn works(server: &Server, context: &jetstream::Context, inbox_prefix: &str) -> Running {
    let source = source(server, inbox_prefix);
    let running = Running::start(source.clone());
    running.until_state(State::Up).await;
    publish(context, "a", 0..10).await;
    running.until_messages(10).await;
    for _ in 0..3 {
        let all = read(&source, Start::Earliest).await;
        assert_eq!(all.len(), 11);
        let place = position_of(&all, "3");
        assert_eq!(texts(&read(&source, Start::After(place)).await)[..6], ["4", "5", "6", "7", "8", "9"]);
    }
    // The end of a pull shows only after its time, and what a reader does while it is idle, after some seconds.
    sleep(Duration::from_secs(5)).await;
    publish(context, "a", 10..20).await;
    running.until_messages(20).await;
    assert_eq!(ledger(&running.recorder.items.lock(), 20), []);
    assert_eq!(running.handle.counters.reconnects(), 0);
    running
}

#[tokio::test]
async fn the_least_rights_are_enough() {
    let (server, context) = limited("_INBOX_bridge.>", &LEAST).await;
    let running = works(&server, &context, "_INBOX_bridge").await;
    running.stop().await;
    // Consumers are left to expire.
    until_consumers(&context, 0).await;
}

#[tokio::test]
async fn with_all_rights_that_are_used_nothing_is_done_without() {
    let rights: Vec<_> = LEAST.into_iter().chain([CHECKS, DELETES]).collect();
    let (server, context) = limited("_INBOX.>", &rights).await;
    let running = works(&server, &context, "_INBOX").await;
    let stream = context.get_stream("S").await.expect("is there");
    assert_eq!(stream.get_info().await.expect("info").state.consumer_count, 1);
    let has_check = |item: &Item| matches!(item, Item::Tail(Some(Position { check: Some(_), .. })));
    assert!(read(&source(&server, "_INBOX"), Start::Now).await.iter().all(has_check));
    running.stop().await;
    until_consumers(&context, 0).await;
}

#[tokio::test]
async fn rights_as_they_were_before_consumers_had_names_are_enough() {
    let rights = ["$JS.API.STREAM.INFO.S", "$JS.API.STREAM.MSG.GET.S", "$JS.API.CONSUMER.CREATE.S", "$JS.API.CONSUMER.MSG.NEXT.S.>"];
    let (server, context) = limited("_INBOX.>", &rights).await;
    works(&server, &context, "_INBOX").await.stop().await;
    let faults = source(&server, "_INBOX").check().await;
    assert!(faults.is_empty(), "{faults:?}");
}

#[tokio::test]
async fn what_cannot_be_done_without_is_named_with_its_key() {
    for missing in LEAST {
        let rights: Vec<_> = LEAST.into_iter().filter(|right| *right != missing).collect();
        let (server, _) = limited("_INBOX.>", &rights).await;
        let running = Running::start(source(&server, "_INBOX"));
        let error = eventually_down(&running).await;
        assert!(error.contains(missing) && error.contains("`jetstream`"), "{error}");
        running.stop().await;
    }
    let (server, _) = limited("_INBOX_bridge.>", &LEAST).await;
    let running = Running::start(source(&server, "_INBOX"));
    let error = eventually_down(&running).await;
    assert!(error.contains("`_INBOX.>`") && error.contains("`inbox_prefix`"), "{error}");
    let faults = source(&server, "_INBOX").check().await;
    assert!(matches!(&faults[..], [one] if one.to_string() == error), "{faults:?}");
}

#[tokio::test]
async fn what_the_library_cannot_read_is_passed_with_the_least_rights() {
    let (server, context) = limited("_INBOX.>", &LEAST).await;
    context.update_stream(named(&["a.*", "b"])).await.expect("takes more");
    let mut stream = context.get_stream("S").await.expect("is there");
    let json = |subjects: &[&str]| serde_json::json!({"servers": [server.url()], "subjects": subjects, "user": "u", "password": "p", "jetstream": {"stream": "S"}});
    let source = adapter(json(&["a.>"]));
    // What there is before the first reader comes.
    publish_raw(&server, &mut stream, &raw(b"a.\xff", b"", "odd"), 1).await;
    publish(&context, "a.x", 2..5).await;
    let running = Running::start(source.clone());
    running.until_messages(3).await;
    // While it reads, between others' messages, one behind the other.
    publish(&context, "b", 5..8).await;
    let odd = [
        raw(b"a.x", b"NATS/1.0\r\nA: \xff\r\n\r\n", "odd"),
        raw(b"b", b"NATS/1.0\r\nno colon\r\n\r\n", "of nobody"),
        raw(b"a.y", b"NATS/1.0\r\nno colon\r\n\r\n", "odd"),
    ];
    publish_raw(&server, &mut stream, &odd.concat(), 10).await;
    publish(&context, "b", 11..13).await;
    publish(&context, "a.x", 13..100).await;
    running.until_messages(3 + 87).await;
    let gap = |seq: u64| format!("gap unreadable {}..{}@{seq}", seq - 1, seq + 1);
    let numbers = |numbers: std::ops::Range<u64>| numbers.map(|n| n.to_string()).collect::<Vec<_>>();
    let all = [vec![gap(1)], numbers(2..5), vec![gap(8), gap(10)], numbers(13..100)].concat();
    let without_tails = |items: &[Item]| texts(items).into_iter().filter(|text| !text.starts_with("tail")).collect::<Vec<_>>();
    assert_eq!(without_tails(&running.recorder.items.lock()), all);
    assert_eq!(running.handle.counters.gaps(GapReason::Unreadable), 3);
    // Histories come past them too, from any place.
    let reconnects = running.handle.counters.reconnects();
    let items = read_on(&source, Start::Earliest).await;
    assert_eq!(without_tails(&items), all);
    for from in [2u64, 4, 13, 99] {
        let place = position_of(&items, &from.to_string());
        let behind = all.iter().position(|text| *text == from.to_string()).expect("it is one") + 1;
        assert_eq!(without_tails(&read_on(&source, Start::After(place)).await), all[behind..], "behind {from}");
    }
    publish(&context, "a.z", 100..101).await;
    // So do those who want the newest of each subject: all, some, one.
    for (wanted, expected) in [
        (&["a.>"][..], vec![gap(1), gap(10), "99".to_owned(), "100".to_owned()]),
        (&["a.x", "a.y", "a.z"], vec![gap(10), "99".to_owned(), "100".to_owned()]),
        (&["a.y"], vec![gap(10)]),
        (&["a.y", "b"], vec![gap(10), "12".to_owned()]),
    ] {
        let source = adapter(json(wanted));
        assert_eq!(without_tails(&read_on(&source, Start::LastPerSubject).await), expected, "{wanted:?}");
    }
    assert!(running.handle.counters.reconnects() <= reconnects + 2);
    running.stop().await;
}

#[tokio::test]
async fn a_purge_of_a_subject_is_told_with_the_least_rights() {
    let (server, context) = limited("_INBOX.>", &LEAST).await;
    context.update_stream(named(&["a", "b"])).await.expect("takes more");
    let stream = context.get_stream("S").await.expect("is there");
    let json =
        serde_json::json!({"servers": [server.url()], "subjects": ["a", "b"], "user": "u", "password": "p", "jetstream": {"stream": "S"}});
    let config = config(json).expect("valid");
    let jetstream =
        Arc::new(JetStreamSource::new(config.clone(), config.jetstream.clone().expect("a stream"), &"s".parse().expect("a name")));
    let source: Arc<dyn Adapter> = jetstream.clone();
    let running = Running::start(source.clone());
    running.until_state(State::Up).await;
    publish(&context, "a", 1..6).await;
    publish(&context, "b", 6..7).await;
    running.until_messages(6).await;
    eventually("the stream to be seen so", async || if jetstream.known.lock().holds(6) { Ok(()) } else { Err("not yet".into()) }).await;
    let place = position_of(&running.recorder.items.lock(), "3");
    stream.purge().filter("a").await.expect("purges");
    // Which purge it was cannot be asked.
    assert_eq!(texts(&read(&source, Start::After(place)).await), ["gap reset 3..6@5", "6", "tail 6"]);
    running.stop().await;
}

async fn eventually_down(running: &Running) -> String {
    running.until_state(State::Down).await;
    let fault = running.handle.status.read().fault.clone().expect("says why");
    assert_eq!(fault.kind, ErrorKind::Denied, "{}", fault.error);
    fault.error
}

#[tokio::test]
async fn a_check_names_all_that_is_wrong_and_makes_nothing() {
    let all: Vec<_> = LEAST.into_iter().chain(["$JS.API.STREAM.CREATE.T"]).collect();
    let (server, context) = limited("_INBOX.>", &all).await;
    let check = async |server: &Server, stream: serde_json::Value| {
        let json = serde_json::json!({"servers": [server.url()], "subjects": ["a"], "user": "u", "password": "p", "jetstream": stream});
        adapter(json).check().await.iter().map(|error| crate::support::causes::chain(error)).collect::<Vec<_>>()
    };
    let texts = async |server: &Server, stream: &str| check(server, serde_json::json!({"stream": stream, "create": true})).await;
    assert_eq!(texts(&server, "S").await, [""; 0]);
    let stream = context.get_stream("S").await.expect("is there");
    assert_eq!(stream.get_info().await.expect("info").state.consumer_count, 0);
    // No right concerns the other stream but to make it.
    let other = limited("_INBOX.>", &["$JS.API.STREAM.INFO.T", "$JS.API.STREAM.CREATE.T"]).await;
    let wrong = texts(&other.0, "T").await;
    assert!(matches!(&wrong[..], [a, b] if a.contains("CONSUMER.CREATE.T.>") && b.contains("CONSUMER.MSG.NEXT.T.>")), "{wrong:?}");
    assert!(other.1.get_stream("T").await.is_err());
    let (poor, _context) = limited("_INBOX.>", &["nothing"]).await;
    assert_eq!(texts(&poor, "S").await.len(), 3);
    let missing = check(&other.0, serde_json::json!({"stream": "T"})).await;
    assert!(missing.len() == 3 && missing[0].contains("`jetstream.create`"), "{missing:?}");
}

#[tokio::test]
async fn a_check_says_what_would_never_work() {
    let server = Server::start().await;
    let context = client(&server).await;
    make(&context, named(&["a.>"])).await;
    let check = async |subjects: &[&str], stream: serde_json::Value| {
        let source = adapter(serde_json::json!({"servers": [server.url()], "subjects": subjects, "jetstream": stream}));
        source.check().await.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let new = |create: serde_json::Value| serde_json::json!({"stream": "T", "create": create});
    assert_eq!(check(&["b.>"], new(true.into())).await, [""; 0]);
    let wrong = check(&["b.>", "a.b.*"], new(true.into())).await;
    assert!(matches!(&wrong[..], [one] if one.contains("`S` takes subjects of `a.b.*` already")), "{wrong:?}");
    let wrong = check(&["b.>"], new(serde_json::json!({"replicas": 3}))).await;
    assert!(matches!(&wrong[..], [one] if one.contains("`jetstream.create.replicas` cannot be 3")), "{wrong:?}");
    let wrong = check(&["a.>", "z.>"], serde_json::json!({"stream": "S"})).await;
    assert!(matches!(&wrong[..], [one] if one.contains("not made for the subject `z.>`")), "{wrong:?}");
    let elsewhere = check(&["a.>"], serde_json::json!({"stream": "S", "domain": "hub"})).await;
    assert!(elsewhere[0].contains("`jetstream.domain`"), "{elsewhere:?}");
    assert!(context.get_stream("T").await.is_err());
}

#[tokio::test]
async fn a_stream_of_a_domain_is_read_through_the_domains_api() {
    let server = Server::configured_without_jetstream("jetstream { store_dir: \"$DIR/js\", domain: hub }").await;
    let context = client(&server).await;
    make(&context, named(&["a"])).await;
    publish(&context, "a", 0..3).await;
    for (key, value) in [("domain", "hub"), ("api_prefix", "$JS.hub.API")] {
        let stream = serde_json::json!({"stream": "S", key: value});
        let source = adapter(serde_json::json!({"servers": [server.url()], "subjects": ["a"], "jetstream": stream}));
        assert_eq!(texts(&read(&source, Start::Earliest).await), ["0", "1", "2", "tail 3!"]);
    }
    let stream = serde_json::json!({"stream": "S", "domain": "other"});
    let elsewhere = adapter(serde_json::json!({"servers": [server.url()], "subjects": ["a"], "jetstream": stream}));
    let error = elsewhere.connect(Start::Now).await.err().expect("there is none");
    assert_eq!(error.kind(), ErrorKind::Missing, "{error}");
}

/// An account reads another one's stream, whose API it imports under another name.
#[tokio::test]
async fn a_stream_of_another_account_is_read_through_an_imported_api() {
    let lines = "accounts {
        OWNER { jetstream: enabled, users: [ { user: admin, password: p } ], exports: [ { service: \"$JS.API.>\", response: stream } ] }
        READER { users: [ { user: u, password: p } ], imports: [ { service: { account: OWNER, subject: \"$JS.API.>\" }, to: \"OWNER.API.>\" } ] }
    }";
    let server = Server::configured(lines).await;
    let options = async_nats::ConnectOptions::with_user_and_password("admin".into(), "p".into());
    let context = jetstream::new(options.connect(server.url()).await.expect("connects"));
    make(&context, named(&["a"])).await;
    publish(&context, "a", 0..3).await;
    let stream = serde_json::json!({"stream": "S", "api_prefix": "OWNER.API"});
    let source =
        adapter(serde_json::json!({"servers": [server.url()], "subjects": ["a"], "user": "u", "password": "p", "jetstream": stream}));
    assert_eq!(texts(&read(&source, Start::Earliest).await), ["0", "1", "2", "tail 3!"]);
}

#[test]
fn keys_that_name_subjects_are_checked() {
    let json = |key: &str, value: &str| {
        let mut json = serde_json::json!({"servers": ["h"], "subjects": ["a"], "jetstream": {"stream": "S"}});
        let (inner, key) = key.split_once('.').map_or((false, key), |(_, key)| (true, key));
        let map = if inner { &mut json["jetstream"] } else { &mut json };
        map[key] = value.into();
        json
    };
    for (key, good, bad) in [
        ("inbox_prefix", &["_INBOX", "a.b"][..], &["", "a.", ".a", "a b", "a.>", "*"][..]),
        ("jetstream.domain", &["hub"], &["", "a.b", "a b", ">"]),
        ("jetstream.api_prefix", &["$JS.hub.API", "x"], &["", "x.", "a.>"]),
    ] {
        for value in good {
            config(json(key, value)).unwrap_or_else(|problems| panic!("{key} {value}: {problems:?}"));
        }
        for value in bad {
            let problems = config(json(key, value)).err().unwrap_or_else(|| panic!("{key} `{value}` is taken"));
            assert!(problems.len() == 1 && problems[0].contains(key), "{key} {value}: {problems:?}");
        }
    }
}
