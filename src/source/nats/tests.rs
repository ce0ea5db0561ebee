//! Against real servers, each a process of its test with a port and a folder of its own.

pub(crate) mod cluster;
mod rights;

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use tokio::time::{Instant, sleep};

use super::*;
use crate::event::GapReason;
use crate::settings::tests::{path, read_at};
use crate::source::tests::{Rig, Running, conformance, eventually};
use crate::source::{ErrorKind, Item, State};

/// A server of one test.
pub(crate) struct Server {
    child: Option<Child>,
    pub(crate) port: u16,
    pub(crate) folder: tempfile::TempDir,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::configured("").await
    }

    /// With more lines of its configuration.
    pub(crate) async fn configured(lines: &str) -> Self {
        Self::configured_without_jetstream(&format!("jetstream {{ store_dir: \"$DIR/js\" }}\n{lines}")).await
    }

    /// With these lines of its configuration, in which `$DIR` is its folder.
    pub(crate) async fn configured_without_jetstream(lines: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its number").port();
        let dir = folder.path().display().to_string();
        let lines = lines.replace("$DIR", &dir);
        let text = format!("listen: \"127.0.0.1:{port}\"\n{lines}\n");
        std::fs::write(folder.path().join("nats.conf"), text).expect("writes");
        let mut server = Self { child: None, port, folder };
        server.revive().await;
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kills");
            child.wait().expect("ends");
        }
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let id = self.child.as_ref().expect("runs").id();
        let id = rustix::process::Pid::from_raw(i32::try_from(id).expect("an id")).expect("an id");
        rustix::process::kill_process(id, signal).expect("signals");
    }

    pub(crate) async fn terminate(&mut self) {
        self.end_by(rustix::process::Signal::TERM).await;
    }

    /// Tells its clients to go elsewhere, and ends when they have gone.
    pub(crate) async fn lame_duck(&mut self) {
        self.end_by(rustix::process::Signal::USR2).await;
    }

    async fn end_by(&mut self, signal: rustix::process::Signal) {
        self.signal(signal);
        if let Some(mut child) = self.child.take() {
            while child.try_wait().expect("asks").is_none() {
                sleep(Duration::from_millis(10)).await;
            }
        }
    }

    pub(crate) async fn revive(&mut self) {
        let log = self.folder.path().join("log");
        let program = std::env::var_os("BROKERCAST_TEST_NATS_SERVER").unwrap_or_else(|| "nats-server".into());
        let child = Command::new(program)
            .arg("-c")
            .arg(self.folder.path().join("nats.conf"))
            .arg("-l")
            .arg(&log)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.child = Some(child.expect("nats-server must be installed: apt-get install nats-server"));
        let deadline = Instant::now() + Duration::from_secs(20);
        while !std::fs::read_to_string(&log).unwrap_or_default().lines().any(|line| line.contains("Server is ready")) {
            assert!(Instant::now() < deadline, "nats-server did not start: {:?}", std::fs::read_to_string(&log));
            sleep(Duration::from_millis(10)).await;
        }
        std::fs::remove_file(&log).expect("its log");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn config(json: serde_json::Value) -> Result<Config, Vec<String>> {
    read_at(&["sources", "s", "nats"], &json, Config::read)
}

pub(crate) fn adapter(json: serde_json::Value) -> Arc<dyn Adapter> {
    config(json).expect("valid").build()(&"s".parse().expect("a name"))
}

struct CoreRig {
    server: Server,
    client: Option<async_nats::Client>,
}

impl Rig for CoreRig {
    fn adapter(&self) -> Arc<dyn Adapter> {
        adapter(serde_json::json!({"servers": [self.server.url()], "subjects": ["a.>"]}))
    }
    fn publish<'a>(&'a mut self, body: &'a str) -> LocalBoxFuture<'a, ()> {
        Box::pin(async move {
            if self.client.is_none() {
                self.client = Some(async_nats::connect(self.server.url()).await.expect("connects"));
            }
            let client = self.client.as_ref().expect("just made");
            client.publish("a.b", body.to_owned().into()).await.expect("publishes");
            client.flush().await.expect("flushes");
        })
    }
    fn kill(&mut self) -> LocalBoxFuture<'_, bool> {
        self.client = None;
        self.server.kill();
        Box::pin(async { true })
    }
    fn revive(&mut self) -> LocalBoxFuture<'_, ()> {
        Box::pin(self.server.revive())
    }
}

