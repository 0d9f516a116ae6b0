//! The status of the cluster: what `sempre status`, `/v1/status` and the dashboard show.
//!
//! Its JSON is stable: fields are added, never renamed or removed. Times are ms, sizes bytes,
//! positions text as PostgreSQL shows them.

mod files;
mod member;
mod oddities;
mod repositories;

pub use member::{DatabaseStatus, MemberRole, MemberStatus, PathState, PathStatus};
pub use oddities::Oddity;

use crate::{
    backup::RepositoryStatus,
    snapshot::{AgentView, Snapshot},
};
use sempre_model::{MemberId, Phase, SyncSet, policy::Durability, record::Switchover};
use serde::{Deserialize, Serialize};

/// The cluster, as one member sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The cluster's name; empty before `init`.
    pub cluster: String,
    /// PostgreSQL's system identifier. Text, because JavaScript's numbers are too short for it.
    pub system_identifier: Option<String>,
    /// PostgreSQL's major version.
    pub major_version: Option<u32>,
    /// Who says all this.
    pub answered_by: MemberId,
    /// When, ms since 1970.
    pub at_unix_ms: u64,
    /// The record it is computed from.
    pub record_version: u64,
    /// Raised at every change of primary.
    pub generation: u64,
    /// `forming`, `serving`, `handing over`, `fencing` or `promoting`.
    pub phase: String,
    /// The primary of this generation; none while it is being chosen.
    pub primary: Option<MemberId>,
    /// Can clients write now, as far as is seen from here?
    pub writable: bool,
    /// The primary's lease, if it is seen to hold.
    pub lease: Option<LeaseStatus>,
    /// What commits wait for.
    pub sync: SyncStatus,
    /// Nothing automatic happens.
    pub paused: bool,
    /// The wished change of primary.
    pub switchover: Option<Switchover>,
    /// Raft.
    pub raft: RaftStatus,
    /// Everyone, by name.
    pub members: Vec<MemberStatus>,
    /// Backup repositories, by name.
    #[serde(default)]
    pub repositories: Vec<RepositoryStatus>,
    /// Changes of primary so far, and how long the last one took, ms.
    pub changes_of_primary: u64,
    /// The last measured stall, ms (none: there was none yet).
    pub last_stall_ms: Option<u64>,
    /// The agent that answers.
    pub agent: AgentView,
    /// The reason for anything odd, the most urgent first.
    pub oddities: Vec<Oddity>,
}

/// The primary's lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// Who holds it.
    pub holder: MemberId,
    /// What is left of it, ms.
    pub remaining_ms: u64,
    /// What a renewal gives, ms.
    pub ttl_ms: u64,
}

/// What commits wait for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncStatus {
    /// `quorum`, `sync` or `async`.
    pub durability: Durability,
    /// What a failover relies on.
    pub record: SyncSet,
    /// What the database is to enforce, as far as `record` allows it already.
    pub wanted: SyncSet,
    /// What the primary's database enforces now, if it is seen.
    pub database: Option<SyncSet>,
    /// How many members the set is wished to have (k and spares).
    pub wished: usize,
    /// The k that is wished.
    pub wished_k: usize,
}

/// Raft, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftStatus {
    /// Its leader, if this member follows one.
    pub leader: Option<MemberId>,
    /// Term.
    pub term: u64,
    /// How many vote.
    pub voters: usize,
    /// The newest index applied here.
    pub applied: u64,
    /// Does a majority agree, as far as this member knows?
    pub quorum: bool,
}

/// The status, computed from a snapshot.
pub fn status(snapshot: &Snapshot) -> Status {
    let record = &*snapshot.record;
    let policy = &record.policy;
    let cluster = record.cluster.as_ref();
    let primary_database = record.primary.as_ref().and_then(|primary| snapshot.database(primary));
    let lease = snapshot.lease_holder().map(|(holder, remaining_ms)| LeaseStatus {
        holder: holder.clone(),
        remaining_ms,
        ttl_ms: policy.lease_ttl_ms,
    });
    let mut status = Status {
        cluster: snapshot.cluster_name().to_owned(),
        system_identifier: cluster.and_then(|c| c.system_identifier).map(|id| id.to_string()),
        major_version: cluster.and_then(|c| c.major_version),
        answered_by: snapshot.me.clone(),
        at_unix_ms: snapshot.now_unix_ms,
        record_version: record.version,
        generation: record.generation.0,
        phase: record.phase.name().to_owned(),
        primary: record.primary.clone(),
        writable: lease.is_some()
            && matches!(record.phase, Phase::Serving | Phase::HandingOver { .. })
            && primary_database.is_some_and(member::admits),
        lease,
        sync: SyncStatus {
            durability: policy.durability,
            record: record.sync.clone(),
            wanted: record.sync_wanted.clone(),
            database: primary_database.and_then(|database| database.sync.clone()),
            wished: wished_sync(snapshot),
            wished_k: if policy.durability == Durability::Async { 0 } else { policy.sync_count },
        },
        paused: record.paused,
        switchover: record.switchover.clone(),
        raft: RaftStatus {
            leader: snapshot.raft_leader.clone(),
            term: snapshot.raft.term,
            voters: snapshot.raft.voters.len(),
            applied: snapshot.raft.applied,
            quorum: snapshot.has_quorum(),
        },
        members: record.members.values().map(|m| member::member_status(snapshot, m)).collect(),
        repositories: repositories::repositories(snapshot),
        changes_of_primary: record.history.len() as u64,
        last_stall_ms: record.history.last().map(|entry| entry.stall_ms),
        agent: snapshot.agent.clone(),
        oddities: Vec::new(),
    };
    status.oddities = oddities::oddities(snapshot, &status);
    status
}

/// How many standbys the policy wants in the sync set, no more than there could be at all.
fn wished_sync(snapshot: &Snapshot) -> usize {
    let record = &snapshot.record;
    if record.policy.durability == Durability::Async {
        return 0;
    }
    let eligible = record
        .members
        .values()
        .filter(|member| member.can_sync() && record.primary.as_ref() != Some(&member.name))
        .count();
    (record.policy.sync_count.saturating_add(record.policy.sync_spares)).min(eligible)
}
