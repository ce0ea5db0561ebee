//! `serve`: the bridge itself.

use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::process::ExitCode;

use super::{Error, load};
use crate::app::{self, Exit, Loaded, Origin};
use crate::telemetry;

pub(super) fn run(files: &[PathBuf]) -> Result<ExitCode, Error> {
    let Loaded { settings, log, warnings, files: named, yaml, places, .. } = load(files)?;
    let (format, access) = (log.format(), log.access());
    let (log, _written) = telemetry::init(log).map_err(|e| Error::with("cannot set up the log", e))?;
    for warning in warnings {
        tracing::warn!(warning, "configuration");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    // Never taken down, it ends with the process: what still runs has had its time, and a library's own thread that
    // waits on it would panic.
    let runtime = ManuallyDrop::new(runtime.map_err(|e| Error::with("cannot start", e))?);
    let origin = Origin { files: files.to_vec(), log, format, access, named, yaml, places };
    let ended = runtime.block_on(app::run(settings, origin));
    match ended {
        Ok(Exit::Drained) => Ok(ExitCode::SUCCESS),
        Ok(Exit::Signal(number)) => Ok(ExitCode::from(u8::try_from(128 + number).unwrap_or(u8::MAX))),
        Err(error) => Err(error.into()),
    }
}
