//! Listening: sockets, connections and their limits.

use super::{
    ACTIONS_MAX, Context, POLLS_MAX, REQUEST_TIME, Shared, Transport, answer, router,
    transport::{Came, Opened, open},
};
use crate::{backend::Backend, codes};
use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinHandle,
};

/// Connections at once. Long polls ([`POLLS_MAX`]) and actions leave most of them for health
/// checks; a member has a few hundred clients at the most.
pub const CONNECTIONS_MAX: usize = 1_024;
/// The longest the head of a request may take, and a connection may stay idle.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// The longest a connection lives. It ends after the request under way, and clients connect
/// again; one that does not read its answer is cut.
const CONNECTION_TIME: Duration = Duration::from_secs(600);
/// How long a connection may still take once it is to end.
const GRACE_TIME: Duration = Duration::from_secs(5);
/// Head of a request, bytes.
const HEAD_MAX: usize = 64 << 10;
/// Pause after a failed accept (no file descriptors left), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the REST server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// An address cannot be listened on.
    #[error("the REST server cannot listen on {address}: {source} ({code}). {next}", next = code.entry().next)]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Its code.
        code: codes::Code,
        /// Why.
        source: io::Error,
    },
    /// No address was given.
    #[error("the REST server has no address to listen on; give the member at least one path")]
    NoAddress,
    /// It was started outside of an async runtime.
    #[error("the REST server needs a running tokio runtime")]
    NoRuntime,
}

/// A running REST server. Dropping it closes its sockets.
#[derive(Debug)]
pub struct ApiServer {
    addresses: Vec<SocketAddr>,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl ApiServer {
    /// Where it listens, with the ports that were really taken.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Stops listening. Requests under way get a moment to end.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        for task in self.tasks.drain(..) {
            // It was aborted, or ended: there is nothing to do about either.
            let _ended = task.await;
        }
        // Each connection holds a receiver; GRACE_TIME bounds the wait.
        self.stop.closed().await;
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Listens on every address and answers from `backend`, in clear.
pub fn serve(listen: Vec<SocketAddr>, backend: Arc<dyn Backend>) -> Result<ApiServer, ApiError> {
    serve_with(listen, backend, Transport::clear())
}

/// Listens on every address and answers from `backend`, until the [`ApiServer`] is dropped.
/// To be called within a tokio runtime. All addresses are bound, or none.
pub fn serve_with(
    listen: Vec<SocketAddr>,
    backend: Arc<dyn Backend>,
    transport: Transport,
) -> Result<ApiServer, ApiError> {
    if listen.is_empty() {
        return Err(ApiError::NoAddress);
    }
    let runtime = tokio::runtime::Handle::try_current().map_err(|_| ApiError::NoRuntime)?;
    let _guard = runtime.enter();
    let listeners = listen
        .into_iter()
        .map(|address| bind(address).map_err(|source| listen_error(address, source)))
        .collect::<Result<Vec<_>, _>>()?;
    let shared: Context = Arc::new(Shared {
        backend,
        polls: Semaphore::new(POLLS_MAX),
        actions: Semaphore::new(ACTIONS_MAX),
    });
    let site = Site { router: router(shared), transport: Arc::new(transport) };
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let stop = watch::Sender::new(false);
    let addresses = listeners.iter().map(|(address, _)| *address).collect();
    let tasks = listeners
        .into_iter()
        .map(|(_, listener)| {
            let accepting =
                accept(listener, site.clone(), Arc::clone(&connections), stop.subscribe());
            runtime.spawn(accepting)
        })
        .collect();
    Ok(ApiServer { addresses, stop, tasks })
}

/// What all connections share.
#[derive(Clone)]
struct Site {
    router: Router,
    transport: Arc<Transport>,
}

fn bind(address: SocketAddr) -> io::Result<(SocketAddr, TcpListener)> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok((listener.local_addr()?, TcpListener::from_std(listener)?))
}

fn listen_error(address: SocketAddr, source: io::Error) -> ApiError {
    let code = match source.kind() {
        io::ErrorKind::AddrInUse => codes::PORT_IN_USE,
        _ => codes::CONFIG_FILE,
    };
    ApiError::Listen { address, code, source }
}

async fn accept(
    listener: TcpListener,
    site: Site,
    connections: Arc<Semaphore>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        // Without a permit the next client waits in the kernel's queue.
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stopping| *stopping) => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let site = site.clone();
                let stop = stop.clone();
                tokio::spawn(async move {
                    begin(stream, peer, site, stop).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a REST connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn begin(stream: TcpStream, peer: SocketAddr, site: Site, mut stop: watch::Receiver<bool>) {
    // Answers are small and written whole.
    let _unsupported = stream.set_nodelay(true);
    let opened = tokio::select! {
        opened = open(stream, &site.transport) => opened,
        _ = stop.wait_for(|stopping| *stopping) => return,
    };
    let came = |encrypted| Came { encrypted, from: peer.ip() };
    match opened {
        Ok(Opened::Clear(stream)) => connection(stream, came(false), site, stop).await,
        Ok(Opened::Encrypted(stream)) => connection(*stream, came(true), site, stop).await,
        Err(error) => tracing::debug!(%peer, %error, "a REST connection did not begin"),
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    came: Came,
    site: Site,
    mut stop: watch::Receiver<bool>,
) {
    let service =
        hyper::service::service_fn(move |request| answer_one(site.clone(), came, request));
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_MAX)
        // Load balancers often close their side at once after the request.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    tokio::select! {
        result = serving.as_mut() => {
            if let Err(error) = result {
                tracing::debug!(%error, "a REST connection ended");
            }
            return;
        }
        () = tokio::time::sleep(CONNECTION_TIME) => {}
        _ = stop.wait_for(|stopping| *stopping) => {}
    }
    serving.as_mut().graceful_shutdown();
    let _late = tokio::time::timeout(GRACE_TIME, serving).await;
}

async fn answer_one(
    site: Site,
    came: Came,
    request: hyper::Request<hyper::body::Incoming>,
) -> Result<answer::Response, Infallible> {
    use hyper::service::Service;
    if let Err(refused) = site.transport.clear.check(came, request.method()) {
        // Anybody can ask, as often as they like: no more than a word for whoever looks.
        tracing::debug!(from = %came.from, path = request.uri().path(), "refused: in clear");
        return Ok(answer::error(&refused));
    }
    let service = hyper_util::service::TowerToHyperService::new(site.router);
    match tokio::time::timeout(REQUEST_TIME, service.call(request)).await {
        Ok(answered) => answered,
        Err(_) => Ok(answer::error(&codes::TIMED_OUT.error(
            "the request was dropped",
            format!("it took more than {} s", REQUEST_TIME.as_secs()),
        ))),
    }
}
