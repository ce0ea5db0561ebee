//! One issuer of tokens: its keys, what its tokens must say, and what they grant.
//!
//! Knows no request and no other issuer.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::jwks::{Hope, Remote};
use super::settings::{self, Credential, Lists};
use super::template::{self, MAX_PATTERNS, Template};
use super::token::{Parsed, Refused, Rules, as_text, numeric_date};
use super::{Grant, GrantRule, Owner, keys};
use crate::event::Timestamp;
use crate::subject::{self, Pattern};
use crate::support::seldom::Seldom;

/// See the module.
#[derive(Debug)]
pub(super) struct Issuer {
    /// Its key path.
    path: String,
    /// Its `iss`.
    name: Option<Arc<str>>,
    rules: Rules,
    subscribe: Permits,
    publish: Permits,
    ring: ArcSwap<Ring>,
    /// Held while a new ring is made, so that of two sets that arrive at once neither is lost.
    turning: Mutex<()>,
    remotes: Vec<Remote>,
}

/// Why a token gives no grant.
#[derive(Debug)]
pub(super) enum Denied {
    Refused(Refused),
    /// The key that signed it may be on its way.
    KeyMayCome,
}

/// All keys of one moment.
#[derive(Debug, Clone)]
struct Ring {
    fixed: Arc<[keys::Key]>,
    /// One for each [`Remote`]; `None`: not loaded yet.
    fetched: Vec<Option<Arc<[keys::Key]>>>,
    /// What was fetched there the time before: a key must be missing twice before the streams end that it let in.
    earlier: Vec<Arc<[keys::Key]>>,
}

impl Ring {
    fn keys(&self) -> impl Iterator<Item = &keys::Key> {
        self.fixed.iter().chain(self.fetched.iter().flatten().flat_map(|set| set.iter()))
    }
}

/// Where the patterns of one kind of grant come from.
#[derive(Debug)]
struct Permits {
    /// The claim's path.
    path: String,
    /// The key path at which that is configured.
    key: String,
    /// Each with its key path.
    templates: Vec<(String, Template)>,
    anonymous: Vec<Pattern>,
    warn: Seldom,
}

/// Between two warnings of values that are not patterns: each new token can have some, and so has each owner after a reload.
const QUIET: Duration = Duration::from_secs(10);

impl Permits {
    fn of(&self, claims: &Map<String, Value>) -> Arc<[Pattern]> {
        let claim = template::claim(claims, &self.path);
        let (mut patterns, bad) = template::patterns(claim);
        let hash = template::has_hash(claim);
        if (hash || bad > 0) && self.warn.may(Instant::now()) {
            let claim = &self.path;
            if hash {
                tracing::warn!(claim, "a token's claim has `#`, the wildcard of AMQP, which permits nothing here: write `>`");
            } else {
                tracing::warn!(claim, values = bad, "a token's claim has values that are not valid patterns: they permit nothing");
            }
        }
        for (key, template) in &self.templates {
            patterns.extend(template.fill(claims));
            if template.is_cut(claims) && self.warn.may(Instant::now()) {
                tracing::warn!(key, most = MAX_PATTERNS, "a token's claims make more patterns of a template: the rest is left out");
            }
        }
        patterns.extend(self.anonymous.iter().cloned());
        union(patterns)
    }

    /// Each rule with what it gives, without those of anonymous access.
    fn explain(&self, claims: &Map<String, Value>) -> Vec<GrantRule> {
        let claim = template::claim(claims, &self.path);
        let (gives, bad) = template::patterns(claim);
        let lacks = match (claim, bad) {
            (None, _) => Some("the token has no such claim".to_owned()),
            (_, 0) => None,
            (_, bad) => Some(format!("values of the claim that are not valid patterns, and grant nothing: {bad}")),
        };
        let claimed = GrantRule { name: format!("claim `{}`", self.path), key: self.key.clone(), says: self.path.clone(), gives, lacks };
        let templates = self.templates.iter().map(|(path, template)| GrantRule {
            name: path.clone(),
            key: path.clone(),
            says: template.to_string(),
            gives: template.fill(claims),
            lacks: template.lacks(claims),
        });
        std::iter::once(claimed).chain(templates).collect()
    }
}

