//! Tokens as several issuers make them: keys by `iss`, discovery, a proxy's header, what `check` says of it.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::KeyPair;
use serde_json::{Value, json};

use crate::support::bridge::run;
use crate::support::token::{SECRET, mint, mint_with, now};
use crate::support::{Bridge, Server, eventually};

const OTHER: &str = "another secret of the tests, 32 bytes and more";

fn config() -> String {
    format!(
        "auth:\n  jwt: {{ issuer: one, keys: [ {{ algorithms: [HS256], secret: \"{SECRET}\" }} ] }}\n  issuers:\n\
         \x20   - issuer: two\n      audience: [app, api]\n      keys: [ {{ algorithms: [HS256], secret_encoding: base64, secret: \"{}\" }} ]\n\
         \x20     claims: {{ subscribe: scope }}\n      grants: {{ subscribe: [\"user.{{sub}}.>\"] }}\n      max_lifetime: 1h\n\
         \x20   - keys: [ {{ algorithms: [HS256], secret: \"{SECRET}{SECRET}\" }} ]\n\
         sources: {{ inbox: {{ http: {{ subjects: [\">\"] }} }} }}\n",
        STANDARD.encode(OTHER)
    )
}

#[tokio::test]
async fn each_token_is_checked_by_the_issuer_that_it_names() {
    let bridge = Bridge::start(&config()).await;
    let status = async |subject: &str, token: &str| {
        bridge.events_with(&[("subject", subject)]).bearer_auth(token).send().await.unwrap().status().as_u16()
    };
    let two = |secret: &str, claims: Value| mint_with(&Header::default(), secret, claims);
    let good = json!({"iss": "two", "aud": ["x", "api"], "sub": "ada", "scope": "openid orders.eu.> orders.us.>", "exp": now() + 600});
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        claims
    };
    for subject in ["orders.eu.a", "orders.us.>", "user.ada.x"] {
        assert_eq!(status(subject, &two(OTHER, good.clone())).await, 200, "{subject}");
    }
    assert_eq!(status("orders.cn.a", &two(OTHER, good.clone())).await, 403);
    assert_eq!(status("orders.eu.a", &two(SECRET, good.clone())).await, 401, "the key of another");
    assert_eq!(status("orders.eu.a", &two(OTHER, with("iss", json!("one")))).await, 401, "the key of another");
    assert_eq!(status("orders.eu.a", &two(OTHER, with("aud", json!("other")))).await, 401);
    assert_eq!(status("orders.eu.a", &two(OTHER, with("exp", json!(now() + 7200)))).await, 401, "longer than its max_lifetime");
    // `auth.jwt` is one of them, and looks at no audience.
    assert_eq!(status("a", &mint(json!({"iss": "one", "aud": "account", "subjects": ["a"]}))).await, 200);
    assert_eq!(status("a", &mint(json!({"subjects": ["a"]}))).await, 401);
    assert_eq!(status("a", &two(&format!("{SECRET}{SECRET}"), json!({"subjects": ["a"]}))).await, 200, "it names no issuer");
    assert_eq!(status("a", &two(&format!("{SECRET}{SECRET}"), json!({"iss": "three", "subjects": ["a"]}))).await, 401);
}

#[tokio::test]
async fn two_issuers_may_call_different_people_the_same() {
    let rates = "rates: { connect: { per_identity: 1/h } }\n";
    let bridge = Bridge::start(&(config() + rates)).await;
    let one = mint(json!({"iss": "one", "sub": "ada", "subjects": ["a"]}));
    let two = mint_with(&Header::default(), OTHER, json!({"iss": "two", "aud": "api", "sub": "ada", "scope": "a", "exp": now() + 600}));
    for (token, expected) in [(&one, 200), (&two, 200), (&one, 429), (&two, 429)] {
        assert_eq!(bridge.events("").bearer_auth(token).send().await.unwrap().status(), expected);
    }
}

