//! Who asks, and what they may see: a token or its absence becomes a [`Grant`].
//!
//! Owns everything about tokens; `jsonwebtoken` and the fetching of key sets stay in here. Knows no status code: what a
//! refusal becomes is decided in `http`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::{HeaderMap, HeaderValue};
use serde_json::{Map, Value};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::event::Timestamp;
use crate::subject::{Pattern, Subject};

mod backend;
mod cache;
mod carrier;
mod explain;
mod fingerprint;
mod issuer;
mod jwks;
mod keys;
mod refusals;
mod revoked;
mod settings;
mod template;
#[cfg(test)]
mod tests;
mod token;

use backend::Backend;
pub(crate) use backend::{BackendLoad, Credential, Question, Regrant};
use cache::Cache;
use carrier::Unreadable;
pub(crate) use explain::{Check, GrantRule};
use issuer::{Denied, Issuer, union};
#[cfg(test)]
pub(crate) use keys::{Algorithm, KeyError};
use refusals::Refusals;
pub(crate) use revoked::{Criteria, Order, RevocationError};
pub use revoked::{Revocation, Revocations};
pub(crate) use settings::{Backend as BackendSettings, Control, Header, Issuer as IssuerSettings, Settings, Signer, token_bytes};
use settings::{Carriers, Lists};
pub(crate) use template::Template;
pub(crate) use token::{Refused, mint};

/// Whose a token is, as the token says. Kept once for each token, however many streams it opens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owner {
    /// Its `sub`.
    pub identity: Option<Arc<str>>,
    /// Its `jti`, where that is a string.
    pub token_id: Option<Box<str>>,
    /// Its `iss`.
    pub issuer: Option<Arc<str>>,
    /// Its `sid`, where that is a string.
    pub session_id: Option<Box<str>>,
    /// Its `iat`.
    pub issued: Option<Timestamp>,
    /// A hash of the key that signed it.
    pub key: u64,
    /// Its claims, as JSON.
    pub claims: Box<[u8]>,
    /// What the backend was asked about, in place of a token. Of all others only `identity` and `issued`, when it was asked, are
    /// set then.
    pub credential: Option<Credential>,
}

/// What a request may do, and for how long.
#[derive(Debug, Clone)]
pub(crate) struct Grant {
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
    pub(crate) fn identity(&self) -> Option<&Arc<str>> {
        self.owner.as_ref()?.identity.as_ref()
    }

    /// Returns the patterns to subscribe to: all that are wanted, provided that the grant covers every one of them.
    ///
    /// # Errors
    /// With the first pattern that the grant does not cover, or with `None` if it covers nothing at all.
    pub(crate) fn subscription(&self, wanted: Wanted) -> Result<Vec<Pattern>, NotGranted> {
        match wanted {
            Wanted::All if self.subscribe.is_empty() => Err(NotGranted(None)),
            Wanted::All => Ok(self.subscribe.to_vec()),
            Wanted::These(patterns) => match patterns.iter().find(|pattern| !pattern.covered_by(&*self.subscribe)) {
                Some(pattern) => Err(NotGranted(Some(pattern.clone()))),
                None => Ok(patterns),
            },
        }
    }

    /// Whether this subject may be published to.
    #[must_use]
    pub(crate) fn permits_publish(&self, subject: &Subject) -> bool {
        self.publish.iter().any(|pattern| pattern.matches(subject.as_str()))
    }
}

/// What a token says of itself, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Presented {
    /// What carried it.
    pub carrier: &'static str,
    /// Its `kid`.
    pub key_id: Option<String>,
    /// Its `iss`.
    pub issuer: Option<String>,
}

/// What a client asks to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Everything that its grant covers.
    All,
    /// The events of these patterns.
    These(Vec<Pattern>),
}

/// A grant is too narrow for what is wanted: the first pattern that it does not cover, or `None` if it covers nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotGranted(pub Option<Pattern>);