/// One order and nothing twice, so that equal grants are equal lists.
pub(super) fn union(patterns: Vec<Pattern>) -> Arc<[Pattern]> {
    subject::minimal(patterns).into()
}

impl Issuer {
    /// Its tokens grant what its own templates say, those `of_all` issuers, and what is open to anybody.
    pub(super) fn new(settings: settings::Issuer, of_all: &Lists<Template>, anonymous: &Lists<Pattern>) -> Self {
        let settings::Issuer { path, name, audiences, leeway, max_lifetime, keys, claims, grants } = settings;
        let permits = |claim, kind, own: &[Template], of_all: &[Template], anonymous: &[Pattern]| {
            let placed = |path: &str, templates: &[Template]| -> Vec<(String, Template)> {
                templates.iter().enumerate().map(|(n, template)| (format!("{path}.grants.{kind}[{n}]"), template.clone())).collect()
            };
            let key = format!("{path}.claims.{kind}");
            Permits {
                path: claim,
                key,
                templates: [placed(&path, own), placed("auth", of_all)].concat(),
                anonymous: anonymous.to_vec(),
                warn: Seldom::every(QUIET),
            }
        };
        let (mut fixed, mut remotes) = (Vec::new(), Vec::new());
        for key in keys {
            match key {
                Credential::Secret(_, key) | Credential::Public(key) => fixed.push(key),
                Credential::Set(keys) => fixed.extend(keys),
                Credential::Remote(remote) => remotes.push(remote),
            }
        }
        Self {
            path: path.clone(),
            name: name.map(Arc::from),
            rules: Rules { audiences, leeway, max_lifetime },
            subscribe: permits(claims.subscribe, "subscribe", &grants.subscribe, &of_all.subscribe, &anonymous.subscribe),
            publish: permits(claims.publish, "publish", &grants.publish, &of_all.publish, &anonymous.publish),
            ring: ArcSwap::from_pointee(Ring {
                fixed: fixed.into(),
                fetched: vec![None; remotes.len()],
                earlier: vec![Arc::default(); remotes.len()],
            }),
            turning: Mutex::new(()),
            remotes,
        }
    }

    /// The `iss` of its tokens.
    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Its key path.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// What its tokens' registered claims must be.
    pub(super) const fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The ids of the keys that it has now; `None` for a key that takes tokens with any.
    pub(super) fn key_ids(&self) -> Vec<Option<String>> {
        self.ring.load().keys().map(|key| key.id.as_deref().map(str::to_owned)).collect()
    }

    /// Fetches its keys behind URLs for as long as it is polled. `changed` is called after each new set, `attempted` after
    /// each attempt. Ends at once where there are none.
    pub(super) async fn refresh(&self, changed: impl Fn(), attempted: impl Fn()) {
        let (changed, attempted) = (&changed, &attempted);
        join_all(self.remotes.iter().enumerate().map(|(number, remote)| {
            let turn = move |keys: Option<_>| {
                let is_new = keys.is_some();
                self.turn(number, keys);
                if is_new {
                    changed();
                }
            };
            remote.run(turn, attempted)
        }))
        .await;
    }

    /// Keeps the sets that another one has fetched, where they are of the same place and for the same keys.
    pub(super) fn keep_fetched(&self, of: &Self) {
        for (number, remote) in self.remotes.iter().enumerate() {
            let same = of.remotes.iter().position(|other| remote.keep_fetched(other));
            // Behind the text of the set, which must never be newer than its keys.
            let ring = of.ring.load();
            let fetched = same.and_then(|at| Some((ring.earlier.get(at)?.clone(), ring.fetched.get(at)?.clone()?)));
            if let Some((earlier, keys)) = fetched {
                self.turn(number, Some(earlier));
                self.turn(number, Some(keys));
            }
        }
    }

    /// Takes in a set that was fetched. `None`: it is the same as before.
    fn turn(&self, number: usize, keys: Option<Arc<[keys::Key]>>) {
        let _turning = self.turning.lock();
        let mut ring = Ring::clone(&self.ring.load());
        if let (Some(set), Some(earlier)) = (ring.fetched.get_mut(number), ring.earlier.get_mut(number)) {
            *earlier = set.clone().unwrap_or_default();
            *set = keys.or(set.take());
        }
        self.ring.store(Arc::new(ring));
    }

