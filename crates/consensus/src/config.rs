//! Where the store is, and how fast an election goes.

use sempre_model::NodeId;
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

    /// Checks that the timings fit together.
    pub fn validate(&self) -> Result<(), BadConfig> {
        let Self { heartbeat_ms, election_min_ms, election_max_ms, .. } = *self;
        if heartbeat_ms < HEARTBEAT_MIN_MS {
            return Err(BadConfig::Heartbeat { heartbeat_ms });
        }
        if election_min_ms < heartbeat_ms.saturating_mul(2) {
            return Err(BadConfig::ElectionMin { election_min_ms, heartbeat_ms });
        }
        if election_max_ms < election_min_ms.saturating_add(heartbeat_ms) {
            return Err(BadConfig::ElectionMax { election_max_ms, election_min_ms, heartbeat_ms });
        }
        Ok(())
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
        "election_max_ms is {election_max_ms}; at least {} (election_min_ms + heartbeat_ms) is \
         needed, or candidates get in each other's way",
        .election_min_ms.saturating_add(*.heartbeat_ms)
    )]
    ElectionMax {
        /// As given.
        election_max_ms: u64,
        /// As given.
        election_min_ms: u64,
        /// As given.
        heartbeat_ms: u64,
    },
}
