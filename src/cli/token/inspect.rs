//! `token --inspect`: what a token grants and by which rules, or why it is refused. Never prints the token.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use crate::auth::{AuthError, Authenticator, Ruled};
use crate::cli::{Error, block_on, print};

/// How long keys behind URLs may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// Exits with 1 where the token is refused.
pub(super) fn run(authenticator: Authenticator, token: &str) -> Result<ExitCode, Error> {
    let token = if token == "-" {
        std::io::read_to_string(std::io::stdin()).map_err(|e| Error::with("cannot read the token from standard input", e))?
    } else {
        token.to_owned()
    };
    let grant = block_on(async {
        let never = async {
            authenticator.refresh_keys().await;
            std::future::pending::<()>().await;
        };
        Ok(tokio::select! {
            grant = authenticator.inspect(token.trim(), PATIENCE) => grant,
            () = never => Err(AuthError::KeysNotLoaded),
        })
    })?;
    let (said, code) = match grant {
        Ok(grant) => {
            let owner = grant.owner.as_deref();
            let claims: Value = owner.and_then(|owner| serde_json::from_slice(&owner.claims).ok()).unwrap_or_default();
            let (subscribe, publish) = authenticator.explain(owner);
            let said = json!({
                "valid": true, "identity": grant.identity(), "issuer": owner.and_then(|owner| owner.issuer.as_deref()),
                "expires": grant.expires, "claims": claims, "subscribe": listed(&subscribe), "publish": listed(&publish),
            });
            (said, ExitCode::SUCCESS)
        }
        Err(AuthError::Invalid(why)) => (json!({ "valid": false, "reason": why.to_string() }), ExitCode::FAILURE),
        Err(why) => (json!({ "valid": false, "reason": why.to_string() }), ExitCode::FAILURE),
    };
    print(&format!("{said:#}\n"))?;
    Ok(code)
}

fn listed(ruled: &[Ruled]) -> Value {
    ruled.iter().map(|Ruled { pattern, rule }| json!({ "pattern": pattern.as_str(), "rule": rule })).collect()
}
