//! Which PostgreSQL parameters sempre manages itself, and whether a user's value is right.

use crate::{Error, Instance, Result, command, files};
use std::{collections::BTreeMap, time::Duration};

/// A parameter that cannot be set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadParameter {
    /// sempre sets it.
    #[error("PostgreSQL parameter `{name}` is managed by sempre: {reason}")]
    Managed {
        /// Its name.
        name: String,
        /// Why, and what to do instead.
        reason: &'static str,
    },
    /// Not a name.
    #[error("`{name}` is not a name of a PostgreSQL parameter")]
    Name {
        /// What was given.
        name: String,
    },
    /// The value does not fit.
    #[error("`{value}` does not fit PostgreSQL parameter `{name}`: {reason}")]
    Value {
        /// Its name.
        name: String,
        /// What was given.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
}

const MEMBER: &str = "it follows from the member's own configuration file";
const POLICY: &str =
    "it follows from the policy (durability, sync_count); see `sempre config show`";
const REPLICATION: &str = "it follows from who is primary";
const REWIND: &str = "it must be on, or an old primary could not be brought back by a rewind";
const LOSS: &str = "it must be on, or acknowledged commits could be lost";
const RECOVERY: &str = "restores are done by `sempre restore`";
const HBA: &str = "client lines of pg_hba.conf are set with `sempre config`";

/// Parameters a user cannot set, with the reason.
const MANAGED: [(&str, &str); 35] = [
    ("config_file", MEMBER),
    ("data_directory", MEMBER),
    ("hba_file", HBA),
    ("ident_file", HBA),
    ("listen_addresses", MEMBER),
    ("port", MEMBER),
    ("unix_socket_directories", MEMBER),
    ("cluster_name", "it is the name of the member"),
    ("primary_conninfo", REPLICATION),
    ("primary_slot_name", REPLICATION),
    ("promote_trigger_file", REPLICATION),
    ("synchronous_standby_names", POLICY),
    ("max_slot_wal_keep_size", "it is the policy's `slot_max_wal_bytes`"),
    ("sync_replication_slots", "it is on where wal_level is logical"),
    ("synchronized_standby_slots", POLICY),
    ("hot_standby", "standbys must answer queries to be observed"),
    ("wal_log_hints", REWIND),
    ("full_page_writes", REWIND),
    ("fsync", LOSS),
    (
        "restart_after_crash",
        "after a crash, clients may be let in only once the standbys have all of the recovered WAL",
    ),
    ("logging_collector", "the guard writes the server's log"),
    ("log_destination", "the guard writes the server's log"),
    ("recovery_target", RECOVERY),
    ("recovery_target_action", RECOVERY),
    ("recovery_target_inclusive", RECOVERY),
    ("recovery_target_lsn", RECOVERY),
    ("recovery_target_name", RECOVERY),
    ("recovery_target_time", RECOVERY),
    ("recovery_target_timeline", "standbys follow the latest timeline"),
    ("recovery_target_xid", RECOVERY),
    ("allow_system_table_mods", "it is for repairs by hand, in single-user mode"),
    ("ignore_checksum_failure", "it spreads damaged pages to every member"),
    ("ignore_invalid_pages", "it hides lost data on standbys"),
    ("zero_damaged_pages", "it destroys data on every member"),
    ("debug_assertions", "it cannot be changed"),
];

/// Parameters a user may raise, but not below what replication needs. They are cleaned out of
/// `postgresql.auto.conf` too, where they would win over us.
pub(crate) const FLOORED: [&str; 3] = ["wal_level", "max_wal_senders", "max_replication_slots"];

/// Does sempre set this parameter itself?
pub fn is_managed(name: &str) -> bool {
    MANAGED.iter().any(|(managed, _)| *managed == name.to_ascii_lowercase())
}

