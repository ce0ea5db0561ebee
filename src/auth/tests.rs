use http::header::{AUTHORIZATION, COOKIE};
use serde_json::json;

use parking_lot::Mutex;

use super::jwks::{Place, Remote};
use super::settings::{Claims, Credential, Header, Issuer, Lists};
use super::template::Template;
use super::*;
use crate::settings::Secret;

mod attacks;
mod carriers;
mod grants;
mod issuers;
mod jwks;
mod signatures;

const SECRET: &[u8] = b"a secret of sixty-four bytes, which is what HS512 wants to have.";
const LEEWAY: u64 = 30;

const TOKEN_BYTES: usize = 8 << 10;

/// Where a key comes from.
enum KeyMaterial {
    Secret(Secret),
    Pem(String),
    Jwks(String),
    JwksUrl(String),
}

fn key(algorithms: &[Algorithm], id: Option<&str>, key: KeyMaterial) -> Credential {
    let name = id.map(str::to_owned);
    match key {
        KeyMaterial::Secret(secret) => {
            let verifying = keys::from_secret(&secret, id, algorithms).expect("a secret");
            Credential::Secret(Signer { id: name, algorithm: algorithms[0], secret }, verifying)
        }
        KeyMaterial::Pem(pem) => Credential::Public(keys::from_pem(&pem, id, algorithms).expect("a key")),
        KeyMaterial::Jwks(json) => Credential::Set(keys::from_set(&json, id, algorithms).expect("keys")),
        KeyMaterial::JwksUrl(url) => Credential::Remote(Remote::new(Place::Set(url.parse().expect("a URL")), name, algorithms.to_vec())),
    }
}

fn secret() -> Credential {
    key(&[Algorithm::HS256], None, KeyMaterial::Secret(Secret::new(SECRET)))
}

fn config(keys: Vec<Credential>) -> Settings {
    let claims = Claims { subscribe: "subjects".into(), publish: "publish".into() };
    let issuer = Issuer {
        path: "auth.jwt".into(),
        name: None,
        audiences: vec![],
        leeway: Duration::from_secs(LEEWAY),
        max_lifetime: Duration::from_secs(366 * 86_400),
        keys,
        claims,
        grants: Lists { subscribe: vec![], publish: vec![] },
    };
    Settings {
        revocations: None,
        issuers: vec![issuer],
        backend: None,
        carriers: Carriers { header: Header::Bearer, cookie: Some("brokercast".into()), query: Some("access_token".into()) },
        grants: Lists { subscribe: vec![], publish: vec![] },
        anonymous: Lists { subscribe: vec![], publish: vec![] },
        beyond_loopback: false,
        written: Default::default(),
    }
}

fn authenticator(keys: Vec<Credential>) -> Authenticator {
    Authenticator::new(config(keys), TOKEN_BYTES)
}

fn now() -> u64 {
    Timestamp::now().as_millis() / 1000
}

/// Claims that are good, with these beside or instead.
fn claims(more: Value) -> Value {
    let mut claims = json!({ "exp": now() + 3600, "sub": "alice", "subjects": ["a.>"] });
    let (Value::Object(claims_map), Value::Object(more)) = (&mut claims, more) else { panic!("objects") };
    claims_map.extend(more);
    claims
}

fn hs256(claims: &Value) -> String {
    mint(&Secret::new(SECRET), Algorithm::HS256, claims, None).expect("a token")
}

fn bearer(token: &str) -> HeaderMap {
    HeaderMap::from_iter([(AUTHORIZATION, format!("Bearer {token}").parse().expect("a header value"))])
}

fn keys_loaded(authenticator: &Authenticator) -> bool {
    remotes(authenticator).all(Remote::loaded)
}

fn remotes(authenticator: &Authenticator) -> impl Iterator<Item = &Remote> {
    authenticator.tokens.iter().flat_map(|tokens| &tokens.issuers).flat_map(super::issuer::Issuer::remotes)
}

fn ask(authenticator: &Authenticator, token: &str) -> Result<Grant, AuthError> {
    authenticator.find(&bearer(token), None, false, Timestamp::now())
}

fn patterns(list: &[Pattern]) -> Vec<&str> {
    list.iter().map(Pattern::as_str).collect()
}

#[test]
fn a_good_token_becomes_a_grant() {
    let expires = now() + 1000;
    let grant = ask(&authenticator(vec![secret()]), &hs256(&claims(json!({ "publish": "b.*", "exp": expires }))));
    let grant = grant.expect("a grant");
    assert_eq!((patterns(&grant.subscribe), patterns(&grant.publish)), (vec!["a.>"], vec!["b.*"]));
    assert_eq!(grant.identity().map(|i| &**i), Some("alice"));
    assert_eq!(grant.expires, Some(Timestamp::from_micros((expires + LEEWAY) * 1_000_000)));
    let may = |pattern: &str| grant.subscription(Wanted::These(vec![pattern.parse().expect("a pattern")])).is_ok();
    assert_eq!(
        [may("a.b"), may("a.*.c"), may("a.>"), may("a"), may("b.c"), may(">"), may("*.x")],
        [true, true, true, false, false, false, false]
    );
    let may = |subject: &str| grant.permits_publish(&subject.parse().expect("a subject"));
    assert_eq!([may("b.x"), may("b"), may("a.x"), may("b.x.y")], [true, false, false, false]);
}

