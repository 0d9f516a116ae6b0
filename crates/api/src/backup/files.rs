//! What operators ask about files, and what they are told.

use sempre_model::{
    MemberId,
    backup::{BackupEnded, BackupProgress, FileSet, FilesOrder},
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Something asked about files. In JSON it is a [`super::BackupRequest`] whose `do` is `files`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "files", rename_all = "snake_case", deny_unknown_fields)]
pub enum FilesRequest {
    /// Back folders up from now on.
    Add {
        /// A name for them.
        name: String,
        /// Where to; without: the only repository.
        #[serde(default)]
        repository: Option<String>,
        /// On this member.
        member: MemberId,
        /// Folders and files there.
        paths: Vec<PathBuf>,
        /// What is left out: patterns as in a `.gitignore` file.
        #[serde(default)]
        excludes: Vec<String>,
    },
    /// Back them up no longer. Their snapshots stay.
    Remove {
        /// Their name.
        name: String,
    },
    /// Back them up now.
    Run {
        /// Their name.
        name: String,
        /// Read everything, even what looks unchanged.
        #[serde(default)]
        full: bool,
    },
}

/// Folders that are backed up, as far as the members know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesStatus {
    /// Their name.
    pub name: String,
    /// What they are.
    #[serde(flatten)]
    pub set: FileSet,
    /// A backup that is being made.
    pub order: Option<FilesOrder>,
    /// How far that is.
    pub progress: Option<BackupProgress>,
    /// What came of the last one.
    pub ended: Option<BackupEnded>,
    /// When the newest that worked was made, ms since 1970.
    pub newest_unix_ms: Option<u64>,
}

/// A snapshot of files, as listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedSnapshot {
    /// Its name, as `restic` has it.
    pub id: String,
    /// Of which files; none: others made it, with `restic`.
    pub files: Option<String>,
    /// On which member.
    pub member: String,
    /// When it began, ms since 1970.
    pub at_unix_ms: u64,
    /// What it has.
    pub paths: Vec<String>,
    /// Files and links in it.
    pub entries: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// What was new came to, bytes.
    pub stored_bytes: u64,
    /// How long it took, ms.
    pub took_ms: u64,
}
