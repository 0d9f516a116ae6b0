//! From mounting to the switch.

use crate::{
    Error, Result,
    background::{self, Which},
    mounts::{self, Mount},
    shared::Shared,
    skeleton,
    source::Source,
    state::{self, Found, STATE_DIR, State},
};
use rustix::process::{Resource, getrlimit, setrlimit};
use sempre_backup::{Backup, Repository};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
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
/// When it is dropped the mounts are taken away: a database that runs on them then sees files with holes,
/// unless it was stopped, or all was local. Mounting again goes on where it was.
pub struct Serving {
    shared: Arc<Shared>,
    options: Options,
    mounts: Vec<Mount>,
    local: Arc<AtomicBool>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    switched: bool,
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
        let mounted = tokio::task::spawn_blocking(move || mount(source, &target, options));
        mounted.await.unwrap_or_else(|p| std::panic::resume_unwind(p.into_panic()))
    }
}

fn mount(source: Source, target: &Path, options: Options) -> Result<Serving> {
    allow_descriptors();
    fs::create_dir_all(target).map_err(Error::io("make", target))?;
    let target = fs::canonicalize(target).map_err(Error::io("follow", target))?;
    let (state, whole, fresh) = prepare(&source, &target, &options)?;
    for place in &state.header.places {
        mounts::clear(&place.at)?;
    }
    let places = skeleton::open_places(&state.header)?;
    let shared = Arc::new(Shared::new(target, state, source, places));
    shared.count_left()?;
    let local = Arc::new(AtomicBool::new(whole));
    if !whole {
        background::bring_in(&shared, &options, Which::Unmounted)?;
        if fresh {
            shared.save()?;
        }
    }
    let mut serving = Serving {
        shared,
        options,
        mounts: Vec::new(),
        local,
        threads: Mutex::default(),
        switched: whole,
    };
    if whole {
        serving.shared.left_bytes.store(0, Ordering::Relaxed);
        return Ok(serving);
    }
    for number in 0..serving.shared.places.len() {
        if serving.shared.places[number].mounted {
            let mount = Mount::new(&serving.shared, number, &serving.options)?;
            serving.mounts.push(mount);
        }
    }
    let shared = serving.shared.clone();
    serving.spawn("sempre-save", move || background::save_regularly(&shared))?;
    if serving.options.bring_in {
        serving.start_bringing_in()?;
    }
    Ok(serving)
}

/// The state of the target: is it whole, was it made just now?
fn prepare(source: &Source, target: &Path, options: &Options) -> Result<(State, bool, bool)> {
    let begun = target.join(STATE_DIR).exists();
    let mut there = fs::read_dir(target).map_err(Error::io("list", target))?;
    if let (false, Some(first)) = (begun, there.next()) {
        let first = first.map_err(Error::io("list", target))?.file_name();
        return Err(Error::Refused(format!(
            "{} is not empty (there is {}): name another folder",
            target.display(),
            first.display()
        )));
    }
    match State::find(target)? {
        Found::Fresh(lock) => {
            remove_unfinished(target)?;
            Ok((skeleton::build(source, target, options, lock)?, false, true))
        }
        Found::Begun(state) | Found::Whole(state) if state.header.backup != source.backup.id => {
            Err(Error::Refused(format!(
                "{} is being restored from backup {}, not {}",
                target.display(),
                state.header.backup,
                source.backup.id
            )))
        }
        Found::Begun(state) => Ok((*state, false, false)),
        Found::Whole(state) => Ok((*state, true, false)),
    }
}

/// Removes the files of a skeleton that was not finished: nothing was served of it.
fn remove_unfinished(target: &Path) -> Result<()> {
    for entry in fs::read_dir(target).map_err(Error::io("list", target))? {
        let entry = entry.map_err(Error::io("list", target))?;
        let path = entry.path();
        if entry.file_name() == STATE_DIR {
            continue;
        }
        let dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(Error::io("remove", &path))?;
    }
    Ok(())
}

/// The kernel has many files in mind, each with a descriptor here.
fn allow_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!("the limit of open files stays as it is: {error}");
        }
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

    fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
        let thread = thread.map_err(Error::io("make a thread for", &self.shared.target))?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(())
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
        for mount in &self.mounts {
            mount.detach()?;
        }
        self.switched = true;
        self.shared.stopped.store(true, Ordering::Release);
        let shared = self.shared.clone();
        let tidied = tokio::task::spawn_blocking(move || tidy(&shared));
        tidied.await.unwrap_or_else(|p| std::panic::resume_unwind(p.into_panic()))
    }

    /// Ends it before it is done, for a database that was stopped: waits until nothing is open by the
    /// mounts, and takes them away. Mounting again goes on where it was.
    ///
    /// # Errors
    /// A mount cannot be detached, or what came in not be saved.
    pub async fn stop(self) -> Result<()> {
        for mount in &self.mounts {
            mount.detach()?;
        }
        self.unused().await;
        let ended = tokio::task::spawn_blocking(move || {
            self.shared.stopped.store(true, Ordering::Release);
            self.shared.save()
        });
        ended.await.unwrap_or_else(|p| std::panic::resume_unwind(p.into_panic()))
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

impl Drop for Serving {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        let threads = self.threads.get_mut().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the restore panicked");
            }
        }
        self.mounts.clear();
        if !self.switched
            && let Err(error) = self.shared.save()
        {
            tracing::warn!("{error}");
        }
    }
}
