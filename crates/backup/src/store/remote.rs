//! A repository in a folder of another member, which serves it ([`crate::serve`]).
//!
//! Every answer comes after the disk has it, and so have the folders above: nothing is left for a
//! barrier. A request whose answer was lost is sent again, but for an append: whoever appends finds
//! out what there is, and begins another object.

use super::{
    Append, Listed, Patience, Store,
    wire::{Ask, Line, error_of},
};
use crate::{Error, Result};
use async_trait::async_trait;
use bytes::Bytes;
use http::StatusCode;
use sempre_model::MemberId;
use sempre_net::{Link, LinkError, Linked};
use std::{fmt, ops::Range, path::PathBuf, sync::Arc, time::Duration};

/// In all about 20 s between the tries, in which a member is started again.
const PATIENCE: Patience = Patience {
    tries: 9,
    first_wait: Duration::from_millis(200),
    connect: Duration::from_secs(3),
    timeout: Duration::from_secs(20),
};
/// Between two tries, at most.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a list may be, bytes, without being given up as too slow.
const LIST_BYTES: u64 = 64 << 20;
/// An object of which the length is not known is not larger, as a rule.
const OBJECT_BYTES: u64 = 32 << 20;

/// A repository on another member. Clones share everything.
#[derive(Clone)]
pub struct Remote {
    inner: Arc<Inner>,
}

struct Inner {
    link: Link,
    folder: PathBuf,
    name: String,
    patience: Patience,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Remote({})", self.inner.name)
    }
}

impl Remote {
    /// The repository in `folder` of the member at `hosts` and its peer port, for whoever may use the
    /// certificate in the folder `tls`. Nothing is asked yet.
    pub fn new(
        member: MemberId,
        hosts: Vec<String>,
        port: u16,
        tls: PathBuf,
        folder: PathBuf,
    ) -> Self {
        Self::with_patience(member, hosts, port, tls, folder, PATIENCE)
    }

    /// The same; `timeout` is how long it is waited for a sign of life.
    pub fn with_patience(
        member: MemberId,
        hosts: Vec<String>,
        port: u16,
        tls: PathBuf,
        folder: PathBuf,
        patience: Patience,
    ) -> Self {
        let name = format!("{}:{}", member, folder.display());
        let link = Link::new(member, hosts, port, tls);
        let link = link.with_patience(patience.connect, patience.timeout);
        Self { inner: Arc::new(Inner { link, folder, name, patience }) }
    }

    fn ask(&self, key: &str) -> Ask {
        Ask { folder: self.inner.folder.clone(), key: key.to_owned(), ..Ask::default() }
    }

    fn failed(&self, doing: &'static str, key: &str, error: LinkError) -> Error {
        let (key, repository) = (key.to_owned(), self.inner.name.clone());
        Error::Store { doing, key, repository, why: error.why }
    }

    /// Asks once.
    async fn once(
        &self,
        verb: &str,
        ask: &Ask,
        body: Bytes,
        expected: u64,
    ) -> std::result::Result<(StatusCode, Bytes), LinkError> {
        let linked = self.inner.link.connection().await?;
        exchange(&linked, verb, ask, body, expected).await
    }

    fn read(
        &self,
        (status, body): (StatusCode, Bytes),
        doing: &'static str,
        key: &str,
    ) -> Result<Bytes> {
        if status == StatusCode::OK {
            return Ok(body);
        }
        let why = String::from_utf8_lossy(&body).into_owned();
        Err(error_of(status, why, doing, key, &self.inner.name))
    }

    /// Asks until there is an answer, a limited number of times. What it asks for may be done twice.
    async fn trying(
        &self,
        verb: &'static str,
        doing: &'static str,
        ask: Ask,
        expected: u64,
    ) -> Result<Bytes> {
        let tries = self.inner.patience.tries;
        for tried in 1.. {
            match self.once(verb, &ask, Bytes::new(), expected).await {
                // The member there is starting, or has too much to do.
                Ok((StatusCode::SERVICE_UNAVAILABLE, _)) if tried < tries => {}
                Ok(answer) => return self.read(answer, doing, &ask.key),
                Err(error) if tried >= tries => return Err(self.failed(doing, &ask.key, error)),
                Err(error) => {
                    let (name, key) = (&self.inner.name, &ask.key);
                    tracing::info!("{name}: try {tried} to {doing} {key}: {error}");
                }
            }
            self.wait(tried).await;
        }
        unreachable!("tries are limited")
    }

    /// What there is and how it is kept, in words; an error if this folder is not served.
    pub async fn look(&self) -> Result<String> {
        let said = self.trying("look", "look at", self.ask(""), 0).await?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    }

    async fn wait(&self, tried: u32) {
        let wait = self.inner.patience.first_wait.saturating_mul(1 << (tried - 1).min(16));
        tokio::time::sleep(wait.min(WAIT_MAX)).await;
    }

