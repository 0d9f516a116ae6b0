//! What a member says of itself and of those it hears, with each heartbeat.

use crate::{
    backup::{ArchiveView, BackupProgress},
    ids::{Generation, Lsn, MemberId, NodeId, Timeline},
    record::{Fenced, SyncSet},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What the database process does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessState {
    /// Not running, and nothing is being done about it.
    #[default]
    Stopped,
    /// It ended without having been asked to.
    Crashed,
    /// Started, does not answer yet.
    Starting,
    /// Answers.
    Running,
    /// Runs, but does not answer in time.
    Hung,
    /// Being stopped.
    Stopping,
    /// It cannot be started; why, in words (with PostgreSQL's own log lines).
    Failing(String),
}

/// What the database is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Not known: it does not answer.
    #[default]
    Unknown,
    /// Out of recovery.
    Primary,
    /// In recovery.
    Standby,
}

/// What the disk under the data directory does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskState {
    /// A small write and fsync came back in time.
    #[default]
    Healthy,
    /// It did not come back in time.
    Stalled,
    /// No space.
    Full,
    /// Not writable, or an error; in words.
    Failing(String),
}

/// A standby, as its upstream's walsender sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Downstream {
    /// `streaming`, `catchup`, `startup`, `backup`.
    pub state: String,
    /// Flushed there.
    pub flush_lsn: Lsn,
    /// Replayed there.
    pub replay_lsn: Lsn,
    /// `sync`, `quorum`, `potential`, `async`.
    pub sync_state: String,
    /// Since its last reply, ms.
    pub reply_age_ms: u64,
    /// From which address it comes.
    pub client_addr: Option<String>,
}

/// What the database says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    /// Its process.
    pub process: ProcessState,
    /// Its role.
    pub role: Role,
    /// Does the data directory hold a usable cluster?
    pub has_data: bool,
    /// Of the control file.
    pub system_identifier: Option<u64>,
    /// `server_version_num`, e.g. 150018.
    pub version_num: Option<u32>,
    /// Its timeline.
    pub timeline: Timeline,
    /// Primary: flushed; standby: received and flushed (or replayed, if that is further).
    pub lsn: Lsn,
    /// Standby: replayed.
    pub replay_lsn: Lsn,
    /// WAL to replay if it crashed now, bytes.
    pub redo_bytes: u64,
    /// Standby: from whom it streams.
    pub streaming_from: Option<MemberId>,
    /// Standby: the upstream's address in use.
    pub sender_host: Option<String>,
    /// Standby: since the last message from upstream, ms.
    pub receiver_age_ms: Option<u64>,
    /// Standbys attached here.
    pub downstreams: BTreeMap<MemberId, Downstream>,
    /// Primary: what it enforces now.
    pub sync: Option<SyncSet>,
    /// Primary: flush position sampled after `sync` took effect.
    pub sync_since_lsn: Lsn,
    /// Primary: for which generation it was started or promoted.
    pub generation: Generation,
    /// Primary: clients are let in.
    pub admitted: bool,
    /// Primary: end of WAL that k of S must have flushed before clients are let in.
    pub recovered_lsn: Lsn,
    /// Of a primary that was shut down cleanly: where its last checkpoint is. Every commit it
    /// acknowledged is before.
    #[serde(default)]
    pub clean_end_lsn: Option<Lsn>,
    /// Parameters that wait for a restart.
    pub pending_restart: Vec<String>,
    /// Its process id.
    pub pid: Option<u32>,
}

/// What one member heard of another on one path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathView {
    /// Since the last message, ms; none: never.
    pub age_ms: Option<u64>,
    /// Round trip, µs.
    pub rtt_us: Option<u64>,
}

/// A lease, as its holder sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseView {
    /// Of this generation.
    pub generation: Generation,
    /// Left, ms.
    pub remaining_ms: u64,
}

/// What a member says with each heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// Who.
    pub member: MemberId,
    /// Its Raft node.
    pub node: NodeId,
    /// Random, drawn at each start of the agent.
    pub incarnation: u64,
    /// Counts up within an incarnation. An older one than known is dropped.
    pub seq: u64,
    /// Of the agent.
    pub agent_version: String,
    /// The record it acts on.
    pub record_version: u64,
    /// The generation it acts on.
    pub generation: Generation,
    /// The Raft leader it follows.
    pub raft_leader: Option<NodeId>,
    /// Its database (none: a witness).
    pub database: Option<Database>,
    /// Its disk.
    pub disk: DiskState,
    /// Standby: that it is fenced.
    pub fenced: Option<Fenced>,
    /// No database of this member serves, or will serve, as primary of any generation below.
    pub attests_below: Generation,
    /// Who votes, as far as it knows (Raft nodes).
    #[serde(default)]
    pub voters: std::collections::BTreeSet<NodeId>,
    /// As a voter: it grants no lease of an older generation.
    #[serde(default)]
    pub promised: Generation,
    /// As a voter: how long a lease of a generation before `promised` may still last, ms.
    #[serde(default)]
    pub old_grant_ms: u64,
    /// As a voter: how long the lease it granted to the present generation lasts, ms.
    #[serde(default)]
    pub grant_ms: u64,
    /// Primary: it has done its checkpoint, so that a hand-over will be quick.
    #[serde(default)]
    pub hand_over_ready: bool,
    /// Its routing, or one beside an application that it knows of, still logs sessions in to the
    /// target of a switchover.
    #[serde(default)]
    pub warming: bool,
    /// The lease it holds.
    pub lease: Option<LeaseView>,
    /// Whom it hears, by path.
    pub heard: BTreeMap<MemberId, Vec<PathView>>,
    /// WAL that it keeps in repositories, by repository.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub archives: BTreeMap<String, ArchiveView>,
    /// Repositories of the sync set whose writers it has fenced, and how far each had come.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fenced_archives: BTreeMap<String, Fenced>,
    /// Base backups that it is making, by repository.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub backing_up: BTreeMap<String, BackupProgress>,
    /// What it is busy with, in words (cloning, rewinding, ...).
    pub busy: Option<String>,
    /// Database + agent trouble, in words, for `status`.
    pub notes: Vec<String>,
    /// The last primary known to have served, ms since 1970 (shown only).
    pub at_unix_ms: u64,
}

impl Observation {
    /// An observation that says nothing yet.
    pub fn empty(member: MemberId, node: NodeId) -> Self {
        Self {
            member,
            node,
            incarnation: 0,
            seq: 0,
            agent_version: String::new(),
            record_version: 0,
            generation: Generation(0),
            raft_leader: None,
            database: None,
            disk: DiskState::Healthy,
            fenced: None,
            attests_below: Generation(0),
            voters: Default::default(),
            promised: Generation(0),
            old_grant_ms: 0,
            grant_ms: 0,
            hand_over_ready: false,
            warming: false,
            lease: None,
            heard: BTreeMap::new(),
            archives: BTreeMap::new(),
            fenced_archives: BTreeMap::new(),
            backing_up: BTreeMap::new(),
            busy: None,
            notes: Vec::new(),
            at_unix_ms: 0,
        }
    }
}
