//! A repository in a bucket of an S3-compatible store.
//!
//! - A new object is put with `If-None-Match: *`: the store must know it (Amazon S3, MinIO, Ceph, R2 do), as
//!   all that is decided by creating an object rests on it. [`S3::probe`] finds out.
//! - An object that grows is a folder of parts, `part.00000000` and so on, each put once. Lists show it as one
//!   object.
//! - An operation that fails is tried again, a limited number of times ([`Patience`]). A put whose answer was
//!   lost finds its own object there when it is tried again: it compares.
//!
//! - Whoever may write and not delete is told so: a delete that is refused is too early, and no failure.
//!
//! Limits. A bucket with versions, or with object lock, keeps what is deleted as old versions: give it a
//! rule that lets these go. Retention is set on the bucket (its *default retention*), not with each object:
//! the library can give headers only to all requests of a client alike.

mod config;
mod parts;

pub use config::{Patience, S3Config};

use super::{Append, Listed, Store};
use crate::{Error, Result};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::{
    GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, aws::AmazonS3,
    path::Path,
};
use std::{fmt, ops::Range, sync::Arc, time::Duration};

/// Between two tries, at most.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// A repository in a bucket. Clones share everything.
#[derive(Clone)]
pub struct S3 {
    client: Arc<AmazonS3>,
    name: Arc<str>,
    /// Empty, or it ends in `/`.
    prefix: Arc<str>,
    patience: Patience,
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3({})", self.name)
    }
}

type Tried<T> = std::result::Result<T, object_store::Error>;

/// Is it no use to try again?
fn is_final(error: &object_store::Error) -> bool {
    !matches!(error, object_store::Error::Generic { .. } | object_store::Error::JoinError { .. })
}

/// With the cause at the bottom, which the library leaves to whoever asks for it.
fn in_full(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let cause = cause.to_string();
    if !text.contains(&cause) {
        text = format!("{text}: {cause}");
    }
    text
}

