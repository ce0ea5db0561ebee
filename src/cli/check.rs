//! `check`: is the configuration good, and what does it come to?

use std::path::PathBuf;
use std::process::ExitCode;

use super::{Error, load, print, say};

pub(super) fn run(files: &[PathBuf]) -> Result<ExitCode, Error> {
    let loaded = load(files)?;
    for warning in loaded.warnings() {
        say(format_args!("warning: {warning}"));
    }
    print(&loaded.to_yaml())?;
    Ok(ExitCode::SUCCESS)
}
