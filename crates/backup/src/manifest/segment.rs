//! Segments of the list of files: each an object that can be read without any other.

use super::{Backup, Block, Entry, PackRef, Stamp, What};
use crate::{
    Error, Repository, Result, names,
    seal::{Compressor, HEADER_BYTES, Kind, Opener, Sealer},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::HashMap;

/// A segment is closed when it has so many blocks (about 50 bytes each) or entries.
const SEGMENT_BLOCKS: usize = 40_000;
const SEGMENT_ENTRIES: usize = 20_000;
/// Bytes of a segment in which its list of packs is nearly always.
const PACKS_READ: u64 = 64 << 10;

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

/// In two frames, so that what a segment uses is known without reading all of it.
#[derive(Default)]
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

    /// The packs that are used so far.
    pub(crate) fn packs(&self) -> &[PackRef] {
        &self.segment.packs
    }

    pub(crate) fn is_full(&self) -> bool {
        self.blocks >= SEGMENT_BLOCKS || self.segment.entries.len() >= SEGMENT_ENTRIES
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.segment.entries.is_empty()
    }

    /// The object of this name.
    pub(crate) fn seal(&self, repository: &Repository, name: &str) -> Bytes {
        let packs = postcard::to_stdvec(&self.segment.packs).expect("it has only plain data");
        let entries = postcard::to_stdvec(&self.segment.entries).expect("it has only plain data");
        let mut sealer = Sealer::new(&repository.keys, Kind::Segment, name);
        let mut compressor = Compressor::new(1);
        sealer.push(&packs, &mut compressor);
        sealer.push(&entries, &mut compressor);
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
        let opener = Opener::new(&self.keys, Kind::Segment, name, &object)?;
        let (packs, at) = first_frame(&opener, name, &object)?
            .ok_or_else(|| Error::damaged(name, "it is cut short"))?;
        let stored: Vec<StoredEntry> = match opener.open(at as u64, &object[at..])? {
            Some((content, bytes)) if at + bytes == object.len() => decoded(name, &content)?,
            Some(_) => return Err(Error::damaged(name, "something follows its end")),
            None => return Err(Error::damaged(name, "it is cut short")),
        };
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
        let entries = stored.into_iter().map(entry).collect::<Result<_>>()?;
        Ok(Segment { packs, entries })
    }

    /// The packs that a segment uses, reading no more of it than that takes.
    pub(crate) async fn packs_of(&self, name: &str) -> Result<Vec<PackRef>> {
        let begin = self.store.get_range(name, 0..PACKS_READ).await?;
        let opener = Opener::new(&self.keys, Kind::Segment, name, &begin)?;
        match first_frame(&opener, name, &begin)? {
            Some((packs, _)) => Ok(packs),
            None => Ok(self.segment_at(name).await?.packs),
        }
    }
}

/// The packs, and where the entries begin. None if they are not there as a whole.
fn first_frame(
    opener: &Opener,
    name: &str,
    object: &[u8],
) -> Result<Option<(Vec<PackRef>, usize)>> {
    let Some((content, bytes)) = opener.open(HEADER_BYTES as u64, &object[HEADER_BYTES..])? else {
        return Ok(None);
    };
    Ok(Some((decoded(name, &content)?, HEADER_BYTES + bytes)))
}

fn decoded<T: DeserializeOwned>(name: &str, content: &[u8]) -> Result<T> {
    postcard::from_bytes(content).map_err(|e| Error::damaged(name, e))
}

/// Reads the sorted entries of a backup one after the other, for comparing.
pub(crate) struct Files {
    repository: Repository,
    backup: String,
    segments: std::vec::IntoIter<u32>,
    entries: std::vec::IntoIter<Entry>,
    ahead: Option<Entry>,
}

impl Files {
    pub(crate) fn of(repository: Repository, backup: &Backup) -> Self {
        Self::listed(repository, &backup.id, (0..backup.sorted_segments).collect())
    }

    /// Of these segments of a backup, or of an attempt at one.
    pub(crate) fn listed(repository: Repository, backup: &str, segments: Vec<u32>) -> Self {
        let (segments, entries) = (segments.into_iter(), Vec::new().into_iter());
        Self { repository, backup: backup.to_owned(), segments, entries, ahead: None }
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
            } else if let Some(number) = self.segments.next() {
                let segment = self.repository.segment(&self.backup, number).await?;
                self.entries = segment.entries.into_iter();
            } else {
                self.ahead = None;
                return Ok(None);
            }
        }
    }
}
