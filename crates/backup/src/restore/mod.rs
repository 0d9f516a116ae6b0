//! Bringing the files of a backup back: several at a time, reading packs in long runs; over an existing
//! directory only what differs. Every block is checked, by its seal and by its id.

mod fetch;
mod file;

use crate::{
    Backup, Entry, Error, Progress, Repository, Result,
    manifest::{Segment, What},
};
pub use fetch::Fetcher;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::sync_channel,
    },
};
use tokio::runtime::Handle;

/// Files that wait to be synced early.
const TO_SYNC_MAX: usize = 4;

/// How files are restored.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// Files at a time.
    pub threads: usize,
    /// The directory may have something in it: what is right stays, what is wrong is replaced,
    /// what is too much goes.
    pub delta: bool,
    /// Where tablespaces go, by object id, if not where they were.
    pub tablespaces: BTreeMap<String, PathBuf>,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        Self { threads: 2, delta: false, tablespaces: BTreeMap::new() }
    }
}

/// What a restore did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that came from the repository; the rest was there already.
    pub fetched_bytes: u64,
}

struct Shared {
    repository: Repository,
    options: RestoreOptions,
    target: PathBuf,
    progress: Arc<Progress>,
    stopped: AtomicBool,
    done: Mutex<Restored>,
    /// What is synced in the end: the target, and places of tablespaces.
    roots: Mutex<Vec<(PathBuf, File)>>,
    runtime: Handle,
}

impl Repository {
    /// Restores the files of `backup` into `target`. The control file comes last, everything is on
    /// disk when this returns; what recovery needs besides is the caller's.
    pub async fn restore_files(
        &self,
        backup: &Backup,
        target: &Path,
        options: RestoreOptions,
        progress: Arc<Progress>,
    ) -> Result<Restored> {
        progress.expect(backup.stats.bytes);
        prepare(target, options.delta)?;
        let shared = Arc::new(Shared {
            repository: self.clone(),
            options,
            target: target.to_owned(),
            progress,
            stopped: AtomicBool::new(false),
            done: Mutex::default(),
            roots: Mutex::new(vec![root(target)?]),
            runtime: Handle::current(),
        });
        let mut listed = BTreeSet::new();
        for number in 0..backup.sorted_segments + backup.late_segments {
            let segment = self.segment(&backup.id, number).await?;
            for entry in &segment.entries {
                check_path(&entry.path)?;
                if shared.options.delta {
                    listed.insert(entry.path.clone());
                }
            }
            let (shared, backup) = (shared.clone(), backup.clone());
            let restored = tokio::task::spawn_blocking(move || {
                shared.make_folders(&segment, &backup)?;
                shared.restore_segment(segment)
            });
            restored.await.unwrap_or_else(|p| std::panic::resume_unwind(p.into_panic()))?;
        }
        if shared.options.delta {
            remove_others(target, "", &listed)?;
        }
        for (at, dir) in &*shared.roots.lock().unwrap_or_else(PoisonError::into_inner) {
            rustix::fs::syncfs(dir).map_err(|e| Error::io("sync", at)(e.into()))?;
        }
        let done = *shared.done.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(done)
    }
}

/// Paths come from the repository: none leads out of the target.
fn check_path(path: &str) -> Result<()> {
    let fine = path.split('/').all(|word| !word.is_empty() && word != "." && word != "..");
    if fine { Ok(()) } else { Err(Error::damaged(path, "it is no path in a data directory")) }
}

fn prepare(target: &Path, delta: bool) -> Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700).create(target).map_err(Error::io("make", target))?;
    let first = fs::read_dir(target).map_err(Error::io("list", target))?.next();
    match first {
        Some(Ok(entry)) if !delta => Err(Error::Refused(format!(
            "{} is not empty (there is {}): name another folder, or restore over it with --delta",
            target.display(),
            entry.file_name().display()
        ))),
        Some(Err(error)) => Err(Error::io("list", target)(error)),
        _ if target.join("postmaster.pid").exists() => Err(Error::Refused(format!(
            "a server may be running in {} (there is postmaster.pid): stop it first",
            target.display()
        ))),
        _ => fs::set_permissions(target, Permissions::from_mode(0o700))
            .map_err(Error::io("set the permissions of", target)),
    }
}

/// Removes what the backup does not have.
fn remove_others(dir: &Path, below: &str, listed: &BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let entry = entry.map_err(Error::io("list", dir))?;
        let name = entry.file_name();
        let path = match below {
            "" => name.to_string_lossy().into_owned(),
            below => format!("{below}/{}", name.to_string_lossy()),
        };
        let at = entry.path();
        let kind = entry.file_type().map_err(Error::io("look at", &at))?;
        if listed.contains(&path) {
            if kind.is_dir() || (kind.is_symlink() && below == "pg_tblspc") {
                remove_others(&at, &path, listed)?;
            }
        } else if kind.is_dir() {
            fs::remove_dir_all(&at).map_err(Error::io("remove", &at))?;
        } else {
            fs::remove_file(&at).map_err(Error::io("remove", &at))?;
        }
    }
    Ok(())
}

