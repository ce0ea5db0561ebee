//! What of a request is forwarded to the backend: its credential.
//!
//! Pure. Knows headers and cookies, no answer.

use std::fmt;
use std::sync::Arc;

use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue};

/// One of `auth.backend.forward`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::auth) enum Forward {
    /// The cookies of this name.
    Cookie(String),
    /// A header.
    Header(HeaderName),
}

/// Two cookies of the same name have different values: a neighbouring host or another path may have set one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::auth) struct TwoCookies;

/// What is forwarded for a request: at least one header.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Question(Arc<[(HeaderName, HeaderValue)]>);

impl fmt::Debug for Question {
    /// Without the values, which are secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name.as_str())).finish()
    }
}

impl Question {
    /// `None`: the request has nothing of what is to be forwarded. For a publisher only `Authorization` counts, and no cookie
    /// goes with it: a browser sends cookies by itself, and a proxy may add other headers.
    pub(super) fn of(forward: &[Forward], headers: &HeaderMap, publisher: bool) -> Result<Option<Self>, TwoCookies> {
        let mut lines = Vec::new();
        for one in forward {
            let Forward::Header(name) = one else { continue };
            if *name != COOKIE {
                lines.extend(
                    headers.get_all(name).iter().filter(|value| !value.is_empty()).map(|value| (name.clone(), owned(value.as_bytes()))),
                );
            }
        }
        if publisher && !lines.iter().any(|(name, _)| *name == AUTHORIZATION) {
            return Ok(None);
        }
        let cookies = if publisher { Vec::new() } else { cookies(forward, headers)? };
        if !cookies.is_empty() {
            lines.push((COOKIE, owned(&cookies.join(&b"; "[..]))));
        }
        Ok((!lines.is_empty()).then(|| Self(lines.into())))
    }

    /// The headers to send.
    pub(super) fn lines(&self) -> &[(HeaderName, HeaderValue)] {
        &self.0
    }

    /// No two different questions give the same bytes: each part is preceded by its length.
    pub(super) fn encoded(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for part in self.0.iter().flat_map(|(name, value)| [name.as_str().as_bytes(), value.as_bytes()]) {
            out.extend_from_slice(&(part.len() as u64).to_be_bytes());
            out.extend_from_slice(part);
        }
        out
    }
}

/// A value of its own: one of a request would keep the whole head in memory.
fn owned(bytes: &[u8]) -> HeaderValue {
    // What comes from header values, with `; ` between, is one.
    let mut value = HeaderValue::from_bytes(bytes).unwrap_or_else(|_| HeaderValue::from_static(""));
    value.set_sensitive(true);
    value
}

