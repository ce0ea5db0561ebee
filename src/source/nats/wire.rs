//! A connection to a NATS server by async-nats: who we are, and when it has ended.
//!
//! The library would reconnect by itself and say nothing of what was missed. Here a connection that is lost has ended;
//! the supervisor makes the next one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, ServerAddr, ServerError};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio::time::timeout;

use super::config::{Auth, Config, Server};
use super::refusal::{Refusal, Refusals, Right};
use super::servers::{self, Servers};
use crate::settings::File;
use crate::source::expiry::Expiry;
use crate::source::{ErrorKind, SourceError, tls};
use crate::support::{host, random};

/// Time between pings while nothing comes. The library gives up when it would send the third: 6 to 9 s.
const PING: Duration = Duration::from_secs(3);
/// For an answer of the server.
const ANSWER: Duration = Duration::from_secs(5);
/// For leaving in good order.
const LEAVING: Duration = Duration::from_secs(1);
/// The library tries once more before it ends. By then the connection has been dropped here.
const TOO_LATE: Duration = Duration::from_secs(1);
/// For errors on their way through the library when the server has answered what came behind them.
pub(in crate::source) const GRACE: Duration = Duration::from_millis(20);

/// A connection that a server has accepted.
pub(in crate::source) struct Wire {
    pub(in crate::source) client: Client,
    pub(in crate::source) life: watch::Receiver<Life>,
    /// What the subjects of our own answers begin with. No message below it is an event.
    pub(in crate::source) inbox: String,
}

/// What the library has reported of a connection.
#[derive(Debug, Default)]
pub(in crate::source) struct Life {
    /// Why it has ended.
    ended: Option<(ErrorKind, String)>,
    /// Times that a queue was full. Fewer than the messages that were dropped, but never none of them.
    pub(in crate::source) slow: u64,
    /// What the server has refused on this connection. The connection itself goes on.
    pub(in crate::source) refusals: Refusals,
    /// The server is about to stop, and asks its clients to go elsewhere.
    pub(in crate::source) leaving: bool,
    closed: bool,
}

impl Life {
    fn hear(&mut self, event: &Event) {
        match event {
            Event::Disconnected => self.end(ErrorKind::Lost, "the connection was lost"),
            Event::Closed => self.closed = true,
            Event::LameDuckMode => self.leaving = true,
            Event::SlowConsumer(_) => self.slow += 1,
            Event::ServerError(error) => {
                let said = words(error);
                match Refusal::read(&said) {
                    Some(refusal) => self.refusals.add(refusal),
                    // A reader too slow, an account that ended: the server ends the connection.
                    None => self.end(kind(&said), &format!("the server says: {said}")),
                }
            }
            _ => {}
        }
    }

    fn end(&mut self, kind: ErrorKind, why: &str) {
        self.ended.get_or_insert_with(|| (kind, why.to_owned()));
    }

    /// Why it has ended.
    fn why(&self) -> Option<SourceError> {
        self.ended.as_ref().map(|(kind, why)| SourceError::new(*kind, why))
    }
}

fn words(error: &ServerError) -> String {
    match error {
        ServerError::Other(said) => said.chars().filter(|c| !c.is_control()).take(512).collect(),
        other => other.to_string(),
    }
}

/// Of which kind an error is that the server names before it ends a connection.
pub(super) fn kind(said: &str) -> ErrorKind {
    let said = said.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    match () {
        // It names a subject, which may hold any word.
        () if said.starts_with("permissions violation") => ErrorKind::Denied,
        // A client that is slow to say who it is meets a timeout, which is no refusal.
        () if has(&["stale", "timeout", "shutdown"]) => ErrorKind::Lost,
        () if has(&["payload", "protocol", "parser", "invalid"]) => ErrorKind::Protocol,
        () if has(&["authorization", "authentication", "account", "maximum"]) => ErrorKind::Denied,
        () => ErrorKind::Lost,
    }
}

