//! Keys of an issuer, each read into what verifying uses.
//!
//! Files are read, nothing is fetched.

use base64::Engine as _;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use reqwest::Url;

use crate::auth::jwks::{Place, Remote};
use crate::auth::keys::{self, Algorithm, Key};
use crate::settings::{self, Choice, Secret, Section, Slot};
use crate::support::web::{is_plain, trusted};

/// One of an issuer's `keys`.
#[derive(Debug)]
pub(in crate::auth) enum Credential {
    Secret(Signer, Key),
    Public(Key),
    Set(Vec<Key>),
    Remote(Remote),
}

/// A secret that tokens can be made with.
#[derive(Debug)]
pub(crate) struct Signer {
    /// The key's id.
    pub id: Option<String>,
    /// The first of its algorithms.
    pub algorithm: Algorithm,
    /// The secret itself.
    pub secret: Secret,
}

impl Choice for Algorithm {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("HS256", Self::HS256),
        ("HS384", Self::HS384),
        ("HS512", Self::HS512),
        ("RS256", Self::RS256),
        ("RS384", Self::RS384),
        ("RS512", Self::RS512),
        ("PS256", Self::PS256),
        ("PS384", Self::PS384),
        ("PS512", Self::PS512),
        ("ES256", Self::ES256),
        ("ES384", Self::ES384),
        ("EdDSA", Self::EdDSA),
    ];
}

pub(in crate::auth) fn credential(slot: Slot<'_>) -> Option<Credential> {
    let key = slot.section().terse();
    let id = key.key("id").text().check(|id| !id.is_empty(), "must not be empty").optional();
    let bound = "must list at least one algorithm: a key is bound to what it may verify";
    let algorithms = key.key("algorithms").choices::<Algorithm>();
    let algorithms = algorithms.default(Vec::new()).check(|algorithms| !algorithms.is_empty(), bound);
    // Both are asked for, since asking makes a key known.
    let [secret, public_key] = ["secret", "public_key"].map(|name| key.has(name) | key.has(&format!("{name}_file")));
    let (jwks_file, jwks_url) = (key.has("jwks_file"), key.has("jwks_url"));
    if [secret, public_key, jwks_file, jwks_url].into_iter().filter(|given| *given).count() != 1 {
        key.problem_here("must have exactly one of secret, secret_file, public_key, public_key_file, jwks_file, jwks_url");
        return None;
    }
    if !secret && key.has("secret_encoding") {
        key.problem("secret_encoding", "belongs to `secret`");
    }
    let algorithms = if secret { for_secret(algorithms) } else { for_public(algorithms, public_key) };
    if secret {
        let encoding = key.key("secret_encoding").choice().or(Encoding::Text);
        let read = |written: Secret| {
            let secret = encoding.decode(&written)?;
            Ok((keys::from_secret(&secret, id.as_deref(), &algorithms).map_err(|e| e.to_string())?, secret))
        };
        let (verifying, secret) = key.secret("secret").convert(read).required()?;
        return Some(Credential::Secret(Signer { id, algorithm: *algorithms.first()?, secret }, verifying));
    }
    if jwks_url {
        let parse = |url: Secret| url.expose_str().ok().and_then(|url| url.parse().ok()).filter(is_plain);
        let expected = "must be a URL without a user in it: https://id.example.com/jwks.json";
        let url = key.key("jwks_url").address().convert(|url| parse(url).ok_or_else(|| expected.to_owned())).required();
        return Some(Credential::Remote(Remote::new(Place::Set(url?), id, algorithms)));
    }
    // What a key can do is judged only beside algorithms that are right themselves.
    let (id, algorithms) = (id.as_deref(), algorithms.as_slice());
    if public_key {
        let pem = key.text("public_key").convert(|pem| utf8(&pem).map(str::to_owned));
        if algorithms.is_empty() {
            return pem.required().and(None);
        }
        return pem.convert(|pem| keys::from_pem(&pem, id, algorithms).map_err(|e| e.to_string())).required().map(Credential::Public);
    }
    let set = key.key("jwks_file").file().convert(|file| utf8(&file.contents).map(str::to_owned));
    if algorithms.is_empty() {
        return set.required().and(None);
    }
    set.convert(|set| keys::from_set(&set, id, algorithms).map_err(|e| e.to_string())).required().map(Credential::Set)
}

