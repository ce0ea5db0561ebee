//! How many requests were refused for their token, by reason. Read for the metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{AuthError, Refused};

/// The reasons, as they are shown.
const REASONS: [&str; 22] = [
    "missing",
    "malformed",
    "algorithm",
    "type",
    "critical",
    "unknown_key",
    "signature",
    "claim_type",
    "claim_missing",
    "expired",
    "not_yet",
    "lifetime",
    "issuer",
    "audience",
    "revoked",
    "no_keys",
    "two_cookies",
    "bad_request",
    "keys_not_loaded",
    "backend",
    "backend_unavailable",
    "revocations_not_loaded",
];

/// One counter for each reason.
#[derive(Debug, Default)]
pub(super) struct Refusals([AtomicU64; REASONS.len()]);

fn reason(error: &AuthError) -> &'static str {
    match error {
        AuthError::Missing => "missing",
        AuthError::Malformed(_) => "bad_request",
        AuthError::KeysNotLoaded => "keys_not_loaded",
        AuthError::BackendUnavailable => "backend_unavailable",
        AuthError::RevocationsNotLoaded => "revocations_not_loaded",
        AuthError::Invalid(refused) => match refused {
            Refused::Malformed => "malformed",
            Refused::Algorithm => "algorithm",
            Refused::Type => "type",
            Refused::Critical => "critical",
            Refused::UnknownKey => "unknown_key",
            Refused::Signature => "signature",
            Refused::ClaimType(_) => "claim_type",
            Refused::ClaimMissing(_) => "claim_missing",
            Refused::Expired => "expired",
            Refused::NotYet => "not_yet",
            Refused::Lifetime => "lifetime",
            Refused::Issuer => "issuer",
            Refused::Audience => "audience",
            Refused::Revoked => "revoked",
            Refused::NoKeys => "no_keys",
            Refused::TwoCookies => "two_cookies",
            Refused::Backend => "backend",
        },
    }
}

impl Refusals {
    pub(super) fn count(&self, error: &AuthError) {
        let reason = reason(error);
        if let Some(at) = REASONS.iter().position(|of| *of == reason) {
            self.0[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn read(&self) -> Vec<(&'static str, u64)> {
        REASONS.iter().zip(&self.0).map(|(reason, count)| (*reason, count.load(Ordering::Relaxed))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_counted_under_its_own_name() {
        use Refused as R;
        let refused = [
            R::Malformed,
            R::Algorithm,
            R::Type,
            R::Critical,
            R::UnknownKey,
            R::Signature,
            R::ClaimType("exp"),
            R::ClaimMissing("exp"),
            R::Expired,
            R::NotYet,
            R::Lifetime,
            R::Issuer,
            R::Audience,
            R::Revoked,
            R::NoKeys,
            R::TwoCookies,
            R::Backend,
        ];
        let refusals = Refusals::default();
        let all = refused.into_iter().map(AuthError::Invalid);
        for error in all.chain([
            AuthError::Missing,
            AuthError::Malformed("x"),
            AuthError::KeysNotLoaded,
            AuthError::BackendUnavailable,
            AuthError::RevocationsNotLoaded,
        ]) {
            refusals.count(&error);
        }
        assert!(refusals.read().iter().all(|(_, count)| *count == 1), "{:?}", refusals.read());
    }
}
