//! A small HTTP/1.1 server that answers as a test wishes.

use std::future::Future;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A server on a free loopback port. It serves until the test's runtime ends.
pub struct Server {
    /// `http://` and its address.
    pub url: String,
    listener: TcpListener,
}

impl Server {
    pub async fn bind() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { url: format!("http://{}", listener.local_addr().unwrap()), listener }
    }

    /// Answers each request by its head and its body, head and all. `None`: it hangs up.
    pub fn serve<A: Future<Output = Option<String>> + Send>(self, answer: impl Fn(String, Vec<u8>) -> A + Send + Sync + 'static) {
        let answer = Arc::new(answer);
        tokio::spawn(async move {
            loop {
                let (mut socket, _) = self.listener.accept().await.unwrap();
                let answer = answer.clone();
                tokio::spawn(async move {
                    let mut read = Vec::new();
                    while let Some((head, body)) = request(&mut socket, &mut read).await {
                        let Some(answer) = answer(head, body).await else { return };
                        if socket.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
    }
}

/// The next request's head and body.
async fn request(socket: &mut TcpStream, read: &mut Vec<u8>) -> Option<(String, Vec<u8>)> {
    let end = loop {
        if let Some(end) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break end + 4;
        }
        socket.read_buf(read).await.ok().filter(|n| *n > 0)?;
    };
    let head = String::from_utf8(read.drain(..end).collect()).unwrap();
    let length = |line: &str| line.to_ascii_lowercase().strip_prefix("content-length: ").map(|length| length.parse().unwrap());
    let length = head.lines().find_map(length).unwrap_or(0);
    while read.len() < length {
        socket.read_buf(read).await.ok().filter(|n| *n > 0)?;
    }
    Some((head, read.drain(..length).collect()))
}
