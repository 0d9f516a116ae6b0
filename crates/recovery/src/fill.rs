//! The data directory of a standby, from a repository instead of from a primary: the newest backup that
//! leads to where the primary is, and all the WAL behind it, replayed. What is left streams on.

use crate::{
    Error, Place, Result, choose::Coverage, prove::Work, replay::Replay, restore::restore_command,
    spool::Spool,
};
use sempre_backup::{Backup, Progress, Repository, RestoreOptions};
use sempre_model::{Lsn, Timeline};
use sempre_postgres::{History, Instance};
use serde::{Deserialize, Serialize};
use std::{fs, sync::Arc};

/// A data directory that is to be filled.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fill {
    /// Whose. Its server is stopped; what is in the data directory is used where it is right.
    pub instance: Box<Instance>,
    /// From where.
    pub place: Place,
    /// The cluster's.
    pub system_identifier: u64,
    /// The primary's history, which is followed; none: there is no primary, and the newest timeline there
    /// is is followed to its end.
    pub history: Option<History>,
    /// Files at a time.
    pub threads: usize,
}

/// What it was filled with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filled {
    /// The backup.
    pub backup: String,
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes that came from the repository; the rest was there already.
    pub fetched_bytes: u64,
    /// The timeline it is on.
    pub timeline: Timeline,
    /// All WAL up to here is replayed.
    pub end: Lsn,
}

impl Fill {
    /// Does it. `fetch_command` is the program that answers `restore_command`, with its first arguments.
    /// What is in the data directory after an error is of no use, but for another try.
    pub async fn run(&self, fetch_command: &[String], progress: Arc<Progress>) -> Result<Filled> {
        let instance = &self.instance;
        let repository = self.place.open().await?;
        repository.expect_cluster(instance.me.as_str(), self.system_identifier)?;
        let backups = repository.backups().await?;
        let segment_bytes = backups.last().map_or(16 << 20, |backup| backup.wal_segment_bytes);
        let coverage = Coverage::read(&repository, segment_bytes).await?;
        let major = instance.installation.major;
        let usable = |backup: &&Backup| backup.version_num / 10_000 == major;
        let usable: Vec<_> = backups.iter().filter(usable).cloned().collect();
        let (backup, history, reach) = newest(&usable, &coverage, self.history.as_ref())?;
        let data_dir = &instance.layout.data_dir;
        let options = RestoreOptions { threads: self.threads, delta: true, ..Default::default() };
        let files = repository.restore_files(&backup, data_dir, options, progress).await?;
        let label = data_dir.join("backup_label");
        fs::write(&label, &backup.label).map_err(Error::io("write", &label))?;
        self.replay(&repository, &backup, &history, reach, fetch_command).await?;
        let (timeline, end) = instance.end_of_filled_wal().await?;
        Ok(Filled {
            backup: backup.id,
            bytes: files.bytes,
            fetched_bytes: files.fetched_bytes,
            timeline,
            end,
        })
    }

    async fn replay(
        &self,
        repository: &Repository,
        backup: &Backup,
        history: &History,
        reach: Lsn,
        fetch_command: &[String],
    ) -> Result<()> {
        let data_dir = &self.instance.layout.data_dir;
        // It may not be in the repository yet: the primary has only just been promoted.
        let known = data_dir.join("pg_wal").join(format!("{:08X}.history", history.timeline.0));
        fs::write(&known, text(history)).map_err(Error::io("write", &known))?;
        let work = Work::make(data_dir)?;
        let spool_dir = work.0.join("wal");
        let mut spool = Spool::new(&spool_dir, repository.clone(), backup.wal_segment_bytes)?;
        let command = restore_command(fetch_command, &spool_dir);
        let installation = &self.instance.installation;
        let mut server =
            Replay::follow(installation, data_dir, &work.0, history.timeline, &command)?;
        tokio::select! {
            biased;
            served = spool.serve_to_end(reach.0.saturating_sub(1) / backup.wal_segment_bytes) => served?,
            error = server.fails() => return Err(error),
        }
        // Its last question is answered, so that it can end.
        tokio::select! {
            biased;
            failed = spool.serve() => match failed? {},
            stopped = server.stop() => stopped,
        }
    }
}

/// The newest backup whose WAL leads along the history, the history itself, and how far it leads.
fn newest(
    backups: &[Backup],
    coverage: &Coverage,
    history: Option<&History>,
) -> Result<(Backup, History, Lsn)> {
    let fits = |backup: &Backup| {
        let history = match history {
            Some(history) => history.clone(),
            None => coverage.newest_from(backup.timeline, backup.stop),
        };
        // One that ended after its timeline's part of the history is of another future.
        let on_it = history.end_of(backup.timeline).is_some_and(|end| backup.stop <= end);
        let reach = coverage.reach(backup.start, &history);
        (on_it && reach >= backup.stop).then(|| (backup.clone(), history, reach))
    };
    backups.iter().rev().find_map(fits).ok_or_else(|| {
        let of = match history {
            Some(history) => format!(" of timeline {} or one before it", history.timeline),
            None => String::new(),
        };
        Error::Unreachable(format!(
            "none of its {} backups of this version of PostgreSQL is{of}, with the WAL that it needs",
            backups.len()
        ))
    })
}

/// As PostgreSQL writes it.
fn text(history: &History) -> String {
    let line = |(timeline, end): &(Timeline, Lsn)| format!("{timeline}\t{end}\tsempre\n");
    history.ancestors.iter().map(line).collect()
}
