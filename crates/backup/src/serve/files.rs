//! The files of one served folder. All of it blocks.

use crate::store::folder::{UNFINISHED, put_in_place};
use std::{
    collections::HashSet,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// Shared by who serves it and by what is being written.
#[derive(Clone)]
pub(super) struct Files {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    quota_bytes: Option<u64>,
    /// Bytes of all files; none: not counted yet.
    used: Mutex<Option<u64>>,
    /// Folders whose entries above are durable.
    durable: Mutex<HashSet<PathBuf>>,
}

fn no_space(quota: u64) -> io::Error {
    let why = format!("the quota of this folder, {quota} bytes, is used up");
    io::Error::new(ErrorKind::QuotaExceeded, why)
}

impl Files {
    pub(super) fn new(root: PathBuf, quota_bytes: Option<u64>) -> Self {
        let (used, durable) = Default::default();
        Self { inner: Arc::new(Inner { root, quota_bytes, used, durable }) }
    }

    pub(super) fn root(&self) -> &Path {
        &self.inner.root
    }

    pub(super) fn path(&self, key: &str) -> PathBuf {
        self.inner.root.join(key)
    }

    /// Begins an object that is put as a whole.
    pub(super) fn begin(&self, key: &str) -> io::Result<Unfinished> {
        let at = self.path(key);
        if at.exists() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let name = format!("{:032x}", rand::random::<u128>());
        let path = self.inner.root.join(UNFINISHED).join(name);
        self.inner.make_parents(&path)?;
        let file = create(OpenOptions::new().write(true), &path)?;
        Ok(Unfinished { files: self.clone(), file, path, at, bytes: 0, done: false })
    }

    /// Begins an object that grows.
    pub(super) fn begin_growing(&self, key: &str) -> io::Result<Growing> {
        let path = self.path(key);
        self.inner.make_parents(&path)?;
        let file = create(OpenOptions::new().append(true), &path)?;
        self.inner.sync_entry(&path)?;
        Ok(Growing { files: self.clone(), file, bytes: 0 })
    }

    /// Deletes an object, durably; fine if there is none.
    pub(super) fn delete(&self, key: &str) -> io::Result<()> {
        let path = self.path(key);
        let bytes = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            metadata => metadata?.len(),
        };
        match fs::remove_file(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            removed => removed?,
        }
        self.inner.give_back(bytes);
        self.inner.sync_entry(&path)
    }

    /// For how long a file has not been changed in any way, ms; none if it is not there.
    pub(super) fn age_ms(&self, key: &str, now_unix_ms: u64) -> io::Result<Option<u64>> {
        match fs::symlink_metadata(self.path(key)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            metadata => Ok(Some(now_unix_ms.saturating_sub(changed_unix_ms(&metadata?)))),
        }
    }

    /// The files right below a folder, by name, with their ages.
    pub(super) fn ages(&self, folder: &str, now_unix_ms: u64) -> io::Result<Vec<(String, u64)>> {
        let entries = match fs::read_dir(self.path(folder)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if let Some(age_ms) = self.age_ms(&format!("{folder}{name}"), now_unix_ms)? {
                found.push((name, age_ms));
            }
        }
        Ok(found)
    }
}

fn create(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.create_new(true).mode(0o600).open(path)
}

/// `ctime`: the kernel sets it, and nobody else can.
fn changed_unix_ms(metadata: &fs::Metadata) -> u64 {
    let ms =
        metadata.ctime().saturating_mul(1000).saturating_add(metadata.ctime_nsec() / 1_000_000);
    u64::try_from(ms).unwrap_or(0)
}

impl Inner {
    /// Makes the folders above `path`, durably.
    fn make_parents(&self, path: &Path) -> io::Result<()> {
        let Some(parent) = path.parent().filter(|parent| *parent != self.root) else {
            return Ok(());
        };
        let is_durable = |parent: &Path| {
            self.durable.lock().unwrap_or_else(PoisonError::into_inner).contains(parent)
        };
        if is_durable(parent) {
            return Ok(());
        }
        self.make_parents(parent)?;
        match DirBuilder::new().mode(0o700).create(parent) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => made?,
        }
        // Also one that somebody else has just made.
        self.sync_entry(parent)?;
        self.durable.lock().unwrap_or_else(PoisonError::into_inner).insert(parent.to_owned());
        Ok(())
    }

    /// The entry of `path` survives a power failure.
    fn sync_entry(&self, path: &Path) -> io::Result<()> {
        match path.parent() {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    }

    /// Takes room for so many bytes.
    fn take(&self, bytes: u64) -> io::Result<()> {
        let Some(quota) = self.quota_bytes else { return Ok(()) };
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let now = match *used {
            Some(used) => used,
            None => count(&self.root)?,
        };
        if now.saturating_add(bytes) > quota {
            *used = Some(now);
            return Err(no_space(quota));
        }
        *used = Some(now + bytes);
        Ok(())
    }

    fn give_back(&self, bytes: u64) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        *used = used.map(|used| used.saturating_sub(bytes));
    }
}

fn count(root: &Path) -> io::Result<u64> {
    let (mut bytes, mut dirs) = (0, vec![root.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            match metadata.is_dir() {
                true => dirs.push(entry.path()),
                false => bytes += metadata.len(),
            }
        }
    }
    Ok(bytes)
}

/// An object on its way. Dropped before it is whole, nothing is left of it.
pub(super) struct Unfinished {
    files: Files,
    file: File,
    path: PathBuf,
    at: PathBuf,
    bytes: u64,
    done: bool,
}

impl Unfinished {
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.files.inner.take(bytes.len() as u64)?;
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    /// Puts it in its place, durably; refuses to replace.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        let inner = &self.files.inner;
        inner.make_parents(&self.at)?;
        put_in_place(&self.path, &self.at)?;
        self.done = true;
        self.files.inner.sync_entry(&self.at)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_file(&self.path);
            self.files.inner.give_back(self.bytes);
        }
    }
}

/// An object that grows.
pub(super) struct Growing {
    files: Files,
    file: File,
    bytes: u64,
}

impl Growing {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.files.inner.take(bytes.len() as u64)?;
        self.file.write_all(bytes)?;
        self.file.sync_data()?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}
