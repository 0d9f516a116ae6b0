//! From mounting to the switch.

use crate::{
    Error, Result, background, begin, gate,
    mounts::Mount,
    shared::Shared,
    source::Source,
    state::{self, STATE_DIR},
};
use sempre_backup::{Backup, Repository};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::runtime::Handle;

/// How often what is waited for is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How a backup is served.
#[derive(Clone, Debug)]
pub struct Options {
    /// Threads that bring in.
    pub threads: usize,
    /// The most they bring in, bytes a second; none: no limit.
    pub max_bytes_per_s: Option<u64>,
    /// Where tablespaces go, by object id, if not where they were.
    pub tablespaces: BTreeMap<String, PathBuf>,
    /// User and group id of the files; if not given, the target directory's.
    pub owner: Option<(u32, u32)>,
    /// Directories with more bytes are mounted; the others are brought in before anything starts.
    pub mount_above_bytes: u64,
    /// Requests that are worked on at a time, a mount.
    pub serving_threads: Option<usize>,
    /// Bring in from the beginning; if not, when [`Serving::start_bringing_in`] is called.
    pub bring_in: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: 2,
            max_bytes_per_s: None,
            tablespaces: BTreeMap::new(),
            owner: None,
            mount_above_bytes: 8 << 20,
            serving_threads: None,
            bring_in: true,
        }
    }
}

/// Where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Blocks are brought in.
    BringingIn,
    /// Everything is local; the mounts are there still.
    Local,
    /// Names lead to the local files.
    Switched,
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Where it is.
    pub phase: Phase,
    /// Bytes of the backup's files.
    pub total_bytes: u64,
    /// Bytes that are not local.
    pub left_bytes: u64,
    /// Bytes that the database waited for.
    pub waited_for_bytes: u64,
    /// Files that are open by the mounts.
    pub open_handles: u64,
    /// What keeps blocks from coming in, if something does.
    pub error: Option<String>,
}

/// Instant recovery.
pub struct Instant;

/// A backup that is served.
///
/// When it is dropped, files are served as long as the process lives. After that the mounts are there still,
/// and whoever uses them gets errors, until [`Instant::mount`] goes on. Only [`Serving::switch`] and
/// [`Serving::stop`] take them away.
pub struct Serving {
    pub(crate) shared: Arc<Shared>,
    pub(crate) options: Options,
    /// The gate is the last.
    pub(crate) mounts: Vec<Mount>,
    pub(crate) local: Arc<AtomicBool>,
    pub(crate) switched: bool,
}

impl Instant {
    /// Serves `backup` in `target`, which does not exist, is empty, or is what an earlier call for the
    /// same backup left. When it returns the database can start.
    ///
    /// # Errors
    /// The repository cannot be read; the target has something else in it; mounting is not allowed.
    pub async fn mount(
        repository: Repository,
        backup: Backup,
        target: &Path,
        options: Options,
    ) -> Result<Serving> {
        let source = Source::new(repository, backup, Handle::current());
        let target = target.to_owned();
        let mounted = tokio::task::spawn_blocking(move || begin::mount(source, &target, options));
        mounted.await.unwrap_or_else(|p| std::panic::resume_unwind(p.into_panic()))
    }
}

impl Serving {
    /// How far it is.
    pub fn progress(&self) -> Progress {
        let last_error = self.shared.last_error.lock().unwrap_or_else(PoisonError::into_inner);
        Progress {
            phase: match (self.switched, self.local.load(Ordering::Acquire)) {
                (true, _) => Phase::Switched,
                (false, true) => Phase::Local,
                (false, false) => Phase::BringingIn,
            },
            total_bytes: self.shared.state.header.total_bytes,
            left_bytes: self.shared.left_bytes.load(Ordering::Relaxed),
            waited_for_bytes: self.shared.source.waited_for_bytes.load(Ordering::Relaxed),
            open_handles: self.open_handles(),
            error: last_error.clone(),
        }
    }

