//! The PROXY protocol, versions 1 and 2: where a connection comes from, as a proxy announces it before the first byte.
//!
//! Reads the header and nothing behind it. Who may announce is its caller's; the format is `ppp`'s.

use std::io;
use std::net::{IpAddr, SocketAddr};

use ppp::{HeaderResult, v1, v2};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// Bytes that every header has.
const BEGIN: usize = v2::PROTOCOL_PREFIX.len();
/// Bytes of a header of version 2 without the addresses.
const HEAD_V2: usize = BEGIN + 4;
/// The longest header of version 1, in bytes.
const LONGEST_V1: usize = 107;
/// The longest header of version 2 that is read. Proxies add what they know of TLS, which is a few hundred bytes.
const LONGEST_V2: usize = 4 << 10;

/// Reads a header. Returns the client's address; `None` where the proxy announces none: its own connections, such as health checks,
/// and clients over what is no TCP.
///
/// # Errors
/// When there is no header, or it is broken.
pub(super) async fn read(socket: &mut TcpStream) -> io::Result<Option<SocketAddr>> {
    let mut header = vec![0; BEGIN];
    socket.read_exact(&mut header).await?;
    if header == v2::PROTOCOL_PREFIX {
        header.resize(HEAD_V2, 0);
        socket.read_exact(&mut header[BEGIN..]).await?;
        let rest = usize::from(u16::from_be_bytes([header[HEAD_V2 - 2], header[HEAD_V2 - 1]]));
        if HEAD_V2 + rest > LONGEST_V2 {
            return Err(broken());
        }
        header.resize(HEAD_V2 + rest, 0);
        socket.read_exact(&mut header[HEAD_V2..]).await?;
    } else if header.starts_with(v1::PROTOCOL_PREFIX.as_bytes()) {
        read_line(socket, &mut header).await?;
        // `ppp` takes an `UNKNOWN` that ends otherwise.
        if !header.ends_with(b"\r\n") {
            return Err(broken());
        }
    } else {
        return Err(broken());
    }
    address(&header).ok_or_else(broken)
}

/// Reads up to the end of the line, and nothing behind it.
async fn read_line(socket: &mut TcpStream, line: &mut Vec<u8>) -> io::Result<()> {
    let mut ahead = [0; LONGEST_V1];
    while line.len() < LONGEST_V1 {
        let ready = socket.peek(&mut ahead[line.len()..]).await?;
        let begin = line.len();
        let ready = &ahead[begin..begin + ready];
        if ready.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let end = ready.iter().position(|byte| *byte == b'\n');
        line.resize(begin + end.map_or(ready.len(), |end| end + 1), 0);
        socket.read_exact(&mut line[begin..]).await?;
        if end.is_some() {
            return Ok(());
        }
    }
    Err(broken())
}

/// What a header announces; `None` if it is broken.
fn address(header: &[u8]) -> Option<Option<SocketAddr>> {
    let of = |ip: IpAddr, port| Some(SocketAddr::new(ip.to_canonical(), port));
    Some(match HeaderResult::parse(header) {
        HeaderResult::V1(parsed) => match parsed.ok()?.addresses {
            v1::Addresses::Unknown => None,
            v1::Addresses::Tcp4(both) => of(both.source_address.into(), both.source_port),
            v1::Addresses::Tcp6(both) => of(both.source_address.into(), both.source_port),
        },
        HeaderResult::V2(parsed) => {
            let parsed = parsed.ok()?;
            match parsed.addresses {
                _ if parsed.command == v2::Command::Local => None,
                v2::Addresses::IPv4(both) => of(both.source_address.into(), both.source_port),
                v2::Addresses::IPv6(both) => of(both.source_address.into(), both.source_port),
                v2::Addresses::Unspecified | v2::Addresses::Unix(_) => None,
            }
        }
    })
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "no header of the PROXY protocol")
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    async fn sent(parts: &[&[u8]]) -> (Option<Option<String>>, Vec<u8>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, server) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (mut client, mut server) = (client.unwrap(), server.unwrap().0);
        let write = async {
            for part in parts {
                client.write_all(part).await.unwrap();
                tokio::task::yield_now().await;
            }
            client.shutdown().await.unwrap();
        };
        let (announced, ()) = tokio::join!(read(&mut server), write);
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).await.unwrap();
        (announced.ok().map(|address| address.map(|address| address.to_string())), rest)
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        [v2::PROTOCOL_PREFIX, &[command, family], &u16::try_from(rest.len()).unwrap().to_be_bytes(), rest].concat()
    }

    const ADDRESSES: [u8; 12] = [192, 0, 2, 1, 10, 0, 0, 1, 0x12, 0x67, 0, 80];

    #[tokio::test]
    async fn both_versions_announce_an_address_and_what_follows_stays() {
        let six = [&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1][..], &[0; 16], &[0, 7, 0, 80]].concat();
        let with_more = [&ADDRESSES[..], &[0x04, 0, 3, 0, 0, 0]].concat();
        for (header, announced) in [
            (b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 80\r\n".to_vec(), Some("192.0.2.1:4711")),
            (b"PROXY TCP6 2001:db8::1 ::1 7 80\r\n".to_vec(), Some("[2001:db8::1]:7")),
            (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 7 80\r\n".to_vec(), Some("192.0.2.1:7")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), None),
            (v2(0x21, 0x11, &ADDRESSES), Some("192.0.2.1:4711")),
            (v2(0x21, 0x11, &with_more), Some("192.0.2.1:4711")),
            (v2(0x21, 0x21, &six), Some("[2001:db8::1]:7")),
            (v2(0x20, 0x11, &ADDRESSES), None),
            (v2(0x20, 0, &[]), None),
            (v2(0x21, 0, &[]), None),
        ] {
            let expected = (Some(announced.map(str::to_owned)), b"GET / ".to_vec());
            let shown = String::from_utf8_lossy(&header).into_owned();
            assert_eq!(sent(&[&[&header[..], b"GET / "].concat()]).await, expected, "{shown}");
            let bytes: Vec<_> = header.chunks(1).chain([&b"GET / "[..]]).collect();
            assert_eq!(sent(&bytes).await, expected, "{shown}");
        }
    }

    #[tokio::test]
    async fn anything_else_is_no_header() {
        let long = format!("PROXY TCP4 {}\r\n", "1".repeat(200));
        for header in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"PROXY",
            b"PROXY TCP4 192.0.2.1",
            b"PROXY UNKNOWN\n",
            b"PROXY UNKNOWN ffff::1 \nf",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 4711\r\n",
            b"PROXY TCP4 192.0.2.300 10.0.0.1 1 2\r\n",
            b"PROXY TCP4 ::1 ::1 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 99999 2\r\n",
            b"proxy TCP4 192.0.2.1 10.0.0.1 1 2\r\n",
            long.as_bytes(),
            &v2(0x31, 0x11, &ADDRESSES),
            &v2(0x22, 0x11, &ADDRESSES),
            &v2(0x21, 0x11, &ADDRESSES[..8]),
            &v2(0x21, 0x11, &[0; 8 << 10]),
            &v2(0x21, 0x11, &ADDRESSES)[..20],
            b"",
        ] {
            assert_eq!(sent(&[header]).await.0, None, "{}", String::from_utf8_lossy(header));
        }
    }
}
