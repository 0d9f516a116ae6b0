//! Replacing the key that opens a repository.
//!
//! Every epoch key is wrapped anew, by the new backup key; what is written from then on is sealed by an epoch
//! that the old one never opened; then what the old one wraps is deleted. A key that does not open every epoch
//! opens nothing ([`Repository::open`]), so that at every moment the old key opens all, or the new one does,
//! and whoever crashes in between can go on.
//!
//! Limits. What was copied out of the repository together with its `keys/` stays readable for who has the old
//! key. Whoever has the repository open meanwhile goes on with the keys that it read.

use crate::{
    Error, Keys, Repository, Result, Secret,
    names::{self, KEYS},
    repository::unwrap_keys,
};
use std::sync::Arc;

impl Repository {
    /// From now on `new` opens this repository, and `old` does not. May be repeated until it works.
    pub async fn rotate(&mut self, old: &Secret, new: &Secret) -> Result<()> {
        for (epoch, key) in &self.keys.epochs {
            self.wrap_once(*epoch, key, new).await?;
        }
        self.store.barrier().await?;
        let by_old = |epoch: u32| names::key(epoch, &old.fingerprint());
        let (newest, _) = self.keys.newest();
        let wrapped = self.store.list(KEYS).await?;
        // An earlier try may have made the new epoch.
        if wrapped.iter().any(|listed| listed.key == by_old(newest)) {
            self.wrap_once(newest + 1, &Secret::random(), new).await?;
            self.store.barrier().await?;
        }
        self.keys = Arc::<Keys>::new(unwrap_keys(&*self.store, new).await?);
        for epoch in self.keys.epochs.keys() {
            // Kept for a while, it opens what was written before, and not the repository.
            self.delete_due(&by_old(*epoch)).await?;
        }
        self.store.barrier().await
    }

    async fn wrap_once(&self, epoch: u32, key: &Secret, backup_key: &Secret) -> Result<()> {
        match self.wrap(epoch, key, backup_key).await {
            Err(Error::Exists { .. }) => Ok(()),
            wrapped => wrapped,
        }
    }
}
