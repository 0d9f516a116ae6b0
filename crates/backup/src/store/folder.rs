//! A repository in a folder: a disk of this machine, or a network file system.

use super::{Append, Listed, Store};
use crate::{Error, Result};
use async_trait::async_trait;
use bytes::Bytes;
use rand::RngExt;
use rustix::fs::{CWD, RenameFlags};
use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    ops::Range,
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// Objects begin their life here. What a writer that died left are [`Store::leftovers`].
pub(crate) const UNFINISHED: &str = "tmp/";

/// A repository in a folder.
#[derive(Clone, Debug)]
pub struct Folder {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    name: String,
    /// Folders with entries that a power failure could still take away.
    unsynced: Mutex<BTreeSet<PathBuf>>,
}

impl Folder {
    /// The repository in `root`, which need not exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        let name = root.display().to_string();
        Self { inner: Arc::new(Inner { root, name, unsynced: Mutex::default() }) }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = self.inner.clone();
        let done = tokio::task::spawn_blocking(move || work(&inner)).await;
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }
}

pub(crate) fn written_unix_ms(metadata: &fs::Metadata) -> u64 {
    let ms =
        metadata.mtime().saturating_mul(1000).saturating_add(metadata.mtime_nsec() / 1_000_000);
    u64::try_from(ms).unwrap_or(0)
}

impl Inner {
    fn failed(&self, doing: &'static str, key: &str, error: &io::Error) -> Error {
        let (key, repository) = (key.to_owned(), self.name.clone());
        match error.kind() {
            ErrorKind::NotFound => Error::Missing { key, repository },
            ErrorKind::AlreadyExists => Error::Exists { key, repository },
            _ => Error::Store { doing, key, repository, why: error.to_string() },
        }
    }

    fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    /// Makes the folders above `path`, remembering each whose entry is new.
    fn make_parents(&self, path: &Path) -> io::Result<()> {
        let Some(parent) = path.parent() else { return Ok(()) };
        if parent.exists() {
            return Ok(());
        }
        self.make_parents(parent)?;
        match DirBuilder::new().mode(0o700).create(parent) {
            Ok(()) => self.touched(parent),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn touched(&self, path: &Path) {
        if let Some(parent) = path.parent() {
            let mut unsynced = self.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
            unsynced.insert(parent.to_owned());
        }
    }

    fn put_new(&self, key: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.path(key);
        if path.exists() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let unfinished =
            self.root.join(UNFINISHED).join(format!("{:032x}", rand::rng().random::<u128>()));
        self.make_parents(&unfinished)?;
        self.make_parents(&path)?;
        let written =
            write_synced(&unfinished, bytes).and_then(|()| put_in_place(&unfinished, &path));
        if written.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        written?;
        self.touched(&path);
        Ok(())
    }

    fn barrier(&self) -> io::Result<()> {
        let unsynced =
            std::mem::take(&mut *self.unsynced.lock().unwrap_or_else(PoisonError::into_inner));
        let mut left = unsynced.iter();
        let done = left.try_for_each(|dir| File::open(dir)?.sync_all());
        if done.is_err() {
            self.unsynced.lock().unwrap_or_else(PoisonError::into_inner).extend(unsynced);
        }
        done
    }
}

/// What [`Store::list`] answers; or, `unfinished`, what [`Store::leftovers`] does.
pub(crate) fn list(root: &Path, prefix: &str, unfinished: bool) -> io::Result<Vec<Listed>> {
    let prefix = if unfinished { UNFINISHED } else { prefix };
    let mut found = Vec::new();
    let mut dirs = vec![root.join(prefix)];
    while let Some(dir) = dirs.pop() {
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let Ok(relative) = entry.path().strip_prefix(root).map(Path::to_owned) else {
                continue;
            };
            if relative.starts_with(UNFINISHED) != unfinished {
                continue;
            }
            let metadata = match entry.metadata() {
                // Deleted meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            if metadata.is_dir() {
                dirs.push(entry.path());
            } else if let Some(key) = relative.to_str() {
                found.push(Listed {
                    key: key.to_owned(),
                    bytes: metadata.len(),
                    written_unix_ms: written_unix_ms(&metadata),
                });
            }
        }
    }
    found.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(found)
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Renames, refusing to replace.
pub(crate) fn put_in_place(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Network file systems have no such rename, but a hard link that is never replaced.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::NOTSUP) => {
            match fs::hard_link(from, to) {
                // The answer of such a file system was lost, and it was asked again.
                Err(error) if error.kind() == ErrorKind::AlreadyExists && is_same(from, to) => {}
                linked => linked?,
            }
            fs::remove_file(from)
        }
        renamed => Ok(renamed?),
    }
}

