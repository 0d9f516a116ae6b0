//! Changes of the policy, as people type them.
//!
//! Keys come from the serde form of [`Policy`], so that a new key needs nothing here but its line
//! in [`KEYS`].

use crate::units::{parse_bytes, parse_ms};
use sempre_model::{
    Policy,
    policy::{PolicyError, nearest},
};
use serde_json::{Map, Value};

/// How a key's value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Milliseconds; `2s` and `500ms` are understood.
    Milliseconds,
    /// Bytes; `16MB` is understood.
    Bytes,
    /// A number of something.
    Count,
    /// Parts per million.
    PartsPerMillion,
    /// `true` or `false` (also `on`, `off`, `yes`, `no`).
    Flag,
    /// One of these words.
    Choice(&'static [&'static str]),
}

/// One key of the policy.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// How it is written.
    pub unit: Unit,
    /// What it means.
    pub meaning: &'static str,
}

const fn key(name: &'static str, unit: Unit, meaning: &'static str) -> Key {
    Key { name, unit, meaning }
}

/// Every key of the policy, in the order of the policy.
pub const KEYS: &[Key] = &[
    key(
        "durability",
        Unit::Choice(&["quorum", "sync", "async"]),
        "What a commit waits for: any `sync_count` of the sync set (quorum), the first `sync_count` by priority (sync), or the primary's own disk alone (async).",
    ),
    key(
        "sync_count",
        Unit::Count,
        "How many standbys must have flushed a commit before it is acknowledged (k).",
    ),
    key(
        "sync_spares",
        Unit::Count,
        "How many standbys more than `sync_count` the sync set holds, so that losing one stalls nothing.",
    ),
    key(
        "strict",
        Unit::Flag,
        "Keep waiting for `sync_count` standbys even when fewer are left: writes stop, instead of going on with fewer copies.",
    ),
    key(
        "max_lag_bytes",
        Unit::Bytes,
        "With durability async: the most WAL that an automatic failover may lose. Also the default of `/readiness`.",
    ),
    key("heartbeat_ms", Unit::Milliseconds, "Interval of heartbeats on every path."),
    key(
        "detect_ms",
        Unit::Milliseconds,
        "A member is missed when it was silent on all paths for this long. At least two heartbeats.",
    ),
    key(
        "path_detect_ms",
        Unit::Milliseconds,
        "A path is taken as lost when it was silent for this long. At least two heartbeats.",
    ),
    key(
        "lease_ttl_ms",
        Unit::Milliseconds,
        "How long one renewal lets the primary serve. At least four heartbeats and the margin.",
    ),
    key(
        "lease_margin_ms",
        Unit::Milliseconds,
        "How much before the end of the lease the guard begins to kill the database.",
    ),
    key(
        "clock_drift_ppm",
        Unit::PartsPerMillion,
        "The largest drift between the rates of two members' clocks that is allowed for.",
    ),
    key(
        "election_min_ms",
        Unit::Milliseconds,
        "Raft: the shortest election time-out. A change takes effect at once, without an election.",
    ),
    key(
        "election_max_ms",
        Unit::Milliseconds,
        "Raft: the longest election time-out, at most 1 minute. It bounds how long no change of the record is possible after its leader is lost.",
    ),
    key(
        "hang_ms",
        Unit::Milliseconds,
        "A database that answers no liveness query for this long is hung, and is replaced.",
    ),
    key(
        "sync_timeout_ms",
        Unit::Milliseconds,
        "A synchronous standby that is gone or silent for this long leaves the sync set.",
    ),
    key(
        "startup_grace_ms",
        Unit::Milliseconds,
        "After a start of everything, how long the last primary is waited for.",
    ),
    key(
        "fast_promotion",
        Unit::Flag,
        "Promote as soon as the sync set is fenced, without waiting for the old lease to end. Clients that still reach the old primary may read stale data until then. Needs durability quorum.",
    ),
    key(
        "on_crash",
        Unit::Choice(&["auto", "restart", "failover"]),
        "When only the database process dies: whichever is estimated to be faster (auto), start it again, or promote a standby.",
    ),
    key(
        "drain_timeout_ms",
        Unit::Milliseconds,
        "Switchover: how long sessions may finish what they do before they are closed.",
    ),
    key(
        "switchover_warm_up_ms",
        Unit::Milliseconds,
        "Switchover: how long it may wait while routing logs the sessions in to the target ahead of it; 0: it does not.",
    ),
    key("switchover_max_lag_bytes", Unit::Bytes, "Switchover: how far behind the target may be."),
    key("route_max_lag_bytes", Unit::Bytes, "Read-only routing: how far behind a standby may be."),
    key(
        "route_read_only_fallback",
        Unit::Flag,
        "Read-only routing: go to the primary when no standby fits.",
    ),
    key(
        "route_stale_reads",
        Unit::Flag,
        "Read-only routing: while no primary is known, go to standbys although nobody knows how far behind they are.",
    ),
    key(
        "route_hold_max",
        Unit::Count,
        "Routing: how many connections are held while there is no primary.",
    ),
    key("route_hold_timeout_ms", Unit::Milliseconds, "Routing: how long a connection is held."),
    key(
        "client_tls",
        Unit::Flag,
        "Routing: offer TLS to clients. Off, a client that asks for it is answered that there is none, as long as the database's certificate is the cluster's own; one of the administrator's is always offered.",
    ),
    key(
        "slot_max_wal_bytes",
        Unit::Bytes,
        "The most WAL that a replication slot may keep back; 0: no limit.",
    ),
    key(
        "logical_slots",
        Unit::Flag,
        "With parameter `wal_level = logical`: standbys keep copies of the primary's logical replication slots, so that their readers go on after a change of primary. From PostgreSQL 17 on, the server itself does so for slots made with `failover`, whatever this says.",
    ),
    key(
        "archive_in_sync_set",
        Unit::Flag,
        "Where fewer standbys are left than a commit waits for, it waits for repositories in their place: what they have is not lost with every database.",
    ),
    key(
        "recover_from_backup",
        Unit::Flag,
        "When no standby is left, a member without data restores itself from a repository of the sync set, and becomes primary.",
    ),
    key(
        "recover_from_backup_after_ms",
        Unit::Milliseconds,
        "How long the last primary is waited for before that.",
    ),
    key(
        "backup_interval_ms",
        Unit::Milliseconds,
        "Backups: a base backup is made so often in each repository; 0: only when asked for.",
    ),
    key(
        "backup_max_bytes_per_s",
        Unit::Bytes,
        "Backups: the most that a base backup reads, a second; 0: no limit.",
    ),
    key(
        "backup_refuse_wrong_pages",
        Unit::Flag,
        "Backups: none is made of a database with pages whose checksums are wrong. Else it is made, with an alarm.",
    ),
    key(
        "backup_keep_last",
        Unit::Count,
        "Backups: so many of the newest are kept. With none of these rules, all are.",
    ),
    key(
        "backup_keep_hourly",
        Unit::Count,
        "Backups: of each of so many hours (that have one) the newest is kept.",
    ),
    key("backup_keep_daily", Unit::Count, "Backups: the same for days (UTC)."),
    key("backup_keep_weekly", Unit::Count, "Backups: the same for weeks."),
    key("backup_keep_monthly", Unit::Count, "Backups: the same for months."),
    key("backup_keep_yearly", Unit::Count, "Backups: the same for years."),
    key(
        "backup_window_ms",
        Unit::Milliseconds,
        "Backups: every moment within this time can be restored: the backups of this time are kept, and the one before.",
    ),
    key(
        "backup_rpo_ms",
        Unit::Milliseconds,
        "Backups: `status` complains when more than this of commits is in no repository; 0: no target.",
    ),
    key(
        "backup_rto_ms",
        Unit::Milliseconds,
        "Backups: `status` complains when the last `sempre drill restore` took longer; 0: no target.",
    ),
    key(
        "drill_interval_ms",
        Unit::Milliseconds,
        "Backups: a restore from each repository is tried so often, by a member that is not the primary, and the time it takes is kept; 0: only when asked for.",
    ),
];

