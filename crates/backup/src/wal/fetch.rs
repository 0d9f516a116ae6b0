//! What WAL there is, and reading it.

use super::names::{self, HISTORIES, OPEN_WAL, SegmentName, WAL};
use crate::{
    Error, Repository, Result,
    seal::{self, HEADER_BYTES, Kind, Opener},
};
use sempre_model::{Lsn, Timeline};
use std::collections::{BTreeMap, BTreeSet};

/// A piece of a segment that is not whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins.
    pub start: Lsn,
    /// What it is.
    pub bytes: Vec<u8>,
}

/// A segment, as a server reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// As long as a segment; behind `end` it is zero.
    pub content: Vec<u8>,
    /// The end of what is known.
    pub end: Lsn,
}

/// What WAL a repository has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WalList {
    /// Whole segments of each timeline: their numbers, and when they were stored, ms since 1970.
    pub whole: BTreeMap<Timeline, BTreeMap<u64, u64>>,
    /// Segments of which there are pieces.
    pub open: BTreeSet<SegmentName>,
    /// Timelines whose history is there.
    pub histories: BTreeSet<Timeline>,
}

impl Repository {
    /// Lists the WAL there is.
    pub async fn list_wal(&self) -> Result<WalList> {
        let mut list = WalList::default();
        for listed in self.store.list(WAL).await? {
            if let Some((timeline, number, _)) = names::parse_key(&listed.key, WAL) {
                let segments = list.whole.entry(timeline).or_default();
                segments.insert(number, listed.written_unix_ms);
            }
        }
        for listed in self.store.list(OPEN_WAL).await? {
            if let Some((timeline, number, _)) = names::parse_key(&listed.key, OPEN_WAL) {
                list.open.insert(SegmentName { timeline, number });
            }
        }
        for listed in self.store.list(HISTORIES).await? {
            list.histories.extend(names::parse_key(&listed.key, HISTORIES).map(|(t, ..)| t));
        }
        Ok(list)
    }

    /// How long segments are, bytes: as the newest whole one of this timeline is. None if there is
    /// no whole one.
    pub async fn segment_bytes(&self, list: &WalList, timeline: Timeline) -> Result<Option<u64>> {
        let newest = list.whole.get(&timeline).and_then(|whole| whole.keys().next_back());
        let Some(number) = newest else { return Ok(None) };
        let name = names::whole(SegmentName { timeline, number: *number });
        let object = self.store.get(&name).await?;
        Ok(Some(seal::open(&self.keys, Kind::Wal, &name, &object)?.len() as u64))
    }

    /// A segment: the whole, or as much as the pieces have from its beginning on. None if there is
    /// nothing of it.
    pub async fn fetch_segment(
        &self,
        segment: SegmentName,
        segment_bytes: u64,
    ) -> Result<Option<Fetched>> {
        let name = names::whole(segment);
        let start = segment.start(segment_bytes);
        match self.store.get(&name).await {
            Err(Error::Missing { .. }) => {}
            object => {
                let content = seal::open(&self.keys, Kind::Wal, &name, &object?)?;
                if content.len() as u64 != segment_bytes {
                    return Err(Error::damaged(&name, "it has not the length of a segment"));
                }
                let end = Lsn(start.0 + segment_bytes);
                return Ok(Some(Fetched { content, end }));
            }
        }
        let mut content = Vec::new();
        let mut pieces = Vec::new();
        for name in self.pieces_of(segment).await? {
            pieces.extend(self.read_piece(&name).await?);
        }
        // Of two that overlap the longer one counts; they are the same as far as both go, for
        // they are of the same timeline.
        pieces.sort_by_key(|piece| (piece.start, std::cmp::Reverse(piece.bytes.len())));
        for piece in pieces {
            let known = start.0 + content.len() as u64;
            let skip = usize::try_from(known.saturating_sub(piece.start.0)).unwrap_or(usize::MAX);
            if piece.start.0 <= known && skip < piece.bytes.len() {
                content.extend_from_slice(&piece.bytes[skip..]);
            }
        }
        if content.is_empty() {
            return Ok(None);
        }
        let end = Lsn(start.0 + content.len() as u64);
        content.resize(usize::try_from(segment_bytes).unwrap_or(0), 0);
        Ok(Some(Fetched { content, end }))
    }

    /// The text of a timeline's history; none if it is not there.
    pub async fn fetch_history(&self, timeline: Timeline) -> Result<Option<String>> {
        match self.get(Kind::History, &names::history(timeline)).await {
            Err(Error::Missing { .. }) => Ok(None),
            history => history.map(Some),
        }
    }

    /// The end of the WAL of a timeline, as far as the repository has it without a gap from
    /// `from` on.
    pub async fn wal_end(&self, timeline: Timeline, from: Lsn, segment_bytes: u64) -> Result<Lsn> {
        let list = self.list_wal().await?;
        let mut number = from.0 / segment_bytes;
        let whole = list.whole.get(&timeline);
        while whole.is_some_and(|whole| whole.contains_key(&number)) {
            number += 1;
        }
        let next = SegmentName { timeline, number };
        let end = match list.open.contains(&next) {
            true => self.fetch_segment(next, segment_bytes).await?.map(|fetched| fetched.end),
            false => None,
        };
        Ok(end.unwrap_or(next.start(segment_bytes)).max(from))
    }

    pub(super) async fn pieces_of(&self, segment: SegmentName) -> Result<Vec<String>> {
        let key = names::piece(segment, Lsn(0), 0);
        let folder = key.rfind('/').map_or("", |at| &key[..=at]);
        let mut names: Vec<String> =
            self.store.list(folder).await?.into_iter().map(|listed| listed.key).collect();
        // A store may keep what grows as parts below the name.
        for name in &mut names {
            let words: Vec<&str> = name.split('/').take(4).collect();
            *name = words.join("/");
        }
        names.dedup();
        Ok(names)
    }

    /// The frames of a piece. The last may have been cut short by the writer's death: it was never
    /// acknowledged.
    pub(super) async fn read_piece(&self, name: &str) -> Result<Vec<Piece>> {
        let object = match self.store.get_appended(name).await {
            Err(Error::Missing { .. }) => return Ok(Vec::new()),
            object => object?,
        };
        if object.len() < HEADER_BYTES {
            return Ok(Vec::new());
        }
        let opener = Opener::new(&self.keys, Kind::OpenWal, name, &object)?;
        let (mut at, mut pieces) = (HEADER_BYTES, Vec::new());
        while let Some((content, bytes)) = opener.open(at as u64, &object[at..])? {
            let Some((start, wal)) = content.split_first_chunk::<8>() else {
                return Err(Error::damaged(name, "a frame is too short"));
            };
            let start = Lsn(u64::from_le_bytes(*start));
            pieces.push(Piece { start, bytes: wal.to_vec() });
            at += bytes;
        }
        Ok(pieces)
    }
}
