//! Writers, each numbering what it writes, and readers that say afterwards what the brokers' logs really hold.

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use futures_util::StreamExt as _;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use crate::verdict::Entry;

/// Subjects are `source.0.0` to `source.9.3`.
pub const FIRST: u32 = 10;
pub const SECOND: u32 = 4;
const BATCH: u64 = 40;

/// How much is still to be written, and whether that may go on.
#[derive(Debug)]
pub struct Budget {
    pub left: AtomicU64,
    pub written: AtomicU64,
    pub stop: AtomicBool,
    /// Events of each writer in a second.
    pub rate: f64,
}

impl Budget {
    fn take(&self) -> u64 {
        if self.stop.load(Ordering::SeqCst) {
            return 0;
        }
        let take = |left: u64| Some(left.saturating_sub(BATCH));
        self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).unwrap_or(0).min(BATCH)
    }
}

/// Numbers and dresses what one writer writes.
#[derive(Debug)]
struct Pen {
    source: &'static str,
    writer: u32,
    n: u64,
    rng: SmallRng,
    began: Instant,
    budget: Arc<Budget>,
}

impl Pen {
    fn new(source: &'static str, writer: u32, seed: u64, budget: &Arc<Budget>) -> Self {
        let rng = SmallRng::seed_from_u64(seed.wrapping_mul(31).wrapping_add(u64::from(writer)));
        Self { source, writer, n: 0, rng, began: Instant::now(), budget: budget.clone() }
    }

    /// The next batch, in good time; empty at the end.
    fn batch(&mut self) -> Vec<(Entry, String)> {
        let due = Duration::from_secs_f64(self.n as f64 / self.budget.rate);
        sleep(due.saturating_sub(self.began.elapsed()).min(Duration::from_secs(1)));
        if self.began.elapsed() > due + Duration::from_secs(2) {
            // After a fault: go on at the same pace, not in a rush.
            self.began = Instant::now() - due;
        }
        (0..self.budget.take()).map(|_| self.next(None)).collect()
    }

    fn next(&mut self, subject: Option<String>) -> (Entry, String) {
        let (first, second) = (self.rng.random_range(0..FIRST), self.rng.random_range(0..SECOND));
        let subject = subject.unwrap_or_else(|| format!("{}.{first}.{second}", self.source));
        let entry = Entry { writer: self.writer, n: self.n, subject };
        // Mostly small, now and then one that fills a socket's buffer.
        let size = if self.rng.random_range(0..200) == 0 { self.rng.random_range(10_000..60_000) } else { self.rng.random_range(0..200) };
        let text = format!("{{\"s\":\"{}\",\"w\":{},\"n\":{},\"x\":\"{}\"}}", self.source, self.writer, self.n, "x".repeat(size));
        self.n += 1;
        (entry, text)
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A writer into a JetStream stream. A number whose acknowledgement did not come is not written again.
pub fn jetstream(port: u16, writer: u32, seed: u64, budget: &Arc<Budget>) -> JoinHandle<()> {
    let mut pen = Pen::new("jet", writer, seed, budget);
    spawn(move || {
        runtime().block_on(async {
            let mut context = None;
            loop {
                let batch = pen.batch();
                if batch.is_empty() {
                    return;
                }
                let Some(jetstream) = context_to(port, &mut context).await else { continue };
                let written = &pen.budget.written;
                let publishing = async {
                    let mut acks = Vec::new();
                    for (entry, text) in batch {
                        acks.push(jetstream.publish(entry.subject, text.into()).await.ok()?);
                    }
                    for ack in acks {
                        ack.await.ok()?;
                        written.fetch_add(1, Ordering::SeqCst);
                    }
                    Some(())
                };
                let failed = within(publishing).await.flatten().is_none();
                if failed {
                    context = None;
                }
            }
        });
    })
}

async fn context_to(port: u16, context: &mut Option<async_nats::jetstream::Context>) -> Option<async_nats::jetstream::Context> {
    if context.is_none() {
        let connecting = async_nats::connect(format!("nats://127.0.0.1:{port}"));
        let client = within(connecting).await.and_then(Result::ok);
        let Some(client) = client else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            return None;
        };
        *context = Some(async_nats::jetstream::new(client));
    }
    context.clone()
}

async fn within<T>(future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(Duration::from_secs(6), future).await.ok()
}

/// A writer into a RabbitMQ exchange. A number that was not confirmed is not written again.
pub fn rabbit(url: String, exchange: &'static str, writer: u32, seed: u64, budget: &Arc<Budget>) -> JoinHandle<()> {
    let mut pen = Pen::new("rab", writer, seed, budget);
    spawn(move || {
        runtime().block_on(async {
            let mut open: Option<(Connection, Channel)> = None;
            loop {
                let batch = pen.batch();
                if batch.is_empty() {
                    return;
                }
                if open.is_none() {
                    open = within(channel_to(&url)).await.flatten();
                }
                let Some((_, channel)) = &open else {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                };
                match within(publish_all(channel, exchange, &batch)).await {
                    Some(Ok(())) => drop(pen.budget.written.fetch_add(batch.len() as u64, Ordering::SeqCst)),
                    _ => open = None,
                }
            }
        });
    })
}

async fn channel_to(url: &str) -> Option<(Connection, Channel)> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.ok()?;
    let channel = connection.create_channel().await.ok()?;
    channel.confirm_select(Default::default()).await.ok()?;
    Some((connection, channel))
}

