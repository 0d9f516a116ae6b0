//! The store on disk: one redb file, and a seal beside it.
//!
//! # Keys of `record.redb`
//!
//! | table | key | value (see `format`) |
//! |---|---|---|
//! | `log` (u64) | index of the entry | [`StoredEntry`] |
//! | `meta` (str) | `node` | node id the store belongs to |
//! | `meta` | `vote` | [`StoredVote`], absent before the first |
//! | `meta` | `committed` | [`StoredLogId`] up to which entries may be applied |
//! | `meta` | `purged` | [`StoredLogId`] of the last entry taken out of `log` |
//! | `meta` | `promised` | highest generation promised, a number |
//! | `meta` | `longest_grant_ms` | the longest lease this member may have granted, ms; absent: none |
//! | `meta` | `commits` | how many write transactions this file has seen |
//! | `snapshot` (str) | `current` | [`StoredSnapshot`] |
//!
//! # The seal
//! redb keeps the last two commits and falls back to the older one when the newest is damaged. After
//! a crash that is right: the newest was not acknowledged. After damage to an acknowledged one it
//! would forget a vote. So the number of commits is also written to `record.seal` after each commit
//! and before it is acknowledged; a file that holds fewer is refused. The seal is not forced to
//! disk, which survives a killed process, but may lose its last writes in a power cut: then it
//! proves less, and never more than is true.

use crate::{
    error::StoreError,
    format::{self, StoredEntry, StoredLogId, StoredSnapshot, StoredVote},
};
use redb::{
    Database, Durability, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition,
    WriteTransaction,
};
use sempre_model::Generation;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::watch;

pub(crate) const FILE: &str = "record.redb";
pub(crate) const SEAL: &str = "record.seal";

pub(crate) const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
pub(crate) const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
pub(crate) const SNAPSHOT: TableDefinition<&str, &[u8]> = TableDefinition::new("snapshot");

pub(crate) const NODE: &str = "node";
pub(crate) const VOTE: &str = "vote";
pub(crate) const COMMITTED: &str = "committed";
pub(crate) const PURGED: &str = "purged";
pub(crate) const PROMISED: &str = "promised";
pub(crate) const LONGEST_GRANT_MS: &str = "longest_grant_ms";
pub(crate) const COMMITS: &str = "commits";
pub(crate) const CURRENT: &str = "current";

/// Entries of one read at most, in bytes of rows: a call to a follower stays small.
const READ_BYTES_MAX: usize = 1 << 20;

/// The seal's file. Narrow, so that a simulated one can take its place.
pub(crate) trait SealFile: Send + Sync {
    /// Writes the seal in place of the one before.
    fn write(&self, bytes: &[u8]) -> io::Result<()>;
    /// Forces it to disk.
    fn sync(&self) -> io::Result<()>;
}

impl SealFile for File {
    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, 0)
    }
    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// The open store. Its methods block on the disk: call them off the async threads.
pub(crate) struct Store {
    file: PathBuf,
    seal: Box<dyn SealFile>,
    /// None once closed.
    database: RwLock<Option<Database>>,
    /// Commits so far. Held while writing, so that seals are written in order.
    commits: Mutex<u64>,
    promised: AtomicU64,
    longest_grant_ms: AtomicU64,
    snapshots: watch::Sender<Snapshots>,
}

/// The snapshot on disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Snapshots {
    /// The last entry in it.
    pub upto: Option<StoredLogId>,
    /// One could not be written.
    pub failed: bool,
}

/// Reading a row, or redb itself, said no.
pub(crate) enum Trouble {
    /// What is wrong with the content.
    Content(String),
    /// What redb said.
    Database(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Trouble::Database(error.into())
    }
}

impl Trouble {
    /// As an error about `file`, that came up while `doing` it.
    pub fn about(self, file: PathBuf, doing: &'static str) -> StoreError {
        match self {
            Trouble::Content(what) => StoreError::Corrupt { file, what },
            Trouble::Database(redb::Error::Io(error))
                if error.kind() != io::ErrorKind::InvalidData
                    && error.kind() != io::ErrorKind::UnexpectedEof =>
            {
                StoreError::Io { file, doing, why: error.to_string() }
            }
            Trouble::Database(redb::Error::PreviousIo) => StoreError::Io {
                file,
                doing,
                why: "an earlier write failed; the store must be reopened".into(),
            },
            Trouble::Database(redb::Error::DatabaseClosed) => StoreError::Closed { file },
            Trouble::Database(error) => StoreError::Corrupt { file, what: error.to_string() },
        }
    }
}

/// Reads one row of `meta` or `snapshot`.
pub(crate) fn read_row<T: DeserializeOwned>(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    place: &str,
    key: &str,
) -> Result<Option<T>, Trouble> {
    let Some(row) = table.get(key)? else { return Ok(None) };
    format::decode(place, key.as_bytes(), row.value())
        .map(Some)
        .map_err(|why| Trouble::Content(format!("row `{key}` of table `{place}`: {why}")))
}

