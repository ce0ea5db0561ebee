//! TLS towards a NATS server: authorities and the client's own certificate, from PEM files.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::config::Tls;
use crate::source::SourceError;

/// Reads the files as they are now.
pub(in crate::source) async fn client_config(tls: &Tls) -> Result<ClientConfig, SourceError> {
    let mut roots = RootCertStore::empty();
    if let Some(ca) = &tls.ca {
        for certificate in certificates(ca).await? {
            roots.add(certificate).map_err(|e| SourceError::with("`tls.ca` holds a certificate that is none of an authority", e))?;
        }
    } else {
        let native = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(native.certs);
        if roots.is_empty() {
            return Err(SourceError::new("the system has no certificates of authorities: set `tls.ca`"));
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| SourceError::with("could not set up TLS", e))?
        .with_root_certificates(roots);
    let Some((certificate, key)) = &tls.identity else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates(certificate).await?;
    let key = PrivateKeyDer::from_pem_slice(&read(key).await?)
        .map_err(|e| SourceError::with(format!("`{}` holds no private key in PEM", key.display()), e))?;
    builder.with_client_auth_cert(chain, key).map_err(|e| SourceError::with("`tls.certificate` and `tls.private_key` do not fit", e))
}

async fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SourceError> {
    let pem = read(path).await?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(SourceError::new(format!("`{}` holds no certificate in PEM", path.display()))),
        Err(e) => Err(SourceError::with(format!("`{}` holds no certificate in PEM", path.display()), e)),
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, SourceError> {
    tokio::fs::read(path).await.map_err(|e| SourceError::with(format!("could not read `{}`", path.display()), e))
}
