//! `serve`: the bridge itself.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{Error, load};
use crate::app::{self, Exit};
use crate::telemetry;

pub(super) fn run(files: &[PathBuf]) -> Result<ExitCode, Error> {
    let loaded = load(files)?;
    telemetry::init(&loaded.config.log).map_err(|e| Error::with("cannot set up the log", e))?;
    for warning in loaded.warnings() {
        tracing::warn!(warning, "configuration");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Error::with("cannot start", e))?;
    let ended = runtime.block_on(app::run(loaded.config));
    // What still runs has had its time.
    runtime.shutdown_background();
    match ended {
        Ok(Exit::Drained) => Ok(ExitCode::SUCCESS),
        Ok(Exit::Signal(number)) => Ok(ExitCode::from(u8::try_from(128 + number).unwrap_or(u8::MAX))),
        Err(error) => Err(error.into()),
    }
}
