//! Prometheus metrics, written from a snapshot.
//!
//! `patroni_*` have Patroni's names and labels (`scope`, `name`), so that dashboards and alerts
//! written for it work; `pgbouncer_*` those of pgbouncer_exporter ([`POOLS`]); `sempre_*` are what
//! only sempre has.

mod files;
mod pools;
mod repositories;

pub use pools::POOLS;

use crate::{
    snapshot::{PoolView, Snapshot},
    status::{self, PathState, Status},
    words,
};
use sempre_model::observation::{Database, ProcessState, Role};
use std::{
    collections::BTreeMap,
    fmt::{Display, Write},
};

/// The text of `/metrics`.
pub fn render(snapshot: &Snapshot, pools: &[PoolView]) -> String {
    let status = status::status(snapshot);
    let mut page = Page {
        text: String::with_capacity(16 << 10),
        own: vec![("scope", snapshot.cluster_name().to_owned()), ("name", snapshot.me.to_string())],
    };
    patroni(snapshot, &mut page);
    cluster(snapshot, &status, &mut page);
    members(snapshot, &status, &mut page);
    agent(snapshot, &mut page);
    repositories::write(&status, &mut page);
    files::write(&status, &mut page);
    pools::write(pools, &mut page);
    page.text
}

struct Page {
    text: String,
    own: Vec<(&'static str, String)>,
}

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        let _written = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(name);
        let own = self.own.iter().map(|(key, value)| (*key, value.as_str()));
        for (index, (key, value)) in own.chain(labels.iter().copied()).enumerate() {
            self.text.push(if index == 0 { '{' } else { ',' });
            self.text.push_str(key);
            self.text.push_str("=\"");
            for c in value.chars() {
                match c {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    c => self.text.push(c),
                }
            }
            self.text.push('"');
        }
        let _written = writeln!(self.text, "}} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "gauge", help);
        self.sample(name, &[], value);
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "counter", help);
        self.sample(name, &[], value);
    }
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1_000.0
}