async fn publish_all(channel: &Channel, exchange: &str, batch: &[(Entry, String)]) -> lapin::Result<()> {
    let mut confirms = Vec::new();
    for (entry, text) in batch {
        let properties = BasicProperties::default().with_delivery_mode(2);
        let (exchange, key) = (exchange.into(), entry.subject.as_str().into());
        confirms.push(channel.basic_publish(exchange, key, BasicPublishOptions::default(), text.as_bytes(), properties).await?);
    }
    for confirm in confirms {
        confirm.await?;
    }
    Ok(())
}

/// A writer on core NATS, in bare bytes: what it wrote, in its order, is all that can be known of such a source.
pub fn core(port: u16, writer: u32, seed: u64, budget: &Arc<Budget>) -> JoinHandle<Vec<Entry>> {
    let mut pen = Pen::new("core", writer, seed, budget);
    spawn(move || {
        let mut written = Vec::new();
        let mut open: Option<Wire> = None;
        loop {
            let batch = pen.batch();
            if batch.is_empty() {
                break;
            }
            if open.is_none() {
                open = Wire::connect(port).ok();
            }
            let Some(wire) = &mut open else {
                sleep(Duration::from_millis(50));
                continue;
            };
            let sent = batch.iter().try_for_each(|(entry, text)| wire.publish(&entry.subject, text));
            let flushed = sent.and_then(|()| wire.flush());
            // Whether or not it arrived: it was written once, here.
            written.extend(batch.into_iter().map(|(entry, _)| entry));
            if flushed.is_err() {
                open = None;
            }
        }
        // The end, written once everything is whole again.
        let (entry, text) = pen.next(Some("core.end".into()));
        written.push(entry);
        let mut wire = Wire::connect(port).unwrap();
        wire.publish("core.end", &text).unwrap();
        wire.flush().unwrap();
        written
    })
}

