//! Which backups there are.

use crate::{
    Backup, Error, Repository, Result,
    manifest::Outcome,
    names::{self, BACKUPS},
};
use std::collections::BTreeMap;

/// The backups of a repository that were not forgotten.
#[derive(Debug, Default)]
pub struct Catalog {
    /// Those that can be restored, by the time they began.
    pub backups: Vec<Backup>,
    /// Those whose description is damaged, and how. They harm no other.
    pub unreadable: BTreeMap<String, Error>,
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
                Ok(Outcome::Revoked(_)) | Err(Error::Missing { .. }) => {}
                Err(error @ (Error::Damaged { .. } | Error::Format { .. })) => {
                    catalog.unreadable.insert(id.to_owned(), error);
                }
                Err(error) => return Err(error),
            }
        }
        catalog.backups.sort_by(|a, b| (a.began_unix_ms, &a.id).cmp(&(b.began_unix_ms, &b.id)));
        Ok(catalog)
    }

    /// All backups that can be restored, by the time they began.
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
}
