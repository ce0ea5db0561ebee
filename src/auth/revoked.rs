//! Revocations: tokens that are refused from now on though they would else be good.
//!
//! Takes the time as an argument. Knows no request, no stream and no status code.

use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use super::Owner;
use crate::event::Timestamp;
use crate::settings::value::parse_duration;
use crate::support::random;

/// Which tokens are meant: those that meet all of what is set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Criteria {
    /// The token's `sub`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<Box<str>>,
    /// Its `iss`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<Box<str>>,
    /// Its `jti`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_id: Option<Box<str>>,
    /// Its `sid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<Box<str>>,
    /// Its `iat` is earlier, or there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issued_before: Option<Timestamp>,
}

impl Criteria {
    /// Whether a token is meant.
    #[must_use]
    pub fn cover(&self, owner: &Owner) -> bool {
        let same = |wanted: &Option<Box<str>>, found: Option<&str>| wanted.is_none() || wanted.as_deref() == found;
        same(&self.identity, owner.identity.as_deref())
            && same(&self.issuer, owner.issuer.as_deref())
            && same(&self.token_id, owner.token_id.as_deref())
            && same(&self.session_id, owner.session_id.as_deref())
            && self.issued_before.is_none_or(|before| owner.issued.is_none_or(|issued| issued < before))
    }

    /// The criterion that is looked up: the one that the fewest tokens meet. `None`: only `issued_before` is set.
    fn key(&self) -> Option<(usize, &str)> {
        let all = [&self.token_id, &self.session_id, &self.identity, &self.issuer];
        all.into_iter().enumerate().find_map(|(kind, text)| Some((kind, text.as_deref()?)))
    }
}

/// One order to refuse tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Revocation {
    /// What names it.
    pub id: Box<str>,
    /// Which tokens.
    #[serde(flatten)]
    pub criteria: Criteria,
    /// Until when.
    pub until: Timestamp,
}

/// An order as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    identity: Option<Box<str>>,
    issuer: Option<Box<str>>,
    token_id: Option<Box<str>>,
    session_id: Option<Box<str>>,
    issued_before: Option<String>,
    until: String,
}

/// Why an order cannot be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RevocationError {
    /// Not the JSON that is expected.
    #[error(
        "must be a JSON object with `until` and at least one of `identity`, `issuer`, `token_id`, `session_id` (texts) and \
         `issued_before` (RFC 3339), and nothing else"
    )]
    Shape(#[source] serde_json::Error),
    /// It would mean all tokens, by accident.
    #[error("needs at least one of `identity`, `issuer`, `token_id`, `session_id` and `issued_before`, none of them empty")]
    NoCriterion,
    /// No time.
    #[error("`issued_before` must be a time as of RFC 3339, such as 2030-01-31T12:00:00Z")]
    IssuedBefore,
    /// Neither form, or over already.
    #[error("`until` must be a time in the future (RFC 3339), or a duration such as 12h or 30d")]
    Until,
    /// There are [`MAX`] of them.
    #[error("there are {MAX} revocations already; `issued_before` revokes many tokens by one")]
    Full,
}

impl Revocation {
    /// Reads an order as JSON, and gives it a name.
    ///
    /// # Errors
    /// When it is not one.
    pub fn read(json: &[u8], now: Timestamp) -> Result<Self, RevocationError> {
        let written: Written = serde_json::from_slice(json).map_err(RevocationError::Shape)?;
        let Written { identity, issuer, token_id, session_id, issued_before, until } = written;
        let issued_before = issued_before.map(|text| time(&text).ok_or(RevocationError::IssuedBefore)).transpose()?;
        let criteria = Criteria { identity, issuer, token_id, session_id, issued_before };
        let texts = [&criteria.identity, &criteria.issuer, &criteria.token_id, &criteria.session_id];
        if criteria == Criteria::default() || texts.into_iter().flatten().any(|text| text.is_empty()) {
            return Err(RevocationError::NoCriterion);
        }
        let until = parse_duration(&until).map(|span| now.after(span)).or_else(|| time(&until));
        let until = until.filter(|until| *until > now).ok_or(RevocationError::Until)?;
        let id = format!("{:08x}{:08x}", random::in_range(0..=u32::MAX), random::in_range(0..=u32::MAX)).into();
        Ok(Self { id, criteria, until })
    }
}

/// Reads RFC 3339.
fn time(text: &str) -> Option<Timestamp> {
    let micros = text.parse::<jiff::Timestamp>().ok()?.as_microsecond();
    u64::try_from(micros).ok().map(Timestamp::from_micros)
}

/// The most revocations that are kept.
const MAX: usize = 100_000;

