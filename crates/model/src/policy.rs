//! What the operator decides for the whole cluster. Every key can be changed at run time with
//! `sempre config set`; the whole is validated before it is accepted.

use serde::{Deserialize, Serialize};

/// What a commit waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Any `sync_count` of the sync set (`ANY k (...)`).
    #[default]
    Quorum,
    /// The first `sync_count` of the sync set by priority (`FIRST k (...)`).
    Sync,
    /// The primary's own disk alone. A failover loses what was not yet replicated, and only a
    /// standby within `max_lag_bytes` is promoted.
    Async,
}

/// What happens when the database process dies while its member lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnCrash {
    /// Whichever is estimated to be faster.
    #[default]
    Auto,
    /// Start it again on the same member.
    Restart,
    /// Promote a standby.
    Failover,
}

/// The policy of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// What a commit waits for.
    pub durability: Durability,
    /// k: how many standbys must have flushed a commit before it is acknowledged.
    pub sync_count: usize,
    /// How many standbys more than k the sync set holds, so that losing one stalls nothing.
    pub sync_spares: usize,
    /// Keep waiting for k standbys even when fewer are left (writes stop), instead of going on
    /// with fewer.
    pub strict: bool,
    /// Async durability: the most WAL, in bytes, an automatic failover may lose.
    pub max_lag_bytes: u64,
    /// Interval of heartbeats on every path, ms.
    pub heartbeat_ms: u64,
    /// A member is missed when it was silent on all paths for this long, ms.
    pub detect_ms: u64,
    /// A path is taken as lost when it was silent for this long, ms.
    pub path_detect_ms: u64,
    /// How long one renewal lets the primary serve, ms.
    pub lease_ttl_ms: u64,
    /// How much before the end of the lease the guard begins to kill the database, ms.
    pub lease_margin_ms: u64,
    /// The largest relative drift of two clocks' rates that is allowed for, parts per million.
    pub clock_drift_ppm: u64,
    /// Raft: shortest election time-out, ms.
    pub election_min_ms: u64,
    /// Raft: longest election time-out, ms.
    pub election_max_ms: u64,
    /// A database that answers no liveness query for this long is hung, ms.
    pub hang_ms: u64,
    /// A synchronous standby that is gone or silent for this long leaves the sync set, ms.
    pub sync_timeout_ms: u64,
    /// After a start of everything, how long the last primary is waited for, ms.
    pub startup_grace_ms: u64,
    /// Promote as soon as the sync set is fenced, without waiting for the old lease to end.
    /// The old primary can then no longer commit, but may serve stale reads until its lease ends.
    pub fast_promotion: bool,
    /// What happens when only the database process dies.
    pub on_crash: OnCrash,
    /// Switchover: how long sessions may finish what they do before they are closed, ms.
    pub drain_timeout_ms: u64,
    /// Switchover: how long sessions may take to log in to the target ahead of it, ms; 0: they do
    /// not.
    pub switchover_warm_up_ms: u64,
    /// Switchover: how far behind, in bytes, the target may be.
    pub switchover_max_lag_bytes: u64,
    /// Read-only routing: how far behind, in bytes, a standby may be.
    pub route_max_lag_bytes: u64,
    /// Read-only routing: go to the primary when no standby fits.
    pub route_read_only_fallback: bool,
    /// Read-only routing: while no primary is known, go on to standbys, although nobody can say
    /// how far behind they are.
    pub route_stale_reads: bool,
    /// Routing: how many connections are held while there is no primary.
    pub route_hold_max: usize,
    /// Routing: how long a connection is held, ms.
    pub route_hold_timeout_ms: u64,
    /// Routing: offer TLS to clients of a database whose certificate is the cluster's own.
    pub client_tls: bool,
    /// The most WAL, in bytes, that a replication slot may keep back (`max_slot_wal_keep_size`);
    /// 0: no limit.
    pub slot_max_wal_bytes: u64,
    /// Standbys keep copies of the primary's logical replication slots (before PostgreSQL 17,
    /// whose servers do it by themselves).
    pub logical_slots: bool,
    /// Where fewer standbys are left than a commit waits for, it waits for repositories in their
    /// place: what they have is not lost with every database.
    pub archive_in_sync_set: bool,
    /// When no standby is left, a member without data restores itself from a repository of the sync
    /// set, and becomes primary.
    pub recover_from_backup: bool,
    /// How long the last primary is waited for before that, ms.
    pub recover_from_backup_after_ms: u64,
    /// A base backup is made so often in each repository, ms; 0: only when asked for.
    pub backup_interval_ms: u64,
    /// The most that a base backup reads, bytes a second; 0: no limit.
    pub backup_max_bytes_per_s: u64,
    /// No base backup is made of a database with pages whose checksums are wrong.
    pub backup_refuse_wrong_pages: bool,
    /// The newest backups that are kept.
    pub backup_keep_last: u32,
    /// Of so many hours the newest backup is kept.
    pub backup_keep_hourly: u32,
    /// Of so many days.
    pub backup_keep_daily: u32,
    /// Of so many weeks.
    pub backup_keep_weekly: u32,
    /// Of so many months.
    pub backup_keep_monthly: u32,
    /// Of so many years.
    pub backup_keep_yearly: u32,
    /// Every moment within this time can be restored, ms.
    pub backup_window_ms: u64,
    /// The most that may be lost with all members, ms of commits; 0: no target.
    pub backup_rpo_ms: u64,
    /// How long a restore may take, ms, as drills measure it; 0: no target.
    pub backup_rto_ms: u64,
    /// A restore from each repository is tried so often, ms; 0: only when asked for.
    pub drill_interval_ms: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            durability: Durability::Quorum,
            sync_count: 1,
            sync_spares: 1,
            strict: false,
            max_lag_bytes: 1 << 20,
            heartbeat_ms: 150,
            detect_ms: 500,
            path_detect_ms: 300,
            lease_ttl_ms: 2_000,
            lease_margin_ms: 100,
            clock_drift_ppm: 1_000,
            election_min_ms: 500,
            election_max_ms: 1_000,
            hang_ms: 2_000,
            sync_timeout_ms: 1_000,
            startup_grace_ms: 10_000,
            fast_promotion: false,
            on_crash: OnCrash::Auto,
            drain_timeout_ms: 1_000,
            switchover_warm_up_ms: 5_000,
            switchover_max_lag_bytes: 16 << 20,
            route_max_lag_bytes: 16 << 20,
            route_read_only_fallback: true,
            route_stale_reads: true,
            route_hold_max: 10_000,
            route_hold_timeout_ms: 30_000,
            client_tls: false,
            slot_max_wal_bytes: 16 << 30,
            logical_slots: true,
            archive_in_sync_set: false,
            recover_from_backup: false,
            recover_from_backup_after_ms: 10_000,
            backup_interval_ms: 0,
            backup_max_bytes_per_s: 0,
            backup_refuse_wrong_pages: false,
            backup_keep_last: 0,
            backup_keep_hourly: 0,
            backup_keep_daily: 0,
            backup_keep_weekly: 0,
            backup_keep_monthly: 0,
            backup_keep_yearly: 0,
            backup_window_ms: 0,
            backup_rpo_ms: 0,
            backup_rto_ms: 0,
            drill_interval_ms: 0,
        }
    }
}

