//! A file that is perhaps not all local: blocks come in before they are looked at.

use crate::{Error, Result, shared::Shared, source::Wanted, state::files::Record};
use std::{
    collections::BTreeSet,
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
};

/// Blocks that are brought in at once for who reads one after the other.
const READ_AHEAD_BLOCKS: u32 = 8;

/// An open file of the backup. There is one a file, however often it is opened.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) number: u32,
    pub(crate) record: Record,
    /// The local file.
    pub(crate) file: Arc<File>,
    /// Blocks that somebody brings in now.
    coming: Mutex<BTreeSet<u32>>,
    came: Condvar,
    /// Held exclusively while the file is cut: nothing may come in then.
    shape: RwLock<()>,
    /// The block after the last that had to be waited for.
    next_missed: AtomicU32,
}

impl Pending {
    pub(crate) fn new(number: u32, record: Record, file: Arc<File>) -> Self {
        Self {
            number,
            record,
            file,
            coming: Mutex::default(),
            came: Condvar::new(),
            shape: RwLock::default(),
            next_missed: AtomicU32::new(u32::MAX),
        }
    }

    /// After a process was killed the file may be shorter than is known of it: finishes the cut.
    pub(crate) fn adopt(&self, shared: &Shared) -> Result<()> {
        let length = self.file.metadata().map_err(self.failed(shared, "look at"))?.len();
        if length >= self.record.bytes || self.is_local(shared) {
            return Ok(());
        }
        self.set_len(shared, length)
    }

