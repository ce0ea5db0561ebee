//! How fast sources come in, beside a loop with the bare client library that only counts.
//!
//! What that says and how to repeat it stands in `../README.md`. Linux only: it reads `/proc`. Starts its own brokers.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "it measures, and ends where something fails")]
#![allow(unreachable_pub, reason = "the support is the tests'")]

use std::process::ExitCode;
use std::time::Instant;

use broker::Broker;
use consumer::{Bare, Consumer, Ours};

mod bare;
mod broker;
mod consumer;
#[path = "../../tests/it/support.rs"]
mod support;

/// Bytes of each payload.
const PAYLOAD: usize = 200;
/// Subscribers, where there are some.
const LISTENERS: usize = 4;
const USAGE: &str = "cargo bench --bench sources -- [core] [jetstream] [queue] [stream] [--messages 200000] [--rounds 3]";

/// What is consumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A subscription of core NATS.
    Core,
    /// A stream of JetStream.
    JetStream,
    /// A classic queue of RabbitMQ.
    Queue,
    /// A stream of RabbitMQ.
    Stream,
}

const KINDS: [(Kind, &str, &str); 4] = [
    (Kind::Core, "core", "core NATS"),
    (Kind::JetStream, "jetstream", "JetStream"),
    (Kind::Queue, "queue", "RabbitMQ queue"),
    (Kind::Stream, "stream", "RabbitMQ stream"),
];

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|a| a == name);
    let number = |name: &str| arguments.iter().skip_while(|a| *a != name).nth(1)?.parse().ok().filter(|n| *n > 0);
    if let [first, kind, url, name] = &arguments[..]
        && first == bare::ARGUMENT
    {
        let kind = KINDS.into_iter().find(|(_, word, _)| word == kind).unwrap().0;
        runtime().block_on(bare::run(kind, url, name));
        return ExitCode::SUCCESS;
    }
    if !has("--bench") || has("--help") || has("--list") {
        // Test runners start every target, without `--bench`: nothing is timed then.
        eprintln!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let (messages, rounds) = (number("--messages").unwrap_or(200_000), number("--rounds").unwrap_or(3));
    let all = !KINDS.into_iter().any(|(_, word, _)| has(word));
    println!("{PAYLOAD} bytes of payload; what waits at the broker is read by brokercast, and by a loop that only counts, in turns");
    println!("medians of {rounds} rounds, and of their ratios\n");
    for (kind, _, name) in KINDS.into_iter().filter(|(_, word, _)| all || has(word)) {
        // RabbitMQ takes them in more slowly.
        let messages = if matches!(kind, Kind::Core | Kind::JetStream) { messages } else { messages / 4 };
        runtime().block_on(compare(kind, name, messages, rounds));
    }
    ExitCode::SUCCESS
}

fn runtime() -> tokio::runtime::Runtime {
    // As brokercast makes its own.
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

/// Messages a second.
#[derive(Debug, Clone, Copy)]
struct Rate {
    wall: f64,
    cpu: f64,
    /// Of what was published, the part that came in.
    came: f64,
}

/// When messages are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// While the consumer is stopped: then it has the broker and the machine to itself.
    Before,
    /// While it consumes, as fast as one connection can.
    Meanwhile,
}

async fn compare(kind: Kind, name: &str, messages: u64, rounds: u64) {
    let broker = Broker::start(kind).await;
    let mut bare = Bare::start(kind, &broker).await;
    let mut ours = Ours::start(kind, &broker).await;
    for (when, how) in [(When::Before, "that had piled up"), (When::Meanwhile, "while they are published")] {
        println!("{name}, {messages} messages a round, {how}");
        println!("{:>28} {:>12} {:>7} {:>14} {:>7} {:>8}", "", "a second", "ratio", "a CPU-second", "ratio", "came in");
        let (mut alone, mut crowded, mut counted) = (Vec::new(), Vec::new(), Vec::new());
        // The first round finds everybody cold, and does not count.
        for round in 0..=rounds {
            let bare = measure(&broker, &mut bare, messages, when).await;
            let quiet = measure(&broker, &mut ours, messages, when).await;
            let listeners = ours.listen(LISTENERS).await;
            let heard = measure(&broker, &mut ours, messages, when).await;
            drop(listeners);
            ours.left().await;
            if round > 0 {
                counted.push(bare);
                alone.push(quiet);
                crowded.push(heard);
            }
        }
        let listening = format!("brokercast, {LISTENERS} listening");
        for (name, rates) in [("counting loop", &counted), ("brokercast, nobody listening", &alone), (&listening, &crowded)] {
            let of = |which: fn(&Rate) -> f64| median(rates.iter().map(which).collect());
            let ratio =
                |which: fn(&Rate) -> f64| median(rates.iter().zip(&counted).map(|(rate, bare)| which(rate) / which(bare)).collect());
            let (wall, cpu, came) = (of(|r| r.wall), of(|r| r.cpu), of(|r| r.came) * 100.0);
            println!("{name:>28} {wall:>12.0} {:>7.2} {cpu:>14.0} {:>7.2} {came:>7.1}%", ratio(|r| r.wall), ratio(|r| r.cpu));
        }
        println!();
    }
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

async fn measure(broker: &Broker, consumer: &mut impl Consumer, messages: u64, when: When) -> Rate {
    let before = consumer.count().await;
    let (process, name) = (consumer.pid(), consumer.name());
    if when == When::Before {
        process.stop();
        broker.fill(name, messages).await;
    }
    let (start, cpu) = (Instant::now(), process.cpu());
    let filling = async {
        match when {
            When::Before => process.go_on(),
            When::Meanwhile => broker.fill(name, messages).await,
        }
    };
    let (mut last, mut at, mut spent) = (before, start.elapsed(), cpu);
    let watching = async {
        while last < before + messages && start.elapsed() < at + consumer::SILENCE {
            tokio::time::sleep(consumer::LOOK).await;
            let count = consumer.count().await;
            if count > last {
                (last, at, spent) = (count, start.elapsed(), process.cpu());
            }
        }
    };
    tokio::join!(filling, watching);
    let came = (last - before) as f64;
    Rate { wall: came / at.as_secs_f64(), cpu: came / (spent - cpu).as_secs_f64(), came: came / messages as f64 }
}
