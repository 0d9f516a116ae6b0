//! A snapshot, brought back into a folder: below it, each file is at the path that it had.
//!
//! Three passes: what exists by name only (folders, links, empty files of the right length), then contents by
//! many threads, then owners, permissions, attributes and times, folders last. Names are looked at before
//! anything is made by them, so that nothing is ever written outside of the target.

use crate::{
    Error, Files, Result, Snapshot,
    repository::{blocking, list, snapshot, tag},
    source::mode_from_go,
};
use nix::{
    sys::stat::{Mode, SFlag, makedev, mknod},
    unistd::Uid,
};
use rustic_core::{
    BlobId, IndexedFullStatus, LsOptions, Repository,
    repofile::{BlobType, Node, NodeType},
};
use rustix::{
    fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags, lsetxattr, syncfs, utimensat},
    io::Errno,
};
use sempre_backup::Progress;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt, lchown, symlink},
    path::{Component, Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};
use tokio::runtime::Handle;

/// Pieces of contents that one thread brings in a row.
const PIECES: usize = 16;
/// Of so many it is said what is not as it was.
const SAID_MAX: usize = 10;

type Repo = Repository<IndexedFullStatus>;

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// Of it.
    pub snapshot: Snapshot,
    /// Files, folders, links.
    pub entries: usize,
    /// Bytes of the files.
    pub bytes: u64,
}

/// Contents that one thread brings in a row.
struct Work {
    /// Into which entry.
    entry: usize,
    /// From this byte on.
    offset: u64,
    /// In this order.
    pieces: Vec<(BlobId, u64)>,
}

impl Files {
    /// Restores a snapshot of a set (the newest, or one by the beginning of its name) into an empty folder.
    /// Owners come back only where this runs as root.
    pub async fn restore(
        &self,
        set: &str,
        wanted: Option<&str>,
        target: &Path,
        threads: usize,
        progress: Arc<Progress>,
    ) -> Result<Restored> {
        if !self.exist().await? {
            let (wanted, there) = (wanted.unwrap_or("latest").to_owned(), Vec::new());
            return Err(Error::NoSnapshot { wanted, there });
        }
        let (files, runtime) = (self.clone(), Handle::current());
        let (set, wanted) = (set.to_owned(), wanted.map(str::to_owned));
        let target = std::path::absolute(target).map_err(Error::io("find", target))?;
        blocking(&self.place(), "restore the files", move || {
            let place = files.place();
            let opened = files.open(runtime, None, None)?;
            let tag = tag(&set);
            let mut known = list(&opened, &place)?;
            known.retain(|snapshot| snapshot.tags.contains(&tag));
            let fits = |id: &str| match wanted.as_deref() {
                None | Some("latest") => true,
                Some(wanted) => id.starts_with(wanted),
            };
            let fitting: Vec<_> = known.iter().filter(|s| fits(&s.id.to_hex())).collect();
            let is_one =
                wanted.is_none() || wanted.as_deref() == Some("latest") || fitting.len() == 1;
            let Some(chosen) = fitting.last().filter(|_| is_one) else {
                let there = known.iter().map(|s| s.id.to_hex()[..8].to_owned()).collect();
                return Err(Error::NoSnapshot { wanted: wanted.unwrap_or_default(), there });
            };
            make_target(&target)?;
            let failed = |error| Error::library("read the snapshot", &place)(error);
            let repo = opened.to_indexed().map_err(failed)?;
            let root = repo.node_from_snapshot_and_path(chosen, "").map_err(failed)?;
            let nodes = repo.ls(&root, &LsOptions::default()).map_err(failed)?;
            let entries = nodes.map(|node| {
                let (path, node) = node.map_err(failed)?;
                checked(&place, path, node)
            });
            let entries = entries.collect::<Result<Vec<_>>>()?;
            let task = Task { repo, place, target, entries, progress, threads: threads.max(1) };
            let bytes = task.run()?;
            Ok(Restored { snapshot: snapshot(chosen), entries: task.entries.len(), bytes })
        })
        .await
    }
}

fn make_target(target: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).recursive(true).create(target) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(Error::io("make", target)(error));
        }
        _ => {}
    }
    let mut there = fs::read_dir(target).map_err(Error::io("list", target))?;
    match there.next() {
        None => Ok(()),
        Some(_) => Err(Error::Refused(format!("{} is not empty", target.display()))),
    }
}

