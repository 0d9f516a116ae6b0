//! Opening a store: everything in it is read and checked before anyone acts on it.

use crate::{
    error::OpenError,
    format::{StoredEntry, StoredLogId, StoredSnapshot, StoredVote},
    store::{self, SealFile, Store, Trouble, Write, read_entry, read_row},
};
use redb::{Builder, Database, ReadableDatabase, ReadableTable, backends::InMemoryBackend};
use sempre_model::{Generation, NodeId};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

/// redb's cache. The whole store is smaller; it bounds the memory of an idle member.
const CACHE_BYTES: usize = 4 << 20;

/// [`load_copy`] reads the file into memory; a record's store is a few MB.
const COPY_BYTES_MAX: u64 = 1 << 30;

/// Everything in a store.
pub(crate) struct Content {
    pub node: Option<NodeId>,
    pub vote: Option<StoredVote>,
    pub committed: Option<StoredLogId>,
    pub purged: Option<StoredLogId>,
    pub promised: Generation,
    pub longest_grant_ms: u64,
    pub commits: u64,
    pub snapshot: Option<StoredSnapshot>,
    pub entries: Vec<StoredEntry>,
}

impl Content {
    fn read(database: &impl ReadableDatabase) -> Result<Self, Trouble> {
        let transaction = database.begin_read()?;
        let meta = transaction.open_table(store::META)?;
        let snapshot = transaction.open_table(store::SNAPSHOT)?;
        let log = transaction.open_table(store::LOG)?;
        let mut entries = vec![];
        for row in log.iter()? {
            let (index, row) = row?;
            entries.push(read_entry(index.value(), row.value())?);
        }
        let content = Self {
            node: read_row(&meta, "meta", store::NODE)?,
            vote: read_row(&meta, "meta", store::VOTE)?,
            committed: read_row(&meta, "meta", store::COMMITTED)?,
            purged: read_row(&meta, "meta", store::PURGED)?,
            promised: read_row(&meta, "meta", store::PROMISED)?.unwrap_or_default(),
            longest_grant_ms: read_row(&meta, "meta", store::LONGEST_GRANT_MS)?.unwrap_or_default(),
            commits: read_row(&meta, "meta", store::COMMITS)?.unwrap_or_default(),
            snapshot: read_row(&snapshot, "snapshot", store::CURRENT)?,
            entries,
        };
        content.check().map_err(Trouble::Content)?;
        Ok(content)
    }

    /// The last entry of the log, or what stands for it.
    pub fn last(&self) -> Option<StoredLogId> {
        let snapshot = self.snapshot.as_ref().and_then(|s| s.last);
        self.entries.last().map(|e| e.id).or(self.purged).max(snapshot)
    }

    /// Do the rows fit together?
    fn check(&self) -> Result<(), String> {
        let mut before = self.purged;
        for entry in &self.entries {
            let expected = before.map_or(0, |id| id.index + 1);
            if entry.id.index != expected {
                return Err(format!("log entry {expected} is missing"));
            }
            if before.is_some_and(|before| before.term > entry.id.term) {
                return Err(format!(
                    "log entry {} is of an older term than the one before",
                    expected
                ));
            }
            before = Some(entry.id);
        }
        let in_snapshot = self.snapshot.as_ref().and_then(|s| s.last);
        if self.purged.is_some_and(|purged| in_snapshot < Some(purged)) {
            return Err("entries were purged that no snapshot holds".into());
        }
        if self.committed > self.last() {
            return Err(format!(
                "entry {:?} was committed, but the log ends at {:?}",
                self.committed.map(|id| id.index),
                self.last().map(|id| id.index)
            ));
        }
        Ok(())
    }
}

/// Runs `work`; a panic in it (redb may panic on a file altered by others) is damage found.
fn guarded<T>(file: &Path, work: impl FnOnce() -> Result<T, OpenError>) -> Result<T, OpenError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let what = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("reading it failed");
        Err(OpenError::Corrupt { file: file.to_owned(), what: what.to_owned() })
    })
}

fn trouble(file: &Path, doing: &'static str) -> impl Fn(redb::Error) -> OpenError {
    let file = file.to_owned();
    move |error| match error {
        redb::Error::DatabaseAlreadyOpen => OpenError::Busy { file: file.clone() },
        error => Trouble::Database(error).about(file.clone(), doing).into(),
    }
}

pub(crate) fn io_error(file: &Path, doing: &'static str) -> impl Fn(io::Error) -> OpenError {
    let file = file.to_owned();
    move |error| OpenError::Io { file: file.clone(), doing, why: error.to_string() }
}

fn checked(file: &Path, database: &impl ReadableDatabase) -> Result<Content, OpenError> {
    Content::read(database)
        .map_err(|trouble| OpenError::from(trouble.about(file.to_owned(), "read")))
}

