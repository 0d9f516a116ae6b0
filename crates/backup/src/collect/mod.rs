//! The collection of garbage: what no backup needs is removed, beside writers that announce themselves,
//! write and publish meanwhile, and beside other collections.
//!
//! It has two phases. First, writers without an outcome that have been silent for longer than the lease are
//! revoked, by creating the very object with which they would publish: one of both wins. Then what is needed
//! neither by a backup nor by a live writer is deleted.
//!
//! Nothing is locked; it is right by the order of reading: **marks, packs, segments, writers, outcomes**.
//!
//! - A pack that was listed has a writer that was announced before, so that the later list of writers, or of
//!   outcomes, has it. A writer announced after that list owns nothing in the list of packs.
//! - A backup whose mark was not seen is a root, whoever compares with it.
//! - If its mark was seen, then a writer that is *not* seen was announced after the mark was set, and finds
//!   the mark when it looks again after its announcement ([`Writer::announce`](crate::Writer::announce)).
//!   A writer that is seen makes its parent a root, forgotten or not.
//! - A writer that published between the two lists is a root by its outcome. So is one that published
//!   instead of being revoked.
//!
//! - What an attempt took over from a dead one ([`crate::Adopted`]) stays while that attempt is live. One that the
//!   list of writers does not have is looked for again: it was announced before it took over. Then its packs are as anybody's: needed by a backup, or not.
//!
//! A mark is deleted last, when everything else is gone for good: after a crash nothing looks whole. A
//! store may keep objects for a while, whoever asks: these are counted, and a later collection takes them.
//!
//! Limits. A restore of a backup that is forgotten meanwhile fails, loudly, when its blocks go: hold it
//! first. Clocks only decide when a writer is given up, never what is kept. The lists are in memory (about
//! 100 bytes for 16 MiB of blocks). Empty folders of a folder store stay.

mod decide;

pub use decide::{Plan, Silent};

use crate::{
    Error, Repository, Result,
    manifest::Outcome,
    names::{self, BACKUPS, FORGOTTEN, HELD, KEEPS, MARKS, PACKS, SEGMENTS, WRITERS},
    seal::Kind,
    store::Listed,
    writer::Announcement,
};
use decide::{Fate, View};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::BTreeSet;

/// Objects that are deleted at a time: a store far away answers slowly.
const DELETES_AT_ONCE: usize = 8;
/// What a backup consists of, beside its description.
const PARTS: &[&str] = &[PACKS, SEGMENTS, WRITERS, KEEPS];

