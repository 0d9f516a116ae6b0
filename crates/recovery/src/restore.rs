//! Bringing a server back: files of a base backup, then WAL up to the goal, then a clean stop. What is left
//! is a data directory that can be started, or adopted as the first member of a cluster.

use crate::{
    Error, Result,
    choose::{Coverage, Goal, choose, show_time},
    locate::locate,
    prove::Work,
    replay::Replay,
    spool::Spool,
};
use sempre_backup::{Backup, Progress, Repository, RestoreOptions, Restored};
use sempre_model::{Lsn, Timeline};
use sempre_postgres::Installation;
use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

/// What the server says when the goal is not in its WAL.
const TARGET_NOT_REACHED: &str = "recovery ended before configured recovery target was reached";

/// A restore.
#[derive(Clone, Debug)]
pub struct Restore<'a> {
    /// From where.
    pub repository: &'a Repository,
    /// With these programs.
    pub installation: &'a Installation,
    /// To where.
    pub target: &'a Path,
    /// To which moment.
    pub goal: Goal,
    /// From this backup; without: the nearest before the goal.
    pub backup: Option<&'a str>,
    /// How the files come back.
    pub options: RestoreOptions,
    /// The program that answers `restore_command`, with its first arguments: `SPOOL FILE TARGET` follow.
    pub fetch_command: Vec<String>,
}

/// What was restored.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// From this backup.
    pub backup: Backup,
    /// Files that came back.
    pub files: Restored,
    /// How long the files took.
    pub files_took: Duration,
    /// How long replaying WAL took, with the start of the server.
    pub replay_took: Duration,
    /// The timeline it is on now.
    pub timeline: Timeline,
    /// Where it begins to differ from what was: the end of what was replayed.
    pub end: Lsn,
}

impl Restore<'_> {
    /// Does it. What is in the target after an error is of no use, but for another try with
    /// `delta`.
    pub async fn run(&self, progress: Arc<Progress>) -> Result<Recovered> {
        let backup = self.chosen().await?;
        let began = Instant::now();
        let files =
            self.repository.restore_files(&backup, self.target, self.options.clone(), progress);
        let files = files.await?;
        let label = self.target.join("backup_label");
        fs::write(&label, &backup.label).map_err(Error::io("write", &label))?;
        let files_took = began.elapsed();
        let began = Instant::now();
        let work = Work::make(self.target)?;
        let mut spool =
            Spool::new(&work.0.join("wal"), self.repository.clone(), backup.wal_segment_bytes)?;
        let command = self.restore_command(&work.0.join("wal"));
        let mut replay =
            Replay::start(self.installation, self.target, &work.0, &self.goal, &command, None)?;
        let session = tokio::select! {
            biased;
            failed = spool.serve() => match failed? {},
            session = replay.recovered() => session.map_err(|e| self.explain(e, &backup))?,
        };
        let (timeline, _) = session.position().await?;
        let end = session.history().await?.ancestors.last().map(|(_, end)| *end);
        drop(session);
        replay.stop().await?;
        Ok(Recovered {
            backup,
            files,
            files_took,
            replay_took: began.elapsed(),
            timeline,
            end: end.unwrap_or_default(),
        })
    }

    /// PostgreSQL's "recovery ended before configured recovery target was reached", in words that help.
    pub(crate) fn explain(&self, error: Error, backup: &Backup) -> Error {
        match &error {
            Error::Replay { log, .. } if log.contains(TARGET_NOT_REACHED) => {}
            _ => return error,
        }
        Error::Unreachable(match &self.goal {
            Goal::Time(at) => format!(
                "no commit after {} is in the WAL that is kept: either it ends before, or nothing was committed since. Without --to-time all of it is restored",
                show_time(*at)
            ),
            goal => format!(
                "{goal:?} was not found in the WAL behind backup {}: if it is from before that backup, name an earlier one (--backup)",
                backup.id
            ),
        })
    }

    pub(crate) async fn chosen(&self) -> Result<Backup> {
        let backups = match self.backup {
            Some(name) => vec![self.repository.backup(name).await?],
            None => self.repository.backups().await?,
        };
        let segment_bytes = backups.last().map_or(16 << 20, |backup| backup.wal_segment_bytes);
        let coverage = Coverage::read(self.repository, segment_bytes).await?;
        match (&self.goal, self.backup) {
            // They do not say which backup is before them.
            (Goal::Name(_) | Goal::Transaction(_) | Goal::BeforeTransaction(_), None) => {
                let (repository, installation) = (self.repository, self.installation);
                let at =
                    locate(repository, installation, self.target, &coverage, &backups, &self.goal);
                choose(&backups, &coverage, &Goal::Lsn(at.await?)).cloned()
            }
            _ => choose(&backups, &coverage, &self.goal).cloned(),
        }
    }

    pub(crate) fn restore_command(&self, spool: &Path) -> String {
        restore_command(&self.fetch_command, spool)
    }
}

/// `program` answers a server's `restore_command`, from this folder.
pub(crate) fn restore_command(program: &[String], spool: &Path) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "'\\''")).replace('%', "%%");
    let mut words: Vec<String> = program.iter().map(|word| quoted(word)).collect();
    words.push(quoted(&spool.to_string_lossy()));
    // The server puts its own words in these places.
    words.extend(["%f".to_owned(), "%p".to_owned()]);
    words.join(" ")
}
