//! The certificate that one client is shown, so that its password can be bound to it.
//!
//! A certificate may be renewed at any time: which one a handshake showed is known only when it is
//! chosen before.

use rustls::{
    ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use sempre_wire::pg::scram;
use std::sync::Arc;

#[derive(Debug)]
struct Shown(Arc<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

/// The configuration for this client, and the binding of the certificate it shows (RFC 5929), where
/// there is one.
pub(super) fn shown(
    config: &Arc<ServerConfig>,
    hello: ClientHello<'_>,
) -> (Arc<ServerConfig>, Option<Box<[u8]>>) {
    let Some(key) = config.cert_resolver.resolve(hello) else { return (config.clone(), None) };
    let end_point = key.cert.first().and_then(|certificate| scram::end_point(certificate));
    let mut config = ServerConfig::clone(config);
    config.cert_resolver = Arc::new(Shown(key));
    (Arc::new(config), end_point.map(Vec::into_boxed_slice))
}
