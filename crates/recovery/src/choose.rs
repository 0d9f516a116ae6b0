//! Which backup and which WAL lead to a moment. Pure, but for reading what there is.

use crate::{Error, Result};
use sempre_backup::{Backup, Repository, SegmentName, WalList};
use sempre_model::{Lsn, Timeline};
use sempre_postgres::History;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a restore is to come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// All there is.
    Latest,
    /// The end of the base backup: the first moment it can bring back.
    Backup,
    /// A moment, ms since 1970: what was committed after it is left out.
    Time(u64),
    /// A position.
    Lsn(Lsn),
    /// A restore point made with `pg_create_restore_point`.
    Name(String),
    /// A transaction, with it.
    Transaction(u64),
    /// A transaction, without it.
    BeforeTransaction(u64),
}

/// What WAL a repository has, put in relation.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    pub(crate) segment_bytes: u64,
    pub(crate) list: WalList,
    /// The ends of segments that are not whole.
    pub(crate) ends: BTreeMap<SegmentName, Lsn>,
    pub(crate) histories: BTreeMap<Timeline, History>,
}

impl Coverage {
    /// Reads what there is.
    pub async fn read(repository: &Repository, segment_bytes: u64) -> Result<Self> {
        let list = repository.list_wal().await?;
        let mut ends = BTreeMap::new();
        for name in &list.open {
            if let Some(fetched) = repository.fetch_segment(*name, segment_bytes).await? {
                ends.insert(*name, fetched.end);
            }
        }
        let mut histories = BTreeMap::from([(Timeline(1), History::first())]);
        for timeline in &list.histories {
            if let Some(text) = repository.fetch_history(*timeline).await? {
                histories.insert(*timeline, History::parse(*timeline, &text)?);
            }
        }
        Ok(Self { segment_bytes, list, ends, histories })
    }

    /// The last position of this timeline that is kept, however it got there.
    pub(crate) fn last(&self, timeline: Timeline) -> Option<Lsn> {
        let whole = self.list.whole.get(&timeline).and_then(|w| w.last_key_value());
        let whole = whole.map(|(number, _)| Lsn((number + 1) * self.segment_bytes));
        let open = self.ends.iter().filter(|(name, _)| name.timeline == timeline);
        whole.into_iter().chain(open.map(|(_, end)| *end)).max()
    }

    /// The end of what is kept of a server with this history, and its timeline there.
    pub(crate) fn end_along(&self, history: &History) -> Option<(Timeline, Lsn)> {
        let ancestors = history.ancestors.iter().rev().map(|(timeline, _)| *timeline);
        std::iter::once(history.timeline).chain(ancestors).find_map(|timeline| {
            let last = self.last(timeline)?;
            // What it has beyond the fork belongs to nobody that goes on.
            Some((timeline, last.min(history.end_of(timeline)?)))
        })
    }

    /// How far the WAL goes without a gap from `from` on, following this history.
    pub fn reach(&self, from: Lsn, history: &History) -> Lsn {
        let mut at = from;
        loop {
            let number = at.0 / self.segment_bytes;
            // The newest timeline of the history that has begun there holds the segment; an older
            // one may have its beginning.
            let end = history
                .ancestors
                .iter()
                .map(|(timeline, _)| *timeline)
                .chain([history.timeline])
                .filter_map(|timeline| {
                    let name = SegmentName { timeline, number };
                    let whole = self.list.whole.get(&timeline);
                    let end = match whole.is_some_and(|whole| whole.contains_key(&number)) {
                        true => Lsn((number + 1) * self.segment_bytes),
                        false => *self.ends.get(&name)?,
                    };
                    Some(end.min(history.end_of(timeline)?))
                })
                .max();
            match end {
                Some(end) if end > at => at = end,
                _ => return at,
            }
        }
    }

    /// How far the WAL behind a backup goes without a gap.
    pub fn reach_of(&self, backup: &Backup) -> Lsn {
        self.reach(backup.start, &self.newest_from(backup.timeline, backup.start))
    }

    /// What is missing behind a backup, if WAL of later is there.
    pub(crate) fn gap_behind(&self, backup: &Backup) -> Option<(Lsn, Lsn)> {
        let history = self.newest_from(backup.timeline, backup.start);
        let reach = self.reach(backup.start, &history);
        let (_, end) = self.end_along(&history)?;
        (reach < end).then_some((reach, end))
    }

