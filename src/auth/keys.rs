//! Keys that verify tokens, each bound to its algorithms: a token chooses among keys, never how a key is used.
//!
//! Owns secrets, PEM files and JWK sets as text. Knows nothing of requests, claims or fetching.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use serde::Deserialize;

use crate::settings::{Choice as _, Secret};

/// Signature algorithms of RFC 7518 section 3.1 and RFC 8037.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(clippy::upper_case_acronyms, missing_docs)]
pub(crate) enum Algorithm {
    HS256,
    HS384,
    HS512,
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

/// Why a key cannot be used. Says nothing of the key itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum KeyError {
    /// An HMAC secret must not be easier to guess than the hash.
    #[error("must hold at least {0} bytes, as many as the hash of its algorithm (`openssl rand -base64 {0}` makes one)")]
    ShortSecret(usize),
    /// A public key or a certificate, which everybody may have.
    #[error("must not be a PEM file: that holds a key or a certificate, which is no secret to share; `public_key` takes public keys")]
    PemSecret,
    /// HMAC with a public key, RS256 with an elliptic curve.
    #[error("must be a key that fits all of its `algorithms`")]
    Algorithm,
    /// Neither a public key nor a certificate, or a private key beside it.
    #[error("must be a public key in PEM (-----BEGIN PUBLIC KEY-----) or a certificate")]
    NoPem,
    /// Several public keys in one file: it is unclear which one is meant.
    #[error("must be a single public key: write one entry in `keys` for each")]
    SeveralPem,
    /// A key of an unsupported kind or curve, or a damaged one.
    #[error("must be an RSA key (2048 to 8192 bits), P-256, P-384 or Ed25519")]
    Unsupported,
    /// No JSON object with a list `keys`.
    #[error("must be a JWK set: a JSON object with a list `keys` (RFC 7517)")]
    NoSet,
    /// Its keys are all of another kind.
    #[error("must hold a key for the configured `algorithms`")]
    EmptySet,
}

/// A key and what it may be used for.
#[derive(Debug, Clone)]
pub(super) struct Key {
    /// `kid` it answers to; `None`: any.
    pub(super) id: Option<Box<str>>,
    /// All of the key's own kind.
    pub(super) algorithms: Box<[Algorithm]>,
    pub(super) decoding: DecodingKey,
    /// Tells its value from other keys' values.
    print: u64,
}

impl Key {
    fn new(id: Option<Box<str>>, algorithms: Box<[Algorithm]>, decoding: DecodingKey) -> Self {
        let print = print(&decoding);
        Self { id, algorithms, decoding, print }
    }

    /// Tells this key, used with this algorithm, from all others.
    pub(super) fn print(&self, algorithm: Algorithm) -> u64 {
        self.print & !ALGORITHM | algorithm as u64
    }

    /// Whether it may still be used as it was when it had this print.
    pub(super) fn has(&self, print: u64) -> bool {
        self.algorithms.iter().any(|algorithm| self.print(*algorithm) == print)
    }

    /// Whether this key may verify a token with this algorithm and, if the token has one, this `kid`.
    pub(super) fn suits(&self, algorithm: Algorithm, id: Option<&str>) -> bool {
        self.algorithms.contains(&algorithm) && (id.is_none() || self.id.is_none() || self.id.as_deref() == id)
    }
}

/// The part of a [`Key::print`] that says the algorithm.
const ALGORITHM: u64 = 0xf;

/// Whether a [`Key::print`] is of a key that is used with this algorithm.
pub(super) fn is_used_with(print: u64, algorithm: Algorithm) -> bool {
    print & ALGORITHM == algorithm as u64
}

/// The kind of a key, which decides what it can verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Secret { bytes: usize },
    Rsa,
    P256,
    P384,
    Ed25519,
}

impl Kind {
    fn verifies(self, algorithm: Algorithm) -> bool {
        use Algorithm as A;
        match algorithm {
            A::HS256 | A::HS384 | A::HS512 => matches!(self, Self::Secret { bytes } if bytes >= hash_bytes(algorithm)),
            A::RS256 | A::RS384 | A::RS512 | A::PS256 | A::PS384 | A::PS512 => self == Self::Rsa,
            A::ES256 => self == Self::P256,
            A::ES384 => self == Self::P384,
            A::EdDSA => self == Self::Ed25519,
        }
    }
}

pub(super) const fn hash_bytes(algorithm: Algorithm) -> usize {
    use Algorithm as A;
    match algorithm {
        A::HS384 | A::RS384 | A::PS384 | A::ES384 => 48,
        A::HS512 | A::RS512 | A::PS512 => 64,
        A::HS256 | A::RS256 | A::PS256 | A::ES256 | A::EdDSA => 32,
    }
}

