//! Tokens, good and bad ones.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

/// The HMAC secret of the tests' configurations.
pub const SECRET: &str = "a secret of the tests, 32 bytes and more";

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// An HS256 token with these claims, good for an hour unless they say otherwise.
pub fn mint(claims: Value) -> String {
    mint_with(&Header::new(Algorithm::HS256), SECRET, claims)
}

/// A token with this header and HMAC secret.
pub fn mint_with(header: &Header, secret: &str, mut claims: Value) -> String {
    if claims.get("exp").is_none() {
        claims["exp"] = json!(now() + 3600);
    }
    jsonwebtoken::encode(header, &claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
}

/// A token whose header is any JSON and whose signature is real where `secret` is given.
pub fn forge(header: &Value, claims: &Value, secret: Option<&str>) -> String {
    let part = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
    let signed = format!("{}.{}", part(header), part(claims));
    let signature = secret.map_or(String::new(), |secret| {
        jsonwebtoken::crypto::sign(signed.as_bytes(), &EncodingKey::from_secret(secret.as_bytes()), Algorithm::HS256).unwrap()
    });
    format!("{signed}.{signature}")
}

/// `auth.jwt` for [`SECRET`], to be put under `auth:`.
pub fn jwt() -> String {
    format!("  jwt: {{ leeway: 0s, keys: [ {{ algorithms: [HS256], secret: \"{SECRET}\" }} ] }}\n")
}
