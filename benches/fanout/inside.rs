//! The sweep's part without sockets: publishing in the hub, and matching.

use std::hint::black_box;

use brokercast::internals::{Envelope, Hub, Index, Input, SourceKey};
use rustix::time::{ClockId, clock_gettime};

use super::median;
use fixture::{NOW, event, json, pattern};

#[path = "../common/fixture.rs"]
mod fixture;

/// Events of a batch.
const BATCH: usize = 64;

/// Nanoseconds for each event that is published, with so many distinct filters.
pub(super) struct Published {
    pub(super) filters: usize,
    /// Nobody wants it.
    pub(super) unwanted: f64,
    /// One filter of all does.
    pub(super) one: f64,
    /// All do: for each of them.
    pub(super) each: f64,
}

/// Measures publishing. Each figure is a median of rounds.
pub(super) fn publish(filters: usize) -> Published {
    let (hub, source, seats) = fixture::hub(filters, |n| vec![format!("plant.{n}")]);
    let unwanted = time(&hub, source, "office.door", 400);
    let one = time(&hub, source, &format!("plant.{}", filters / 2), 400);
    drop(seats);
    let (hub, source, seats) = fixture::hub(filters, |n| vec!["plant.boiler".to_owned(), format!("other.{n}")]);
    let each = time(&hub, source, "plant.boiler", 20_000 / filters) / filters as f64;
    drop(seats);
    Published { filters, unwanted, one, each }
}

/// Nanoseconds of processor time of this thread: others may want the processor too.
fn spent() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

fn time(hub: &Hub, source: SourceKey, subject: &str, batches: usize) -> f64 {
    let batch = vec![Input::Event(event(subject, json(), Envelope::Json)); BATCH];
    let batches = batches.clamp(1, 400);
    let round = |_| {
        let mut inputs: Vec<_> = (0..batches).map(|_| batch.clone()).collect();
        let start = spent();
        for inputs in &mut inputs {
            hub.publish(source, inputs, NOW);
        }
        (spent() - start) / (batches * BATCH) as f64
    };
    // The first fills the window.
    round(0);
    median((0..15).map(round).collect())
}

/// Nanoseconds to find the one of `patterns` patterns that matches a subject of so many tokens; with `wild`, half of
/// the pattern's tokens are `*`.
pub(super) fn find(patterns: usize, tokens: usize, wild: bool) -> f64 {
    let name = |n: usize, any: &str| {
        let token = |at: usize| if at % 2 == 1 { any.to_owned() } else { format!("token{at}") };
        (0..tokens - 1).map(token).chain([n.to_string()]).collect::<Vec<_>>().join(".")
    };
    let mut index = Index::default();
    for n in 0..patterns {
        index.insert(&pattern(&name(n, if wild { "*" } else { "some" })), n as u32);
    }
    let subject = name(patterns / 2, "some");
    let mut found = Vec::new();
    let round = |_| {
        let start = spent();
        for _ in 0..20_000 {
            found.clear();
            index.find(black_box(subject.as_bytes()), &mut found);
            assert_eq!(black_box(&found).len(), 1);
        }
        (spent() - start) / 20_000.0
    };
    median((0..15).map(round).collect())
}
