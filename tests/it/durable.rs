//! Sources with a log of their own: resuming from the broker, over restarts, windows and replicas.
//!
//! Each check runs on JetStream and on RabbitMQ streams. The latter share one node, for its start takes long.

use std::time::{Duration, Instant};

use async_nats::jetstream::stream::{Config, RetentionPolicy};
use lapin::options::QueueDeleteOptions;
use serde_json::{Value, json};

use crate::support::bridge::numbers;
use crate::support::proxy::Proxy;
use crate::support::rabbit::Amqp;
use crate::support::token::{jwt, mint};
use crate::support::{Bridge, Item, Nats, Rabbit, Sse, eventually};

/// One log of one broker: the source, the stream and the subjects' first token have its name.
struct Log {
    name: String,
    broker: Broker,
}

enum Broker {
    Jet(Nats),
    Rab { port: u16, client: Box<Amqp> },
}

impl Log {
    fn port(&self) -> u16 {
        match &self.broker {
            Broker::Jet(nats) => nats.port(),
            Broker::Rab { port, .. } => *port,
        }
    }

    /// Its line under `sources`, by way of a port.
    fn source_at(&self, port: u16) -> String {
        let name = &self.name;
        match &self.broker {
            Broker::Jet(_) => format!(
                "  {name}: {{ nats: {{ servers: [\"nats://127.0.0.1:{port}\"], subjects: [\"{name}.>\"], jetstream: {{ stream: {name}, create: true }} }} }}\n"
            ),
            Broker::Rab { .. } => format!(
                "  {name}: {{ amqp: {{ url: \"amqp://127.0.0.1:{port}/%2f\", exchange: {name}, binding_keys: [\"{name}.#\"], queue_type: stream }} }}\n"
            ),
        }
    }

    fn source(&self) -> String {
        self.source_at(self.port())
    }

    async fn publish_numbers(&self, subject: &str, numbers: std::ops::Range<u64>) {
        self.publish_with(subject, numbers, "").await;
    }

    async fn publish_with(&self, subject: &str, numbers: std::ops::Range<u64>, filler: &str) {
        let subject = format!("{}.{subject}", self.name);
        let payload = |n: u64| format!("{{\"n\":{n},\"filler\":\"{filler}\"}}");
        match &self.broker {
            Broker::Jet(nats) => {
                let context = nats.jetstream().await;
                let mut acks = Vec::new();
                for n in numbers {
                    acks.push(context.publish(subject.clone(), payload(n).into()).await.unwrap());
                }
                for ack in acks {
                    ack.await.unwrap();
                }
            }
            Broker::Rab { client, .. } => {
                for n in numbers {
                    client.publish(&self.name, &subject, payload(n).as_bytes()).await;
                }
            }
        }
    }

    /// Deletes the log; the bridge makes it anew.
    async fn delete(&self) {
        match &self.broker {
            Broker::Jet(nats) => assert!(nats.jetstream().await.delete_stream(&self.name).await.unwrap().success),
            Broker::Rab { client, .. } => {
                let queue = format!("brokercast.{}", self.name);
                client.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
            }
        }
    }
}

const OPEN: &str = "auth: { anonymous: { subscribe: [\">\"], publish: [\">\"] } }\nserver: { heartbeat: 1s, retry: 1s }\n";

/// A bridge with these sources, a window of so many bytes.
fn config(window: &str, sources: &[String]) -> String {
    format!("{OPEN}window: {{ bytes: {window} }}\nsources:\n{}", sources.concat())
}

/// Reads numbers up to this one; nothing but these may come.
async fn read_to(sse: &mut Sse, last: u64) -> Vec<u64> {
    let mut seen = Vec::new();
    while seen.last() != Some(&last) {
        let event = sse.event().await;
        assert!(!event.is_control(), "{event:?} after {seen:?}");
        seen.extend(numbers(&[event]));
    }
    seen
}

