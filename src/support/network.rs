//! Reading of IP networks. Pure; knows nothing of what they are for.

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
