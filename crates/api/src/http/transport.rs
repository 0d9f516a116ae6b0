//! In clear or encrypted: both on one port, told apart by the first byte.
//!
//! Health checks of load balancers are often plain HTTP, and tell nothing that is secret: they go
//! on in clear. A request that changes something carries the cluster's token, which must not
//! cross a network in clear.

use crate::codes::{self, ActionError};
use http::Method;
use rustls::ServerConfig;
use std::{io, net::IpAddr, sync::Arc, time::Duration};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// How long a client may take for its first byte, and for its part of the TLS handshake.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// TLS begins with a handshake record; no HTTP method begins with this byte.
const HANDSHAKE: u8 = 0x16;

/// What may be said in clear by another machine. This machine's own programs may say anything:
/// nobody is in between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clear {
    /// Everything, the token too.
    Everything,
    /// What changes nothing: health checks, metrics, status.
    #[default]
    Reading,
    /// Nothing.
    Nothing,
}

/// How the REST port speaks.
#[derive(Clone, Debug, Default)]
pub struct Transport {
    /// The certificate; none: no TLS.
    pub tls: Option<Arc<ServerConfig>>,
    /// What may be said without.
    pub clear: Clear,
}

impl Transport {
    /// No TLS: everything is in clear.
    pub fn clear() -> Self {
        Self { tls: None, clear: Clear::Everything }
    }
}

/// How one connection came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Came {
    pub encrypted: bool,
    pub from: IpAddr,
}

impl Clear {
    /// May this request be answered?
    pub(crate) fn check(self, came: Came, method: &Method) -> Result<(), ActionError> {
        let reads = [Method::GET, Method::HEAD, Method::OPTIONS].contains(method);
        let allowed = match self {
            Clear::Everything => true,
            Clear::Reading => reads,
            Clear::Nothing => false,
        };
        if came.encrypted || allowed || came.from.to_canonical().is_loopback() {
            return Ok(());
        }
        let why = match self {
            Clear::Nothing => {
                "`[rest] tls` is `required` on this member, and the request came in clear"
            }
            _ => {
                "it changes something, and came in clear from another machine, with its token if it had one"
            }
        };
        Err(codes::CLEAR_TEXT.error("the request was not looked at", why))
    }
}

/// A connection, as it turned out to be.
pub(crate) enum Opened {
    /// HTTP.
    Clear(TcpStream),
    /// HTTP within TLS.
    Encrypted(Box<TlsStream<TcpStream>>),
}

/// Looks at the first byte, and shakes hands if that is wished.
pub(crate) async fn open(stream: TcpStream, transport: &Transport) -> io::Result<Opened> {
    let opening = async {
        let mut first = [0];
        // An end without a byte is for HTTP to see.
        let seen = stream.peek(&mut first).await?;
        if seen == 0 || first[0] != HANDSHAKE {
            return Ok(Opened::Clear(stream));
        }
        let Some(tls) = &transport.tls else {
            let why = "TLS is off (`[rest] tls`), and the client began with it";
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        };
        let acceptor = TlsAcceptor::from(tls.clone());
        Ok(Opened::Encrypted(Box::new(acceptor.accept(stream).await?)))
    };
    let late = || io::Error::new(io::ErrorKind::TimedOut, "it did not begin in time");
    tokio::time::timeout(HANDSHAKE_TIME, opening).await.unwrap_or_else(|_| Err(late()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_said_in_clear() {
        let (near, mapped) = ("127.0.1.1".parse().unwrap(), "::ffff:127.0.0.1".parse().unwrap());
        let far: IpAddr = "10.0.0.9".parse().unwrap();
        let allowed = |clear: Clear, encrypted, from, method: Method| {
            clear.check(Came { encrypted, from }, &method).is_ok()
        };
        for clear in [Clear::Everything, Clear::Reading, Clear::Nothing] {
            for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::POST, Method::PATCH]
            {
                for from in [near, mapped] {
                    assert!(allowed(clear, false, from, method.clone()), "{clear:?} {method}");
                }
                assert!(allowed(clear, true, far, method.clone()), "{clear:?} {method}");
                let reads = method != Method::POST && method != Method::PATCH;
                let wanted = match clear {
                    Clear::Everything => true,
                    Clear::Reading => reads,
                    Clear::Nothing => false,
                };
                assert_eq!(
                    allowed(clear, false, far, method.clone()),
                    wanted,
                    "{clear:?} {method}"
                );
            }
        }
        for method in [Method::DELETE, Method::PUT] {
            assert!(!allowed(Clear::Reading, false, far, method));
        }
    }
}
