//! Why a token is good or refused, and which rule grants what: for people who ask.
//!
//! Decides nothing: it reports the results of verifying and granting. Logs nothing and shows no token.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::token::{Parsed, numeric_date};
use super::{AuthError, Authenticator, Grant, Owner, Refused};
use crate::subject::Pattern;

/// A rule that may grant something, and what it grants to one token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GrantRule {
    /// How the rule is named: its key path, or the claim.
    pub name: String,
    /// The key path at which it is configured.
    pub key: String,
    /// What is written there: a template, a pattern or a claim's path.
    pub says: String,
    /// The patterns that it gives.
    pub gives: Vec<Pattern>,
    /// Why it gives nothing, or less than it could.
    pub lacks: Option<String>,
}

/// One of the checks of a token, in the order in which they are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Check {
    /// What is checked.
    pub name: &'static str,
    /// The key path that it depends on.
    pub key: Option<String>,
    /// What the token says; null where it says nothing about it, or cannot be read.
    pub found: Value,
    /// What is configured; null where nothing is.
    pub expected: Value,
    /// What came of it; `None`: an earlier check failed.
    pub passed: Option<bool>,
}

/// The checks of a token, in their order.
const CHECKS: [&str; 7] = ["form", "issuer", "signature", "audience", "time", "subject", "revocation"];

/// The place of the check that refuses for this reason.
fn place(why: Refused) -> usize {
    match why {
        Refused::Malformed | Refused::Algorithm | Refused::Type | Refused::Critical | Refused::TwoCookies => 0,
        Refused::NoKeys | Refused::Backend | Refused::Issuer | Refused::ClaimMissing("iss") => 1,
        Refused::UnknownKey | Refused::Signature => 2,
        Refused::Audience | Refused::ClaimMissing("aud") => 3,
        Refused::Expired | Refused::NotYet | Refused::Lifetime | Refused::ClaimMissing(_) => 4,
        Refused::ClaimType("sub" | "jti" | "sid") => 5,
        Refused::ClaimType(_) => 4,
        Refused::Revoked => 6,
    }
}

impl Authenticator {
    /// The rules that may grant something to a token's owner, or without one to anybody: for subscribing, and for publishing.
    #[must_use]
    pub(crate) fn explain(&self, owner: Option<&Owner>) -> (Vec<GrantRule>, Vec<GrantRule>) {
        let of_token = |owner: &Owner| {
            let claims = serde_json::from_slice(&owner.claims).ok()?;
            Some(self.tokens.as_ref()?.issuer_of(&claims).ok()?.explain(&claims))
        };
        let of_backend = |owner: &Owner| {
            let answer = self.backend.as_ref()?.counts(owner.credential.as_ref()?)?;
            let rule = |patterns: &Vec<Pattern>| {
                let key = "auth.backend".to_owned();
                vec![GrantRule {
                    name: key.clone(),
                    key,
                    says: "what the application answers".to_owned(),
                    gives: patterns.clone(),
                    lacks: None,
                }]
            };
            Some((rule(&answer.own.subscribe), rule(&answer.own.publish)))
        };
        let (mut subscribe, mut publish) = owner.and_then(|owner| of_backend(owner).or_else(|| of_token(owner))).unwrap_or_default();
        for (kind, rules, open) in [("subscribe", &mut subscribe, &self.open.subscribe), ("publish", &mut publish, &self.open.publish)] {
            rules.extend(open.iter().enumerate().map(|(n, pattern)| {
                let key = format!("auth.anonymous.{kind}[{n}]");
                GrantRule { name: key.clone(), key, says: pattern.to_string(), gives: vec![pattern.clone()], lacks: None }
            }));
        }
        (subscribe, publish)
    }

    /// What a token grants, wherever it was found, and what each check of it came to. Keys that are on their way are waited for,
    /// up to `patience`.
    pub(crate) async fn examine(&self, token: &str, patience: Duration) -> (Result<Grant, AuthError>, Vec<Check>) {
        let grant = self.patiently(patience, || self.grant_of(token, crate::event::Timestamp::now())).await;
        let failed = match &grant {
            Ok(_) => CHECKS.len(),
            Err(AuthError::Invalid(why)) => place(*why),
            Err(AuthError::KeysNotLoaded) => 2,
            Err(AuthError::RevocationsNotLoaded) => 6,
            Err(AuthError::Missing | AuthError::Malformed(_) | AuthError::BackendUnavailable) => 0,
        };
        let parsed = Parsed::new(token).ok();
        let checks = CHECKS.iter().enumerate().map(|(at, name)| {
            let passed = if at > failed { None } else { Some(at < failed) };
            self.check(name, parsed.as_ref(), passed)
        });
        (grant, checks.collect())
    }

    /// Why a token is refused, in words for operators. Of key servers, those of the issuer that it names are told.
    pub(crate) fn reason(&self, token: &str, refused: &AuthError) -> String {
        match refused {
            AuthError::Invalid(why) => why.to_string(),
            AuthError::KeysNotLoaded => {
                let parsed = Parsed::new(token).ok();
                let issuer = parsed.as_ref().and_then(|token| self.tokens.as_ref()?.issuer_of(token.claims()).ok());
                let remotes = issuer.into_iter().flat_map(|issuer| issuer.remotes());
                let failures = remotes.filter_map(|remote| Some(format!("; {}: {}", remote.shown(), remote.failure()?)));
                failures.fold(refused.to_string(), |text, failure| text + &failure)
            }
            _ => refused.to_string(),
        }
    }

    fn check(&self, name: &'static str, token: Option<&Parsed<'_>>, passed: Option<bool>) -> Check {
        let claims = token.map(Parsed::claims);
        let claim = |name| claims.and_then(|claims: &Map<_, _>| claims.get(name)).cloned().unwrap_or_default();
        let issuers = || self.tokens.iter().flat_map(|tokens| &tokens.issuers);
        let issuer = claims.and_then(|claims| self.tokens.as_ref()?.issuer_of(claims).ok());
        let below = |name: &str| Some(format!("{}.{name}", issuer?.path()));
        let (key, found, expected) = match name {
            "form" => (None, Value::Null, Value::Null),
            "issuer" => {
                (issuer.map(|issuer| issuer.path().to_owned()), claim("iss"), issuers().map(|issuer| json!(issuer.name())).collect())
            }
            "signature" => {
                let found = token.map(|token| json!({ "alg": format!("{:?}", token.algorithm), "kid": token.id }));
                (below("keys"), found.unwrap_or_default(), issuer.map(|issuer| issuer.key_ids().into_iter().collect()).unwrap_or_default())
            }
            "audience" => (below("audience"), claim("aud"), issuer.map(|issuer| json!(issuer.rules().audiences)).unwrap_or_default()),
            "time" => {
                let time = |name| Some(numeric_date(claims?, name).ok()??.to_string());
                let found = json!({ "exp": time("exp"), "nbf": time("nbf"), "iat": time("iat") });
                (below("max_lifetime"), found, Value::Null)
            }
            "subject" => (None, claim("sub"), Value::Null),
            _ => (None, Value::Null, Value::Null),
        };
        Check { name, key, found, expected, passed }
    }
}