/// The keys that OpenID discovery finds, where that is asked for: whether it is, and what was made of it.
pub(in crate::auth) fn discovery(issuer: &Section<'_>, name: Option<&str>) -> (bool, Option<Credential>) {
    let slot = issuer.key("discover");
    if !slot.is_set() || slot.is_off() {
        return (slot.flag().or(false), None);
    }
    (true, slot.flag_or_section().and_then(|section| discovered(issuer, &section, name)))
}

fn discovered(issuer: &Section<'_>, discover: &Section<'_>, name: Option<&str>) -> Option<Credential> {
    let algorithms = discover.key("algorithms").choices::<Algorithm>();
    let some = "must list at least one algorithm";
    let algorithms = algorithms.default(vec![Algorithm::RS256, Algorithm::ES256]).check(|algorithms| !algorithms.is_empty(), some);
    let algorithms = for_public(algorithms, false);
    let url = name.and_then(|name| name.parse().ok()).filter(|url: &Url| is_plain(url) && trusted(url) && url.query().is_none());
    if url.is_none() {
        issuer.problem("issuer", "must be a URL for `discover`, with https (or http on loopback): https://id.example.com");
    }
    Some(Credential::Remote(Remote::new(Place::Issuer(name?.to_owned(), url?), None, algorithms)))
}

fn utf8(text: &Secret) -> Result<&str, String> {
    text.expose_str().map_err(|_| "must hold UTF-8 text".to_owned())
}

/// `secret_encoding`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Text,
    Base64,
    Base64Url,
    Hex,
}

impl Choice for Encoding {
    const WORDS: &'static [(&'static str, Self)] =
        &[("text", Self::Text), ("base64", Self::Base64), ("base64url", Self::Base64Url), ("hex", Self::Hex)];
}

impl Encoding {
    /// The secret's bytes. White space around and between them (tools write base64 in lines) and padding may be there or not.
    fn decode(self, written: &Secret) -> Result<Secret, String> {
        const INDIFFERENT: GeneralPurposeConfig = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        if self == Self::Text {
            return Ok(written.clone());
        }
        let text: Vec<u8> = written.expose().iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let bytes = match self {
            Self::Text => None,
            Self::Base64 => GeneralPurpose::new(&STANDARD, INDIFFERENT).decode(text).ok(),
            Self::Base64Url => GeneralPurpose::new(&URL_SAFE, INDIFFERENT).decode(text).ok(),
            Self::Hex => hex(&text),
        };
        bytes.map(Secret::new).ok_or_else(|| format!("must be {}, as `secret_encoding` says", self.word()))
    }
}

fn hex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = text.as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

fn for_secret(algorithms: settings::Key<'_, Vec<Algorithm>>) -> Vec<Algorithm> {
    let hmac = |algorithms: &Vec<Algorithm>| algorithms.iter().copied().all(keys::is_hmac);
    algorithms.check(hmac, "must be of HS256, HS384, HS512 for a secret").or(Vec::new())
}

fn for_public(algorithms: settings::Key<'_, Vec<Algorithm>>, one_key: bool) -> Vec<Algorithm> {
    // A public key taken for a secret would be a secret that everybody has.
    let secret = "must not hold HS256, HS384 or HS512: those take a secret, which a public key is not";
    let several = "must be of one family (RS and PS, ES, or EdDSA): a public key is of one kind";
    let public = |algorithms: &Vec<Algorithm>| !algorithms.iter().copied().any(keys::is_hmac);
    let one_family = |algorithms: &Vec<Algorithm>| !one_key || algorithms.windows(2).all(|two| keys::same_family(two[0], two[1]));
    algorithms.check(public, secret).check(one_family, several).or(Vec::new())
}
