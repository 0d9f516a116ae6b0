//! A bit a block: is its content in the local file? In memory (1 MiB a TiB), and on disk.
//!
//! A bit may say so on disk only when the content is durable: who saves bits takes a snapshot of them, syncs
//! the file they speak of, then saves the snapshot.

use super::files::{Record, WORD_BLOCKS};
use crate::{Error, Result};
use std::{
    fs::File,
    io::{self, Read},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// The bits of all files.
#[derive(Debug)]
pub(crate) struct Bits {
    words: Vec<AtomicU64>,
    /// What is on disk. Whoever holds it writes.
    saved: Mutex<Vec<u64>>,
    file: File,
    path: PathBuf,
}

/// The bits of one file at one moment.
pub(crate) struct Snapshot {
    first: usize,
    words: Vec<u64>,
}

fn span(record: &Record) -> Range<usize> {
    let first = usize::try_from(record.first_word).expect("it was allocated");
    first..first + usize::try_from(record.words()).expect("it was allocated")
}

impl Bits {
    pub(crate) fn create(path: &Path, words: u64) -> Result<Self> {
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(true).open(path);
        let file = file.map_err(Error::io("make", path))?;
        file.set_len(words * 8).and_then(|()| file.sync_all()).map_err(Error::io("write", path))?;
        Self::of(file, path, words)
    }

    pub(crate) fn open(path: &Path, words: u64) -> Result<Self> {
        let file = File::options().read(true).write(true).open(path);
        Self::of(file.map_err(Error::io("open", path))?, path, words)
    }

    fn of(mut file: File, path: &Path, words: u64) -> Result<Self> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(Error::io("read", path))?;
        if bytes.len() as u64 != words * 8 {
            let why = format!("it has {} bytes, not {}", bytes.len(), words * 8);
            return Err(Error::Damaged { path: path.to_owned(), why });
        }
        let saved: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes")))
            .collect();
        let words = saved.iter().map(|word| AtomicU64::new(*word)).collect();
        Ok(Self { words, saved: Mutex::new(saved), file, path: path.to_owned() })
    }

    fn place(&self, record: &Record, block: u32) -> (&AtomicU64, u64) {
        assert!(block < record.blocks, "block {block} of {}", record.blocks);
        let word = span(record).start + (block / WORD_BLOCKS) as usize;
        (&self.words[word], 1 << (block % WORD_BLOCKS))
    }

    /// Is this block local?
    pub(crate) fn is_local(&self, record: &Record, block: u32) -> bool {
        let (word, bit) = self.place(record, block);
        word.load(Ordering::Acquire) & bit != 0
    }

    /// It is.
    pub(crate) fn set_local(&self, record: &Record, block: u32) {
        let (word, bit) = self.place(record, block);
        word.fetch_or(bit, Ordering::AcqRel);
    }

    /// How many blocks of the file are not local.
    pub(crate) fn missing(&self, record: &Record) -> u32 {
        let words = self.words[span(record)].iter();
        let local: u32 = words.map(|word| word.load(Ordering::Acquire).count_ones()).sum();
        record.blocks - local
    }

    /// The file's bits now.
    pub(crate) fn snapshot(&self, record: &Record) -> Snapshot {
        let span = span(record);
        let words = self.words[span.clone()].iter().map(|word| word.load(Ordering::Acquire));
        Snapshot { first: span.start, words: words.collect() }
    }

    /// Puts a snapshot on disk, durably, where it says more than what is there. The content it
    /// speaks of is durable.
    pub(crate) fn save(&self, snapshots: &[Snapshot]) -> Result<()> {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let written = self.write(&mut saved, snapshots);
        written.map_err(Error::io("write", &self.path))
    }

    fn write(&self, saved: &mut [u64], snapshots: &[Snapshot]) -> io::Result<()> {
        let mut merged = Vec::new();
        for Snapshot { first, words } in snapshots {
            let there = &saved[*first..first + words.len()];
            let both: Vec<u64> = there.iter().zip(words).map(|(a, b)| a | b).collect();
            if both != there {
                let bytes: Vec<u8> = both.iter().flat_map(|word| word.to_le_bytes()).collect();
                self.file.write_all_at(&bytes, *first as u64 * 8)?;
                merged.push((*first, both));
            }
        }
        if merged.is_empty() {
            return Ok(());
        }
        self.file.sync_data()?;
        // Only now: whoever comes next may rely on it.
        for (first, both) in merged {
            saved[first..first + both.len()].copy_from_slice(&both);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_comes_back_and_an_older_snapshot_takes_nothing_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("local");
        let record = Record { segment: 0, entry: 0, place: 0, blocks: 70, first_word: 1, bytes: 0 };
        let bits = Bits::create(&path, 3).unwrap();
        bits.set_local(&record, 0);
        let older = bits.snapshot(&record);
        bits.set_local(&record, 69);
        bits.save(&[bits.snapshot(&record)]).unwrap();
        bits.save(&[older]).unwrap();
        bits.set_local(&record, 5);
        assert_eq!(bits.missing(&record), 67);
        let again = Bits::open(&path, 3).unwrap();
        let local: Vec<_> = (0..70).filter(|block| again.is_local(&record, *block)).collect();
        assert_eq!(local, [0, 69], "5 was not saved");
        assert!(Bits::open(&path, 4).is_err());
    }
}
