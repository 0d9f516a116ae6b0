//! Writing a backup: several files at a time, each block compared with the parent's block at the same
//! place, the new ones packed; then the list of files; then, all being durable, the backup is published.
//!
//! Memory is bounded: a thread holds one block, one pack and one file's list of blocks; packs on their way
//! to the store are limited in number, and so are files that are done before an earlier one is.

mod copy;
mod order;
mod packer;
mod pages;

use crate::{
    Adopted, Backup, Error, Repository, Result,
    manifest::{Files, Outcome, SegmentBuilder, Stats},
    names,
    progress::Progress,
    seal::Kind,
    serve::Keeps,
    source::Source,
    writer::Writer,
};
use copy::Copier;
use order::{Jobs, Order};
use packer::Uploads;
use pages::Doubts;
pub use pages::WrongPages;
use sempre_model::Lsn;
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::runtime::Handle;

/// Bytes of a block. Relation pages do not shift, so that blocks of a fixed size find again what
/// is unchanged; smaller ones find more of it, and cost more entries.
pub const BLOCK_BYTES: u32 = 128 << 10;

/// What an attempt that dies has done in vain, at the most.
const SAVE_EVERY: Duration = Duration::from_secs(60);

/// How a backup is written.
#[derive(Clone, Debug)]
pub struct Options {
    /// Files at a time.
    pub threads: usize,
    /// zstd level.
    pub level: i32,
    /// The most that is read, bytes a second; none: no limit.
    pub max_bytes_per_s: Option<u64>,
    /// Trust that a file with the parent's stamp has not changed. Only on the member that the
    /// parent was made of.
    pub trust_stamps: bool,
    /// Verify the checksums of pages, of which a relation's segment has so many; 0: they have none.
    pub segment_pages: u32,
    /// So often what was done is saved for the next attempt.
    pub save_every: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: 2,
            level: 1,
            max_bytes_per_s: None,
            trust_stamps: true,
            segment_pages: 0,
            save_every: SAVE_EVERY,
        }
    }
}

/// What the threads of a backup share.
struct Shared {
    repository: Repository,
    id: Arc<str>,
    options: Options,
    parent: Option<Backup>,
    adopted: Adopted,
    progress: Arc<Progress>,
    uploads: Uploads,
    next_pack: AtomicU32,
    /// Somebody failed: everybody stops.
    stopped: AtomicBool,
    stats: Mutex<Stats>,
    doubts: Doubts,
    /// Packs of older backups that this one uses.
    keeps: Mutex<Keeps>,
    began: Instant,
    runtime: Handle,
}

/// A backup in the making.
pub struct Writing {
    writer: Writer,
    shared: Arc<Shared>,
    segments: u32,
}

impl Writing {
    /// Begins, with a writer that has been announced.
    pub fn begin(writer: Writer, options: Options, progress: Arc<Progress>) -> Self {
        let repository = writer.repository.clone();
        let shared = Shared {
            id: writer.id.as_str().into(),
            options,
            parent: writer.parent.clone(),
            adopted: writer.adopted.clone(),
            progress,
            uploads: Uploads::new(repository.store.clone(), Handle::current()),
            next_pack: AtomicU32::new(0),
            stopped: AtomicBool::new(false),
            stats: Mutex::default(),
            doubts: Doubts::default(),
            keeps: Mutex::default(),
            began: Instant::now(),
            runtime: Handle::current(),
            repository,
        };
        Self { writer, shared: Arc::new(shared), segments: 0 }
    }

    /// Copies `sources`, which are in the order of their paths; returns how many segments of the
    /// list of files they took. Anything that cannot be read fails the backup.
    pub async fn copy(&mut self, sources: Vec<Source>) -> Result<u32> {
        let (shared, first) = (self.shared.clone(), self.segments);
        let copied = tokio::task::spawn_blocking(move || copy_all(&shared, sources, first));
        let copied = copied.await.unwrap_or_else(|p| std::panic::resume_unwind(p.into_panic()))?;
        self.segments += copied;
        Ok(copied)
    }

