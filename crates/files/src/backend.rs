//! The library's view of our store: its files are objects below [`PREFIX`], named as `restic` names them.
//!
//! Order, so that a power failure leaves nothing that is spoken of but not there: contents are durable before
//! the index that names them, the index before the snapshot, and all of it before anything is removed.

use crate::{Error, PREFIX, source::Watch};
use bytes::Bytes;
use rustic_core::{
    BytesList, ErrorKind, FileType, Id, ReadBackend, RusticError, RusticResult, WriteBackend,
};
use sempre_backup::Store;
use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::runtime::Handle;

/// Objects of one store, for the library's threads.
#[derive(Debug)]
pub(crate) struct Backend {
    store: Arc<dyn Store>,
    runtime: Handle,
    /// What was not read: no snapshot is taken then.
    watch: Option<Arc<Watch>>,
    /// Something was put since the last barrier.
    is_unsynced: AtomicBool,
}

type Outcome<T> = std::result::Result<T, sempre_backup::Error>;

/// The folder of a kind of files.
pub(crate) fn folder(kind: FileType) -> String {
    format!("{PREFIX}{}/", kind.dirname())
}

fn key(kind: FileType, id: &Id) -> String {
    let hex = id.to_hex();
    match kind {
        FileType::Config => config(),
        FileType::Pack => format!("{}{}/{}", folder(kind), &hex[..2], hex.as_str()),
        _ => format!("{}{}", folder(kind), hex.as_str()),
    }
}

/// The repository's own file.
pub(crate) fn config() -> String {
    format!("{PREFIX}{}", FileType::Config.dirname())
}

impl Backend {
    /// For library calls from threads that are not the runtime's.
    pub(crate) fn new(store: Arc<dyn Store>, runtime: Handle, watch: Option<Arc<Watch>>) -> Self {
        Self { store, runtime, watch, is_unsynced: AtomicBool::new(false) }
    }

    fn wait<T>(&self, doing: impl Future<Output = Outcome<T>>) -> RusticResult<T> {
        self.runtime.block_on(doing).map_err(failed)
    }

    fn read(&self, key: String, range: Option<Range<u64>>) -> RusticResult<Bytes> {
        self.wait(async {
            match range {
                Some(range) => self.store.get_range(&key, range).await,
                None => self.store.get(&key).await,
            }
        })
    }

    fn barrier(&self) -> RusticResult<()> {
        if self.is_unsynced.swap(false, Ordering::AcqRel)
            && let Err(error) = self.wait(self.store.barrier())
        {
            self.is_unsynced.store(true, Ordering::Release);
            return Err(error);
        }
        Ok(())
    }

    /// A snapshot of what was not read is none.
    fn expect_all_was_read(&self) -> RusticResult<()> {
        match self.watch.as_ref().map(|watch| watch.verdict()) {
            Some(Err(error)) => Err(RusticError::with_source(
                ErrorKind::InputOutput,
                "No snapshot was published",
                error,
            )),
            _ => Ok(()),
        }
    }
}

fn failed(error: sempre_backup::Error) -> Box<RusticError> {
    RusticError::with_source(ErrorKind::Backend, "The store failed", Error::from(error))
}

impl ReadBackend for Backend {
    fn location(&self) -> String {
        format!("{} ({PREFIX})", self.store.name())
    }

    fn list_with_size(&self, kind: FileType) -> RusticResult<Vec<(Id, u32)>> {
        let size = |bytes: u64| {
            u32::try_from(bytes).map_err(|error| {
                RusticError::with_source(ErrorKind::Backend, "An object is too large", error)
            })
        };
        if kind == FileType::Config {
            return match self.runtime.block_on(self.store.get(&config())) {
                Ok(bytes) => Ok(vec![(Id::default(), size(bytes.len() as u64)?)]),
                Err(sempre_backup::Error::Missing { .. }) => Ok(Vec::new()),
                Err(error) => Err(failed(error)),
            };
        }
        let listed = self.wait(self.store.list(&folder(kind)))?;
        let named = listed.iter().filter_map(|listed| {
            let id: Id = listed.key.rsplit('/').next()?.parse().ok()?;
            Some(size(listed.bytes).map(|bytes| (id, bytes)))
        });
        named.collect()
    }

    fn read_full(&self, kind: FileType, id: &Id) -> RusticResult<Bytes> {
        self.read(key(kind, id), None)
    }

    fn read_partial(
        &self,
        kind: FileType,
        id: &Id,
        _cacheable: bool,
        offset: u32,
        length: u32,
    ) -> RusticResult<Bytes> {
        let begin = u64::from(offset);
        let bytes = self.read(key(kind, id), Some(begin..begin + u64::from(length)))?;
        if bytes.len() != length as usize {
            let why = format!("{} ends at {}", key(kind, id), begin + bytes.len() as u64);
            let error = std::io::Error::other(why);
            return Err(RusticError::with_source(ErrorKind::Backend, "An object is short", error));
        }
        Ok(bytes)
    }

    fn warmup_path(&self, kind: FileType, id: &Id) -> String {
        key(kind, id)
    }
}

impl WriteBackend for Backend {
    fn write_bytes(
        &self,
        kind: FileType,
        id: &Id,
        _cacheable: bool,
        content: BytesList,
    ) -> RusticResult<()> {
        if kind == FileType::Snapshot {
            self.expect_all_was_read()?;
        }
        if kind != FileType::Pack {
            self.barrier()?;
        }
        let bytes = match content.slice() {
            [bytes] => bytes.clone(),
            pieces => Bytes::from(pieces.concat()),
        };
        let key = key(kind, id);
        self.is_unsynced.store(true, Ordering::Release);
        match self.runtime.block_on(self.store.put_new(&key, bytes)) {
            // Its name is the hash of what is in it.
            Err(sempre_backup::Error::Exists { .. }) if kind != FileType::Config => {}
            written => written.map_err(failed)?,
        }
        match kind {
            FileType::Snapshot | FileType::Config => self.barrier(),
            _ => Ok(()),
        }
    }

    fn remove(&self, kind: FileType, id: &Id, _cacheable: bool) -> RusticResult<()> {
        self.barrier()?;
        match self.runtime.block_on(self.store.delete(&key(kind, id))) {
            // One that was replaced, in a store that keeps everything for a while: the new one counts.
            Err(sempre_backup::Error::TooEarly { .. }) if kind == FileType::Key => Ok(()),
            removed => removed.map_err(failed),
        }
    }
}