/// Why a request is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthError {
    /// No token, and nothing is open to anybody: 401.
    #[error("no token")]
    Missing,
    /// A token that is refused: 401. Why is for the log only.
    #[error("the token is refused")]
    Invalid(#[source] Refused),
    /// Nothing that a better token would mend: 400.
    #[error("{0}")]
    Malformed(&'static str),
    /// The keys that this token needs are still on their way: a refusal that waiting can mend.
    #[error("the signing keys are not loaded yet")]
    KeysNotLoaded,
    /// The backend cannot be asked at the moment: likewise.
    #[error("the backend cannot be asked")]
    BackendUnavailable,
    /// What was revoked is still being read: likewise.
    #[error("the revocations are not loaded yet")]
    RevocationsNotLoaded,
}

impl AuthError {
    /// Whether the same request can succeed later, without a better token.
    #[must_use]
    pub(crate) fn passes(&self) -> bool {
        match self {
            Self::KeysNotLoaded | Self::BackendUnavailable | Self::RevocationsNotLoaded => true,
            Self::Missing | Self::Invalid(_) | Self::Malformed(_) => false,
        }
    }

    /// What a client is told of a 401, in a word.
    #[must_use]
    pub(crate) fn code(&self) -> Option<&'static str> {
        match self {
            Self::Missing => Some("token_missing"),
            Self::Invalid(Refused::Expired) => Some("token_expired"),
            Self::Invalid(_) => Some("token_invalid"),
            Self::Malformed(_) | Self::KeysNotLoaded | Self::BackendUnavailable | Self::RevocationsNotLoaded => None,
        }
    }

    /// `WWW-Authenticate` of RFC 6750 section 3, for those errors that are a 400 or 401. Says no more than the status and
    /// the code: to a request without a token no `error`.
    #[must_use]
    pub(crate) fn challenge(&self) -> Option<HeaderValue> {
        Some(HeaderValue::from_static(match self {
            Self::Missing => r#"Bearer realm="brokercast""#,
            Self::Invalid(Refused::Expired) => r#"Bearer realm="brokercast", error="invalid_token", error_description="token_expired""#,
            Self::Invalid(_) => r#"Bearer realm="brokercast", error="invalid_token", error_description="token_invalid""#,
            Self::Malformed(_) => r#"Bearer realm="brokercast", error="invalid_request""#,
            Self::KeysNotLoaded | Self::BackendUnavailable | Self::RevocationsNotLoaded => return None,
        }))
    }
}

