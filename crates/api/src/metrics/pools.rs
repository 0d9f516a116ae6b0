//! The pools of server connections, as pgbouncer_exporter would show them.
//!
//! Each has the labels `database`, `user` and `port`. Over there `pgbouncer_stats_*` have the
//! database alone: `sum by (database)` gives the same.

use super::Page;
use crate::snapshot::PoolView;

/// The metrics of pools, and what they mean.
pub const POOLS: [(&str, &str); 12] = [
    ("pgbouncer_pools_client_active_connections", "Clients that wait for no server connection."),
    ("pgbouncer_pools_client_waiting_connections", "Clients that wait for a server connection."),
    ("pgbouncer_pools_server_active_connections", "Server connections that a client has."),
    ("pgbouncer_pools_server_idle_connections", "Server connections that nobody has."),
    ("pgbouncer_pools_client_maxwait_seconds", "How long the first in the queue has waited."),
    ("pgbouncer_stats_sql_transactions_pooled_total", "Transactions."),
    ("pgbouncer_stats_queries_pooled_total", "Queries."),
    ("pgbouncer_stats_received_bytes_total", "Bytes from clients."),
    ("pgbouncer_stats_sent_bytes_total", "Bytes to clients."),
    ("pgbouncer_stats_server_in_transaction_seconds_total", "Time in transactions."),
    ("pgbouncer_stats_queries_duration_seconds_total", "Time in queries."),
    (
        "pgbouncer_stats_client_wait_seconds_total",
        "Time that clients waited for a server connection.",
    ),
];

pub(super) fn write(pools: &[PoolView], page: &mut Page) {
    if pools.is_empty() {
        return;
    }
    for (name, help) in POOLS {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        page.head(name, kind, help);
        for pool in pools {
            let Some((_, value)) = pool.values.iter().find(|(of, _)| *of == name) else { continue };
            let labels =
                [("database", &*pool.database), ("user", &*pool.user), ("port", pool.port)];
            page.sample(name, &labels, value);
        }
    }
}
