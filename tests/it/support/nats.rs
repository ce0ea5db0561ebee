//! A private nats-server.

use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;

use super::port::Port;
use super::process::Process;
use super::wait::eventually;

/// A nats-server with JetStream on a port and in a folder of its own.
#[derive(Debug)]
pub struct Nats {
    process: Option<Process>,
    port: Port,
    folder: TempDir,
}

impl Nats {
    /// Starts one.
    pub async fn start() -> Self {
        Self::with("").await
    }

    /// Starts one with more lines in its configuration.
    pub async fn with(config: &str) -> Self {
        let mut nats = Self::absent(config);
        nats.restart().await;
        nats
    }

    /// One that is not started yet: its port is known, nobody listens.
    pub fn absent(config: &str) -> Self {
        let (port, folder) = (Port::take(), TempDir::with_prefix("brokercast-nats-").unwrap());
        let store = folder.path().join("store");
        let text = format!(
            "listen: \"{}\"\nserver_name: test\njetstream {{ store_dir: \"{}\", max_memory_store: 256MB, max_file_store: 100GB }}\n{config}\n",
            port.address(),
            store.display()
        );
        std::fs::write(folder.path().join("nats.conf"), text).unwrap();
        Self { process: None, port, folder }
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    pub fn url(&self) -> String {
        format!("nats://{}", self.port.address())
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// SIGSTOP: alive to the kernel, dead to its peers.
    pub fn freeze(&self) {
        self.process.as_ref().unwrap().signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.process.as_ref().unwrap().signal(Signal::CONT);
    }

    /// Kills it if it runs, deletes all that it stored.
    pub fn wipe(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.folder.path().join("store")).ok();
    }

    /// Starts it (again), with its data, on the same port.
    pub async fn restart(&mut self) {
        self.kill();
        let installed = ["/usr/sbin/nats-server", "/usr/local/bin/nats-server"].into_iter().find(|p| std::path::Path::new(p).exists());
        let chosen = std::env::var_os("BROKERCAST_TEST_NATS_SERVER");
        let mut command = Command::new(chosen.unwrap_or_else(|| installed.unwrap_or("nats-server").into()));
        command.arg("-c").arg(self.folder.path().join("nats.conf"));
        let mut process = Process::spawn("nats-server", &self.folder.path().join("log"), "apt-get install nats-server", &mut command);
        let address = self.port.address();
        eventually("nats-server to listen", async || {
            assert!(process.ended().is_none(), "nats-server ended: {}", process.output());
            tokio::net::TcpStream::connect(&address).await.ok()
        })
        .await;
        self.process = Some(process);
    }

    /// A client, without credentials.
    pub async fn client(&self) -> async_nats::Client {
        self.client_with(async_nats::ConnectOptions::new()).await
    }

    /// A client.
    pub async fn client_with(&self, options: async_nats::ConnectOptions) -> async_nats::Client {
        options.connect(self.url()).await.unwrap()
    }

    /// Publishes on core NATS and waits until the server has it.
    pub async fn publish(&self, subject: &str, payload: impl Into<bytes::Bytes>) {
        let client = self.client().await;
        client.publish(subject.to_owned(), payload.into()).await.unwrap();
        client.flush().await.unwrap();
    }

    /// How many subscriptions the server holds that a message with this subject would reach.
    pub async fn jetstream(&self) -> async_nats::jetstream::Context {
        async_nats::jetstream::new(self.client().await)
    }

    /// As [`Self::jetstream`], with a new stream of these subjects.
    pub async fn stream(&self, name: &str, subjects: &[&str]) -> async_nats::jetstream::Context {
        let context = self.jetstream().await;
        let subjects = subjects.iter().map(|subject| (*subject).to_owned()).collect();
        let config = async_nats::jetstream::stream::Config { name: name.to_owned(), subjects, ..Default::default() };
        context.create_stream(config).await.unwrap();
        context
    }
}
