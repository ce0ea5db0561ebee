//! Exchanges and queues.

use std::sync::Arc;
use std::time::{Duration, Instant};

use brokercast::internals::ErrorKind::{self, Configuration, Denied, Lost, Missing, Protocol};
use brokercast::internals::{Adapter, GapReason, Item, Start, Timestamp};
use lapin::options::{BasicPublishOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, ExchangeKind};
use serde_json::json;

use crate::support::certs::Certs;
use crate::support::drive::{PATIENCE, Reading, chain, source, subjects, texts};
use crate::support::plain::{Plain, long, short};
use crate::support::proxy::Proxy;
use crate::support::rabbit::{Amqp, Rabbit};
use crate::support::wait::{eventually, stays, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_exchange_gets_arrives_under_its_routing_key_whatever_bytes_that_is() {
    let rabbit = Rabbit::start().await;
    let config = json!({ "url": rabbit.url(), "exchange": "trades" });
    let trades = source("trades", config.clone());
    let mut reading = Reading::open(&trades, Start::Now).await.unwrap();
    let client = rabbit.client().await;
    for (key, payload) in [("eu.acme", "1"), ("", "2"), ("a..b", "3"), ("with space", "4"), ("100%", "5")] {
        client.publish("trades", key, payload.as_bytes()).await;
    }
    let read = reading.messages(5).await;
    assert_eq!(subjects(&read), ["eu.acme", "trades", "a.%2Eb", "with%20space", "100%25"]);
    assert_eq!(texts(&read), ["1", "2", "3", "4", "5"]);

    let mut plain = Plain::connect(rabbit.port());
    let nested = {
        // A table in a table in a table …, 2,000 deep.
        let mut table = long(b"");
        for _ in 0..2000 {
            table = long(&[short(b"t"), vec![b'F'], table].concat());
        }
        [&[0b0010_0000, 0], &*table].concat()
    };
    plain.publish(b"trades", b"caf\xe9.\xff", &[0, 0], b"6");
    plain.publish(b"trades", b"odd.props", &[&[0b1000_0000, 0][..], &short(b"\xff\xfe")].concat(), b"7");
    let table = long(&[short(b"\xfe"), vec![b'S'], long(b"\xff")].concat());
    plain.publish(b"trades", b"odd.header", &[&[0b0010_0000, 0], &*table].concat(), b"8");
    plain.publish(b"trades", b"deep", &nested, b"9");
    plain.publish(b"trades", b"last", &[0, 0], b"10");
    let read = reading.messages(10).await;
    assert_eq!(subjects(&read[5..]), ["caf%E9.%FF", "odd.props", "odd.header", "deep", "last"]);
    assert_eq!(texts(&read[5..]), ["6", "7", "8", "9", "10"]);
    reading.close().await;

    // Nobody is there to keep it; the broker says so, if it has forgotten the queue by now.
    if let Err(error) = trades.publish("eu.x", "out".into()).await {
        assert!(chain(&error).contains("NO_ROUTE"), "{}", chain(&error));
    }
    let mut reading = Reading::open(&trades, Start::Now).await.unwrap();
    trades.publish("eu.x", "in".into()).await.unwrap();
    // Nobody kept what came while nobody was there, and the adapter says so.
    assert_eq!(texts(&reading.messages(1).await), ["in"]);
    assert!(trades.loses_while_away());
    reading.during(Duration::from_millis(100)).await;
}

async fn delete(client: &Amqp, queue: &str) {
    client.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
}

/// How many messages a queue holds that nobody has been given.
async fn depth(client: &Amqp, queue: &str) -> u32 {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    client.channel.queue_declare(queue.into(), options, FieldTable::default()).await.unwrap().message_count()
}

async fn refused(source: &Arc<dyn Adapter>, kind: ErrorKind, why: &str) {
    let error = Reading::open(source, Start::Now).await.err().unwrap();
    let text = chain(&error);
    assert!(!text.contains("hush") && text.contains(why), "{text}");
    assert_eq!(error.kind(), kind, "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::too_many_lines, reason = "one story, in its order")]
async fn a_queue_keeps_what_was_not_acknowledged() {
    let mut rabbit = Rabbit::start().await;
    let jobs = source("jobs", json!({ "url": rabbit.url(), "queue": "jobs.done", "prefetch": 40 }));
    refused(&jobs, Missing, "queue `jobs.done` is not there yet").await;
    let client = rabbit.client().await;
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    client.channel.queue_declare("jobs.done".into(), options, FieldTable::default()).await.unwrap();
    for n in 0..100 {
        client.publish("", "jobs.done", n.to_string().as_bytes()).await;
    }
    assert!(!jobs.loses_while_away() && !jobs.durable());
    let mut reading = Reading::open(&jobs, Start::Now).await.unwrap();
    reading.take(10).await;
    assert_eq!(subjects(&reading.all())[0], "jobs.done");
    // No more than the prefetch is on its way, and nothing is acknowledged by reading alone.
    assert_eq!(depth(&client, "jobs.done").await, 60);
    let known = within(PATIENCE, "what waits to be known", async || jobs.gauges().ready);
    // The first look may have been before the prefetch was on its way.
    let ready = tokio::select! { ready = known => ready, () = reading.take(41) => unreachable!("more than the prefetch") };
    assert!((60..=100).contains(&ready), "{ready} wait");
    drop(reading);
    let mut reading = Reading::insist(&jobs, Start::Now).await;
    assert_eq!(texts(&reading.messages(100).await), (0..100).map(|n| n.to_string()).collect::<Vec<_>>());
    reading.close().await;
    let mut reading = Reading::insist(&jobs, Start::Now).await;
    assert!(reading.during(Duration::from_millis(200)).await.items.is_empty(), "what was acknowledged is gone");

    // The queue's end is noticed, and it is waited for.
    delete(&client, "jobs.done").await;
    let (error, after) = reading.broken().await;
    assert!(chain(&error).contains("queue `jobs.done` (`queue`) was deleted") && after < Duration::from_secs(2), "{error} {after:?}");
    refused(&jobs, Missing, "is not there yet").await;

    // One of our own is made again, of the type that was asked for, and keeps its messages over a crash of the broker.
    for kind in ["classic", "quorum"] {
        let own =
            json!({ "url": rabbit.url(), "queue": kind, "declare": true, "queue_type": kind, "exchange": "in", "binding_keys": ["a.*"] });
        let own = source("own", own);
        let mut reading = Reading::open(&own, Start::Now).await.unwrap();
        let client = rabbit.client().await;
        delete(&client, kind).await;
        reading.broken().await;
        let mut reading = Reading::open(&own, Start::Now).await.unwrap();
        for (key, payload) in [("a.b", "1"), ("b", "no"), ("a.c", "2")] {
            client.publish("in", key, payload.as_bytes()).await;
        }
        // What comes to the queue by another way is not asked for, and does not stay in it.
        client.publish("", kind, b"no").await;
        client.publish("in", "a.d", b"3").await;
        assert_eq!(texts(&reading.messages(3).await), ["1", "2", "3"]);
        if kind == "quorum" {
            // RabbitMQ 3.10 does not reliably bring up a young quorum queue after a crash.
            continue;
        }
        let begun = Instant::now();
        rabbit.kill();
        reading.broken().await;
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        rabbit.restart().await;
        let client = rabbit.client().await;
        let mut reading = Reading::insist(&own, Start::Now).await;
        client.publish("in", "a.e", b"4").await;
        // A crash may bring back what was acknowledged just before it.
        let came = |reading: &Reading| texts(&reading.all());
        reading.until(|items| matches!(items.last(), Some(Item::Message(m)) if m.payload == "4")).await;
        assert!(came(&reading).iter().all(|text| ["1", "2", "3", "4"].contains(&&**text)), "{:?}", came(&reading));
    }
    let stream = json!({ "url": rabbit.url(), "queue": "classic", "queue_type": "stream" });
    let stream = source("stream", stream);
    rabbit.client().await.publish("", "classic", b"x").await;
    refused(&stream, Configuration, "queue `classic` is no stream").await;
    let exchange = json!({ "url": rabbit.url(), "exchange": "log", "queue_type": "stream" });
    drop(Reading::open(&source("log", exchange), Start::Now).await.unwrap());
    rabbit.client().await.publish("log", "x", b"x").await;
    let plain = source("plain", json!({ "url": rabbit.url(), "queue": "brokercast.log" }));
    refused(&plain, Configuration, "`queue_type: stream` reads it as one").await;
    let nobody = source("x", json!({ "url": rabbit.url(), "user": "guest", "password": "hush", "exchange": "x" }));
    refused(&nobody, Denied, "ACCESS_REFUSED").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_that_somebody_deletes_is_declared_again_and_one_made_anew_is_bound_again() {
    let rabbit = Rabbit::start().await;
    let client = rabbit.client().await;
    for queue in [json!({}), json!({ "queue_type": "stream" })] {
        let mut config = json!({ "url": rabbit.url(), "exchange": "trades", "binding_keys": ["a.*", "b"] });
        config.as_object_mut().unwrap().extend(queue.as_object().unwrap().clone());
        let trades = source("trades", config);
        let mut reading = Reading::insist(&trades, Start::Earliest).await;
        client.publish("trades", "a.b", b"1").await;
        let start = reading.messages(1).await[0].position.map_or(Start::Now, Start::After);
        client.channel.exchange_delete("trades".into(), ExchangeDeleteOptions::default()).await.unwrap();
        let (error, after) = reading.broken().await;
        assert_eq!(error.kind(), Missing);
        assert!(chain(&error).contains("exchange `trades` was deleted") && after < Duration::from_secs(20), "{error} {after:?}");
        drop(reading);
        let mut reading = Reading::insist(&trades, start).await;
        client.publish("trades", "a.b", b"2").await;
        assert_eq!(texts(&reading.messages(1).await), ["2"]);
        // A stream has no hole where nothing came to it; of a queue's new connection the supervisor tells.
        let gaps: Vec<_> = reading.gaps().iter().map(|gap| gap.reason).collect();
        assert_eq!(gaps, if trades.durable() { vec![GapReason::Reconnect] } else { vec![] });
        if trades.durable() {
            drop(Reading::history(&trades, start).await.unwrap().messages(1).await);
            let again = Reading::insist(&trades, start).await;
            assert!(again.gaps().is_empty(), "told once");
        }
        // Made anew at once, nobody finds it missing; but its bindings are.
        client.channel.exchange_delete("trades".into(), ExchangeDeleteOptions::default()).await.unwrap();
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        client.channel.exchange_declare("trades".into(), ExchangeKind::Topic, options, FieldTable::default()).await.unwrap();
        let publishing = async {
            loop {
                client.publish("trades", "b", b"3").await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            read = reading.messages(2) => assert_eq!(texts(&read)[1], "3"),
            () = publishing => {}
        }
        reading.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_that_goes_with_the_last_queue_is_made_anew_as_it_was_or_not_at_all() {
    let rabbit = Rabbit::start().await;
    let client = rabbit.client().await;
    let options = ExchangeDeclareOptions { auto_delete: true, ..ExchangeDeclareOptions::default() };
    // What else belongs to the second one cannot be asked for.
    let mut table = FieldTable::default();
    table.insert("alternate-exchange".into(), AMQPValue::LongString("amq.fanout".into()));
    for (name, table, again) in [("plain", FieldTable::default(), true), ("alternate", table, false)] {
        let declare = async || {
            let channel = client.connection.create_channel().await.unwrap();
            channel.exchange_declare(name.into(), ExchangeKind::Fanout, options, table.clone()).await
        };
        declare().await.unwrap();
        let fan = source("fan", json!({ "url": rabbit.url(), "exchange": name }));
        for n in ["1", "2"] {
            let mut reading = Reading::open(&fan, Start::Now).await.unwrap();
            declare().await.unwrap_or_else(|e| panic!("{name} {n}: the publisher's own declaration: {e}"));
            client.publish(name, "a", n.as_bytes()).await;
            assert_eq!(texts(&reading.messages(1).await), [n], "{name}");
            reading.close().await;
            eventually("the broker to delete the exchange", async || {
                let channel = client.connection.create_channel().await.unwrap();
                let passive = ExchangeDeclareOptions { passive: true, ..options };
                channel.exchange_declare(name.into(), ExchangeKind::Fanout, passive, FieldTable::default()).await.err()
            })
            .await;
            if !again {
                refused(&fan, Missing, &format!("exchange `{name}` is not there any more")).await;
                declare().await.unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishing_while_an_alarm_blocks_it_names_the_alarm() {
    let rabbit = Rabbit::start().await;
    let jobs = source("jobs", json!({ "url": rabbit.url(), "queue": "jobs", "declare": true }));
    let mut reading = Reading::open(&jobs, Start::Now).await.unwrap();
    jobs.publish("jobs", "before".into()).await.unwrap();
    rabbit.ctl(&["set_vm_memory_high_watermark", "0.00001"]);
    // The broker raises the alarm on its own time.
    let error = eventually("a message to be refused", async || jobs.publish("jobs", "blocked".into()).await.err()).await;
    let said = chain(&error);
    assert!(
        error.kind() == Lost && said.contains("because of an alarm (low on memory)") && said.contains("may still take the message"),
        "{said}"
    );
    rabbit.ctl(&["set_vm_memory_high_watermark", "0.4"]);
    eventually("a message to be taken", async || jobs.publish("jobs", "after".into()).await.ok()).await;
    reading.until(|items| items.iter().any(|item| matches!(item, Item::Message(m) if m.payload == "after"))).await;
    reading.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_with_a_streams_header_does_not_make_its_queue_a_stream() {
    let rabbit = Rabbit::start().await;
    let client = rabbit.client().await;
    for kind in ["classic", "quorum"] {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let mut table = FieldTable::default();
        table.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        client.channel.queue_declare(kind.into(), options, table).await.unwrap();
        let mut headers = FieldTable::default();
        headers.insert("x-stream-offset".into(), AMQPValue::LongLongInt(7));
        // In the year 2200: a publisher's own.
        headers.insert("timestamp_in_ms".into(), AMQPValue::LongLongInt(7_258_118_400_000));
        let copied = BasicProperties::default().with_headers(headers);
        let publishing = client.channel.basic_publish("".into(), kind.into(), BasicPublishOptions::default(), b"copied", copied);
        publishing.await.unwrap().await.unwrap();
        client.publish("", kind, b"2").await;
        let queue = source("copies", json!({ "url": rabbit.url(), "queue": kind }));
        let mut reading = Reading::open(&queue, Start::Now).await.unwrap();
        let read = reading.messages(2).await;
        assert_eq!(texts(&read), ["copied", "2"]);
        assert!(read[0].time <= Timestamp::now(), "{}", read[0].time);
        reading.close().await;
        let mut reading = Reading::open(&queue, Start::Now).await.unwrap();
        assert!(reading.during(Duration::from_millis(200)).await.items.is_empty(), "both were acknowledged");
    }
}

fn threads() -> usize {
    let names = std::fs::read_dir("/proc/self/task").unwrap();
    names
        .filter(|task| std::fs::read_to_string(task.as_ref().unwrap().path().join("comm")).is_ok_and(|name| name.starts_with("lapin")))
        .count()
}

/// Threads end a moment after their connections, those of the broker's readiness check too.
async fn threads_become(count: usize) {
    within(Duration::from_secs(20), "the client library's threads to end", async || (threads() == count).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_silent_is_noticed_and_nothing_stays_behind() {
    let rabbit = Rabbit::start().await;
    let proxy = Proxy::start(rabbit.port());
    let url = format!("amqp://127.0.0.1:{}/%2f", proxy.port());
    let trades = source("trades", json!({ "url": url, "exchange": "trades" }));
    let mut reading = Reading::open(&trades, Start::Now).await.unwrap();
    threads_become(1).await;
    rabbit.freeze();
    let (_, after) = reading.broken().await;
    assert!(after < Duration::from_secs(15), "{after:?}");
    drop(reading);
    // It accepts, but says nothing: neither the attempt nor one that is given up leaves its thread.
    let begun = Instant::now();
    refused(&trades, Lost, "does not answer").await;
    assert!(begun.elapsed() < Duration::from_secs(13), "{:?}", begun.elapsed());
    tokio::time::timeout(Duration::from_millis(300), trades.connect(Start::Now)).await.err().unwrap();
    rabbit.thaw();
    threads_become(0).await;

    let mut reading = Reading::insist(&trades, Start::Now).await;
    proxy.set_silent(true);
    // Nobody hears the goodbye; it does not take long.
    reading.during(Duration::from_millis(50)).await;
    reading.close().await;
    threads_become(0).await;
    proxy.set_silent(false);
    proxy.set_open(false);
    refused(&trades, Lost, "connect").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_checks_the_broker_and_shows_a_certificate() {
    let certs = Certs::new();
    let at = |name: &str| certs.path(name).display().to_string();
    let rabbit = Rabbit::with(&format!(
        "listeners.ssl.1 = {{tls}}\nssl_options.cacertfile = {}\nssl_options.certfile = {}\nssl_options.keyfile = {}\n\
         ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n",
        at("ca.crt"),
        at("server.crt"),
        at("server.key")
    ))
    .await;
    let url = format!("amqps://localhost:{}/%2f", rabbit.tls_port());
    let with = |tls: serde_json::Value| source("tls", json!({ "url": url, "exchange": "x", "queue_type": "stream", "tls": tls }));
    let good = with(json!({ "ca": at("ca.crt"), "certificate": at("client.crt"), "private_key": at("client.key") }));
    let mut reading = Reading::insist(&good, Start::Earliest).await;
    good.publish("a.b", "over TLS".into()).await.unwrap();
    good.publish("a.c", vec![b'x'; 300_000].into()).await.unwrap();
    let read = reading.messages(2).await;
    assert_eq!((subjects(&read)[0].as_str(), read[1].payload.len()), ("a.b", 300_000));
    // The first second of 4096, by rcgen's default.
    assert_eq!(good.gauges().expires.certificate, Some(67_090_118_400));
    reading.close().await;
    refused(&with(json!({ "certificate": at("client.crt"), "private_key": at("client.key") })), Configuration, "no TLS connection").await;
    // The broker says why, or the end of the connection overtakes that.
    let error = Reading::open(&with(json!({ "ca": at("ca.crt") })), Start::Now).await.err().unwrap();
    assert!(matches!(error.kind(), Denied | Lost), "{}", chain(&error));
    let missing = with(json!({ "ca": at("nothing.crt") }));
    refused(&missing, Configuration, "cannot read `tls.ca`").await;
    let foreign = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let other = source("other", json!({ "url": format!("amqp://{}", foreign.local_addr().unwrap()), "exchange": "x" }));
    let answering = std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        let (mut socket, _) = foreign.accept().unwrap();
        socket.read_exact(&mut [0; 8]).unwrap();
        socket.write_all(b"INFO {\"server_id\":\"NATS\"}\r\n").unwrap();
        socket
    });
    refused(&other, Protocol, "does not speak AMQP 0-9-1").await;
    answering.join().unwrap();
}

fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_taken_yet_stays_with_the_broker_however_large_it_is() {
    let rabbit = Rabbit::start().await;
    let large = source("large", json!({ "url": rabbit.url(), "queue": "large", "declare": true }));
    drop(Reading::open(&large, Start::Now).await.unwrap());
    let client = rabbit.client().await;
    let payload = vec![7; 1 << 20];
    for n in 0..150_u8 {
        client.publish("", "large", &[&[n], &*payload].concat()).await;
    }
    drop(client);
    let before = resident();
    let grown = || resident().saturating_sub(before) >> 20;
    let mut reading = Reading::insist(&large, Start::Now).await;
    within(Duration::from_secs(20), "much to come in", async || (grown() > 20).then_some(())).await;
    stays(Duration::from_secs(2), "that most of 150 MiB wait elsewhere", async || grown() < 80).await;
    let read = reading.messages(150).await;
    assert!(read.iter().enumerate().all(|(n, m)| m.payload.len() == payload.len() + 1 && usize::from(m.payload[0]) == n));
    reading.close().await;
}