/// The cookies to forward, each as `name=value`, or whole lines of them.
fn cookies<'a>(forward: &[Forward], headers: &'a HeaderMap) -> Result<Vec<&'a [u8]>, TwoCookies> {
    let lines = || headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes);
    let pairs = || lines().flat_map(|line| line.split(|byte| *byte == b';')).map(<[u8]>::trim_ascii);
    let named = |pair: &'a [u8], wanted: &str| {
        let value = pair.strip_prefix(wanted.as_bytes())?.trim_ascii_start().strip_prefix(b"=")?.trim_ascii();
        let value = value.strip_prefix(b"\"").and_then(|inner| inner.strip_suffix(b"\"")).unwrap_or(value);
        // An empty one counts as cleared.
        (!value.is_empty()).then_some((pair, value))
    };
    let mut found = Vec::new();
    for one in forward {
        match one {
            // HTTP/2 may split the header; RFC 9113 section 8.2.3 joins it again.
            Forward::Header(name) if *name == COOKIE => found.extend(lines().map(<[u8]>::trim_ascii).filter(|line| !line.is_empty())),
            Forward::Header(_) => {}
            Forward::Cookie(name) => {
                let mut named = pairs().filter_map(|pair| named(pair, name));
                let Some((pair, value)) = named.next() else { continue };
                if named.any(|(_, other)| other != value) {
                    return Err(TwoCookies);
                }
                found.push(pair);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().fold(HeaderMap::new(), |mut map, (name, value)| {
            map.append(*name, HeaderValue::from_static(value));
            map
        })
    }

    fn forwarded(forward: &[Forward], lines: &[(&'static str, &'static str)], publisher: bool) -> Option<String> {
        let question = Question::of(forward, &headers(lines), publisher).unwrap()?;
        assert!(!format!("{question:?}").contains("secret"));
        Some(question.lines().iter().map(|(name, value)| format!("{name}={}|", value.to_str().unwrap())).collect())
    }

    #[test]
    fn only_what_is_listed_is_forwarded() {
        let cookie = |name: &str| Forward::Cookie(name.into());
        let header = |name: &'static str| Forward::Header(HeaderName::from_static(name));
        let lines = [
            ("cookie", "a=1; session=secret;b=2"),
            ("cookie", "session2=x; session = \"secret\"; two=1; two=2; session="),
            ("authorization", "Basic z"),
            ("x-a", ""),
        ];
        for (forward, found) in [
            (vec![cookie("session")], Some("cookie=session=secret|")),
            (vec![cookie("b"), cookie("a")], Some("cookie=b=2; a=1|")),
            (vec![header("cookie")], Some("cookie=a=1; session=secret;b=2; session2=x; session = \"secret\"; two=1; two=2; session=|")),
            (vec![cookie("session"), header("authorization")], Some("authorization=Basic z|cookie=session=secret|")),
            (vec![cookie("Session"), cookie("sess"), header("x-a"), header("x-b")], None),
        ] {
            assert_eq!(forwarded(&forward, &lines, false).as_deref(), found, "{forward:?}");
        }
        for cleared in ["session=", "session", "session=\"\"", "", "x=session=1"] {
            let lines: HeaderMap = [(COOKIE, HeaderValue::from_str(cleared).unwrap())].into_iter().collect();
            assert_eq!(Question::of(&[cookie("session")], &lines, false), Ok(None), "{cleared}");
        }
        // One of two may be a neighbouring host's.
        assert_eq!(Question::of(&[cookie("session"), cookie("two")], &headers(&lines), false), Err(TwoCookies));
        let publisher = [header("authorization"), cookie("two")];
        assert!(Question::of(&publisher, &headers(&lines), true).is_ok_and(|question| question.is_some()));
    }

    #[test]
    fn a_publisher_is_asked_for_by_its_authorization_without_its_cookies() {
        let all = [Forward::Cookie("s".into()), Forward::Header(AUTHORIZATION), Forward::Header(HeaderName::from_static("x-a"))];
        let (cookie, authorization, other) = (("cookie", "s=1"), ("authorization", "Bearer z"), ("x-a", "2"));
        assert_eq!(forwarded(&all, &[cookie, other], true), None);
        assert_eq!(forwarded(&all, &[cookie, authorization, other], true).as_deref(), Some("authorization=Bearer z|x-a=2|"));
        assert_eq!(forwarded(&[Forward::Header(COOKIE)], &[cookie, authorization], true), None);
    }

    #[test]
    fn different_credentials_are_never_encoded_alike() {
        let all = [Forward::Header(HeaderName::from_static("x-a")), Forward::Header(HeaderName::from_static("x-b"))];
        let encoded = |lines: &[(&'static str, &'static str)]| Question::of(&all, &headers(lines), false).unwrap().unwrap().encoded();
        let different = [
            encoded(&[("x-a", "1")]),
            encoded(&[("x-b", "1")]),
            encoded(&[("x-a", "1"), ("x-b", "2")]),
            encoded(&[("x-a", "1"), ("x-a", "2")]),
            encoded(&[("x-a", "1x-b2")]),
            encoded(&[("x-a", "12")]),
        ];
        for (at, one) in different.iter().enumerate() {
            assert!(!different[..at].contains(one), "{at}");
        }
        assert_eq!(encoded(&[("x-b", "2"), ("x-a", "1")]), encoded(&[("x-a", "1"), ("x-b", "2")]));
    }
}
