//! The commands beside `serve`: check, health, token, publish, tail.

use std::io::Write as _;
use std::process::{Output, Stdio};

use serde_json::{Value, json};

use crate::support::bridge::{OPEN, command, run};
use crate::support::certs::Certs;
use crate::support::port::Port;
use crate::support::process::Process;
use crate::support::token::{SECRET, jwt};
use crate::support::{Bridge, Nats, PATIENCE, eventually};

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}\n{}\n{}", output.status, text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// A configuration in a file.
fn file(config: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    std::fs::write(&path, config).unwrap();
    let path = path.display().to_string();
    (folder, path)
}

#[test]
fn check_prints_the_effective_configuration_without_its_secrets() {
    let config = format!(
        "auth:\n{}sources:\n  chat: {{ nats: {{ servers: [\"nats://ada:url-secret@127.0.0.1:4222\"], subjects: [\"chat.>\"], user: ada, password: hidden-word }} }}\n\
         \x20 jobs: {{ amqp: {{ url: \"amqp://eve:amqp-secret@127.0.0.1/%2f\", queue: jobs }} }}\nserver: {{ listen: \"127.0.0.1:9999\" }}\n",
        jwt()
    )
    .replace("nats://ada:url-secret@", "nats://");
    let (_folder, path) = file(&config);
    let output = run(&["check", "--config", &path]);
    let printed = succeeded(&output);
    for expected in ["127.0.0.1:9999", "chat.>", "jobs", "heartbeat", "max_stall"] {
        assert!(printed.contains(expected), "{expected} in {printed}");
    }
    let all = printed.clone() + &text(&output.stderr);
    for secret in ["hidden-word", "amqp-secret", SECRET] {
        assert!(!all.contains(secret), "{all}");
    }
    // A queue that each replica would get a part of is spoken of.
    assert!(all.contains("jobs") && all.to_lowercase().contains("replica"), "{all}");
    // What it prints is a configuration, but for the secrets.
    let (_folder, again) = file(&printed);
    let echoed = text(&run(&["check", "--config", &again]).stderr);
    for problem in echoed.lines().filter(|line| line.starts_with("  ")) {
        assert!(problem.contains("secret") || problem.contains("password") || problem.contains("url"), "{echoed}");
    }
    let bad = run(&["check", "--config", "/nowhere.yaml"]);
    assert_eq!(bad.status.code(), Some(78));
}

/// A library's error quotes the line of a PEM file that it cannot read, and that may be all of a private key.
#[tokio::test]
async fn a_private_key_with_broken_line_ends_is_quoted_nowhere() {
    let certs = Certs::new();
    let pem = std::fs::read_to_string(certs.path("server.key")).unwrap();
    let base64 = pem.lines().nth(1).unwrap();
    let list = base64.bytes().skip(4).take(8).map(|byte| byte.to_string()).collect::<Vec<_>>().join(", ");
    let is_quiet = |text: &str| assert!(!text.contains(&list) && !text.contains(&base64[4..12]), "{text}");
    let [certificate, key] = ["server.crt", "server.key"].map(|name| certs.path(name).display().to_string());
    let tls = format!("tls: {{ certificate: {certificate}, private_key: {key} }}");
    let nats = format!("sources: {{ a: {{ nats: {{ servers: ['tls://127.0.0.1:1'], subjects: [a], {tls} }} }} }}\n");
    let bridge = Bridge::builder(&nats).spawn().await;
    bridge.configure(&format!("{nats}server: {{ {tls} }}\n"));
    let config = bridge.folder().join("config.yaml").display().to_string();
    for broken in [pem.replace('\n', ""), pem.replace('\n', "\\n")] {
        std::fs::write(&key, broken).unwrap();
        let source = eventually("the source to read it", async || {
            let (_, body) = bridge.readyz().await;
            body.to_string().contains("cannot read `tls.private_key`").then_some(body)
        });
        is_quiet(&source.await.to_string());
        let output = run(&["check", "--config", &config]);
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(output.status.code() == Some(78) && said.contains("server.tls.private_key"), "{said}");
        is_quiet(&said);
        let answer = bridge.http.post(bridge.admin_url("/reload")).send().await.unwrap();
        assert_eq!(answer.status(), 422);
        is_quiet(&answer.text().await.unwrap());
    }
    is_quiet(&bridge.log());
}

