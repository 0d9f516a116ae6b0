//! Which backups are kept, and why: pure. Every backup is whole by itself, so that forgetting one never
//! harms another.
//!
//! Periods are of UTC, and only those count that have a backup, so that nothing goes merely because time
//! passes while no backups are made. Times are when a backup ended: the first moment it can bring back. Which
//! backup is newer, timelines and positions in the WAL tell: after a clock that jumped, times do not.

use crate::{Backup, Error, Repository, Result, alarm};
use sempre_model::Lsn;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use time::OffsetDateTime;

/// How long backups are kept: each rule adds to what is kept. A policy without any rule keeps all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// The newest so many.
    pub last: u32,
    /// The newest of each of the last so many hours with a backup.
    pub hourly: u32,
    /// Likewise of days.
    pub daily: u32,
    /// Likewise of weeks (from Monday).
    pub weekly: u32,
    /// Likewise of months.
    pub monthly: u32,
    /// Likewise of years.
    pub yearly: u32,
    /// Whatever it takes to restore to any moment of this long, ms.
    pub window_ms: u64,
}

/// Why a backup is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It is under a hold.
    Held,
    /// It is the newest: one is always kept.
    Newest,
    /// Of the last ones.
    Last,
    /// The newest of its hour.
    Hourly,
    /// The newest of its day.
    Daily,
    /// The newest of its week.
    Weekly,
    /// The newest of its month.
    Monthly,
    /// The newest of its year.
    Yearly,
    /// It ended within the window.
    Window,
    /// The last before the window: the first moments of the window are restored from it.
    BeforeWindow,
    /// There is no rule.
    NoRule,
    /// Its alarm is the first that nobody has accepted.
    Alarm,
    /// It is the last one before an alarm that nobody has accepted.
    BeforeAlarm,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Reason::Held => "held",
            Reason::Newest => "the newest",
            Reason::Last => "of the last ones",
            Reason::Hourly => "of its hour",
            Reason::Daily => "of its day",
            Reason::Weekly => "of its week",
            Reason::Monthly => "of its month",
            Reason::Yearly => "of its year",
            Reason::Window => "in the window",
            Reason::BeforeWindow => "the window begins from it",
            Reason::NoRule => "no rule says otherwise",
            Reason::Alarm => "nobody has accepted its alarm",
            Reason::BeforeAlarm => "the last without an alarm",
        })
    }
}

/// What is to become of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Which.
    pub id: String,
    /// When it ended, ms since 1970.
    pub ended_unix_ms: u64,
    /// Why it is kept. Empty: it is to be forgotten.
    pub reasons: Vec<Reason>,
}

impl Verdict {
    /// Is it kept?
    pub fn is_kept(&self) -> bool {
        !self.reasons.is_empty()
    }
}

type Period = (i32, u32);
type PeriodOf = fn(OffsetDateTime) -> Period;

/// A time that no calendar has is taken for the last one that it has.
const LAST_SECOND: i64 = 253_402_300_799;

fn at(unix_ms: u64) -> OffsetDateTime {
    let seconds = i64::try_from(unix_ms / 1000).unwrap_or(LAST_SECOND).min(LAST_SECOND);
    OffsetDateTime::from_unix_timestamp(seconds).expect("years up to 9999 are known")
}

impl Retention {
    fn periods(&self) -> [(Reason, u32, PeriodOf); 5] {
        let hour =
            |at: OffsetDateTime| (at.year(), u32::from(at.ordinal()) * 24 + at.hour() as u32);
        let week = |at: OffsetDateTime| {
            let (year, week, _) = at.to_iso_week_date();
            (year, u32::from(week))
        };
        [
            (Reason::Hourly, self.hourly, hour),
            (Reason::Daily, self.daily, |at| (at.year(), u32::from(at.ordinal()))),
            (Reason::Weekly, self.weekly, week),
            (Reason::Monthly, self.monthly, |at| (at.year(), at.month() as u32)),
            (Reason::Yearly, self.yearly, |at| (at.year(), 0)),
        ]
    }

    /// What is to become of each backup; oldest first, whatever the order they come in.
    pub fn judge(
        &self,
        backups: &[Backup],
        held: &BTreeSet<String>,
        now_unix_ms: u64,
    ) -> Vec<Verdict> {
        let mut sorted: Vec<&Backup> = backups.iter().collect();
        sorted.sort_unstable_by_key(|b| (b.timeline, b.stop, b.ended_unix_ms, b.id.as_str()));
        let sorted = sorted.iter().map(|b| (b.ended_unix_ms, b.id.as_str())).collect();
        self.judge_sorted(sorted, held, now_unix_ms)
    }

