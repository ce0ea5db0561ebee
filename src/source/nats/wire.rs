//! A connection to a NATS server: the greeting, who we are, subscriptions, keeping alive.
//!
//! The core source and `brokercast publish` speak the protocol themselves, because what the contract promises cannot be
//! had above a client library's queues: one order over all subscriptions, the moment from which a subscription counts,
//! and a stalled reader that makes the server wait instead of losing messages in silence.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{Buf as _, BytesMut};
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Interval, MissedTickBehavior, timeout};
use tokio_rustls::TlsConnector;

use super::config::{Auth, Config, Server};
use super::parse::{Op, ProtocolError, parse};
use super::tls::client_config;
use crate::source::SourceError;

/// For one server: resolving, TCP, TLS and the greeting.
const GREETING: Duration = Duration::from_secs(5);
/// Time between pings while nothing comes. A peer that is silent for three of them is dead: 6 to 9 s.
const PING: Duration = Duration::from_secs(3);
const UNANSWERED: u32 = 2;
/// What is read at once.
const READ: usize = 128 << 10;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What a server says of itself; the rest is of no interest.
#[derive(Debug, Default, Deserialize)]
pub(in crate::source) struct Info {
    #[serde(default)]
    tls_required: bool,
    #[serde(default)]
    tls_available: bool,
    #[serde(default)]
    nonce: String,
    #[serde(default)]
    pub(in crate::source) max_payload: usize,
}

#[derive(Serialize)]
struct Hello<'a> {
    verbose: bool,
    pedantic: bool,
    tls_required: bool,
    name: &'a str,
    lang: &'static str,
    version: &'static str,
    protocol: u8,
    echo: bool,
    headers: bool,
    no_responders: bool,
    #[serde(flatten)]
    identity: Identity,
}

#[derive(Serialize, Default)]
struct Identity {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pass: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jwt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nkey: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sig: Option<String>,
}

/// A connection that a server has accepted.
pub(in crate::source) struct Wire {
    stream: Box<dyn Stream>,
    input: BytesMut,
    output: BytesMut,
    flushed: bool,
    ping: Interval,
    unanswered: u32,
    pub(in crate::source) info: Info,
}

/// The server that a source was connected to.
#[derive(Debug, Default)]
pub(in crate::source) struct LastServer(parking_lot::Mutex<Option<Server>>);

/// Connects to one of the servers, in a random order; the one that was connected to last, and is lost, is tried last.
pub(in crate::source) async fn connect(config: &Config, lost: &LastServer) -> Result<Wire, SourceError> {
    let mut servers: Vec<&Server> = config.servers.iter().collect();
    rand::seq::SliceRandom::shuffle(&mut servers[..], &mut rand::rng());
    let last = lost.0.lock().clone();
    servers.sort_by_key(|server| last.as_ref() == Some(*server));
    let mut failures = Vec::new();
    for server in servers {
        let failure = match timeout(GREETING, greet(config, server)).await {
            Ok(Ok(wire)) => {
                *lost.0.lock() = Some(server.clone());
                return Ok(wire);
            }
            Ok(Err(error)) => error,
            Err(_) => SourceError::new("no answer in time"),
        };
        failures.push((server, failure));
    }
    if failures.len() == 1
        && let Some((server, failure)) = failures.pop()
    {
        return Err(SourceError::with(format!("could not connect to {server}"), failure));
    }
    let each: Vec<_> = failures.iter().map(|(server, e)| format!("{server}: {}", crate::source::supervisor::chain(e))).collect();
    Err(SourceError::new(format!("could not connect to any server ({})", each.join("; "))))
}

