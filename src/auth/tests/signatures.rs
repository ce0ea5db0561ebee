//! Every algorithm, from every kind of key.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{EncodingKey, Header};
use rcgen::{CertificateParams, KeyPair, RsaKeySize};

use super::*;
use crate::settings::tests::read_at;

pub(super) struct Pair {
    pub(super) signing: EncodingKey,
    pub(super) public_pem: String,
    pub(super) private_pem: String,
    pub(super) certificate: String,
}

fn pair(keys: KeyPair, read: fn(&[u8]) -> jsonwebtoken::errors::Result<EncodingKey>) -> Pair {
    let issuer = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    let certificate = CertificateParams::new(vec!["idp.example.com".into()]).expect("a name");
    // By an issuer with another kind of key: what is to be read is the subject's.
    let issuer = rcgen::Issuer::new(CertificateParams::new(vec![]).expect("no name"), issuer);
    Pair {
        signing: read(keys.serialize_pem().as_bytes()).expect("a key"),
        public_pem: keys.public_key_pem(),
        private_pem: keys.serialize_pem(),
        certificate: certificate.signed_by(&keys, &issuer).expect("a certificate").pem(),
    }
}

fn ec(kind: &'static rcgen::SignatureAlgorithm) -> Pair {
    pair(KeyPair::generate_for(kind).expect("a key"), EncodingKey::from_ec_pem)
}

