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
    },
};
use tokio::runtime::Handle;

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
        sync_all(target)?;
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

/// Everything below `target`, tablespaces with it, is on disk.
fn sync_all(target: &Path) -> Result<()> {
    let mut roots = vec![target.to_owned()];
    if let Ok(links) = fs::read_dir(target.join("pg_tblspc")) {
        roots.extend(links.flatten().map(|link| link.path()));
    }
    for root in roots {
        let dir = File::open(&root).map_err(Error::io("open", &root))?;
        rustix::fs::syncfs(dir).map_err(|e| Error::io("sync", &root)(e.into()))?;
    }
    Ok(())
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
        self.clear_other(at, |_| false)?;
        symlink(&place, at).map_err(Error::io("link", at))
    }

    fn restore_segment(self: &Arc<Self>, segment: Segment) -> Result<()> {
        let files = segment.entries.into_iter().filter(|e| matches!(e.what, What::File { .. }));
        let files = Mutex::new(files);
        let failure = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..self.options.threads.max(1) {
                scope.spawn(|| {
                    let mut fetcher = Fetcher::new(self.repository.clone(), self.runtime.clone());
                    while !self.stopped.load(Ordering::Relaxed) {
                        let next = files.lock().unwrap_or_else(PoisonError::into_inner).next();
                        let Some(entry) = next else { return };
                        let worked = self.progress.check();
                        let worked = worked.and_then(|()| self.restore_file(&entry, &mut fetcher));
                        if let Err(error) = worked {
                            self.stopped.store(true, Ordering::Relaxed);
                            let mut failure =
                                failure.lock().unwrap_or_else(PoisonError::into_inner);
                            failure.get_or_insert(error);
                        }
                    }
                });
            }
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
