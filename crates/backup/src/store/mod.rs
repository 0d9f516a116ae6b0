//! Where a repository's objects are: a narrow view of a folder, an S3-compatible store or another
//! member, so that everything above is the same for each, and tests can let each call fail.

pub(crate) mod folder;
mod remote;
mod s3;
pub(crate) mod wire;

pub use folder::Folder;
pub use remote::Remote;
pub use s3::{Patience, S3, S3Config};

use crate::Result;
use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{fmt::Debug, ops::Range};

/// One object, as listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its key.
    pub key: String,
    /// Its size, bytes.
    pub bytes: u64,
    /// When it was written, ms since 1970, as the store says.
    pub written_unix_ms: u64,
}

/// A store of objects that are written once.
///
/// Keys are paths of words with `/` between them. Reads see every write that has returned (S3 and
/// local file systems give this); all of the rules for deleting rely on it.
#[async_trait]
pub trait Store: Debug + Send + Sync + 'static {
    /// What it is called in messages.
    fn name(&self) -> &str;

    /// Stores a new object, whole or not at all. [`crate::Error::Exists`] when there is one of
    /// this name: of several that try, one succeeds. Its bytes are durable when this returns; that
    /// it is found after a power failure only [`Store::barrier`] promises.
    async fn put_new(&self, key: &str, bytes: Bytes) -> Result<()>;

    /// An object, whole.
    async fn get(&self, key: &str) -> Result<Bytes>;

    /// A part of an object. Less than was asked for where the object ends earlier.
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes>;

    /// All objects whose key begins with `prefix` (whole words: it ends in `/`, or is empty), by key.
    async fn list(&self, prefix: &str) -> Result<Vec<Listed>>;

    /// What processes that died left half written, by the keys that [`Store::delete`] takes. Not in
    /// any list. What is young may still be written to.
    async fn leftovers(&self) -> Result<Vec<Listed>> {
        Ok(Vec::new())
    }

    /// Removes an object; fine if there is none.
    async fn delete(&self, key: &str) -> Result<()>;

    /// Everything put so far survives a power failure once this returns.
    async fn barrier(&self) -> Result<()>;

    /// Begins an object that grows. Until it is finished nobody else writes to it; readers see it
    /// with [`Store::get_appended`].
    async fn append_new(&self, key: &str) -> Result<Box<dyn Append>>;

    /// What was appended to an object so far. The last piece may be cut short where the writer
    /// died in the middle of it.
    async fn get_appended(&self, key: &str) -> Result<Bytes>;

    /// Does whoever keeps the objects want to be told which older ones a new backup uses, to keep
    /// them for as long as that?
    fn wants_renewals(&self) -> bool {
        false
    }

    /// Removes what [`Store::append_new`] began.
    async fn delete_appended(&self, key: &str) -> Result<()>;
}

/// An object that grows.
#[async_trait]
pub trait Append: Send + Sync {
    /// Adds to its end; durable, and found after a power failure, when this returns. After an
    /// error nothing more may be appended.
    async fn append(&mut self, bytes: Bytes) -> Result<()>;
}
