//! JetStream's answers: JSON that is what was asked for, or a refusal. Knows no question.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::source::{ErrorKind, SourceError};

/// A server of a cluster knows no place for the stream yet: the others come up.
const NO_PEERS: u16 = 10005;
/// The stream has as many consumers as it may have: one may end, or expire.
const MANY_CONSUMERS: u16 = 10026;
/// JetStream is off for this account, or altogether.
const OFF: [u16; 2] = [10039, 10076];

#[derive(Deserialize)]
struct Refusal {
    error: Option<Problem>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Problem {
    code: u16,
    err_code: u16,
    description: String,
}

impl Problem {
    fn kind(&self) -> ErrorKind {
        match (self.code, self.err_code) {
            (_, NO_PEERS | MANY_CONSUMERS) => ErrorKind::Lost,
            (_, code) if OFF.contains(&code) => ErrorKind::Missing,
            (401 | 403, _) => ErrorKind::Denied,
            (400, _) => ErrorKind::Configuration,
            _ => ErrorKind::Lost,
        }
    }
}

/// Reads an answer; `None`: the server knows no such thing.
pub(in crate::source) fn read<T: DeserializeOwned>(answer: &[u8], what: &str) -> Result<Option<T>, SourceError> {
    let unreadable = |e| SourceError::protocol(format!("JetStream's answer about {what} cannot be read")).because(e);
    match serde_json::from_slice::<Refusal>(answer).map_err(unreadable)?.error {
        Some(problem) if problem.code == 404 => Ok(None),
        Some(problem) => Err(SourceError::new(problem.kind(), format!("JetStream refuses {what}: {}", problem.description))),
        None => serde_json::from_slice(answer).map(Some).map_err(unreadable),
    }
}

/// Whether an answer is a refusal.
pub(in crate::source) fn is_refusal(answer: &[u8]) -> bool {
    serde_json::from_slice::<Refusal>(answer).is_ok_and(|answer| answer.error.is_some())
}

#[cfg(test)]
mod tests {
    use serde::de::IgnoredAny;

    use super::*;

    #[test]
    fn refusals_have_kinds() {
        for (code, err_code, expected) in [
            (403, 0, ErrorKind::Denied),
            (400, 10058, ErrorKind::Configuration),
            (400, 10005, ErrorKind::Lost),
            (400, 10026, ErrorKind::Lost),
            (503, 10008, ErrorKind::Lost),
            (503, 10039, ErrorKind::Missing),
        ] {
            let text = format!(r#"{{"error":{{"code":{code},"err_code":{err_code},"description":"so it is"}}}}"#);
            let error = read::<IgnoredAny>(text.as_bytes(), "a stream").expect_err("a refusal");
            assert_eq!((error.kind(), &*error.to_string()), (expected, "JetStream refuses a stream: so it is"));
            assert!(is_refusal(text.as_bytes()));
        }
        assert!(read::<IgnoredAny>(br#"{"error":{"code":404}}"#, "a stream").is_ok_and(|found| found.is_none()));
        assert!(!is_refusal(b"{}") && !is_refusal(b"what"));
        assert_eq!(read::<IgnoredAny>(b"what", "a stream").expect_err("no JSON").kind(), ErrorKind::Protocol);
    }
}
