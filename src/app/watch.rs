//! Looks whether files of the configuration have changed.
//!
//! By their metadata, behind links, a few times a second: a file that is renamed over another, and links that are exchanged
//! (Kubernetes), are seen in the same way, also where no file system tells of it. Reads no file.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use crate::event::Timestamp;
use crate::http::admin::Reload;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);
/// Files are read when they have not changed for so long.
const QUIET: Duration = Duration::from_millis(500);

/// What tells a file from what it was before; `None`: there is none, or it is a folder.
type Stamp = Option<[i64; 7]>;

/// The files of the configuration.
#[derive(Default)]
pub(super) struct Watched(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// Whether anybody looks.
    on: bool,
    files: Vec<PathBuf>,
    /// Of the same files, as they were when they were read.
    stamps: Vec<Stamp>,
    /// The second in which they were read, `None`: when the process started.
    read: Option<i64>,
}

impl Watched {
    /// To be called before files are read: what changes from now on is a change.
    pub(super) fn about_to_read(&self) {
        let mut known = self.0.lock();
        known.stamps = known.files.iter().map(|file| stamp(file)).collect();
        known.read = i64::try_from(Timestamp::now().as_micros() / 1_000_000).ok();
    }

    /// These are looked at too, since a configuration that was refused names them.
    pub(super) fn add(&self, files: &[PathBuf]) {
        let mut known = self.0.lock();
        for file in files {
            if !known.files.contains(file) {
                let stamp = known.stamp_at_reading(file);
                known.stamps.push(stamp);
                known.files.push(file.clone());
            }
        }
    }

    /// These are the files from now on.
    pub(super) fn set(&self, on: bool, files: Vec<PathBuf>) {
        let mut known = self.0.lock();
        let before = |file: &PathBuf| Some(known.stamps[known.files.iter().position(|of| of == file)?]);
        let stamps = files.iter().map(|file| before(file).unwrap_or_else(|| known.stamp_at_reading(file))).collect();
        *known = Known { on, files, stamps, read: known.read };
    }

    /// The files as they are, if they are not as they were.
    fn changed(&self) -> Option<Vec<Stamp>> {
        let known = self.0.lock();
        if !known.on {
            return None;
        }
        let now: Vec<_> = known.files.iter().map(|file| stamp(file)).collect();
        (now != known.stamps).then_some(now)
    }
}

impl Known {
    /// The stamp of a file that was not known when it was read. What has changed in that second may not have been read.
    fn stamp_at_reading(&self, file: &Path) -> Stamp {
        stamp(file).filter(|[.., changed, _]| self.read.is_none_or(|read| *changed < read))
    }
}

fn stamp(file: &Path) -> Stamp {
    let of = std::fs::metadata(file).ok().filter(|of| !of.is_dir())?;
    let number = |number: u64| number.cast_signed();
    Some([number(of.dev()), number(of.ino()), number(of.size()), of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec()])
}

/// Reloads whenever files have changed and then were left alone for a while.
pub(super) async fn follow(watched: Arc<Watched>, reload: Arc<Reload>) {
    let look = || {
        let watched = watched.clone();
        // On a file system that hangs, only this waits.
        async move { tokio::task::spawn_blocking(move || watched.changed()).await.ok().flatten() }
    };
    loop {
        sleep(LOOK).await;
        let Some(mut last) = look().await else { continue };
        let mut since = Instant::now();
        while since.elapsed() < QUIET {
            sleep(LOOK).await;
            match look().await {
                Some(now) if now == last => {}
                Some(now) => (last, since) = (now, Instant::now()),
                None => break,
            }
        }
        if look().await.is_some() {
            // The reload says in the log what came of it.
            drop(reload(None).await);
        }
    }
}
