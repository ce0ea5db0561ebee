//! The proxies of README's recipes, for real, while the bridge is restarted under load.

use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::browser::pages;
use crate::support::chromium::Chromium;
use crate::support::port::Port;
use crate::support::process::Process;
use crate::support::{Bridge, Item, Nats, PATIENCE, Sse, eventually};

const README: &str = include_str!("../../README.md");
const EVENTS: u64 = 600;
const CLIENTS: usize = 8;

/// The recipe in this language.
fn recipe(language: &str) -> String {
    let (_, rest) = README.split_once(&format!("```{language}\n")).expect("a recipe");
    rest.split_once("```").expect("its end").0.to_owned()
}

struct Proxy {
    _process: Process,
    _folder: tempfile::TempDir,
    port: Port,
}

impl Proxy {
    /// `text`: the configuration for an address and a folder.
    async fn start(program: &str, args: &[&str], install: &str, text: impl FnOnce(&str, &Path) -> String) -> Self {
        let (folder, port) = (tempfile::tempdir().unwrap(), Port::take());
        let file = folder.path().join("config");
        std::fs::write(&file, text(&port.address(), folder.path())).unwrap();
        let mut command = std::process::Command::new(program);
        command.args(args).arg(&file).current_dir(folder.path());
        command.env("PATH", format!("{}:/usr/sbin:/usr/local/sbin", std::env::var("PATH").unwrap_or_default()));
        let process = Process::spawn(program, &folder.path().join("log"), install, &mut command);
        let address = port.address();
        eventually("the proxy to listen", async || tokio::net::TcpStream::connect(&address).await.ok()).await;
        Self { _process: process, _folder: folder, port }
    }

    async fn nginx(bridge: &Bridge) -> Self {
        let recipe = recipe("nginx").replace("server 127.0.0.1:8080;", &format!("server {};", bridge.address()));
        let kept: Vec<_> = recipe.lines().filter(|line| !line.contains("ssl_certificate")).collect();
        let kept = kept.join("\n");
        Self::start("nginx", &["-p", ".", "-e", "error.log", "-c"], "apt-get install nginx-light", |address, _| {
            let server = kept.replace("listen 443 ssl http2;", &format!("listen {address};"));
            assert_ne!(server, kept);
            format!("daemon off; master_process off; pid nginx.pid;\nevents {{}}\nhttp {{ access_log off;\n{server}\n}}\n")
        })
        .await
    }

    async fn haproxy(bridge: &Bridge) -> Self {
        let recipe = recipe("haproxy").replace("127.0.0.1:8080", &bridge.address());
        let (_, printf) = README.split_once("printf 'HTTP/1.1 200 OK").expect("how the file is made");
        let file = format!("HTTP/1.1 200 OK{}", printf.split_once('\'').unwrap().0).replace("\\r", "\r").replace("\\n", "\n");
        Self::start("haproxy", &["-db", "-f"], "apt-get install haproxy", |address, folder| {
            std::fs::write(folder.join("away.http"), file).unwrap();
            let bound = recipe.replace(":443 ssl crt /etc/ssl/live.pem alpn h2,http/1.1", address);
            assert_ne!(bound, recipe);
            bound.replace("/etc/haproxy/away.http", &folder.join("away.http").display().to_string())
        })
        .await
    }

    /// As a plain EventSource does: any answer but a 200 that is an event stream fails the test. Returns the numbers that came and how
    /// often it had to connect.
    async fn follow(&self) -> (Vec<u64>, usize) {
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap();
        let (mut numbers, mut id, mut connects) = (Vec::new(), None::<String>, 0);
        while numbers.last() != Some(&(EVENTS - 1)) {
            let mut request =
                http.get(format!("http://{}/events?subject=log.%3E", self.port.address())).header("Accept", "text/event-stream");
            if let Some(id) = &id {
                request = request.header("Last-Event-ID", id);
            }
            let mut sse = Sse::open(request).await;
            connects += 1;
            let mut retry = None;
            while let Some(item) = sse.next().await {
                match item {
                    Item::Event(event) if event.is_control() => assert_eq!(event.reason(), "draining", "{event:?}"),
                    Item::Event(event) => numbers.push(event.payload()["n"].as_u64().unwrap()),
                    Item::Retry(wait) => retry = Some(wait),
                    Item::Id(_) | Item::Comment(_) => {}
                }
                if !sse.last_id().is_empty() {
                    id = Some(sse.last_id().to_owned());
                }
                if numbers.last() == Some(&(EVENTS - 1)) {
                    break;
                }
            }
            // Less than it says, so that the test is quick.
            tokio::time::sleep(Duration::from_millis(retry.expect("a time to reconnect after").min(200))).await;
        }
        (numbers, connects)
    }
}

