//! One accepted connection: the handshake, who it is, and its calls.

use super::{
    IsMember,
    guests::{Guest, Guests},
    told_to_stop,
};
use crate::{
    connect::{CONNECTION_WINDOW, HEADERS_MAX, STREAM_WINDOW},
    log_limit::LogLimit,
    names::read_certificate,
    rpc::{
        BODY_MAX, BodyError, Caller, Handler, RpcError, STREAMED, Streamed, StreamedBody, collect,
        is_method,
    },
};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use sempre_model::MemberId;
use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{
    net::TcpStream,
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConnection};

/// From accept to a finished TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// A stranger's connection is closed after this long, whatever it does: joining takes one call.
const STRANGER_LIFE: Duration = Duration::from_secs(60);
/// Largest body from a stranger, bytes: a token, a certificate request, addresses.
const STRANGER_BODY_MAX: usize = 64 * 1024;
/// From the head of a request to the end of its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Calls of one connection at once, as HTTP/2 streams.
const STREAMS_MAX: u32 = 256;
/// Calls of one member being worked on at once, over all its connections: one whose caller gave up
/// is still worked on, and no longer counts as a stream.
const CALLS_PER_MEMBER_MAX: usize = 256;
/// The same for all strangers together.
const CALLS_BY_STRANGERS_MAX: usize = 16;

/// What all connections share.
pub struct Shared {
    pub acceptor: TlsAcceptor,
    pub cluster_id: String,
    pub is_member: IsMember,
    pub handler: Arc<dyn Handler>,
    pub guests: Guests,
    pub callers: Mutex<HashMap<Option<MemberId>, Arc<Semaphore>>>,
    pub refused: LogLimit,
}

impl Shared {
    /// Logs a refusal, if not too many were already.
    pub fn refuse(&self, peer: SocketAddr, why: &str) {
        if let Some(suppressed) = self.refused.admit(Instant::now()) {
            tracing::warn!(%peer, why, suppressed, "refused on the peer port");
        }
    }

    /// The places for calls of this caller. Only names in the cluster, and one for strangers, get
    /// here, so the map stays small.
    fn places(&self, member: Option<&MemberId>) -> Arc<Semaphore> {
        let most = if member.is_some() { CALLS_PER_MEMBER_MAX } else { CALLS_BY_STRANGERS_MAX };
        let mut callers = self.callers.lock().unwrap_or_else(|e| e.into_inner());
        callers.entry(member.cloned()).or_insert_with(|| Arc::new(Semaphore::new(most))).clone()
    }
}

/// Who is at the other end, by its certificate.
#[derive(Clone)]
enum Peer {
    Member { name: MemberId, not_after: i64 },
    Stranger,
}

