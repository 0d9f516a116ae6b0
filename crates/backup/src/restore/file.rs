//! One file, in pieces, so that a large one keeps all threads at work.

use super::{Shared, fetch::Fetcher};
use crate::{
    Entry, Error, Result,
    manifest::{Block, What},
    write::BLOCK_BYTES,
};
use std::{
    fs::{File, OpenOptions, Permissions},
    ops::Range,
    os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Blocks of a piece: 64 MiB, long enough to read packs in long runs.
const PIECE_BLOCKS: usize = 512;
/// A file is synced early only if so much was written to it.
const SYNC_BYTES: u64 = 8 << 20;
static ZEROS: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];

/// A file that is restored.
pub(super) struct Target {
    entry: Entry,
    /// Blocks that somebody restores, or did.
    taken: AtomicUsize,
    /// Opened by whoever is first.
    opened: Mutex<Option<Arc<Opened>>>,
}

/// Some blocks of a file.
pub(super) struct Piece {
    file: Arc<Target>,
    blocks: Range<usize>,
}

impl Target {
    fn next(self: &Arc<Self>) -> Option<Piece> {
        let What::File { blocks, .. } = &self.entry.what else { return None };
        let from = self.taken.fetch_add(PIECE_BLOCKS, Ordering::Relaxed);
        let blocks = from..blocks.len().min(from + PIECE_BLOCKS);
        // One that is empty is made all the same.
        (from == 0 || from < blocks.end).then(|| Piece { file: self.clone(), blocks })
    }

    fn is_left(&self) -> bool {
        let What::File { blocks, .. } = &self.entry.what else { return false };
        self.taken.load(Ordering::Relaxed) < blocks.len()
    }
}

/// What is yet to be restored.
pub(super) struct Pieces {
    /// The largest last.
    files: Vec<Entry>,
    begun: Vec<Arc<Target>>,
}

impl Pieces {
    pub(super) fn of(entries: Vec<Entry>) -> Self {
        let is_file = |entry: &Entry| matches!(entry.what, What::File { .. });
        let mut files: Vec<Entry> = entries.into_iter().filter(is_file).collect();
        files.sort_by_key(|entry| match &entry.what {
            What::File { blocks, .. } => blocks.len(),
            What::Dir | What::Link(_) => 0,
        });
        Self { files, begun: Vec::new() }
    }

    /// What a thread does next. File systems let one thread at a time write to a file, so each has
    /// a file of its own as long as there are enough.
    pub(super) fn next(&mut self, last: Option<&Piece>) -> Option<Piece> {
        if let Some(next) = last.and_then(|last| last.file.next()) {
            return Some(next);
        }
        if let Some(entry) = self.files.pop() {
            let (taken, opened) = (AtomicUsize::new(0), Mutex::default());
            let target = Arc::new(Target { entry, taken, opened });
            let next = target.next();
            self.begun.retain(|target| target.is_left());
            self.begun.push(target);
            return next;
        }
        self.begun.iter().find_map(|target| target.next())
    }
}

/// A file that is being written.
pub(super) struct Opened {
    at: PathBuf,
    file: File,
    /// Bytes that were there before.
    there: u64,
}

impl Opened {
    /// Brings to the disk what was written so far.
    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io("sync", &self.at))
    }
}

impl Shared {
    /// Restores a piece; returns its file if much was written to it. What is there before goes
    /// through `old`.
    pub(super) fn restore_piece(
        &self,
        piece: &Piece,
        fetcher: &mut Fetcher,
        old: &mut Vec<u8>,
    ) -> Result<Option<Arc<Opened>>> {
        let entry = &piece.file.entry;
        let What::File { bytes, blocks, .. } = &entry.what else { return Ok(None) };
        let opened = self.open(&piece.file, *bytes)?;
        let Opened { at, file, there } = &*opened;
        let block_bytes = u64::from(BLOCK_BYTES);
        let mut written = 0;
        for number in piece.blocks.clone() {
            let block = &blocks[number];
            let offset = number as u64 * block_bytes;
            let length = bytes.saturating_sub(offset).min(block_bytes) as usize;
            if offset < *there {
                old.resize(length, 0);
                file.read_exact_at(old, offset).map_err(Error::io("read", at))?;
                let right = match block {
                    Block::Zero => old[..] == ZEROS[..length],
                    Block::Stored { id, .. } => self.repository.block_id(old) == *id,
                };
                if right {
                    self.progress.advance(length as u64);
                    continue;
                }
            }
            let content = match block {
                // A new file is zero where nothing was written.
                Block::Zero if offset >= *there => None,
                Block::Zero => Some(&ZEROS[..length]),
                Block::Stored { .. } => Some(fetcher.block(blocks, number)?),
            };
            if let Some(content) = content {
                if content.len() != length {
                    let why = "a block has not the length it must have";
                    return Err(Error::damaged(&entry.path, why));
                }
                written += length as u64;
                file.write_all_at(content, offset).map_err(Error::io("write", at))?;
            }
            self.progress.advance(length as u64);
        }
        self.done.lock().unwrap_or_else(PoisonError::into_inner).fetched_bytes += written;
        Ok((written >= SYNC_BYTES).then_some(opened))
    }

    fn open(&self, target: &Target, bytes: u64) -> Result<Arc<Opened>> {
        let mut opened = target.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = &*opened {
            return Ok(opened.clone());
        }
        let Entry { path, mode, .. } = &target.entry;
        let at = self.target.join(path);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(!self.options.delta);
        let file = options.mode(*mode).open(&at).map_err(Error::io("make", &at))?;
        let permissions = Permissions::from_mode(*mode);
        file.set_permissions(permissions).map_err(Error::io("set the permissions of", &at))?;
        let there = file.metadata().map_err(Error::io("look at", &at))?.len();
        file.set_len(bytes).map_err(Error::io("set the length of", &at))?;
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.files += 1;
        done.bytes += bytes;
        Ok(opened.insert(Arc::new(Opened { at, file, there })).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn file(path: &str, blocks: usize) -> Entry {
        let bytes = blocks as u64 * u64::from(BLOCK_BYTES);
        let blocks = vec![Block::Zero; blocks];
        let what = What::File { bytes, stamp: Default::default(), blocks };
        Entry { path: path.to_owned(), mode: 0o600, what }
    }

    #[test]
    fn every_block_is_restored_once_and_nobody_is_idle_while_a_large_file_is_left() {
        let sizes = [("empty", 0), ("large", 3 * PIECE_BLOCKS + 7), ("small", 1)];
        let mut pieces = Pieces::of(sizes.map(|(path, blocks)| file(path, blocks)).into());
        let mut done: BTreeMap<String, Vec<Range<usize>>> = BTreeMap::new();
        let mut last = [None, None];
        let mut shared = false;
        loop {
            let next = [0, 1].map(|thread| pieces.next(last[thread].as_ref()));
            if next.iter().all(Option::is_none) {
                break;
            }
            let names = next.each_ref().map(|p| p.as_ref().map(|p| p.file.entry.path.clone()));
            shared |= names[0] == names[1] && names[0].as_deref() == Some("large");
            for piece in next.iter().flatten() {
                done.entry(piece.file.entry.path.clone()).or_default().push(piece.blocks.clone());
            }
            last = next;
        }
        assert!(shared, "two threads end up in one file");
        for (path, blocks) in sizes {
            let mut ranges = done.remove(path).unwrap();
            ranges.sort_by_key(|range| range.start);
            let all: Vec<usize> = ranges.into_iter().flatten().collect();
            assert_eq!(all, (0..blocks).collect::<Vec<_>>(), "{path}");
        }
    }
}
