//! Which certificates are trusted. The load bench uses it, too.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

/// Whom to trust, and under which name.
pub struct Tls {
    pub config: Arc<ClientConfig>,
    pub name: ServerName<'static>,
}

/// Why TLS cannot even be tried.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    #[error("cannot read {0}: {1}")]
    Unreadable(PathBuf, pem::Error),
    #[error("{0} holds no certificate")]
    NoCertificate(PathBuf),
    #[error("no root certificates on this system")]
    NoRoots,
    #[error("{0} is not a valid name")]
    BadName(String),
    #[error("{0}")]
    Rustls(#[from] rustls::Error),
}

impl Tls {
    /// Trusts whom the system trusts, and the certificates in the PEM file `ca`. The server's must
    /// be for `name`, a host's name or an IP address.
    pub fn new(name: &str, ca: Option<&Path>) -> Result<Tls, TlsSetupError> {
        let mut roots = RootCertStore::empty();
        // Some in the system's collection may be odd; the others will do.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(path) = ca {
            let unreadable = |error| TlsSetupError::Unreadable(path.into(), error);
            let mut added = 0;
            for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
                roots.add(certificate.map_err(unreadable)?)?;
                added += 1;
            }
            if added == 0 {
                return Err(TlsSetupError::NoCertificate(path.into()));
            }
        }
        if roots.is_empty() {
            return Err(TlsSetupError::NoRoots);
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let config = versions.with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).map_err(|_| TlsSetupError::BadName(name.into()))?;
        Ok(Tls { config: Arc::new(config), name })
    }
}
