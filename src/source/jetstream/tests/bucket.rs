//! Key-value buckets, and streams that keep only something of each subject.

use super::*;
use crate::source::nats::tests::config;

#[tokio::test]
async fn a_bucket_is_read_by_its_keys() {
    let server = Server::start().await;
    let context = client(&server).await;
    let source = adapter(serde_json::json!({"servers": [server.url()], "kv": "B"}));
    assert_eq!(source.reach(), ["B.>".parse().expect("a pattern")]);
    let error = source.connect(Start::Now).await.err().expect("there is none");
    assert_eq!((error.kind(), &*error.to_string()), (ErrorKind::Missing, "there is no stream `KV_B`: make the bucket `B` (`kv`)"));
    let bucket =
        stream::Config { name: "KV_B".into(), subjects: vec!["$KV.B.>".into()], max_messages_per_subject: 1, ..Default::default() };
    make(&context, bucket).await;
    publish(&context, "$KV.B.x.y", 0..3).await;
    publish(&context, "$KV.B.z", 3..4).await;
    source.publish("B.w", "4".into()).await.expect("is stored");
    let all = read(&source, Start::Earliest).await;
    assert_eq!(texts(&all), ["2", "3", "4", "tail 5!"]);
    let subject = |item: &Item| if let Item::Message(m) = item { Some(m.subject.to_string()) } else { None };
    assert_eq!(all.iter().filter_map(subject).collect::<Vec<_>>(), ["B.x.y", "B.z", "B.w"]);
    assert_eq!(texts(&read(&source, Start::LastPerSubject).await), ["2", "3", "4", "tail 5!"]);
    let error = source.publish("other.w", "5".into()).await.expect_err("another bucket");
    assert_eq!(error.kind(), ErrorKind::Configuration);
}

#[test]
fn a_bucket_goes_with_nothing_that_it_says_itself() {
    let problems = |json: serde_json::Value| config(json).err().map(|problems| problems.join("; ")).unwrap_or_default();
    for (key, value) in
        [("subjects", serde_json::json!(["a"])), ("jetstream", serde_json::json!({"stream": "S"})), ("queue_group", "q".into())]
    {
        let mut json = serde_json::json!({"servers": ["h"], "kv": "B"});
        json[key] = value;
        let text = problems(json);
        assert!(text.contains(key) && text.contains("`kv`"), "{text}");
    }
    for bad in ["", "a.b", "a b", "é"] {
        assert!(problems(serde_json::json!({"servers": ["h"], "kv": bad})).contains("kv"), "{bad}");
    }
}

#[tokio::test]
async fn a_rollup_is_no_gap_and_a_purge_of_everything_is_one() {
    let server = Server::start().await;
    let context = client(&server).await;
    let stream = make(&context, stream::Config { allow_rollup: true, ..named(&["a.*"]) }).await;
    publish(&context, "a.a", 0..5).await;
    publish(&context, "a.b", 5..6).await;
    let source = source(&server, &["a.>"]);
    let third = position_of(&read(&source, Start::Earliest).await, "2");
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Rollup", "sub");
    context.publish_with_headers("a.a", headers, "6".into()).await.expect("publishes").await.expect("is stored");
    assert_eq!(texts(&read(&source, Start::After(third)).await), ["5", "6", "tail 7!"]);
    stream.purge().await.expect("purges");
    assert_eq!(texts(&read(&source, Start::After(third)).await), ["gap reset 3..8@7", "tail 7"]);
    // Nothing of what came since has replaced anything.
    publish(&context, "a.a", 7..9).await;
    assert_eq!(texts(&read(&source, Start::After(third)).await), ["gap reset 3..8@7", "7", "8", "tail 9!"]);
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Rollup", "all");
    context.publish_with_headers("a.b", headers, "9".into()).await.expect("publishes").await.expect("is stored");
    publish(&context, "a.a", 10..11).await;
    assert_eq!(texts(&read(&source, Start::After(third)).await), ["9", "10", "tail 11!"]);
}

#[tokio::test]
async fn a_purge_of_a_bucket_is_no_gap_once_a_key_is_back() {
    let server = Server::start().await;
    let context = client(&server).await;
    let stream = make(&context, bucket("B")).await;
    let source = adapter(serde_json::json!({"servers": [server.url()], "kv": "B"}));
    publish(&context, "$KV.B.x", 0..3).await;
    let second = position_of(&read(&source, Start::Earliest).await, "1");
    stream.purge().await.expect("purges");
    assert_eq!(texts(&read(&source, Start::After(second)).await), ["gap reset 2..4@3", "tail 3"]);
    publish(&context, "$KV.B.y", 3..4).await;
    assert_eq!(texts(&read(&source, Start::After(second)).await), ["3", "tail 4!"]);
}

