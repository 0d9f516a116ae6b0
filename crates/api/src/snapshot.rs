//! What the agent hands over for each request: plain data, a copy of what it knows at that moment.

use sempre_model::{
    Generation, Lsn, Member, MemberId, NodeId, Observation, Record,
    observation::{Database, PathView, ProcessState, Role},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// What one member knows at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The record, as applied here.
    pub record: Arc<Record>,
    /// Who answers.
    pub me: MemberId,
    /// The Raft leader that this member follows, or itself.
    pub raft_leader: Option<MemberId>,
    /// Raft, as seen here.
    pub raft: RaftView,
    /// The newest observation of each member, its own included.
    pub seen: BTreeMap<MemberId, Seen>,
    /// What this member hears of each other on each path.
    pub paths: BTreeMap<MemberId, Vec<PathView>>,
    /// The agent itself.
    pub agent: AgentView,
    /// The routing part of this agent.
    pub route: RouteCounters,
    /// When the database of this member was started, ms since 1970, if known.
    pub database_started_unix_ms: Option<u64>,
    /// When this member's certificate ends, ms since 1970, if it has one.
    pub certificate_expires_unix_ms: Option<u64>,
    /// Wall clock of this member, ms since 1970 (shown only).
    pub now_unix_ms: u64,
}

/// An observation and its age.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Since it arrived here, ms. Of oneself: since it was made.
    pub age_ms: u64,
    /// The observation.
    pub observation: Observation,
}

/// Raft, as one member sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftView {
    /// Present term.
    pub term: u64,
    /// Who votes.
    pub voters: BTreeSet<NodeId>,
    /// Who only learns.
    pub learners: BTreeSet<NodeId>,
    /// The newest log index applied here.
    pub applied: u64,
    /// The newest log index known here.
    pub last_log: u64,
    /// Since this member last was in contact with a leader that has a quorum (as leader: since a
    /// quorum last answered), ms; none: never since its start.
    pub contact_age_ms: Option<u64>,
}

/// The agent that answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentView {
    /// Its version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// The process id of its guard, if it runs.
    pub guard_pid: Option<u32>,
    /// Since its start, ms.
    pub uptime_ms: u64,
}

/// What one user has to one database through one routed port, in numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PoolView {
    /// `read_write` or `read_only`.
    pub port: &'static str,
    /// The database's name.
    pub database: String,
    /// The user's name.
    pub user: String,
    /// By metric, as [`crate::metrics::POOLS`] names them.
    pub values: Vec<(&'static str, f64)>,
}

/// Counters of the routing part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteCounters {
    /// Sessions connected to the primary now.
    pub read_write_now: u64,
    /// Sessions connected through the read-only port now.
    pub read_only_now: u64,
    /// Connections held now, because there is no primary.
    pub held_now: u64,
    /// Connections accepted since the start.
    pub accepted_total: u64,
    /// Connections that had to be held since the start.
    pub held_total: u64,
    /// Held connections that were given up with an error.
    pub hold_timeouts_total: u64,
    /// Connections refused because too many were held.
    pub refused_total: u64,
    /// Sessions closed because their server was lost or is no longer primary.
    pub cut_total: u64,
    /// Read-only transactions of the read-write port that a standby served.
    pub split_to_standby_total: u64,
    /// Those that the primary served, as no standby fitted.
    pub split_to_primary_total: u64,
    /// Of both, those that waited for a standby.
    pub split_waited_total: u64,
    /// Bytes from clients to servers.
    pub bytes_to_server_total: u64,
    /// Bytes from servers to clients.
    pub bytes_to_client_total: u64,
}

impl Snapshot {
    /// The newest observation of a member.
    pub fn observation(&self, member: &MemberId) -> Option<&Observation> {
        self.seen.get(member).map(|seen| &seen.observation)
    }

    /// The database of a member, as it was last seen.
    pub fn database(&self, member: &MemberId) -> Option<&Database> {
        self.observation(member)?.database.as_ref()
    }

    /// This member's own entry in the record.
    pub fn own_member(&self) -> Option<&Member> {
        self.record.member(&self.me)
    }

    /// What is left of the lease that `member` may hold on the present generation, ms.
    /// None: it holds none.
    pub fn lease_remaining_ms(&self, member: &MemberId) -> Option<u64> {
        let seen = self.seen.get(member)?;
        let lease = seen.observation.lease?;
        let left = lease.remaining_ms.saturating_sub(seen.age_ms);
        let counts = lease.generation == self.record.generation
            && self.record.may_hold_lease(member)
            && left > 0;
        counts.then_some(left)
    }

    /// The primary of the present generation, if its lease is seen to hold.
    pub fn lease_holder(&self) -> Option<(&MemberId, u64)> {
        let primary = self.record.primary.as_ref()?;
        self.lease_remaining_ms(primary).map(|left| (primary, left))
    }

    /// Does this member hold the lease of the present generation?
    pub fn is_leader(&self) -> bool {
        self.lease_remaining_ms(&self.me).is_some()
    }

    /// Is this member the primary, with clients let in? This alone makes `/primary` say 200.
    pub fn is_serving_primary(&self) -> bool {
        self.is_leader()
            && self.database(&self.me).is_some_and(|database| {
                database.process == ProcessState::Running
                    && database.role == Role::Primary
                    && database.admitted
                    && database.generation == self.record.generation
            })
    }

    /// The furthest position of the primary that is known here.
    pub fn primary_lsn(&self) -> Option<Lsn> {
        let primary = self.record.primary.as_ref()?;
        let database = self.database(primary)?;
        (database.role == Role::Primary).then_some(database.lsn)
    }

    /// Is this member silent for longer than the policy allows?
    pub fn is_silent(&self, member: &MemberId) -> bool {
        *member != self.me
            && self.seen.get(member).is_none_or(|seen| seen.age_ms > self.record.policy.detect_ms)
    }

    /// Does Raft have a quorum, as far as this member knows?
    ///
    /// The age is compared with twice the longest election, so that an election in progress is
    /// not shown as a loss.
    pub fn has_quorum(&self) -> bool {
        self.raft_leader.is_some()
            && self
                .raft
                .contact_age_ms
                .is_some_and(|age| age <= 2 * self.record.policy.election_max_ms)
    }

    /// The name of the cluster; empty before it has one.
    pub fn cluster_name(&self) -> &str {
        self.record.cluster.as_ref().map_or("", |cluster| cluster.name.as_str())
    }

    /// The generation of the record.
    pub fn generation(&self) -> Generation {
        self.record.generation
    }
}
