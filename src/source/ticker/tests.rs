use super::*;
use crate::settings::tests::read;

fn ticker(every: Duration) -> Ticker {
    Ticker::new(Config { every, subject: "clock.tick".parse().expect("a subject") })
}

async fn next(connection: &mut Box<dyn Connection>) -> Message {
    let mut batch = Vec::new();
    connection.next(&mut batch, 10).await.expect("a tick");
    let [Item::Message(message)] = &batch[..] else { panic!("one message, not {batch:?}") };
    message.clone()
}

#[tokio::test(start_paused = true)]
async fn ticks_come_at_the_pace_and_count() {
    let mut connection = ticker(Duration::from_secs(2)).connect(Start::Now).await.expect("connects");
    let start = tokio::time::Instant::now();
    for n in 1..=5u32 {
        let message = next(&mut connection).await;
        assert_eq!(start.elapsed(), Duration::from_secs(2) * (n - 1));
        assert_eq!(message.subject.as_str(), "clock.tick");
        let body: serde_json::Value = serde_json::from_slice(&message.payload).expect("JSON");
        assert_eq!(body["count"], n);
        assert_eq!(body["time"], message.time.to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn a_suspension_leaves_no_burst_and_keeps_the_beat() {
    let mut connection = ticker(Duration::from_secs(1)).connect(Start::Now).await.expect("connects");
    let start = tokio::time::Instant::now();
    next(&mut connection).await;
    tokio::time::advance(Duration::from_millis(10_500)).await;
    next(&mut connection).await;
    assert_eq!(start.elapsed(), Duration::from_millis(10_500));
    next(&mut connection).await;
    assert_eq!(start.elapsed(), Duration::from_secs(11));
}

#[test]
fn impossible_values_are_told_with_their_path() {
    let text = r#"sources: { clock: { ticker: { every: "0", subject: a.* } } }"#;
    let problems = read(text, |root| Some(crate::source::settings::read(&root.key("sources").section()))).expect_err("two problems");
    let paths: Vec<_> = problems.iter().filter_map(|line| line.split(": ").nth(1)).collect();
    assert_eq!(paths, ["sources.clock.ticker.every", "sources.clock.ticker.subject"]);
}
