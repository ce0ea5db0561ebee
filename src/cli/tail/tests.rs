use std::sync::{Arc, Mutex};

use clap::Parser as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

#[derive(Debug, clap::Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Paper {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

/// Answers each connection with the next of these, and returns what was asked.
async fn script(answers: &[String]) -> (Url, impl Future<Output = Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let answers = answers.to_vec();
    let serve = async move {
        let mut asked = Vec::new();
        for answer in answers {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(socket.read_u8().await.unwrap());
            }
            asked.push(String::from_utf8(head).unwrap().to_lowercase());
            socket.write_all(answer.as_bytes()).await.unwrap();
            socket.shutdown().await.unwrap();
        }
        asked
    };
    (url, serve)
}

/// Tails this script to its end: how that was, what was printed, what was asked.
async fn tail(arguments: &[&str], answers: &[String]) -> (Result<(), Error>, String, Vec<String>) {
    // As in main; tests run in processes of their own or share it.
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let (url, serve) = script(answers).await;
    let line = Line::try_parse_from(["tail"].iter().chain(arguments)).unwrap();
    let paper = Paper::default();
    let mut tail = Tail::new(&url, line.options, paper.clone()).unwrap();
    let both = async { tokio::join!(tail.follow(), serve) };
    let (ended, asked) = tokio::time::timeout(Duration::from_secs(20), both).await.unwrap();
    (ended.map(|Ended| ()), paper.text(), asked)
}

fn event(id: &str, n: u32) -> String {
    format!("id: {id}\ndata: {{\"subject\":\"a\",\"time\":\"T\",\"data\":{n}}}\n\n")
}

#[tokio::test]
async fn it_comes_back_with_the_last_id_even_one_without_data() {
    let answers = [
        format!("{STREAM}retry: 1\n\n{}id: quiet\n\ndata: cut o", event("one", 1)),
        format!("{STREAM}{}", event("two", 2)),
        format!("{STREAM}{}", event("three", 3)),
    ];
    let (ended, printed, asked) = tail(&["a.>", "b", "--since", "all", "-n", "3"], &answers).await;
    ended.unwrap();
    assert_eq!(printed, "T  a  1\nT  a  2\nT  a  3\n");
    assert!(asked[0].starts_with("get /events?envelope=json&subject=a.%3e&subject=b&since=all http"), "{}", asked[0]);
    assert!(!asked[0].contains("last-event-id") && asked[0].contains("accept: text/event-stream\r\n"), "{}", asked[0]);
    assert!(asked[1].contains("last-event-id: quiet\r\n"), "{}", asked[1]);
    assert!(asked[2].contains("last-event-id: two\r\n"), "{}", asked[2]);
}

#[tokio::test]
async fn what_waiting_can_mend_is_tried_again_and_all_else_ends_it() {
    let status = |line: &str, more: &str| format!("HTTP/1.1 {line}\r\ncontent-length: 0\r\nconnection: close\r\n{more}\r\n");
    let answers = [
        status("503 Service Unavailable", "retry-after: 0\r\n"),
        status("429 Too Many Requests", "retry-after: 0\r\n"),
        format!("{STREAM}retry: 1\n\nevent: brokercast.closing\ndata: {{\"reason\":\"expired\"}}\n\n"),
        status("502 Bad Gateway", ""),
        status("401 Unauthorized", ""),
    ];
    let (ended, printed, asked) = tail(&[], &answers).await;
    assert!(ended.unwrap_err().to_string().contains("401"));
    assert_eq!((printed.as_str(), asked.len()), ("", 5));
}

#[tokio::test]
async fn an_answer_that_is_no_stream_ends_it() {
    let page = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned();
    let (ended, ..) = tail(&[], &[page]).await;
    assert!(ended.unwrap_err().to_string().contains("not an event stream"));
    // A token must not follow a redirect.
    let elsewhere = "HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned();
    let (ended, ..) = tail(&["--token", "t"], &[elsewhere]).await;
    assert!(ended.unwrap_err().to_string().contains("302"));
}

#[tokio::test]
async fn the_token_is_shown_as_a_bearer() {
    let answers = [format!("{STREAM}{}", event("one", 1))];
    let (ended, _, asked) = tail(&["--token", " abc.def \n", "-n", "1", "--last-event-id", "zero"], &answers).await;
    ended.unwrap();
    assert!(asked[0].contains("authorization: bearer abc.def\r\n") && asked[0].contains("last-event-id: zero\r\n"), "{}", asked[0]);
}
