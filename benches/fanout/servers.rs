//! The two servers under load, as child processes that end with this one.

use std::io::{self, BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::limit;

const PATIENCE: Duration = Duration::from_secs(20);

/// A running server.
pub(super) struct Server {
    child: Child,
    /// Where it listens.
    pub(super) address: SocketAddr,
    _folder: Option<TempDir>,
}

impl Server {
    /// brokercast itself, on free ports, with a configuration of its own; with TLS where there is a certificate and a key.
    pub(super) fn brokercast(subscribers: usize, tls: Option<(&Path, &Path)>) -> io::Result<Self> {
        let folder = TempDir::with_prefix("brokercast-bench-")?;
        // Both held at once, so that they differ.
        let (public, admin) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
        let (address, admin_address) = (public.local_addr()?, admin.local_addr()?);
        drop((public, admin));
        let max = subscribers + 8;
        let pem = |(certificate, key): (&Path, &Path)| {
            format!(", tls: {{ certificate: \"{}\", private_key: \"{}\" }}", certificate.display(), key.display())
        };
        let tls = tls.map(pem).unwrap_or_default();
        let config = format!(
            "server: {{ listen: \"{address}\"{tls} }}\n\
             admin: {{ listen: \"{admin_address}\" }}\n\
             auth: {{ anonymous: {{ subscribe: [\">\"], publish: [\">\"] }} }}\n\
             subscribers: {{ max: {max}, max_per_identity: {max} }}\n\
             sources: {{ inbox: {{ http: {{ subjects: [\"bench.>\"] }} }} }}\n"
        );
        let file = folder.path().join("config.yaml");
        std::fs::write(&file, config)?;
        let log = folder.path().join("log");
        let out = std::fs::File::create(&log)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_brokercast"));
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("BROKERCAST")) {
            command.env_remove(key);
        }
        let child = command
            .arg("serve")
            .arg("--config")
            .arg(&file)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stderr(out.try_clone()?)
            .stdout(out)
            .spawn()?;
        let mut server = Self { child, address, _folder: Some(folder) };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_err() {
            if server.child.try_wait()?.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                return Err(io::Error::other(format!("brokercast does not listen: {log}")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// The limit server: this program again.
    pub(super) fn limit() -> io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?).arg(limit::ARGUMENT).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut line)?;
        }
        let address = line.trim().parse();
        let mut server = Self { child, address: ([127, 0, 0, 1], 0).into(), _folder: None };
        server.address = address.map_err(|_| io::Error::other("the limit server does not listen"))?;
        Ok(server)
    }

    /// Its resident memory, in bytes.
    pub(super) fn memory(&self) -> io::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.map(|kib| kib << 10).ok_or_else(|| io::Error::other("no VmRSS"))
    }

    /// The processor time of all its threads so far.
    pub(super) fn cpu(&self) -> io::Result<Duration> {
        let mut nanos = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // A thread may end meanwhile.
            let text = std::fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            nanos += text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(Duration::from_nanos(nanos))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
