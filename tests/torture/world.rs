//! One torture run: brokers, bridges, clients, writers, faults, and the verdict at the end.

use std::collections::{BTreeMap, HashSet};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::client::Sabotage;
use crate::support::process::Process;
use crate::support::proxy::Proxy;
use crate::support::token::{jwt, mint};
use crate::support::{Bridge, Nats, Rabbit};
use crate::verdict::{Entry, Truth, Verdict, judge, read_notes};
use crate::writers::{self, Budget, FIRST, SECOND};

const STREAM: &str = "TORTURE";
const EXCHANGE: &str = "torture";
const SABOTEURS: [Sabotage; 5] = [Sabotage::Skip, Sabotage::Repeat, Sabotage::Swap, Sabotage::SwallowGap, Sabotage::WrongFilter];
/// Where among them the one stands that swallows gaps.
const SWALLOWER: usize = 3;

/// How big a run is.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub events: u64,
    pub clients: usize,
    pub faults: usize,
    /// Between two faults.
    pub pause: Duration,
    pub jetstream: bool,
    /// With RabbitMQ, whose restarts take their time.
    pub rabbit: bool,
    /// How often RabbitMQ is killed, at most.
    pub rabbit_kills: usize,
    /// How often the log is purged, at most.
    pub purges: usize,
    /// Clients that do something wrong on purpose, one of each kind.
    pub saboteurs: bool,
    /// Not all events need be written once the last fault is over.
    pub hurry: bool,
    /// How long clients may take to catch up at the end.
    pub patience: Duration,
}

struct Client {
    process: Option<Process>,
    arguments: Vec<String>,
    notes: PathBuf,
    patterns: Vec<String>,
    sources: Vec<&'static str>,
    sabotage: Option<Sabotage>,
    ended: HashSet<&'static str>,
    read: u64,
    rest: String,
}

impl Client {
    fn launch(&mut self) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("client").args(&self.arguments);
        let log = self.notes.with_extension("log");
        self.process = Some(Process::spawn("a client", &log, "cargo builds it", &mut command));
    }

    /// Whether it has seen the end of each of its sources.
    fn is_done(&mut self) -> bool {
        let Ok(mut file) = std::fs::File::open(&self.notes) else { return false };
        file.seek(SeekFrom::Start(self.read)).unwrap();
        let mut fresh = Vec::new();
        file.read_to_end(&mut fresh).unwrap();
        self.read += fresh.len() as u64;
        self.rest.push_str(&String::from_utf8_lossy(&fresh));
        let whole = self.rest.rfind('\n').map_or(0, |end| end + 1);
        for source in &self.sources {
            if self.rest[..whole].contains(&format!("\t{source}.end\n")) {
                self.ended.insert(source);
            }
        }
        self.rest.drain(..whole);
        self.sources.iter().all(|s| self.ended.contains(s))
    }
}

/// What is left to judge by when all is over.
#[derive(Debug)]
pub struct Report {
    pub total: Verdict,
    pub guilty: Vec<String>,
    /// Saboteurs that the checker did not find.
    pub missed: Vec<String>,
    pub faults: BTreeMap<&'static str, usize>,
    pub events: usize,
    pub deliveries: u64,
}

struct World {
    plan: Plan,
    rng: SmallRng,
    nats: Nats,
    nats_proxy: Proxy,
    rabbit: Option<(Rabbit, Proxy)>,
    bridges: Vec<Bridge>,
    clients: Vec<Client>,
    folder: TempDir,
    faults: BTreeMap<&'static str, usize>,
    jet: Vec<(u64, Entry)>,
    removed_below: u64,
    deck: Vec<u8>,
}

