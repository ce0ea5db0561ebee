//! What a broker's TLS needs of the files that `tls` names: read at each connection, for they may be renewed.
//!
//! Its errors name the key and the file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{Error, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::SourceError;

/// Trusts `ca` (without it the system's authorities), and shows the certificate of `identity`, whose second is the key.
pub(super) fn client(ca: Option<&Path>, identity: Option<&(PathBuf, PathBuf)>) -> Result<ClientConfig, SourceError> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            for certificate in certificates("tls.ca", path)? {
                roots.add(certificate).map_err(|e| SourceError::with("`tls.ca` holds what is no certificate authority", e))?;
            }
        }
        None => {
            // Single bad ones among the system's are skipped.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| SourceError::with("no TLS version to speak", e))?
        .with_root_certificates(roots);
    let Some((certificate, key)) = identity else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates("tls.certificate", certificate)?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|e| match e {
        Error::NoItemsFound => SourceError::new(format!("there is no private key in `{}` (`tls.private_key`)", key.display())),
        e => unreadable("tls.private_key", key, e),
    })?;
    let failed = |e| SourceError::with("`tls.certificate` and `tls.private_key` do not go together", e);
    builder.with_client_auth_cert(chain, key).map_err(failed)
}

fn certificates(name: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, SourceError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let read = read.map_err(|e| unreadable(name, path, e))?;
    if read.is_empty() {
        return Err(SourceError::new(format!("there is no certificate in `{}` (`{name}`)", path.display())));
    }
    Ok(read)
}

fn unreadable(name: &str, path: &Path, error: Error) -> SourceError {
    SourceError::with(format!("cannot read `{name}` from `{}`", path.display()), error)
}