/// The policy after these changes, key and value as typed. All of them are made, or none.
///
/// Values are lenient: `*_ms` take `2s` and `500ms`, `*_bytes` take `16MB`, flags take `on` and
/// `off`. The result is validated as a whole.
pub fn apply_policy_changes(
    policy: &Policy,
    changes: &[(String, String)],
) -> Result<Policy, PolicyError> {
    let mut map = as_map(policy);
    for (name, value) in changes {
        let Some(present) = map.get(name.as_str()) else {
            return Err(PolicyError::UnknownKey {
                key: name.clone(),
                nearest: nearest(name, map.keys().map(String::as_str)),
            });
        };
        let read = read_value(name, present, value)?;
        map.insert(name.clone(), read);
        // One at a time, so that the error names the key it comes from.
        from_map(map.clone()).map_err(|reason| bad(name, value, reason))?;
    }
    let policy = from_map(map).map_err(|reason| {
        PolicyError::Contradiction(format!("the policy cannot be read: {reason}"))
    })?;
    policy.validate()?;
    Ok(policy)
}

/// The policy as pairs of key and value, in the order of the policy, values as they are typed.
pub fn policy_pairs(policy: &Policy) -> Vec<(&'static str, String)> {
    let map = as_map(policy);
    KEYS.iter().map(|key| (key.name, show_value(map.get(key.name)))).collect()
}

