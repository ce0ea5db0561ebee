//! A connection to the broker.
//!
//! Knows the library's connection and channels; not what is read from them.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_util::StreamExt as _;
use lapin::protocol::AMQPSoftError::ACCESSREFUSED;
use lapin::types::ShortString;
use lapin::{AsyncTcpStream, Channel, ConnectionProperties, Event};
use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::broker::{Address, Broker, Unreached, secret};
use super::error::{failed, is, kind};
use super::flow::Flow;
use super::recurring::Recurring;
use super::scrub::OddKeys;
use super::wire::{Ours, Shared, Wire};
use crate::event::SourceName;
use crate::source::expiry::Expiry;
use crate::source::{ErrorKind, SourceError};

/// For the protocol's handshake, and for each question to the broker.
const ANSWER: Duration = Duration::from_secs(10);
/// For all addresses: below the time that the supervisor gives a connection.
const ALL: Duration = Duration::from_secs(24);
/// For one of them, at most.
const EACH: Duration = Duration::from_secs(15);
/// For a name to be resolved.
const RESOLVE: Duration = Duration::from_secs(5);
/// For a connection to be closed in good order.
const CLOSE: Duration = Duration::from_millis(700);
/// For an alarm to end, or for the confirmation of a message that was taken all the same. Short: a revocation waits for it.
const BLOCKED: Duration = Duration::from_secs(3);
/// Between two looks at the password's file.
const RENEWAL: Duration = Duration::from_secs(5);

/// A connection. Dropped, it breaks off at once; nothing of it stays behind.
pub(in crate::source) struct Link {
    connection: lapin::Connection,
    shared: Arc<Shared>,
    /// The password that the broker knows, and the file that it came from.
    password: Mutex<String>,
    expiry: Arc<Expiry>,
    file: Option<PathBuf>,
    /// What the broker's lists call its consumers, before their number.
    name: String,
    consumers: AtomicU64,
    /// The address, without the password.
    node: String,
    at: SocketAddr,
    unreached: Arc<Unreached>,
    /// Dropped after the connection, which may say goodbye while the socket still works.
    end: DropGuard,
}

impl Link {
    /// Connects to one of the broker's addresses, and logs in. Of a name that has several, each is tried; last those that were
    /// not reached when they were tried last.
    pub(in crate::source) async fn open(broker: &Broker, source: &SourceName) -> Result<Self, SourceError> {
        let (mut targets, mut failures) = (Vec::new(), Vec::new());
        for address in broker.addresses().await? {
            match resolve(&address).await {
                Ok(found) => targets.extend(found.into_iter().map(|at| (address.clone(), at))),
                Err(error) => failures.push(error),
            }
        }
        broker.sort(&mut targets);
        let connect = |address, at| async move { Self::connect(&address, at, broker, source).await };
        in_turn(targets, failures, connect, |at, reached| broker.tried(at, reached)).await
    }

    async fn connect(address: &Address, at: SocketAddr, broker: &Broker, source: &SourceName) -> Result<Self, SourceError> {
        let end = CancellationToken::new();
        let guard = end.clone().drop_guard();
        let shared = Arc::<Shared>::default();
        let wire = Mutex::new(Some(Wire::connect(address, at, end, Arc::clone(&shared)).await?));
        let runtime = Runtime::new(RuntimeParts::new(Tokio::current(), Ours::current()));
        let properties = ConnectionProperties::default().with_connection_name(format!("{} {source}", broker.name).into());
        let once = async move |_, _| match wire.lock().take() {
            Some(wire) => Ok(AsyncTcpStream::Plain(wire)),
            None => Err(std::io::Error::from(std::io::ErrorKind::ConnectionAborted).into()),
        };
        let connecting = lapin::Connection::connector(address.uri.clone(), runtime, once, properties);
        match tokio::time::timeout(ANSWER, connecting).await {
            Ok(Ok(connection)) => {
                let password = address.uri.authority.userinfo.password.clone();
                broker.expiry.told(&password);
                broker.expiry.shown(address.tls.identity.as_ref().map(|(certificate, _)| certificate.as_path())).await;
                let (password, expiry) = (Mutex::new(password), broker.expiry.clone());
                let (file, name) = (broker.password_file.clone(), format!("{}.{source}", broker.name));
                let (consumers, node, unreached) = (AtomicU64::new(0), address.to_string(), broker.unreached.clone());
                Ok(Self { connection, shared, password, expiry, file, name, consumers, node, at, unreached, end: guard })
            }
            Ok(Err(e)) if matches!(e.kind(), lapin::ErrorKind::ParsingError(_)) => Err(SourceError::protocol(format!(
                "{address} does not speak AMQP 0-9-1 (where it wants TLS, the address begins with amqps://)"
            ))),
            Ok(Err(e)) => Err(refused(address, e)),
            Err(_) => Err(SourceError::lost(format!("{address} does not answer"))),
        }
    }

