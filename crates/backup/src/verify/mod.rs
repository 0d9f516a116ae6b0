//! Reading everything that backups use, to know that they can be restored. Never writes.
//!
//! Every list of files is read, then every pack that one of them names, once however many backups share it:
//! each frame is opened, each block compared with its id, and the end of a pack that was cut short is missed.
//! What is damaged is then looked up in the lists again, to say which backups it harms and how many files.
//!
//! Memory is bounded: so many packs at a time, and so many places of blocks; a repository
//! with more has its lists read several times.
//!
//! Limits: a mark that was removed, and the last signs of life of a writer, are not missed. A new writer
//! looks whether the packs of its parent are there, and into some of them (`probe`); other damage to what it
//! refers to is only found here: after damage, forget what it harms, or make a backup without a parent.

mod harm;
mod pack;
mod probe;
mod references;

use crate::{
    Backup, Error, Progress, Repository, Result,
    names::{self, BACKUPS, MARKS, WRITERS},
    seal::Kind,
};
use futures_util::{StreamExt, stream};
use pack::{Bad, check_pack};
use references::{Places, References};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// A store that fails so often is not damaged but gone.
const FAILURES_MAX: usize = 16;

/// What it may take.
#[derive(Clone, Copy, Debug)]
pub struct VerifyOptions {
    /// Packs at a time; each is in memory.
    pub packs_at_once: usize,
    /// Places of blocks in memory, about 120 bytes each.
    pub places_max: usize,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        // Of 128 GiB at least.
        Self { packs_at_once: 2, places_max: 1 << 20 }
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Backups that were looked at.
    pub backups: u64,
    /// Objects that were read.
    pub objects: u64,
    /// Bytes of packs among them.
    pub bytes: u64,
    /// What is wrong. Empty: everything can be restored.
    pub damages: Vec<Damage>,
}

/// An object that is damaged or missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// The object.
    pub key: String,
    /// What is wrong with it.
    pub why: String,
    /// Whom it harms. Nobody: what it is for is over, or does not need it.
    pub harms: Vec<Harm>,
}

/// A backup with something that cannot be restored.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Harm {
    /// Which.
    pub backup: String,
    /// How many of its files; none: it cannot be restored at all.
    pub files: Option<u64>,
}

/// One run.
pub(super) struct Run {
    repository: Repository,
    progress: Arc<Progress>,
    found: Verified,
    failures: usize,
}

impl Repository {
    /// Reads everything that `backup` uses, or all backups do. What is damaged is in the result; an
    /// error is a store that cannot be used.
    pub async fn verify(
        &self,
        backup: Option<&str>,
        options: VerifyOptions,
        progress: Arc<Progress>,
    ) -> Result<Verified> {
        let found = Verified::default();
        let mut run = Run { repository: self.clone(), progress, found, failures: 0 };
        let backups = match backup {
            Some(wanted) => {
                let backup = self.backup(wanted).await?;
                let copy = names::published(&backup.id);
                run.small(Kind::Writer, &names::writer(&backup.id, 0)).await?;
                run.small(Kind::Backup, &copy).await?;
                vec![backup]
            }
            None => run.small_objects().await?,
        };
        run.found.backups = backups.len() as u64;
        let mut bad = BTreeMap::new();
        let mut from = None;
        loop {
            let references =
                References::gather(&mut run, &backups, from.take(), options.places_max).await?;
            let next = references.next.clone();
            run.packs(references, options.packs_at_once, &mut bad).await?;
            match next {
                Some(pack) => from = Some(pack),
                None => break,
            }
        }
        run.look_up_harm(&backups, bad).await?;
        run.drop_forgotten().await?;
        run.found.damages.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(run.found)
    }
}

impl Run {
    fn damaged(&mut self, key: &str, why: &Error, harms: Vec<Harm>) {
        let (key, why) = (key.to_owned(), why.to_string());
        if !self.found.damages.iter().any(|known| known.key == key) {
            self.found.damages.push(Damage { key, why, harms });
        }
    }

    /// An object that cannot be read is damaged; a store that fails again and again is an error.
    fn count_failure(&mut self, error: Error) -> Result<Error> {
        match error {
            Error::Store { .. } if self.failures >= FAILURES_MAX => Err(error),
            Error::Store { .. } => {
                self.failures += 1;
                Ok(error)
            }
            error => Ok(error),
        }
    }

    fn count(&mut self, bytes: u64) {
        self.found.objects += 1;
        self.found.bytes += bytes;
    }

    /// Reads a small object whose loss harms no backup now.
    async fn small(&mut self, kind: Kind, key: &str) -> Result<()> {
        match self.repository.get::<serde_json::Value>(kind, key).await {
            Ok(_) => self.count(0),
            Err(error) => {
                let error = self.count_failure(error)?;
                self.damaged(key, &error, Vec::new());
            }
        }
        Ok(())
    }

