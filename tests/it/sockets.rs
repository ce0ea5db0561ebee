//! Unix sockets, and connections that a proxy announces (PROXY protocol).

use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use crate::support::bridge::{command, run};
use crate::support::certs::Certs;
use crate::support::{Bridge, PATIENCE, Raw, Sse, eventually};

const OPEN: &str = "reload: { watch: false }\n\
    auth: { anonymous: { subscribe: ['>'], publish: ['>'], beyond_loopback: true } }\n\
    sources: { inbox: { http: { subjects: ['demo.>'] } } }\n";

#[tokio::test]
async fn both_listeners_can_be_unix_sockets() {
    let config = format!("{OPEN}server: {{ trusted_proxies: [unix] }}\n");
    let builder = Bridge::builder(&config);
    let path = |name: &str| builder.folder().join(name).display().to_string();
    let (public, admin, file) = (path("bc.sock"), path("admin.sock"), path("config.yaml"));
    let [listen, admin_listen] =
        [("BROKERCAST__SERVER__LISTEN", &public), ("BROKERCAST__ADMIN__LISTEN", &admin)].map(|(key, path)| (key, format!("unix:{path}")));
    let mut bridge = builder.env(listen.0, &listen.1).env(admin_listen.0, &admin_listen.1).build();
    let client = |path: &str| reqwest::Client::builder().unix_socket(path).build().unwrap();
    let brokercast = async |args: &[&str]| {
        let mut command = command();
        command.args(args).args(["--config", &file]).env(listen.0, &listen.1).env(admin_listen.0, &admin_listen.1);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    };
    // The second time beside the files of the first, which was killed.
    for _ in 0..2 {
        bridge.launch();
        eventually("the bridge to be ready", async || {
            let answer = client(&admin).get("http://localhost/readyz").send().await.ok()?;
            (answer.status() == 200).then_some(())
        })
        .await;
        for path in [&public, &admin] {
            assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o7777, 0o660, "{path}");
        }
        let http = client(&public);
        let mut live = Sse::open(http.get("http://localhost/events?subject=demo.%3E").header("X-Forwarded-For", "192.0.2.9")).await;
        let mut http2 = Sse::open(
            reqwest::Client::builder().unix_socket(public.as_str()).http2_prior_knowledge().build().unwrap().get("http://localhost/events"),
        )
        .await;
        for sse in [&mut live, &mut http2] {
            sse.id().await;
        }
        assert!(brokercast(&["publish", "inbox", "demo.a", "1"]).await.status.success());
        assert_eq!((live.event().await.payload(), http2.event().await.payload()), (json!(1), json!(1)));
        let streams: Value = client(&admin).get("http://localhost/streams").send().await.unwrap().json().await.unwrap();
        let mut addresses: Vec<_> =
            streams["streams"].as_array().unwrap().iter().map(|stream| stream["address"].as_str().unwrap()).collect();
        addresses.sort_unstable();
        assert_eq!(addresses, ["0.0.0.0", "192.0.2.9"]);
        let health = brokercast(&["health"]).await;
        assert!(health.status.success(), "{}", String::from_utf8_lossy(&health.stderr));
        // By their addresses alone, whatever is configured.
        let [public, admin] = [&listen.1, &admin_listen.1].map(String::as_str);
        for args in [
            &["health", "--url", admin][..],
            &["check", "--explain", "--admin", admin, "--subject", "demo.a"],
            &["publish", "inbox", "demo.a", "2", "--url", public],
        ] {
            let output = run(&[args, &["--config", &file]].concat());
            assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        assert_eq!(live.event().await.payload(), json!(2));
        bridge.kill();
    }
    bridge.launch();
    eventually("the bridge to listen", async || tokio::net::UnixStream::connect(&public).await.ok()).await;
    assert_eq!(bridge.terminate().await.code(), Some(0));
    assert!(!std::path::Path::new(&public).exists() && !std::path::Path::new(&admin).exists());
}

