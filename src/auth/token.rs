//! Tokens: signature first, then what they say (RFC 7515, RFC 7519, RFC 8725).
//!
//! Pure: takes `now`. Knows no request and no grant.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::EncodingKey;
use serde::Deserializer;
use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::keys::{self, Algorithm, Key, KeyError};
use crate::event::Timestamp;
use crate::settings::Secret;

/// Why a token is refused: for the log, never for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// Not three parts of base64url, or not JSON inside, or a name twice.
    #[error("it is not a signed JWT")]
    Malformed,
    /// `none`, or one that is unknown.
    #[error("its `alg` is not supported")]
    Algorithm,
    /// An ID token's or another kind's.
    #[error("its `typ` is neither `JWT` nor `at+jwt`")]
    Type,
    /// RFC 7515 section 4.1.11: what is critical must be understood.
    #[error("it has a `crit` header")]
    Critical,
    /// No key for its `kid` and `alg`.
    #[error("no configured key has its `kid` and `alg`")]
    UnknownKey,
    /// The signature is not that of any key that suits.
    #[error("its signature is wrong")]
    Signature,
    /// A registered claim of the wrong type.
    #[error("its claim `{0}` is of the wrong type")]
    ClaimType(&'static str),
    /// A claim that must be there.
    #[error("it lacks the claim `{0}`")]
    ClaimMissing(&'static str),
    /// Past `exp` and leeway.
    #[error("it has expired")]
    Expired,
    /// Before `nbf` less leeway.
    #[error("it is not valid yet")]
    NotYet,
    /// Longer than `max_lifetime`.
    #[error("its lifetime is longer than `max_lifetime`: `exp` and `iat` are seconds, not milliseconds")]
    Lifetime,
    /// Not a configured `iss`.
    #[error("its `iss` is not a configured one")]
    Issuer,
    /// Not a configured `aud`.
    #[error("its `aud` is not a configured one")]
    Audience,
    /// An order that it meets.
    #[error("it was revoked")]
    Revoked,
    /// The backend's word.
    #[error("the backend refuses it")]
    Backend,
    /// No issuer is configured.
    #[error("no keys are configured")]
    NoKeys,
    /// Two cookies of the same name: a neighbouring host may have set one of them.
    #[error("it comes in two cookies of the same name")]
    TwoCookies,
}

/// A token split into its parts; nothing in it is verified yet.
pub(super) struct Parsed<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) id: Option<String>,
    /// What is signed, as it stands in the token: some issuers pad its parts, and sign them so.
    message: &'a str,
    payload: Vec<u8>,
    claims: Map<String, Value>,
    signature: &'a str,
}

/// The most keys that are tried for a token without `kid`.
const MAX_TRIES: usize = 8;

impl<'a> Parsed<'a> {
    pub(super) fn new(token: &'a str) -> Result<Self, Refused> {
        let (message, signature) = token.rsplit_once('.').ok_or(Refused::Malformed)?;
        let (header, payload) = message.split_once('.').ok_or(Refused::Malformed)?;
        if payload.contains('.') {
            return Err(Refused::Malformed);
        }
        let header = object(&decoded(header)?)?;
        let text = |name| match header.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(Refused::Malformed),
        };
        if header.contains_key("crit") {
            return Err(Refused::Critical);
        }
        if let Some(kind) = text("typ")? {
            // RFC 7515 section 4.1.9: the prefix `application/` is optional.
            let kind = kind.to_ascii_lowercase();
            if !matches!(kind.strip_prefix("application/").unwrap_or(&kind), "jwt" | "at+jwt") {
                return Err(Refused::Type);
            }
        }
        let algorithm = text("alg")?.and_then(keys::algorithm).ok_or(Refused::Algorithm)?;
        let id = text("kid")?.map(str::to_owned);
        let payload = decoded(payload)?;
        let claims = object(&payload)?;
        // `jku`, `jwk`, `x5u` and `x5c` are ignored: a token must not bring its own key.
        Ok(Self { algorithm, id, message, payload, claims, signature: unpadded(signature)? })
    }

    /// What it says, which only counts once it is verified.
    pub(super) const fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    /// The same as JSON.
    pub(super) fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// The key that signed the token.
    pub(super) fn verify<'k>(&self, keys: impl Iterator<Item = &'k Key>) -> Result<&'k Key, Refused> {
        let mut refused = Refused::UnknownKey;
        for key in keys.filter(|key| key.suits(self.algorithm, self.id.as_deref())).take(MAX_TRIES) {
            let algorithm = keys::library(self.algorithm);
            if jsonwebtoken::crypto::verify(self.signature, self.message.as_bytes(), &key.decoding, algorithm).unwrap_or(false) {
                return Ok(key);
            }
            refused = Refused::Signature;
        }
        Err(refused)
    }
}

/// What the registered claims must be.
#[derive(Debug)]
pub(super) struct Rules {
    /// One of them must be in `aud`; none: `aud` is not looked at.
    pub(super) audiences: Vec<String>,
    pub(super) leeway: Duration,
    pub(super) max_lifetime: Duration,
}

