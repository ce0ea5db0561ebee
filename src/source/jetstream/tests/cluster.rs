//! A stream of a cluster whose servers stop one after the other.

use std::sync::atomic::{AtomicBool, AtomicUsize};

use tokio::task::JoinSet;

use super::*;
use crate::source::nats::tests::cluster::Cluster;

/// Publishes number after number every 5 ms; each is stored once, however often it is sent.
async fn write(context: jetstream::Context, written: Arc<AtomicUsize>, stop: Arc<AtomicBool>) {
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    while !stop.load(Ordering::SeqCst) {
        tick.tick().await;
        let n = written.load(Ordering::SeqCst);
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Msg-Id", n.to_string().as_str());
        let sent = async { context.publish_with_headers("a", headers, n.to_string().into()).await?.await };
        if matches!(timeout(Duration::from_secs(1), sent).await, Ok(Ok(_))) {
            written.store(n + 1, Ordering::SeqCst);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_a_cluster_loses_nothing_of_a_stream() {
    let mut cluster = Cluster::with_jetstream().await;
    let config = stream::Config { num_replicas: 3, ..named(&["a"]) };
    let context = jetstream::new(cluster.client(0).await);
    eventually("the stream", async || context.create_stream(config.clone()).await.map(drop).map_err(|e| e.to_string())).await;
    let json = serde_json::json!({"servers": [cluster.url(0)], "subjects": ["a"], "tls": {"ca": cluster.ca()},
        "jetstream": {"stream": "S"}});
    let running = Running::start(adapter(json));
    running.until_state(State::Up).await;
    let written = Arc::new(AtomicUsize::new(0));
    for n in 0..3 {
        let context = jetstream::new(cluster.client((n + 1) % 3).await);
        let stop = Arc::new(AtomicBool::new(false));
        let mut writer = JoinSet::new();
        writer.spawn(write(context.clone(), written.clone(), stop.clone()));
        cluster.servers[n].lame_duck().await;
        cluster.servers[n].revive().await;
        cluster.until_joined().await;
        eventually("all replicas", async || {
            let mut stream = context.get_stream("S").await.map_err(|e| e.to_string())?;
            let info = stream.info().await.map_err(|e| e.to_string())?;
            let replicas = info.cluster.as_ref().map(|cluster| cluster.replicas.clone()).unwrap_or_default();
            let current = replicas.len() == 2 && replicas.iter().all(|peer| peer.current && !peer.offline);
            if current { Ok(()) } else { Err(format!("{replicas:?}")) }
        })
        .await;
        stop.store(true, Ordering::SeqCst);
        writer.join_next().await.expect("writes").expect("no panic");
    }
    let all = written.load(Ordering::SeqCst);
    running.until_messages(all).await;
    assert_eq!(ledger(&running.recorder.items.lock(), all), []);
}
