//! `auth`: keys and the algorithms they are bound to, claims, carriers, grants, and access without a token.
//!
//! Keys, key sets and templates are read into what verifying uses. Files are read, nothing is fetched.

use std::time::Duration;

use reqwest::Url;

use super::jwks::Remote;
use super::keys::{self, Algorithm, Key, KeyError};
use super::template::Template;
use crate::settings::{self, Choice, Secret, Section, Slot};
use crate::subject::Pattern;

/// `auth`
#[derive(Debug)]
pub struct Settings {
    /// Tokens; without it there is only anonymous access.
    pub jwt: Option<Jwt>,
    /// Where a token may be in a request.
    pub carriers: Carriers,
    /// What a token grants beside its own claims.
    pub grants: Lists<Template>,
    /// What is granted without a token.
    pub anonymous: Lists<Pattern>,
    /// Whether anonymous access holds on a listener that is not on loopback, too.
    pub beyond_loopback: bool,
    /// All of it as it was written, files included.
    pub written: settings::Written,
}

/// Something for subscribing, and the same for publishing.
#[derive(Debug, Clone)]
pub struct Lists<T> {
    /// For subscribing.
    pub subscribe: Vec<T>,
    /// For publishing.
    pub publish: Vec<T>,
}

impl<T> Lists<T> {
    /// Whether both lists are empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.subscribe.is_empty() && self.publish.is_empty()
    }

    fn read(section: &Section<'_>, read: fn(Slot<'_>) -> Option<T>) -> Self {
        let list = |name: &str| section.key(name).list(read).or(Vec::new());
        Self { subscribe: list("subscribe"), publish: list("publish") }
    }
}

/// `auth.jwt`
#[derive(Debug)]
pub struct Jwt {
    /// The `iss` that a token must have; `None`: any or none.
    pub issuer: Option<String>,
    /// The `aud` that a token must have; `None`: it must have none.
    pub audience: Option<String>,
    /// How far clocks may differ.
    pub leeway: Duration,
    /// At least one.
    pub(super) keys: Vec<Credential>,
    /// Where a token says what it grants: a claim's path.
    pub claims: Claims,
}

/// One of `auth.jwt.keys`.
#[derive(Debug)]
pub(super) enum Credential {
    Secret(Signer, Key),
    Public(Vec<Key>),
    Remote(Remote),
}

/// A secret that tokens can be made with.
#[derive(Debug)]
pub struct Signer {
    /// The key's id.
    pub id: Option<String>,
    /// The first of its algorithms.
    pub algorithm: Algorithm,
    /// The secret itself.
    pub secret: Secret,
}

/// `auth.jwt.claims`
#[derive(Debug, Clone)]
pub struct Claims {
    /// Patterns to subscribe to.
    pub subscribe: String,
    /// Patterns to publish to.
    pub publish: String,
}

/// `auth.carriers`
#[derive(Debug, Clone)]
pub struct Carriers {
    /// Whether `Authorization: Bearer` is read.
    pub header: bool,
    /// The cookie's name.
    pub cookie: Option<String>,
    /// The query parameter's name.
    pub query: Option<String>,
}

impl Settings {
    /// Takes the keys of `auth`.
    #[must_use]
    pub fn read(auth: &Section<'_>) -> Self {
        let template = |item: Slot<'_>| item.text().parse("must be a pattern such as user.{sub}.>, with claims in braces").required();
        let pattern = |item: Slot<'_>| item.text().parse("must be a pattern such as public.>").required();
        let jwt = auth.key("jwt").optional_section().map(|jwt| Jwt::read(&jwt));
        let carriers = Carriers::read(&auth.key("carriers").section());
        let grants = Lists::read(&auth.key("grants").section(), template);
        let anonymous = auth.key("anonymous").section();
        Self {
            jwt,
            carriers,
            grants,
            anonymous: Lists::read(&anonymous, pattern),
            beyond_loopback: anonymous.key("beyond_loopback").flag().or(false),
            written: auth.written_with_files(),
        }
    }
}

/// Bytes of the longest token: a key of `server.limits`.
#[must_use]
pub fn token_bytes(limits: &Section<'_>) -> usize {
    limits.key("token_bytes").size().within(64, 1 << 20).or(8 << 10)
}

