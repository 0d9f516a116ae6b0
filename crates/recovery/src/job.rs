//! Work that is done in a process of its own, beside the agent: so that it may take memory and processor,
//! and whatever happens to it does not happen to who keeps the lease.
//!
//! The job comes as one line of JSON; what it says is lines of JSON.

use crate::{
    Archive, BaseBackup, Drill, Feed, FileSet, Fill, Filled, Place, Result, archived_end, back_up,
    clock::unix_ms, prune,
};
use sempre_backup::{Options, Progress, Retention};
use sempre_files::How;
use sempre_model::{
    Lsn, Timeline,
    backup::{ArchiveView, BackupMade, BackupProgress, Proof},
};
use sempre_postgres::Instance;
use serde::{Deserialize, Serialize};
use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(250);
/// How often it is told how far the archive is, at the most.
const ARCHIVED_EVERY: Duration = Duration::from_millis(50);

/// What is to be done.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Job {
    /// Keep WAL in a repository, until it fails.
    Archive {
        /// Whose programs and certificates are used.
        instance: Box<Instance>,
        /// Whom it comes from.
        feed: Feed,
        /// `application_name`.
        name: String,
        /// The replication slot.
        slot: String,
        /// Where to.
        place: Place,
        /// The generation, if commits may wait for it.
        generation: Option<u64>,
        /// The newest base backup, where a gap was seen behind it: with a newer one it is looked anew.
        behind_backup: Option<u64>,
    },
    /// Fence off the writers of WAL of older generations, and read how far a timeline goes.
    Fence {
        /// Where.
        place: Place,
        /// Nothing below is taken any more.
        below: u64,
        /// Which one served.
        timeline: Timeline,
    },
    /// Make a base backup.
    BaseBackup {
        /// Whose.
        instance: Box<Instance>,
        /// Password of role `sempre`.
        admin_password: String,
        /// Where to.
        place: Place,
        /// Who makes one backup at a time there.
        owner: String,
        /// Compare with nothing.
        full: bool,
        /// Files at a time.
        threads: usize,
        /// The most that is read, bytes a second.
        max_bytes_per_s: Option<u64>,
        /// Make none when pages have wrong checksums.
        refuse_wrong_pages: bool,
        /// What is kept once it is made.
        retention: Retention,
    },
    /// Fill a data directory.
    Fill(Fill),
    /// Try a restore.
    Drill(Drill),
    /// Back files up.
    Files {
        /// Which.
        set: FileSet,
        /// Where to.
        place: Place,
        /// Read everything, even what looks unchanged.
        full: bool,
        /// The most that is read, bytes a second.
        max_bytes_per_s: Option<u64>,
        /// What is kept once it is made.
        retention: Retention,
    },
}

/// What a worker says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// How far the WAL is.
    Archived(ArchiveView),
    /// How far a base backup is.
    Progress(BackupProgress),
    /// It is done.
    Done(Worked),
    /// It failed.
    Failed(String),
}

/// What came of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Worked {
    /// The repository is fenced; how far the timeline goes.
    Fenced(Lsn),
    /// A base backup.
    Backup(BackupMade),
    /// A data directory that is a standby's.
    Filled(Filled),
    /// A restore that works.
    Proved(Proof),
}

impl Job {
    /// Does it.
    pub async fn work(self, say: impl Fn(Said) + Send + Sync + Clone + 'static) -> Result<Worked> {
        match self {
            Job::Fence { place, below, timeline } => {
                let repository = place.open().await?;
                repository.fence(below).await?;
                Ok(Worked::Fenced(archived_end(&repository, timeline).await?))
            }
            Job::Archive { instance, feed, name, slot, place, generation, behind_backup: _ } => {
                let repository = place.open().await?;
                let slot = Some(slot);
                let archive =
                    Archive { instance: &instance, feed, name, slot, repository, generation };
                let mut last: Option<(Instant, ArchiveView)> = None;
                let told = |view: ArchiveView| {
                    let now = Instant::now();
                    let due = last.is_none_or(|(at, said)| {
                        said.timeline != view.timeline || now - at >= ARCHIVED_EVERY
                    });
                    if due {
                        last = Some((now, view));
                        say(Said::Archived(view));
                    }
                };
                let never: Infallible = archive.run(told).await?;
                match never {}
            }
            Job::BaseBackup {
                instance,
                admin_password,
                place,
                owner,
                full,
                threads,
                max_bytes_per_s,
                refuse_wrong_pages,
                retention,
            } => {
                let repository = place.open().await?;
                let options = Options { threads, max_bytes_per_s, ..Options::default() };
                let (instance, admin_password) = (&*instance, admin_password.as_str());
                let repository = &repository;
                let task = BaseBackup {
                    instance,
                    admin_password,
                    repository,
                    owner: &owner,
                    options,
                    full,
                    refuse_wrong_pages,
                };
                let progress = Arc::new(Progress::default());
                let telling = tokio::spawn(tell(progress.clone(), say));
                let made = back_up(&task, progress).await;
                telling.abort();
                let made = made?;
                // What is too much goes. Should that fail, it goes after the next one.
                if let Err(error) = prune(repository, &retention).await {
                    tracing::warn!("what retention does not keep is still there: {error}");
                }
                Ok(Worked::Backup(BackupMade {
                    id: made.id,
                    bytes: made.stats.bytes,
                    stored_bytes: made.stats.stored_bytes,
                    took_ms: made.stats.took_ms,
                    alarms: made.alarms,
                }))
            }
            Job::Fill(fill) => {
                let progress = Arc::new(Progress::default());
                let telling = tokio::spawn(tell(progress.clone(), say));
                let filled = fill.run(&fetch_command(), progress).await;
                telling.abort();
                Ok(Worked::Filled(filled?))
            }
            Job::Drill(drill) => {
                let proof = drill.run(fetch_command(), Arc::default()).await;
                Ok(Worked::Proved(proof?))
            }
            Job::Files { set, place, full, max_bytes_per_s, retention } => {
                let files = place.files()?;
                let progress = Arc::new(Progress::default());
                let telling = tokio::spawn(tell(progress.clone(), say));
                let how = How { full, max_bytes_per_s };
                let made = files.back_up(&set, how, progress).await;
                telling.abort();
                let made = made?;
                let (vanished, changed) = (made.vanished, made.changed);
                tracing::info!(files = %set.name, vanished, changed, "snapshot {}", made.id);
                if let Err(error) = files.prune(&retention, unix_ms()).await {
                    tracing::warn!("what retention does not keep is still there: {error}");
                }
                let (id, took_ms) = (made.id, made.took_ms);
                let (bytes, stored_bytes) = (made.bytes, made.stored_bytes);
                Ok(Worked::Backup(BackupMade {
                    id,
                    bytes,
                    stored_bytes,
                    took_ms,
                    alarms: Vec::new(),
                }))
            }
        }
    }
}

/// This very program, even when its file was replaced by an upgrade; and nobody answers when this process
/// is gone.
fn fetch_command() -> Vec<String> {
    vec![format!("/proc/{}/exe", std::process::id()), "restore-wal".to_owned()]
}

async fn tell(progress: Arc<Progress>, say: impl Fn(Said)) {
    loop {
        tokio::time::sleep(TELL_EVERY).await;
        let now = progress.snapshot();
        say(Said::Progress(BackupProgress {
            done_bytes: now.done_bytes,
            total_bytes: now.total_bytes,
            bytes_per_s: now.bytes_per_s,
            left_ms: now.left_ms,
        }));
    }
}