#[tokio::test]
async fn check_connect_names_each_source_that_cannot_be_used_and_makes_nothing() {
    let (nats, nobody) = (Nats::start().await, Port::take());
    let url = nats.url();
    let source = |name: &str, nats: &str| format!("  {name}: {{ nats: {{ subjects: [\"{name}.>\"], {nats} }} }}\n");
    let good = "sources:\n  clock: { ticker: { subject: clock.tick } }\n".to_owned()
        + &source("chat", &format!("servers: [\"{url}\"]"))
        + &source("new", &format!("servers: [\"{url}\"], jetstream: {{ stream: NEW, create: true }}"));
    let bad = good.clone()
        + &source("orders", &format!("servers: [\"{url}\"], jetstream: {{ stream: ORDERS }}"))
        + &source("dead", &format!("servers: [\"nats://{}\"]", nobody.address()));
    let (_folder, path) = file(&good);
    succeeded(&run(&["check", "--connect", "--config", &path]));
    assert!(nats.jetstream().await.get_stream("NEW").await.is_err());
    let (_folder, path) = file(&bad);
    let output = run(&["check", "--connect", "--config", &path]);
    let errors = text(&output.stderr);
    let errors: Vec<_> = errors.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!((output.status.code(), errors.len()), (Some(1), 2), "{errors:?}");
    assert!(errors.iter().any(|line| line.contains("sources.orders.nats: there is no stream `ORDERS`")), "{errors:?}");
    assert!(errors.iter().any(|line| line.contains("sources.dead.nats: could not connect")), "{errors:?}");
}

#[tokio::test]
async fn health_follows_readiness() {
    let absent = Nats::absent("");
    let config = format!("sources: {{ chat: {{ nats: {{ servers: [\"{}\"], subjects: [\"chat.>\"] }} }} }}\n", absent.url());
    let bridge = Bridge::builder(&config).spawn().await;
    let ask = |address: String| tokio::task::spawn_blocking(move || run(&["health", "--url", &format!("http://{address}")]));
    let unready = ask(bridge.admin_address()).await.unwrap();
    assert_eq!(unready.status.code(), Some(1), "{unready:?}");
    assert!(text(&unready.stdout).contains("chat"), "{unready:?}");
    let ready = Bridge::open().await;
    let said = ask(ready.admin_address()).await.unwrap();
    assert!(succeeded(&said).contains("ready"));
    // By the configuration alone, as in a container.
    let admin = ready.admin_address();
    let by_config = tokio::task::spawn_blocking(move || command().arg("health").env("BROKERCAST__ADMIN__LISTEN", admin).output().unwrap());
    succeeded(&by_config.await.unwrap());
    drop(ready);
    let port = crate::support::port::Port::take();
    assert_eq!(ask(port.address()).await.unwrap().status.code(), Some(1));
}

#[tokio::test]
async fn minted_token_opens_what_it_names_and_nothing_else() {
    let config = format!(
        "auth:\n{}  grants: {{ subscribe: [\"tenant.{{tenant}}\"] }}\nsources: {{ inbox: {{ http: {{ subjects: [\">\"] }} }} }}\n",
        jwt()
    );
    let bridge = Bridge::start(&config).await;
    let (_folder, path) = file(&config);
    let minted = run(&[
        "token",
        "--config",
        &path,
        "--subject",
        "ada",
        "--subscribe",
        "a.>",
        "--publish",
        "a.in",
        "--expires",
        "5m",
        "--claim",
        "tenant=acme",
    ]);
    let token = succeeded(&minted).trim().to_owned();
    let status =
        async |subject: &str| bridge.events_with(&[("subject", subject)]).bearer_auth(&token).send().await.unwrap().status().as_u16();
    assert_eq!(status("a.b").await, 200);
    assert_eq!(status("tenant.acme").await, 200);
    assert_eq!(status("b").await, 403);
    let post = bridge.http.post(bridge.url("/publish/a.in")).bearer_auth(&token).body("1");
    assert_eq!(post.send().await.unwrap().status(), 202);
    // One that is never good is not made.
    for (options, said) in [
        (["--expires", "400d"], "`auth.jwt.max_lifetime` (366d)"),
        (["--claim", "exp=5"], "it has expired"),
        (["--claim", "exp=\"tomorrow\""], "`exp`"),
        (["--claim", "sub=[]"], "`sub`"),
    ] {
        let refused = run(&[&["token", "--config", &path, "--subscribe", "a"], &options[..]].concat());
        assert!(refused.status.code() == Some(1) && text(&refused.stderr).contains(said), "{refused:?}");
        assert!(refused.stdout.is_empty());
    }
    succeeded(&run(&["token", "--config", &path, "--claim", "nbf=99999999999"]));
    let (_folder, keyless) = file(OPEN);
    let refused = run(&["token", "--config", &keyless, "--subscribe", "a"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("auth.jwt"), "{refused:?}");
}

#[tokio::test]
async fn publish_goes_through_the_brokers_own_connection_or_to_the_bridge() {
    let nats = Nats::start().await;
    let config = format!(
        "{}  chat: {{ nats: {{ servers: [\"{}\"], subjects: [\"chat.>\"] }} }}\n",
        "auth: { anonymous: { subscribe: [\">\"], publish: [\">\"] } }\nsources:\n  inbox: { http: { subjects: [\"demo.>\"] } }\n",
        nats.url()
    );
    let bridge = Bridge::start(&config).await;
    let mut sse = bridge.subscribe("").await;
    let (_folder, path) = file(&config);
    let run_with = async |args: Vec<String>, input: &'static str| {
        tokio::task::spawn_blocking(move || {
            let mut child = command().args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            // It may not want any.
            child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
            child.wait_with_output().unwrap()
        })
        .await
        .unwrap()
    };
    let args = |rest: &[&str]| ["publish", "--config", &path].iter().chain(rest).map(ToString::to_string).collect::<Vec<_>>();
    succeeded(&run_with(args(&["chat", "chat.a", "{\"from\":\"cli\"}"]), "").await);
    let event = sse.event().await;
    assert_eq!((event.subject().as_str(), event.payload()), ("chat.a", json!({"from": "cli"})));
    succeeded(&run_with(args(&["chat", "chat.b"]), "from standard input").await);
    assert_eq!(sse.event().await.payload(), json!("from standard input"));
    let url = bridge.url("");
    let id = succeeded(&run_with(args(&["inbox", "demo.a", "1", "--url", &url]), "").await);
    let event = sse.event().await;
    assert_eq!((event.subject(), event.id), ("demo.a".to_owned(), id.trim().to_owned()));
    let unknown = run_with(args(&["nobody", "a", "1"]), "").await;
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown.stderr).contains("inbox"), "{unknown:?}");
}

