//! What a delivery costs over TLS and HTTP/2, beside cleartext HTTP/1.1 in the same rounds.
//!
//! The clients are hyper's, for every transport alike; only the server's processor time counts.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::{JoinSet, LocalSet, spawn_local};
use tokio_rustls::TlsConnector;

use super::client::{AHEAD, MARK, Mode, PATIENCE, PUBLISHERS};
use super::servers::Server;
use super::{PAYLOAD, median, payload};

#[allow(clippy::unwrap_used, dead_code, unreachable_pub, reason = "it is the tests'")]
#[path = "../../tests/it/support/certs.rs"]
mod certs;

/// How its subscribers reach the server.
#[derive(Debug, Clone, Copy)]
struct Way {
    name: &'static str,
    tls: bool,
    /// Streams of each HTTP/2 connection.
    streams: Option<usize>,
}

const fn way(name: &'static str, tls: bool, streams: Option<usize>) -> Way {
    Way { name, tls, streams }
}

/// The first is what the others are compared with.
const WAYS: [Way; 8] = [
    way("HTTP/1.1", false, None),
    way("HTTP/1.1, TLS", true, None),
    way("HTTP/2, 1 stream", false, Some(1)),
    way("HTTP/2, 6 streams", false, Some(6)),
    way("HTTP/2, 100 streams", false, Some(100)),
    way("HTTP/2, 1 stream, TLS", true, Some(1)),
    way("HTTP/2, 6 streams, TLS", true, Some(6)),
    way("HTTP/2, 100 streams, TLS", true, Some(100)),
];

/// Compares all of them and prints a table for each mode.
pub(super) fn run(subscribers: usize, events: usize, rounds: usize) -> io::Result<()> {
    // Whoever installed one before is as good.
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let certs = certs::Certs::new();
    let pem = (certs.path("server.crt"), certs.path("server.key"));
    let most = subscribers * WAYS.len();
    let servers = [Server::brokercast(most, None)?, Server::brokercast(most, Some((&pem.0, &pem.1)))?];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let all = async {
        let mut crowds = Vec::new();
        for (n, way) in WAYS.into_iter().enumerate() {
            crowds.push(Crowd::connect(&servers[usize::from(way.tls)], way, n, subscribers, &certs.ca_pem).await?);
        }
        println!("transports: {subscribers} subscribers each, {PAYLOAD} bytes of payload");
        println!("deliveries per second of the server's processor time, and by how much that is of cleartext HTTP/1.1\n");
        for (mode, name, events) in [(Mode::OneAtATime, "one at a time", events), (Mode::InFlight, "in flight", events * 4)] {
            for crowd in &crowds {
                crowd.run(&mut crowd.open(mode, &certs.ca_pem).await?, events / 10 + 1, mode).await?;
            }
            let mut figures = vec![Vec::new(); WAYS.len()];
            for _ in 0..rounds {
                for (crowd, figures) in crowds.iter().zip(&mut figures) {
                    let server = &servers[usize::from(crowd.way.tls)];
                    let mut publishers = crowd.open(mode, &certs.ca_pem).await?;
                    let before = server.cpu()?;
                    crowd.run(&mut publishers, events, mode).await?;
                    let spent = server.cpu()?.saturating_sub(before);
                    figures.push((events * subscribers) as f64 / spent.as_secs_f64());
                }
            }
            println!("{name}, {events} events a round, medians of {rounds} rounds");
            println!("{:>26} {:>12} {:>7}", "", "deliveries", "ratio");
            for (way, of) in WAYS.into_iter().zip(&figures) {
                let ratio = median(of.iter().zip(&figures[0]).map(|(of, first)| of / first).collect());
                println!("{:>26} {:>12.0} {ratio:>7.2}", way.name, median(of.clone()));
            }
            println!();
        }
        Ok(())
    };
    LocalSet::new().block_on(&runtime, all)
}

/// All subscribers of one way.
struct Crowd {
    way: Way,
    state: Rc<State>,
    address: SocketAddr,
    /// An HTTP/2 connection ends when nobody can ask anything on it.
    _senders: Vec<Sender>,
}

#[derive(Default)]
struct State {
    path: String,
    subscribers: usize,
    published: Cell<usize>,
    delivered: Cell<usize>,
    ended: Cell<usize>,
    changed: Notify,
}

impl State {
    fn behind(&self) -> usize {
        self.published.get() * self.subscribers - self.delivered.get()
    }

    async fn until(&self, reached: impl Fn(&Self) -> bool) -> io::Result<()> {
        while !reached(self) {
            if self.ended.get() > 0 {
                return Err(io::Error::other("the server closed a stream"));
            }
            self.changed.notified().await;
        }
        Ok(())
    }
}

/// One connection's client.
enum Sender {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

impl Sender {
    async fn send(&mut self, host: SocketAddr, tls: bool, request: (&str, &str, Bytes)) -> io::Result<Response<Incoming>> {
        let (method, path, body) = request;
        let request = Request::builder().method(method).header("accept", "text/event-stream");
        let failed = |e: hyper::Error| io::Error::other(e);
        match self {
            Self::One(sender) => {
                let request = request.uri(path).header("host", host.to_string()).body(Full::new(body));
                sender.send_request(request.map_err(io::Error::other)?).await.map_err(failed)
            }
            Self::Two(sender) => {
                let scheme = if tls { "https" } else { "http" };
                let request = request.uri(format!("{scheme}://{host}{path}")).body(Full::new(body));
                sender.send_request(request.map_err(io::Error::other)?).await.map_err(failed)
            }
        }
    }