async fn greet(config: &Config, server: &Server) -> Result<Wire, SourceError> {
    let tcp = TcpStream::connect((&*server.host, server.port)).await.map_err(lost)?;
    tcp.set_nodelay(true).map_err(lost)?;
    let mut wire = Wire::new(Box::new(tcp));
    wire.info = match wire.next_op().await? {
        Op::Info(json) => serde_json::from_slice(&json).map_err(|e| SourceError::with("the server's greeting cannot be read", e))?,
        _ => return Err(SourceError::new("the server's greeting is not that of NATS")),
    };
    let wants_tls = config.tls.required || server.tls;
    if wants_tls && !wire.info.tls_required && !wire.info.tls_available {
        return Err(SourceError::new("the server offers no TLS"));
    }
    if wants_tls || wire.info.tls_required {
        let connector = TlsConnector::from(Arc::new(client_config(&config.tls).await?));
        let name = ServerName::try_from(server.host.clone()).map_err(|e| SourceError::with("the server's name is none for TLS", e))?;
        let info = wire.info;
        let stream = connector.connect(name, wire.stream).await.map_err(|e| SourceError::with("the TLS handshake failed", e))?;
        wire = Wire::new(Box::new(stream));
        wire.info = info;
    }
    let auth = if config.auth == Auth::None { &server.auth } else { &config.auth };
    let hello = Hello {
        verbose: false,
        pedantic: false,
        tls_required: wants_tls,
        name: &config.name,
        lang: "rust",
        version: env!("CARGO_PKG_VERSION"),
        protocol: 1,
        echo: true,
        headers: true,
        no_responders: true,
        identity: identity(auth, &wire.info.nonce).await?,
    };
    let hello = serde_json::to_string(&hello).map_err(|e| SourceError::with("could not say who we are", e))?;
    wire.send(&[b"CONNECT ", hello.as_bytes(), b"\r\nPING\r\n"]);
    loop {
        match wire.next_op().await? {
            Op::Pong => return Ok(wire),
            Op::Err(said) => return Err(refused(&said)),
            _ => {}
        }
    }
}

async fn identity(auth: &Auth, nonce: &str) -> Result<Identity, SourceError> {
    let text = |secret: &crate::config::Secret| {
        secret.expose_str().map(str::to_owned).map_err(|_| SourceError::new("a secret of this source is not UTF-8"))
    };
    Ok(match auth {
        Auth::None => Identity::default(),
        Auth::User(user, password) => Identity { user: Some(user.clone()), pass: Some(text(password)?), ..Identity::default() },
        Auth::Token(token) => Identity { auth_token: Some(text(token)?), ..Identity::default() },
        Auth::Nkey(seed) => {
            let (nkey, sig) = sign(&text(seed)?, nonce)?;
            Identity { nkey: Some(nkey), sig: Some(sig), ..Identity::default() }
        }
        Auth::Credentials(path) => {
            let file = tokio::fs::read_to_string(path).await;
            let file = file.map_err(|e| SourceError::with(format!("could not read `{}`", path.display()), e))?;
            let (jwt, seed) = credentials(&file)
                .ok_or_else(|| SourceError::new(format!("`{}` is no NATS credentials file: a JWT, then a seed", path.display())))?;
            Identity { jwt: Some(jwt.to_owned()), sig: Some(sign(seed, nonce)?.1), ..Identity::default() }
        }
    })
}

fn sign(seed: &str, nonce: &str) -> Result<(String, String), SourceError> {
    // The library's error may quote the seed.
    let keys = nkeys::KeyPair::from_seed(seed.trim()).map_err(|_| SourceError::new("the seed of the nkey cannot be read"))?;
    let signature = keys.sign(nonce.as_bytes()).map_err(|_| SourceError::new("the nkey cannot sign"))?;
    Ok((keys.public_key(), URL_SAFE_NO_PAD.encode(signature)))
}

/// JWT and seed: what stands between `-----BEGIN …-----` and `------END …------`, in this order.
pub(in crate::source) fn credentials(file: &str) -> Option<(&str, &str)> {
    let mut bodies = file.lines().map(str::trim).scan(false, |inside, line| {
        let rule = line.starts_with("---") && line.ends_with("---");
        let body = (*inside && !rule && !line.is_empty()).then_some(line);
        if rule {
            *inside = line.contains("BEGIN");
        }
        Some(body)
    });
    let mut next = || bodies.by_ref().flatten().next();
    Some((next()?, next()?))
}

