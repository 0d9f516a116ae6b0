//! Folders that are backed up.

use super::{Oddity, oddities::odd};
use crate::{
    Snapshot,
    backup::FilesStatus,
    units::{show_ms, show_time_short},
};
use sempre_model::backup::files_progress;

/// A backup is overdue after so many intervals.
const OVERDUE: u64 = 2;

/// Those of one repository.
pub(super) fn files(snapshot: &Snapshot, repository: &str) -> Vec<FilesStatus> {
    let all = snapshot.record.backups.files.iter();
    let here = all.filter(|(_, kept)| kept.set.repository == repository);
    let status = |(name, kept): (&String, &sempre_model::backup::KeptFiles)| {
        let key = files_progress(name);
        let progress = snapshot.seen.values().find_map(|s| s.observation.backing_up.get(&key));
        FilesStatus {
            name: name.clone(),
            set: kept.set.clone(),
            order: kept.order.clone(),
            progress: progress.copied(),
            ended: kept.ended.clone(),
            newest_unix_ms: kept.newest_unix_ms,
        }
    };
    here.map(status).collect()
}

/// What is not as it should be with them.
pub(super) fn oddities(snapshot: &Snapshot, files: &[FilesStatus], found: &mut Vec<Oddity>) {
    let (record, now) = (&snapshot.record, snapshot.now_unix_ms);
    for files in files {
        let (name, member) = (&files.name, &files.set.member);
        if !record.members.contains_key(member) {
            found.push(odd(
                format!("files {name} are not backed up"),
                format!("their member {member} is no longer in the cluster"),
                format!("`sempre backup files remove {name}`, and add them on another member"),
            ));
            continue;
        }
        if let Some(ended) = &files.ended
            && let Err(why) = &ended.outcome
        {
            found.push(odd(
                format!("the last backup of files {name} failed"),
                format!("{}, at {} UTC: {why}", ended.member, show_time_short(ended.at_unix_ms)),
                format!("correct the cause; `sempre backup run --files {name}` tries again"),
            ));
        }
        let interval = record.policy.backup_interval_ms;
        let added = record.backups.files.get(name).map_or(now, |kept| kept.added_unix_ms);
        let age = now.saturating_sub(files.newest_unix_ms.unwrap_or(added));
        if interval > 0 && age > OVERDUE * interval {
            found.push(odd(
                format!("the newest backup of files {name} is {} old", show_ms(age)),
                format!("one is due each {}, made by {member}", show_ms(interval)),
                format!("`sempre backup run --files {name}` says why none is made"),
            ));
        }
    }
}