/// Refuses a file that lost commits its seal vouches for.
fn compare_seal(file: &Path, seal: &[u8], commits: u64) -> Result<(), OpenError> {
    match store::seal_number(seal) {
        Some(number) if number > commits => Err(OpenError::Corrupt {
            file: file.to_owned(),
            what: format!("it holds {commits} commits, but {number} were made: the last are gone"),
        }),
        Some(_) => Ok(()),
        // A store that was just made has no seal yet: its first commit is the one that makes it.
        None if commits <= 1 => Ok(()),
        None => {
            tracing::warn!(file = %file.display(), "no readable seal; lost commits go unnoticed");
            Ok(())
        }
    }
}

/// Opens the store of `node` in `dir`, and makes it if there is none.
pub(crate) fn open(dir: &Path, node: NodeId) -> Result<(Store, Content), OpenError> {
    #[cfg(feature = "simulation")]
    if let Some(machine) = crate::simulation::machine() {
        return open_simulated(dir, node, &*machine);
    }
    fs::create_dir_all(dir).map_err(io_error(dir, "make"))?;
    let file = dir.join(store::FILE);
    let seal_file = dir.join(store::SEAL);
    let mut seal = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&seal_file)
        .map_err(io_error(&seal_file, "open"))?;
    let mut sealed = vec![];
    (&mut seal).take(64).read_to_end(&mut sealed).map_err(io_error(&seal_file, "read"))?;

    let length = fs::metadata(&file).map(|m| m.len()).unwrap_or(0);
    check_absent(&file, length, &sealed)?;
    if length == 0 {
        create(dir, &file, node)?;
    }
    let path = file.clone();
    take_over(file, (Box::new(seal), &sealed), node, || builder().open(&path))
}

/// The same on the files of a simulated machine.
#[cfg(feature = "simulation")]
fn open_simulated(
    dir: &Path,
    node: NodeId,
    machine: &dyn crate::simulation::Machine,
) -> Result<(Store, Content), OpenError> {
    use crate::simulation::Backend;
    let (file, seal_file) = (dir.join(store::FILE), dir.join(store::SEAL));
    let seal = machine.seal();
    let mut sealed = vec![0; seal.len().map_err(io_error(&seal_file, "read"))?.min(64) as usize];
    seal.read(0, &mut sealed).map_err(io_error(&seal_file, "read"))?;
    let length = machine.store().len().map_err(io_error(&file, "read"))?;
    check_absent(&file, length, &sealed)?;
    if length == 0 {
        let database = builder()
            .create_with_backend(Backend(machine.store()))
            .map_err(|e| trouble(&file, "make")(e.into()))?;
        write_first(&database, node).map_err(|trouble| trouble.about(file.clone(), "write"))?;
        database.close().map_err(|e| trouble(&file, "close")(e.into()))?;
        machine.store_is_made();
    }
    take_over(file, (Box::new(seal), &sealed), node, || {
        builder().create_with_backend(Backend(machine.store()))
    })
}

/// Refuses to make a new store where a seal says that there was one.
fn check_absent(file: &Path, length: u64, sealed: &[u8]) -> Result<(), OpenError> {
    if length == 0 && store::seal_number(sealed).is_some() {
        return Err(OpenError::Corrupt {
            file: file.to_owned(),
            what: "it is missing or empty, although a seal for it is there".into(),
        });
    }
    Ok(())
}

/// Opens the database and checks all that is in it.
fn take_over(
    file: PathBuf,
    (seal, sealed): (Box<dyn SealFile>, &[u8]),
    node: NodeId,
    open: impl FnOnce() -> Result<Database, redb::DatabaseError>,
) -> Result<(Store, Content), OpenError> {
    let (database, content) = guarded(&file, || {
        let database = open().map_err(|e| trouble(&file, "open")(e.into()))?;
        let content = checked(&file, &database)?;
        Ok((database, content))
    })?;
    compare_seal(&file, sealed, content.commits)?;
    let found = content.node.ok_or_else(|| OpenError::Corrupt {
        file: file.clone(),
        what: "it does not say whose it is".into(),
    })?;
    if found != node {
        return Err(OpenError::WrongNode { file, found, wanted: node });
    }
    let store = Store::new(
        file,
        seal,
        database,
        content.commits,
        (content.promised, content.longest_grant_ms),
        content.snapshot.as_ref().and_then(|snapshot| snapshot.last),
    );
    // From here on there is a seal, even where there was none.
    store.write(|_| Ok(()))?;
    store.sync_seal()?;
    Ok((store, content))
}

fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

/// Makes an empty store. It is built under another name, so that a crash midway leaves none.
fn create(dir: &Path, file: &Path, node: NodeId) -> Result<(), OpenError> {
    let new = file.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error(&new, "remove")(error));
        }
        _ => {}
    }
    // Made beforehand to be readable by its owner only: redb fills an empty file.
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .map_err(io_error(&new, "make"))?;
    let database = builder().create(&new).map_err(|e| trouble(&new, "make")(e.into()))?;
    write_first(&database, node).map_err(|trouble| trouble.about(new.clone(), "write"))?;
    database.close().map_err(|e| trouble(&new, "close")(e.into()))?;
    fs::rename(&new, file).map_err(io_error(file, "make"))?;
    sync_dir(dir)
}

