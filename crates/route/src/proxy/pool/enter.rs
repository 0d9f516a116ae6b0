//! The way into a pool: first come, first served, within a time limit, and not while it is paused.

use super::{Place, PoolKey, Pools, lock};
use crate::hold::gone;
use sempre_wire::pg::{ErrorResponse, sqlstate};
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::{
    net::TcpStream,
    time::{self, Instant},
};

/// Why a client gets no place.
pub(crate) enum NotEntered {
    ClientGone,
    /// It waited too long.
    TimedOut,
}

impl NotEntered {
    /// What the client is told, as PgBouncer tells it; none: it is gone.
    pub fn error(&self) -> Option<ErrorResponse> {
        match self {
            NotEntered::ClientGone => None,
            NotEntered::TimedOut => Some(ErrorResponse::fatal(
                sqlstate::PROTOCOL_VIOLATION,
                "query_wait_timeout",
                "All server connections of this user and database are in use, and none became free in time.",
                "Connect again, or let the pool be larger.",
            )),
        }
    }
}

/// A client in the queue.
struct Waiting<'a> {
    key: &'a PoolKey,
    number: u64,
    since: Instant,
}

impl<'a> Waiting<'a> {
    fn new(pools: &Pools, key: &'a PoolKey) -> Self {
        let (number, since) = (pools.number(), Instant::now());
        lock(&key.pool.waiting).insert(number, since);
        Self { key, number, since }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        lock(&self.key.pool.waiting).remove(&self.number);
        let waited = self.since.elapsed().as_micros() as u64;
        self.key.pool.counts.wait_us.fetch_add(waited, Relaxed);
    }
}

impl Pools {
    /// A place, if there is one at once.
    pub fn try_enter(&self, key: &PoolKey) -> Option<Place> {
        if self.paused.borrow().is(&key.pool.database) {
            return None;
        }
        let permit = key.pool.places.clone().try_acquire_owned().ok()?;
        Some(Place::new(&key.pool, permit))
    }

    /// A place, as soon as there is one.
    pub async fn enter(&self, key: &PoolKey, client: &TcpStream) -> Result<Place, NotEntered> {
        if let Some(place) = self.try_enter(key) {
            return Ok(place);
        }
        let _waiting = Waiting::new(self, key);
        let mut paused = self.paused.subscribe();
        let mut resumed = async || {
            let running = paused.wait_for(|paused| !paused.is(&key.pool.database));
            tokio::select! {
                _ = running => Ok(()),
                () = gone(client) => Err(NotEntered::ClientGone),
            }
        };
        loop {
            // The time that it is paused is not the pool's fault.
            resumed().await?;
            let limit = match self.settings.query_wait_timeout_ms {
                0 => None,
                limit => Some(Instant::now() + Duration::from_millis(limit)),
            };
            let timed_out = async {
                match limit {
                    Some(limit) => time::sleep_until(limit).await,
                    None => std::future::pending().await,
                }
            };
            let permit = tokio::select! {
                permit = Arc::clone(&key.pool.places).acquire_owned() => permit,
                () = gone(client) => return Err(NotEntered::ClientGone),
                () = timed_out => return Err(NotEntered::TimedOut),
            };
            // It is never closed.
            let Ok(permit) = permit else { return Err(NotEntered::ClientGone) };
            if !self.paused.borrow().is(&key.pool.database) {
                return Ok(Place::new(&key.pool, permit));
            }
        }
    }
}
