//! Logical replication slots follow the primary's, so that their readers go on after a change of
//! primary (policy key `logical_slots`; parameter `wal_level = logical`).
//!
//! Before PostgreSQL 17, each standby that streams from the primary has a copy of each of its
//! permanent logical slots. It gets one while it starts (`executor/logical_slots.rs`); here, the
//! copies are moved on to what the primary's reader has confirmed, dropped with the primary's,
//! and judged: a copy is usable once it is sure that no row of the catalog that it needs has been
//! vacuumed away. A standby that lacks a copy asks to be restarted, one standby after the other.
//!
//! From PostgreSQL 17 on the server copies slots made with `failover` itself, as long as no slot
//! of the same name is left on a member from its time as primary: those are dropped.

mod notes;

pub use notes::{SlotNote, SlotNotes};

use crate::{clock, executor::Executor, executor::JobContext, looper::Event, looper::Shown};
use anyhow::{Context, Result};
use sempre_consensus::Consensus;
use sempre_model::{
    Command, Generation, Lsn, MemberId, Phase, Record,
    command::Change,
    observation::{ProcessState, Role},
};
use sempre_postgres::{LogicalSlot, Session, Xid};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};

/// Between two rounds. A reader that keeps no position of its own gets what it confirmed in the
/// last round before a failover twice.
const ROUND: Duration = Duration::from_secs(2);
/// The first version whose servers copy slots by themselves.
pub(crate) const SERVER_COPIES_FROM: u32 = 17;
/// From this version on users make logical slots of their own on standbys.
pub(crate) const SLOTS_ON_STANDBYS_FROM: u32 = 16;
/// A copy is moved on by so many bytes of WAL at the most at a time: each move decodes them, and
/// one that takes longer than a statement may would be repeated for ever.
const ADVANCE_BYTES: u64 = 256 << 20;
/// A slot is missing for this long before a standby restarts for it: several are often made
/// together.
const SETTLED: Duration = Duration::from_secs(3);
/// Standbys restart so far apart, by name; none takes nearly as long.
const APART: Duration = Duration::from_secs(10);
/// A slot that could not be copied after so many restarts waits for the next regular one.
const RESTARTS_MAX: u32 = 3;
/// Members whose last word is older are not known to stream, ms.
const FRESH_MS: u64 = 2_000;

/// Keeps one member's copies.
pub struct SlotKeeper {
    executor: Arc<Executor>,
    consensus: Arc<dyn Consensus>,
    shown: watch::Receiver<Arc<Shown>>,
    events: mpsc::Sender<Event>,
    own: Option<Session>,
    primary: Option<(Generation, Session)>,
    /// A slot is moved on from within its own database.
    databases: BTreeMap<String, Session>,
    /// From which transaction on a copy is safe, and in which generation that was found.
    needs: BTreeMap<String, (Option<Generation>, Xid)>,
    missing: BTreeMap<String, Instant>,
    restarts: BTreeMap<String, u32>,
}

impl SlotKeeper {
    /// `shown` is the loop's own view.
    pub fn new(
        executor: Arc<Executor>,
        consensus: Arc<dyn Consensus>,
        shown: watch::Receiver<Arc<Shown>>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        Self {
            executor,
            consensus,
            shown,
            events,
            own: None,
            primary: None,
            databases: BTreeMap::new(),
            needs: BTreeMap::new(),
            missing: BTreeMap::new(),
            restarts: BTreeMap::new(),
        }
    }

    /// Works until it is dropped.
    pub async fn run(mut self) {
        loop {
            sleep(ROUND).await;
            if let Err(error) = self.round().await {
                tracing::debug!(error = format!("{error:#}"), "logical slots are looked at again");
                self.rest();
            }
        }
    }

    fn rest(&mut self) {
        self.own = None;
        self.primary = None;
        self.databases.clear();
    }

    async fn round(&mut self) -> Result<()> {
        let shown = self.shown.borrow().clone();
        let record = &shown.record;
        let database = shown.heard.get(&shown.me).and_then(|h| h.observation.database.as_ref());
        let runs = database.filter(|d| d.process == ProcessState::Running);
        let (Some(database), Phase::Serving) = (runs, &record.phase) else {
            self.rest();
            return Ok(());
        };
        if !is_logical(record) && self.executor.slot_notes().slots.is_empty() {
            self.rest();
            return Ok(());
        }
        let is_primary = record.primary.as_ref() == Some(&shown.me);
        match database.role {
            Role::Primary if is_primary => self.note_own().await,
            Role::Standby if !is_primary && self.server_copies() => self.drop_leftovers().await,
            Role::Standby if database.streaming_from == record.primary && !is_primary => {
                self.follow(&shown).await
            }
            _ => {
                self.rest();
                Ok(())
            }
        }
    }

