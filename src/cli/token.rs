//! `token`: a token of the configured secret, for trying things out.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{Error, block_on, load, print};
use crate::auth::{self, AuthError, Authenticator, IssuerSettings as Issuer, Refused, Signer};
use crate::event::Timestamp;
use crate::settings::value::{parse_duration, show_duration};
use crate::subject::Pattern;

mod inspect;

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
    /// The `issuer` whose key is used, where there are several
    #[arg(long, value_name = "ISSUER")]
    issuer: Option<String>,
    /// Say instead what this token grants, or why it is refused; `-` reads it from standard input
    #[arg(long, value_name = "TOKEN", conflicts_with_all = ["subject", "subscribe", "publish", "claim", "key", "issuer"])]
    inspect: Option<String>,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).filter(|d| !d.is_zero()).ok_or_else(|| "must be a duration such as 15m, 1h or 30d".to_owned())
}

fn claim(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("must be NAME=VALUE")?;
    Ok((name.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| json!(value))))
}

pub(super) fn run(files: &[PathBuf], options: Options) -> Result<ExitCode, Error> {
    let loaded = load(files)?;
    if let Some(token) = &options.inspect {
        return inspect::run(loaded, token);
    }
    let settings = loaded.settings;
    let (issuer, Signer { id, algorithm, secret }) = signer(&settings.auth.issuers, options.issuer.as_deref(), options.key.as_deref())?;
    let claims = claims(issuer, &options, Timestamp::now())?;
    let token = auth::mint(secret, *algorithm, &Value::Object(claims), id.as_deref());
    let token = token.map_err(|e| Error::with("no token can be made", e))?;
    let longest = format!("it is good for longer than `{}.max_lifetime` ({})", issuer.path, show_duration(issuer.max_lifetime));
    let authenticator = Authenticator::new(settings.auth, settings.token_bytes);
    let (grant, _) = block_on(async { Ok(authenticator.examine(&token, Duration::ZERO).await) })?;
    match grant {
        // One for later.
        Ok(_) | Err(AuthError::Invalid(Refused::NotYet) | AuthError::KeysNotLoaded) => {}
        Err(AuthError::Invalid(Refused::Lifetime)) => return Err(Error::new(format!("the token would be refused: {longest}"))),
        Err(error) => return Err(Error::new(format!("the token would be refused: {}", authenticator.reason(&token, &error)))),
    }
    print(&format!("{token}\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// The key to sign with: the one asked for, or the only one whose secret is here.
fn signer<'a>(issuers: &'a [Issuer], issuer: Option<&str>, id: Option<&str>) -> Result<(&'a Issuer, &'a Signer), Error> {
    let named = |of: &&Issuer| issuer.is_none() || of.name.as_deref() == issuer;
    let all: Vec<(&Issuer, &Signer)> = issuers.iter().filter(named).flat_map(|of| of.signers().map(move |signer| (of, signer))).collect();
    let ids = || all.iter().filter_map(|(_, signer)| signer.id.as_deref()).collect::<Vec<_>>().join(", ");
    let wanted: Vec<_> = all.iter().filter(|(_, signer)| id.is_none() || signer.id.as_deref() == id).collect();
    let names = || issuers.iter().filter_map(|of| of.name.as_deref()).collect::<Vec<_>>().join(", ");
    let Some(first) = wanted.first() else {
        return Err(match id {
            _ if issuer.is_some() && !issuers.iter().any(|of| named(&of)) => {
                Error::new(format!("no issuer has this name (issuers: {})", names()))
            }
            None => Error::new("no key of `auth.jwt` or `auth.issuers` has a secret: a token can only be made with an HMAC secret"),
            Some(_) => Error::new(format!("no key with a secret has this id (ids: {})", ids())),
        });
    };
    if wanted.iter().any(|(of, _)| of.path != first.0.path) {
        return Err(Error::new(format!("there are several issuers: choose one by --issuer (issuers: {})", names())));
    }
    // Without ids there is nothing to choose by; each is as good.
    if id.is_none() && wanted.len() > 1 && !ids().is_empty() {
        return Err(Error::new(format!("there are several keys: choose one by --key (ids: {})", ids())));
    }
    Ok(**first)
}

fn claims(issuer: &Issuer, options: &Options, now: Timestamp) -> Result<Map<String, Value>, Error> {
    let seconds = now.as_millis() / 1000;
    let mut claims = Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            claims.insert(name.to_owned(), value);
        }
    };
    set("iss", issuer.name.as_deref().map(Value::from));
    set("aud", issuer.audiences.first().map(|audience| audience.as_str().into()));
    set("sub", options.subject.as_deref().map(Value::from));
    set("iat", Some(seconds.into()));
    set("exp", Some((seconds + options.expires.as_secs().max(1)).into()));
    let mut given: Vec<&str> = options.subject.iter().map(|_| "sub").collect();
    for (name, value) in &options.claim {
        if given.contains(&name.as_str()) {
            return Err(Error::new(format!("the claim `{name}` is given twice")));
        }
        given.push(name);
        claims.insert(name.clone(), value.clone());
    }
    for (path, patterns) in [(&issuer.claims.subscribe, &options.subscribe), (&issuer.claims.publish, &options.publish)] {
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

    fn jwt(ids: &[Option<&str>]) -> Issuer {
        let key = |id: &Option<&str>| json!({ "algorithms": ["HS256"], "id": id, "secret": "0123456789abcdef0123456789abcdef" });
        let keys: Vec<Value> = ids.iter().map(key).collect();
        let auth = json!({ "jwt": { "issuer": "me", "keys": keys, "claims": { "subscribe": "mercure.subscribe" } } });
        read_at(&["auth"], &auth, |auth| auth::Settings::read(auth).issuers.pop()).unwrap()
    }

    fn options(claim: &[&str]) -> Options {
        Options {
            subject: Some("alice".into()),
            subscribe: vec!["a.>".parse().unwrap(), "b".parse().unwrap()],
            publish: vec![],
            expires: Duration::from_secs(60),
            claim: claim.iter().map(|c| super::claim(c).unwrap()).collect(),
            key: None,
            issuer: None,
            inspect: None,
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
    fn a_claim_is_given_once() {
        let twice = |given: &[&str]| claims(&jwt(&[None]), &options(given), Timestamp::default()).unwrap_err().to_string();
        assert!(twice(&["sub=bob"]).contains("`sub` is given twice"));
        assert!(twice(&["tenant=a", "tenant=b"]).contains("`tenant` is given twice"));
        let other = claims(&jwt(&[None]), &options(&["iss=other"]), Timestamp::default()).unwrap();
        assert_eq!(other["iss"], "other");
    }

    #[test]
    fn several_keys_need_a_choice() {
        let signer = |issuers: &[Issuer], id| signer(issuers, None, id).map(|(_, signer)| signer.id.clone());
        assert!(signer(&[jwt(&[Some("a")])], None).is_ok());
        assert!(signer(&[jwt(&[None, None])], None).is_ok());
        let several = [jwt(&[Some("a"), Some("b")])];
        assert!(signer(&several, None).unwrap_err().to_string().contains("ids: a, b"));
        assert_eq!(signer(&several, Some("b")).unwrap().as_deref(), Some("b"));
        assert!(signer(&several, Some("c")).is_err());
    }

    #[test]
    fn several_issuers_need_a_choice() {
        let named = |name: &str| {
            let mut issuer = jwt(&[Some("k")]);
            (issuer.name, issuer.path) = (Some(name.to_owned()), name.to_owned());
            issuer
        };
        let issuers = [named("one"), named("two")];
        assert!(signer(&issuers, None, None).unwrap_err().to_string().contains("issuers: one, two"));
        assert!(signer(&issuers, None, Some("k")).is_err(), "both have such a key");
        assert_eq!(signer(&issuers, Some("two"), None).unwrap().0.path, "two");
        assert!(signer(&issuers, Some("three"), None).unwrap_err().to_string().contains("no issuer has this name (issuers: one, two)"));
    }
}
