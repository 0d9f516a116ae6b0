//! Blocks from the repository, those that somebody waits for before all others.

use crate::{Error, Result, state::files::Record};
use sempre_backup::{Backup, Block, Entry, Fetcher, Repository, Segment, What};
use std::{
    collections::VecDeque,
    ops::Range,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::runtime::Handle;

/// Segments of the backup's list of files that are kept in memory; about 3 MiB each.
const SEGMENTS_MAX: usize = 16;
/// What is behind waits so long at most for those that somebody waits for, before each run.
const GIVE_WAY_MAX: Duration = Duration::from_millis(200);
/// A store that does not answer is asked so often before who waits is told.
const TRIES: u32 = 5;
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// Who wants a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The database waits.
    Now,
    /// Nobody does.
    Behind,
}

type Slot = Arc<Mutex<Option<Arc<Segment>>>>;

/// The backup that is served.
pub(crate) struct Source {
    pub(crate) repository: Repository,
    pub(crate) backup: Backup,
    pub(crate) runtime: Handle,
    /// The last used is last.
    segments: Mutex<VecDeque<(u32, Slot)>>,
    /// Those nobody uses now.
    fetchers: Mutex<Vec<Fetcher>>,
    waiting: Mutex<usize>,
    none_waiting: Condvar,
    /// Bytes that came for somebody who waited.
    pub(crate) waited_for_bytes: AtomicU64,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Source {
    pub(crate) fn new(repository: Repository, backup: Backup, runtime: Handle) -> Self {
        Self {
            repository,
            backup,
            runtime,
            segments: Mutex::default(),
            fetchers: Mutex::default(),
            waiting: Mutex::new(0),
            none_waiting: Condvar::new(),
            waited_for_bytes: AtomicU64::new(0),
        }
    }

    /// Bytes of a block.
    pub(crate) fn block_bytes(&self) -> u64 {
        u64::from(self.backup.block_bytes)
    }

    /// A segment of the list of files.
    pub(crate) fn segment(&self, number: u32) -> Result<Arc<Segment>> {
        let slot = self.slot(number);
        let mut slot = locked(&slot);
        if let Some(segment) = &*slot {
            return Ok(segment.clone());
        }
        let loaded = self.repository.segment(&self.backup.id, number);
        let segment = Arc::new(self.runtime.block_on(loaded)?);
        *slot = Some(segment.clone());
        Ok(segment)
    }

    fn slot(&self, number: u32) -> Slot {
        let mut segments = locked(&self.segments);
        let known = segments.iter().position(|(known, _)| *known == number);
        let entry = known.and_then(|at| segments.remove(at)).unwrap_or_else(|| {
            if segments.len() >= SEGMENTS_MAX {
                segments.pop_front();
            }
            (number, Slot::default())
        });
        let slot = entry.1.clone();
        segments.push_back(entry);
        slot
    }

    /// Reads blocks of a file that follow each other, handing out each as it comes.
    pub(crate) fn read(
        &self,
        record: &Record,
        blocks: Range<u32>,
        wanted: Wanted,
        mut take: impl FnMut(u32, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let _turn = self.take_turn(wanted);
        let segment = self.segment(record.segment)?;
        let (path, all) = blocks_of(&segment, record)?;
        let run = &all[blocks.start as usize..blocks.end as usize];
        let mut fetcher = locked(&self.fetchers)
            .pop()
            .unwrap_or_else(|| Fetcher::new(self.repository.clone(), self.runtime.clone()));
        for (at, number) in blocks.enumerate() {
            let offset = u64::from(number) * self.block_bytes();
            let length = record.bytes.saturating_sub(offset).min(self.block_bytes());
            let content = match &run[at] {
                Block::Zero => vec![0; usize::try_from(length).unwrap_or(0)],
                Block::Stored { .. } => {
                    patiently(wanted, || fetcher.block(run, at).map(<[u8]>::to_vec))?
                }
            };
            if content.len() as u64 != length {
                let why = format!("block {number} of {path} has not the length it must have");
                return Err(sempre_backup::Error::Damaged { key: path.to_owned(), why }.into());
            }
            if wanted == Wanted::Now {
                self.waited_for_bytes.fetch_add(length, Ordering::Relaxed);
            }
            take(number, &content)?;
        }
        locked(&self.fetchers).push(fetcher);
        Ok(())
    }

    fn take_turn(&self, wanted: Wanted) -> Option<Turn<'_>> {
        let mut waiting = locked(&self.waiting);
        if wanted == Wanted::Now {
            *waiting += 1;
            return Some(Turn(self));
        }
        let gave_way =
            self.none_waiting.wait_timeout_while(waiting, GIVE_WAY_MAX, |waiting| *waiting > 0);
        drop(gave_way);
        None
    }
}

/// Somebody waits as long as this is there.
struct Turn<'a>(&'a Source);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut waiting = locked(&self.0.waiting);
        *waiting -= 1;
        if *waiting == 0 {
            self.0.none_waiting.notify_all();
        }
    }
}

/// The path and the blocks of a file.
pub(crate) fn blocks_of<'a>(
    segment: &'a Segment,
    record: &Record,
) -> Result<(&'a str, &'a [Block])> {
    match segment.entries.get(record.entry as usize) {
        Some(Entry { path, what: What::File { blocks, bytes, .. }, .. })
            if blocks.len() == record.blocks as usize && *bytes == record.bytes =>
        {
            Ok((path, blocks))
        }
        _ => Err(Error::Refused(format!(
            "entry {} of segment {} of the backup is not the file it was: is this the same repository?",
            record.entry, record.segment
        ))),
    }
}

/// Asks a store that fails again; what is damaged stays so.
fn patiently<T>(
    wanted: Wanted,
    mut ask: impl FnMut() -> sempre_backup::Result<T>,
) -> sempre_backup::Result<T> {
    let mut tries = 0;
    loop {
        tries += 1;
        match ask() {
            // What nobody waits for is asked for again later anyway.
            Err(error @ sempre_backup::Error::Store { .. })
                if wanted == Wanted::Now && tries < TRIES =>
            {
                tracing::warn!("asking again: {error}");
                std::thread::sleep(RETRY_AFTER * tries);
            }
            answer => return answer,
        }
    }
}