    fn lines(&self, bytes: &[u8]) -> Result<Vec<Listed>> {
        let damaged = |why: String| {
            let (key, repository) = ("objects".to_owned(), self.inner.name.clone());
            Error::Store { doing: "list", key, repository, why }
        };
        let line = |line: &[u8]| match serde_json::from_slice::<Line>(line) {
            Ok(line) => Ok(Listed::from(line)),
            Err(error) => Err(damaged(error.to_string())),
        };
        // The last line is empty: a list that was cut short is none.
        match bytes.strip_suffix(b"\n\n") {
            Some(lines) => lines.split(|byte| *byte == b'\n').map(line).collect(),
            None if bytes == b"\n" => Ok(Vec::new()),
            None => Err(damaged("the list is cut short".to_owned())),
        }
    }
}

async fn exchange(
    linked: &Linked,
    verb: &str,
    ask: &Ask,
    body: Bytes,
    expected: u64,
) -> std::result::Result<(StatusCode, Bytes), LinkError> {
    let ask = Ask { bytes: body.len() as u64, ..ask.clone() };
    let ask = serde_json::to_string(&ask)
        .map_err(|error| LinkError { why: error.to_string(), sent: false })?;
    let answer = linked.ask(verb, &ask, body, expected).await?;
    Ok((answer.status, answer.body))
}

#[async_trait]
impl Store for Remote {
    fn name(&self) -> &str {
        &self.inner.name
    }

    async fn put_new(&self, key: &str, bytes: Bytes) -> Result<()> {
        let (ask, mut is_ours_perhaps) = (self.ask(key), false);
        let tries = self.inner.patience.tries;
        for tried in 1.. {
            match self.once("put", &ask, bytes.clone(), 0).await {
                // An earlier try did it, perhaps, and its answer was lost.
                Ok((StatusCode::CONFLICT, _)) if is_ours_perhaps => {
                    return match self.get(key).await? == bytes {
                        true => Ok(()),
                        false => {
                            let (key, repository) = (key.to_owned(), self.inner.name.clone());
                            Err(Error::Exists { key, repository })
                        }
                    };
                }
                Ok((StatusCode::SERVICE_UNAVAILABLE, _)) if tried < tries => {}
                Ok(answer) => return self.read(answer, "write", key).map(drop),
                Err(error) if tried >= tries => return Err(self.failed("write", key, error)),
                Err(error) => {
                    is_ours_perhaps |= error.sent;
                    tracing::info!("{}: try {tried} to write {key}: {error}", self.inner.name);
                }
            }
            self.wait(tried).await;
        }
        unreachable!("tries are limited")
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        self.trying("get", "read", self.ask(key), OBJECT_BYTES).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        let expected = range.end.saturating_sub(range.start);
        let ask = Ask { range: Some((range.start, range.end)), ..self.ask(key) };
        self.trying("get", "read", ask, expected).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let listed = self.trying("list", "list", self.ask(prefix), LIST_BYTES).await?;
        self.lines(&listed)
    }

    async fn leftovers(&self) -> Result<Vec<Listed>> {
        let listed = self.trying("leftovers", "list", self.ask(""), LIST_BYTES).await?;
        self.lines(&listed)
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.trying("delete", "delete", self.ask(key), 0).await.map(drop)
    }

    async fn barrier(&self) -> Result<()> {
        Ok(())
    }

    async fn append_new(&self, key: &str) -> Result<Box<dyn Append>> {
        let failed = |error| self.failed("begin", key, error);
        let linked = self.inner.link.connection().await.map_err(failed)?;
        let begun = exchange(&linked, "begin", &self.ask(key), Bytes::new(), 0).await;
        self.read(begun.map_err(failed)?, "begin", key)?;
        let (remote, key) = (self.clone(), key.to_owned());
        Ok(Box::new(Growing { remote, key, on: Some(linked), length: 0 }))
    }

    async fn get_appended(&self, key: &str) -> Result<Bytes> {
        self.get(key).await
    }

    fn wants_renewals(&self) -> bool {
        true
    }

    async fn delete_appended(&self, key: &str) -> Result<()> {
        self.delete(key).await
    }
}

struct Growing {
    remote: Remote,
    key: String,
    /// The connection that it was begun on: nobody else's, and no later one, may append to it. None
    /// after an error.
    on: Option<Linked>,
    length: u64,
}

#[async_trait]
impl Append for Growing {
    async fn append(&mut self, bytes: Bytes) -> Result<()> {
        const DOING: &str = "append to";
        let Some(on) = self.on.take() else {
            let why = "an earlier write failed".to_owned();
            let error = LinkError { why, sent: false };
            return Err(self.remote.failed(DOING, &self.key, error));
        };
        let ask = Ask { at: Some(self.length), ..self.remote.ask(&self.key) };
        let appended = bytes.len() as u64;
        let answer = exchange(&on, "append", &ask, bytes, 0).await;
        let answer = answer.map_err(|error| self.remote.failed(DOING, &self.key, error))?;
        self.remote.read(answer, DOING, &self.key)?;
        self.length += appended;
        self.on = Some(on);
        Ok(())
    }
}