/// Connects to one of the servers. At most `capacity` messages wait in a subscription.
pub(in crate::source) async fn connect(config: &Config, known: &Servers, capacity: usize) -> Result<Wire, SourceError> {
    if config.tls.ca.is_some() || config.tls.identity.is_some() {
        // The library reads the same files, but names none of them in its errors.
        config.tls.client().await?;
    }
    let servers = known.in_turn(&config.servers);
    let mut failures = Vec::new();
    for server in &servers {
        let (each, all) = servers::patience(server, servers.len()).await;
        let failure = match timeout(all, greet(config, server, capacity, each, &known.expiry)).await {
            Ok(Ok(wire)) => {
                known.connected(server, &wire.client.server_info().connect_urls);
                return Ok(wire);
            }
            Ok(Err(error)) => error,
            Err(_) => SourceError::lost("no answer in time"),
        };
        failures.push(SourceError::new(failure.kind(), format!("could not connect to {server} ({})", keys(&failure))).because(failure));
    }
    Err(SourceError::of_all(failures))
}

/// The keys that a failure to connect points at.
fn keys(failure: &SourceError) -> &'static str {
    match failure.kind() {
        ErrorKind::Denied => "`user` and `password`, `token`, `nkey` or `credentials_file`",
        _ if failure.to_string().contains("TLS") => "`servers`, `tls`",
        _ => "`servers`",
    }
}

async fn greet(config: &Config, server: &Server, capacity: usize, patience: Duration, expiry: &Expiry) -> Result<Wire, SourceError> {
    let address: ServerAddr =
        server.to_string().parse().map_err(|e| SourceError::configuration("the server's address cannot be read").because(e))?;
    let (sender, life) = watch::channel(Life::default());
    let sender = Arc::new(sender);
    let tried = AtomicBool::new(false);
    let mut options = ConnectOptions::new()
        .name(format!("{}@{}", config.name, host::name()))
        .connection_timeout(patience)
        .ping_interval(PING)
        .subscription_capacity(capacity)
        .ignore_discovered_servers()
        .require_tls(config.tls_required || server.tls)
        .max_reconnects(1)
        .reconnect_delay_callback(move |_| if tried.swap(true, Ordering::Relaxed) { TOO_LATE } else { Duration::ZERO })
        .event_callback(move |event| {
            sender.send_modify(|life| life.hear(&event));
            std::future::ready(())
        });
    if config.handshake_first {
        options = options.tls_first();
    }
    if let Some(ca) = &config.tls.ca {
        options = options.add_root_certificates(ca.clone());
    }
    if let Some((certificate, key)) = &config.tls.identity {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    if let Some(name) = &server.certified {
        options = options.tls_client_config(config.tls.client_of(name).await?);
    }
    let auth = if config.auth == Auth::None { &server.auth } else { &config.auth };
    expiry.shown(config.tls.identity.as_ref().map(|(certificate, _)| certificate.as_path())).await;
    let client = identify(options, auth, expiry).await?.connect(address).await;
    let client = client.map_err(|error| refusal(error, config.tls_required || server.tls))?;
    Ok(Wire { client, life, inbox: config.inbox() })
}

async fn identify(options: ConnectOptions, auth: &Auth, expiry: &Expiry) -> Result<ConnectOptions, SourceError> {
    expiry.told("");
    Ok(match auth {
        Auth::None => options,
        Auth::User(user, password) => options.user_and_password(user.clone(), password.read().await?),
        Auth::Token(token) => {
            let token = token.read().await?;
            expiry.told(&token);
            options.token(token)
        }
        Auth::Nkey(seed) => options.nkey(seed.read().await?.trim().to_owned()),
        Auth::Credentials(path) => {
            let failed = |why: &str| SourceError::configuration(format!("could not read `{}` (`credentials_file`): {why}", path.display()));
            let file = File::read_aside(path.clone()).await.map_err(|why| failed(&why))?;
            let file = file.contents.expose_str().map_err(|_| failed("it is not UTF-8"))?;
            expiry.told(file);
            // The library's error may quote the file.
            options.credentials(file).map_err(|_| {
                SourceError::configuration(format!(
                    "`{}` is no NATS credentials file, a JWT and then a seed (`credentials_file`)",
                    path.display()
                ))
            })?
        }
    })
}

fn refusal(error: ConnectError, with_tls: bool) -> SourceError {
    use std::error::Error as _;
    let io = error.source().and_then(|cause| cause.downcast_ref::<std::io::Error>()).map(std::io::Error::kind);
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation => SourceError::denied("the server refused: Authorization Violation"),
        ConnectErrorKind::Authentication => SourceError::configuration("the server's challenge could not be signed").because(error),
        // The library reads the files of `tls` again, and its error may quote them.
        _ if with_tls && io == Some(std::io::ErrorKind::InvalidData) && tls::kind(&error).is_none() => {
            SourceError::configuration("the files of `tls` cannot be read")
        }
        _ if with_tls => tls::failed("the connection with TLS failed", error),
        _ if io == Some(std::io::ErrorKind::InvalidInput) => {
            SourceError::protocol("the server does not speak the NATS protocol").because(error)
        }
        ConnectErrorKind::Tls => tls::failed("the TLS handshake failed", error),
        _ => SourceError::lost("the connection failed").because(error),
    }
}

