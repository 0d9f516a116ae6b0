//! What retention does not keep goes: backups are forgotten, then what nobody refers to is removed, then WAL
//! that no backup needs.

use crate::{Result, clock::unix_ms};
use sempre_backup::{Repository, Retention, Verdict, oldest_needed_wal};
use sempre_model::{Lsn, Policy};

/// The policy's rules.
pub fn retention(policy: &Policy) -> Retention {
    Retention {
        last: policy.backup_keep_last,
        hourly: policy.backup_keep_hourly,
        daily: policy.backup_keep_daily,
        weekly: policy.backup_keep_weekly,
        monthly: policy.backup_keep_monthly,
        yearly: policy.backup_keep_yearly,
        window_ms: policy.backup_window_ms,
    }
}

/// What went, or would go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Backups.
    pub backups: Vec<String>,
    /// Bytes of blocks and lists that nobody refers to.
    pub bytes: u64,
    /// Segments of WAL.
    pub wal_segments: usize,
    /// Objects that the store keeps for a while yet.
    pub too_early: usize,
    /// Why some things stay although they may be in nobody's use.
    pub blocked: Vec<String>,
}

/// What [`prune`] would do now: each backup with its reasons. Changes nothing.
pub async fn plan_prune(repository: &Repository, rules: &Retention) -> Result<Vec<Verdict>> {
    Ok(repository.plan_retention(rules, unix_ms()).await?)
}

/// Removes what the rules do not keep.
pub async fn prune(repository: &Repository, rules: &Retention) -> Result<Pruned> {
    let plan = plan_prune(repository, rules).await?;
    let backups = repository.apply_retention(&plan).await?;
    let collected = repository.collect(unix_ms()).await?;
    let kept = repository.backups().await?;
    // A writer that is at work may need WAL from before it was heard of: none is removed meanwhile.
    let writers: Vec<Option<Lsn>> =
        if repository.has_live_writers().await? { vec![None] } else { Vec::new() };
    let wal_segments = match (oldest_needed_wal(&kept, &writers), kept.last()) {
        (Some(oldest), Some(newest)) => {
            repository.trim_wal(oldest, newest.wal_segment_bytes).await?
        }
        _ => 0,
    };
    let (bytes, too_early) = (collected.bytes(), collected.too_early);
    Ok(Pruned { backups, bytes, wal_segments, too_early, blocked: collected.blocked })
}
