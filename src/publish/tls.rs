//! TLS by rustls, for every sink alike.

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::error::{Error, Result};

/// Trusts `ca` alone where it is given, else what the system trusts; shows `identity` (certificate chain and key) to a
/// far end that asks for it.
///
/// Errors: `Config` when a file can't be used.
pub fn client(ca: Option<&Path>, identity: Option<(&Path, &Path)>) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(ca) => {
            for certificate in certificates(ca)? {
                roots
                    .add(certificate)
                    .map_err(|e| Error::config(format!("{} can't be used as a CA", ca.display())).caused_by(e))?;
            }
        }
        None => {
            let native = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(native.certs);
            if roots.is_empty() {
                return Err(Error::config(
                    "this system trusts no CA: install the package ca-certificates, or name a file with `ca`",
                ));
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::internal("TLS").caused_by(e))?
        .with_root_certificates(roots);
    match identity {
        None => Ok(builder.with_no_client_auth()),
        Some((cert, key)) => {
            let private = PrivateKeyDer::from_pem_file(key)
                .map_err(|e| Error::config(format!("{} holds no private key", key.display())).caused_by(e))?;
            builder.with_client_auth_cert(certificates(cert)?, private).map_err(|e| {
                Error::config(format!("{} and {} do not belong together", cert.display(), key.display())).caused_by(e)
            })
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let cannot = |e| Error::config(format!("{} holds no certificate", path.display())).caused_by(e);
    let found = CertificateDer::pem_file_iter(path).map_err(cannot)?.collect::<Result<Vec<_>, _>>().map_err(cannot)?;
    if found.is_empty() {
        return Err(Error::config(format!("{} holds no certificate", path.display())));
    }
    Ok(found)
}

/// For a client that makes no TLS connection but must be told how.
pub fn none() -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::internal("TLS").caused_by(e))?;
    Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}