    /// Reads descriptions, signs of life and marks; returns the backups to look at.
    async fn small_objects(&mut self) -> Result<Vec<Backup>> {
        let repository = self.repository.clone();
        let catalog = repository.catalog().await?;
        for (id, error) in catalog.unreadable {
            self.damaged(&names::backup(&id), &error, vec![Harm { backup: id, files: None }]);
        }
        let forgotten = repository.forgotten().await?;
        let writers = repository.store.list(WRITERS).await?;
        let backups = repository.store.list(BACKUPS).await?;
        for listed in repository.store.list(MARKS).await? {
            self.small(Kind::Mark, &listed.key).await?;
        }
        for listed in &writers {
            let Some(id) = names::owner(&listed.key, WRITERS) else { continue };
            let copy = names::published(id);
            if forgotten.contains(id) {
                continue;
            }
            let kind = if listed.key == copy { Kind::Backup } else { Kind::Writer };
            self.small(kind, &listed.key).await?;
            let name = names::backup(id);
            if listed.key == copy && !backups.iter().any(|l| l.key == name) {
                let lost = Error::Missing {
                    key: name.clone(),
                    repository: repository.store.name().to_owned(),
                };
                self.damaged(&name, &lost, vec![Harm { backup: id.to_owned(), files: None }]);
            }
        }
        for backup in &catalog.backups {
            for key in [names::writer(&backup.id, 0), names::published(&backup.id)] {
                if !writers.iter().any(|l| l.key == key) {
                    let lost = Error::Missing {
                        key: key.clone(),
                        repository: repository.store.name().to_owned(),
                    };
                    self.damaged(&key, &lost, Vec::new());
                }
            }
        }
        Ok(catalog.backups)
    }

    /// Reads packs and checks the blocks that are wanted of them.
    async fn packs(
        &mut self,
        references: References,
        at_once: usize,
        bad: &mut BTreeMap<String, Bad>,
    ) -> Result<()> {
        let sizes = self.repository.store.list(names::PACKS).await?;
        let sizes: BTreeMap<_, _> = sizes.into_iter().map(|l| (l.key, l.bytes)).collect();
        let names = references.places.keys().map(|pack| pack.name());
        self.progress.expect(names.filter_map(|name| sizes.get(&name)).sum());
        let (repository, progress) = (self.repository.clone(), self.progress.clone());
        let checks = references.places.into_iter().map(move |(pack, places)| {
            let (repository, progress) = (repository.clone(), progress.clone());
            async move { read_pack(repository, pack.name(), places, progress).await }
        });
        let mut checks = stream::iter(checks).buffer_unordered(at_once.max(1));
        while let Some(checked) = checks.next().await {
            let Checked { name, bytes, found } = checked?;
            self.count(bytes);
            match found {
                Ok(None) => {}
                Ok(Some(found)) => drop(bad.insert(name, found)),
                Err(error) => {
                    let why = self.count_failure(error)?.to_string();
                    bad.insert(name, Bad { why, places: None });
                }
            }
        }
        Ok(())
    }

    /// What was forgotten while this ran may have gone.
    async fn drop_forgotten(&mut self) -> Result<()> {
        if self.found.damages.is_empty() {
            return Ok(());
        }
        let forgotten = self.repository.forgotten().await?;
        let there = self.repository.store.list(BACKUPS).await?;
        let writers = self.repository.store.list(WRITERS).await?;
        let there: BTreeSet<_> = there.iter().chain(&writers).map(|l| l.key.as_str()).collect();
        let gone = |id: &str| {
            let names = [names::backup(id), names::published(id)];
            forgotten.contains(id) || !names.iter().any(|name| there.contains(name.as_str()))
        };
        self.found.damages.retain_mut(|damage| {
            let harmed = !damage.harms.is_empty();
            damage.harms.retain(|harm| !gone(&harm.backup));
            !harmed || !damage.harms.is_empty()
        });
        Ok(())
    }
}

struct Checked {
    name: String,
    bytes: u64,
    found: Result<Option<Bad>>,
}

async fn read_pack(
    repository: Repository,
    name: String,
    places: Places,
    progress: Arc<Progress>,
) -> Result<Checked> {
    progress.check()?;
    let object = match repository.store.get(&name).await {
        Ok(object) => object,
        Err(error) => return Ok(Checked { name, bytes: 0, found: Err(error) }),
    };
    let bytes = object.len() as u64;
    let checked = tokio::task::spawn_blocking(move || {
        let found = Ok(check_pack(&repository, &name, &object, &places));
        Checked { name, bytes, found }
    });
    let checked = checked.await.unwrap_or_else(|p| std::panic::resume_unwind(p.into_panic()));
    progress.advance(bytes);
    Ok(checked)
}
