//! Mounting, and taking the mount away from names while what is open stays.

use crate::{Error, Result, place::Place, serve::Served, shared::Shared};
use fuser::{Config, MountOption, Session, SessionACL};
use rustix::mount::{UnmountFlags, unmount};
use std::{
    fs, io,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

/// How mounts are called in the system's list.
const SOURCE: &str = "sempre-instant";
/// Requests that are worked on at a time, a mount. Each may wait for the repository.
pub(crate) const THREADS: usize = 16;

/// A mount of a place. It is left where it is when this is dropped: below it are files with holes, and who
/// names them must get an error once nobody serves them.
pub(crate) struct Mount {
    place: Arc<Place>,
    detached: Arc<AtomicBool>,
    serving: JoinHandle<io::Result<()>>,
}

impl Mount {
    pub(crate) fn new(shared: &Arc<Shared>, place: Arc<Place>, threads: usize) -> Result<Self> {
        let at = &place.at;
        let failed = |source| Error::Mount { path: at.clone(), source };
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName(SOURCE.to_owned()),
            MountOption::Subtype("sempre".to_owned()),
            MountOption::DefaultPermissions,
            MountOption::NoAtime,
        ];
        // Root mounts for the database's user.
        let acl = if shared.privileged { SessionACL::All } else { SessionACL::Owner };
        config.acl = acl;
        config.n_threads = Some(threads);
        let detached = Arc::new(AtomicBool::new(false));
        let served = Served::new(shared.clone(), place.clone(), detached.clone());
        let session = Session::new(served, at, &config).map_err(failed)?;
        let serve = std::thread::Builder::new().name("sempre-instant".to_owned());
        let serving = serve.spawn(move || session.run()).map_err(failed)?;
        Ok(Self { place, detached, serving })
    }

    /// From now on names lead to the local files. What is open goes on being served.
    pub(crate) fn detach(&self) -> Result<()> {
        if self.detached.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let detached = detach(&self.place.at);
        if detached.is_err() {
            self.detached.store(false, Ordering::Release);
        }
        detached
    }

    /// Is nothing of it open any more?
    pub(crate) fn is_over(&self) -> bool {
        self.serving.is_finished()
    }
}

fn detach(at: &Path) -> Result<()> {
    match unmount(at, UnmountFlags::DETACH) {
        Err(rustix::io::Errno::PERM) => {}
        done => return done.map_err(Error::io("unmount", at)),
    }
    let mut program = Command::new("fusermount3");
    program.args(["-u", "-z", "-q", "--"]).arg(at).stdin(Stdio::null());
    let status = program.status().map_err(Error::io("run fusermount3 to unmount", at))?;
    let failed = io::Error::other(format!("fusermount3: {status}"));
    if status.success() { Ok(()) } else { Err(Error::io("unmount", at)(failed)) }
}

/// Takes away what processes that died left mounted at this place.
pub(crate) fn clear(at: &Path) -> Result<()> {
    while is_mounted(at)? {
        tracing::info!("{} was left mounted by a process that is gone", at.display());
        detach(at)?;
    }
    Ok(())
}

fn is_mounted(at: &Path) -> Result<bool> {
    let list = Path::new("/proc/self/mountinfo");
    let mounts = fs::read_to_string(list).map_err(Error::io("read", list))?;
    // "36 35 98:0 /root /mount/point options - type source options"
    let ours = mounts.lines().filter(|line| line.contains(&format!(" {SOURCE} ")));
    let mut points = ours.filter_map(|line| line.split(' ').nth(4)).map(unescaped);
    Ok(points.any(|point| Path::new(&point) == at))
}

/// Spaces and the like are in octal there.
fn unescaped(word: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(word.to_owned(), |word, (octal, plain)| word.replace(octal, plain))
}
