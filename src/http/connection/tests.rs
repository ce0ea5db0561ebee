use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Poll;

use axum::routing::get;
use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use super::*;

const BOUNDS: Bounds = Bounds {
    handshake: Duration::from_millis(300),
    header: Duration::from_millis(300),
    stall: Duration::from_millis(400),
    heartbeat: Duration::from_secs(15),
    header_bytes: 16 << 10,
};

/// A listener that serves a greeting, an endless stream of large chunks, and one that waits.
struct Served {
    address: SocketAddr,
    ends: Ends,
    tasks: TaskTracker,
    /// Bodies that live.
    bodies: Arc<AtomicUsize>,
    stalled: Counter,
}

struct Living(Arc<AtomicUsize>);
impl Drop for Living {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Served {
    async fn start(tls: Option<Tls>) -> Self {
        Self::sharing(tls.map(Arc::new)).await
    }

    async fn sharing(tls: Option<Arc<Tls>>) -> Self {
        let bodies = Arc::new(AtomicUsize::new(0));
        let living = |bodies: &Arc<AtomicUsize>| {
            bodies.fetch_add(1, SeqCst);
            Living(bodies.clone())
        };
        let (torrent, quiet) = (bodies.clone(), bodies.clone());
        let torrent = move || {
            let chunks = stream::repeat(Bytes::from(vec![b'x'; 1 << 16]));
            let living = living(&torrent);
            async { Body::from_stream(futures_util::StreamExt::map(chunks, move |c| Ok::<_, Infallible>((c, &living).0))) }
        };
        let quiet = move || {
            let living = living(&quiet);
            let first = stream::once(async { Ok::<_, Infallible>(Bytes::from_static(b":\n\n")) });
            let rest = stream::poll_fn(move |_| {
                let _: &Living = &living;
                Poll::Pending
            });
            async { Body::from_stream(futures_util::StreamExt::chain(first, rest)) }
        };
        // A large event, and one behind it.
        let large = || async {
            let events = [Bytes::from(vec![b'x'; 256 << 10]), Bytes::from_static(b":\n\n")].map(Ok::<_, Infallible>);
            Body::from_stream(futures_util::StreamExt::chain(stream::iter(events), stream::pending()))
        };
        let verified = |request: Request| async move { request.extensions().get::<Peer>().unwrap().verified.to_string() };
        let router = Router::new()
            .route("/verified", get(verified))
            .route("/hello", get(|| async { "hello" }))
            .route("/torrent", get(torrent))
            .route("/large", get(large))
            .route("/quiet", get(quiet));
        let stalled = Counter::default();
        let ends = Ends::default();
        let tasks = TaskTracker::new();
        let server =
            Server::new(router, tls, BOUNDS, ends.clone(), tasks.clone(), Counts { stalled: stalled.clone(), ..Counts::default() }, None);
        let (listener, address) = super::super::listen::tests::loopback(Duration::from_secs(60));
        tasks.spawn(server.run(listener));
        Self { address, ends, tasks, bodies, stalled }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends and reads until the server closes, or what is expected has come.
    async fn talk(&self, parts: &[&str], until: &str) -> String {
        let mut socket = self.connect().await;
        for part in parts {
            socket.write_all(part.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        read_until(&mut socket, until).await
    }

    async fn bodies_fall_to(&self, n: usize) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.bodies.load(SeqCst) != n {
            assert!(Instant::now() < deadline, "{} bodies live", self.bodies.load(SeqCst));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.ends.accept.cancel();
        self.ends.cut.cancel();
    }
}

async fn read_until(socket: &mut (impl AsyncRead + Unpin), until: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while until.is_empty() || !text.contains(until) {
        match timeout(Duration::from_secs(10), socket.read(&mut buffer)).await.expect("an answer or an end") {
            Ok(0) | Err(_) => break,
            Ok(n) => text.push_str(&String::from_utf8_lossy(&buffer[..n])),
        }
    }
    text
}

type Sender = hyper::client::conn::http2::SendRequest<Empty<Bytes>>;

async fn http2(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, tasks: &TaskTracker) -> Sender {
    let (sender, connection) =
        hyper::client::conn::http2::Builder::new(TokioExecutor::new()).timer(TokioTimer::new()).handshake(TokioIo::new(io)).await.unwrap();
    tasks.spawn(connection);
    sender
}

fn ask(path: &str) -> http::Request<Empty<Bytes>> {
    http::Request::get(format!("http://localhost{path}")).body(Empty::new()).unwrap()
}

async fn greeting(sender: &mut Sender) -> Bytes {
    sender.send_request(ask("/hello")).await.unwrap().into_body().collect().await.unwrap().to_bytes()
}

#[tokio::test]
async fn both_versions_are_told_by_their_first_bytes() {
    let served = Served::start(None).await;
    assert!(served.talk(&["GET /hello HTTP/1.1\r\nHost: a\r\n\r\n"], "hello").await.ends_with("hello"));
    // What begins like the preface, but is none.
    let split = served.talk(&["P", "OST /hello HTTP/1.1\r\nHost: a\r\n\r\n"], "\r\n\r\n").await;
    assert!(split.starts_with("HTTP/1.1 405"), "{split}");
    let mut sender = http2(served.connect().await, &served.tasks).await;
    assert_eq!(greeting(&mut sender).await, "hello");
}

#[tokio::test]
async fn a_preface_that_comes_byte_by_byte_is_understood() {
    let served = Served::start(None).await;
    let mut socket = served.connect().await;
    socket.set_nodelay(true).unwrap();
    for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0" {
        socket.write_all(&[*byte]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut settings = [0; 9];
    timeout(Duration::from_secs(5), socket.read_exact(&mut settings)).await.unwrap().unwrap();
    assert_eq!(settings[3], 4, "a SETTINGS frame");
}

#[tokio::test]
async fn whoever_sends_no_request_in_time_is_let_go() {
    let served = Served::start(None).await;
    let began = Instant::now();
    let (silent, half, preface) = tokio::join!(
        served.talk(&[], ""),
        served.talk(&["GET / HTTP/1.1\r\nHos"], ""),
        served.talk(&["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], "")
    );
    assert_eq!((silent.as_str(), half.as_str()), ("", ""));
    assert!(!preface.contains("HTTP/1.1"));
    assert!((BOUNDS.header..BOUNDS.header * 8).contains(&began.elapsed()), "{:?}", began.elapsed());
    // One that keeps its connection open after a request as well.
    assert!(served.talk(&["GET /hello HTTP/1.1\r\nHost: a\r\n\r\n"], "").await.ends_with("hello"));
}

#[tokio::test]
async fn a_head_that_is_too_large_is_431() {
    let served = Served::start(None).await;
    let large = format!("GET /hello HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(17 << 10));
    let answer = served.talk(&[&large], "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let fits = format!("GET /hello HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(15 << 10));
    assert!(served.talk(&[&fits], "hello").await.ends_with("hello"));
    let mut sender = http2(served.connect().await, &served.tasks).await;
    let mut request = ask("/hello");
    request.headers_mut().insert("x", "x".repeat(17 << 10).parse().unwrap());
    assert_eq!(sender.send_request(request).await.unwrap().status(), 431);
}

#[tokio::test]
async fn a_peer_that_takes_nothing_is_cut_and_an_idle_one_is_kept() {
    let served = Served::start(None).await;
    let mut quiet = served.connect().await;
    quiet.write_all(b"GET /quiet HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    read_until(&mut quiet, ":\n\n").await;
    let mut stuck = served.connect().await;
    stuck.write_all(b"GET /torrent HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    read_until(&mut stuck, "xxxx").await;
    assert_eq!(served.bodies.load(SeqCst), 2);
    served.bodies_fall_to(1).await;
    assert_eq!(served.stalled.get(), 1);
    tokio::time::sleep(BOUNDS.stall * 2).await;
    assert_eq!(served.bodies.load(SeqCst), 1);
    drop(quiet);
    served.bodies_fall_to(0).await;
}

#[tokio::test]
async fn a_stream_of_http2_whose_window_stays_shut_is_dropped_and_its_siblings_are_kept() {
    let served = Served::start(None).await;
    let mut sender = http2(served.connect().await, &served.tasks).await;
    let mut quiet = sender.send_request(ask("/quiet")).await.unwrap();
    quiet.frame().await.unwrap().unwrap();
    let mut stuck = sender.send_request(ask("/torrent")).await.unwrap();
    assert_eq!(served.bodies.load(SeqCst), 2);
    served.bodies_fall_to(1).await;
    assert_eq!((served.stalled.get(), greeting(&mut sender).await), (1, Bytes::from_static(b"hello")));
    // Its client is told so, behind what the window let through.
    let reset = async {
        loop {
            if let Err(error) = stuck.frame().await.expect("an error before the end") {
                return error;
            }
        }
    };
    let reset = timeout(Duration::from_secs(10), reset).await.expect("a reset");
    assert!(format!("{reset:?}").contains("CANCEL"), "{reset:?}");
    drop((stuck, quiet));
    served.bodies_fall_to(0).await;
}

#[tokio::test]
async fn a_stream_of_http2_that_takes_a_large_event_slowly_gets_all_of_it() {
    let served = Served::start(None).await;
    let mut client = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    // A few KiB are sent each time that something is taken.
    client.timer(TokioTimer::new()).initial_stream_window_size(4096).adaptive_window(false);
    let (mut sender, connection) = client.handshake(TokioIo::new(served.connect().await)).await.unwrap();
    served.tasks.spawn(connection);
    let mut body = sender.send_request(ask("/large")).await.unwrap();
    let mut taken = 0;
    while taken < (256 << 10) + 3 {
        let frame = timeout(Duration::from_secs(10), body.frame()).await.expect("more of it").expect("no end");
        taken += frame.expect("no reset").into_data().unwrap().len();
        tokio::time::sleep(BOUNDS.stall / 16).await;
    }
    assert_eq!(served.stalled.get(), 0);
}

/// A frame of HTTP/2 (RFC 9113 section 4.1), for a client that opens its windows itself.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[tokio::test]
async fn streams_of_http2_that_share_a_slow_connection_are_kept_but_one_whose_window_stays_shut() {
    const STREAMS: u32 = 12;
    let served = Served::start(None).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 << 10).unwrap();
    let mut socket = socket.connect(served.address).await.unwrap();
    // GET http://a/torrent in HPACK (RFC 7541). All windows are shut at first.
    let head = b"\x82\x86\x04\x08/torrent\x01\x01a";
    let open = (1_u32 << 30).to_be_bytes();
    let mut hello = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]), &frame(8, 0, 0, &open)].concat();
    for stream in (0..STREAMS).map(|n| 2 * n + 1) {
        hello.extend(frame(1, 5, stream, head));
        if stream > 1 {
            hello.extend(frame(8, 0, stream, &open));
        }
    }
    socket.write_all(&hello).await.unwrap();
    let mut piece = vec![0; 8 << 10];
    let (mut taken, mut kept) = (0, 0);
    // Until the one is gone, and the others had their turn more than once.
    while kept < 1 << 20 {
        let n = timeout(Duration::from_secs(10), socket.read(&mut piece)).await.expect("more of it").unwrap();
        assert!(n > 0, "the end, after {taken} bytes");
        taken += n;
        let bodies = served.bodies.load(SeqCst);
        kept += if bodies < STREAMS as usize && taken > 64 << 10 { n } else { 0 };
        assert!(taken < 16 << 20, "{bodies} bodies live");
        tokio::time::sleep(BOUNDS.stall / 20).await;
    }
    assert_eq!((served.bodies.load(SeqCst), served.stalled.get()), (STREAMS as usize - 1, 1));
}

#[tokio::test]
async fn closing_waits_for_what_is_open_and_cutting_does_not() {
    let served = Served::start(None).await;
    let mut idle = served.connect().await;
    idle.write_all(b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    read_until(&mut idle, "hello").await;
    let mut open = served.connect().await;
    open.write_all(b"GET /quiet HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    read_until(&mut open, ":\n\n").await;
    let mut sender = http2(served.connect().await, &served.tasks).await;
    let mut open2 = sender.send_request(ask("/quiet")).await.unwrap();
    open2.frame().await.unwrap().unwrap();
    served.ends.accept.cancel();
    served.ends.close.cancel();
    assert_eq!(read_until(&mut idle, "").await, "");
    assert_eq!(served.bodies.load(SeqCst), 2);
    served.ends.cut.cancel();
    served.bodies_fall_to(0).await;
    drop((open, open2, sender));
    served.tasks.close();
    timeout(Duration::from_secs(5), served.tasks.wait()).await.expect("every task ends");
}

mod tls {
    use std::path::{Path, PathBuf};

    use rustls::pki_types::ServerName;
    use rustls::pki_types::pem::PemObject as _;

    use super::*;

    struct Files {
        certificate: PathBuf,
        private_key: PathBuf,
    }

    fn files(folder: &Path) -> (Files, rcgen::CertifiedKey<rcgen::KeyPair>) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let files = Files { certificate: folder.join("tls.crt"), private_key: folder.join("tls.key") };
        std::fs::write(&files.certificate, made.cert.pem()).unwrap();
        std::fs::write(&files.private_key, made.signing_key.serialize_pem()).unwrap();
        (files, made)
    }

    fn load(certificate: &Path, private_key: &Path) -> Result<Tls, Vec<String>> {
        let text = serde_json::json!({ "server": { "tls": { "certificate": certificate, "private_key": private_key } } }).to_string();
        crate::settings::tests::read(&text, |root| Tls::read(&root.key("server").section().key("tls").section()))
    }

    async fn client(
        served: &Served,
        made: &rcgen::CertifiedKey<rcgen::KeyPair>,
        alpn: &[&str],
    ) -> tokio_rustls::client::TlsStream<TcpStream> {
        client_with(served, made, alpn, None).await
    }

    /// `own`: the client's certificate and key.
    async fn client_with(
        served: &Served,
        made: &rcgen::CertifiedKey<rcgen::KeyPair>,
        alpn: &[&str],
        own: Option<(Vec<rustls::pki_types::CertificateDer<'static>>, rustls::pki_types::PrivateKeyDer<'static>)>,
    ) -> tokio_rustls::client::TlsStream<TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(roots);
        let mut config = match own {
            Some((chain, key)) => config.with_client_auth_cert(chain, key).unwrap(),
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        let name = ServerName::try_from("localhost").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, served.connect().await).await.unwrap()
    }

    #[tokio::test]
    async fn alpn_chooses_the_version() {
        let folder = tempfile::tempdir().unwrap();
        let (files, made) = files(folder.path());
        let served = Served::start(Some(load(&files.certificate, &files.private_key).unwrap())).await;
        let mut sender = http2(client(&served, &made, &["h2", "http/1.1"]).await, &served.tasks).await;
        assert_eq!(greeting(&mut sender).await, "hello");
        for alpn in [&["http/1.1"][..], &[]] {
            let mut io = client(&served, &made, alpn).await;
            io.write_all(b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            assert!(read_until(&mut io, "hello").await.ends_with("hello"));
        }
    }

    #[tokio::test]
    async fn a_stuck_peer_is_cut_under_tls_and_a_silent_handshake_ends() {
        let folder = tempfile::tempdir().unwrap();
        let (files, made) = files(folder.path());
        let served = Served::start(Some(load(&files.certificate, &files.private_key).unwrap())).await;
        let mut io = client(&served, &made, &["http/1.1"]).await;
        io.write_all(b"GET /torrent HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        read_until(&mut io, "xxxx").await;
        assert_eq!(served.bodies.load(SeqCst), 1);
        served.bodies_fall_to(0).await;
        let began = Instant::now();
        served.talk(&[], "").await;
        assert!((BOUNDS.handshake..BOUNDS.handshake * 8).contains(&began.elapsed()));
        served.talk(&["GET / HTTP/1.1\r\nHost: a\r\n\r\n"], "").await;
    }

    #[tokio::test]
    async fn a_client_may_show_a_certificate_of_the_client_ca_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let (files, made) = files(folder.path());
        let ca = |name: &str| {
            let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let key = rcgen::KeyPair::generate().unwrap();
            (params.self_signed(&key).unwrap().pem(), rcgen::Issuer::new(params, key))
        };
        let ((pem, ours), (other_pem, other)) = (ca("ours"), ca("other"));
        let trusting = |pem: &str| -> Tls {
            let client_ca = folder.path().join("clients.crt");
            std::fs::write(&client_ca, pem).unwrap();
            let text = serde_json::json!({ "admin": { "tls": {
                "certificate": files.certificate, "private_key": files.private_key, "client_ca": client_ca,
            } } });
            let tls = |root: &crate::settings::Section<'_>| Tls::read_admin(&root.key("admin").section().key("tls").section());
            crate::settings::tests::read(&text.to_string(), tls).unwrap()
        };
        let tls = Arc::new(trusting(&pem));
        assert!(tls.verifies_clients());
        let served = Served::sharing(Some(tls.clone())).await;
        let connect = async |issuer: Option<&rcgen::Issuer<'static, rcgen::KeyPair>>| {
            let own = issuer.map(|issuer| {
                let key = rcgen::KeyPair::generate().unwrap();
                let certificate = rcgen::CertificateParams::new(vec!["client".to_owned()]).unwrap().signed_by(&key, issuer).unwrap();
                let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
                (vec![certificate.der().clone()], key)
            });
            client_with(&served, &made, &[], own).await
        };
        let asked = async |issuer: Option<&rcgen::Issuer<'static, rcgen::KeyPair>>| {
            let mut io = connect(issuer).await;
            drop(io.write_all(b"GET /verified HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await);
            read_until(&mut io, "").await.rsplit("\r\n").next().unwrap_or_default().to_owned()
        };
        assert_eq!(asked(None).await, "false");
        assert_eq!(asked(Some(&ours)).await, "true");
        assert_eq!(asked(Some(&other)).await, "", "the handshake ends");
        // A connection outlives what its handshake went by.
        let mut io = connect(Some(&ours)).await;
        for (trusted, expected) in [(&pem, "true"), (&other_pem, "false"), (&(pem.clone() + &other_pem), "true")] {
            tls.configure(&trusting(trusted));
            io.write_all(b"GET /verified HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            let read = read_until(&mut io, "\r\n\r\n").await;
            let body = if read.ends_with("\r\n\r\n") { read_until(&mut io, "e").await } else { read };
            assert!(body.ends_with(expected), "{body}");
        }
    }

    #[test]
    fn files_that_make_no_server_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let (files, _) = files(folder.path());
        let (other, _) = {
            let other = folder.path().join("other");
            std::fs::create_dir(&other).unwrap();
            super::tls::files(&other)
        };
        let wrong = |certificate: &Path, private_key: &Path| load(certificate, private_key).unwrap_err().concat();
        let missing = folder.path().join("none");
        assert!(wrong(&missing, &files.private_key).contains("server.tls.certificate"));
        assert!(wrong(&files.private_key, &files.private_key).contains("server.tls.certificate"));
        assert!(wrong(&files.certificate, &missing).contains("server.tls.private_key"));
        assert!(wrong(&files.certificate, &files.certificate).contains("server.tls.private_key"));
        assert!(wrong(&files.certificate, &other.private_key).contains("server.tls"));
        let key = std::fs::read_to_string(&files.private_key).unwrap();
        for broken in crate::support::pem::tests::broken(&key) {
            std::fs::write(&other.private_key, broken).unwrap();
            let said = wrong(&files.certificate, &other.private_key);
            assert!(said.contains("server.tls.private_key") && !crate::support::pem::tests::quotes(&said, &key), "{said}");
            let said = wrong(&other.private_key, &files.private_key);
            assert!(said.contains("server.tls.certificate") && !crate::support::pem::tests::quotes(&said, &key), "{said}");
        }
        assert!(rustls::pki_types::CertificateDer::from_pem_file(&files.certificate).is_ok());
    }
}
