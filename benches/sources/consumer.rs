//! The two who consume: brokercast, and a process that counts.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::broker::Broker;
use super::support::{Bridge, eventually};
use super::{KINDS, Kind, bare};

/// Between two looks at a count.
pub(super) const LOOK: Duration = Duration::from_millis(20);
/// After which nothing more is expected: what is missing was dropped.
pub(super) const SILENCE: Duration = Duration::from_secs(1);

/// Somebody who consumes.
pub(super) trait Consumer {
    /// What its part at the broker is called.
    fn name(&self) -> &'static str;
    fn pid(&self) -> Process;
    /// Messages that came in so far.
    async fn count(&mut self) -> u64;
}

/// A process by its number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Process(Pid);

impl Process {
    pub(super) fn stop(self) {
        kill_process(self.0, Signal::STOP).unwrap();
    }

    pub(super) fn go_on(self) {
        kill_process(self.0, Signal::CONT).unwrap();
    }

    /// The processor time of all its threads so far.
    pub(super) fn cpu(self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.0.as_raw_nonzero())).unwrap();
        // A thread may end meanwhile.
        let nanos = |path: std::path::PathBuf| std::fs::read_to_string(path).ok()?.split(' ').next()?.parse::<u64>().ok();
        Duration::from_nanos(tasks.filter_map(|task| nanos(task.unwrap().path().join("schedstat"))).sum())
    }
}

/// A process that counts: this program again.
pub(super) struct Bare {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Bare {
    pub(super) async fn start(kind: Kind, broker: &Broker) -> Self {
        const NAME: &str = "bare";
        broker.prepare(NAME).await;
        let word = KINDS.into_iter().find(|(k, ..)| *k == kind).unwrap().1;
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([bare::ARGUMENT, word, &broker.url(), NAME]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (questions, answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut bare = Self { child, questions, answers };
        bare.answer();
        bare
    }

    fn answer(&mut self) -> u64 {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().parse().expect("the counting loop goes on")
    }
}

impl Consumer for Bare {
    fn name(&self) -> &'static str {
        "bare"
    }

    fn pid(&self) -> Process {
        Process(Pid::from_child(&self.child))
    }

    async fn count(&mut self) -> u64 {
        writeln!(self.questions).unwrap();
        self.answer()
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// brokercast with one source.
pub(super) struct Ours(Bridge);

impl Ours {
    pub(super) async fn start(kind: Kind, broker: &Broker) -> Self {
        let name = "ours";
        let url = broker.url();
        let source = match kind {
            Kind::Core => format!("nats: {{ servers: [\"{url}\"], subjects: [\"{name}.>\"] }}"),
            Kind::JetStream => {
                format!("nats: {{ servers: [\"{url}\"], subjects: [\"{name}.>\"], jetstream: {{ stream: {name}, create: true }} }}")
            }
            Kind::Queue => format!("amqp: {{ url: \"{url}\", queue: {name}, declare: true, queue_type: classic }}"),
            Kind::Stream => format!("amqp: {{ url: \"{url}\", queue: {name}, declare: true, queue_type: stream }}"),
        };
        let config = format!("auth: {{ anonymous: {{ subscribe: [\">\"] }} }}\nsources: {{ it: {{ {source} }} }}\n");
        Self(Bridge::start(&config).await)
    }

    /// Subscribers that read all they get and look at nothing.
    pub(super) async fn listen(&self, count: usize) -> Vec<Listener> {
        let listeners: Vec<_> = (0..count).map(|_| self.listener()).collect();
        let here = async || (self.0.metric("brokercast_subscribers", &[]).await == count as f64).then_some(());
        eventually("subscribers to be there", here).await;
        listeners
    }

    /// Waits until no subscriber is there.
    pub(super) async fn left(&self) {
        let gone = async || (self.0.metric("brokercast_subscribers", &[]).await == 0.0).then_some(());
        eventually("subscribers to be gone", gone).await;
    }

    fn listener(&self) -> Listener {
        let mut socket = TcpStream::connect(self.0.address()).unwrap();
        write!(socket, "GET /events HTTP/1.1\r\nhost: {}\r\n\r\n", self.0.address()).unwrap();
        let listener = Listener(socket.try_clone().unwrap());
        std::thread::spawn(move || {
            let mut buffer = vec![0; 256 << 10];
            while socket.read(&mut buffer).is_ok_and(|n| n > 0) {}
        });
        listener
    }
}

/// A subscriber, until dropped.
pub(super) struct Listener(TcpStream);

impl Drop for Listener {
    fn drop(&mut self) {
        // The server may have closed it.
        self.0.shutdown(Shutdown::Both).ok();
    }
}

impl Consumer for Ours {
    fn name(&self) -> &'static str {
        "ours"
    }

    fn pid(&self) -> Process {
        Process(self.0.process().pid())
    }

    async fn count(&mut self) -> u64 {
        self.0.metric("brokercast_source_messages_total", &[]).await as u64
    }
}