fn lost(error: io::Error) -> SourceError {
    SourceError::with("the connection failed", error)
}

fn refused(said: &str) -> SourceError {
    SourceError::new(format!("the server refused: {said}"))
}

impl From<ProtocolError> for SourceError {
    fn from(error: ProtocolError) -> Self {
        Self::new(error.to_string())
    }
}

impl Wire {
    fn new(stream: Box<dyn Stream>) -> Self {
        let mut ping = tokio::time::interval_at(tokio::time::Instant::now() + PING, PING);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (input, output) = (BytesMut::with_capacity(READ), BytesMut::new());
        Self { stream, input, output, flushed: true, ping, unanswered: 0, info: Info::default() }
    }

    /// Queues bytes; they leave while something is awaited.
    pub(in crate::source) fn send(&mut self, parts: &[&[u8]]) {
        for part in parts {
            self.output.extend_from_slice(part);
        }
        self.flushed = false;
    }

    /// The next operation that has come already. Pings are answered here.
    pub(in crate::source) fn ready_op(&mut self) -> Result<Option<Op>, SourceError> {
        loop {
            match parse(&mut self.input)? {
                Some(Op::Ping) => self.send(&[b"PONG\r\n"]),
                Some(Op::Ok) => {}
                other => return Ok(other),
            }
        }
    }

    /// The next operation. Cancel safe.
    pub(super) async fn next_op(&mut self) -> Result<Op, SourceError> {
        loop {
            if let Some(op) = self.ready_op()? {
                return Ok(op);
            }
            self.fill().await?;
        }
    }

    /// Waits for more bytes, writes what is queued, and keeps the connection alive. Cancel safe.
    pub(super) async fn fill(&mut self) -> Result<(), SourceError> {
        poll_fn(|cx| self.poll_fill(cx)).await
    }

    /// As [`Wire::fill`]; when it is pending, the waker will be woken for whatever makes it ready.
    pub(in crate::source) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SourceError>> {
        loop {
            if let Poll::Ready(Err(error)) = self.poll_send(cx) {
                return Poll::Ready(Err(lost(error)));
            }
            if let Poll::Ready(read) = self.poll_read(cx) {
                self.unanswered = 0;
                return Poll::Ready(match read {
                    Ok(0) => Err(SourceError::new("the server closed the connection")),
                    Ok(_) => Ok(()),
                    Err(error) => Err(lost(error)),
                });
            }
            ready!(self.ping.poll_tick(cx));
            if self.unanswered >= UNANSWERED {
                return Poll::Ready(Err(SourceError::new("the server does not answer pings")));
            }
            self.unanswered += 1;
            self.send(&[b"PING\r\n"]);
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.input.capacity() - self.input.len() < READ / 4 {
            self.input.reserve(READ);
        }
        tokio_util::io::poll_read_buf(Pin::new(&mut *self.stream), cx, &mut self.input)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let written = ready!(Pin::new(&mut *self.stream).poll_write(cx, &self.output))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(written);
        }
        if !self.flushed {
            ready!(Pin::new(&mut *self.stream).poll_flush(cx))?;
            self.flushed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Sends what is queued, and a ping, and waits for the answer: then the server has done all that was asked. What
    /// comes meanwhile goes to `early`.
    pub(super) async fn settle(&mut self, early: &mut Vec<Op>) -> Result<(), SourceError> {
        self.send(&[b"PING\r\n"]);
        loop {
            match self.next_op().await? {
                Op::Pong => return Ok(()),
                Op::Err(said) => return Err(refused(&said)),
                op => early.push(op),
            }
        }
    }

    /// Writes what is queued.
    async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_send(cx)).await
    }

    /// Leaves in good order.
    pub(in crate::source) async fn shutdown(&mut self) {
        if self.flush().await.is_ok() {
            // Whoever is leaving has nothing to do about it.
            tokio::io::AsyncWriteExt::shutdown(&mut self.stream).await.unwrap_or_default();
        }
    }
}