/// Reads one row of `log`.
pub(crate) fn read_entry(index: u64, row: &[u8]) -> Result<StoredEntry, Trouble> {
    let bad = |why: String| Trouble::Content(format!("log entry {index}: {why}"));
    let entry: StoredEntry = format::decode("log", &index.to_be_bytes(), row).map_err(bad)?;
    match entry.id.index == index {
        true => Ok(entry),
        false => Err(bad(format!("it says it is entry {}", entry.id.index))),
    }
}

/// A write transaction.
pub(crate) struct Write<'a>(&'a WriteTransaction);

impl<'a> Write<'a> {
    /// In `transaction`.
    pub fn of(transaction: &'a WriteTransaction) -> Self {
        Self(transaction)
    }

    /// Puts a row of `meta`.
    pub fn meta<T: Serialize>(&self, key: &'static str, value: &T) -> Result<(), Trouble> {
        let row = format::encode("meta", key.as_bytes(), value).map_err(Trouble::Content)?;
        self.0.open_table(META)?.insert(key, row.as_slice())?;
        Ok(())
    }

    /// Puts the snapshot, unless there is a newer one.
    pub fn snapshot(&self, snapshot: &StoredSnapshot) -> Result<(), Trouble> {
        let mut table = self.0.open_table(SNAPSHOT)?;
        let present: Option<StoredSnapshot> = read_row(&table, "snapshot", CURRENT)?;
        if present.is_some_and(|present| present.last > snapshot.last) {
            return Ok(());
        }
        let row =
            format::encode("snapshot", CURRENT.as_bytes(), snapshot).map_err(Trouble::Content)?;
        table.insert(CURRENT, row.as_slice())?;
        Ok(())
    }

    /// Puts entries of the log.
    pub fn entries(&self, entries: &[StoredEntry]) -> Result<(), Trouble> {
        let mut table = self.0.open_table(LOG)?;
        for entry in entries {
            let index = entry.id.index;
            let row =
                format::encode("log", &index.to_be_bytes(), entry).map_err(Trouble::Content)?;
            table.insert(index, row.as_slice())?;
        }
        Ok(())
    }

    /// Puts a row as it is.
    #[cfg(test)]
    pub fn raw_entry(&self, index: u64, row: &[u8]) -> Result<(), Trouble> {
        self.0.open_table(LOG)?.insert(index, row)?;
        Ok(())
    }

    /// Takes entries out of the log.
    pub fn remove_entries(&self, range: impl std::ops::RangeBounds<u64>) -> Result<(), Trouble> {
        self.0.open_table(LOG)?.retain_in::<u64, _>(range, |_, _| false)?;
        Ok(())
    }

    /// Makes the tables, so that a reader finds them.
    pub fn make_tables(&self) -> Result<(), Trouble> {
        self.0.open_table(LOG)?;
        self.0.open_table(META)?;
        self.0.open_table(SNAPSHOT)?;
        Ok(())
    }
}

impl Store {
    /// Takes over an open and checked database.
    pub fn new(
        file: PathBuf,
        seal: Box<dyn SealFile>,
        database: Database,
        commits: u64,
        (promised, longest_grant_ms): (Generation, u64),
        snapshot_upto: Option<StoredLogId>,
    ) -> Self {
        Self {
            file,
            seal,
            database: RwLock::new(Some(database)),
            commits: Mutex::new(commits),
            promised: AtomicU64::new(promised.0),
            longest_grant_ms: AtomicU64::new(longest_grant_ms),
            snapshots: watch::Sender::new(Snapshots { upto: snapshot_upto, failed: false }),
        }
    }

    /// What is known of the snapshot on disk; changes right after it did.
    pub fn snapshots(&self) -> watch::Receiver<Snapshots> {
        self.snapshots.subscribe()
    }

    /// Puts the snapshot, unless there is a newer one, and says so.
    pub fn write_snapshot(&self, snapshot: &StoredSnapshot) -> Result<(), StoreError> {
        let written = self.write(|write| write.snapshot(snapshot));
        self.snapshots.send_modify(|known| match &written {
            Ok(()) => known.upto = known.upto.max(snapshot.last),
            Err(_) => known.failed = true,
        });
        written
    }

