//! How a delivery's cost grows with the number of subscribers and of distinct filters; with a plot.

use std::io;
use std::path::Path;

use tempfile::TempDir;

use super::client::{Client, Mode, Wants};
use super::load::Load;
use super::plot::{self, BLUE, GREEN, Line, ORANGE, Panel};
use super::servers::Server;
use super::{PAYLOAD, http, inside, median, payload};

/// Close to what two processes may have open that may open 20,000 files each.
const SUBSCRIBERS: [usize; 8] = [10, 30, 100, 300, 1_000, 3_000, 10_000, 19_000];
const FILTERS: [usize; 6] = [1, 10, 100, 1_000, 10_000, 100_000];
/// Those that get events while others' patterns grow in number.
const FEW: usize = 100;
/// Those others.
const OTHERS: usize = 18_800;
/// Those that get all events by filters that differ.
const CROWD: usize = 10_000;
const MODES: [Mode; 2] = [Mode::OneAtATime, Mode::InFlight];
/// Deliveries of a round; and events at least.
const ROUND: [(usize, usize); 2] = [(100_000, 8), (300_000, 40)];
const PLOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/sweep.svg");

/// Processor time in microseconds.
struct Point {
    /// For a delivery, in each mode: brokercast, and the limit server.
    cost: [(f64, f64); 2],
    /// The rounds' median of limit by brokercast.
    ratio: [f64; 2],
    /// Resident bytes of brokercast for a subscriber, before anything was published.
    memory: f64,
}

struct Sweep {
    folder: TempDir,
    rounds: usize,
    /// Processor time for an event that is published to nobody.
    publishing: [(f64, f64); 2],
}

/// Runs all of it, prints tables, and writes the plot beside the benchmark.
pub(super) fn run(rounds: usize) -> io::Result<()> {
    let mut sweep = Sweep { folder: TempDir::with_prefix("brokercast-bench-")?, rounds, publishing: [(0.0, 0.0); 2] };
    let ours = Server::brokercast(1, None)?;
    let post = http::post("/publish/bench.a", &payload());
    let frame = Client::connect(ours.address, 1, Wants::Same, post.clone())?.observe()?;
    std::fs::write(sweep.ours(), post)?;
    // The same bytes for each subscriber, ready to be written.
    std::fs::write(sweep.limits(), http::post("/", &frame))?;
    drop(ours);

    println!("{PAYLOAD} bytes of payload, {} on the wire; medians of {rounds} rounds that alternate between both servers", frame.len());
    sweep.publishing = sweep.point(0, Wants::Same, 0)?.cost;
    println!("\nan event that is published and has no subscriber, in microseconds of the server's processor time");
    println!("{:>14} {:>12} {:>12}", "", "brokercast", "limit");
    for (name, (ours, limit)) in ["one at a time", "in flight"].into_iter().zip(sweep.publishing) {
        println!("{name:>14} {ours:>12.1} {limit:>12.1}");
    }

    let all = SUBSCRIBERS.map(|n| (n, n, Wants::Same, 0));
    let all = sweep.series("subscribers who all want every event", "subscribers", &all)?;
    let crowd = FILTERS.map(|n| (n, CROWD, Wants::Filters(n), 0));
    let crowd: Vec<_> = crowd.into_iter().filter(|(filters, ..)| *filters <= CROWD).collect();
    let crowd = sweep.series(&format!("{CROWD} subscribers who all want every event, by so many distinct filters"), "filters", &crowd)?;
    let beside = FILTERS.map(|n| (n, FEW, Wants::Same, n));
    let title = format!("{FEW} subscribers who want every event, and others with so many distinct patterns that want none");
    let beside = sweep.series(&title, "patterns", &beside)?;

    std::fs::write(PLOT, plot::svg(&panels(&all, &crowd, &beside, &in_hub(), &in_index())))?;
    println!("\nplotted in {}", Path::new(PLOT).display());
    Ok(())
}