/// The library has ended the connection.
pub(in crate::source) fn gone(error: impl std::error::Error + Send + Sync + 'static) -> SourceError {
    SourceError::lost("the connection has ended").because(error)
}

impl Wire {
    /// Why it is not to be used any more.
    pub(in crate::source) fn end(&self) -> Option<SourceError> {
        if let Some(why) = self.life.borrow().why() {
            return Some(why);
        }
        // What the library tells can be lost among much else that it tells.
        let again = self.client.statistics().connects.load(Ordering::Relaxed) > 1;
        (again || self.client.connection_state() != State::Connected).then(|| SourceError::lost("the connection was lost"))
    }

    /// Fails where the server has refused a subject. See [`Right::denied`].
    pub(super) fn permits(&self, right: Right, subject: &str, grant: &str, key: &str) -> Result<(), SourceError> {
        if self.life.borrow().refusals.contain(right, subject) { Err(right.denied(grant, key)) } else { Ok(()) }
    }

    /// Messages that have come, taken or not.
    pub(super) fn received(&self) -> u64 {
        self.client.statistics().in_messages.load(Ordering::SeqCst)
    }

    /// A subject for answers that nobody else has, below the prefix that the settings name.
    pub(in crate::source) fn new_inbox(&self) -> String {
        format!("{}{:032x}", self.inbox, random::in_range(0..u128::MAX))
    }

    /// Returns when the server has done all that was asked, and has reported what it refused. The library does not show the
    /// answers to its pings, so a message is sent to ourselves. If that is forbidden, the refusal is the answer. Returns
    /// how many messages came for it.
    pub(super) async fn settle(&mut self) -> Result<u64, SourceError> {
        let probe = self.new_inbox();
        let mut echo = self.client.subscribe(probe.clone()).await.map_err(gone)?;
        self.client.publish(probe.clone(), Bytes::new()).await.map_err(gone)?;
        let refused = |life: &Life| [Right::Publish, Right::Subscribe].iter().any(|right| life.refusals.contain(*right, &probe));
        let answered = async {
            tokio::select! {
                biased;
                message = echo.next() => u64::from(message.is_some()),
                _ = self.life.wait_for(|life| refused(life) || life.ended.is_some()) => 0,
            }
        };
        let own = timeout(ANSWER, answered).await.map_err(|_| SourceError::lost("the server did not answer in time"))?;
        tokio::time::sleep(GRACE).await;
        self.end().map_or(Ok(own), Err)
    }

    /// Closes the connection in good order. By then all that the server had to say has come.
    pub(super) async fn close(mut self) -> Option<SourceError> {
        if self.client.drain().await.is_ok() {
            let closed = async { self.life.wait_for(|life| life.closed).await.is_ok() };
            // A failure changes nothing any more.
            timeout(LEAVING, closed).await.unwrap_or_default();
        }
        self.life.borrow().why()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_library_does_not_quote_a_file_that_it_has_read() {
        let read = |text: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, text);
        let error = refusal(read("could not load private key: illegal section start: [45, 45]").into(), true);
        let said = crate::support::causes::chain(&error);
        assert!(error.kind() == ErrorKind::Configuration && said.contains("`tls`") && !said.contains("45"), "{said}");
        let handshake = std::io::Error::new(std::io::ErrorKind::InvalidData, rustls::Error::DecryptError);
        assert_eq!(refusal(handshake.into(), true).kind(), ErrorKind::Protocol);
    }
}
