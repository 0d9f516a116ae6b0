//! Where the store is, and how fast an election goes.

use sempre_model::{NodeId, Policy};
use std::path::PathBuf;

/// A heartbeat this frequent would keep the disk and the processor busy with nothing else.
const HEARTBEAT_MIN_MS: u64 = 10;

/// A snapshot is made every so many entries: the log stays small, and making one is rare.
pub(crate) const SNAPSHOT_EVERY: u64 = 500;

/// Entries kept after a snapshot, so that a member that was away a moment gets entries, not the
/// whole record.
pub(crate) const LOG_KEEP: u64 = 200;

/// Entries in one call at most; with the limit on a command it bounds a call's size.
pub(crate) const ENTRIES_PER_CALL: u64 = 64;

/// For sending and installing a snapshot: about 1 MB, over any network one would run this on.
pub(crate) const SNAPSHOT_TIMEOUT_MS: u64 = 10_000;

fn snapshots() -> (u64, u64) {
    #[cfg(feature = "simulation")]
    if let Some(machine) = crate::simulation::machine() {
        return machine.snapshots();
    }
    (SNAPSHOT_EVERY, LOG_KEEP)
}

/// How to open the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsensusConfig {
    /// The folder of the store; made if missing.
    pub dir: PathBuf,
    /// This node. Fixed for the life of the store.
    pub node: NodeId,
    /// The leader calls each follower at least this often, ms.
    pub heartbeat_ms: u64,
    /// A follower that hears nothing waits at least this long before it stands for election, ms.
    pub election_min_ms: u64,
    /// And about this long at most, ms.
    pub election_max_ms: u64,
}

impl ConsensusConfig {
    /// The default timings: heartbeat 200 ms, election 500 to 1000 ms.
    pub fn new(dir: impl Into<PathBuf>, node: NodeId) -> Self {
        Self {
            dir: dir.into(),
            node,
            heartbeat_ms: 200,
            election_min_ms: 500,
            election_max_ms: 1000,
        }
    }

    /// The same with the election times of `policy`. Raft's heartbeat is not the policy's: it stays
    /// as it is unless elections are so quick that followers must hear more often.
    pub(crate) fn with_policy(&self, policy: &Policy) -> Self {
        let Policy { election_min_ms, election_max_ms, .. } = *policy;
        let heartbeat_ms = self.heartbeat_ms.min(election_min_ms / 2);
        Self { heartbeat_ms, election_min_ms, election_max_ms, ..self.clone() }
    }

    /// Checks that the timings fit together.
    pub fn validate(&self) -> Result<(), BadConfig> {
        let Self { heartbeat_ms, election_min_ms, election_max_ms, .. } = *self;
        if heartbeat_ms < HEARTBEAT_MIN_MS {
            return Err(BadConfig::Heartbeat { heartbeat_ms });
        }
        if election_min_ms < heartbeat_ms.saturating_mul(2) {
            return Err(BadConfig::ElectionMin { election_min_ms, heartbeat_ms });
        }
        if election_max_ms <= election_min_ms {
            return Err(BadConfig::ElectionMax { election_max_ms, election_min_ms });
        }
        Ok(())
    }

    /// Our timings in Raft's terms.
    ///
    /// openraft 0.9 wakes up every 1.5 heartbeats and sends its heartbeats then, so the interval
    /// given to it is two thirds of ours. A follower of it waits its longest election time (the
    /// leader's lease), then its own random election time, until the next waking: so the two are
    /// chosen to add up to ours.
    pub(crate) fn to_raft(&self) -> openraft::Config {
        let heartbeat = (self.heartbeat_ms * 2 / 3).max(1);
        let lease = ((self.election_max_ms - self.heartbeat_ms) / 2)
            .max(self.election_min_ms / 2 + 1)
            .max(heartbeat + 2);
        let wait = self.election_min_ms.saturating_sub(lease).clamp(heartbeat + 1, lease - 1);
        let (snapshot_every, log_keep) = snapshots();
        openraft::Config {
            cluster_name: "sempre".into(),
            heartbeat_interval: heartbeat,
            election_timeout_min: wait,
            election_timeout_max: lease,
            install_snapshot_timeout: SNAPSHOT_TIMEOUT_MS,
            max_payload_entries: ENTRIES_PER_CALL,
            replication_lag_threshold: snapshot_every * 2,
            snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(snapshot_every),
            max_in_snapshot_log_to_keep: log_keep,
            purge_batch_size: 1,
            enable_tick: true,
            enable_heartbeat: true,
            enable_elect: true,
            ..Default::default()
        }
    }
}