    async fn connect(address: SocketAddr, way: Way, ca: &str) -> io::Result<Self> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        if !way.tls {
            return Self::over(socket, way).await;
        }
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(ca.as_bytes()).map_err(io::Error::other)?;
        roots.add(ca).map_err(io::Error::other)?;
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![if way.streams.is_some() { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        let name = ServerName::from(address.ip());
        Self::over(TlsConnector::from(Arc::new(config)).connect(name, socket).await?, way).await
    }

    async fn over(io: impl AsyncRead + AsyncWrite + Unpin + 'static, way: Way) -> io::Result<Self> {
        let io = TokioIo::new(io);
        if way.streams.is_none() {
            let (sender, connection) = http1::handshake(io).await.map_err(io::Error::other)?;
            drop(spawn_local(connection));
            return Ok(Self::One(sender));
        }
        let (sender, connection) = http2::handshake(Local, io).await.map_err(io::Error::other)?;
        drop(spawn_local(connection));
        Ok(Self::Two(sender))
    }
}

/// Runs what belongs to an HTTP/2 connection on this thread.
#[derive(Clone)]
struct Local;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        drop(spawn_local(future));
    }
}

impl Crowd {
    /// Opens all streams, under a subject of their own, and waits until each has begun.
    async fn connect(server: &Server, way: Way, number: usize, subscribers: usize, ca: &str) -> io::Result<Self> {
        let state = Rc::new(State { path: format!("bench.way{number}"), subscribers, ..State::default() });
        let mut senders = Vec::new();
        for n in 0..subscribers {
            if n % way.streams.unwrap_or(1) == 0 {
                senders.push(Sender::connect(server.address, way, ca).await?);
            }
            let Some(sender) = senders.last_mut() else { continue };
            let path = format!("/events?subject={}", state.path);
            let answer = tokio::time::timeout(PATIENCE, sender.send(server.address, way.tls, ("GET", &path, Bytes::new()))).await??;
            if answer.status() != 200 {
                return Err(io::Error::other(format!("no stream: {}", answer.status())));
            }
            let mut body = answer.into_body();
            let first = body.frame().await.and_then(Result::ok);
            first.ok_or_else(|| io::Error::other("a stream ended at once"))?;
            let state = state.clone();
            drop(spawn_local(async move {
                while let Some(Ok(frame)) = body.frame().await {
                    let marks = frame.data_ref().map_or(0, |data| memchr::memchr_iter(MARK, data).count());
                    state.delivered.set(state.delivered.get() + marks);
                    if state.behind() < AHEAD * state.subscribers {
                        state.changed.notify_waiters();
                    }
                }
                state.ended.set(state.ended.get() + 1);
                state.changed.notify_waiters();
            }));
        }
        Ok(Self { way, state, address: server.address, _senders: senders })
    }

    /// Connections to publish on: a server closes those that are idle for long. HTTP/1.1 for every way, so that they
    /// differ in the deliveries.
    async fn open(&self, mode: Mode, ca: &str) -> io::Result<Vec<Sender>> {
        let way = Way { streams: None, ..self.way };
        let mut senders = Vec::new();
        for _ in 0..if mode == Mode::OneAtATime { 1 } else { PUBLISHERS } {
            senders.push(Sender::connect(self.address, way, ca).await?);
        }
        Ok(senders)
    }

    /// Publishes so many events, and returns when every subscriber has every one.
    async fn run(&self, publishers: &mut Vec<Sender>, events: usize, mode: Mode) -> io::Result<()> {
        let until = self.state.published.get() + events;
        let mut tasks = JoinSet::new();
        for publisher in publishers.drain(..) {
            tasks.spawn_local(publish(publisher, self.address, self.state.clone(), until, mode));
        }
        let all = async {
            while let Some(done) = tasks.join_next().await {
                publishers.push(done??);
            }
            self.state.until(|state| state.behind() == 0).await
        };
        let late = |_| io::Error::other(format!("{} deliveries did not come in time", self.state.behind()));
        tokio::time::timeout(PATIENCE, all).await.map_err(late)?
    }
}

/// Publishes one after the other, as far as the subscribers keep up, until so many have been published by all.
async fn publish(mut sender: Sender, address: SocketAddr, state: Rc<State>, until: usize, mode: Mode) -> io::Result<Sender> {
    let (path, payload) = (format!("/publish/{}", state.path), Bytes::from(payload()));
    let ahead = if mode == Mode::OneAtATime { 1 } else { AHEAD * state.subscribers };
    loop {
        state.until(|state| state.behind() < ahead).await?;
        if state.published.get() >= until {
            return Ok(sender);
        }
        state.published.set(state.published.get() + 1);
        let answer = sender.send(address, false, ("POST", &path, payload.clone())).await?;
        if answer.status() != 202 {
            return Err(io::Error::other(format!("not published: {}", answer.status())));
        }
        answer.into_body().collect().await.map_err(io::Error::other)?;
    }
}
