//! A member's key and certificate, with the authority they are checked against. Renewed while the
//! network runs.

use crate::{
    authority::{Authority, CertError, der_of_pem},
    names::{Facts, read_certificate},
    tls,
};
use rcgen::KeyPair;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    sign::CertifiedKey,
};
use sempre_model::MemberId;
use std::{
    fs, io,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Key and certificate, in one file so that they are replaced together.
pub const MEMBER_FILE: &str = "member.pem";
/// The authority's certificate.
pub const CA_FILE: &str = "ca.pem";
/// A certificate and key file larger than this is not ours.
const FILE_MAX: u64 = 64 * 1024;

/// An identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Part of it cannot be read or made.
    #[error(transparent)]
    Cert(#[from] CertError),
    /// The certificate is not by the cluster's authority, or not of this key.
    #[error("the certificate of {member} is not usable: {why}; join again with a new token")]
    Unusable {
        /// Whom it is made out to.
        member: String,
        /// What is wrong.
        why: String,
    },
    /// A renewed certificate that is made out to somebody else.
    #[error("the new certificate is for {found}, not for {expected}; the old one stays in use")]
    Other {
        /// Who we are.
        expected: String,
        /// Whom it is made out to.
        found: String,
    },
    /// A file.
    #[error("cannot {doing} {}: {source}", path.display())]
    File {
        /// `read` or `write`.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What changes at renewal.
struct Current {
    certified: Arc<CertifiedKey>,
    cert_pem: String,
    key_pem: String,
    facts: Facts,
}

/// A member's key and certificate, and the authority of its cluster.
pub struct Identity {
    member: MemberId,
    cluster_id: String,
    ca_pem: String,
    ca: CertificateDer<'static>,
    roots: Arc<RootCertStore>,
    current: RwLock<Arc<Current>>,
    /// Counts renewals, so that connections know when they are of an older certificate.
    epoch: AtomicU64,
}

/// A new private key and the request to sign it, both PEM. The key never leaves the member.
pub fn create_request(member: &MemberId) -> Result<(String, String), CertError> {
    let bad = |e: rcgen::Error| CertError::Unmakeable { what: "request", why: e.to_string() };
    let key = KeyPair::generate().map_err(bad)?;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, member.as_str());
    let request = params.serialize_request(&key).and_then(|r| r.pem()).map_err(bad)?;
    Ok((key.serialize_pem(), request))
}

impl Identity {
    /// Puts an identity together. An expired one is accepted here (it may be about to be renewed),
    /// one by another authority is not.
    pub fn new(key_pem: &str, cert_pem: &str, ca_pem: &str) -> Result<Self, IdentityError> {
        let ca = der_of_pem(ca_pem, "authority's certificate")?;
        let cluster_id = read_certificate(&ca)?.cluster_id;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone()).map_err(|e| CertError::Unreadable {
            what: "authority's certificate",
            why: e.to_string(),
        })?;
        let roots = Arc::new(roots);
        let current = check(key_pem, cert_pem, &ca, &roots)?;
        let Some(member) = current.facts.member.clone() else {
            return Err(unusable("nobody", "it names no member"));
        };
        Ok(Self {
            member,
            cluster_id,
            ca_pem: ca_pem.to_owned(),
            ca,
            roots,
            current: RwLock::new(Arc::new(current)),
            epoch: AtomicU64::new(0),
        })
    }

    /// A fresh key, signed by an authority at hand: how the first member, and any member that
    /// holds the record, gets a certificate.
    pub fn issue(
        authority: &Authority,
        member: &MemberId,
        lifetime: Duration,
    ) -> Result<Self, IdentityError> {
        Self::issue_for(authority, member, &[], lifetime)
    }

    /// The same, with the member's addresses in the certificate.
    pub fn issue_for(
        authority: &Authority,
        member: &MemberId,
        addresses: &[String],
        lifetime: Duration,
    ) -> Result<Self, IdentityError> {
        let (key, request) = create_request(member)?;
        let certificate = authority.sign_for(&request, member, addresses, lifetime)?;
        Self::new(&key, &certificate, authority.cert_pem())
    }

    /// Reads what [`Identity::save`] wrote.
    pub fn load(folder: &Path) -> Result<Self, IdentityError> {
        let member = read(&folder.join(MEMBER_FILE))?;
        let ca = read(&folder.join(CA_FILE))?;
        Self::new(&member, &member, &ca)
    }

    /// Writes `member.pem` and `ca.pem`, readable by the owner only, each replaced as a whole.
    pub fn save(&self, folder: &Path) -> Result<(), IdentityError> {
        let current = self.current();
        fs::create_dir_all(folder).map_err(|source| IdentityError::File {
            doing: "write",
            path: folder.to_owned(),
            source,
        })?;
        write(&folder.join(CA_FILE), &self.ca_pem)?;
        write(&folder.join(MEMBER_FILE), &format!("{}{}", current.key_pem, current.cert_pem))
    }

    /// Puts a renewed key and certificate to use: new connections of both directions carry it at
    /// once, and this member's calls move to new connections.
    pub fn swap(&self, key_pem: &str, cert_pem: &str) -> Result<(), IdentityError> {
        let next = check(key_pem, cert_pem, &self.ca, &self.roots)?;
        if next.facts.member.as_ref() != Some(&self.member) {
            return Err(IdentityError::Other {
                expected: self.member.to_string(),
                found: next.facts.member.map_or("nobody".into(), |m| m.to_string()),
            });
        }
        *self.current.write().unwrap_or_else(|e| e.into_inner()) = Arc::new(next);
        self.epoch.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Who we are.
    pub fn member(&self) -> &MemberId {
        &self.member
    }

    /// The cluster the certificate is for.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// The authority's certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The certificate in use, PEM.
    pub fn cert_pem(&self) -> String {
        self.current().cert_pem.clone()
    }

    /// When the certificate in use ends.
    pub fn expires_at(&self) -> SystemTime {
        at(self.current().facts.not_after)
    }

    /// In the last third of its life, or past it, a certificate is to be renewed.
    pub fn due_for_renewal(&self, now: SystemTime) -> bool {
        let facts = self.current().facts.clone();
        let life = facts.not_after - facts.not_before;
        now >= at(facts.not_after - life / 3)
    }

    /// Is the certificate made out to all of these addresses? One that cannot stand in a
    /// certificate does not count.
    pub fn covers(&self, addresses: &[String]) -> bool {
        let facts = self.current().facts.clone();
        addresses.iter().all(|address| {
            let shown = match address.parse::<std::net::IpAddr>() {
                Ok(ip) => ip.to_string(),
                Err(_) if rustls::pki_types::DnsName::try_from(address.as_str()).is_err() => {
                    return true;
                }
                Err(_) => address.clone(),
            };
            facts.addresses.contains(&shown)
        })
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        self.roots.clone()
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        self.current().certified.clone()
    }

    fn current(&self) -> Arc<Current> {
        self.current.read().unwrap_or_else(|e| e.into_inner()).clone()
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({}, {})", self.member, self.cluster_id)
    }
}

fn unusable(member: &str, why: impl std::fmt::Display) -> IdentityError {
    IdentityError::Unusable { member: member.to_owned(), why: why.to_string() }
}

/// Key and certificate belong together, and the authority signed them.
fn check(
    key_pem: &str,
    cert_pem: &str,
    ca: &CertificateDer<'static>,
    roots: &RootCertStore,
) -> Result<Current, IdentityError> {
    let der = der_of_pem(cert_pem, "member's certificate")?;
    let facts = read_certificate(&der)?;
    let name = facts.member.as_ref().map_or("nobody", |m| m.as_str()).to_owned();
    // At its own first moment: whether it is expired is for the peers to say.
    let began = Duration::from_secs(facts.not_before.max(0) as u64);
    tls::signed_by(&der, roots, UnixTime::since_unix_epoch(began))
        .map_err(|e| unusable(&name, e))?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
        .map_err(|e| CertError::Unreadable { what: "member's key", why: e.to_string() })?;
    // The authority's own certificate goes along: a newcomer knows it by its fingerprint only.
    let certified = CertifiedKey::from_der(vec![der, ca.clone()], key, &tls::provider())
        .map_err(|e| unusable(&name, e))?;
    let certified = Arc::new(certified);
    Ok(Current {
        certified,
        cert_pem: only(cert_pem, "CERTIFICATE"),
        key_pem: only(key_pem, "PRIVATE KEY"),
        facts,
    })
}

/// The one section of a PEM text, when a file carries several.
fn only(pem: &str, label: &str) -> String {
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    match (pem.find(&begin), pem.find(&end)) {
        (Some(from), Some(to)) if from < to => format!("{}\n", &pem[from..to + end.len()]),
        _ => pem.to_owned(),
    }
}

fn at(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.max(0) as u64)
}

fn read(path: &Path) -> Result<String, IdentityError> {
    let failed = |source| IdentityError::File { doing: "read", path: path.to_owned(), source };
    if fs::metadata(path).map_err(failed)?.len() > FILE_MAX {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, "it is far too large")));
    }
    fs::read_to_string(path).map_err(failed)
}

fn write(path: &Path, text: &str) -> Result<(), IdentityError> {
    let attempt = || -> io::Result<()> {
        let temporary = path.with_extension("pem.new");
        // A left-over of an interrupted write may have any mode.
        let _ = fs::remove_file(&temporary);
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        match path.parent() {
            Some(folder) => fs::File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    };
    attempt().map_err(|source| IdentityError::File {
        doing: "write",
        path: path.to_owned(),
        source,
    })
}