fn range(numbers: std::ops::Range<u64>) -> Vec<u64> {
    numbers.collect()
}

async fn client_resumes_exactly_over_a_kill(log: &Log) {
    let mut bridge = Bridge::start(&config("1MiB", &[log.source()])).await;
    let mut sse = bridge.subscribe("").await;
    log.publish_numbers("a", 0..20).await;
    assert_eq!(read_to(&mut sse, 9).await, range(0..10));
    let id = sse.last_id().to_owned();
    drop(sse);
    bridge.kill();
    log.publish_numbers("a", 20..40).await;
    bridge.restart().await;
    log.publish_numbers("a", 40..50).await;
    let mut again = bridge.resume("", &id).await;
    assert_eq!(read_to(&mut again, 49).await, range(10..50));
    let mut all = Sse::open(bridge.events("since=all")).await;
    assert_eq!(read_to(&mut all, 49).await, range(0..50));
    log.publish_numbers("a", 50..55).await;
    assert_eq!(read_to(&mut again, 54).await, range(50..55));
    assert_eq!(read_to(&mut all, 54).await, range(50..55));
}

async fn history_older_than_the_window_joins_live_without_a_seam(log: &Log) {
    let bridge = Bridge::start(&config("64KiB", &[log.source()])).await;
    let mut sse = bridge.subscribe("").await;
    let first = sse.last_id().to_owned();
    let filler = "x".repeat(1000);
    log.publish_with("a", 0..400, &filler).await;
    read_to(&mut sse, 199).await;
    let middle = sse.last_id().to_owned();
    // They read what the window does not hold while more is written.
    let mut clients = vec![
        (0, bridge.resume("", &first).await),
        (0, Sse::open(bridge.events("since=all")).await),
        (200, bridge.resume("", &middle).await),
        (0, Sse::open(bridge.events("since=10m")).await),
        (0, Sse::open(bridge.events_with(&[("since", "all"), ("subject", &format!("{}.a", log.name))])).await),
    ];
    let reading = async {
        for (number, (from, client)) in clients.iter_mut().enumerate() {
            assert_eq!(read_to(client, 599).await, range(*from..600), "client {number}");
        }
    };
    tokio::join!(log.publish_with("a", 400..600, &filler), reading);
    let late = Sse::open(bridge.events(&format!("since=all&subject={}.other", log.name))).await;
    log.publish_numbers("other", 600..601).await;
    clients.push((600, late));
    for (_, client) in &mut clients[3..4] {
        assert_eq!(read_to(client, 600).await, [600]);
    }
    let (_, late) = clients.last_mut().unwrap();
    assert_eq!(read_to(late, 600).await, [600]);
}

async fn since_works_on_the_log(log: &Log) {
    let mut bridge = Bridge::start(&config("1MiB", &[log.source()])).await;
    log.publish_numbers("a", 0..3).await;
    let clear =
        async |than: i64| eventually("the next moment", async || (jiff::Timestamp::now().as_millisecond() > than + 5).then_some(())).await;
    clear(jiff::Timestamp::now().as_millisecond()).await;
    let between = jiff::Timestamp::now();
    clear(between.as_millisecond()).await;
    log.publish_numbers("b", 3..5).await;
    for _ in 0..2 {
        let mut time = Sse::open(bridge.events(&format!("since={between}"))).await;
        let from = read_to(&mut time, 4).await;
        // RabbitMQ notes the time of a message by the second.
        assert!(from == [3, 4] || (matches!(log.broker, Broker::Rab { .. }) && from.ends_with(&[3, 4])), "{from:?}");
        let mut last = Sse::open(bridge.events("since=last")).await;
        assert_eq!(read_to(&mut last, 4).await, [2, 4]);
        let mut none = bridge.subscribe("since=now").await;
        none.stays_quiet(Duration::from_millis(200)).await;
        // The same after a restart, from the log alone.
        bridge.kill();
        bridge.restart().await;
    }
}

