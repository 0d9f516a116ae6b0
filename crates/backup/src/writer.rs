//! Who is writing a backup, made known in the repository before anything else is written, so that the
//! collection of garbage leaves alone what it needs.
//!
//! A writer gives signs of life. Silent for longer than [`LEASE`], it may be *revoked*: the collection of
//! garbage then creates the very object by which the writer would publish. Objects are created once, so
//! exactly one of the two succeeds, whatever the clocks say and however long a writer was paused.

use crate::{
    Adopted, Backup, Error, Repository, Result,
    names::{self, BACKUPS, FORGOTTEN},
    seal::Kind,
};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::task::JoinHandle;

/// A writer that is silent for longer may be revoked.
pub const LEASE: Duration = Duration::from_secs(60 * 60);
/// A writer gives a sign of life so often.
const BEAT: Duration = Duration::from_secs(10 * 60);

/// What a writer says of itself.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Announcement {
    /// Whose blocks it may refer to.
    pub(crate) parent: Option<String>,
    /// Who makes one backup at a time: what its next attempt finds without an outcome is dead.
    #[serde(default)]
    pub(crate) owner: Option<String>,
}

/// A writer that has been announced.
pub struct Writer {
    pub(crate) repository: Repository,
    pub(crate) id: String,
    pub(crate) parent: Option<Backup>,
    pub(crate) adopted: Adopted,
    /// Gives signs of life until it is dropped.
    beats: JoinHandle<()>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.beats.abort();
    }
}

impl Writer {
    /// Announces a writer. Its parent is the newest backup, if `parent` says so.
    pub async fn announce(repository: &Repository, now_unix_ms: u64, parent: bool) -> Result<Self> {
        Self::announce_of(repository, now_unix_ms, parent, None).await
    }

    /// The same; it goes on where a dead attempt of this owner stopped, who makes one backup at a time.
    pub async fn announce_of(
        repository: &Repository,
        now_unix_ms: u64,
        parent: bool,
        owner: Option<&str>,
    ) -> Result<Self> {
        let id = new_id(now_unix_ms);
        let mut newest = None;
        if parent {
            newest = repository.backups().await?.into_iter().next_back();
        }
        let parent = newest.as_ref().map(|b| b.id.clone());
        let announcement = Announcement { parent, owner: owner.map(str::to_owned) };
        repository.put(Kind::Writer, &names::writer(&id, 0), &announcement).await?;
        repository.store.barrier().await?;
        if let Some(parent) = &newest {
            // Whoever forgets it from now on sees us. Was it forgotten before?
            let marks = repository.marks(&parent.id).await?;
            let there = repository.store.list(BACKUPS).await?;
            let name = names::backup(&parent.id);
            if marks.iter().any(|m| m == FORGOTTEN) || !there.iter().any(|l| l.key == name) {
                newest = None;
            }
        }
        let adopted = match owner {
            Some(owner) => Adopted::take(repository, &id, owner).await?,
            None => Adopted::default(),
        };
        let beats = tokio::spawn(beat(repository.clone(), id.clone(), announcement));
        Ok(Self { repository: repository.clone(), id, parent: newest, adopted, beats })
    }

    /// The backup it is compared with.
    pub fn parent(&self) -> Option<&Backup> {
        self.parent.as_ref()
    }

    /// It is compared with nothing.
    pub fn forsake_parent(&mut self) {
        self.parent = None;
    }

    pub(crate) fn revoked(&self) -> Error {
        Error::Revoked { id: self.id.clone(), lease_minutes: LEASE.as_secs() / 60 }
    }
}

async fn beat(repository: Repository, id: String, announcement: Announcement) {
    for beat in 1.. {
        tokio::time::sleep(BEAT).await;
        if let Err(error) =
            repository.put(Kind::Writer, &names::writer(&id, beat), &announcement).await
        {
            tracing::warn!("backup {id} could not give a sign of life: {error}");
        }
    }
}

/// Names sort by their time.
fn new_id(now_unix_ms: u64) -> String {
    let seconds = i64::try_from(now_unix_ms / 1000).unwrap_or(0);
    let at = time::OffsetDateTime::from_unix_timestamp(seconds)
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let (date, clock) = (at.date(), at.time());
    format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}Z-{:08x}",
        date.year(),
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute(),
        clock.second(),
        rand::random::<u32>()
    )
}
