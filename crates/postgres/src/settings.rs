//! What the server is to do, and the configuration file that says so.

use crate::{
    Encryption, Instance, Upstream,
    parameters::{FLOORED, MIN_SENDERS},
};
use sempre_model::{ids::MemberId, policy::Durability, record::SyncSet};
use std::{collections::BTreeMap, fmt::Write, path::Path};

/// What the server is started as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerRole {
    /// It takes writes.
    Primary,
    /// It replays what an upstream sends.
    Standby,
}

/// What the server is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// As what.
    pub role: ServerRole,
    /// Standby: from whom it streams; none: from nobody (it is fenced, or there is nobody).
    pub upstream: Option<Upstream>,
    /// For whom commits wait. Written for a standby too, so that it is in force from the first
    /// moment after a promotion.
    pub sync: SyncSet,
    /// Whether `sync` counts any k of them (`Quorum`) or the first k (`Sync`).
    pub durability: Durability,
    /// For `Sync`: who comes first. Members of `sync` not in here come last, by name.
    pub sync_order: Vec<MemberId>,
    /// Whether clients are let in. Without, only sempre's own roles are.
    pub admitted: bool,
    /// The record's PostgreSQL parameters.
    pub parameters: BTreeMap<String, String>,
    /// The record's client lines of `pg_hba.conf`; empty: the user's own file is used.
    pub hba: Vec<String>,
    /// Members with a database: each needs a slot and a sender on each other one.
    pub data_members: usize,
    /// The most WAL a slot may keep back, bytes; 0: no limit.
    pub slot_max_wal_bytes: u64,
    /// What the server shows to other members, and asks of them.
    pub encryption: Encryption,
}

impl Settings {
    /// A primary nobody is let in to, with nothing special.
    pub fn primary() -> Self {
        Self {
            role: ServerRole::Primary,
            upstream: None,
            sync: SyncSet::default(),
            durability: Durability::Quorum,
            sync_order: Vec::new(),
            admitted: false,
            parameters: BTreeMap::new(),
            hba: Vec::new(),
            data_members: 3,
            slot_max_wal_bytes: 0,
            encryption: Encryption::Off,
        }
    }

    /// A standby of `upstream`; without one it is fenced.
    pub fn standby(upstream: Option<Upstream>) -> Self {
        Self { role: ServerRole::Standby, upstream, ..Self::primary() }
    }
}

/// Nobody's name: it cannot be a member's. Stands in `synchronous_standby_names` when there are
/// too few, so that commits wait.
const NOBODY: &str = "(nobody)";

/// `synchronous_standby_names` for this set.
pub fn render_sync(sync: &SyncSet, durability: Durability, order: &[MemberId]) -> String {
    if sync.k == 0 {
        return String::new();
    }
    let mut members: Vec<&MemberId> = sync.members.iter().collect();
    members.sort_by_key(|m| (order.iter().position(|o| o == *m).unwrap_or(usize::MAX), *m));
    let mut names: Vec<String> = members.iter().map(|m| format!("\"{m}\"")).collect();
    if names.len() < sync.k {
        names.push(format!("\"{NOBODY}\""));
    }
    let method = if durability == Durability::Sync { "FIRST" } else { "ANY" };
    format!("{method} {} ({})", sync.k, names.join(", "))
}

/// The set a `synchronous_standby_names` of ours enforces; none when it is not one of ours.
pub fn parse_sync(names: &str) -> Option<SyncSet> {
    let names = names.trim();
    if names.is_empty() {
        return Some(SyncSet::default());
    }
    let rest = names.strip_prefix("ANY ").or_else(|| names.strip_prefix("FIRST "))?;
    let (k, list) = rest.split_once('(')?;
    let list = list.strip_suffix(')')?;
    let members = list
        .split(',')
        .map(|name| name.trim().trim_matches('"'))
        .filter(|name| *name != NOBODY)
        .map(MemberId::new)
        .collect::<Result<_, _>>()
        .ok()?;
    Some(SyncSet { members, k: k.trim().parse().ok()? })
}

