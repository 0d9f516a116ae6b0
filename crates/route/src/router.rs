//! The router: listens, and runs a session for every client.

use crate::{
    PoolInfo, RouteStats, Style, Table, Verifier,
    gate::Gate,
    hold::Shared,
    proxy::{self, Proxy},
    session,
    sessions::Sessions,
    socket,
    stats::{Counters, Gauge, count},
};
use sempre_model::MemberId;
use sempre_wire::pg::{ErrorResponse, sqlstate};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    task::JoinSet,
};

/// Client connections of one router, held ones included. Each has two file descriptors.
const CONNECTIONS_MAX: u32 = 30_000;
/// How long to leave clients waiting in the kernel's queue after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long sessions may take to say goodbye.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);

/// What a port is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Leads to the primary.
    ReadWrite,
    /// Spreads over standbys.
    ReadOnly,
}

/// Why a router does not start.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address} for clients: {source}; is another program using the port?")]
    Listen {
        /// Which one.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// Nothing to listen on.
    #[error("no address to listen on for clients; name at least one")]
    NoAddress,
}

/// A running router. Dropping it ends it at once; [`Router::shutdown`] tells the clients first.
pub struct Router {
    mode: Mode,
    counters: Arc<Counters>,
    sessions: Arc<Sessions>,
    addresses: Vec<SocketAddr>,
    closing: watch::Sender<bool>,
    room: Arc<Semaphore>,
    proxy: Option<Arc<Proxy>>,
    /// Listeners, and the one that obeys tables. Aborted when dropped.
    tasks: JoinSet<()>,
}

impl Router {
    /// Listens on all of `listen` and begins to lead clients. Call it inside a tokio runtime.
    pub fn start(
        listen: Vec<SocketAddr>,
        mode: Mode,
        table: watch::Receiver<Arc<Table>>,
        verifier: Arc<dyn Verifier>,
    ) -> Result<Router, RouteError> {
        Self::start_in(Style::Pass, listen, mode, table, verifier)
    }

    /// The same in a certain style.
    pub fn start_in(
        style: Style,
        listen: Vec<SocketAddr>,
        mode: Mode,
        table: watch::Receiver<Arc<Table>>,
        verifier: Arc<dyn Verifier>,
    ) -> Result<Router, RouteError> {
        if listen.is_empty() {
            return Err(RouteError::NoAddress);
        }
        let mut listeners = Vec::with_capacity(listen.len());
        for address in listen {
            let failed = |source| RouteError::Listen { address, source };
            listeners.push(socket::listen(address).map_err(failed)?);
        }
        let addresses = listeners.iter().filter_map(|l| l.local_addr().ok()).collect();
        let (closing, closing_seen) = watch::channel(false);
        let shared = Arc::new(Shared {
            mode,
            table: table.clone(),
            gate: Gate::start(verifier.clone()),
            sessions: Arc::new(Sessions::new(table.borrow().clone())),
            counters: Arc::default(),
            closing: closing_seen,
        });
        let proxy = match style {
            Style::Pass => None,
            Style::Proxy(settings) => Some(Arc::new(Proxy::new(shared.clone(), settings))),
        };
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX as usize));
        let mut tasks = JoinSet::new();
        if let Some(proxy) = &proxy {
            for pools in proxy.all_pools() {
                tasks.spawn(pools.clone().keep());
            }
            tasks.spawn(proxy::Campaigns::keep(proxy.clone()));
            if mode == Mode::ReadWrite {
                verifier.warmed(proxy.campaigns.done());
            }
        }
        tasks.spawn(obey(table, shared.sessions.clone(), proxy.clone()));
        for listener in listeners {
            tasks.spawn(accept(listener, shared.clone(), proxy.clone(), room.clone()));
        }
        let (counters, sessions) = (shared.counters.clone(), shared.sessions.clone());
        Ok(Router { mode, counters, sessions, addresses, closing, room, proxy, tasks })
    }

    /// Where it listens (with the real port where 0 was asked for).
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What it is for.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What it counted.
    pub fn stats(&self) -> RouteStats {
        self.counters.read()
    }

    /// For which standby, the target of a switchover, every session is warmed up that will be.
    /// It changes when that is done, and when it is of no use any more.
    pub fn warmed(&self) -> Option<watch::Receiver<Option<MemberId>>> {
        let carries = |proxy: &&Arc<Proxy>| proxy.shared.mode == Mode::ReadWrite;
        self.proxy.as_ref().filter(carries).map(|proxy| proxy.campaigns.done())
    }

    /// Its pools, where it carries sessions.
    pub fn pools(&self) -> Vec<PoolInfo> {
        self.proxy.as_ref().map(|proxy| proxy.pools.infos()).unwrap_or_default()
    }

    /// Stops listening, ends every session with a FATAL message where one can be said, and waits
    /// for them to be gone (a few seconds at most).
    pub async fn shutdown(mut self) {
        self.tasks.shutdown().await;
        self.end();
        let gone = self.room.acquire_many(CONNECTIONS_MAX);
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, gone).await.is_err() {
            tracing::warn!(open = self.stats().open, "clients did not leave in time");
        }
    }

    fn end(&self) {
        self.closing.send_replace(true);
        self.sessions.close();
        if let Some(proxy) = &self.proxy {
            proxy.tidy();
        }
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.end();
    }
}

async fn obey(
    mut table: watch::Receiver<Arc<Table>>,
    sessions: Arc<Sessions>,
    proxy: Option<Arc<Proxy>>,
) {
    loop {
        let newest = table.borrow_and_update().clone();
        sessions.obey(newest);
        if let Some(proxy) = &proxy {
            // Idle connections that were cut are closed at once: a primary that hands over waits
            // until they are gone.
            proxy.tidy();
        }
        if table.changed().await.is_err() {
            // The source is gone. No news is no reason to cut anyone.
            return;
        }
    }
}

async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    proxy: Option<Arc<Proxy>>,
    room: Arc<Semaphore>,
) {
    loop {
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                // Out of file descriptors, mostly: sessions that end make room again.
                tracing::warn!(%error, "cannot accept a client; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        count(&shared.counters.total);
        let Ok(place) = room.clone().try_acquire_owned() else {
            count(&shared.counters.refused);
            let error = ErrorResponse::fatal(
                sqlstate::TOO_MANY_CONNECTIONS,
                "too many connections to this router",
                format!("{CONNECTIONS_MAX} are open."),
                "Use a connection pool, or more routers.",
            );
            // Not worth waiting for: the kernel's buffer is empty and takes it.
            let _ = client.try_write(&error.encode());
            continue;
        };
        socket::tune(&client);
        let (shared, proxy) = (shared.clone(), proxy.clone());
        tokio::spawn(async move {
            let open = Gauge::up(&shared.counters.open);
            match proxy {
                Some(proxy) => proxy::run(client, &proxy).await,
                None => session::run(client, None, &shared).await,
            }
            drop((open, place));
        });
    }
}
