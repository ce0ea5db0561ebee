//! A private RabbitMQ node.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use rustix::process::Signal;
use tempfile::TempDir;

use super::port::Port;
use super::process::Process;
use super::wait::within;

const INSTALL: &str = "apt-get install rabbitmq-server";

/// A program of the server that is tested: of the folder that `BROKERCAST_TEST_RABBITMQ` names, else of the installed one.
fn program(name: &str) -> PathBuf {
    let chosen = std::env::var_os("BROKERCAST_TEST_RABBITMQ").map(PathBuf::from);
    let known = ["/usr/lib/rabbitmq/bin", "/opt/rabbitmq/sbin"].map(PathBuf::from);
    chosen.or_else(|| known.into_iter().find(|folder| folder.join(name).exists())).unwrap_or_default().join(name)
}

/// A RabbitMQ node with its own port mapper, ports, cookie and data. Its start takes 5 to 15 seconds.
#[derive(Debug)]
pub struct Rabbit {
    process: Option<Process>,
    mapper: Arc<Mapper>,
    port: Port,
    tls: Port,
    dist: Port,
    folder: TempDir,
}

/// A port mapper, where the nodes of a cluster find each other.
#[derive(Debug)]
struct Mapper {
    _process: Process,
    port: Port,
    _folder: TempDir,
}

impl Mapper {
    fn start() -> Arc<Self> {
        let (port, folder) = (Port::take(), TempDir::with_prefix("brokercast-epmd-").unwrap());
        let mut command = Command::new("epmd");
        command.args(["-address", "127.0.0.1", "-port", &port.number().to_string()]);
        let process = Process::spawn("epmd", &folder.path().join("epmd.log"), INSTALL, &mut command);
        Arc::new(Self { _process: process, port, _folder: folder })
    }
}

impl Rabbit {
    /// Starts one.
    pub async fn start() -> Self {
        Self::with("").await
    }

    /// Starts one with more lines in `rabbitmq.conf`; `{tls}` in them is a second free port, `{folder}` its folder.
    pub async fn with(config: &str) -> Self {
        let mut rabbit = Self::absent(config);
        rabbit.restart().await;
        rabbit
    }

    /// One that is not started yet: its port is known, nobody listens.
    pub fn absent(config: &str) -> Self {
        Self::beside(Mapper::start(), config)
    }

    fn beside(mapper: Arc<Mapper>, config: &str) -> Self {
        let (port, tls, dist) = (Port::take(), Port::take(), Port::take());
        let folder = TempDir::with_prefix("brokercast-rabbit-").unwrap();
        for name in ["home", "mnesia", "log", "generated"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        std::fs::write(folder.path().join("plugins"), "[].\n").unwrap();
        let text = format!(
            "listeners.tcp.1 = {}\nloopback_users = none\nlog.console = false\nheartbeat = 10\n{}\n",
            port.address(),
            config.replace("{tls}", &tls.address()).replace("{folder}", &folder.path().display().to_string())
        );
        std::fs::write(folder.path().join("rabbit.conf"), text).unwrap();
        Self { process: None, mapper, port, tls, dist, folder }
    }

    /// Three nodes that form a cluster.
    pub async fn cluster() -> [Self; 3] {
        let mapper = Mapper::start();
        let mut nodes = [(); 3].map(|()| Self::beside(mapper.clone(), ""));
        for node in &mut nodes {
            let cookie = node.folder.path().join("home/.erlang.cookie");
            std::fs::write(&cookie, "brokercast").unwrap();
            std::fs::set_permissions(&cookie, std::fs::Permissions::from_mode(0o400)).unwrap();
            node.launch();
        }
        for node in &mut nodes {
            node.ready().await;
        }
        let [first, others @ ..] = &nodes;
        for node in others {
            node.ctl(&["stop_app"]);
            node.ctl(&["join_cluster", &first.name()]);
            node.ctl(&["start_app"]);
        }
        nodes
    }

    /// What the other nodes call it.
    fn name(&self) -> String {
        format!("brokercast{}@localhost", self.port.number())
    }

    /// Lets it start with these plugins.
    pub fn enable(&self, plugins: &[&str]) {
        std::fs::write(self.folder.path().join("plugins"), format!("[{}].\n", plugins.join(","))).unwrap();
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    pub fn tls_port(&self) -> u16 {
        self.tls.number()
    }

    pub fn url(&self) -> String {
        format!("amqp://{}/%2f", self.port.address())
    }

    /// SIGKILL to the Erlang machine.
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

    /// Starts it (again), with its data, on the same port.
    pub async fn restart(&mut self) {
        self.launch();
        self.ready().await;
    }

    /// Starts it (again) without waiting for it.
    pub fn launch(&mut self) {
        self.kill();
        let at = |name: &str| self.folder.path().join(name);
        let mut command = self.command("rabbitmq-server");
        command
            .env("RABBITMQ_PID_FILE", at("pid"))
            // Its schedulers would spin while idle; the shell shall become the Erlang machine, so that a signal meets it.
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+sbwt none +sbwtdcpu none +sbwtdio none")
            .env("RUNNING_UNDER_SYSTEMD", "true")
            .env_remove("NOTIFY_SOCKET");
        self.process = Some(Process::spawn("rabbitmq-server", &at("log/console"), INSTALL, &mut command));
    }

    /// Runs `rabbitmqctl`, and returns what it printed.
    #[track_caller]
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let output = self.command("rabbitmqctl").args(arguments).output().unwrap();
        assert!(output.status.success(), "rabbitmqctl {arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// One of the server's programs, in this node's surroundings.
    fn command(&self, name: &str) -> Command {
        let at = |name: &str| self.folder.path().join(name);
        let mut command = Command::new(program(name));
        command
            .env("HOME", at("home"))
            .env("RABBITMQ_NODENAME", self.name())
            .env("RABBITMQ_NODE_PORT", self.port.number().to_string())
            .env("RABBITMQ_DIST_PORT", self.dist.number().to_string())
            .env("ERL_EPMD_PORT", self.mapper.port.number().to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_MNESIA_BASE", at("mnesia"))
            .env("RABBITMQ_LOG_BASE", at("log"))
            .env("RABBITMQ_GENERATED_CONFIG_DIR", at("generated"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", at("plugins"))
            .env("RABBITMQ_CONFIG_FILE", at("rabbit.conf"))
            .env("RABBITMQ_CONF_ENV_FILE", at("none"));
        command
    }

    /// Waits until a login succeeds.
    pub async fn ready(&mut self) {
        let url = self.url();
        let process = self.process.as_mut().unwrap();
        within(Duration::from_secs(90), "RabbitMQ to accept a login", async || {
            assert!(process.ended().is_none(), "RabbitMQ ended: {}", process.output());
            let connecting = Connection::connect(&url, ConnectionProperties::default());
            tokio::time::timeout(Duration::from_secs(5), connecting).await.ok()?.ok()
        })
        .await;
    }

    /// A connection of the test's own with one channel that confirms publishing.
    pub async fn client(&self) -> Amqp {
        let connection = Connection::connect(&self.url(), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Amqp { connection, channel }
    }
}

/// A client of the test's own.
#[derive(Debug)]
pub struct Amqp {
    pub connection: Connection,
    pub channel: Channel,
}

impl Amqp {
    /// Publishes persistently and waits for the confirmation.
    pub async fn publish(&self, exchange: &str, key: &str, payload: &[u8]) {
        let properties = BasicProperties::default().with_delivery_mode(2);
        let sending = self.channel.basic_publish(exchange.into(), key.into(), BasicPublishOptions::default(), payload, properties);
        sending.await.unwrap().await.unwrap();
    }
}
