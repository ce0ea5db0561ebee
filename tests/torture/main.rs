//! The torture test: brokers, bridges and clients are killed, frozen and cut off at random while writers number what
//! they write; in the end every client's notes are held against the brokers' logs.
//!
//! Without arguments: what CI runs. A long run, repeatable by its seed as far as processes let it:
//! `cargo test --release --test torture -- --seed 7 --events 1000000 --clients 100 --faults 100`
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "this whole crate is tests")]
#![allow(unreachable_pub, reason = "the support is shared by two test programs")]

use std::time::{Duration, Instant};

use clap::Parser as _;

mod client;
#[path = "../it/support.rs"]
mod support;
mod verdict;
mod world;
mod writers;

/// The tests as cargo's test runners see them.
const TESTS: [(&str, fn()); 2] =
    [("the_checker_finds_every_kind_of_fault", verdict::check_the_checker), ("a_bounded_run_loses_nothing", bounded)];

#[derive(clap::Parser)]
#[command(about = "Kills brokers, bridges and clients at random and counts what gets lost")]
struct LongRun {
    #[arg(long)]
    seed: u64,
    #[arg(long, default_value_t = 1_000_000)]
    events: u64,
    #[arg(long, default_value_t = 100)]
    clients: usize,
    #[arg(long, default_value_t = 100)]
    faults: usize,
    /// Milliseconds between two faults.
    #[arg(long, default_value_t = 5000)]
    pause: u64,
    /// Without JetStream.
    #[arg(long)]
    no_jetstream: bool,
    /// Without RabbitMQ.
    #[arg(long)]
    no_rabbit: bool,
}

#[derive(clap::Parser)]
struct ClientProcess {
    #[command(flatten)]
    options: client::Options,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("client") => client::run(&ClientProcess::parse_from(&arguments[1..]).options),
        _ if arguments.iter().any(|a| a.starts_with("--seed") || a == "--help") => long(LongRun::parse()),
        _ => harness(&arguments[1..]),
    }
}

/// As much of the standard test program's command line as cargo and its runners use.
fn harness(arguments: &[String]) {
    let flag = |name: &str| arguments.iter().any(|a| a == name);
    let filters: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-') && !["terse", "pretty"].contains(&a.as_str())).collect();
    let chosen = TESTS.iter().filter(|(name, _)| {
        let fits = |f: &&String| if flag("--exact") { f.as_str() == *name } else { name.contains(f.as_str()) };
        !flag("--ignored") && (filters.is_empty() || filters.iter().any(fits))
    });
    for (name, test) in chosen {
        if flag("--list") {
            println!("{name}: test");
            continue;
        }
        let start = Instant::now();
        test();
        println!("test {name} ... ok ({:.1?})", start.elapsed());
    }
}

fn bounded() {
    let seed = std::env::var("TORTURE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| rand::random_range(0..1_000_000));
    run(world::Plan {
        seed,
        events: 20_000,
        clients: 9,
        faults: 14,
        pause: Duration::from_millis(1500),
        jetstream: true,
        rabbit: true,
        rabbit_kills: 1,
        purges: 1,
        saboteurs: true,
        hurry: true,
        patience: Duration::from_secs(60),
    });
}

fn long(options: LongRun) {
    run(world::Plan {
        seed: options.seed,
        events: options.events,
        clients: options.clients,
        faults: options.faults,
        pause: Duration::from_millis(options.pause),
        jetstream: !options.no_jetstream,
        rabbit: !options.no_rabbit,
        rabbit_kills: options.faults.div_ceil(12),
        purges: options.faults.div_ceil(20),
        saboteurs: true,
        hurry: false,
        patience: Duration::from_secs(600),
    });
}

fn run(plan: world::Plan) {
    eprintln!("seed {}: {} events, {} clients, {} faults", plan.seed, plan.events, plan.clients, plan.faults);
    let start = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let report = runtime.block_on(world::run(plan.clone()));
    println!("{} events, {} deliveries, faults {:?}, {:.0?}", report.events, report.deliveries, report.faults, start.elapsed());
    println!("all clients: {}", report.total);
    for line in &report.guilty {
        println!("GUILTY {line}");
    }
    for line in &report.missed {
        println!("NOT FOUND {line}");
    }
    assert!(report.guilty.is_empty(), "seed {}: see above", plan.seed);
    assert!(report.missed.is_empty(), "seed {}: the checker misses what it must find", plan.seed);
}