pub(super) static RSA: LazyLock<Pair> = LazyLock::new(|| {
    pair(KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).expect("a key"), EncodingKey::from_rsa_pem)
});
pub(super) static P256: LazyLock<Pair> = LazyLock::new(|| ec(&rcgen::PKCS_ECDSA_P256_SHA256));
static P384: LazyLock<Pair> = LazyLock::new(|| ec(&rcgen::PKCS_ECDSA_P384_SHA384));
static ED25519: LazyLock<Pair> =
    LazyLock::new(|| pair(KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key"), EncodingKey::from_ed_pem));

fn pairs() -> Vec<(&'static Pair, Vec<Algorithm>)> {
    use Algorithm as A;
    vec![
        (&RSA, vec![A::RS256, A::RS384, A::RS512, A::PS256, A::PS384, A::PS512]),
        (&P256, vec![A::ES256]),
        (&P384, vec![A::ES384]),
        (&ED25519, vec![A::EdDSA]),
    ]
}

pub(super) fn sign(pair: &Pair, algorithm: Algorithm, id: Option<&str>, claims: &Value) -> String {
    let header = Header { kid: id.map(str::to_owned), ..Header::new(keys::library(algorithm)) };
    jsonwebtoken::encode(&header, claims, &pair.signing).expect("a token")
}

/// The JWK of a pair's public key, with these members beside.
pub(super) fn jwk(pair: &Pair, algorithm: Algorithm, more: Value) -> Value {
    let public = keys::from_pem(&pair.public_pem, None, &[algorithm]).expect("a key").decoding;
    let jwk = Jwk::from_decoding_key(&public, None).expect("a JWK");
    let mut jwk = serde_json::to_value(jwk).expect("JSON");
    let (Value::Object(members), Value::Object(more)) = (&mut jwk, more) else { panic!("objects") };
    members.extend(more);
    jwk
}

#[test]
fn secrets_verify_each_hash() {
    let algorithms = [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
    let authenticator = authenticator(vec![key(&algorithms, None, KeyMaterial::Secret(Secret::new(SECRET)))]);
    for algorithm in algorithms {
        let token = mint(&Secret::new(SECRET), algorithm, &claims(json!({})), Some("any")).expect("a token");
        assert!(ask(&authenticator, &token).is_ok(), "{algorithm:?}");
        let other = mint(&Secret::new([7; 64]), algorithm, &claims(json!({})), None).expect("a token");
        assert_eq!(ask(&authenticator, &other).expect_err("another secret"), AuthError::Invalid(Refused::Signature));
    }
}

#[test]
fn public_keys_and_certificates_verify_each_algorithm() {
    for (pair, algorithms) in pairs() {
        let chain = format!("{}{}", pair.certificate, RSA.certificate);
        for pem in [&pair.public_pem, &pair.certificate, &chain] {
            let authenticator = authenticator(vec![key(&algorithms, None, KeyMaterial::Pem(pem.clone()))]);
            for algorithm in &algorithms {
                let token = sign(pair, *algorithm, None, &claims(json!({})));
                assert!(ask(&authenticator, &token).is_ok(), "{algorithm:?}");
                let at = token.rfind('.').expect("a signature") + 10;
                let flipped = if token.as_bytes()[at] == b'A' { "B" } else { "A" };
                let forged = format!("{}{flipped}{}", &token[..at], &token[at + 1..]);
                assert_eq!(ask(&authenticator, &forged).expect_err("forged"), AuthError::Invalid(Refused::Signature));
            }
        }
    }
}

#[test]
fn key_sets_verify_each_algorithm_and_leave_out_what_they_do_not_know() {
    let all: Vec<Algorithm> = pairs().into_iter().flat_map(|(_, algorithms)| algorithms).collect();
    let mut members: Vec<Value> =
        pairs().iter().enumerate().map(|(i, (pair, a))| jwk(pair, a[0], json!({ "kid": i.to_string() }))).collect();
    members.insert(0, json!({ "kty": "PQC", "kid": "new" }));
    members.insert(0, json!("rubbish"));
    members.insert(0, json!({ "kty": "RSA", "n": "AQAB", "e": "AQAB", "kid": "tiny" }));
    members.insert(0, json!({ "kty": "EC", "crv": "P-521", "x": "AAAA", "y": "AAAA" }));
    members.push(jwk(&P256, Algorithm::ES256, json!({ "kid": "enc", "use": "enc" })));
    members.push(jwk(&P256, Algorithm::ES256, json!({ "kid": "sign", "key_ops": ["sign"] })));
    members.push(jwk(&RSA, Algorithm::RS256, json!({ "kid": "narrow", "alg": "RS384" })));
    members.push(jwk(&RSA, Algorithm::RS256, json!({ "kid": "wide", "alg": "RSA-OAEP" })));
    // As of a signed number.
    let n = URL_SAFE_NO_PAD.decode(jwk(&RSA, Algorithm::RS256, json!({}))["n"].as_str().expect("a number")).expect("base64url");
    let n = URL_SAFE_NO_PAD.encode([&[0], &n[..]].concat());
    members.push(jwk(&RSA, Algorithm::RS256, json!({ "kid": "zero", "n": n })));
    let set = json!({ "keys": members }).to_string();
    let authenticator = authenticator(vec![key(&all, None, KeyMaterial::Jwks(set))]);
    for (i, (pair, algorithms)) in pairs().into_iter().enumerate() {
        for algorithm in algorithms {
            for id in [Some(i.to_string()), None] {
                assert!(ask(&authenticator, &sign(pair, algorithm, id.as_deref(), &claims(json!({})))).is_ok(), "{algorithm:?} {id:?}");
            }
        }
    }
    let as_key = |pair: &Pair, algorithm, id| ask(&authenticator, &sign(pair, algorithm, Some(id), &claims(json!({}))));
    assert!(as_key(&RSA, Algorithm::RS384, "narrow").is_ok());
    assert!(as_key(&RSA, Algorithm::RS256, "zero").is_ok());
    for (pair, algorithm, id) in [
        (&RSA, Algorithm::RS256, "narrow"),
        (&RSA, Algorithm::RS256, "wide"),
        (&P256, Algorithm::ES256, "enc"),
        (&P256, Algorithm::ES256, "sign"),
        (&P256, Algorithm::ES256, "unheard of"),
    ] {
        assert_eq!(as_key(pair, algorithm, id).expect_err(id), AuthError::Invalid(Refused::UnknownKey));
    }
    assert_eq!(as_key(&RSA, Algorithm::RS256, "1").expect_err("P-256's"), AuthError::Invalid(Refused::UnknownKey));
}

#[test]
fn a_secret_in_a_key_set_is_as_long_as_its_hash() {
    let set = |k: &[u8]| {
        let k = URL_SAFE_NO_PAD.encode(k);
        json!({ "keys": [{ "kty": "oct", "k": k }] }).to_string()
    };
    let from = |json: &str, algorithms: &[Algorithm]| keys::from_set(json, None, algorithms).map(|keys| keys.len());
    assert_eq!(from(&set(&[7; 32]), &[Algorithm::HS256, Algorithm::HS512]), Ok(1));
    assert_eq!(from(&set(&[7; 32]), &[Algorithm::HS512]), Err(KeyError::EmptySet));
    assert_eq!(from(&set(&[7; 31]), &[Algorithm::HS256]), Err(KeyError::EmptySet));
    assert_eq!(from(&set(b""), &[Algorithm::HS256]), Err(KeyError::EmptySet));
    assert_eq!(from(&set(&[7; 32]), &[Algorithm::RS256]), Err(KeyError::EmptySet));
}

#[test]
fn keys_that_cannot_work_are_refused_at_start() {
    let pem = |pem: &str, algorithms: &[Algorithm]| keys::from_pem(pem, None, algorithms).map(drop);
    assert_eq!(pem(&RSA.public_pem, &[Algorithm::HS256]), Err(KeyError::Algorithm));
    assert_eq!(pem(&RSA.public_pem, &[Algorithm::RS256, Algorithm::ES256]), Err(KeyError::Algorithm));
    assert_eq!(pem(&P256.public_pem, &[Algorithm::ES384]), Err(KeyError::Algorithm));
    assert_eq!(pem(&RSA.private_pem, &[Algorithm::RS256]), Err(KeyError::NoPem));
    assert_eq!(pem(&P256.private_pem, &[Algorithm::ES256]), Err(KeyError::NoPem));
    assert_eq!(pem("", &[Algorithm::RS256]), Err(KeyError::NoPem));
    assert_eq!(pem("-----BEGIN PUBLIC KEY-----\n!!\n-----END PUBLIC KEY-----\n", &[Algorithm::RS256]), Err(KeyError::NoPem));
    assert_eq!(pem("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", &[Algorithm::RS256]), Err(KeyError::Unsupported));
    assert_eq!(
        pem("-----BEGIN RSA PUBLIC KEY-----\nAAAA\n-----END RSA PUBLIC KEY-----\n", &[Algorithm::RS256]),
        Err(KeyError::Unsupported)
    );
    assert_eq!(pem("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", &[Algorithm::RS256]), Err(KeyError::NoPem));
    assert_eq!(pem(&format!("{}{}", RSA.public_pem, P256.public_pem), &[Algorithm::RS256]), Err(KeyError::SeveralPem));
    let p521 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).expect("a key").public_key_pem();
    assert_eq!(pem(&p521, &[Algorithm::ES256]), Err(KeyError::Unsupported));
    let secret = |bytes: &[u8], algorithms: &[Algorithm]| keys::from_secret(&Secret::new(bytes), None, algorithms).map(drop);
    assert_eq!(secret(b"", &[Algorithm::HS256]), Err(KeyError::ShortSecret(32)));
    assert_eq!(secret(&[7; 40], &[Algorithm::HS256, Algorithm::HS384]), Err(KeyError::ShortSecret(48)));
    assert_eq!(secret(&[7; 64], &[Algorithm::RS256]), Err(KeyError::Algorithm));
    let set = |json: &str| keys::from_set(json, None, &[Algorithm::RS256]).map(drop);
    assert_eq!(set("rubbish"), Err(KeyError::NoSet));
    assert_eq!(set("[]"), Err(KeyError::NoSet));
    assert_eq!(set(&("[".repeat(100_000))), Err(KeyError::NoSet));
    assert_eq!(set(r#"{"keys":[]}"#), Err(KeyError::EmptySet));
    for (key, expected) in [
        (json!({ "algorithms": ["RS256"], "public_key": "x" }), ".public_key: must be a public key in PEM"),
        (json!({ "algorithms": ["RS256"], "jwks_url": "file:///etc/passwd" }), ".jwks_url: must be a URL"),
    ] {
        let auth = json!({ "jwt": { "keys": [{ "algorithms": ["HS256"], "secret": "0123456789abcdef0123456789abcdef" }, key] } });
        let problems = read_at(&["auth"], &auth, |auth| Some(Settings::read(auth))).expect_err(expected);
        assert!(problems.len() == 1 && problems[0].contains(&format!("auth.jwt.keys[1]{expected}")), "{problems:?}");
    }
}

#[test]
fn an_old_style_rsa_public_key_is_read_too() {
    // The contents of the newer form's bit string, behind its header of 24 bytes for 2048 bits.
    use base64::Engine as _;
    let base64 = base64::engine::general_purpose::STANDARD;
    let body: String = RSA.public_pem.lines().filter(|line| !line.starts_with('-')).collect();
    let der = base64.decode(body).expect("base64");
    let pem = format!("-----BEGIN RSA PUBLIC KEY-----\n{}\n-----END RSA PUBLIC KEY-----\n", base64.encode(&der[24..]));
    let authenticator = authenticator(vec![key(&[Algorithm::RS256], None, KeyMaterial::Pem(pem))]);
    assert!(ask(&authenticator, &sign(&RSA, Algorithm::RS256, None, &claims(json!({})))).is_ok());
}

#[test]
fn only_hmac_tokens_are_minted() {
    let mint = |algorithm, secret: &[u8]| mint(&Secret::new(secret), algorithm, &json!({}), None).map(drop);
    assert!(matches!(mint(Algorithm::RS256, SECRET), Err(token::MintError::NotHmac)));
    assert!(matches!(mint(Algorithm::HS512, &[7; 63]), Err(token::MintError::Key(KeyError::ShortSecret(64)))));
    assert!(mint(Algorithm::HS512, SECRET).is_ok());
}
