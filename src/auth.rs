//! Who asks, and what they may see: a token or its absence becomes a [`Grant`].
//!
//! Owns everything about tokens; `jsonwebtoken` and the fetching of key sets stay in here. Knows no status code: what a
//! refusal becomes is decided in `http`.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio::sync::watch;

use crate::event::Timestamp;
use crate::subject::{self, Pattern, Subject};

mod cache;
mod carrier;
mod jwks;
mod keys;
mod settings;
mod template;
#[cfg(test)]
mod tests;
mod token;

use cache::Cache;
use carrier::{Carrier, Unreadable};
use jwks::{Hope, Remote};
#[cfg(test)]
pub use keys::{Algorithm, KeyError};
use settings::{Carriers, Credential};
pub use settings::{Jwt, Settings, Signer, token_bytes};
use template::Template;
pub use token::{Refused, mint};

/// Whose a token is, as the token says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owner {
    /// Its `sub`.
    pub identity: Option<Arc<str>>,
    /// Its `jti`, where that is a string.
    pub token_id: Option<Arc<str>>,
}

/// What a request may do, and for how long.
#[derive(Debug, Clone)]
pub struct Grant {
    /// Subjects it may subscribe to: claim, templates and anonymous together.
    pub subscribe: Arc<[Pattern]>,
    /// Subjects it may publish to, likewise.
    pub publish: Arc<[Pattern]>,
    /// Whose it is. `None`: anonymous.
    pub owner: Option<Arc<Owner>>,
    /// When the token would be refused: `exp` plus leeway. `None`: anonymous.
    pub expires: Option<Timestamp>,
}

impl Grant {
    /// The token's `sub`.
    #[must_use]
    pub fn identity(&self) -> Option<&Arc<str>> {
        self.owner.as_ref()?.identity.as_ref()
    }

    /// Returns the patterns to subscribe to: all that are wanted, provided that the grant covers every one of them.
    ///
    /// # Errors
    /// With the first pattern that the grant does not cover, or with `None` if it covers nothing at all.
    pub fn subscription(&self, wanted: Wanted) -> Result<Vec<Pattern>, NotGranted> {
        match wanted {
            Wanted::All if self.subscribe.is_empty() => Err(NotGranted(None)),
            Wanted::All => Ok(self.subscribe.to_vec()),
            Wanted::These(patterns) => match patterns.iter().find(|pattern| !pattern.covered_by(&self.subscribe)) {
                Some(pattern) => Err(NotGranted(Some(pattern.clone()))),
                None => Ok(patterns),
            },
        }
    }

    /// Whether this subject may be published to.
    #[must_use]
    pub fn permits_publish(&self, subject: &Subject) -> bool {
        self.publish.iter().any(|pattern| pattern.matches(subject.as_str()))
    }
}

/// What a client asks to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Everything that its grant covers.
    All,
    /// The events of these patterns.
    These(Vec<Pattern>),
}

/// A grant is too narrow for what is wanted: the first pattern that it does not cover, or `None` if it covers nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotGranted(pub Option<Pattern>);

