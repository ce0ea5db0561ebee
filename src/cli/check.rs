//! `check`: is the configuration good, and what does it come to?

use std::path::PathBuf;
use std::process::ExitCode;

use super::{Error, load, print, say};

pub(super) fn run(files: &[PathBuf]) -> Result<ExitCode, Error> {
    let loaded = load(files)?;
    for warning in loaded.warnings {
        say(format_args!("warning: {warning}"));
    }
    for note in loaded.notes {
        say(format_args!("note: {note}"));
    }
    print(&format!("{}\n", loaded.yaml.trim_end()))?;
    Ok(ExitCode::SUCCESS)
}