pub(super) const fn is_hmac(algorithm: Algorithm) -> bool {
    matches!(algorithm, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512)
}

/// The library's name of an algorithm.
pub(super) const fn library(algorithm: Algorithm) -> jsonwebtoken::Algorithm {
    use jsonwebtoken::Algorithm as J;
    match algorithm {
        Algorithm::HS256 => J::HS256,
        Algorithm::HS384 => J::HS384,
        Algorithm::HS512 => J::HS512,
        Algorithm::RS256 => J::RS256,
        Algorithm::RS384 => J::RS384,
        Algorithm::RS512 => J::RS512,
        Algorithm::PS256 => J::PS256,
        Algorithm::PS384 => J::PS384,
        Algorithm::PS512 => J::PS512,
        Algorithm::ES256 => J::ES256,
        Algorithm::ES384 => J::ES384,
        Algorithm::EdDSA => J::EdDSA,
    }
}

/// Whether one key can have both: RS and PS go together.
pub(super) fn same_family(one: Algorithm, other: Algorithm) -> bool {
    library(one).family() == library(other).family()
}

/// The algorithm of a token or a JWK; `Ed25519` is EdDSA by its newer name (RFC 9864).
pub(super) fn algorithm(name: &str) -> Option<Algorithm> {
    if name == "Ed25519" { Some(Algorithm::EdDSA) } else { Algorithm::of_word(name) }
}

/// What a text in PEM has, which may begin with a comment.
const PEM: &[u8] = b"-----BEGIN ";

/// A shared secret.
pub(super) fn from_secret(secret: &Secret, id: Option<&str>, algorithms: &[Algorithm]) -> Result<Key, KeyError> {
    if !algorithms.iter().copied().all(is_hmac) {
        return Err(KeyError::Algorithm);
    }
    let bytes = secret.expose().len();
    if secret.expose().windows(PEM.len()).any(|part| part == PEM) {
        return Err(KeyError::PemSecret);
    }
    if let Some(short) = algorithms.iter().find(|algorithm| hash_bytes(**algorithm) > bytes) {
        return Err(KeyError::ShortSecret(hash_bytes(*short)));
    }
    Ok(Key::new(id.map(Into::into), algorithms.into(), DecodingKey::from_secret(secret.expose())))
}

/// Reads a public key, or the first certificate of a file: those after it are its issuers, which sign no tokens.
pub(super) fn from_pem(pem: &str, id: Option<&str>, algorithms: &[Algorithm]) -> Result<Key, KeyError> {
    // A file that came through an environment variable often has its line breaks as two characters.
    let pem = &*pem.replace("\\r", "").replace("\\n", "\n");
    if pem.contains("PRIVATE KEY-----") {
        return Err(KeyError::NoPem);
    }
    let keys: Vec<_> = SubjectPublicKeyInfoDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(|_| KeyError::NoPem)?;
    let decoding = match keys.as_slice() {
        [] if pem.contains("-----BEGIN RSA PUBLIC KEY-----") => {
            DecodingKey::from_rsa_pem(pem.as_bytes()).map_err(|_| KeyError::Unsupported)?
        }
        [] => {
            let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| KeyError::NoPem)?;
            let parsed = rustls::server::ParsedCertificate::try_from(&certificate).map_err(|_| KeyError::NoPem)?;
            from_public_key_info(&parsed.subject_public_key_info())?
        }
        [key] => from_public_key_info(key)?,
        _ => return Err(KeyError::SeveralPem),
    };
    let kind = kind(&decoding).ok_or(KeyError::Unsupported)?;
    if !algorithms.iter().all(|algorithm| kind.verifies(*algorithm)) {
        return Err(KeyError::Algorithm);
    }
    Ok(Key::new(id.map(Into::into), algorithms.into(), decoding))
}

fn from_public_key_info(info: &SubjectPublicKeyInfoDer<'_>) -> Result<DecodingKey, KeyError> {
    // This is the one form of PEM that the library reads reliably. Of a certificate it would take the first part that looks
    // like a key.
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(info));
    let pem = pem.as_bytes();
    DecodingKey::from_ed_pem(pem)
        .or_else(|_| DecodingKey::from_ec_pem(pem))
        .or_else(|_| DecodingKey::from_rsa_pem(pem))
        .map_err(|_| KeyError::Unsupported)
}

/// A hash of a key's value, whatever its name and wherever it was read.
fn print(key: &DecodingKey) -> u64 {
    let mut hasher = DefaultHasher::new();
    match Jwk::from_decoding_key(key, None).map(|jwk| jwk.algorithm) {
        Ok(AlgorithmParameters::RSA(numbers)) => (numbers.n, numbers.e).hash(&mut hasher),
        _ => key.try_get_as_bytes().unwrap_or_default().hash(&mut hasher),
    }
    hasher.finish()
}