    /// Likewise of anything with a moment (ms since 1970) and a name.
    pub fn judge_moments(
        &self,
        mut sorted: Vec<(u64, &str)>,
        held: &BTreeSet<String>,
        now_unix_ms: u64,
    ) -> Vec<Verdict> {
        sorted.sort_unstable();
        self.judge_sorted(sorted, held, now_unix_ms)
    }

    /// The newest is the last one.
    fn judge_sorted(
        &self,
        sorted: Vec<(u64, &str)>,
        held: &BTreeSet<String>,
        now_unix_ms: u64,
    ) -> Vec<Verdict> {
        let mut reasons: BTreeMap<&str, BTreeSet<Reason>> = BTreeMap::new();
        let mut keep = |id, reason| {
            reasons.entry(id).or_default().insert(reason);
        };
        for (_, id) in sorted.iter().filter(|(_, id)| held.contains(*id)) {
            keep(id, Reason::Held);
        }
        if let Some((_, newest)) = sorted.last() {
            keep(newest, Reason::Newest);
        }
        if *self == Self::default() {
            sorted.iter().for_each(|(_, id)| keep(id, Reason::NoRule));
        }
        for (_, id) in sorted.iter().rev().take(self.last as usize) {
            keep(id, Reason::Last);
        }
        for (reason, count, period) in self.periods() {
            // Later ones replace earlier ones of the same period.
            let newest: BTreeMap<Period, &str> =
                sorted.iter().map(|(ended, id)| (period(at(*ended)), *id)).collect();
            newest.values().rev().take(count as usize).for_each(|id| keep(id, reason));
        }
        if self.window_ms > 0 {
            let begin = now_unix_ms.saturating_sub(self.window_ms);
            let (inside, before): (Vec<_>, Vec<_>) =
                sorted.iter().partition(|(ended, _)| *ended > begin);
            inside.iter().for_each(|(_, id)| keep(id, Reason::Window));
            if let Some((_, id)) = before.last() {
                keep(id, Reason::BeforeWindow);
            }
        }
        let verdict = |(ended_unix_ms, id): (u64, &str)| {
            let reasons = reasons.get(id).into_iter().flatten().copied().collect();
            Verdict { id: id.to_owned(), ended_unix_ms, reasons }
        };
        sorted.into_iter().map(verdict).collect()
    }
}

/// Where the oldest WAL begins that is still needed, of all timelines: by the backups that are kept, and by
/// writers that are at work (where they started, as far as that is known). None: it is not known, or there is
/// no backup yet, and all WAL stays.
///
/// Positions only: a timeline that branched off earlier keeps more than it needs, never less.
pub fn oldest_needed_wal(kept: &[Backup], writers: &[Option<Lsn>]) -> Option<Lsn> {
    if kept.is_empty() {
        return None;
    }
    let starts = kept.iter().map(|backup| Some(backup.start));
    // None is less than any position, and wins.
    starts.chain(writers.iter().copied()).min().flatten()
}

impl Repository {
    /// What this policy says to each backup. One that cannot be read is not judged: it stays until
    /// somebody forgets it by name.
    pub async fn plan_retention(
        &self,
        policy: &Retention,
        now_unix_ms: u64,
    ) -> Result<Vec<Verdict>> {
        let backups = self.catalog().await?.backups;
        let mut plan = policy.judge(&backups, &self.held().await?, now_unix_ms);
        alarm::keep(&mut plan, &backups, &self.accepted().await?);
        Ok(plan)
    }

    /// Forgets what the plan does not keep; returns which. What is held since is left alone.
    pub async fn apply_retention(&self, plan: &[Verdict]) -> Result<Vec<String>> {
        let mut forgotten = Vec::new();
        for verdict in plan.iter().filter(|verdict| !verdict.is_kept()) {
            match self.forget(&verdict.id).await {
                Ok(()) => forgotten.push(verdict.id.clone()),
                Err(Error::Refused(why)) => tracing::info!("{why}"),
                // Somebody else forgot it.
                Err(Error::NoBackup { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(forgotten)
    }
}

#[cfg(test)]
pub(crate) mod tests;
