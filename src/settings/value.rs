//! Values as they are written: durations (`15s`), sizes (`1MiB`), secrets, and files that hold them.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Reads a duration: a number with `ms`, `s`, `m`, `h` or `d`; `0` needs no unit.
#[must_use]
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let at = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..at].parse().ok()?;
    let millis = match text[at..].trim_start() {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    // Bounded, so that adding it to a clock cannot overflow.
    let millis = number.checked_mul(millis).filter(|m| *m <= 100 * 366 * 86_400_000)?;
    Some(Duration::from_millis(millis))
}

/// Reads a size in bytes: a number alone or with `B`, with `KiB`, `MiB`, `GiB`, `TiB` (1024), or with `kB`, `MB`, `GB`
/// (1000).
pub(super) fn parse_size(text: &str) -> Option<usize> {
    let text = text.trim();
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..at].parse().ok()?;
    let unit: u64 = match text[at..].trim_start() {
        "" | "B" => 1,
        "kB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    let bytes = number.checked_mul(unit).filter(|n| *n <= i64::MAX as u64)?;
    Some(usize::try_from(bytes).unwrap_or(usize::MAX))
}

/// Writes a duration as [`parse_duration`] reads it, in the largest unit that is exact.
pub(crate) fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let unit = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)].into_iter().find(|(_, unit)| millis.is_multiple_of(*unit));
    match unit {
        Some(_) if millis == 0 => "0s".to_owned(),
        Some((name, unit)) => format!("{}{name}", millis / unit),
        None => format!("{millis}ms"),
    }
}

/// Writes a size as it is read, in the largest binary unit that is exact.
#[must_use]
pub(crate) fn show_size(bytes: usize) -> String {
    let unit = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)].into_iter().find(|(_, unit)| bytes.is_multiple_of(*unit));
    match unit {
        Some((name, unit)) if bytes > 0 => format!("{}{name}", bytes / unit),
        _ => format!("{bytes}"),
    }
}

/// `path.name`, or `name` alone at the top. No key has a colon: what is behind one is a value that may be secret (`token:x` for
/// `token: x`), so it is left out.
pub(super) fn join(path: &str, name: &str) -> String {
    let name = name.split(':').next().unwrap_or_default();
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Bytes that must not be printed: its `Debug` says nothing.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(Arc<[u8]>);

impl Secret {
    /// Wraps the bytes.
    #[must_use]
    pub(crate) fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into().into())
    }

    /// The bytes, for those who need them.
    #[must_use]
    pub(crate) fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as text.
    ///
    /// # Errors
    /// When they are not UTF-8.
    pub(crate) fn expose_str(&self) -> Result<&str, std::str::Utf8Error> {
        std::str::from_utf8(&self.0)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("«secret»")
    }
}

/// A file that the settings name, as it was when they were read.
#[derive(Debug, Clone)]
pub(crate) struct File {
    /// Its path.
    pub(crate) path: PathBuf,
    /// Its bytes.
    pub(crate) contents: Secret,
}

/// The longest file that is read as a secret, a key or a certificate, in bytes.
const MAX_FILE: u64 = 1 << 20;

impl File {
    /// Reads it, or says why it cannot be read.
    pub(crate) fn read(path: PathBuf) -> Result<Self, String> {
        let bytes = read_bounded(&path, MAX_FILE).map_err(|what| format!("must name a readable file: {what}"))?;
        Ok(Self { path, contents: Secret::new(bytes) })
    }

    /// As [`Self::read`], apart from the runtime's threads: a file system that does not answer must hold up nothing else.
    pub(crate) async fn read_aside(path: PathBuf) -> Result<Self, String> {
        let read = tokio::task::spawn_blocking(move || Self::read(path)).await;
        read.unwrap_or_else(|_| Err("reading it failed".to_owned()))
    }

    /// The [`Self::line`] that it holds now, or why there is none. Read as by [`Self::read_aside`].
    pub(crate) async fn line_aside(path: PathBuf) -> Result<Secret, String> {
        let line = Self::read_aside(path).await?.line();
        if line.expose().is_empty() { Err("it is empty".to_owned()) } else { Ok(line) }
    }

    /// Its bytes less one line break at the end.
    pub(crate) fn line(&self) -> Secret {
        let bytes = self.contents.expose();
        Secret::new(bytes.strip_suffix(b"\n").map_or(bytes, |line| line.strip_suffix(b"\r").unwrap_or(line)))
    }
}

/// How long a file may take to be read: a pipe that nobody writes to would take for ever.
const PATIENCE: Duration = Duration::from_secs(10);

/// A file's bytes, or why it cannot be read, without its name.
pub(super) fn read_bounded(file: &Path, most: u64) -> Result<Vec<u8>, String> {
    read_within(PATIENCE, file, most)
}

/// How many threads read files. One that hangs is never heard of again.
static READING: Mutex<usize> = Mutex::new(0);
/// Told when one of them has ended.
static READ: Condvar = Condvar::new();
/// How many there may be.
const MAX_READING: usize = 64;

fn read_within(patience: Duration, file: &Path, most: u64) -> Result<Vec<u8>, String> {
    let mut reading = READING.lock();
    if READ.wait_while_for(&mut reading, |reading| *reading >= MAX_READING, patience).timed_out() {
        return Err("too many files are being read that do not come".to_owned());
    }
    *reading += 1;
    drop(reading);
    let (give, taken) = std::sync::mpsc::channel();
    let opened = file.to_owned();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = std::fs::File::open(opened).and_then(|opened| opened.take(most + 1).read_to_end(&mut bytes));
        *READING.lock() -= 1;
        READ.notify_one();
        // Nobody waits any more.
        drop(give.send(read.map(|_| bytes)));
    });
    let read = taken.recv_timeout(patience).map_err(|_| format!("it could not be read within {}", show_duration(patience)))?;
    let bytes = read.map_err(|error| why(file, &error))?;
    if bytes.len() as u64 > most { Err(format!("it is larger than {} MiB", most >> 20)) } else { Ok(bytes) }
}

fn why(file: &Path, error: &std::io::Error) -> String {
    match error.kind() {
        // Often the file exists, but not below the folder where brokercast was started.
        std::io::ErrorKind::NotFound if file.is_relative() => {
            "there is none of this name (a relative path begins where brokercast is started)".to_owned()
        }
        std::io::ErrorKind::NotFound => "there is none of this name".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        std::io::ErrorKind::IsADirectory => "it is a folder".to_owned(),
        kind => kind.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_that_nobody_writes_to_is_given_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).expect("a pipe");
        let told = read_within(Duration::from_millis(20), &pipe, 10).expect_err("nothing comes");
        assert_eq!(told, "it could not be read within 20ms");
        // A writer lets the thread that waits for one end.
        drop(std::fs::OpenOptions::new().write(true).open(&pipe));
    }
}
