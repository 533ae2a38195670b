//! TLS towards targets: rustls with aws-lc, trusting the system's authorities or those of a file.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use crate::Error;

/// `authorities`: a file of PEM certificates that are trusted instead of the system's; `option` is how the configuration calls it.
pub(crate) fn client_config(target: &str, option: &str, authorities: Option<&Path>) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    match authorities {
        Some(path) => {
            let unreadable = |error: String| {
                Error::misconfigured(target, format!("{option} {}: {error}", path.display()), "Name a file of PEM certificates")
            };
            let certificates = CertificateDer::pem_file_iter(path).map_err(|error| unreadable(error.to_string()))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| unreadable(error.to_string()))?;
                roots.add(certificate).map_err(|error| unreadable(error.to_string()))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| Error::unexpected(target, error))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
