//! Backup repositories, as the members know them.

use super::{Oddity, files, oddities::odd};
use crate::{
    Snapshot,
    backup::RepositoryStatus,
    units::{show_ms, show_time_short},
};

/// An archiver is missed when nobody said for so long that it archives, ms.
const ARCHIVER_MISSED_MS: u64 = 5_000;
/// A base backup is overdue after so many intervals.
const OVERDUE: u64 = 2;

/// Every repository of the record, with what its archiver says.
pub(super) fn repositories(snapshot: &Snapshot) -> Vec<RepositoryStatus> {
    let backups = &snapshot.record.backups;
    let primary = snapshot.record.primary.as_ref().and_then(|name| snapshot.database(name));
    let status = |(name, repository): (&String, &sempre_model::backup::Repository)| {
        let archives = snapshot.seen.iter().filter_map(|(member, seen)| {
            Some((member, *seen.observation.archives.get(name)?, seen.age_ms))
        });
        // One that fell silent is older than who took over from it.
        let archive = archives.min_by_key(|(_, _, age_ms)| *age_ms);
        let progress = snapshot.seen.values().find_map(|s| s.observation.backing_up.get(name));
        let lag_bytes = archive.map(|(_, archive, _)| {
            let end = primary.map_or(archive.server, |d| d.lsn.max(archive.server));
            end.bytes_since(archive.flushed)
        });
        RepositoryStatus {
            name: name.clone(),
            place: repository.store.to_string(),
            archiver: archive.map(|(member, ..)| member.clone()),
            archive: archive.map(|(_, archive, _)| archive),
            lag_bytes,
            order: backups.orders.get(name).cloned(),
            progress: progress.copied(),
            ended: backups.ended.get(name).cloned(),
            newest_unix_ms: backups.newest_unix_ms.get(name).copied(),
            rpo_ms: archive.map(|(_, archive, age_ms)| archive.behind_ms.max(age_ms)),
            proved: backups.proved.get(name).cloned(),
            alarms: backups.alarms.get(name).cloned().unwrap_or_default(),
            key_is_replaced: backups.next_keys.contains_key(name),
            files: files::files(snapshot, name),
        }
    };
    backups.repositories.iter().map(status).collect()
}

/// What is not as it should be with backups.
pub(super) fn oddities(
    snapshot: &Snapshot,
    repositories: &[RepositoryStatus],
    found: &mut Vec<Oddity>,
) {
    let (record, now) = (&snapshot.record, snapshot.now_unix_ms);
    let policy = &record.policy;
    for repository in repositories {
        let name = &repository.name;
        let made = record.backups.repositories.get(name).map_or(now, |known| known.made_unix_ms);
        match (&repository.archive, repository.rpo_ms) {
            (None, _) if now.saturating_sub(made) > ARCHIVER_MISSED_MS => found.push(odd(
                format!("nobody archives WAL in repository {name}"),
                format!("no member that reaches {} does it", repository.place),
                "look at the notes of the members below, and at their logs; until then a restore ends where the WAL does",
            )),
            (Some(_), Some(rpo)) if policy.backup_rpo_ms > 0 && rpo > policy.backup_rpo_ms => {
                found.push(odd(
                    format!("repository {name} is {} behind", show_ms(rpo)),
                    format!("the policy allows {} (backup_rpo_ms)", show_ms(policy.backup_rpo_ms)),
                    "make the way to the repository faster, or put it somewhere nearer",
                ));
            }
            _ => {}
        }
        if let Some(ended) = &repository.ended
            && let Err(why) = &ended.outcome
        {
            found.push(odd(
                format!("the last backup in {name} failed"),
                format!("{}, at {} UTC: {why}", ended.member, show_time_short(ended.at_unix_ms)),
                "correct the cause; `sempre backup run` tries again",
            ));
        }
        let newest = repository.newest_unix_ms.unwrap_or(made);
        let age = now.saturating_sub(newest);
        if policy.backup_interval_ms > 0 && age > OVERDUE * policy.backup_interval_ms {
            found.push(odd(
                format!("the newest backup in {name} is {} old", show_ms(age)),
                format!("one is due each {}", show_ms(policy.backup_interval_ms)),
                "`sempre backup run` says why none is made",
            ));
        }
        proof(policy.backup_rto_ms, repository, found);
        let tried = record.backups.drilled_unix_ms.get(name).copied();
        // Before the first backup there is nothing to be tried.
        let since = tried.or(repository.newest_unix_ms.map(|_| made)).unwrap_or(now);
        let age = now.saturating_sub(since);
        if policy.drill_interval_ms > 0 && age > OVERDUE * policy.drill_interval_ms {
            let last = if tried.is_some() { "" } else { " at all" };
            found.push(odd(
                format!("no restore from {name} was tried{last} for {}", show_ms(age)),
                format!("one is due each {}", show_ms(policy.drill_interval_ms)),
                "look at the logs of the members; `sempre drill restore` tries one by hand",
            ));
        }
        care(repository, found);
        files::oddities(snapshot, &repository.files, found);
    }
}

fn care(repository: &RepositoryStatus, found: &mut Vec<Oddity>) {
    let name = &repository.name;
    for alarm in &repository.alarms {
        found.push(odd(
            format!("something is odd about backup {} in {name}", alarm.backup),
            alarm.words.join("; "),
            format!(
                "look into it before it is too late: the backup before it is kept. If all is well: `sempre backup accept {}`",
                alarm.backup
            ),
        ));
    }
    if repository.key_is_replaced {
        found.push(odd(
            format!("the key of repository {name} is being replaced"),
            "that was begun, and is not finished: the old key or the new one opens it".to_owned(),
            "`sempre backup key --rotate` goes on with it",
        ));
    }
}

fn proof(target_ms: u64, repository: &RepositoryStatus, found: &mut Vec<Oddity>) {
    let name = &repository.name;
    match &repository.proved {
        Some(Err(why)) => found.push(odd(
            format!("the last drill could not restore from {name}"),
            why.clone(),
            "correct the cause, and prove it: `sempre drill restore`",
        )),
        Some(Ok(proof)) if target_ms > 0 && proof.rto_ms > target_ms => found.push(odd(
            format!("a restore from {name} takes {}", show_ms(proof.rto_ms)),
            format!("the policy allows {} (backup_rto_ms)", show_ms(target_ms)),
            "make base backups more often (less WAL to replay), or the way to the repository faster",
        )),
        None if target_ms > 0 => found.push(odd(
            format!("no restore from {name} was ever proved"),
            format!("the policy wants one within {} (backup_rto_ms)", show_ms(target_ms)),
            "`sempre drill restore`",
        )),
        _ => {}
    }
}
