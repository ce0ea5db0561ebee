//! Servers that answer late, deliver late, repeat themselves, or remember a reader that is gone.

use std::sync::atomic::AtomicBool;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::*;

/// What becomes of a frame: a line, with the payload if it is a message.
enum Fate {
    Passes,
    Comes(Duration),
    IsLost,
}

/// Decides about a frame, and may change it.
type Judge = Arc<dyn Fn(&mut Vec<u8>) -> Fate + Send + Sync>;

/// Stands between clients and a server. All connections end when it is dropped.
struct Proxy {
    port: u16,
    _task: JoinSet<()>,
}

impl Proxy {
    /// Holds back each answer to the making of a consumer for a time.
    async fn start(server: &Server, hold: Duration) -> Self {
        Self::between(server, |_| Fate::Passes, move |frame| if has(frame, MADE) { Fate::Comes(hold) } else { Fate::Passes }).await
    }

    /// Messages with these payloads are not delivered, as if the server had not come to them yet.
    async fn without(server: &Server, bodies: &'static [&'static str]) -> Self {
        let is_one = |frame: &[u8]| bodies.iter().any(|body| frame.ends_with(format!("\r\n{body}\r\n").as_bytes()));
        let judge = move |frame: &mut Vec<u8>| if frame.starts_with(b"MSG ") && is_one(frame) { Fate::IsLost } else { Fate::Passes };
        Self::between(server, |_| Fate::Passes, judge).await
    }

    /// Judges what clients send, and what the server does.
    async fn between(
        server: &Server,
        questions: impl Fn(&mut Vec<u8>) -> Fate + Send + Sync + 'static,
        answers: impl Fn(&mut Vec<u8>) -> Fate + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let port = listener.local_addr().expect("an address").port();
        let target = server.port;
        let (of_client, of_server): (Judge, Judge) = (Arc::new(questions), Arc::new(answers));
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.expect("a client");
                let broker = TcpStream::connect(("127.0.0.1", target)).await.expect("connects");
                let ((questions, to_client), (answers, to_broker)) = (client.into_split(), broker.into_split());
                connections.spawn(pass(questions, to_broker, of_client.clone()));
                connections.spawn(pass(answers, to_client, of_server.clone()));
            }
        });
        Self { port, _task: task }
    }

    fn source(&self) -> Arc<dyn Adapter> {
        self.source_of(&["a"])
    }

    fn source_of(&self, subjects: &[&str]) -> Arc<dyn Adapter> {
        let url = format!("nats://127.0.0.1:{}", self.port);
        adapter(serde_json::json!({"servers": [url], "subjects": subjects, "jetstream": {"stream": "S"}}))
    }
}

/// In the answer to the making of a consumer, and in what a stream says of itself.
const MADE: &str = "consumer_create_response";
const INFO: &str = "stream_info_response";

fn has(frame: &[u8], text: &str) -> bool {
    String::from_utf8_lossy(frame).contains(text)
}

async fn pass(from: OwnedReadHalf, to: OwnedWriteHalf, judge: Judge) {
    let (mut from, to, mut held) = (BufReader::new(from), Arc::new(tokio::sync::Mutex::new(to)), JoinSet::new());
    loop {
        let mut frame = Vec::new();
        if from.read_until(b'\n', &mut frame).await.unwrap_or_default() == 0 {
            return;
        }
        let line = String::from_utf8_lossy(&frame).into_owned();
        if ["MSG ", "HMSG ", "PUB ", "HPUB "].iter().any(|verb| line.starts_with(verb)) {
            let size: usize = line.split_whitespace().last().and_then(|size| size.parse().ok()).expect("a size");
            let begin = frame.len();
            frame.resize(begin + size + 2, 0);
            from.read_exact(&mut frame[begin..]).await.expect("the payload");
        }
        let hold = match judge(&mut frame) {
            Fate::IsLost => continue,
            Fate::Comes(hold) => hold,
            Fate::Passes => Duration::ZERO,
        };
        let to = to.clone();
        let write = async move { to.lock().await.write_all(&frame).await.unwrap_or_default() };
        if hold.is_zero() {
            write.await;
        } else {
            held.spawn(async move {
                sleep(hold).await;
                write.await;
            });
        }
    }
}

/// Ten messages and ten more come, over one connection and by one consumer.
async fn is_read(proxy: &Proxy, context: &jetstream::Context) {
    let running = Running::start(proxy.source());
    running.until_messages(10).await;
    publish(context, "a", 10..20).await;
    running.until_messages(20).await;
    assert_eq!(ledger(&running.recorder.items.lock(), 20), []);
    assert_eq!((running.handle.counters.reconnects(), consumers(context).await), (0, 1));
}

