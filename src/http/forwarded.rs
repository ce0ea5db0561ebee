//! What proxies tell of the client behind them: `X-Forwarded-For`, `-Proto` and `-Host`, or `Forwarded` (RFC 7239).
//!
//! Pure. Only a trusted proxy is believed; does not know what for.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName};

use super::connection::Peer;
use super::origin::host_name;
use crate::settings::Choice;
use crate::support::network::Networks;

/// Which headers count. Never both kinds: a client can send the one that its proxy does not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Headers {
    /// `X-Forwarded-For`, `X-Forwarded-Proto`, `X-Forwarded-Host`.
    X,
    /// `Forwarded`.
    Standard,
}

impl Choice for Headers {
    const WORDS: &'static [(&'static str, Self)] = &[("x-forwarded", Self::X), ("forwarded", Self::Standard)];
}

/// Who is believed, and which headers.
#[derive(Debug)]
pub(crate) struct Proxies {
    pub(crate) trusted: Networks,
    pub(crate) headers: Headers,
}

/// A request as its client sent it, as far as it can be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Where it comes from; 0.0.0.0 for a Unix socket.
    pub(crate) client: IpAddr,
    /// Whether the client used TLS.
    pub(crate) tls: bool,
    /// The name that it used, in lower case; `None`: the request's own.
    pub(crate) host: Option<String>,
}

impl Proxies {
    /// What is known of a request that came from `peer`.
    pub(crate) fn seen(&self, peer: &Peer, headers: &HeaderMap) -> Seen {
        let direct = Seen { client: peer.ip(), tls: peer.tls, host: None };
        if !self.trusted.contain(peer.address.map(|_| direct.client)) {
            return direct;
        }
        match self.headers {
            Headers::X => self.x(direct, headers),
            Headers::Standard => self.standard(direct, headers),
        }
    }

    fn x(&self, direct: Seen, headers: &HeaderMap) -> Seen {
        let (client, hop) = self.walk(direct.client, entries(headers, "x-forwarded-for").into_iter().rev().map(|entry| address(entry?)));
        // Proxies that add to one header but not to another leave lists of different lengths, so the rest is from the first proxy.
        let at_hop = |name| {
            let values = entries(headers, name);
            let index = values.len().saturating_sub(1 + hop);
            values.get(index).copied().flatten()
        };
        direct.told(client, at_hop("x-forwarded-proto"), at_hop("x-forwarded-host"))
    }

    fn standard(&self, direct: Seen, headers: &HeaderMap) -> Seen {
        let Some(elements) = elements(headers) else { return direct };
        let (client, hop) = self.walk(direct.client, elements.iter().rev().map(|element| address(element.from.as_deref()?)));
        let Some(element) = elements.iter().rev().nth(hop) else { return direct };
        direct.told(client, element.proto.as_deref(), element.host.as_deref())
    }

    /// Follows the addresses from the nearest proxy on. Returns the first that is no trusted proxy, since the client itself could have
    /// written anything before it, and how many hops away it is. If an address cannot be read before that, it returns the peer's.
    fn walk(&self, peer: IpAddr, addresses: impl Iterator<Item = Option<IpAddr>>) -> (IpAddr, usize) {
        let (mut client, mut last) = (peer, 0);
        for (hop, address) in addresses.enumerate() {
            let Some(address) = address else { return (peer, hop) };
            (client, last) = (address, hop);
            if !self.trusted.contain(Some(address)) {
                break;
            }
        }
        (client, last)
    }
}

impl Seen {
    /// The same, with what a proxy told. What cannot be read is as good as not told.
    fn told(self, client: IpAddr, scheme: Option<&str>, host: Option<&str>) -> Self {
        let is = |schemes: [&str; 2]| scheme.is_some_and(|scheme| schemes.iter().any(|known| scheme.eq_ignore_ascii_case(known)));
        let tls = is(["https", "wss"]) || self.tls && !is(["http", "ws"]);
        Self { client, tls, host: host.and_then(host_name) }
    }
}

/// The entries of all lines of a header, in order; `None` for a line that is no text.
fn entries<'a>(headers: &'a HeaderMap, name: &'static str) -> Vec<Option<&'a str>> {
    let mut entries = Vec::new();
    for line in headers.get_all(HeaderName::from_static(name)) {
        match line.to_str() {
            Ok(line) => entries.extend(line.split(',').map(|entry| Some(entry.trim()))),
            Err(_) => entries.push(None),
        }
    }
    entries
}

/// `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:4711`. A port may be hidden: `192.0.2.1:_x`.
fn address(entry: &str) -> Option<IpAddr> {
    let entry = match entry.rsplit_once(":_") {
        Some((address, _)) => address,
        None => entry,
    };
    let bare = entry.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(entry);
    let address = bare.parse().ok().or_else(|| entry.parse::<SocketAddr>().ok().map(|with_port| with_port.ip()))?;
    Some(IpAddr::to_canonical(&address))
}

/// What one proxy tells in `Forwarded`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Element {
    from: Option<String>,
    proto: Option<String>,
    host: Option<String>,
}

/// Reads all lines of `Forwarded` (RFC 7239 section 4). `None` if one breaks its grammar: then no proxy that is trusted wrote it.
fn elements(headers: &HeaderMap) -> Option<Vec<Element>> {
    let mut elements = Vec::new();
    for line in headers.get_all(http::header::FORWARDED) {
        let mut rest = line.to_str().ok()?;
        loop {
            let mut element = Element::default();
            let mut empty = true;
            loop {
                rest = rest.trim_start();
                if rest.is_empty() || rest.starts_with([',', ';']) {
                    break;
                }
                let (name, after) = rest.split_once('=')?;
                let (value, after) = value(after)?;
                let slot = match &*name.to_ascii_lowercase() {
                    "for" => &mut element.from,
                    "proto" => &mut element.proto,
                    "host" => &mut element.host,
                    name if is_token(name) => &mut None,
                    _ => return None,
                };
                if slot.replace(value).is_some() {
                    return None;
                }
                empty = false;
                rest = after.trim_start();
                let Some(more) = rest.strip_prefix(';') else { break };
                rest = more;
            }
            if !empty {
                elements.push(element);
            }
            if rest.is_empty() {
                break;
            }
            rest = rest.strip_prefix(',')?;
        }
    }
    Some(elements)
}

/// A token or quoted text (RFC 9110 section 5.6), and what follows it.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (token, rest) = text.split_at(text.find([';', ',', ' ', '\t']).unwrap_or(text.len()));
        // `:` and brackets should be quoted, and are often not.
        let good = !token.is_empty() && token.bytes().all(|byte| is_token_byte(byte) || b":[]".contains(&byte));
        return good.then(|| (token.to_owned(), rest));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            _ => value.push(character),
        }
    }
    None
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(is_token_byte)
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests;
