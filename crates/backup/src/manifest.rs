//! What a backup holds: its description, and its files in the order of their paths, in segments that are
//! each an object. A segment names the packs it uses and can be read without any other.

mod segment;

pub use segment::Segment;
pub(crate) use segment::{Files, SegmentBuilder};

use crate::{Repository, Result, names, seal::Kind};
use sempre_model::{Lsn, MemberId, Timeline};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A backup, as published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// Its name: when it began, and some random digits.
    pub id: String,
    /// The backup it was compared with.
    pub parent: Option<String>,
    /// Who was copied.
    pub member: MemberId,
    /// Was it a standby?
    pub from_standby: bool,
    /// The server's version, such as 150018.
    pub version_num: u32,
    /// When it began, ms since 1970.
    pub began_unix_ms: u64,
    /// When it was complete: the first moment it can bring back, ms since 1970.
    pub ended_unix_ms: u64,
    /// The timeline it began on.
    pub timeline: Timeline,
    /// Recovery begins here.
    pub start: Lsn,
    /// Recovery must come as far as this.
    pub stop: Lsn,
    /// Bytes of a WAL segment.
    pub wal_segment_bytes: u64,
    /// `backup_label`, as the server gave it.
    pub label: String,
    /// Tablespaces: object id, and the folder on the member that was copied.
    pub tablespaces: Vec<(String, String)>,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// How many segments hold the files, in the order of their paths.
    pub sorted_segments: u32,
    /// How many more hold what is restored last.
    pub late_segments: u32,
    /// In numbers.
    pub stats: Stats,
    /// What is odd about it, in words.
    #[serde(default)]
    pub alarms: Vec<String>,
}

/// A backup in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes read from the disk: files that had not changed were not.
    pub read_bytes: u64,
    /// Bytes of blocks that the parent does not have.
    pub new_bytes: u64,
    /// Of those, in blocks at whose place the parent has others.
    #[serde(default)]
    pub rewritten_bytes: u64,
    /// Of the new bytes, those in blocks that hardly pack: encrypted, or compressed already.
    #[serde(default)]
    pub noise_bytes: u64,
    /// Of these, those at whose place the parent has blocks that pack well.
    #[serde(default)]
    pub turned_bytes: u64,
    /// Of the new bytes, those that a dead attempt had stored already.
    #[serde(default)]
    pub adopted_bytes: u64,
    /// Pages whose checksums were verified.
    #[serde(default)]
    pub checked_pages: u64,
    /// Pages among them that are wrong.
    #[serde(default)]
    pub wrong_pages: u64,
    /// What the new bytes came to in the repository.
    pub stored_bytes: u64,
    /// How long it took, ms.
    pub took_ms: u64,
}

/// What became of a writer. Whoever writes it first decides: the writer when it is done, or the
/// collection of garbage when nothing was heard of the writer for long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is whole.
    Published(Box<Backup>),
    /// It was given up, at this time, ms since 1970.
    Revoked(u64),
    /// It is dead, and another attempt goes on with what it stored: this one's.
    Adopted(String),
}

/// A pack: the backup that wrote it, and its number there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PackRef {
    /// Whose.
    pub backup: Arc<str>,
    /// Which.
    pub number: u32,
}

impl PackRef {
    pub(crate) fn name(&self) -> String {
        names::pack(&self.backup, self.number)
    }
}

/// A block of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    /// Nothing but zeros.
    Zero,
    /// In a pack.
    Stored {
        /// Its id.
        id: [u8; 32],
        /// The pack.
        pack: PackRef,
        /// From the pack's beginning.
        offset: u64,
        /// In the pack.
        bytes: u32,
    },
}

/// What tells whether a file has changed, on one member. (A file that is written gets another
/// `ctime`, which nobody can set.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Inode number.
    pub inode: u64,
    /// Last change of the content, ns since 1970.
    pub mtime_ns: i64,
    /// Last change of the content or the inode, ns since 1970.
    pub ctime_ns: i64,
}

/// What something in a data directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A folder.
    Dir,
    /// A symbolic link.
    Link(String),
    /// A file.
    File {
        /// Bytes.
        bytes: u64,
        /// Whether it changed.
        stamp: Stamp,
        /// What is in it.
        blocks: Vec<Block>,
    },
}

/// Something in a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Below the data directory.
    pub path: String,
    /// Permissions.
    pub mode: u32,
    /// What it is.
    pub what: What,
}

impl Repository {
    /// The outcome of a backup's writer.
    pub(crate) async fn outcome(&self, backup: &str) -> Result<Outcome> {
        self.get(Kind::Backup, &names::backup(backup)).await
    }
}