    fn server_copies(&self) -> bool {
        self.executor.instance.installation.major >= SERVER_COPIES_FROM
    }

    async fn own(&mut self) -> Result<&Session> {
        if self.own.as_ref().is_none_or(Session::is_closed) {
            self.own = Some(self.executor.session().await?);
        }
        self.own.as_ref().context("no session")
    }

    async fn primary(&mut self, record: &Arc<Record>) -> Result<&Session> {
        let generation = record.generation;
        let usable =
            |(of, session): &(Generation, Session)| *of == generation && !session.is_closed();
        if !self.primary.as_ref().is_some_and(usable) {
            let name = record.primary.as_ref().context("no primary")?;
            let context = JobContext::outside(&self.executor, record, &self.events);
            self.primary = Some((generation, context.remote(name).await?));
        }
        self.primary.as_ref().map(|(_, session)| session).context("no session")
    }

    /// A primary: which slots are its own, for the time when it is none any more.
    async fn note_own(&mut self) -> Result<()> {
        let slots = self.own().await?.logical_slots().await?;
        let note = || SlotNote::unusable("it is from this member's own time as primary");
        let slots = slots.into_iter().map(|s| (s.name, note())).collect();
        self.executor.keep_slot_notes(SlotNotes { slots, ..SlotNotes::default() })?;
        self.primary = None;
        self.databases.clear();
        Ok(())
    }

    /// From 17 on: what is left on a standby from its time as primary keeps the server from
    /// copying the slots of the present one.
    async fn drop_leftovers(&mut self) -> Result<()> {
        let mut notes = self.executor.slot_notes();
        let own = self.own().await?;
        for slot in own.logical_slots().await? {
            let left = slot.failover || notes.slots.contains_key(&slot.name);
            if left && !slot.synced && own.drop_logical_slot(&slot.name).await? {
                tracing::info!(
                    slot = slot.name,
                    "a logical slot from a time as primary is dropped"
                );
                notes.slots.remove(&slot.name);
            }
        }
        let present = own.logical_slots().await?;
        notes.slots.retain(|name, _| present.iter().any(|s| s.name == *name && !s.synced));
        self.executor.keep_slot_notes(notes)
    }

    /// Before 17: a standby's copies.
    async fn follow(&mut self, shown: &Shown) -> Result<()> {
        let record = &shown.record;
        // In this order: what is held is only ever older than what is needed.
        let mut ours = self.own().await?.logical_slots().await?;
        let (mut held, mut theirs) = (None, Vec::new());
        if is_logical(record) && record.policy.logical_slots {
            let primary = self.primary(record).await?;
            held = primary.held_catalog_xmin(&shown.me.slot_name()).await?;
            theirs = primary.logical_slots().await?;
            theirs.retain(|slot| !slot.lost);
        }
        let mut notes = self.executor.slot_notes();
        self.drop_unwanted(&mut ours, &theirs, &mut notes).await?;
        let served = record.history.last().map(|entry| entry.generation);
        let mut due = BTreeSet::new();
        for theirs in &theirs {
            let name = theirs.name.as_str();
            let Some(slot) = ours.iter().find(|s| s.name == name) else {
                let why = self.judge_missing(theirs, shown, &mut due)?;
                notes.slots.insert(name.to_owned(), SlotNote::unusable(why));
                continue;
            };
            self.missing.remove(name);
            self.advance(slot, theirs).await;
            let note = match self.is_safe(slot, theirs, held, served) {
                true => SlotNote { usable_after: served, why_not: String::new() },
                false => SlotNote::unusable(
                    "rows of the catalog that its copy needs may have been vacuumed away; its reader has to read on",
                ),
            };
            notes.slots.insert(name.to_owned(), note);
        }
        self.executor.keep_slot_notes(notes)?;
        if !due.is_empty() { self.ask_for_restart(shown, due).await } else { Ok(()) }
    }

    /// Copies of what the primary has not (or not so) any more.
    async fn drop_unwanted(
        &mut self,
        ours: &mut Vec<LogicalSlot>,
        theirs: &[LogicalSlot],
        notes: &mut SlotNotes,
    ) -> Result<()> {
        let users_make_some = self.executor.instance.installation.major >= SLOTS_ON_STANDBYS_FROM;
        let own = self.own().await?;
        for slot in std::mem::take(ours) {
            let wanted = !slot.lost && theirs.iter().any(|t| t.is_like(&slot));
            let is_copy = notes.slots.contains_key(&slot.name) || !users_make_some;
            if !wanted && is_copy && own.drop_logical_slot(&slot.name).await? {
                tracing::info!(slot = slot.name, "the copy of a logical slot is dropped");
                continue;
            }
            ours.push(slot);
        }
        notes.slots.retain(|name, _| theirs.iter().any(|t| t.name == *name));
        self.missing.retain(|name, _| theirs.iter().any(|t| t.name == *name));
        self.needs.retain(|name, _| theirs.iter().any(|t| t.name == *name));
        self.restarts.retain(|name, _| theirs.iter().any(|t| t.name == *name));
        Ok(())
    }

