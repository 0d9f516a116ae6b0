//! WAL that no backup needs goes.

use super::names::{self, OPEN_WAL, WAL};
use crate::{Repository, Result};
use sempre_model::Lsn;

impl Repository {
    /// Removes whole segments, and pieces of segments, that end at or before `oldest`, on every timeline.
    /// Returns how many. Histories stay: they are small, and tell timelines apart for ever.
    pub async fn trim_wal(&self, oldest: Lsn, segment_bytes: u64) -> Result<usize> {
        let ends_before = |number: u64| (number + 1).saturating_mul(segment_bytes) <= oldest.0;
        let mut removed = 0;
        for listed in self.store.list(WAL).await? {
            let key = names::parse_key(&listed.key, WAL);
            if key.is_some_and(|(_, number, _)| ends_before(number)) {
                removed += usize::from(self.delete_due(&listed.key).await?);
            }
        }
        for listed in self.store.list(OPEN_WAL).await? {
            let key = names::parse_key(&listed.key, OPEN_WAL);
            if key.is_some_and(|(_, number, _)| ends_before(number)) {
                // A store may keep what grows as parts below the name: each goes by itself.
                removed += usize::from(self.delete_due(&listed.key).await?);
            }
        }
        if removed > 0 {
            self.store.barrier().await?;
        }
        Ok(removed)
    }
}
