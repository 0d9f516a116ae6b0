//! The files of the backup, a record of fixed size each, so that none of them need be in memory.

use crate::{Error, Result};
use std::{
    fs::File,
    io::{BufWriter, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// Bytes of a record.
pub(crate) const RECORD_BYTES: usize = 32;
/// Blocks of a word of [`super::bits::Bits`]. Files do not share words.
pub(crate) const WORD_BLOCKS: u32 = 64;

/// Where the blocks of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Segment of the backup's list of files.
    pub(crate) segment: u32,
    /// Entry of the segment.
    pub(crate) entry: u32,
    /// Place, see [`super::Header::places`].
    pub(crate) place: u32,
    /// Blocks.
    pub(crate) blocks: u32,
    /// Where its bits begin, in words.
    pub(crate) first_word: u64,
    /// Its length in the backup.
    pub(crate) bytes: u64,
}

impl Record {
    /// Words its bits take.
    pub(crate) fn words(&self) -> u64 {
        u64::from(self.blocks.div_ceil(WORD_BLOCKS))
    }

    fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        for (at, word) in [self.segment, self.entry, self.place, self.blocks].iter().enumerate() {
            bytes[at * 4..at * 4 + 4].copy_from_slice(&word.to_le_bytes());
        }
        bytes[16..24].copy_from_slice(&self.first_word.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.bytes.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; RECORD_BYTES]) -> Self {
        let short = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let long = |at: usize| u64::from(short(at)) | u64::from(short(at + 4)) << 32;
        Self {
            segment: short(0),
            entry: short(4),
            place: short(8),
            blocks: short(12),
            first_word: long(16),
            bytes: long(24),
        }
    }
}

/// All records.
#[derive(Debug)]
pub(crate) struct Files {
    file: File,
    path: PathBuf,
    count: u32,
    words: u64,
}

impl Files {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let bytes = file.metadata().map_err(Error::io("look at", path))?.len();
        let count = u32::try_from(bytes / RECORD_BYTES as u64);
        let damaged = || Error::Damaged { path: path.to_owned(), why: "its length".to_owned() };
        let count = count.map_err(|_| damaged())?;
        if bytes % RECORD_BYTES as u64 != 0 {
            return Err(damaged());
        }
        let mut files = Self { file, path: path.to_owned(), count, words: 0 };
        if let Some(last) = count.checked_sub(1) {
            let last = files.get(last)?;
            files.words = last.first_word + last.words();
        }
        Ok(files)
    }

    /// How many.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// Words that all their bits take.
    pub(crate) fn words(&self) -> u64 {
        self.words
    }

    /// The record of a file.
    pub(crate) fn get(&self, number: u32) -> Result<Record> {
        let mut bytes = [0; RECORD_BYTES];
        let offset = u64::from(number) * RECORD_BYTES as u64;
        self.file.read_exact_at(&mut bytes, offset).map_err(Error::io("read", &self.path))?;
        Ok(Record::decode(&bytes))
    }
}

/// Writes the records.
pub(crate) struct FilesWriter {
    file: BufWriter<File>,
    path: PathBuf,
    next: u32,
    next_word: u64,
}

impl FilesWriter {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = BufWriter::new(File::create(path).map_err(Error::io("make", path))?);
        Ok(Self { file, path: path.to_owned(), next: 0, next_word: 0 })
    }

    /// Adds a file; its number.
    pub(crate) fn push(&mut self, mut record: Record) -> Result<u32> {
        record.first_word = self.next_word;
        self.next_word += record.words();
        self.file.write_all(&record.encode()).map_err(Error::io("write", &self.path))?;
        let number = self.next;
        self.next = number.checked_add(1).ok_or_else(|| {
            Error::Refused("the backup has more files than can be numbered".to_owned())
        })?;
        Ok(number)
    }

    /// All of them, durable.
    pub(crate) fn finish(self) -> Result<Files> {
        let file = self.file.into_inner().map_err(std::io::IntoInnerError::into_error);
        file.and_then(|file| file.sync_all()).map_err(Error::io("write", &self.path))?;
        Files::open(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_files_share_no_word() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("files");
        let record = |blocks, bytes| Record {
            segment: 1,
            entry: u32::MAX,
            place: 3,
            blocks,
            first_word: 0,
            bytes,
        };
        let mut writer = FilesWriter::create(&path).unwrap();
        for (number, blocks) in [0, 1, 64, 65].into_iter().enumerate() {
            assert_eq!(writer.push(record(blocks, u64::MAX - 7)).unwrap(), number as u32);
        }
        let files = writer.finish().unwrap();
        let first_words: Vec<_> =
            (0..files.count()).map(|number| files.get(number).unwrap().first_word).collect();
        assert_eq!((first_words, files.words()), (vec![0, 0, 1, 2], 4));
        let last = Record { first_word: 2, ..record(65, u64::MAX - 7) };
        assert_eq!(files.get(3).unwrap(), last);
        assert!(files.get(4).is_err());
    }
}
