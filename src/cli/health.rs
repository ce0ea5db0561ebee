//! `health`: is the bridge ready? Asks the admin listener, and says so by the exit code.
//!
//! Without `--config` and `--url` it asks the only bridge of its PID namespace, wherever that listens: by what the system says of
//! the process, as its configuration may have changed since it was started.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use reqwest::Url;
use serde_json::Value;

use super::client::Target;
use super::processes::{Bridge, bridges};
use super::{Arguments, Command, Error, block_on, client, load, print};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The admin listener's address; by default that of the only brokercast that runs here, or with --config its `admin.listen`
    #[arg(long, value_name = "URL", value_parser = Target::parse)]
    url: Option<Target>,
}

/// `given`: whether the command line names the configuration.
pub(super) fn run(files: &[PathBuf], given: bool, options: Options) -> Result<ExitCode, Error> {
    let Answer { ready, said, .. } = match options.url {
        Some(target) => block_on(ask(&target, false))?,
        None if given => ask_configured(files)?,
        None => match bridges(serves).as_slice() {
            [only] => block_on(ask_process(only))?,
            // A process may not be seen, for example in another container on the same network.
            [] => ask_configured(files)?,
            _ if !files.is_empty() || is_configured() => ask_configured(files)?,
            several => {
                let pids: Vec<_> = several.iter().map(|bridge| bridge.pid.to_string()).collect();
                let pids = pids.join(", ");
                return Err(Error::new(format!("several brokercast run here (processes {pids}): name one by --config or --url")));
            }
        },
    };
    print(&format!("{said}\n"))?;
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn readyz(address: &Url) -> Url {
    if address.path() == "/readyz" { address.clone() } else { client::below(address, "/readyz") }
}

/// Asks the listener that the configuration says.
fn ask_configured(files: &[PathBuf]) -> Result<Answer, Error> {
    let admin = load(files)?.settings.http.admin;
    block_on(ask(&Target::of_listener(&admin.listen, admin.tls.is_some())?, true))
}

/// Whether the environment configures anything.
fn is_configured() -> bool {
    std::env::vars_os().any(|(key, _)| key.to_string_lossy().starts_with("BROKERCAST__"))
}

/// Whether a command line starts a bridge.
fn serves(line: Vec<OsString>) -> bool {
    Arguments::try_parse_from(line).is_ok_and(|arguments| matches!(arguments.command, None | Some(Command::Serve)))
}

/// What a listener answered.
struct Answer {
    ready: bool,
    said: String,
    /// It is an admin listener.
    of_admin: bool,
}

/// Asks whichever of a process's listeners is the admin listener.
async fn ask_process(bridge: &Bridge) -> Result<Answer, Error> {
    let pid = bridge.pid;
    let cannot = |e| Error::with(format!("cannot see where process {pid} listens; name it by --config or --url"), e);
    let listeners = bridge.listens().map_err(cannot)?;
    for address in listeners {
        for tls in [false, true] {
            let target = Target::of_listener(&address, tls)?;
            // One that does not answer speaks TLS, or another protocol.
            if let Some(answer) = ask(&target, true).await.ok().filter(|answer| answer.of_admin) {
                return Ok(answer);
            }
        }
    }
    Err(Error::new(format!("process {pid} has no admin listener that answers")))
}

/// `own`: it is a listener of this machine's.
async fn ask(target: &Target, own: bool) -> Result<Answer, Error> {
    // A proxy from the environment has no business between a container and itself.
    // On this machine it asks for what everybody is told, and brings no secret: whose certificate it is does not matter, and
    // few certificates name a loopback address.
    let client = client::client().tls_danger_accept_invalid_certs(own).no_proxy().timeout(Duration::from_secs(3));
    let client = target.lead(client).build().map_err(|e| Error::with("cannot make an HTTP client", e))?;
    let failed = |e: reqwest::Error| Error::with(format!("no answer from the admin listener at {target}"), e.without_url());
    let answer = client.get(readyz(&target.url)).send().await.map_err(failed)?;
    let status = answer.status();
    let body: Option<Value> = answer.json().await.ok();
    let said = body.as_ref().and_then(describe);
    Ok(Answer { ready: status.is_success(), of_admin: said.is_some(), said: said.unwrap_or_else(|| client::words(status, body.as_ref())) })
}

/// `degraded (clock: up, orders: down)`
fn describe(body: &Value) -> Option<String> {
    let status = client::plain(body.get("status")?.as_str()?);
    let state = |(name, source): (&String, &Value)| Some(client::plain(&format!("{name}: {}", source.get("state")?.as_str()?)));
    let sources: Vec<String> = body.get("sources").and_then(Value::as_object)?.iter().filter_map(state).collect();
    Some(if sources.is_empty() { status } else { format!("{status} ({})", sources.join(", ")) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_refusal_is_told_with_its_detail() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let refuse = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            assert_ne!(socket.read(&mut [0; 1024]).await.unwrap(), 0);
            let body = json!({ "type": "about:blank", "title": "Forbidden", "status": 403, "detail": "see `x`" }).to_string();
            let head = format!("HTTP/1.1 403 Forbidden\r\ncontent-type: application/problem+json\r\ncontent-length: {}", body.len());
            socket.write_all(format!("{head}\r\nconnection: close\r\n\r\n{body}").as_bytes()).await.unwrap();
        };
        let (answer, ()) = tokio::join!(ask(&target, false), refuse);
        let answer = answer.unwrap();
        assert_eq!((answer.ready, answer.of_admin, answer.said.as_str()), (false, false, "403 Forbidden: see `x`"));
    }

    #[test]
    fn a_state_is_told_in_a_line() {
        let body = json!({ "status": "degraded", "sources": { "a": { "state": "up" }, "b": { "state": "down" } } });
        assert_eq!(describe(&body).as_deref(), Some("degraded (a: up, b: down)"));
        assert_eq!(describe(&json!({ "status": "ready", "sources": {} })).as_deref(), Some("ready"));
        assert_eq!(describe(&json!("x")), None);
    }
}
