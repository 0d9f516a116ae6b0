//! Health checks: the codes that load balancers route by. They are Patroni's.
//!
//! | 200 for | when |
//! |---|---|
//! | `/ /primary /master /read-write` | this member holds the lease of the present generation, and its database lets clients in |
//! | `/leader` | it holds the lease |
//! | `/standby-leader` | never: there are no standby clusters |
//! | `/replica` | a running standby without `no_route`, within `lag=`, of `replication_state=` |
//! | `/sync`, `/quorum`, `/async` | such a standby that is in the sync set (durability sync, quorum), or in none |
//! | `/read-only`, `/read-only-sync`, `/read-only-quorum` | the primary, or as `/replica`, `/sync`, `/quorum` |
//! | `/health` | the database runs |
//! | `/liveness` | the agent's loop runs, or the cluster is paused |
//! | `/readiness` | the lease is held, or a standby streams within `lag=` (`mode=apply`, `write`) |
//!
//! `tag_KEY=VALUE` narrows all but the primary's and the leader's.

use super::{Context, answer, patroni};
use crate::{
    Snapshot,
    units::parse_bytes,
    words::{in_sync_set, replication_state, runs},
};
use answer::{Query, Response};
use axum::extract::{OriginalUri, State};
use sempre_model::{
    Tags,
    observation::{ProcessState, Role},
    policy::Durability,
};

/// The agent's loop may be silent for this long before `/liveness` says so, even with a shorter
/// lease: the probe's answer is a restart, and a slow moment is no reason for one.
const LIVENESS_FLOOR_MS: u64 = 10_000;

/// `GET` and `HEAD` with the status document.
pub(crate) async fn check(
    State(shared): State<Context>,
    OriginalUri(uri): OriginalUri,
) -> Response {
    let snapshot = shared.backend.snapshot();
    let code = code_for(&snapshot, uri.path(), &Query::of(&uri));
    answer::json(code, &patroni::document(&snapshot))
}

/// The code alone.
pub(crate) async fn check_code(
    State(shared): State<Context>,
    OriginalUri(uri): OriginalUri,
) -> Response {
    let snapshot = shared.backend.snapshot();
    answer::code(code_for(&snapshot, uri.path(), &Query::of(&uri)))
}

/// The code of a health check. Pure.
pub(crate) fn code_for(snapshot: &Snapshot, path: &str, query: &Query) -> u16 {
    let primary = snapshot.is_serving_primary();
    let standby = || is_good_standby(snapshot, query);
    let is = |durability| in_sync_set(snapshot, durability);
    let (good, tags_count) = match path {
        "/" | "/primary" | "/master" | "/read-write" => (primary, false),
        "/leader" => (snapshot.is_leader(), false),
        "/standby-leader" | "/standby_leader" => (false, false),
        "/replica" => (standby(), true),
        "/read-only" => (primary || standby(), true),
        "/sync" | "/synchronous" => (is(Durability::Sync) && standby(), true),
        "/quorum" => (is(Durability::Quorum) && standby(), true),
        "/async" | "/asynchronous" => {
            (!is(Durability::Sync) && !is(Durability::Quorum) && standby(), true)
        }
        "/read-only-sync" | "/read-only-synchronous" => {
            (primary || (is(Durability::Sync) && standby()), true)
        }
        "/read-only-quorum" => (primary || (is(Durability::Quorum) && standby()), true),
        "/health" => (runs(snapshot), true),
        "/liveness" => (is_alive(snapshot), false),
        "/readiness" => (is_ready(snapshot, query), false),
        _ => (false, false),
    };
    if good && (!tags_count || tags_match(snapshot, query)) { 200 } else { 503 }
}

fn is_good_standby(snapshot: &Snapshot, query: &Query) -> bool {
    let Some(database) = snapshot.database(&snapshot.me) else { return false };
    let routed = snapshot.own_member().is_some_and(|member| !member.tags.no_route);
    // A limit that cannot be read is no limit, as Patroni has it.
    let max_lag = query.get("lag").and_then(parse_bytes).unwrap_or(u64::MAX);
    let leader_lsn = snapshot.primary_lsn().unwrap_or_default();
    let state_fits = match query.get("replication_state") {
        None | Some("") => true,
        wanted => replication_state(database) == wanted,
    };
    routed
        && database.process == ProcessState::Running
        && database.role == Role::Standby
        && leader_lsn.bytes_since(database.replay_lsn) <= max_lag
        && state_fits
}

fn is_alive(snapshot: &Snapshot) -> bool {
    let is_primary = snapshot
        .database(&snapshot.me)
        .is_some_and(|d| d.role == Role::Primary && d.process == ProcessState::Running);
    let patience = snapshot.record.policy.lease_ttl_ms.max(LIVENESS_FLOOR_MS);
    let patience = if is_primary { patience } else { 2 * patience };
    let age = snapshot.seen.get(&snapshot.me).map(|seen| seen.age_ms);
    // Before its first observation an agent is as old as it runs.
    snapshot.record.paused || age.unwrap_or(snapshot.agent.uptime_ms) <= patience
}

fn is_ready(snapshot: &Snapshot, query: &Query) -> bool {
    if snapshot.is_leader() {
        return true;
    }
    let Some(database) = snapshot.database(&snapshot.me) else { return false };
    let Some(leader_lsn) = snapshot.primary_lsn() else { return false };
    let position =
        if query.get("mode") == Some("write") { database.lsn } else { database.replay_lsn };
    let max_lag =
        query.get("lag").and_then(parse_bytes).unwrap_or(snapshot.record.policy.max_lag_bytes);
    database.process == ProcessState::Running
        && replication_state(database) == Some("streaming")
        && leader_lsn.bytes_since(position) <= max_lag
}

/// The tags of a member under the names that Patroni and sempre have for them.
fn tag(tags: &Tags, zone: Option<&str>, key: &str) -> Option<String> {
    Some(match key {
        "never_primary" | "nofailover" => tags.never_primary.to_string(),
        "priority" | "failover_priority" => tags.priority.to_string(),
        "no_sync" | "nosync" => tags.no_sync.to_string(),
        "no_route" | "noloadbalance" => tags.no_route.to_string(),
        "clone_from" | "clonefrom" => tags.clone_from.to_string(),
        "replicate_from" | "replicatefrom" => tags.replicate_from.as_ref()?.to_string(),
        "zone" => zone?.to_owned(),
        _ => return None,
    })
}

fn tags_match(snapshot: &Snapshot, query: &Query) -> bool {
    query.0.iter().filter_map(|(key, value)| Some((key.strip_prefix("tag_")?, value))).all(
        |(key, value)| {
            snapshot.own_member().is_some_and(|member| {
                tag(&member.tags, member.zone.as_deref(), key).as_ref() == Some(value)
            })
        },
    )
}
