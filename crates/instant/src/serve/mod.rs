//! The file system: what the kernel asks for, answered from the local directory below the mount.
//!
//! Names, permissions and lengths are those of the local files, which are all there from the beginning; only
//! what is read may have to be brought in first. The kernel keeps no pages and no lengths of ours: files that
//! are not all local are read with direct IO, the others by passthrough where the kernel can (Linux 6.9,
//! root). So what is written here and what is written to the same local file by another way is seen by both at
//! once, which the switch relies on.

mod attr;
mod files;
mod kernel;
mod names;
mod nodes;

use crate::{place::Place, shared::Shared};
use fuser::{BackingId, Errno};
use nodes::Nodes;
use std::{
    collections::HashMap,
    fs::File,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

/// How long the kernel may believe what a name means. All changes of names come through it.
const NAME_TTL: Duration = Duration::from_secs(3600);
/// How long it may believe attributes: not at all, as files also change behind it after the switch.
const ATTRIBUTE_TTL: Duration = Duration::ZERO;

/// One mounted place.
pub(crate) struct Served {
    shared: Arc<Shared>,
    place: Arc<Place>,
    nodes: Nodes,
    next_handle: AtomicU64,
    files: Mutex<HashMap<u64, Arc<Handle>>>,
    dirs: Mutex<HashMap<u64, names::Listing>>,
    /// The kernel wants the same one for all that have a file open.
    backings: Mutex<HashMap<u64, Weak<BackingId>>>,
    passthrough: bool,
    detached: Arc<AtomicBool>,
    /// What nobody has open was let go of.
    let_go: AtomicBool,
}

/// An open file.
struct Handle {
    inode: u64,
    file: Arc<File>,
    /// Of the backup. Also when it is all local by now: that it is must be durable, too, before
    /// what was written to it counts as durable.
    pending: Option<Arc<crate::file::Pending>>,
    _backing: Option<Arc<BackingId>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Served {
    pub(crate) fn new(shared: Arc<Shared>, place: Arc<Place>, detached: Arc<AtomicBool>) -> Self {
        Self {
            shared,
            place,
            nodes: Nodes::default(),
            next_handle: AtomicU64::new(1),
            files: Mutex::default(),
            dirs: Mutex::default(),
            backings: Mutex::default(),
            passthrough: false,
            detached,
            let_go: AtomicBool::new(false),
        }
    }

    fn new_handle(&self) -> u64 {
        self.next_handle.fetch_add(1, Ordering::Relaxed)
    }

    fn handle(&self, handle: fuser::FileHandle) -> io::Result<Arc<Handle>> {
        let bad = || io::Error::from(rustix::io::Errno::BADF);
        locked(&self.files).get(&handle.0).cloned().ok_or_else(bad)
    }

    /// What the database sees of an error.
    fn errno(error: crate::Error) -> Errno {
        let errno = match &error {
            crate::Error::Io { source, .. } => source.raw_os_error(),
            _ => None,
        };
        // The database's log has a number only.
        tracing::error!("{error}");
        Errno::from_i32(errno.unwrap_or(rustix::io::Errno::IO.raw_os_error()))
    }
}
