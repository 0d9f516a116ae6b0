//! A repository of files, as it is used.

use crate::{
    Error, PREFIX, Result,
    backend::{Backend, config, folder},
    source::Watch,
};
use rustic_core::{
    CheckOptions, ConfigOptions, Credentials, FileType, KeyOptions, OpenStatus, Progress as Told,
    ProgressBars, ProgressType, Repository, RepositoryBackends, RepositoryOptions, RusticProgress,
    repofile::SnapshotFile,
};
use sempre_backup::{Progress, Store};
use serde::{Deserialize, Serialize};
use std::{any::Any, sync::Arc};
use tokio::runtime::Handle;

/// In front of a set's name in the tag of its snapshots.
const TAG_PREFIX: &str = "sempre:";
/// `restic` makes the folder of its locks itself where there is none. Run by root, it would be root's, and
/// closed to us.
const LOCKS_NOTE: &str = "The program restic keeps its locks here while it runs.\n";
/// Of so many findings it is said what they are.
const SAID_MAX: usize = 10;

pub(crate) type Opened = Repository<OpenStatus>;

/// The files in a store. Its password is the backup key as text, so that there is one secret to keep.
#[derive(Clone, Debug)]
pub struct Files {
    pub(crate) store: Arc<dyn Store>,
    key: sempre_backup::Secret,
    /// One that is about to replace it.
    next_key: Option<sempre_backup::Secret>,
}

/// A snapshot, as listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its name: 64 hexadecimal digits.
    pub id: String,
    /// Of which set; none: it was made by others, with `restic`.
    pub set: Option<String>,
    /// On which member.
    pub member: String,
    /// When it began, ms since 1970.
    pub at_unix_ms: u64,
    /// What it has.
    pub paths: Vec<String>,
    /// Files and other entries.
    pub entries: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// What was new came to, in the repository, bytes.
    pub stored_bytes: u64,
    /// How long it took, ms.
    pub took_ms: u64,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// Snapshots that were looked at.
    pub snapshots: usize,
    /// What is damaged, in words.
    pub damages: Vec<String>,
}

fn locks_note() -> String {
    format!("{PREFIX}locks/note")
}

/// The tag of a set's snapshots.
pub(crate) fn tag(set: &str) -> String {
    format!("{TAG_PREFIX}{set}")
}

impl Files {
    /// The files beside what else is in the store. Nothing is read yet.
    pub fn new(store: Arc<dyn Store>, key: sempre_backup::Secret) -> Self {
        Self { store, key, next_key: None }
    }

    /// Likewise while the key is being replaced: one of both opens them.
    pub fn or_key(self, next_key: Option<sempre_backup::Secret>) -> Self {
        Self { next_key, ..self }
    }

    /// Where it is, for messages.
    pub(crate) fn place(&self) -> String {
        format!("{} ({})", self.store.name(), PREFIX.trim_end_matches('/'))
    }

