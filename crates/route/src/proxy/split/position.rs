//! How far a standby must be, so that a session finds there what it has written. Pure.
//!
//! Positions of two timelines cannot be compared, so one counts in its generation only. After a
//! change of primary it is asked for again, there: whatever the session committed before is then
//! either behind the new position or lost.

use sempre_model::{Generation, Lsn};
use sempre_wire::pg::track::{Text, Verb};

/// What stands in front of the records of a page, and of a segment's first page, bytes.
const PAGE_HEADER: u64 = 24;
const SEGMENT_HEADER: u64 = 40;

/// Where the last record ends, if the next one is inserted at `insert`. Behind a page that is full,
/// or a segment that was switched, the two differ by a header, and a standby that has replayed
/// everything shows the first until something else is written.
pub(super) fn end_of_records(insert: Lsn, page: u64, segment: u64) -> Lsn {
    let at = |size: u64| insert.0.checked_rem(size);
    match (at(segment), at(page)) {
        (Some(SEGMENT_HEADER), Some(_)) => Lsn(insert.0 - SEGMENT_HEADER),
        (Some(in_segment), Some(PAGE_HEADER)) if in_segment != PAGE_HEADER => {
            Lsn(insert.0 - PAGE_HEADER)
        }
        _ => insert,
    }
}

/// The position behind the session's last commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Position {
    /// It has run nothing that may write.
    #[default]
    Nothing,
    /// It has, and the primary was not asked since.
    Unknown,
    /// The primary of this generation was asked.
    Known(Generation, Lsn),
}

impl Position {
    /// The session runs this on the primary. Whether a SELECT writes, no text shows.
    pub fn runs(&mut self, text: Text) {
        let harmless = matches!(
            text.verb,
            Verb::Empty
                | Verb::Begin
                | Verb::Commit
                | Verb::Rollback
                | Verb::RollbackTo
                | Verb::Savepoint
                | Verb::Session
        );
        if !harmless || text.statements > 1 {
            *self = Self::Unknown;
        }
    }

    /// What a standby of this generation must have replayed. Err: the primary has to be asked.
    pub fn needed(self, generation: Generation) -> Result<Option<Lsn>, ()> {
        match self {
            Self::Nothing => Ok(None),
            Self::Known(known, lsn) if known == generation => Ok(Some(lsn)),
            Self::Known(..) | Self::Unknown => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_page_holds_no_record() {
        let end = |insert| end_of_records(Lsn(insert), 8192, 16 << 20).0;
        assert_eq!(end(0x300_0028), 0x300_0000);
        assert_eq!(end(0x300_2018), 0x300_2000);
        // A record ends there.
        for insert in [0x300_0018, 0x300_2028, 0x300_2020, 0x300_0030, 0x300_2000] {
            assert_eq!(end(insert), insert);
        }
        assert_eq!(end_of_records(Lsn(0x300_0028), 0, 0), Lsn(0x300_0028));
    }

    #[test]
    fn whatever_may_write_makes_it_unknown_and_so_does_another_generation() {
        let (one, two) = (Generation(1), Generation(2));
        let mut position = Position::Nothing;
        for harmless in ["begin", "set x = 1", "rollback", "savepoint a", "", "commit"] {
            position.runs(Text::of(harmless.as_bytes(), true));
            assert_eq!(position.needed(one), Ok(None), "{harmless}");
        }
        for writes in ["select f()", "insert into t values (1)", "set x = 1; select 1", "call p()"]
        {
            let mut position = Position::Known(one, Lsn(5));
            assert_eq!(position.needed(one), Ok(Some(Lsn(5))));
            assert_eq!(position.needed(two), Err(()));
            position.runs(Text::of(writes.as_bytes(), true));
            assert_eq!(position.needed(one), Err(()), "{writes}");
        }
        position.runs(Text::of(b"commit prepared 'x'", true));
        assert_eq!(position, Position::Unknown);
    }
}
