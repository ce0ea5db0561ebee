//! The command line: what can be asked of the program, and with which code it ends.
//!
//! One file for each command. Knows the configuration and `app`; no command knows another.

use std::error::Error as StdError;
use std::io::Write as _;
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::app::{self, Loaded};
use crate::auth::Authenticator;
use crate::settings::SettingsError;
use crate::support::causes::chain;

mod check;
mod client;
mod health;
mod processes;
mod publish;
mod serve;
mod sse;
mod tail;
mod token;

/// The exit code for a configuration that cannot be used (sysexits.h, EX_CONFIG).
const EX_CONFIG: u8 = 78;
/// The exit code where nobody answers whom a command has to ask (sysexits.h, EX_UNAVAILABLE).
const EX_UNAVAILABLE: u8 = 69;

/// Streams message-broker traffic to browsers over Server-Sent Events.
#[derive(Debug, Parser)]
#[command(name = "brokercast", version, about, max_term_width = 110)]
#[command(after_help = "Without a configuration file brokercast is a demonstration on 127.0.0.1:8080. Any key can also be set in \
                        the environment: BROKERCAST__SERVER__LISTEN=127.0.0.1:9090.")]
struct Arguments {
    /// A configuration file; several are merged, later over earlier [env: BROKERCAST_CONFIG]
    #[arg(short, long, value_name = "FILE", global = true)]
    config: Vec<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the bridge (what happens without a command)
    Serve,
    /// Check the configuration and print the effective one, without secrets
    Check(check::Options),
    /// Ask the brokercast that runs here whether it is ready: for containers
    Health(health::Options),
    /// Make a token with the configured HMAC secret
    Token(token::Options),
    /// Publish one message through a source's own broker connection
    Publish(publish::Options),
    /// Follow a stream in the terminal, resuming like a browser
    Tail(tail::Options),
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] SettingsError),
    /// The bridge.
    #[error(transparent)]
    Bridge(#[from] app::Error),
    /// Anything else.
    #[error("{what}")]
    Failed {
        /// What.
        what: String,
        /// Why.
        #[source]
        cause: Option<Box<dyn StdError + Send + Sync>>,
    },
}

impl Error {
    fn new(what: impl Into<String>) -> Self {
        Self::Failed { what: what.into(), cause: None }
    }

    fn with(what: impl Into<String>, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Failed { what: what.into(), cause: Some(cause.into()) }
    }
}

/// Runs the command that the arguments name.
#[must_use]
pub fn main() -> ExitCode {
    // Wrong arguments end here, with code 2.
    let Arguments { config, command } = Arguments::parse();
    let given = !config.is_empty();
    let files = files(config);
    let done = match command.unwrap_or(Command::Serve) {
        Command::Serve => serve::run(&files),
        Command::Check(options) => check::run(&files, &options),
        Command::Health(options) => health::run(&files, given, options),
        Command::Token(options) => token::run(&files, options),
        Command::Publish(options) => publish::run(&files, options),
        Command::Tail(options) => tail::run(&files, options),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            say(format_args!("brokercast: {}", chain(&error)));
            match error {
                Error::Config(_) => ExitCode::from(EX_CONFIG),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// The files to read: those of the command line, else those that the environment names, as in `PATH`.
fn files(given: Vec<PathBuf>) -> Vec<PathBuf> {
    if !given.is_empty() {
        return given;
    }
    let named = std::env::var_os("BROKERCAST_CONFIG").unwrap_or_default();
    std::env::split_paths(&named).filter(|path| !path.as_os_str().is_empty()).collect()
}

fn load(files: &[PathBuf]) -> Result<Loaded, Error> {
    Ok(app::load(files)?)
}

/// Prints a line on standard error. If that is closed, the line is lost.
fn say(line: impl std::fmt::Display) {
    writeln!(std::io::stderr().lock(), "{line}").ok();
}

/// Prints text on standard output. A reader that has closed it is not an error.
fn print(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::with("cannot write to standard output", error)),
        _ => Ok(()),
    }
}

/// How long keys behind URLs may take.
const KEYS: Duration = Duration::from_secs(15);

/// A token that was given as an argument: `-` reads it from standard input.
fn given(token: &str) -> Result<String, Error> {
    let token = match token {
        "-" => std::io::read_to_string(std::io::stdin()).map_err(|e| Error::with("cannot read the token from standard input", e))?,
        token => token.to_owned(),
    };
    Ok(token.trim().to_owned())
}

/// Answers while the keys behind URLs are fetched.
async fn with_keys<T>(authenticator: &Authenticator, answer: impl Future<Output = T>) -> T {
    let fetching = async {
        authenticator.refresh_keys().await;
        std::future::pending().await
    };
    tokio::select! {
        answer = answer => answer,
        never = fetching => never,
    }
}

/// A runtime for commands that ask something and end.
fn block_on<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    // Never taken down, it ends with the process: a library's own thread that still waits on it would panic.
    let runtime = ManuallyDrop::new(runtime.map_err(|e| Error::with("cannot start", e))?);
    runtime.block_on(work)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn arguments_are_well_formed() {
        Arguments::command().debug_assert();
    }
}