/// `WWW-Authenticate` of a 403: the token is good, its grant too narrow.
pub(crate) const INSUFFICIENT_SCOPE: HeaderValue = HeaderValue::from_static(r#"Bearer realm="brokercast", error="insufficient_scope""#);

/// Turns requests into grants.
#[derive(Debug)]
pub(crate) struct Authenticator {
    carriers: Carriers,
    token_bytes: usize,
    /// `None`: no token is taken.
    tokens: Option<Tokens>,
    /// Asked where a request has no token.
    backend: Option<Backend>,
    anonymous: Grant,
    /// The same as it was written.
    open: Lists<Pattern>,
    revocations: Arc<Revocations>,
    refusals: Arc<Refusals>,
}

/// A key set behind a URL.
#[derive(Debug, Clone)]
pub(crate) struct KeySet {
    /// Where it is, without user, password, query and fragment.
    pub url: String,
    /// Since it was fetched last; `None`: it never was.
    pub age: Option<Duration>,
}

/// What is needed where tokens are taken at all.
#[derive(Debug)]
struct Tokens {
    /// At least one, no two of the same name.
    issuers: Vec<Issuer>,
    /// Counts attempts to fetch keys.
    attempts: watch::Sender<u64>,
    cache: Cache,
}

impl Authenticator {
    /// Takes no token longer than `token_bytes`. Keys behind URLs come later: see [`Self::refresh_keys`].
    #[must_use]
    pub(crate) fn new(settings: Settings, token_bytes: usize) -> Self {
        let Settings { issuers, backend, carriers, grants, anonymous, .. } = settings;
        let issuers: Vec<Issuer> = issuers.into_iter().map(|issuer| Issuer::new(issuer, &grants, &anonymous)).collect();
        let tokens = (!issuers.is_empty()).then(|| Tokens { issuers, attempts: watch::Sender::new(0), cache: Cache::default() });
        let backend = backend.map(|backend| Backend::new(backend, &anonymous));
        let (subscribe, publish) = (union(anonymous.subscribe.clone()), union(anonymous.publish.clone()));
        let grant = Grant { subscribe, publish, owner: None, expires: None };
        let (revocations, refusals) = (Arc::default(), Arc::default());
        Self { carriers, token_bytes, tokens, backend, anonymous: grant, open: anonymous, revocations, refusals }
    }

    /// Takes another one's place: keeps the key sets that it has fetched, where they are of the same place and for the same
    /// algorithms, what its backend has answered, its revocations, and what it has counted.
    #[must_use]
    pub(crate) fn in_place_of(mut self, other: &Self) -> Self {
        if let (Some(own), Some(others)) = (&self.tokens, &other.tokens) {
            for issuer in &own.issuers {
                others.issuers.iter().for_each(|other| issuer.keep_fetched(other));
            }
        }
        self.backend = self.backend.map(|own| match &other.backend {
            Some(others) => own.in_place_of(others),
            None => own,
        });
        self.revocations = other.revocations.clone();
        self.refusals = other.refusals.clone();
        self
    }

    /// Counts a request that is refused for this.
    pub(crate) fn count_refused(&self, error: &AuthError) {
        self.refusals.count(error);
    }

    /// Requests that were refused for their token, by reason.
    #[must_use]
    pub(crate) fn refusals(&self) -> Vec<(&'static str, u64)> {
        self.refusals.read()
    }

    /// How the backend is asked; `None`: there is none.
    #[must_use]
    pub(crate) fn backend_load(&self) -> Option<BackendLoad> {
        self.backend.as_ref().map(Backend::load)
    }

    /// The key sets behind URLs. One that several issuers name is there once, as old as the oldest of them.
    #[must_use]
    pub(crate) fn key_sets(&self) -> Vec<KeySet> {
        let mut sets = BTreeMap::new();
        for remote in self.tokens.iter().flat_map(|tokens| &tokens.issuers).flat_map(Issuer::remotes) {
            let (url, age) = (remote.shown(), remote.age());
            sets.entry(url).and_modify(|of: &mut Option<Duration>| *of = of.zip(age).map(|(a, b)| a.max(b))).or_insert(age);
        }
        sets.into_iter().map(|(url, age)| KeySet { url, age }).collect()
    }

    /// The revocations that it goes by.
    #[must_use]
    pub(crate) const fn revocations(&self) -> &Arc<Revocations> {
        &self.revocations
    }

    /// Refuses a grant whose token was revoked. A stream is checked by this once it can be found by whoever revokes: before,
    /// a revocation could have come too late for the check of its token and too early to end it.
    ///
    /// # Errors
    /// If it was revoked.
    pub(crate) fn check_revoked(&self, owner: Option<&Owner>) -> Result<(), AuthError> {
        self.not_revoked(owner, Timestamp::now())
    }

    fn not_revoked(&self, owner: Option<&Owner>, now: Timestamp) -> Result<(), AuthError> {
        match owner {
            Some(_) if !self.revocations.are_known() => Err(AuthError::RevocationsNotLoaded),
            Some(owner) if self.revocations.cover(owner, now) => Err(AuthError::Invalid(Refused::Revoked)),
            _ => Ok(()),
        }
    }

    /// The name of the cookie that may carry a token.
    #[must_use]
    pub(crate) fn cookie(&self) -> Option<&str> {
        self.carriers.cookie.as_deref()
    }

    /// The name of the query's parameter that may carry a token.
    #[must_use]
    pub(crate) fn parameter(&self) -> Option<&str> {
        self.carriers.query.as_deref()
    }

    /// Whether a request's token is a bearer token in `Authorization`, be it good or not.
    #[must_use]
    pub(crate) fn is_bearer(&self, headers: &HeaderMap) -> bool {
        matches!(carrier::find(&self.carriers, true, headers, None), Ok(Some(_)))
    }

    /// Whether a request has the header that a proxy fills for any page.
    #[must_use]
    pub(crate) fn is_sent_along(&self, headers: &HeaderMap) -> bool {
        matches!(&self.carriers.header, settings::Header::Named(name) if headers.contains_key(name))
    }

    /// What the token of a request says of itself, whether that is true or not; `None`: there is none that can be read.
    #[must_use]
    pub(crate) fn presented(&self, headers: &HeaderMap, query: Option<&str>) -> Option<Presented> {
        let (carrier, token) = carrier::find(&self.carriers, false, headers, query).ok()??;
        let parsed = token::Parsed::new(&token).ok().filter(|_| token.len() <= self.token_bytes);
        let issuer = parsed.as_ref().and_then(|token| token.claims().get("iss")?.as_str().map(str::to_owned));
        Some(Presented { carrier: carrier.as_str(), key_id: parsed.and_then(|token| token.id), issuer })
    }

    /// Who asks, and what they may. `query` is the request's, as it was sent. The token of a `publisher` counts in the `Authorization`
    /// header only: what a browser sends along by itself, or what a link can hold, never publishes. Where keys are on their way it
    /// waits for them up to `patience`.
    ///
    /// # Errors
    /// When there is neither a good token nor anything open to anybody.
    pub(crate) async fn authenticate(
        &self,
        headers: &HeaderMap,
        query: Option<&str>,
        publisher: bool,
        patience: Duration,
    ) -> Result<Grant, AuthError> {
        self.patiently(patience, || self.find(headers, query, publisher, Timestamp::now())).await
    }

    async fn patiently(&self, patience: Duration, ask: impl Fn() -> Result<Grant, AuthError>) -> Result<Grant, AuthError> {
        let Some(tokens) = &self.tokens else { return ask() };
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

    /// What the backend is to be asked for a request: `None` where a token came, or nothing that is to be forwarded. `query` is the
    /// request's, as it was sent. For a `publisher` only `Authorization` counts.
    ///
    /// # Errors
    /// When two cookies to be forwarded have the same name and different values.
    pub(crate) fn question(&self, headers: &HeaderMap, query: Option<&str>, publisher: bool) -> Result<Option<Question>, AuthError> {
        let Some(backend) = &self.backend else { return Ok(None) };
        // Where no token is taken at all, a header or cookie holds none.
        let token = self.tokens.is_some() && !matches!(carrier::find(&self.carriers, publisher, headers, query), Ok(None));
        if token {
            return Ok(None);
        }
        backend.question(headers, publisher).map_err(|backend::TwoCookies| AuthError::Invalid(Refused::TwoCookies))
    }

    /// What the backend grants to a request from `address`: at once where the same was asked a short time ago.
    ///
    /// # Errors
    /// When the backend refuses, when what it grants was revoked, or when it cannot be asked.
    pub(crate) async fn ask(&self, question: Question, address: IpAddr) -> Result<Grant, AuthError> {
        let Some(backend) = &self.backend else { return Err(AuthError::BackendUnavailable) };
        if !self.revocations.are_known() {
            return Err(AuthError::RevocationsNotLoaded);
        }
        backend.ask(question, address, &self.revocations).await.map_err(|denied| match denied {
            backend::Denied::Refused => AuthError::Invalid(Refused::Backend),
            backend::Denied::Revoked => AuthError::Invalid(Refused::Revoked),
            backend::Denied::Unavailable => AuthError::BackendUnavailable,
        })
    }

    /// Whether a grant is what the backend answered last. A stream is checked by this once it can be found: an answer that came
    /// before may have come too early to end it.
    #[must_use]
    pub(crate) fn is_latest(&self, owner: Option<&Owner>) -> bool {
        let Some((owner, credential)) = owner.and_then(|owner| Some((owner, owner.credential.as_ref()?))) else { return true };
        let answer = self.backend.as_ref().and_then(|backend| backend.counts(credential));
        answer.is_some_and(|answer| Some(answer.asked) == owner.issued)
    }

    /// Asks the backend again for those whose streams are open, from time to time, until another one has `replaced` this one and what
    /// was asked is answered. `changed` is called where owners may see something else from now on.
    pub(crate) async fn recheck(&self, replaced: &CancellationToken, changed: impl Fn(&dyn Fn(&Owner) -> Option<Regrant>)) {
        match &self.backend {
            Some(backend) => backend.recheck(&self.revocations, replaced, changed).await,
            None => replaced.cancelled().await,
        }
    }

    /// Fetches the keys behind URLs, and again from time to time and on need. Ends at once where there are none, else never;
    /// dropping it stops fetching.
    pub(crate) async fn refresh_keys(&self) {
        let Some(tokens) = &self.tokens else { return };
        let attempted = || tokens.attempts.send_modify(|count| *count = count.wrapping_add(1));
        join_all(tokens.issuers.iter().map(|issuer| issuer.refresh(|| tokens.cache.clear(), attempted))).await;
    }

    /// Whether the key that signed an owner's token counts no more.
    #[must_use]
    pub(crate) fn lost_key(&self, owner: &Owner) -> bool {
        if let Some(credential) = &owner.credential {
            return self.backend.as_ref().is_none_or(|backend| backend.counts(credential).is_none());
        }
        let issuer = self.tokens.as_ref().and_then(|tokens| tokens.issuer_named(owner.issuer.as_deref()));
        !issuer.is_some_and(|issuer| issuer.holds(owner.key))
    }

    /// Counts the attempts to fetch keys. `None`: no token is taken.
    #[must_use]
    pub(crate) fn attempts(&self) -> Option<watch::Receiver<u64>> {
        Some(self.tokens.as_ref()?.attempts.subscribe())
    }

    /// What the owner of a stream may subscribe to: by its token's claims, whose key is not looked at again; `None`: what is open
    /// to anybody. Nothing, where the claims would be refused.
    #[must_use]
    pub(crate) fn subscribes(&self, owner: Option<&Owner>, now: Timestamp) -> Arc<[Pattern]> {
        let Some(owner) = owner else { return self.anonymous.subscribe.clone() };
        if let Some(credential) = &owner.credential {
            return self.backend.as_ref().map(|backend| backend.subscribes(owner, credential)).unwrap_or_default();
        }
        let claims = serde_json::from_slice(&owner.claims).ok();
        let granted = |claims| self.tokens.as_ref()?.issuer_of(&claims).ok()?.subscribes(&claims, now);
        claims.and_then(granted).unwrap_or_default()
    }

    fn find(&self, headers: &HeaderMap, query: Option<&str>, publish: bool, now: Timestamp) -> Result<Grant, AuthError> {
        let token = match carrier::find(&self.carriers, publish, headers, query) {
            Ok(Some((_, token))) => token,
            Ok(None) => {
                let open = if publish { &self.anonymous.publish } else { &self.anonymous.subscribe };
                return if open.is_empty() { Err(AuthError::Missing) } else { Ok(self.anonymous.clone()) };
            }
            Err(Unreadable::Request(why)) => return Err(AuthError::Malformed(why)),
            Err(Unreadable::Token(why)) => return Err(AuthError::Invalid(why)),
        };
        self.grant_of(&token, now)
    }

    /// What a token grants, wherever it was found. Logs nothing.
    fn grant_of(&self, token: &str, now: Timestamp) -> Result<Grant, AuthError> {
        if token.len() > self.token_bytes {
            return Err(AuthError::Malformed("the token is longer than `server.limits.token_bytes`"));
        }
        let grant = self.tokens.as_ref().ok_or(AuthError::Invalid(Refused::NoKeys))?.grant(token, now)?;
        self.not_revoked(grant.owner.as_deref(), now)?;
        Ok(grant)
    }
}

/// Reads a token as far as it can be read before its key is known, for fuzzing.
///
/// # Errors
/// When it would be refused by then.
#[cfg(feature = "internals")]
pub fn read_token(token: &str) -> Result<(), Refused> {
    token::Parsed::new(token).map(drop)
}

impl Tokens {
    fn grant(&self, token: &str, now: Timestamp) -> Result<Grant, AuthError> {
        let fingerprint = self.cache.fingerprint(token);
        if let Some(grant) = self.cache.get(fingerprint, now) {
            return Ok(grant);
        }
        // Before the keys are looked at, so that what older keys verified is not kept.
        let epoch = self.cache.epoch();
        let parsed = token::Parsed::new(token).map_err(AuthError::Invalid)?;
        let issuer = self.issuer_of(parsed.claims()).map_err(AuthError::Invalid)?;
        let grant = issuer.grant(&parsed, now).map_err(|denied| match denied {
            Denied::Refused(why) => AuthError::Invalid(why),
            Denied::KeyMayCome => AuthError::KeysNotLoaded,
        })?;
        Ok(self.cache.insert(fingerprint, grant, epoch))
    }

    /// The one that a token names.
    fn issuer_of(&self, claims: &Map<String, Value>) -> Result<&Issuer, Refused> {
        match claims.get("iss") {
            None => self.issuer_named(None).ok_or(Refused::ClaimMissing("iss")),
            Some(Value::String(name)) => self.issuer_named(Some(name)).ok_or(Refused::Issuer),
            // Not looked at where there is only one, which has no name.
            Some(_) => self.only().ok_or(Refused::Issuer),
        }
    }

    /// One without a name takes tokens that name none, and all tokens where it is the only one.
    fn issuer_named(&self, name: Option<&str>) -> Option<&Issuer> {
        self.only().or_else(|| self.issuers.iter().find(|issuer| issuer.name() == name))
    }

    fn only(&self) -> Option<&Issuer> {
        if let [only] = self.issuers.as_slice() { Some(only).filter(|only| only.name().is_none()) } else { None }
    }
}
