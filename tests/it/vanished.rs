//! Clients that vanish without a word, and clients that only pause: in a network namespace of the test's own.

use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::bridge::OPEN;
use crate::support::{Bridge, Raw, eventually};

/// Where the clients are that vanish: the namespace loses this address.
const GONE: &str = "10.99.0.2";
const HEARTBEAT: Duration = Duration::from_millis(500);

#[tokio::test]
async fn vanished_clients_free_their_slots_and_paused_ones_are_kept() {
    let inner = tokio::task::spawn_blocking(|| {
        let program = std::env::current_exe().unwrap();
        Command::new("unshare")
            .args(["--map-root-user", "--net", "--"])
            .arg(program)
            .args(["--ignored", "--exact", "--nocapture", "vanished::inside_a_namespace"])
            .output()
            .expect("unshare; install it: apt-get install util-linux")
    });
    let output = inner.await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip; install it: apt-get install iproute2");
    assert!(status.success(), "ip {arguments}");
}

#[tokio::test]
#[ignore = "only in a network namespace of its own"]
async fn inside_a_namespace() {
    ip("link set lo up");
    ip(&format!("address add {GONE}/32 dev lo"));
    // The window shall hold what is published until the vanished are noticed, for those who pause.
    let settings = "server: { heartbeat: 500ms }\nsubscribers: { max_stall: 60s }\nwindow: { bytes: 256MiB }\n";
    let bridge = Bridge::start(&format!("{OPEN}\n{settings}")).await;
    let address = bridge.address();
    let request = |version: &str, subject: &str| format!("GET /events?subject={subject} HTTP/{version}\r\nHost: {address}\r\n\r\n");
    // By the loops (HTTP/1.1) and by hyper.
    let mut held = Vec::new();
    for version in ["1.1", "1.0"] {
        let mut raw = Raw::connect_from(GONE.parse().unwrap(), &address).await;
        raw.send(request(version, "demo.quiet")).await;
        raw.head().await;
        held.push(raw);
    }
    let gone: IpAddr = GONE.parse().unwrap();
    let http2 = reqwest::Client::builder().no_proxy().local_address(gone).http2_prior_knowledge().build().unwrap();
    let stream = http2.get(bridge.url("/events?subject=demo.quiet")).send().await.unwrap();
    assert_eq!(stream.version(), reqwest::Version::HTTP_2);
    // One that vanishes in the middle of much.
    let other = reqwest::Client::builder().no_proxy().local_address(gone).http2_prior_knowledge().build().unwrap();
    let mut busy = other.get(bridge.url("/events?subject=demo.busy")).send().await.unwrap();
    let busy = tokio::spawn(async move { while let Ok(Some(_)) = busy.chunk().await {} });
    let mut paused = Vec::new();
    for version in ["1.1", "1.0"] {
        let mut raw = Raw::connect_narrow(&address).await;
        raw.send(request(version, "demo.big")).await;
        raw.head().await;
        paused.push(raw);
    }
    let subscribers = async |count: f64| (bridge.metric("brokercast_subscribers", &[]).await == count).then_some(());
    eventually("all streams", async || subscribers(6.0).await).await;
    for _ in 0..100 {
        bridge.publish("demo.big", "x".repeat(10_000)).await;
    }
    let pause = Instant::now();
    // They have had heartbeats, which they acknowledged.
    tokio::time::sleep(2 * HEARTBEAT).await;
    ip(&format!("address delete {GONE}/32 dev lo"));
    let vanished = Instant::now();
    let flood = async {
        loop {
            bridge.publish("demo.busy", "x".repeat(200_000)).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = flood => {}
        () = eventually("the slots of those that have vanished", async || subscribers(2.0).await) => {}
    }
    println!("freed after {:?}", vanished.elapsed());
    tokio::time::sleep((9 * HEARTBEAT).saturating_sub(pause.elapsed())).await;
    assert_eq!(bridge.metric("brokercast_subscribers", &[]).await, 2.0, "{}", bridge.log());
    assert_eq!(bridge.metric("brokercast_stalled_connections_total", &[]).await, 0.0);
    bridge.publish("demo.big", "the-last").await;
    for raw in &mut paused {
        let text = raw.read_until("the-last").await;
        assert_eq!(text.matches("xxx\"}").count(), 100);
    }
    busy.abort();
    drop((held, stream));
}
