//! `/patroni`, `/cluster`, `/history` and `/metrics`, in the words of Patroni, so that exporters
//! and tools written for it work.

use super::{Context, answer, restart};
use crate::{
    Snapshot, metrics as prometheus,
    status::{self, MemberRole, MemberStatus},
    units::show_time,
    words::{dcs_last_seen, in_sync_set, replication_state, role_word, state_word},
};
use answer::Response;
use axum::extract::State;
use sempre_model::{
    Lsn, Tags,
    observation::{Database, ProcessState, Role},
    policy::Durability,
};
use serde_json::{Map, Value, json};

pub(crate) async fn patroni(State(shared): State<Context>) -> Response {
    answer::json(200, &document(&shared.backend.snapshot()))
}

pub(crate) async fn cluster(State(shared): State<Context>) -> Response {
    answer::json(200, &cluster_document(&shared.backend.snapshot()))
}

pub(crate) async fn history(State(shared): State<Context>) -> Response {
    answer::json(200, &history_document(&shared.backend.snapshot()))
}

pub(crate) async fn metrics(State(shared): State<Context>) -> Response {
    let text = prometheus::render(&shared.backend.snapshot(), &shared.backend.pools());
    answer::with_type(200, "text/plain; version=0.0.4; charset=utf-8", text.into_bytes())
}

/// Patroni's names for tags; what is as by default is left out.
fn tags_document(tags: &Tags) -> Map<String, Value> {
    let mut map = Map::new();
    for (name, set) in [
        ("clonefrom", tags.clone_from),
        ("nofailover", tags.never_primary),
        ("noloadbalance", tags.no_route),
        ("nosync", tags.no_sync),
    ] {
        if set {
            map.insert(name.into(), true.into());
        }
    }
    if tags.priority != 0 {
        map.insert("failover_priority".into(), tags.priority.into());
    }
    if let Some(from) = &tags.replicate_from {
        map.insert("replicatefrom".into(), from.as_str().into());
    }
    map
}

/// The document of `/patroni` and of all health checks.
pub(crate) fn document(snapshot: &Snapshot) -> Value {
    let database = snapshot.database(&snapshot.me);
    let busy = snapshot.observation(&snapshot.me).is_some_and(|o| o.busy.is_some());
    let mut map = Map::new();
    map.insert("state".into(), state_word(database, busy).0.into());
    map.insert("role".into(), role_word(database).into());
    if let Some(database) = database.filter(|d| d.process == ProcessState::Running) {
        database_fields(snapshot, database, &mut map);
    }
    if snapshot.record.paused {
        map.insert("pause".into(), true.into());
    }
    if snapshot.lease_holder().is_none() {
        map.insert("cluster_unlocked".into(), true.into());
    }
    map.insert("dcs_last_seen".into(), dcs_last_seen(snapshot).into());
    if let Some(member) = snapshot.own_member() {
        let tags = tags_document(&member.tags);
        if !tags.is_empty() {
            map.insert("tags".into(), tags.into());
        }
    }
    let identifier = snapshot.record.cluster.as_ref().and_then(|c| c.system_identifier);
    if let Some(identifier) = identifier {
        map.insert("database_system_identifier".into(), identifier.to_string().into());
    }
    if database.is_some_and(|d| !d.pending_restart.is_empty()) {
        map.insert("pending_restart".into(), true.into());
        map.insert("pending_restart_reason".into(), pending_reason(snapshot, database));
    }
    if let Some(wish) = snapshot.record.scheduled_restarts.get(&snapshot.me) {
        map.insert("scheduled_restart".into(), restart::document(wish).into());
    }
    map.insert(
        "patroni".into(),
        json!({
            "version": snapshot.agent.version,
            "scope": snapshot.cluster_name(),
            "name": snapshot.me,
        }),
    );
    map.into()
}

fn database_fields(snapshot: &Snapshot, database: &Database, map: &mut Map<String, Value>) {
    if let Some(started) = snapshot.database_started_unix_ms {
        map.insert(
            "postmaster_start_time".into(),
            show_time(started).replace('T', " ").replace('Z', "+00:00").into(),
        );
    }
    if let Some(version) = database.version_num {
        map.insert("server_version".into(), version.into());
    }
    let xlog = if database.role == Role::Primary {
        json!({"location": database.lsn.0})
    } else {
        json!({
            "received_location": database.lsn.0,
            "replayed_location": database.replay_lsn.0,
            "replayed_timestamp": null,
            "paused": false,
        })
    };
    map.insert("xlog".into(), xlog);
    map.insert("timeline".into(), database.timeline.0.into());
    if in_sync_set(snapshot, Durability::Sync) {
        map.insert("sync_standby".into(), true.into());
    }
    if in_sync_set(snapshot, Durability::Quorum) {
        map.insert("quorum_standby".into(), true.into());
    }
    if let Some(state) = replication_state(database) {
        map.insert("replication_state".into(), state.into());
    }
    let replication: Vec<_> = database
        .downstreams
        .iter()
        .map(|(name, downstream)| {
            json!({
                "usename": "sempre_replication",
                "application_name": name,
                "client_addr": downstream.client_addr,
                "state": downstream.state,
                "sync_state": downstream.sync_state,
                "sync_priority": i32::from(downstream.sync_state != "async"),
            })
        })
        .collect();
    if !replication.is_empty() {
        map.insert("replication".into(), replication.into());
    }
}