    async fn advance(&mut self, ours: &LogicalSlot, theirs: &LogicalSlot) {
        if ours.active || ours.confirmed_lsn >= theirs.confirmed_lsn {
            return;
        }
        let to = theirs.confirmed_lsn.min(Lsn(ours.confirmed_lsn.0 + ADVANCE_BYTES));
        let database = &ours.database;
        let moved = async {
            if self.databases.get(database).is_none_or(Session::is_closed) {
                let session = self.executor.session_in(database).await?;
                self.databases.insert(database.clone(), session);
            }
            let session = self.databases.get(database).context("no session")?;
            Ok::<_, anyhow::Error>(session.advance_logical_slot(&ours.name, to).await?)
        };
        if let Err(error) = moved.await {
            tracing::warn!(
                slot = ours.name,
                error = format!("{error:#}"),
                "the copy of a logical slot was not moved on; it is tried again"
            );
            self.databases.remove(database);
        }
    }

    /// Whatever was vacuumed on the primary before its slot for this member held what the copy
    /// needs was not needed by the primary's own slot, as it was at that time or later. So a copy
    /// that needs nothing older than that one, seen after it was held, is safe from then on.
    fn is_safe(
        &mut self,
        ours: &LogicalSlot,
        theirs: &LogicalSlot,
        held: Option<Xid>,
        served: Option<Generation>,
    ) -> bool {
        let (Some(xmin), Some(held), Some(needed)) = (ours.catalog_xmin, held, theirs.catalog_xmin)
        else {
            self.needs.remove(&ours.name);
            return false;
        };
        if !xmin.is_at_least(held) {
            self.needs.remove(&ours.name);
            return false;
        }
        let found = self.needs.entry(ours.name.clone()).or_insert((served, needed));
        if found.0 != served {
            *found = (served, needed);
        }
        xmin.is_at_least(found.1)
    }

    /// Why there is no copy yet; adds to `due` what a restart would bring.
    fn judge_missing(
        &mut self,
        slot: &LogicalSlot,
        shown: &Shown,
        due: &mut BTreeSet<String>,
    ) -> Result<String> {
        let since = *self.missing.entry(slot.name.clone()).or_insert_with(Instant::now);
        if !self.executor.instance.has_wal(slot.restart_lsn)? {
            return Ok(format!(
                "it needs WAL from {} on, which this member does not have; its reader has to read on",
                slot.restart_lsn
            ));
        }
        if self.restarts.get(&slot.name).is_some_and(|n| *n >= RESTARTS_MAX) {
            return Ok("it could not be copied, see this member's log".into());
        }
        let others = shown.record.data_members().map(|m| &m.name);
        let rank = others
            .filter(|m| shown.record.primary.as_ref() != Some(*m))
            .position(|m| *m == shown.me)
            .unwrap_or(0);
        let wait = SETTLED + APART * u32::try_from(rank).unwrap_or(u32::MAX).min(100);
        if since.elapsed() >= wait {
            due.insert(slot.name.clone());
        }
        Ok("this member has not been started since it was made".into())
    }

    /// Only while every other standby streams and nobody else restarts: no commit waits for it.
    async fn ask_for_restart(&mut self, shown: &Shown, slots: BTreeSet<String>) -> Result<()> {
        let record = &shown.record;
        let now = clock::now_ms();
        let streams = |name: &MemberId| {
            shown.heard.get(name).is_some_and(|h| {
                now.saturating_sub(h.at) < FRESH_MS
                    && h.observation.database.as_ref().is_some_and(|d| d.streaming_from.is_some())
            })
        };
        let whole = record
            .data_members()
            .map(|m| &m.name)
            .filter(|m| **m != shown.me && record.primary.as_ref() != Some(*m))
            .all(streams);
        if !whole || record.paused || !record.restarts.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = slots.iter().map(|s| format!("`{s}`")).collect();
        let me = shown.me.clone();
        let text = format!("{me} restarts to get a copy of logical slot {}", names.join(", "));
        tracing::info!("{text}");
        for name in slots {
            *self.restarts.entry(name).or_default() += 1;
        }
        self.rest();
        let note = Change::Note { rule: "logical-slots".into(), text };
        for change in [note, Change::RequestRestart(me)] {
            let command = Command { at_unix_ms: clock::now_unix_ms(), change };
            self.consensus.propose(command).await?;
        }
        Ok(())
    }
}

/// Do the record's parameters ask for logical decoding?
pub fn is_logical(record: &Record) -> bool {
    let level = record.parameters.get("wal_level");
    level.is_some_and(|v| v.trim().eq_ignore_ascii_case("logical"))
}
