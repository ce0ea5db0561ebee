//! Clusters: servers that stop one after the other, and addresses that the settings do not name.

use std::sync::atomic::{AtomicBool, AtomicUsize};

use super::*;

/// Three servers of a cluster, with a certificate for `localhost` and no address.
pub(crate) struct Cluster {
    pub(crate) servers: Vec<Server>,
    folder: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Self {
        Self::with("").await
    }

    pub(crate) async fn with_jetstream() -> Self {
        Self::with("jetstream { store_dir: \"$DIR/js\" }").await
    }

    async fn with(more: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str| folder.path().join(name).display().to_string();
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate =
            rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters").self_signed(&key).expect("signs");
        std::fs::write(file("crt"), certificate.pem()).expect("writes");
        std::fs::write(file("key"), key.serialize_pem()).expect("writes");
        let port = || std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its number").port();
        let ports = [port(), port(), port()];
        let routes = ports.map(|port| format!("\"nats://127.0.0.1:{port}\"")).join(", ");
        let mut servers = Vec::new();
        for (n, port) in ports.into_iter().enumerate() {
            let lines = format!(
                "server_name: n{n}\ntls {{ cert_file: \"{}\", key_file: \"{}\" }}\n\
                 lame_duck_duration: \"30s\"\nlame_duck_grace_period: \"4s\"\n\
                 cluster {{ name: c, listen: \"127.0.0.1:{port}\", routes: [{routes}] }}\n{more}",
                file("crt"),
                file("key")
            );
            servers.push(Server::configured_without_jetstream(&lines).await);
        }
        let cluster = Self { servers, folder };
        cluster.until_joined().await;
        cluster
    }

    pub(crate) fn ca(&self) -> std::path::PathBuf {
        self.folder.path().join("crt")
    }

    pub(crate) fn url(&self, n: usize) -> String {
        format!("tls://localhost:{}", self.servers[n].port)
    }

    pub(crate) async fn client(&self, n: usize) -> async_nats::Client {
        let options = async_nats::ConnectOptions::new().require_tls(true).add_root_certificates(self.folder.path().join("crt"));
        options.connect(self.url(n)).await.expect("connects")
    }

    /// Waits until each server passes on what is published at another one.
    pub(crate) async fn until_joined(&self) {
        let clients = [self.client(0).await, self.client(1).await, self.client(2).await];
        for to in &clients {
            let mut inbox = to.subscribe("joined").await.expect("subscribes");
            to.flush().await.expect("flushes");
            for from in &clients {
                eventually("a message of another server", async || {
                    from.publish("joined", "".into()).await.expect("publishes");
                    from.flush().await.expect("flushes");
                    let came = tokio::time::timeout(Duration::from_millis(100), inbox.next()).await;
                    came.map(drop).map_err(|_| "none".to_owned())
                })
                .await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_a_cluster_loses_nothing_and_doubles_nothing() {
    let mut cluster = Cluster::start().await;
    // The settings name one address only.
    let json = serde_json::json!({"servers": [cluster.url(0)], "subjects": ["a.>"], "tls": {"ca": cluster.ca()}});
    let running = Running::start(adapter(json));
    running.until_state(State::Up).await;
    let sent = Arc::new(AtomicUsize::new(0));
    for n in 0..3 {
        let client = cluster.client((n + 1) % 3).await;
        let (stop, count) = (Arc::new(AtomicBool::new(false)), sent.clone());
        let stopped = stop.clone();
        let mut writer = tokio::task::JoinSet::new();
        writer.spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_millis(5));
            while !stopped.load(Ordering::SeqCst) {
                tick.tick().await;
                let number = count.fetch_add(1, Ordering::SeqCst);
                client.publish("a.b", number.to_string().into()).await.expect("publishes");
            }
            client.flush().await.expect("flushes");
        });
        cluster.servers[n].lame_duck().await;
        cluster.servers[n].revive().await;
        stop.store(true, Ordering::SeqCst);
        writer.join_next().await.expect("writes").expect("no panic");
        cluster.until_joined().await;
    }
    let all = sent.load(Ordering::SeqCst);
    running.until_messages(all).await;
    let expected: Vec<String> = (0..all).map(|n| n.to_string()).collect();
    assert_eq!(running.bodies(), expected);
    assert_eq!((running.gaps().len(), running.handle.counters.reconnects()), (0, 0));
}

#[tokio::test]
async fn a_server_of_the_cluster_that_the_settings_do_not_name_is_found_and_its_certificate_checked() {
    let mut cluster = Cluster::start().await;
    let json = serde_json::json!({"servers": [cluster.url(0)], "subjects": ["a"], "tls": {"ca": cluster.ca()}});
    let running = Running::start(adapter(json));
    running.until_state(State::Up).await;
    cluster.servers[0].kill();
    running.until_gap(GapReason::Reconnect).await;
    running.until_state(State::Up).await;
    let client = cluster.client(1).await;
    eventually("a message", async || {
        client.publish("a", "1".into()).await.expect("publishes");
        client.flush().await.expect("flushes");
        if running.bodies().is_empty() { Err("none".to_owned()) } else { Ok(()) }
    })
    .await;
}