/// Older servers know no lives of messages, and ignore that they are permitted.
fn knows_lives() -> bool {
    std::env::var_os("BROKERCAST_TEST_NATS_SERVER").is_some()
}

#[tokio::test]
async fn a_purge_of_everything_is_told_where_messages_may_have_lives_of_their_own() {
    let server = Server::start().await;
    let context = client(&server).await;
    let mut stream = make(&context, stream::Config { allow_message_ttl: true, ..named(&["a"]) }).await;
    let source = source(&server, &["a"]);
    publish(&context, "a", 0..5).await;
    let third = Start::After(position_of(&read(&source, Start::Earliest).await, "2"));
    stream.purge().await.expect("purges");
    assert_eq!(texts(&read(&source, third).await), ["gap reset 3..6@5", "tail 5"]);
    publish(&context, "a", 5..7).await;
    assert_eq!(texts(&read(&source, third).await), ["gap reset 3..6@5", "5", "6", "tail 7!"]);
    let keys = make(&context, stream::Config { allow_message_ttl: true, ..bucket("B") }).await;
    let kv = adapter(serde_json::json!({"servers": [server.url()], "kv": "B"}));
    publish(&context, "$KV.B.x", 0..3).await;
    let second = Start::After(position_of(&read(&kv, Start::Earliest).await, "1"));
    keys.purge().await.expect("purges");
    assert_eq!(texts(&read(&kv, second).await), ["gap reset 2..4@3", "tail 3"]);
    if !knows_lives() {
        return;
    }
    // Messages that live for a second, as this process sees: that they are gone is no loss.
    let running = Running::start(source.clone());
    running.until_messages(2).await;
    let live = |context: jetstream::Context, body: &'static str| async move {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-TTL", "1s");
        context.publish_with_headers("a", headers, body.into()).await.expect("publishes").await.expect("is stored");
    };
    stream.purge().await.expect("purges");
    for body in ["7", "8", "9"] {
        live(context.clone(), body).await;
    }
    running.until_messages(5).await;
    let at = |body: &str| Start::After(position_of(&running.recorder.items.lock(), body));
    let until_empty = async |stream: &mut stream::Stream| {
        eventually("the messages to be gone", async || match stream.info().await.expect("info").state.messages {
            0 => Ok(()),
            n => Err(n.to_string()),
        })
        .await;
    };
    until_empty(&mut stream).await;
    assert_eq!(texts(&read(&source, at("7")).await), ["tail 10"]);
    // The last one had no end of its own.
    live(context.clone(), "10").await;
    publish(&context, "a", 11..12).await;
    running.until_messages(7).await;
    stream.purge().await.expect("purges");
    assert_eq!(texts(&read(&source, at("7")).await), ["gap reset 8..13@12", "tail 12"]);
    assert_eq!(running.gaps(), []);
}

#[tokio::test]
async fn what_was_replaced_while_nothing_was_old_is_no_gap() {
    let server = Server::start().await;
    let context = client(&server).await;
    make(&context, bucket("B")).await;
    // How old a mirror is says nothing of its messages.
    let mirror = stream::Config {
        name: "KV_M".into(),
        max_messages_per_subject: 1,
        max_age: Duration::from_secs(3600),
        mirror: Some(fed_by("KV_B")),
        ..Default::default()
    };
    make_fed(&context, mirror, 0).await;
    let source = adapter(serde_json::json!({"servers": [server.url()], "kv": "M"}));
    let running = Running::start(source.clone());
    running.until_state(State::Up).await;
    publish(&context, "$KV.B.x", 0..1).await;
    running.until_messages(1).await;
    let place = Start::After(position_of(&running.recorder.items.lock(), "0"));
    // A reader that asks for messages only when all is replaced.
    let mut early = source.history(place).await.expect("opens");
    publish(&context, "$KV.B.x", 1..20).await;
    eventually("the last", async || running.bodies().last().filter(|b| *b == "19").map(|_| ()).ok_or("not yet".into())).await;
    let mut items = Vec::new();
    while items.len() < 2 {
        timeout(Duration::from_secs(10), early.next(&mut items, 100)).await.expect("in time").expect("reads");
    }
    assert_eq!(texts(&items), ["tail 1!", "19"]);
    assert_eq!(texts(&read(&source, place).await), ["19", "tail 20!"]);
    assert_eq!(running.gaps(), []);
    // Of what this process has not seen nothing is known.
    let other = adapter(serde_json::json!({"servers": [server.url()], "kv": "M"}));
    assert_eq!(texts(&read(&other, place).await), ["gap retention 1..20@19", "19", "tail 20!"]);
}

