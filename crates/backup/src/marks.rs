//! What was said of a backup after it was published: that it is to be forgotten, that it must be kept.

use crate::{
    Error, Repository, Result,
    names::{self, FORGOTTEN, HELD, MARKS},
    seal::Kind,
};
use std::collections::BTreeSet;

impl Repository {
    /// The marks of one backup.
    pub(crate) async fn marks(&self, backup: &str) -> Result<Vec<String>> {
        let prefix = format!("{MARKS}{backup}/");
        let listed = self.store.list(&prefix).await?;
        Ok(listed.iter().filter_map(|l| Some(l.key.strip_prefix(&prefix)?.to_owned())).collect())
    }

    async fn marked(&self, what: &str) -> Result<BTreeSet<String>> {
        let listed = self.store.list(MARKS).await?;
        let owners = listed.iter().filter(|l| l.key.ends_with(&format!("/{what}")));
        Ok(owners.filter_map(|l| names::owner(&l.key, MARKS).map(str::to_owned)).collect())
    }

    /// Backups that are no longer to be had; what they alone use goes with the next sweep.
    pub(crate) async fn forgotten(&self) -> Result<BTreeSet<String>> {
        self.marked(FORGOTTEN).await
    }

    /// Backups under a legal hold.
    pub async fn held(&self) -> Result<BTreeSet<String>> {
        self.marked(HELD).await
    }

    /// Keeps a backup whatever retention says, until [`Repository::release`].
    pub async fn hold(&self, backup: &str, reason: &str) -> Result<()> {
        let backup = self.backup(backup).await?;
        match self.put(Kind::Mark, &names::mark(&backup.id, HELD), &reason).await {
            Err(Error::Exists { .. }) => {}
            put => put?,
        }
        self.store.barrier().await
    }

    /// Ends a hold.
    pub async fn release(&self, backup: &str) -> Result<()> {
        let backup = self.backup(backup).await?;
        self.store.delete(&names::mark(&backup.id, HELD)).await?;
        self.store.barrier().await
    }

    /// Forgets a backup. Refused while it is held.
    pub async fn forget(&self, backup: &str) -> Result<()> {
        let backup = self.backup(backup).await?;
        if self.held().await?.contains(&backup.id) {
            let id = &backup.id;
            return Err(Error::Refused(format!(
                "backup {id} is under a hold: end it first (`sempre backup hold {id} --release`)"
            )));
        }
        match self.put(Kind::Mark, &names::mark(&backup.id, FORGOTTEN), &()).await {
            Err(Error::Exists { .. }) => {}
            put => put?,
        }
        self.store.barrier().await
    }
}
