//! `token`: a token of the configured secret, for trying things out.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{Error, load, print};
use crate::auth::{self, Jwt, Signer};
use crate::event::Timestamp;
use crate::settings::value::parse_duration;
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
    let settings = load(files)?.settings;
    let jwt = settings.auth.jwt.ok_or_else(|| Error::new("the configuration has no `auth.jwt`, so there is no key to sign with"))?;
    let Signer { id, algorithm, secret } = signer(&jwt, options.key.as_deref())?;
    let claims = claims(&jwt, &options, Timestamp::now())?;
    let token = auth::mint(secret, *algorithm, &Value::Object(claims), id.as_deref());
    print(&format!("{}\n", token.map_err(|e| Error::with("no token can be made", e))?))?;
    Ok(ExitCode::SUCCESS)
}

/// The key to sign with: the one asked for, or the only one whose secret is here.
fn signer<'a>(jwt: &'a Jwt, id: Option<&str>) -> Result<&'a Signer, Error> {
    let all: Vec<&Signer> = jwt.signers().collect();
    let ids = || all.iter().filter_map(|signer| signer.id.as_deref()).collect::<Vec<_>>().join(", ");
    let wanted: Vec<_> = all.iter().filter(|signer| id.is_none() || signer.id.as_deref() == id).collect();
    match (wanted.as_slice(), id) {
        ([], None) => Err(Error::new("no key of `auth.jwt.keys` has a secret: a token can only be made with an HMAC secret")),
        ([], Some(_)) => Err(Error::new(format!("no key with a secret has this id (ids: {})", ids()))),
        // Without ids there is nothing to choose by; each is as good.
        ([_, _, ..], None) if !ids().is_empty() => Err(Error::new(format!("there are several keys: choose one by --key (ids: {})", ids()))),
        ([first, ..], _) => Ok(first),
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
            put(&mut claims, path, json!(list)).map_err(|()| Error::new(format!("a claim stands in the way of `{path}`")))?;
        }
    }
    Ok(claims)
}

/// Puts `value` at `path`, making the objects on the way.
fn put(claims: &mut Map<String, Value>, path: &str, value: Value) -> Result<(), ()> {
    let (way, last) = path.rsplit_once('.').map_or((None, path), |(way, last)| (Some(way), last));
    let mut at = claims;
    for step in way.into_iter().flat_map(|way| way.split('.')) {
        at = at.entry(step.to_owned()).or_insert_with(|| json!({})).as_object_mut().ok_or(())?;
    }
    if at.contains_key(last) {
        return Err(());
    }
    at.insert(last.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::tests::read_at;

    fn jwt(ids: &[Option<&str>]) -> Jwt {
        let key = |id: &Option<&str>| json!({ "algorithms": ["HS256"], "id": id, "secret": "0123456789abcdef0123456789abcdef" });
        let keys: Vec<Value> = ids.iter().map(key).collect();
        let auth = json!({ "jwt": { "issuer": "me", "keys": keys, "claims": { "subscribe": "mercure.subscribe" } } });
        read_at(&["auth"], &auth, |auth| auth::Settings::read(auth).jwt).unwrap()
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
        assert!(signer(&jwt(&[Some("a")]), None).is_ok());
        assert!(signer(&jwt(&[None, None]), None).is_ok());
        let several = jwt(&[Some("a"), Some("b")]);
        assert!(signer(&several, None).unwrap_err().to_string().contains("ids: a, b"));
        assert_eq!(signer(&several, Some("b")).unwrap().id.as_deref(), Some("b"));
        assert!(signer(&several, Some("c")).is_err());
    }
}