/// A tab of a real browser for each proxy, in which a page from there follows the stream.
async fn tabs(browser: &Chromium, proxies: &[Proxy]) -> Vec<Value> {
    let mut tabs = vec![browser.tab().await];
    for (n, proxy) in proxies.iter().enumerate() {
        if n > 0 {
            tabs.push(browser.open_tab().await);
        }
        browser.open(&format!("http://{}/dashboards/test.html", proxy.port.address())).await;
        browser.run("start('/events?subject=log.%3E')").await;
    }
    tabs
}

#[tokio::test]
async fn nothing_is_lost_behind_the_proxies_of_the_recipes_while_the_bridge_is_restarted() {
    let nats = Nats::start().await;
    let config = format!(
        "auth: {{ anonymous: {{ subscribe: ['>'], publish: ['>'], beyond_loopback: true }} }}\n\
         server: {{ hosts: [127.0.0.1, live.example.com], trusted_proxies: [127.0.0.1/32], drain: 1s }}\n\
         sources:\n  log: {{ nats: {{ servers: ['{}'], subjects: ['log.>'], jetstream: {{ stream: LOG, create: true }} }} }}\n  inbox: {{ http: {{ subjects: ['demo.>'] }} }}\n",
        nats.url()
    );
    let mut bridge = pages(Bridge::builder(&config)).start().await;
    let proxies = [Proxy::nginx(&bridge).await, Proxy::haproxy(&bridge).await];
    for proxy in &proxies {
        // Scheme and name are the page's own origin.
        let post = bridge.http.post(format!("http://{}/publish/demo.a", proxy.port.address())).body("1");
        let answer = post.header("Origin", format!("http://{}", proxy.port.address())).send().await.unwrap();
        assert_eq!(answer.status(), 202, "{}", answer.text().await.unwrap());
    }
    let browser = Chromium::start().await;
    let tabs = tabs(&browser, &proxies).await;
    let clients = join_all(proxies.iter().flat_map(|proxy| (0..CLIENTS).map(|_| proxy.follow())));
    let context = nats.jetstream().await;
    let load = async {
        // And the browser's.
        let subscribers = 2.0 * CLIENTS as f64 + 2.0;
        for n in 0..EVENTS {
            match n {
                0 | 200 | 400 => {
                    let all = async || (bridge.metric("brokercast_subscribers", &[]).await == subscribers).then_some(());
                    eventually("all clients to be there", all).await;
                }
                100 => bridge.kill(),
                300 => {
                    bridge.signal(Signal::TERM);
                    bridge.exit(PATIENCE).await;
                }
                // Away for a while, in which everybody tries.
                150 | 350 => {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    bridge.restart().await;
                }
                _ => {}
            }
            context.publish("log.a", format!("{{\"n\":{n}}}").into()).await.unwrap().await.unwrap();
        }
        let away = [&proxies[0], &proxies[1]].map(|proxy| format!("http://{}/publish/demo.a", proxy.port.address()));
        bridge.terminate().await;
        for url in away {
            let status = bridge.http.post(url).body("1").send().await.unwrap().status();
            assert!(status.is_server_error(), "what is no stream gets the proxy's own status: {status}");
        }
        bridge.restart().await;
    };
    let (seen, ()) = tokio::time::timeout(PATIENCE * 6, async { tokio::join!(clients, load) }).await.expect("all events in time");
    for (numbers, connects) in seen {
        assert_eq!(numbers, (0..EVENTS).collect::<Vec<_>>());
        assert!(connects >= 3, "{connects}");
    }
    for tab in &tabs {
        browser.switch(tab).await;
        browser.until("all events in the page", &format!("return numbers().length >= {EVENTS}")).await;
        let seen = browser.run("return [numbers(), errors >= 2, source.readyState !== EventSource.CLOSED]").await;
        assert_eq!(seen, json!([(0..EVENTS).collect::<Vec<_>>(), true, true]));
    }
}
