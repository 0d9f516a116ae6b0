//! The requests of one connection.

use super::{
    Served, Server,
    files::{Files, Growing},
    window::{Facts, must_stay},
};
use crate::{
    Error, Result,
    marks::is_said,
    names::{self, BACKUPS, FENCES, HELD, KEEPS, KEYS, MARKS, PACKS, RELEASED, SEGMENTS, WRITERS},
    store::{
        folder::{UNFINISHED, list},
        wire::{ASK, Ask, Line, check_key, check_prefix, status_of},
    },
};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use sempre_model::MemberId;
use sempre_net::{STREAMED, Streamed, StreamedBody};
use std::{
    collections::VecDeque,
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::timeout;

/// Objects of a connection that can still be appended to; older ones are done with.
const GROWING_MAX: usize = 16;
/// Bytes that are written, or read, at a time.
const CHUNK_BYTES: usize = 1 << 20;
/// The most that is appended at once: it is in memory.
const APPEND_MAX: u64 = 64 << 20;
/// Of a body, the next bytes come within this time.
const BODY_WITHIN: Duration = Duration::from_secs(30);

type Shared = Arc<Mutex<Option<Growing>>>;

pub(super) struct Connection {
    server: Arc<Server>,
    /// What was begun here, the newest last: the folder and the object.
    growing: Mutex<VecDeque<(Ask, Shared)>>,
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

fn whole(bytes: impl Into<Bytes>) -> StreamedBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// What went wrong with a file, as it is answered.
fn failed(ask: &Ask, doing: &'static str, error: &io::Error) -> Error {
    let (key, repository) = (ask.key.clone(), ask.folder.display().to_string());
    match error.kind() {
        ErrorKind::NotFound => Error::Missing { key, repository },
        ErrorKind::AlreadyExists => Error::Exists { key, repository },
        _ => Error::Store { doing, key, repository, why: error.to_string() },
    }
}

#[async_trait]
impl Streamed for Connection {
    async fn serve(&self, from: &MemberId, request: Request<Incoming>) -> Response<StreamedBody> {
        match self.answer(request).await {
            Ok(body) => Response::new(body),
            Err(error) => {
                tracing::debug!(%from, %error, "a repository's object was not had");
                let text = match &error {
                    // The rest is said by whoever asked.
                    Error::TooEarly { why, .. } | Error::Store { why, .. } => why.clone(),
                    other => other.to_string(),
                };
                let mut response = Response::new(whole(text));
                *response.status_mut() = status_of(&error);
                response
            }
        }
    }
}

impl Connection {
    pub(super) fn new(server: Arc<Server>) -> Self {
        Self { server, growing: Mutex::default() }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<StreamedBody> {
        let bad = |why: &str| Error::Refused(format!("this is no request: {why}"));
        let ask = request.headers().get(ASK).ok_or_else(|| bad("it asks for nothing"))?;
        let ask: Ask = serde_json::from_slice(ask.as_bytes()).map_err(|e| bad(&e.to_string()))?;
        let path = request.uri().path().trim_start_matches('/');
        let verb = path.strip_prefix(STREAMED).unwrap_or_default().to_owned();
        let served = self.server.folder(&ask.folder)?.clone();
        let _place = served.places.acquire().await.map_err(|_| bad("it ends"))?;
        // Noted at every request, for what passes while nothing is deleted.
        if served.rule.window_days.is_some()
            && let Err(why) = served.clock.wall_ms()
        {
            tracing::debug!("{}: {why}", ask.folder.display());
        }
        let body = request.into_body();
        match verb.as_str() {
            "look" => {
                let root = served.files.root().to_owned();
                let there = blocking(move || std::fs::read_dir(root)).await;
                there.map_err(|e| failed(&ask, "look at", &e))?;
                Ok(whole(served.rule.in_words()))
            }
            "put" => put(&served.files, &ask, body).await,
            "get" => get(&served.files, ask).await,
            "list" | "leftovers" => listed(&served.files, ask, verb == "leftovers").await,
            "delete" => delete(served.clone(), ask).await,
            "begin" => self.begin(&served.files, ask).await,
            "append" => self.append(ask, body).await,
            _ => Err(bad("it has an unknown verb")),
        }
    }

    async fn begin(&self, files: &Files, ask: Ask) -> Result<StreamedBody> {
        check_key(&ask.key)?;
        let (files, key) = (files.clone(), ask.key.clone());
        let begun = blocking(move || files.begin_growing(&key)).await;
        let begun = begun.map_err(|error| failed(&ask, "begin", &error))?;
        let mut growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        growing.push_back((ask, Arc::new(Mutex::new(Some(begun)))));
        if growing.len() > GROWING_MAX {
            growing.pop_front();
        }
        Ok(whole(""))
    }

    async fn append(&self, ask: Ask, body: Incoming) -> Result<StreamedBody> {
        let refused = |why: &str| Err(Error::Refused(format!("nothing was appended: {why}")));
        let begun = {
            let growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
            let ours = |(a, _): &&(Ask, Shared)| a.key == ask.key && a.folder == ask.folder;
            growing.iter().rev().find(ours).map(|(_, begun)| begun.clone())
        };
        let Some(begun) = begun else {
            return refused("it was not begun over this connection");
        };
        if ask.bytes > APPEND_MAX {
            return refused("it is too much at once");
        }
        let mut bytes = BytesMut::new();
        let mut chunks = Chunks::of(&ask, body);
        while let Some(chunk) = chunks.next().await? {
            bytes.extend_from_slice(&chunk);
        }
        let at = ask.at;
        let appended = blocking(move || {
            let mut slot = begun.lock().unwrap_or_else(PoisonError::into_inner);
            // After an error, or with somebody at it, it is over.
            let Some(mut growing) = slot.take() else { return Ok(false) };
            if at != Some(growing.bytes()) {
                return Ok(false);
            }
            growing.append(&bytes)?;
            *slot = Some(growing);
            Ok(true)
        })
        .await;
        match appended.map_err(|error| failed(&ask, "append to", &error))? {
            true => Ok(whole("")),
            false => refused("an earlier write failed, or it does not go on where it ended"),
        }
    }
}

/// A body in chunks; exactly as much of it as was said.
struct Chunks<'a> {
    ask: &'a Ask,
    body: Incoming,
    came: u64,
    ended: bool,
}

impl<'a> Chunks<'a> {
    fn of(ask: &'a Ask, body: Incoming) -> Self {
        Self { ask, body, came: 0, ended: false }
    }

    fn broken(&self, why: String) -> Error {
        let (key, repository) = (self.ask.key.clone(), self.ask.folder.display().to_string());
        Error::Store { doing: "receive", key, repository, why }
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        let mut chunk = BytesMut::new();
        while !self.ended && chunk.len() < CHUNK_BYTES {
            let frame = timeout(BODY_WITHIN, self.body.frame()).await;
            let frame = frame.map_err(|_| self.broken("its bytes do not come".to_owned()))?;
            match frame {
                None => self.ended = true,
                Some(Err(error)) => return Err(self.broken(error.to_string())),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.came += data.len() as u64;
                        chunk.extend_from_slice(&data);
                    }
                }
            }
            if self.came > self.ask.bytes || (self.ended && self.came < self.ask.bytes) {
                let why = format!("{} bytes of {} came", self.came, self.ask.bytes);
                return Err(self.broken(why));
            }
        }
        Ok((!chunk.is_empty()).then(|| chunk.freeze()))
    }
}