/// Runs it.
pub async fn run(plan: Plan) -> Report {
    let mut world = World::build(plan).await;
    let plan = world.plan.clone();
    let writers = 1 + 2 * (u32::from(plan.jetstream) + u32::from(plan.rabbit));
    // Faults take their time as well: so many seconds, more or less, and there is always somebody writing.
    let seconds = (plan.pause.as_secs_f64() * 0.75 + 2.5) * plan.faults as f64;
    let budget = Arc::new(Budget {
        left: AtomicU64::new(plan.events),
        written: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        rate: (plan.events as f64 / seconds / f64::from(writers)).max(20.0),
    });
    let jet = if plan.jetstream { 0..2 } else { 0..0 };
    let jet: Vec<_> = jet.map(|w| writers::jetstream(world.nats.port(), w, plan.seed, &budget)).collect();
    let mut rab = Vec::new();
    if let Some((rabbit, _)) = &world.rabbit {
        rab.extend((2..4).map(|w| writers::rabbit(rabbit.url(), EXCHANGE, w, plan.seed, &budget)));
    }
    let core = writers::core(world.nats.port(), 4, plan.seed, &budget);
    for number in 0..plan.faults {
        tokio::time::sleep(plan.pause.mul_f64(world.rng.random_range(0.5..1.0))).await;
        let fault = world.fault().await;
        *world.faults.entry(fault).or_default() += 1;
        eprintln!(
            "fault {}/{} {fault}, {} events acknowledged, {} left",
            number + 1,
            plan.faults,
            budget.written.load(Ordering::SeqCst),
            budget.left.load(Ordering::SeqCst)
        );
    }
    world.heal().await;
    if plan.hurry {
        budget.left.fetch_min(500, Ordering::SeqCst);
    }
    eprintln!("healed; the writers finish");
    let core = tokio::task::spawn_blocking(move || {
        jet.into_iter().chain(rab).for_each(|writer| writer.join().unwrap());
        core.join().unwrap()
    })
    .await
    .unwrap();
    world.finish(core).await
}

