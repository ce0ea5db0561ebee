//! Tokens: algorithms, carriers, claims, grants, and what they stop leaving.

use std::time::{Duration, Instant};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::KeyPair;
use serde_json::{Value, json};

use crate::support::token::{SECRET, forge, jwt, mint, now};
use crate::support::{Bridge, Item, Sse};

fn with_auth(rest: &str) -> String {
    format!("auth:\n{}{rest}\nsources: {{ inbox: {{ http: {{ subjects: [\">\"] }} }} }}\n", jwt())
}

#[tokio::test]
async fn nothing_leaves_outside_the_grant_live_or_replayed() {
    let bridge = Bridge::start(&with_auth("")).await;
    let wide = mint(json!({"subjects": [">"], "publish": [">"]}));
    let narrow = mint(json!({"subjects": ["mine.*", "shared.>"]}));
    let post = async |subject: &str, n: u64| {
        let request = bridge.http.post(bridge.url(&format!("/publish/{subject}"))).bearer_auth(&wide).body(format!("{{\"n\":{n}}}"));
        assert_eq!(request.send().await.unwrap().status(), 202);
    };
    let subjects = ["mine.a", "mine.a.b", "yours.a", "shared.x.y", "mine", "shared"];
    let mut live = Sse::open(bridge.events("").bearer_auth(&narrow)).await;
    live.id().await;
    let mut everything = Sse::open(bridge.events("").bearer_auth(&wide)).await;
    let id = everything.id().await;
    for (n, subject) in subjects.iter().enumerate() {
        post(subject, n as u64).await;
    }
    post("shared.end", 99).await;
    let seen: Vec<_> = live.events(3).await.iter().map(|e| e.subject()).collect();
    assert_eq!(seen, ["mine.a", "shared.x.y", "shared.end"]);
    assert_eq!(everything.events(7).await.len(), 7);
    // The same cursor with the narrower token: only what it may see now.
    let mut resumed = Sse::open(bridge.events("").bearer_auth(&narrow).header("Last-Event-ID", &id)).await;
    let seen: Vec<_> = resumed.events(3).await.iter().map(|e| e.subject()).collect();
    assert_eq!(seen, ["mine.a", "shared.x.y", "shared.end"]);
    let mut all = Sse::open(bridge.events("since=all").bearer_auth(&narrow)).await;
    assert_eq!(all.events(3).await.len(), 3);
    all.stays_quiet(Duration::from_millis(200)).await;
}

#[tokio::test]
async fn stream_ends_when_its_token_does() {
    let bridge = Bridge::start(&with_auth("")).await;
    let start = Instant::now();
    let token = mint(json!({"subjects": [">"], "exp": now() + 3}));
    let mut sse = Sse::open(bridge.events("").bearer_auth(&token)).await;
    let items = sse.rest().await;
    let took = start.elapsed();
    assert!((Duration::from_millis(1500)..Duration::from_secs(8)).contains(&took), "{took:?}");
    let Some(Item::Event(last)) = items.last() else { panic!("{items:?}") };
    assert_eq!((last.name.as_str(), last.reason().as_str()), ("brokercast.closing", "expired"));
    assert!(!sse.last_id().is_empty());
    assert_eq!(bridge.events("").bearer_auth(&token).send().await.unwrap().status(), 401);
    // A fresh token goes on from there.
    let fresh = mint(json!({"subjects": [">"], "publish": [">"]}));
    bridge.http.post(bridge.url("/publish/a")).bearer_auth(&fresh).body("1").send().await.unwrap();
    let mut again = Sse::open(bridge.events("").bearer_auth(&fresh).header("Last-Event-ID", sse.last_id())).await;
    assert_eq!(again.event().await.payload(), json!(1));
}

