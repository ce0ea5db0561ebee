//! `token`: a token of the configured secret, for trying things out.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{Error, load, print};
use crate::auth;
use crate::config::value::parse_duration;
use crate::config::{Algorithm, Jwt, KeyMaterial, KeySource, Secret};
use crate::event::Timestamp;
use crate::subject::Pattern;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Who it is for: the claim `sub`
    #[arg(long, visible_alias = "sub", value_name = "NAME")]
    subject: Option<String>,
    /// A pattern that its bearer may subscribe to; repeatable
    #[arg(long, value_name = "PATTERN")]
    subscribe: Vec<Pattern>,
    /// A pattern that its bearer may publish to; repeatable
    #[arg(long, value_name = "PATTERN")]
    publish: Vec<Pattern>,
    /// How long it is good
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
    expires: Duration,
    /// Another claim, its value as JSON or else as a text: tenant=acme, roles=["a"]; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = claim)]
    claim: Vec<(String, Value)>,
    /// The `id` of the key to sign with, where there are several
    #[arg(long, value_name = "ID")]
    key: Option<String>,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).filter(|d| !d.is_zero()).ok_or_else(|| "must be a duration such as 15m, 1h or 30d".to_owned())
}

fn claim(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("must be NAME=VALUE")?;
    Ok((name.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| json!(value))))
}

pub(super) fn run(files: &[PathBuf], options: Options) -> Result<ExitCode, Error> {
    let config = load(files)?.config;
    let jwt = config.auth.jwt.ok_or_else(|| Error::new("the configuration has no `auth.jwt`, so there is no key to sign with"))?;
    let (key, secret, algorithm) = signer(&jwt, options.key.as_deref())?;
    let claims = claims(&jwt, &options, Timestamp::now())?;
    let token = auth::mint(secret, algorithm, &Value::Object(claims), key.id.as_deref());
    print(&format!("{}\n", token.map_err(|e| Error::with("no token can be made", e))?))?;
    Ok(ExitCode::SUCCESS)
}

/// The key to sign with: the one asked for, or the only one whose secret is here.
fn signer<'a>(jwt: &'a Jwt, id: Option<&str>) -> Result<(&'a KeySource, &'a Secret, Algorithm), Error> {
    let secret = |key: &'a KeySource| match &key.key {
        KeyMaterial::Secret(secret) => Some((key, secret, *key.algorithms.first()?)),
        _ => None,
    };
    let all: Vec<_> = jwt.keys.iter().filter_map(secret).collect();
    let ids = || all.iter().filter_map(|(key, ..)| key.id.as_deref()).collect::<Vec<_>>().join(", ");
    let wanted: Vec<_> = all.iter().filter(|(key, ..)| id.is_none() || key.id.as_deref() == id).collect();
    match (wanted.as_slice(), id) {
        ([one], _) => Ok(**one),
        ([], None) => Err(Error::new("no key of `auth.jwt.keys` has a secret: a token can only be made with an HMAC secret")),
        ([], Some(_)) => Err(Error::new(format!("no key with a secret has this id (ids: {})", ids()))),
        ([first, ..], Some(_)) => Ok(**first),
        ([first, ..], None) => {
            // Without ids nobody could choose; each is as good.
            if ids().is_empty() {
                Ok(**first)
            } else {
                Err(Error::new(format!("there are several keys: choose one by --key (ids: {})", ids())))
            }
        }
    }
}

fn claims(jwt: &Jwt, options: &Options, now: Timestamp) -> Result<Map<String, Value>, Error> {
    let seconds = now.as_millis() / 1000;
    let mut claims = Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            claims.insert(name.to_owned(), value);
        }
    };
    set("iss", jwt.issuer.as_deref().map(Value::from));
    set("aud", jwt.audience.as_deref().map(Value::from));
    set("sub", options.subject.as_deref().map(Value::from));
    set("iat", Some(seconds.into()));
    set("exp", Some((seconds + options.expires.as_secs().max(1)).into()));
    for (name, value) in &options.claim {
        claims.insert(name.clone(), value.clone());
    }
    for (path, patterns) in [(&jwt.claims.subscribe, &options.subscribe), (&jwt.claims.publish, &options.publish)] {
        if !patterns.is_empty() {
            let list = patterns.iter().map(Pattern::as_str).collect::<Vec<_>>();
            put(&mut claims, path, json!(list)).map_err(|()| Error::new(format!("a claim stands in the way of `{}`", path.join("."))))?;
        }
    }
    Ok(claims)
}

/// Puts `value` at `path`, making the objects on the way.
fn put(claims: &mut Map<String, Value>, path: &[String], value: Value) -> Result<(), ()> {
    let Some((last, way)) = path.split_last() else { return Err(()) };
    let mut at = claims;
    for step in way {
        at = at.entry(step.clone()).or_insert_with(|| json!({})).as_object_mut().ok_or(())?;
    }
    if at.contains_key(last) {
        return Err(());
    }
    at.insert(last.clone(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Claims;

    fn jwt(ids: &[Option<&str>]) -> Jwt {
        let key = |id: &Option<&str>| KeySource {
            algorithms: vec![Algorithm::HS256],
            id: id.map(str::to_owned),
            key: KeyMaterial::Secret(Secret::new(*b"0123456789abcdef0123456789abcdef")),
        };
        Jwt {
            issuer: Some("me".into()),
            audience: None,
            leeway: Duration::ZERO,
            keys: ids.iter().map(key).collect(),
            claims: Claims { subscribe: vec!["mercure".into(), "subscribe".into()], publish: vec!["publish".into()] },
        }
    }

    fn options(claim: &[&str]) -> Options {
        Options {
            subject: Some("alice".into()),
            subscribe: vec!["a.>".parse().unwrap(), "b".parse().unwrap()],
            publish: vec![],
            expires: Duration::from_secs(60),
            claim: claim.iter().map(|c| super::claim(c).unwrap()).collect(),
            key: None,
        }
    }

    #[test]
    fn claims_stand_where_the_configuration_looks_for_them() {
        let made = claims(&jwt(&[None]), &options(&["tenant=acme", "roles=[1]", "x="]), Timestamp::from_micros(5_000_000)).unwrap();
        let expected = json!({
            "iss": "me", "sub": "alice", "iat": 5, "exp": 65, "tenant": "acme", "roles": [1], "x": "",
            "mercure": { "subscribe": ["a.>", "b"] },
        });
        assert_eq!(Value::Object(made), expected);
    }

    #[test]
    fn a_claim_that_is_no_object_is_in_the_way() {
        let made = claims(&jwt(&[None]), &options(&["mercure=1"]), Timestamp::default());
        assert!(made.unwrap_err().to_string().contains("`mercure.subscribe`"));
        let beside = claims(&jwt(&[None]), &options(&[r#"mercure={"payload":1}"#]), Timestamp::default()).unwrap();
        assert_eq!(beside["mercure"], json!({ "payload": 1, "subscribe": ["a.>", "b"] }));
    }

    #[test]
    fn several_keys_need_a_choice() {
        assert!(signer(&jwt(&[]), None).is_err());
        assert!(signer(&jwt(&[Some("a")]), None).is_ok());
        assert!(signer(&jwt(&[None, None]), None).is_ok());
        let several = jwt(&[Some("a"), Some("b")]);
        assert!(signer(&several, None).unwrap_err().to_string().contains("ids: a, b"));
        assert_eq!(signer(&several, Some("b")).unwrap().0.id.as_deref(), Some("b"));
        assert!(signer(&several, Some("c")).is_err());
    }
}
