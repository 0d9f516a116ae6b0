//! A store that does something, or fails, at a call that a test chooses.

use async_trait::async_trait;
use bytes::Bytes;
use sempre_backup::{Append, Error, Listed, Result, Store};
use std::{
    fmt,
    future::Future,
    ops::Range,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

/// What becomes of a call.
pub enum Then {
    Go,
    Fail(&'static str),
    /// It is done, but says that it failed.
    GoAndFail(&'static str),
    /// It is done, and then done again: it says that it was there already.
    GoTwice,
}

pub struct Call {
    pub number: usize,
    pub doing: &'static str,
    pub key: String,
}

type Work = Pin<Box<dyn Future<Output = Then> + Send>>;
type Decide = Box<dyn Fn(Call) -> Work + Send + Sync>;

pub struct Wrapped {
    inner: Arc<dyn Store>,
    calls: AtomicUsize,
    decide: Decide,
}

impl fmt::Debug for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wrapped")
    }
}

impl Wrapped {
    pub fn new(
        inner: Arc<dyn Store>,
        decide: impl Fn(Call) -> Work + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { inner, calls: AtomicUsize::new(0), decide: Box::new(decide) })
    }

    /// Does `work` before call `at`, once.
    pub fn before<F>(inner: Arc<dyn Store>, at: usize, work: F) -> Arc<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let work = Mutex::new(Some(Box::pin(work)));
        Self::new(inner, move |call| {
            let work = (call.number == at).then(|| work.lock().unwrap().take()).flatten();
            Box::pin(async move {
                if let Some(work) = work {
                    work.await;
                }
                Then::Go
            })
        })
    }

    /// Call `at` fails; or is done, and says that it failed.
    pub fn failing(inner: Arc<dyn Store>, at: usize, why: &'static str, done: bool) -> Arc<Self> {
        Self::new(inner, move |call| {
            let then = match (call.number == at, done) {
                (false, _) => Then::Go,
                (true, false) => Then::Fail(why),
                (true, true) => Then::GoAndFail(why),
            };
            Box::pin(async move { then })
        })
    }

    /// How many calls there were.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    async fn around<T>(
        &self,
        doing: &'static str,
        key: &str,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        let failed = |why: &str| {
            let (key, repository) = (key.to_owned(), self.inner.name().to_owned());
            Err(Error::Store { doing, key, repository, why: why.to_owned() })
        };
        match (self.decide)(Call { number, doing, key: key.to_owned() }).await {
            Then::Go => call.await,
            Then::Fail(why) => failed(why),
            Then::GoTwice => {
                call.await?;
                let (key, repository) = (key.to_owned(), self.inner.name().to_owned());
                Err(Error::Exists { key, repository })
            }
            Then::GoAndFail(why) => {
                call.await?;
                failed(why)
            }
        }
    }
}

#[async_trait]
impl Store for Wrapped {
    fn name(&self) -> &str {
        self.inner.name()
    }

    async fn put_new(&self, key: &str, bytes: Bytes) -> Result<()> {
        self.around("write", key, self.inner.put_new(key, bytes)).await
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        self.around("read", key, self.inner.get(key)).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        self.around("read", key, self.inner.get_range(key, range)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        self.around("list", prefix, self.inner.list(prefix)).await
    }

    async fn leftovers(&self) -> Result<Vec<Listed>> {
        self.around("list", "leftovers", self.inner.leftovers()).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.around("delete", key, self.inner.delete(key)).await
    }

    async fn barrier(&self) -> Result<()> {
        self.around("sync", "", self.inner.barrier()).await
    }

    async fn append_new(&self, key: &str) -> Result<Box<dyn Append>> {
        self.around("begin", key, self.inner.append_new(key)).await
    }

    async fn get_appended(&self, key: &str) -> Result<Bytes> {
        self.around("read", key, self.inner.get_appended(key)).await
    }

    async fn delete_appended(&self, key: &str) -> Result<()> {
        self.around("delete", key, self.inner.delete_appended(key)).await
    }
}
