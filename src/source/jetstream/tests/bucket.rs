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
}