#[tokio::test]
async fn tail_follows_and_resumes_over_a_restart() {
    let mut bridge = Bridge::open().await;
    let folder = tempfile::tempdir().unwrap();
    let (out, url) = (folder.path().join("out"), bridge.url(""));
    let mut tail = command();
    tail.args(["tail", "demo.>", "--format", "json", "--since", "all", "--url", &url]);
    bridge.publish_numbers("demo.a", 0..2).await;
    let mut process = Process::spawn("brokercast tail", &out, "cargo builds it", &mut tail);
    let lines = |text: &str| text.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()).collect::<Vec<_>>();
    let numbers = |text: &str| lines(text).iter().filter_map(|l| l["data"]["n"].as_u64()).collect::<Vec<_>>();
    eventually("what was there before", async || (numbers(&process.output()) == [0, 1]).then_some(())).await;
    bridge.publish_numbers("demo.a", 2..4).await;
    eventually("what came live", async || (numbers(&process.output()) == [0, 1, 2, 3]).then_some(())).await;
    bridge.kill();
    bridge.restart().await;
    bridge.publish_numbers("demo.a", 4..6).await;
    eventually("what came after the restart", async || (numbers(&process.output()) == [0, 1, 2, 3, 4, 5]).then_some(())).await;
    // The gap that the restart meant is said, too.
    assert!(process.output().contains("restart"), "{}", process.output());
    process.signal(rustix::process::Signal::TERM);
    assert!(process.exit(PATIENCE).await.success());

    let output = tokio::task::spawn_blocking(move || run(&["tail", "--since", "all", "-n", "2", "--url", &url])).await.unwrap();
    let printed = succeeded(&output);
    assert_eq!(printed.lines().count(), 2, "{printed}");
    assert!(printed.contains("demo.a") && printed.contains("{\"n\":4}"), "{printed}");
    let refused = tokio::task::spawn_blocking(|| run(&["tail", "a..b"])).await.unwrap();
    assert_ne!(refused.status.code(), Some(0));
}

#[test]
fn commands_that_find_no_bridge_say_where_they_looked() {
    let port = Port::take();
    let url = format!("http://someone:hidden@{}", port.address());
    for args in [&["tail", "--url", &url][..], &["publish", "inbox", "demo.a", "1", "--url", &url]] {
        let output = run(args);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&port.address()) && said.contains("--url") && !said.contains("hidden"), "{said}");
    }
}

#[test]
fn help_names_every_command_and_version_is_the_packages() {
    let help = succeeded(&run(&["--help"]));
    for name in ["serve", "health", "check", "token", "publish", "tail"] {
        assert!(help.contains(name), "{help}");
    }
    assert!(succeeded(&run(&["--version"])).contains(env!("CARGO_PKG_VERSION")));
    assert_eq!(run(&["no-such-command"]).status.code(), Some(2));
}

#[test]
fn an_address_without_a_scheme_is_refused_with_what_it_should_be() {
    for command in ["health", "tail"] {
        let output = run(&[command, "--url", "127.0.0.1:1"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains("must begin with http://"), "{output:?}");
    }
}