async fn put(files: &Files, ask: &Ask, body: Incoming) -> Result<StreamedBody> {
    check_key(&ask.key)?;
    let (files, key) = (files.clone(), ask.key.clone());
    let failed = |error: io::Error| failed(ask, "write", &error);
    let mut writing = blocking(move || files.begin(&key)).await.map_err(failed)?;
    let mut chunks = Chunks::of(ask, body);
    while let Some(chunk) = chunks.next().await? {
        let written = blocking(move || writing.write(&chunk).map(|()| writing)).await;
        writing = written.map_err(failed)?;
    }
    blocking(move || writing.finish()).await.map_err(failed)?;
    Ok(whole(""))
}

async fn get(files: &Files, ask: Ask) -> Result<StreamedBody> {
    check_key(&ask.key)?;
    let (path, range) = (files.path(&ask.key), ask.range);
    let opened = blocking(move || {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(ErrorKind::NotFound.into());
        }
        let (from, to) = range.unwrap_or((0, u64::MAX));
        let to = to.min(metadata.len());
        let first = chunk(&file, from, to)?;
        Ok((file, from + first.len() as u64, to, first))
    });
    let (file, at, to, first) = opened.await.map_err(|error| failed(&ask, "read", &error))?;
    if at >= to {
        return Ok(whole(first));
    }
    let state = (Arc::new(file), at, to, Some(first));
    let chunks = stream::try_unfold(state, move |(file, at, to, first)| async move {
        if let Some(first) = first {
            return Ok(Some((Frame::data(first), (file, at, to, None))));
        }
        if at >= to {
            return Ok(None);
        }
        let reading = file.clone();
        let bytes = blocking(move || chunk(&reading, at, to)).await?;
        let at = at + bytes.len() as u64;
        Ok::<_, io::Error>(Some((Frame::data(bytes), (file, at, to, None))))
    });
    Ok(StreamBody::new(chunks).boxed_unsync())
}

