//! Why somebody sees or does not see a subject: the token's checks, the rules that grant, and the routes, each with its place.
//!
//! One value for one configuration: a process that runs and `check --explain` ask the same.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::settings::Settings;
use crate::auth::{AuthError, Authenticator, Check, Grant, GrantRule};
use crate::event::SourceName;
use crate::route::{Fate, Router, Rule};
use crate::settings::Places;
use crate::subject::{Pattern, Subject};

/// What a configuration says of who sees what.
pub(crate) struct Explainer {
    routes: Vec<Rule>,
    /// Each source, with the patterns that hold all it can produce.
    sources: Vec<(SourceName, Vec<Pattern>)>,
    places: Places,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Explained {
    /// Whether the subject is seen; `None`: that cannot be said, as keys are not loaded.
    pub(crate) seen: Option<bool>,
    /// The whole answer.
    pub(crate) told: Value,
}

impl Explainer {
    pub(crate) fn new(settings: &Settings, places: Places) -> Self {
        let sources = settings.sources.iter().map(|source| (source.name.clone(), source.adapter.reach())).collect();
        Self { routes: settings.routes.clone(), sources, places }
    }

    /// Why the bearer of a token, or without one anybody, sees a subject or does not. Keys that are on their way are waited for,
    /// up to `patience`.
    pub(crate) async fn explain(&self, auth: &Authenticator, token: Option<&str>, subject: &Subject, patience: Duration) -> Explained {
        let (grant, checks) = match token {
            Some(token) => {
                let (grant, checks) = auth.examine(token, patience).await;
                (Some(grant), checks)
            }
            None => (None, Vec::new()),
        };
        let granted = grant.as_ref().map(|grant| grant.as_ref().ok());
        let owner = granted.flatten().and_then(|grant| grant.owner.as_deref());
        let (rules, _) = auth.explain(owner);
        let covers = |rule: &GrantRule| rule.gives.iter().any(|pattern| pattern.matches(subject.as_str()));
        let covering: Vec<String> = rules.iter().filter(|rule| covers(rule)).map(|rule| self.named(&rule.name, &rule.key)).collect();
        let sources: Vec<(&SourceName, Router)> =
            self.sources.iter().map(|(name, reach)| (name, Router::new(&self.routes, name, reach, Arc::default()))).collect();
        let from: Vec<&str> = sources.iter().filter(|(_, router)| router.gives(subject)).map(|(name, _)| name.as_str()).collect();
        let refused = grant.as_ref().and_then(|grant| grant.as_ref().err());
        let reason = refused.map(|error| auth.reason(token.unwrap_or_default(), error)).unwrap_or_default();
        let (seen, why) = match refused {
            Some(AuthError::KeysNotLoaded | AuthError::RevocationsNotLoaded) => (None, reason.clone()),
            Some(_) => (Some(false), format!("the token is refused: {reason}")),
            None if covering.is_empty() => (Some(false), "no rule grants it".to_owned()),
            None if from.is_empty() => (Some(false), self.why_no_source(&sources, subject)),
            None => (Some(true), format!("granted by {}; from {}", covering.join(", "), from.join(", "))),
        };
        let told = json!({
            "subject": subject.as_str(),
            "seen": seen,
            "why": why,
            "token": grant.as_ref().map(|grant| self.token(grant, &checks, &reason)),
            "grants": if refused.is_none() { rules.iter().map(|rule| self.grant(rule, covers(rule))).collect() } else { Value::Null },
            "sources": sources.iter().map(|(name, router)| self.source(name, router, subject, from.contains(&name.as_str()))).collect::<Value>(),
        });
        Explained { seen, told }
    }

    /// The patterns that rules grant, each with the rule and its place.
    pub(crate) fn patterns(&self, rules: &[GrantRule]) -> Value {
        let one = |rule: &GrantRule| {
            let entry = |pattern: &Pattern| self.placed(json!({ "pattern": pattern.as_str(), "rule": rule.name }), &rule.key);
            rule.gives.iter().map(entry).collect::<Vec<_>>()
        };
        rules.iter().flat_map(one).collect()
    }