fn in_hub() -> Vec<inside::Published> {
    println!("\nin process: nanoseconds for an event in Hub::publish, with so many distinct filters, one subscriber each");
    println!("{:>12} {:>14} {:>14} {:>16}", "filters", "nobody wants", "one wants it", "all: for each");
    let inside: Vec<_> = FILTERS.into_iter().map(inside::publish).collect();
    for at in &inside {
        println!("{:>12} {:>14.0} {:>14.0} {:>16.0}", at.filters, at.unwanted, at.one, at.each);
    }
    inside
}

/// By the subject's tokens: among one pattern, among 100,000, and among 100,000 of which half the tokens are `*`.
fn in_index() -> Vec<(f64, f64, f64, f64)> {
    println!("\nin process: nanoseconds to find the one pattern that matches; of so many, by the subject's tokens");
    println!("{:>12} {:>12} {:>12} {:>12} {:>12}", "tokens", "1", "1,000", "100,000", "half are *");
    let mut found = Vec::new();
    for tokens in [1, 2, 4, 8, 16] {
        let [a, b, c] = [1, 1_000, 100_000].map(|patterns| inside::find(patterns, tokens, false));
        let wild = inside::find(100_000, tokens, true);
        println!("{tokens:>12} {a:>12.0} {b:>12.0} {c:>12.0} {wild:>12.0}");
        found.push((tokens as f64, a, c, wild));
    }
    found
}

type Series = [(usize, Point)];

fn panels(all: &Series, crowd: &Series, beside: &Series, inside: &[inside::Published], found: &[(f64, f64, f64, f64)]) -> Vec<Panel> {
    let line = |name, colour, points| Line { name, colour, points };
    let cost = |of: &Series, mode: usize| -> Vec<Line> {
        let points = |which: fn(&(f64, f64)) -> f64| of.iter().map(|(n, point)| (*n as f64, which(&point.cost[mode]))).collect();
        vec![line("brokercast", BLUE, points(|c| c.0)), line("limit server", ORANGE, points(|c| c.1))]
    };
    let panel = |title, across, up, lines| Panel { title, across, up, base: 10.0, lines };
    let hub = |which: fn(&inside::Published) -> f64| inside.iter().map(|at| (at.filters as f64, which(at))).collect();
    let walk = |which: fn(&(f64, f64, f64, f64)) -> f64| found.iter().map(|at| (at.0, which(at))).collect();
    let memory = all.iter().filter(|(n, _)| *n >= 1_000).map(|(n, point)| (*n as f64, point.memory)).collect();
    vec![
        panel("processor time of a delivery, one event at a time", "subscribers", "\u{b5}s", cost(all, 0)),
        panel("processor time of a delivery, events in flight", "subscribers", "\u{b5}s", cost(all, 1)),
        panel("10,000 subscribers, all want it, one event at a time", "distinct filters", "\u{b5}s", cost(crowd, 0)),
        panel("100 subscribers want it, others do not, one event at a time", "distinct patterns of the others", "\u{b5}s", cost(beside, 0)),
        panel(
            "publishing an event in the hub, without sockets",
            "distinct filters, one subscriber each",
            "ns",
            vec![
                line("one filter wants it", BLUE, hub(|at| at.one)),
                line("all want it: for each", GREEN, hub(|at| at.each)),
                line("nobody wants it", ORANGE, hub(|at| at.unwanted)),
            ],
        ),
        Panel {
            base: 2.0,
            ..panel(
                "finding the one pattern that matches",
                "tokens of the subject",
                "ns",
                vec![
                    line("of 100,000, half their tokens *", GREEN, walk(|at| at.3)),
                    line("of 100,000", BLUE, walk(|at| at.2)),
                    line("of 1", ORANGE, walk(|at| at.1)),
                ],
            )
        },
        panel("resident memory of an idle subscriber", "subscribers", "bytes", vec![line("brokercast", BLUE, memory)]),
    ]
}

impl Sweep {
    fn ours(&self) -> std::path::PathBuf {
        self.folder.path().join("ours")
    }

    fn limits(&self) -> std::path::PathBuf {
        self.folder.path().join("limits")
    }