/// A value in PostgreSQL's configuration files.
pub(crate) fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// Defaults of ours; the record's parameters win over them.
///
/// The time-outs make a dead connection known soon; each end sends something at least once a
/// second, or answers when asked after half of the time.
const DEFAULTS: [(&str, &str); 14] = [
    ("hot_standby_feedback", "off"),
    // What a standby that has no slot yet (a copy being made) may be behind.
    ("wal_keep_size", "128MB"),
    // How soon a standby tries again after its connection was lost.
    ("wal_retrieve_retry_interval", "100ms"),
    ("wal_receiver_status_interval", "1s"),
    ("wal_receiver_timeout", "5s"),
    ("wal_sender_timeout", "5s"),
    ("synchronous_commit", "on"),
    // Clients that are gone for good are noticed within about 20 s.
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "3"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "15s"),
    ("log_line_prefix", "%m [%p] %q%u@%d "),
    ("log_checkpoints", "on"),
    ("password_encryption", "scram-sha-256"),
];

/// Members that a cluster has room for from its beginning.
const MEMBERS_EXPECTED: usize = 7;

impl Settings {
    /// The whole configuration file. `floors` is what a standby needs at least.
    pub(crate) fn render(
        &self,
        instance: &Instance,
        base: Option<&Path>,
        ident: &Path,
        floors: &BTreeMap<&'static str, u64>,
    ) -> String {
        let mut text = String::from(
            "# Written by sempre. Change parameters with `sempre config set`; what is in your own\n\
             # postgresql.conf counts as long as nothing below says otherwise.\n\n",
        );
        let mut line = |name: &str, value: &str| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name} = {}", quote(value));
        };
        if let Some(base) = base {
            line("include_if_exists", &base.to_string_lossy());
        }
        for (name, value) in DEFAULTS {
            line(name, value);
        }
        for (name, value) in instance.encryption_lines(self.encryption) {
            line(name, &value);
        }
        for (name, value) in &self.parameters {
            if !FLOORED.contains(&name.as_str()) {
                line(name, value);
            }
        }
        for (name, value) in self.managed(instance, ident) {
            line(name, &value);
        }
        for (name, value) in self.floored(floors) {
            line(name, &value);
        }
        text
    }

    fn is_logical(&self) -> bool {
        let level = self.parameters.get("wal_level");
        level.is_some_and(|v| v.trim().eq_ignore_ascii_case("logical"))
    }

    fn managed(&self, instance: &Instance, ident: &Path) -> Vec<(&'static str, String)> {
        let path = |p: &Path| p.to_string_lossy().into_owned();
        let mut sockets = vec![path(&instance.layout.run_dir)];
        sockets.extend(instance.socket_dirs.iter().map(|d| path(d)));
        // From 17 on, the server keeps logical slots made with `failover` on standbys too.
        let sync_slots = self.is_logical() && instance.installation.major >= 17;
        let database = sync_slots.then_some(crate::roles::DATABASE);
        let (conninfo, slot) = match &self.upstream {
            Some(upstream) => (
                upstream.conninfo(instance, instance.me.as_str(), &instance.pass_file(), database),
                instance.me.slot_name(),
            ),
            None => (String::new(), String::new()),
        };
        let slot_limit = match self.slot_max_wal_bytes {
            0 => "-1".to_owned(),
            bytes => format!("{}MB", bytes.div_ceil(1 << 20)),
        };
        let mut lines = vec![
            ("data_directory", path(&instance.layout.data_dir)),
            ("hba_file", path(&instance.hba_file())),
            ("ident_file", path(ident)),
            ("listen_addresses", instance.listen_addresses.join(",")),
            ("port", instance.port.to_string()),
            ("unix_socket_directories", sockets.join(",")),
            ("cluster_name", instance.me.to_string()),
            ("primary_conninfo", conninfo),
            ("primary_slot_name", slot),
            (
                "synchronous_standby_names",
                render_sync(&self.sync, self.durability, &self.sync_order),
            ),
            ("max_slot_wal_keep_size", slot_limit),
            ("hot_standby", "on".into()),
            ("wal_log_hints", "on".into()),
            ("full_page_writes", "on".into()),
            ("fsync", "on".into()),
            ("restart_after_crash", "off".into()),
            ("logging_collector", "off".into()),
            ("log_destination", "stderr".into()),
            ("recovery_target_timeline", "latest".into()),
        ];
        if self.is_logical() {
            lines.push(("hot_standby_feedback", "on".into()));
        }
        if sync_slots {
            lines.push(("sync_replication_slots", "on".into()));
            // No reader of such a slot gets ahead of a standby that may become primary.
            let slots: Vec<String> = self.sync.members.iter().map(MemberId::slot_name).collect();
            lines.push(("synchronized_standby_slots", slots.join(",")));
        }
        for name in ["", "_lsn", "_name", "_time", "_xid"] {
            let name = match name {
                "_lsn" => "recovery_target_lsn",
                "_name" => "recovery_target_name",
                "_time" => "recovery_target_time",
                "_xid" => "recovery_target_xid",
                _ => "recovery_target",
            };
            lines.push((name, String::new()));
        }
        lines
    }

    /// What must not be less than something: the user's value, or the least that works.
    fn floored(&self, floors: &BTreeMap<&'static str, u64>) -> Vec<(&'static str, String)> {
        let wanted = |name: &str| {
            self.parameters.get(name).and_then(|value| value.trim().parse::<u64>().ok())
        };
        // Each member needs one, a copy two, and backups and users some. The first members start
        // with room for more, so that nobody has to restart when those join.
        let senders =
            u64::from(MIN_SENDERS).max(self.data_members.max(MEMBERS_EXPECTED) as u64 * 2 + 6);
        let logical = self.parameters.get("wal_level").is_some_and(|v| v.trim() == "logical");
        let mut lines = vec![("wal_level", if logical { "logical" } else { "replica" }.to_owned())];
        let sender_floor = match self.role {
            ServerRole::Standby => floors.get("max_wal_senders").copied().unwrap_or(0),
            ServerRole::Primary => 0,
        };
        for (name, floor) in [("max_wal_senders", sender_floor), ("max_replication_slots", 0)] {
            let value = wanted(name).unwrap_or(0).max(senders).max(floor);
            lines.push((name, value.to_string()));
        }
        if self.role == ServerRole::Standby {
            for (name, floor) in floors.iter().filter(|(name, _)| **name != "max_wal_senders") {
                lines.push((name, wanted(name).unwrap_or(0).max(*floor).to_string()));
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str], k: usize) -> SyncSet {
        SyncSet { members: names.iter().map(|n| MemberId::new(*n).unwrap()).collect(), k }
    }

    #[test]
    fn sync_names_read_back_what_they_say() {
        for (sync, durability, text) in [
            (set(&[], 0), Durability::Quorum, ""),
            (set(&["b", "c-1"], 1), Durability::Quorum, r#"ANY 1 ("b", "c-1")"#),
            (set(&["b", "c"], 1), Durability::Sync, r#"FIRST 1 ("c", "b")"#),
            (set(&["b"], 2), Durability::Quorum, r#"ANY 2 ("b", "(nobody)")"#),
            (set(&[], 1), Durability::Quorum, r#"ANY 1 ("(nobody)")"#),
        ] {
            let order = [MemberId::new("c").unwrap()];
            assert_eq!(render_sync(&sync, durability, &order), text);
            assert_eq!(parse_sync(text), Some(sync));
        }
        for foreign in ["*", "b, c", "2 (a, b)", "ANY x (a)", "ANY 1 (A b)", "ANY 1 (a"] {
            assert_eq!(parse_sync(foreign), None, "{foreign}");
        }
    }
}
