//! Opening a connection: TCP from our own address of the network, TLS, HTTP/2; each with a
//! deadline.

use crate::rpc::chain;
use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::{ClientConfig, pki_types::ServerName};
use socket2::SockRef;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    net::{TcpSocket, TcpStream, lookup_host},
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// TCP: one round trip. Longer means that the path is no use for failover anyway.
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);
/// TLS: a round trip, and a signature at each side on machines that may be busy.
const TLS_TIMEOUT: Duration = Duration::from_millis(1000);
/// Host names, when paths have them.
const RESOLVE_TIMEOUT: Duration = Duration::from_millis(1000);
/// Data that the peer's kernel has not acknowledged for this long: the path is gone.
const USER_TIMEOUT: Duration = Duration::from_millis(600);
/// An idle connection is probed after this long, so that a vanished peer does not keep it open.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// HTTP/2 flow control: a snapshot of some MiB must not wait for a round trip every 64 KiB.
pub const STREAM_WINDOW: u32 = 1024 * 1024;
/// The same for all calls of a connection together; bounds what a peer can make us hold.
pub const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Head of a request or an answer, bytes. Ours are well below 1 KiB.
pub const HEADERS_MAX: u32 = 8 * 1024;

/// Where to connect to, and how.
#[derive(Clone)]
pub struct Target {
    /// IP address or name.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Our address of the same network.
    pub from: Option<IpAddr>,
    /// Whom the certificate must name.
    pub name: ServerName<'static>,
}

/// An open HTTP/2 connection. Dropping the last handle closes it at once.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
    ended: Arc<Mutex<Option<String>>>,
}

impl Connection {
    /// A handle to send one request with.
    pub fn sender(&self) -> SendRequest<Full<Bytes>> {
        self.sender.clone()
    }

    /// Is it known to be of no use any more?
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed() || self.driver.is_finished()
    }

    /// Why it ended, if it did and said so. More telling than what a single request gets.
    pub fn ended(&self) -> Option<String> {
        self.ended.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// How a peer is noticed that takes what is sent and does nothing with it: it is asked for a sign
/// of life so often while it owes an answer, and given up after so long without one.
pub struct Pings {
    pub every: Duration,
    pub within: Duration,
}

/// Opens a connection.
pub async fn connect(
    target: &Target,
    tls: Arc<ClientConfig>,
    connect_timeout: Duration,
    pings: Option<Pings>,
) -> Result<Connection, String> {
    let address = resolve(target).await?;
    let within = |what: &str, limit: Duration| format!("{what} took over {} ms", limit.as_millis());
    let stream = timeout(connect_timeout, open(address, target.from))
        .await
        .map_err(|_| within("connecting", connect_timeout))?
        .map_err(|e| format!("connecting: {e}"))?;
    let stream = timeout(TLS_TIMEOUT, TlsConnector::from(tls).connect(target.name.clone(), stream))
        .await
        .map_err(|_| within("TLS handshake", TLS_TIMEOUT))?
        .map_err(|e| format!("TLS handshake: {e}"))?;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    if let Some(Pings { every, within }) = pings {
        builder.keep_alive_interval(every).keep_alive_timeout(within);
    }
    let (sender, connection) = builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADERS_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| format!("HTTP/2: {}", chain(&e)))?;
    let ended = Arc::new(Mutex::new(None));
    let told = ended.clone();
    let driver = tokio::spawn(async move {
        let why = match connection.await {
            Ok(()) => "closed by the peer".to_owned(),
            Err(e) => chain(&e),
        };
        *told.lock().unwrap_or_else(|e| e.into_inner()) = Some(why);
    });
    Ok(Connection { sender, driver, ended })
}

async fn resolve(target: &Target) -> Result<SocketAddr, String> {
    if let Ok(ip) = target.host.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, target.port));
    }
    let found = timeout(RESOLVE_TIMEOUT, lookup_host((target.host.as_str(), target.port)))
        .await
        .map_err(|_| format!("resolving `{}` took too long", target.host))?
        .map_err(|e| format!("resolving `{}`: {e}", target.host))?;
    let found: Vec<_> = found.collect();
    // The family of our own address of that network, when we know one.
    let fits = |a: &&SocketAddr| target.from.is_none_or(|from| from.is_ipv4() == a.is_ipv4());
    found
        .iter()
        .find(fits)
        .or(found.first())
        .copied()
        .ok_or_else(|| format!("`{}` has no address", target.host))
}

async fn open(address: SocketAddr, from: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    tune(&SockRef::from(&socket))?;
    if let Some(from) = from.filter(|from| from.is_ipv4() == address.is_ipv4()) {
        match socket.bind(SocketAddr::new(from, 0)) {
            // Behind address translation, or the address is not up: any way is better than none.
            Err(e) if e.kind() == io::ErrorKind::AddrNotAvailable => {}
            bound => bound?,
        }
    }
    socket.connect(address).await
}

/// What both ends set on their sockets.
pub fn tune(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    // So that a lost heartbeat gets more than two tries within `USER_TIMEOUT`.
    socket.set_tcp_thin_linear_timeouts(true)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    socket.set_tcp_keepalive(&keepalive)
}