fn bucket(name: &str) -> stream::Config {
    let subjects = vec![format!("$KV.{name}.>")];
    stream::Config { name: format!("KV_{name}"), subjects, max_messages_per_subject: 2, allow_rollup: true, ..Default::default() }
}

fn fed_by(stream: &str) -> stream::Source {
    stream::Source { name: stream.into(), ..Default::default() }
}

/// Makes a stream that gets its messages from others, and waits until it has so many.
async fn make_fed(context: &jetstream::Context, config: stream::Config, messages: u64) {
    let mut stream = make(context, config).await;
    eventually("it has what the others have", async || match stream.info().await.expect("info").state.messages {
        n if n == messages => Ok(()),
        n => Err(n.to_string()),
    })
    .await;
}

fn subjects(items: &[Item]) -> Vec<String> {
    let subject = |item: &Item| if let Item::Message(m) = item { Some(m.subject.to_string()) } else { None };
    items.iter().filter_map(subject).collect()
}

#[tokio::test]
async fn a_bucket_that_gets_its_keys_from_others_has_them_under_its_own_name() {
    let server = Server::start().await;
    let context = client(&server).await;
    make(&context, bucket("B")).await;
    publish(&context, "$KV.B.x", 0..2).await;
    publish(&context, "$KV.B.y.z", 2..3).await;
    publish(&context, "$KV.B.x", 3..4).await;
    let mirror = |name: &str, of: &str| stream::Config {
        name: format!("KV_{name}"),
        max_messages_per_subject: 2,
        mirror: Some(fed_by(of)),
        ..Default::default()
    };
    make_fed(&context, mirror("M", "KV_B"), 3).await;
    make_fed(&context, mirror("MM", "KV_M"), 3).await;
    make_fed(&context, stream::Config { sources: Some(vec![fed_by("KV_B")]), mirror: None, ..mirror("S", "") }, 3).await;
    let mut names = vec!["M", "MM", "S"];
    // Older servers know no transforms, and not such filters.
    let newer = std::env::var_os("BROKERCAST_TEST_NATS_SERVER").is_some();
    if newer {
        let transform = |to: &str| stream::SubjectTransform { source: "$KV.B.>".into(), destination: format!("$KV.{to}.>") };
        let fed_by = |to: &str| stream::Source { subject_transforms: vec![transform(to)], ..fed_by("KV_B") };
        make_fed(&context, stream::Config { mirror: Some(fed_by("T")), ..mirror("T", "") }, 3).await;
        make_fed(&context, stream::Config { sources: Some(vec![fed_by("A")]), ..bucket("A") }, 3).await;
        names.extend(["T", "A"]);
    }
    for name in names {
        let source = adapter(serde_json::json!({"servers": [server.url()], "kv": name}));
        assert_eq!(source.check().await.iter().map(ToString::to_string).collect::<Vec<_>>(), [""; 0], "{name}");
        let all = read(&source, Start::Earliest).await;
        let messages = texts(&all).into_iter().filter(|text| !text.starts_with("tail")).collect::<Vec<_>>();
        assert_eq!(
            (messages, subjects(&all)),
            (vec!["1".into(), "2".into(), "3".into()], ["x", "y.z", "x"].map(|key| format!("{name}.{key}")).into())
        );
        assert_eq!(subjects(&read(&source, Start::After(position_of(&all, "1"))).await), [format!("{name}.y.z"), format!("{name}.x")]);
        assert_eq!(subjects(&read(&source, Start::LastPerSubject).await), [format!("{name}.y.z"), format!("{name}.x")]);
        for wanted in ["y.z", "y.*", "*.z"] {
            let wanted = [format!("{name}.{wanted}").parse().expect("a pattern")];
            let Some(mut reader) = source.selected(Start::LastPerSubject, &wanted).await.expect("opens") else {
                assert!(!newer, "it selects");
                continue;
            };
            let mut items = Vec::new();
            while !items.iter().any(|item| matches!(item, Item::Tail(_))) {
                timeout(Duration::from_secs(10), reader.next(&mut items, 100)).await.expect("in time").expect("reads");
            }
            assert_eq!(subjects(&items), [format!("{name}.y.z")]);
        }
    }
    // What comes later, live.
    let running = Running::start(adapter(serde_json::json!({"servers": [server.url()], "kv": "MM"})));
    running.until_messages(3).await;
    publish(&context, "$KV.B.y.z", 4..5).await;
    running.until_messages(4).await;
    assert_eq!(subjects(&running.recorder.items.lock()).last().map(String::as_str), Some("MM.y.z"));
}

