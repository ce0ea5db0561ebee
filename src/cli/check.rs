//! `check`: is the configuration good, what does it come to, and do its sources' brokers take it?

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use futures_util::future::join_all;

use super::{Error, block_on, load, print, say};
use crate::source::settings::Source;
use crate::support::causes::chain;

mod explain;

/// How long a broker may take.
const PATIENCE: Duration = Duration::from_secs(40);

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Try each source too: reach its broker, sign in, and look for what it reads, without making anything
    #[arg(long)]
    connect: bool,
    #[command(flatten)]
    explain: explain::Question,
}

pub(super) fn run(files: &[PathBuf], options: &Options) -> Result<ExitCode, Error> {
    if options.explain.is_wanted() {
        return explain::run(files, &options.explain);
    }
    let loaded = load(files)?;
    for warning in loaded.warnings {
        say(format_args!("warning: {warning}"));
    }
    for note in loaded.notes {
        say(format_args!("note: {note}"));
    }
    print(&format!("{}\n", loaded.yaml.trim_end()))?;
    if !options.connect {
        return Ok(ExitCode::SUCCESS);
    }
    let problems = block_on(async { Ok(join_all(loaded.settings.sources.iter().map(problems)).await.concat()) })?;
    for problem in &problems {
        say(format_args!("error: {problem}"));
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is wrong with a source, each with its key path.
async fn problems(source: &Source) -> Vec<String> {
    let path = format!("sources.{}.{}", source.name, source.adapter.kind());
    match tokio::time::timeout(PATIENCE, source.adapter.check()).await {
        Ok(errors) => errors.iter().map(|error| format!("{path}: {}", chain(error))).collect(),
        Err(_) => vec![format!("{path}: the broker did not answer in time")],
    }
}