#[tokio::test]
async fn a_header_that_a_proxy_sets_brings_tokens_that_never_publish() {
    let config = format!(
        "auth:\n{}  carriers: {{ header: Cf-Access-Jwt-Assertion }}\nsources: {{ inbox: {{ http: {{ subjects: [\">\"] }} }} }}\n",
        crate::support::token::jwt()
    );
    let bridge = Bridge::start(&config).await;
    let token = mint(json!({"subjects": [">"], "publish": [">"]}));
    let status = async |request: reqwest::RequestBuilder| request.send().await.unwrap().status().as_u16();
    assert_eq!(status(bridge.events("").header("cf-access-jwt-assertion", &token)).await, 200);
    assert_eq!(status(bridge.events("").bearer_auth(&token)).await, 401);
    assert_eq!(status(bridge.events("").header("Cf-Access-Jwt-Assertion", format!("{token}x"))).await, 401);
    let twice = bridge.events("").header("Cf-Access-Jwt-Assertion", &token).header("Cf-Access-Jwt-Assertion", &token);
    assert_eq!(status(twice).await, 400);
    let post = || bridge.http.post(bridge.url("/publish/a")).body("1");
    assert_eq!(status(post().header("Cf-Access-Jwt-Assertion", &token)).await, 401);
    assert_eq!(status(post().bearer_auth(&token)).await, 401);
}

#[tokio::test]
async fn a_session_says_who_a_page_is_and_by_which_rule_it_sees_what() {
    let bridge = Bridge::start(&config()).await;
    let claims = json!({"iss": "two", "aud": "api", "sub": "ada", "scope": "orders.>", "publish": "in.x", "exp": now() + 600});
    let token = mint_with(&Header::default(), OTHER, claims);
    let get = |path: &str| bridge.get(path);
    let answer = get("/session").header("Cookie", format!("brokercast={token}")).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers()["cache-control"].to_str().unwrap()), (200, "no-store"));
    let text = answer.text().await.unwrap();
    assert!(!text.contains(token.rsplit('.').next().unwrap()));
    let body: Value = serde_json::from_str(&text).unwrap();
    let rules =
        json!([{"pattern": "orders.>", "rule": "claim `scope`"}, {"pattern": "user.ada.>", "rule": "auth.issuers[0].grants.subscribe[0]"}]);
    assert_eq!((&body["identity"], &body["subscribe"], &body["publish"]), (&json!("ada"), &rules, &json!([])), "{body}");
    assert!(body["expires"].is_string());
    let by_header: Value = get("/session").bearer_auth(&token).send().await.unwrap().json().await.unwrap();
    assert_eq!(by_header["publish"], json!([{"pattern": "in.x", "rule": "claim `publish`"}]));
    assert_eq!(get("/session").send().await.unwrap().status(), 401);
    let foreign = get("/session").header("Origin", "https://evil.example");
    // No browser sends a bearer token along for a page that does not have it; with a cookie it would.
    assert_eq!(foreign.try_clone().unwrap().bearer_auth(&token).send().await.unwrap().status(), 200);
    assert_eq!(foreign.header("Cookie", format!("brokercast={token}")).send().await.unwrap().status(), 403);
    let open = Bridge::open().await;
    let body: Value = open.get("/session").send().await.unwrap().json().await.unwrap();
    assert_eq!((&body["identity"], &body["subscribe"][0]["rule"]), (&Value::Null, &json!("auth.anonymous.subscribe[0]")));
}

#[test]
fn a_token_is_inspected_without_a_bridge() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    std::fs::write(&file, config()).unwrap();
    let inspect = |token: &str| {
        let output = run(&["token", "--config", file.to_str().unwrap(), "--inspect", token]);
        (output.status.code(), serde_json::from_slice::<Value>(&output.stdout).unwrap())
    };
    let claims = json!({"iss": "two", "aud": "api", "sub": "ada", "scope": "orders.>"});
    let good = |exp| {
        let mut claims = claims.clone();
        claims["exp"] = json!(exp);
        mint_with(&Header::default(), OTHER, claims)
    };
    let (code, said) = inspect(&good(now() + 600));
    assert_eq!((code, &said["valid"], &said["claims"]["aud"]), (Some(0), &json!(true), &json!("api")), "{said}");
    let ruled = &said["subscribe"][1];
    assert_eq!((&ruled["pattern"], &ruled["rule"]), (&json!("user.ada.>"), &json!("auth.issuers[0].grants.subscribe[0]")));
    assert!(ruled["file"] == file.to_str().unwrap() && ruled["line"].is_u64(), "{ruled}");
    for (token, reason) in [
        (good(now() - 600), "it has expired"),
        (good(now() + 7200), "its lifetime is longer"),
        (mint_with(&Header::default(), SECRET, claims.clone()), "its signature is wrong"),
        (mint(json!({"iss": "three"})), "its `iss` is not"),
        ("x".to_owned(), "it is not a signed JWT"),
    ] {
        let (code, said) = inspect(&token);
        assert!(code == Some(1) && said["reason"].as_str().unwrap().starts_with(reason), "{said}");
    }
}