    fn token(&self, grant: &Result<Grant, AuthError>, checks: &[Check], reason: &str) -> Value {
        let check = |check: &Check| {
            let told = json!({ "check": check.name, "passed": check.passed, "found": check.found, "expected": check.expected });
            match &check.key {
                Some(key) => self.placed(with(told, "key", json!(key)), key),
                None => told,
            }
        };
        let checks: Value = checks.iter().map(check).collect();
        match grant {
            Ok(grant) => json!({ "valid": true, "identity": grant.identity(), "expires": grant.expires, "checks": checks }),
            Err(_) => json!({ "valid": false, "reason": reason, "checks": checks }),
        }
    }

    fn grant(&self, rule: &GrantRule, covers: bool) -> Value {
        let gives: Vec<&str> = rule.gives.iter().map(Pattern::as_str).collect();
        let told = json!({ "rule": rule.name, "says": rule.says, "gives": gives, "lacks": rule.lacks, "covers": covers });
        self.placed(told, &rule.key)
    }

    fn source(&self, name: &SourceName, router: &Router, subject: &Subject, gives: bool) -> Value {
        let route = |fate: &Fate| self.placed(json!({ "rule": fate.rule(), "does": does(fate) }), fate.rule());
        let routes: Value = router.fates(subject).iter().map(route).collect();
        json!({ "source": name.as_str(), "gives": gives, "routes": routes })
    }

    fn why_no_source(&self, sources: &[(&SourceName, Router)], subject: &Subject) -> String {
        let mut why = "no source gives it after routing".to_owned();
        for (name, router) in sources {
            for fate in router.fates(subject) {
                why.push_str(&format!("; of `{name}` {} {}", self.named(fate.rule(), fate.rule()), does(&fate)));
            }
        }
        why
    }

    /// A rule, and where it is written.
    fn named(&self, name: &str, key: &str) -> String {
        match self.places.at(key) {
            Some(at) => format!("{name} ({}{})", at.file, at.line.map(|line| format!(":{line}")).unwrap_or_default()),
            None => name.to_owned(),
        }
    }

