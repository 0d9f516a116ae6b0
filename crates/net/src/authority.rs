//! The certificate authority of a cluster. Its key lives in the record, so that every member can
//! let a new one in and renew its own certificate.

use crate::names::{check_cluster_id, cluster_dns, member_dns, read_certificate};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use sempre_model::MemberId;
use sha2::{Digest, Sha256};
use std::time::Duration;
use time::OffsetDateTime;

/// How long the authority itself is valid.
pub const CA_LIFETIME: Duration = Duration::from_secs(20 * 365 * 86_400);
/// How long a member's certificate is valid unless said otherwise.
pub const MEMBER_LIFETIME: Duration = Duration::from_secs(90 * 86_400);
/// Clocks of members may differ by this much: certificates are valid from this long ago.
pub(crate) const BACKDATED: Duration = Duration::from_secs(3600);

/// Making or reading certificates failed.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// A cluster id that does not fit in a certificate.
    #[error(
        "cluster id `{0}` does not fit in a certificate: use 1 to 63 lower-case letters, digits or `-`"
    )]
    BadClusterId(String),
    /// Text that is not what it should be.
    #[error("cannot read the {what}: {why}")]
    Unreadable {
        /// Which of them.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// The library refused.
    #[error("cannot make the {what}: {why}")]
    Unmakeable {
        /// What was to be made.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// Key and certificate of the authority are not of one pair.
    #[error("the authority's key does not belong to its certificate")]
    KeyMismatch,
}

/// The certificate authority of a cluster: a certificate and its private key.
pub struct Authority {
    cert_pem: String,
    key_pem: String,
    cluster_id: String,
    not_after: i64,
    fingerprint: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new one.
    pub fn new(cluster_name: &str, cluster_id: &str) -> Result<Self, CertError> {
        let unmakeable =
            |e: rcgen::Error| CertError::Unmakeable { what: "authority", why: e.to_string() };
        check_cluster_id(cluster_id)?;
        let key = KeyPair::generate().map_err(unmakeable)?;
        let mut params = params_for(CA_LIFETIME)?;
        params.subject_alt_names = vec![dns_name(&cluster_dns(cluster_id))?];
        params
            .distinguished_name
            .push(DnType::CommonName, format!("sempre cluster {cluster_name} ({cluster_id})"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert_pem = params.self_signed(&key).map_err(unmakeable)?.pem();
        Self::from_pem(&cert_pem, &key.serialize_pem())
    }

    /// Reads back what [`Authority::cert_pem`] and [`Authority::key_pem`] gave.
    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<Self, CertError> {
        let der = der_of_pem(cert_pem, "authority's certificate")?;
        let facts = read_certificate(&der)?;
        let key = KeyPair::from_pem(key_pem)
            .map_err(|e| CertError::Unreadable { what: "authority's key", why: e.to_string() })?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|e| {
            CertError::Unreadable { what: "authority's certificate", why: e.to_string() }
        })?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(CertError::KeyMismatch);
        }
        let issuer = Issuer::from_ca_cert_pem(cert_pem, key).map_err(|e| {
            CertError::Unreadable { what: "authority's certificate", why: e.to_string() }
        })?;
        Ok(Self {
            cert_pem: cert_pem.to_owned(),
            key_pem: key_pem.to_owned(),
            cluster_id: facts.cluster_id,
            not_after: facts.not_after,
            fingerprint: fingerprint(&der),
            issuer,
        })
    }

    /// Signs a request, for `member` whatever the request says of itself: only its key is taken.
    pub fn sign(
        &self,
        csr_pem: &str,
        member: &MemberId,
        lifetime: Duration,
    ) -> Result<String, CertError> {
        self.sign_for(csr_pem, member, &[], lifetime)
    }

    /// The same, with the member's addresses in the certificate. Members know each other by name;
    /// the addresses are for clients of the database and of REST, which check them.
    pub fn sign_for(
        &self,
        csr_pem: &str,
        member: &MemberId,
        addresses: &[String],
        lifetime: Duration,
    ) -> Result<String, CertError> {
        let request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(|e| {
            CertError::Unreadable { what: "certificate request", why: e.to_string() }
        })?;
        let mut params = self.params(lifetime)?;
        params.subject_alt_names = vec![dns_name(&member_dns(member, &self.cluster_id))?];
        params.subject_alt_names.extend(addresses.iter().filter_map(|host| alt_name(host)));
        params.distinguished_name.push(DnType::CommonName, member.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params
            .signed_by(&request.public_key, &self.issuer)
            .map(|certificate| certificate.pem())
            .map_err(|e| CertError::Unmakeable { what: "certificate", why: e.to_string() })
    }

    /// Of a certificate without names, which does not outlive the authority.
    pub(crate) fn params(&self, lifetime: Duration) -> Result<CertificateParams, CertError> {
        let mut params = params_for(lifetime)?;
        params.use_authority_key_identifier_extension = true;
        if params.not_after.unix_timestamp() > self.not_after {
            params.not_after = OffsetDateTime::from_unix_timestamp(self.not_after)
                .map_err(|e| CertError::Unmakeable { what: "certificate", why: e.to_string() })?;
        }
        Ok(params)
    }

    pub(crate) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    /// The certificate, PEM.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The private key, PEM. Whoever has it can become any member.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// The cluster it is for.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// SHA-256 of the certificate's DER form, hexadecimal.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({}, {})", self.cluster_id, self.fingerprint)
    }
}

/// SHA-256 of a certificate in PEM, hexadecimal: what a join token carries of the authority.
pub fn fingerprint_of_pem(cert_pem: &str) -> Result<String, CertError> {
    Ok(fingerprint(&der_of_pem(cert_pem, "certificate")?))
}

pub(crate) fn fingerprint(der: &[u8]) -> String {
    hex(&Sha256::digest(der))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub(crate) fn der_of_pem(
    pem: &str,
    what: &'static str,
) -> Result<CertificateDer<'static>, CertError> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|e| CertError::Unreadable { what, why: e.to_string() })
}

/// An address as a certificate has it. One that does not fit in a certificate is left out: it
/// cannot be checked then, and everything else goes on.
fn alt_name(host: &str) -> Option<SanType> {
    if let Ok(address) = host.parse() {
        return Some(SanType::IpAddress(address));
    }
    // What is not a host name would make the whole certificate unreadable for some.
    rustls::pki_types::DnsName::try_from(host).ok()?;
    host.to_owned().try_into().ok().map(SanType::DnsName)
}

fn dns_name(dns: &str) -> Result<SanType, CertError> {
    let name = dns.to_owned().try_into().map_err(|e: rcgen::Error| CertError::Unmakeable {
        what: "certificate",
        why: e.to_string(),
    })?;
    Ok(SanType::DnsName(name))
}

fn params_for(lifetime: Duration) -> Result<CertificateParams, CertError> {
    let bad = |why: String| CertError::Unmakeable { what: "certificate", why };
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = now - BACKDATED;
    params.not_after = i64::try_from(lifetime.as_secs())
        .ok()
        .and_then(|s| now.checked_add(time::Duration::seconds(s)))
        .filter(|end| end.year() < 9999)
        .ok_or_else(|| bad("its lifetime is too long".into()))?;
    Ok(params)
}
