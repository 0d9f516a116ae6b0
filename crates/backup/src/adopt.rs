//! Going on where a dead attempt at a backup stopped.
//!
//! An attempt lists its files, and sends its packs, about once a minute. The next attempt of the same owner
//! creates the very object by which the dead one would publish, which says who goes on: so the dead one never
//! publishes, should it only have been paused; and the collection of garbage either gave it up before, and
//! nothing is taken over, or finds that object, and leaves its packs alone. Blocks are used from packs that are
//! there, and that the dead attempt, or one that it took over itself, wrote: nothing else is promised to stay.

use crate::{
    Error, PackRef, Repository, Result,
    manifest::{Files, Outcome},
    names::{self, BACKUPS, PACKS, SEGMENTS, WRITERS},
    seal::Kind,
    writer::Announcement,
};
use std::collections::{BTreeSet, HashSet};

/// What dead attempts left.
#[derive(Clone, Debug, Default)]
pub struct Adopted {
    /// The newest of them that listed files, and the segments of its list.
    listed: Option<(String, Vec<u32>)>,
    /// Packs of all of them.
    packs: HashSet<PackRef>,
}

impl Adopted {
    /// Takes over what dead attempts of this owner left, for attempt `by`, which has been announced.
    pub(crate) async fn take(repository: &Repository, by: &str, owner: &str) -> Result<Self> {
        let store = &repository.store;
        let writers = store.list(WRITERS).await?;
        let outcomes = store.list(BACKUPS).await?;
        let ends: BTreeSet<_> =
            outcomes.iter().filter_map(|l| names::owner(&l.key, BACKUPS)).collect();
        let began: BTreeSet<_> =
            writers.iter().filter_map(|l| names::owner(&l.key, WRITERS)).collect();
        let mut dead = BTreeSet::new();
        for id in began.into_iter().filter(|id| *id != by && !ends.contains(id)) {
            match repository.get::<Announcement>(Kind::Writer, &names::writer(id, 0)).await {
                Ok(said) if said.owner.as_deref() == Some(owner) => {}
                Ok(_) | Err(Error::Damaged { .. } | Error::Missing { .. }) => continue,
                Err(error) => return Err(error),
            }
            let outcome = Outcome::Adopted(by.to_owned());
            match repository.put(Kind::Backup, &names::backup(id), &outcome).await {
                // It was published, or given up, at this very moment.
                Err(Error::Exists { .. }) => {}
                put => {
                    put?;
                    dead.insert(id.to_owned());
                }
            }
        }
        if dead.is_empty() {
            return Ok(Self::default());
        }
        store.barrier().await?;
        let newest: Vec<_> = dead.iter().rev().cloned().collect();
        // What they had taken over is theirs.
        loop {
            let before = dead.len();
            for id in &ends {
                if let Ok(Outcome::Adopted(by)) = repository.outcome(id).await
                    && dead.contains(&by)
                {
                    dead.insert((*id).to_owned());
                }
            }
            if dead.len() == before {
                break;
            }
        }
        let mut adopted = Self::default();
        for id in &dead {
            for listed in store.list(&format!("{PACKS}{id}/")).await? {
                let number = listed.key.rsplit('/').next().and_then(|number| number.parse().ok());
                let pack = number.map(|number| PackRef { backup: id.as_str().into(), number });
                adopted.packs.extend(pack);
            }
        }
        for id in newest {
            let segments = store.list(&format!("{SEGMENTS}{id}/")).await?;
            let number = |key: &str| key.rsplit('/').next().and_then(|number| number.parse().ok());
            let numbers: Vec<u32> = segments.iter().filter_map(|l| number(&l.key)).collect();
            if !numbers.is_empty() {
                adopted.listed = Some((id, numbers));
                break;
            }
        }
        tracing::info!("backup {by} goes on with {} packs of a dead attempt", adopted.packs.len());
        Ok(adopted)
    }

    /// The files, as far as the newest attempt had listed them.
    pub(crate) fn files(&self, repository: &Repository) -> Option<Files> {
        let (id, segments) = self.listed.as_ref()?;
        Some(Files::listed(repository.clone(), id, segments.clone()))
    }

    /// May blocks of this pack be used?
    pub(crate) fn has(&self, pack: &PackRef) -> bool {
        self.packs.contains(pack)
    }
}