#[tokio::test]
async fn core_nats_conforms() {
    conformance(&mut CoreRig { server: Server::start().await, client: None }).await;
}

#[tokio::test]
async fn several_subscriptions_deliver_once_and_each_keeps_its_order() {
    let server = Server::start().await;
    let subjects = ["a.>", "a.b", "x.*.1", "x.y.*", "z"];
    let running = Running::start(adapter(serde_json::json!({"servers": [server.url()], "subjects": subjects})));
    running.until_state(State::Up).await;
    let client = async_nats::connect(server.url()).await.expect("connects");
    for n in 0..2000 {
        let subject = ["a.b", "x.y.1", "z", "x.w.1", "x.y.2", "a.b.c"][n % 6];
        client.publish(subject, n.to_string().into()).await.expect("publishes");
        client.publish("other", "never".into()).await.expect("publishes");
    }
    client.flush().await.expect("flushes");
    running.until_messages(2000).await;
    sleep(Duration::from_millis(100)).await;
    let came: Vec<usize> = running.bodies().iter().map(|body| body.parse().expect("a number")).collect();
    assert_eq!(came.iter().copied().collect::<BTreeSet<_>>().len(), 2000);
    assert_eq!(came.len(), 2000);
    // The patterns that are left: `a.>`, `x.*.1`, `x.y.*` without what the one before has, `z`.
    for subscription in [&[0, 5][..], &[1, 3], &[4], &[2]] {
        assert!(came.iter().filter(|n| subscription.contains(&(**n % 6))).is_sorted(), "{subscription:?}");
    }
    running.stop().await;
}

#[tokio::test]
async fn a_queue_group_shares_messages() {
    let server = Server::start().await;
    let json = serde_json::json!({"servers": [server.url()], "subjects": ["a.>"], "queue_group": "g"});
    let (one, two) = (Running::start(adapter(json.clone())), Running::start(adapter(json)));
    one.until_state(State::Up).await;
    two.until_state(State::Up).await;
    let client = async_nats::connect(server.url()).await.expect("connects");
    for n in 0..200 {
        client.publish("a.b", n.to_string().into()).await.expect("publishes");
    }
    eventually("200 in all", async || {
        let (a, b) = (one.bodies().len(), two.bodies().len());
        if a + b == 200 { Ok(()) } else { Err(format!("{a} + {b}")) }
    })
    .await;
    assert!(!one.bodies().is_empty() && !two.bodies().is_empty());
}

#[tokio::test]
async fn whatever_a_publisher_sends_arrives_under_a_valid_subject() {
    let server = Server::start().await;
    let running = Running::start(adapter(serde_json::json!({"servers": [server.url()], "subjects": [">"]})));
    running.until_state(State::Up).await;
    // By hand: a client library would refuse some.
    let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", server.port)).await.expect("connects");
    let mut bytes = b"CONNECT {\"verbose\":false,\"headers\":true}\r\n".to_vec();
    bytes.extend_from_slice(
        b"PUB a%b 2\r\n\xff\x00\r\nPUB caf\xc3\xa9.x 0\r\n\r\nHPUB with.head 18 20\r\nNATS/1.0\r\nA: b\r\n\r\nhi\r\nPUB last 1\r\n1\r\n",
    );
    tokio::io::AsyncWriteExt::write_all(&mut socket, &bytes).await.expect("writes");
    running.until_messages(4).await;
    let items = running.recorder.items.lock().clone();
    let name = |item: &Item| if let Item::Message(m) = item { (m.subject.to_string(), m.payload.clone()) } else { panic!("{item:?}") };
    let names: Vec<_> = items.iter().map(name).collect();
    let expected: [(&str, &[u8]); 4] = [("a%25b", b"\xff\x00"), ("café.x", b""), ("with.head", b"hi"), ("last", b"1")];
    for ((subject, payload), (s, p)) in names.iter().zip(expected) {
        assert_eq!((&**subject, &payload[..]), (s, p));
    }
}