#[test]
fn what_is_wanted_must_be_granted_as_a_whole() {
    let list = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("a pattern")).collect::<Vec<Pattern>>();
    let grant = |texts| Grant { subscribe: list(texts).into(), publish: Arc::default(), owner: None, expires: None };
    let some = grant(&["orders.eu.>", "public.*"]);
    assert_eq!(some.subscription(Wanted::These(list(&["orders.eu.*"]))), Ok(list(&["orders.eu.*"])));
    assert_eq!(some.subscription(Wanted::All), Ok(some.subscribe.to_vec()));
    let refused = some.subscription(Wanted::These(list(&["public.a", "orders.>"])));
    assert_eq!(refused, Err(NotGranted(Some("orders.>".parse().expect("a pattern")))));
    let none = grant(&[]);
    assert_eq!(none.subscription(Wanted::All), Err(NotGranted(None)));
    assert!(none.subscription(Wanted::These(list(&["a"]))).is_err());
}

#[test]
fn the_challenge_tells_no_more_than_the_status() {
    let text = |error: AuthError| error.challenge().map(|value| value.to_str().expect("ASCII").to_owned());
    assert_eq!(text(AuthError::Missing).as_deref(), Some(r#"Bearer realm="brokercast""#));
    let invalid = |code| Some(format!(r#"Bearer realm="brokercast", error="invalid_token", error_description="{code}""#));
    assert_eq!(text(AuthError::Invalid(Refused::Expired)), invalid("token_expired"));
    for why in [Refused::Signature, Refused::UnknownKey, Refused::NotYet, Refused::Audience, Refused::Lifetime] {
        assert_eq!(text(AuthError::Invalid(why)), invalid("token_invalid"));
        assert_eq!(AuthError::Invalid(why).code(), Some("token_invalid"));
    }
    assert_eq!(text(AuthError::Malformed("x")).as_deref(), Some(r#"Bearer realm="brokercast", error="invalid_request""#));
    assert_eq!(text(AuthError::KeysNotLoaded), None);
    assert_eq!(AuthError::Invalid(Refused::Expired).to_string(), AuthError::Invalid(Refused::Signature).to_string());
}

#[test]
fn equal_tokens_and_equal_grants_share_their_lists() {
    let authenticator = authenticator(vec![secret()]);
    let (one, other) = (hs256(&claims(json!({ "jti": "1" }))), hs256(&claims(json!({ "jti": "2" }))));
    let first = ask(&authenticator, &one).expect("a grant");
    let again = ask(&authenticator, &one).expect("a grant");
    let second = ask(&authenticator, &other).expect("a grant");
    assert!(Arc::ptr_eq(&first.subscribe, &again.subscribe) && Arc::ptr_eq(&first.subscribe, &second.subscribe));
    assert_eq!(first.owner.as_ref().map(Arc::as_ptr), again.owner.as_ref().map(Arc::as_ptr));
    assert_eq!(authenticator.tokens.as_ref().expect("tokens").cache.len(), 2);
}

#[test]
fn a_token_that_was_verified_before_still_expires() {
    let authenticator = authenticator(vec![secret()]);
    let expires = now() + 100;
    let headers = bearer(&hs256(&claims(json!({ "exp": expires }))));
    let at = |seconds: u64| authenticator.find(&headers, None, false, Timestamp::from_micros(seconds * 1_000_000));
    assert!(at(expires - 50).is_ok());
    assert!(at(expires + LEEWAY - 1).is_ok());
    assert_eq!(at(expires + LEEWAY).expect_err("expired"), AuthError::Invalid(Refused::Expired));
}

#[test]
fn the_memory_of_verified_tokens_is_bounded() {
    let cache = Cache::default();
    let grant = |i: u64| Grant {
        subscribe: [format!("u.{i}").parse().expect("a pattern")].into(),
        publish: [].into(),
        owner: None,
        expires: Some(Timestamp::from_micros(u64::MAX)),
    };
    let kept = cache.fingerprint("kept");
    for i in 0..50_000 {
        cache.insert(cache.fingerprint(&i.to_string()), grant(i), 0);
        if i == 0 {
            cache.insert(kept, grant(0), 0);
        }
        assert!(cache.get(kept, Timestamp::now()).is_some(), "what is used stays ({i})");
    }
    assert!(cache.len() <= 2 * 8192);
    assert!(cache.get(cache.fingerprint("1"), Timestamp::now()).is_none());
    assert!(cache.lists() <= 4 * 8192);
    let before = cache.epoch();
    cache.clear();
    assert!(cache.get(kept, Timestamp::now()).is_none());
    // What was verified with the keys of before is not taken in.
    cache.insert(kept, grant(0), before);
    assert!(cache.get(kept, Timestamp::now()).is_none());
}

#[test]
fn without_keys_no_token_is_good() {
    let open = Settings { issuers: vec![], anonymous: open(), ..config(vec![]) };
    let authenticator = Authenticator::new(open, TOKEN_BYTES);
    assert!(authenticator.find(&HeaderMap::new(), None, false, Timestamp::now()).is_ok());
    assert_eq!(ask(&authenticator, &hs256(&claims(json!({})))).expect_err("no keys"), AuthError::Invalid(Refused::NoKeys));
    assert!(keys_loaded(&authenticator));
}

fn open() -> Lists<Pattern> {
    Lists { subscribe: vec!["public.>".parse().expect("a pattern")], publish: vec![] }
}