impl World {
    async fn build(plan: Plan) -> Self {
        let mut rng = SmallRng::seed_from_u64(plan.seed);
        let folder = TempDir::with_prefix("brokercast-torture-").unwrap();
        let (nats, rabbit) = tokio::join!(Nats::start(), async { if plan.rabbit { Some(Rabbit::start().await) } else { None } });
        let nats_proxy = Proxy::start(nats.port());
        let rabbit = rabbit.map(|rabbit| {
            let proxy = Proxy::start(rabbit.port());
            (rabbit, proxy)
        });
        let config = config(nats_proxy.port(), plan.jetstream, rabbit.as_ref().map(|(_, proxy)| proxy.port()));
        let mut bridges = Vec::new();
        for _ in 0..2 {
            bridges.push(Bridge::start(&config).await);
        }
        let mut world = Self {
            plan: plan.clone(),
            rng: SmallRng::seed_from_u64(rng.random()),
            nats,
            nats_proxy,
            rabbit,
            bridges,
            clients: Vec::new(),
            folder,
            faults: BTreeMap::new(),
            jet: Vec::new(),
            removed_below: 0,
            deck: Vec::new(),
        };
        for number in 0..plan.clients {
            world.add_client(number, None, &mut rng);
        }
        if plan.saboteurs {
            for (number, kind) in SABOTEURS.into_iter().enumerate() {
                world.add_client(plan.clients + number, Some(kind), &mut rng);
            }
        }
        // Their first connection, before anything is written: what they see begins with the log.
        let deadline = Instant::now() + Duration::from_secs(60);
        while !world.clients.iter().all(|c| std::fs::read_to_string(&c.notes).unwrap_or_default().contains("\nI\t")) {
            assert!(Instant::now() < deadline, "the clients do not connect; see {}", world.folder.path().display());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        world
    }

    fn add_client(&mut self, number: usize, sabotage: Option<Sabotage>, rng: &mut SmallRng) {
        let durable = [("jet", self.plan.jetstream), ("rab", self.plan.rabbit)].into_iter().filter(|(_, on)| *on).map(|(name, _)| name);
        // A source without a log is only followed within one process; each third client has such a one too.
        let swallows = sabotage == Some(Sabotage::SwallowGap);
        let volatile = number.is_multiple_of(3) || swallows;
        let mut sources: Vec<&'static str> = durable.collect();
        if volatile {
            sources.push("core");
        }
        let mut patterns = Vec::new();
        for source in &sources {
            patterns.push(format!("{source}.end"));
            if swallows {
                patterns.push(format!("{source}.>"));
                continue;
            }
            for _ in 0..rng.random_range(1..3) {
                patterns.push(match rng.random_range(0..5) {
                    0 => format!("{source}.{}.*", rng.random_range(0..FIRST)),
                    1 => format!("{source}.*.{}", rng.random_range(0..SECOND)),
                    2 => format!("{source}.{}.{}", rng.random_range(0..FIRST), rng.random_range(0..SECOND)),
                    3 => format!("*.{}.>", rng.random_range(0..FIRST)).replace('*', source),
                    _ => format!("{source}.{}.>", rng.random_range(0..FIRST)),
                });
            }
        }
        let granted = if sabotage == Some(Sabotage::WrongFilter) { json!([">"]) } else { json!(patterns) };
        let token = mint(json!({ "sub": format!("client-{number}"), "subjects": granted, "exp": crate::support::token::now() + 86_400 }));
        let bridges: Vec<_> = self.bridges.iter().map(Bridge::address).collect();
        let bridges = if volatile { bridges[number % 2].clone() } else { bridges.join(",") };
        let notes = self.folder.path().join(format!("client-{number}.notes"));
        let mut arguments = vec![
            format!("--bridges={bridges}"),
            format!("--subjects={}", patterns.join(",")),
            format!("--token={token}"),
            format!("--notes={}", notes.display()),
            format!("--seed={}", rng.random::<u32>()),
            format!("--stay={}", 2000 + rng.random_range(0..15_000)),
        ];
        if let Some(kind) = sabotage {
            let name = clap::ValueEnum::to_possible_value(&kind).unwrap().get_name().to_owned();
            arguments.push(format!("--sabotage={name}"));
        }
        let mut client =
            Client { process: None, arguments, notes, patterns, sources, sabotage, ended: HashSet::new(), read: 0, rest: String::new() };
        client.launch();
        self.clients.push(client);
    }

    fn count(&self, fault: &str) -> usize {
        self.faults.get(fault).copied().unwrap_or(0)
    }

    /// Does something terrible, and says what.
    #[expect(clippy::too_many_lines, reason = "one arm for each fault")]
    async fn fault(&mut self) -> &'static str {
        // From a shuffled deck, so that each kind comes up.
        if self.deck.is_empty() {
            self.deck = (0..12).collect();
            self.deck.shuffle(&mut self.rng);
        }
        let which = self.deck.pop().unwrap();
        let span = Duration::from_millis(self.rng.random_range(50..2500));
        let bridge = self.rng.random_range(0..self.bridges.len());
        match which {
            0 => {
                self.nats.kill();
                tokio::time::sleep(span).await;
                self.nats.restart().await;
                "kill nats"
            }
            1 => {
                self.nats.freeze();
                tokio::time::sleep(span * 2).await;
                self.nats.thaw();
                "freeze nats"
            }
            2 | 3 => {
                // The first is surely the one whose gap a saboteur swallows, and long enough for something to be lost.
                let first = self.count("kill a bridge") == 0;
                let bridge = if first { (self.plan.clients + SWALLOWER) % 2 } else { bridge };
                self.bridges[bridge].kill();
                tokio::time::sleep(if first { Duration::from_secs(2) } else { span }).await;
                self.bridges[bridge].launch();
                "kill a bridge"
            }
            4 => {
                self.bridges[bridge].signal(Signal::STOP);
                tokio::time::sleep(span * 2).await;
                self.bridges[bridge].signal(Signal::CONT);
                "freeze a bridge"
            }
            5 => {
                let status = self.bridges[bridge].terminate().await;
                assert_eq!(status.code(), Some(0), "a bridge did not end well: {}", self.bridges[bridge].log());
                self.bridges[bridge].launch();
                "end a bridge in good order"
            }
            6 => {
                for _ in 0..self.clients.len().div_ceil(3) {
                    let client = self.rng.random_range(0..self.clients.len());
                    if let Some(mut process) = self.clients[client].process.take() {
                        process.kill();
                    }
                }
                tokio::time::sleep(span).await;
                self.clients.iter_mut().filter(|c| c.process.is_none()).for_each(Client::launch);
                "kill clients"
            }
            7 => {
                let frozen: Vec<_> = (0..self.clients.len()).filter(|_| self.rng.random_bool(0.3)).collect();
                for client in &frozen {
                    self.clients[*client].process.as_ref().unwrap().signal(Signal::STOP);
                }
                tokio::time::sleep(span * 2).await;
                for client in &frozen {
                    self.clients[*client].process.as_ref().unwrap().signal(Signal::CONT);
                }
                "freeze clients"
            }
            8 => {
                self.nats_proxy.cut_after(self.rng.random_range(1..5000));
                "cut nats within a frame"
            }
            9 if self.rabbit.is_some() => {
                let bytes = self.rng.random_range(1..5000);
                self.rabbit.as_ref().unwrap().1.cut_after(bytes);
                "cut rabbitmq within a frame"
            }
            10 if self.rabbit.is_some() => {
                if self.count("kill rabbitmq") < self.plan.rabbit_kills {
                    let (rabbit, _) = self.rabbit.as_mut().unwrap();
                    rabbit.kill();
                    rabbit.restart().await;
                    "kill rabbitmq"
                } else {
                    self.rabbit.as_ref().unwrap().0.freeze();
                    tokio::time::sleep(span).await;
                    self.rabbit.as_ref().unwrap().0.thaw();
                    "freeze rabbitmq"
                }
            }
            11 if self.plan.jetstream && self.count("purge the stream") < self.plan.purges => {
                self.purge().await;
                "purge the stream"
            }
            _ => {
                let proxies: Vec<&Proxy> = [Some(&self.nats_proxy), self.rabbit.as_ref().map(|(_, p)| p)].into_iter().flatten().collect();
                let proxy = proxies.choose(&mut self.rng).unwrap();
                proxy.set_silent(true);
                tokio::time::sleep(span).await;
                proxy.cut();
                proxy.set_silent(false);
                "silence and cut a broker"
            }
        }
    }

