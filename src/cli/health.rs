//! `health`: is the bridge ready? Asks the admin listener, and says so by the exit code.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use reqwest::Url;
use serde_json::Value;

use super::{Error, block_on, client, load, print};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The admin listener's address; by default the configuration's `admin.listen`
    #[arg(long, value_name = "URL", value_parser = client::address)]
    url: Option<Url>,
}

pub(super) fn run(files: &[PathBuf], options: Options) -> Result<ExitCode, Error> {
    let told = options.url.is_some();
    let address = match options.url {
        Some(url) => url,
        None => {
            let admin = load(files)?.settings.http.admin;
            let scheme = if admin.tls.is_some() { "https" } else { "http" };
            client::parse(&format!("{scheme}://{}", client::reachable(admin.listen)))?
        }
    };
    let url = if address.path() == "/readyz" { address } else { client::below(&address, "/readyz") };
    let (ready, said) = block_on(ask(url, !told))?;
    print(&format!("{said}\n"))?;
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn ask(url: Url, own: bool) -> Result<(bool, String), Error> {
    // A proxy from the environment has no business between a container and itself.
    // On this machine it asks for what everybody is told, and brings no secret: whose certificate it is does not matter, and
    // few certificates name a loopback address.
    let client = client::client().tls_danger_accept_invalid_certs(own).no_proxy().timeout(Duration::from_secs(3)).build();
    let client = client.map_err(|e| Error::with("cannot make an HTTP client", e))?;
    let failed = |e: reqwest::Error| Error::with(format!("no answer from the admin listener at {}", client::place(&url)), e.without_url());
    let answer = client.get(url.clone()).send().await.map_err(failed)?;
    let status = answer.status();
    let body: Option<Value> = answer.json().await.ok();
    let said = body.as_ref().and_then(describe).unwrap_or_else(|| status.to_string());
    Ok((status.is_success(), said))
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

    use super::*;

    #[test]
    fn a_state_is_told_in_a_line() {
        let body = json!({ "status": "degraded", "sources": { "a": { "state": "up" }, "b": { "state": "down" } } });
        assert_eq!(describe(&body).as_deref(), Some("degraded (a: up, b: down)"));
        assert_eq!(describe(&json!({ "status": "ready", "sources": {} })).as_deref(), Some("ready"));
        assert_eq!(describe(&json!("x")), None);
    }
}