impl Rules {
    /// Checks the registered claims. Returns the time from which the token is refused as expired: `exp` plus leeway.
    pub(super) fn check(&self, claims: &Map<String, Value>, now: Timestamp) -> Result<Timestamp, Refused> {
        // Checked first, so that a client learns that its token has expired only if the token is otherwise meant for this server.
        self.check_audience(claims)?;
        let expires = numeric_date(claims, "exp")?.ok_or(Refused::ClaimMissing("exp"))?;
        let until = expires.after(self.leeway);
        if now >= until {
            return Err(Refused::Expired);
        }
        let soon = now.after(self.leeway);
        if numeric_date(claims, "nbf")?.is_some_and(|from| soon < from) {
            return Err(Refused::NotYet);
        }
        // An `iat` in the future is no earlier time: in milliseconds, as `exp`, it would hide that.
        let issued = numeric_date(claims, "iat")?.map_or(now, |issued| issued.min(soon));
        if expires.since(issued) > self.max_lifetime {
            return Err(Refused::Lifetime);
        }
        Ok(until)
    }

    fn check_audience(&self, claims: &Map<String, Value>) -> Result<(), Refused> {
        if self.audiences.is_empty() {
            return Ok(());
        }
        let ours = |found: &Value| found.as_str().is_some_and(|found| self.audiences.iter().any(|audience| audience == found));
        let good = match claims.get("aud").ok_or(Refused::ClaimMissing("aud"))? {
            Value::Array(found) => found.iter().any(ours),
            found => ours(found),
        };
        if good { Ok(()) } else { Err(Refused::Audience) }
    }
}

/// A value that names somebody or something: a text, or a whole number, such as that of a row of a table, as its text. Of a number
/// that is no whole one of 64 bits only an approximation is known, which two values may share.
pub(super) fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if !number.is_f64() => Some(number.to_string()),
        _ => None,
    }
}

/// RFC 7519 section 2: seconds since 1970, perhaps with a fraction.
pub(super) fn numeric_date(claims: &Map<String, Value>, name: &'static str) -> Result<Option<Timestamp>, Refused> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::Number(number)) => {
            // Whole numbers stay exact. A time before 1970 counts as 1970, one that is too late as the latest time.
            let micros = number
                .as_u64()
                .map(|seconds| seconds.saturating_mul(1_000_000))
                .or_else(|| number.as_f64().map(|seconds| (seconds * 1e6) as u64))
                .ok_or(Refused::ClaimType(name))?;
            Ok(Some(Timestamp::from_micros(micros)))
        }
        Some(_) => Err(Refused::ClaimType(name)),
    }
}

/// Without `=` at its end, which is taken where it fills four characters.
fn unpadded(encoded: &str) -> Result<&str, Refused> {
    let bare = encoded.trim_end_matches('=');
    let padded = encoded.len() - bare.len();
    if padded > 2 || (padded > 0 && !encoded.len().is_multiple_of(4)) { Err(Refused::Malformed) } else { Ok(bare) }
}

fn decoded(encoded: &str) -> Result<Vec<u8>, Refused> {
    URL_SAFE_NO_PAD.decode(unpadded(encoded)?).map_err(|_| Refused::Malformed)
}

/// A JSON object in which no name is given twice.
pub(super) fn object(json: &[u8]) -> Result<Map<String, Value>, Refused> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let value = Strict.deserialize(&mut reader).map_err(|_| Refused::Malformed)?;
    reader.end().map_err(|_| Refused::Malformed)?;
    match value {
        Value::Object(map) => Ok(map),
        _ => Err(Refused::Malformed),
    }
}

/// JSON in which no object has a name twice: two readers could take different values (RFC 7519 section 4).
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON without duplicate names")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, truth: bool) -> Result<Value, E> {
        Ok(truth.into())
    }
    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }
    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }
    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(number.into())
    }
    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(item) = list.next_element_seed(Strict)? {
            out.push(item);
        }
        Ok(out.into())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value_seed(Strict)?;
            if out.insert(name, value).is_some() {
                return Err(A::Error::custom("a name is given twice"));
            }
        }
        Ok(out.into())
    }
}

/// Why a token cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum MintError {
    /// Tokens can be minted only with an HMAC secret: of other keys the program has only the public half.
    #[error("only HS256, HS384 and HS512 tokens can be made, since only their key is known here")]
    NotHmac,
    /// The key cannot be used; see verifying.
    #[error("the secret cannot be used")]
    Key(#[source] KeyError),
    /// The library refused.
    #[error("the token could not be signed")]
    Sign(#[source] jsonwebtoken::errors::Error),
}

/// Makes a token of these claims.
///
/// # Errors
/// When the algorithm is not HMAC, or the secret too short for it.
pub(crate) fn mint(secret: &Secret, algorithm: Algorithm, claims: &Value, id: Option<&str>) -> Result<String, MintError> {
    if !keys::is_hmac(algorithm) {
        return Err(MintError::NotHmac);
    }
    keys::from_secret(secret, None, &[algorithm]).map_err(MintError::Key)?;
    let mut header = jsonwebtoken::Header::new(keys::library(algorithm));
    header.kid = id.map(str::to_owned);
    jsonwebtoken::encode(&header, claims, &EncodingKey::from_secret(secret.expose())).map_err(MintError::Sign)
}