    /// Removes what stands before the newest messages, after having noted what it was.
    async fn purge(&mut self) {
        self.note_jetstream().await;
        let Some((last, _)) = self.jet.last() else { return };
        let keep_from = last.saturating_sub(300);
        let stream = self.nats.jetstream().await.get_stream(STREAM).await.unwrap();
        stream.purge().sequence(keep_from).await.unwrap();
        self.removed_below = self.removed_below.max(keep_from);
    }

    async fn note_jetstream(&mut self) {
        let from = self.jet.last().map_or(1, |(sequence, _)| sequence + 1);
        let fresh = writers::read_jetstream(self.nats.port(), STREAM, from).await;
        self.jet.extend(fresh);
    }

    /// Everything runs again and reaches everything.
    async fn heal(&mut self) {
        for bridge in &mut self.bridges {
            bridge.ready().await;
        }
    }

    #[expect(clippy::too_many_lines, reason = "one story, in its order")]
    async fn finish(mut self, core: Vec<Entry>) -> Report {
        let mut truths = BTreeMap::new();
        if let Some((rabbit, _)) = &self.rabbit {
            writers::end_rabbit(&rabbit.url(), EXCHANGE).await;
            let entries = writers::without_repeats(writers::read_rabbit(&rabbit.url(), "brokercast.rab").await);
            truths.insert("rab".to_owned(), Truth { durable: true, entries, removed: HashSet::new() });
        }
        if self.plan.jetstream {
            writers::end_jetstream(self.nats.port()).await;
            self.note_jetstream().await;
        }
        let below = self.jet.iter().filter(|(sequence, _)| *sequence < self.removed_below).count();
        let entries: Vec<_> = self.jet.iter().map(|(_, entry)| entry.clone()).collect();
        // Without JetStream it is an empty log, which nobody asks for.
        truths.insert("jet".to_owned(), Truth { durable: true, entries, removed: (0..below).collect() });
        truths.insert("core".to_owned(), Truth { durable: false, entries: core, removed: HashSet::new() });
        let events = truths.values().map(|t| t.entries.len()).sum();
        eprintln!("{events} events are in the logs; the clients catch up");
        let deadline = Instant::now() + self.plan.patience;
        while self.clients.iter_mut().filter_map(|c| (!c.is_done()).then_some(())).count() > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        for client in &mut self.clients {
            client.process = None;
        }
        let mut report = Report {
            total: Verdict::default(),
            guilty: Vec::new(),
            missed: Vec::new(),
            faults: std::mem::take(&mut self.faults),
            events,
            deliveries: 0,
        };
        for client in &self.clients {
            let notes = read_notes(&std::fs::read_to_string(&client.notes).unwrap());
            let own: BTreeMap<_, _> = truths.extract_own(&client.sources);
            let verdict = judge(&client.patterns, &notes, &own);
            truths.extend(own);
            report.deliveries += verdict.events;
            let name = client.notes.file_stem().unwrap().to_string_lossy().into_owned();
            if let Some(kind) = client.sabotage {
                eprintln!("{name}, which does wrong on purpose ({kind:?}): {verdict}");
                if !convicts(kind, &verdict) {
                    report.missed.push(format!("{name} {kind:?}: {verdict}"));
                }
                continue;
            }
            report.total.add(&verdict);
            if !verdict.is_clean() {
                report.guilty.push(format!("{name} {:?}: {verdict}", client.patterns));
            }
        }
        if !report.guilty.is_empty() || !report.missed.is_empty() {
            for (number, bridge) in self.bridges.iter().enumerate() {
                std::fs::write(self.folder.path().join(format!("bridge-{number}.log")), bridge.log()).unwrap();
            }
            for (name, truth) in &truths {
                let lines: Vec<_> = truth.entries.iter().map(|e| format!("{}\t{}\t{}", e.writer, e.n, e.subject)).collect();
                std::fs::write(self.folder.path().join(format!("truth-{name}")), lines.join("\n")).unwrap();
            }
            let kept = self.folder.keep();
            eprintln!("the notes are kept in {}", kept.display());
        }
        report
    }
}

