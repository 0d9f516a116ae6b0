//! The record: what the members agree on through Raft. It changes only by applying a
//! [`crate::Command`].

use crate::{
    backup::Backups,
    ids::{Generation, Lsn, MemberId, NodeId, Timeline},
    member::{Member, MemberKind},
    policy::Policy,
    restart::ScheduledRestart,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Newest history entries kept.
pub const HISTORY_MAX: usize = 200;
/// Newest events kept.
pub const EVENTS_MAX: usize = 500;
/// Join tokens that may be open at once.
pub const TOKENS_MAX: usize = 64;

/// The sync set S and k: every acknowledged commit is flushed on at least `k` of `members`.
///
/// This is what a failover relies on. What the database enforces at a given moment may be
/// different, within the bounds that `sempre-decide`'s `sync` module keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncSet {
    /// S, standbys only.
    pub members: BTreeSet<MemberId>,
    /// k, at most `members.len()` (but for `strict`, where it may exceed it: nothing commits).
    pub k: usize,
}

/// Why the primary changed or is changing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The first primary of the cluster.
    Bootstrap,
    /// Its database process ended.
    DatabaseCrashed,
    /// Its database answers no more.
    DatabaseHung,
    /// Its disk is full, read-only or failing.
    DiskFailed,
    /// The member is not heard on any path.
    MemberLost,
    /// Its lease ended without being renewed.
    LeaseExpired,
    /// It has no usable data.
    DataLost,
    /// Planned.
    Switchover,
    /// By hand.
    Manual,
    /// The cluster was re-formed by hand.
    Recover,
}

/// A standby that no longer takes WAL from the old primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fenced {
    /// Who.
    pub member: MemberId,
    /// For which (new) generation.
    pub generation: Generation,
    /// The newest timeline it has.
    pub timeline: Timeline,
    /// Received and flushed, read after replication was stopped.
    pub lsn: Lsn,
    /// The timelines that it came from, each with the position where the next one begins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ancestors: Vec<(Timeline, Lsn)>,
}

impl Fenced {
    /// Up to where it has this timeline: its own, or one that it came from.
    pub fn end_of(&self, timeline: Timeline) -> Option<Lsn> {
        let left = self.ancestors.iter().find(|(ancestor, _)| *ancestor == timeline);
        let end = left.map(|(_, end)| (*end).min(self.lsn));
        end.or((self.timeline == timeline).then_some(self.lsn))
    }

    /// Has it all the WAL up to there, of that very timeline?
    pub fn contains(&self, timeline: Timeline, lsn: Lsn) -> bool {
        lsn == Lsn(0) || self.end_of(timeline).is_some_and(|end| lsn <= end)
    }
}

/// Where the cluster is between two primaries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum Phase {
    /// There has never been a primary.
    #[default]
    Forming,
    /// `record.primary` holds the right to the lease of `record.generation`.
    Serving,
    /// A switchover: the primary drains and stops, of its own generation still.
    HandingOver {
        /// The target.
        to: MemberId,
        /// When it began, ms since 1970 (shown only).
        began_unix_ms: u64,
    },
    /// The generation is raised; standbys are being fenced; nobody is primary.
    Fencing {
        /// The primary of the generation before.
        from: Option<MemberId>,
        /// Why.
        cause: Cause,
        /// The operator's or the switchover's choice.
        target: Option<MemberId>,
        /// The operator accepted that commits may be lost.
        allow_data_loss: bool,
        /// When it began, ms since 1970 (shown only).
        began_unix_ms: u64,
        /// When the old primary was last known to serve, ms since 1970 (for the measured stall).
        served_until_unix_ms: u64,
        /// What was seen, in words.
        evidence: Vec<String>,
    },
    /// `record.primary` is being promoted. Its clients are not let in before `k` of its sync set
    /// have flushed the end of its recovery; until then `record.sync` is the old one.
    Promoting {
        /// The primary of the generation before.
        from: Option<MemberId>,
        /// Why.
        cause: Cause,
        /// Who was fenced, at which position.
        fenced: Vec<Fenced>,
        /// What the new primary enforces from its first moment.
        sync: SyncSet,
        /// When it began, ms since 1970 (shown only).
        began_unix_ms: u64,
        /// When the old primary was last known to serve, ms since 1970.
        served_until_unix_ms: u64,
        /// What was seen, in words.
        evidence: Vec<String>,
    },
}

impl Phase {
    /// A word for it, as shown.
    pub fn name(&self) -> &'static str {
        match self {
            Phase::Forming => "forming",
            Phase::Serving => "serving",
            Phase::HandingOver { .. } => "handing over",
            Phase::Fencing { .. } => "fencing",
            Phase::Promoting { .. } => "promoting",
        }
    }
}

