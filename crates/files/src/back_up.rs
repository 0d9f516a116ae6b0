//! A backup of folders.

use crate::{
    Error, Files, Result,
    repository::{blocking, list, snapshot, tag},
    source::{Source, Watch},
};
use rustic_core::{BackupOptions, ParentOptions, SnapshotGroupCriterion, SnapshotOptions};
use sempre_backup::Progress;
use serde::{Deserialize, Serialize};
use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};
use tokio::runtime::Handle;

/// What is to be backed up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// On which member.
    pub member: String,
    /// Folders and files.
    pub paths: Vec<PathBuf>,
    /// What is left out: patterns as in a `.gitignore` file, from each path on.
    pub excludes: Vec<String>,
}

/// How it is backed up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct How {
    /// Read everything, even what has the size and the times of the snapshot before.
    pub full: bool,
    /// The most that is read, bytes a second.
    pub max_bytes_per_s: Option<u64>,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The snapshot.
    pub id: String,
    /// Bytes of the files.
    pub bytes: u64,
    /// What it came to in the repository, bytes.
    pub stored_bytes: u64,
    /// How long it took, ms.
    pub took_ms: u64,
    /// Files that were deleted between being listed and being read, and are not in it.
    pub vanished: u64,
    /// Files that were written to while they were read.
    pub changed: u64,
}

impl Files {
    /// Backs a set up. A file that cannot be read fails it: a snapshot is whole, or is not there. What was
    /// stored until then is not stored again the next time.
    pub async fn back_up(&self, set: &Set, how: How, progress: Arc<Progress>) -> Result<Made> {
        if let Some(path) = set.paths.iter().find(|path| !path.is_absolute()) {
            return Err(Error::Refused(format!("{} is no absolute path", path.display())));
        }
        if set.paths.is_empty() {
            return Err(Error::Refused(format!("{} has no paths", set.name)));
        }
        self.init().await?;
        let (files, set, runtime) = (self.clone(), set.clone(), Handle::current());
        blocking(&self.place(), "back the files up", move || {
            files.back_up_here(&set, how, runtime, progress)
        })
        .await
    }

    fn back_up_here(
        &self,
        set: &Set,
        how: How,
        runtime: Handle,
        progress: Arc<Progress>,
    ) -> Result<Made> {
        let (place, began) = (self.place(), Instant::now());
        let failed = |error| Error::library("back the files up", &place)(error);
        let watch = Arc::new(Watch::new(how.max_bytes_per_s));
        let source = Source::new(set, watch.clone())?;
        let opened = self.open(runtime, Some(watch.clone()), Some(progress))?;
        let before = list(&opened, &place)?.into_iter().rfind(|s| s.tags.contains(&tag(&set.name)));
        let opened = opened.to_indexed_ids().map_err(failed)?;
        let mut group = SnapshotGroupCriterion::new();
        group.tags = true;
        let mut parent =
            ParentOptions::default().group_by(group).force(how.full || before.is_none());
        if let Some(before) = &before {
            parent = parent.parents(vec![before.id.to_hex().to_string()]);
        }
        let options =
            SnapshotOptions::default().host(set.member.clone()).command("sempre".to_owned());
        let new =
            options.add_tags(&tag(&set.name)).and_then(|o| o.to_snapshot()).map_err(failed)?;
        let options = BackupOptions::default().parent_opts(parent);
        let archived = opened.archive(&options, &source, new, &set.paths);
        // What could not be read explains the rest.
        watch.verdict()?;
        let made = archived.map_err(failed)?;
        let listed = snapshot(&made);
        let told = watch.entries.load(Ordering::Relaxed);
        if listed.entries != told {
            // It dropped something that was read well. Should never happen; a backup is no place for trust.
            opened.delete_snapshots(&[made.id]).map_err(failed)?;
            let why = format!("{told} files were told, and {} are in it", listed.entries);
            return Err(Error::Repository { doing: "back the files up", repository: place, why });
        }
        Ok(Made {
            id: listed.id,
            bytes: listed.bytes,
            stored_bytes: listed.stored_bytes,
            took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            vanished: watch.vanished.load(Ordering::Relaxed),
            changed: watch.changed.load(Ordering::Relaxed),
        })
    }
}
