//! Certificates of a private authority.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tempfile::TempDir;

/// An authority with a server's and a client's certificate, in PEM files.
#[derive(Debug)]
pub struct Certs {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
    pub ca_pem: String,
}

impl Certs {
    /// Makes `ca.crt`, `server.{crt,key}` (127.0.0.1, localhost) and `client.{crt,key}`.
    pub fn new() -> Self {
        let folder = TempDir::with_prefix("brokercast-certs-").unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "brokercast test authority");
        let key = KeyPair::generate().unwrap();
        let ca_pem = params.self_signed(&key).unwrap().pem();
        std::fs::write(folder.path().join("ca.crt"), &ca_pem).unwrap();
        let certs = Self { folder, issuer: Issuer::new(params, key), ca_pem };
        certs.issue("server");
        certs.issue("client");
        certs
    }

    /// Makes (again) a certificate and its key.
    pub fn issue(&self, name: &str) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.crt")), certificate.pem()).unwrap();
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}
