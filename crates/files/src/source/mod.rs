//! What is backed up, watched: the library skips what it cannot read, we remember it.

mod metadata;
mod read;
mod throttle;
mod walk;

pub(crate) use metadata::mode_from_go;
pub(crate) use read::Reading;

use crate::{Error, Result, back_up::Set};
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use rustic_core::{ReadSource, RusticResult};
use std::{
    fmt::Display,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use throttle::Throttle;
use walk::Walk;

/// Of so many it is said why they were not read.
const SAID_MAX: usize = 10;

/// What happened to the sources meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    troubles: Mutex<Troubles>,
    /// Entries that are no folders, handed to the library.
    pub(crate) entries: AtomicU64,
    /// Files that were deleted between being listed and being opened: as if the backup had begun later.
    pub(crate) vanished: AtomicU64,
    /// Files that were written to while they were read.
    pub(crate) changed: AtomicU64,
    throttle: Throttle,
}

#[derive(Debug, Default)]
struct Troubles {
    count: usize,
    first: Vec<String>,
}

impl Watch {
    /// What is read is limited to so many bytes a second.
    pub(crate) fn new(max_bytes_per_s: Option<u64>) -> Self {
        Self { throttle: Throttle::new(max_bytes_per_s), ..Self::default() }
    }

    /// This was not read.
    pub(crate) fn trouble(&self, path: &Path, why: impl Display) {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        tracing::warn!("{} is not backed up: {why}", path.display());
        troubles.count += 1;
        if troubles.first.len() < SAID_MAX {
            troubles.first.push(format!("{}: {why}", path.display()));
        }
    }

    /// Was everything read?
    pub(crate) fn verdict(&self) -> Result<()> {
        let troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        match troubles.count {
            0 => Ok(()),
            count => Err(Error::Unreadable { count, first: troubles.first.clone() }),
        }
    }

    fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// The folders of a set.
pub(crate) struct Source {
    set: Set,
    excludes: Arc<Vec<Gitignore>>,
    watch: Arc<Watch>,
}

impl Source {
    /// What cannot be meant is refused.
    pub(crate) fn new(set: &Set, watch: Arc<Watch>) -> Result<Self> {
        let mut excludes = Vec::new();
        for path in &set.paths {
            let mut builder = GitignoreBuilder::new(path);
            for glob in &set.excludes {
                let bad = |error: ignore::Error| {
                    Error::Refused(format!("`{glob}` cannot be used to exclude: {error}"))
                };
                builder.add_line(None, glob).map_err(bad)?;
            }
            let built = builder.build();
            excludes.push(built.map_err(|error| Error::Refused(error.to_string()))?);
        }
        Ok(Self { set: set.clone(), excludes: Arc::new(excludes), watch })
    }
}

impl ReadSource for Source {
    type Open = Reading;
    type Iter = Walk;

    /// By another walk, which has nothing to complain of: that is the real one's.
    fn size(&self) -> RusticResult<Option<u64>> {
        let unheard = Arc::new(Watch::default());
        let walk = Walk::new(self.set.paths.clone(), self.excludes.clone(), unheard);
        Ok(Some(walk.bytes()))
    }

    fn entries(&self) -> Self::Iter {
        Walk::new(self.set.paths.clone(), self.excludes.clone(), self.watch.clone())
    }
}
