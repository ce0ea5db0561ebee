//! A client of bare bytes over TCP, for what no HTTP library lets one see or do.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout_at};

use super::wait::PATIENCE;

/// A connection and what came over it and was not asked for yet.
#[derive(Debug)]
pub struct Raw {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// A response's head.
#[derive(Debug, Clone)]
pub struct Head {
    /// Status line and header lines as they came.
    pub lines: Vec<String>,
    pub status: u16,
}

impl Head {
    /// The value of a header that stands exactly once.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.lines[1..].iter().filter_map(|line| {
            let (n, value) = line.split_once(": ")?;
            n.eq_ignore_ascii_case(name).then_some(value)
        });
        let value = values.next();
        assert!(values.next().is_none(), "`{name}` twice in {:?}", self.lines);
        value
    }
}

impl Raw {
    pub async fn connect(address: &str) -> Self {
        Self { stream: TcpStream::connect(address).await.unwrap(), buffer: Vec::new() }
    }

    /// With a small receive buffer, so that a reader that stops is noticed soon.
    pub async fn connect_narrow(address: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        Self { stream: socket.connect(address.parse().unwrap()).await.unwrap(), buffer: Vec::new() }
    }

    /// From this address of the machine's.
    pub async fn connect_from(own: std::net::IpAddr, address: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((own, 0).into()).unwrap();
        Self { stream: socket.connect(address.parse().unwrap()).await.unwrap(), buffer: Vec::new() }
    }

    /// Connects and sends `GET target` with HTTP/1.1.
    pub async fn get(address: &str, target: &str) -> Self {
        let mut raw = Self::connect(address).await;
        raw.send(&format!("GET {target} HTTP/1.1\r\nHost: {address}\r\n\r\n")).await;
        raw
    }

    pub async fn send(&mut self, text: impl AsRef<[u8]>) {
        self.stream.write_all(text.as_ref()).await.unwrap();
    }

    /// Sends what the other end may not want to take.
    pub async fn try_send(&mut self, text: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.write_all(text.as_ref()).await
    }

    /// Ends the sending direction.
    pub async fn finish(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    async fn more(&mut self, until: Instant) -> Option<usize> {
        // A reset is an end too.
        timeout_at(until, self.stream.read_buf(&mut self.buffer)).await.ok().map(|read| read.unwrap_or(0))
    }

    /// Everything up to and with the marker.
    pub async fn read_until(&mut self, marker: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.buffer.windows(marker.len()).position(|w| w == marker.as_bytes()) {
                let rest = self.buffer.split_off(at + marker.len());
                return String::from_utf8(std::mem::replace(&mut self.buffer, rest)).unwrap();
            }
            match self.more(until).await {
                Some(0) => panic!("the end before {marker:?}: {}", String::from_utf8_lossy(&self.buffer)),
                Some(_) => {}
                None => panic!("timed out before {marker:?}: {}", String::from_utf8_lossy(&self.buffer)),
            }
        }
    }

    /// A response's head.
    pub async fn head(&mut self) -> Head {
        let text = self.read_until("\r\n\r\n").await;
        let lines: Vec<String> = text.trim_end().split("\r\n").map(str::to_owned).collect();
        let status = lines[0].split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("no status in {lines:?}"));
        Head { lines, status }
    }

    /// The next chunk of a chunked body; empty at its end.
    pub async fn chunk(&mut self) -> Vec<u8> {
        let size = self.read_until("\r\n").await;
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or_else(|_| panic!("no chunk size: {size:?}"));
        let chunk = self.exactly(size + 2).await;
        assert_eq!(&chunk[size..], b"\r\n");
        chunk[..size].to_vec()
    }

    /// A body of the length that the head names.
    pub async fn body(&mut self, head: &Head) -> String {
        let length = head.header("content-length").unwrap_or_else(|| panic!("no length in {head:?}")).parse().unwrap();
        String::from_utf8(self.exactly(length).await).unwrap()
    }

    pub async fn exactly(&mut self, size: usize) -> Vec<u8> {
        let until = Instant::now() + PATIENCE;
        while self.buffer.len() < size {
            match self.more(until).await {
                Some(0) => panic!("the end before {size} bytes"),
                Some(_) => {}
                None => panic!("timed out before {size} bytes"),
            }
        }
        let rest = self.buffer.split_off(size);
        std::mem::replace(&mut self.buffer, rest)
    }

    /// Everything until the other end closes.
    pub async fn read_to_end(&mut self) -> Vec<u8> {
        self.end_within(PATIENCE).await.expect("the end of the connection in time")
    }

    /// Everything until the other end closes, or `None` when it does not in time.
    pub async fn end_within(&mut self, limit: Duration) -> Option<Vec<u8>> {
        let until = Instant::now() + limit;
        while self.more(until).await? != 0 {}
        Some(std::mem::take(&mut self.buffer))
    }

    /// Whether the other end has closed or reset the connection, told without reading what is waiting.
    pub fn has_error(&self) -> bool {
        self.stream.take_error().ok().flatten().is_some()
    }
}