/// A name that leads elsewhere was not written by us.
fn checked(place: &str, path: PathBuf, node: Node) -> Result<(PathBuf, Node)> {
    let is_below = path.components().all(|part| matches!(part, Component::Normal(_)));
    let is_named = path.file_name() == Some(&*node.name());
    match is_below && is_named {
        true => Ok((path, node)),
        false => {
            let why = format!("a file cannot be called {}", path.display());
            Err(Error::Damaged { repository: place.to_owned(), why })
        }
    }
}

struct Task {
    repo: Repo,
    place: String,
    target: PathBuf,
    entries: Vec<(PathBuf, Node)>,
    progress: Arc<Progress>,
    threads: usize,
}

impl Task {
    fn run(&self) -> Result<u64> {
        let work = self.make_names()?;
        let bytes = work.iter().flat_map(|work| &work.pieces).map(|(_, length)| length).sum();
        self.progress.expect(bytes);
        self.fill(&work)?;
        let unset = self.set_metadata();
        let folder = File::open(&self.target).map_err(Error::io("open", &self.target))?;
        syncfs(&folder).map_err(|error| Error::io("sync", &self.target)(error.into()))?;
        match unset.len() {
            0 => Ok(bytes),
            count => {
                let first = unset.into_iter().take(SAID_MAX).collect();
                Err(Error::Incomplete { count, first })
            }
        }
    }

    /// Everything there is, still without contents; returns where those are to come from.
    fn make_names(&self) -> Result<Vec<Work>> {
        let mut work = Vec::new();
        let mut linked: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
        for (index, (path, node)) in self.entries.iter().enumerate() {
            let path = self.target.join(path);
            let made = match &node.node_type {
                NodeType::Dir => DirBuilder::new().mode(0o700).create(&path),
                NodeType::Symlink { .. } => symlink(node.node_type.to_link(), &path),
                NodeType::File => {
                    let key = (node.meta.device_id, node.meta.inode);
                    let is_linked = node.meta.links > 1 && key.0 != 0;
                    match linked.get(&key).filter(|_| is_linked) {
                        Some(first) => fs::hard_link(first, &path),
                        None => {
                            if is_linked {
                                linked.insert(key, path.clone());
                            }
                            self.contents(index, &path, node, &mut work)?;
                            create(&path, node.meta.size)
                        }
                    }
                }
                NodeType::Fifo => special(&path, SFlag::S_IFIFO, 0),
                NodeType::Socket => special(&path, SFlag::S_IFSOCK, 0),
                NodeType::Chardev { device } => special(&path, SFlag::S_IFCHR, *device),
                NodeType::Dev { device } => special(&path, SFlag::S_IFBLK, *device),
            };
            made.map_err(Error::io("make", &path))?;
        }
        Ok(work)
    }

    fn contents(&self, entry: usize, path: &Path, node: &Node, work: &mut Vec<Work>) -> Result<()> {
        let damaged = |why: String| Error::Damaged { repository: self.place.clone(), why };
        let mut pieces = Vec::new();
        let (mut offset, mut end) = (0, 0);
        for id in node.content.iter().flatten() {
            let found = self
                .repo
                .get_index_entry(id)
                .map_err(|_| damaged(format!("contents of {} are missing", path.display())))?;
            let length = u64::from(found.location.data_length());
            pieces.push((BlobId::from(*id), length));
            end += length;
            if pieces.len() == PIECES {
                work.push(Work { entry, offset, pieces: std::mem::take(&mut pieces) });
                offset = end;
            }
        }
        if !pieces.is_empty() {
            work.push(Work { entry, offset, pieces });
        }
        match end == node.meta.size {
            true => Ok(()),
            false => Err(damaged(format!(
                "{} has {} bytes, and contents of {end}",
                path.display(),
                node.meta.size
            ))),
        }
    }