/// Why a policy is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum PolicyError {
    /// No such key.
    #[error("there is no policy key `{key}`{}", nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    UnknownKey {
        /// What was given.
        key: String,
        /// The most similar key, if one is similar.
        nearest: Option<String>,
    },
    /// The value does not fit the key.
    #[error("`{value}` does not fit policy key `{key}`: {reason}")]
    BadValue {
        /// The key.
        key: String,
        /// What was given.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Values that are fine alone but not together.
    #[error("{0}")]
    Contradiction(String),
}

impl Policy {
    /// Checks that the values fit together. Every change goes through here as a whole.
    pub fn validate(&self) -> Result<(), PolicyError> {
        let rules: [(bool, String); 13] = [
            (self.heartbeat_ms >= 20, "heartbeat_ms must be at least 20".into()),
            (
                self.detect_ms >= 2 * self.heartbeat_ms,
                format!(
                    "detect_ms ({}) must be at least two heartbeats (2 x heartbeat_ms = {}), or one lost message is a failure",
                    self.detect_ms,
                    2 * self.heartbeat_ms
                ),
            ),
            (
                self.path_detect_ms >= 2 * self.heartbeat_ms,
                format!(
                    "path_detect_ms ({}) must be at least two heartbeats (2 x heartbeat_ms = {})",
                    self.path_detect_ms,
                    2 * self.heartbeat_ms
                ),
            ),
            (
                self.lease_ttl_ms >= 4 * self.heartbeat_ms + self.lease_margin_ms,
                format!(
                    "lease_ttl_ms ({}) must be at least four heartbeats plus the margin (4 x heartbeat_ms + lease_margin_ms = {}), or lost renewals stop the primary",
                    self.lease_ttl_ms,
                    4 * self.heartbeat_ms + self.lease_margin_ms
                ),
            ),
            (self.lease_ttl_ms <= 300_000, "lease_ttl_ms must be at most 300000 (5 minutes)".into()),
            (self.lease_margin_ms >= 20, "lease_margin_ms must be at least 20".into()),
            (
                self.election_min_ms >= 2 * self.heartbeat_ms,
                format!(
                    "election_min_ms ({}) must be at least two heartbeats (2 x heartbeat_ms = {})",
                    self.election_min_ms,
                    2 * self.heartbeat_ms
                ),
            ),
            (
                self.election_max_ms > self.election_min_ms,
                format!(
                    "election_max_ms ({}) must be more than election_min_ms ({})",
                    self.election_max_ms, self.election_min_ms
                ),
            ),
            (self.election_max_ms <= 60_000, "election_max_ms must be at most 60000 (1 minute)".into()),
            (self.clock_drift_ppm <= 100_000, "clock_drift_ppm must be at most 100000 (10 %)".into()),
            (self.hang_ms >= 500, "hang_ms must be at least 500".into()),
            (
                self.durability == Durability::Async || self.sync_count >= 1,
                "sync_count must be at least 1 unless durability is async".into(),
            ),
            (
                !(self.fast_promotion && self.durability != Durability::Quorum),
                "fast_promotion needs durability quorum: without it the old primary could still acknowledge commits".into(),
            ),
        ];
        match rules.into_iter().find(|(holds, _)| !holds) {
            None => Ok(()),
            Some((_, why)) => Err(PolicyError::Contradiction(why)),
        }
    }