    /// A new channel.
    pub(in crate::source) async fn channel(&self) -> Result<Channel, SourceError> {
        answer("opening a channel", self.connection.create_channel()).await?.map_err(|e| failed("cannot open a channel", e))
    }

    /// The address that it leads to. Holds no password.
    pub(super) fn node(&self) -> &str {
        &self.node
    }

    /// What is to be read cannot be read there: of several addresses, this one is tried last the next time.
    pub(super) fn avoid(&self) {
        self.unreached.lock().insert(self.at);
    }

    /// A name for a consumer.
    pub(in crate::source) fn tag(&self) -> ShortString {
        short(&format!("{}.{}", self.name, self.consumers.fetch_add(1, Ordering::Relaxed)))
    }

    /// Looks at intervals whether the password is another one, such as an OAuth2 token that was renewed. `None`: it is in no file.
    pub(in crate::source) fn renewal(&self) -> Option<Recurring> {
        self.file.as_ref()?;
        Some(Recurring::new(RENEWAL, RENEWAL, |link| Box::pin(async move { link.renew().await })))
    }

    /// Reads the password's file again, and tells the broker a new one.
    async fn renew(&self) -> Result<(), SourceError> {
        let Some(file) = &self.file else { return Ok(()) };
        // A file that cannot be read now concerns the next connection only.
        let Ok(password) = secret("password_file", file).await else { return Ok(()) };
        if *self.password.lock() == password {
            return Ok(());
        }
        let renewing = self.connection.update_secret(password.clone().into(), "renewed".into());
        answer("renewing the password", renewing).await?.map_err(|e| failed("the broker did not take the new password", e))?;
        self.expiry.told(&password);
        *self.password.lock() = password;
        tracing::info!(connection = self.name, "a connection's password was renewed");
        Ok(())
    }

    /// Whether it is connected, as far as the library knows.
    pub(in crate::source) fn works(&self) -> bool {
        self.connection.status().connected()
    }

    /// Waits until an alarm has blocked this connection for a while, and returns the broker's reason. The broker sends it once it gets
    /// a message, which stays unread until the alarm ends: closing the connection does not take it back.
    pub(super) fn blocked(&self) -> impl Future<Output = String> {
        // Before anything is published: the library keeps no notice for later.
        let events = self.connection.events_listener();
        async move {
            let mut events = pin!(events);
            loop {
                match events.next().await {
                    Some(Event::ConnectionBlocked(reason)) => {
                        // A message without a body is taken all the same, and some alarms are short.
                        tokio::time::sleep(BLOCKED).await;
                        return reason;
                    }
                    Some(_) => {}
                    // The connection has ended, as what is asked of it says.
                    None => std::future::pending().await,
                }
            }
        }
    }

    /// Keys that are not UTF-8.
    pub(in crate::source) fn odd(&self) -> &OddKeys {
        &self.shared.odd
    }

    /// What is on its way to one of its channels.
    pub(in crate::source) fn flow(&self) -> &Flow {
        &self.shared.flow
    }

