//! Revocations: tokens that are refused from now on though they would else be good.
//!
//! Takes the time as an argument. Knows no request, no stream and no status code.

use std::collections::BTreeSet;
use std::hash::Hasher as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fnv::FnvHasher;
use hashbrown::HashMap;
use parking_lot::RwLock;
use serde::{Deserialize, Deserializer, Serialize};

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

/// What a message of a broker says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Tokens are refused.
    Revoke(Revocation),
    /// A revocation of this name is taken back.
    Delete(Box<str>),
    /// Tokens were refused until a time that is over; an earlier revocation of this name was replaced by this.
    Over(Box<str>),
}

/// An order as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default, deserialize_with = "given")]
    id: Option<Box<str>>,
    #[serde(default, deserialize_with = "given")]
    identity: Option<Box<str>>,
    #[serde(default, deserialize_with = "given")]
    issuer: Option<Box<str>>,
    #[serde(default, deserialize_with = "given")]
    token_id: Option<Box<str>>,
    #[serde(default, deserialize_with = "given")]
    session_id: Option<Box<str>>,
    #[serde(default, deserialize_with = "given")]
    issued_before: Option<String>,
    until: String,
}

/// A criterion that is `null` is a mistake: without it, more tokens would be revoked than were meant.
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(value: D) -> Result<Option<T>, D::Error> {
    T::deserialize(value).map(Some)
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
    /// An id that could not be said in a URL.
    #[error("`id` must be 1 to 128 letters, digits and `-`, `_`, `.`, `~` and `:`")]
    Id,
    /// The process gives the id.
    #[error("has an `id`, which is given by brokercast")]
    OwnId,
    /// Neither form, or over already.
    #[error("`until` must be a time in the future, at the latest 9999-12-30T22:00:00Z (RFC 3339), or a duration such as 12h or 30d")]
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
        if written.id.is_some() {
            return Err(RevocationError::OwnId);
        }
        let id = format!("{:08x}{:08x}", random::in_range(0..=u32::MAX), random::in_range(0..=u32::MAX)).into();
        Self::of(written, id, now)?.filter(|revocation| revocation.until > now).ok_or(RevocationError::Until)
    }

    /// Reads a broker's message, which was sent at `sent`: the same JSON with the `id` of the revocation, or `{"deleted": id}`. One
    /// without an `id` gets the same one from every process that reads it.
    ///
    /// # Errors
    /// When it is neither.
    pub fn read_message(json: &[u8], sent: Timestamp, now: Timestamp) -> Result<Order, RevocationError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Deleted {
            deleted: Box<str>,
        }
        if let Ok(Deleted { deleted }) = serde_json::from_slice(json) {
            return Ok(Order::Delete(deleted));
        }
        let written: Written = serde_json::from_slice(json).map_err(RevocationError::Shape)?;
        let id = match &written.id {
            Some(id) if Self::is_id(id) => id.clone(),
            Some(_) => return Err(RevocationError::Id),
            None => format!("m{:016x}", hash(json)).into(),
        };
        let revocation = Self::of(written, id, sent)?.ok_or(RevocationError::Until)?;
        Ok(if revocation.until > now { Order::Revoke(revocation) } else { Order::Over(revocation.id) })
    }

    /// Whether a text can name a revocation: it can be part of a URL.
    #[must_use]
    pub fn is_id(text: &str) -> bool {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '~' | ':');
        (1..=128).contains(&text.len()) && text.chars().all(good)
    }

    /// `None`: `until` is no time. A duration counts from `from`.
    fn of(written: Written, id: Box<str>, from: Timestamp) -> Result<Option<Self>, RevocationError> {
        let Written { id: _, identity, issuer, token_id, session_id, issued_before, until } = written;
        let issued_before = issued_before.map(|text| time(&text).ok_or(RevocationError::IssuedBefore)).transpose()?;
        let criteria = Criteria { identity, issuer, token_id, session_id, issued_before };
        let texts = [&criteria.identity, &criteria.issuer, &criteria.token_id, &criteria.session_id];
        if criteria == Criteria::default() || texts.into_iter().flatten().any(|text| text.is_empty()) {
            return Err(RevocationError::NoCriterion);
        }
        let until = parse_duration(&until).map(|span| from.after(span)).or_else(|| time(&until));
        Ok(until.map(|until| Self { id, criteria, until }))
    }
}

