//! Listening for members.
//!
//! Anybody can reach this port. Whoever has not yet shown a member's certificate is bounded: in
//! number (in all and by address), in time, in bytes, and in what it can make us log.

mod connection;
mod guests;

use crate::{connect::tune, identity::Identity, log_limit::LogLimit, rpc::Handler, tls};
use connection::{Shared, serve};
use guests::Guests;
use sempre_model::MemberId;
use socket2::SockRef;
use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    task::JoinSet,
    time::sleep,
};
use tokio_rustls::TlsAcceptor;

/// Connections waiting to be accepted, by the kernel.
const BACKLOG: u32 = 256;
/// An address that is not there yet (a network coming up) is tried again after this long.
const LISTEN_RETRY: Duration = Duration::from_millis(500);
/// After accepting failed (no file descriptors left, usually).
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// Calls under way are given this long at a shutdown.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
/// Open connections in all: members x paths of any sensible cluster, many times over.
const CONNECTIONS_MAX: usize = 1024;

/// Says whether a member's name is still in the cluster. Asked at every call.
pub type IsMember = Arc<dyn Fn(&MemberId) -> bool + Send + Sync>;

/// The peer port cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Somebody else listens there.
    #[error("peer port {address} is in use by another program; stop it or set another peer port")]
    InUse {
        /// Where.
        address: SocketAddr,
    },
    /// Any other reason that will not pass by itself.
    #[error("cannot listen on peer address {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The certificate cannot be used.
    #[error("cannot set up TLS for the peer port: {0}")]
    Tls(String),
}

/// Answers members' calls until it is dropped or shut down.
pub struct PeerServer {
    stop: watch::Sender<bool>,
    listeners: JoinSet<()>,
    bound: Arc<Mutex<Vec<SocketAddr>>>,
}

impl PeerServer {
    /// Listens on all addresses. One that this machine does not have (yet) is tried again until it
    /// is there; one whose port is taken is an error. Must be called within a Tokio runtime.
    pub async fn start(
        addresses: Vec<SocketAddr>,
        identity: Arc<Identity>,
        is_member: IsMember,
        handler: Arc<dyn Handler>,
    ) -> Result<Self, ServerError> {
        let cluster_id = identity.cluster_id().to_owned();
        let tls = tls::server_config(identity).map_err(|e| ServerError::Tls(e.to_string()))?;
        let shared = Arc::new(Shared {
            acceptor: TlsAcceptor::from(Arc::new(tls)),
            cluster_id,
            is_member,
            handler,
            guests: Guests::default(),
            callers: Default::default(),
            refused: LogLimit::default(),
        });
        let mut opened = Vec::new();
        for address in addresses {
            match listen(address) {
                Ok(listener) => opened.push((address, Some(listener))),
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                    return Err(ServerError::InUse { address });
                }
                Err(e) if may_pass(&e) => {
                    tracing::warn!(%address, error = %e, "peer address is not there yet; retrying");
                    opened.push((address, None));
                }
                Err(source) => return Err(ServerError::Listen { address, source }),
            }
        }
        let (stop, stopped) = watch::channel(false);
        let bound = Arc::new(Mutex::new(Vec::new()));
        let mut listeners = JoinSet::new();
        for (address, listener) in opened {
            if let Some(local) = listener.as_ref().and_then(|l| l.local_addr().ok()) {
                lock(&bound).push(local);
            }
            let (shared, stopped, bound) = (shared.clone(), stopped.clone(), bound.clone());
            listeners.spawn(run_listener(address, listener, shared, stopped, bound));
        }
        Ok(Self { stop, listeners, bound })
    }

    /// Where it listens at the moment.
    pub fn local_addresses(&self) -> Vec<SocketAddr> {
        lock(&self.bound).clone()
    }

    /// Accepts no more, gives calls under way a second, and closes everything.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        while self.listeners.join_next().await.is_some() {}
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// Reasons that pass when a network comes up.
fn may_pass(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrNotAvailable
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::NetworkUnreachable
    )
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restarted agent must not wait for old connections to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Shut down, or dropped.
async fn told_to_stop(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

async fn run_listener(
    address: SocketAddr,
    listener: Option<TcpListener>,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
    bound: Arc<Mutex<Vec<SocketAddr>>>,
) {
    let listener = match listener {
        Some(listener) => listener,
        None => tokio::select! {
            () = told_to_stop(&mut stopped) => return,
            listener = keep_trying(address) => {
                lock(&bound).extend(listener.local_addr());
                listener
            }
        },
    };
    let mut connections = JoinSet::new();
    let ours = stopped.clone();
    loop {
        tokio::select! {
                    () = told_to_stop(&mut stopped) => break,
                    Some(_) = connections.join_next() => {}
                    accepted = listener.accept() => match accepted {
                        Ok((stream, peer)) => {
         admit(&mut connections, &shared, &ours, stream, peer);
        },
                        Err(e) => {
                            if shared.refused.admit(Instant::now()).is_some() {
                                tracing::warn!(%address, error = %e, "cannot accept a connection");
                            }
                            sleep(ACCEPT_RETRY).await;
                        }
                    },
                }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(SHUTDOWN_GRACE, all).await;
}

async fn keep_trying(address: SocketAddr) -> TcpListener {
    let mut last = String::new();
    loop {
        sleep(LISTEN_RETRY).await;
        match listen(address) {
            Ok(listener) => {
                tracing::info!(%address, "peer address is there now");
                return listener;
            }
            Err(e) if e.to_string() != last => {
                last = e.to_string();
                tracing::warn!(%address, error = %e, "cannot listen on a peer address; retrying");
            }
            Err(_) => {}
        }
    }
}

fn admit(
    connections: &mut JoinSet<()>,
    shared: &Arc<Shared>,
    stopped: &watch::Receiver<bool>,
    stream: TcpStream,
    peer: SocketAddr,
) {
    let guest = match shared.guests.admit(peer.ip()) {
        Some(guest) if connections.len() < CONNECTIONS_MAX => guest,
        _ => return shared.refuse(peer, "too many connections that have not proven who they are"),
    };
    // A socket that cannot be tuned is gone already.
    if tune(&SockRef::from(&stream)).is_ok() {
        connections.spawn(serve(shared.clone(), stopped.clone(), stream, peer, guest));
    }
}
