//! Whose address a request comes from, and which addresses count as one client.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::HeaderMap;

/// What is counted: IPv4 as it is, IPv6 by its /64, since a client has one of those to itself.
pub(super) fn counted(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

fn within(address: IpAddr, networks: &[(IpAddr, u8)]) -> bool {
    networks.iter().any(|(network, prefix)| match (address, network.to_canonical()) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            let shift = 32 - u32::from(*prefix).min(32);
            (address.to_bits() ^ network.to_bits()).checked_shr(shift).unwrap_or(0) == 0
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => {
            let shift = 128 - u32::from(*prefix).min(128);
            (address.to_bits() ^ network.to_bits()).checked_shr(shift).unwrap_or(0) == 0
        }
        _ => false,
    })
}

/// `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:4711`.
fn parse(entry: &str) -> Option<IpAddr> {
    let entry = entry.trim();
    let bare = entry.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(entry);
    let address = bare.parse().ok().or_else(|| entry.parse::<SocketAddr>().ok().map(|with_port| with_port.ip()))?;
    Some(IpAddr::to_canonical(&address))
}

/// The client's address: the peer's, or where that is a trusted proxy, the rightmost address of `X-Forwarded-For` that is
/// none. What stands further left was written by the client itself. A list that can't be read up to there counts for nothing.
#[must_use]
pub fn client_address(peer: IpAddr, headers: &HeaderMap, trusted_proxies: &[(IpAddr, u8)]) -> IpAddr {
    let peer = peer.to_canonical();
    if !within(peer, trusted_proxies) {
        return peer;
    }
    let mut client = peer;
    let lines: Vec<_> = headers.get_all("x-forwarded-for").iter().collect();
    for line in lines.into_iter().rev() {
        let Ok(line) = line.to_str() else { return peer };
        for entry in line.rsplit(',') {
            let Some(address) = parse(entry) else { return peer };
            client = address;
            if !within(client, trusted_proxies) {
                return client;
            }
        }
    }
    client
}