impl Jwt {
    fn read(jwt: &Section<'_>) -> Self {
        let text = |name: &str| jwt.key(name).text().check(|text| !text.trim().is_empty(), "must not be empty").optional();
        let some = "must list at least one key, such as { algorithms: [HS256], secret_file: /run/secrets/jwt }";
        let (issuer, audience) = (text("issuer"), text("audience"));
        let leeway = jwt.key("leeway").duration().or(Duration::from_secs(30));
        let keys = jwt.key("keys").list(credential).default(Vec::new()).check(|keys| !keys.is_empty(), some).optional();
        let claims = jwt.key("claims").section();
        // A name with dots is tried before its parts, so URLs can be names of claims too.
        let claim = |name: &str, default: &str| {
            let expected = "must be a claim's path such as mercure.subscribe, without an empty step";
            claims.key(name).text().check(|path| path.split('.').all(|step| !step.is_empty()), expected).or(default.to_owned())
        };
        let claims = Claims { subscribe: claim("subscribe", "subjects"), publish: claim("publish", "publish") };
        Self { issuer, audience, leeway, keys: keys.unwrap_or_default(), claims }
    }

    /// The secrets that tokens can be made with.
    pub fn signers(&self) -> impl Iterator<Item = &Signer> {
        self.keys.iter().filter_map(|key| if let Credential::Secret(signer, _) = key { Some(signer) } else { None })
    }
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

fn credential(slot: Slot<'_>) -> Option<Credential> {
    let key = slot.section().terse();
    let id = key.key("id").text().check(|id| !id.is_empty(), "must not be empty").optional();
    let bound = "must list at least one algorithm: a key is bound to what it may verify";
    let algorithms = key.key("algorithms").list(|item| item.choice::<Algorithm>().required());
    let algorithms = algorithms.default(Vec::new()).check(|algorithms| !algorithms.is_empty(), bound);
    // Both are asked for, since asking makes a key known.
    let [secret, public_key] = ["secret", "public_key"].map(|name| key.has(name) | key.has(&format!("{name}_file")));
    let (jwks_file, jwks_url) = (key.has("jwks_file"), key.has("jwks_url"));
    if [secret, public_key, jwks_file, jwks_url].into_iter().filter(|given| *given).count() != 1 {
        key.problem_here("must have exactly one of secret, secret_file, public_key, public_key_file, jwks_file, jwks_url");
        return None;
    }
    let algorithms = if secret { for_secret(algorithms) } else { for_public(algorithms, public_key) };
    if secret {
        let read = |secret: Secret| Ok((keys::from_secret(&secret, id.as_deref(), &algorithms).map_err(|e| e.to_string())?, secret));
        let (verifying, secret) = key.secret("secret").convert(read).required()?;
        return Some(Credential::Secret(Signer { id, algorithm: *algorithms.first()?, secret }, verifying));
    }
    if jwks_url {
        let web = |url: &Url| matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none();
        let parse = |url: Secret| url.expose_str().ok().and_then(|url| url.parse().ok()).filter(web);
        let expected = "must be a URL without a user in it: https://id.example.com/jwks.json";
        let url = key.key("jwks_url").address().convert(|url| parse(url).ok_or_else(|| expected.to_owned())).required();
        return Some(Credential::Remote(Remote::new(url?, id, algorithms)));
    }
    let (id, algorithms) = (id.as_deref(), algorithms.as_slice());
    let keys = if public_key {
        let read = |pem: &str| keys::from_pem(pem, id, algorithms).map(|key| vec![key]);
        key.text("public_key").convert(|pem| verifying(&pem, algorithms, read))
    } else {
        let read = |set: &str| keys::from_set(set, id, algorithms);
        key.key("jwks_file").file().convert(|file| verifying(&file.contents, algorithms, read))
    };
    keys.required().map(Credential::Public)
}

fn verifying(text: &Secret, algorithms: &[Algorithm], read: impl Fn(&str) -> Result<Vec<Key>, KeyError>) -> Result<Vec<Key>, String> {
    let text = text.expose_str().map_err(|_| "must hold UTF-8 text".to_owned())?;
    // What a key can do is judged only beside algorithms that are right themselves.
    if algorithms.is_empty() { Ok(Vec::new()) } else { read(text).map_err(|error| error.to_string()) }
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

impl Carriers {
    fn read(carriers: &Section<'_>) -> Self {
        // RFC 6265 section 4.1.1: a cookie's name is a token of HTTP.
        let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        let cookie = |name: &String| !name.is_empty() && name.chars().all(token);
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '~');
        let query = |name: &String| !name.is_empty() && name.chars().all(plain);
        let free = |name: &String| !matches!(name.as_str(), "subject" | "since" | "last_event_id" | "lastEventId" | "envelope");
        let taken = "must be another name than those of the parameters of /events";
        Self {
            header: carriers.key("header").flag().or(true),
            cookie: carriers.key("cookie").or_off(Some("brokercast".to_owned()), |key| key.text().check(cookie, "must be a cookie's name")),
            query: carriers
                .key("query")
                .or_off(None, |key| key.text().check(query, "must be a parameter's name such as access_token").check(free, taken)),
        }
    }
}
