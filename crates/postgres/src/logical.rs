//! Logical replication slots that survive a change of primary.
//!
//! From PostgreSQL 17 on the server does it itself, for slots made with `failover`: with
//! `wal_level = logical` in the record's parameters, [`crate::Settings`] turns
//! `sync_replication_slots` on. Before that, a standby gets a copy of the slot's state file while
//! it is stopped ([`Instance::install_logical_slot`]), and then follows the primary's slot
//! ([`Session::advance_logical_slot`]). Standbys need `hot_standby_feedback`, which the settings
//! turn on too, or rows of the catalog that a slot still needs are gone.

use crate::{
    Error, Instance, Result, Session, files,
    session::{get, lsn},
    wal::segment_name,
};
use sempre_model::ids::{Lsn, Timeline};

/// PostgreSQL's longest slot name, bytes.
const NAME_MAX: usize = 63;
/// A state file is about 200 bytes; more than this is something else.
const STATE_MAX: usize = 64 << 10;

/// A logical replication slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogicalSlot {
    /// Its name.
    pub name: String,
    /// Its output plugin.
    pub plugin: String,
    /// Its database.
    pub database: String,
    /// Somebody reads from it.
    pub active: bool,
    /// From where it keeps WAL.
    pub restart_lsn: Lsn,
    /// What its reader has confirmed.
    pub confirmed_lsn: Lsn,
    /// It was left behind: useless.
    pub lost: bool,
}

impl Session {
    /// The permanent logical slots.
    pub async fn logical_slots(&self) -> Result<Vec<LogicalSlot>> {
        let doing = "tell its logical slots";
        let sql = "SELECT slot_name::text, plugin::text, database::text, active, \
             restart_lsn::text, confirmed_flush_lsn::text, coalesce(wal_status = 'lost', false) \
             FROM pg_replication_slots WHERE slot_type = 'logical' AND NOT temporary \
             ORDER BY slot_name";
        let rows = self.rows(doing, sql, &[]).await?;
        rows.iter()
            .map(|row| {
                Ok(LogicalSlot {
                    name: get(row, 0, doing)?,
                    plugin: get(row, 1, doing)?,
                    database: get(row, 2, doing)?,
                    active: get(row, 3, doing)?,
                    restart_lsn: lsn(row, 4, doing)?,
                    confirmed_lsn: lsn(row, 5, doing)?,
                    lost: get(row, 6, doing)?,
                })
            })
            .collect()
    }

    /// The state file of a slot as the last checkpoint wrote it, to be installed on a standby.
    pub async fn logical_slot_state(&self, name: &str) -> Result<Vec<u8>> {
        check_name(name)?;
        let doing = "read the state of a logical slot";
        let file = format!("pg_replslot/{name}/state");
        get(&self.row(doing, "SELECT pg_read_binary_file($1)", &[&file]).await?, 0, doing)
    }

    /// Moves a logical slot of a standby on to what the primary's reader has confirmed. It does
    /// not go back, or past what is replayed here. Before PostgreSQL 17; a session of the
    /// slot's database is needed, which must be `postgres` then.
    pub async fn advance_logical_slot(&self, name: &str, to: Lsn) -> Result<()> {
        check_name(name)?;
        let doing = "move a logical slot on";
        let sql = "SELECT count(pg_replication_slot_advance(slot_name, \
             least($2::text::pg_lsn, pg_last_wal_replay_lsn()))) FROM pg_replication_slots \
             WHERE slot_name = $1::text::name AND slot_type = 'logical' AND NOT active \
             AND confirmed_flush_lsn < least($2::text::pg_lsn, pg_last_wal_replay_lsn())";
        self.row(doing, sql, &[&name, &to.to_string()]).await.map(|_| ())
    }

    /// Drops a logical slot nobody reads from, if it is there.
    pub async fn drop_logical_slot(&self, name: &str) -> Result<()> {
        check_name(name)?;
        let sql = "SELECT count(pg_drop_replication_slot(slot_name)) FROM pg_replication_slots \
             WHERE slot_name = $1::text::name AND slot_type = 'logical' AND NOT active";
        self.row("drop a logical slot", sql, &[&name]).await.map(|_| ())
    }
}

impl Instance {
    /// Puts a copy of another member's logical slot into the stopped data directory.
    ///
    /// The WAL from the slot's `restart_lsn` on must be here: a fresh copy of the cluster has it
    /// only after the slot's reader has read on for a while.
    pub fn install_logical_slot(&self, slot: &LogicalSlot, state: &[u8]) -> Result<()> {
        let name = slot.name.as_str();
        check_name(name)?;
        self.refuse_running("put a logical slot into")?;
        if !self.has_wal(slot.restart_lsn)? {
            return Err(Error::DataDir {
                doing: "put a logical slot into",
                data_dir: self.layout.data_dir.clone(),
                why: format!(
                    "slot `{name}` needs WAL from {} on, which is not here; try again when its reader has read on",
                    slot.restart_lsn
                ),
            });
        }
        if state.is_empty() || state.len() > STATE_MAX {
            return Err(Error::Format {
                what: format!("the state of logical slot `{name}`"),
                why: format!("it has {} bytes", state.len()),
            });
        }
        let slots = self.layout.data_dir.join("pg_replslot");
        let dir = slots.join(name);
        // PostgreSQL removes folders of this name at a start: an unfinished one does no harm.
        let work = slots.join(format!("{name}.tmp"));
        files::remove_tree(&work)?;
        files::private_dir(&work)?;
        files::write_bytes_atomically(&work.join("state"), state)?;
        files::remove_tree(&dir)?;
        std::fs::rename(&work, &dir).map_err(Error::io("put in place", &dir))?;
        files::sync_dir(&slots)
    }
}

impl Instance {
    /// Is the WAL at this position here, on whichever timeline?
    fn has_wal(&self, at: Lsn) -> Result<bool> {
        let bytes = self.control_data()?.wal_segment_bytes;
        let wanted = segment_name(Timeline(0), at.0 / bytes, bytes);
        let dir = self.wal_dir();
        let mut entries = std::fs::read_dir(&dir).map_err(Error::io("read", &dir))?.flatten();
        Ok(entries.any(|e| e.file_name().to_str().and_then(|n| n.get(8..)) == wanted.get(8..)))
    }
}

fn check_name(name: &str) -> Result<()> {
    let right = !name.is_empty()
        && name.len() <= NAME_MAX
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if right {
        return Ok(());
    }
    Err(Error::Format {
        what: format!("the slot name `{name}`"),
        why: "it may have lower-case letters, digits and `_` only".into(),
    })
}
