//! Encryption, up to the packet that says what a client wants.

use super::{Proxy, shown::shown, stream::Stream};
use crate::{
    ClientTls,
    first::{First, Kind},
    session::read_first,
    stats::count,
};
use sempre_wire::pg::ALPN;
use std::{io, time::Duration};
use tokio::{io::AsyncWriteExt, net::TcpStream, time};
use tokio_rustls::{LazyConfigAcceptor, rustls::server::Acceptor};

/// How often a client may ask for encryption before it begins: GSSAPI, then TLS, then neither.
const NEGOTIATIONS_MAX: usize = 3;
/// How long a client may take for a TLS handshake.
const TLS_TIMEOUT: Duration = Duration::from_secs(15);

/// What a client came to.
pub(super) enum Negotiated {
    /// We speak with it. The packet: begin, or cancel.
    Ours(Stream, First, Certificates),
    /// It encrypts with the server; all that passes is bytes.
    Passes(TcpStream, First),
}

/// What the two sides showed each other.
#[derive(Clone, Default)]
pub(crate) struct Certificates {
    /// What the client's password can be bound to: see [`super::shown::shown`].
    pub end_point: Option<Box<[u8]>>,
    /// The name in the client's certificate.
    pub name: Option<Box<str>>,
}

/// Whose TLS a client gets.
enum Offer<'a> {
    None,
    Ours(&'a ClientTls),
    Databases,
}

fn offer(proxy: &Proxy) -> Offer<'_> {
    let table = proxy.shared.table.borrow();
    let limits = &table.limits;
    match &proxy.settings.client_tls {
        Some(tls) if tls.always || (limits.client_tls && !limits.database_tls) => Offer::Ours(tls),
        _ if limits.client_tls => Offer::Databases,
        _ => Offer::None,
    }
}

/// Answers a client until it begins. None: it is gone, or what it said was none of that.
pub(super) async fn negotiate(mut client: TcpStream, proxy: &Proxy) -> Option<Negotiated> {
    for _ in 0..=NEGOTIATIONS_MAX {
        let first = read_first(&mut client, &proxy.shared).await?;
        match (first.kind, offer(proxy)) {
            (Kind::Startup | Kind::Cancel, _) => {
                return Some(Negotiated::Ours(
                    Stream::Plain(client),
                    first,
                    Certificates::default(),
                ));
            }
            (Kind::Ssl | Kind::DirectTls, Offer::Databases) => {
                return Some(Negotiated::Passes(client, first));
            }
            (Kind::Ssl | Kind::DirectTls, Offer::Ours(tls)) => {
                return encrypted(client, &first, tls, proxy).await;
            }
            // Without having asked: a client that is not told by an `S` cannot be told by an `N`.
            (Kind::DirectTls, Offer::None) => break,
            (Kind::Ssl, Offer::None) | (Kind::GssEnc, _) => client.write_all(b"N").await.ok()?,
        }
    }
    count(&proxy.shared.counters.malformed);
    None
}

/// TLS, and what the client says first inside of it.
async fn encrypted(
    mut client: TcpStream,
    first: &First,
    tls: &ClientTls,
    proxy: &Proxy,
) -> Option<Negotiated> {
    let direct = first.kind == Kind::DirectTls;
    let mut acceptor = Acceptor::default();
    if direct {
        // What was read to find out what it is belongs to the handshake.
        acceptor.read_tls(&mut &first.bytes[..]).ok()?;
    } else {
        client.write_all(b"S").await.ok()?;
    }
    let handshake = async {
        let started = LazyConfigAcceptor::new(acceptor, client).await?;
        let (config, end_point) = shown(&tls.config, started.client_hello());
        let stream = started.into_stream(config).await?;
        // As PostgreSQL 17: a client that does not ask must name the protocol, so that nobody can
        // be tricked into speaking another one.
        if direct && stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(io::Error::other("direct TLS without the protocol's name"));
        }
        Ok((stream, end_point))
    };
    let (stream, end_point) = match time::timeout(TLS_TIMEOUT, handshake).await {
        Ok(Ok(done)) => done,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake that failed");
            count(&proxy.shared.counters.malformed);
            return None;
        }
        Err(_) => return None,
    };
    let name = stream.get_ref().1.peer_certificates().and_then(|chain| {
        let vouching = proxy.settings.vouching.as_ref()?;
        Some(vouching.name(chain.first()?)?.into_boxed_str())
    });
    let mut stream = Stream::Tls(Box::new(stream.into()));
    let first = read_first(&mut stream, &proxy.shared).await?;
    matches!(first.kind, Kind::Startup | Kind::Cancel).then_some(Negotiated::Ours(
        stream,
        first,
        Certificates { end_point, name },
    ))
}
