//! Where a listener is: an address and a port, or the file of a Unix socket. Pure.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// Where a listener is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// An address and a port.
    Tcp(SocketAddr),
    /// A file.
    Unix(PathBuf),
}

impl Address {
    /// The longest path of a Unix socket, in bytes (`sockaddr_un` less its final NUL).
    const MAX_PATH: usize = 107;

    /// Reads `127.0.0.1:8080`, `localhost:8080` or `unix:/run/brokercast.sock`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            let good = !path.is_empty() && path.len() <= Self::MAX_PATH && !path.contains('\0') && !path.ends_with('/');
            return good.then(|| Self::Unix(path.into()));
        }
        match text.strip_prefix("localhost:") {
            Some(port) => Some(Self::Tcp(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port.parse().ok()?))),
            None => text.parse().ok().map(Self::Tcp),
        }
    }

    /// Whether it is an address by which only this machine is reached. False for a Unix socket: a proxy for other machines may use it.
    pub(crate) fn is_loopback(&self) -> bool {
        matches!(self, Self::Tcp(address) if address.ip().is_loopback())
    }

    /// Whether other machines may reach it.
    pub(crate) fn is_remote(&self) -> bool {
        matches!(self, Self::Tcp(address) if !address.ip().is_loopback())
    }

    /// Whether two listeners cannot be there at once. Port 0 is a free one.
    pub(crate) fn clashes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tcp(a), Self::Tcp(b)) => {
                a.port() == b.port() && a.port() != 0 && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
            }
            (Self::Unix(a), Self::Unix(b)) => a == b,
            _ => false,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_compared() {
        let read = |text: &str| Address::parse(text).map(|address| address.to_string());
        for (text, shown) in
            [("localhost:1", "127.0.0.1:1"), ("[::]:2", "[::]:2"), ("unix:/run/a.sock", "unix:/run/a.sock"), ("unix:a", "unix:a")]
        {
            assert_eq!(read(text).as_deref(), Some(shown));
        }
        for text in ["", "localhost", "localhost:x", "1.2.3.4", "unix:", "unix:/run/", "unix", "/run/a.sock"] {
            assert_eq!(read(text), None, "{text}");
        }
        assert!(read(&format!("unix:/{}", "x".repeat(107))).is_none() && read(&format!("unix:/{}", "x".repeat(106))).is_some());
        let clash = |a: &str, b: &str| Address::parse(a).unwrap().clashes(&Address::parse(b).unwrap());
        assert!(clash("unix:a", "unix:a") && clash("0.0.0.0:1", "127.0.0.1:1"));
        assert!(!clash("unix:a", "unix:b") && !clash("127.0.0.1:0", "127.0.0.1:0") && !clash("unix:a", "127.0.0.1:1"));
    }
}
