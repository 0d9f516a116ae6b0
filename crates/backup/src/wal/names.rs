//! Names of WAL, PostgreSQL's and the repository's.

use sempre_model::{Lsn, Timeline};

pub(crate) const WAL: &str = "wal/";
pub(crate) const OPEN_WAL: &str = "open-wal/";
pub(crate) const HISTORIES: &str = "history/";

/// A segment of WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// Its timeline.
    pub timeline: Timeline,
    /// Its number: its first position, divided by the size of a segment.
    pub number: u64,
}

/// The file name PostgreSQL gives a segment.
pub fn segment_name(name: SegmentName, segment_bytes: u64) -> String {
    let per_id = 0x1_0000_0000 / segment_bytes;
    format!("{:08X}{:08X}{:08X}", name.timeline.0, name.number / per_id, name.number % per_id)
}

impl SegmentName {
    /// The segment that a position is in.
    pub fn at(timeline: Timeline, lsn: Lsn, segment_bytes: u64) -> Self {
        Self { timeline, number: lsn.0 / segment_bytes }
    }

    /// Its first position.
    pub fn start(self, segment_bytes: u64) -> Lsn {
        Lsn(self.number * segment_bytes)
    }

    /// Reads PostgreSQL's file name.
    pub fn parse(file: &str, segment_bytes: u64) -> Option<Self> {
        if file.len() != 24 || !file.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let part = |at: usize| u64::from_str_radix(&file[at..at + 8], 16).ok();
        let per_id = 0x1_0000_0000 / segment_bytes;
        let timeline = Timeline(u32::try_from(part(0)?).ok()?);
        (part(16)? < per_id).then_some(())?;
        Some(Self { timeline, number: part(8)? * per_id + part(16)? })
    }
}

/// The object of a whole segment.
pub(crate) fn whole(name: SegmentName) -> String {
    format!("{WAL}{:08X}/{:016X}", name.timeline.0, name.number)
}

/// The object of a piece: `writer` tells those of two writers apart.
pub(crate) fn piece(name: SegmentName, start: Lsn, writer: u32) -> String {
    format!("{OPEN_WAL}{:08X}/{:016X}/{:016X}-{writer:08x}", name.timeline.0, name.number, start.0)
}

/// The object of a timeline's history.
pub(crate) fn history(timeline: Timeline) -> String {
    format!("{HISTORIES}{:08X}", timeline.0)
}

/// Reads the numbers in a key behind `prefix`: timeline, segment, start.
pub(crate) fn parse_key(key: &str, prefix: &str) -> Option<(Timeline, u64, Option<Lsn>)> {
    let mut words = key.strip_prefix(prefix)?.split('/');
    let timeline = Timeline(u32::from_str_radix(words.next()?, 16).ok()?);
    let number = words.next().map_or(Some(0), |word| u64::from_str_radix(word, 16).ok())?;
    let start = words.next().and_then(|word| word.split('-').next());
    let start = start.and_then(|word| u64::from_str_radix(word, 16).ok()).map(Lsn);
    Some((timeline, number, start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        let name = SegmentName::at(Timeline(3), "12/ABFFFFFF".parse().unwrap(), 16 << 20);
        let file = segment_name(name, 16 << 20);
        assert_eq!(file, "0000000300000012000000AB");
        assert_eq!(SegmentName::parse(&file, 16 << 20), Some(name));
        assert_eq!(name.start(16 << 20), "12/AB000000".parse().unwrap());
        for bad in ["", "0000000300000012000001AB", "00000003.history", "x000000300000012000000AB"]
        {
            assert_eq!(SegmentName::parse(bad, 16 << 20), None, "{bad}");
        }
        let key = piece(name, Lsn(5), 7);
        assert_eq!(parse_key(&key, OPEN_WAL), Some((Timeline(3), name.number, Some(Lsn(5)))));
        assert_eq!(parse_key(&history(Timeline(9)), HISTORIES), Some((Timeline(9), 0, None)));
    }
}