fn chunk(file: &File, from: u64, to: u64) -> io::Result<Bytes> {
    let length = to.saturating_sub(from).min(CHUNK_BYTES as u64);
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, from)?;
    Ok(bytes.into())
}

async fn listed(files: &Files, ask: Ask, unfinished: bool) -> Result<StreamedBody> {
    check_prefix(&ask.key)?;
    let (root, key) = (files.root().to_owned(), ask.key.clone());
    let found = blocking(move || {
        // A folder that is away is no empty one.
        std::fs::read_dir(&root)?;
        let mut lines = Vec::new();
        for listed in list(&root, &key, unfinished)? {
            serde_json::to_writer(&mut lines, &Line::from(listed))?;
            lines.push(b'\n');
        }
        lines.push(b'\n');
        Ok(lines)
    });
    found.await.map(whole).map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            let (key, repository) = (ask.key.clone(), ask.folder.display().to_string());
            Error::Store { doing: "list", key, repository, why: error.to_string() }
        }
        _ => failed(&ask, "list", &error),
    })
}

async fn delete(served: Arc<Served>, ask: Ask) -> Result<StreamedBody> {
    check_key(&ask.key)?;
    let key = ask.key.clone();
    let done = blocking(move || {
        if let Some(window) = served.rule.window()
            && let Some(why) = why_it_stays(&served, &key, window)?
        {
            return Ok(Some(why));
        }
        served.files.delete(&key).map(|()| None)
    });
    match done.await.map_err(|error| failed(&ask, "delete", &error))? {
        None => Ok(whole("")),
        Some(why) => {
            let (key, repository) = (ask.key, ask.folder.display().to_string());
            Err(Error::TooEarly { key, repository, why })
        }
    }
}

/// Why an object must stay; none: it may go, or is not there.
fn why_it_stays(served: &Served, key: &str, window: Duration) -> io::Result<Option<String>> {
    let now = match served.clock.wall_ms() {
        Ok(now) => now,
        Err(why) => return Ok(Some(why)),
    };
    let files = &served.files;
    let window_ms = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
    let Some(age_ms) = files.age_ms(key, now)? else { return Ok(None) };
    let mut facts = Facts { key, age_ms, ..Facts::default() };
    if let Some(below) = names::fence_of(key) {
        let others = files.ages(FENCES, now)?.into_iter();
        let others = others.filter_map(|(name, _)| names::fence_of(&format!("{FENCES}{name}")));
        facts.is_outdone = others.max().is_some_and(|newest| newest > below);
    }
    // What is young stays in any case: the rest need not be looked up.
    if age_ms >= window_ms && !key.starts_with(UNFINISHED) {
        let owner = [BACKUPS, SEGMENTS, PACKS, WRITERS, KEEPS, MARKS];
        if let Some(owner) = owner.into_iter().find_map(|prefix| names::owner(key, prefix)) {
            facts.is_held = is_held(files, owner, now, window_ms)?;
            facts.is_there = files.age_ms(&names::backup(owner), now)?.is_some();
        }
        if key.starts_with(PACKS) {
            let counts = |backup: &str| {
                let age = files.age_ms(&names::keeps(backup), now).ok().flatten();
                age.is_none_or(|age_ms| age_ms < window_ms)
                    || is_held(files, backup, now, window_ms).unwrap_or(true)
            };
            facts.kept_for = served.keeps.keeper_of(files.root(), key, counts)?;
        }
        if let Some(epoch) = key.strip_prefix(KEYS).and_then(|rest| rest.split_once('.')) {
            let others = files.ages(KEYS, now)?;
            let same = others.iter().filter(|(name, _)| {
                format!("{KEYS}{name}") != key
                    && name.split_once('.').is_some_and(|(other, _)| other == epoch.0)
            });
            facts.replaced_for_ms = same.map(|(_, age_ms)| *age_ms).max();
        }
    }
    Ok(must_stay(&facts, window))
}

/// Is a backup under a hold? One that was released less than a window ago still is: or who can release it
/// could delete it.
fn is_held(files: &Files, backup: &str, now: u64, window_ms: u64) -> io::Result<bool> {
    let marks = files.ages(&format!("{MARKS}{backup}/"), now)?;
    let is_release = |name: &str| name == RELEASED || name.starts_with("released.");
    let counted = marks.iter().filter(|(name, age)| !is_release(name) || *age >= window_ms);
    Ok(is_said(counted.map(|(name, _)| name.as_str()), HELD, RELEASED))
}