async fn log_that_was_made_anew_is_a_reset(log: &Log) {
    let bridge = Bridge::start(&config("1MiB", &[log.source()])).await;
    let mut sse = bridge.subscribe("").await;
    log.publish_numbers("a", 0..10).await;
    read_to(&mut sse, 9).await;
    let id = sse.last_id().to_owned();
    log.delete().await;
    eventually("the loss of the log to be noticed", async || {
        // It is made anew at once, perhaps before anybody could see it gone.
        let told = sse.next_within(Duration::from_millis(100)).await;
        matches!(told, Some(Some(Item::Event(e))) if e.is_control() && e.reason() == "reset").then_some(())
    })
    .await;
    bridge.source_is(&log.name, "up").await;
    log.publish_numbers("a", 10..30).await;
    assert_eq!(read_to(&mut sse, 29).await, range(10..30));
    // The new log has grown beyond the old position: not silence, not a wrong place.
    let mut away = bridge.resume("", &id).await;
    let gap = away.event().await;
    assert_eq!((gap.name.as_str(), gap.reason().as_str()), ("brokercast.gap", "reset"));
    assert_eq!(gap.json()["source"], log.name.as_str());
    assert_eq!(read_to(&mut away, 29).await, range(10..30));
    let mut behind = bridge.resume("", &gap.id).await;
    assert_eq!(read_to(&mut behind, 29).await, range(10..30));
}

async fn replicas_serve_one_client_in_turns(log: &Log) {
    let text = config("64KiB", &[log.source()]);
    let (one, two) = tokio::join!(Bridge::start(&text), Bridge::start(&text));
    let balancers = [Balancer::haproxy(&one, &two).await, Balancer::nginx(&one, &two).await];
    let filler = "x".repeat(500);
    let count = 300;
    let hop = async |balancer: &Balancer| {
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap();
        let (mut seen, mut id, mut round) = (Vec::new(), None::<String>, 0);
        while seen.last() != Some(&(count - 1)) {
            let mut request = http.get(balancer.url("/events?since=all"));
            if let Some(id) = &id {
                request = request.header("Last-Event-ID", id);
            }
            let mut sse = Sse::open(request).await;
            round += 1;
            for _ in 0..1 + round % 13 {
                let event = sse.event().await;
                assert!(!event.is_control(), "{event:?} after {seen:?}");
                id = Some(event.id.clone());
                seen.extend(numbers(&[event]));
                if seen.last() == Some(&(count - 1)) {
                    break;
                }
            }
        }
        assert_eq!(seen, range(0..count));
    };
    tokio::join!(log.publish_with("a", 0..count, &filler), hop(&balancers[0]), hop(&balancers[1]));
    for bridge in [&one, &two] {
        assert!(bridge.metric("brokercast_source_messages_total", &[&log.name]).await >= count as f64);
    }
}