/// Can a user set this parameter to this value? Names and values PostgreSQL itself would refuse
/// are found by [`Instance::check_parameters`].
pub fn check_parameter(name: &str, value: &str) -> std::result::Result<(), BadParameter> {
    let name = name.to_ascii_lowercase();
    let is_name = name.len() <= 63
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_.$".contains(c));
    if !is_name {
        return Err(BadParameter::Name { name });
    }
    if let Some((_, reason)) = MANAGED.iter().find(|(managed, _)| *managed == name) {
        return Err(BadParameter::Managed { name, reason });
    }
    let wrong = |reason: &str| {
        Err(BadParameter::Value {
            name: name.clone(),
            value: value.to_owned(),
            reason: reason.to_owned(),
        })
    };
    if value.contains(['\0', '\n', '\r']) {
        return wrong("it must be one line");
    }
    let lower = value.trim().to_ascii_lowercase();
    match name.as_str() {
        "ssl" if !["on", "true", "yes", "1"].contains(&lower.as_str()) => wrong(
            "it must be on: members replicate encrypted only (what routing offers to clients is the policy's client_tls)",
        ),
        "wal_level" if !["replica", "logical"].contains(&lower.as_str()) => {
            wrong("it must be replica or logical, or standbys could not follow")
        }
        "synchronous_commit" if !["on", "remote_apply"].contains(&lower.as_str()) => wrong(
            "it must be on or remote_apply; for commits that wait for no standby set the policy's durability to async",
        ),
        "max_wal_senders" | "max_replication_slots"
            if lower.parse::<u32>().is_ok_and(|n| n < MIN_SENDERS) =>
        {
            wrong("replication needs at least 10")
        }
        _ => Ok(()),
    }
}

/// The least `max_wal_senders` and `max_replication_slots`: PostgreSQL's own default.
pub(crate) const MIN_SENDERS: u32 = 10;

/// How long a `postgres` that only checks parameters may take.
const CHECK_LIMIT: Duration = Duration::from_secs(10);

impl Instance {
    /// Checks names and values as PostgreSQL itself would, without a running server. Whether
    /// they fit together with the machine (memory, libraries) shows only at a start.
    pub async fn check_parameters(&self, parameters: &BTreeMap<String, String>) -> Result<()> {
        for (name, value) in parameters {
            check_parameter(name, value)?;
        }
        files::private_dir(&self.layout.config_dir)?;
        let empty = self.layout.config_dir.join("empty.conf");
        files::write_atomically(&empty, "")?;
        // One at a time: PostgreSQL stops at the first that is wrong, without naming an unknown
        // one's value, and a caller wants to know which it is.
        for (name, value) in parameters {
            let mut command = command::command(&self.installation.program("postgres"));
            command.arg("-D").arg(&self.layout.data_dir);
            command.arg("-c").arg(format!("config_file={}", empty.display()));
            command.arg("-c").arg(format!("{name}={value}")).args(["-C", "port"]);
            match command::run(command, "", CHECK_LIMIT).await {
                Ok(_) => {}
                Err(Error::Tool { output, .. }) => {
                    let reason = output.split("FATAL:").last().unwrap_or(&output).trim();
                    return Err(Error::Parameter(BadParameter::Value {
                        name: name.clone(),
                        value: value.clone(),
                        reason: reason.to_owned(),
                    }));
                }
                Err(other) => return Err(other),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn managed_and_harmful_parameters_are_refused_with_the_reason() {
        for (name, value, word) in [
            ("port", "1", "configuration file"),
            ("Primary_Conninfo", "", "who is primary"),
            ("fsync", "off", "lost"),
            ("wal_level", "minimal", "standbys"),
            ("ssl", "off", "encrypted"),
            ("synchronous_commit", "local", "durability"),
            ("max_wal_senders", "2", "at least"),
            ("a b", "1", "not a name"),
            ("work_mem", "1\nport=1", "one line"),
        ] {
            let error = check_parameter(name, value).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        for (name, value) in
            [("work_mem", "8MB"), ("wal_level", "logical"), ("pg_stat_statements.max", "1")]
        {
            check_parameter(name, value).unwrap();
        }
    }
}
