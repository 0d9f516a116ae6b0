//! Patroni's words for what sempre knows, shared by its endpoints and its metrics.

use crate::snapshot::Snapshot;
use sempre_model::{
    observation::{Database, ProcessState, Role},
    policy::Durability,
};

/// Does the database of this member run?
pub(crate) fn runs(snapshot: &Snapshot) -> bool {
    snapshot.database(&snapshot.me).is_some_and(|d| d.process == ProcessState::Running)
}

/// Patroni's word for how a standby gets its WAL.
pub(crate) fn replication_state(database: &Database) -> Option<&'static str> {
    (database.role == Role::Standby && database.streaming_from.is_some()).then_some("streaming")
}

/// Patroni's word for what a database does, and the number its metric has for it.
pub(crate) fn state_word(database: Option<&Database>, cloning: bool) -> (&'static str, i32) {
    let Some(database) = database else { return ("stopped", 12) };
    match &database.process {
        ProcessState::Stopped if !database.has_data && cloning => ("creating replica", 4),
        ProcessState::Stopped => ("stopped", 12),
        ProcessState::Crashed => ("crashed", 14),
        ProcessState::Starting => ("starting", 6),
        ProcessState::Running => ("running", 5),
        // It has a process, but nothing can be asked of it.
        ProcessState::Hung => ("unknown", -1),
        ProcessState::Stopping => ("stopping", 11),
        ProcessState::Failing(_) => ("start failed", 8),
    }
}

/// Patroni's word for the role of a database.
pub(crate) fn role_word(database: Option<&Database>) -> &'static str {
    match database {
        Some(database) if database.role == Role::Primary => "primary",
        Some(database) if database.has_data || database.role == Role::Standby => "replica",
        _ => "uninitialized",
    }
}

/// When a majority was last known to agree, seconds since 1970; 0: never.
pub(crate) fn dcs_last_seen(snapshot: &Snapshot) -> u64 {
    snapshot.raft.contact_age_ms.map_or(0, |age| snapshot.now_unix_ms.saturating_sub(age) / 1_000)
}

/// In the sync set of a cluster with this durability?
pub(crate) fn in_sync_set(snapshot: &Snapshot, durability: Durability) -> bool {
    let standby = snapshot.database(&snapshot.me).is_some_and(|d| d.role == Role::Standby);
    standby
        && snapshot.record.policy.durability == durability
        && snapshot.record.sync.members.contains(&snapshot.me)
}
