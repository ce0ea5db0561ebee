//! Tokens that are revoked while their streams are open.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::KeyPair;
use serde_json::{Value, json};

use crate::support::token::{jwt, mint, mint_with, now};
use crate::support::{Bridge, Item, Sse};

async fn start() -> Bridge {
    Bridge::start(&format!("auth:\n{}sources: {{ inbox: {{ http: {{ subjects: [\">\"] }} }} }}\n", jwt())).await
}

/// Status and body of an answer of the admin listener.
async fn ask(request: reqwest::RequestBuilder) -> (u16, Value) {
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let text = answer.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::Null))
}

async fn revoke(bridge: &Bridge, order: Value) -> (u16, Value) {
    ask(bridge.http.post(bridge.admin_url("/revocations")).body(order.to_string())).await
}

async fn is_ended_as_revoked(mut sse: Sse) {
    let items = sse.rest().await;
    let Some(Item::Event(last)) = items.last() else { panic!("{items:?}") };
    assert_eq!((last.name.as_str(), last.reason().as_str()), ("brokercast.closing", "revoked"));
}

#[tokio::test]
async fn a_revoked_tokens_streams_end_within_a_second_over_both_transports_and_it_opens_no_more() {
    let bridge = start().await;
    let one = mint(json!({"sub": "ada", "jti": "1", "sid": "s", "subjects": [">"], "publish": [">"], "iat": now() - 10}));
    let other = mint(json!({"sub": "ada", "jti": "2", "subjects": [">"], "iat": now() - 5}));
    let two = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let mut plain = Sse::open(bridge.events("").bearer_auth(&one)).await;
    let mut over_two = Sse::open(two.get(bridge.url("/events")).bearer_auth(&one)).await;
    let mut kept = Sse::open(bridge.events("").bearer_auth(&other)).await;
    for sse in [&mut plain, &mut over_two, &mut kept] {
        sse.id().await;
    }
    let began = Instant::now();
    let (status, body) = revoke(&bridge, json!({"identity": "ada", "token_id": "1", "until": "1h"})).await;
    assert_eq!((status, &body["ended"], &body["scope"]), (201, &json!(2), &json!("process")), "{body}");
    is_ended_as_revoked(plain).await;
    is_ended_as_revoked(over_two).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let (status, refused) = ask(bridge.events("").bearer_auth(&one)).await;
    assert_eq!((status, &refused["code"]), (401, &json!("token_invalid")));
    let post = bridge.http.post(bridge.url("/publish/a")).bearer_auth(&one).body("1");
    assert_eq!(ask(post).await.0, 401, "it publishes no more either");

    let (_, listed) = ask(bridge.http.get(bridge.admin_url("/revocations"))).await;
    let listed = &listed["revocations"];
    assert_eq!((&listed[0]["id"], &listed[0]["identity"], listed.as_array().unwrap().len()), (&body["id"], &json!("ada"), 1));
    let path = format!("/revocations/{}", body["id"].as_str().unwrap());
    assert_eq!(ask(bridge.http.delete(bridge.admin_url(&path))).await.0, 204);
    assert_eq!(ask(bridge.http.delete(bridge.admin_url(&path))).await.0, 404);
    assert_eq!(bridge.events("").bearer_auth(&one).send().await.unwrap().status(), 200);

    // Only what was issued before counts: the stream that was left alone so far, and not a newer token.
    let before = jiff_text(now() - 1);
    assert_eq!(revoke(&bridge, json!({"issued_before": before, "until": "2100-01-01T00:00:00Z"})).await.0, 201);
    is_ended_as_revoked(kept).await;
    let newer = mint(json!({"sub": "ada", "subjects": [">"], "iat": now()}));
    assert_eq!(bridge.events("").bearer_auth(&newer).send().await.unwrap().status(), 200);
    let undated = mint(json!({"sub": "ada", "subjects": [">"]}));
    assert_eq!(bridge.events("").bearer_auth(&undated).send().await.unwrap().status(), 401);
}

