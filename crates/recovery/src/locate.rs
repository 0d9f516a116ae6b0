//! Where in the archived WAL a restore point is, or the end of a transaction: `pg_waldump` reads it, the newest
//! segment first, so that the newest backup before it can be chosen.

use crate::{
    Error, Goal, Result,
    choose::{Coverage, show_time},
    prove::Work,
};
use sempre_backup::{Backup, Repository, SegmentName, segment_name};
use sempre_model::{Lsn, Timeline};
use sempre_postgres::Installation;
use std::{
    fs,
    path::{Path, PathBuf},
};
use tokio::process::Command;

/// A record that begins at the end of a segment may reach so far into the next one.
const RECORD_MAX_BYTES: u64 = 1 << 20;

/// Finds it. `beside` is a folder that is about to be made; what is needed is kept beside it meanwhile.
pub(crate) async fn locate(
    repository: &Repository,
    installation: &Installation,
    beside: &Path,
    coverage: &Coverage,
    backups: &[Backup],
    goal: &Goal,
) -> Result<Lsn> {
    let Some(oldest) = backups.first() else { return Ok(Lsn(0)) };
    if let Some(parent) = beside.parent() {
        fs::create_dir_all(parent).map_err(Error::io("make", parent))?;
    }
    let work = Work::make(beside)?;
    let program = installation.program("pg_waldump");
    let segment_bytes = coverage.segment_bytes;
    let search = Search { repository, program, dir: &work.0, segment_bytes, goal };
    let history = coverage.newest_from(oldest.timeline, oldest.start);
    let mut newest_end = None;
    let timelines = history.ancestors.iter().map(|(timeline, _)| *timeline);
    let timelines: Vec<Timeline> = timelines.chain([history.timeline]).collect();
    for (index, timeline) in timelines.iter().enumerate().rev() {
        let begin = index.checked_sub(1).and_then(|before| history.end_of(timelines[before]));
        let begin = begin.unwrap_or_default().max(oldest.start);
        let Some(last) = coverage.last(*timeline) else { continue };
        let end = history.end_of(*timeline).map_or(last, |end| end.min(last));
        newest_end = newest_end.or(Some(end));
        if let Some(found) = search.timeline(*timeline, begin, end).await? {
            return Ok(found);
        }
    }
    let what = match goal {
        Goal::Name(name) => format!("the restore point `{name}`"),
        Goal::Transaction(id) | Goal::BeforeTransaction(id) => {
            format!("the end of transaction {id}")
        }
        other => format!("{other:?}"),
    };
    Err(Error::Unreachable(format!(
        "{what} is nowhere in the WAL that is kept, from {} ({}) to {}",
        oldest.start,
        show_time(oldest.began_unix_ms),
        newest_end.unwrap_or_default()
    )))
}

struct Search<'a> {
    repository: &'a Repository,
    program: PathBuf,
    dir: &'a Path,
    segment_bytes: u64,
    goal: &'a Goal,
}

impl Search<'_> {
    /// The last place between two positions of a timeline.
    async fn timeline(&self, timeline: Timeline, begin: Lsn, end: Lsn) -> Result<Option<Lsn>> {
        if end <= begin {
            return Ok(None);
        }
        let (first, last) = (begin.0 / self.segment_bytes, (end.0 - 1) / self.segment_bytes);
        let mut next: Option<PathBuf> = None;
        for number in (first..=last).rev() {
            let name = SegmentName { timeline, number };
            let fetched = self.repository.fetch_segment(name, self.segment_bytes).await?;
            let path = self.dir.join(segment_name(name, self.segment_bytes));
            let after = next.take();
            if let Some(fetched) = fetched {
                fs::write(&path, &fetched.content).map_err(Error::io("write", &path))?;
                let found = self.segment(name, after.is_some()).await?;
                if let Some(found) = found.filter(|at| (begin..end).contains(at)) {
                    return Ok(Some(found));
                }
                next = Some(path);
            }
            if let Some(after) = after {
                fs::remove_file(&after).map_err(Error::io("remove", &after))?;
            }
        }
        if let Some(left) = next {
            fs::remove_file(&left).map_err(Error::io("remove", &left))?;
        }
        Ok(None)
    }

    /// The last place in a segment, whose last record may end in the next one.
    async fn segment(&self, name: SegmentName, with_next: bool) -> Result<Option<Lsn>> {
        let start = name.start(self.segment_bytes);
        let beyond = if with_next { RECORD_MAX_BYTES.min(self.segment_bytes) } else { 0 };
        let end = Lsn(start.0 + self.segment_bytes + beyond);
        let kind = if matches!(self.goal, Goal::Name(_)) { "XLOG" } else { "Transaction" };
        let mut command = Command::new(&self.program);
        command.arg("--path").arg(self.dir).arg(format!("--timeline={}", name.timeline));
        command.arg(format!("--start={start}")).arg(format!("--end={end}"));
        command.arg(format!("--rmgr={kind}")).kill_on_drop(true);
        let output = command.output().await.map_err(Error::io("run", &self.program))?;
        // It complains at the end of WAL that is still being written; what it has read counts.
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().filter_map(|line| found(line, self.goal)).max())
    }
}

/// The position of the record that this line of `pg_waldump` shows, if it is what is looked for.
fn found(line: &str, goal: &Goal) -> Option<Lsn> {
    let (head, what) = line.split_once("desc: ")?;
    let field = |name: &str| Some(head.split_once(name)?.1.split(',').next()?.trim());
    let (word, rest) = what.split_once(' ').unwrap_or((what, ""));
    let fits = match goal {
        Goal::Name(name) => word == "RESTORE_POINT" && rest.trim_end() == name,
        Goal::Transaction(id) | Goal::BeforeTransaction(id) => {
            // As the server takes it: without the epoch.
            let id = (*id as u32).to_string();
            match word {
                "COMMIT" | "ABORT" => field("tx:")? == id,
                "COMMIT_PREPARED" | "ABORT_PREPARED" => rest.split(':').next()?.trim() == id,
                _ => false,
            }
        }
        _ => false,
    };
    fits.then(|| field("lsn:")?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_apart() {
        let line = |tx: u32, desc: &str| {
            format!(
                "rmgr: Transaction len (rec/tot):     34/    34, tx:        {tx}, lsn: 0/01528B98, prev 0/01528B50, desc: {desc}"
            )
        };
        let at = Some(Lsn(0x0152_8B98));
        for (text, goal, want) in [
            (line(735, "COMMIT 2026-01-31 03:00:00.1 UTC"), Goal::Transaction(735), at),
            (line(735, "ABORT 2026-01-31 03:00:00.1 UTC"), Goal::BeforeTransaction(735), at),
            (line(735, "COMMIT 2026-01-31"), Goal::Transaction((1 << 32) + 735), at),
            (line(0, "COMMIT_PREPARED 735: 2026-01-31"), Goal::Transaction(735), at),
            (line(735, "ASSIGNMENT xtop 735: subxacts: 736"), Goal::Transaction(735), None),
            (line(73, "COMMIT 2026-01-31"), Goal::Transaction(735), None),
            (line(0, "RESTORE_POINT before four"), Goal::Name("before four".into()), at),
            (line(0, "RESTORE_POINT before four"), Goal::Name("before".into()), None),
            ("pg_waldump: first record is after".into(), Goal::Transaction(735), None),
        ] {
            assert_eq!(found(&text, &goal), want, "{text}");
        }
    }
}
