//! Names: looking up, making, renaming, removing.

use super::{Served, attr, locked, nodes::path_of};
use fuser::{FileAttr, FileType, INodeNo, Request};
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, Stat, chownat, fstat, linkat, mkdirat, openat,
    readlinkat, renameat_with, symlinkat, unlinkat,
};
use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{DirEntryExt, PermissionsExt},
    },
    path::Path,
    sync::{Arc, PoisonError},
};

/// A directory as it was when reading it began: inode, what it is, name.
pub(super) type Listing = Vec<(u64, FileType, OsString)>;

const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The node the kernel means.
pub(super) enum At {
    Root(OwnedFd),
    Node(Arc<OwnedFd>),
}

impl AsFd for At {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            At::Root(fd) => fd.as_fd(),
            At::Node(fd) => fd.as_fd(),
        }
    }
}

impl At {
    pub(super) fn path(&self) -> std::path::PathBuf {
        match self {
            At::Root(fd) => path_of(fd),
            At::Node(fd) => path_of(&**fd),
        }
    }
}

impl Served {
    pub(super) fn at(&self, inode: INodeNo) -> io::Result<At> {
        match inode {
            INodeNo::ROOT => Ok(At::Root(self.place.dir.try_clone()?)),
            INodeNo(inode) => Ok(At::Node(self.nodes.get(inode)?)),
        }
    }

    /// Looks up a name; the kernel knows it from then on.
    pub(super) fn look_up(&self, parent: INodeNo, name: &OsStr) -> io::Result<FileAttr> {
        let fd = openat(self.at(parent)?, name, LOOK, Mode::empty())?;
        let stat = fstat(&fd)?;
        let is_dir = attr::kind(stat.st_mode) == FileType::Directory;
        self.nodes.remember(stat.st_ino, fd, is_dir);
        Ok(self.attr(&stat, INodeNo(stat.st_ino)))
    }

    pub(super) fn stat(&self, inode: INodeNo) -> io::Result<Stat> {
        Ok(fstat(self.at(inode)?)?)
    }

    /// Gives something new to who asked for it, with exactly the mode it asked for.
    fn give(
        &self,
        request: &Request,
        parent: &At,
        name: &OsStr,
        mode: Option<u32>,
    ) -> io::Result<()> {
        self.give_owner(request, parent, name)?;
        if let Some(mode) = mode {
            // `chmod` takes no descriptor that only names.
            let fd = openat(parent, name, LOOK, Mode::empty())?;
            fs::set_permissions(path_of(&fd), fs::Permissions::from_mode(mode & 0o7777))?;
        }
        Ok(())
    }

    fn give_owner(&self, request: &Request, parent: &At, name: &OsStr) -> io::Result<()> {
        if self.shared.privileged {
            let user = Some(rustix::fs::Uid::from_raw(request.uid()));
            let group = Some(rustix::fs::Gid::from_raw(request.gid()));
            chownat(parent, name, user, group, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    pub(super) fn make_dir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
    ) -> io::Result<FileAttr> {
        let at = self.at(parent)?;
        mkdirat(&at, name, Mode::from_raw_mode(mode & 0o7777))?;
        self.give(request, &at, name, Some(mode))?;
        self.look_up(parent, name)
    }

    pub(super) fn make_link(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
    ) -> io::Result<FileAttr> {
        let at = self.at(parent)?;
        symlinkat(target, &at, name)?;
        self.give(request, &at, name, None)?;
        self.look_up(parent, name)
    }

    /// Makes a file, and opens it.
    pub(super) fn make_file(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        flags: OFlags,
    ) -> io::Result<(FileAttr, File)> {
        let at = self.at(parent)?;
        let wanted = flags & (OFlags::EXCL | OFlags::TRUNC);
        let how = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = match openat(&at, name, how, Mode::from_raw_mode(mode & 0o7777)) {
            Ok(file) => {
                self.give(request, &at, name, Some(mode))?;
                File::from(file)
            }
            // It was not there when the kernel looked.
            Err(rustix::io::Errno::EXIST) if !wanted.contains(OFlags::EXCL) => {
                let how = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                File::from(openat(&at, name, how, Mode::empty())?)
            }
            Err(error) => return Err(error.into()),
        };
        Ok((self.look_up(parent, name)?, file))
    }

    pub(super) fn make_node(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
    ) -> io::Result<FileAttr> {
        let at = self.at(parent)?;
        if attr::kind(mode) == FileType::RegularFile {
            self.make_file(request, parent, name, mode, OFlags::EXCL)?;
        } else {
            let kind = rustix::fs::FileType::from_raw_mode(mode);
            rustix::fs::mknodat(&at, name, kind, Mode::from_raw_mode(mode & 0o7777), 0)?;
            self.give(request, &at, name, Some(mode))?;
        }
        self.look_up(parent, name)
    }

    pub(super) fn hard_link(
        &self,
        inode: INodeNo,
        parent: INodeNo,
        name: &OsStr,
    ) -> io::Result<FileAttr> {
        let (node, at) = (self.at(inode)?, self.at(parent)?);
        let _naming = self.shared.naming.read().unwrap_or_else(PoisonError::into_inner);
        linkat(CWD, node.path(), at, name, AtFlags::SYMLINK_FOLLOW)?;
        self.look_up(parent, name)
    }

    pub(super) fn rename(
        &self,
        from: (INodeNo, &OsStr),
        to: (INodeNo, &OsStr),
        flags: fuser::RenameFlags,
    ) -> io::Result<()> {
        let flags = RenameFlags::from_bits_retain(flags.bits());
        let _naming = self.shared.naming.read().unwrap_or_else(PoisonError::into_inner);
        Ok(renameat_with(self.at(from.0)?, from.1, self.at(to.0)?, to.1, flags)?)
    }

    pub(super) fn remove(&self, parent: INodeNo, name: &OsStr, flags: AtFlags) -> io::Result<()> {
        Ok(unlinkat(self.at(parent)?, name, flags)?)
    }

    pub(super) fn link_target(&self, inode: INodeNo) -> io::Result<Vec<u8>> {
        Ok(readlinkat(self.at(inode)?, "", Vec::new())?.into_bytes())
    }

    pub(super) fn list(&self, inode: INodeNo) -> io::Result<Listing> {
        let at = self.at(inode)?;
        let mut found = vec![
            (inode.0, FileType::Directory, ".".into()),
            (inode.0, FileType::Directory, "..".into()),
        ];
        for entry in fs::read_dir(at.path())? {
            let entry = entry?;
            let kind = FileType::from_std(entry.file_type()?).unwrap_or(FileType::RegularFile);
            found.push((entry.ino(), kind, entry.file_name()));
        }
        Ok(found)
    }

    pub(super) fn sync_dir(&self, inode: INodeNo) -> io::Result<()> {
        File::open(self.at(inode)?.path())?.sync_all()
    }

    /// A listing begins anew when it is read from its beginning.
    pub(super) fn listing(&self, handle: u64, inode: INodeNo, offset: u64) -> io::Result<()> {
        if offset == 0 || !locked(&self.dirs).contains_key(&handle) {
            let listing = self.list(inode)?;
            locked(&self.dirs).insert(handle, listing);
        }
        Ok(())
    }
}
