//! One member's line of the status.

use crate::snapshot::Snapshot;
use sempre_model::{
    Member, MemberId, MemberKind, Phase, Tags,
    observation::{Database, DiskState, ProcessState, Role},
    restart::ScheduledRestart,
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a member is in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberRole {
    /// The record's primary, out of recovery.
    Primary,
    /// The record's primary, not yet (or no longer) out of recovery.
    PrimaryToBe,
    /// Out of recovery, but not the record's primary: fenced, or about to rejoin.
    FormerPrimary,
    /// A standby.
    Standby,
    /// It only votes.
    Witness,
    /// Not known: its database does not answer.
    Unknown,
}

impl fmt::Display for MemberRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            MemberRole::Primary => "primary",
            MemberRole::PrimaryToBe => "primary to be",
            MemberRole::FormerPrimary => "former primary",
            MemberRole::Standby => "standby",
            MemberRole::Witness => "witness",
            MemberRole::Unknown => "unknown",
        })
    }
}

/// What is known of one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathState {
    /// Messages arrive.
    Up,
    /// None arrives for too long.
    Lost,
    /// None has arrived yet.
    Unheard,
    /// It is the path of the member that answers.
    Own,
}

/// One path of a member, as seen from the member that answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStatus {
    /// Address.
    pub host: String,
    /// State.
    pub state: PathState,
    /// Since the last message, ms.
    pub age_ms: Option<u64>,
    /// Round trip, µs.
    pub rtt_us: Option<u64>,
}

/// A member's database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseStatus {
    /// `server_version_num`.
    pub version_num: Option<u32>,
    /// Timeline.
    pub timeline: u32,
    /// Flushed (primary) or received and flushed (standby).
    pub lsn: String,
    /// Replayed (standby).
    pub replay_lsn: Option<String>,
    /// Behind the primary's position, not yet received, bytes. None: not known.
    pub receive_lag_bytes: Option<u64>,
    /// Behind the primary's position, not yet visible to queries, bytes. None: not known.
    pub replay_lag_bytes: Option<u64>,
    /// From whom it streams.
    pub streaming_from: Option<MemberId>,
    /// The upstream's address in use.
    pub sender_host: Option<String>,
    /// Standbys attached here.
    pub downstreams: Vec<MemberId>,
    /// Primary: clients are let in.
    pub admitted: bool,
    /// WAL to replay if it crashed now, bytes.
    pub redo_bytes: u64,
    /// Parameters that wait for a restart.
    pub pending_restart: Vec<String>,
    /// Process id.
    pub pid: Option<u32>,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its name.
    pub name: MemberId,
    /// What it is.
    pub role: MemberRole,
    /// What it does, in a word or a few: `running`, `streaming`, `silent`, `crashed`, ...
    pub state: String,
    /// Since it was last heard, ms. None: never.
    pub age_ms: Option<u64>,
    /// Does its flush count?
    pub in_sync_set: bool,
    /// Where its database is reached: `host:port` on its first path.
    pub address: Option<String>,
    /// Its REST address, `http://host:port` on its first path.
    pub rest: String,
    /// Its paths.
    pub paths: Vec<PathStatus>,
    /// Its database, if it has one and it was seen.
    pub database: Option<DatabaseStatus>,
    /// The failure domain it stands in.
    pub zone: Option<String>,
    /// Wishes of its operator.
    pub tags: Tags,
    /// What it is busy with.
    pub busy: Option<String>,
    /// What its disk does, if not well.
    pub disk: Option<String>,
    /// Trouble, in words.
    pub notes: Vec<String>,
    /// Its agent's version.
    pub agent_version: Option<String>,
    /// A restart was asked for and is not done.
    pub restart_requested: bool,
    /// A restart that is to come at its time.
    #[serde(default)]
    pub scheduled_restart: Option<ScheduledRestart>,
    /// A fresh copy was asked for and is not done.
    pub reinit_requested: bool,
}

/// Does this database let clients in, as a primary?
pub(super) fn admits(database: &Database) -> bool {
    database.process == ProcessState::Running && database.role == Role::Primary && database.admitted
}