#[tokio::test]
async fn a_trusted_proxy_announces_whose_connection_it_is() {
    let config = |server: &str| format!("{OPEN}server: {{ trusted_proxies: [192.0.2.7], {server} }}\n");
    let bridge = Bridge::start(&config("proxy_protocol: [127.0.0.0/8]")).await;
    let address = bridge.address();
    let get = format!("GET /events HTTP/1.1\r\nHost: {address}\r\nX-Forwarded-For: 198.51.100.1\r\n\r\n");
    let v2 = |command: u8| [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, 0x11, 0, 12, 192, 0, 2, 7, 127, 0, 0, 1, 1, 1, 2, 2]].concat();
    let send = async |header: &[u8]| {
        let mut raw = Raw::connect(&address).await;
        raw.send([header, get.as_bytes()].concat()).await;
        raw
    };
    let seen = async || {
        let streams: Value = bridge.http.get(bridge.admin_url("/streams")).send().await.unwrap().json().await.unwrap();
        streams["streams"][0]["address"].as_str().map(str::to_owned)
    };
    for (header, client) in [
        (b"PROXY TCP4 192.0.2.8 127.0.0.1 4711 80\r\n".to_vec(), "192.0.2.8"),
        // What is announced is a trusted proxy, and says who is behind it.
        (b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 80\r\n".to_vec(), "198.51.100.1"),
        (v2(0x21), "198.51.100.1"),
        (v2(0x20), "127.0.0.1"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
    ] {
        let mut raw = send(&header).await;
        assert_eq!(raw.head().await.status, 200);
        assert_eq!(seen().await.as_deref(), Some(client), "{}", String::from_utf8_lossy(&header));
        drop(raw);
        eventually("its slot", async || seen().await.is_none().then_some(())).await;
    }
    for header in [&b""[..], b"PROXY TCP4 192.0.2.300 127.0.0.1 1 2\r\n"] {
        assert_eq!(send(header).await.read_to_end().await, b"", "a trusted proxy without a header is closed");
    }
    // From others a header is no request.
    bridge.configure(&config("proxy_protocol: [10.0.0.0/8]"));
    assert_eq!(bridge.http.post(bridge.admin_url("/reload")).send().await.unwrap().status(), 200);
    for header in [b"PROXY TCP4 192.0.2.8 127.0.0.1 4711 80\r\n".to_vec(), v2(0x21)] {
        assert_eq!(send(&header).await.head().await.status, 400);
    }
    assert_eq!(send(b"").await.head().await.status, 200);
}

#[tokio::test]
async fn a_header_comes_before_tls() {
    let certs = Certs::new();
    let tls = format!("tls: {{ certificate: {:?}, private_key: {:?} }}", certs.path("server.crt"), certs.path("server.key"));
    let config = |networks: &str| format!("{OPEN}server: {{ proxy_protocol: [{networks}], {tls} }}\n");
    let bridge = Bridge::builder(&config("127.0.0.1")).tls(&certs.ca_pem).start().await;
    let url = bridge.url("/session");
    let curl = async |more: &[&'static str]| {
        let mut command = std::process::Command::new("curl");
        command.args(["-sS", "--noproxy", "*", "-m", "20", "--cacert"]).arg(certs.path("ca.crt")).args(more).arg(&url);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    };
    for version in ["--http1.1", "--http2"] {
        let output = curl(&["--haproxy-protocol", version]).await;
        assert!(String::from_utf8_lossy(&output.stdout).contains("identity"), "{output:?}");
    }
    assert!(!curl(&[]).await.status.success());
    bridge.configure(&config("10.0.0.0/8"));
    assert_eq!(bridge.http.post(bridge.admin_url("/reload")).send().await.unwrap().status(), 200);
    assert!(!curl(&["--haproxy-protocol"]).await.status.success());
    tokio::time::timeout(PATIENCE, curl(&[])).await.map(|output| assert!(output.status.success(), "{output:?}")).unwrap();
}
