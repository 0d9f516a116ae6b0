//! Backup repositories, as the members know them.

use crate::{Snapshot, backup::RepositoryStatus};

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
        }
    };
    backups.repositories.iter().map(status).collect()
}
