//! What the backend says of a credential, read strictly: what cannot be understood grants nothing.
//!
//! Pure. Knows no HTTP.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::auth::issuer::union;
use crate::auth::settings::Lists;
use crate::auth::{template, token};
use crate::event::Timestamp;
use crate::subject::Pattern;

/// A grant by the backend.
#[derive(Debug)]
pub(in crate::auth) struct Answer {
    pub(in crate::auth) identity: Option<Arc<str>>,
    /// As it was answered.
    pub(in crate::auth) own: Lists<Pattern>,
    /// With what is open to anybody.
    pub(in crate::auth) subscribe: Arc<[Pattern]>,
    /// Likewise.
    pub(in crate::auth) publish: Arc<[Pattern]>,
    /// When it was asked for.
    pub(in crate::auth) asked: Timestamp,
    /// From when on it does not count any more.
    pub(in crate::auth) expires: Option<Timestamp>,
    /// Revocations that had been taken in when it was asked for.
    pub(in crate::auth) revocations: u64,
    /// Values that are not valid patterns.
    pub(super) bad: usize,
}

/// When something was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) at: Timestamp,
    /// Revocations that had been taken in.
    pub(super) revocations: u64,
}

/// What is wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Nonsense {
    #[error("it is not a JSON object, or gives a name twice")]
    Shape,
    #[error("it has none of `identity`, `subscribe` and `publish`")]
    Empty,
    #[error("its `identity` is neither a text nor a number")]
    Identity,
    #[error("its `{0}` is not a list of texts")]
    Patterns(&'static str),
    #[error("its `expires_in` is not a number of seconds, 0 or more")]
    Expires,
}

impl Answer {
    /// Reads a body that came at `now`.
    pub(super) fn read(body: &[u8], open: &Lists<Pattern>, asked: Asked, now: Timestamp) -> Result<Self, Nonsense> {
        let body = token::object(body).map_err(|_| Nonsense::Shape)?;
        if ["identity", "subscribe", "publish"].iter().all(|name| given(&body, name).is_none()) {
            return Err(Nonsense::Empty);
        }
        let identity = given(&body, "identity").map(|value| token::as_text(value).ok_or(Nonsense::Identity)).transpose()?;
        let identity = identity.filter(|text| !text.is_empty()).map(Arc::from);
        let (subscribe, bad_subscribe) = patterns(&body, "subscribe")?;
        let (publish, bad_publish) = patterns(&body, "publish")?;
        let expires = given(&body, "expires_in").map(|value| seconds(value).ok_or(Nonsense::Expires)).transpose()?;
        let with = |own: &[Pattern], open: &[Pattern]| union([own, open].concat());
        Ok(Self {
            identity,
            subscribe: with(&subscribe, &open.subscribe),
            publish: with(&publish, &open.publish),
            own: Lists { subscribe, publish },
            asked: asked.at,
            expires: expires.map(|span| now.after(span)),
            revocations: asked.revocations,
            bad: bad_subscribe + bad_publish,
        })
    }

    /// Whether it grants less or more than another one, to somebody else, or for a shorter time.
    pub(super) fn differs(&self, other: &Self) -> bool {
        let sooner = self.expires.is_some_and(|expires| other.expires.is_none_or(|before| expires < before));
        self.identity != other.identity || self.subscribe != other.subscribe || sooner
    }
}

/// Beyond this an answer holds for ever: a century. Years of more than four digits could not be shown.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 24 * 60 * 60);

/// A member that is there and not null.
fn given<'a>(body: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    body.get(name).filter(|value| !value.is_null())
}

/// Valid patterns, and how many values are none.
fn patterns(body: &Map<String, Value>, name: &'static str) -> Result<(Vec<Pattern>, usize), Nonsense> {
    let value = given(body, name);
    let good = match value {
        None | Some(Value::String(_)) => true,
        Some(Value::Array(values)) => values.iter().all(Value::is_string),
        Some(_) => false,
    };
    if good { Ok(template::patterns(value)) } else { Err(Nonsense::Patterns(name)) }
}

fn seconds(value: &Value) -> Option<Duration> {
    let seconds = value.as_f64().filter(|seconds| *seconds >= 0.0)?;
    Some(Duration::try_from_secs_f64(seconds).map_or(LONGEST, |span| span.min(LONGEST)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Answer, Nonsense> {
        let open = Lists { subscribe: vec!["public.>".parse().unwrap()], publish: Vec::new() };
        let asked = Asked { at: Timestamp::from_micros(1), revocations: 0 };
        Answer::read(body.as_bytes(), &open, asked, Timestamp::from_micros(5_000_000))
    }

    #[test]
    fn an_answer_is_the_whole_grant_beside_what_is_open_to_anybody() {
        let answer =
            read(r#"{"identity": "ada", "subscribe": ["orders.eu.>", "b.*"], "publish": ["in.ada"], "expires_in": 2.5, "more": {}}"#)
                .unwrap();
        let texts = |list: &[Pattern]| list.iter().map(Pattern::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(answer.identity.as_deref(), Some("ada"));
        assert_eq!((texts(&answer.subscribe), texts(&answer.publish)), ("b.* orders.eu.> public.>".into(), "in.ada".into()));
        assert_eq!((answer.expires, answer.bad), (Some(Timestamp::from_micros(7_500_000)), 0));
        let answer = read(r#"{"identity": 7, "subscribe": "a b.> c..d", "publish": null, "expires_in": 1e300}"#).unwrap();
        assert!(answer.expires.is_some_and(|expires| expires.to_string().starts_with("20")), "{:?}", answer.expires);
        assert_eq!((answer.identity.as_deref(), answer.bad, texts(&answer.own.subscribe)), (Some("7"), 1, "a b.>".into()));
        assert_eq!(read(r#"{"subscribe": []}"#).unwrap().identity, None);
    }

    #[test]
    fn nonsense_is_no_grant() {
        for (body, what) in [
            ("", Nonsense::Shape),
            ("[]", Nonsense::Shape),
            ("<html>", Nonsense::Shape),
            (r#"{"identity": "a"} x"#, Nonsense::Shape),
            (r#"{"identity": "a", "identity": "b"}"#, Nonsense::Shape),
            ("{}", Nonsense::Empty),
            (r#"{"status": "ok", "identity": null}"#, Nonsense::Empty),
            (r#"{"identity": ["a"]}"#, Nonsense::Identity),
            (r#"{"identity": true}"#, Nonsense::Identity),
            (r#"{"identity": 18446744073709551617}"#, Nonsense::Identity),
            (r#"{"identity": "a", "subscribe": {"a": 1}}"#, Nonsense::Patterns("subscribe")),
            (r#"{"identity": "a", "subscribe": ["a", 1]}"#, Nonsense::Patterns("subscribe")),
            (r#"{"identity": "a", "publish": true}"#, Nonsense::Patterns("publish")),
            (r#"{"identity": "a", "expires_in": "60"}"#, Nonsense::Expires),
            (r#"{"identity": "a", "expires_in": -1}"#, Nonsense::Expires),
        ] {
            assert_eq!(read(body).err(), Some(what), "{body}");
        }
    }
}