fn show_value(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

fn as_map(policy: &Policy) -> Map<String, Value> {
    match serde_json::to_value(policy) {
        Ok(Value::Object(map)) => map,
        // A struct of plain fields always becomes an object.
        _ => Map::new(),
    }
}

fn from_map(map: Map<String, Value>) -> Result<Policy, String> {
    serde_json::from_value(Value::Object(map)).map_err(|error| error.to_string())
}

fn bad(key: &str, value: &str, reason: impl Into<String>) -> PolicyError {
    PolicyError::BadValue { key: key.into(), value: value.into(), reason: reason.into() }
}

/// Reads `value` as the kind that `present` has, with the unit that the key's name ends in.
fn read_value(key: &str, present: &Value, value: &str) -> Result<Value, PolicyError> {
    let value = value.trim();
    match present {
        Value::Bool(_) => match value.to_ascii_lowercase().as_str() {
            "true" | "on" | "yes" | "1" => Ok(Value::Bool(true)),
            "false" | "off" | "no" | "0" => Ok(Value::Bool(false)),
            _ => Err(bad(key, value, "it is neither true nor false")),
        },
        Value::Number(_) if key.ends_with("_ms") => parse_ms(value)
            .map(Value::from)
            .ok_or_else(|| bad(key, value, "give milliseconds, or a unit as in 500ms or 2s")),
        Value::Number(_) if key.ends_with("_bytes") || key.ends_with("_bytes_per_s") => {
            parse_bytes(value)
                .map(Value::from)
                .ok_or_else(|| bad(key, value, "give bytes, or a unit as in 512kB, 16MB or 1GB"))
        }
        Value::Number(_) => value
            .parse::<u64>()
            .map(Value::from)
            .map_err(|_| bad(key, value, "it is not a whole number")),
        _ => Ok(Value::String(value.to_ascii_lowercase())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{show_bytes, show_ms};
    use sempre_model::policy::{Durability, OnCrash};
    use std::{fmt::Write, fs, path::PathBuf};

    fn change(changes: &[(&str, &str)]) -> Result<Policy, PolicyError> {
        let changes: Vec<_> =
            changes.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        apply_policy_changes(&Policy::default(), &changes)
    }

    #[test]
    fn values_are_read_leniently() {
        let expected = Policy {
            lease_ttl_ms: 5_000,
            heartbeat_ms: 120,
            route_max_lag_bytes: 1 << 30,
            strict: true,
            durability: Durability::Sync,
            on_crash: OnCrash::Restart,
            sync_count: 2,
            ..Policy::default()
        };
        let changed = change(&[
            ("lease_ttl_ms", "5s"),
            ("heartbeat_ms", " 120 ms"),
            ("route_max_lag_bytes", "1GB"),
            ("strict", "on"),
            ("durability", "Sync"),
            ("on_crash", "restart"),
            ("sync_count", "2"),
        ]);
        assert_eq!(changed, Ok(expected));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_key() {
        for (key, value, word) in [
            ("lease_tll_ms", "5s", "did you mean `lease_ttl_ms`?"),
            ("zzz", "1", "there is no policy key `zzz`"),
            ("lease_ttl_ms", "soon", "give milliseconds"),
            ("max_lag_bytes", "much", "give bytes"),
            ("strict", "maybe", "neither true nor false"),
            ("sync_count", "-1", "not a whole number"),
            ("durability", "none", "unknown variant"),
            ("lease_ttl_ms", "300ms", "lease_ttl_ms (300) must be at least"),
            ("lease_ttl_ms", "99999999999999999999s", "give milliseconds"),
            ("clock_drift_ppm", "200000", "clock_drift_ppm"),
        ] {
            let error = change(&[(key, value)]).unwrap_err().to_string();
            assert!(error.contains(word), "{key}={value}: {error}");
        }
    }

    #[test]
    fn values_that_fit_only_together_are_taken_together() {
        assert!(change(&[("heartbeat_ms", "1s")]).is_err());
        let together = [
            ("heartbeat_ms", "1s"),
            ("detect_ms", "3s"),
            ("path_detect_ms", "2s"),
            ("lease_ttl_ms", "10s"),
            ("election_min_ms", "2s"),
            ("election_max_ms", "4s"),
        ];
        assert!(change(&together).is_ok());
    }

    #[test]
    fn every_key_is_described_in_order() {
        let described: Vec<_> = KEYS.iter().map(|key| key.name).collect();
        // The struct's own order, which a map would lose.
        let toml_order: Vec<String> = serde_json::to_string(&Policy::default())
            .unwrap()
            .trim_matches(['{', '}'])
            .split(',')
            .map(|pair| pair.split(':').next().unwrap().trim_matches('"').to_owned())
            .collect();
        assert_eq!(described, toml_order);
        for key in KEYS {
            let by_name = match key.name {
                name if name.ends_with("_ms") => Unit::Milliseconds,
                name if name.ends_with("_bytes") => Unit::Bytes,
                name if name.ends_with("_ppm") => Unit::PartsPerMillion,
                _ => key.unit,
            };
            assert_eq!(key.unit, by_name, "{}", key.name);
            if let Unit::Choice(words) = key.unit {
                for word in words {
                    let changed = change(&[(key.name, word)]);
                    assert!(changed.is_ok(), "{}={word}: {changed:?}", key.name);
                }
            }
        }
    }

    fn document() -> String {
        let defaults = as_map(&Policy::default());
        let mut text = String::from(
            "# Policy\n\nEvery key can be changed at run time: `sempre config set lease_ttl_ms=5s`. \
             The whole is checked before it is accepted, so values that fit only together are \
             given together. Times take `500ms`, `2s`, `3min`; sizes take `512kB`, `16MB`, `1GB`.\n\n\
             | key | unit | default | meaning |\n|---|---|---|---|\n",
        );
        for key in KEYS {
            let value = show_value(defaults.get(key.name));
            let number = value.parse().unwrap_or(0);
            let (unit, default) = match key.unit {
                Unit::Milliseconds => ("ms".into(), format!("{value} ({})", show_ms(number))),
                Unit::Bytes => ("bytes".into(), format!("{value} ({})", show_bytes(number))),
                Unit::Count => ("number".into(), value),
                Unit::PartsPerMillion => ("ppm".into(), value),
                Unit::Flag => ("true, false".into(), value),
                Unit::Choice(words) => (words.join(", "), value),
            };
            writeln!(text, "| `{}` | {unit} | {default} | {} |", key.name, key.meaning).unwrap();
        }
        text
    }

    /// `SEMPRE_BLESS=1 cargo test -p sempre-api` writes the table.
    #[test]
    fn the_table_in_the_documentation_is_complete() {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/policy.md");
        if std::env::var_os("SEMPRE_BLESS").is_some() {
            fs::write(&path, document()).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap_or_default(), document());
    }
}
