//! TLS for a listener: certificate and key from PEM files, HTTP/2 and HTTP/1.1 by ALPN, and clients' certificates.
//!
//! Knows rustls and files. A new certificate is swapped in without a restart.

use std::convert::Infallible;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::event::Timestamp;
use crate::settings::{File, Section};
use crate::support::pem::PemError;

/// How often the files are looked at. Not watched: what renews certificates exchanges links and folders, also where no
/// file system tells of it.
const LOOK: Duration = Duration::from_secs(2);

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
enum TlsError {
    /// A file that cannot be read, or does not hold what it should.
    #[error("`{section}.{key}`: cannot read a {what} from {}", path.display())]
    Pem {
        /// The section of the configuration.
        section: &'static str,
        /// The key to change.
        key: &'static str,
        what: &'static str,
        path: PathBuf,
        #[source]
        cause: PemError,
    },
    /// They do not go together.
    #[error("`{section}`: certificate and private key make no server")]
    Config {
        section: &'static str,
        #[source]
        cause: rustls::Error,
    },
    /// No client could be verified by it.
    #[error("`{section}.client_ca`: no client can be verified by it")]
    ClientCa {
        section: &'static str,
        #[source]
        cause: VerifierBuilderError,
    },
}

/// The server's side of TLS, as the files were when they last were good.
pub(crate) struct Tls {
    served: ArcSwap<Served>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.served.load().files.fmt(f)
    }
}

/// Where certificate chain, private key and the clients' CA are.
#[derive(Debug, Clone)]
struct Files {
    /// The section of the configuration that names them.
    section: &'static str,
    certificate: PathBuf,
    private_key: PathBuf,
    client_ca: Option<PathBuf>,
}

type Verifier = Arc<dyn ClientCertVerifier>;

struct Served {
    files: Files,
    pem: Pem,
    config: Arc<ServerConfig>,
    /// Checks clients' certificates.
    verifier: Option<Verifier>,
}

/// What the files hold.
#[derive(PartialEq, Eq)]
struct Pem {
    certificate: Vec<u8>,
    private_key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Tls {
    /// Takes the keys of `server.tls`, and reads the files that they name.
    pub(crate) fn read(tls: &Section<'_>) -> Option<Self> {
        Self::read_with(tls, "server.tls", None)
    }

    /// Takes the keys of `admin.tls`: clients may have to show a certificate.
    pub(crate) fn read_admin(tls: &Section<'_>) -> Option<Self> {
        let client_ca = tls.key("client_ca").file().optional();
        Self::read_with(tls, "admin.tls", client_ca)
    }

    fn read_with(tls: &Section<'_>, section: &'static str, client_ca: Option<File>) -> Option<Self> {
        let (certificate, private_key) = (tls.key("certificate").file().required(), tls.key("private_key").file().required());
        let (certificate, private_key) = (certificate?, private_key?);
        let bytes = |file: &File| file.contents.expose().to_vec();
        let pem = Pem { certificate: bytes(&certificate), private_key: bytes(&private_key), client_ca: client_ca.as_ref().map(bytes) };
        let client_ca = client_ca.map(|file| file.path);
        let files = Files { section, certificate: certificate.path, private_key: private_key.path, client_ca };
        match pem.server(&files) {
            Ok((config, verifier)) => return Some(Self { served: ArcSwap::from_pointee(Served { files, pem, config, verifier }) }),
            Err(TlsError::Pem { key, what, cause, .. }) => tls.problem(key, format!("must name a PEM file with a {what}: {cause}")),
            Err(TlsError::Config { cause, .. }) => {
                tls.problem_here(format!("must be a certificate and the private key that belongs to it: {cause}"));
            }
            Err(TlsError::ClientCa { cause, .. }) => {
                tls.problem("client_ca", format!("must be a CA's certificate that clients can be verified by: {cause}"));
            }
        }
        None
    }

    /// Whether clients are asked for a certificate. One without is let in all the same: a probe has none.
    pub(crate) fn verifies_clients(&self) -> bool {
        self.served.load().pem.client_ca.is_some()
    }

    /// Whether a certificate that a client has shown is good by what is served now. `chain` begins with the client's own.
    pub(crate) fn verifies(&self, chain: &[CertificateDer<'_>]) -> bool {
        let served = self.served.load();
        let (Some(verifier), Some((own, others))) = (&served.verifier, chain.split_first()) else { return false };
        verifier.verify_client_cert(own, others, UnixTime::now()).is_ok()
    }

    /// When the certificate that is served expires.
    pub(crate) fn expires(&self) -> Option<Timestamp> {
        let served = self.served.load();
        let certificate = CertificateDer::pem_slice_iter(&served.pem.certificate).next()?.ok()?;
        let (_, certificate) = x509_parser::parse_x509_certificate(&certificate).ok()?;
        let seconds = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
        Some(Timestamp::from_micros(seconds.saturating_mul(1_000_000)))
    }

    /// For the next handshake.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.served.load().config.clone())
    }

    /// Serves what the other one serves, and follows its files.
    pub(crate) fn configure(&self, other: &Self) {
        self.served.store(other.served.load_full());
    }

    /// Reads the files again whenever they change, for ever. Connections that are open stay as they are, but for
    /// what a client's certificate is worth ([`Self::verifies`]).
    pub(crate) async fn follow(&self) -> Infallible {
        let mut failures = 0_u32;
        loop {
            tokio::time::sleep(LOOK).await;
            match self.reread().await {
                Ok(changed) => {
                    if changed {
                        tracing::info!("newer certificate is served");
                    }
                    failures = 0;
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    // Once for each spell, and not for files that are just being exchanged one after the other.
                    if failures == 2 {
                        let error = crate::support::causes::chain(&error);
                        tracing::warn!(%error, "certificate cannot be read again, the last good one is served");
                    }
                }
            }
        }
    }

    /// Whether there is a newer certificate.
    async fn reread(&self) -> Result<bool, TlsError> {
        let files = self.served.load().files.clone();
        let named = files.clone();
        // On a file system that hangs, only this waits.
        let Ok(pem) = tokio::task::spawn_blocking(move || Pem::read(&files)).await else { return Ok(false) };
        let pem = pem?;
        let before = self.served.load();
        if pem == before.pem {
            return Ok(false);
        }
        let (config, verifier) = pem.server(&named)?;
        // Unless other files are followed by now.
        let newer = Arc::new(Served { files: named, pem, config, verifier });
        Ok(Arc::ptr_eq(&self.served.compare_and_swap(&*before, newer), &before))
    }
}

fn unreadable(section: &'static str, key: &'static str, what: &'static str, path: &Path) -> impl Fn(pem::Error) -> TlsError {
    let path = path.to_owned();
    move |cause| TlsError::Pem { section, key, what, path: path.clone(), cause: cause.into() }
}

/// Lets clients in without a certificate, and with one that these CAs have issued.
fn verifier(pem: &[u8], provider: Arc<CryptoProvider>, files: &Files) -> Result<Verifier, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(no_client_ca(files))?;
        roots.add(certificate).map_err(|cause| TlsError::Config { section: files.section, cause })?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).allow_unauthenticated();
    builder.build().map_err(|cause| TlsError::ClientCa { section: files.section, cause })
}