    /// A lease as the voters count it: the term plus what two clocks may drift apart meanwhile.
    pub fn lease_as_voter_ms(&self, ttl_ms: u64) -> u64 {
        ttl_ms + ttl_ms * self.clock_drift_ppm / 1_000_000 + 1
    }
}

/// The known key most like `key`, if one is like it at all.
pub fn nearest<'a>(key: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    known
        .into_iter()
        .map(|k| (strsim::jaro_winkler(key, k), k))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, k)| k.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_policy_is_valid() {
        assert_eq!(Policy::default().validate(), Ok(()));
    }

    #[test]
    fn times_that_do_not_fit_together_are_refused() {
        for (change, word) in [
            (Policy { detect_ms: 150, ..Policy::default() }, "detect_ms"),
            (Policy { lease_ttl_ms: 450, ..Policy::default() }, "lease_ttl_ms"),
            (Policy { election_max_ms: 500, ..Policy::default() }, "election_max_ms"),
            (
                Policy { fast_promotion: true, durability: Durability::Async, ..Policy::default() },
                "fast_promotion",
            ),
        ] {
            let error = change.validate().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn the_nearest_key_is_named() {
        assert_eq!(
            nearest("lease_tll_ms", ["lease_ttl_ms", "strict"]),
            Some("lease_ttl_ms".into())
        );
        assert_eq!(nearest("zzz", ["lease_ttl_ms", "strict"]), None);
    }
}
