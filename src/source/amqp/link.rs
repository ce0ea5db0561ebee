//! A connection to the broker.
//!
//! Knows the library's connection and channels; not what is read from them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use lapin::protocol::AMQPSoftError::ACCESSREFUSED;
use lapin::types::ShortString;
use lapin::{AsyncTcpStream, Channel, ConnectionProperties};
use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::broker::{Address, Broker, secret};
use super::error::{failed, is, kind};
use super::flow::Flow;
use super::scrub::OddKeys;
use super::wire::{Ours, Shared, Wire};
use crate::event::SourceName;
use crate::source::{ErrorKind, SourceError};

/// For the protocol's handshake, and for each question to the broker.
const ANSWER: Duration = Duration::from_secs(10);
/// For one of several addresses.
const EACH: Duration = Duration::from_secs(8);
/// For a connection to be closed in good order.
const CLOSE: Duration = Duration::from_millis(700);

/// A connection. Dropped, it breaks off at once; nothing of it stays behind.
pub(in crate::source) struct Link {
    connection: lapin::Connection,
    shared: Arc<Shared>,
    /// The password that the broker knows, and the file that it came from.
    password: Mutex<String>,
    file: Option<PathBuf>,
    /// What the broker's lists call its consumers, before their number.
    name: String,
    consumers: AtomicU64,
    /// Dropped after the connection, which may say goodbye while the socket still works.
    end: DropGuard,
}

impl Link {
    /// Connects to one of the broker's addresses, and logs in.
    pub(in crate::source) async fn open(broker: &Broker, source: &SourceName) -> Result<Self, SourceError> {
        let addresses = broker.addresses()?;
        let (count, mut failures) = (addresses.len(), Vec::new());
        for address in addresses {
            let connecting = Self::connect(&address, broker, source);
            // Several addresses share the time that connecting has.
            let opened = if count == 1 { connecting.await } else { within(EACH, &address, connecting).await };
            match opened {
                Ok(link) => return Ok(link),
                Err(e) => failures.push(e),
            }
        }
        Err(SourceError::of_all(failures))
    }

    async fn connect(address: &Address, broker: &Broker, source: &SourceName) -> Result<Self, SourceError> {
        let end = CancellationToken::new();
        let guard = end.clone().drop_guard();
        let shared = Arc::<Shared>::default();
        let wire = Mutex::new(Some(Wire::connect(address, end, Arc::clone(&shared)).await?));
        let runtime = Runtime::new(RuntimeParts::new(Tokio::current(), Ours::current()));
        let properties = ConnectionProperties::default().with_connection_name(format!("{} {source}", broker.name).into());
        let once = async move |_, _| match wire.lock().take() {
            Some(wire) => Ok(AsyncTcpStream::Plain(wire)),
            None => Err(std::io::Error::from(std::io::ErrorKind::ConnectionAborted).into()),
        };
        let connecting = lapin::Connection::connector(address.uri.clone(), runtime, once, properties);
        match tokio::time::timeout(ANSWER, connecting).await {
            Ok(Ok(connection)) => {
                let password = Mutex::new(address.uri.authority.userinfo.password.clone());
                let (file, name) = (broker.password_file.clone(), format!("{}.{source}", broker.name));
                Ok(Self { connection, shared, password, file, name, consumers: AtomicU64::new(0), end: guard })
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

    /// A name for a consumer.
    pub(in crate::source) fn tag(&self) -> ShortString {
        short(&format!("{}.{}", self.name, self.consumers.fetch_add(1, Ordering::Relaxed)))
    }

    /// Whether the password comes from a file.
    pub(in crate::source) fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// Reads the password's file again, and tells the broker a new one.
    pub(in crate::source) async fn renew(&self) -> Result<(), SourceError> {
        let Some(file) = &self.file else { return Ok(()) };
        // A file that cannot be read now concerns the next connection only.
        let Ok(password) = secret("password_file", file) else { return Ok(()) };
        if *self.password.lock() == password {
            return Ok(());
        }
        let renewing = self.connection.update_secret(password.clone().into(), "renewed".into());
        answer("renewing the password", renewing).await?.map_err(|e| failed("the broker did not take the new password", e))?;
        *self.password.lock() = password;
        tracing::info!(connection = self.name, "a connection's password was renewed");
        Ok(())
    }

    /// Whether it is connected, as far as the library knows.
    pub(in crate::source) fn works(&self) -> bool {
        self.connection.status().connected()
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
        _ => String::new(),
    };
    failed(format!("{address} refused the connection{looked}"), error)
}

async fn within<T>(limit: Duration, address: &Address, connecting: impl Future<Output = Result<T, SourceError>>) -> Result<T, SourceError> {
    tokio::time::timeout(limit, connecting).await.unwrap_or_else(|_| Err(SourceError::lost(format!("{address} does not answer"))))
}

/// The library's futures wait for ever when the broker says nothing.
pub(in crate::source) async fn answer<T>(what: &str, asking: impl Future<Output = T>) -> Result<T, SourceError> {
    tokio::time::timeout(ANSWER, asking).await.map_err(|_| SourceError::lost(format!("the broker does not answer ({what})")))
}

/// Names have been checked to fit.
pub(in crate::source) fn short(name: &str) -> ShortString {
    ShortString::try_new(name).unwrap_or_default()
}
