//! How server connections are shared.

use serde::{Deserialize, Serialize};

/// When a client gives its server connection back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolMode {
    /// When it leaves. All of PostgreSQL's session semantics.
    #[default]
    Session,
    /// After each transaction. A session that has state of its own (settings, LISTEN, temporary
    /// tables, statements prepared by SQL, ...) keeps its connection as long as it has it.
    Transaction,
}

impl PoolMode {
    /// Its name, as in settings.
    pub fn as_str(self) -> &'static str {
        match self {
            PoolMode::Session => "session",
            PoolMode::Transaction => "transaction",
        }
    }
}

/// How server connections are shared. A pool is what one user has to one database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolSettings {
    /// When a connection is given back.
    pub mode: PoolMode,
    /// Server connections of one pool, those in use and idle ones together; 0: no limit but the
    /// server's own.
    pub size: usize,
    /// How long a client waits for a connection when all of its pool are in use, ms; 0: no limit.
    /// Waiting for a primary is another thing (`route_hold_timeout_ms`).
    pub query_wait_timeout_ms: u64,
    /// An idle connection is closed after this, ms; 0: never.
    pub server_idle_timeout_ms: u64,
    /// A connection older than this is not used again, ms; 0: never too old.
    pub server_lifetime_ms: u64,
    /// Run on a connection whose session is over before another one gets it; empty: nothing,
    /// and the next client inherits what was set.
    pub server_reset: String,
    /// Transaction pooling: statements that are kept prepared on one server connection; the one
    /// unused for longest is closed. At least 1.
    pub max_prepared_statements: usize,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            mode: PoolMode::Session,
            size: 0,
            query_wait_timeout_ms: 120_000,
            server_idle_timeout_ms: 600_000,
            server_lifetime_ms: 3_600_000,
            server_reset: "DISCARD ALL".into(),
            max_prepared_statements: 200,
        }
    }
}