struct Wire {
    socket: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Wire {
    fn connect(port: u16) -> std::io::Result<Self> {
        let mut socket = TcpStream::connect(("127.0.0.1", port))?;
        socket.set_read_timeout(Some(Duration::from_secs(20)))?;
        socket.set_write_timeout(Some(Duration::from_secs(20)))?;
        socket.write_all(b"CONNECT {\"verbose\":false}\r\n")?;
        let reader = BufReader::new(socket.try_clone()?);
        let mut wire = Self { socket, reader };
        wire.flush()?;
        Ok(wire)
    }

    fn publish(&mut self, subject: &str, text: &str) -> std::io::Result<()> {
        self.socket.write_all(format!("PUB {subject} {}\r\n{text}\r\n", text.len()).as_bytes())
    }

    /// Waits until the server has read everything.
    fn flush(&mut self) -> std::io::Result<()> {
        self.socket.write_all(b"PING\r\n")?;
        let mut line = String::new();
        loop {
            line.clear();
            if self.reader.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            match line.trim() {
                "PONG" => return Ok(()),
                "PING" => self.socket.write_all(b"PONG\r\n")?,
                _ => {}
            }
        }
    }
}

/// Writes the end marker until it is acknowledged.
pub async fn end_jetstream(port: u16) {
    let mut context = None;
    loop {
        if let Some(jetstream) = context_to(port, &mut context).await
            && let Some(Ok(ack)) = within(jetstream.publish("jet.end", end("jet"))).await
            && let Some(Ok(_)) = within(ack.into_future()).await
        {
            return;
        }
        context = None;
    }
}

/// Writes the end marker until it is confirmed.
pub async fn end_rabbit(url: &str, exchange: &str) {
    loop {
        if let Some(Some((_connection, channel))) = within(channel_to(url)).await {
            let entry = Entry { writer: 99, n: 0, subject: "rab.end".into() };
            let text = String::from_utf8(end("rab").to_vec()).unwrap();
            if let Some(Ok(())) = within(publish_all(&channel, exchange, &[(entry, text)])).await {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

fn end(source: &str) -> bytes::Bytes {
    format!("{{\"s\":\"{source}\",\"w\":99,\"n\":0}}").into()
}

fn entry_of(subject: &str, payload: &[u8]) -> Entry {
    let value: serde_json::Value = serde_json::from_slice(payload).unwrap();
    Entry { writer: value["w"].as_u64().unwrap() as u32, n: value["n"].as_u64().unwrap(), subject: subject.into() }
}

/// The content of a JetStream stream from a sequence on, up to its present end.
pub async fn read_jetstream(port: u16, stream: &str, from: u64) -> Vec<(u64, Entry)> {
    let client = async_nats::connect(format!("nats://127.0.0.1:{port}")).await.unwrap();
    let mut stream = async_nats::jetstream::new(client).get_stream(stream).await.unwrap();
    let state = stream.info().await.unwrap().state.clone();
    let mut content = Vec::new();
    if state.last_sequence < from.max(state.first_sequence) || state.messages == 0 {
        return content;
    }
    let config = pull::Config {
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from.max(1) },
        ack_policy: AckPolicy::None,
        ..Default::default()
    };
    let consumer = stream.create_consumer(config).await.unwrap();
    let mut messages = consumer.messages().await.unwrap();
    while let Some(message) = messages.next().await {
        let message = message.unwrap();
        let sequence = message.info().unwrap().stream_sequence;
        content.push((sequence, entry_of(&message.subject, &message.payload)));
        if sequence >= state.last_sequence {
            break;
        }
    }
    content
}

/// The content of a RabbitMQ stream up to its end marker.
pub async fn read_rabbit(url: &str, queue: &str) -> Vec<Entry> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.basic_qos(500, BasicQosOptions::default()).await.unwrap();
    let mut arguments = FieldTable::default();
    arguments.insert("x-stream-offset".into(), AMQPValue::LongString("first".into()));
    let mut consumer = channel.basic_consume(queue.into(), "truth".into(), BasicConsumeOptions::default(), arguments).await.unwrap();
    let mut content = Vec::new();
    while let Some(delivery) = consumer.next().await {
        let delivery = delivery.unwrap();
        content.push(entry_of(delivery.routing_key.as_str(), &delivery.data));
        delivery.ack(BasicAckOptions::default()).await.unwrap();
        if delivery.routing_key.as_str() == "rab.end" {
            break;
        }
    }
    content
}

/// Subjects of which no entry is twice: an end that was written twice counts once.
pub fn without_repeats(entries: Vec<Entry>) -> Vec<Entry> {
    let mut seen = HashSet::new();
    entries.into_iter().filter(|e| seen.insert((e.writer, e.n))).collect()
}
