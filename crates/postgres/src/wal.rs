//! Reads the write-ahead log itself, as far as is needed to say exactly where it ends.
//!
//! The end is what a promotion would come to: the end of the last whole record whose checksum
//! and back link are right, read the way PostgreSQL's recovery reads (of two files of the same
//! segment the one of the newest timeline counts). Page and record headers are the same from
//! PostgreSQL 14 to 18.

use crate::{
    ControlData, DataDir, Error, Instance, Result,
    timeline::{History, read_history},
};
use sempre_model::ids::{Lsn, Timeline};
use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// Bytes of a page header; of the first page of a segment.
const SHORT_HEADER: u64 = 24;
const LONG_HEADER: u64 = 40;
/// Page flags: it begins with the rest of a record; it has the long header; it replaces a page
/// whose record was never completed.
const FIRST_IS_CONTINUATION: u16 = 1;
const LONG: u16 = 2;
const FIRST_IS_OVERWRITE: u16 = 8;
/// Bytes of a record header, and of its part before the checksum.
const RECORD_HEADER: usize = 24;
const RECORD_CRC_AT: usize = 20;
/// The largest record PostgreSQL writes is a little smaller.
const RECORD_MAX: u64 = 1 << 30;
/// Resource manager and kind of the record that ends a segment early.
const RMGR_XLOG: u8 = 0;
const XLOG_SWITCH: u8 = 0x40;

/// The file name of a WAL segment.
pub(crate) fn segment_name(timeline: Timeline, segment: u64, segment_bytes: u64) -> String {
    let per_id = 0x1_0000_0000 / segment_bytes;
    format!("{:08X}{:08X}{:08X}", timeline.0, segment / per_id, segment % per_id)
}

/// Where the WAL ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WalEnd {
    /// The timeline of the last record.
    pub(crate) timeline: Timeline,
    /// The end of the last record.
    pub(crate) lsn: Lsn,
}

/// Walks over the records in a `pg_wal` folder.
pub(crate) struct WalReader {
    dir: PathBuf,
    segment_bytes: u64,
    block_bytes: u64,
    /// The newest first, with its first position.
    timelines: Vec<(Timeline, Lsn)>,
    open: Option<(u64, Timeline, File)>,
    page: Vec<u8>,
    page_at: u64,
    magic: Option<u16>,
}

/// A page that can be read from.
struct Page {
    flags: u16,
    header: u64,
    remaining: u64,
}

enum Next {
    /// A whole record, and where it ends.
    Record { start: u64, end: u64 },
    /// A record that was given up; go on at this page.
    Abandoned { page: u64 },
    /// Nothing more.
    End,
}

impl WalReader {
    /// Reads `dir`, on these timelines.
    pub(crate) fn new(dir: &Path, control: &ControlData, history: &History) -> Self {
        Self {
            dir: dir.to_owned(),
            segment_bytes: control.wal_segment_bytes,
            block_bytes: control.wal_block_bytes,
            timelines: history.begins(),
            open: None,
            page: vec![0; usize::try_from(control.wal_block_bytes).unwrap_or(0)],
            page_at: u64::MAX,
            magic: None,
        }
    }

    /// Goes from `start`, where a record begins, to the end.
    pub(crate) fn end_from(mut self, start: Lsn) -> WalEnd {
        let mut at = start.0;
        let mut end = WalEnd { timeline: self.timeline_of(at.saturating_sub(1)), lsn: start };
        let mut previous = None;
        loop {
            match self.next(at, previous) {
                Next::Record { start, end: next } => {
                    end = WalEnd { timeline: self.timeline_of(start), lsn: Lsn(next) };
                    previous = Some(start);
                    at = next;
                }
                Next::Abandoned { page } => at = page,
                Next::End => return end,
            }
        }
    }

    /// The timeline a position belongs to, given the files there are.
    fn timeline_of(&mut self, at: u64) -> Timeline {
        let newest = self.segment(at / self.segment_bytes).map(|(_, timeline, _)| *timeline);
        let newest = newest.unwrap_or(Timeline(u32::MAX));
        let fits = |(t, begin): &&(Timeline, Lsn)| *t <= newest && begin.0 <= at;
        self.timelines.iter().find(fits).map_or(Timeline(1), |(t, _)| *t)
    }

    /// The file of a segment on the newest timeline that has one.
    fn segment(&mut self, segment: u64) -> Option<&(u64, Timeline, File)> {
        if self.open.as_ref().is_none_or(|(open, _, _)| *open != segment) {
            self.open = None;
            for (timeline, begin) in &self.timelines {
                if segment < begin.0 / self.segment_bytes {
                    continue;
                }
                let name = segment_name(*timeline, segment, self.segment_bytes);
                if let Ok(file) = File::open(self.dir.join(name)) {
                    self.open = Some((segment, *timeline, file));
                    break;
                }
            }
        }
        self.open.as_ref()
    }

