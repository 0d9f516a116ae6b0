//! What was said of a backup after it was published: that it is to be forgotten, that it must be kept.

use crate::{
    Error, Repository, Result,
    names::{self, ACCEPTED, BACKUPS, FORGOTTEN, HELD, MARKS},
    seal::Kind,
};
use serde::Serialize;
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

    /// Backups that are no longer to be had; what they alone use goes with the next collection.
    pub(crate) async fn forgotten(&self) -> Result<BTreeSet<String>> {
        let mut forgotten = self.marked(FORGOTTEN).await?;
        // Both at once: the hold wins, here as in the collection.
        let held = self.held().await?;
        forgotten.retain(|id| !held.contains(id));
        Ok(forgotten)
    }

    /// Backups under a legal hold.
    pub async fn held(&self) -> Result<BTreeSet<String>> {
        self.marked(HELD).await
    }

    /// Keeps a backup whatever retention says, until [`Repository::release`].
    pub async fn hold(&self, backup: &str, reason: &str) -> Result<()> {
        let backup = self.backup(backup).await?;
        let is_new = self.mark(&backup.id, HELD, &reason).await?;
        // A collection that began before this does not know of the hold: is it being forgotten, or
        // gone already? (In this order: its mark is removed last.)
        let id = &backup.id;
        let is_going = self.marks(id).await?.iter().any(|mark| mark == FORGOTTEN);
        if is_going || !self.store.list(BACKUPS).await?.iter().any(|l| l.key == names::backup(id)) {
            if is_new {
                self.release(id).await?;
            }
            return Err(Error::Refused(format!("backup {id} was forgotten meanwhile")));
        }
        Ok(())
    }

    /// Backups whose alarms somebody has looked into.
    pub async fn accepted(&self) -> Result<BTreeSet<String>> {
        self.marked(ACCEPTED).await
    }

    /// The alarms of a backup are no reason to worry; returns its whole name.
    pub async fn accept(&self, backup: &str) -> Result<String> {
        let backup = self.backup(backup).await?;
        self.mark(&backup.id, ACCEPTED, &()).await?;
        Ok(backup.id)
    }

    /// Sets a mark; says whether it is new.
    async fn mark<T: Serialize>(&self, id: &str, what: &str, value: &T) -> Result<bool> {
        let is_new = match self.put(Kind::Mark, &names::mark(id, what), value).await {
            Err(Error::Exists { .. }) => false,
            put => put.map(|()| true)?,
        };
        self.store.barrier().await?;
        Ok(is_new)
    }

    /// Ends a hold.
    pub async fn release(&self, backup: &str) -> Result<()> {
        let id = self.known(backup, HELD).await?;
        self.store.delete(&names::mark(&id, HELD)).await?;
        self.store.barrier().await
    }

    /// Forgets a backup, even one whose description cannot be read. Refused while it is held.
    pub async fn forget(&self, backup: &str) -> Result<()> {
        let id = self.known(backup, FORGOTTEN).await?;
        let refused = || {
            Err(Error::Refused(format!(
                "backup {id} is under a hold: end it first (`sempre backup hold {id} --release`)"
            )))
        };
        if self.held().await?.contains(&id) {
            return refused();
        }
        self.mark(&id, FORGOTTEN, &()).await?;
        // A hold set meanwhile counts, and keeps the collection from what it would have removed.
        if self.held().await?.contains(&id) {
            self.store.delete(&names::mark(&id, FORGOTTEN)).await?;
            self.store.barrier().await?;
            return refused();
        }
        Ok(())
    }

    /// The whole name of a backup: of one that can be read; of one that cannot, if it is written
    /// out; of one that has the mark already.
    async fn known(&self, wanted: &str, mark: &str) -> Result<String> {
        let marked = self.marks(wanted).await?.iter().any(|m| m == mark);
        if marked || self.catalog().await?.unreadable.contains_key(wanted) {
            return Ok(wanted.to_owned());
        }
        Ok(self.backup(wanted).await?.id)
    }
}
