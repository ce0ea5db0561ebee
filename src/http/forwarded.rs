//! The address that a request comes from, behind proxies too (`X-Forwarded-For`). Pure; does not know what it is for.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use ipnet::IpNet;

/// `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:4711`.
fn parse(entry: &str) -> Option<IpAddr> {
    let entry = entry.trim();
    let bare = entry.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(entry);
    let address = bare.parse().ok().or_else(|| entry.parse::<SocketAddr>().ok().map(|with_port| with_port.ip()))?;
    Some(IpAddr::to_canonical(&address))
}

/// Returns the peer's address, or if the peer is a trusted proxy, the rightmost address of `X-Forwarded-For` that is not a
/// trusted proxy: the client itself could have written anything further left. If an entry cannot be read before that
/// address is found, the whole header is ignored.
pub(super) fn client_address(peer: IpAddr, headers: &HeaderMap, trusted_proxies: &[IpNet]) -> IpAddr {
    let trusted = |address: &IpAddr| trusted_proxies.iter().any(|network| network.contains(address));
    let peer = peer.to_canonical();
    if !trusted(&peer) {
        return peer;
    }
    let mut client = peer;
    let lines: Vec<_> = headers.get_all("x-forwarded-for").iter().collect();
    for line in lines.into_iter().rev() {
        let Ok(line) = line.to_str() else { return peer };
        for entry in line.rsplit(',') {
            let Some(address) = parse(entry) else { return peer };
            client = address;
            if !trusted(&client) {
                return client;
            }
        }
    }
    client
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn the_client_is_the_rightmost_address_that_is_no_trusted_proxy() {
        let trusted = ["10.0.0.0/8", "fd00::/8", "203.0.113.7/32"].map(|network| network.parse().expect("a network"));
        for (peer, forwarded, client) in [
            ("198.51.100.1", &["1.2.3.4"][..], "198.51.100.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["1.2.3.4"], "1.2.3.4"),
            ("::ffff:10.0.0.1", &["1.2.3.4"], "1.2.3.4"),
            ("10.0.0.1", &["6.6.6.6, 1.2.3.4"], "1.2.3.4"),
            ("10.0.0.1", &["6.6.6.6, 1.2.3.4, 10.9.9.9,203.0.113.7"], "1.2.3.4"),
            ("10.0.0.1", &["6.6.6.6", "1.2.3.4", "10.9.9.9"], "1.2.3.4"),
            ("10.0.0.1", &["10.0.0.7, 10.0.0.8"], "10.0.0.7"),
            ("10.0.0.1", &["rubbish, 1.2.3.4"], "1.2.3.4"),
            ("10.0.0.1", &["1.2.3.4, rubbish"], "10.0.0.1"),
            ("10.0.0.1", &["1.2.3.4, , 10.0.0.2"], "10.0.0.1"),
            ("10.0.0.1", &["unknown"], "10.0.0.1"),
            ("10.0.0.1", &[""], "10.0.0.1"),
            ("10.0.0.1", &["1.2.3.4:4711"], "1.2.3.4"),
            ("fd00::1", &["2001:db8::5"], "2001:db8::5"),
            ("fd00::1", &["[2001:db8::5]:4711"], "2001:db8::5"),
            ("fd00::1", &["[2001:db8::5]"], "2001:db8::5"),
            ("fd00::1", &["::ffff:1.2.3.4"], "1.2.3.4"),
        ] {
            let mut headers = HeaderMap::new();
            for line in forwarded {
                headers.append("x-forwarded-for", line.parse().expect("a header value"));
            }
            assert_eq!(client_address(address(peer), &headers, &trusted), address(client), "{peer} {forwarded:?}");
        }
        let mut binary = HeaderMap::new();
        binary.append("x-forwarded-for", http::HeaderValue::from_bytes(b"\xff").expect("a header value"));
        assert_eq!(client_address(address("10.0.0.1"), &binary, &trusted), address("10.0.0.1"));
        let everybody = ["0.0.0.0/0", "::/0"].map(|network| network.parse().expect("a network"));
        let mut list = HeaderMap::new();
        list.append("x-forwarded-for", "1.1.1.1, 2001:db8::1".parse().expect("a header value"));
        assert_eq!(client_address(address("9.9.9.9"), &list, &everybody), address("1.1.1.1"));
    }
}
