//! What a member takes from a repository that a failover relies on: the WAL that it lacks, or all of it.

use super::{DataDir, Local, Step, answers, outdated, record};
use crate::promote;
use sempre_model::{
    Member,
    record::{Fenced, Phase},
};

/// The repository of the sync set that has come furthest, if any is fenced: its name, where it is.
fn furthest_archive(local: &Local) -> Option<(String, Fenced)> {
    if outdated(local) || !matches!(record(local).phase, Phase::Fencing { .. }) {
        return None;
    }
    let archives = promote::fenced_archives(&local.view).into_iter();
    let furthest = archives.max_by_key(|f| (f.timeline, f.lsn))?;
    let repository = record(local).archive(&furthest.member)?;
    let place = record(local).backups.repositories.get(repository)?;
    place.is_reached_by(local.view.me).then(|| (repository.to_owned(), furthest))
}

/// What a repository has beyond this standby was acknowledged, perhaps: whoever is promoted must
/// have it.
pub(super) fn take_archived(local: &Local) -> Option<Step> {
    let (repository, archived) = furthest_archive(local)?;
    let mine = local.view.observation(local.view.me)?.fenced.as_ref()?;
    let behind = mine.generation == record(local).generation
        && mine.timeline <= archived.timeline
        && !mine.contains(archived.timeline, archived.lsn);
    let able = local.running && answers(local) && local.armed.is_none();
    (behind && able && local.view.now >= local.retry_at).then_some(Step::TakeArchived {
        repository,
        timeline: archived.timeline,
        lsn: archived.lsn,
    })
}

/// Nobody has the data but a repository: the first of those without any restores itself.
pub(super) fn recover_from_backup(local: &Local) -> Option<Step> {
    let (repository, archived) = furthest_archive(local)?;
    let policy = &record(local).policy;
    let waited = local.view.now.saturating_sub(local.view.since);
    if !policy.recover_from_backup
        || waited < policy.recover_from_backup_after_ms
        || local.data != DataDir::Missing
        || local.running
        || local.view.now < local.retry_at
    {
        return None;
    }
    let place = record(local).backups.repositories.get(&repository)?;
    let heard = |m: &&Member| m.can_lead() && local.view.database(&m.name).is_some();
    let has_data = |m: &Member| local.view.database(&m.name).is_some_and(|d| d.has_data);
    let fenced = |m: &Member| local.view.observation(&m.name).is_some_and(|o| o.fenced.is_some());
    let members: Vec<&Member> = record(local).data_members().filter(heard).collect();
    if members.iter().any(|m| has_data(m) && fenced(m)) {
        return None;
    }
    let first = members.iter().find(|m| !has_data(m) && place.is_reached_by(&m.name))?;
    (first.name == *local.view.me).then_some(Step::Recover {
        repository,
        timeline: archived.timeline,
        lsn: archived.lsn,
    })
}
