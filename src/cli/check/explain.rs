//! `check --explain`: why somebody sees a subject or does not, by the configuration or by a bridge that runs. Never prints the
//! token.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use reqwest::{Certificate, Identity};
use serde_json::{Value, json};

use crate::app::explain::{Explained, Explainer};
use crate::auth::Authenticator;
use crate::cli::client::Target;
use crate::cli::{EX_UNAVAILABLE, Error, KEYS, block_on, client, given, load, print, say, with_keys};
use crate::subject::Subject;
use crate::support::causes::chain;

/// How long the admin listener may take.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Question {
    /// Say instead why somebody sees a subject or does not: exit code 0 seen, 1 not seen, 69 nobody to ask
    #[arg(long, requires = "subject", conflicts_with = "connect")]
    explain: bool,
    /// The token of whom it is about; `-` reads it from standard input; without it: somebody without a token
    #[arg(long, value_name = "TOKEN", requires = "explain")]
    token: Option<String>,
    /// The subject, as clients see it
    #[arg(long, value_name = "SUBJECT", requires = "explain")]
    subject: Option<Subject>,
    /// Ask the admin listener of a bridge that runs, instead of reading a configuration
    #[arg(long, value_name = "URL", requires = "explain", value_parser = Target::parse)]
    admin: Option<Target>,
    /// A file that holds the admin listener's token
    #[arg(long, value_name = "FILE", requires = "admin")]
    admin_token_file: Option<PathBuf>,
    /// Certificate authorities (PEM) to trust instead of the system's, for the admin listener
    #[arg(long, value_name = "FILE", requires = "admin")]
    admin_ca: Option<PathBuf>,
    /// A client certificate and its private key (PEM, in one file) for the admin listener
    #[arg(long, value_name = "FILE", requires = "admin")]
    admin_certificate: Option<PathBuf>,
}

impl Question {
    /// Whether this is asked for.
    pub(super) fn is_wanted(&self) -> bool {
        self.explain
    }
}

pub(super) fn run(files: &[PathBuf], options: &Question) -> Result<ExitCode, Error> {
    let Some(subject) = &options.subject else { return Err(Error::new("--explain needs --subject")) };
    let token = options.token.as_deref().map(given).transpose()?;
    let asked = match &options.admin {
        Some(admin) => block_on(ask(admin, options, token.as_deref(), subject)),
        None => read(files, token.as_deref(), subject),
    };
    let Explained { seen, told } = match asked {
        Err(error @ Error::Failed { .. }) => {
            say(format_args!("brokercast: {}", chain(&error)));
            return Ok(ExitCode::from(EX_UNAVAILABLE));
        }
        asked => asked?,
    };
    print(&format!("{told:#}\n"))?;
    Ok(match seen {
        Some(true) => ExitCode::SUCCESS,
        Some(false) => ExitCode::FAILURE,
        None => ExitCode::from(EX_UNAVAILABLE),
    })
}

/// By the configuration.
fn read(files: &[PathBuf], token: Option<&str>, subject: &Subject) -> Result<Explained, Error> {
    let loaded = load(files)?;
    let explainer = Explainer::new(&loaded.settings, loaded.places);
    let auth = Authenticator::new(loaded.settings.auth, loaded.settings.token_bytes);
    block_on(async { Ok(with_keys(&auth, explainer.explain(&auth, token, subject, KEYS)).await) })
}

/// By a bridge that runs.
async fn ask(admin: &Target, options: &Question, token: Option<&str>, subject: &Subject) -> Result<Explained, Error> {
    let url = client::below(&admin.url, "/explain");
    let mut builder = admin.lead(client::client().no_proxy().timeout(PATIENCE));
    if let Some(file) = &options.admin_ca {
        let certificates = Certificate::from_pem_bundle(client::read(file)?.as_bytes());
        let what = || format!("`{}` holds no certificates in PEM", file.display());
        builder = builder.tls_certs_only(certificates.map_err(|e| Error::with(what(), e))?);
    }
    if let Some(file) = &options.admin_certificate {
        let what = || format!("`{}` holds no certificate and private key in PEM", file.display());
        builder = builder.identity(Identity::from_pem(client::read(file)?.as_bytes()).map_err(|e| Error::with(what(), e))?);
    }
    let client = builder.build().map_err(|e| Error::with("cannot make an HTTP client", e))?;
    let mut request = client.post(url).body(json!({ "token": token, "subject": subject.as_str() }).to_string());
    if let Some(file) = &options.admin_token_file {
        request = request.bearer_auth(client::read(file)?.trim());
    }
    let failed = |e: reqwest::Error| Error::with(format!("no answer from the admin listener at {admin}"), e.without_url());
    let answer = request.send().await.map_err(failed)?;
    if !answer.status().is_success() {
        return Err(Error::new(format!("the admin listener refused the question: {}", client::refusal(answer).await)));
    }
    let told: Value = answer.json().await.map_err(failed)?;
    Ok(Explained { seen: told.get("seen").and_then(Value::as_bool), told })
}