/// Why a request is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// No token, and nothing is open to anybody: 401.
    #[error("no token")]
    Missing,
    /// A token that is refused: 401. Why is for the log only (and has been logged).
    #[error("the token is refused")]
    Invalid(#[source] Refused),
    /// Nothing that a better token would mend: 400.
    #[error("{0}")]
    Malformed(&'static str),
    /// The keys that this token needs are still on their way: a refusal that waiting can mend.
    #[error("the signing keys are not loaded yet")]
    KeysNotLoaded,
}

impl AuthError {
    /// `WWW-Authenticate` of RFC 6750 section 3, for those errors that are a 400 or 401. Says no more than the status: to a
    /// request without a token no `error`.
    #[must_use]
    pub fn challenge(&self) -> Option<HeaderValue> {
        Some(HeaderValue::from_static(match self {
            Self::Missing => r#"Bearer realm="brokercast""#,
            Self::Invalid(_) => r#"Bearer realm="brokercast", error="invalid_token""#,
            Self::Malformed(_) => r#"Bearer realm="brokercast", error="invalid_request""#,
            Self::KeysNotLoaded => return None,
        }))
    }
}

/// `WWW-Authenticate` of a 403: the token is good, its grant too narrow.
pub const INSUFFICIENT_SCOPE: HeaderValue = HeaderValue::from_static(r#"Bearer realm="brokercast", error="insufficient_scope""#);

/// Turns requests into grants.
#[derive(Debug)]
pub struct Authenticator {
    carriers: Carriers,
    token_bytes: usize,
    jwt: Option<Tokens>,
    anonymous: Grant,
}

/// What is needed where tokens are taken at all.
#[derive(Debug)]
struct Tokens {
    rules: token::Rules,
    subscribe: Permits,
    publish: Permits,
    ring: ArcSwap<Ring>,
    /// Held while a new ring is made, so that of two sets that arrive at once neither is lost.
    turning: Mutex<()>,
    remotes: Vec<Remote>,
    /// Counts attempts to fetch keys.
    attempts: watch::Sender<u64>,
    cache: Cache,
}

/// All keys of one moment.
#[derive(Debug, Clone)]
struct Ring {
    epoch: u64,
    fixed: Arc<[keys::Key]>,
    /// One for each `jwks_url`; `None`: not loaded yet.
    fetched: Vec<Option<Arc<[keys::Key]>>>,
}

impl Ring {
    fn keys(&self) -> impl Iterator<Item = &keys::Key> {
        self.fixed.iter().chain(self.fetched.iter().flatten().flat_map(|set| set.iter()))
    }
}

/// Where the patterns of one kind of grant come from.
#[derive(Debug)]
struct Permits {
    path: String,
    templates: Vec<Template>,
    anonymous: Vec<Pattern>,
}

impl Permits {
    fn of(&self, claims: &Map<String, Value>) -> Arc<[Pattern]> {
        let (mut patterns, bad) = template::patterns(template::claim(claims, &self.path));
        if bad > 0 {
            tracing::warn!(claim = self.path, values = bad, "a token's claim has values that are not valid patterns: they permit nothing");
        }
        patterns.extend(self.templates.iter().flat_map(|template| template.fill(claims)));
        patterns.extend(self.anonymous.iter().cloned());
        union(patterns)
    }
}

/// Of more patterns than this only duplicates are removed: finding those that others cover takes quadratic time.
const MAX_REDUCED: usize = 256;

/// One order and nothing twice, so that equal grants are equal lists.
fn union(mut patterns: Vec<Pattern>) -> Arc<[Pattern]> {
    if patterns.len() <= MAX_REDUCED {
        return subject::minimal(patterns).into();
    }
    patterns.sort_unstable();
    patterns.dedup();
    patterns.into()
}

impl Authenticator {
    /// Takes no token longer than `token_bytes`. Keys behind URLs come later: see [`Self::refresh_keys`].
    #[must_use]
    pub fn new(settings: Settings, token_bytes: usize) -> Self {
        let Settings { jwt, carriers, grants, anonymous, .. } = settings;
        let (subscribe, publish) = (union(anonymous.subscribe.clone()), union(anonymous.publish.clone()));
        let permits = |path, templates, anonymous| Permits { path, templates, anonymous };
        let tokens = |jwt: Jwt| {
            let subscribe = permits(jwt.claims.subscribe, grants.subscribe, anonymous.subscribe);
            let publish = permits(jwt.claims.publish, grants.publish, anonymous.publish);
            let rules = token::Rules { issuer: jwt.issuer, audience: jwt.audience, leeway: jwt.leeway };
            Tokens::new(rules, jwt.keys, subscribe, publish)
        };
        Self { carriers, token_bytes, jwt: jwt.map(tokens), anonymous: Grant { subscribe, publish, owner: None, expires: None } }
    }

    /// Keeps the key sets that another one has fetched, where they are of the same URL and for the same algorithms.
    pub fn keep_fetched(&self, of: &Self) {
        if let (Some(own), Some(others)) = (&self.jwt, &of.jwt) {
            own.keep_fetched(others);
        }
    }

    /// The name of the cookie that may carry a token.
    #[must_use]
    pub fn cookie(&self) -> Option<&str> {
        self.carriers.cookie.as_deref()
    }

    /// Who wants to subscribe, and what they may. `query` is the request's, as it was sent.
    ///
    /// # Errors
    /// When there is neither a good token nor anything open to anybody.
    pub fn authenticate(&self, headers: &HeaderMap, query: Option<&str>) -> Result<Grant, AuthError> {
        self.at(headers, query, false, Timestamp::now())
    }

    /// Who wants to publish, and what they may. The token counts in the `Authorization` header only: what a browser sends
    /// along by itself, or what a link can hold, never publishes.
    ///
    /// # Errors
    /// When there is neither a good token nor anything open to anybody.
    pub fn authenticate_publisher(&self, headers: &HeaderMap) -> Result<Grant, AuthError> {
        self.at(headers, None, true, Timestamp::now())
    }

    /// [`Self::authenticate`], but where keys are on their way it waits for them up to `patience`.
    ///
    /// # Errors
    /// As there.
    pub async fn authenticate_within(&self, headers: &HeaderMap, query: Option<&str>, patience: Duration) -> Result<Grant, AuthError> {
        self.patiently(patience, || self.authenticate(headers, query)).await
    }

    /// [`Self::authenticate_publisher`], but where keys are on their way it waits for them up to `patience`.
    ///
    /// # Errors
    /// As there.
    pub async fn authenticate_publisher_within(&self, headers: &HeaderMap, patience: Duration) -> Result<Grant, AuthError> {
        self.patiently(patience, || self.authenticate_publisher(headers)).await
    }

    async fn patiently(&self, patience: Duration, ask: impl Fn() -> Result<Grant, AuthError>) -> Result<Grant, AuthError> {
        let Some(tokens) = &self.jwt else { return ask() };
        let deadline = tokio::time::Instant::now() + patience;
        let mut attempts = tokens.attempts.subscribe();
        loop {
            // Before asking, so that no attempt between asking and waiting goes unseen.
            attempts.mark_unchanged();
            let answer = ask();
            if answer.as_ref().err() != Some(&AuthError::KeysNotLoaded) {
                return answer;
            }
            if !matches!(tokio::time::timeout_at(deadline, attempts.changed()).await, Ok(Ok(()))) {
                return answer;
            }
        }
    }

    /// Fetches the keys behind URLs, and again from time to time and on need. Ends at once where there are none, else never;
    /// dropping it stops fetching.
    pub async fn refresh_keys(&self) {
        let Some(tokens) = &self.jwt else { return };
        join_all(tokens.remotes.iter().enumerate().map(|(number, remote)| {
            remote.run(move |keys| tokens.turn(number, keys), || tokens.attempts.send_modify(|count| *count = count.wrapping_add(1)))
        }))
        .await;
    }

    fn at(&self, headers: &HeaderMap, query: Option<&str>, publish: bool, now: Timestamp) -> Result<Grant, AuthError> {
        let (carrier, token) = match carrier::find(&self.carriers, publish, headers, query) {
            Ok(Some(found)) => found,
            Ok(None) => {
                let open = if publish { &self.anonymous.publish } else { &self.anonymous.subscribe };
                return if open.is_empty() { Err(AuthError::Missing) } else { Ok(self.anonymous.clone()) };
            }
            Err(Unreadable::Request(why)) => return Err(AuthError::Malformed(why)),
            Err(Unreadable::Token(why)) => return Err(refused(why, None)),
        };
        if token.len() > self.token_bytes {
            return Err(AuthError::Malformed("the token is longer than `server.limits.token_bytes`"));
        }
        let Some(tokens) = &self.jwt else { return Err(refused(Refused::NoKeys, Some(carrier))) };
        tokens.grant(&token, carrier, now)
    }
}

fn refused(why: Refused, carrier: Option<Carrier>) -> AuthError {
    tracing::info!(reason = %why, carrier = carrier.map(Carrier::as_str), "token refused");
    AuthError::Invalid(why)
}

impl Tokens {
    fn new(rules: token::Rules, keys: Vec<Credential>, subscribe: Permits, publish: Permits) -> Self {
        let (mut fixed, mut remotes) = (Vec::new(), Vec::new());
        for key in keys {
            match key {
                Credential::Secret(_, key) => fixed.push(key),
                Credential::Public(keys) => fixed.extend(keys),
                Credential::Remote(remote) => remotes.push(remote),
            }
        }
        let ring = Ring { epoch: 0, fixed: fixed.into(), fetched: vec![None; remotes.len()] };
        Self {
            rules,
            subscribe,
            publish,
            ring: ArcSwap::from_pointee(ring),
            turning: Mutex::new(()),
            remotes,
            attempts: watch::Sender::new(0),
            cache: Cache::default(),
        }
    }

    fn keep_fetched(&self, of: &Self) {
        let ring = of.ring.load();
        for (number, remote) in self.remotes.iter().enumerate() {
            let same = of.remotes.iter().position(|other| remote.keep_fetched(other));
            if let Some(keys) = same.and_then(|at| ring.fetched.get(at)?.clone()) {
                self.turn(number, keys);
            }
        }
    }

    /// Takes in a set that has changed.
    fn turn(&self, number: usize, keys: Arc<[keys::Key]>) {
        let _turning = self.turning.lock();
        let mut ring = Ring::clone(&self.ring.load());
        ring.epoch += 1;
        if let Some(set) = ring.fetched.get_mut(number) {
            *set = Some(keys);
        }
        let epoch = ring.epoch;
        self.ring.store(Arc::new(ring));
        self.cache.clear(epoch);
    }

    fn grant(&self, token: &str, carrier: Carrier, now: Timestamp) -> Result<Grant, AuthError> {
        let fingerprint = self.cache.fingerprint(token);
        if let Some(grant) = self.cache.get(fingerprint, now) {
            return Ok(grant);
        }
        let refuse = |why| refused(why, Some(carrier));
        let parsed = token::Parsed::new(token).map_err(refuse)?;
        let ring = self.ring.load_full();
        let claims = match parsed.verify(ring.keys()) {
            Ok(claims) => claims,
            Err(why) => return Err(if self.may_come(&parsed, &ring) { AuthError::KeysNotLoaded } else { refuse(why) }),
        };
        let until = token::check(&claims, &self.rules, now).map_err(refuse)?;
        let identity = match claims.get("sub") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text.as_str().into()).filter(|text: &Arc<str>| !text.is_empty()),
            Some(Value::Number(number)) => Some(number.to_string().into()),
            Some(_) => return Err(refuse(Refused::ClaimType("sub"))),
        };
        let token_id = claims.get("jti").and_then(Value::as_str).map(Arc::from);
        let owner = Some(Arc::new(Owner { identity, token_id }));
        let grant = Grant { subscribe: self.subscribe.of(&claims), publish: self.publish.of(&claims), owner, expires: Some(until) };
        Ok(self.cache.insert(fingerprint, grant, ring.epoch))
    }

    /// Whether the key of a token that no key has signed may be on its way: its set was never loaded, or is being fetched
    /// again because of it.
    fn may_come(&self, parsed: &token::Parsed<'_>, ring: &Ring) -> bool {
        let of_this_name = |key: &keys::Key| key.id.is_some() && key.suits(parsed.algorithm, parsed.id.as_deref());
        if parsed.id.is_some() && ring.keys().any(of_this_name) {
            // It names its key, which is here and says no.
            return false;
        }
        let mut hope = false;
        for remote in self.remotes.iter().filter(|remote| remote.serves(parsed.algorithm)) {
            hope |= remote.miss() == Hope::Waiting;
        }
        hope
    }
}
