//! `token --inspect`: what a token grants and by which rules, or why it is refused. Never prints the token.

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::app::Loaded;
use crate::app::explain::Explainer;
use crate::auth::Authenticator;
use crate::cli::{Error, KEYS, block_on, given, print, with_keys};

/// Exits with 1 where the token is refused.
pub(super) fn run(loaded: Loaded, token: &str) -> Result<ExitCode, Error> {
    let token = given(token)?;
    let explainer = Explainer::new(&loaded.settings, loaded.places);
    let authenticator = Authenticator::new(loaded.settings.auth, loaded.settings.token_bytes);
    let (grant, _) = block_on(async { Ok(with_keys(&authenticator, authenticator.examine(&token, KEYS)).await) })?;
    let (said, code) = match grant {
        Ok(grant) => {
            let owner = grant.owner.as_deref();
            let claims: Value = owner.and_then(|owner| serde_json::from_slice(&owner.claims).ok()).unwrap_or_default();
            let (subscribe, publish) = authenticator.explain(owner);
            let said = json!({
                "valid": true, "identity": grant.identity(), "issuer": owner.and_then(|owner| owner.issuer.as_deref()),
                "expires": grant.expires, "claims": claims,
                "subscribe": explainer.patterns(&subscribe), "publish": explainer.patterns(&publish),
            });
            (said, ExitCode::SUCCESS)
        }
        Err(error) => (json!({ "valid": false, "reason": authenticator.reason(&token, &error) }), ExitCode::FAILURE),
    };
    print(&format!("{said:#}\n"))?;
    Ok(code)
}