#[tokio::test]
async fn a_consumer_that_is_made_late_is_waited_for_and_used() {
    let server = Server::start().await;
    let context = client(&server).await;
    make(&context, named(&["a"])).await;
    publish(&context, "a", 0..10).await;
    let proxy = Proxy::start(&server, Duration::from_secs(8)).await;
    is_read(&proxy, &context).await;
}

/// The reader was up to date, and has asked for more: only the stream's beginning shows that something was there.
async fn purge_before_delivery(subjects: &[&str]) {
    let server = Server::start().await;
    let context = client(&server).await;
    let stream = make(&context, named(&["a.>"])).await;
    let proxy = Proxy::without(&server, &["1", "3"]).await;
    let running = Running::start(proxy.source_of(subjects));
    running.until_state(State::Up).await;
    publish(&context, "a.p.u", 0..1).await;
    running.until_messages(1).await;
    publish(&context, "a.p.u", 1..2).await;
    stream.purge().await.expect("purges");
    publish(&context, "a.p.u", 2..3).await;
    running.until_messages(2).await;
    publish(&context, "a.p.u", 3..4).await;
    stream.purge().await.expect("purges");
    // Nothing follows.
    eventually("a second gap", async || if running.gaps().len() >= 2 { Ok(()) } else { Err(format!("{:?}", running.gaps())) }).await;
    publish(&context, "a.p.u", 4..5).await;
    running.until_messages(3).await;
    let gaps: Vec<_> = ledger(&running.recorder.items.lock(), 5).into_iter().map(|gap| (gap.reason, gap.from, gap.to)).collect();
    assert_eq!(gaps, [(GapReason::Reset, Some(1), Some(3)), (GapReason::Reset, Some(3), Some(5))]);
    assert_eq!(running.handle.counters.reconnects(), 0);
}

#[tokio::test]
async fn a_purge_of_what_was_not_delivered_yet_is_told_of_some_subjects_and_of_all() {
    tokio::join!(purge_before_delivery(&["a.*.u"]), purge_before_delivery(&["a.>"]));
}

/// As while a cluster elects a leader.
#[tokio::test]
async fn a_question_that_is_lost_is_asked_again() {
    let server = Server::start().await;
    let context = client(&server).await;
    make(&context, named(&["a"])).await;
    publish(&context, "a", 0..10).await;
    let lost = Mutex::new(vec!["STREAM.INFO", "STREAM.MSG.GET", "CONSUMER.CREATE"]);
    let judge = move |frame: &mut Vec<u8>| {
        let mut lost = lost.lock();
        let found = lost.iter().position(|question| has(frame, &format!("PUB $JS.API.{question}.")));
        found.map_or(Fate::Passes, |at| {
            lost.remove(at);
            Fate::IsLost
        })
    };
    let proxy = Proxy::between(&server, judge, |_| Fate::Passes).await;
    is_read(&proxy, &context).await;
}

/// As by a leader that was cut off from the others, until a little after they have made the consumer.
#[tokio::test]
async fn an_end_that_is_old_news_makes_no_place_behind_it_a_reset() {
    let server = Server::start().await;
    let context = client(&server).await;
    make(&context, named(&["a"])).await;
    publish(&context, "a", 0..20).await;
    let all = read(&source(&server, &["a"]), Start::Earliest).await;
    let (made, outdated) = (AtomicBool::new(false), AtomicBool::new(false));
    let judge = move |frame: &mut Vec<u8>| {
        made.fetch_or(has(frame, MADE), Ordering::SeqCst);
        if has(frame, INFO) && !(made.load(Ordering::SeqCst) && outdated.swap(true, Ordering::SeqCst)) {
            let text = String::from_utf8(frame.clone()).expect("JSON");
            *frame = text.replace("\"last_seq\":20,", "\"last_seq\":10,").into_bytes();
        }
        Fate::Passes
    };
    let proxy = Proxy::between(&server, |_| Fate::Passes, judge).await;
    let source = proxy.source();
    let after = read(&source, Start::After(position_of(&all, "17"))).await;
    assert_eq!(texts(&after), ["18", "19", "tail 20!"]);
    // What the others do not have either is gone.
    let ahead = Position { seq: 1000, ..position_of(&all, "17") };
    assert_eq!(texts(&read(&source, Start::After(ahead)).await)[..2], ["gap reset 1000..1@0", "0"]);
    drop(source);
    until_consumers(&context, 0).await;
}

