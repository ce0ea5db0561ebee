//! Child processes that never outlive the test, however it ends.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};

use super::wait::within;

/// A child in a process group of its own, its output in a file.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    reaper: Child,
    log: PathBuf,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts it. `install` says what to do where there is no such program.
    pub fn spawn(name: &str, log: &Path, install: &str, command: &mut Command) -> Self {
        let out = File::options().create(true).append(true).open(log).unwrap();
        let err = out.try_clone().unwrap();
        command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) => panic!("cannot start {name} ({:?}): {error}; install it: {install}", command.get_program()),
        };
        // Where this process is killed, the pipe closes and the shell ends the group.
        let script = format!("read _; kill -s KILL -- -{} 2>/dev/null", child.id());
        let reaper = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        Self { name: name.into(), child, reaper, log: log.into(), status: None }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends a signal to the process itself.
    pub fn signal(&self, signal: Signal) {
        assert!(self.status.is_none(), "{} has ended", self.name);
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// SIGKILL to the whole group, and waits for the end.
    pub fn kill(&mut self) {
        if self.status.is_none() {
            // It may have ended by itself: then there is no group left.
            rustix::process::kill_process_group(self.pid(), Signal::KILL).ok();
            self.status = self.child.wait().ok();
        }
    }

    /// Its exit status once it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().unwrap();
        }
        self.status
    }

    /// Waits for its end.
    pub async fn exit(&mut self, limit: Duration) -> ExitStatus {
        let name = self.name.clone();
        within(limit, &format!("{name} to end"), async || self.ended()).await
    }

    /// All it has printed so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Resident memory in bytes.
    pub fn memory(&self) -> u64 {
        self.kibibytes("VmRSS:") * 1024
    }

    /// The most that its resident memory has been, in bytes.
    pub fn peak_memory(&self) -> u64 {
        self.kibibytes("VmHWM:") * 1024
    }

    fn kibibytes(&self, key: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|l| l.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Processor time that it has taken.
    pub fn processor(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // Behind the name: in hundredths of a second, in user and in kernel mode.
        let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        Duration::from_millis(fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum())
    }

    /// Number of open descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        self.reaper.kill().ok();
        self.reaper.wait().ok();
        if std::thread::panicking() {
            let output = self.output();
            let lines: Vec<_> = output.lines().collect();
            let tail = &lines[lines.len().saturating_sub(60)..];
            eprintln!("---- last lines of {} ({:?})\n{}\n----", self.name, self.status, tail.join("\n"));
        }
    }
}
