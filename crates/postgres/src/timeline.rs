//! Timelines: which WAL came after which, and where two histories part. Pure.

use crate::{Error, Instance, Result};
use sempre_model::ids::{Lsn, Timeline};
use serde::{Deserialize, Serialize};
use std::{fs, path::Path};

/// A timeline and those it came from. Plain data: a primary's is handed to members that rejoin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The timeline.
    pub timeline: Timeline,
    /// Its ancestors, the oldest first, each with the position where the next one begins.
    pub ancestors: Vec<(Timeline, Lsn)>,
}

/// Whether a member's WAL is a part of the primary's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Divergence {
    /// It is: the member can stream on.
    None,
    /// It is not, from this position on.
    At {
        /// Where the two part.
        lsn: Lsn,
        /// What the member has beyond, bytes. It must go before the member can stream.
        bytes_discarded: u64,
    },
}

impl History {
    /// A timeline without ancestors.
    pub fn first() -> Self {
        Self { timeline: Timeline(1), ancestors: Vec::new() }
    }

    /// Reads the text of a `.history` file.
    pub fn parse(timeline: Timeline, text: &str) -> Result<Self> {
        let bad = |why: String| Error::Format {
            what: format!("the history of timeline {timeline}"),
            why,
        };
        let mut ancestors: Vec<(Timeline, Lsn)> = Vec::new();
        for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            let mut words = line.split_whitespace();
            let parent = words.next().and_then(|w| w.parse().ok()).map(Timeline);
            let lsn = words.next().and_then(|w| w.parse::<Lsn>().ok());
            let (Some(parent), Some(lsn)) = (parent, lsn) else {
                return Err(bad(format!("`{line}` is not `timeline position ...`")));
            };
            if parent >= timeline || ancestors.last().is_some_and(|(last, _)| *last >= parent) {
                return Err(bad(format!("timeline {parent} is out of order")));
            }
            ancestors.push((parent, lsn));
        }
        Ok(Self { timeline, ancestors })
    }

    /// Where a timeline of this history ends: the switch to the next one, or never.
    pub fn end_of(&self, timeline: Timeline) -> Option<Lsn> {
        if timeline == self.timeline {
            return Some(Lsn(u64::MAX));
        }
        self.ancestors.iter().find(|(t, _)| *t == timeline).map(|(_, end)| *end)
    }

    /// Each timeline with its first position, the newest first.
    pub(crate) fn begins(&self) -> Vec<(Timeline, Lsn)> {
        let starts = std::iter::once(Lsn(0)).chain(self.ancestors.iter().map(|(_, end)| *end));
        let names = self.ancestors.iter().map(|(t, _)| *t).chain([self.timeline]);
        let mut all: Vec<_> = names.zip(starts).collect();
        all.reverse();
        all
    }

    fn spans(&self, end: Lsn) -> Vec<(Timeline, Lsn)> {
        let mut spans = self.ancestors.clone();
        spans.push((self.timeline, end));
        spans
    }
}

/// Compares a member's WAL, which ends at `own_end` on `own`, with that of a primary on `theirs`.
pub fn divergence(own: &History, own_end: Lsn, theirs: &History) -> Divergence {
    let mut fork = Lsn(0);
    let mut shared = true;
    let (mine, others) = (own.spans(own_end), theirs.spans(Lsn(u64::MAX)));
    for (index, (timeline, end)) in mine.iter().enumerate() {
        match others.get(index) {
            Some((other, other_end)) if other == timeline => {
                fork = (*end).min(*other_end);
                shared = end == other_end || index + 1 == mine.len();
                if end != other_end {
                    break;
                }
            }
            _ => {
                shared = false;
                break;
            }
        }
    }
    if own_end <= fork || (shared && own_end == fork) {
        Divergence::None
    } else {
        Divergence::At { lsn: fork, bytes_discarded: own_end.bytes_since(fork) }
    }
}

/// The history file of a timeline within `pg_wal`.
pub(crate) fn history_file(timeline: Timeline) -> String {
    format!("{:08X}.history", timeline.0)
}

/// The history of a timeline from `pg_wal`. Timeline 1 has none of its own.
pub(crate) fn read_history(wal_dir: &Path, timeline: Timeline) -> Result<History> {
    if timeline.0 <= 1 {
        return Ok(History::first());
    }
    let file = wal_dir.join(history_file(timeline));
    let text = fs::read_to_string(&file).map_err(Error::io("read", &file))?;
    History::parse(timeline, &text)
}