/// Timings that do not fit together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadConfig {
    /// Too frequent.
    #[error("heartbeat_ms is {heartbeat_ms}; at least {HEARTBEAT_MIN_MS} is needed")]
    Heartbeat {
        /// As given.
        heartbeat_ms: u64,
    },
    /// One lost heartbeat would start an election.
    #[error(
        "election_min_ms is {election_min_ms}; with heartbeat_ms {heartbeat_ms} at least {} is \
         needed, or one lost heartbeat starts an election",
        .heartbeat_ms.saturating_mul(2)
    )]
    ElectionMin {
        /// As given.
        election_min_ms: u64,
        /// As given.
        heartbeat_ms: u64,
    },
    /// Candidates would collide.
    #[error(
        "election_max_ms is {election_max_ms}; more than election_min_ms ({election_min_ms}) is \
         needed, or candidates get in each other's way"
    )]
    ElectionMax {
        /// As given.
        election_max_ms: u64,
        /// As given.
        election_min_ms: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(heartbeat_ms: u64, election_min_ms: u64, election_max_ms: u64) -> ConsensusConfig {
        ConsensusConfig {
            heartbeat_ms,
            election_min_ms,
            election_max_ms,
            ..ConsensusConfig::new("x", 1)
        }
    }

    #[test]
    fn what_fits_together_is_taken_by_raft_too() {
        for (heartbeat, min, max) in
            [(200, 500, 1000), (20, 40, 41), (10, 20, 21), (1000, 2000, 2001), (50, 1000, 5000)]
        {
            let ours = config(heartbeat, min, max);
            ours.validate().unwrap();
            let raft = ours.to_raft().validate().unwrap();
            // A follower waits the lease and its own time, until the next waking.
            let (lease, wait) = (raft.election_timeout_max, raft.election_timeout_min);
            assert!(lease + wait >= min, "{heartbeat} {min} {max}");
            assert!(raft.heartbeat_interval * 3 / 2 <= heartbeat);
        }
        let raft = config(200, 500, 1000).to_raft();
        assert!(raft.election_timeout_max * 2 + 200 <= 1000);
    }

    #[test]
    fn every_valid_policy_is_taken() {
        for (heartbeat_ms, election_min_ms, election_max_ms) in
            [(150, 500, 1000), (20, 40, 41), (20, 59_999, 60_000), (5_000, 10_000, 10_001)]
        {
            let detect_ms = heartbeat_ms * 2;
            let policy = Policy {
                heartbeat_ms,
                detect_ms,
                path_detect_ms: detect_ms,
                lease_ttl_ms: heartbeat_ms * 4 + 100,
                election_min_ms,
                election_max_ms,
                ..Policy::default()
            };
            policy.validate().unwrap();
            let ours = ConsensusConfig::new("x", 1).with_policy(&policy);
            ours.validate().unwrap();
            assert!(ours.heartbeat_ms <= 200 && ours.election_min_ms == election_min_ms);
            ours.to_raft().validate().unwrap();
        }
    }

    #[test]
    fn what_does_not_is_refused() {
        assert!(matches!(config(5, 500, 1000).validate(), Err(BadConfig::Heartbeat { .. })));
        assert!(matches!(config(300, 500, 1000).validate(), Err(BadConfig::ElectionMin { .. })));
        assert!(matches!(config(200, 500, 500).validate(), Err(BadConfig::ElectionMax { .. })));
        assert!(config(u64::MAX, 1, 2).validate().is_err());
    }
}