async fn client_waits_while_its_source_is_down_and_for_a_replica_that_lags(log: &Log) {
    let proxy = Proxy::start(log.port());
    let (fast, slow) = (config("1MiB", &[log.source()]), config("1MiB", &[log.source_at(proxy.port())]));
    let (fast, slow) = tokio::join!(Bridge::start(&fast), Bridge::start(&slow));
    let mut sse = fast.subscribe("").await;
    log.publish_numbers("a", 0..5).await;
    read_to(&mut sse, 4).await;
    proxy.set_silent(true);
    log.publish_numbers("a", 5..10).await;
    read_to(&mut sse, 9).await;
    // Ahead of that process, inside the log: waited for, heartbeats go on.
    let mut ahead = slow.resume("", sse.last_id()).await;
    ahead.stays_quiet(Duration::from_millis(1500)).await;
    proxy.cut();
    proxy.set_silent(false);
    log.publish_numbers("a", 10..15).await;
    assert_eq!(read_to(&mut ahead, 14).await, range(10..15));
    // The client may have had them from the log, before the process that lagged had them in its window.
    let source = format!("source=\"{}\"", log.name);
    let taken = async || slow.metric("brokercast_source_messages_total", &[&source]).await;
    eventually("the window to have caught up", async || (taken().await >= 15.0).then_some(())).await;

    proxy.set_open(false);
    eventually("the loss to be noticed", async || (slow.readyz().await.1["sources"][&log.name]["state"] != "up").then_some(())).await;
    assert_eq!(slow.readyz().await.0, 200);
    let mut waiting = slow.resume("", sse.last_id()).await;
    // What the window holds may come at once; what it does not, when the source is back.
    log.publish_numbers("a", 15..20).await;
    assert_eq!(read_to(&mut waiting, 14).await, range(10..15));
    waiting.stays_quiet(Duration::from_millis(1200)).await;
    proxy.set_open(true);
    assert_eq!(read_to(&mut waiting, 19).await, range(15..20));
    assert_eq!(read_to(&mut ahead, 19).await, range(15..20));
}

async fn configuration_may_change_around_a_position(log: &Log) {
    let inbox = "  inbox: { http: { subjects: [\"demo.>\"] } }\n".to_owned();
    let mut bridge = Bridge::start(&config("1MiB", &[log.source()])).await;
    let mut sse = bridge.subscribe("").await;
    log.publish_numbers("a", 0..5).await;
    read_to(&mut sse, 4).await;
    let id = sse.last_id().to_owned();
    bridge.kill();
    log.publish_numbers("a", 5..8).await;
    bridge.configure(&config("1MiB", &[inbox, log.source()]));
    bridge.restart().await;
    let mut again = bridge.resume(&format!("subject={}.>", log.name), &id).await;
    assert_eq!(read_to(&mut again, 7).await, range(5..8));
    let with_both = again.last_id().to_owned();
    bridge.kill();
    bridge.configure(&config("1MiB", &[log.source()]));
    bridge.restart().await;
    log.publish_numbers("a", 8..10).await;
    let mut alone = bridge.resume("", &with_both).await;
    assert_eq!(read_to(&mut alone, 9).await, [8, 9]);
}

async fn narrowed_token_replays_only_what_it_may_see_now(log: &Log) {
    let text = format!("auth:\n{}window: {{ bytes: 64KiB }}\nsources:\n{}", jwt(), log.source());
    let bridge = Bridge::start(&text).await;
    let name = &log.name;
    let wide = mint(json!({"subjects": [format!("{name}.>")]}));
    let narrow = mint(json!({"subjects": [format!("{name}.b")]}));
    let mut sse = Sse::open(bridge.events("").bearer_auth(&wide)).await;
    let id = sse.id().await;
    let filler = "x".repeat(1000);
    for n in 0..60 {
        log.publish_with("a", 3 * n..3 * n + 2, &filler).await;
        log.publish_with("b", 3 * n + 2..3 * n + 3, &filler).await;
    }
    for request in [bridge.events("").header("Last-Event-ID", &id), bridge.events("since=all")] {
        let mut narrowed = Sse::open(request.bearer_auth(&narrow)).await;
        assert_eq!(read_to(&mut narrowed, 179).await, (0..60).map(|n| 3 * n + 2).collect::<Vec<_>>());
    }
    let beyond = bridge.events_with(&[("subject", &format!("{name}.a"))]).bearer_auth(&narrow).header("Last-Event-ID", &id);
    assert_eq!(beyond.send().await.unwrap().status(), 403);
}