/// What makes this cluster itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// Random, made at `init`.
    pub id: String,
    /// PostgreSQL's, once known. A data directory with another one is refused.
    pub system_identifier: Option<u64>,
    /// PostgreSQL's major version, once known.
    pub major_version: Option<u32>,
    /// The certificate authority of the cluster, PEM.
    pub ca_certificate: String,
    /// Its private key, PEM. Kept by every member, so that any can let a new one in.
    pub ca_key: String,
    /// Passwords of the roles sempre makes for itself.
    pub secrets: Secrets,
}

/// Passwords of the roles sempre makes for itself. Never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secrets {
    /// Role `sempre`: superuser, used by agents.
    pub admin: String,
    /// Role `sempre_replication`.
    pub replication: String,
    /// Bearer token of the REST endpoints that change something.
    pub rest: String,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets(..)")
    }
}

/// A wish to change the primary, perhaps later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switchover {
    /// To whom; without: the best.
    pub to: Option<MemberId>,
    /// Not before, ms since 1970; without: now.
    pub at_unix_ms: Option<u64>,
}

/// The right to join, once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// SHA-256 of the secret, hexadecimal.
    pub hash: String,
    /// ms since 1970.
    pub expires_unix_ms: u64,
    /// Who used it, if used.
    pub used_by: Option<MemberId>,
}

/// One change of primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// The generation it began.
    pub generation: Generation,
    /// The new primary.
    pub primary: MemberId,
    /// The one before.
    pub from: Option<MemberId>,
    /// Why.
    pub cause: Cause,
    /// The new timeline.
    pub timeline: Timeline,
    /// Where it forked from the old one.
    pub lsn: Lsn,
    /// When it was complete, ms since 1970.
    pub at_unix_ms: u64,
    /// How long no primary served, ms, as far as the members saw.
    pub stall_ms: u64,
    /// What was seen, in words.
    pub evidence: Vec<String>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts up.
    pub seq: u64,
    /// ms since 1970.
    pub at_unix_ms: u64,
    /// The rule or command that fired.
    pub rule: String,
    /// In words.
    pub text: String,
}

/// What the members agree on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Counts accepted commands.
    pub version: u64,
    /// None until `init`.
    pub cluster: Option<Cluster>,
    /// The policy.
    pub policy: Policy,
    /// PostgreSQL parameters managed through the record.
    pub parameters: BTreeMap<String, String>,
    /// `pg_hba.conf` lines for clients, if managed through the record.
    #[serde(default)]
    pub hba: Vec<String>,
    /// Everyone.
    pub members: BTreeMap<MemberId, Member>,
    /// The highest Raft node id ever given out.
    pub last_node: NodeId,
    /// Raised at every change of primary.
    pub generation: Generation,
    /// The primary of `generation` (none while fencing).
    pub primary: Option<MemberId>,
    /// Where we are between two primaries.
    pub phase: Phase,
    /// What a failover may rely on.
    pub sync: SyncSet,
    /// What the primary's database is to enforce, as far as `sync` allows it already.
    #[serde(default)]
    pub sync_wanted: SyncSet,
    /// Nothing automatic happens.
    pub paused: bool,
    /// Wished change of primary.
    pub switchover: Option<Switchover>,
    /// Members whose database is to be restarted, and the record version of the wish.
    pub restarts: BTreeMap<MemberId, u64>,
    /// Members whose database is to be restarted at a time.
    #[serde(default)]
    pub scheduled_restarts: BTreeMap<MemberId, ScheduledRestart>,
    /// Members that are to get a fresh copy, and the record version of the wish.
    pub reinits: BTreeMap<MemberId, u64>,
    /// What is known of backups.
    #[serde(default)]
    pub backups: Backups,
    /// Open and used join tokens.
    pub tokens: Vec<JoinToken>,
    /// Changes of primary, oldest first.
    pub history: Vec<HistoryEntry>,
    /// What happened, oldest first.
    pub events: Vec<Event>,
}

impl Record {
    /// A member by name.
    pub fn member(&self, id: &MemberId) -> Option<&Member> {
        self.members.get(id)
    }

    /// Members with a database.
    pub fn data_members(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|m| m.kind == MemberKind::Data)
    }

    /// The last primary whose clients were let in. Its own data hold every acknowledged commit.
    pub fn last_serving(&self) -> Option<&MemberId> {
        self.history.last().map(|entry| &entry.primary)
    }

    /// Is `id` the primary that may hold the lease of this generation now?
    pub fn may_hold_lease(&self, id: &MemberId) -> bool {
        self.primary.as_ref() == Some(id)
            && matches!(
                self.phase,
                Phase::Serving | Phase::HandingOver { .. } | Phase::Promoting { .. }
            )
    }
}
