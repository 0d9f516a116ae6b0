//! Fences of repositories that the sync set relies on, while a failover goes on.

use super::Reached;
use crate::looper::Shown;
use sempre_model::{Generation, Lsn, Phase, Record, backup::archiver_of, record::Fenced};
use sempre_recovery::Job;
use std::sync::Arc;
use tokio::sync::watch;

/// The fence of a repository that the sync set relies on, while there is no primary.
pub(super) fn wanted(shown: &Shown, name: &str, reached: &Reached) -> Option<Job> {
    let record = &shown.record;
    let relied = record.sync.members.iter().any(|m| record.archive(m) == Some(name));
    let known = record.backups.repositories.get(name)?;
    let fencing = matches!(record.phase, Phase::Fencing { .. });
    if !relied || !fencing || !known.is_reached_by(&shown.me) {
        return None;
    }
    // What a primary wrote that never served counts for nothing.
    let timeline = record.history.last()?.timeline;
    Some(Job::Fence { place: reached.place(record, name)?, below: record.generation.0, timeline })
}

/// Until a failover begins that relies on a repository; none: nothing is shown any more.
pub(super) async fn begins(shown: &mut watch::Receiver<Arc<Shown>>) -> Option<()> {
    let wants = |shown: &Shown| {
        matches!(shown.record.phase, Phase::Fencing { .. })
            && shown.record.sync.members.iter().any(|m| shown.record.archive(m).is_some())
    };
    shown.wait_for(|shown| !wants(shown)).await.ok()?;
    shown.wait_for(|shown| wants(shown)).await.ok().map(|_| ())
}

/// What a fence that is up says of the repository.
pub(super) fn fenced(record: &Record, name: &str, generation: u64, lsn: Lsn) -> Option<Fenced> {
    let member = archiver_of(name).ok()?;
    let timeline = record.history.last()?.timeline;
    let generation = Generation(generation);
    tracing::info!(repository = %name, %generation, %timeline, %lsn, "fenced");
    Some(Fenced { member, generation, timeline, lsn, ancestors: Vec::new() })
}