/// The same in every process and version (FNV-1a).
fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = FnvHasher::default();
    hasher.write(bytes);
    hasher.finish()
}

/// Reads RFC 3339.
fn time(text: &str) -> Option<Timestamp> {
    let micros = text.parse::<jiff::Timestamp>().ok()?.as_microsecond();
    u64::try_from(micros).ok().map(Timestamp::from_micros)
}

/// The most revocations that are kept.
const MAX: usize = 100_000;
/// The most that are dropped for one that is added.
const AT_ONCE: usize = 16;

/// All revocations that hold.
#[derive(Debug, Default)]
pub struct Revocations {
    state: RwLock<State>,
    /// Those that a log holds are not all read yet.
    unread: AtomicBool,
    /// Messages of a broker that were taken, and that were nonsense.
    messages: [AtomicU64; 2],
}

#[derive(Debug, Default)]
struct State {
    all: HashMap<Box<str>, Arc<Revocation>>,
    /// By the criterion that is looked up: `token_id`, `session_id`, `identity`, `issuer`.
    index: [HashMap<Box<str>, Vec<Arc<Revocation>>>; 4],
    /// Those without any of these.
    rest: Vec<Arc<Revocation>>,
    /// All of them by when they end.
    ends: BTreeSet<(Timestamp, Box<str>)>,
    /// How many were taken in.
    added: u64,
}

impl Revocations {
    /// Whether it can be said of a token that it was not revoked.
    #[must_use]
    pub fn are_known(&self) -> bool {
        !self.unread.load(Ordering::Acquire)
    }

    /// From now on those of a log are still to be read, or have been read.
    pub fn set_known(&self, known: bool) {
        self.unread.store(!known, Ordering::Release);
    }

    /// Counts a broker's message.
    pub fn count_message(&self, taken: bool) {
        self.messages[usize::from(!taken)].fetch_add(1, Ordering::Relaxed);
    }

    /// Messages of a broker that were taken, and that were nonsense.
    #[must_use]
    pub fn messages(&self) -> [u64; 2] {
        [0, 1].map(|at: usize| self.messages[at].load(Ordering::Relaxed))
    }

    /// How many there are, those that are over and were not dropped yet included.
    #[must_use]
    pub fn count(&self) -> usize {
        self.state.read().all.len()
    }

    /// Takes one in, in the place of one of the same name. Returns whether it says something new.
    ///
    /// # Errors
    /// When there are too many.
    pub fn add(&self, revocation: Revocation, now: Timestamp) -> Result<bool, RevocationError> {
        let mut state = self.state.write();
        if let Some(known) = state.all.get(&revocation.id) {
            if **known == revocation {
                return Ok(false);
            }
            state.remove(&revocation.id);
        }
        state.drop_over(now);
        if state.all.len() >= MAX {
            return Err(RevocationError::Full);
        }
        let revocation = Arc::new(revocation);
        state.all.insert(revocation.id.clone(), revocation.clone());
        state.ends.insert((revocation.until, revocation.id.clone()));
        state.file(revocation);
        state.added += 1;
        Ok(true)
    }

    /// How many were taken in so far: what was found out earlier may not count any more.
    #[must_use]
    pub fn added(&self) -> u64 {
        self.state.read().added
    }

    /// Takes one back. Returns whether it was there.
    pub fn remove(&self, id: &str) -> bool {
        self.state.write().remove(id)
    }

    /// Those that hold, in the order in which they end.
    #[must_use]
    pub fn list(&self, now: Timestamp) -> Vec<Arc<Revocation>> {
        let mut list: Vec<_> = self.state.read().all.values().filter(|revocation| now < revocation.until).cloned().collect();
        list.sort_by(|a, b| (a.until, &a.id).cmp(&(b.until, &b.id)));
        list
    }