async fn unreadable_cursor_is_answered_at_once(log: &Log) {
    let bridge = Bridge::start(&config("64KiB", &[log.source()])).await;
    log.publish_with("a", 0..200, &"x".repeat(1000)).await;
    let mut sse = Sse::open(bridge.events("since=all")).await;
    read_to(&mut sse, 199).await;
    let id = sse.last_id().to_owned();
    for bad in ["foreign-cursor", &id[1..], &id[..id.len() - 1], &format!("A{id}")] {
        let start = Instant::now();
        let mut sse = bridge.resume("", bad).await;
        let gap = sse.event().await;
        assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
        assert_eq!((gap.reason().as_str(), gap.json()["source"].as_str()), ("unknown_cursor", Some("*")));
    }
}

/// A load balancer that gives each connection to the next bridge.
struct Balancer {
    _process: crate::support::process::Process,
    _folder: tempfile::TempDir,
    port: crate::support::port::Port,
}

impl Balancer {
    async fn haproxy(one: &Bridge, two: &Bridge) -> Self {
        let text = |port: &str| {
            format!(
                "defaults\n mode http\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n\
                 listen bridges\n bind {port}\n balance roundrobin\n server one {}\n server two {}\n",
                one.address(),
                two.address()
            )
        };
        let program = ["/usr/sbin/haproxy", "/usr/local/sbin/haproxy"].into_iter().find(|p| std::path::Path::new(p).exists());
        Self::start(program.unwrap_or("haproxy"), &["-db", "-f"], "apt-get install haproxy", text).await
    }

    async fn nginx(one: &Bridge, two: &Bridge) -> Self {
        // What README says for a proxy, and nothing more.
        let text = |port: &str| {
            format!(
                "daemon off; master_process off; pid nginx.pid; error_log error.log;\nevents {{}}\nhttp {{ access_log off;\n\
                 upstream bridges {{ server {}; server {}; }}\n\
                 server {{ listen {port}; location / {{ proxy_pass http://bridges; proxy_http_version 1.1; proxy_set_header Connection \"\"; \
                 proxy_set_header Host $http_host; }} }} }}\n",
                one.address(),
                two.address()
            )
        };
        let program = ["/usr/sbin/nginx", "/usr/local/sbin/nginx"].into_iter().find(|p| std::path::Path::new(p).exists());
        Self::start(program.unwrap_or("nginx"), &["-p", ".", "-e", "error.log", "-c"], "apt-get install nginx-light", text).await
    }

    async fn start(program: &str, args: &[&str], install: &str, text: impl Fn(&str) -> String) -> Self {
        let (folder, port) = (tempfile::tempdir().unwrap(), crate::support::port::Port::take());
        let file = folder.path().join("config");
        std::fs::write(&file, text(&port.address())).unwrap();
        let mut command = std::process::Command::new(program);
        command.args(args).arg(&file).current_dir(folder.path());
        let process = crate::support::process::Process::spawn(program, &folder.path().join("log"), install, &mut command);
        let address = port.address();
        eventually("the balancer to listen", async || tokio::net::TcpStream::connect(&address).await.ok()).await;
        Self { _process: process, _folder: folder, port }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.port.address())
    }
}

/// Each check on a JetStream stream, as a test of its own, and all of them on one RabbitMQ node.
macro_rules! on_both {
    ($($check:ident as $name:ident),* $(,)?) => {
        $(
            #[tokio::test]
            async fn $name() {
                $check(&Log { name: "log".into(), broker: Broker::Jet(Nats::start().await) }).await;
            }
        )*

        #[tokio::test]
        async fn rabbitmq_streams_pass_every_check() {
            let rabbit = Rabbit::start().await;
            $(
                eprintln!("{}", stringify!($check));
                let broker = Broker::Rab { port: rabbit.port(), client: Box::new(rabbit.client().await) };
                $check(&Log { name: stringify!($check).chars().take(50).collect(), broker }).await;
            )*
        }
    };
}

