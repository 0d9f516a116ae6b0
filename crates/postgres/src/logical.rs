//! Logical replication slots that survive a change of primary.
//!
//! From PostgreSQL 17 on the server does it itself, for slots made with `failover`: with
//! `wal_level = logical` in the record's parameters, [`crate::Settings`] turns
//! `sync_replication_slots` on. Before that, a standby gets a copy of the slot while it is stopped
//! ([`crate::SlotCopy`]), and then follows the primary's slot ([`Session::advance_logical_slot`]).
//! Standbys need `hot_standby_feedback`, which the settings turn on too, or rows of the catalog
//! that a slot still needs are gone.

use crate::{
    Error, Instance, Result, Session,
    session::{get, lsn},
};
use sempre_model::ids::Lsn;

/// PostgreSQL's longest slot name, bytes.
const NAME_MAX: usize = 63;

/// A transaction's number. They wrap around, so only two that are near can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Xid(pub u32);

impl Xid {
    /// Is it `other`, or one after it?
    pub fn is_at_least(self, other: Xid) -> bool {
        self.0.wrapping_sub(other.0) < 1 << 31
    }
}

/// A logical replication slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogicalSlot {
    /// Its name.
    pub name: String,
    /// Its output plugin.
    pub plugin: String,
    /// Its database.
    pub database: String,
    /// It decodes prepared transactions.
    pub two_phase: bool,
    /// Somebody reads from it.
    pub active: bool,
    /// From where it keeps WAL.
    pub restart_lsn: Lsn,
    /// What its reader has confirmed.
    pub confirmed_lsn: Lsn,
    /// Rows of the catalog that this transaction or a later one removed are kept.
    pub catalog_xmin: Option<Xid>,
    /// It was left behind: useless.
    pub lost: bool,
    /// PostgreSQL 17: the server copies it to standbys.
    pub failover: bool,
    /// PostgreSQL 17: it is such a copy.
    pub synced: bool,
}

impl LogicalSlot {
    /// Can one be a copy of the other?
    pub fn is_like(&self, other: &LogicalSlot) -> bool {
        let key =
            |s: &LogicalSlot| (s.name.clone(), s.plugin.clone(), s.database.clone(), s.two_phase);
        key(self) == key(other)
    }
}

/// The columns of later versions are null in earlier ones.
const SLOTS: &str = "SELECT slot_name::text, plugin::text, database::text, active, \
     restart_lsn::text, confirmed_flush_lsn::text, coalesce(wal_status = 'lost', false), \
     catalog_xmin::text, coalesce(two_phase, false), \
     coalesce((to_jsonb(s)->>'failover')::boolean, false), \
     coalesce((to_jsonb(s)->>'synced')::boolean, false) \
     FROM pg_replication_slots s WHERE slot_type = 'logical' AND NOT temporary \
     ORDER BY slot_name";

impl Session {
    /// The permanent logical slots.
    pub async fn logical_slots(&self) -> Result<Vec<LogicalSlot>> {
        let doing = "tell its logical slots";
        let rows = self.rows(doing, SLOTS, &[]).await?;
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
                    catalog_xmin: xid(get(row, 7, doing)?),
                    two_phase: get(row, 8, doing)?,
                    failover: get(row, 9, doing)?,
                    synced: get(row, 10, doing)?,
                })
            })
            .collect()
    }

    /// From which transaction on a physical slot (a standby's) keeps rows of the catalog.
    pub async fn held_catalog_xmin(&self, slot: &str) -> Result<Option<Xid>> {
        let doing = "tell what a standby's slot holds";
        let sql = "SELECT catalog_xmin::text FROM pg_replication_slots \
             WHERE slot_name = $1::text::name AND slot_type = 'physical'";
        let rows = self.rows(doing, sql, &[&slot]).await?;
        rows.first().map_or(Ok(None), |row| Ok(xid(get(row, 0, doing)?)))
    }

    /// Moves a logical slot of a standby on to what the primary's reader has confirmed. It does
    /// not go back, or past what is replayed here. Before PostgreSQL 17; a session of the
    /// slot's database is needed ([`Instance::session_in`]), and as much time as decoding the WAL
    /// from its `restart_lsn` takes.
    pub async fn advance_logical_slot(&self, name: &str, to: Lsn) -> Result<()> {
        check_name(name)?;
        let doing = "move a logical slot on";
        let sql = "SELECT count(pg_replication_slot_advance(slot_name, \
             least($2::text::pg_lsn, pg_last_wal_replay_lsn()))) FROM pg_replication_slots \
             WHERE slot_name = $1::text::name AND slot_type = 'logical' AND NOT active \
             AND confirmed_flush_lsn < least($2::text::pg_lsn, pg_last_wal_replay_lsn())";
        self.row(doing, sql, &[&name, &to.to_string()]).await.map(|_| ())
    }

    /// Drops a logical slot nobody reads from. Returns whether it is gone.
    pub async fn drop_logical_slot(&self, name: &str) -> Result<bool> {
        check_name(name)?;
        let doing = "drop a logical slot";
        let sql = "SELECT count(pg_drop_replication_slot(slot_name)) FROM pg_replication_slots \
             WHERE slot_name = $1::text::name AND slot_type = 'logical' AND NOT active";
        self.row(doing, sql, &[&name]).await?;
        let sql = "SELECT count(*) = 0 FROM pg_replication_slots WHERE slot_name = $1::text::name";
        get(&self.row(doing, sql, &[&name]).await?, 0, doing)
    }
}

impl Instance {
    /// Connects to one database of the running server. Statements may take up to 5 minutes:
    /// moving a logical slot on decodes all WAL since its last move.
    pub async fn session_in(&self, admin_password: &str, database: &str) -> Result<Session> {
        let session = self.session_of(admin_password, database).await?;
        session.execute("SET statement_timeout = '5min'").await?;
        Ok(session)
    }
}

fn xid(text: Option<String>) -> Option<Xid> {
    text.and_then(|t| t.parse().ok()).map(Xid)
}

/// The names PostgreSQL gives slots; anything else could leave the folder.
pub(crate) fn check_name(name: &str) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_are_compared_across_the_wrap() {
        assert!(Xid(5).is_at_least(Xid(5)) && Xid(6).is_at_least(Xid(5)));
        assert!(!Xid(4).is_at_least(Xid(5)));
        assert!(Xid(3).is_at_least(Xid(u32::MAX)) && !Xid(u32::MAX).is_at_least(Xid(3)));
    }
}