    fn commits(&self) -> MutexGuard<'_, u64> {
        // The number is set last, so a panic midway leaves it right.
        self.commits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Runs `work` on the open database.
    fn with<T>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Database) -> Result<T, Trouble>,
    ) -> Result<T, StoreError> {
        let guard = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = guard.as_ref() else {
            return Err(StoreError::Closed { file: self.file.clone() });
        };
        work(database).map_err(|trouble| trouble.about(self.file.clone(), doing))
    }

    /// Runs `work` in one write transaction, which is on disk when this returns.
    pub fn write(
        &self,
        work: impl FnOnce(&Write<'_>) -> Result<(), Trouble>,
    ) -> Result<(), StoreError> {
        let mut commits = self.commits();
        let next = *commits + 1;
        self.with("write", |database| {
            let mut transaction = database.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            let write = Write::of(&transaction);
            work(&write)?;
            write.meta(COMMITS, &next)?;
            transaction.commit()?;
            Ok(())
        })?;
        *commits = next;
        let seal = seal_bytes(next);
        self.seal.write(&seal).map_err(|error| StoreError::Io {
            file: self.file.with_file_name(SEAL),
            doing: "write",
            why: error.to_string(),
        })
    }

    fn read<T>(
        &self,
        work: impl FnOnce(&ReadTransaction) -> Result<T, Trouble>,
    ) -> Result<T, StoreError> {
        self.with("read", |database| work(&database.begin_read()?))
    }

    /// A row of `meta`.
    pub fn meta<T: DeserializeOwned>(&self, key: &'static str) -> Result<Option<T>, StoreError> {
        self.read(|transaction| read_row(&transaction.open_table(META)?, "meta", key))
    }

    /// The vote.
    pub fn vote(&self) -> Result<Option<StoredVote>, StoreError> {
        self.meta(VOTE)
    }

    /// The snapshot.
    pub fn snapshot(&self) -> Result<Option<StoredSnapshot>, StoreError> {
        self.read(|transaction| read_row(&transaction.open_table(SNAPSHOT)?, "snapshot", CURRENT))
    }

    /// The last entry, or else the last one taken out.
    pub fn last(&self) -> Result<(Option<StoredLogId>, Option<StoredLogId>), StoreError> {
        self.read(|transaction| {
            let purged = read_row(&transaction.open_table(META)?, "meta", PURGED)?;
            let table = transaction.open_table(LOG)?;
            let last = match table.last()? {
                Some((index, row)) => Some(read_entry(index.value(), row.value())?.id),
                None => purged,
            };
            Ok((purged, last))
        })
    }

    /// Entries in `range`; with `limited`, at least one, but not many bytes of them.
    pub fn entries(
        &self,
        range: impl std::ops::RangeBounds<u64>,
        limited: bool,
    ) -> Result<Vec<StoredEntry>, StoreError> {
        self.read(|transaction| {
            let table = transaction.open_table(LOG)?;
            let mut entries = vec![];
            let mut bytes = 0;
            for row in table.range::<u64>(range)? {
                let (index, row) = row?;
                bytes += row.value().len();
                if limited && bytes > READ_BYTES_MAX && !entries.is_empty() {
                    break;
                }
                entries.push(read_entry(index.value(), row.value())?);
            }
            Ok(entries)
        })
    }

    /// The highest generation promised.
    pub fn promised(&self) -> Generation {
        Generation(self.promised.load(Ordering::SeqCst))
    }

    /// Raises the promise, on disk first.
    pub fn promise(&self, generation: Generation) -> Result<(), StoreError> {
        if generation <= self.promised() {
            return Ok(());
        }
        self.write(|write| {
            // Looked at again under the write lock: another promise may have been quicker.
            let highest = generation.max(self.promised());
            write.meta(PROMISED, &highest)
        })?;
        self.promised.fetch_max(generation.0, Ordering::SeqCst);
        Ok(())
    }

    /// The longest lease that this member may have granted, ms.
    pub fn longest_grant_ms(&self) -> u64 {
        self.longest_grant_ms.load(Ordering::SeqCst)
    }

    /// Writes the longest lease that this member grants from now on.
    pub fn set_longest_grant_ms(&self, longest_ms: u64) -> Result<(), StoreError> {
        self.write(|write| write.meta(LONGEST_GRANT_MS, &longest_ms))?;
        self.longest_grant_ms.store(longest_ms, Ordering::SeqCst);
        Ok(())
    }

    /// Forces the seal to disk.
    pub fn sync_seal(&self) -> Result<(), StoreError> {
        self.seal.sync().map_err(|error| StoreError::Io {
            file: self.file.with_file_name(SEAL),
            doing: "sync",
            why: error.to_string(),
        })
    }

    /// Closes the files once running work is done. Later work is refused.
    pub fn close(&self) {
        let _commits = self.commits();
        let taken = self.database.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(database) = taken {
            if let Err(error) = database.close() {
                tracing::warn!(file = %self.file.display(), %error, "not closed cleanly");
            }
            if let Err(error) = self.seal.sync() {
                tracing::warn!(file = %self.file.display(), %error, "the seal was not synced");
            }
        }
    }
}

const SEAL_LENGTH: usize = 13;

/// Version, crc32c of what follows, number of commits; all little endian.
pub(crate) fn seal_bytes(commits: u64) -> [u8; SEAL_LENGTH] {
    let number = commits.to_le_bytes();
    let mut bytes = [1; SEAL_LENGTH];
    bytes[1..5].copy_from_slice(&crc32c::crc32c(&number).to_le_bytes());
    bytes[5..].copy_from_slice(&number);
    bytes
}

/// The number of commits a seal vouches for. A seal that is absent or torn vouches for nothing.
pub(crate) fn seal_number(bytes: &[u8]) -> Option<u64> {
    let number: [u8; 8] = bytes.get(5..SEAL_LENGTH)?.try_into().ok()?;
    let number = u64::from_le_bytes(number);
    (bytes.get(..SEAL_LENGTH)? == seal_bytes(number)).then_some(number)
}
