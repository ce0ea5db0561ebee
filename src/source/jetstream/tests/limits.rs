//! Streams and servers that limit their consumers.

use super::*;

#[tokio::test]
async fn a_streams_limits_for_its_consumers_are_kept() {
    let server = Server::start().await;
    let context = client(&server).await;
    let limits = stream::ConsumerLimits { inactive_threshold: Duration::from_secs(2), max_ack_pending: 1 };
    // Older servers know no such limits.
    make(&context, stream::Config { consumer_limits: Some(limits), ..named(&["a"]) }).await;
    publish(&context, "a", 0..100).await;
    let source = source(&server, &["a"]);
    assert_eq!(source.check().await.iter().map(ToString::to_string).collect::<Vec<_>>(), [""; 0]);
    let running = Running::start(source.clone());
    running.until_messages(100).await;
    assert_eq!(ledger(&read(&source, Start::Earliest).await, 100), []);
    // One that only waits asks, so that it is not inactive.
    sleep(Duration::from_secs(3)).await;
    publish(&context, "a", 100..101).await;
    running.until_messages(101).await;
    assert_eq!(running.handle.counters.reconnects(), 0);
}

#[tokio::test]
async fn no_more_is_asked_for_at_a_time_than_the_server_permits() {
    let limits = "jetstream { store_dir: \"$DIR/js\", limits { max_request_batch: 10 } }";
    let server = Server::configured_without_jetstream(limits).await;
    let context = client(&server).await;
    make(&context, named(&["a"])).await;
    publish(&context, "a", 0..100).await;
    let source = source(&server, &["a"]);
    assert_eq!(ledger(&read(&source, Start::Earliest).await, 100), []);
    let running = Running::start(source);
    running.until_messages(100).await;
    publish(&context, "a", 100..200).await;
    running.until_messages(200).await;
    assert_eq!(ledger(&running.recorder.items.lock(), 200), []);
}