/// Answers requests by their path, until it is dropped with the test's runtime.
async fn provider(answers: impl Fn(&str, &str) -> Value + Send + Sync + 'static) -> String {
    let server = Server::bind().await;
    let base = server.url.clone();
    let own = base.clone();
    server.serve(move |head, _| {
        let body = answers(&own, head.split(' ').nth(1).unwrap_or_default()).to_string();
        std::future::ready(Some(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())))
    });
    base
}

#[tokio::test]
async fn keys_are_found_by_discovery() {
    let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let point = pair.public_key_raw().to_vec();
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let key = json!({"kty": "EC", "crv": "P-256", "kid": "k", "use": "sig", "x": text(&point[1..33]), "y": text(&point[33..])});
    let issuer = provider(move |base, path| match path {
        "/.well-known/openid-configuration" => json!({"issuer": base, "jwks_uri": format!("{base}/keys"), "more": []}),
        "/keys" => json!({"keys": [key]}),
        _ => json!({}),
    })
    .await;
    let bridge = Bridge::start(&format!(
        "auth: {{ issuers: [ {{ issuer: \"{issuer}\", discover: true }} ] }}\nsources: {{ inbox: {{ http: {{ subjects: [\">\"] }} }} }}\n"
    ))
    .await;
    let signing = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
    let header = Header { kid: Some("k".into()), ..Header::new(Algorithm::ES256) };
    let token = jsonwebtoken::encode(&header, &json!({"iss": issuer, "subjects": ["a"], "exp": now() + 600}), &signing).unwrap();
    eventually("the keys to be found", async || {
        (bridge.events("").bearer_auth(&token).send().await.unwrap().status() == 200).then_some(())
    })
    .await;
}

#[test]
fn check_warns_of_sets_that_others_share_and_of_keys_in_the_clear() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    let check = |auth: &str| {
        std::fs::write(&file, format!("auth: {auth}\nsources: {{ inbox: {{ http: {{ subjects: [\">\"] }} }} }}\n")).unwrap();
        let output = run(&["check", "--config", file.to_str().unwrap()]);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let set = |url: &str, more: &str| {
        format!("{{ issuers: [ {{ issuer: x, keys: [ {{ algorithms: [RS256], jwks_url: \"{url}\" }} ]{more} }} ] }}")
    };
    let (code, said) = check(&set("https://id.example.com/keys", ""));
    assert!(code == Some(0) && said.contains("auth.issuers[0].audience: is not set"), "{said}");
    assert!(!check(&set("https://id.example.com/keys", ", audience: a")).1.contains("audience"));
    let (code, said) = check(&set("http://id.example.com/keys", ", audience: a"));
    assert!(code == Some(0) && said.contains("auth.issuers[0].keys: has a `jwks_url` with http"), "{said}");
    assert!(!check(&set("http://127.0.0.1:1/keys", ", audience: a")).1.contains("jwks_url"));
    let named = |name: &str| format!("{{ issuer: {name}, keys: [ {{ algorithms: [HS256], secret: \"{SECRET}\" }} ] }}");
    for (issuers, grants, warns) in [
        (named("x"), "user.{sub}.>", false),
        (named("x") + ", " + &named("y"), "user.{sub}.>", true),
        (named("x") + ", " + &named("y"), "news.>", false),
    ] {
        let (code, said) = check(&format!("{{ issuers: [ {issuers} ], grants: {{ publish: [\"{grants}\"] }} }}"));
        assert!(code == Some(0) && said.contains("auth.grants: has a placeholder") == warns, "{said}");
    }
    let (code, said) = check(&format!("{{ jwt: {{ keys: [ {{ algorithms: [HS256], secret: \"{SECRET}\" }} ] }} }}"));
    assert!(code == Some(0) && !said.contains("audience"), "{said}");
}

#[test]
fn the_example_with_issuers_is_a_good_one() {
    let output = run(&["check", "--config", concat!(env!("CARGO_MANIFEST_DIR"), "/config/tokens.yaml")]);
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{output:?}");
}