    /// Measures and prints one table: a row for each value of `what`, with its subscribers, their filters and other patterns.
    fn series(&self, title: &str, what: &str, rows: &[(usize, usize, Wants, usize)]) -> io::Result<Vec<(usize, Point)>> {
        println!("\n{title}");
        let modes = ["one at a time: deliveries per CPU-second", "in flight: deliveries per CPU-second"];
        println!("{:>12} | {:^41} | {:^41} | {:^19} | {:>6}", "", modes[0], modes[1], "us beyond publ.", "bytes");
        let three = format!("{:>13} {:>13} {:>13}", "brokercast", "limit", "ratio");
        println!("{what:>12} | {three} | {three} | {:>9} {:>9} | {:>6}", "ours", "limit", "each");
        rows.iter().map(|(value, subscribers, wants, others)| Ok((*value, self.print(*value, *subscribers, *wants, *others)?))).collect()
    }

    fn print(&self, what: usize, subscribers: usize, wants: Wants, others: usize) -> io::Result<Point> {
        let point = self.point(subscribers, wants, others)?;
        let mode = |n: usize| {
            let (ours, limit) = point.cost[n];
            format!("{:>13.0} {:>13.0} {:>13.2}", 1e6 / ours, 1e6 / limit, point.ratio[n])
        };
        // One at a time each event has its writes for itself, so what publishing costs can be told from them.
        let (of, to) = (point.cost[0], self.publishing[0]);
        let beyond = |cost: f64, publishing: f64| cost - publishing / subscribers as f64;
        let memory = if subscribers + others.min(OTHERS) < 1_000 { "-".to_owned() } else { format!("{:.0}", point.memory) };
        println!("{what:>12} | {} | {} | {:>9.2} {:>9.2} | {memory:>6}", mode(0), mode(1), beyond(of.0, to.0), beyond(of.1, to.1));
        Ok(point)
    }

    /// Fresh servers with these subscribers; with none, the cost is that of an event.
    fn point(&self, subscribers: usize, wants: Wants, patterns: usize) -> io::Result<Point> {
        let others = patterns.min(OTHERS);
        let ours = Server::brokercast(subscribers + others, None)?;
        let limit = Server::limit()?;
        // What the first requests make, and their connections' buffers, is nobody's.
        let mut first = Load::start(ours.address, 0, Wants::Same, &self.ours())?;
        first.open(Mode::InFlight)?;
        first.run(64, Mode::InFlight)?;
        drop(first);
        let before = ours.memory()?;
        let mut beside = Vec::new();
        for address in [ours.address, limit.address].into_iter().filter(|_| others > 0) {
            beside.push(Load::start(address, others, Wants::Other(patterns), &self.ours())?);
        }
        let mut loads =
            [Load::start(ours.address, subscribers, wants, &self.ours())?, Load::start(limit.address, subscribers, wants, &self.limits())?];
        let memory = ours.memory()?.saturating_sub(before) as f64 / (subscribers + others).max(1) as f64;
        let (mut cost, mut ratio) = ([(0.0, 0.0); 2], [0.0; 2]);
        for (n, mode) in MODES.into_iter().enumerate() {
            let (deliveries, least) = ROUND[n];
            let events = (deliveries / subscribers.max(1)).clamp(least, 3_000);
            for load in &mut loads {
                load.open(mode)?;
                load.run(events / 4 + 1, mode)?;
                load.close()?;
            }
            let mut rounds = Vec::new();
            for _ in 0..self.rounds {
                let [to_ours, to_limit] = &mut loads;
                let each = (events * subscribers.max(1)) as f64;
                rounds.push((spent(&ours, to_ours, events, mode)? / each, spent(&limit, to_limit, events, mode)? / each));
            }
            cost[n] = (median(rounds.iter().map(|r| r.0).collect()), median(rounds.iter().map(|r| r.1).collect()));
            ratio[n] = median(rounds.iter().map(|r| r.1 / r.0).collect());
        }
        drop(beside);
        Ok(Point { cost, ratio, memory })
    }
}

/// Microseconds of processor time for a round.
fn spent(server: &Server, load: &mut Load, events: usize, mode: Mode) -> io::Result<f64> {
    load.open(mode)?;
    let before = server.cpu()?;
    load.run(events, mode)?;
    let spent = server.cpu()?.saturating_sub(before);
    load.close()?;
    Ok(spent.as_secs_f64() * 1e6)
}