/// All revocations that hold.
#[derive(Debug, Default)]
pub struct Revocations(RwLock<State>);

#[derive(Debug, Default)]
struct State {
    all: HashMap<Box<str>, Arc<Revocation>>,
    /// By the criterion that is looked up: `token_id`, `session_id`, `identity`, `issuer`.
    index: [HashMap<Box<str>, Vec<Arc<Revocation>>>; 4],
    /// Those without any of these.
    rest: Vec<Arc<Revocation>>,
    /// What is over is dropped when there are so many.
    sweep_at: usize,
    /// How many were taken in.
    added: u64,
}

impl Revocations {
    /// Takes one in.
    ///
    /// # Errors
    /// When there are too many.
    pub fn add(&self, revocation: Revocation, now: Timestamp) -> Result<(), RevocationError> {
        let mut state = self.0.write();
        if state.all.len() >= state.sweep_at.clamp(64, MAX) {
            state.sweep(now);
        }
        if state.all.len() >= MAX {
            return Err(RevocationError::Full);
        }
        let revocation = Arc::new(revocation);
        state.all.insert(revocation.id.clone(), revocation.clone());
        state.file(revocation);
        state.added += 1;
        Ok(())
    }

    /// How many were taken in so far: what was found out earlier may not count any more.
    #[must_use]
    pub fn added(&self) -> u64 {
        self.0.read().added
    }

    /// Takes one back. Returns whether it was there.
    pub fn remove(&self, id: &str) -> bool {
        let mut state = self.0.write();
        let Some(revocation) = state.all.remove(id) else { return false };
        let others = |list: &mut Vec<Arc<Revocation>>| list.retain(|other| other.id != revocation.id);
        match revocation.criteria.key() {
            Some((kind, text)) => {
                if let Some(list) = state.index[kind].get_mut(text) {
                    others(list);
                    if list.is_empty() {
                        state.index[kind].remove(text);
                    }
                }
            }
            None => others(&mut state.rest),
        }
        true
    }

    /// Those that hold, in the order in which they end.
    #[must_use]
    pub fn list(&self, now: Timestamp) -> Vec<Arc<Revocation>> {
        let mut list: Vec<_> = self.0.read().all.values().filter(|revocation| now < revocation.until).cloned().collect();
        list.sort_by(|a, b| (a.until, &a.id).cmp(&(b.until, &b.id)));
        list
    }

    /// Whether a token is revoked.
    #[must_use]
    pub fn cover(&self, owner: &Owner, now: Timestamp) -> bool {
        let state = self.0.read();
        if state.all.is_empty() {
            return false;
        }
        let keys = [owner.token_id.as_deref(), owner.session_id.as_deref(), owner.identity.as_deref(), owner.issuer.as_deref()];
        let found = keys.into_iter().zip(&state.index).filter_map(|(key, index)| index.get(key?));
        found.chain([&state.rest]).any(|list| {
            // What stands behind the first one that the token is too young for concerns only older tokens.
            let old = |revocation: &&Arc<Revocation>| before(revocation) > owner.issued.unwrap_or_default();
            list.iter().take_while(old).any(|revocation| now < revocation.until && revocation.criteria.cover(owner))
        })
    }
}

/// Tokens issued before this are meant.
fn before(revocation: &Revocation) -> Timestamp {
    revocation.criteria.issued_before.unwrap_or_else(|| Timestamp::default().after(Duration::MAX))
}

impl State {
    /// Puts it into its list, where those that concern the youngest tokens come first.
    fn file(&mut self, revocation: Arc<Revocation>) {
        let list = match revocation.criteria.key() {
            Some((kind, text)) => self.index[kind].entry(text.into()).or_default(),
            None => &mut self.rest,
        };
        let at = list.partition_point(|other| before(other) >= before(&revocation));
        list.insert(at, revocation);
    }

    /// Drops what is over.
    fn sweep(&mut self, now: Timestamp) {
        self.all.retain(|_, revocation| now < revocation.until);
        self.index = Default::default();
        self.rest.clear();
        let holding: Vec<_> = self.all.values().cloned().collect();
        holding.into_iter().for_each(|revocation| self.file(revocation));
        self.sweep_at = self.all.len() * 2;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::{Value, json};

    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_000_000_000_000_000);

    fn read(order: &Value) -> Result<Revocation, RevocationError> {
        Revocation::read(order.to_string().as_bytes(), NOW)
    }

    fn with(orders: &[Value]) -> Revocations {
        let all = Revocations::default();
        orders.iter().for_each(|order| all.add(read(order).unwrap(), NOW).unwrap());
        all
    }

