//! What hyper does and does not promise: each of these fails should a version of it hand sockets over otherwise.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::super::connection::{Bounds, Counts, Ends, Public, Server};
use super::*;
use crate::stream::tests::{demo, request};

const BOUNDS: Bounds = Bounds {
    handshake: Duration::from_secs(2),
    header: Duration::from_secs(2),
    stall: Duration::from_secs(2),
    heartbeat: Duration::from_secs(15),
    header_bytes: 16 << 10,
};

struct Left {
    socket: TcpStream,
    stream: Stream,
    beyond: usize,
}

/// A server with one stream, and what leaves it.
fn serve() -> (SocketAddr, mpsc::UnboundedReceiver<Left>, TaskTracker) {
    serve_with(u64::MAX)
}

/// With so many descriptors for its clients.
fn serve_with(descriptors: u64) -> (SocketAddr, mpsc::UnboundedReceiver<Left>, TaskTracker) {
    let streams = demo(1 << 20);
    let answer = move || {
        let handover = Handover::new(streams.open(request("a"), Timestamp::now()));
        let mut response = Response::new(Body::new(handover.clone()));
        response.extensions_mut().insert(handover);
        async { response }
    };
    let (leave, left) = mpsc::unbounded_channel();
    let adopt: Adopt = Arc::new(move |socket, stream, beyond| {
        leave.send(Left { socket, stream, beyond }).ok();
        Box::pin(async {})
    });
    let tasks = TaskTracker::new();
    let router = Router::new().route("/events", get(answer)).route("/hello", get(|| async { "hello" }));
    let server = Server::new(
        router,
        None,
        BOUNDS,
        Ends::default(),
        tasks.clone(),
        Counts::default(),
        Some(Public { adopt, announces: Box::new(|_| false), descriptors }),
    );
    let (listener, address) = super::super::listen::tests::loopback(Duration::from_secs(60));
    tasks.spawn(server.run(listener));
    (address, left, tasks)
}

async fn until(socket: &mut TcpStream, marker: &str) -> String {
    let mut text = Vec::new();
    while !String::from_utf8_lossy(&text).contains(marker) {
        let n = tokio::time::timeout(Duration::from_secs(5), socket.read_buf(&mut text)).await.expect("in time").unwrap();
        assert_ne!(n, 0, "ended after {}", String::from_utf8_lossy(&text));
    }
    String::from_utf8(text).unwrap()
}

async fn left(from: &mut mpsc::UnboundedReceiver<Left>) -> Left {
    tokio::time::timeout(Duration::from_secs(5), from.recv()).await.expect("a stream leaves").unwrap()
}

#[tokio::test]
async fn a_connection_that_takes_one_of_the_last_descriptors_is_closed() {
    let (address, _leaving, _tasks) = serve_with(0);
    let mut client = TcpStream::connect(address).await.unwrap();
    let end = tokio::time::timeout(Duration::from_secs(5), client.read(&mut [0; 8])).await.expect("in time");
    assert!(matches!(end, Ok(0) | Err(_)));
}

#[tokio::test]
async fn a_stream_leaves_behind_its_head_and_first_bytes_and_its_socket_works_on() {
    let (address, mut leaving, _tasks) = serve();
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    until(&mut client, "hello").await;
    client.write_all(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let text = until(&mut client, "id: ").await;
    assert!(text.contains("transfer-encoding: chunked") && text.contains("connection: close"), "{text}");
    let mut left = left(&mut leaving).await;
    assert_eq!(left.beyond, 0);
    assert!(matches!(left.stream.step(Timestamp::now()), Step::Live));
    left.socket.write_all(b"3\r\nxyz\r\n0\r\n\r\n").await.unwrap();
    drop(left);
    let mut rest = String::new();
    client.read_to_string(&mut rest).await.unwrap();
    assert!(rest.ends_with("3\r\nxyz\r\n0\r\n\r\n"), "{rest:?}");
}

#[tokio::test]
async fn what_was_read_beyond_the_request_is_counted() {
    let (address, mut leaving, _tasks) = serve();
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\nGET /hello HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let text = until(&mut client, "id: ").await;
    assert!(!text.contains("hello"));
    assert_eq!(left(&mut leaving).await.beyond, "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n".len());
}

#[tokio::test]
async fn other_versions_and_methods_stay_with_hyper() {
    let (address, mut leaving, _tasks) = serve();
    for request in ["GET /events HTTP/1.0\r\nHost: x\r\n\r\n", "HEAD /events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"] {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        until(&mut client, "\r\n\r\n").await;
    }
    assert!(leaving.try_recv().is_err());
}

#[tokio::test]
async fn a_client_that_goes_at_once_leaves_nothing_behind() {
    let (address, mut leaving, tasks) = serve();
    for _ in 0..20 {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        drop(client);
    }
    // The listener's own task is left.
    tokio::time::timeout(Duration::from_secs(5), async {
        while tasks.len() > 1 {
            while leaving.try_recv().is_ok() {}
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("connections end");
}
