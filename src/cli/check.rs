//! `check`: is the configuration good, and what does it come to?

use std::path::PathBuf;
use std::process::ExitCode;

use super::{Error, load, print, say};
use crate::app;
use crate::http::tls::Tls;

pub(super) fn run(files: &[PathBuf]) -> Result<ExitCode, Error> {
    let loaded = load(files)?;
    if let Some(tls) = &loaded.config.server.tls {
        // Whether they are a certificate and its key only shows when they are read.
        Tls::load(tls).map_err(app::Error::from)?;
    }
    for warning in loaded.warnings() {
        say(format_args!("warning: {warning}"));
    }
    for note in loaded.notes() {
        say(format_args!("note: {note}"));
    }
    print(&format!("{}\n", loaded.to_yaml().trim_end()))?;
    Ok(ExitCode::SUCCESS)
}