#[tokio::test]
async fn a_key_that_is_taken_out_ends_the_streams_that_it_let_in() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    let secrets = ["the first secret of the tests, 32 bytes and more", "the second secret of the tests, 32 bytes and more"];
    let keep = |kept: &[(usize, &str)]| std::fs::write(&file, key_set(kept)).unwrap();
    let config = |secret: &str| {
        format!(
            "auth:\n  jwt:\n    keys:\n      - {{ algorithms: [ES256], jwks_file: \"{}\" }}\n      - {{ algorithms: [HS256], secret: \"{secret}\" }}\n\
             sources: {{ inbox: {{ http: {{ subjects: [\">\"] }} }} }}\n",
            file.display()
        )
    };
    keep(&[(0, "a"), (1, "b")]);
    let bridge = Bridge::start(&config(secrets[0])).await;
    let open = async |token: String| {
        let mut sse = Sse::open(bridge.events("").bearer_auth(token)).await;
        sse.id().await;
        sse
    };
    let by_secret = |secret| mint_with(&Header::default(), secret, json!({"subjects": [">"]}));
    let (gone, mut kept, mut shared) = (open(signed(0, "a")).await, open(signed(1, "b")).await, open(by_secret(secrets[0])).await);
    // The other key stays, by another name.
    keep(&[(1, "c")]);
    is_ended_as_revoked(gone).await;
    kept.stays_quiet(Duration::from_millis(700)).await;
    shared.stays_quiet(Duration::from_millis(10)).await;
    bridge.configure(&config(secrets[1]));
    assert_eq!(ask(bridge.http.post(bridge.admin_url("/reload"))).await.0, 200);
    is_ended_as_revoked(shared).await;
    // The key stays, but not for what signed this token.
    let other = open(by_secret(secrets[1])).await;
    bridge.configure(&config(secrets[1]).replace("HS256", "HS384"));
    assert_eq!(ask(bridge.http.post(bridge.admin_url("/reload"))).await.0, 200);
    is_ended_as_revoked(other).await;
    kept.stays_quiet(Duration::from_millis(700)).await;
}

#[tokio::test]
async fn a_client_that_waits_for_a_slot_gets_none_by_a_key_that_is_taken_out_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    std::fs::write(&file, key_set(&[(0, "a"), (1, "b")])).unwrap();
    let bridge = Bridge::start(&format!(
        "auth: {{ jwt: {{ keys: [{{ algorithms: [ES256], jwks_file: \"{}\" }}] }} }}\n\
         subscribers: {{ max: 1, when_full: {{ wait: 20s, waiting: 1 }} }}\n\
         sources: {{ inbox: {{ http: {{ subjects: [\">\"] }} }} }}\n",
        file.display()
    ))
    .await;
    let mut open = Sse::open(bridge.events("").bearer_auth(signed(0, "a"))).await;
    open.id().await;
    let ask = || Box::pin(bridge.events("").bearer_auth(signed(0, "a")).send());
    let (mut one, mut two) = (ask(), ask());
    // One of the two finds the queue full, the other waits.
    let (refused, waiting) = tokio::select! {
        refused = &mut one => (refused, two),
        refused = &mut two => (refused, one),
    };
    assert_eq!(refused.unwrap().status(), 503);
    std::fs::write(&file, key_set(&[(1, "b")])).unwrap();
    is_ended_as_revoked(open).await;
    assert_eq!(waiting.await.unwrap().status(), 401);
}

/// A set of keys, each with its name.
fn key_set(keys: &[(usize, &str)]) -> String {
    let key = |(n, id): &(usize, &str)| {
        let point = PAIRS[*n].public_key_raw();
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        json!({"kty": "EC", "crv": "P-256", "kid": id, "x": text(&point[1..33]), "y": text(&point[33..])})
    };
    json!({"keys": keys.iter().map(key).collect::<Vec<_>>()}).to_string()
}

/// A token that one of the keys has signed.
fn signed(n: usize, id: &str) -> String {
    let header = Header { kid: Some(id.into()), ..Header::new(Algorithm::ES256) };
    let key = EncodingKey::from_ec_pem(PAIRS[n].serialize_pem().as_bytes()).unwrap();
    jsonwebtoken::encode(&header, &json!({"subjects": [">"], "exp": now() + 600}), &key).unwrap()
}

static PAIRS: LazyLock<[KeyPair; 2]> =
    LazyLock::new(|| std::array::from_fn(|_| KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap()));

fn jiff_text(seconds: u64) -> String {
    jiff::Timestamp::from_second(i64::try_from(seconds).unwrap()).unwrap().to_string()
}

#[tokio::test]
async fn an_order_that_cannot_be_read_revokes_nothing() {
    let bridge = start().await;
    let mut sse = Sse::open(bridge.events("").bearer_auth(mint(json!({"sub": "ada", "subjects": [">"]})))).await;
    sse.id().await;
    for order in [
        json!({"until": "1h"}),
        json!({"identity": "ada"}),
        json!({"identity": "ada", "until": "yesterday"}),
        json!({"identity": "ada", "until": "2001-01-01T00:00:00Z"}),
        json!({"identity": "ada", "until": "1h", "kid": "x"}),
        json!({"identity": "", "until": "1h"}),
        json!(["ada"]),
    ] {
        let (status, body) = revoke(&bridge, order.clone()).await;
        assert_eq!((status, &body["status"]), (400, &json!(400)), "{order}");
    }
    assert_eq!(ask(bridge.http.put(bridge.admin_url("/revocations"))).await.0, 405);
    assert_eq!(revoke(&bridge, json!({"identity": "ada".repeat(50_000), "until": "1h"})).await.0, 413);
    sse.stays_quiet(Duration::from_millis(700)).await;
}
