//! The names that certificates prove, and how a certificate is read.

use crate::authority::CertError;
use rustls::pki_types::ServerName;
use sempre_model::MemberId;
use std::net::IpAddr;
use x509_parser::{extensions::GeneralName, prelude::parse_x509_certificate};

/// Never resolved: `.internal` is reserved for private use.
const SUFFIX: &str = ".sempre.internal";

/// What certificates of a cluster are made out to.
///
/// The label of a member is its name and `_`: a name may end in `-`, a DNS label may not.
pub fn member_dns(member: &MemberId, cluster_id: &str) -> String {
    format!("{member}_.{cluster_id}{SUFFIX}")
}

/// The name the authority of a cluster bears.
pub fn cluster_dns(cluster_id: &str) -> String {
    format!("{cluster_id}{SUFFIX}")
}

/// A member as TLS wants it.
pub fn server_name(member: &MemberId, cluster_id: &str) -> Result<ServerName<'static>, CertError> {
    ServerName::try_from(member_dns(member, cluster_id))
        .map_err(|_| CertError::BadClusterId(cluster_id.to_owned()))
}

/// A cluster id must be usable as one DNS label.
pub fn check_cluster_id(cluster_id: &str) -> Result<(), CertError> {
    let fits = (1..=63).contains(&cluster_id.len())
        && cluster_id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !cluster_id.starts_with('-')
        && !cluster_id.ends_with('-');
    if fits { Ok(()) } else { Err(CertError::BadClusterId(cluster_id.to_owned())) }
}

/// What we read from a certificate. Times are s since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The member it is made out to; none: not a member's certificate.
    pub member: Option<MemberId>,
    /// The cluster it is made out to.
    pub cluster_id: String,
    /// The addresses it is made out to, as written: IP addresses and host names.
    pub addresses: Vec<String>,
    /// Valid from.
    pub not_before: i64,
    /// Valid until.
    pub not_after: i64,
}

/// Reads a certificate. Says nothing about who signed it.
pub fn read_certificate(der: &[u8]) -> Result<Facts, CertError> {
    let unreadable = |why: String| CertError::Unreadable { what: "certificate", why };
    let (_, certificate) = parse_x509_certificate(der).map_err(|e| unreadable(e.to_string()))?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|e| unreadable(e.to_string()))?
        .map(|extension| extension.value.general_names.as_slice())
        .unwrap_or_default();
    let ours = names.iter().find_map(|name| match name {
        GeneralName::DNSName(name) => name.strip_suffix(SUFFIX),
        _ => None,
    });
    let ours = ours.ok_or_else(|| unreadable("it names no cluster".into()))?;
    let (member, cluster_id) = match ours.split_once('.') {
        None => (None, ours),
        Some((label, cluster_id)) => {
            let name = label.strip_suffix('_').and_then(|name| MemberId::new(name).ok());
            (Some(name.ok_or_else(|| unreadable(format!("`{label}` is no member")))?), cluster_id)
        }
    };
    let addresses = names.iter().filter_map(address).collect();
    let validity = certificate.validity();
    Ok(Facts {
        member,
        cluster_id: cluster_id.to_owned(),
        addresses,
        not_before: validity.not_before.timestamp(),
        not_after: validity.not_after.timestamp(),
    })
}

/// An address in a certificate; none for our own names.
fn address(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) if !name.ends_with(SUFFIX) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
        },
        _ => None,
    }
}