/// `host` as it stands in a URL.
pub(crate) fn url_host(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

pub(super) fn member_status(snapshot: &Snapshot, member: &Member) -> MemberStatus {
    let name = &member.name;
    let record = &*snapshot.record;
    let seen = snapshot.seen.get(name);
    let observation = seen.map(|seen| &seen.observation);
    let database = observation.and_then(|o| o.database.as_ref());
    let host = member.paths.first().map_or("", |path| path.host.as_str());
    let is_data = member.kind == MemberKind::Data;
    MemberStatus {
        name: name.clone(),
        role: role(snapshot, member, database),
        state: state(snapshot, member, database),
        age_ms: seen.map(|seen| seen.age_ms),
        in_sync_set: record.sync.members.contains(name),
        address: is_data.then(|| format!("{}:{}", url_host(host), member.ports.database)),
        rest: format!("http://{}:{}", url_host(host), member.ports.rest),
        paths: paths(snapshot, member),
        database: database.filter(|_| is_data).map(|d| database_status(snapshot, name, d)),
        zone: member.zone.clone(),
        tags: member.tags.clone(),
        busy: observation.and_then(|o| o.busy.clone()),
        disk: observation.and_then(|o| disk(&o.disk)),
        notes: observation.map(|o| o.notes.clone()).unwrap_or_default(),
        agent_version: observation
            .map(|o| o.agent_version.clone())
            .filter(|version| !version.is_empty()),
        restart_requested: record.restarts.contains_key(name),
        scheduled_restart: record.scheduled_restarts.get(name).cloned(),
        reinit_requested: record.reinits.contains_key(name),
    }
}

fn role(snapshot: &Snapshot, member: &Member, database: Option<&Database>) -> MemberRole {
    if member.kind == MemberKind::Witness {
        return MemberRole::Witness;
    }
    let is_primary = snapshot.record.primary.as_ref() == Some(&member.name);
    match (is_primary, database.map(|d| d.role).unwrap_or_default()) {
        (true, Role::Primary) => MemberRole::Primary,
        (true, _) => MemberRole::PrimaryToBe,
        (false, Role::Primary) => MemberRole::FormerPrimary,
        (false, Role::Standby) => MemberRole::Standby,
        (false, Role::Unknown) => MemberRole::Unknown,
    }
}

fn state(snapshot: &Snapshot, member: &Member, database: Option<&Database>) -> String {
    if !snapshot.seen.contains_key(&member.name) {
        return "never seen".into();
    }
    if snapshot.is_silent(&member.name) {
        return "silent".into();
    }
    if member.kind == MemberKind::Witness {
        return "voting".into();
    }
    let Some(database) = database else { return "no database".into() };
    match &database.process {
        ProcessState::Stopped if !database.has_data => "no data".into(),
        ProcessState::Stopped => "stopped".into(),
        ProcessState::Crashed => "crashed".into(),
        ProcessState::Starting => "starting".into(),
        ProcessState::Hung => "hung".into(),
        ProcessState::Stopping => "stopping".into(),
        ProcessState::Failing(_) => "does not start".into(),
        ProcessState::Running => match (database.role, &snapshot.record.phase) {
            (Role::Standby, _) if database.streaming_from.is_some() => "streaming".into(),
            (Role::Standby, Phase::Fencing { .. }) => "fenced".into(),
            (Role::Standby, _) => "not streaming".into(),
            (Role::Primary, _) if !database.admitted => "closed to clients".into(),
            _ => "running".into(),
        },
    }
}

fn disk(disk: &DiskState) -> Option<String> {
    match disk {
        DiskState::Healthy => None,
        DiskState::Stalled => Some("does not answer in time".into()),
        DiskState::Full => Some("full".into()),
        DiskState::Failing(why) => Some(why.clone()),
    }
}

fn database_status(snapshot: &Snapshot, name: &MemberId, database: &Database) -> DatabaseStatus {
    let is_primary = snapshot.record.primary.as_ref() == Some(name);
    let standby = database.role == Role::Standby;
    let ahead = snapshot.primary_lsn().filter(|_| !is_primary && standby);
    DatabaseStatus {
        version_num: database.version_num,
        timeline: database.timeline.0,
        lsn: database.lsn.to_string(),
        replay_lsn: standby.then(|| database.replay_lsn.to_string()),
        receive_lag_bytes: ahead.map(|lsn| lsn.bytes_since(database.lsn)),
        replay_lag_bytes: ahead.map(|lsn| lsn.bytes_since(database.replay_lsn)),
        streaming_from: database.streaming_from.clone(),
        sender_host: database.sender_host.clone(),
        downstreams: database.downstreams.keys().cloned().collect(),
        admitted: database.role == Role::Primary && database.admitted,
        redo_bytes: database.redo_bytes,
        pending_restart: database.pending_restart.clone(),
        pid: database.pid,
    }
}

fn paths(snapshot: &Snapshot, member: &Member) -> Vec<PathStatus> {
    let own = member.name == snapshot.me;
    let views = snapshot.paths.get(&member.name);
    let lost_after = snapshot.record.policy.path_detect_ms;
    member
        .paths
        .iter()
        .enumerate()
        .map(|(index, path)| {
            let view = views.and_then(|views| views.get(index)).cloned().unwrap_or_default();
            let state = match view.age_ms {
                _ if own => PathState::Own,
                None => PathState::Unheard,
                Some(age) if age > lost_after => PathState::Lost,
                Some(_) => PathState::Up,
            };
            PathStatus { host: path.host.clone(), state, age_ms: view.age_ms, rtt_us: view.rtt_us }
        })
        .collect()
}
