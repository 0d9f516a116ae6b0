//! What operators ask about backups, and what they are told. It travels as one JSON object to
//! `POST /v1/backups`; `GET /v1/backups` is the list.

mod files;

pub use files::{FilesRequest, FilesStatus, ListedSnapshot};

use sempre_model::{
    Lsn, MemberId, Timeline,
    backup::{ArchiveView, BackupEnded, BackupOrder, BackupProgress, Proof, StoreAt},
    care::BackupAlarm,
};
use serde::{Deserialize, Serialize};

/// Something asked about backups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum BackupRequest {
    /// Make a repository.
    Init {
        /// Its name.
        name: String,
        /// Where.
        store: StoreAt,
        /// Who can reach it; empty: everybody.
        #[serde(default)]
        members: Vec<MemberId>,
    },
    /// Use a repository no longer. What is in it stays.
    Detach {
        /// Its name.
        name: String,
    },
    /// Make a base backup.
    Run {
        /// Where to; without: the only repository.
        #[serde(default)]
        repository: Option<String>,
        /// Of whom; without: a standby, if there is one.
        #[serde(default)]
        member: Option<MemberId>,
        /// Compared with nothing.
        #[serde(default)]
        full: bool,
    },
    /// What there is.
    List {
        /// Where; without: everywhere.
        #[serde(default)]
        repository: Option<String>,
    },
    /// Forget a backup.
    Forget {
        /// Where.
        #[serde(default)]
        repository: Option<String>,
        /// Its name, or the beginning of it.
        backup: String,
    },
    /// Take it back that a backup was forgotten.
    Unforget {
        /// Where.
        #[serde(default)]
        repository: Option<String>,
        /// Its name, or the beginning of it.
        backup: String,
    },
    /// Keep a backup whatever retention says, or no longer.
    Hold {
        /// Where.
        #[serde(default)]
        repository: Option<String>,
        /// Its name, or the beginning of it.
        backup: String,
        /// End the hold.
        #[serde(default)]
        release: bool,
        /// Why.
        #[serde(default)]
        reason: String,
    },
    /// Somebody has looked into the alarms of a backup: they are told no longer.
    Accept {
        /// Where.
        #[serde(default)]
        repository: Option<String>,
        /// Its name, or the beginning of it.
        backup: String,
    },
    /// Replace the key that opens a repository; or go on with that.
    RotateKey {
        /// Which.
        #[serde(default)]
        repository: Option<String>,
    },
    /// Something about files.
    Files(FilesRequest),
    /// A restore was tried: the cluster is to know what was measured.
    Prove {
        /// From where.
        repository: String,
        /// What was measured, or why it did not work.
        outcome: Result<Proof, String>,
    },
    /// Where a repository is, and the key that opens it: to restore, or to keep it elsewhere.
    Key {
        /// Which.
        #[serde(default)]
        repository: Option<String>,
    },
}

/// A repository, as far as the members know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryStatus {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub place: String,
    /// Who keeps the WAL there.
    pub archiver: Option<MemberId>,
    /// How far it is.
    pub archive: Option<ArchiveView>,
    /// WAL of the primary that is not there yet, bytes.
    pub lag_bytes: Option<u64>,
    /// A base backup that is being made.
    pub order: Option<BackupOrder>,
    /// How far that is.
    pub progress: Option<BackupProgress>,
    /// What came of the last one.
    pub ended: Option<BackupEnded>,
    /// When the newest that worked was made, ms since 1970.
    pub newest_unix_ms: Option<u64>,
    /// What would be lost with all members, ms of commits; none: it is not known.
    pub rpo_ms: Option<u64>,
    /// The last restore that was tried.
    #[serde(default)]
    pub proved: Option<Result<Proof, String>>,
    /// Alarms that nobody has accepted.
    #[serde(default)]
    pub alarms: Vec<BackupAlarm>,
    /// Its key is being replaced, and that was not finished yet.
    #[serde(default)]
    pub key_is_replaced: bool,
    /// Files that are backed up there too.
    #[serde(default)]
    pub files: Vec<FilesStatus>,
}

/// A base backup, as listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedBackup {
    /// Its name.
    pub id: String,
    /// What it was compared with.
    pub parent: Option<String>,
    /// Who was copied.
    pub member: MemberId,
    /// When it began, ms since 1970.
    pub began_unix_ms: u64,
    /// When it was complete, ms since 1970.
    pub ended_unix_ms: u64,
    /// Its timeline.
    pub timeline: Timeline,
    /// Recovery begins here.
    pub start: Lsn,
    /// It must come as far as this.
    pub stop: Lsn,
    /// How far the WAL behind it goes without a gap.
    pub reach: Lsn,
    /// Bytes of the files.
    pub bytes: u64,
    /// Bytes that the parent does not have.
    pub new_bytes: u64,
    /// What those came to, bytes.
    pub stored_bytes: u64,
    /// How long it took, ms.
    pub took_ms: u64,
    /// Under a hold.
    pub held: bool,
    /// Of the new bytes, those in place of others of the parent.
    #[serde(default)]
    pub rewritten_bytes: u64,
    /// Of the new bytes, those that hardly pack: encrypted, or compressed already.
    #[serde(default)]
    pub noise_bytes: u64,
    /// Pages whose checksums were verified.
    #[serde(default)]
    pub checked_pages: u64,
    /// What is odd about it.
    #[serde(default)]
    pub alarms: Vec<String>,
    /// Somebody has looked into that.
    #[serde(default)]
    pub accepted: bool,
}

/// A time that can be restored to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// From here, ms since 1970.
    pub from_unix_ms: u64,
    /// To here, ms since 1970.
    pub to_unix_ms: u64,
    /// It goes on growing.
    pub open: bool,
}

/// What is in a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// Its name.
    pub repository: String,
    /// Where it is.
    pub place: String,
    /// By the time they began.
    pub backups: Vec<ListedBackup>,
    /// What can be restored to.
    pub windows: Vec<Window>,
    /// Bytes of all objects.
    pub stored_bytes: u64,
    /// Snapshots of files, by the time they began.
    #[serde(default)]
    pub files: Vec<ListedSnapshot>,
}