    fn coming(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_local(&self, shared: &Shared) -> bool {
        shared.state.bits.missing(&self.record) == 0
    }

    /// The blocks that these bytes are in, as far as they are the backup's.
    fn blocks(&self, shared: &Shared, offset: u64, length: u64) -> Range<u32> {
        let block_bytes = shared.source.block_bytes();
        let clip = |block: u64| {
            u32::try_from(block).map_or(self.record.blocks, |b| b.min(self.record.blocks))
        };
        clip(offset / block_bytes)..clip(offset.saturating_add(length).div_ceil(block_bytes))
    }

    pub(crate) fn read(&self, shared: &Shared, offset: u64, length: usize) -> Result<Vec<u8>> {
        let _shape = self.shape.read().unwrap_or_else(PoisonError::into_inner);
        self.bring_in(shared, self.blocks(shared, offset, length as u64), Wanted::Now)?;
        read_at(&self.file, offset, length).map_err(self.failed(shared, "read"))
    }

    pub(crate) fn write(&self, shared: &Shared, offset: u64, content: &[u8]) -> Result<()> {
        let _shape = self.shape.read().unwrap_or_else(PoisonError::into_inner);
        // A page is less than a block: the rest of the block must be there first.
        self.bring_in(shared, self.blocks(shared, offset, content.len() as u64), Wanted::Now)?;
        self.file.write_all_at(content, offset).map_err(self.failed(shared, "write"))
    }

    /// Anything else that changes these bytes in place.
    pub(crate) fn change<T>(
        &self,
        shared: &Shared,
        offset: u64,
        length: u64,
        change: impl FnOnce(&File) -> io::Result<T>,
    ) -> Result<T> {
        let _shape = self.shape.read().unwrap_or_else(PoisonError::into_inner);
        self.bring_in(shared, self.blocks(shared, offset, length), Wanted::Now)?;
        change(&self.file).map_err(self.failed(shared, "change"))
    }

    /// Brings in what is missing of these blocks, for nobody.
    pub(crate) fn bring_in_behind(&self, shared: &Shared, blocks: Range<u32>) -> Result<()> {
        let _shape = self.shape.read().unwrap_or_else(PoisonError::into_inner);
        self.bring_in(shared, blocks, Wanted::Behind)
    }

    /// Sets the length. What is cut off never comes in again.
    pub(crate) fn set_len(&self, shared: &Shared, length: u64) -> Result<()> {
        let _shape = self.shape.write().unwrap_or_else(PoisonError::into_inner);
        let block_bytes = shared.source.block_bytes();
        let kept = u32::try_from(length.div_ceil(block_bytes)).unwrap_or(u32::MAX);
        let bits = &shared.state.bits;
        if !length.is_multiple_of(block_bytes) && kept <= self.record.blocks {
            self.bring_in(shared, kept - 1..kept, Wanted::Now)?;
        }
        self.file.set_len(length).map_err(self.failed(shared, "cut"))?;
        let mut cut = (kept..self.record.blocks).filter(|b| !bits.is_local(&self.record, *b));
        if cut.next().is_none() {
            return Ok(());
        }
        // Durable in this order: a bit without the cut would be a hole in what is still there; a cut
        // without the bit is seen by the length, as long as nothing was written there again.
        shared.sync_file(&self.file)?;
        for block in kept..self.record.blocks {
            bits.set_local(&self.record, block);
        }
        bits.save(&[bits.snapshot(&self.record)])
    }

    /// Everything written so far is durable, and what is known of it.
    pub(crate) fn sync(&self, shared: &Shared) -> Result<()> {
        let snapshot = shared.state.bits.snapshot(&self.record);
        shared.sync_file(&self.file)?;
        shared.state.bits.save(&[snapshot])
    }

    fn bring_in(&self, shared: &Shared, blocks: Range<u32>, wanted: Wanted) -> Result<()> {
        let mut next = blocks.start;
        while next < blocks.end {
            if shared.state.bits.is_local(&self.record, next) {
                next += 1;
                continue;
            }
            let most = match wanted {
                Wanted::Behind => blocks.end,
                // Who reads one after the other will want the next.
                Wanted::Now if self.next_missed.load(Ordering::Relaxed) == next => {
                    (next + READ_AHEAD_BLOCKS).min(self.record.blocks).max(blocks.end)
                }
                Wanted::Now => blocks.end,
            };
            let Some(claim) = self.claim(shared, next..most) else { continue };
            if wanted == Wanted::Now {
                self.next_missed.store(claim.blocks.end, Ordering::Relaxed);
            }
            next = claim.blocks.end;
            shared.source.read(&self.record, claim.blocks.clone(), wanted, |block, content| {
                let offset = u64::from(block) * shared.source.block_bytes();
                let write = || {
                    // What lies behind a cut is gone, also when the cut is all that was left of it
                    // after a power failure.
                    let room = self.file.metadata()?.len().saturating_sub(offset);
                    let length = content.len().min(usize::try_from(room).unwrap_or(usize::MAX));
                    self.file.write_all_at(&content[..length], offset)
                };
                write().map_err(self.failed(shared, "write"))?;
                shared.state.bits.set_local(&self.record, block);
                shared.came(self, content.len() as u64);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The first of `blocks` and those that follow it, to be brought in by the caller. None when
    /// somebody else did meanwhile.
    fn claim(&self, shared: &Shared, blocks: Range<u32>) -> Option<Claim<'_>> {
        let mut coming = self.coming();
        if coming.contains(&blocks.start) {
            while coming.contains(&blocks.start) {
                coming = self.came.wait(coming).unwrap_or_else(PoisonError::into_inner);
            }
            return None;
        }
        let free = |block: &u32| {
            !coming.contains(block) && !shared.state.bits.is_local(&self.record, *block)
        };
        let end = blocks.start + blocks.clone().take_while(free).count() as u32;
        if end == blocks.start {
            return None;
        }
        coming.extend(blocks.start..end);
        Some(Claim { file: self, blocks: blocks.start..end })
    }

    fn failed(&self, shared: &Shared, doing: &'static str) -> impl FnOnce(io::Error) -> Error {
        let path = shared.path_of(&self.record);
        move |source| Error::Io { doing, path, source }
    }
}

/// Blocks that one thread brings in while others wait.
struct Claim<'a> {
    file: &'a Pending,
    blocks: Range<u32>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut coming = self.file.coming();
        for block in self.blocks.clone() {
            coming.remove(&block);
        }
        self.file.came.notify_all();
    }
}

/// As much as there is.
pub(crate) fn read_at(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut content = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut content[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    content.truncate(filled);
    Ok(content)
}
