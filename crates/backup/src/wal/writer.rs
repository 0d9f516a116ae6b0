//! Writes WAL as it comes.

use super::names::{self, SegmentName};
use crate::{
    Error, Repository, Result,
    seal::{self, Compressor, Kind, Sealer},
    store::Append,
};
use bytes::Bytes;
use sempre_model::{Lsn, Timeline};

/// zstd level of what is stored for good.
const LEVEL: i32 = 1;

/// Writes the WAL of one timeline, from the beginning of a segment on.
pub struct WalWriter {
    repository: Repository,
    timeline: Timeline,
    segment_bytes: u64,
    /// The segment that is being filled.
    segment: SegmentName,
    /// What it has so far.
    content: Vec<u8>,
    /// How much of that is durable.
    flushed: usize,
    piece: Option<OpenPiece>,
    /// Tells our pieces from those of others.
    writer: u32,
    compressor: Compressor,
}

struct OpenPiece {
    sealer: Sealer,
    object: Box<dyn Append>,
}

impl WalWriter {
    /// Writes from `start` on, which is the first position of a segment.
    pub fn new(
        repository: Repository,
        timeline: Timeline,
        start: Lsn,
        segment_bytes: u64,
    ) -> Result<Self> {
        if !start.0.is_multiple_of(segment_bytes) {
            return Err(Error::Refused(format!("{start} is not where a WAL segment begins")));
        }
        Ok(Self {
            repository,
            timeline,
            segment_bytes,
            segment: SegmentName::at(timeline, start, segment_bytes),
            content: Vec::new(),
            flushed: 0,
            piece: None,
            writer: rand::random(),
            compressor: Compressor::new(LEVEL),
        })
    }

    /// The end of what was given.
    pub fn end(&self) -> Lsn {
        Lsn(self.segment.start(self.segment_bytes).0 + self.content.len() as u64)
    }

    /// The end of what is durable.
    pub fn flushed(&self) -> Lsn {
        Lsn(self.segment.start(self.segment_bytes).0 + self.flushed as u64)
    }

    /// Takes what follows; stores each segment that it fills.
    pub async fn write(&mut self, start: Lsn, mut bytes: &[u8]) -> Result<()> {
        if start != self.end() {
            return Err(Error::Refused(format!(
                "the WAL goes on at {start}, but {} was expected",
                self.end()
            )));
        }
        while !bytes.is_empty() {
            let room =
                usize::try_from(self.segment_bytes).unwrap_or(usize::MAX) - self.content.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.content.extend_from_slice(now);
            bytes = later;
            if self.content.len() as u64 == self.segment_bytes {
                self.close().await?;
            }
        }
        Ok(())
    }

    /// Makes all that was given durable. After an error the writer is of no more use.
    pub async fn flush(&mut self) -> Result<Lsn> {
        if self.flushed < self.content.len() {
            if self.piece.is_none() {
                self.piece = Some(self.begin_piece().await?);
            }
            let Some(piece) = &mut self.piece else { unreachable!("it was just made") };
            let mut frame = Vec::with_capacity(8 + self.content.len() - self.flushed);
            let start = self.segment.start(self.segment_bytes).0 + self.flushed as u64;
            frame.extend_from_slice(&start.to_le_bytes());
            frame.extend_from_slice(&self.content[self.flushed..]);
            piece.sealer.push(&frame, &mut self.compressor);
            piece.object.append(piece.sealer.take()).await?;
            self.flushed = self.content.len();
        }
        Ok(self.flushed())
    }

    async fn begin_piece(&self) -> Result<OpenPiece> {
        let name = names::piece(self.segment, self.flushed(), self.writer);
        let sealer = Sealer::new(&self.repository.keys, Kind::OpenWal, &name);
        Ok(OpenPiece { sealer, object: self.repository.store.append_new(&name).await? })
    }

    /// The segment is whole.
    async fn close(&mut self) -> Result<()> {
        let content = Bytes::from(std::mem::take(&mut self.content));
        self.repository.put_segment(self.segment, &content).await?;
        self.piece = None;
        // What the pieces held is in the whole; not so those of a writer that had something else.
        self.repository.drop_pieces(self.segment, &content).await?;
        self.segment = SegmentName { number: self.segment.number + 1, timeline: self.timeline };
        self.flushed = 0;
        self.content.reserve(usize::try_from(self.segment_bytes).unwrap_or(0));
        Ok(())
    }
}

impl Repository {
    /// Stores a whole segment, durably. Fine if it is there already, with the same content.
    async fn put_segment(&self, segment: SegmentName, content: &[u8]) -> Result<()> {
        let name = names::whole(segment);
        let object = seal::seal(&self.keys, Kind::Wal, &name, content, LEVEL);
        match self.store.put_new(&name, object).await {
            Err(Error::Exists { .. }) => {
                let there = self.store.get(&name).await?;
                if seal::open(&self.keys, Kind::Wal, &name, &there)? != content {
                    return Err(Error::Refused(format!(
                        "the repository {} has another WAL segment {} of timeline {} than this server: two clusters have the same data and different WAL. Give each a repository of its own",
                        self.store.name(),
                        segment.number,
                        segment.timeline
                    )));
                }
            }
            put => put?,
        }
        self.store.barrier().await
    }

    async fn drop_pieces(&self, segment: SegmentName, content: &[u8]) -> Result<()> {
        let begin = content.len() as u64 * segment.number;
        for name in self.pieces_of(segment).await? {
            let pieces = self.read_piece(&name).await?;
            let is_in_whole = pieces.iter().all(|piece| {
                let from =
                    usize::try_from(piece.start.0.saturating_sub(begin)).unwrap_or(usize::MAX);
                content.get(from..).is_some_and(|rest| rest.starts_with(&piece.bytes))
            });
            if is_in_whole {
                match self.store.delete_appended(&name).await {
                    // It stays for a while beside the whole.
                    Err(Error::TooEarly { .. }) => {}
                    deleted => deleted?,
                }
            }
        }
        Ok(())
    }

    /// Stores a timeline's history. Fine if it is there already.
    pub async fn put_history(&self, timeline: Timeline, text: &str) -> Result<()> {
        let name = names::history(timeline);
        match self.put(Kind::History, &name, &text).await {
            Err(Error::Exists { .. }) => {
                let there: String = self.get(Kind::History, &name).await?;
                if there.trim() != text.trim() {
                    return Err(Error::Refused(format!(
                        "the repository {} has another history of timeline {timeline} than this server: two clusters went on from the same data. Give each a repository of its own",
                        self.store.name()
                    )));
                }
            }
            put => put?,
        }
        self.store.barrier().await
    }
}
