//! Streams that limit what they hold, and streams and servers that limit their consumers.

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

/// Waits for what a source reads after a first message of a stream with these limits, while a client is away; for what `meanwhile` does.
async fn after_the_first(
    config: stream::Config,
    meanwhile: impl AsyncFnOnce(&jetstream::Context, stream::Config),
) -> (Vec<String>, Vec<String>) {
    let server = Server::start().await;
    let context = client(&server).await;
    make(&context, config.clone()).await;
    let source_of = || source(&server, &["s.>"]);
    let (kept, fresh) = (source_of(), source_of());
    let running = Running::start(kept.clone());
    running.until_state(State::Up).await;
    store(&context, "s.start", 1).await;
    running.until_messages(1).await;
    let place = Start::After(position_of(&running.recorder.items.lock(), "x"));
    meanwhile(&context, config).await;
    let lengths = async |source| {
        let text = |item: &Item| {
            if let Item::Message(m) = item { m.payload.len().to_string() } else { texts(std::slice::from_ref(item)).remove(0) }
        };
        read(source, place).await.iter().map(text).collect()
    };
    (lengths(&kept).await, lengths(&fresh).await)
}

async fn store(context: &jetstream::Context, subject: &str, bytes: usize) {
    let payload = "x".repeat(bytes).into();
    context.publish(subject.to_owned(), payload).await.expect("publishes").await.expect("is stored");
}

#[tokio::test]
async fn what_a_streams_limit_took_is_told_though_newer_messages_replace_older_ones() {
    let config = stream::Config { max_bytes: 10_240, max_messages_per_subject: 1, ..named(&["s.>"]) };
    let meanwhile = async |context: &jetstream::Context, _| {
        for key in 0..9 {
            store(context, &format!("s.k{key}"), 900).await;
        }
        store(context, "s.big", 9000).await;
        store(context, "s.big", 5).await;
    };
    let expected = ["gap retention 1..10@9", "900", "5", "tail 12!"];
    let (kept, fresh) = after_the_first(config, meanwhile).await;
    assert_eq!((kept, fresh), (expected.map(str::to_owned).into(), expected.map(str::to_owned).into()));
}

#[tokio::test]
async fn what_a_limit_took_before_it_was_raised_is_told_as_retention() {
    let limited = || stream::Config { max_messages: 100, ..named(&["s.>"]) };
    let raised = async |context: &jetstream::Context, config: stream::Config| {
        for key in 0..300 {
            store(context, &format!("s.{key}"), 1).await;
        }
        context.update_stream(stream::Config { max_messages: 1000, ..config }).await.expect("updates");
    };
    for config in
        [stream::Config { max_messages_per_subject: 10, ..limited() }, stream::Config { allow_rollup: true, ..limited() }, limited()]
    {
        let (kept, _) = after_the_first(config, raised).await;
        assert_eq!((&*kept[0], kept.len()), ("gap retention 1..202@201", 102));
    }
}

#[tokio::test]
async fn what_was_replaced_is_no_gap_where_the_streams_limits_cannot_have_taken_it() {
    let keys = || stream::Config { max_messages_per_subject: 1, ..named(&["s.>"]) };
    let replaced = async |context: &jetstream::Context, _| {
        for n in 0..20 {
            store(context, ["s.start", "s.a", "s.b"][n % 3], 2000 + n).await;
        }
    };
    let discard = stream::DiscardPolicy::New;
    for config in [
        stream::Config { max_bytes: 1 << 30, max_messages: 1000, ..keys() },
        // Such a stream refuses new messages and takes no old ones.
        stream::Config { max_bytes: 10_240, discard, ..keys() },
        stream::Config { max_messages: 4, discard, ..keys() },
        keys(),
    ] {
        let (kept, fresh) = after_the_first(config, replaced).await;
        let expected = ["2017", "2018", "2019", "tail 21!"];
        assert_eq!((kept, fresh), (expected.map(str::to_owned).into(), expected.map(str::to_owned).into()));
    }
}