#[tokio::test]
async fn each_way_to_say_who_we_are_works_and_a_wrong_one_is_told_without_its_secret() {
    let pair = nkeys::KeyPair::new_user();
    let seed = pair.seed().expect("a seed");
    let ways = [
        ("authorization { user: u, password: \"s3cret pw\" }".to_owned(), serde_json::json!({"user": "u", "password": "s3cret pw"})),
        ("authorization { token: s3cret-token }".to_owned(), serde_json::json!({"token": "s3cret-token"})),
        (format!("authorization {{ users: [ {{ nkey: {} }} ] }}", pair.public_key()), serde_json::json!({"nkey": seed})),
    ];
    for (lines, way) in ways {
        let server = Server::configured(&lines).await;
        let base = serde_json::json!({"servers": [server.url()], "subjects": ["a"]});
        let merged = |way: &serde_json::Value| {
            let mut json = base.clone();
            json.as_object_mut().expect("a map").extend(way.as_object().expect("a map").clone());
            json
        };
        adapter(merged(&way)).connect(Start::Now).await.map(|_| ()).expect("is let in");
        adapter(merged(&way)).publish("a", "1".into()).await.expect("publishes");
        let wrong = serde_json::json!({"user": "u", "password": "s3cret wrong"});
        for bad in [&wrong, &serde_json::json!({})] {
            let error = adapter(merged(bad)).connect(Start::Now).await.err().expect("is refused");
            let text = crate::support::causes::chain(&error);
            assert!(error.kind() == ErrorKind::Denied && text.contains("Authorization Violation"), "{text}");
            assert!(!text.contains("s3cret"), "{text}");
        }
    }
    let server = Server::configured("authorization { user: u, password: \"p@ss\" }").await;
    let url = format!("nats://u:p%40ss@127.0.0.1:{}", server.port);
    let source = adapter(serde_json::json!({"servers": [url], "subjects": ["a"]}));
    source.connect(Start::Now).await.map(|_| ()).expect("is let in by the address");
}

/// When JWTs expire here, in seconds since 1970.
const EXPIRY: u64 = 4_000_000_000;

/// A JWT of NATS: claims about `subject`, signed by `by`.
fn nats_jwt(kind: &str, subject: &nkeys::KeyPair, by: &nkeys::KeyPair) -> String {
    use base64::Engine as _;
    let text = |json: serde_json::Value| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json.to_string());
    let claims = serde_json::json!({"jti": kind, "iat": 1, "exp": EXPIRY, "iss": by.public_key(), "name": kind, "sub": subject.public_key(),
        "nats": {"type": kind, "version": 2, "subs": -1, "data": -1, "payload": -1,
            "limits": {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1}}});
    let signed = format!("{}.{}", text(serde_json::json!({"typ": "JWT", "alg": "ed25519-nkey"})), text(claims));
    let signature = by.sign(signed.as_bytes()).expect("signs");
    format!("{signed}.{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(signature))
}

#[tokio::test]
async fn a_credentials_file_says_who_we_are() {
    let (operator, account, user) = (nkeys::KeyPair::new_operator(), nkeys::KeyPair::new_account(), nkeys::KeyPair::new_user());
    let lines = format!(
        "operator: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {} }}",
        nats_jwt("operator", &operator, &operator),
        account.public_key(),
        nats_jwt("account", &account, &operator)
    );
    let server = Server::configured_without_jetstream(&lines).await;
    let file = server.folder.path().join("user.creds");
    let (jwt, seed) = (nats_jwt("user", &user, &account), user.seed().expect("a seed"));
    let text = format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    std::fs::write(&file, text).expect("writes");
    let json = serde_json::json!({"servers": [server.url()], "subjects": ["a"], "credentials_file": file});
    let source = adapter(json.clone());
    let running = Running::start(source.clone());
    running.until_state(State::Up).await;
    assert_eq!(source.gauges().expires.token, Some(EXPIRY));
    adapter(json.clone()).publish("a", "1".into()).await.expect("publishes");
    running.until_messages(1).await;
    let source = adapter(json.clone());
    std::fs::write(&file, "nothing").expect("writes");
    let problems = config(json).expect_err("it is no such file");
    assert!(matches!(&problems[..], [one] if one.contains("credentials_file: must hold a user's JWT and seed")), "{problems:?}");
    let error = source.connect(Start::Now).await.err().expect("is refused");
    assert_eq!(error.kind(), ErrorKind::Configuration);
    assert!(crate::support::causes::chain(&error).contains("is no NATS credentials file"));
}

