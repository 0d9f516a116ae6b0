//! A place in a pool: the right to use one server connection.

use super::Pool;
use std::sync::{Arc, atomic::Ordering::Relaxed};
use tokio::sync::OwnedSemaphorePermit;

/// Given back when dropped.
pub(crate) struct Place {
    pool: Arc<Pool>,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    pub(super) fn new(pool: &Arc<Pool>, permit: OwnedSemaphorePermit) -> Self {
        pool.in_use.fetch_add(1, Relaxed);
        Self { pool: pool.clone(), _permit: permit }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pool.in_use.fetch_sub(1, Relaxed);
    }
}
