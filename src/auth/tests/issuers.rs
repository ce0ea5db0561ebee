//! Tokens as various issuers make them.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};

use super::jwks::Server;
use super::signatures::{P256, RSA, jwk, sign};
use super::*;
use crate::settings::tests::read_at;

const OTHER: &[u8] = b"another secret, of the same length or so";

fn named(name: Option<&str>, secret: &[u8]) -> Issuer {
    let key = key(&[Algorithm::HS256], None, KeyMaterial::Secret(Secret::new(secret)));
    Issuer { name: name.map(str::to_owned), ..config(vec![key]).issuers.remove(0) }
}

fn of(issuers: Vec<Issuer>) -> Authenticator {
    Authenticator::new(Settings { issuers, ..config(vec![]) }, TOKEN_BYTES)
}

fn signed(secret: &[u8], more: Value) -> String {
    mint(&Secret::new(secret), Algorithm::HS256, &claims(more), None).expect("a token")
}

fn why(authenticator: &Authenticator, token: &str) -> Option<Refused> {
    match ask(authenticator, token) {
        Ok(_) => None,
        Err(AuthError::Invalid(why)) => Some(why),
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn a_token_is_checked_by_the_issuer_that_it_names_with_that_ones_keys_only() {
    let two = of(vec![named(Some("one"), SECRET), named(Some("two"), OTHER)]);
    assert_eq!(why(&two, &signed(SECRET, json!({ "iss": "one" }))), None);
    assert_eq!(why(&two, &signed(OTHER, json!({ "iss": "two" }))), None);
    assert_eq!(why(&two, &signed(OTHER, json!({ "iss": "one" }))), Some(Refused::Signature));
    assert_eq!(why(&two, &signed(SECRET, json!({ "iss": "two" }))), Some(Refused::Signature));
    for (iss, expected) in [(json!("one/"), Refused::Issuer), (json!(["one"]), Refused::Issuer), (json!(null), Refused::Issuer)] {
        assert_eq!(why(&two, &signed(SECRET, json!({ "iss": iss }))), Some(expected));
    }
    assert_eq!(why(&two, &signed(SECRET, json!({}))), Some(Refused::ClaimMissing("iss")));
    let rest = of(vec![named(Some("one"), SECRET), named(None, OTHER)]);
    assert_eq!(why(&rest, &signed(OTHER, json!({}))), None);
    assert_eq!(why(&rest, &signed(SECRET, json!({}))), Some(Refused::Signature));
    assert_eq!(why(&rest, &signed(OTHER, json!({ "iss": "three" }))), Some(Refused::Issuer));
    // The only one, and without a name: as it always was.
    assert_eq!(why(&of(vec![named(None, SECRET)]), &signed(SECRET, json!({ "iss": "three" }))), None);
}

#[test]
fn an_issuers_tokens_grant_what_its_own_claims_and_templates_say() {
    let mut one = named(Some("one"), SECRET);
    one.grants.subscribe = vec!["one.{sub}".parse().expect("a template")];
    let mut two = named(Some("two"), SECRET);
    two.claims.subscribe = "scope".into();
    let all = Lists { subscribe: vec!["all.{sub}".parse().expect("a template")], publish: vec![] };
    let both = Authenticator::new(Settings { issuers: vec![one, two], grants: all, ..config(vec![]) }, TOKEN_BYTES);
    let granted = |more| patterns(&ask(&both, &signed(SECRET, more)).expect("a grant").subscribe).join(" ");
    assert_eq!(granted(json!({ "iss": "one", "scope": "x" })), "a.> all.alice one.alice");
    assert_eq!(granted(json!({ "iss": "two", "scope": "orders.eu.>  orders.us.> " })), "all.alice orders.eu.> orders.us.>");
}

#[test]
fn one_of_several_audiences_is_enough() {
    let several = of(vec![Issuer { audiences: vec!["one".into(), "two".into()], ..named(None, SECRET) }]);
    for aud in [json!("one"), json!("two"), json!(["three", "two"])] {
        assert_eq!(why(&several, &signed(SECRET, json!({ "aud": aud }))), None, "{aud}");
    }
    for aud in [json!("three"), json!([]), json!("one two"), json!(null), json!({ "one": 1 })] {
        assert_eq!(why(&several, &signed(SECRET, json!({ "aud": aud }))), Some(Refused::Audience), "{aud}");
    }
    assert_eq!(why(&several, &signed(SECRET, json!({}))), Some(Refused::ClaimMissing("aud")));
}

#[test]
fn a_token_is_expired_only_where_it_would_else_be_good() {
    let one = of(vec![Issuer { audiences: vec!["us".into()], ..named(Some("one"), SECRET) }]);
    let past = now() - 1000;
    let good = json!({ "iss": "one", "aud": "us", "exp": past });
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        claims
    };
    assert_eq!(why(&one, &signed(SECRET, good.clone())), Some(Refused::Expired));
    assert_eq!(why(&one, &signed(OTHER, good.clone())), Some(Refused::Signature));
    assert_eq!(why(&one, &signed(SECRET, with("iss", json!("x")))), Some(Refused::Issuer));
    assert_eq!(why(&one, &signed(SECRET, with("aud", json!("x")))), Some(Refused::Audience));
}

#[test]
fn a_token_that_is_good_for_too_long_is_refused() {
    let short = of(vec![Issuer { max_lifetime: Duration::from_secs(3600), ..named(None, SECRET) }]);
    let at = |more| why(&short, &signed(SECRET, more));
    assert_eq!(at(json!({ "exp": now() + 3590 })), None);
    assert_eq!(at(json!({ "exp": now() + 3700 })), Some(Refused::Lifetime));
    assert_eq!(at(json!({ "exp": now() + 1800, "iat": now() - 1800 })), None);
    assert_eq!(at(json!({ "exp": now() + 1800, "iat": now() - 1810 })), Some(Refused::Lifetime));
    assert_eq!(at(json!({ "exp": now() + 100, "iat": "x" })), Some(Refused::ClaimType("iat")));
    // Clocks differ.
    assert_eq!(at(json!({ "exp": now() + 3610, "iat": now() + 10 })), None);
    let usual = of(vec![named(None, SECRET)]);
    for millis in [json!({ "exp": (now() + 600) * 1000 }), json!({ "exp": (now() + 600) * 1000, "iat": now() * 1000 })] {
        assert_eq!(why(&usual, &signed(SECRET, millis)), Some(Refused::Lifetime));
    }
}

#[test]
fn a_padded_token_is_taken_as_it_was_signed() {
    let authenticator = authenticator(vec![secret()]);
    let text = claims(json!({})).to_string();
    for spaces in 0..3 {
        let payload = format!("{text}{}", " ".repeat(spaces));
        let message = format!("{}.{}", URL_SAFE.encode(r#"{"alg":"HS256"} "#), URL_SAFE.encode(payload));
        let key = jsonwebtoken::EncodingKey::from_secret(SECRET);
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, jsonwebtoken::Algorithm::HS256).expect("a signature");
        assert!(message.contains('='));
        for token in [format!("{message}.{signature}"), format!("{message}.{signature}=")] {
            assert_eq!(why(&authenticator, &token), None, "{token}");
        }
        // What was not signed so is another text.
        assert_eq!(why(&authenticator, &format!("{}.{signature}", message.replace('=', ""))), Some(Refused::Signature));
    }
}

/// The problems with an `auth.jwt` of this key.
fn problems(key: Value) -> Vec<String> {
    let auth = json!({ "jwt": { "keys": [key] } });
    read_at(&["auth"], &auth, |auth| Some(Settings::read(auth))).err().unwrap_or_default()
}

fn read(auth: &Value) -> Settings {
    read_at(&["auth"], auth, |auth| Some(Settings::read(auth))).unwrap_or_else(|e| panic!("{auth}: {e:?}"))
}

#[test]
fn a_secret_may_be_encoded() {
    let hex: String = SECRET.iter().map(|byte| format!("{byte:02x}")).collect();
    let bytes: Vec<u8> = (190..=255).collect();
    for (encoding, written, secret) in [
        ("text", String::from_utf8(SECRET.to_vec()).expect("ASCII"), SECRET),
        ("base64", STANDARD.encode(SECRET), SECRET),
        ("base64", STANDARD.encode(&bytes).trim_end_matches('=').to_owned(), &bytes),
        ("base64", STANDARD.encode(&bytes).replacen('w', "w\n", 1), &bytes),
        ("base64url", URL_SAFE.encode(&bytes), &bytes),
        ("base64url", URL_SAFE_NO_PAD.encode(&bytes), &bytes),
        ("hex", hex.clone(), SECRET),
        ("hex", hex.to_uppercase(), SECRET),
    ] {
        let key = json!({ "algorithms": ["HS256"], "secret": format!("{written}"), "secret_encoding": encoding });
        let authenticator = Authenticator::new(read(&json!({ "jwt": { "keys": [key] } })), TOKEN_BYTES);
        assert_eq!(why(&authenticator, &signed(secret, json!({}))), None, "{encoding} {written}");
    }
    for (encoding, written) in
        [("base64", "-".repeat(44)), ("base64url", "+".repeat(44)), ("hex", hex[1..].to_owned()), ("hex", "x".repeat(64))]
    {
        let found = problems(json!({ "algorithms": ["HS256"], "secret": written, "secret_encoding": encoding }));
        assert!(found.len() == 1 && found[0].contains(&format!(".secret: must be {encoding}, as")), "{found:?}");
    }
    // What counts is the length of what is meant.
    let found = problems(json!({ "algorithms": ["HS256"], "secret": "00".repeat(20), "secret_encoding": "hex" }));
    assert!(found[0].contains("must hold at least 32 bytes"), "{found:?}");
}

#[test]
fn a_public_key_is_no_secret() {
    for pem in [&RSA.public_pem, &P256.certificate, &format!("\n {}", P256.private_pem)] {
        for (encoding, written) in [("text", pem.clone()), ("base64", STANDARD.encode(pem))] {
            let found = problems(json!({ "algorithms": ["HS256"], "secret": written, "secret_encoding": encoding }));
            assert!(found.len() == 1 && found[0].contains(".secret: must not be a PEM file"), "{found:?}");
        }
    }
}

#[test]
fn a_pem_may_have_its_line_breaks_as_two_characters() {
    for pem in [&RSA.public_pem, &RSA.certificate] {
        for written in [pem.replace('\n', "\\n"), pem.replace('\n', "\\r\\n"), pem.replace('\n', "\r\n")] {
            let auth = json!({ "jwt": { "keys": [{ "algorithms": ["RS256"], "public_key": written }] } });
            let authenticator = Authenticator::new(read(&auth), TOKEN_BYTES);
            assert_eq!(why(&authenticator, &sign(&RSA, Algorithm::RS256, None, &claims(json!({})))), None);
        }
    }
}

#[test]
fn issuers_are_read_beside_jwt_and_must_differ() {
    let key = json!({ "algorithms": ["HS256"], "secret": "0123456789abcdef0123456789abcdef" });
    let entry = |issuer: Value, audience: Value| json!({ "issuer": issuer, "audience": audience, "keys": [key] });
    let auth = json!({ "jwt": entry(json!("one"), json!(["a", "b"])), "issuers": [entry(json!("two"), json!("c")), { "keys": [key] }] });
    let settings = read(&auth);
    let shown: Vec<_> = settings.issuers.iter().map(|i| (i.path.as_str(), i.name.as_deref(), i.audiences.join(" "))).collect();
    let expected = [("auth.jwt", Some("one"), "a b"), ("auth.issuers[0]", Some("two"), "c"), ("auth.issuers[1]", None, "")];
    assert_eq!(shown, expected.map(|(path, name, audiences)| (path, name, audiences.to_owned())));
    for (auth, expected) in [
        (
            json!({ "jwt": entry(json!("one"), json!("a")), "issuers": [entry(json!("one"), json!("a"))] }),
            "auth.issuers[0].issuer: must be another than that of `auth.jwt`",
        ),
        (json!({ "issuers": [{ "keys": [key] }, { "keys": [key] }] }), "auth.issuers[1].issuer: must be set, and another than"),
        (json!({ "issuers": [entry(json!("one"), json!([]))] }), "auth.issuers[0].audience: must not be empty"),
        (json!({ "issuers": [entry(json!("one"), json!(["a", ""]))] }), "auth.issuers[0].audience[1]: must not be empty"),
        (json!({ "issuers": [{ "issuer": "one" }] }), "auth.issuers[0].keys: must list at least one key"),
        (json!({ "jwt": { "issuer": "https://one.example", "discover": false } }), "auth.jwt.keys: must list at least one key"),
        (json!({ "carriers": { "cookie": true } }), "auth.carriers.cookie: must be a text other than true, or false"),
        (json!({ "issuers": [{ "issuer": "one", "discover": true }] }), "auth.issuers[0].issuer: must be a URL for `discover`"),
        (json!({ "jwt": { "discover": true } }), "auth.jwt.issuer: must be a URL for `discover`"),
        (json!({ "jwt": { "issuer": "http://id.example.com", "discover": true } }), "auth.jwt.issuer: must be a URL for `discover`"),
        (json!({ "carriers": { "header": "Authorization" } }), "auth.carriers.header: must be true, false or the name of a header"),
        (json!({ "carriers": { "header": "a b" } }), "auth.carriers.header: must be true, false or the name of a header"),
    ] {
        let found = read_at(&["auth"], &auth, |auth| Some(Settings::read(auth))).expect_err(expected);
        assert!(found.len() == 1 && found[0].contains(expected), "{found:?}");
    }
    for issuer in ["https://id.example.com", "http://127.0.0.1:1/realms/x", "http://localhost:1", "http://[::1]:1"] {
        assert!(read(&json!({ "jwt": { "issuer": issuer, "discover": true } })).issuers[0].has_key_set());
    }
}

#[tokio::test]
async fn keys_are_found_by_discovery() {
    let mut server = Server::start().await;
    let base = server.base();
    let issuer = format!("{base}/realms/x");
    let rsa = sign(&RSA, Algorithm::RS256, Some("one"), &claims(json!({ "iss": issuer })));
    let ec = sign(&P256, Algorithm::ES256, Some("two"), &claims(json!({ "iss": issuer })));
    server.also(
        "/jwks",
        &json!({ "keys": [jwk(&RSA, Algorithm::RS256, json!({ "kid": "one" })), jwk(&P256, Algorithm::ES256, json!({ "kid": "two" }))] }),
    );
    let at = "/realms/x/.well-known/openid-configuration";
    let remote = Remote::new(Place::Issuer(issuer.clone(), issuer.parse().unwrap()), None, vec![Algorithm::RS256]);
    let error = remote.attempt(&mut crate::auth::jwks::Before::default()).await.expect_err("there is nothing yet");
    assert!(crate::support::causes::chain(&error).starts_with("the issuer's `/.well-known/openid-configuration` could not"), "{error}");
    server.also(at, &json!({ "issuer": format!("{issuer}/"), "jwks_uri": format!("{base}/jwks") }));
    let authenticator = Arc::new(Authenticator::new(read(&json!({ "jwt": { "issuer": issuer, "discover": true } })), TOKEN_BYTES));
    let refreshing = Arc::clone(&authenticator);
    server.tasks.spawn(async move { refreshing.refresh_keys().await });
    let brief = Duration::from_millis(300);
    let refused = authenticator.authenticate(&bearer(&rsa), None, false, brief).await;
    assert_eq!(refused.expect_err("another issuer's"), AuthError::KeysNotLoaded);
    server.also(at, &json!({ "issuer": issuer, "jwks_uri": "http://192.0.2.1/jwks" }));
    assert_eq!(authenticator.authenticate(&bearer(&rsa), None, false, brief).await.expect_err("in the clear"), AuthError::KeysNotLoaded);
    server.also(at, &json!({ "issuer": issuer, "jwks_uri": format!("{base}/jwks") }));
    for token in [&rsa, &ec] {
        assert!(authenticator.authenticate(&bearer(token), None, false, Duration::from_secs(20)).await.is_ok());
    }
}

#[tokio::test]
async fn a_token_whose_keys_are_missing_is_told_of_its_own_issuers_servers_only() {
    let remote = |name: &str| {
        let url = format!("http://127.0.0.1:1/{name}.json");
        Issuer { keys: vec![key(&[Algorithm::RS256], None, KeyMaterial::JwksUrl(url))], ..named(Some(name), SECRET) }
    };
    let both = of(vec![remote("one"), remote("two")]);
    let mut attempts = both.attempts().expect("tokens");
    let mut refreshing = std::pin::pin!(both.refresh_keys());
    while !remotes(&both).all(Remote::failed) {
        tokio::select! {
            () = &mut refreshing => {}
            attempted = attempts.changed() => attempted.expect("an attempt"),
        }
    }
    let token = sign(&RSA, Algorithm::RS256, None, &claims(json!({ "iss": "two" })));
    let reason = both.reason(&token, &AuthError::KeysNotLoaded);
    assert!(reason.contains("/two.json") && !reason.contains("/one.json"), "{reason}");
}