#[tokio::test]
async fn a_subject_that_is_not_allowed_and_a_server_that_is_none_are_told() {
    let lines = "authorization { users: [ { user: u, password: p, permissions: { subscribe: \"a.>\", publish: \"a.>\" } } ] }";
    let server = Server::configured(lines).await;
    let json = |subject: &str| serde_json::json!({"servers": [server.url()], "subjects": [subject], "user": "u", "password": "p"});
    adapter(json("a.b")).connect(Start::Now).await.map(|_| ()).expect("is allowed");
    let error = adapter(json("b.b")).connect(Start::Now).await.err().expect("is not allowed");
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.to_string().contains("Permissions Violation for Subscription to"), "{error}");
    let error = adapter(json("a.b")).publish("b.b", "1".into()).await.expect_err("is not allowed");
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.to_string().contains("Permissions Violation for Publish"), "{error}");

    let other = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let url = format!("nats://{}", other.local_addr().expect("an address"));
    let source = adapter(serde_json::json!({"servers": [url], "subjects": ["a"]}));
    let (error, ()) = tokio::join!(source.connect(Start::Now), async {
        let (mut socket, _) = other.accept().await.expect("a client");
        tokio::io::AsyncWriteExt::write_all(&mut socket, b"SSH-2.0-OpenSSH_9.2\r\n").await.expect("writes");
        sleep(Duration::from_millis(100)).await;
    });
    let error = error.err().expect("is none");
    assert_eq!(error.kind(), ErrorKind::Protocol);
    let text = crate::support::causes::chain(&error);
    assert!(text.contains("does not speak the NATS protocol"), "{text}");
}

#[tokio::test]
async fn tls_with_an_own_authority_and_a_client_certificate() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path();
    let ca_key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).expect("an authority");
    let issuer = rcgen::Issuer::new(params, ca_key);
    std::fs::write(dir.join("ca.pem"), ca.pem()).expect("writes");
    for (file, names) in [("server", vec!["127.0.0.1".to_owned()]), ("client", vec!["me".to_owned()])] {
        let key = rcgen::KeyPair::generate().expect("a key");
        let cert = rcgen::CertificateParams::new(names).expect("parameters").signed_by(&key, &issuer).expect("a certificate");
        std::fs::write(dir.join(format!("{file}.pem")), cert.pem()).expect("writes");
        std::fs::write(dir.join(format!("{file}.key")), key.serialize_pem()).expect("writes");
    }
    let d = dir.display();
    let server = Server::configured(&format!(
        "tls {{ cert_file: \"{d}/server.pem\", key_file: \"{d}/server.key\", ca_file: \"{d}/ca.pem\", verify: true }}"
    ))
    .await;
    let url = format!("tls://127.0.0.1:{}", server.port);
    let file = |name: &str| dir.join(name).display().to_string();
    let good = serde_json::json!({"servers": [url], "subjects": ["a"],
        "tls": {"ca": file("ca.pem"), "certificate": file("client.pem"), "private_key": file("client.key")}});
    let running = Running::start(adapter(good.clone()));
    running.until_state(State::Up).await;
    adapter(good).publish("a", "by TLS".into()).await.expect("publishes");
    running.until_messages(1).await;
    assert_eq!(running.bodies(), ["by TLS"]);

    let strange = serde_json::json!({"servers": [url], "subjects": ["a"]});
    let error = adapter(strange).connect(Start::Now).await.err().expect("an unknown authority");
    assert_eq!(error.kind(), ErrorKind::Configuration);
    let text = crate::support::causes::chain(&error);
    assert!(text.contains("TLS"), "{text}");
    let plain = Server::start().await;
    let wants = serde_json::json!({"servers": [plain.url()], "subjects": ["a"], "tls": {"ca": file("ca.pem")}});
    let error = adapter(wants).connect(Start::Now).await.err().expect("never in the clear");
    assert!(crate::support::causes::chain(&error).contains("TLS"));

    // Servers that begin with TLS: newer ones do so by a setting, before an older one a proxy does.
    let newer = std::env::var_os("BROKERCAST_TEST_NATS_SERVER").is_some();
    let lines = format!("tls {{ cert_file: \"{d}/server.pem\", key_file: \"{d}/server.key\", handshake_first: true }}");
    let (server, proxy) = if newer { (Server::configured(&lines).await, None) } else { (plain, Some(TlsProxy::bind(dir).await)) };
    let port = proxy.as_ref().map_or(server.port, |proxy| proxy.port);
    let with = |handshake_first: bool| {
        adapter(serde_json::json!({"servers": [format!("tls://127.0.0.1:{port}")], "subjects": ["a"],
            "tls": {"ca": file("ca.pem"), "handshake_first": handshake_first}}))
    };
    let reading = async {
        let running = Running::start(with(true));
        running.until_state(State::Up).await;
        with(true).publish("a", "TLS first".into()).await.expect("publishes");
        running.until_messages(1).await;
        assert_eq!(running.bodies(), ["TLS first"]);
        assert!(with(false).connect(Start::Now).await.is_err(), "the server waits for TLS");
    };
    match &proxy {
        Some(proxy) => tokio::select! { () = reading => {}, () = proxy.serve(server.port) => {} },
        None => reading.await,
    }
}

