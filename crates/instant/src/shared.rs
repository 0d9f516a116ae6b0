//! What all who serve a backup share.

use crate::{
    Error, Result,
    file::Pending,
    place::Place,
    source::Source,
    state::{State, bits::Snapshot, files::Record},
};
use rustix::fs::{AtFlags, Mode, OFlags, openat, statat, syncfs};
use std::{
    collections::HashMap,
    fs::File,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// More files than this are synced all at once, by file system.
const SYNC_SINGLY_MAX: usize = 64;
/// When so many files have blocks that only memory knows to be local, it is time to save.
const UNSAVED_FILES_MAX: usize = 512;

/// A backup that is served from a directory.
pub(crate) struct Shared {
    pub(crate) target: PathBuf,
    pub(crate) state: State,
    pub(crate) source: Source,
    /// The first is the target.
    pub(crate) places: Vec<Arc<Place>>,
    /// Held while a file gets another name; exclusively when all are looked at.
    pub(crate) naming: RwLock<()>,
    /// Who makes files that are not the database's owner's gives them to it.
    pub(crate) privileged: bool,
    open: Mutex<HashMap<u32, Weak<Pending>>>,
    /// Files with blocks that came in and are not known on disk to be local.
    unsaved: Mutex<HashMap<u32, (Record, Arc<File>)>>,
    pub(crate) left_bytes: AtomicU64,
    pub(crate) open_handles: AtomicU64,
    pub(crate) stopped: AtomicBool,
    /// Why nothing is known to be durable any more.
    broken: OnceLock<String>,
    pub(crate) last_error: Mutex<Option<String>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(
        target: PathBuf,
        state: State,
        source: Source,
        places: Vec<Arc<Place>>,
    ) -> Self {
        Self {
            target,
            state,
            source,
            places,
            naming: RwLock::default(),
            privileged: rustix::process::geteuid().is_root(),
            open: Mutex::default(),
            unsaved: Mutex::default(),
            left_bytes: AtomicU64::new(0),
            open_handles: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            broken: OnceLock::new(),
            last_error: Mutex::default(),
        }
    }

    /// Counts what is left, from the bits.
    pub(crate) fn count_left(&self) -> Result<()> {
        let mut left = 0;
        for number in 0..self.state.files.count() {
            let record = self.state.files.get(number)?;
            let missing = u64::from(self.state.bits.missing(&record));
            left += (missing * self.source.block_bytes()).min(record.bytes);
        }
        self.left_bytes.store(left, Ordering::Relaxed);
        Ok(())
    }

    /// The file as one of the backup's, if it is one that was not all local when the restore
    /// began.
    pub(crate) fn pending(&self, file: &Arc<File>) -> Result<Option<Arc<Pending>>> {
        let looked = Error::io("look at a file below", &self.target);
        let Some(number) = self.state.number(file).map_err(looked)? else { return Ok(None) };
        // Held until it is ready: two of one file would not know of each other's blocks.
        let mut open = locked(&self.open);
        if let Some(pending) = open.get(&number).and_then(Weak::upgrade) {
            return Ok(Some(pending));
        }
        let record = self.state.files.get(number)?;
        let pending = Arc::new(Pending::new(number, record, file.clone()));
        pending.adopt(self)?;
        if open.len() >= 2 * UNSAVED_FILES_MAX {
            open.retain(|_, pending| pending.strong_count() > 0);
        }
        open.insert(number, Arc::downgrade(&pending));
        Ok(Some(pending))
    }

    /// Files of the backup that are open now.
    pub(crate) fn all_open(&self) -> Vec<Arc<Pending>> {
        locked(&self.open).values().filter_map(Weak::upgrade).collect()
    }

    /// The local file of a path of the backup, as far as it is there.
    pub(crate) fn local(&self, record: &Record, path: &str) -> Result<Option<File>> {
        let place = &self.places[record.place as usize];
        let below = place.below(path);
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match openat(&place.dir, below, flags, Mode::empty()) {
            Ok(file) => Ok(Some(file.into())),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::LOOP) => Ok(None),
            // Something else has its name now.
            Err(rustix::io::Errno::ISDIR | rustix::io::Errno::NOTDIR) => Ok(None),
            Err(error) => Err(Error::io("open", place.at.join(below))(error)),
        }
    }

    /// What a file was called, for messages.
    pub(crate) fn path_of(&self, record: &Record) -> PathBuf {
        let segment = self.source.segment(record.segment).ok();
        let entry = segment.as_ref().and_then(|s| s.entries.get(record.entry as usize));
        self.target.join(entry.map_or("a file", |entry| &entry.path))
    }

    /// A block came in.
    pub(crate) fn came(&self, file: &Pending, bytes: u64) {
        let subtract = |left: u64| Some(left.saturating_sub(bytes));
        let _ = self.left_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, subtract);
        let mut unsaved = locked(&self.unsaved);
        unsaved.entry(file.number).or_insert_with(|| (file.record, file.file.clone()));
    }

    /// Syncs a file. After a failure nothing is known of what is on disk, and what was not written
    /// will not be tried again by the kernel: nothing counts as durable from then on.
    pub(crate) fn sync_file(&self, file: &File) -> Result<()> {
        self.synced(file.sync_data())
    }

    fn synced(&self, synced: io::Result<()>) -> Result<()> {
        if let Some(why) = self.broken.get() {
            return Err(Error::Refused(why.clone()));
        }
        synced.map_err(|source| {
            let path = self.target.clone();
            let error = Error::Io { doing: "sync a file below", path, source };
            let _ = self.broken.set(format!("{error}: nothing more can be made durable"));
            error
        })
    }

    /// Are there so many that it is time to save?
    pub(crate) fn has_much_unsaved(&self) -> bool {
        locked(&self.unsaved).len() >= UNSAVED_FILES_MAX
    }

    /// Makes durable what came in, then that it did.
    pub(crate) fn save(&self) -> Result<()> {
        let unsaved = std::mem::take(&mut *locked(&self.unsaved));
        let records = unsaved.values().map(|(record, _)| record);
        let snapshots: Vec<Snapshot> = records.map(|r| self.state.bits.snapshot(r)).collect();
        let saved = self.save_files(&unsaved, &snapshots);
        if saved.is_err() {
            let mut again = locked(&self.unsaved);
            for (number, file) in unsaved {
                again.entry(number).or_insert(file);
            }
        }
        saved
    }

    fn save_files(
        &self,
        unsaved: &HashMap<u32, (Record, Arc<File>)>,
        snapshots: &[Snapshot],
    ) -> Result<()> {
        if unsaved.len() <= SYNC_SINGLY_MAX {
            for (_, file) in unsaved.values() {
                self.sync_file(file)?;
            }
        } else {
            self.sync_places()?;
        }
        self.state.bits.save(snapshots)
    }

    /// Syncs the file systems of all places.
    pub(crate) fn sync_places(&self) -> Result<()> {
        for place in &self.places {
            // `syncfs` takes no `O_PATH`.
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let synced = openat(&place.dir, ".", flags, Mode::empty()).and_then(syncfs);
            self.synced(synced.map_err(Into::into))?;
        }
        Ok(())
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Remembers what went wrong behind, for who asks.
    pub(crate) fn note(&self, error: Option<&Error>) {
        *locked(&self.last_error) = error.map(ToString::to_string);
    }

    /// Is the local directory of a place there still?
    pub(crate) fn check_places(&self) -> Result<()> {
        for place in &self.places {
            statat(&place.dir, "", AtFlags::EMPTY_PATH).map_err(Error::io("look at", &place.at))?;
        }
        Ok(())
    }
}
