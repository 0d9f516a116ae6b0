//! Backups of files: ordered by the leader when they are due, made by the member that has the files.

use super::{Keeper, RETRY_AFTER, Reached, worker::Key};
use crate::{clock, looper::Shown};
use sempre_model::{
    Command, Record,
    backup::{BackupChange, BackupMade, FilesChange},
    command::Change,
};
use sempre_recovery::{FileSet, Job, retention};
use tokio::time::Instant;

/// What this member is to back up now.
pub(super) fn wanted(record: &Record, reached: &Reached) -> Vec<(Key, Job)> {
    let me = &reached.me;
    let mine = record.backups.files.iter().filter(|(_, kept)| kept.set.member == *me);
    let jobs = mine.filter_map(|(name, kept)| {
        let order = kept.order.as_ref()?;
        let set = FileSet {
            name: name.clone(),
            member: me.to_string(),
            paths: kept.set.paths.clone(),
            excludes: kept.set.excludes.clone(),
        };
        let place = reached.place(record, &kept.set.repository)?;
        let retention = retention(&record.policy);
        let max_bytes_per_s = Some(record.policy.backup_max_bytes_per_s).filter(|rate| *rate > 0);
        let full = order.full;
        let job = Job::Files { set, place, full, max_bytes_per_s, retention };
        Some((Key::Files(name.clone(), order.version), job))
    });
    jobs.collect()
}

impl Keeper {
    /// Orders what is due.
    pub(super) async fn order_files(&mut self, shown: &Shown, now_unix_ms: u64) {
        for name in sempre_decide::files::due(&shown.record, now_unix_ms) {
            self.ordered = Instant::now();
            let change = FilesChange::Order { full: false };
            if let Err(error) = self.propose_files(name, change).await {
                tracing::warn!(%error, "a backup of files is due, and was not ordered");
            }
        }
    }

    /// The record learns what came of an order. Should that fail, the order stands, and is carried out
    /// again: what is in the repository already is not copied twice.
    pub(super) async fn end_files(&mut self, key: Key, outcome: Result<BackupMade, String>) {
        let Key::Files(name, version) = &key else { return };
        let (name, version) = (name.clone(), *version);
        if let Err(why) = &outcome {
            tracing::warn!(files = %name, %why, "files were not backed up");
        }
        self.view.backing_up.remove(&sempre_model::backup::files_progress(&name));
        let change = FilesChange::End { version, outcome };
        if let Err(error) = self.propose_files(name, change).await {
            tracing::warn!(%error, "what came of a backup of files is not in the record");
        }
        self.running.remove(&key);
        self.pauses.insert(key, Instant::now() + RETRY_AFTER);
    }

    async fn propose_files(
        &self,
        name: String,
        change: FilesChange,
    ) -> Result<(), sempre_consensus::ProposeError> {
        let change = Change::Backup(Box::new(BackupChange::Files { name, change }));
        let command = Command { at_unix_ms: clock::now_unix_ms(), change };
        self.consensus.propose(command).await.map(|_| ())
    }
}