/// Takes TLS off connections before they reach a server.
struct TlsProxy {
    port: u16,
    listener: tokio::net::TcpListener,
    acceptor: tokio_rustls::TlsAcceptor,
}

impl TlsProxy {
    async fn bind(dir: &std::path::Path) -> Self {
        use rustls::pki_types::pem::PemObject as _;
        use rustls::pki_types::{CertificateDer, PrivateKeyDer};
        let chain = vec![CertificateDer::from_pem_file(dir.join("server.pem")).expect("a certificate")];
        let key = PrivateKeyDer::from_pem_file(dir.join("server.key")).expect("a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
        let config = config.with_no_client_auth().with_single_cert(chain, key).expect("fits");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        Self { port: listener.local_addr().expect("its number").port(), listener, acceptor: Arc::new(config).into() }
    }

    async fn serve(&self, target: u16) {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((socket, _)) = self.listener.accept().await {
            let acceptor = self.acceptor.clone();
            connections.spawn(async move {
                let mut inside = tokio::net::TcpStream::connect(("127.0.0.1", target)).await?;
                let mut outside = acceptor.accept(socket).await?;
                tokio::io::copy_bidirectional(&mut outside, &mut inside).await
            });
        }
    }
}

#[tokio::test]
async fn a_reader_that_stalls_loses_nothing_or_tells_a_gap() {
    let server = Server::start().await;
    let running = Running::start(adapter(serde_json::json!({"servers": [server.url()], "subjects": ["a"]})));
    running.until_state(State::Up).await;
    let client = async_nats::connect(server.url()).await.expect("connects");
    let overflown = || running.gaps().iter().any(|gap| gap.reason == GapReason::Overflow);
    let mut sent = 0;
    let mut publish = async |count: u64| {
        for n in sent..sent + count {
            client.publish("a", n.to_string().into()).await.expect("publishes");
        }
        client.flush().await.expect("flushes");
        sent += count;
        sent
    };
    // Until so much came while nothing was taken that the library's queue was full.
    let burst = loop {
        running.recorder.stalled.store(true, Ordering::SeqCst);
        let sent = publish(100_000).await;
        running.recorder.stalled.store(false, Ordering::SeqCst);
        let last = (sent - 1).to_string();
        let done = || overflown() || running.bodies().last() == Some(&last);
        eventually("the burst's end", async || done().then_some(()).ok_or(String::new())).await;
        if overflown() {
            break sent;
        }
    };
    let last = (publish(100).await - 1).to_string();
    eventually("the last", async || (running.bodies().last() == Some(&last)).then_some(()).ok_or(String::new())).await;
    // In order, and behind the last hole there is a gap before anything that came later.
    let (mut next, mut holes, mut told) = (0, 0, true);
    for item in &*running.recorder.items.lock() {
        match item {
            Item::Message(message) => {
                let n: u64 = String::from_utf8_lossy(&message.payload).parse().expect("a number");
                assert!(n >= next, "{n} came where {next} was expected");
                assert!(n < burst || told || n == next, "nothing tells of what is missing before {n}");
                told &= n == next;
                holes += u64::from(n != next);
                next = n + 1;
            }
            Item::Gap(_) => told = true,
            Item::Tail(_) | Item::Oversized(_) => panic!("no log and no limit"),
        }
    }
    assert!(holes > 0, "nothing was dropped");
}

#[tokio::test]
async fn a_server_that_is_dead_without_a_word_is_noticed_and_left_for_another() {
    let (first, second) = (Server::start().await, Server::start().await);
    first.signal(rustix::process::Signal::STOP);
    let source = serde_json::json!({"servers": [first.url(), second.url()], "subjects": ["a"]});
    let running = Running::start(adapter(source));
    running.until_state(State::Up).await;
    first.signal(rustix::process::Signal::CONT);
    second.signal(rustix::process::Signal::STOP);
    let at = Instant::now();
    running.until_gap(GapReason::Reconnect).await;
    assert!(at.elapsed() < Duration::from_secs(15), "took {:?}", at.elapsed());
    adapter(serde_json::json!({"servers": [first.url()], "subjects": ["a"]})).publish("a", "1".into()).await.expect("publishes");
    running.until_messages(1).await;
    second.signal(rustix::process::Signal::CONT);
}

#[test]
fn settings_are_checked_all_at_once_and_no_value_is_echoed() {
    let bad = serde_json::json!({
        "servers": ["http://h", "nats://h:99999", "ok:4222"], "subjects": ["a..b"], "queue_group": "a b",
        "user": "u", "token": "s3cret", "nkey": "s3cret", "tls": {"certificate": "c"},
        "jetstream": {"stream": "a.b", "create": {"replicas": 9, "max_bytes": 0}}
    });
    let problems = config(bad).expect_err("is refused");
    let paths: BTreeSet<_> = problems.iter().map(|line| path(line).trim_start_matches("sources.s.nats")).collect();
    let expected = [
        ".servers[0]",
        ".servers[1]",
        ".subjects[0]",
        ".queue_group",
        ".password",
        ".nkey",
        ".tls.private_key",
        ".jetstream.stream",
        ".jetstream.create.replicas",
        ".jetstream.create.max_bytes",
    ];
    assert_eq!(paths, BTreeSet::from(expected));
    assert!(!format!("{problems:?}").contains("s3cret"));
    let good = config(serde_json::json!({"servers": ["nats://me:s3cret@h"], "subjects": ["a"], "token": "s3cret"})).expect("valid");
    assert!(!format!("{good:?}").contains("s3cret"), "{good:?}");
    assert_eq!(good.servers[0].to_string(), "nats://h:4222");
}

#[test]
fn what_a_server_says_at_the_end_has_a_kind() {
    for (said, kind) in [
        ("Permissions Violation for Subscription to \"invalid.timeout\"", ErrorKind::Denied),
        ("authorization violation", ErrorKind::Denied),
        ("User Authentication Expired", ErrorKind::Denied),
        ("maximum account active connections exceeded", ErrorKind::Denied),
        ("Authentication Timeout", ErrorKind::Lost),
        ("Stale Connection", ErrorKind::Lost),
        ("Unknown Protocol Operation", ErrorKind::Protocol),
        ("Maximum Payload Violation", ErrorKind::Protocol),
    ] {
        assert_eq!(wire::kind(said), kind, "{said}");
    }
}

#[test]
fn overlapping_patterns_become_few_and_disjoint_by_order() {
    let of = |texts: &[&str]| {
        let patterns: Vec<Pattern> = texts.iter().map(|t| t.parse().expect("a pattern")).collect();
        let text = |p: &Pattern| p.to_string();
        let kept = crate::subject::minimal(patterns);
        let earlier = |n: usize| inbox::meeting(&kept[..n], &kept[n]).iter().map(text).collect();
        kept.iter().enumerate().map(|(n, pattern)| (text(pattern), earlier(n))).collect::<Vec<(_, Vec<_>)>>()
    };
    let pair = |a: &str, b: &[&str]| (a.to_owned(), b.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>());
    assert_eq!(of(&["a.b", "a.>", "a.>"]), [pair("a.>", &[])]);
    assert_eq!(of(&["a", "a"]), [pair("a", &[])]);
    assert_eq!(of(&["x.*.1", "x.y.*", "z"]), [pair("x.*.1", &[]), pair("x.y.*", &["x.*.1"]), pair("z", &[])]);
}
