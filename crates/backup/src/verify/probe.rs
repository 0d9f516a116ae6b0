//! A quick look at what a new backup is about to rely on: whether every pack of its parent is there, and whether
//! some of them, chosen anew each time, are sound. All of them are read by [`Repository::verify`] alone.

use super::{pack::check_pack, references::Places};
use crate::{Backup, Error, PackRef, Repository, Result, names};
use std::collections::{BTreeSet, HashSet};

/// Packs that are read.
const READ: usize = 4;

impl Repository {
    /// What is wrong with what this backup uses, as far as a quick look tells. An error is a store that cannot
    /// be used.
    pub async fn probe(&self, backup: &Backup) -> Result<Option<String>> {
        let mut used: HashSet<PackRef> = HashSet::new();
        for number in 0..backup.sorted_segments.saturating_add(backup.late_segments) {
            match self.packs_of(&names::segment(&backup.id, number)).await {
                Ok(packs) => used.extend(packs),
                Err(error) => return wrong(error),
            }
        }
        let listed = self.store.list(names::PACKS).await?;
        let there: HashSet<&str> = listed.iter().map(|listed| listed.key.as_str()).collect();
        let used: BTreeSet<String> = used.iter().map(PackRef::name).collect();
        if let Some(lost) = used.iter().find(|name| !there.contains(name.as_str())) {
            return Ok(Some(format!("{lost} is missing")));
        }
        let mut left: Vec<String> = used.into_iter().collect();
        for _ in 0..READ.min(left.len()) {
            let name = left.swap_remove(rand::random::<u64>() as usize % left.len());
            let object = match self.store.get(&name).await {
                Ok(object) => object,
                Err(error) => return wrong(error),
            };
            let repository = self.clone();
            let checked = tokio::task::spawn_blocking(move || {
                check_pack(&repository, &name, &object, &Places::default())
            });
            let bad = checked.await.unwrap_or_else(|p| std::panic::resume_unwind(p.into_panic()));
            if let Some(bad) = bad {
                return Ok(Some(bad.why));
            }
        }
        Ok(None)
    }
}

fn wrong(error: Error) -> Result<Option<String>> {
    match error {
        Error::Damaged { .. } | Error::Missing { .. } | Error::Format { .. } => {
            Ok(Some(error.to_string()))
        }
        error => Err(error),
    }
}
