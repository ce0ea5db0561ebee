use futures_util::future::join_all;

use super::*;
use crate::settings::tests::{path, read_at};

fn inbox() -> Http {
    Http::new(Config { subjects: vec!["demo.>".parse().expect("a pattern")] })
}

fn subject(n: usize) -> Subject {
    format!("demo.{n}").parse().expect("a subject")
}

async fn serve(mut connection: Box<dyn Connection>, batches: usize) -> Vec<Vec<String>> {
    let mut seen = Vec::new();
    for n in 0..batches {
        let mut batch = Vec::new();
        connection.next(&mut batch, 512).await.expect("letters");
        let name = |item: &Item| match item {
            Item::Message(message) => message.subject.to_string(),
            other => panic!("not a message: {other:?}"),
        };
        seen.push(batch.iter().map(name).collect());
        assert!(connection.acknowledge(&format!("id{n}")).is_none(), "an answer waits for nothing");
    }
    connection.close().await;
    seen
}

#[tokio::test]
async fn publishers_get_the_id_of_the_batch_they_were_in() {
    let source = inbox();
    let handle = source.inbox().expect("an inbox");
    let connection = source.connect(Start::Now).await.expect("connects");
    let publishers = join_all((0..700).map(|n| handle.publish(subject(n), Bytes::new(), Headers::default())));
    let (ids, seen) = tokio::join!(publishers, serve(connection, 2));
    assert_eq!(seen.iter().map(Vec::len).collect::<Vec<_>>(), [512, 188]);
    for (n, id) in ids.into_iter().enumerate() {
        assert_eq!(&*id.expect("published"), if n < 512 { "id0" } else { "id1" }, "{n}");
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_ever_while_nothing_is_taken_and_what_was_refused_is_not_published() {
    let source = inbox();
    let handle = source.inbox().expect("an inbox");
    let start = tokio::time::Instant::now();
    let answers = join_all((0..QUEUE + 10).map(|n| handle.publish(subject(n), Bytes::new(), Headers::default()))).await;
    assert!(answers.iter().all(|answer| *answer == Err(PublishError::Overloaded)));
    assert_eq!(start.elapsed(), PATIENCE);
    let connection = source.connect(Start::Now).await.expect("connects");
    let (answer, seen) = tokio::join!(handle.publish(subject(5000), Bytes::new(), Headers::default()), serve(connection, 1));
    assert_eq!(answer.as_deref(), Ok("id0"));
    assert_eq!(seen, [["demo.5000"]]);
}

#[tokio::test]
async fn a_closed_inbox_refuses_at_once_and_answers_whoever_waits() {
    let source = inbox();
    let handle = source.inbox().expect("an inbox");
    let connection = source.connect(Start::Now).await.expect("connects");
    let (answer, ()) = tokio::join!(handle.publish(subject(1), Bytes::new(), Headers::default()), connection.close());
    assert_eq!(answer, Err(PublishError::Closed));
    assert_eq!(handle.publish(subject(2), Bytes::new(), Headers::default()).await, Err(PublishError::Closed));
}

#[tokio::test]
async fn a_connection_that_was_dropped_leaves_the_queue_to_the_next() {
    let source = inbox();
    let handle = source.inbox().expect("an inbox");
    drop(source.connect(Start::Now).await.expect("connects"));
    let connection = source.connect(Start::Now).await.expect("connects again");
    let (answer, _) = tokio::join!(handle.publish(subject(1), Bytes::new(), Headers::default()), serve(connection, 1));
    assert_eq!(answer.as_deref(), Ok("id0"));
}

#[test]
fn subjects_are_checked_all_at_once() {
    let paths = |subjects: &[&str]| {
        let problems = read_at(&["s", "http"], &serde_json::json!({ "subjects": subjects }), Config::read).expect_err("problems");
        problems.iter().map(|line| path(line).to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(paths(&["a..b", "ok", "x>"]), ["s.http.subjects[0]", "s.http.subjects[2]"]);
    assert_eq!(paths(&[]), ["s.http.subjects"]);
}