on_both! {
    client_resumes_exactly_over_a_kill as jetstream_client_resumes_exactly_over_a_kill,
    history_older_than_the_window_joins_live_without_a_seam as jetstream_history_older_than_the_window_joins_live,
    since_works_on_the_log as jetstream_since_works_on_the_log,
    log_that_was_made_anew_is_a_reset as jetstream_that_was_made_anew_is_a_reset,
    replicas_serve_one_client_in_turns as jetstream_replicas_serve_one_client_in_turns,
    client_waits_while_its_source_is_down_and_for_a_replica_that_lags as jetstream_client_waits_for_source_and_replica,
    configuration_may_change_around_a_position as jetstream_configuration_may_change_around_a_position,
    narrowed_token_replays_only_what_it_may_see_now as jetstream_narrowed_token_replays_only_what_it_may_see,
    unreadable_cursor_is_answered_at_once as jetstream_unreadable_cursor_is_answered_at_once,
}

#[tokio::test]
async fn purged_stream_is_a_gap_then_all_that_is_left() {
    let log = Log { name: "log".into(), broker: Broker::Jet(Nats::start().await) };
    let Broker::Jet(nats) = &log.broker else { unreachable!() };
    let mut bridge = Bridge::start(&config("1MiB", &[log.source()])).await;
    let mut sse = bridge.subscribe("").await;
    log.publish_numbers("a", 0..50).await;
    let events = sse.events(50).await;
    let stream = nats.jetstream().await.get_stream("log").await.unwrap();
    stream.purge().sequence(31).await.unwrap();
    bridge.kill();
    bridge.restart().await;
    // Sequence 31 is number 30.
    let mut before = bridge.resume("", &events[10].id).await;
    let gap = before.event().await;
    assert!(["retention", "reset"].contains(&gap.reason().as_str()), "{gap:?}");
    let told: Value = gap.json();
    assert_eq!((told["from"].as_str(), told["to"].as_str()), (Some("11"), Some("31")), "{told}");
    assert_eq!(read_to(&mut before, 49).await, range(30..50));
    // Whoever stood at the cut or behind it has lost nothing and is told nothing.
    for at in [29, 35] {
        let mut behind = bridge.resume("", &events[at].id).await;
        assert_eq!(read_to(&mut behind, 49).await, range(at as u64 + 1..50));
    }
    // A hole that the log's owner made by deleting single messages is none.
    stream.delete_message(40).await.unwrap();
    bridge.kill();
    bridge.restart().await;
    let mut over = bridge.resume("", &events[35].id).await;
    let mut expected = range(36..50);
    expected.retain(|n| *n != 39);
    assert_eq!(read_to(&mut over, 49).await, expected);
}

#[tokio::test]
async fn streams_that_are_no_log_are_refused_with_a_clear_error() {
    let nats = Nats::start().await;
    let context = nats.jetstream().await;
    for (name, retention) in [("work", RetentionPolicy::WorkQueue), ("interest", RetentionPolicy::Interest)] {
        let subjects = vec![format!("{name}.>")];
        context.create_stream(Config { name: name.into(), subjects, retention, ..Default::default() }).await.unwrap();
        let text = format!(
            "{OPEN}sources:\n  bad: {{ nats: {{ servers: [\"{}\"], subjects: [\"{name}.>\"], jetstream: {{ stream: {name} }} }} }}\n",
            nats.url()
        );
        let bridge = Bridge::builder(&text).spawn().await;
        let error = eventually("the error to be told", async || {
            let (status, body) = bridge.readyz().await;
            assert_eq!(status, 503);
            body["sources"]["bad"]["error"].as_str().map(str::to_owned)
        })
        .await;
        assert!(error.to_lowercase().contains("limits") || error.to_lowercase().contains("retention"), "{error}");
    }
}

