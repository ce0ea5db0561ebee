//! TLS for the public listener: certificate and key from PEM files, HTTP/2 and HTTP/1.1 by ALPN.
//!
//! Knows rustls and files. What is served stands behind a swap, so that a newer certificate needs no restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// Why the files make no TLS server.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that cannot be read, or holds nothing of the kind.
    #[error("`{key}`: cannot read a {what} from {}", path.display())]
    Pem {
        /// The key to change.
        key: &'static str,
        /// What was looked for.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        cause: rustls::pki_types::pem::Error,
    },
    /// They do not go together.
    #[error("`server.tls`: certificate and private key make no server")]
    Config(#[source] rustls::Error),
}

/// The server's side of TLS, as the files were when last read.
pub(crate) struct Tls {
    current: ArcSwap<ServerConfig>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// When they are missing, unreadable or do not belong together.
    pub(crate) fn load(files: &crate::config::Tls) -> Result<Self, TlsError> {
        Ok(Self { current: ArcSwap::new(read(files)?) })
    }

    /// For the next handshake.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.load_full())
    }
}

fn read(files: &crate::config::Tls) -> Result<Arc<ServerConfig>, TlsError> {
    let pem = |key, what, path: &Path| {
        let path = path.to_owned();
        move |cause| TlsError::Pem { key, what, path, cause }
    };
    let (certificate, private_key) = (&files.certificate, &files.private_key);
    let failed = || pem("server.tls.certificate", "certificate", certificate);
    let chain: Vec<_> = CertificateDer::pem_file_iter(certificate).map_err(failed())?.collect::<Result<_, _>>().map_err(failed())?;
    if chain.is_empty() {
        return Err(failed()(rustls::pki_types::pem::Error::NoItemsFound));
    }
    let key = PrivateKeyDer::from_pem_file(private_key).map_err(pem("server.tls.private_key", "private key", private_key))?;
    // The provider is named, so that it does not hang on who installed one for the process.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Config)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(TlsError::Config)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
