//! Physical replication slots: each member keeps one for each other, so that any of them can be
//! the next primary without having lost WAL the others need.

use crate::{
    Result, Session,
    session::{get, lsn},
};
use sempre_model::ids::{Lsn, MemberId};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// How often it is tried to free a slot, and how long it is waited for each time. A standby connects
/// again after `wal_retrieve_retry_interval`, 100 ms.
const FREE_TRIES: usize = 50;
const FREE_POLL: Duration = Duration::from_millis(10);

/// A physical slot of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its name, `sempre_<member>`.
    pub name: String,
    /// The process that uses it.
    pub active_pid: Option<i32>,
    /// From where it keeps WAL; 0: nothing yet.
    pub restart_lsn: Lsn,
    /// It was left behind by the size limit: useless.
    pub lost: bool,
}

impl Session {
    /// The slots whose names begin with `sempre_`.
    pub async fn slots(&self) -> Result<Vec<Slot>> {
        let doing = "tell its replication slots";
        let sql = "SELECT slot_name::text, active_pid, restart_lsn::text, \
             coalesce(wal_status = 'lost', false) FROM pg_replication_slots \
             WHERE slot_type = 'physical' AND NOT temporary AND starts_with(slot_name::text, 'sempre_') \
             ORDER BY slot_name";
        let rows = self.rows(doing, sql, &[]).await?;
        rows.iter()
            .map(|row| {
                Ok(Slot {
                    name: get(row, 0, doing)?,
                    active_pid: get(row, 1, doing)?,
                    restart_lsn: lsn(row, 2, doing)?,
                    lost: get(row, 3, doing)?,
                })
            })
            .collect()
    }

    /// Makes the slots of `wanted` members that are missing (keeping WAL from now on), replaces
    /// lost ones, and drops those of others. Returns the names of those made and dropped.
    ///
    /// Where another's slot is in use, its connection is ended. Whoever has it comes again soon, not
    /// knowing that it is no member any more: so the slot is dropped the moment that it is free.
    pub async fn ensure_slots(&self, wanted: &BTreeSet<MemberId>) -> Result<Vec<String>> {
        let wanted: BTreeSet<String> = wanted.iter().map(MemberId::slot_name).collect();
        let present = self.slots().await?;
        let mut changed = Vec::new();
        for slot in &present {
            let keep = wanted.contains(&slot.name);
            if keep && !slot.lost {
                continue;
            }
            if slot.active_pid.is_some() && (keep || !self.free_slot(slot).await?) {
                continue;
            }
            let sql = "SELECT pg_drop_replication_slot($1::text::name)";
            self.row("drop a replication slot", sql, &[&slot.name]).await?;
            changed.push(slot.name.clone());
        }
        let dropped: BTreeSet<String> = changed.iter().cloned().collect();
        for name in &wanted {
            if present.iter().any(|s| s.name == *name) && !dropped.contains(name) {
                continue;
            }
            let sql = "SELECT pg_create_physical_replication_slot($1::text::name, true)";
            self.row("make a replication slot", sql, &[name]).await?;
            changed.push(name.clone());
        }
        Ok(changed)
    }

    /// Ends the connection that uses a slot. True: the slot is there, and free.
    async fn free_slot(&self, slot: &Slot) -> Result<bool> {
        let mut user = slot.active_pid;
        for _ in 0..FREE_TRIES {
            let sql = "SELECT pg_terminate_backend($1)";
            self.row("free a replication slot", sql, &[&user]).await?;
            tokio::time::sleep(FREE_POLL).await;
            let slots = self.slots().await?;
            let Some(now) = slots.iter().find(|now| now.name == slot.name) else { break };
            user = now.active_pid;
            if user.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Moves unused slots on to what their members have, so that they do not keep WAL for ever.
    /// For a standby, whose slots nobody uses: `positions` is what each member has flushed. No
    /// slot goes back, or past what this server has replayed itself. Returns how many moved.
    pub async fn advance_slots(&self, positions: &BTreeMap<MemberId, Lsn>) -> Result<usize> {
        let doing = "move a replication slot on";
        let by_name: BTreeMap<String, Lsn> =
            positions.iter().map(|(member, lsn)| (member.slot_name(), *lsn)).collect();
        let sql = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
             ELSE pg_current_wal_flush_lsn() END::text";
        let reached = lsn(&self.row(doing, sql, &[]).await?, 0, doing)?;
        let mut moved = 0;
        for slot in self.slots().await? {
            let Some(to) = by_name.get(&slot.name).map(|lsn| (*lsn).min(reached)) else { continue };
            let idle = slot.active_pid.is_none() && !slot.lost && slot.restart_lsn.0 > 0;
            if !idle || to <= slot.restart_lsn {
                continue;
            }
            let sql = "SELECT pg_replication_slot_advance($1::text::name, $2::text::pg_lsn)";
            match self.row(doing, sql, &[&slot.name, &to.to_string()]).await {
                Ok(_) => moved += 1,
                // Its member may just have connected; then it moves by itself.
                Err(error) => tracing::debug!(slot = slot.name, %error, "a slot was not moved on"),
            }
        }
        Ok(moved)
    }
}
