//! A server that is killed, stopped and frozen under a writer who never gives up and a reader that stalls.

use std::sync::atomic::{AtomicBool, AtomicUsize};

use async_nats::HeaderMap;
use rand::seq::IndexedRandom as _;
use rustix::process::Signal;
use tokio::task::JoinSet;

use super::*;

/// Publishes number after number; each is stored once, however often it is sent.
async fn write(url: String, written: Arc<AtomicUsize>, stop: Arc<AtomicBool>) {
    let mut context: Option<jetstream::Context> = None;
    while !stop.load(Ordering::SeqCst) {
        let n = written.load(Ordering::SeqCst);
        let Some(open) = &context else {
            let connecting = async_nats::ConnectOptions::new().request_timeout(Some(Duration::from_millis(500))).connect(&url);
            match timeout(Duration::from_millis(500), connecting).await {
                Ok(Ok(client)) => context = Some(jetstream::new(client)),
                _ => sleep(Duration::from_millis(50)).await,
            }
            continue;
        };
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", n.to_string().as_str());
        let subject = if n.is_multiple_of(3) { "a.x" } else { "a.y" };
        let sent = async { open.publish_with_headers(subject, headers, n.to_string().into()).await?.await };
        match timeout(Duration::from_millis(800), sent).await {
            Ok(Ok(_)) => written.store(n + 1, Ordering::SeqCst),
            _ => context = None,
        }
        // A message of somebody else's between.
        if n.is_multiple_of(7)
            && let Some(open) = &context
        {
            open.publish("b", "other".into()).await.map(drop).unwrap_or_default();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_or_declared_lost_in_a_storm() {
    let mut server = Server::start().await;
    make(&client(&server).await, named(&["a.*", "b"])).await;
    let source = source(&server, &["a.x", "a.y"]);
    let running = Running::start(source.clone());
    running.until_state(State::Up).await;
    let (written, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let mut writer = JoinSet::new();
    writer.spawn(write(server.url(), written.clone(), stop.clone()));
    let pause = |most: u64| sleep(Duration::from_millis(rand::random_range(0..most)));
    for _ in 0..8 {
        pause(400).await;
        match ["kill", "kill", "terminate", "freeze", "stall"].choose(&mut rand::rng()) {
            Some(&"kill") => {
                server.kill();
                pause(300).await;
                server.revive().await;
            }
            Some(&"terminate") => {
                server.terminate().await;
                pause(300).await;
                server.revive().await;
            }
            Some(&"freeze") => {
                server.signal(Signal::STOP);
                pause(1500).await;
                server.signal(Signal::CONT);
            }
            _ => {
                running.recorder.stalled.store(true, Ordering::SeqCst);
                pause(500).await;
                running.recorder.stalled.store(false, Ordering::SeqCst);
            }
        }
    }
    stop.store(true, Ordering::SeqCst);
    writer.join_next().await.expect("was running").expect("no panic");
    let written = written.load(Ordering::SeqCst);
    running.until_messages(written).await;
    // The last one may have been stored without the writer's knowing: then it is in the log, and about to come.
    let stored = texts(&read(&source, Start::Earliest).await).into_iter().filter(|text| !text.starts_with("tail")).count();
    running.until_messages(stored).await;
    let items = running.recorder.items.lock().clone();
    let last = running.bodies().len();
    assert!(last <= written + 1, "{last} of {written}");
    assert_eq!(ledger(&items, last), []);
    // Whoever stood anywhere goes on from there.
    for _ in 0..20 {
        let from = rand::random_range(0..written);
        let read = read(&source, Start::After(position_of(&items, &from.to_string()))).await;
        let bodies: Vec<_> = texts(&read).into_iter().filter(|text| !text.starts_with("tail")).collect();
        let expected: Vec<_> = (from + 1..last).map(|n| n.to_string()).collect();
        assert_eq!(bodies, expected);
    }
    running.stop().await;
}
