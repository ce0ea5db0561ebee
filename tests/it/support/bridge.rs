//! The program under test.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::port::Port;
use super::process::Process;
use super::sse::{Event, Sse};
use super::wait::{PATIENCE, eventually};

/// The binary.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_brokercast");

/// Anonymous access to everything, and an `http` source for `demo.>`.
pub const OPEN: &str = r#"
auth: { anonymous: { subscribe: [">"], publish: [">"] } }
sources: { inbox: { http: { subjects: ["demo.>"] } } }
"#;

/// A command line of the program with nothing inherited that would configure it.
pub fn command() -> Command {
    let mut command = Command::new(PROGRAM);
    for (key, _) in std::env::vars_os().filter(|(k, _)| k.to_string_lossy().starts_with("BROKERCAST")) {
        command.env_remove(key);
    }
    command.env_remove("RUST_LOG");
    command
}

/// Runs the program to its end.
pub fn run(args: &[&str]) -> Output {
    command().args(args).output().unwrap()
}

/// A configuration that is not started yet.
#[derive(Debug)]
pub struct Builder {
    folder: TempDir,
    files: Vec<PathBuf>,
    env: Vec<(String, String)>,
    scheme: &'static str,
    ca: Option<String>,
}

impl Builder {
    /// One more configuration file.
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.files.push(path.into());
        self
    }

    /// An environment variable.
    pub fn env(mut self, key: &str, value: impl Into<String>) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// The public listener speaks TLS; its certificate is of this authority.
    pub fn tls(mut self, ca: &str) -> Self {
        self.scheme = "https";
        self.ca = Some(ca.into());
        self
    }

    /// Where the bridge is started and its relative paths begin.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts it and waits until it is ready.
    pub async fn start(self) -> Bridge {
        let mut bridge = self.spawn().await;
        bridge.ready().await;
        bridge
    }

    /// Starts it and waits until it answers.
    pub async fn spawn(self) -> Bridge {
        let mut bridge = self.build();
        bridge.launch();
        bridge.alive().await;
        bridge
    }

    /// Does not start it.
    pub fn build(self) -> Bridge {
        let mut client = reqwest::Client::builder().no_proxy();
        // The other way out: HTTP/2 is written by hyper from a body, cleartext HTTP/1.1 by the writers' loops. The same
        // tests run over both.
        if std::env::var_os("BROKERCAST_TEST_HTTP2").is_some() && self.ca.is_none() {
            client = client.http2_prior_knowledge();
        }
        if let Some(ca) = &self.ca {
            client = client.tls_certs_only([reqwest::Certificate::from_pem(ca.as_bytes()).unwrap()]);
        }
        let http = client.build().unwrap();
        let log = self.folder.path().join("log");
        Bridge { builder: self, port: Port::take(), admin: Port::take(), process: None, http, log }
    }
}

/// A running bridge on ports of its own.
#[derive(Debug)]
pub struct Bridge {
    // Dropped first: it shows its log, which lies in the folder.
    process: Option<Process>,
    builder: Builder,
    port: Port,
    admin: Port,
    log: PathBuf,
    /// Without a proxy, trusting the bridge's certificate.
    pub http: reqwest::Client,
}

impl Bridge {
    /// With this text as its configuration file.
    pub fn builder(config: &str) -> Builder {
        let folder = TempDir::with_prefix("brokercast-").unwrap();
        let file = folder.path().join("config.yaml");
        std::fs::write(&file, config).unwrap();
        Builder { folder, files: vec![file], env: Vec::new(), scheme: "http", ca: None }
    }

    /// Without a configuration file.
    pub fn bare() -> Builder {
        Builder { folder: TempDir::with_prefix("brokercast-").unwrap(), files: Vec::new(), env: Vec::new(), scheme: "http", ca: None }
    }

    /// Starts one with this configuration and waits until it is ready.
    pub async fn start(config: &str) -> Self {
        Self::builder(config).start().await
    }

    /// Starts one with [`OPEN`].
    pub async fn open() -> Self {
        Self::start(OPEN).await
    }

    /// Starts the process (again), on the same ports with the same configuration.
    pub fn launch(&mut self) {
        self.launch_with(&[]);
    }

    /// The same with more in its environment.
    pub fn launch_with(&mut self, env: &[(&str, &str)]) {
        self.kill();
        let mut command = self.command();
        command.envs(env.iter().copied());
        self.process = Some(Process::spawn("brokercast", &self.log, "cargo builds it", &mut command));
    }

    /// What starts it.
    pub fn command(&self) -> Command {
        let mut command = command();
        command.arg("serve").current_dir(self.builder.folder.path());
        for file in &self.builder.files {
            command.arg("--config").arg(file);
        }
        command.env("BROKERCAST__SERVER__LISTEN", self.port.address());
        command.env("BROKERCAST__ADMIN__LISTEN", self.admin.address());
        command.envs(self.builder.env.iter().map(|(k, v)| (k, v)));
        command
    }

    /// Launches it again and waits until it is ready.
    pub async fn restart(&mut self) {
        self.launch();
        self.ready().await;
    }