/// Parameters that wait for a restart; what they are to become, where the record knows it.
fn pending_reason(snapshot: &Snapshot, database: Option<&Database>) -> Value {
    let names = database.map(|d| d.pending_restart.as_slice()).unwrap_or_default();
    names
        .iter()
        .map(|name| {
            let new = snapshot.record.parameters.get(name);
            (name.clone(), json!({"old_value": null, "new_value": new}))
        })
        .collect::<Map<_, _>>()
        .into()
}

/// The document of `/cluster`.
pub(crate) fn cluster_document(snapshot: &Snapshot) -> Value {
    let status = status::status(snapshot);
    let members: Vec<_> = status
        .members
        .iter()
        .filter(|member| member.role != MemberRole::Witness)
        .map(|member| member_document(snapshot, member))
        .collect();
    let mut map = Map::new();
    map.insert("members".into(), members.into());
    map.insert("scope".into(), snapshot.cluster_name().into());
    if snapshot.record.paused {
        map.insert("pause".into(), true.into());
    }
    if let Some((wish, at)) =
        snapshot.record.switchover.as_ref().and_then(|wish| Some((wish, wish.at_unix_ms?)))
    {
        let mut scheduled = Map::new();
        scheduled.insert("at".into(), show_time(at).replace('Z', "+00:00").into());
        if let Some(primary) = &snapshot.record.primary {
            scheduled.insert("from".into(), primary.as_str().into());
        }
        if let Some(to) = &wish.to {
            scheduled.insert("to".into(), to.as_str().into());
        }
        map.insert("scheduled_switchover".into(), scheduled.into());
    }
    map.into()
}

fn member_document(snapshot: &Snapshot, member: &MemberStatus) -> Value {
    let record = &snapshot.record;
    let database = snapshot.database(&member.name);
    let is_leader = record.primary.as_ref() == Some(&member.name);
    let role = match record.policy.durability {
        _ if is_leader => "leader",
        Durability::Quorum if member.in_sync_set => "quorum_standby",
        Durability::Sync if member.in_sync_set => "sync_standby",
        _ => "replica",
    };
    // What was said long ago does not hold any more.
    let state = if snapshot.is_silent(&member.name) {
        "unknown"
    } else {
        let word = state_word(database, member.busy.is_some()).0;
        database.and_then(replication_state).filter(|_| word == "running").unwrap_or(word)
    };
    let mut map = Map::new();
    map.insert("name".into(), member.name.as_str().into());
    map.insert("role".into(), role.into());
    map.insert("state".into(), state.into());
    map.insert("api_url".into(), format!("{}/patroni", member.rest).into());
    if let Some(known) = record.member(&member.name) {
        if let Some(path) = known.paths.first() {
            map.insert("host".into(), path.host.as_str().into());
            map.insert("port".into(), known.ports.database.into());
        }
        let tags = tags_document(&known.tags);
        if !tags.is_empty() {
            map.insert("tags".into(), tags.into());
        }
    }
    if let Some(database) = database {
        map.insert("timeline".into(), database.timeline.0.into());
        if !database.pending_restart.is_empty() {
            map.insert("pending_restart".into(), true.into());
        }
    }
    if let Some(wish) = record.scheduled_restarts.get(&member.name) {
        map.insert("scheduled_restart".into(), restart::document(wish).into());
    }
    if !is_leader {
        lag_fields(snapshot, database, &mut map);
    }
    map.into()
}

fn lag_fields(snapshot: &Snapshot, database: Option<&Database>, map: &mut Map<String, Value>) {
    let leader = snapshot.primary_lsn().unwrap_or_default();
    let standby = database.filter(|d| d.role == Role::Standby);
    let mut put = |prefix: &str, lsn: Option<Lsn>| {
        let lsn = lsn.filter(|lsn| lsn.0 > 0);
        let unknown = || Value::from("unknown");
        let shown = lsn.map_or_else(unknown, |lsn| lsn.to_string().into());
        let lag = lsn.map_or_else(unknown, |lsn| leader.bytes_since(lsn).into());
        map.insert(format!("{prefix}lsn"), shown);
        map.insert(format!("{prefix}lag"), lag);
    };
    put("receive_", standby.map(|d| d.lsn));
    put("replay_", standby.map(|d| d.replay_lsn));
    put("", standby.map(|d| d.lsn.max(d.replay_lsn)));
}

/// The document of `/history`: what ended each timeline, and where.
pub(crate) fn history_document(snapshot: &Snapshot) -> Value {
    snapshot
        .record
        .history
        .iter()
        .filter(|entry| entry.timeline.0 > 1)
        .map(|entry| {
            let cause = serde_json::to_value(&entry.cause).unwrap_or(Value::Null);
            json!([
                // A change of primary that kept the timeline ends none; the new one is shown.
                entry.timeline.0 - 1,
                entry.lsn.0,
                cause,
                show_time(entry.at_unix_ms).replace('Z', "+00:00"),
                entry.primary,
            ])
        })
        .collect::<Vec<_>>()
        .into()
}
