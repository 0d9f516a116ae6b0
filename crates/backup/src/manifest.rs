//! What a backup holds: its description, and its files in the order of their paths, in segments that are
//! each an object. A segment names the packs it uses and can be read without any other.

use crate::{
    Error, Repository, Result, names,
    seal::{self, Compressor, Kind, Sealer},
};
use bytes::Bytes;
use sempre_model::{Lsn, MemberId, Timeline};
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, sync::Arc};

/// A segment is closed when it has so many blocks (about 50 bytes each) or entries.
const SEGMENT_BLOCKS: usize = 40_000;
const SEGMENT_ENTRIES: usize = 20_000;

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
    /// What those came to in the repository.
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

/// As stored. Numbered by their order: new ones go to the end.
#[derive(Serialize, Deserialize)]
enum StoredBlock {
    Zero,
    In { id: [u8; 32], pack: u32, offset: u64, bytes: u32 },
}

#[derive(Serialize, Deserialize)]
enum StoredWhat {
    Dir,
    Link(String),
    File { bytes: u64, stamp: Stamp, blocks: Vec<StoredBlock> },
}

#[derive(Serialize, Deserialize)]
struct StoredEntry {
    path: String,
    mode: u32,
    what: StoredWhat,
}

#[derive(Default, Serialize, Deserialize)]
struct StoredSegment {
    packs: Vec<PackRef>,
    entries: Vec<StoredEntry>,
}

/// Gathers entries into segments.
#[derive(Default)]
pub(crate) struct SegmentBuilder {
    segment: StoredSegment,
    known: HashMap<PackRef, u32>,
    blocks: usize,
}

impl SegmentBuilder {
    pub(crate) fn push(&mut self, entry: Entry) {
        let what = match entry.what {
            What::Dir => StoredWhat::Dir,
            What::Link(target) => StoredWhat::Link(target),
            What::File { bytes, stamp, blocks } => {
                self.blocks += blocks.len();
                let blocks = blocks.into_iter().map(|block| self.stored(block)).collect();
                StoredWhat::File { bytes, stamp, blocks }
            }
        };
        self.segment.entries.push(StoredEntry { path: entry.path, mode: entry.mode, what });
    }

    fn stored(&mut self, block: Block) -> StoredBlock {
        let Block::Stored { id, pack, offset, bytes } = block else { return StoredBlock::Zero };
        let pack = *self.known.entry(pack).or_insert_with_key(|pack| {
            self.segment.packs.push(pack.clone());
            u32::try_from(self.segment.packs.len() - 1).expect("a segment is small")
        });
        StoredBlock::In { id, pack, offset, bytes }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.blocks >= SEGMENT_BLOCKS || self.segment.entries.len() >= SEGMENT_ENTRIES
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.segment.entries.is_empty()
    }

    /// The object of this name.
    pub(crate) fn seal(&self, repository: &Repository, name: &str) -> Bytes {
        let content = postcard::to_stdvec(&self.segment).expect("it has only plain data");
        let mut sealer = Sealer::new(&repository.keys, Kind::Segment, name);
        sealer.push(&content, &mut Compressor::new(1));
        sealer.finish()
    }
}

/// What a segment holds.
#[derive(Clone, Debug)]
pub struct Segment {
    /// The packs it uses.
    pub packs: Vec<PackRef>,
    /// In the order of their paths.
    pub entries: Vec<Entry>,
}

impl Repository {
    /// Reads a segment of a backup.
    pub async fn segment(&self, backup: &str, number: u32) -> Result<Segment> {
        self.segment_at(&names::segment(backup, number)).await
    }

    /// Reads the segment of this name.
    pub(crate) async fn segment_at(&self, name: &str) -> Result<Segment> {
        let object = self.store.get(name).await?;
        let content = seal::open(&self.keys, Kind::Segment, name, &object)?;
        let stored: StoredSegment =
            postcard::from_bytes(&content).map_err(|e| Error::damaged(name, e))?;
        let packs = stored.packs;
        let block = |block| match block {
            StoredBlock::Zero => Ok(Block::Zero),
            StoredBlock::In { id, pack, offset, bytes } => {
                let pack = packs.get(pack as usize).cloned();
                let pack = pack.ok_or_else(|| Error::damaged(name, "it names no such pack"))?;
                Ok(Block::Stored { id, pack, offset, bytes })
            }
        };
        let entry = |entry: StoredEntry| {
            let what = match entry.what {
                StoredWhat::Dir => What::Dir,
                StoredWhat::Link(target) => What::Link(target),
                StoredWhat::File { bytes, stamp, blocks } => {
                    let blocks = blocks.into_iter().map(block).collect::<Result<_>>()?;
                    What::File { bytes, stamp, blocks }
                }
            };
            Ok(Entry { path: entry.path, mode: entry.mode, what })
        };
        let entries = stored.entries.into_iter().map(entry).collect::<Result<_>>()?;
        Ok(Segment { packs, entries })
    }

    /// The outcome of a backup's writer.
    pub(crate) async fn outcome(&self, backup: &str) -> Result<Outcome> {
        self.get(Kind::Backup, &names::backup(backup)).await
    }
}

/// Reads the sorted entries of a backup one after the other, for comparing.
pub(crate) struct Files {
    repository: Repository,
    backup: Backup,
    next_segment: u32,
    entries: std::vec::IntoIter<Entry>,
    ahead: Option<Entry>,
}

impl Files {
    pub(crate) fn of(repository: Repository, backup: Backup) -> Self {
        let entries = Vec::new().into_iter();
        Self { repository, backup, next_segment: 0, entries, ahead: None }
    }

    /// The entry of this path. Paths are asked for in their order.
    pub(crate) async fn find(&mut self, path: &str) -> Result<Option<Entry>> {
        loop {
            match &self.ahead {
                Some(entry) if entry.path.as_str() > path => return Ok(None),
                Some(entry) if entry.path == path => return Ok(self.ahead.take()),
                _ => {}
            }
            if let Some(entry) = self.entries.next() {
                self.ahead = Some(entry);
            } else if self.next_segment < self.backup.sorted_segments {
                let segment = self.repository.segment(&self.backup.id, self.next_segment).await?;
                self.entries = segment.entries.into_iter();
                self.next_segment += 1;
            } else {
                self.ahead = None;
                return Ok(None);
            }
        }
    }
}
