//! Open files: reading, writing, cutting, syncing.

use super::{Handle, Served, locked};
use crate::file::read_at;
use fuser::{BackingId, FileHandle, FopenFlags, INodeNo, TimeOrNow};
use rustix::fs::{
    AtFlags, FallocateFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, chownat, fallocate,
    utimensat,
};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, PermissionsExt},
    sync::{Arc, Weak, atomic::Ordering},
    time::UNIX_EPOCH,
};

/// How a file that was opened is read and written.
pub(super) struct Opened {
    pub(super) handle: FileHandle,
    pub(super) backing: Option<Arc<BackingId>>,
}

/// For files that the kernel may not cache, and may write to in several places at once.
pub(super) const DIRECT: FopenFlags =
    FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);

type Done<T> = Result<T, fuser::Errno>;

impl Served {
    /// Opens a file again, for reading and writing whatever it was opened for: blocks come in by
    /// the same descriptor.
    pub(super) fn open_node(&self, inode: INodeNo) -> io::Result<File> {
        // Its path is good as long as it is.
        let at = self.at(inode)?;
        let path = at.path();
        match File::options().read(true).write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => File::open(&path),
            opened => opened,
        }
    }

    pub(super) fn opened(
        &self,
        inode: INodeNo,
        file: File,
        back: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Done<Opened> {
        let mut file = Arc::new(file);
        let pending = self.shared.pending(&file).map_err(Self::errno)?;
        if let Some(pending) = &pending {
            file = pending.file.clone();
        }
        let backing = match &pending {
            Some(pending) if !pending.is_local(&self.shared) => None,
            _ if self.passthrough => self.backing(inode.0, &file, back),
            _ => None,
        };
        let handle = Handle { inode: inode.0, file, pending, _backing: backing.clone() };
        let number = self.new_handle();
        locked(&self.files).insert(number, Arc::new(handle));
        self.shared.open_handles.fetch_add(1, Ordering::Relaxed);
        Ok(Opened { handle: FileHandle(number), backing })
    }

    fn backing(
        &self,
        inode: u64,
        file: &File,
        back: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Option<Arc<BackingId>> {
        let mut backings = locked(&self.backings);
        if let Some(backing) = backings.get(&inode).and_then(Weak::upgrade) {
            return Some(backing);
        }
        match back(file) {
            Ok(backing) => {
                let backing = Arc::new(backing);
                backings.insert(inode, Arc::downgrade(&backing));
                Some(backing)
            }
            Err(error) => {
                tracing::debug!("no passthrough: {error}");
                None
            }
        }
    }

    pub(super) fn released(&self, handle: FileHandle) {
        let Some(handle) = locked(&self.files).remove(&handle.0) else { return };
        let inode = handle.inode;
        drop(handle);
        let mut backings = locked(&self.backings);
        if backings.get(&inode).is_some_and(|backing| backing.strong_count() == 0) {
            backings.remove(&inode);
        }
        drop(backings);
        self.shared.open_handles.fetch_sub(1, Ordering::Relaxed);
        if self.detached.load(Ordering::Acquire) && !self.let_go.swap(true, Ordering::AcqRel) {
            self.let_go();
        }
    }

    /// Once after the mount was detached. Whoever names one of these in that moment looks it up again.
    fn let_go(&self) {
        let files = locked(&self.files);
        self.nodes.keep_only(|inode| files.values().any(|handle| handle.inode == inode));
    }

    pub(super) fn read_file(&self, handle: FileHandle, offset: u64, size: u32) -> Done<Vec<u8>> {
        let handle = self.handle(handle)?;
        match &handle.pending {
            Some(pending) => pending.read(&self.shared, offset, size as usize).map_err(Self::errno),
            None => Ok(read_at(&handle.file, offset, size as usize)?),
        }
    }

    pub(super) fn write_file(&self, handle: FileHandle, offset: u64, content: &[u8]) -> Done<()> {
        let handle = self.handle(handle)?;
        match &handle.pending {
            Some(pending) => pending.write(&self.shared, offset, content).map_err(Self::errno),
            None => Ok(handle.file.write_all_at(content, offset)?),
        }
    }

    pub(super) fn sync_file(&self, handle: FileHandle, only_data: bool) -> Done<()> {
        let handle = self.handle(handle)?;
        match &handle.pending {
            Some(pending) => pending.sync(&self.shared).map_err(Self::errno),
            None if only_data => Ok(handle.file.sync_data()?),
            None => Ok(handle.file.sync_all()?),
        }
    }

    pub(super) fn allocate(
        &self,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
    ) -> Done<()> {
        let handle = self.handle(handle)?;
        let flags = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        let moves = FallocateFlags::COLLAPSE_RANGE | FallocateFlags::INSERT_RANGE;
        if flags.intersects(moves) {
            return Err(fuser::Errno::EOPNOTSUPP);
        }
        let change = |file: &File| Ok(fallocate(file, flags, offset, length)?);
        match &handle.pending {
            Some(pending) => {
                pending.change(&self.shared, offset, length, change).map_err(Self::errno)
            }
            None => Ok(change(&handle.file)?),
        }
    }

    pub(super) fn set_length(
        &self,
        inode: INodeNo,
        handle: Option<FileHandle>,
        length: u64,
    ) -> Done<()> {
        let handle = handle.and_then(|handle| self.handle(handle).ok());
        let file = match &handle {
            Some(handle) => handle.file.clone(),
            None => Arc::new(self.open_node(inode)?),
        };
        match self.shared.pending(&file).map_err(Self::errno)? {
            Some(pending) => pending.set_len(&self.shared, length).map_err(Self::errno),
            None => Ok(file.set_len(length)?),
        }
    }

    pub(super) fn set_mode(&self, inode: INodeNo, mode: u32) -> io::Result<()> {
        let permissions = fs::Permissions::from_mode(mode & 0o7777);
        fs::set_permissions(self.at(inode)?.path(), permissions)
    }

    pub(super) fn set_owner(
        &self,
        inode: INodeNo,
        user: Option<u32>,
        group: Option<u32>,
    ) -> io::Result<()> {
        let (user, group) =
            (user.map(rustix::fs::Uid::from_raw), group.map(rustix::fs::Gid::from_raw));
        Ok(chownat(self.at(inode)?, "", user, group, AtFlags::EMPTY_PATH)?)
    }

    pub(super) fn set_times(
        &self,
        inode: INodeNo,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
    ) -> io::Result<()> {
        let times = Timestamps { last_access: time(accessed), last_modification: time(modified) };
        Ok(utimensat(rustix::fs::CWD, self.at(inode)?.path(), &times, AtFlags::empty())?)
    }
}

fn time(wanted: Option<TimeOrNow>) -> Timespec {
    let special = |what| Timespec { tv_sec: 0, tv_nsec: what };
    match wanted {
        None => special(UTIME_OMIT),
        Some(TimeOrNow::Now) => special(UTIME_NOW),
        Some(TimeOrNow::SpecificTime(time)) => {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
            Timespec { tv_sec: seconds, tv_nsec: since.subsec_nanos().into() }
        }
    }
}
