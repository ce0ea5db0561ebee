//! A simulation of everything between brokers and clients: real supervisors, routing, hub, streams
//! and writer's loops, with a model
//! broker on one side, model clients on the other, and an oracle that compares what was sent with what was written.
//!
//! What happens: connections break, with a panic of the adapter or without, freeze, and are refused; the broker denies a right for
//! a while, to the live reader or to histories; a source is down; a log is cut, truncated, purged or made anew, or has messages that
//! cannot be read; bridges are killed, drained, and started again with another name of a source or without it; and they reload, which
//! adds, removes and renames sources and gives them other routes or other settings while streams are open. All the time, and not counted as faults, clients stall, leave and come back, tokens expire, grants are widened and withdrawn, answers are late and acknowledgements fail.
//!
//! A fault has an effect only if it changed what a stream was sent, as far as that can be seen. It is counted when
//! - the stream ended with its bridge, which was killed or drained;
//! - the stream's client was told a gap by reason of it, or was not sent messages that a crash of the broker had taken;
//! - the client was connected when a message reached the bridge late or again, and was sent it then: late is what was in the broker
//!   before the link to the source was up again, again is what a queue delivers because it was not acknowledged;
//! - a stream that was open during a reload was sent an event that it was not sent before it, or not by this subject;
//! - a history that a client waited for could not be opened, or its reader ended before the log's end.
//!
//! All else, as a link that was broken while nothing was written, has happened without an effect.
//!
//! One seed decides everything: the clock, random numbers, the order of tasks, what happens to whom. A longer run:
//! `SIM_EVENTS=1000000 cargo test --profile sim --lib sim::long -- --ignored --nocapture`, and one seed again:
//! `SIM_SEED=7 cargo test --lib sim::one_seed -- --ignored --nocapture`. With `SIM_CLIENT=3` it prints all that client 3 is sent.

use std::time::{Duration, Instant};

mod adapter;
mod bridge;
mod broker;
mod client;
mod executor;
mod oracle;
mod pipe;
mod world;
mod writer;

use crate::support::random;
use world::{Report, World};

/// Events and calm of one world: many small worlds are more different than a large one.
const EVENTS: usize = 4_000;
const CALM: usize = 40;

fn run(seed: u64) -> Report {
    World::run(seed, EVENTS, CALM)
}

/// One of these, as the seed says.
fn choose<T: Clone>(from: &[T]) -> T {
    from[random::in_range(0..from.len())].clone()
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs worlds from a seed on, until enough was published or enough time has passed.
fn run_from(first: u64, events: u64, limit: Duration) {
    let began = Instant::now();
    let mut total = Report::default();
    let mut seed = first;
    while total.events < events && began.elapsed() < limit {
        let report = run(seed);
        assert!(
            report.alarms.is_empty(),
            "\nALARM of seed {seed}:\n{}\nagain: SIM_SEED={seed} cargo test --lib sim::one_seed -- --ignored --nocapture",
            report.alarms.join("\n")
        );
        total.add(&report);
        seed += 1;
    }
    println!("seeds {first} to {}: {total} in {:.1?}", seed - 1, began.elapsed());
}

#[test]
fn whatever_happens_every_client_gets_what_it_must() {
    run_from(1, 40_000, Duration::from_secs(10));
}

#[test]
#[ignore = "by command: as long as SIM_EVENTS says, from SIM_SEED on"]
fn long() {
    let seed = variable("SIM_SEED").unwrap_or_else(|| rand::random_range(0..1 << 40));
    run_from(seed, variable("SIM_EVENTS").unwrap_or(1_000_000), Duration::from_secs(variable("SIM_SECONDS").unwrap_or(3600)));
}

#[test]
#[ignore = "by command: the seed that SIM_SEED says"]
fn one_seed() {
    let seed = variable("SIM_SEED").expect("SIM_SEED says which seed");
    let report = run(seed);
    println!("seed {seed}: {report}, trace {:016x}", report.trace);
    assert!(report.alarms.is_empty(), "{}", report.alarms.join("\n"));
}

/// Seeds that once found something, each with what it was.
const KNOWN: &str = include_str!("sim/seeds.txt");

#[test]
fn seeds_that_found_something_find_nothing_now() {
    for line in KNOWN.lines().filter(|line| !line.starts_with('#')) {
        let seed = line.split_whitespace().next().and_then(|seed| seed.parse().ok()).expect("a seed");
        let report = run(seed);
        assert!(report.alarms.is_empty(), "{line}: {}", report.alarms.join("\n"));
    }
}

/// They are only applied by `scripts/mutants`, which takes long: what they would change must still be there.
#[test]
fn every_mutant_fits_the_code() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let patches = std::fs::read_dir(root.join("src/sim/mutants")).expect("a folder").map(|entry| entry.expect("an entry").path());
    let mut count = 0;
    for path in patches {
        let patch = std::fs::read_to_string(&path).expect("a patch");
        let (head, hunk) = patch.split_once("\n@@").expect("a hunk");
        let file = head.lines().next().and_then(|line| line.strip_prefix("--- a/")).expect("a file's name");
        let before = hunk.lines().skip(1).filter_map(|line| line.strip_prefix([' ', '-']));
        let before: String = before.flat_map(|line| [line, "\n"]).collect();
        let code = std::fs::read_to_string(root.join(file)).expect("the file");
        assert_eq!(code.matches(&before).count(), 1, "{} does not fit {file}", path.display());
        count += 1;
    }
    assert!(count >= 22, "{count}");
}

#[test]
fn a_seed_replays_exactly_in_another_process() {
    let report = run(4711);
    let program = std::env::current_exe().expect("this program");
    let mut command = std::process::Command::new(program);
    let output = command.args(["--exact", "sim::one_seed", "--ignored", "--nocapture"]).env("SIM_SEED", "4711").output().expect("runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains(&format!("trace {:016x}", report.trace)), "{report}, trace {:016x}, there: {text}", report.trace);
}
