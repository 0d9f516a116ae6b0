//! TLS as members speak it: 1.3 only, `ring` only, both sides proven by the cluster's authority.

use crate::{authority::fingerprint, identity::Identity};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme,
    client::{
        ResolvesClientCert, Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert,
        WebPkiClientVerifier,
    },
    sign::CertifiedKey,
    version::TLS13,
};
use std::sync::{Arc, LazyLock};

/// HTTP/2 and nothing else.
const ALPN: &[u8] = b"h2";

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

/// The side that calls, as a stranger who knows the authority by its fingerprint.
pub fn stranger_config(ca_fingerprint: &str) -> Result<ClientConfig, Error> {
    let verifier = Pinned { ca_fingerprint: ca_fingerprint.to_ascii_lowercase() };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Accepts any member of the cluster whose authority has this fingerprint. Which member it is does
/// not matter to a newcomer: all of them may let it in.
#[derive(Debug)]
struct Pinned {
    ca_fingerprint: String,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ca = intermediates.iter().find(|ca| fingerprint(ca) == self.ca_fingerprint);
        let ca = ca.ok_or_else(|| {
            Error::General("it belongs to another cluster than the token (CA fingerprint)".into())
        })?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone())?;
        signed_by(end_entity, &roots, now)?;
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
