//! Options of client and server sockets.

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use std::{io, net::SocketAddr, time::Duration};
use tokio::net::{TcpListener, TcpStream};

/// A peer that is silent for this long is asked whether it is there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
/// How often it is asked again.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
/// After how many questions without an answer it is gone.
const KEEPALIVE_RETRIES: u32 = 3;
/// Connections the kernel may queue while we are busy: a storm after a failover.
const BACKLOG: i32 = 4096;

/// Small messages at once, dead peers noticed. A lost message of a session, which is small and alone
/// on its way, is sent again every 200 ms at first: with TCP's doubling pauses seven losses in a row,
/// which a bad network gets to, hold a session up for 25 s.
pub(crate) fn tune(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    let set = socket
        .set_tcp_nodelay(true)
        .and_then(|()| socket.set_tcp_thin_linear_timeouts(true))
        .and_then(|()| socket.set_tcp_keepalive(&keepalive));
    if let Err(error) = set {
        // The peer may be gone already; the session will notice by itself.
        tracing::debug!(%error, "socket options not set");
    }
}

/// A listening socket that a restarted router can have at once.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // So that [::] and 0.0.0.0 can be listened on side by side.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}
