//! TLS as members speak it: 1.3 only, `ring` only, both sides proven by the cluster's authority.

use crate::{authority::fingerprint, files::Files, identity::Identity, names::read_certificate};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme, SupportedProtocolVersion,
    client::{
        ResolvesClientCert, Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{
        ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert,
        WebPkiClientVerifier,
    },
    sign::CertifiedKey,
    version::TLS13,
};
use std::{
    path::Path,
    sync::{Arc, LazyLock},
};

/// HTTP/2 and nothing else.
const ALPN: &[u8] = b"h2";
/// What REST speaks.
const HTTP1: &[u8] = b"http/1.1";

static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));

/// The one crypto provider, passed everywhere: no process-wide default is set or needed.
pub fn provider() -> Arc<CryptoProvider> {
    PROVIDER.clone()
}

/// Did one of `roots` sign this certificate, valid at `now`?
pub fn signed_by(
    der: &CertificateDer<'_>,
    roots: &RootCertStore,
    now: UnixTime,
) -> Result<(), Error> {
    let parsed = ParsedCertificate::try_from(der)?;
    let algorithms = provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&parsed, roots, &[], now, algorithms)
}

/// Always answers with the certificate in use at that moment.
#[derive(Debug)]
struct Present(Arc<Identity>);

impl ResolvesServerCert for Present {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.certified())
    }
}

