//! Fences between the WAL writers of one generation and the next.
//!
//! A failover that relies on a repository puts one up, then reads how far the WAL goes. A writer
//! looks for it after its WAL is durable and before it says so: what it says without having seen
//! the fence was there when it was read. No clock and no majority is needed, only that a list shows
//! every object whose creation has returned.

use crate::{
    Error, Repository, Result,
    names::{self, FENCES},
};
use bytes::Bytes;

impl Repository {
    /// Writers of WAL for a generation below acknowledge nothing any more, once this returns.
    pub async fn fence(&self, below: u64) -> Result<()> {
        match self.store.put_new(&names::fence(below), Bytes::new()).await {
            Err(Error::Exists { .. }) => {}
            put => put?,
        }
        // Also after a power failure.
        self.store.barrier().await?;
        for (key, generation) in self.fences().await? {
            if generation < below {
                // Where it may not go yet, it says less than the one that is up now.
                self.delete_due(&key).await?;
            }
        }
        Ok(())
    }

    /// Refuses when writers for `generation` are fenced off.
    pub async fn expect_unfenced(&self, generation: u64) -> Result<()> {
        let below = self.fences().await?.into_iter().map(|(_, below)| below).max();
        match below.filter(|below| generation < *below) {
            None => Ok(()),
            Some(below) => {
                Err(Error::Fenced { repository: self.store.name().to_owned(), generation, below })
            }
        }
    }

    async fn fences(&self) -> Result<Vec<(String, u64)>> {
        let listed = self.store.list(FENCES).await?.into_iter();
        Ok(listed.filter_map(|l| names::fence_of(&l.key).map(|below| (l.key, below))).collect())
    }
}
