//! Reads all WAL there is.

use super::names::{self, HISTORIES, OPEN_WAL, SegmentName, WAL};
use crate::{
    Damage, Error, Progress, Repository, Result, Verified,
    seal::{self, Kind},
};
use std::{collections::BTreeSet, sync::Arc};

impl Repository {
    /// Reads every segment, piece and history, and adds to `found` what is damaged. A damaged segment
    /// harms what is restored over it: moments behind it, from backups before it.
    pub async fn verify_wal(&self, found: &mut Verified, progress: Arc<Progress>) -> Result<()> {
        let whole = self.store.list(WAL).await?;
        let open = self.store.list(OPEN_WAL).await?;
        progress.expect(whole.iter().chain(&open).map(|listed| listed.bytes).sum());
        for listed in &whole {
            progress.check()?;
            let read = async {
                let object = self.store.get(&listed.key).await?;
                seal::open(&self.keys, Kind::Wal, &listed.key, &object).map(|_| ())
            };
            found.count(&listed.key, listed.bytes, read.await)?;
            progress.advance(listed.bytes);
        }
        let numbers = open.iter().filter_map(|l| names::parse_key(&l.key, OPEN_WAL));
        let segments: BTreeSet<SegmentName> =
            numbers.map(|(timeline, number, _)| SegmentName { timeline, number }).collect();
        for segment in segments {
            for name in self.pieces_of(segment).await? {
                let read = self.read_piece(&name).await.map(|_| ());
                found.count(&name, 0, read)?;
            }
        }
        progress.advance(open.iter().map(|listed| listed.bytes).sum());
        for listed in self.store.list(HISTORIES).await? {
            let read = self.get::<String>(Kind::History, &listed.key).await.map(|_| ());
            found.count(&listed.key, listed.bytes, read)?;
        }
        Ok(())
    }
}

impl Verified {
    fn count(&mut self, key: &str, bytes: u64, read: Result<()>) -> Result<()> {
        self.objects += 1;
        self.bytes += bytes;
        match read {
            Ok(()) => Ok(()),
            Err(error @ (Error::Damaged { .. } | Error::Missing { .. } | Error::Format { .. })) => {
                let (key, why) = (key.to_owned(), error.to_string());
                self.damages.push(Damage { key, why, harms: Vec::new() });
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