/// What a reserved timeline's history file says. PostgreSQL skips comments, and a history without
/// ancestors is no child of any timeline in use, so nobody ever follows it.
const RESERVED: &str = "# Reserved by sempre: a newer primary took a later timeline.\n";

impl Instance {
    /// Makes the next promotion take timeline `next`, or a later one.
    ///
    /// PostgreSQL takes the first number after its own for which it has no history file. A
    /// promotion that nobody else heard of (its member died before it served) may have taken that
    /// number already, and two different timelines of one number cannot be told apart: standbys of
    /// one would stream from the other. The numbers in between get a history file without contents.
    pub fn reserve_timelines(&self, next: Timeline) -> Result<()> {
        let control = self.control_data()?;
        let own = control.timeline.max(control.min_recovery_timeline);
        for number in (own.0 + 1)..next.0 {
            let path = self.wal_dir().join(history_file(Timeline(number)));
            if !path.exists() {
                crate::files::write_atomically(&path, RESERVED)?;
            }
        }
        Ok(())
    }

    /// The history of a timeline, from the data directory's `pg_wal`.
    pub fn timeline_history(&self, timeline: Timeline) -> Result<History> {
        read_history(&self.wal_dir(), timeline)
    }

    /// Compares this member's own WAL, which ends at `own` (see [`Instance::end_of_wal`]), with
    /// that of a primary.
    pub fn divergence(&self, own: (Timeline, Lsn), theirs: &History) -> Result<Divergence> {
        Ok(divergence(&self.timeline_history(own.0)?, own.1, theirs))
    }

    /// Where its WAL is.
    pub fn wal_dir(&self) -> std::path::PathBuf {
        self.layout.data_dir.join("pg_wal")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(timeline: u32, ancestors: &[(u32, u64)]) -> History {
        History {
            timeline: Timeline(timeline),
            ancestors: ancestors.iter().map(|(t, l)| (Timeline(*t), Lsn(*l))).collect(),
        }
    }

    #[test]
    fn histories_are_read() {
        let text = "1\t0/3000158\tno recovery target specified\n\n2\t0/4000000\tbefore 2026\n";
        let read = History::parse(Timeline(3), text).unwrap();
        assert_eq!(read, history(3, &[(1, 0x300_0158), (2, 0x400_0000)]));
        assert_eq!(read.end_of(Timeline(2)), Some(Lsn(0x400_0000)));
        for bad in ["x", "1", "3 0/1", "2 0/1\n1 0/2"] {
            assert!(History::parse(Timeline(3), bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn divergence_is_where_two_histories_part() {
        let at = |lsn, end: u64| Divergence::At { lsn: Lsn(lsn), bytes_discarded: end - lsn };
        let cases = [
            // the primary's own timeline
            (history(1, &[]), 50, history(1, &[]), Divergence::None),
            // stopped before, at and after the switch
            (history(1, &[]), 90, history(2, &[(1, 100)]), Divergence::None),
            (history(1, &[]), 100, history(2, &[(1, 100)]), Divergence::None),
            (history(1, &[]), 108, history(2, &[(1, 100)]), at(100, 108)),
            // both promoted from timeline 1, at the same place and not
            (history(2, &[(1, 100)]), 150, history(3, &[(1, 100)]), at(100, 150)),
            (history(2, &[(1, 120)]), 150, history(3, &[(1, 100)]), at(100, 150)),
            (history(2, &[(1, 80)]), 150, history(3, &[(1, 100)]), at(80, 150)),
            // promoted, but wrote nothing that counts
            (history(2, &[(1, 100)]), 100, history(3, &[(1, 100)]), Divergence::None),
            // ahead by a timeline the other does not know
            (history(2, &[(1, 100)]), 150, history(1, &[]), at(100, 150)),
            // two switches behind
            (history(1, &[]), 100, history(3, &[(1, 100), (2, 200)]), Divergence::None),
            (history(2, &[(1, 100)]), 201, history(3, &[(1, 100), (2, 200)]), at(200, 201)),
        ];
        for (own, end, theirs, wanted) in cases {
            assert_eq!(divergence(&own, Lsn(end), &theirs), wanted, "{own:?} {end} {theirs:?}");
        }
    }
}
