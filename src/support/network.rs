//! Reading of IP networks, and lists of them. Pure; knows nothing of what they are for.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

/// Reads `10.0.0.0/8` or a single address. Returns `None` for anything else, also for a network with host bits set.
/// IPv4 written as IPv6 (`::ffff:10.0.0.0/104`) becomes IPv4, as addresses are compared in that form.
#[must_use]
pub(crate) fn parse(text: &str) -> Option<IpNet> {
    let network = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))?;
    if network.addr() != network.network() {
        return None;
    }
    let mapped = |network: &IpNet| match (network.addr().to_canonical(), network.prefix_len().checked_sub(96)) {
        (IpAddr::V4(address), Some(length)) if matches!(network, IpNet::V6(_)) => Ipv4Net::new(address, length).ok(),
        _ => None,
    };
    Some(mapped(&network).map_or(network, IpNet::V4))
}

/// One entry of a list of networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Addresses.
    Ip(IpNet),
    /// Peers over a Unix socket, which have no address.
    Unix,
}

impl Entry {
    /// What an entry must be.
    pub(crate) const EXPECTED: &str = "must be a network or an address, without host bits, or `unix`: 10.0.0.0/8, 192.168.1.7, fd00::/8";

    /// Reads an entry.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text == "unix" { Some(Self::Unix) } else { parse(text).map(Self::Ip) }
    }
}

/// A list of networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Networks(Vec<Entry>);

impl Networks {
    /// Whether it is empty.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether every address of a version of IP is in one of them.
    pub(crate) fn contain_everybody(&self) -> bool {
        self.0.iter().any(|entry| matches!(entry, Entry::Ip(network) if network.prefix_len() == 0))
    }

    /// Whether an address is in one of them; `None`: that of a peer over a Unix socket.
    pub(crate) fn contain(&self, address: Option<IpAddr>) -> bool {
        self.0.iter().any(|entry| match (entry, address) {
            (Entry::Ip(network), Some(address)) => network.contains(&address.to_canonical()),
            (Entry::Unix, None) => true,
            _ => false,
        })
    }
}

impl FromIterator<Entry> for Networks {
    fn from_iter<T: IntoIterator<Item = Entry>>(entries: T) -> Self {
        Self(entries.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_and_addresses_are_read_without_host_bits() {
        for (text, expected) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("192.168.1.7", "192.168.1.7/32"),
            ("fd00::/8", "fd00::/8"),
            ("::1", "::1/128"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:192.0.2.1", "192.0.2.1/32"),
        ] {
            assert_eq!(parse(text).expect(text).to_string(), expected, "{text}");
        }
        for text in ["10.0.0.1/8", "fd00::1/8", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/+8", "/8", "a", "", " ::1"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
