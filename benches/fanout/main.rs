//! A whole-process fan-out on loopback: brokercast beside a limit server that does nothing but `write(2)`.
//!
//! Prints deliveries per second of the server's processor time for both, and their ratio. What that says and how to
//! repeat it stands in `../README.md`. Linux only: it reads `/proc`.

use std::io;
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit};

use client::{Client, MARK, Mode, Wants};
use servers::Server;

mod client;
mod http;
mod inside;
mod limit;
mod load;
mod plot;
mod servers;
mod sweep;
mod transports;

/// Bytes of each payload.
const PAYLOAD: usize = 200;
const USAGE: &str = "cargo bench --bench fanout -- [sweep | transports] [--subscribers 200] [--events 500] [--rounds 3]";

struct Options {
    subscribers: usize,
    events: usize,
    rounds: usize,
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|a| a == name);
    let number = |name: &str, default: usize| {
        let value = arguments.iter().skip_while(|a| *a != name).nth(1);
        value.and_then(|v| v.parse().ok()).filter(|n| *n > 0).unwrap_or(default)
    };
    let done = if has(limit::ARGUMENT) {
        limit::serve()
    } else if arguments.first().is_some_and(|a| a == load::ARGUMENT) {
        load::obey(&arguments)
    } else if has("--bench") && !has("--help") && !has("--list") {
        let options = Options { subscribers: number("--subscribers", 200), events: number("--events", 500), rounds: number("--rounds", 3) };
        raise_files();
        if has("sweep") {
            sweep::run(options.rounds)
        } else if has("transports") {
            transports::run(options.subscribers, options.events, options.rounds)
        } else {
            compare(&options).and_then(|()| transports::run(options.subscribers, options.events, options.rounds))
        }
    } else {
        // Test runners start every target, without `--bench`: nothing is timed then.
        eprintln!("{USAGE}");
        Ok(())
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fanout: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What a subscriber needs one of is often limited below what the system allows.
fn raise_files() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    // Where it cannot be raised, opening too many says so.
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).ok();
}

/// JSON that holds the mark.
fn payload() -> Vec<u8> {
    let head = format!(r#"{{"mark":"{}","text":""#, MARK as char);
    format!("{head}{}\"}}", "x".repeat(PAYLOAD - head.len() - 2)).into_bytes()
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

fn compare(options: &Options) -> io::Result<()> {
    let ours = Server::brokercast(options.subscribers, None)?;
    let mut to_ours = Client::connect(ours.address, options.subscribers, Wants::Same, http::post("/publish/bench.a", &payload()))?;
    let frame = to_ours.observe()?;
    let limit = Server::limit()?;
    // The same bytes for each subscriber, ready to be written.
    let mut to_limit = Client::connect(limit.address, options.subscribers, Wants::Same, http::post("/", &frame))?;

    println!("{} subscribers, {PAYLOAD} bytes of payload, {} on the wire", options.subscribers, frame.len());
    println!("deliveries per second of the server's processor time\n");
    for (mode, name, events) in [(Mode::OneAtATime, "one at a time", options.events), (Mode::InFlight, "in flight", options.events * 4)] {
        // Everybody is live, and pages and caches are warm.
        for client in [&mut to_ours, &mut to_limit] {
            client.open(mode)?;
            client.run(events / 10 + 1, mode)?;
            client.close();
        }
        let mut ratios = Vec::new();
        println!("{name}, {events} events a round");
        println!("{:>8} {:>12} {:>12} {:>7}", "round", "brokercast", "limit", "ratio");
        for round in 1..=options.rounds {
            let a = measure(&ours, &mut to_ours, events, mode, options.subscribers)?;
            let b = measure(&limit, &mut to_limit, events, mode, options.subscribers)?;
            println!("{round:>8} {a:>12.0} {b:>12.0} {:>7.2}", a / b);
            ratios.push(a / b);
        }
        println!("{:>8} {:>12} {:>12} {:>7.2}\n", "median", "", "", median(ratios));
    }
    Ok(())
}

/// Deliveries per second of the server's processor time.
fn measure(server: &Server, client: &mut Client, events: usize, mode: Mode, subscribers: usize) -> io::Result<f64> {
    client.open(mode)?;
    let before = server.cpu()?;
    client.run(events, mode)?;
    let spent = server.cpu()?.saturating_sub(before);
    client.close();
    Ok((events * subscribers) as f64 / spent.as_secs_f64())
}
