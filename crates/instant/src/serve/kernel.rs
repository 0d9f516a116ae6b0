//! What the kernel may ask for, each answered by a method of [`Served`].

use super::{ATTRIBUTE_TTL, NAME_TTL, Served, files::DIRECT, locked};
use fuser::{
    Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};
use rustix::fs::{AtFlags, OFlags, fstat, fstatvfs};
use std::{ffi::OsStr, io, path::Path, sync::atomic::Ordering, time::SystemTime};

/// The most the kernel writes at once. PostgreSQL writes 8 KiB, `cp` 128 KiB and more.
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// Passthrough may go to a file system that is itself stacked on one other.
const STACKED_MAX: u32 = 2;

fn entry(reply: ReplyEntry, found: io::Result<FileAttr>) {
    match found {
        Ok(attr) => reply.entry_with_ttls(&ATTRIBUTE_TTL, &NAME_TTL, &attr, Generation(0)),
        Err(error) => reply.error(error.into()),
    }
}

fn empty(reply: ReplyEmpty, done: Result<(), impl Into<Errno>>) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error.into()),
    }
}

impl Filesystem for Served {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let _ = config.set_max_write(WRITE_BYTES_MAX);
        // Operations on names of one directory at the same time; reading with direct IO, too.
        for wanted in [InitFlags::FUSE_PARALLEL_DIROPS, InitFlags::FUSE_ASYNC_DIO] {
            let _ = config.add_capabilities(wanted);
        }
        self.passthrough = self.shared.privileged
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(STACKED_MAX).is_ok();
        Ok(())
    }

    fn destroy(&mut self) {
        // What was closed with the mount is not told one by one.
        let left = std::mem::take(&mut *locked(&self.files)).len() as u64;
        self.shared.open_handles.fetch_sub(left, Ordering::Relaxed);
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(reply, self.look_up(parent, name));
    }

    fn forget(&self, _: &Request, inode: INodeNo, lookups: u64) {
        self.nodes.forget(inode.0, lookups);
    }

    fn getattr(&self, _: &Request, inode: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let stat = match fh {
            Some(fh) => self.handle(fh).and_then(|handle| Ok(fstat(&handle.file)?)),
            None => self.stat(inode),
        };
        match stat {
            Ok(stat) => reply.attr(&ATTRIBUTE_TTL, &self.attr(&stat, inode)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        fh: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = || {
            if let Some(mode) = mode {
                self.set_mode(inode, mode)?;
            }
            if uid.is_some() || gid.is_some() {
                self.set_owner(inode, uid, gid)?;
            }
            if let Some(size) = size {
                self.set_length(inode, fh, size)?;
            }
            if atime.is_some() || mtime.is_some() {
                self.set_times(inode, atime, mtime)?;
            }
            let stat = match fh.and_then(|fh| self.handle(fh).ok()) {
                Some(handle) => fstat(&handle.file).map_err(io::Error::from)?,
                None => self.stat(inode)?,
            };
            Ok::<_, Errno>(stat)
        };
        match set() {
            Ok(stat) => reply.attr(&ATTRIBUTE_TTL, &self.attr(&stat, inode)),
            Err(error) => reply.error(error),
        }
    }

    fn readlink(&self, _: &Request, inode: INodeNo, reply: ReplyData) {
        match self.link_target(inode) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(error.into()),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        entry(reply, self.make_node(request, parent, name, mode));
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        entry(reply, self.make_dir(request, parent, name, mode));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.remove(parent, name, AtFlags::empty()));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.remove(parent, name, AtFlags::REMOVEDIR));
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        entry(reply, self.make_link(request, parent, name, target));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        empty(reply, Served::rename(self, (parent, name), (new_parent, new_name), flags));
    }

    fn link(&self, _: &Request, inode: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(reply, self.hard_link(inode, parent, name));
    }

    fn open(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let file = self.open_node(inode).map_err(Errno::from);
        let opened = file.and_then(|file| self.opened(inode, file, |f| reply.open_backing(f)));
        match opened {
            Ok(opened) => match &opened.backing {
                Some(backing) => {
                    reply.opened_passthrough(opened.handle, FopenFlags::empty(), backing);
                }
                None => reply.opened(opened.handle, DIRECT),
            },
            Err(error) => reply.error(error),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let flags = OFlags::from_bits_retain(flags.cast_unsigned());
        let made = self.make_file(request, parent, name, mode, flags).map_err(Errno::from);
        let opened = made.and_then(|(attr, file)| {
            let opened = self.opened(attr.ino, file, |f| reply.open_backing(f))?;
            Ok((attr, opened))
        });
        // One time-to-live is for both here, so names are looked up again once.
        let (ttl, generation, none) = (ATTRIBUTE_TTL, Generation(0), FopenFlags::empty());
        match opened {
            Ok((attr, opened)) => match &opened.backing {
                Some(backing) => {
                    let handle = opened.handle;
                    reply.created_passthrough(&ttl, &attr, generation, handle, none, backing);
                }
                None => reply.created(&ttl, &attr, generation, opened.handle, DIRECT),
            },
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.read_file(fh, offset, size) {
            Ok(content) => reply.data(&content),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.write_file(fh, offset, data) {
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Nothing is held back, so that closing has nothing to say. The kernel asks once.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.released(fh);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        empty(reply, self.sync_file(fh, datasync));
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(self.new_handle()), FopenFlags::empty());
    }

    fn readdir(
        &self,
        _: &Request,
        inode: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if let Err(error) = self.listing(fh.0, inode, offset) {
            return reply.error(error.into());
        }
        let dirs = locked(&self.dirs);
        let listing = dirs.get(&fh.0).map(Vec::as_slice).unwrap_or_default();
        let begin = usize::try_from(offset).unwrap_or(usize::MAX).min(listing.len());
        for (at, (inode, kind, name)) in listing.iter().enumerate().skip(begin) {
            if reply.add(INodeNo(*inode), at as u64 + 1, *kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        locked(&self.dirs).remove(&fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        empty(reply, self.sync_dir(inode));
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match fstatvfs(&self.place.dir) {
            Ok(found) => reply.statfs(
                found.f_blocks,
                found.f_bfree,
                found.f_bavail,
                found.f_files,
                found.f_ffree,
                u32::try_from(found.f_bsize).unwrap_or(4096),
                u32::try_from(found.f_namemax).unwrap_or(255),
                u32::try_from(found.f_frsize).unwrap_or(4096),
            ),
            Err(error) => reply.error(io::Error::from(error).into()),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        empty(reply, self.allocate(fh, offset, length, mode));
    }
}