/// Writes what every store has.
fn write_first(database: &Database, node: NodeId) -> Result<(), Trouble> {
    let transaction = database.begin_write()?;
    let write = Write::of(&transaction);
    write.make_tables()?;
    write.meta(store::NODE, &node)?;
    write.meta(store::COMMITS, &1u64)?;
    transaction.commit()?;
    Ok(())
}

/// Makes renames in `dir` last.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), OpenError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error(dir, "sync"))
}

/// Reads and checks the store in `dir` without touching it: works on a copy in memory.
pub(crate) fn load_copy(dir: &Path) -> Result<(PathBuf, Content), OpenError> {
    let path = dir.join(store::FILE);
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(OpenError::Missing { file: path });
        }
        Err(error) => return Err(io_error(&path, "open")(error)),
    };
    match file.try_lock_shared() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Err(OpenError::Busy { file: path }),
        Err(fs::TryLockError::Error(error)) => return Err(io_error(&path, "lock")(error)),
    }
    let length = file.metadata().map_err(io_error(&path, "read"))?.len();
    if length > COPY_BYTES_MAX || length == 0 {
        let what = format!("it is {length} bytes long, which cannot be a record's store");
        return Err(OpenError::Corrupt { file: path, what });
    }
    let mut bytes = vec![];
    file.read_to_end(&mut bytes).map_err(io_error(&path, "read"))?;
    let seal = fs::read(dir.join(store::SEAL)).unwrap_or_default();

    let content = guarded(&path, || {
        use redb::StorageBackend;
        let copy = InMemoryBackend::new();
        copy.set_len(bytes.len() as u64)
            .and_then(|()| copy.write(0, &bytes))
            .map_err(|error| OpenError::Corrupt { file: path.clone(), what: error.to_string() })?;
        let database =
            builder().create_with_backend(copy).map_err(|e| trouble(&path, "open")(e.into()))?;
        checked(&path, &database)
    })?;
    compare_seal(&path, &seal, content.commits)?;
    Ok((path, content))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{self, StoredBody};

    fn id(term: u64, index: u64) -> StoredLogId {
        StoredLogId { term, node: 1, index }
    }

    fn blank(term: u64, index: u64) -> StoredEntry {
        StoredEntry { id: id(term, index), body: StoredBody::Blank }
    }

    /// Makes a store of ten entries, lets `spoil` write what no member would, and opens it again.
    fn reopen(spoil: impl FnOnce(&Write<'_>) -> Result<(), Trouble>) -> Result<(), OpenError> {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = open(dir.path(), 1).unwrap();
        let entries: Vec<_> = (0..10).map(|n| blank(2, n)).collect();
        store.write(|write| write.entries(&entries)).unwrap();
        store.write(spoil).unwrap();
        store.close();
        let copy = load_copy(dir.path()).map(|_| ());
        let opened = open(dir.path(), 1).map(|(store, _)| store.close());
        assert_eq!(copy, opened);
        opened
    }

    fn what(result: Result<(), OpenError>) -> String {
        match result {
            Err(OpenError::Corrupt { file, what }) => {
                assert!(file.ends_with("record.redb"));
                what
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_sound_store_opens() {
        reopen(|_| Ok(())).unwrap();
        reopen(|write| write.meta(store::COMMITTED, &id(2, 9))).unwrap();
    }

    #[test]
    fn a_row_that_fails_its_checksum_is_named() {
        let mut row = format::encode("log", &5u64.to_be_bytes(), &blank(2, 5)).unwrap();
        row[9] ^= 1;
        let result = reopen(|write| write.raw_entry(5, &row));
        assert!(what(result).starts_with("log entry 5: checksum"));
    }

    #[test]
    fn rows_that_do_not_fit_together_are_named() {
        let gap = reopen(|write| write.remove_entries(4..=4));
        assert_eq!(what(gap), "log entry 4 is missing");
        let back = reopen(|write| write.entries(&[blank(1, 7)]));
        assert!(what(back).contains("older term"));
        let short = reopen(|write| write.meta(store::COMMITTED, &id(2, 12)));
        assert!(what(short).contains("the log ends at"));
        let purged = reopen(|write| {
            write.remove_entries(..=4)?;
            write.meta(store::PURGED, &id(2, 4))
        });
        assert!(what(purged).contains("no snapshot"));
    }

    #[test]
    fn a_damaged_row_is_an_error_at_read_time_too() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = open(dir.path(), 1).unwrap();
        store.write(|write| write.raw_entry(0, b"junk")).unwrap();
        let read = store.entries(0..1, false);
        assert!(matches!(read, Err(crate::StoreError::Corrupt { .. })), "{read:?}");
        store.close();
        assert!(matches!(store.vote(), Err(crate::StoreError::Closed { .. })));
    }
}
