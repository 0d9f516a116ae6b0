//! Saves the WAL that a rewind or a fresh copy would discard.

use crate::{Error, Instance, Result, files, wal::segment_name};
use sempre_model::ids::{Lsn, Timeline};
use std::{fs, path::PathBuf};

/// Free space that must be left after saving, bytes: the database needs some to go on.
const SPARE_BYTES: u64 = 256 << 20;

impl Instance {
    /// Copies the WAL that ends at `end` (see [`Instance::end_of_wal`]) from `from` (the fork)
    /// on, with the history files and a note on what it is, into
    /// `salvage_dir/<time>-<timeline>-<position>/`. Returns the folder.
    pub async fn salvage(&self, end: (Timeline, Lsn), from: Lsn) -> Result<PathBuf> {
        let (timeline, to) = end;
        let this = self.clone();
        let task = tokio::task::spawn_blocking(move || this.salvage_blocking(timeline, from, to));
        task.await.map_err(|e| Error::Format { what: "WAL".into(), why: e.to_string() })?
    }

    fn salvage_blocking(&self, timeline: Timeline, from: Lsn, to: Lsn) -> Result<PathBuf> {
        let control = self.control_data()?;
        let bytes = control.wal_segment_bytes;
        let wal_dir = self.wal_dir();
        files::private_dir(&self.layout.salvage_dir)?;

        let last = to.0.saturating_sub(1).max(from.0) / bytes;
        // The fork may lie in a segment that only an older timeline has in full: take every
        // timeline's file of each segment.
        let mut segments = Vec::new();
        let mut histories = Vec::new();
        for entry in fs::read_dir(&wal_dir).map_err(Error::io("read", &wal_dir))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".history") {
                histories.push(name);
            } else if is_segment(&name, timeline, from.0 / bytes, last, bytes) {
                segments.push(name);
            }
        }
        segments.sort();
        let needed = segments.len() as u64 * bytes + SPARE_BYTES;
        let free = files::free_bytes(&self.layout.salvage_dir)?;
        if free < needed {
            return Err(Error::DataDir {
                doing: "save the diverged WAL of",
                data_dir: self.layout.data_dir.clone(),
                why: format!(
                    "{} has {free} bytes free, and {needed} are needed; make room",
                    self.layout.salvage_dir.display()
                ),
            });
        }
        let now = time::OffsetDateTime::now_utc();
        let stamp = format!(
            "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
            now.year(),
            u8::from(now.month()),
            now.day(),
            now.hour(),
            now.minute(),
            now.second()
        );
        let name = format!("{stamp}-{}-{:X}_{:08X}", timeline, from.0 >> 32, from.0 as u32);
        let target = self.layout.salvage_dir.join(name);
        let work = files::beside(&target, ".unfinished");
        files::remove_tree(&work)?;
        files::private_dir(&work)?;
        for name in segments.iter().chain(&histories) {
            let copy = work.join(name);
            fs::copy(wal_dir.join(name), &copy)
                .and_then(|_| fs::File::open(&copy)?.sync_all())
                .map_err(Error::io("save the WAL as", &copy))?;
        }
        let note = format!(
            "WAL of member {} that the present primary does not have, saved before it was discarded.\n\
             timeline: {timeline}\nfrom: {from} (where it parts from the primary's)\nto: {to}\nbytes: {}\n\
             segments: {}\nsystem identifier: {}\nPostgreSQL: {}\n\n\
             Look at it with: pg_waldump --path=. --timeline={timeline} --start={from}\n",
            self.me,
            to.bytes_since(from),
            segments.join(" "),
            control.system_identifier,
            self.installation.major,
        );
        files::write_atomically(&work.join("README.txt"), &note)?;
        fs::rename(&work, &target).map_err(Error::io("complete", &target))?;
        files::sync_dir(&self.layout.salvage_dir)?;
        Ok(target)
    }
}

/// Is this a WAL file with something of the range in it?
fn is_segment(name: &str, timeline: Timeline, first: u64, last: u64, bytes: u64) -> bool {
    let (Some(tli), Some(high), Some(low)) = (name.get(0..8), name.get(8..16), name.get(16..24))
    else {
        return false;
    };
    let hex = |text: &str| u32::from_str_radix(text, 16).ok().map(u64::from);
    let (Some(tli), Some(high), Some(low)) = (hex(tli), hex(high), hex(low)) else {
        return false;
    };
    let segment = high * (0x1_0000_0000 / bytes) + low;
    let tli = Timeline(u32::try_from(tli).unwrap_or(u32::MAX));
    name == segment_name(tli, segment, bytes)
        && tli <= timeline
        && (first..=last).contains(&segment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_segments_of_the_range_are_taken() {
        let takes = |name: &str| is_segment(name, Timeline(2), 3, 5, 16 << 20);
        assert!(takes("000000020000000000000003"));
        assert!(takes("000000010000000000000005"));
        for other in [
            "000000020000000000000002",
            "000000020000000000000006",
            "000000030000000000000004",
            "000000020000000000000004.partial",
            "00000002.history",
            "archive_status",
        ] {
            assert!(!takes(other), "{other}");
        }
    }
}