/// Serves a connection to its end.
pub async fn serve(
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
    stream: TcpStream,
    address: SocketAddr,
    guest: Guest,
) {
    let stream = match timeout(HANDSHAKE_TIMEOUT, shared.acceptor.accept(stream)).await {
        Err(_) => return shared.refuse(address, "no TLS handshake within 2 s"),
        Ok(Err(e)) => return shared.refuse(address, &format!("TLS handshake failed: {e}")),
        Ok(Ok(stream)) => stream,
    };
    let peer = match identify(&shared, stream.get_ref().1) {
        Ok(peer) => peer,
        Err(why) => return shared.refuse(address, &why),
    };
    let (life, _guest) = match &peer {
        // Proven: no longer a guest.
        Peer::Member { .. } => {
            drop(guest);
            (None, None)
        }
        Peer::Stranger => (Some(STRANGER_LIFE), Some(guest)),
    };
    let calls = shared.clone();
    let streamed = match &peer {
        Peer::Member { .. } => shared.handler.streamed(),
        Peer::Stranger => None,
    };
    let service = service_fn(move |request: Request<Incoming>| {
        let (shared, peer, streamed) = (calls.clone(), peer.clone(), streamed.clone());
        async move {
            Ok::<_, Infallible>(match streamed {
                Some(streamed)
                    if request.uri().path().trim_start_matches('/').starts_with(STREAMED) =>
                {
                    stream_to(&*streamed, &shared, peer, address, request).await
                }
                _ => respond(shared, peer, address, request).await,
            })
        }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_MAX)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let expired = async {
        match life {
            Some(life) => sleep(life).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        ended = connection.as_mut() => {
            if let Err(e) = ended {
                tracing::debug!(peer = %address, error = %e, "peer connection ended");
            }
        }
        () = expired => shared.refuse(address, "a stranger stayed longer than 60 s"),
        () = told_to_stop(&mut stopped) => {
            connection.as_mut().graceful_shutdown();
            // Bounded by the listener, which waits a second for all.
            let _ = connection.await;
        }
    }
}

/// The handshake proved that the authority signed the certificate, and that it was valid.
fn identify(shared: &Shared, tls: &ServerConnection) -> Result<Peer, String> {
    let Some(certificate) = tls.peer_certificates().and_then(|chain| chain.first()) else {
        return Ok(Peer::Stranger);
    };
    let facts = read_certificate(certificate).map_err(|e| e.to_string())?;
    if facts.cluster_id != shared.cluster_id {
        return Err(format!("its certificate is for cluster {}", facts.cluster_id));
    }
    let name = facts.member.ok_or("its certificate names no member")?;
    Ok(Peer::Member { name, not_after: facts.not_after })
}

/// A request with a body of any length, and the like answer.
async fn stream_to(
    streamed: &dyn Streamed,
    shared: &Shared,
    peer: Peer,
    address: SocketAddr,
    request: Request<Incoming>,
) -> Response<StreamedBody> {
    match admit(shared, &peer, address, STREAMED) {
        Ok((Caller::Member(name), _)) => streamed.serve(&name, request).await,
        Ok((Caller::Stranger(_), _)) => {
            refusal(RpcError::Refused("only members may ask this".into()))
        }
        Err(error) => refusal(error),
    }
}

fn whole(bytes: Bytes) -> StreamedBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

async fn respond(
    shared: Arc<Shared>,
    peer: Peer,
    address: SocketAddr,
    request: Request<Incoming>,
) -> Response<StreamedBody> {
    match work(&shared, peer, address, request).await {
        Ok(bytes) if bytes.len() <= BODY_MAX => Response::new(whole(bytes)),
        Ok(bytes) => refusal(RpcError::TooLarge(format!(
            "an answer of {} bytes; the most is {BODY_MAX}",
            bytes.len()
        ))),
        Err(error) => refusal(error),
    }
}

fn refusal(error: RpcError) -> Response<StreamedBody> {
    let (status, text) = error.into_parts();
    let mut response = Response::new(whole(Bytes::from(text)));
    *response.status_mut() = status;
    response
}

async fn work(
    shared: &Shared,
    peer: Peer,
    address: SocketAddr,
    request: Request<Incoming>,
) -> Result<Bytes, RpcError> {
    let method = request.uri().path().trim_start_matches('/').to_owned();
    if request.method() != Method::POST || !is_method(&method) {
        return Err(RpcError::BadRequest("calls are POST /<method>".into()));
    }
    let (caller, body_max) = admit(shared, &peer, address, &method)?;
    let places = shared.places(match &caller {
        Caller::Member(name) => Some(name),
        Caller::Stranger(_) => None,
    });
    let place = places
        .try_acquire_owned()
        .map_err(|_| RpcError::Busy("too many calls of this caller are under way".into()))?;
    let body = match timeout(BODY_TIMEOUT, collect(request.into_body(), body_max)).await {
        Ok(Ok(body)) => body,
        Ok(Err(BodyError::TooLarge)) => {
            return Err(RpcError::TooLarge(format!("a request of more than {body_max} bytes")));
        }
        Ok(Err(BodyError::Broken(why))) => return Err(RpcError::BadRequest(why)),
        Err(_) => return Err(RpcError::BadRequest("its body did not arrive within 30 s".into())),
    };
    // A task of its own: HTTP/2 drops this future when the caller gives up, and a handler must not
    // be cut off half-way.
    let handler = shared.handler.clone();
    let handled = tokio::spawn(async move {
        let _place = place;
        handler.handle(caller, &method, body).await
    });
    handled.await.unwrap_or_else(|_| Err(RpcError::Failed("the member had a bug".into())))
}

/// Checks at every call, since a connection may outlive a membership and a certificate.
fn admit(
    shared: &Shared,
    peer: &Peer,
    address: SocketAddr,
    method: &str,
) -> Result<(Caller, usize), RpcError> {
    let refused = |why: String| {
        shared.refuse(address, &why);
        Err(RpcError::Refused(why))
    };
    match peer {
        Peer::Stranger if shared.handler.allows_stranger(method) => {
            Ok((Caller::Stranger(address), STRANGER_BODY_MAX))
        }
        Peer::Stranger => refused(format!("`{method}` needs a member's certificate")),
        Peer::Member { name, not_after } => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            if now.as_secs() > u64::try_from(*not_after).unwrap_or(0) {
                return refused(format!("the certificate of {name} has expired"));
            }
            if !(shared.is_member)(name) {
                return refused(format!("{name} is not a member of this cluster (any more)"));
            }
            Ok((Caller::Member(name.clone()), BODY_MAX))
        }
    }
}