    /// Whether a token is revoked.
    #[must_use]
    pub fn cover(&self, owner: &Owner, now: Timestamp) -> bool {
        let state = self.state.read();
        if state.all.is_empty() {
            return false;
        }
        state.candidates(owner).any(|revocation| now < revocation.until && revocation.criteria.cover(owner))
    }
}

/// Tokens issued before this are meant.
fn before(revocation: &Revocation) -> Timestamp {
    revocation.criteria.issued_before.unwrap_or_else(|| Timestamp::default().after(Duration::MAX))
}

impl State {
    /// Those that may mean a token: all others need not be looked at.
    fn candidates(&self, owner: &Owner) -> impl Iterator<Item = &Arc<Revocation>> {
        let keys = [owner.token_id.as_deref(), owner.session_id.as_deref(), owner.identity.as_deref(), owner.issuer.as_deref()];
        let found = keys.into_iter().zip(&self.index).filter_map(|(key, index)| index.get(key?));
        let issued = owner.issued;
        // What stands behind the first one that the token is too young for concerns only older tokens.
        found.chain([&self.rest]).flat_map(move |list| list.iter().take_while(move |of| issued.is_none_or(|issued| before(of) > issued)))
    }

    fn remove(&mut self, id: &str) -> bool {
        let Some(revocation) = self.all.remove(id) else { return false };
        self.ends.remove(&(revocation.until, revocation.id.clone()));
        let others = |list: &mut Vec<Arc<Revocation>>| list.retain(|other| other.id != revocation.id);
        match revocation.criteria.key() {
            Some((kind, text)) => {
                if let Some(list) = self.index[kind].get_mut(text) {
                    others(list);
                    if list.is_empty() {
                        self.index[kind].remove(text);
                    }
                }
            }
            None => others(&mut self.rest),
        }
        true
    }

    /// Puts it into its list, where those that concern the youngest tokens come first.
    fn file(&mut self, revocation: Arc<Revocation>) {
        let list = match revocation.criteria.key() {
            Some((kind, text)) => self.index[kind].entry(text.into()).or_default(),
            None => &mut self.rest,
        };
        let at = list.partition_point(|other| before(other) >= before(&revocation));
        list.insert(at, revocation);
    }

    /// Drops what is over, but not much at a time: requests wait for the lock. More than is added, so that none is left.
    fn drop_over(&mut self, now: Timestamp) {
        for _ in 0..AT_ONCE {
            let Some((_, id)) = self.ends.first().filter(|(until, _)| *until <= now).cloned() else { return };
            self.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_000_000_000_000_000);

    fn read(order: &Value) -> Result<Revocation, RevocationError> {
        Revocation::read(order.to_string().as_bytes(), NOW)
    }

    fn with(orders: &[Value]) -> Revocations {
        let all = Revocations::default();
        orders.iter().for_each(|order| assert!(all.add(read(order).unwrap(), NOW).unwrap()));
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
            (json!({ "issued_before": "1970-01-01T00:00:00Z" }), false),
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
            json!({ "deleted": "x" }),
            json!({ "identity": 5, "until": "1h" }),
            json!({ "identity": null, "issuer": "https://id", "until": "1h" }),
            json!({ "identity": "a", "issued_before": null, "until": "1h" }),
            json!({ "issued_before": "1h", "until": "1h" }),
            json!([]),
        ] {
            assert!(read(&order).is_err(), "{order}");
        }
        let until = |until: &str| read(&json!({ "identity": "a", "until": until }));
        assert!(until("9999-12-30T22:00:00Z").is_ok());
        assert!(until("9999-12-31T23:59:59Z").is_err_and(|why| why.to_string().contains("at the latest 9999-12-30T22:00:00Z")));
    }