    /// Whether the key that signed a token still counts with its algorithm, or is on its way. A fetched one counts until it was missing twice.
    pub(super) fn holds(&self, key: u64) -> bool {
        let ring = self.ring.load();
        let earlier = ring.earlier.iter().flat_map(|set| set.iter());
        self.remotes.iter().any(|remote| remote.may_hold(key)) || ring.keys().chain(earlier).any(|held| held.has(key))
    }

    /// What a token grants, which names this issuer.
    pub(super) fn grant(&self, token: &Parsed<'_>, now: Timestamp) -> Result<Grant, Denied> {
        let key = self.signer(token)?;
        let claims = token.claims();
        let expires = self.rules.check(claims, now).map_err(Denied::Refused)?;
        let owner = self.owner(token, key).map_err(Denied::Refused)?;
        let (subscribe, publish) = (self.subscribe.of(claims), self.publish.of(claims));
        Ok(Grant { subscribe, publish, owner: Some(Arc::new(owner)), expires: Some(expires) })
    }

    /// What tells the key that signed a token, used with its algorithm.
    fn signer(&self, token: &Parsed<'_>) -> Result<u64, Denied> {
        let mut ring = self.ring.load_full();
        loop {
            let why = match token.verify(ring.keys()) {
                Ok(key) => return Ok(key.print(token.algorithm)),
                Err(why) => why,
            };
            if self.may_come(token, &ring) {
                return Err(Denied::KeyMayCome);
            }
            // Between the two looks the key may have come.
            let now = self.ring.load_full();
            if Arc::ptr_eq(&ring, &now) {
                return Err(Denied::Refused(why));
            }
            ring = now;
        }
    }

    /// What claims that were verified before may be subscribed to now; `None`: they would be refused.
    pub(super) fn subscribes(&self, claims: &Map<String, Value>, now: Timestamp) -> Option<Arc<[Pattern]>> {
        match self.rules.check(claims, now) {
            // When it ends was settled as it was opened, by the leeway of that time.
            Ok(_) | Err(Refused::Expired) => Some(self.subscribe.of(claims)),
            Err(_) => None,
        }
    }

    fn owner(&self, token: &Parsed<'_>, key: u64) -> Result<Owner, Refused> {
        let claims = token.claims();
        // By these texts tokens are revoked.
        let text = |claim| match claims.get(claim) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => as_text(value).map(|text| Some(text).filter(|text| !text.is_empty())).ok_or(Refused::ClaimType(claim)),
        };
        let identity = text("sub")?.map(Arc::from);
        let (token_id, session_id) = (text("jti")?.map(Box::from), text("sid")?.map(Box::from));
        let issuer = self.name.clone().or_else(|| claims.get("iss").and_then(Value::as_str).map(Arc::from));
        let issued = numeric_date(claims, "iat")?;
        Ok(Owner { identity, token_id, issuer, session_id, issued, key, claims: token.payload().into(), credential: None })
    }

    /// The rules that may grant something to these claims, for subscribing and for publishing.
    pub(super) fn explain(&self, claims: &Map<String, Value>) -> (Vec<GrantRule>, Vec<GrantRule>) {
        (self.subscribe.explain(claims), self.publish.explain(claims))
    }

    /// Whether the key of a token that no key has signed may be on its way: its set was never loaded, or is being fetched
    /// again because of it.
    fn may_come(&self, token: &Parsed<'_>, ring: &Ring) -> bool {
        let of_this_name = |key: &keys::Key| key.id.is_some() && key.suits(token.algorithm, token.id.as_deref());
        if token.id.is_some() && ring.fixed.iter().any(of_this_name) {
            // It names its key, which is here and says no. A fetched one may have been exchanged under the same name.
            return false;
        }
        let mut hope = false;
        for remote in self.remotes.iter().filter(|remote| remote.serves(token.algorithm)) {
            hope |= remote.miss() == Hope::Waiting;
        }
        hope
    }

    /// Its key sets behind URLs.
    pub(super) fn remotes(&self) -> &[Remote] {
        &self.remotes
    }
}
