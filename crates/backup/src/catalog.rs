//! Which backups there are.

use crate::{
    Backup, Error, Repository, Result,
    manifest::Outcome,
    names::{self, BACKUPS, WRITERS},
    seal::Kind,
};
use sempre_model::{Lsn, Timeline};
use std::collections::{BTreeMap, BTreeSet};

/// The backups of a repository that were not forgotten.
#[derive(Debug, Default)]
pub struct Catalog {
    /// Those that can be restored, in their order: by timeline and position, as clocks may jump.
    pub backups: Vec<Backup>,
    /// Those whose description is damaged, and how. They harm no other.
    pub unreadable: BTreeMap<String, Error>,
}

/// What orders backups: positions in the WAL never go back on a timeline, clocks may.
fn order(backup: &Backup) -> (Timeline, Lsn, u64, &str) {
    (backup.timeline, backup.start, backup.began_unix_ms, &backup.id)
}

impl Repository {
    /// All backups that were not forgotten.
    pub async fn catalog(&self) -> Result<Catalog> {
        let forgotten = self.forgotten().await?;
        let mut catalog = Catalog::default();
        for listed in self.store.list(BACKUPS).await? {
            let Some(id) = names::owner(&listed.key, BACKUPS) else { continue };
            if forgotten.contains(id) {
                continue;
            }
            match self.outcome(id).await {
                Ok(Outcome::Published(backup)) => catalog.backups.push(*backup),
                // Given up; or forgotten meanwhile and already removed.
                Ok(Outcome::Revoked(_) | Outcome::Adopted(_)) | Err(Error::Missing { .. }) => {}
                Err(error @ (Error::Damaged { .. } | Error::Format { .. })) => {
                    catalog.unreadable.insert(id.to_owned(), error);
                }
                Err(error) => return Err(error),
            }
        }
        catalog.backups.sort_by(|a, b| order(a).cmp(&order(b)));
        Ok(catalog)
    }

    /// All backups that can be restored, in their order.
    pub async fn backups(&self) -> Result<Vec<Backup>> {
        let catalog = self.catalog().await?;
        for (id, error) in &catalog.unreadable {
            tracing::error!("backup {id} cannot be read: {error}");
        }
        Ok(catalog.backups)
    }

    /// One backup, by its name or the beginning of it; `latest` is the newest.
    pub async fn backup(&self, wanted: &str) -> Result<Backup> {
        let Catalog { mut backups, mut unreadable } = self.catalog().await?;
        if let Some(error) = unreadable.remove(wanted) {
            return Err(error);
        }
        if wanted == "latest"
            && let Some(newest) = backups.pop()
        {
            return Ok(newest);
        }
        let there: Vec<String> = backups.iter().map(|b| b.id.clone()).collect();
        let mut fitting: Vec<Backup> =
            backups.into_iter().filter(|b| b.id.starts_with(wanted)).collect();
        match (fitting.pop(), fitting.is_empty()) {
            (Some(backup), true) => Ok(backup),
            _ => Err(Error::NoBackup { wanted: wanted.to_owned(), there }),
        }
    }

    pub(crate) async fn copy_description(&self, id: &str, outcome: &Outcome) -> Result<()> {
        self.put(Kind::Backup, &names::published(id), outcome).await?;
        self.store.barrier().await
    }

    /// Replaces descriptions of backups that are lost or damaged by their second copies, and the other
    /// way round; returns the objects that were written.
    pub async fn repair_descriptions(&self) -> Result<Vec<String>> {
        let forgotten = self.forgotten().await?;
        let mut ids = BTreeSet::new();
        for (prefix, list) in
            [(BACKUPS, self.store.list(BACKUPS).await?), (WRITERS, self.store.list(WRITERS).await?)]
        {
            ids.extend(list.iter().filter_map(|l| Some(names::owner(&l.key, prefix)?.to_owned())));
        }
        let mut written = Vec::new();
        for id in ids.difference(&forgotten) {
            let (name, copy) = (names::backup(id), names::published(id));
            let (first, second) = (self.outcome_at(&name).await?, self.outcome_at(&copy).await?);
            let (broken, whole) = match (first, second) {
                (Some(first @ Outcome::Published(_)), None) => (copy, first),
                (None, Some(second)) => (name.clone(), second),
                _ => continue,
            };
            self.store.delete(&broken).await?;
            self.put(Kind::Backup, &broken, &whole).await?;
            // Was it being removed meanwhile? Then nothing of it may come back.
            let is_there = self.outcome_at(&name).await?.is_some();
            if !is_there || self.forgotten().await?.contains(id) {
                self.store.delete(&broken).await?;
            } else {
                written.push(broken);
            }
        }
        self.store.barrier().await?;
        Ok(written)
    }

    /// None where it is missing or damaged.
    async fn outcome_at(&self, name: &str) -> Result<Option<Outcome>> {
        match self.get(Kind::Backup, name).await {
            Ok(outcome) => Ok(Some(outcome)),
            Err(Error::Missing { .. } | Error::Damaged { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
