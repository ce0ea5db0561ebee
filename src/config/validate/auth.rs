//! `auth`: keys and the algorithms they are bound to, claims, carriers, grants, and who comes without a token.

use crate::auth::{Authenticator, SetupError, Template};
use crate::config::value::{Switch, join, read_text_file, resolve_secret};
use crate::config::{Algorithm, Anonymous, Auth, Carriers, Claims, Grants, Jwt, KeyMaterial, KeySource, Limits, Problems, Secret, raw};
use crate::subject::{Pattern, SubjectError};

pub(super) fn validate(raw: raw::Auth, problems: &mut Problems) -> Auth {
    Auth {
        jwt: raw.jwt.map(|jwt| self::jwt(jwt, problems)),
        carriers: carriers(raw.carriers, problems),
        grants: Grants {
            subscribe: templates(raw.grants.subscribe, "auth.grants.subscribe", problems),
            publish: templates(raw.grants.publish, "auth.grants.publish", problems),
        },
        anonymous: Anonymous {
            subscribe: patterns(raw.anonymous.subscribe, "auth.anonymous.subscribe", problems),
            publish: patterns(raw.anonymous.publish, "auth.anonymous.publish", problems),
            beyond_loopback: raw.anonymous.beyond_loopback.unwrap_or(false),
        },
    }
}

/// What only a verifier can say of keys: whether they can be read, and fit their algorithms.
pub(super) fn try_keys(auth: &Auth, limits: &Limits, problems: &mut Problems) {
    match Authenticator::new(auth, limits) {
        Ok(_) => {}
        Err(SetupError::Key { index, cause }) => problems.add(format!("auth.jwt.keys[{index}]"), format!("cannot be used: {cause}")),
        Err(SetupError::Url { index }) => problems.add(format!("auth.jwt.keys[{index}].jwks_url"), "must be an http or https URL"),
        Err(error) => problems.add("auth", error.to_string()),
    }
}

fn jwt(raw: raw::Jwt, problems: &mut Problems) -> Jwt {
    if raw.keys.is_empty() {
        problems.add("auth.jwt.keys", "must list at least one key, such as { algorithms: [HS256], secret_file: /run/secrets/jwt }");
    }
    let mut text = |text: Option<String>, path: &str| {
        if text.as_deref().is_some_and(|text| text.trim().is_empty()) {
            problems.add(path, "must not be empty");
        }
        text
    };
    let (issuer, audience) = (text(raw.issuer, "auth.jwt.issuer"), text(raw.audience, "auth.jwt.audience"));
    Jwt {
        issuer,
        audience,
        leeway: super::duration(raw.leeway, 30_000, 0, "auth.jwt.leeway", problems),
        keys: raw.keys.into_iter().enumerate().filter_map(|(n, raw)| key(raw, &format!("auth.jwt.keys[{n}]"), problems)).collect(),
        claims: Claims {
            subscribe: claim(raw.claims.subscribe, "subjects", "auth.jwt.claims.subscribe", problems),
            publish: claim(raw.claims.publish, "publish", "auth.jwt.claims.publish", problems),
        },
    }
}

/// A claim's path in steps. Whoever looks it up tries a name with dots first, so URLs can be names too.
fn claim(raw: Option<String>, default: &str, path: &str, problems: &mut Problems) -> Vec<String> {
    let text = raw.unwrap_or_else(|| default.to_owned());
    let steps: Vec<String> = text.split('.').map(str::to_owned).collect();
    if steps.iter().any(String::is_empty) {
        problems.add(path, "must be a claim's path such as mercure.subscribe, without an empty step");
    }
    steps
}

/// What kind of key an algorithm takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Hmac,
    Rsa,
    Ec,
    Ed,
}

impl Algorithm {
    fn family(self) -> Family {
        match self {
            Self::HS256 | Self::HS384 | Self::HS512 => Family::Hmac,
            Self::RS256 | Self::RS384 | Self::RS512 | Self::PS256 | Self::PS384 | Self::PS512 => Family::Rsa,
            Self::ES256 | Self::ES384 => Family::Ec,
            Self::EdDSA => Family::Ed,
        }
    }

    /// Bytes of an HMAC's hash (RFC 7518 section 3.2).
    fn hash_bytes(self) -> usize {
        match self {
            Self::HS384 => 48,
            Self::HS512 => 64,
            _ => 32,
        }
    }
}