    fn fill(&self, work: &[Work]) -> Result<()> {
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let failed: Mutex<Option<Error>> = Mutex::default();
        let bring = || {
            while !stop.load(Ordering::Relaxed)
                && let Some(work) = work.get(next.fetch_add(1, Ordering::Relaxed))
            {
                if let Err(error) = self.bring(work) {
                    stop.store(true, Ordering::Relaxed);
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        };
        thread::scope(|scope| {
            (0..self.threads.min(work.len())).for_each(|_| drop(scope.spawn(bring)));
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    fn bring(&self, work: &Work) -> Result<()> {
        let path = self.target.join(&self.entries[work.entry].0);
        let mut options = OpenOptions::new();
        let file = options.write(true).custom_flags(nix::libc::O_NOFOLLOW).open(&path);
        let file = file.map_err(Error::io("open", &path))?;
        let mut offset = work.offset;
        for (id, length) in &work.pieces {
            let read = self.repo.get_blob_cached(id, BlobType::Data);
            let bytes = read.map_err(Error::library("read contents", &self.place))?;
            if bytes.len() as u64 != *length {
                let why = format!("contents of {} have another length", path.display());
                return Err(Error::Damaged { repository: self.place.clone(), why });
            }
            // Holes stay holes.
            if bytes.iter().any(|byte| *byte != 0) {
                file.write_all_at(&bytes, offset).map_err(Error::io("write", &path))?;
            }
            offset += length;
            self.progress.advance(*length);
        }
        Ok(())
    }

    /// Folders last and from within, as each change in them changes their times. Returns what did not work.
    fn set_metadata(&self) -> Vec<String> {
        let is_dir = |(_, node): &&(PathBuf, Node)| node.is_dir();
        let others = self.entries.iter().filter(|entry| !is_dir(entry));
        let ordered = others.chain(self.entries.iter().rev().filter(is_dir));
        let mut unset = Vec::new();
        for (path, node) in ordered {
            let path = self.target.join(path);
            if let Err((what, error)) = set(&path, node) {
                unset.push(format!("{what} of {}: {error}", path.display()));
            }
        }
        unset
    }
}

fn create(path: &Path, bytes: u64) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)?.set_len(bytes)
}

fn special(path: &Path, kind: SFlag, device: u64) -> io::Result<()> {
    // The number is the system's own, as it was found.
    let device = makedev(nix::sys::stat::major(device), nix::sys::stat::minor(device));
    match mknod(path, kind, Mode::S_IRUSR | Mode::S_IWUSR, device) {
        // Devices are root's to make.
        Err(nix::Error::EPERM) if !Uid::effective().is_root() => {
            Err(io::Error::new(ErrorKind::PermissionDenied, "only root makes devices"))
        }
        made => Ok(made?),
    }
}

type Unset = (&'static str, io::Error);

fn set(path: &Path, node: &Node) -> std::result::Result<(), Unset> {
    let is_root = Uid::effective().is_root();
    let meta = &node.meta;
    if is_root {
        lchown(path, meta.uid, meta.gid).map_err(|error| ("the owner", error))?;
    }
    for attribute in &meta.extended_attributes {
        // Of the others, most are the system's own.
        let is_ours = attribute.name.starts_with("user.") || attribute.name.contains("posix_acl");
        if !is_root && !is_ours {
            continue;
        }
        let value = attribute.value.as_deref().unwrap_or_default();
        match lsetxattr(path, attribute.name.as_str(), value, XattrFlags::empty()) {
            // A file system without them, where nothing else was to be expected.
            Err(Errno::NOTSUP) if !is_ours => {}
            set => set.map_err(|error| ("an extended attribute", error.into()))?,
        }
    }
    if !node.is_symlink()
        && let Some(mode) = meta.mode
    {
        let permissions = Permissions::from_mode(mode_from_go(mode));
        fs::set_permissions(path, permissions).map_err(|error| ("the permissions", error))?;
    }
    if let Some(mtime) = meta.mtime {
        let time = |at: rustic_core::jiff::Timestamp| {
            // Before 1970 both parts are negative there; here only the seconds are.
            let nanoseconds = i64::from(at.subsec_nanosecond());
            let borrow = i64::from(nanoseconds < 0);
            let tv_nsec = nanoseconds + borrow * 1_000_000_000;
            Timespec { tv_sec: at.as_second() - borrow, tv_nsec }
        };
        let atime = meta.atime.unwrap_or(mtime);
        let times = Timestamps { last_access: time(atime), last_modification: time(mtime) };
        utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| ("the times", error.into()))?;
    }
    Ok(())
}
