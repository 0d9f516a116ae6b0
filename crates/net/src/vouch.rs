//! Vouching for a client to a database: routing has checked whose certificate the client showed,
//! and shows the database one of the same name, signed by the cluster's authority.

use crate::{
    authority::{Authority, CertError, der_of_pem},
    tls::provider,
};
use rcgen::{DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use rustls::{
    ClientConfig,
    pki_types::PrivateKeyDer,
    sign::{CertifiedKey, SingleCertAndKey},
};
use std::{sync::Arc, time::Duration};
use x509_parser::parse_x509_certificate;

/// The common name of a certificate (DER), as PostgreSQL takes it: the last one, which must not be
/// empty nor contain a zero byte.
pub fn common_name(der: &[u8]) -> Option<String> {
    let (_, certificate) = parse_x509_certificate(der).ok()?;
    let name = certificate.subject().iter_common_name().last()?.as_str().ok()?;
    (!name.is_empty() && !name.contains('\0')).then(|| name.to_owned())
}

impl Authority {
    /// `config`, which also shows a certificate with this common name. It is no member's, and good
    /// for nothing but being shown to servers.
    pub fn vouch(
        &self,
        config: &ClientConfig,
        name: &str,
        lifetime: Duration,
    ) -> Result<ClientConfig, CertError> {
        let unmakeable = |why: String| CertError::Unmakeable { what: "certificate", why };
        let key = KeyPair::generate().map_err(|e| unmakeable(e.to_string()))?;
        let mut params = self.params(lifetime)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate =
            params.signed_by(&key, self.issuer()).map_err(|e| unmakeable(e.to_string()))?;
        let chain = vec![certificate.der().clone(), der_of_pem(self.cert_pem(), "authority")?];
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let certified = CertifiedKey::from_der(chain, key, &provider())
            .map_err(|e| unmakeable(e.to_string()))?;
        let mut config = config.clone();
        config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(certified));
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_common_name_counts() {
        let name = |names: &[&str]| {
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            for name in names {
                params.distinguished_name.push(DnType::CommonName, *name);
            }
            let key = KeyPair::generate().unwrap();
            common_name(params.self_signed(&key).unwrap().der())
        };
        assert_eq!(name(&["app"]).as_deref(), Some("app"));
        assert_eq!(name(&[]), None);
        assert_eq!(name(&[""]), None);
        assert_eq!(name(&["a\0b"]), None);
        assert_eq!(common_name(b"no certificate"), None);
    }
}
