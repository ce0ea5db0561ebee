//! What a broker's TLS needs of the files that `tls` names: read at each connection, for they may be renewed.
//!
//! Its errors name the key and the file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::{Error, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{AlertDescription, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::{ErrorKind, SourceError};
use crate::settings::{File, Secret, Section};
use crate::support::pem::PemError;

/// `tls` beside a broker's address: PEM files, read at each connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tls {
    /// Instead of the system's authorities.
    pub ca: Option<PathBuf>,
    /// The client's certificate and key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl Tls {
    pub(super) fn read(tls: &Section<'_>) -> Self {
        let [ca, certificate, private_key] = ["ca", "certificate", "private_key"].map(|name| tls.key(name).path().optional());
        for (given, missing) in [("certificate", "private_key"), ("private_key", "certificate")] {
            if tls.has(given) && !tls.has(missing) {
                tls.problem(missing, format!("must be there beside `{given}`"));
            }
        }
        Self { ca, identity: certificate.zip(private_key) }
    }

    /// Trusts `ca` (without it the system's authorities), and shows the certificate of `identity`.
    pub(super) async fn client(&self) -> Result<ClientConfig, SourceError> {
        let (ca, identity) = (self.ca.clone(), self.identity.clone());
        aside(move || client(ca.as_deref(), identity.as_ref())).await
    }

    /// As [`Self::client`] does, but expects a certificate for `name`, not for the address.
    pub(super) async fn client_of(&self, name: &str) -> Result<ClientConfig, SourceError> {
        let (ca, identity, name) = (self.ca.clone(), self.identity.clone(), name.to_owned());
        aside(move || client_of(&name, ca.as_deref(), identity.as_ref())).await
    }
}

/// Reads files apart from the runtime's threads: a file system that does not answer must hold up nothing else.
async fn aside(read: impl FnOnce() -> Result<ClientConfig, SourceError> + Send + 'static) -> Result<ClientConfig, SourceError> {
    let read = tokio::task::spawn_blocking(read).await;
    read.unwrap_or_else(|_| Err(SourceError::configuration("the files of `tls` cannot be read")))
}

/// Checks that a broker's certificate is made for a certain name, whatever address it is reached at.
#[derive(Debug)]
struct Named {
    name: ServerName<'static>,
    inner: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.inner.verify_server_cert(end_entity, intermediates, &self.name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

fn client_of(name: &str, ca: Option<&Path>, identity: Option<&(PathBuf, PathBuf)>) -> Result<ClientConfig, SourceError> {
    let bad = |e: Box<dyn std::error::Error + Send + Sync>| SourceError::configuration(format!("`{name}` cannot be certified")).because(e);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(ca)?), provider).build().map_err(|e| bad(e.into()))?;
    let name = ServerName::try_from(name.to_owned()).map_err(|e| bad(e.into()))?;
    let mut config = client(ca, identity)?;
    config.dangerous().set_certificate_verifier(Arc::new(Named { name, inner }));
    Ok(config)
}

/// The second of `identity` is the key.
fn client(ca: Option<&Path>, identity: Option<&(PathBuf, PathBuf)>) -> Result<ClientConfig, SourceError> {
    let roots = roots(ca)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| SourceError::configuration("no TLS version to speak").because(e))?
        .with_root_certificates(roots);
    let Some((certificate, key)) = identity else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates("tls.certificate", certificate)?;
    let pem = contents("tls.private_key", key)?;
    let key = PrivateKeyDer::from_pem_slice(pem.expose()).map_err(|e| match e {
        Error::NoItemsFound => SourceError::configuration(format!("there is no private key in `{}` (`tls.private_key`)", key.display())),
        e => unreadable("tls.private_key", key, e),
    })?;
    let failed = |e| SourceError::configuration("`tls.certificate` and `tls.private_key` do not go together").because(e);
    builder.with_client_auth_cert(chain, key).map_err(failed)
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, SourceError> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            for certificate in certificates("tls.ca", path)? {
                roots
                    .add(certificate)
                    .map_err(|e| SourceError::configuration("`tls.ca` holds what is no certificate authority").because(e))?;
            }
        }
        None => {
            // Single bad ones among the system's are skipped.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    Ok(roots)
}