    /// Replaces the configuration file for the next start.
    pub fn configure(&self, config: &str) {
        std::fs::write(self.builder.folder.path().join("config.yaml"), config).unwrap();
    }

    /// Waits until both listeners answer.
    pub async fn alive(&mut self) {
        let livez = self.admin_url("/livez");
        let (http, port) = (self.http.clone(), self.port.address());
        let process = self.process.as_mut().unwrap();
        eventually("the bridge to answer", async || {
            if let Some(status) = process.ended() {
                panic!("the bridge ended with {status}: {}", process.output());
            }
            let answer = http.get(&livez).send().await.ok()?;
            tokio::net::TcpStream::connect(&port).await.ok()?;
            (answer.status() == 200).then_some(())
        })
        .await;
    }

    /// Waits until it says that it is ready.
    pub async fn ready(&mut self) {
        self.alive().await;
        let begun = Instant::now();
        loop {
            let (status, body) = self.readyz().await;
            if status == 200 {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "the bridge is not ready: {body:#}");
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
    }

    /// Waits until a source is in this state.
    pub async fn source_is(&self, source: &str, state: &str) -> Value {
        eventually(&format!("source {source} to be {state}"), async || {
            let (_, body) = self.readyz().await;
            (body["sources"][source]["state"] == state).then(|| body["sources"][source].clone())
        })
        .await
    }

    /// Status and body of `/readyz`.
    pub async fn readyz(&self) -> (u16, Value) {
        let answer = self.http.get(self.admin_url("/readyz")).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// `/metrics`
    pub async fn metrics(&self) -> String {
        self.http.get(self.admin_url("/metrics")).send().await.unwrap().text().await.unwrap()
    }

    /// The sum of all samples of a metric whose labels hold these texts: 0 where nothing was counted yet. There has to be a
    /// metric of this name.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.metrics().await;
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        let is_there = |of: &str| text.contains(&format!("# TYPE {of} "));
        assert!(is_there(name) || is_there(base), "there is no metric {name}");
        let lines = text.lines().filter(|l| {
            l.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && labels.iter().all(|label| l.contains(label))
        });
        lines.map(|l| l.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// `host:port` of the public listener.
    pub fn address(&self) -> String {
        self.port.address()
    }

    pub fn admin_address(&self) -> String {
        self.admin.address()
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.builder.scheme, self.port.address())
    }

    pub fn admin_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin.address())
    }

    pub fn folder(&self) -> &Path {
        self.builder.folder.path()
    }

    pub fn process(&self) -> &Process {
        self.process.as_ref().unwrap()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// What it has logged, once `text` is there: a thread of its own writes the log.
    pub async fn log_with(&self, text: &str) -> String {
        eventually(text, async || Some(self.log()).filter(|log| log.contains(text))).await
    }

    pub fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.http.get(self.url(path))
    }

    /// A request for `/events`, with a query.
    pub fn events(&self, query: &str) -> reqwest::RequestBuilder {
        self.get(&format!("/events?{query}"))
    }

    /// A request for `/events` with these parameters.
    pub fn events_with(&self, parameters: &[(&str, &str)]) -> reqwest::RequestBuilder {
        self.http.get(reqwest::Url::parse_with_params(&self.url("/events"), parameters).unwrap())
    }

    /// An open stream that has told its first id: what is published from now on reaches it.
    pub async fn subscribe(&self, query: &str) -> Sse {
        let mut sse = Sse::open(self.events(query)).await;
        sse.id().await;
        sse
    }

    /// An open stream that resumes after an id.
    pub async fn resume(&self, query: &str, id: &str) -> Sse {
        Sse::open(self.events(query).header("Last-Event-ID", id)).await
    }

    /// Publishes through an `http` source and returns the event's id.
    pub async fn publish(&self, subject: &str, payload: impl Into<reqwest::Body>) -> String {
        let answer = self.http.post(self.url(&format!("/publish/{subject}"))).body(payload).send().await.unwrap();
        let status = answer.status();
        let body = answer.text().await.unwrap();
        assert_eq!(status, 202, "{body}");
        let body: Value = serde_json::from_str(&body).unwrap();
        body["id"].as_str().unwrap().to_owned()
    }

    /// Publishes `{"n":first}` and so on.
    pub async fn publish_numbers(&self, subject: &str, numbers: impl IntoIterator<Item = u64>) {
        for n in numbers {
            self.publish(subject, format!("{{\"n\":{n}}}")).await;
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.process().signal(signal);
    }

    /// SIGTERM, and its exit status.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.exit(PATIENCE).await
    }

    /// Waits for its end.
    pub async fn exit(&mut self, limit: Duration) -> ExitStatus {
        self.process.as_mut().unwrap().exit(limit).await
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }
}

/// The numbers of events made by [`Bridge::publish_numbers`].
pub fn numbers(events: &[Event]) -> Vec<u64> {
    events.iter().filter(|e| !e.is_control()).map(|e| e.payload()["n"].as_u64().unwrap()).collect()
}