    /// Adds where the value of a key path is written.
    fn placed(&self, told: Value, key: &str) -> Value {
        let at = self.places.at(key);
        let told = with(told, "file", at.map(|at| at.file.to_string()).into());
        with(told, "line", at.and_then(|at| at.line).into())
    }
}

fn with(told: Value, name: &str, value: Value) -> Value {
    let mut members = if let Value::Object(members) = told { members } else { Map::new() };
    members.insert(name.to_owned(), value);
    members.into()
}

fn does(fate: &Fate) -> String {
    match fate {
        Fate::Drops(_) => "drops it".to_owned(),
        Fate::Passes(_) => "passes it".to_owned(),
        Fate::Renames(_, subject) => format!("renames it to `{subject}`"),
        Fate::MayRename(_) => "may rename it, by a header of the message".to_owned(),
        Fate::Gives(_, matches) => format!("may give this name to messages of `{matches}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Timestamp;

    const CONFIG: &str = r#"
auth:
  jwt: { keys: [{ algorithms: [HS256], secret: "a secret of the tests, 32 bytes and more" }] }
  grants:
    subscribe:
      - "team.{team}.>"
      - "user.{sub}.>"
  anonymous:
    subscribe: ["public.>"]
sources:
  one: { nats: { servers: ["nats://127.0.0.1:1"], subjects: ["user.>", "raw.*", "public.>"] } }
routes:
  - { match: { subject: "user.*.secret" }, drop: true }
  - { match: { subject: "raw.*" }, subject: "user.{1}.raw" }
"#;

    fn loaded() -> (tempfile::TempDir, crate::app::Loaded) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("bridge.yaml");
        std::fs::write(&file, CONFIG).unwrap();
        let loaded = crate::app::load(&[file]).unwrap();
        (folder, loaded)
    }

    fn token(claims: Value) -> String {
        let secret = crate::settings::Secret::new("a secret of the tests, 32 bytes and more");
        crate::auth::mint(&secret, crate::auth::Algorithm::HS256, &claims, None).unwrap()
    }

    async fn ask(token: Option<&str>, subject: &str) -> (Option<bool>, Value) {
        let (_folder, loaded) = loaded();
        let explainer = Explainer::new(&loaded.settings, loaded.places);
        let auth = Authenticator::new(loaded.settings.auth, loaded.settings.token_bytes);
        let Explained { seen, told } = explainer.explain(&auth, token, &subject.parse().unwrap(), Duration::ZERO).await;
        assert_eq!(told["seen"], json!(seen));
        (seen, told)
    }

    #[tokio::test]
    async fn each_rule_is_told_with_its_place() {
        let ada = token(json!({ "sub": "ada", "exp": Timestamp::now().as_millis() / 1000 + 3600 }));
        let (seen, told) = ask(Some(&ada), "user.ada.x").await;
        assert_eq!(seen, Some(true), "{told:#}");
        let grants = told["grants"].as_array().unwrap();
        assert_eq!(grants[0]["rule"], "claim `subjects`");
        assert_eq!(
            (&grants[1]["rule"], &grants[1]["line"], &grants[1]["covers"]),
            (&json!("auth.grants.subscribe[0]"), &json!(6), &json!(false))
        );
        assert!(grants[1]["lacks"].as_str().unwrap().contains("`team`"), "{told:#}");
        assert_eq!((&grants[2]["gives"], &grants[2]["line"], &grants[2]["covers"]), (&json!(["user.ada.>"]), &json!(7), &json!(true)));
        assert!(grants[2]["file"].as_str().unwrap().ends_with("bridge.yaml"));
        assert_eq!((&grants[3]["rule"], &grants[3]["line"]), (&json!("auth.anonymous.subscribe[0]"), &json!(9)));
        assert!(told["why"].as_str().unwrap().contains("auth.grants.subscribe[1] (") && !told.to_string().contains(&ada));
        // By a route's name, and not by the broker's.
        let (seen, told) = ask(Some(&ada), "user.ada.raw").await;
        assert_eq!((seen, &told["sources"][0]["routes"][0]["rule"]), (Some(true), &json!("routes[1]")), "{told:#}");
        for (subject, why) in
            [("user.ada.secret", "drops it"), ("public.x", "granted by auth.anonymous.subscribe[0]"), ("raw.y", "no rule grants it")]
        {
            let (_, told) = ask(Some(&ada), subject).await;
            assert!(told["why"].as_str().unwrap().contains(why), "{told:#}");
        }
        let (seen, told) = ask(Some(&ada), "user.ada.secret").await;
        assert_eq!((seen, &told["sources"][0]["routes"][0]["line"]), (Some(false), &json!(13)), "{told:#}");
    }

    #[tokio::test]
    async fn a_refused_token_is_told_by_the_check_that_it_fails() {
        for (claims, check, reason) in [
            (json!({ "sub": "ada", "exp": 1 }), "time", "expired"),
            (json!({ "sub": "ada" }), "time", "`exp`"),
            (json!({ "sub": {}, "exp": 4_000_000_000_u64, "iat": 3_999_999_999_u64 }), "time", "max_lifetime"),
        ] {
            let (seen, told) = ask(Some(&token(claims)), "user.ada.x").await;
            assert_eq!(seen, Some(false));
            let failed: Vec<_> = told["token"]["checks"].as_array().unwrap().iter().filter(|check| check["passed"] == false).collect();
            assert_eq!((failed.len(), &failed[0]["check"]), (1, &json!(check)), "{told:#}");
            assert!(told["why"].as_str().unwrap().contains(reason), "{told:#}");
        }
        let mut forged = token(json!({ "sub": "ada", "exp": 4_000_000_000_u64 }));
        forged.replace_range(forged.len() - 4.., "AAAA");
        let (seen, told) = ask(Some(&forged), "user.ada.x").await;
        assert_eq!(
            (seen, &told["token"]["checks"][2]["passed"], &told["token"]["checks"][3]["passed"]),
            (Some(false), &json!(false), &Value::Null)
        );
        assert_eq!(told["grants"], Value::Null, "what a refused token would grant is not told");
        let (seen, told) = ask(Some("nonsense"), "public.x").await;
        assert_eq!((seen, &told["token"]["checks"][0]["passed"]), (Some(false), &json!(false)));
        let (seen, told) = ask(None, "public.x").await;
        assert_eq!((seen, &told["token"]), (Some(true), &Value::Null));
    }
}
