//! Whom the servers let in, and what they asked for: so that the next one need not wait for a
//! server connection.

use super::{LET_IN_FOR, PoolKey, Pools, VARIANTS_MAX, lock};
use crate::proxy::auth::Secret;
use std::sync::Arc;
use tokio::time::Instant;

/// Names and values.
pub(crate) type Parameters = Vec<(Vec<u8>, Vec<u8>)>;

/// How a server wants a user to prove who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Nothing,
    Scram,
    Md5,
}

impl Asked {
    /// What a log-in with this secret was asked for. None: nothing that can be checked here.
    pub fn of(secret: &Secret) -> Option<Self> {
        match secret {
            Secret::None => Some(Asked::Nothing),
            Secret::Scram(_) => Some(Asked::Scram),
            Secret::Md5(_) => Some(Asked::Md5),
            Secret::Clear(_) | Secret::Relayed => None,
        }
    }

    /// The body of the message a server asks with. (The salt is the router's own.)
    pub fn request(self) -> &'static [u8] {
        match self {
            Asked::Nothing => b"\0\0\0\0",
            Asked::Scram => b"\0\0\0\x0aSCRAM-SHA-256\0\0",
            Asked::Md5 => b"\0\0\0\x05\0\0\0\0",
        }
    }
}

/// A log-in that succeeded.
#[derive(Clone)]
pub(super) struct LetIn {
    asked: Asked,
    parameters: Arc<Parameters>,
    at: Instant,
}

impl Pools {
    /// A server let somebody in.
    pub fn was_let_in(&self, key: &PoolKey, asked: Asked, parameters: Parameters) {
        let mut known = lock(&key.pool.let_in);
        if known.len() >= VARIANTS_MAX && !known.contains_key(&key.variant) {
            known.clear();
        }
        let parameters = Arc::new(parameters);
        known.insert(key.variant.clone(), LetIn { asked, parameters, at: Instant::now() });
    }

    /// Everybody is asked again.
    pub fn forget_log_ins(&self) {
        for pool in self.all() {
            lock(&pool.let_in).clear();
        }
    }

    /// Was somebody like this ever let in?
    pub fn knows(&self, key: &PoolKey) -> bool {
        lock(&key.pool.let_in).contains_key(&key.variant)
    }

    /// How the servers let somebody in lately.
    pub fn lets_in(&self, key: &PoolKey) -> Option<(Asked, Arc<Parameters>)> {
        let known = lock(&key.pool.let_in);
        let found = known.get(&key.variant)?;
        // When all places are taken there is no way to ask again.
        let fresh = found.at.elapsed() < LET_IN_FOR || key.pool.places.available_permits() == 0;
        fresh.then(|| (found.asked, found.parameters.clone()))
    }
}
