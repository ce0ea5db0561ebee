//! `publish`: one message, through a source's own broker connection settings; to an http source over HTTP.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::client::{self, Reach};
use super::{Error, block_on, load, print};
use crate::source::settings::Source;

/// How long a broker may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What stands in a path as it is.
const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'-').remove(b'_').remove(b'~');

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The source whose broker gets it
    source: String,
    /// The subject, or the routing key
    subject: String,
    /// The payload; `-`, or none: read from standard input
    data: Option<String>,
    #[command(flatten)]
    reach: Reach,
}

pub(super) fn run(files: &[PathBuf], options: Options) -> Result<ExitCode, Error> {
    let settings = load(files)?.settings;
    let Some(Source { name, adapter, .. }) = settings.sources.iter().find(|source| source.name.as_str() == options.source) else {
        let known: Vec<&str> = settings.sources.iter().map(|source| source.name.as_str()).collect();
        return Err(Error::new(format!("unknown source `{}` (configured: {})", options.source, known.join(", "))));
    };
    let payload = payload(options.data)?;
    if adapter.inbox().is_some() {
        let address = options.reach.address_of(&settings)?;
        return block_on(post(address, &options.reach, &options.subject, payload));
    }
    block_on(async {
        let failed = |e: Box<dyn std::error::Error + Send + Sync>| Error::with(format!("source `{name}` did not take the message"), e);
        match tokio::time::timeout(PATIENCE, adapter.publish(&options.subject, payload)).await {
            Ok(done) => done.map_err(|e| failed(e.into())),
            Err(elapsed) => Err(failed(elapsed.into())),
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

fn payload(data: Option<String>) -> Result<Bytes, Error> {
    match data {
        Some(text) if text != "-" => Ok(text.into()),
        _ => {
            let mut bytes = Vec::new();
            std::io::stdin().lock().read_to_end(&mut bytes).map_err(|e| Error::with("cannot read standard input", e))?;
            Ok(bytes.into())
        }
    }
}

/// To a running bridge: an http source has no broker but it.
async fn post(address: reqwest::Url, reach: &Reach, subject: &str, payload: Bytes) -> Result<ExitCode, Error> {
    let url = client::below(&address, &format!("/publish/{}", utf8_percent_encode(subject, IN_PATH)));
    let request = reach.client()?.post(url.clone()).timeout(PATIENCE).body(payload);
    let answer = request.send().await.map_err(|e| client::unreachable(&url, e))?;
    if !answer.status().is_success() {
        return Err(Error::new(format!("the bridge refused the message: {}", client::refusal(answer).await)));
    }
    // Its id, for whoever wants to read from there.
    let body: Option<serde_json::Value> = answer.json().await.ok();
    if let Some(id) = body.as_ref().and_then(|body| body.get("id")?.as_str()) {
        print(&format!("{}\n", client::plain(id)))?;
    }
    Ok(ExitCode::SUCCESS)
}
