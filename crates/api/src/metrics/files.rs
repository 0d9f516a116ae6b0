//! Files that are backed up.

use super::{Page, seconds};
use crate::{backup::FilesStatus, status::Status};

pub(super) fn write(status: &Status, page: &mut Page) {
    let all: Vec<(&str, &FilesStatus)> = status
        .repositories
        .iter()
        .flat_map(|repository| {
            repository.files.iter().map(|files| (repository.name.as_str(), files))
        })
        .collect();
    if all.is_empty() {
        return;
    }
    let mut gauge = |name: &str, help: &str, value: &dyn Fn(&FilesStatus) -> Option<f64>| {
        page.head(name, "gauge", help);
        for (repository, files) in &all {
            if let Some(value) = value(files) {
                let labels = [("repository", *repository), ("files", files.name.as_str())];
                page.sample(name, &labels, value);
            }
        }
    };
    gauge(
        "sempre_files_last_success_timestamp_seconds",
        "When the newest backup of these files was made.",
        &|files| files.newest_unix_ms.map(seconds),
    );
    gauge("sempre_files_running", "1: a backup of these files is being made.", &|files| {
        Some(f64::from(u8::from(files.order.is_some())))
    });
    gauge("sempre_files_last_failed", "1: the last backup of these files failed.", &|files| {
        Some(f64::from(u8::from(files.ended.as_ref()?.outcome.is_err())))
    });
}