/// `1.2.3` is 010203, as Patroni writes it.
fn padded_version(version: &str) -> String {
    let number = version.split(['-', '+']).next().unwrap_or_default();
    let padded: String = number
        .split('.')
        .filter(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
        .map(|part| format!("{part:0>2}"))
        .collect();
    if padded.is_empty() { "0".into() } else { padded }
}

fn patroni(snapshot: &Snapshot, page: &mut Page) {
    use sempre_model::policy::Durability;
    let database = snapshot.database(&snapshot.me);
    let running = database.filter(|d| d.process == ProcessState::Running);
    let is = |role| running.is_some_and(|d: &Database| d.role == role);
    let flag = u8::from;
    let primary = running.filter(|d| d.role == Role::Primary);
    let standby = running.filter(|d| d.role == Role::Standby);
    let busy = snapshot.observation(&snapshot.me).is_some_and(|o| o.busy.is_some());

    page.gauge(
        "patroni_version",
        "Version of this program, without dots.",
        padded_version(&snapshot.agent.version),
    );
    page.gauge("patroni_postgres_running", "1 if PostgreSQL runs.", flag(running.is_some()));
    let started = snapshot.database_started_unix_ms.filter(|_| running.is_some()).unwrap_or(0);
    page.gauge(
        "patroni_postmaster_start_time",
        "Seconds since 1970 when PostgreSQL was started.",
        seconds(started),
    );
    page.gauge(
        "patroni_primary",
        "1 if this member is the primary and holds the lease.",
        flag(is(Role::Primary) && snapshot.is_leader()),
    );
    page.counter(
        "patroni_xlog_location",
        "WAL position of the primary, bytes; 0 on a standby.",
        primary.map_or(0, |d| d.lsn.0),
    );
    page.gauge("patroni_standby_leader", "1 if this member leads a standby cluster.", 0);
    page.gauge("patroni_replica", "1 if this member is a standby.", flag(is(Role::Standby)));
    page.gauge(
        "patroni_sync_standby",
        "1 if this member is a synchronous standby.",
        flag(words::in_sync_set(snapshot, Durability::Sync)),
    );
    page.gauge(
        "patroni_quorum_standby",
        "1 if this member is a standby of the quorum.",
        flag(words::in_sync_set(snapshot, Durability::Quorum)),
    );
    page.counter(
        "patroni_xlog_received_location",
        "Received WAL position, bytes; 0 on a primary.",
        standby.map_or(0, |d| d.lsn.0),
    );
    page.counter(
        "patroni_xlog_replayed_location",
        "Replayed WAL position, bytes; 0 on a primary.",
        standby.map_or(0, |d| d.replay_lsn.0),
    );
    page.gauge(
        "patroni_xlog_replayed_timestamp",
        "Seconds since 1970 of the last replayed transaction; 0: not known.",
        0,
    );
    page.gauge("patroni_xlog_paused", "1 if replay is paused.", 0);
    page.gauge(
        "patroni_postgres_streaming",
        "1 if PostgreSQL streams.",
        flag(standby.and_then(words::replication_state).is_some()),
    );
    page.gauge(
        "patroni_postgres_in_archive_recovery",
        "1 if PostgreSQL replays from an archive.",
        0,
    );
    page.gauge(
        "patroni_postgres_server_version",
        "Version of PostgreSQL, if it runs.",
        running.and_then(|d| d.version_num).unwrap_or(0),
    );
    page.gauge(
        "patroni_cluster_unlocked",
        "1 if nobody is seen to hold the lease.",
        flag(snapshot.lease_holder().is_none()),
    );
    page.gauge("patroni_failsafe_mode_is_active", "Always 0: the lease makes it needless.", 0);
    page.gauge("patroni_failsafe_mode_enabled", "Always 0.", 0);
    page.gauge("patroni_failsafe_member", "Always 0.", 0);
    page.gauge(
        "patroni_postgres_timeline",
        "Timeline of PostgreSQL, if it runs.",
        running.map_or(0, |d| d.timeline.0),
    );
    page.gauge(
        "patroni_dcs_last_seen",
        "Seconds since 1970 when a majority was last known to agree.",
        words::dcs_last_seen(snapshot),
    );
    page.gauge(
        "patroni_pending_restart",
        "1 if PostgreSQL waits for a restart.",
        flag(database.is_some_and(|d| !d.pending_restart.is_empty())),
    );
    page.gauge(
        "patroni_is_paused",
        "1 if nothing automatic happens.",
        flag(snapshot.record.paused),
    );
    page.gauge("patroni_postgres_state", "State of PostgreSQL: 4 creating replica, 5 running, 6 starting, 8 start failed, 11 stopping, 12 stopped, 14 crashed, -1 unknown.", words::state_word(database, busy).1);
    let priority = snapshot.own_member().map_or(0, |member| {
        // Patroni's 0 is "never", its default is 1.
        if member.can_lead() { member.tags.priority.saturating_add(1).max(1) } else { 0 }
    });
    page.gauge(
        "patroni_failover_priority",
        "Priority of this member in a failover; 0: never.",
        priority,
    );
}

fn cluster(snapshot: &Snapshot, status: &Status, page: &mut Page) {
    let record = &snapshot.record;
    let flag = u8::from;
    page.counter("sempre_generation", "Raised at every change of primary.", record.generation);
    page.counter("sempre_record_version", "Changes of the record applied here.", record.version);
    page.gauge(
        "sempre_writable",
        "1 if clients can write, as seen from here.",
        flag(status.writable),
    );
    page.gauge(
        "sempre_lease_remaining_seconds",
        "What is left of the primary's lease, as seen from here; 0: none.",
        status.lease.as_ref().map_or(0.0, |lease| seconds(lease.remaining_ms)),
    );
    page.gauge(
        "sempre_lease_held",
        "1 if this member holds the lease.",
        flag(snapshot.is_leader()),
    );
    page.gauge(
        "sempre_sync_set_size",
        "Members of the sync set.",
        status.sync.record.members.len(),
    );
    page.gauge(
        "sempre_sync_set_wished",
        "Members the sync set is wished to have.",
        status.sync.wished,
    );
    page.gauge("sempre_sync_k", "Standbys a commit waits for.", status.sync.record.k);
    page.gauge("sempre_members", "Members of the cluster.", record.members.len());
    page.gauge(
        "sempre_oddities",
        "Things that are not as they should be; see the status.",
        status.oddities.len(),
    );
    page.gauge("sempre_raft_term", "Raft term.", snapshot.raft.term);
    page.counter(
        "sempre_raft_applied_index",
        "Newest Raft log index applied here.",
        snapshot.raft.applied,
    );
    page.gauge(
        "sempre_raft_leader",
        "1 if this member leads Raft.",
        flag(snapshot.raft_leader.as_ref() == Some(&snapshot.me)),
    );
    page.gauge(
        "sempre_raft_quorum",
        "1 if a majority agrees, as far as this member knows.",
        flag(status.raft.quorum),
    );
    page.gauge("sempre_raft_voters", "Members that vote.", status.raft.voters);

    page.head(
        "sempre_failovers_total",
        "counter",
        "Changes of primary in the kept history, by cause.",
    );
    let mut causes: BTreeMap<String, u64> = BTreeMap::new();
    for entry in &record.history {
        // The serde name of the cause, which is stable.
        let cause = serde_json::to_value(&entry.cause).ok();
        let cause = cause.as_ref().and_then(|value| value.as_str()).unwrap_or("unknown");
        *causes.entry(cause.to_owned()).or_default() += 1;
    }
    for (cause, count) in &causes {
        page.sample("sempre_failovers_total", &[("cause", cause)], count);
    }
    let stall = record.history.last().map_or(0, |entry| entry.stall_ms);
    page.gauge(
        "sempre_last_stall_seconds",
        "How long no primary served at the last change.",
        seconds(stall),
    );
    let changed = record.history.last().map_or(0, |entry| entry.at_unix_ms);
    page.gauge(
        "sempre_last_change_timestamp_seconds",
        "Seconds since 1970 of the last change of primary.",
        seconds(changed),
    );
}

fn members(snapshot: &Snapshot, status: &Status, page: &mut Page) {
    page.head("sempre_member_seen_age_seconds", "gauge", "Since a member was last heard.");
    for member in &status.members {
        if let Some(age) = member.age_ms {
            page.sample(
                "sempre_member_seen_age_seconds",
                &[("member", member.name.as_str())],
                seconds(age),
            );
        }
    }
    page.head("sempre_member_silent", "gauge", "1 if a member is silent for too long.");
    for member in &status.members {
        let silent = u8::from(snapshot.is_silent(&member.name));
        page.sample("sempre_member_silent", &[("member", member.name.as_str())], silent);
    }
    page.head("sempre_member_in_sync_set", "gauge", "1 if the member's flush counts.");
    for member in &status.members {
        let counts = u8::from(member.in_sync_set);
        page.sample("sempre_member_in_sync_set", &[("member", member.name.as_str())], counts);
    }
    page.head(
        "sempre_lag_bytes",
        "gauge",
        "WAL of the primary that a member has not received, or not replayed.",
    );
    for member in &status.members {
        let Some(database) = &member.database else { continue };
        for (kind, lag) in
            [("receive", database.receive_lag_bytes), ("replay", database.replay_lag_bytes)]
        {
            if let Some(lag) = lag {
                let labels = [("member", member.name.as_str()), ("kind", kind)];
                page.sample("sempre_lag_bytes", &labels, lag);
            }
        }
    }
    let paths = || {
        status.members.iter().flat_map(|member| {
            member.paths.iter().enumerate().map(move |(index, path)| (member, index, path))
        })
    };
    page.head("sempre_path_up", "gauge", "1 if messages arrive on a path.");
    for (member, index, path) in paths().filter(|(.., path)| path.state != PathState::Own) {
        let index = index.to_string();
        let labels = [("member", member.name.as_str()), ("path", &index), ("host", &path.host)];
        page.sample("sempre_path_up", &labels, u8::from(path.state == PathState::Up));
    }
    page.head("sempre_path_rtt_seconds", "gauge", "Round trip on a path.");
    for (member, index, path) in paths() {
        if let Some(trip) = path.rtt_us {
            let index = index.to_string();
            let labels = [("member", member.name.as_str()), ("path", &index), ("host", &path.host)];
            page.sample("sempre_path_rtt_seconds", &labels, trip as f64 / 1e6);
        }
    }
}

fn agent(snapshot: &Snapshot, page: &mut Page) {
    page.gauge(
        "sempre_uptime_seconds",
        "Since the agent was started.",
        seconds(snapshot.agent.uptime_ms),
    );
    page.gauge(
        "sempre_guard_running",
        "1 if the guard runs.",
        u8::from(snapshot.agent.guard_pid.is_some()),
    );
    if let Some(expires) = snapshot.certificate_expires_unix_ms {
        let left = expires as f64 - snapshot.now_unix_ms as f64;
        page.gauge(
            "sempre_certificate_expiry_seconds",
            "Until this member's certificate ends.",
            left / 1_000.0,
        );
    }
    let route = &snapshot.route;
    page.head("sempre_route_sessions", "gauge", "Sessions routed now.");
    page.sample("sempre_route_sessions", &[("port", "read_write")], route.read_write_now);
    page.sample("sempre_route_sessions", &[("port", "read_only")], route.read_only_now);
    page.gauge("sempre_route_held", "Connections held now, for want of a primary.", route.held_now);
    page.counter("sempre_route_accepted_total", "Connections accepted.", route.accepted_total);
    page.counter("sempre_route_held_total", "Connections that had to be held.", route.held_total);
    page.counter(
        "sempre_route_hold_timeouts_total",
        "Held connections given up.",
        route.hold_timeouts_total,
    );
    page.counter(
        "sempre_route_refused_total",
        "Connections refused because too many were held.",
        route.refused_total,
    );
    page.counter(
        "sempre_route_cut_total",
        "Sessions closed because their server was lost.",
        route.cut_total,
    );
    let split = "sempre_route_split_total";
    page.head(
        split,
        "counter",
        "Read-only transactions of the read-write port, by who served them.",
    );
    page.sample(split, &[("to", "standby")], route.split_to_standby_total);
    page.sample(split, &[("to", "primary")], route.split_to_primary_total);
    page.counter(
        "sempre_route_split_waited_total",
        "Those that waited for a standby to replay what their session had written.",
        route.split_waited_total,
    );
    page.head("sempre_route_bytes_total", "counter", "Bytes carried.");
    page.sample("sempre_route_bytes_total", &[("to", "server")], route.bytes_to_server_total);
    page.sample("sempre_route_bytes_total", &[("to", "client")], route.bytes_to_client_total);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_padded() {
        for (version, padded) in
            [("4.1.5", "040105"), ("0.1.0-rc1", "000100"), ("", "0"), ("x", "0")]
        {
            assert_eq!(padded_version(version), padded);
        }
    }
}
