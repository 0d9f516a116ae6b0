//! What this member's routers have done, as REST and metrics show it.

use sempre_api::{PoolView, RouteCounters};
use sempre_route::{Mode, PoolInfo, Router};
use std::sync::Arc;

/// Sums over both ports.
pub fn counters(routers: &[Arc<Router>]) -> RouteCounters {
    let mut counters = RouteCounters::default();
    for router in routers {
        count(router, &mut counters);
    }
    counters
}

/// Each pool of each port by itself.
pub fn pools(routers: &[Arc<Router>]) -> Vec<PoolView> {
    let of = |router: &Arc<Router>| {
        let mode = router.mode();
        router.pools().into_iter().map(move |info| pool(mode, &info))
    };
    routers.iter().flat_map(of).collect()
}

fn count(router: &Router, counters: &mut RouteCounters) {
    let stats = router.stats();
    let now = match router.mode() {
        Mode::ReadWrite => &mut counters.read_write_now,
        Mode::ReadOnly => &mut counters.read_only_now,
    };
    *now += stats.open - stats.held.min(stats.open);
    counters.held_now += stats.held;
    counters.accepted_total += stats.total;
    counters.refused_total += stats.refused;
    counters.cut_total += stats.cut;
    counters.split_to_standby_total += stats.split_to_standby;
    counters.split_to_primary_total += stats.split_to_primary;
    counters.split_waited_total += stats.split_waited;
    counters.bytes_to_server_total += stats.bytes_to_server;
    counters.bytes_to_client_total += stats.bytes_to_client;
}

fn pool(mode: Mode, info: &PoolInfo) -> PoolView {
    PoolView {
        port: match mode {
            Mode::ReadWrite => "read_write",
            Mode::ReadOnly => "read_only",
        },
        database: info.database.clone(),
        user: info.user.clone(),
        values: info.metrics().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a pool counts and what the page of metrics knows are two lists of names.
    #[test]
    fn every_number_of_a_pool_is_a_known_metric() {
        let info = PoolInfo { database: "shop".into(), user: "app".into(), ..PoolInfo::default() };
        let view = pool(Mode::ReadOnly, &info);
        assert_eq!((view.port, &*view.database, &*view.user), ("read_only", "shop", "app"));
        let names: Vec<_> = view.values.iter().map(|(name, _)| *name).collect();
        let known: Vec<_> = sempre_api::metrics::POOLS.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, known);
    }
}
