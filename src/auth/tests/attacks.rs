//! Tokens that must not pass.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;

use super::signatures::{P256, RSA, jwk, sign};
use super::*;

/// Signs any header and any payload with the secret.
fn raw(header: &str, payload: &[u8]) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET);
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, jsonwebtoken::Algorithm::HS256).expect("a signature");
    format!("{message}.{signature}")
}

const HS256: &str = r#"{"alg":"HS256"}"#;

fn refusal(authenticator: &Authenticator, token: &str) -> Refused {
    match ask(authenticator, token).expect_err(token) {
        AuthError::Invalid(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_token_does_not_choose_how_a_key_is_used() {
    let pem = RSA.public_pem.clone();
    let mixed = authenticator(vec![key(&[Algorithm::RS256], None, KeyMaterial::Pem(pem.clone())), secret()]);
    let good = claims(json!({}));
    // HMAC with the text of the public key as its secret.
    let (header, public) = (jsonwebtoken::Header::default(), jsonwebtoken::EncodingKey::from_secret(pem.as_bytes()));
    let confused = jsonwebtoken::encode(&header, &good, &public).expect("a token");
    assert_eq!(refusal(&mixed, &confused), Refused::Signature);
    let only_rsa = authenticator(vec![key(&[Algorithm::RS256], None, KeyMaterial::Pem(pem))]);
    assert_eq!(refusal(&only_rsa, &confused), Refused::UnknownKey);
    // Another algorithm of the same key.
    assert_eq!(refusal(&only_rsa, &sign(&RSA, Algorithm::PS256, None, &good)), Refused::UnknownKey);
    assert_eq!(refusal(&only_rsa, &sign(&RSA, Algorithm::RS512, None, &good)), Refused::UnknownKey);
    for none in ["none", "None", "NONE", "", "HS257", "hs256"] {
        let header = json!({ "alg": none, "typ": "JWT" }).to_string();
        let unsigned = format!("{}.{}.", URL_SAFE_NO_PAD.encode(&header), URL_SAFE_NO_PAD.encode(good.to_string()));
        assert_eq!(refusal(&mixed, &unsigned), Refused::Algorithm, "{none}");
        assert_eq!(refusal(&mixed, &raw(&header, good.to_string().as_bytes())), Refused::Algorithm, "{none}");
    }
}

#[test]
fn a_token_does_not_bring_its_own_key() {
    let authenticator = authenticator(vec![key(&[Algorithm::ES256], None, KeyMaterial::Pem(P256.public_pem.clone()))]);
    let thief = rcgen::KeyPair::generate().expect("a key");
    let signing = jsonwebtoken::EncodingKey::from_ec_pem(thief.serialize_pem().as_bytes()).expect("a key");
    let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256);
    header.jku = Some("https://thief.example/jwks.json".into());
    header.x5u = Some("https://thief.example/cert.pem".into());
    header.kid = Some("../../dev/null".into());
    header.jwk = Some(jsonwebtoken::jwk::Jwk::from_encoding_key(&signing, jsonwebtoken::Algorithm::ES256).expect("a JWK"));
    let token = jsonwebtoken::encode(&header, &claims(json!({})), &signing).expect("a token");
    assert_eq!(refusal(&authenticator, &token), Refused::Signature);
    // With the right key they are no harm, and are not followed.
    let token = jsonwebtoken::encode(&header, &claims(json!({})), &P256.signing).expect("a token");
    assert!(ask(&authenticator, &token).is_ok());
}

#[test]
fn a_key_with_a_name_answers_to_this_name_only() {
    let set = json!({ "keys": [jwk(&RSA, Algorithm::RS256, json!({ "kid": "one" }))] }).to_string();
    let named = key(&[Algorithm::HS256], Some("mine"), KeyMaterial::Secret(Secret::new(SECRET)));
    let authenticator = authenticator(vec![named, key(&[Algorithm::RS256], None, KeyMaterial::Jwks(set))]);
    let hmac = |id| ask(&authenticator, &mint(&Secret::new(SECRET), Algorithm::HS256, &claims(json!({})), id).expect("a token"));
    assert!(hmac(Some("mine")).is_ok() && hmac(None).is_ok());
    assert_eq!(hmac(Some("one")).expect_err("another's name"), AuthError::Invalid(Refused::UnknownKey));
    assert_eq!(refusal(&authenticator, &sign(&RSA, Algorithm::RS256, Some("two"), &claims(json!({})))), Refused::UnknownKey);
    assert!(ask(&authenticator, &sign(&RSA, Algorithm::RS256, Some("one"), &claims(json!({})))).is_ok());
}

#[test]
fn times_must_be_there_and_numbers() {
    let authenticator = authenticator(vec![secret()]);
    let with = |more: Value| ask(&authenticator, &hs256(&claims(more))).map(|grant| grant.expires.map(Timestamp::as_micros));
    let refused = |more: Value| match with(more).expect_err("refused") {
        AuthError::Invalid(why) => why,
        other => panic!("{other:?}"),
    };
    let without_exp = raw(HS256, br#"{"subjects":[">"]}"#);
    assert_eq!(refusal(&authenticator, &without_exp), Refused::ClaimMissing("exp"));
    for exp in [json!("4000000000"), json!(null), json!([4_000_000_000_u64]), json!(true), json!({})] {
        assert_eq!(refused(json!({ "exp": exp })), Refused::ClaimType("exp"));
    }
    for exp in [json!(0), json!(-1), json!(-1e300), json!(1.5), json!(now() - LEEWAY), json!(now() as f64 - 100.5)] {
        assert_eq!(refused(json!({ "exp": exp })), Refused::Expired, "{exp}");
    }
    assert!(with(json!({ "exp": now() - LEEWAY + 5 })).is_ok());
    let soon = now() + 1000;
    assert_eq!(with(json!({ "exp": soon as f64 + 0.25 })), Ok(Some((soon + LEEWAY) * 1_000_000 + 250_000)));
    assert_eq!(refused(json!({ "exp": 1e300 })), Refused::Lifetime);
    assert_eq!(refused(json!({ "exp": u64::MAX })), Refused::Lifetime);
    for nbf in [json!("1"), json!(null), json!([])] {
        assert_eq!(refused(json!({ "nbf": nbf })), Refused::ClaimType("nbf"));
    }
    assert_eq!(refused(json!({ "nbf": now() + LEEWAY + 5 })), Refused::NotYet);
    assert!(with(json!({ "nbf": now() + LEEWAY - 5 })).is_ok() && with(json!({ "nbf": -5 })).is_ok());
}

#[test]
fn issuer_and_audience_are_required_where_configured() {
    let mut config = config(vec![secret()]);
    let unset = authenticator(vec![secret()]);
    let issuer = &mut config.issuers[0];
    (issuer.name, issuer.audiences) = (Some("https://id.example.com".into()), vec!["brokercast".into()]);
    let set = Authenticator::new(config, TOKEN_BYTES);
    let (iss, aud) = ("https://id.example.com", "brokercast");
    for (more, expected) in [
        (json!({ "iss": iss, "aud": aud }), None),
        (json!({ "iss": iss, "aud": ["other", aud] }), None),
        (json!({ "aud": aud }), Some(Refused::ClaimMissing("iss"))),
        (json!({ "iss": iss }), Some(Refused::ClaimMissing("aud"))),
        (json!({ "iss": "https://id.example.com/", "aud": aud }), Some(Refused::Issuer)),
        (json!({ "iss": [iss], "aud": aud }), Some(Refused::Issuer)),
        (json!({ "iss": iss, "aud": "brokercas" }), Some(Refused::Audience)),
        (json!({ "iss": iss, "aud": [] }), Some(Refused::Audience)),
        (json!({ "iss": iss, "aud": [["brokercast"]] }), Some(Refused::Audience)),
        (json!({ "iss": iss, "aud": { "brokercast": true } }), Some(Refused::Audience)),
        (json!({ "iss": iss, "aud": null }), Some(Refused::Audience)),
    ] {
        assert_eq!(ask(&set, &hs256(&claims(more.clone()))).err(), expected.map(AuthError::Invalid), "{more}");
    }
    assert!(ask(&unset, &hs256(&claims(json!({ "aud": ["account", 7], "iss": 5 })))).is_ok(), "not looked at");
    assert!(ask(&unset, &hs256(&claims(json!({ "iss": "anybody" })))).is_ok());
}

#[test]
fn headers_that_change_the_meaning_are_refused() {
    let authenticator = authenticator(vec![secret()]);
    let payload = claims(json!({})).to_string();
    for (header, expected) in [
        (json!({ "alg": "HS256", "typ": "JWT" }), None),
        (json!({ "alg": "HS256", "typ": "at+jwt" }), None),
        (json!({ "alg": "HS256", "typ": "AT+JWT" }), None),
        (json!({ "alg": "HS256", "typ": "application/at+jwt" }), None),
        (json!({ "alg": "HS256", "x-mine": [1, { "a": null }] }), None),
        (json!({ "alg": "HS256", "typ": "dpop+jwt" }), Some(Refused::Type)),
        (json!({ "alg": "HS256", "typ": "" }), Some(Refused::Type)),
        (json!({ "alg": "HS256", "typ": 1 }), Some(Refused::Malformed)),
        (json!({ "alg": "HS256", "crit": ["exp"], "exp": 1 }), Some(Refused::Critical)),
        (json!({ "alg": "HS256", "crit": [] }), Some(Refused::Critical)),
        (json!({ "alg": "HS256", "crit": null }), Some(Refused::Critical)),
        (json!({ "alg": "HS256", "kid": 7 }), Some(Refused::Malformed)),
        (json!({ "alg": ["HS256"] }), Some(Refused::Malformed)),
        (json!({ "typ": "JWT" }), Some(Refused::Algorithm)),
        (json!([]), Some(Refused::Malformed)),
    ] {
        let token = raw(&header.to_string(), payload.as_bytes());
        assert_eq!(ask(&authenticator, &token).err(), expected.map(AuthError::Invalid), "{header}");
    }
}

#[test]
fn what_two_readers_could_read_differently_is_refused() {
    let authenticator = authenticator(vec![secret()]);
    let later = now() + 100;
    for payload in [
        format!(r#"{{"exp":{later},"exp":1}}"#),
        format!(r#"{{"exp":1,"exp":{later}}}"#),
        format!(r#"{{"exp":{later},"subjects":["a"],"subjects":[">"]}}"#),
        format!(r#"{{"exp":{later},"deep":[{{"x":1,"x":2}}]}}"#),
        format!(r#"{{"exp":{later}}} "#) + "{}",
        format!(r#"{{"exp":{later}"#),
        format!(r#"[{later}]"#),
        "null".into(),
        String::new(),
        "[".repeat(3000),
        format!(r#"{{"exp":{later},"a":{}}}"#, "[".repeat(2000) + &"]".repeat(2000)),
    ] {
        assert_eq!(refusal(&authenticator, &raw(HS256, payload.as_bytes())), Refused::Malformed, "{payload:.80}");
    }
    assert_eq!(refusal(&authenticator, &raw(HS256, b"{\"exp\":\xff}")), Refused::Malformed);
    assert_eq!(refusal(&authenticator, &raw(r#"{"alg":"HS256","alg":"none"}"#, b"{}")), Refused::Malformed);
}

#[test]
fn rubbish_is_refused_and_too_much_of_it_is_not_looked_at() {
    let authenticator = authenticator(vec![secret()]);
    let good = hs256(&claims(json!({})));
    let padded = URL_SAFE_NO_PAD.encode(HS256) + "==";
    for token in [
        "",
        ".",
        "..",
        "...",
        "a",
        "a.b",
        "a.b.c",
        "a.b.c.d",
        "a.b.c.d.e",
        "!.!.!",
        "e30.e30.",
        "e30.e30.e30",
        "ä.ö.ü",
        &format!("{good}."),
        &format!(".{good}"),
        &format!("{good} {good}"),
        &format!("{good}=="),
        &format!("{good}==="),
        &format!("{padded}.e30.e30"),
    ] {
        let headers =
            HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_bytes(format!("Bearer {token}").as_bytes()).expect("bytes"))]);
        let why = authenticator.find(&headers, None, false, Timestamp::now()).expect_err(token);
        assert!(matches!(why, AuthError::Invalid(_)), "{token}: {why:?}");
    }
    let huge = hs256(&claims(json!({ "filler": "x".repeat(8192) })));
    assert!(matches!(ask(&authenticator, &huge), Err(AuthError::Malformed(_))));
    let just = hs256(&claims(json!({ "filler": "x".repeat(5000) })));
    assert!(ask(&authenticator, &just).is_ok());
}

proptest! {
    #[test]
    fn no_bytes_whatever_make_it_panic_or_pass(
        header in proptest::collection::vec(any::<u8>(), 0..60),
        payload in proptest::collection::vec(any::<u8>(), 0..60),
        line in proptest::collection::vec(1_u8..=255, 0..120),
        query in ".{0,60}",
    ) {
        let authenticator = authenticator(vec![secret()]);
        let signed = raw(&String::from_utf8_lossy(&header), &payload);
        prop_assert!(ask(&authenticator, &signed).is_err());
        let mut headers = HeaderMap::new();
        for name in [AUTHORIZATION, COOKIE] {
            let line = [if name == COOKIE { &b"brokercast="[..] } else { b"Bearer " }, &line].concat();
            if let Ok(value) = HeaderValue::from_bytes(&line) {
                headers.insert(name, value);
            }
        }
        prop_assert!(authenticator.find(&headers, Some(&query), false, Timestamp::now()).is_err());
        let query = format!("access_token={query}");
        prop_assert!(authenticator.find(&HeaderMap::new(), Some(&query), false, Timestamp::now()).is_err());
    }
}