#[tokio::test]
async fn a_consumer_that_is_made_too_late_is_not_left_behind() {
    let server = Server::start().await;
    let context = client(&server).await;
    make(&context, named(&["a"])).await;
    let proxy = Proxy::start(&server, Duration::from_secs(60)).await;
    let source = proxy.source();
    // Something else keeps the connection, so that it is not its end that ends the consumer.
    let keeper = source.connect(Start::Now);
    let given_up = source.history(Start::Earliest);
    let both = async { tokio::join!(keeper, given_up) };
    let mut both = Box::pin(both);
    assert!(timeout(Duration::from_secs(2), &mut both).await.is_err());
    until_consumers(&context, 2).await;
    drop(both);
    // Sooner than the server lets them expire.
    timeout(Duration::from_secs(5), until_consumers(&context, 0)).await.expect("they are deleted");
}

#[tokio::test]
async fn a_reader_that_was_killed_keeps_its_place_for_a_short_time() {
    let server = Server::start().await;
    let context = client(&server).await;
    make(&context, stream::Config { max_consumers: 1, ..named(&["a"]) }).await;
    let proxy = Proxy::start(&server, Duration::ZERO).await;
    let killed = Running::start(proxy.source());
    killed.until_state(State::Up).await;
    // Its connection ends without a word, as if by SIGKILL.
    drop(proxy);
    let running = Running::start(source(&server, &["a"]));
    running.until_state(State::Up).await;
    let status = running.handle.status.read();
    assert_eq!(consumers(&context).await, 1, "{status:?}");
}

#[tokio::test]
async fn the_newest_of_each_subject_are_read_while_they_change() {
    let server = Server::start().await;
    let context = client(&server).await;
    make(&context, stream::Config { max_messages_per_subject: 1, ..named(&["a.*"]) }).await;
    let subjects = 3000;
    for n in 0..subjects {
        let ack = context.publish(format!("a.{n}"), "0".into()).await.expect("publishes");
        if n % 500 == 499 {
            ack.await.expect("is stored");
        }
    }
    let source = source(&server, &["a.>"]);
    let writing = async {
        loop {
            let subject = format!("a.{}", rand::random_range(0..subjects));
            context.publish(subject, "1".into()).await.expect("publishes").await.expect("is stored");
        }
    };
    let reading = async {
        for _ in 0..10 {
            let items = read(&source, Start::LastPerSubject).await;
            let seqs: Vec<_> = items.iter().filter_map(|item| if let Item::Message(m) = item { m.position } else { None }).collect();
            assert!(seqs.windows(2).all(|pair| pair[0].seq < pair[1].seq));
            assert!(seqs.len() + 500 > subjects, "{}", seqs.len());
        }
    };
    tokio::select! {
        () = writing => {}
        () = reading => {}
    }
}

#[tokio::test]
async fn a_password_that_is_renewed_while_messages_come_loses_none() {
    let lines = "authorization { users: [ { user: admin, password: p }, { user: u, password: old } ] }";
    let server = Server::configured(lines).await;
    let options = async_nats::ConnectOptions::with_user_and_password("admin".into(), "p".into());
    let context = jetstream::new(options.connect(server.url()).await.expect("connects"));
    make(&context, named(&["a"])).await;
    let (conf, file) = (server.folder.path().join("nats.conf"), server.folder.path().join("password"));
    std::fs::write(&file, "old\n").expect("writes");
    let running = Running::start(adapter(serde_json::json!({"servers": [server.url()], "subjects": ["a"], "user": "u",
        "password_file": file, "jetstream": {"stream": "S"}})));
    running.until_state(State::Up).await;
    for (n, password) in ["new", "newer"].into_iter().enumerate() {
        publish(&context, "a", n * 1000..n * 1000 + 500).await;
        let text = std::fs::read_to_string(&conf).expect("reads");
        let before = if n == 0 { "old" } else { "new" };
        std::fs::write(&conf, text.replace(&format!("password: {before} "), &format!("password: {password} "))).expect("writes");
        std::fs::write(&file, format!("{password}\n")).expect("writes");
        server.signal(rustix::process::Signal::HUP);
        publish(&context, "a", n * 1000 + 500..(n + 1) * 1000).await;
        running.until_messages((n + 1) * 1000).await;
        // The server ends the connection of a user whose password it does not know any more.
        eventually("another connection", async || match running.handle.counters.reconnects() {
            times if times > n as u64 => Ok(()),
            times => Err(times.to_string()),
        })
        .await;
        running.until_state(State::Up).await;
    }
    assert_eq!(ledger(&running.recorder.items.lock(), 2000), []);
}
