//! The files the kernel has in mind, each held by a descriptor, so that renaming and removing change nothing
//! about what a number means. Limit: as many as a process may have descriptors.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// A file, opened for nothing but being named.
pub(crate) struct Node {
    fd: Arc<OwnedFd>,
    is_dir: bool,
    lookups: u64,
}

/// By inode number of the local file system.
#[derive(Default)]
pub(crate) struct Nodes(Mutex<HashMap<u64, Node>>);

impl Nodes {
    fn map(&self) -> MutexGuard<'_, HashMap<u64, Node>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernel will know this one.
    pub(crate) fn remember(&self, inode: u64, fd: OwnedFd, is_dir: bool) {
        let mut map = self.map();
        let node =
            map.entry(inode).or_insert_with(|| Node { fd: Arc::new(fd), is_dir, lookups: 0 });
        node.lookups += 1;
    }

    pub(crate) fn forget(&self, inode: u64, lookups: u64) {
        let mut map = self.map();
        if let Some(node) = map.get_mut(&inode) {
            node.lookups = node.lookups.saturating_sub(lookups);
            if node.lookups == 0 {
                map.remove(&inode);
            }
        }
    }

    /// Lets go of all files but these, so that what is removed gives its space back. Who is in a directory
    /// of the mount still names files: they are looked up again.
    pub(crate) fn keep_only(&self, kept: impl Fn(u64) -> bool) {
        self.map().retain(|inode, node| node.is_dir || kept(*inode));
    }

    pub(crate) fn get(&self, inode: u64) -> io::Result<Arc<OwnedFd>> {
        // The kernel looks again where a name leads when it is told that this is stale.
        let stale = || io::Error::from(rustix::io::Errno::STALE);
        self.map().get(&inode).map(|node| node.fd.clone()).ok_or_else(stale)
    }
}

/// A name for what a descriptor is of, for calls that take no such descriptor.
pub(crate) fn path_of(fd: &impl std::os::fd::AsRawFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}