    fn owner() -> Owner {
        Owner {
            identity: Some("alice".into()),
            issuer: Some("idp".into()),
            token_id: Some("t1".into()),
            session_id: Some("s1".into()),
            issued: Some(NOW.before(Duration::from_secs(60))),
            ..Owner::default()
        }
    }

    #[test]
    fn all_criteria_must_be_met() {
        let minute_ago = NOW.before(Duration::from_secs(59)).to_string();
        let hour_ago = NOW.before(Duration::from_secs(3600)).to_string();
        for (order, expected) in [
            (json!({ "identity": "alice" }), true),
            (json!({ "identity": "bob" }), false),
            (json!({ "token_id": "t1" }), true),
            (json!({ "token_id": "t2" }), false),
            (json!({ "session_id": "s1", "identity": "alice" }), true),
            (json!({ "session_id": "s1", "identity": "bob" }), false),
            (json!({ "issuer": "idp" }), true),
            (json!({ "issuer": "other", "token_id": "t1" }), false),
            (json!({ "issued_before": minute_ago }), true),
            (json!({ "issued_before": hour_ago }), false),
            (json!({ "identity": "alice", "issued_before": minute_ago }), true),
            (json!({ "identity": "alice", "issued_before": hour_ago }), false),
        ] {
            let mut order = order;
            order["until"] = "1h".into();
            let all = with(&[order.clone()]);
            assert_eq!(all.cover(&owner(), NOW), expected, "{order}");
            assert_eq!(all.list(NOW)[0].criteria.cover(&owner()), expected, "{order}");
            assert!(!all.cover(&owner(), NOW.after(Duration::from_secs(3600))), "it is over");
            let never_issued = Owner { issued: None, ..owner() };
            assert!(all.cover(&never_issued, NOW) || !expected && order.get("issued_before").is_none(), "{order}");
            let id = all.list(NOW)[0].id.clone();
            assert!(all.remove(&id) && !all.remove(&id) && !all.cover(&owner(), NOW));
        }
    }

    #[test]
    fn a_stronger_one_that_is_over_hides_no_weaker_one() {
        let all = with(&[
            json!({ "identity": "alice", "until": "1s" }),
            json!({ "identity": "alice", "issuer": "other", "until": "1h" }),
            json!({ "identity": "alice", "issued_before": NOW.to_string(), "until": "1h" }),
        ]);
        assert!(all.cover(&owner(), NOW.after(Duration::from_secs(2))));
        assert!(!all.cover(&Owner { issued: Some(NOW), ..owner() }, NOW.after(Duration::from_secs(2))));
    }

    #[test]
    fn what_is_no_order_is_refused() {
        for order in [
            json!({ "until": "1h" }),
            json!({ "identity": "", "until": "1h" }),
            json!({ "identity": "a" }),
            json!({ "identity": "a", "until": "0" }),
            json!({ "identity": "a", "until": "soon" }),
            json!({ "identity": "a", "until": 5 }),
            json!({ "identity": "a", "until": "2001-01-01T00:00:00Z" }),
            json!({ "identity": "a", "until": "1h", "id": "x" }),
            json!({ "identity": 5, "until": "1h" }),
            json!({ "issued_before": "1h", "until": "1h" }),
            json!([]),
        ] {
            assert!(read(&order).is_err(), "{order}");
        }
    }

    #[test]
    fn what_is_over_makes_room() {
        let all = Revocations::default();
        for n in 0..1000_u64 {
            let order = read(&json!({ "token_id": n.to_string(), "until": "1s" })).unwrap();
            all.add(order, NOW.after(Duration::from_secs(n))).unwrap();
        }
        assert!(all.0.read().all.len() <= 128);
    }

    #[test]
    fn ten_thousand_cost_a_request_little() {
        let order = |n: u64| {
            let issued = NOW.before(Duration::from_secs(7200 + n)).to_string();
            match n % 4 {
                0 => json!({ "token_id": n.to_string(), "until": "1h" }),
                1 => json!({ "identity": n.to_string(), "until": "1h" }),
                2 => json!({ "identity": "alice", "issued_before": issued, "until": "1h" }),
                _ => json!({ "issuer": "idp", "issued_before": issued, "until": "1h" }),
            }
        };
        let all = with(&(0..10_000).map(order).collect::<Vec<_>>());
        let owner = owner();
        let began = Instant::now();
        for _ in 0..10_000 {
            assert!(!all.cover(std::hint::black_box(&owner), NOW));
        }
        let each = began.elapsed() / 10_000;
        // 5 µs in a release build; here without optimization, on a busy machine.
        assert!(each < Duration::from_micros(50), "{each:?}");
    }
}