/// Looks at the key itself, so that a key that cannot verify anything is refused at start.
fn kind(key: &DecodingKey) -> Option<Kind> {
    use jsonwebtoken::AlgorithmFamily as Family;
    let bytes = || key.try_get_as_bytes().unwrap_or_default();
    match key.family() {
        Family::Hmac => Some(Kind::Secret { bytes: bytes().len() }),
        Family::Ec => match (bytes().len(), bytes().first()) {
            (65, Some(4)) => Some(Kind::P256),
            (97, Some(4)) => Some(Kind::P384),
            _ => None,
        },
        Family::Ed => (bytes().len() == 32).then_some(Kind::Ed25519),
        Family::Rsa => {
            let AlgorithmParameters::RSA(numbers) = Jwk::from_decoding_key(key, None).ok()?.algorithm else { return None };
            let modulus = URL_SAFE_NO_PAD.decode(numbers.n).ok()?;
            let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
            let bits = (modulus.len() - zeros) * 8 - modulus.get(zeros).map_or(0, |byte| byte.leading_zeros() as usize);
            (2048..=8192).contains(&bits).then_some(Kind::Rsa)
        }
    }
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<serde_json::Value>,
}

/// The members of a JWK that matter here (RFC 7517, RFC 7518 section 6, RFC 8037).
#[derive(Deserialize)]
struct Member {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    r#use: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    k: Option<String>,
}

/// The most keys of a set that are kept: a token without `kid` may need all of them to be tried.
pub(super) const MAX_SET: usize = 64;

/// The keys of a set that fit `algorithms` (and `id`, where only one is wanted). As RFC 7517 section 5 asks, members that
/// are of another kind or not understood are left out.
pub(super) fn from_set(json: &str, id: Option<&str>, algorithms: &[Algorithm]) -> Result<Vec<Key>, KeyError> {
    let set: Set = serde_json::from_str(json).map_err(|_| KeyError::NoSet)?;
    let mut keys: Vec<Key> = set.keys.into_iter().filter_map(|member| from_member(member, id, algorithms)).collect();
    if keys.len() > MAX_SET {
        tracing::warn!(keys = keys.len(), kept = MAX_SET, "a key set has more keys than are kept: the last ones are left out");
        keys.truncate(MAX_SET);
    }
    if keys.is_empty() { Err(KeyError::EmptySet) } else { Ok(keys) }
}

/// An unsigned number. Some libraries put a zero before it, as for a signed one (RFC 7518, section 6.3.1.1).
fn number(text: &str) -> Option<Vec<u8>> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    Some(bytes.into_iter().skip_while(|byte| *byte == 0).collect())
}

fn from_member(member: serde_json::Value, wanted: Option<&str>, algorithms: &[Algorithm]) -> Option<Key> {
    let member: Member = serde_json::from_value(member).ok()?;
    if member.r#use.is_some_and(|usage| usage != "sig")
        || member.key_ops.is_some_and(|operations| !operations.iter().any(|operation| operation == "verify"))
        || (wanted.is_some() && member.kid.as_deref() != wanted)
    {
        return None;
    }
    let decoding = match (member.kty.as_str(), member.crv.as_deref()) {
        ("RSA", _) => DecodingKey::from_rsa_raw_components(&number(&member.n?)?, &number(&member.e?)?),
        ("EC", Some("P-256" | "P-384")) => DecodingKey::from_ec_components(&member.x?, &member.y?).ok()?,
        ("OKP", Some("Ed25519")) => DecodingKey::from_ed_components(&member.x?).ok()?,
        ("oct", _) => DecodingKey::from_secret(&URL_SAFE_NO_PAD.decode(member.k?).ok()?),
        _ => return None,
    };
    let kind = kind(&decoding)?;
    if matches!((kind, member.crv.as_deref()), (Kind::P256, Some(curve)) if curve != "P-256")
        || matches!((kind, member.crv.as_deref()), (Kind::P384, Some(curve)) if curve != "P-384")
    {
        return None;
    }
    let only = match member.alg {
        Some(name) => Some(algorithm(&name)?),
        None => None,
    };
    let fitting: Box<[Algorithm]> =
        algorithms.iter().copied().filter(|algorithm| kind.verifies(*algorithm) && only.is_none_or(|only| only == *algorithm)).collect();
    (!fitting.is_empty()).then(|| Key::new(member.kid.map(Into::into), fitting, decoding))
}