impl ResolvesClientCert for Present {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.certified())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The side that listens. A client without a certificate gets through the handshake, as a stranger.
pub fn server_config(identity: Arc<Identity>) -> Result<ServerConfig, Error> {
    let general = |e: rustls::server::VerifierBuilderError| Error::General(e.to_string());
    let verifier = WebPkiClientVerifier::builder_with_provider(identity.roots(), provider())
        .allow_unauthenticated()
        .build()
        .map_err(general)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(Present(identity)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would skip the check of the certificate.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The side that calls, as a member.
pub fn client_config(identity: Arc<Identity>) -> Result<ClientConfig, Error> {
    let general = |e: rustls::server::VerifierBuilderError| Error::General(e.to_string());
    let verifier = WebPkiServerVerifier::builder_with_provider(identity.roots(), provider())
        .build()
        .map_err(general)?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_webpki_verifier(verifier)
        .with_client_cert_resolver(Arc::new(Present(identity)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Part of the words of a call that met a member of another cluster than its token is for.
pub const FOREIGN_AUTHORITY: &str = "it belongs to another cluster than the token (CA fingerprint)";

/// The side that calls, as a stranger who knows the authority by its fingerprint. Which member
/// answers does not matter to a newcomer: all of them may let it in.
pub fn stranger_config(ca_fingerprint: &str) -> Result<ClientConfig, Error> {
    let wanted = ca_fingerprint.to_ascii_lowercase();
    let mut config = config_of(
        Checked::new(move |end_entity, intermediates, _, now| {
            let ca = intermediates.iter().find(|ca| fingerprint(ca) == wanted);
            let ca = ca.ok_or_else(|| Error::General(FOREIGN_AUTHORITY.into()))?;
            let mut roots = RootCertStore::empty();
            roots.add(ca.clone())?;
            signed_by(end_entity, &roots, now)
        }),
        &[&TLS13],
    )?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// What somebody else than a member can be told to trust is not usable.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// Not a certificate, or not one of an authority.
    #[error("{what} cannot be used: {why}")]
    Unusable {
        /// Whose.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
}

impl TrustError {
    fn of(what: &'static str) -> impl Fn(Error) -> Self {
        move |e| TrustError::Unusable { what, why: e.to_string() }
    }
}

/// HTTPS as a member offers it (REST): TLS 1.2 and 1.3, nothing asked of the client. With
/// `own`, the files (PEM) of a certificate with its chain and of its key, that one is shown, as the
/// files are at the time; else the member's.
pub fn https_server(
    identity: Arc<Identity>,
    own: Option<(&Path, &Path)>,
) -> Result<ServerConfig, TrustError> {
    server_showing(shown(identity, own)?, None)
}

/// The same, for clients that may show a certificate which `clients` (PEM) signed. One that it did
/// not sign, or an expired one, is refused; none is no reason to.
pub fn server_for(
    identity: Arc<Identity>,
    own: Option<(&Path, &Path)>,
    clients: &str,
) -> Result<ServerConfig, TrustError> {
    server_showing(shown(identity, own)?, Some(roots("the CA of clients", clients)?))
}

fn shown(
    identity: Arc<Identity>,
    own: Option<(&Path, &Path)>,
) -> Result<Arc<dyn ResolvesServerCert>, TrustError> {
    Ok(match own {
        None => Arc::new(Present(identity)),
        Some((chain, key)) => Arc::new(Files::open(chain, key)?),
    })
}

/// The same without a member.
pub fn https_server_with(chain: &Path, key: &Path) -> Result<ServerConfig, TrustError> {
    server_showing(Arc::new(Files::open(chain, key)?), None)
}

fn server_showing(
    resolver: Arc<dyn ResolvesServerCert>,
    clients: Option<RootCertStore>,
) -> Result<ServerConfig, TrustError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TrustError::of("TLS"))?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(Arc::new(clients), provider())
                .allow_unauthenticated()
                .build()
                .map_err(|e| TrustError::Unusable {
                    what: "the CA of clients",
                    why: e.to_string(),
                })?,
        ),
    };
    let mut config = builder.with_cert_resolver(resolver);
    config.alpn_protocols = vec![HTTP1.to_vec()];
    Ok(config)
}

/// HTTPS to a member. It is trusted when the cluster's authority signed its certificate, whatever
/// its address: every member holds the authority's key, so a name in it proves no more. One that
/// `others` (PEM) signed must be made out to the address.
pub fn https_client(
    ca_pem: Option<&str>,
    others: Option<&str>,
) -> Result<ClientConfig, TrustError> {
    let ours = match ca_pem {
        Some(pem) => roots("the cluster's CA certificate", pem)?,
        None => RootCertStore::empty(),
    };
    let others = match others {
        None => None,
        Some(pem) => {
            let what = "the CA file";
            let verifier = WebPkiServerVerifier::builder_with_provider(
                Arc::new(roots(what, pem)?),
                provider(),
            )
            .build()
            .map_err(|e| TrustError::Unusable { what, why: e.to_string() })?;
            Some(verifier)
        }
    };
    let mut config = config_of(
        Checked::new(move |end_entity, intermediates, name, now| {
            let known = signed_by(end_entity, &ours, now);
            match (&known, &others) {
                (Err(_), Some(others)) => {
                    others.verify_server_cert(end_entity, intermediates, name, &[], now).map(|_| ())
                }
                _ => known,
            }
        }),
        rustls::DEFAULT_VERSIONS,
    )
    .map_err(TrustError::of("TLS"))?;
    config.alpn_protocols = vec![HTTP1.to_vec()];
    Ok(config)
}

/// HTTPS to members, by one file (PEM): the cluster's CA certificate, told by its name, or that of
/// whoever signed the certificates that REST shows.
pub fn https_client_by(pem: &str) -> Result<ClientConfig, TrustError> {
    let ours = CertificateDer::from_pem_slice(pem.as_bytes())
        .is_ok_and(|ca| read_certificate(&ca).is_ok_and(|facts| facts.member.is_none()));
    if ours { https_client(Some(pem), None) } else { https_client(None, Some(pem)) }
}

fn roots(what: &'static str, pem: &str) -> Result<RootCertStore, TrustError> {
    let unusable = |why: String| TrustError::Unusable { what, why };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|e| unusable(e.to_string()))?;
        roots.add(certificate).map_err(|e| unusable(e.to_string()))?;
    }
    if roots.is_empty() { Err(unusable("there is no certificate in it".into())) } else { Ok(roots) }
}

pub(crate) fn certified(chain: &str, key: &str) -> Result<CertifiedKey, TrustError> {
    let unusable = |why: String| TrustError::Unusable { what: "the certificate to show", why };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| unusable(e.to_string()))?;
    if chain.is_empty() {
        return Err(unusable("there is no certificate in it".into()));
    }
    let key =
        PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|e| unusable(format!("key: {e}")))?;
    CertifiedKey::from_der(chain, key, &provider()).map_err(|e| unusable(e.to_string()))
}

fn config_of(
    verifier: Checked,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(config)
}

type Check = dyn Fn(&CertificateDer<'_>, &[CertificateDer<'_>], &ServerName<'_>, UnixTime) -> Result<(), Error>
    + Send
    + Sync;

/// A check of our own of whose certificate it is; that the other side holds its key is checked as
/// ever.
struct Checked(Box<Check>);

impl Checked {
    fn new(
        check: impl Fn(
            &CertificateDer<'_>,
            &[CertificateDer<'_>],
            &ServerName<'_>,
            UnixTime,
        ) -> Result<(), Error>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self(Box::new(check))
    }
}

impl std::fmt::Debug for Checked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Checked")
    }
}

impl ServerCertVerifier for Checked {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        (self.0)(end_entity, intermediates, name, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &PROVIDER.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &PROVIDER.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}