    /// Closes the connection in good order, or breaks it off when the broker does not answer.
    pub(in crate::source) async fn close(self) {
        let Self { connection, end, .. } = self;
        let closing = connection.close(200, ShortString::from("bye"));
        if tokio::time::timeout(CLOSE, closing).await.is_err() {
            tracing::debug!("a broker did not take leave");
        }
        drop(end);
    }
}

/// Why the broker did not let us in, and which setting it looked at.
fn refused(address: &Address, error: lapin::Error) -> SourceError {
    let (key, login) = (address.key, address.login);
    let looked = match kind(&error) {
        ErrorKind::Missing => format!(" (`{key}` names the vhost)"),
        ErrorKind::Denied if is(&error, ACCESSREFUSED) => format!(" ({login})"),
        ErrorKind::Denied => format!(" (`{key}` names the vhost, which {login} must be let into)"),
        _ => format!(" (`{key}`)"),
    };
    failed(format!("{address} refused the connection{looked}"), error)
}

/// What an address's name stands for.
async fn resolve(address: &Address) -> Result<Vec<SocketAddr>, SourceError> {
    let authority = &address.uri.authority;
    let failed = || SourceError::lost(format!("cannot find the host of {address} (`{}`)", address.key));
    let found = tokio::net::lookup_host((authority.host.as_str(), authority.port));
    let found = tokio::time::timeout(RESOLVE, found).await.map_err(|_| failed())?.map_err(|e| failed().because(e))?;
    Ok(found.collect())
}

/// Tries all in turn, each within its share of the time that connecting has: one that says nothing leaves time for the next.
async fn in_turn<A: fmt::Display, T, F: Future<Output = Result<T, SourceError>>>(
    targets: Vec<(A, SocketAddr)>,
    mut failures: Vec<SourceError>,
    connect: impl Fn(A, SocketAddr) -> F,
    tried: impl Fn(SocketAddr, bool),
) -> Result<T, SourceError> {
    let each = (ALL / u32::try_from(targets.len().max(1)).unwrap_or(u32::MAX)).clamp(Duration::from_secs(1), EACH);
    for (address, at) in targets {
        let silent = SourceError::lost(format!("{address} does not answer"));
        let opened = tokio::time::timeout(each, connect(address, at)).await.unwrap_or(Err(silent));
        tried(at, opened.is_ok());
        match opened {
            Ok(opened) => return Ok(opened),
            Err(failure) => failures.push(failure),
        }
    }
    Err(SourceError::of_all(failures))
}

/// The library's futures wait for ever when the broker says nothing.
pub(in crate::source) async fn answer<T>(what: &str, asking: impl Future<Output = T>) -> Result<T, SourceError> {
    tokio::time::timeout(ANSWER, asking).await.map_err(|_| SourceError::lost(format!("the broker does not answer ({what})")))
}

/// Names have been checked to fit.
pub(in crate::source) fn short(name: &str) -> ShortString {
    ShortString::try_new(name).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn addresses_that_say_nothing_leave_time_for_the_others() {
        let at = |n: u8| ("a name", SocketAddr::from(([127, 0, 0, n], 1)));
        let connect = async |_: &str, at: SocketAddr| match at.ip().to_string().as_str() {
            "127.0.0.9" => Ok(()),
            "127.0.0.8" => Err(SourceError::denied("refused")),
            _ => std::future::pending().await,
        };
        for silent in [0, 1, 3, 20] {
            let begun = Instant::now();
            let targets = (0..silent).chain([8, 9]).map(at).collect();
            in_turn(targets, Vec::new(), connect, |_, _| ()).await.expect("the last one answers");
            assert!(begun.elapsed() <= ALL, "{silent}: {:?}", begun.elapsed());
        }
        let error = in_turn(vec![at(8), at(1)], Vec::new(), connect, |_, _| ()).await.expect_err("none answers");
        assert!(error.kind() == ErrorKind::Lost && error.to_string().contains("refused; a name does not answer"), "{error}");
        let error = in_turn(vec![at(8)], Vec::new(), connect, |_, _| ()).await.expect_err("it does not answer");
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Denied, "refused"));
    }
}