    /// When WAL at a position was stored, ms since 1970; none while its segment grows.
    fn stored_at(&self, lsn: Lsn, history: &History) -> Option<u64> {
        let number = lsn.0.saturating_sub(1) / self.segment_bytes;
        let ancestors = history.ancestors.iter().map(|(timeline, _)| *timeline);
        let timelines = ancestors.chain([history.timeline]);
        timelines.filter_map(|t| self.list.whole.get(&t)?.get(&number).copied()).max()
    }

    /// The history of the newest timeline there is that came from `timeline` at or after `from`.
    pub fn newest_from(&self, timeline: Timeline, from: Lsn) -> History {
        let newest = self.histories.values().rev().find(|history| {
            history.timeline == timeline
                || history.ancestors.iter().any(|(t, end)| *t == timeline && *end >= from)
        });
        newest.cloned().unwrap_or(History { timeline, ancestors: Vec::new() })
    }
}

/// A time that can be restored to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// From here, ms since 1970.
    pub from_unix_ms: u64,
    /// To here, ms since 1970.
    pub to_unix_ms: u64,
    /// It goes on growing.
    pub open: bool,
}

/// What can be restored to, with the gaps between. A window ends where WAL is missing, as exactly
/// as the time is known at which its last segment was stored.
pub fn windows(backups: &[Backup], coverage: &Coverage, now_unix_ms: u64) -> Vec<Window> {
    let mut windows: Vec<Window> = Vec::new();
    let newest = backups.iter().map(|backup| coverage.reach_of(backup)).max();
    let mut backups: Vec<&Backup> = backups.iter().collect();
    backups.sort_by_key(|backup| backup.ended_unix_ms);
    for backup in backups {
        let history = coverage.newest_from(backup.timeline, backup.start);
        let reach = coverage.reach(backup.start, &history);
        if reach < backup.stop {
            continue;
        }
        let open = newest == Some(reach);
        let to_unix_ms = match open {
            true => now_unix_ms,
            false => coverage.stored_at(reach, &history).unwrap_or(backup.ended_unix_ms),
        };
        let from_unix_ms = backup.ended_unix_ms;
        let window = Window { from_unix_ms, to_unix_ms: to_unix_ms.max(from_unix_ms), open };
        match windows.last_mut() {
            Some(last) if last.to_unix_ms >= window.from_unix_ms => {
                last.to_unix_ms = last.to_unix_ms.max(window.to_unix_ms);
                last.open |= window.open;
            }
            _ => windows.push(window),
        }
    }
    windows
}

/// Chooses the backup that is nearest before the goal, and whose WAL leads there; says why if
/// there is none. `backups` are in the order in which they were made.
pub fn choose<'a>(backups: &'a [Backup], coverage: &Coverage, goal: &Goal) -> Result<&'a Backup> {
    let fits = |backup: &&Backup| match goal {
        Goal::Time(at) => backup.ended_unix_ms <= *at,
        Goal::Lsn(at) => backup.stop <= *at,
        _ => true,
    };
    let Some(backup) = backups.iter().rev().find(fits) else {
        return Err(Error::Unreachable(match backups.first() {
            None => "there is no backup yet: make one with `sempre backup run`".to_owned(),
            Some(first) => format!(
                "that is before the first backup: what can be restored begins at {} ({})",
                show_time(first.ended_unix_ms),
                first.stop
            ),
        }));
    };
    let history = coverage.newest_from(backup.timeline, backup.start);
    let reach = coverage.reach(backup.start, &history);
    let needed = match goal {
        Goal::Lsn(at) => backup.stop.max(*at),
        _ => backup.stop,
    };
    if reach < needed {
        return Err(Error::Unreachable(format!(
            "the WAL behind backup {} goes up to {reach} only, {needed} is needed: it has a gap, or was not archived",
            backup.id
        )));
    }
    Ok(backup)
}

pub(crate) fn show_time(unix_ms: u64) -> String {
    let at = i128::from(unix_ms) * 1_000_000;
    let at = time::OffsetDateTime::from_unix_timestamp_nanos(at);
    let format =
        time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z");
    at.ok().and_then(|at| at.format(format).ok()).unwrap_or_else(|| format!("{unix_ms} ms"))
}

#[cfg(test)]
mod tests;