    /// Where file systems are mounted.
    pub fn mounted(&self) -> Vec<&Path> {
        let mounted = self.shared.places.iter().filter(|place| place.mounted);
        mounted.map(|place| place.at.as_path()).collect()
    }

    /// Files that are open by the mounts.
    pub fn open_handles(&self) -> u64 {
        self.shared.open_handles.load(Ordering::Relaxed)
    }

    /// Begins to bring in, if [`Options::bring_in`] did not. Call it once.
    ///
    /// # Errors
    /// No thread can be made.
    pub fn start_bringing_in(&self) -> Result<()> {
        let (shared, options, local) =
            (self.shared.clone(), self.options.clone(), self.local.clone());
        self.spawn("sempre-bring-in", move || match background::run(&shared, &options) {
            Ok(()) => local.store(!shared.is_stopped(), Ordering::Release),
            Err(error) => {
                tracing::error!("{error}");
                shared.note(Some(&error));
            }
        })
    }

    pub(crate) fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
        thread.map(drop).map_err(Error::io("make a thread for", &self.shared.target))
    }

    /// Waits until everything is local. Who waits may look at [`Serving::progress`] instead.
    pub async fn local(&self) {
        while !self.local.load(Ordering::Acquire) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until everything is local, then switches: names lead to the local files, while what
    /// is open goes on being served. The state is removed.
    ///
    /// # Errors
    /// A mount cannot be detached: everything is served as before.
    pub async fn switch(&mut self) -> Result<()> {
        self.local().await;
        let shared = self.shared.clone();
        let prepared = tokio::task::spawn_blocking(move || {
            shared.check_places()?;
            // Whoever finds this needs nothing of the repository; all of it is durable by then.
            shared.sync_places()?;
            shared.state.set_whole()
        });
        prepared.await.unwrap_or_else(|p| std::panic::resume_unwind(p.into_panic()))?;
        // The gate is the last, and a database can be started again when it is open.
        for mount in &self.mounts {
            mount.detach()?;
        }
        gate::open(&self.shared.target)?;
        self.switched = true;
        self.shared.stopped.store(true, Ordering::Release);
        let shared = self.shared.clone();
        let tidied = tokio::task::spawn_blocking(move || tidy(&shared));
        tidied.await.unwrap_or_else(|p| std::panic::resume_unwind(p.into_panic()))
    }

    /// Ends it before it is done, for a database that was stopped: takes the mounts away, and waits until
    /// nothing is open by them. Mounting again goes on where it was.
    ///
    /// # Errors
    /// The database runs; a mount cannot be detached; what came in cannot be saved.
    pub async fn stop(self) -> Result<()> {
        if self.shared.target.join("postmaster.pid").exists() {
            return Err(Error::Refused(format!(
                "a database may be running in {} (there is postmaster.pid), and not all of its files are there: stop it first",
                self.shared.target.display()
            )));
        }
        // The gate, which was mounted last, goes first.
        for mount in self.mounts.iter().rev() {
            mount.detach()?;
        }
        self.unused().await;
        self.shared.stopped.store(true, Ordering::Release);
        // The threads look at that; the last that has it gives up the lock.
        while Arc::strong_count(&self.shared) > 1 {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let saved = tokio::task::spawn_blocking(move || self.shared.save());
        saved.await.unwrap_or_else(|p| std::panic::resume_unwind(p.into_panic()))
    }

    /// Waits, after the switch, until nothing is open by the mounts any more. Only then may the
    /// process end while the database runs.
    pub async fn unused(&self) {
        while !self.mounts.iter().all(Mount::is_over) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Removes marks and state. Both are meaningless by now.
fn tidy(shared: &Shared) -> Result<()> {
    for place in &shared.places {
        background::visit(&place.local_path(), &mut |file| {
            state::remove_mark(&file).map_err(Error::io("remove a mark below", &place.at))
        })?;
    }
    state::remove(&shared.target.join(STATE_DIR))
}
