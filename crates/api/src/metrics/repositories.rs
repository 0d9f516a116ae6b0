//! Backup repositories.

use super::{Page, seconds};
use crate::status::Status;

pub(super) fn write(status: &Status, page: &mut Page) {
    let all = &status.repositories;
    if all.is_empty() {
        return;
    }
    let mut gauge = |name: &str, help: &str, value: &dyn Fn(usize) -> Option<f64>| {
        page.head(name, "gauge", help);
        for (index, repository) in all.iter().enumerate() {
            if let Some(value) = value(index) {
                page.sample(name, &[("repository", repository.name.as_str())], value);
            }
        }
    };
    gauge("sempre_archive_running", "1: a member keeps the WAL in this repository.", &|n| {
        Some(f64::from(u8::from(all[n].archive.is_some())))
    });
    gauge(
        "sempre_archive_lag_bytes",
        "WAL of the primary that is not in this repository yet, bytes.",
        &|n| all[n].lag_bytes.map(|bytes| bytes as f64),
    );
    gauge(
        "sempre_archive_lag_seconds",
        "For how long this repository has not had all WAL of the primary.",
        &|n| all[n].rpo_ms.map(seconds),
    );
    gauge(
        "sempre_backup_last_success_timestamp_seconds",
        "When the newest base backup in this repository was made.",
        &|n| all[n].newest_unix_ms.map(seconds),
    );
    gauge("sempre_backup_running", "1: a base backup is being made.", &|n| {
        Some(f64::from(u8::from(all[n].order.is_some())))
    });
    gauge("sempre_backup_last_failed", "1: the last base backup failed.", &|n| {
        let ended = all[n].ended.as_ref()?;
        Some(f64::from(u8::from(ended.outcome.is_err())))
    });
    gauge("sempre_backup_alarms", "Backups with alarms that nobody has accepted.", &|n| {
        Some(all[n].alarms.len() as f64)
    });
    gauge("sempre_restore_proved_seconds", "How long the last proved restore took.", &|n| {
        Some(seconds(all[n].proved.as_ref()?.as_ref().ok()?.rto_ms))
    });
    gauge(
        "sempre_restore_proved_timestamp_seconds",
        "When a restore from this repository was last proved.",
        &|n| Some(seconds(all[n].proved.as_ref()?.as_ref().ok()?.at_unix_ms)),
    );
}