#[tokio::test]
async fn leeway_holds_for_the_door_and_for_the_stream() {
    let config = with_auth("").replace("leeway: 0s", "leeway: 5s");
    let bridge = Bridge::start(&config).await;
    let token = mint(json!({"subjects": [">"], "exp": now() - 2}));
    let start = Instant::now();
    let mut sse = Sse::open(bridge.events("").bearer_auth(&token)).await;
    let items = sse.rest().await;
    assert!(matches!(items.last(), Some(Item::Event(e)) if e.reason() == "expired"), "{items:?}");
    assert!(start.elapsed() > Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(bridge.events("").bearer_auth(mint(json!({"subjects": [">"], "exp": now() - 10}))).send().await.unwrap().status(), 401);
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one story, in its order")]
async fn every_family_of_algorithms_opens_its_own_door_only() {
    let folder = tempfile::tempdir().unwrap();
    let rsa = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let ec = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let ed = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    for (name, key) in [("rsa", &rsa), ("ec", &ec), ("ed", &ed)] {
        std::fs::write(folder.path().join(format!("{name}.pem")), key.public_key_pem()).unwrap();
    }
    let secret = folder.path().join("secret");
    std::fs::write(&secret, format!("{SECRET}\n")).unwrap();
    let at = |name: &str| folder.path().join(format!("{name}.pem")).display().to_string();
    let config = format!(
        "auth:\n  jwt:\n    issuer: https://id.example.com\n    audience: brokercast\n    keys:\n\
         \x20     - {{ algorithms: [HS256], secret_file: \"{}\", id: shared }}\n\
         \x20     - {{ algorithms: [RS256, PS256], public_key_file: \"{}\" }}\n\
         \x20     - {{ algorithms: [ES256], public_key_file: \"{}\" }}\n\
         \x20     - {{ algorithms: [EdDSA], public_key_file: \"{}\" }}\n\
         sources: {{ inbox: {{ http: {{ subjects: [\">\"] }} }} }}\n",
        secret.display(),
        at("rsa"),
        at("ec"),
        at("ed")
    );
    let bridge = Bridge::start(&config).await;
    let claims = json!({"iss": "https://id.example.com", "aud": ["x", "brokercast"], "subjects": ["a"], "exp": now() + 600});
    let (rsa_key, ec_key, ed_key) = (
        EncodingKey::from_rsa_pem(rsa.serialize_pem().as_bytes()).unwrap(),
        EncodingKey::from_ec_pem(ec.serialize_pem().as_bytes()).unwrap(),
        EncodingKey::from_ed_pem(ed.serialize_pem().as_bytes()).unwrap(),
    );
    let hmac = EncodingKey::from_secret(SECRET.as_bytes());
    let status = async |token: String| bridge.events("").bearer_auth(token).send().await.unwrap().status().as_u16();
    let sign = |algorithm: Algorithm, kid: Option<&str>, claims: &Value, key: &EncodingKey| {
        let mut header = Header::new(algorithm);
        header.kid = kid.map(str::to_owned);
        jsonwebtoken::encode(&header, claims, key).unwrap()
    };
    assert_eq!(status(sign(Algorithm::HS256, Some("shared"), &claims, &hmac)).await, 200);
    assert_eq!(status(sign(Algorithm::HS384, Some("shared"), &claims, &hmac)).await, 401);
    assert_eq!(status(sign(Algorithm::RS256, None, &claims, &rsa_key)).await, 200);
    assert_eq!(status(sign(Algorithm::PS256, Some("whatever"), &claims, &rsa_key)).await, 200);
    assert_eq!(status(sign(Algorithm::ES256, None, &claims, &ec_key)).await, 200);
    assert_eq!(status(sign(Algorithm::EdDSA, None, &claims, &ed_key)).await, 200);

    // An algorithm that its key is not bound to; a public key taken for a secret; another's key.
    assert_eq!(status(sign(Algorithm::HS512, Some("shared"), &claims, &hmac)).await, 401);
    assert_eq!(status(sign(Algorithm::RS384, None, &claims, &rsa_key)).await, 401);
    let confused = EncodingKey::from_secret(rsa.public_key_pem().as_bytes());
    assert_eq!(status(sign(Algorithm::HS256, None, &claims, &confused)).await, 401);
    let foreign = EncodingKey::from_ec_pem(KeyPair::generate().unwrap().serialize_pem().as_bytes()).unwrap();
    assert_eq!(status(sign(Algorithm::ES256, None, &claims, &foreign)).await, 401);

    // Issuer and audience must be there and right.
    for (claim, value) in [
        ("iss", json!("https://evil.example.com")),
        ("iss", Value::Null),
        ("aud", json!("other")),
        ("aud", json!([])),
        ("aud", Value::Null),
    ] {
        let mut bad = claims.clone();
        bad[claim] = value.clone();
        if value.is_null() {
            bad.as_object_mut().unwrap().remove(claim);
        }
        assert_eq!(status(sign(Algorithm::ES256, None, &bad, &ec_key)).await, 401, "{claim}: {value}");
    }
}

#[tokio::test]
async fn odd_headers_and_claims_are_refused() {
    let bridge = Bridge::start(&with_auth("")).await;
    let good = json!({"subjects": ["a"], "exp": now() + 600});
    let status = async |token: &str| bridge.events("").bearer_auth(token).send().await.unwrap().status().as_u16();
    let make = |header: Value, claims: &Value| forge(&header, claims, Some(SECRET));
    for typ in [json!({"alg": "HS256"}), json!({"alg": "HS256", "typ": "JWT"}), json!({"alg": "HS256", "typ": "at+jwt"})] {
        assert_eq!(status(&make(typ.clone(), &good)).await, 200, "{typ}");
    }
    for header in [
        json!({"alg": "HS256", "typ": "logout+jwt"}),
        json!({"alg": "HS256", "crit": ["exp"]}),
        json!({"alg": "HS256", "crit": ["x"], "x": 1}),
        json!({"alg": "HS512"}),
        json!({"alg": "hs256"}),
        json!({"typ": "JWT"}),
    ] {
        assert_eq!(status(&make(header.clone(), &good)).await, 401, "{header}");
    }
    let exp = now() + 600;
    for claims in [
        json!({"subjects": ["a"], "exp": exp.to_string()}),
        json!({"subjects": ["a"], "exp": null}),
        json!({"subjects": ["a"], "exp": -1}),
        json!({"subjects": ["a"], "exp": [exp]}),
        json!({"subjects": ["a"], "exp": exp, "nbf": "0"}),
        json!({"subjects": ["a"], "exp": exp, "nbf": exp}),
        json!(["a"]),
        json!("a"),
    ] {
        assert_eq!(status(&make(json!({"alg": "HS256"}), &claims)).await, 401, "{claims}");
    }
    // A claim that is no list of patterns grants nothing; it never grants all.
    for subjects in [json!([]), json!(null), json!({"a": 1}), json!(1), json!(["a..b"]), json!([">.a"]), json!([""])] {
        let answer = status(&make(json!({"alg": "HS256"}), &json!({"subjects": subjects, "exp": exp}))).await;
        assert!([401, 403].contains(&answer), "{subjects}: {answer}");
    }
    assert_eq!(status(&mint(json!({"subjects": "a"}))).await, 200);
}

#[tokio::test]
async fn carriers_are_tried_in_order_and_only_where_configured() {
    let bridge = Bridge::start(&with_auth("  anonymous: { subscribe: [\"public.>\"] }\n")).await;
    let good = mint(json!({"subjects": ["mine"]}));
    let by_query = bridge.events(&format!("subject=mine&access_token={good}")).send().await.unwrap();
    assert!([401, 403].contains(&by_query.status().as_u16()), "the query is opt-in");
    let cookie = bridge.events("subject=mine").header("Cookie", format!("brokercast={good}"));
    assert_eq!(cookie.send().await.unwrap().status(), 200);
    let header_first = bridge.events("subject=mine").bearer_auth("bad").header("Cookie", format!("brokercast={good}"));
    assert_eq!(header_first.send().await.unwrap().status(), 401);
    // A bad token is 401 even where anonymous access would do.
    assert_eq!(bridge.events("subject=public.a").send().await.unwrap().status(), 200);
    assert_eq!(bridge.events("subject=public.a").bearer_auth("bad").send().await.unwrap().status(), 401);
    // The grant is the union.
    let union = bridge.events("subject=public.a&subject=mine").bearer_auth(&good).send().await.unwrap();
    assert_eq!(union.status(), 200);
    for scheme in ["bearer", "BEARER"] {
        let answer = bridge.events("subject=mine").header("Authorization", format!("{scheme} {good}")).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{scheme}");
    }
    // Another scheme is a proxy's affair: no token came.
    let basic = |subject: &str| bridge.events_with(&[("subject", subject)]).header("Authorization", "Basic YTpi");
    assert_eq!(basic("public.a").send().await.unwrap().status(), 200);
    assert!([401, 403].contains(&basic("mine").send().await.unwrap().status().as_u16()));

    let query = with_auth("  carriers: { header: false, cookie: false, query: access_token }\n");
    let bridge = Bridge::start(&query).await;
    let by_query = bridge.events(&format!("access_token={good}")).send().await.unwrap();
    assert_eq!(by_query.status(), 200);
    assert_eq!(bridge.events("").bearer_auth(&good).send().await.unwrap().status(), 401);
    assert_eq!(bridge.events("").header("Cookie", format!("brokercast={good}")).send().await.unwrap().status(), 401);
    drop(bridge);
}

#[tokio::test]
async fn no_token_stands_in_any_log() {
    let config = with_auth("  carriers: { query: access_token }\n") + "log: { filter: trace, format: json }\n";
    let mut bridge = Bridge::start(&config).await;
    let good = mint(json!({"sub": "ada", "subjects": ["mine"], "publish": ["mine"]}));
    let expired = mint(json!({"subjects": ["mine"], "exp": now() - 600}));
    for token in [&good, &expired] {
        bridge.events(&format!("access_token={token}")).send().await.unwrap();
        bridge.events(&format!("subject=a..b&access_token={token}")).send().await.unwrap();
        bridge.events("subject=other").bearer_auth(token).send().await.unwrap();
        bridge.events("").header("Cookie", format!("brokercast={token}")).send().await.unwrap();
        bridge.http.post(bridge.url(&format!("/publish/mine?access_token={token}"))).body("1").send().await.unwrap();
        bridge.http.post(bridge.url("/publish/mine")).bearer_auth(token).body("payload-marker").send().await.unwrap();
        bridge.get(&format!("/nothing?access_token={token}")).send().await.unwrap();
        // What HTTP/2's library refuses itself: a `>` that nobody escaped.
        let url = bridge.url(&format!("/events?subject=a.>&access_token={token}"));
        let curl = std::process::Command::new("curl").args(["-sS", "--noproxy", "*", "--http2-prior-knowledge", "-m", "30", &url]).output();
        assert!(!curl.expect("curl; install it: apt-get install curl").status.success());
    }
    bridge.terminate().await;
    let log = bridge.log();
    assert!(!log.is_empty());
    for token in [&good, &expired] {
        let signature = token.rsplit('.').next().unwrap();
        assert!(!log.contains(signature), "a token in the log");
        let claims = token.split('.').nth(1).unwrap();
        assert!(!log.contains(claims), "a token's claims in the log");
    }
    assert!(!log.contains(SECRET) && !log.contains("payload-marker"));
    for line in log.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    }
}

#[tokio::test]
async fn templates_grant_what_clean_claims_say() {
    let rest = "  grants: { subscribe: [\"user.{sub}.>\", \"tenant.{org.id}\"], publish: [\"from.{sub}\"] }\n";
    let bridge = Bridge::start(&with_auth(rest)).await;
    let status = async |subject: &str, claims: Value| {
        bridge.events_with(&[("subject", subject)]).bearer_auth(mint(claims)).send().await.unwrap().status().as_u16()
    };
    assert_eq!(status("user.ada.>", json!({"sub": "ada"})).await, 200);
    assert_eq!(status("user.ada.x", json!({"sub": "ada"})).await, 200);
    assert_eq!(status("user.bob.x", json!({"sub": "ada"})).await, 403);
    assert_eq!(status("tenant.7", json!({"sub": "ada", "org": {"id": 7}})).await, 200);
    assert_eq!(status("tenant.a7", json!({"sub": "ada", "org": {"id": "a7"}})).await, 200);
    assert_eq!(status("tenant.7", json!({"sub": "ada"})).await, 403);
    for dirty in ["*", ">", "a.b", "a b", "", "ada.>", "a\u{0}", "a\n", "."] {
        assert_eq!(status("user.bob.x", json!({"sub": dirty})).await, 403, "{dirty:?}");
        assert_eq!(status("user.a.b", json!({"sub": dirty})).await, 403, "{dirty:?}");
    }
    let post = async |subject: &str| {
        let request = bridge.http.post(bridge.url(&format!("/publish/{subject}"))).bearer_auth(mint(json!({"sub": "ada"})));
        request.body("1").send().await.unwrap().status().as_u16()
    };
    assert_eq!(post("from.ada").await, 202);
    assert_eq!(post("from.bob").await, 403);
}

#[tokio::test]
async fn claims_are_found_by_their_path() {
    let config = with_auth("").replace("leeway: 0s,", "leeway: 0s, claims: { subscribe: mercure.subscribe, publish: mercure.publish },");
    let bridge = Bridge::start(&config).await;
    let token = mint(json!({"mercure": {"subscribe": ["a.>"], "publish": "a.b"}, "subjects": ["z"]}));
    assert_eq!(bridge.events("subject=a.b").bearer_auth(&token).send().await.unwrap().status(), 200);
    assert_eq!(bridge.events("subject=z").bearer_auth(&token).send().await.unwrap().status(), 403);
    let post = bridge.http.post(bridge.url("/publish/a.b")).bearer_auth(&token).body("1");
    assert_eq!(post.send().await.unwrap().status(), 202);
}

#[tokio::test]
async fn jwks_file_gives_keys_by_their_id() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    use base64::Engine as _;
    let text = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    let (one, two) = (KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap(), KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap());
    let point = one.public_key_raw();
    let set = json!({"keys": [
        {"kty": "EC", "crv": "P-256", "kid": "one", "alg": "ES256", "x": text(&point[1..33]), "y": text(&point[33..])},
        {"kty": "OKP", "crv": "Ed25519", "kid": "two", "x": text(two.public_key_raw())},
        {"kty": "strange", "kid": "three"},
    ]});
    std::fs::write(&file, set.to_string()).unwrap();
    let config = format!(
        "auth:\n  jwt: {{ keys: [ {{ algorithms: [ES256, EdDSA], jwks_file: \"{}\" }} ] }}\nsources: {{ inbox: {{ http: {{ subjects: [\">\"] }} }} }}\n",
        file.display()
    );
    let (one, two) = (
        EncodingKey::from_ec_pem(one.serialize_pem().as_bytes()).unwrap(),
        EncodingKey::from_ed_pem(two.serialize_pem().as_bytes()).unwrap(),
    );
    let bridge = Bridge::start(&config).await;
    let status = async |algorithm: Algorithm, kid: &str, key: &EncodingKey| {
        let mut header = Header::new(algorithm);
        header.kid = Some(kid.into());
        let token = jsonwebtoken::encode(&header, &json!({"subjects": ["a"], "exp": now() + 600}), key).unwrap();
        bridge.events("").bearer_auth(token).send().await.unwrap().status().as_u16()
    };
    assert_eq!(status(Algorithm::ES256, "one", &one).await, 200);
    assert_eq!(status(Algorithm::EdDSA, "two", &two).await, 200);
    assert_eq!(status(Algorithm::EdDSA, "one", &two).await, 401);
    assert_eq!(status(Algorithm::ES256, "two", &one).await, 401);
    assert_eq!(status(Algorithm::ES256, "four", &one).await, 401);
}