/// Takes some of the entries out for a while.
trait ExtractOwn {
    fn extract_own(&mut self, names: &[&'static str]) -> Self;
}

impl ExtractOwn for BTreeMap<String, Truth> {
    fn extract_own(&mut self, names: &[&'static str]) -> Self {
        names.iter().filter_map(|name| self.remove_entry(*name)).collect()
    }
}

fn convicts(kind: Sabotage, verdict: &Verdict) -> bool {
    match kind {
        Sabotage::Skip => verdict.undeclared_holes + verdict.lost > 0,
        Sabotage::Repeat => verdict.duplicated > 0,
        Sabotage::Swap => verdict.misordered > 0,
        // Where no gap was told there is none to swallow.
        Sabotage::SwallowGap => verdict.undeclared_holes + verdict.lost > 0,
        Sabotage::WrongFilter => verdict.unauthorised > 0,
    }
}

fn config(nats: u16, jetstream: bool, rabbit: Option<u16>) -> String {
    let mut text = format!(
        r#"
auth:
{}server: {{ heartbeat: 1s, retry: 1s, drain: 3s }}
window: {{ bytes: 512KiB }}
log: {{ filter: "info,brokercast=debug" }}
sources:
  core: {{ nats: {{ servers: ["nats://127.0.0.1:{nats}"], subjects: ["core.>"] }} }}
"#,
        jwt()
    );
    if jetstream {
        text.push_str(&format!(
            "  jet: {{ nats: {{ servers: [\"nats://127.0.0.1:{nats}\"], subjects: [\"jet.>\"], jetstream: {{ stream: {STREAM}, create: {{ max_age: 24h, max_bytes: 3GiB }} }} }} }}\n"
        ));
    }
    if let Some(port) = rabbit {
        text.push_str(&format!(
            "  rab: {{ amqp: {{ url: \"amqp://127.0.0.1:{port}/%2f\", exchange: {EXCHANGE}, binding_keys: [\"#\"], queue_type: stream, max_bytes: 3GiB }} }}\n"
        ));
    }
    text
}
