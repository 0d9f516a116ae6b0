//! Logical slots before PostgreSQL 17, where the server starts and where it becomes primary. What
//! is done with them in between is in `logical_slots.rs`.

use super::{Executor, JobContext};
use crate::{
    logical_slots::{SERVER_COPIES_FROM, SLOTS_ON_STANDBYS_FROM, SlotNote, SlotNotes, is_logical},
    looper::Event,
    member_dir::Applied,
};
use anyhow::{Context, Result};
use sempre_model::{MemberId, Phase, Record, command::Change};
use sempre_postgres::Session;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::timeout};

/// A start of a standby waits for copies of slots no longer than this.
const BRING_WITHIN: Duration = Duration::from_secs(5);
/// Neither does a promotion, which clients wait for, for copies that are dropped.
const SETTLE_WITHIN: Duration = Duration::from_secs(1);

impl Executor {
    /// What is known of logical slots.
    pub(crate) fn slot_notes(&self) -> SlotNotes {
        self.dir.slot_notes()
    }

    /// Writes it down, if it is news.
    pub(crate) fn keep_slot_notes(&self, notes: SlotNotes) -> Result<()> {
        if self.slot_notes().slots != notes.slots {
            self.dir.set_slot_notes(notes)?;
        }
        Ok(())
    }

    /// The private connection to one database.
    pub(crate) async fn session_in(&self, database: &str) -> Result<Session> {
        let record = self.record();
        let cluster = record.cluster.as_ref().context("not initialised")?;
        Ok(self.instance.session_in(&cluster.secrets.admin, database).await?)
    }
}

impl JobContext {
    /// For what is no job: it knows the members' addresses from the record alone.
    pub(crate) fn outside(
        executor: &Arc<Executor>,
        record: &Arc<Record>,
        events: &mpsc::Sender<Event>,
    ) -> Self {
        Self {
            executor: executor.clone(),
            record: record.clone(),
            applied: Applied::default(),
            lease: None,
            hosts: BTreeMap::new(),
            settings_change: 0,
            events: events.clone(),
        }
    }

    /// A connection to another member's database.
    pub(crate) async fn remote(&self, member: &MemberId) -> Result<Session> {
        let cluster = self.record.cluster.as_ref().context("not initialised")?;
        let upstream = self.upstream(member)?;
        Ok(self.instance().remote_session(&upstream, &cluster.secrets.admin).await?)
    }

    /// Before a start as a standby, which does not depend on it: copies of the primary's logical
    /// slots that are not here yet.
    pub(crate) async fn bring_logical_slots(&self, upstream: Option<&MemberId>) {
        if self.instance().installation.major >= SERVER_COPIES_FROM {
            return;
        }
        let brought = timeout(BRING_WITHIN, self.bring(upstream)).await;
        match brought.map_err(anyhow::Error::from).and_then(|done| done) {
            Ok(()) => {}
            Err(error) => tracing::warn!(
                error = format!("{error:#}"),
                "the primary's logical slots are not copied yet"
            ),
        }
    }

    async fn bring(&self, upstream: Option<&MemberId>) -> Result<()> {
        let instance = self.instance();
        let present = instance.installed_logical_slots()?;
        if !is_logical(&self.record) {
            // The server would not start with them.
            for name in present {
                tracing::warn!(slot = name, "a logical slot is removed: wal_level is not logical");
                instance.remove_logical_slot(&name)?;
            }
            return Ok(());
        }
        let primary = upstream.filter(|u| self.record.primary.as_ref() == Some(*u));
        let (Some(primary), Phase::Serving, true) =
            (primary, &self.record.phase, self.record.policy.logical_slots)
        else {
            return Ok(());
        };
        let session = self.remote(primary).await?;
        let mut notes = self.executor.slot_notes();
        for slot in session.logical_slots().await? {
            if slot.lost || present.contains(&slot.name) {
                continue;
            }
            let copied = session.copy_logical_slot(&slot.name).await;
            let note = match copied.and_then(|copy| instance.install_logical_slot(&copy)) {
                Ok(()) => {
                    tracing::info!(slot = slot.name, "a logical slot is copied from the primary");
                    SlotNote::unusable("its copy has just been made")
                }
                Err(error) => {
                    tracing::warn!(slot = slot.name, %error, "a logical slot is not copied");
                    SlotNote::unusable(error.to_string())
                }
            };
            notes.slots.insert(slot.name, note);
        }
        self.executor.keep_slot_notes(notes)
    }

    /// After a promotion, before clients come in: copies that are not known to be whole are
    /// dropped, as reading from them could miss changes or fail. Returns what is to be told.
    pub(crate) async fn settle_logical_slots(&self, session: &Session) -> Vec<Change> {
        let major = self.instance().installation.major;
        if major >= SERVER_COPIES_FROM {
            return Vec::new();
        }
        let notes = self.executor.slot_notes();
        if notes.slots.is_empty() && !is_logical(&self.record) {
            return Vec::new();
        }
        let mut gone = BTreeMap::new();
        let settle = self.settle(session, &notes, &mut gone);
        match timeout(SETTLE_WITHIN, settle).await.map_err(anyhow::Error::from).and_then(|r| r) {
            Ok(()) => {}
            Err(error) => tracing::error!(
                error = format!("{error:#}"),
                "copies of logical slots that may not be whole could not all be dropped"
            ),
        }
        let me = &self.instance().me;
        let told = gone.into_iter().map(|(name, why)| {
            let text = format!(
                "logical slot `{name}` did not come along to {me}: {why}. Its reader needs a new slot and a new copy of the data"
            );
            tracing::error!("{text}");
            Change::Note { rule: "logical-slots".into(), text }
        });
        told.collect()
    }

    async fn settle(
        &self,
        session: &Session,
        notes: &SlotNotes,
        gone: &mut BTreeMap<String, String>,
    ) -> Result<()> {
        let served = self.record.history.last().map(|entry| entry.generation);
        let slots = session.logical_slots().await?;
        let here = |name: &String| slots.iter().any(|s| s.name == *name);
        for (name, note) in notes.slots.iter().filter(|(name, _)| !here(name)) {
            let why = match note.why_not.as_str() {
                "" => "its copy went with the data directory that was replaced",
                known => known,
            };
            gone.insert(name.clone(), why.to_owned());
        }
        for slot in &slots {
            let why = match notes.slots.get(&slot.name) {
                Some(note) if served.is_some() && note.usable_after == served && !slot.lost => {
                    tracing::info!(slot = slot.name, "a logical slot goes on here");
                    continue;
                }
                Some(note) if note.why_not.is_empty() => "its copy was not yet confirmed".into(),
                Some(note) => note.why_not.clone(),
                // A user's own, made on the standby.
                None if self.instance().installation.major >= SLOTS_ON_STANDBYS_FROM => continue,
                None => "nothing is known of it".into(),
            };
            gone.insert(slot.name.clone(), why);
            // It may still be being moved on, for a moment.
            while !session.drop_logical_slot(&slot.name).await? {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        Ok(())
    }
}