    /// The name of the backup.
    pub fn id(&self) -> &str {
        &self.writer.id
    }

    /// What was done so far.
    pub fn stats(&self) -> Stats {
        let mut stats = *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner);
        stats.took_ms = u64::try_from(self.shared.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        stats
    }

    /// Pages with wrong checksums that the WAL between `start` and `stop` does not restore.
    pub fn wrong_pages(&self, start: Lsn, stop: Lsn) -> WrongPages {
        self.shared.doubts.judged(start, stop)
    }

    /// Publishes it: from now on it can be restored. Everything it refers to is durable by then.
    pub async fn publish(self, backup: Backup) -> Result<Backup> {
        if self.shared.is_stopped() {
            let why = "it failed, or was cancelled, and is not whole";
            return Err(Error::Refused(format!("backup {} is not published: {why}", self.id())));
        }
        self.shared.uploads.finish().await?;
        self.shared.renew().await?;
        let repository = &self.writer.repository;
        repository.store.barrier().await?;
        let name = names::backup(&self.writer.id);
        let outcome = Outcome::Published(Box::new(backup.clone()));
        match repository.put(Kind::Backup, &name, &outcome).await {
            Err(Error::Exists { .. }) => match repository.outcome(&self.writer.id).await? {
                // Ours: the store had done it, and its answer was lost.
                ours if ours == outcome => {}
                _ => return Err(self.writer.revoked()),
            },
            put => put?,
        }
        repository.store.barrier().await?;
        // Without its description a whole backup is lost: there is a second one, for whoever repairs it.
        if let Err(error) = repository.copy_description(&self.writer.id, &outcome).await {
            tracing::warn!("backup {} has no second description: {error}", self.writer.id);
        }
        Ok(backup)
    }
}

fn copy_all(shared: &Arc<Shared>, sources: Vec<Source>, first_segment: u32) -> Result<u32> {
    let parent = shared.parent.as_ref().map(|p| Files::of(shared.repository.clone(), p));
    let attempt = shared.adopted.files(&shared.repository);
    let jobs = Mutex::new(Jobs::new(sources, parent, attempt));
    let order = Order::new(shared.clone(), first_segment);
    let failure = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..shared.options.threads.max(1) {
            scope.spawn(|| {
                let worked = Copier::new(shared.clone()).run(&jobs, &order);
                if let Err(error) = worked {
                    shared.stopped.store(true, Ordering::Relaxed);
                    order.wake();
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            });
        }
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => order.finish(),
    }
}

impl Shared {
    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed) || self.progress.is_cancelled()
    }

    fn count(&self, add: impl FnOnce(&mut Stats)) {
        add(&mut self.stats.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Tells the store, if it wants to know, which older packs are to be kept for this backup.
    async fn renew(&self) -> Result<()> {
        let text = {
            let keeps = self.keeps.lock().unwrap_or_else(PoisonError::into_inner);
            let is_wanted = self.repository.store.wants_renewals() && !keeps.is_empty();
            is_wanted.then(|| keeps.to_text())
        };
        match text {
            Some(text) => self.repository.store.put_new(&names::keeps(&self.id), text.into()).await,
            None => Ok(()),
        }
    }

    /// Puts a full list of files on its way.
    fn close_segment(&self, builder: &SegmentBuilder, number: u32) -> Result<()> {
        let mut keeps = self.keeps.lock().unwrap_or_else(PoisonError::into_inner);
        for pack in builder.packs().iter().filter(|pack| pack.backup != self.id) {
            keeps.add(&pack.backup, pack.number);
        }
        drop(keeps);
        let name = names::segment(&self.id, number);
        let object = builder.seal(&self.repository, &name);
        self.count(|stats| stats.stored_bytes += object.len() as u64);
        self.uploads.put(name, object)
    }
}