#[tokio::test]
async fn a_bucket_that_gets_its_messages_from_no_bucket_is_refused() {
    let server = Server::start().await;
    let context = client(&server).await;
    make(&context, named(&["a"])).await;
    make(&context, stream::Config { name: "KV_M".into(), mirror: Some(fed_by("S")), ..Default::default() }).await;
    let source = adapter(serde_json::json!({"servers": [server.url()], "kv": "M"}));
    let error = source.connect(Start::Now).await.err().expect("it has no keys");
    let text = "the bucket `M` gets its messages from the stream `S`, which is no bucket: read it with `jetstream.stream: KV_M` and \
                `subjects` instead of `kv`";
    assert_eq!((error.kind(), &*error.to_string()), (ErrorKind::Configuration, text));
    assert_eq!(source.check().await.iter().map(ToString::to_string).collect::<Vec<_>>(), [text]);
}

#[tokio::test]
async fn a_stream_that_gets_its_messages_from_others_is_read_as_any_other() {
    let server = Server::start().await;
    let context = client(&server).await;
    make(&context, stream::Config { name: "A".into(), ..named(&["a.*"]) }).await;
    make(&context, stream::Config { name: "B".into(), ..named(&["b.*"]) }).await;
    publish(&context, "a.x", 0..2).await;
    publish(&context, "a.y", 2..4).await;
    for config in [
        stream::Config { mirror: Some(fed_by("A")), ..named(&[]) },
        stream::Config { sources: Some(vec![fed_by("A"), fed_by("B")]), ..named(&[]) },
        stream::Config { sources: Some(vec![fed_by("A")]), ..named(&["c"]) },
    ] {
        make_fed(&context, config, 4).await;
        for ours in [&["a.>"][..], &["a.x", "a.y", "b.x"]] {
            let source = source(&server, ours);
            assert_eq!(source.check().await.iter().map(ToString::to_string).collect::<Vec<_>>(), [""; 0]);
            let all = read(&source, Start::Earliest).await;
            assert_eq!(texts(&all), ["0", "1", "2", "3", "tail 4!"]);
            assert_eq!(texts(&read(&source, Start::After(position_of(&all, "1"))).await), ["2", "3", "tail 4!"]);
            assert_eq!(texts(&read(&source, Start::LastPerSubject).await), ["1", "3", "tail 4!"]);
        }
        let running = Running::start(source(&server, &["a.*"]));
        running.until_messages(4).await;
        drop(running);
        context.delete_stream("S").await.expect("deletes");
    }
}

#[tokio::test]
async fn a_deletion_is_one_only_in_a_bucket() {
    let server = Server::start().await;
    let context = client(&server).await;
    make(&context, named(&["s.a", "$KV.B.>"])).await;
    let core = adapter(serde_json::json!({"servers": [server.url()], "subjects": ["s.a", "$KV.B.>"]}));
    let running = Running::start(core);
    running.until_state(State::Up).await;
    for (name, value) in [("KV-Operation", "DEL"), ("KV-Operation", "PURGE"), ("Nats-Marker-Reason", "MaxAge")] {
        for subject in ["s.a", "$KV.B.a"] {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert(name, value);
            context.publish_with_headers(subject, headers, "1".into()).await.expect("publishes").await.expect("is stored");
        }
    }
    let deletions = |items: &[Item]| -> Vec<(String, bool)> {
        let deletion = |item: &Item| if let Item::Message(m) = item { Some((m.subject.to_string(), m.deleted)) } else { None };
        items.iter().filter_map(deletion).collect()
    };
    let expected = vec![("s.a".to_owned(), false), ("$KV.B.a".to_owned(), true)];
    let expected = [&expected[..], &expected, &expected].concat();
    let stored = source(&server, &["s.a", "$KV.B.>"]);
    assert_eq!(deletions(&read(&stored, Start::Earliest).await), expected);
    assert_eq!(deletions(&read(&stored, Start::LastPerSubject).await), expected[4..]);
    running.until_messages(6).await;
    // Two subjects of a core source have no common order.
    let sorted = |mut deletions: Vec<_>| {
        deletions.sort();
        deletions
    };
    assert_eq!(sorted(deletions(&running.recorder.items.lock())), sorted(expected));
}