/// A folder whose file system is synced in the end. Opened before anything is written: only then is
/// the sync told of what the disk refused meanwhile.
fn root(at: &Path) -> Result<(PathBuf, File)> {
    Ok((at.to_owned(), File::open(at).map_err(Error::io("open", at))?))
}

impl Shared {
    fn make_folders(&self, segment: &Segment, backup: &Backup) -> Result<()> {
        for Entry { path, mode, what } in &segment.entries {
            let at = self.target.join(path);
            match what {
                What::Dir => {
                    self.clear_other(&at, |found| found.is_dir())?;
                    make_dir(&at, *mode)?;
                }
                What::Link(_) if path.starts_with("pg_tblspc/") => {
                    self.make_tablespace(path, &at, backup)?;
                }
                What::Link(target) => {
                    self.clear_other(&at, |_| false)?;
                    symlink(target, &at).map_err(Error::io("link", &at))?;
                }
                What::File { .. } => self.clear_other(&at, |found| found.is_file())?,
            }
        }
        Ok(())
    }

    /// Removes what is at this place, if it is not of the right kind.
    fn clear_other(&self, at: &Path, fits: impl Fn(&fs::Metadata) -> bool) -> Result<()> {
        let removed = match fs::symlink_metadata(at) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(found) if fits(&found) => Ok(()),
            Ok(found) if found.is_dir() => fs::remove_dir_all(at),
            Ok(_) => fs::remove_file(at),
        };
        removed.map_err(Error::io("make place at", at))
    }

    fn make_tablespace(&self, path: &str, at: &Path, backup: &Backup) -> Result<()> {
        let oid = path.trim_start_matches("pg_tblspc/");
        let was = backup.tablespaces.iter().find(|(known, _)| known == oid);
        let place = self.options.tablespaces.get(oid).cloned();
        let place = place.or_else(|| was.map(|(_, location)| PathBuf::from(location)));
        let place = place.ok_or_else(|| {
            Error::Refused(format!("name a place for tablespace {oid} (--tablespace {oid}=FOLDER)"))
        })?;
        make_dir(&place, 0o700)?;
        let occupied = fs::read_dir(&place).map_err(Error::io("list", &place))?.next().is_some();
        if occupied && !self.options.delta {
            return Err(Error::Refused(format!(
                "{} is not empty: name another place for tablespace {oid} (--tablespace {oid}=FOLDER)",
                place.display()
            )));
        }
        self.roots.lock().unwrap_or_else(PoisonError::into_inner).push(root(&place)?);
        self.clear_other(at, |_| false)?;
        symlink(&place, at).map_err(Error::io("link", at))
    }

    fn restore_segment(self: &Arc<Self>, segment: Segment) -> Result<()> {
        let pieces = Mutex::new(file::Pieces::of(segment.entries));
        let failure = Mutex::new(None);
        let fail = |error: Error| {
            self.stopped.store(true, Ordering::Relaxed);
            failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        };
        let (written, to_sync) = sync_channel::<Arc<file::Opened>>(TO_SYNC_MAX);
        std::thread::scope(|scope| {
            let fail = &fail;
            // The disk works while others do: the sync in the end has little left.
            scope.spawn(move || {
                to_sync.into_iter().for_each(|file| file.sync().unwrap_or_else(fail));
            });
            for _ in 0..self.options.threads.max(1) {
                let (written, pieces) = (written.clone(), &pieces);
                scope.spawn(move || {
                    let mut fetcher = Fetcher::new(self.repository.clone(), self.runtime.clone());
                    let (mut old, mut last) = (Vec::new(), None);
                    while !self.stopped.load(Ordering::Relaxed) {
                        let mut pieces = pieces.lock().unwrap_or_else(PoisonError::into_inner);
                        let next = pieces.next(last.as_ref());
                        drop(pieces);
                        let Some(piece) = next else { return };
                        let worked = self.progress.check();
                        let worked = worked
                            .and_then(|()| self.restore_piece(&piece, &mut fetcher, &mut old));
                        match worked {
                            // While the disk is behind, it is left to the end.
                            Ok(Some(file)) => drop(written.try_send(file)),
                            Ok(None) => {}
                            Err(error) => fail(error),
                        }
                        last = Some(piece);
                    }
                });
            }
            drop(written);
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

fn make_dir(at: &Path, mode: u32) -> Result<()> {
    let made = match DirBuilder::new().recursive(true).mode(mode).create(at) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    };
    made.map_err(Error::io("make", at))
}