/// Marks in the order they go in: a hold before what ended it, and last what says that the backup is forgotten. Of
/// what is left at any time, nothing says that it is under a hold, or remembered, once it was not.
fn in_turn(marks: Vec<Listed>) -> [Vec<Listed>; 3] {
    let says = |listed: &Listed, word: &str| {
        let mark = listed.key.rsplit('/').next().unwrap_or_default();
        mark.strip_prefix(word).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let (holds, others): (Vec<_>, Vec<_>) = marks.into_iter().partition(|l| says(l, HELD));
    let (last, others) = others.into_iter().partition(|l| says(l, FORGOTTEN));
    [holds, others, last]
}

impl Repository {
    /// What [`Repository::collect`] would remove now. Changes nothing.
    pub async fn plan_collection(&self, now_unix_ms: u64) -> Result<Plan> {
        let mut view = self.view(now_unix_ms).await?;
        let silent = view.silent();
        view.fates.extend(silent.iter().map(|writer| (writer.id.clone(), Fate::Revoked)));
        self.decide(&view, silent).await
    }

    /// Is anybody writing a backup, as far as is known?
    pub async fn has_live_writers(&self) -> Result<bool> {
        Ok(!self.view(0).await?.live().is_empty())
    }

    /// Removes what neither a backup nor a live writer needs; returns what went. Look at
    /// [`Plan::blocked`]: not empty means that something is damaged, and that packs were kept for it.
    pub async fn collect(&self, now_unix_ms: u64) -> Result<Plan> {
        let mut view = self.view(now_unix_ms).await?;
        let mut revoked = Vec::new();
        for writer in view.silent() {
            if let Some(fate) = self.revoke(&writer.id, now_unix_ms).await? {
                view.fates.insert(writer.id, fate);
            } else {
                view.fates.insert(writer.id.clone(), Fate::Revoked);
                tracing::warn!("backup {} was given up: its writer is silent", writer.id);
                revoked.push(writer);
            }
        }
        self.note_late(&mut view).await?;
        // Before anything goes, nobody can publish with it any more.
        self.store.barrier().await?;
        let mut plan = self.decide(&view, revoked).await?;
        for why in &plan.blocked {
            tracing::error!("blocks that may be in nobody's use stay in the repository: {why}");
        }
        // Whoever took it back meanwhile that a backup was forgotten finds it whole.
        let said = self.store.list(MARKS).await?;
        if said.iter().any(|l| !view.marks.iter().any(|known| known.key == l.key)) {
            tracing::info!("something was said of a backup meanwhile: the next collection goes on");
            return Ok(Plan { revoke: plan.revoke, ..Plan::default() });
        }
        // What has parts that stay for a while keeps its description and its mark, or these would be
        // nobody's.
        let mut whose = BTreeSet::new();
        for list in [&mut plan.leftovers, &mut plan.packs, &mut plan.files] {
            plan.too_early += self.delete(list, PARTS, &mut whose).await?;
        }
        plan.too_early += self.delete(&mut plan.backups, &[BACKUPS], &mut whose).await?;
        self.store.barrier().await?;
        let turns = in_turn(std::mem::take(&mut plan.marks)).into_iter();
        for mut marks in turns.filter(|marks| !marks.is_empty()) {
            plan.too_early += self.delete(&mut marks, &[MARKS], &mut whose).await?;
            self.store.barrier().await?;
            plan.marks.append(&mut marks);
        }
        Ok(plan)
    }

    async fn view(&self, now_unix_ms: u64) -> Result<View> {
        let store = &self.store;
        let mut view = View {
            now_unix_ms,
            marks: store.list(MARKS).await?,
            packs: store.list(PACKS).await?,
            segments: store.list(SEGMENTS).await?,
            keeps: store.list(KEEPS).await?,
            writers: store.list(WRITERS).await?,
            backups: store.list(BACKUPS).await?,
            leftovers: store.leftovers().await?,
            ..View::default()
        };
        for listed in &view.backups {
            let Some(id) = names::owner(&listed.key, BACKUPS) else { continue };
            match self.fate(id).await {
                // Removed by another collection meanwhile.
                Err(Error::Missing { .. }) => {}
                fate => drop(view.fates.insert(id.to_owned(), fate?)),
            }
        }
        // Published once, and its description is lost: it is no writer that was silent.
        for listed in &view.writers {
            let Some(id) = names::owner(&listed.key, WRITERS) else { continue };
            if listed.key == names::published(id) {
                let why = format!("{} is missing: its backup was published", names::backup(id));
                view.fates.entry(id.to_owned()).or_insert(Fate::Unreadable(why));
            }
        }
        let signs = view.writers.iter().filter_map(|l| names::owner(&l.key, WRITERS).zip(Some(l)));
        for (id, listed) in signs {
            // Each sign of life says the same.
            let known = matches!(view.parents.get(id), Some(Ok(_)));
            if known || view.fates.contains_key(id) {
                continue;
            }
            let said = self.get::<Announcement>(Kind::Writer, &listed.key).await;
            let parent = said.map(|said| said.parent).map_err(|error| error.to_string());
            view.parents.insert(id.to_owned(), parent);
        }
        self.note_late(&mut view).await?;
        Ok(view)
    }

    /// Who takes over was announced before: those that the list of writers does not have are there now, or
    /// are over and gone.
    async fn note_late(&self, view: &mut View) -> Result<()> {
        for by in view.unknown_adopters() {
            if !self.store.list(&format!("{WRITERS}{by}/")).await?.is_empty() {
                view.late.insert(by);
            }
        }
        Ok(())
    }

    /// What became of a writer. A store that fails is an error; what it holds being damaged is not.
    async fn fate(&self, id: &str) -> Result<Fate> {
        match self.outcome(id).await {
            Ok(Outcome::Published(backup)) => {
                Ok(Fate::Published(backup.sorted_segments.saturating_add(backup.late_segments)))
            }
            Ok(Outcome::Revoked(_)) => Ok(Fate::Revoked),
            Ok(Outcome::Adopted(by)) => Ok(Fate::Adopted(by)),
            Err(error @ (Error::Damaged { .. } | Error::Format { .. })) => {
                Ok(Fate::Unreadable(error.to_string()))
            }
            Err(error) => Err(error),
        }
    }

    /// Gives up a writer. If it was faster: what it did.
    async fn revoke(&self, id: &str, now_unix_ms: u64) -> Result<Option<Fate>> {
        let outcome = Outcome::Revoked(now_unix_ms);
        match self.put(Kind::Backup, &names::backup(id), &outcome).await {
            Err(Error::Exists { .. }) => Ok(Some(self.fate(id).await?)),
            put => put.map(|()| None),
        }
    }

    async fn decide(&self, view: &View, revoke: Vec<Silent>) -> Result<Plan> {
        let mut roots = view.roots();
        if !roots.unknown.is_empty() {
            return Ok(view.sweep(revoke, Err(roots.unknown)));
        }
        if !view.has_candidates() {
            let all = view.packs.iter().map(|l| l.key.clone()).collect();
            return Ok(view.sweep(revoke, Ok(&all)));
        }
        let mut needed = BTreeSet::new();
        for key in &roots.segments {
            match self.packs_of(key).await {
                Ok(packs) => needed.extend(packs.iter().map(|pack| pack.name())),
                Err(
                    error @ (Error::Damaged { .. } | Error::Format { .. } | Error::Missing { .. }),
                ) => roots.unknown.push(error.to_string()),
                Err(error) => return Err(error),
            }
        }
        match roots.unknown.is_empty() {
            true => Ok(view.sweep(revoke, Ok(&needed))),
            false => Ok(view.sweep(revoke, Err(roots.unknown))),
        }
    }

    /// Deletes what may go, and leaves only that in the list. Returns how much is too early: its owners
    /// are added to `whose`, and nothing of theirs is tried.
    async fn delete(
        &self,
        objects: &mut Vec<Listed>,
        prefixes: &[&str],
        whose: &mut BTreeSet<String>,
    ) -> Result<usize> {
        fn owner_in<'a>(l: &'a Listed, prefixes: &[&str]) -> Option<&'a str> {
            prefixes.iter().find_map(|prefix| names::owner(&l.key, prefix))
        }
        let all = objects.len();
        objects.retain(|l| {
            owner_in(l, prefixes).is_none_or(|id| prefixes == PARTS || !whose.contains(id))
        });
        // In a list of their own, or the compiler cannot tell that this may go to another thread.
        let deletes: Vec<_> = objects.iter().map(|l| self.delete_due(&l.key)).collect();
        let gone: Vec<bool> = stream::iter(deletes).buffered(DELETES_AT_ONCE).try_collect().await?;
        let mut gone = gone.into_iter();
        objects.retain(|l| {
            let is_gone = gone.next() == Some(true);
            if !is_gone {
                whose.extend(owner_in(l, prefixes).map(str::to_owned));
            }
            is_gone
        });
        Ok(all - objects.len())
    }

    /// Deletes an object, if the store lets it go yet.
    pub(crate) async fn delete_due(&self, key: &str) -> Result<bool> {
        match self.store.delete(key).await {
            Err(error @ Error::TooEarly { .. }) => {
                tracing::debug!("{error}");
                Ok(false)
            }
            deleted => deleted.map(|()| true),
        }
    }
}