    /// Loads the page that begins at `at`, if it is what it should be.
    fn load(&mut self, at: u64) -> Option<Page> {
        if self.page_at != at {
            self.page_at = u64::MAX;
            let offset = at % self.segment_bytes;
            let mut page = std::mem::take(&mut self.page);
            let segment = at / self.segment_bytes;
            let read = self
                .segment(segment)
                .is_some_and(|(_, _, file)| file.read_exact_at(&mut page, offset).is_ok());
            self.page = page;
            if !read {
                return None;
            }
        }
        let page = &self.page;
        let magic = u16::from_le_bytes(page[0..2].try_into().ok()?);
        let flags = u16::from_le_bytes(page[2..4].try_into().ok()?);
        let address = u64::from_le_bytes(page[8..16].try_into().ok()?);
        let remaining = u32::from_le_bytes(page[16..20].try_into().ok()?);
        let first = at.is_multiple_of(self.segment_bytes);
        let right = magic >> 8 == 0xD1
            && self.magic.is_none_or(|m| m == magic)
            && address == at
            && (flags & LONG != 0) == first;
        if !right {
            return None;
        }
        self.magic = Some(magic);
        self.page_at = at;
        let header = if first { LONG_HEADER } else { SHORT_HEADER };
        Some(Page { flags, header, remaining: u64::from(remaining) })
    }

    /// The record that begins at `at` (or after the page header there).
    fn next(&mut self, at: u64, previous: Option<u64>) -> Next {
        let mut page_start = at - at % self.block_bytes;
        let Some(page) = self.load(page_start) else { return Next::End };
        let mut start = at;
        if at == page_start {
            if page.flags & FIRST_IS_CONTINUATION != 0 {
                return Next::End;
            }
            start += page.header;
        }
        let mut offset = (start - page_start) as usize;
        if offset + 4 > self.page.len() {
            return Next::End;
        }
        let length = u64::from(u32::from_le_bytes([
            self.page[offset],
            self.page[offset + 1],
            self.page[offset + 2],
            self.page[offset + 3],
        ]));
        if length < RECORD_HEADER as u64 || length > RECORD_MAX {
            return Next::End;
        }
        let mut header = [0u8; RECORD_HEADER];
        let mut crc = 0u32;
        let mut taken = 0u64;
        loop {
            let here = (length - taken).min((self.page.len() - offset) as u64) as usize;
            let bytes = &self.page[offset..offset + here];
            let of_header = RECORD_HEADER.saturating_sub(taken as usize).min(here);
            let from = taken as usize;
            header[from.min(RECORD_HEADER)..][..of_header].copy_from_slice(&bytes[..of_header]);
            crc = crc32c::crc32c_append(crc, &bytes[of_header..]);
            taken += here as u64;
            if taken == length {
                offset += here;
                break;
            }
            page_start += self.block_bytes;
            let Some(page) = self.load(page_start) else { return Next::End };
            if page.flags & FIRST_IS_OVERWRITE != 0 {
                return Next::Abandoned { page: page_start };
            }
            if page.flags & FIRST_IS_CONTINUATION == 0 || page.remaining != length - taken {
                return Next::End;
            }
            offset = page.header as usize;
        }
        crc = crc32c::crc32c_append(crc, &header[..RECORD_CRC_AT]);
        let field = |from: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| header[from + i]));
        let back = u64::from(field(8)) | u64::from(field(12)) << 32;
        if field(RECORD_CRC_AT) != crc || previous.is_some_and(|p| p != back) || back >= start {
            return Next::End;
        }
        let mut end = page_start + (offset as u64).next_multiple_of(8);
        if header[17] == RMGR_XLOG && header[16] & 0xF0 == XLOG_SWITCH {
            end = end.next_multiple_of(self.segment_bytes);
        }
        Next::Record { start, end }
    }
}

/// The history recovery would follow: that of the control file's timeline, and for a standby of
/// the newest one after it that is known and does not part from it before `from`.
///
/// A standby's control file learns of a switch with its next restartpoint only. Until then its
/// replayed position lies beyond the fork: then its own file of the newer timeline says that it
/// went that way. One that replayed the older timeline beyond the fork has no such file, as
/// PostgreSQL refuses it every byte of the newer one.
pub(crate) fn followed_history(
    wal_dir: &Path,
    control: &ControlData,
    standby: bool,
    from: Lsn,
) -> Result<History> {
    let known = control.timeline.max(control.min_recovery_timeline);
    let mut history = read_history(wal_dir, known)?;
    if standby {
        let mut newer = Timeline(known.0 + 1);
        // PostgreSQL looks for newer ones the same way: one number after the other.
        while let Ok(next) = read_history(wal_dir, newer) {
            let follows = |end: Lsn| end >= from || has_page(wal_dir, control, newer, from);
            if next.end_of(history.timeline).is_some_and(follows) {
                history = next;
            }
            newer = Timeline(newer.0 + 1);
        }
    }
    Ok(history)
}

