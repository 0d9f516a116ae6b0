//! What operators ask about files.

use super::orders::{Answer, Orders, which};
use crate::looper::Shown;
use sempre_api::{
    ActionError,
    backup::{FilesRequest, ListedSnapshot},
    codes,
};
use sempre_model::backup::{BackupChange, FileSet, FilesChange};
use sempre_recovery::Place;
use serde_json::json;

impl Orders {
    pub(super) async fn answer_files(&self, shown: &Shown, request: FilesRequest) -> Answer {
        let record = &shown.record;
        match request {
            FilesRequest::Add { name, repository, member, paths, excludes } => {
                let repository = which(record, repository.as_deref())?.to_owned();
                let set = FileSet { repository: repository.clone(), member, paths, excludes };
                let change = FilesChange::Add(set);
                let version =
                    self.propose(BackupChange::Files { name: name.clone(), change }).await?;
                Ok(json!({"files": name, "repository": repository, "version": version}))
            }
            FilesRequest::Remove { name } => {
                let change = FilesChange::Remove;
                let version = self.propose(BackupChange::Files { name, change }).await?;
                Ok(json!({"version": version}))
            }
            FilesRequest::Run { name, full } => {
                let Some(kept) = record.backups.files.get(&name) else {
                    let known: Vec<_> = record.backups.files.keys().map(String::as_str).collect();
                    let why = match known.is_empty() {
                        true => format!("there are no files `{name}`, nor others"),
                        false => {
                            format!("there are no files `{name}`; there are {}", known.join(", "))
                        }
                    };
                    return Err(codes::REFUSED.error("no backup was begun", why));
                };
                let set = kept.set.clone();
                let change = FilesChange::Order { full };
                let version =
                    self.propose(BackupChange::Files { name: name.clone(), change }).await?;
                Ok(json!({
                    "files": name, "repository": set.repository, "member": set.member, "version": version,
                }))
            }
        }
    }
}

/// The snapshots of files in a repository.
pub(super) async fn snapshots(place: &Place) -> Result<Vec<ListedSnapshot>, ActionError> {
    let listed = async { Ok::<_, sempre_recovery::Error>(place.files()?.snapshots().await?) };
    let listed = listed.await.map_err(|error| {
        codes::REPOSITORY
            .error(format!("repository {} is not usable", place.name), error.to_string())
    })?;
    let snapshot = |snapshot: sempre_recovery::FilesSnapshot| ListedSnapshot {
        id: snapshot.id,
        files: snapshot.set,
        member: snapshot.member,
        at_unix_ms: snapshot.at_unix_ms,
        paths: snapshot.paths,
        entries: snapshot.entries,
        bytes: snapshot.bytes,
        stored_bytes: snapshot.stored_bytes,
        took_ms: snapshot.took_ms,
    };
    Ok(listed.into_iter().map(snapshot).collect())
}