#[tokio::test]
async fn missing_stream_is_waited_for_and_not_made_unasked() {
    let nats = Nats::start().await;
    let text = format!(
        "{OPEN}sources:\n  late: {{ nats: {{ servers: [\"{}\"], subjects: [\"late.>\"], jetstream: {{ stream: LATE }} }} }}\n",
        nats.url()
    );
    let bridge = Bridge::builder(&text).spawn().await;
    eventually("the error to be told", async || bridge.readyz().await.1["sources"]["late"]["error"].as_str().map(str::to_owned)).await;
    let context = nats.jetstream().await;
    assert!(context.get_stream("LATE").await.is_err());
    let mut sse = bridge.subscribe("").await;
    context.create_stream(Config { name: "LATE".into(), subjects: vec!["late.>".into()], ..Default::default() }).await.unwrap();
    bridge.source_is("late", "up").await;
    context.publish("late.a", "{\"n\":1}".into()).await.unwrap().await.unwrap();
    assert_eq!(read_to(&mut sse, 1).await, [1]);
}

#[tokio::test]
async fn histories_keep_to_their_common_rate_and_what_is_live_does_not_wait_for_them() {
    let log = Log { name: "log".into(), broker: Broker::Jet(Nats::start().await) };
    let bridge = Bridge::start(&format!("history: {{ rate: 512KiB }}\n{}", config("16KiB", &[log.source()]))).await;
    let mut live = bridge.subscribe("").await;
    log.publish_with("a", 0..1000, &"x".repeat(1000)).await;
    assert_eq!(read_to(&mut live, 999).await, range(0..1000));
    let begun = Instant::now();
    let mut late = [Sse::open(bridge.events("since=all")).await, Sse::open(bridge.events("since=all")).await];
    log.publish_numbers("a", 1000..1001).await;
    assert_eq!(read_to(&mut live, 1000).await, [1000]);
    for client in &mut late {
        assert_eq!(read_to(client, 1000).await, range(0..1001));
    }
    // A megabyte for both at half a mebibyte a second.
    assert!(begun.elapsed() > Duration::from_millis(1500), "{:?}", begun.elapsed());
    assert!(bridge.metric("brokercast_history_events_total", &["log"]).await < 2000.0);
}

#[tokio::test]
async fn seven_durable_sources_fit_a_short_id() {
    let nats = Nats::start().await;
    let source = |n: usize| {
        format!(
            "  s{n}: {{ nats: {{ servers: [\"{}\"], subjects: [\"s{n}.>\"], jetstream: {{ stream: S{n}, create: true }} }} }}\n",
            nats.url()
        )
    };
    let sources: Vec<_> = (0..7).map(source).chain(["  inbox: { http: { subjects: [\"demo.>\"] } }\n".to_owned()]).collect();
    let mut bridge = Bridge::start(&config("1MiB", &sources)).await;
    let mut sse = bridge.subscribe("").await;
    let context = nats.jetstream().await;
    for n in 0..70 {
        context.publish(format!("s{}.a", n % 7), format!("{{\"n\":{n}}}").into()).await.unwrap().await.unwrap();
    }
    let events = sse.events(70).await;
    assert!(events.iter().all(|e| e.id.len() <= 128), "{}", events.last().unwrap().id);
    bridge.kill();
    bridge.restart().await;
    // Each id says how far this client has come in every source, whatever their order among each other was.
    for at in [0, 13, 40, 68] {
        let mut again = bridge
            .resume("subject=s0.>&subject=s1.>&subject=s2.>&subject=s3.>&subject=s4.>&subject=s5.>&subject=s6.>", &events[at].id)
            .await;
        let rest = again.events(69 - at).await;
        let mut seen = numbers(&rest);
        seen.extend(numbers(&events[..=at]));
        seen.sort_unstable();
        assert_eq!(seen, range(0..70));
    }
}