    #[test]
    fn a_message_of_a_broker_says_the_same_to_every_process() {
        let read = |message: &str, sent: u64, now: u64| {
            let at = |seconds| NOW.after(Duration::from_secs(seconds));
            Revocation::read_message(message.as_bytes(), at(sent), at(now))
        };
        let own = Revocation::read(br#"{"identity":"alice","issued_before":"2030-01-31T12:00:00.5Z","until":"1h"}"#, NOW).unwrap();
        let message = serde_json::to_string(&own).unwrap();
        assert_eq!(read(&message, 9, 9).unwrap(), Order::Revoke(own.clone()), "{message}");
        assert_eq!(read(r#"{"deleted":"x"}"#, 0, 0).unwrap(), Order::Delete("x".into()));
        assert_eq!(read(&message, 0, 3600).unwrap(), Order::Over(own.id));
        // A duration counts from when the message was sent.
        let relative = r#"{"identity":"alice","until":"10s"}"#;
        let (one, other) = (read(relative, 0, 5).unwrap(), read(relative, 0, 7).unwrap());
        let Order::Revoke(Revocation { id, until, .. }) = &one else { panic!("{one:?}") };
        assert_eq!((one == other, *until, id.len()), (true, NOW.after(Duration::from_secs(10)), 17));
        assert_eq!(read(relative, 0, 10).unwrap(), Order::Over(id.clone()));
        for nonsense in [
            "",
            "{}",
            "[]",
            "x",
            r#"{"deleted":5}"#,
            r#"{"deleted":"x","until":"1h"}"#,
            r#"{"id":"a/b","identity":"a","until":"1h"}"#,
            r#"{"id":"","identity":"a","until":"1h"}"#,
            r#"{"identity":"a"}"#,
            r#"{"until":"1h"}"#,
            r#"{"identity":"a","until":"soon"}"#,
        ] {
            assert!(read(nonsense, 0, 0).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn a_revocation_that_comes_again_counts_once() {
        let all = Revocations::default();
        let first = Revocation::read(br#"{"identity":"alice","until":"1h"}"#, NOW).unwrap();
        assert!(all.add(first.clone(), NOW).unwrap() && !all.add(first.clone(), NOW).unwrap());
        let other = Revocation { criteria: Criteria { identity: Some("bob".into()), ..Criteria::default() }, ..first.clone() };
        assert!(all.add(other, NOW).unwrap());
        assert!(!all.cover(&owner(), NOW) && all.count() == 1);
        assert!(all.remove(&first.id) && all.count() == 0);
    }

    #[test]
    fn what_is_over_makes_room() {
        let all = Revocations::default();
        for n in 0..1000_u64 {
            let order = read(&json!({ "token_id": n.to_string(), "until": "1s" })).unwrap();
            all.add(order, NOW.after(Duration::from_secs(n))).unwrap();
        }
        assert_eq!(all.count(), 1);
        let state = all.state.read();
        assert_eq!((state.ends.len(), state.index[0].len()), (1, 1));
    }

    #[test]
    fn too_many_are_refused_until_one_is_over_and_each_costs_little() {
        let all = Revocations::default();
        let add = |n: u64, seconds: u64, now: Timestamp| {
            let criteria = Criteria { token_id: Some(n.to_string().into()), ..Criteria::default() };
            all.add(Revocation { id: n.to_string().into(), criteria, until: NOW.after(Duration::from_secs(seconds)) }, now)
        };
        let max = u64::try_from(MAX).unwrap();
        for n in 0..max {
            add(n, 3600 + n, NOW).unwrap();
        }
        // Each of these would take a tenth of a second if all that hold were looked at.
        for n in 0..20_000 {
            assert!(matches!(add(max + n, 3600, NOW), Err(RevocationError::Full)));
        }
        assert!(matches!(add(max, 3600, NOW.after(Duration::from_secs(3599))), Err(RevocationError::Full)));
        add(max, 9000, NOW.after(Duration::from_secs(3600))).unwrap();
        assert_eq!(all.count(), MAX);
    }

    #[test]
    fn of_ten_thousand_only_those_are_looked_at_that_may_mean_the_token() {
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
        let looked_at = |owner: &Owner| all.state.read().candidates(owner).count();
        assert_eq!((looked_at(&owner()), all.cover(&owner(), NOW)), (0, false));
        let older = Owner { issued: Some(NOW.before(Duration::from_secs(7203))), ..owner() };
        assert_eq!((looked_at(&older), all.cover(&older, NOW)), (1, true));
    }
}