impl Pem {
    fn read(files: &Files) -> Result<Self, TlsError> {
        let certificate = std::fs::read(&files.certificate).map_err(pem::Error::Io).map_err(no_certificate(files))?;
        let private_key = std::fs::read(&files.private_key).map_err(pem::Error::Io).map_err(no_key(files))?;
        let read_ca = |path: &PathBuf| std::fs::read(path).map_err(pem::Error::Io).map_err(no_client_ca(files));
        let client_ca = files.client_ca.as_ref().map(read_ca).transpose()?;
        Ok(Self { certificate, private_key, client_ca })
    }

    fn server(&self, files: &Files) -> Result<(Arc<ServerConfig>, Option<Verifier>), TlsError> {
        let chain = CertificateDer::pem_slice_iter(&self.certificate).collect::<Result<Vec<_>, _>>();
        let chain = chain.and_then(|chain| if chain.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(chain) });
        let chain = chain.map_err(no_certificate(files))?;
        let key = PrivateKeyDer::from_pem_slice(&self.private_key).map_err(no_key(files))?;
        // The provider is named, so that it does not hang on who installed one for the process.
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let section = files.section;
        let wrong = |cause| TlsError::Config { section, cause };
        let config = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().map_err(wrong)?;
        let verifier = self.client_ca.as_ref().map(|pem| verifier(pem, provider, files)).transpose()?;
        let config = match &verifier {
            None => config.with_no_client_auth(),
            Some(verifier) => config.with_client_cert_verifier(verifier.clone()),
        };
        let mut config = config.with_single_cert(chain, key).map_err(wrong)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok((Arc::new(config), verifier))
    }
}

fn no_certificate(files: &Files) -> impl Fn(pem::Error) -> TlsError {
    unreadable(files.section, "certificate", "certificate", &files.certificate)
}

fn no_key(files: &Files) -> impl Fn(pem::Error) -> TlsError {
    unreadable(files.section, "private_key", "private key", &files.private_key)
}

fn no_client_ca(files: &Files) -> impl Fn(pem::Error) -> TlsError {
    unreadable(files.section, "client_ca", "certificate", files.client_ca.as_deref().unwrap_or(Path::new("")))
}
