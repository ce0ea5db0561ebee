//! When the credentials expire with which a source was connected last: a client certificate, a token that is a JWT.
//!
//! Verifies nothing: the broker does. Knows no broker.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::settings::File;

/// When credentials expire, in seconds since 1970, where they say so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Expires {
    /// The client certificate.
    pub certificate: Option<u64>,
    /// The NATS user's JWT, or an OAuth2 token.
    pub token: Option<u64>,
}

/// What the last connection was opened with.
#[derive(Debug, Default)]
pub(in crate::source) struct Expiry(Mutex<Expires>);

impl Expiry {
    pub(in crate::source) fn get(&self) -> Expires {
        *self.0.lock()
    }

    /// A certificate is shown, of this file.
    pub(in crate::source) async fn shown(&self, certificate: Option<&Path>) {
        let file = match certificate {
            Some(path) => File::read_aside(path.to_owned()).await.ok(),
            None => None,
        };
        self.0.lock().certificate = file.and_then(|file| of_certificate(&file));
    }

    /// A secret was told, which may be a token; or a NATS credentials file, which holds one.
    pub(in crate::source) fn told(&self, secret: &str) {
        self.0.lock().token = secret.split_whitespace().find_map(of_token);
    }
}

fn of_certificate(file: &File) -> Option<u64> {
    let certificate = CertificateDer::from_pem_slice(file.contents.expose()).ok()?;
    let (_, certificate) = X509Certificate::from_der(&certificate).ok()?;
    u64::try_from(certificate.validity().not_after.timestamp()).ok()
}

fn of_token(word: &str) -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct Claims {
        exp: u64,
    }
    let mut parts = word.split('.');
    let (_, claims, _, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else { return None };
    let claims = URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
    Some(serde_json::from_slice::<Claims>(&claims).ok()?.exp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tokens_and_certificates_say_when_they_expire() {
        let expiry = Expiry::default();
        let token = |claims: &str| format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
        for (secret, expected) in [
            (token(r#"{"exp": 1900000000, "sub": "x"}"#), Some(1_900_000_000)),
            (format!("-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\nSUA\n", token(r#"{"exp":7}"#)), Some(7)),
            // One that never expires, and what is no token.
            (token(r#"{"sub": "x"}"#), None),
            ("a.b".to_owned(), None),
            ("pass.word.!".to_owned(), None),
            (String::new(), None),
        ] {
            expiry.told(&secret);
            assert_eq!(expiry.get().token, expected, "{secret}");
        }
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("a.pem");
        let mut params = rcgen::CertificateParams::new(vec!["me".to_owned()]).expect("parameters");
        params.not_after = rcgen::date_time_ymd(2040, 1, 1);
        let certificate = params.self_signed(&rcgen::KeyPair::generate().expect("a key")).expect("a certificate");
        std::fs::write(&file, certificate.pem()).expect("writes");
        expiry.shown(Some(&file)).await;
        assert_eq!(expiry.get().certificate, Some(2_208_988_800));
        expiry.shown(None).await;
        assert_eq!(expiry.get().certificate, None);
    }
}