#[expect(clippy::too_many_lines, reason = "to be taken apart")]
fn key(raw: raw::Key, path: &str, problems: &mut Problems) -> Option<KeySource> {
    let algorithms = raw.algorithms;
    if algorithms.is_empty() {
        problems.add(format!("{path}.algorithms"), "must list at least one algorithm: a key is bound to what it may verify");
    }
    if raw.id.as_deref() == Some("") {
        problems.add(format!("{path}.id"), "must not be empty");
    }
    let given = [
        raw.secret.is_some() || raw.secret_file.is_some(),
        raw.public_key.is_some() || raw.public_key_file.is_some(),
        raw.jwks_file.is_some(),
        raw.jwks_url.is_some(),
    ];
    if given.iter().filter(|there| **there).count() != 1 {
        problems.add(path, "must have exactly one of secret, secret_file, public_key, public_key_file, jwks_file, jwks_url");
        return None;
    }
    let hmac = algorithms.iter().filter(|a| a.family() == Family::Hmac).count();
    let one_family = algorithms.windows(2).all(|pair| pair[0].family() == pair[1].family());
    if given[0] {
        if hmac < algorithms.len() {
            problems.add(format!("{path}.algorithms"), "must be of HS256, HS384, HS512 for a secret");
        }
    } else if hmac > 0 {
        // A public key taken for a secret is one that everybody has.
        let expected = "must not hold HS256, HS384 or HS512: those take a secret, which no public key is";
        problems.add(format!("{path}.algorithms"), expected);
    } else if given[1] && !one_family {
        let expected = "must be of one family (RS and PS, ES, or EdDSA): a public key is of one kind";
        problems.add(format!("{path}.algorithms"), expected);
    }
    let key = if given[0] {
        let named = if raw.secret_file.is_some() { "secret_file" } else { "secret" };
        let secret = resolve_secret(raw.secret, raw.secret_file, path, "secret", problems)?;
        let least = algorithms.iter().map(|a| a.hash_bytes()).max().unwrap_or(32);
        if secret.expose().len() < least {
            let expected = format!(
                "must hold at least {least} bytes, as many as the hash of its algorithm (`openssl rand -base64 {least}` makes one)"
            );
            problems.add(join(path, named), expected);
        }
        KeyMaterial::Secret(secret)
    } else if given[1] {
        let named = if raw.public_key_file.is_some() { "public_key_file" } else { "public_key" };
        let inline = raw.public_key.map(|text| Secret::new(text.into_bytes()));
        let pem = resolve_secret(inline, raw.public_key_file, path, "public_key", problems)?;
        let pem = pem.expose_str().unwrap_or_default().to_owned();
        if !pem.contains("-----BEGIN ") || pem.contains("PRIVATE KEY-----") {
            problems.add(join(path, named), "must be a public key in PEM: -----BEGIN PUBLIC KEY-----");
        }
        KeyMaterial::Pem(pem)
    } else if let Some(file) = raw.jwks_file {
        let path = join(path, "jwks_file");
        let text = read_text_file(&file, &path, problems)?;
        let set: Option<serde_json::Value> = serde_json::from_str(&text).ok();
        if !set.as_ref().and_then(|set| set.get("keys")).is_some_and(serde_json::Value::is_array) {
            problems.add(path, "must be a JWK set: {\"keys\": [...]}");
        }
        KeyMaterial::Jwks(text)
    } else {
        let url = raw.jwks_url?;
        let web = |uri: &http::Uri| {
            let host = uri.authority().is_some_and(|a| !a.host().is_empty() && !a.as_str().contains('@'));
            host && matches!(uri.scheme_str(), Some("http" | "https"))
        };
        if !url.parse().is_ok_and(|uri| web(&uri)) {
            problems.add(join(path, "jwks_url"), "must be a URL without a user in it: https://id.example.com/jwks.json");
        }
        KeyMaterial::JwksUrl(url)
    };
    Some(KeySource { algorithms, id: raw.id, key })
}

fn carriers(raw: raw::Carriers, problems: &mut Problems) -> Carriers {
    let cookie = match raw.cookie {
        None => Some("brokercast".to_owned()),
        Some(switch) => Switch::on(switch),
    };
    // RFC 6265 section 4.1.1: a cookie's name is a token of HTTP.
    let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    if cookie.as_deref().is_some_and(|name| name.is_empty() || !name.chars().all(token)) {
        problems.add("auth.carriers.cookie", "must be a cookie's name, or false");
    }
    let query = raw.query.and_then(Switch::on);
    if let Some(name) = &query {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '~');
        if name.is_empty() || !name.chars().all(plain) {
            problems.add("auth.carriers.query", "must be a parameter's name such as access_token, or false");
        }
        if matches!(name.as_str(), "subject" | "since" | "last_event_id" | "lastEventId" | "envelope") {
            problems.add("auth.carriers.query", "must be another name than those of the parameters of /events");
        }
    }
    Carriers { header: raw.header.unwrap_or(true), cookie, query }
}

fn patterns(raw: Vec<String>, path: &str, problems: &mut Problems) -> Vec<Pattern> {
    let read = |(n, text): (usize, String)| {
        let note = |e: SubjectError| problems.add(format!("{path}[{n}]"), format!("{e}; must be a pattern such as public.>"));
        text.parse().map_err(note).ok()
    };
    raw.into_iter().enumerate().filter_map(read).collect()
}

/// `user.{sub}.>`
fn templates(raw: Vec<String>, path: &str, problems: &mut Problems) -> Vec<String> {
    for (n, text) in raw.iter().enumerate() {
        if let Err(error) = text.parse::<Template>() {
            problems.add(format!("{path}[{n}]"), format!("{error}; must be a pattern such as user.{{sub}}.>, with claims in braces"));
        }
    }
    raw
}