fn certificates(name: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, SourceError> {
    let pem = contents(name, path)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.expose()).collect();
    let read = read.map_err(|e| unreadable(name, path, e))?;
    if read.is_empty() {
        return Err(SourceError::configuration(format!("there is no certificate in `{}` (`{name}`)", path.display())));
    }
    Ok(read)
}

fn contents(name: &str, path: &Path) -> Result<Secret, SourceError> {
    let failed = |why| SourceError::configuration(format!("cannot read `{name}` from `{}`: {why}", path.display()));
    File::read(path.to_owned()).map(|file| file.contents).map_err(failed)
}

fn unreadable(name: &str, path: &Path, error: Error) -> SourceError {
    SourceError::configuration(format!("cannot read `{name}` from `{}`", path.display())).because(PemError::from(error))
}

/// A handshake that failed; `what` says with whom.
pub(super) fn failed(what: impl Into<String>, error: impl std::error::Error + Send + Sync + 'static) -> SourceError {
    SourceError::new(kind(&error).unwrap_or(ErrorKind::Lost), what).because(error)
}

/// Finds a TLS error among an error's causes and returns its kind.
pub(super) fn kind(error: &(dyn std::error::Error + 'static)) -> Option<ErrorKind> {
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return Some(match error {
            // Of the broker: not of an authority that we trust, or not for this host.
            rustls::Error::InvalidCertificate(_) => ErrorKind::Configuration,
            rustls::Error::AlertReceived(alert) if concerns_ours(*alert) => ErrorKind::Denied,
            _ => ErrorKind::Protocol,
        });
    }
    // An I/O error says the cause of what it wraps, not what it wraps.
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    let cause = wrapped.map(|error| error as &(dyn std::error::Error + 'static)).or_else(|| error.source())?;
    kind(cause)
}

/// Whether the broker says by this alert that it does not take our certificate, or misses it.
fn concerns_ours(alert: AlertDescription) -> bool {
    use AlertDescription as A;
    matches!(
        alert,
        A::NoCertificate
            | A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::UnknownCA
            | A::AccessDenied
            | A::CertificateRequired
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tls_error_is_found_however_it_is_wrapped() {
        let wrapped = |error| std::io::Error::other(std::io::Error::other(error));
        for (error, expected) in [
            (rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer), ErrorKind::Configuration),
            (rustls::Error::AlertReceived(AlertDescription::CertificateRequired), ErrorKind::Denied),
            (rustls::Error::AlertReceived(AlertDescription::ProtocolVersion), ErrorKind::Protocol),
            (rustls::Error::DecryptError, ErrorKind::Protocol),
        ] {
            assert_eq!(kind(&error), Some(expected));
            assert_eq!(kind(&SourceError::lost("failed").because(wrapped(error))), Some(expected));
        }
        assert_eq!(kind(&std::io::Error::from(std::io::ErrorKind::UnexpectedEof)), None);
        assert_eq!(failed("failed", wrapped(rustls::Error::DecryptError)).kind(), ErrorKind::Protocol);
    }

    #[test]
    fn a_key_that_cannot_be_read_is_not_quoted() {
        use crate::support::pem::tests::{broken, quotes};

        let folder = tempfile::tempdir().unwrap();
        let (certificate, private_key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        let key = made.signing_key.serialize_pem();
        for text in broken(&key) {
            std::fs::write(&private_key, text).unwrap();
            let wrong = |ca: Option<&Path>, certificate: &Path| {
                let error = client(ca, Some(&(certificate.to_owned(), private_key.clone()))).unwrap_err();
                (error.kind(), crate::support::causes::chain(&error))
            };
            for ((kind, said), name) in [
                (wrong(None, &certificate), "tls.private_key"),
                (wrong(None, &private_key), "tls.certificate"),
                (wrong(Some(&private_key), &certificate), "tls.ca"),
            ] {
                assert!(kind == ErrorKind::Configuration && said.contains(name) && !quotes(&said, &key), "{said}");
            }
        }
    }
}