/// Does the file of this timeline hold the page that ends at, or reaches beyond, `end`? Files
/// that wait for their turn have the right name, but other pages in them.
pub(crate) fn has_page(
    wal_dir: &Path,
    control: &ControlData,
    timeline: Timeline,
    end: Lsn,
) -> bool {
    let last = end.0.saturating_sub(1);
    let (bytes, block) = (control.wal_segment_bytes, control.wal_block_bytes);
    let file = wal_dir.join(segment_name(timeline, last / bytes, bytes));
    let page = last % bytes / block * block;
    let mut address = [0u8; 8];
    File::open(file).and_then(|file| file.read_exact_at(&mut address, page + 8)).is_ok()
        && u64::from_le_bytes(address) == last - last % block
}

impl Instance {
    /// Where the WAL of a stopped data directory ends: the timeline and end of its last record.
    ///
    /// Reads from the latest checkpoint on; after an orderly stop that is one record, after a
    /// crash at most what a checkpoint interval holds.
    pub async fn end_of_wal(&self) -> Result<(Timeline, Lsn)> {
        let control = match self.inspect() {
            DataDir::Present(control) => control,
            other => {
                return Err(Error::DataDir {
                    doing: "read the WAL of",
                    data_dir: self.layout.data_dir.clone(),
                    why: format!("there is no usable cluster in it ({other:?})"),
                });
            }
        };
        let standby = control.state.is_standby() || self.is_standby_prepared();
        let end = self.scan(*control, standby, None).await?;
        Ok((end.timeline, end.lsn))
    }

    /// Where the WAL ends, from `from` (where a record begins) or the latest checkpoint on.
    pub(crate) async fn scan(
        &self,
        control: ControlData,
        standby: bool,
        from: Option<Lsn>,
    ) -> Result<WalEnd> {
        let dir = self.wal_dir();
        let at = from.unwrap_or(control.checkpoint_lsn);
        let task = tokio::task::spawn_blocking(move || {
            let history = followed_history(&dir, &control, standby, at)?;
            Ok::<_, Error>(WalReader::new(&dir, &control, &history).end_from(at))
        });
        let end: WalEnd = task.await.map_err(|e| Error::Format {
            what: "the write-ahead log".into(),
            why: e.to_string(),
        })??;
        if from.is_none() && end.lsn == at {
            return Err(Error::DataDir {
                doing: "read the WAL of",
                data_dir: self.layout.data_dir.clone(),
                why: format!(
                    "the latest checkpoint record at {at} is missing or damaged; make a fresh copy (sempre reinit)"
                ),
            });
        }
        Ok(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_named_as_postgresql_names_them() {
        let bytes = 16 << 20;
        assert_eq!(segment_name(Timeline(1), 1, bytes), "000000010000000000000001");
        assert_eq!(segment_name(Timeline(0x1F), 0x1FF, bytes), "0000001F00000001000000FF");
    }

    /// A control file that has not heard of any switch.
    fn old_control() -> ControlData {
        ControlData {
            system_identifier: 1,
            state: crate::ControlState::InArchiveRecovery,
            timeline: Timeline(1),
            checkpoint_lsn: Lsn(0x100_0028),
            redo_lsn: Lsn(0x100_0028),
            min_recovery_lsn: Lsn(0x100_0100),
            min_recovery_timeline: Timeline(1),
            data_checksums: true,
            page_bytes: 8192,
            segment_pages: 131_072,
            wal_log_hints: true,
            wal_segment_bytes: 16 << 20,
            wal_block_bytes: 8192,
            floors: Default::default(),
        }
    }

    #[test]
    fn a_switch_that_the_control_file_does_not_know_is_seen_in_the_wal() {
        let folder = tempfile::tempdir().unwrap();
        let control = old_control();
        let followed = |from: u64| {
            followed_history(folder.path(), &control, true, Lsn(from)).unwrap().timeline
        };
        let fork = 0x200_4C28u64;
        std::fs::write(folder.path().join("00000002.history"), "1\t0/2004C28\tx\n").unwrap();
        // It is known that there is a newer timeline, and so far both are one.
        assert_eq!(followed(fork), Timeline(2));
        // It has replayed beyond the fork, on the older one.
        assert_eq!(followed(fork + 0x38), Timeline(1));
        // On the newer one, first with a file that still has an older one's pages.
        let segment = |timeline| folder.path().join(segment_name(Timeline(timeline), 2, 16 << 20));
        let mut bytes = vec![0u8; 16 << 20];
        std::fs::write(segment(2), &bytes).unwrap();
        assert_eq!(followed(fork + 0x38), Timeline(1));
        let page = 0x4000;
        bytes[page + 8..page + 16].copy_from_slice(&0x200_4000u64.to_le_bytes());
        std::fs::write(segment(2), &bytes).unwrap();
        assert_eq!(followed(fork + 0x38), Timeline(2));
        // And onto a third, of which it has no file yet, then one.
        std::fs::write(
            folder.path().join("00000003.history"),
            "1\t0/2004C28\tx\n2\t0/2004D00\tx\n",
        )
        .unwrap();
        assert_eq!(followed(0x200_4D00), Timeline(3));
        assert_eq!(followed(0x200_4D38), Timeline(2));
        std::fs::write(segment(3), &bytes).unwrap();
        assert_eq!(followed(0x200_4D38), Timeline(3));
    }
}