#[tokio::test]
async fn narrow_filter_resumes_at_its_heartbeat_and_not_at_its_last_event() {
    let log = Log { name: "log".into(), broker: Broker::Jet(Nats::start().await) };
    let mut bridge = Bridge::start(&config("1MiB", &[log.source()])).await;
    let mut sse = bridge.subscribe("subject=log.rare").await;
    log.publish_numbers("often", 0..50).await;
    // The last heartbeat with an id is followed by one without.
    let mut id = sse.id().await;
    let mut quiet = 0;
    while quiet < 2 {
        match sse.next().await.unwrap() {
            Item::Id(moved) => (id, quiet) = (moved, 0),
            Item::Comment(_) => quiet += 1,
            other => panic!("{other:?}"),
        }
    }
    bridge.kill();
    bridge.restart().await;
    let mut wide = bridge.resume("subject=log.>", &id).await;
    log.publish_numbers("rare", 50..51).await;
    assert_eq!(read_to(&mut wide, 50).await, [50]);
}

#[tokio::test]
async fn an_id_from_before_a_source_was_renamed_added_or_made_durable_is_told_so() {
    let log = Log { name: "log".into(), broker: Broker::Jet(Nats::start().await) };
    let core = format!("  log: {{ nats: {{ servers: [\"nats://127.0.0.1:{}\"], subjects: [\"log.>\"] }} }}\n", log.port());
    let inbox = "  log2: { http: { subjects: [\"demo.>\"] } }\n".to_owned();
    let renamed = log.source().replace("  log:", "  log2:");
    let mut bridge = Bridge::start(&config("1MiB", &[log.source()])).await;
    let mut published = 0;
    for (before, after, named) in [
        (log.source(), vec![renamed.clone()], "log2"),
        (core, vec![log.source()], "log"),
        (inbox, vec![renamed.replace("  log2:", "  log3:")], "log3"),
    ] {
        bridge.configure(&config("1MiB", std::slice::from_ref(&before)));
        bridge.restart().await;
        let mut sse = bridge.subscribe("").await;
        let id = if before.contains("http") { sse.last_id().to_owned() } else { String::new() };
        log.publish_numbers("a", published..published + 2).await;
        let id = if id.is_empty() { sse.events(2).await.remove(1).id } else { id };
        bridge.kill();
        log.publish_numbers("a", published + 2..published + 5).await;
        published += 5;
        bridge.configure(&config("1MiB", &after));
        bridge.restart().await;
        let mut again = bridge.resume("", &id).await;
        let gap = again.event_where(|event| event.reason() == "unknown_cursor").await;
        assert_eq!(gap.json()["source"], named);
        // From now on; and the gap is told once.
        log.publish_numbers("a", published..published + 1).await;
        let event = again.event().await;
        assert_eq!(numbers(&[event]), [published]);
        let mut behind = bridge.resume("", &gap.id).await;
        assert_eq!(read_to(&mut behind, published).await, [published]);
        published += 1;
        // Whom the source does not concern is told nothing.
        let mut other = bridge.resume("subject=other.>", &id).await;
        other.stays_quiet(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn a_client_that_came_before_a_source_was_live_gets_all_that_came_since() {
    let log = Log { name: "log".into(), broker: Broker::Jet(Nats::start().await) };
    let proxy = Proxy::start(log.port());
    proxy.set_open(false);
    let source = log.source_at(proxy.port()).replace("log: {", "log: { required: false,");
    let bridge = Bridge::start(&config("1MiB", &[source])).await;
    let Broker::Jet(nats) = &log.broker else { unreachable!() };
    let stream = Config { name: "log".into(), subjects: vec!["log.>".into()], ..Default::default() };
    nats.jetstream().await.create_stream(stream).await.unwrap();
    let early = bridge.subscribe("").await.last_id().to_owned();
    log.publish_numbers("a", 0..3).await;
    proxy.set_open(true);
    eventually("the source to be up", async || (bridge.readyz().await.1["sources"]["log"]["state"] == "up").then_some(())).await;
    log.publish_numbers("a", 3..5).await;
    let mut sse = bridge.resume("", &early).await;
    assert_eq!(read_to(&mut sse, 4).await, range(3..5));
}