fn is_same(a: &Path, b: &Path) -> bool {
    let inode = |path| fs::symlink_metadata(path).map(|m| (m.dev(), m.ino())).ok();
    inode(a).is_some() && inode(a) == inode(b)
}

#[async_trait]
impl Store for Folder {
    fn name(&self) -> &str {
        &self.inner.name
    }

    async fn put_new(&self, key: &str, bytes: Bytes) -> Result<()> {
        let key = key.to_owned();
        self.blocking(move |inner| {
            inner.put_new(&key, &bytes).map_err(|e| inner.failed("write", &key, &e))
        })
        .await
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        let key = key.to_owned();
        self.blocking(move |inner| match fs::read(inner.path(&key)) {
            Ok(bytes) => Ok(bytes.into()),
            Err(error) => Err(inner.failed("read", &key, &error)),
        })
        .await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        let key = key.to_owned();
        self.blocking(move |inner| {
            let read = || {
                let file = File::open(inner.path(&key))?;
                let end = range.end.min(file.metadata()?.len());
                let length = end.saturating_sub(range.start);
                let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
                file.read_exact_at(&mut bytes, range.start)?;
                Ok(Bytes::from(bytes))
            };
            read().map_err(|e: io::Error| inner.failed("read", &key, &e))
        })
        .await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let prefix = prefix.to_owned();
        self.blocking(move |inner| {
            list(&inner.root, &prefix, false).map_err(|e| inner.failed("list", &prefix, &e))
        })
        .await
    }

    async fn leftovers(&self) -> Result<Vec<Listed>> {
        self.blocking(|inner| {
            list(&inner.root, UNFINISHED, true).map_err(|e| inner.failed("list", UNFINISHED, &e))
        })
        .await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let key = key.to_owned();
        self.blocking(move |inner| {
            let path = inner.path(&key);
            match fs::remove_file(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                removed => removed.map_err(|e| inner.failed("delete", &key, &e))?,
            }
            inner.touched(&path);
            Ok(())
        })
        .await
    }

    async fn barrier(&self) -> Result<()> {
        self.blocking(|inner| inner.barrier().map_err(|e| inner.failed("sync", "folders", &e)))
            .await
    }

    async fn append_new(&self, key: &str) -> Result<Box<dyn Append>> {
        let (key, folder) = (key.to_owned(), self.clone());
        let file = self.blocking({
            let key = key.clone();
            move |inner| {
                let open = || {
                    let path = inner.path(&key);
                    inner.make_parents(&path)?;
                    let mut options = OpenOptions::new();
                    let file = options.append(true).create_new(true).mode(0o600).open(&path)?;
                    inner.touched(&path);
                    inner.barrier()?;
                    Ok(file)
                };
                open().map_err(|e: io::Error| inner.failed("begin", &key, &e))
            }
        });
        let file = Some(file.await?);
        Ok(Box::new(Growing { folder, key, file }))
    }

    async fn get_appended(&self, key: &str) -> Result<Bytes> {
        let key = key.to_owned();
        self.blocking(move |inner| {
            let mut bytes = Vec::new();
            let read = File::open(inner.path(&key)).and_then(|mut f| f.read_to_end(&mut bytes));
            read.map_err(|e| inner.failed("read", &key, &e))?;
            Ok(bytes.into())
        })
        .await
    }

    async fn delete_appended(&self, key: &str) -> Result<()> {
        self.delete(key).await
    }
}

struct Growing {
    folder: Folder,
    key: String,
    /// None after an error.
    file: Option<File>,
}

#[async_trait]
impl Append for Growing {
    async fn append(&mut self, bytes: Bytes) -> Result<()> {
        let key = self.key.clone();
        let Some(mut file) = self.file.take() else {
            let why = "an earlier write failed".to_owned();
            let repository = self.folder.inner.name.clone();
            return Err(Error::Store { doing: "append to", key, repository, why });
        };
        let write = move |inner: &Inner| {
            let mut write = || {
                file.write_all(&bytes)?;
                file.sync_data()
            };
            write().map_err(|e| inner.failed("append to", &key, &e))?;
            Ok(file)
        };
        self.file = Some(self.folder.blocking(write).await?);
        Ok(())
    }
}