impl S3 {
    /// The repository in this place. Nothing is asked of the store yet.
    pub fn new(config: &S3Config, patience: Patience) -> Result<Self> {
        let client = Arc::new(config.client(patience)?);
        let prefix = config.prefix.trim_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self { client, name: config.name().into(), prefix: prefix.into(), patience })
    }

    /// Refuses a store that does not know `If-None-Match`: it would let two writers succeed where
    /// one must fail. Leaves nothing behind.
    pub async fn probe(&self) -> Result<()> {
        let key = format!("probe-{:032x}", rand::random::<u128>());
        self.put_new(&key, Bytes::from_static(b"one")).await?;
        let second = self.put_new(&key, Bytes::from_static(b"two")).await;
        self.delete(&key).await?;
        match second {
            Err(Error::Exists { .. }) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => Err(Error::Refused(format!(
                "{} cannot be used: it does not know conditional writes (If-None-Match), and lets one writer replace what another one wrote",
                self.name
            ))),
        }
    }

    fn path(&self, key: &str) -> Tried<Path> {
        Ok(Path::parse(format!("{}{key}", self.prefix))?)
    }

    fn failed(&self, doing: &'static str, key: &str, error: &object_store::Error) -> Error {
        let (key, repository) = (key.to_owned(), self.name.to_string());
        match error {
            // Who may write, and not delete, is kept from it by a rule of the bucket.
            object_store::Error::PermissionDenied { .. } if doing == "delete" => {
                Error::TooEarly { key, repository, why: in_full(error) }
            }
            object_store::Error::NotFound { .. } => Error::Missing { key, repository },
            object_store::Error::AlreadyExists { .. } => Error::Exists { key, repository },
            other => Error::Store { doing, key, repository, why: in_full(other) },
        }
    }

    async fn wait(&self, tried: u32) {
        let wait = self.patience.first_wait.saturating_mul(1 << (tried - 1).min(16));
        tokio::time::sleep(wait.min(WAIT_MAX)).await;
    }

    /// Tries, and tries again.
    async fn trying<T, F>(
        &self,
        doing: &'static str,
        key: &str,
        mut work: impl FnMut() -> F + Send,
    ) -> Result<T>
    where
        F: Future<Output = Tried<T>> + Send,
    {
        for tried in 1.. {
            match work().await {
                Err(error) if tried < self.patience.tries && !is_final(&error) => {
                    tracing::info!("{}: try {tried} to {doing} {key}: {error}", self.name);
                    self.wait(tried).await;
                }
                done => return done.map_err(|error| self.failed(doing, key, &error)),
            }
        }
        unreachable!("tries are limited")
    }

    async fn create(&self, key: &str, bytes: Bytes) -> Tried<()> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        self.client.put_opts(&self.path(key)?, bytes.into(), options).await.map(drop)
    }

    async fn read(&self, key: &str, range: Option<Range<u64>>) -> Tried<Bytes> {
        let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
        self.client.get_opts(&self.path(key)?, options).await?.bytes().await
    }

    /// Is there an object, and does it hold this?
    async fn holds(&self, key: &str, bytes: &Bytes) -> Result<Option<bool>> {
        match self.get(key).await {
            Ok(there) => Ok(Some(there == *bytes)),
            Err(Error::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every object below `prefix`, as the store has it.
    async fn list_plain(&self, prefix: &str) -> Result<Vec<Listed>> {
        let below = format!("{}{prefix}", self.prefix);
        let found: Vec<_> = self
            .trying("list", prefix, || async {
                let below = below.trim_end_matches('/');
                let below = if below.is_empty() { None } else { Some(Path::parse(below)?) };
                self.client.list(below.as_ref()).try_collect().await
            })
            .await?;
        let listed = found.into_iter().filter_map(|meta| {
            let key = meta.location.as_ref().strip_prefix(&*self.prefix)?.to_owned();
            let written_unix_ms = u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or(0);
            Some(Listed { key, bytes: meta.size, written_unix_ms })
        });
        Ok(listed.collect())
    }
}

#[async_trait]
impl Store for S3 {
    fn name(&self) -> &str {
        &self.name
    }

    async fn put_new(&self, key: &str, bytes: Bytes) -> Result<()> {
        let mut is_ours_perhaps = false;
        for tried in 1.. {
            let error = match self.create(key, bytes.clone()).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let is_conflict = matches!(error, object_store::Error::AlreadyExists { .. });
            if is_conflict {
                match self.holds(key, &bytes).await? {
                    // An earlier try did it, and its answer was lost.
                    Some(true) if is_ours_perhaps => return Ok(()),
                    Some(_) => return Err(self.failed("write", key, &error)),
                    // Somebody else was about to write it, or to delete it.
                    None => {}
                }
            } else {
                is_ours_perhaps = true;
            }
            if tried >= self.patience.tries || (is_final(&error) && !is_conflict) {
                let (key, repository) = (key.to_owned(), self.name.to_string());
                return Err(Error::Store { doing: "write", key, repository, why: in_full(&error) });
            }
            tracing::info!("{}: try {tried} to write {key}: {error}", self.name);
            self.wait(tried).await;
        }
        unreachable!("tries are limited")
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        self.trying("read", key, || self.read(key, None)).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        let read = || async {
            match self.read(key, Some(range.clone())).await {
                // Perhaps it ends before the range begins.
                Err(error @ object_store::Error::Generic { .. }) => {
                    let size = self.client.head(&self.path(key)?).await?.size;
                    let is_behind = range.start >= size || range.is_empty();
                    if is_behind { Ok(Bytes::new()) } else { Err(error) }
                }
                read => read,
            }
        };
        self.trying("read", key, read).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        Ok(parts::fold(self.list_plain(prefix).await?))
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let deleted = self.trying("delete", key, || async {
            match self.client.delete(&self.path(key)?).await {
                Err(object_store::Error::NotFound { .. }) => Ok(()),
                deleted => deleted,
            }
        });
        deleted.await
    }

    /// What the store has answered is durable.
    async fn barrier(&self) -> Result<()> {
        Ok(())
    }

    async fn append_new(&self, key: &str) -> Result<Box<dyn Append>> {
        parts::begin(self, key).await
    }

    async fn get_appended(&self, key: &str) -> Result<Bytes> {
        parts::read(self, key).await
    }

    async fn delete_appended(&self, key: &str) -> Result<()> {
        parts::delete(self, key).await
    }
}