    /// Is there anything?
    pub async fn exist(&self) -> Result<bool> {
        match self.store.get(&config()).await {
            Ok(_) => Ok(true),
            Err(sempre_backup::Error::Missing { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The library's repository, not open yet.
    fn library(
        &self,
        runtime: Handle,
        watch: Option<Arc<Watch>>,
        progress: Option<Arc<Progress>>,
    ) -> Result<Repository<()>> {
        let backend = Arc::new(Backend::new(self.store.clone(), runtime, watch));
        let backends = RepositoryBackends::new(backend, None);
        // A cache would be in somebody's home.
        let options = RepositoryOptions::default().no_cache(true);
        Repository::new_with_progress(&options, &backends, Bars { progress })
            .map_err(Error::library("open the files", &self.place()))
    }

    /// Opens it, for a thread that may wait.
    pub(crate) fn open(
        &self,
        runtime: Handle,
        watch: Option<Arc<Watch>>,
        progress: Option<Arc<Progress>>,
    ) -> Result<Opened> {
        let library = self.library(runtime, watch, progress)?;
        let open = |key: &sempre_backup::Secret| {
            let opened = library.clone().open(&Credentials::password(key.to_text()));
            opened.map_err(Error::library("open the files", &self.place()))
        };
        match (open(&self.key), &self.next_key) {
            (Err(Error::WrongKey { .. }), Some(next_key)) => open(next_key),
            (opened, _) => opened,
        }
    }

    /// Makes the repository unless there is one.
    pub(crate) async fn init(&self) -> Result<()> {
        if self.exist().await? {
            return Ok(());
        }
        let found = self.store.list(PREFIX).await?;
        let keys = folder(FileType::Key);
        if let Some(other) = found.iter().find(|listed| !listed.key.starts_with(&keys)) {
            let why = format!("{} is missing, and {} is there", config(), other.key);
            return Err(Error::Damaged { repository: self.place(), why });
        }
        // Of somebody who came no further. It opens nothing, and would be tried first.
        for listed in found {
            self.store.delete(&listed.key).await?;
        }
        let (files, runtime) = (self.clone(), Handle::current());
        blocking(&self.place(), "make the repository of files", move || {
            let (key, config) = (KeyOptions::default(), ConfigOptions::default());
            // Who replaces the key looks for files afterwards only.
            let password = files.next_key.as_ref().unwrap_or(&files.key).to_text();
            let made = files.library(runtime, None, None)?.init(
                &Credentials::password(password),
                &key,
                &config,
            );
            made.map(|_| ()).map_err(Error::library("make the repository of files", &files.place()))
        })
        .await?;
        match self.store.put_new(&locks_note(), LOCKS_NOTE.into()).await {
            Ok(()) | Err(sempre_backup::Error::Exists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(self.store.barrier().await?)
    }

    /// Its snapshots, oldest first; none where no files were ever backed up.
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>> {
        if !self.exist().await? {
            return Ok(Vec::new());
        }
        let (files, runtime) = (self.clone(), Handle::current());
        blocking(&self.place(), "list the snapshots", move || {
            let listed = list(&files.open(runtime, None, None)?, &files.place())?;
            Ok(listed.iter().map(snapshot).collect())
        })
        .await
    }

    /// Reads every object, and says what is damaged.
    pub async fn check(&self, progress: Arc<Progress>) -> Result<Checked> {
        if !self.exist().await? {
            // Their file is gone, and they are not.
            let left = self.store.list(&folder(FileType::Snapshot)).await?;
            let damages = match left.is_empty() {
                true => Vec::new(),
                false => vec![format!("{} is missing", config())],
            };
            return Ok(Checked { snapshots: left.len(), damages });
        }
        let (files, runtime) = (self.clone(), Handle::current());
        blocking(&self.place(), "check the files", move || {
            let place = files.place();
            let opened = files.open(runtime, None, Some(progress))?;
            let snapshots = list(&opened, &place)?.len();
            let checked = opened.check(CheckOptions::default().read_data(true));
            let found = checked.map_err(Error::library("check the files", &place))?.0;
            // The type of the level has no name outside of the library.
            let damages = found.into_iter().filter(|(level, _)| format!("{level:?}") == "Error");
            let mut damages: Vec<_> = damages.map(|(_, error)| error.to_string()).collect();
            let more = damages.len().saturating_sub(SAID_MAX);
            if more > 0 {
                damages.truncate(SAID_MAX);
                damages.push(format!("and {more} more"));
            }
            Ok(Checked { snapshots, damages })
        })
        .await
    }

    /// Gives the repository another key, and takes the present one away. Broken off, it goes on where it was.
    pub async fn change_key(&self, new: &sempre_backup::Secret) -> Result<()> {
        if !self.exist().await? {
            return Ok(());
        }
        let (files, runtime, new) = (self.clone(), Handle::current(), new.clone());
        blocking(&self.place(), "change the key of the files", move || {
            let place = files.place();
            let failed = |error| Error::library("change the key of the files", &place)(error);
            let other = Files::new(files.store.clone(), new.clone());
            let files = Files { next_key: None, ..files };
            let opened = match files.open(runtime.clone(), None, None) {
                // It was done before.
                Err(Error::WrongKey { .. }) => {
                    return other.open(runtime, None, None).map(|_| ());
                }
                opened => opened?,
            };
            let old = *opened.key_id();
            opened.add_key(&new.to_text(), &KeyOptions::default()).map_err(failed)?;
            // The old one goes when the new one was seen to open it.
            let opened = other.open(runtime, None, None)?;
            match old {
                Some(old) => opened.delete_key(&old).map_err(failed),
                None => Ok(()),
            }
        })
        .await
    }
}

/// All snapshots, oldest first.
pub(crate) fn list(opened: &Opened, place: &str) -> Result<Vec<SnapshotFile>> {
    let mut all =
        opened.get_all_snapshots().map_err(Error::library("list the snapshots", place))?;
    all.sort_by_key(|snapshot| snapshot.time.timestamp());
    Ok(all)
}

pub(crate) fn snapshot(file: &SnapshotFile) -> Snapshot {
    let summary = file.summary.as_ref();
    let set = file.tags.iter().find_map(|tag| tag.strip_prefix(TAG_PREFIX));
    Snapshot {
        id: file.id.to_hex().to_string(),
        set: set.map(str::to_owned),
        member: file.hostname.clone(),
        at_unix_ms: u64::try_from(file.time.timestamp().as_millisecond()).unwrap_or(0),
        paths: file.paths.iter().cloned().collect(),
        entries: summary.map_or(0, |s| s.total_files_processed),
        bytes: summary.map_or(0, |s| s.total_bytes_processed),
        stored_bytes: summary.map_or(0, |s| s.data_added_packed),
        took_ms: summary.map_or(0, |s| (s.backup_duration * 1000.0) as u64),
    }
}

/// Runs the library on a thread that may wait. Should it break off there, that is an error like others.
pub(crate) async fn blocking<T: Send + 'static>(
    place: &str,
    doing: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => {
            let why = match error.try_into_panic() {
                Ok(panic) => format!("it broke off: {}", said(&*panic)),
                Err(error) => error.to_string(),
            };
            Err(Error::Repository { doing, repository: place.to_owned(), why })
        }
    }
}

fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("nothing was said")
}

/// The library's bars, of which those that count bytes are ours.
#[derive(Debug)]
struct Bars {
    progress: Option<Arc<Progress>>,
}

impl ProgressBars for Bars {
    fn progress(&self, kind: ProgressType, _prefix: &str) -> Told {
        match (&self.progress, kind) {
            (Some(progress), ProgressType::Bytes) => Told::new(Bar(progress.clone())),
            _ => Told::hidden(),
        }
    }
}

#[derive(Debug)]
struct Bar(Arc<Progress>);

impl RusticProgress for Bar {
    fn is_hidden(&self) -> bool {
        false
    }
    fn set_length(&self, bytes: u64) {
        self.0.expect(bytes);
    }
    fn set_title(&self, _title: &str) {}
    fn inc(&self, bytes: u64) {
        self.0.advance(bytes);
    }
    fn finish(&self) {}
}
